"""Until somebody wants a serving command to end: SIGTERM and SIGINT are heard whenever they come; and how others end.

Decides how they are waited for, and how long an agent may take. A wait for a lock is deaf to a signal that comes in
the moment before it begins, or that another thread takes, until the next one comes; and a handler that sets an event
which its own thread is about to wait for waits for itself. What the interpreter writes into a pipe, by whichever
thread, stays there until it is read.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any, Final, Self, final

ENDING: Final = (signal.SIGTERM, signal.SIGINT)
PATIENCE_S: Final = (10.0, 5.0)  # to end in order; then, when asked once more, at once


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


def end(launchers: Sequence[subprocess.Popen[Any]]) -> None:
    """Let them end their agents: in order; where that takes too long a launcher that is asked again kills its agent;
    and a launcher that does not end then is killed itself."""
    for patience_s in PATIENCE_S:
        for launcher in launchers:
            launcher.terminate()
        end_s = time.monotonic() + patience_s
        for launcher in launchers:
            with suppress(subprocess.TimeoutExpired):
                launcher.wait(max(0.0, end_s - time.monotonic()))
    for launcher in launchers:
        launcher.kill()
        launcher.wait()
