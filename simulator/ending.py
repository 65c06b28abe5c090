"""Until somebody wants a serving command to end: SIGTERM and SIGINT are heard whenever they come.

Decides how they are waited for. A wait for a lock is deaf to a signal that comes in the moment before it begins, or
that another thread takes, until the next one comes; and a handler that sets an event which its own thread is about to
wait for waits for itself. What the interpreter writes into a pipe, by whichever thread, stays there until it is read.
"""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType
from typing import Any, Final, Self, final

ENDING: Final = (signal.SIGTERM, signal.SIGINT)


@final
class Ending:
    """A context manager for the main thread: inside, these signals are kept for `wait` and do nothing else."""

    def __enter__(self) -> Self:
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._pipe_before = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        self._before: dict[int, Any] = {number: signal.signal(number, _pass) for number in ENDING}
        return self

    def wait(self) -> None:
        """Return once one of them has come, at once if it has come already."""
        while not any(number in ENDING for number in os.read(self._reading, 64)):
            pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Whoever asks twice has been heard: what was before is put back at the very end."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._pipe_before)
        os.close(self._reading)
        os.close(self._writing)


def _pass(number: int, _: FrameType | None) -> None:
    """The interpreter has written the number into the pipe; it does so only for signals that have a handler."""
