"""What a lab's broker says while it runs, in lines for the person in front of it rather than for a log collector.

Decides their shape, and what is left out: that the root is not Intel's and that the broker is simulated, the lab has
said already. Every refusal is followed by its reasons, each with what would make it pass, as far as the operator's log
knows them; with `--json` the same records are JSON lines.
"""

from __future__ import annotations

import logging
import re
import sys
import textwrap
from datetime import datetime
from typing import IO, Final, final

SAID: Final = frozenset({"trust.root", "broker.attested"})
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_FIRST: Final = ("subject", "tenant", "resource", "codes")
_UNPRINTABLE: Final = re.compile(r"[^\x20-\x7e\u00a0-\ud7ff…]")
_MAX: Final = 400


@final
class People(logging.Formatter):
    """`12:30:58 secret.refused  agent/lab/0w0H…  acme/x/y`, and below it one line for each reason."""

    def format(self, record: logging.LogRecord) -> str:
        told = {name: value for name, value in vars(record).items() if name not in _STANDARD}
        reasons = told.pop("reasons", ())
        told.pop("correlation_id", None)
        first = [_text(told.pop(name)) for name in _FIRST if name in told]
        rest = [f"{name} {_text(value)}" for name, value in told.items()]
        if record.exc_info and record.exc_info[0] is not None:
            rest.append(record.exc_info[0].__name__)
        at = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        lines = ["  ".join([f"{at} {record.getMessage()}", *first, *rest])]
        return "\n".join([*lines, *(f"         {_text(reason)}" for reason in reasons)])


def speak_to_people(stream: IO[str] | None = None) -> None:
    """Send what the broker warns of to the stream, stderr unless given, for people."""
    root = logging.getLogger("cloister")
    for handler in list(root.handlers):
        root.removeHandler(handler)
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(People())
    handler.addFilter(lambda record: record.getMessage() not in SAID)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    root.propagate = False


def _text(value: object) -> str:
    """Some of it comes from strangers, so nothing in it may drive the terminal."""
    joined = " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return textwrap.shorten(_UNPRINTABLE.sub("?", joined), _MAX, placeholder=" …")
