"""One agent of the demo, as its own process: `cloister run`, just as a reader of the demo would start it.

Decides how its words are heard: one JSON object a line on standard output is an event, everything else is kept for the
case that something goes wrong. Waits for events, never for time alone.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Final, Self, final

from simulator.ending import end

HOME: Final = Path(__file__).resolve().parent.parent.parent
PATIENCE_S: Final = 30.0
LOOK_S: Final = 0.5
_END: Final = {"event": "end"}


class DemoFailed(Exception):
    """The story did not go as it must; the demo ends with status 1."""


@final
class Interruption:
    """SIGTERM and SIGINT end the demo through every clean-up, but never between a start and its clean-up."""

    def __init__(self) -> None:
        self._number = 0
        self._held = False

    def handle(self, number: int, _: FrameType | None) -> None:
        """The signal handler. Later signals are ignored: nothing interrupts the cleaning up."""
        if not self._number:
            self._number = number
            if not self._held:
                raise SystemExit(128 + number)

    @contextmanager
    def held(self) -> Iterator[None]:
        """What is done inside is done whole; a signal meanwhile takes effect afterwards."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        self.check()

    def check(self) -> None:
        """Take effect, if a signal has come and what it raised was lost, in an import for example."""
        if self._number:
            raise SystemExit(128 + self._number)


interruption: Final = Interruption()


@final
class AgentProcess:
    """A context manager: leaving it ends the process, and the measured copy with it."""

    def __init__(self, agent: Path, *, surroundings: Sequence[str], arguments: Sequence[str] = ()) -> None:
        self.name = agent.stem
        self._events: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._words: deque[str] = deque(maxlen=60)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "cloister", "run", str(agent), "--simulated", *surroundings, "--", *arguments],
            env={**os.environ, "PYTHONPATH": str(HOME)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._readers = [
            threading.Thread(target=self._read_events, daemon=True),
            threading.Thread(target=self._read_words, daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def expect(self, event: str, accept: Callable[[dict[str, Any]], bool] = lambda _: True) -> dict[str, Any]:
        """The next event of that name that `accept` takes; others are passed over. Raises DemoFailed."""
        while True:
            try:
                found = self._next()
            except queue.Empty:
                raise DemoFailed(f"{self.name} did not come to {event!r} in {PATIENCE_S:g} s\n{self.words}") from None
            if found is _END:
                raise DemoFailed(f"{self.name} ended before {event!r}\n{self.words}")
            if found["event"] == event and accept(found):
                return found

    def _next(self) -> dict[str, Any]:
        """In short waits: one that has begun a moment after a signal is not interrupted by it. Raises queue.Empty."""
        end_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < end_s:
            interruption.check()
            with suppress(queue.Empty):
                return self._events.get(timeout=LOOK_S)
        raise queue.Empty

    def wait(self) -> int:
        """Exit status of a process that ends by itself. Raises DemoFailed."""
        try:
            status = self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise DemoFailed(f"{self.name} did not end in {PATIENCE_S:g} s\n{self.words}") from None
        for reader in self._readers:
            reader.join(PATIENCE_S)
        return status

    @property
    def words(self) -> str:
        """What it said on standard error, the last lines."""
        return "\n".join(self._words)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        end([self._process])
        for reader in self._readers:
            reader.join(5)
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()

    def _read_events(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                found = json.loads(line)
            except ValueError:
                self._words.append(line.rstrip())
                continue
            if isinstance(found, dict) and "event" in found:
                self._events.put(found)
        self._events.put(_END)

    def _read_words(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._words.append(line.rstrip())
