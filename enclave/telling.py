"""How a failure in an author's own code is told: what was raised, and where in his files.

Decides what may be said of it. A trust domain's standard error is the host's to read, so the text of an exception,
which may quote a plaintext, stays out of it; type, file, line and function are measured code and say nothing of data.
Errors of ours hold no secret and are told whole. In a simulated domain, which protects nothing, the whole traceback
follows: `show_everything` says so once for the process.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, final

from attestation.errors import CloisterError

log: Final = logging.getLogger("cloister.agent")
trace: Final = logging.getLogger("cloister.agent.trace")
trace.setLevel(logging.INFO)  # what it says is for DEBUG, so nothing, unless `show_everything` was called
_OURS: Final = (f"{Path(__file__).parent}/", f"{Path(asyncio.__file__).parent}/", "<frozen ")


@final
class Trouble:
    """Says each trouble of the connection once, until it is over: it mends by itself, and that needs no more words."""

    def __init__(self, *, expected: str) -> None:
        self._expected, self._told = expected, ""

    def tell(self, error: CloisterError) -> None:
        new = error.code not in (self._expected, self._told)
        log.log(logging.WARNING if new else logging.DEBUG, "mail stream: %s: %s", error.code, error.detail)
        self._told = str(error.code) if new else self._told

    def over(self) -> None:
        if self._told:
            log.info("mail stream: connected again")
        self._told = ""


def show_everything() -> None:
    """From now on whole tracebacks are logged too: nothing in this process is protected anyway."""
    trace.setLevel(logging.DEBUG)


@contextmanager
def everything_shown() -> Iterator[None]:
    """The same for a while: in tests."""
    before = trace.level
    show_everything()
    try:
        yield
    finally:
        trace.setLevel(before)


def told(error: BaseException) -> str:
    """One line: `ZeroDivisionError at hello.py:21 in greet`."""
    what = f"{error.code}: {error.detail}" if isinstance(error, CloisterError) else type(error).__name__
    return f"{what}{place(error)}"


def place(error: BaseException) -> str:
    """` at hello.py:21 in greet`: the innermost line that is neither this framework's nor asyncio's; or nothing."""
    frames = _authors(traceback.extract_tb(error.__traceback__))
    return f" at {_short(frames[-1].filename)}:{frames[-1].lineno} in {frames[-1].name}" if frames else ""


def follow_up(error: BaseException) -> None:
    """Log the traceback of what is not an error of ours, where that may be shown."""
    if not isinstance(error, CloisterError):
        trace.debug("%s", full(error))


def full(error: BaseException) -> str:
    """The traceback as Python writes it, without the frames of the framework."""
    found = traceback.TracebackException.from_exception(error)
    kept = _authors(found.stack)
    for frame in kept:
        frame.filename = _short(frame.filename)
    found.stack = traceback.StackSummary.from_list(kept)
    return "".join(found.format()).rstrip()


def _authors(frames: traceback.StackSummary) -> list[traceback.FrameSummary]:
    return [
        frame for frame in frames if not frame.filename.startswith(_OURS) and Path(frame.filename).name != "boot.py"
    ]


def _short(path: str) -> str:
    """As the author knows the file: the copy's own folder means nothing to him."""
    folder = Path(sys.argv[0]).parent
    return Path(path).relative_to(folder).as_posix() if Path(path).is_relative_to(folder) else path
