"""What the subcommands of `cli` share: reading files within bounds, reading options, and printing for people.

Decides exit statuses and how marks, colours and foreign text appear on a terminal.
"""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

FINE: Final = 0
REFUSED: Final = 1
USAGE: Final = 2
MALFORMED: Final = 3
UNJUDGED: Final = 4

_COLOURS: Final = {"good": "32", "bad": "31", "warn": "33", "dim": "2", "bold": "1"}


class UsageError(Exception):
    """The command line is wrong: exit status 2, and a sentence that says what to change."""


def read_file(path: str, most: int) -> bytes:
    """At most `most` + 1 bytes of a file, or of standard input for "-"; the caller refuses what is too long.

    Raises UsageError when it cannot be read.
    """
    try:
        if path == "-":
            if sys.stdin is None:
                raise UsageError("cannot read -: standard input is closed")
            return sys.stdin.buffer.read(most + 1)
        with Path(path).open("rb") as file:
            return file.read(most + 1)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error


def read_quote(path: str, most: int) -> bytes:
    """A quote from a file of raw bytes, or of hex digits and white space alone (no raw quote looks like that)."""
    raw = read_file(path, 2 * most + 4096)
    text = b"".join(raw.split())
    if text and len(text) % 2 == 0 and not text.translate(None, b"0123456789abcdefABCDEF"):
        return bytes.fromhex(text.decode())
    return raw


def read_time(text: str) -> datetime:
    """RFC 3339, or Unix seconds. Raises UsageError."""
    try:
        if text.isascii() and text.isdigit():
            return datetime.fromtimestamp(int(text), UTC)
        moment = datetime.fromisoformat(text)
        in_utc = moment.astimezone(UTC)  # what is in the year 1 or 9999 here may be in no year there
    except (ValueError, OverflowError, OSError) as error:
        raise UsageError(f"{text!r} is neither a time as 2026-08-14T12:00:00Z nor Unix seconds") from error
    if moment.tzinfo is None:
        raise UsageError(f"{text!r} names no time zone; add Z for UTC")
    return in_utc


def read_hex(text: str, size: int, what: str) -> bytes:
    """Exactly `size` bytes. Raises UsageError."""
    try:
        value = bytes.fromhex(text)
    except ValueError:
        value = b""
    if len(value) != size or len(text) != 2 * size:
        raise UsageError(f"{what} is {size} bytes, so {2 * size} hex digits")
    return value


def moment(at: datetime) -> str:
    """RFC 3339 in UTC."""
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def paint(text: str, style: str) -> str:
    """`text` in a colour where standard output is a terminal that wants colours."""
    seen = sys.stdout is not None and sys.stdout.isatty()
    wanted = seen and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    return f"\x1b[{_COLOURS[style]}m{text}\x1b[0m" if wanted else text


def plain(text: str) -> str:
    """Foreign text without anything that a terminal would obey."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def prepare_output() -> None:
    """Marks like ✓ must not stop a command where the terminal can't show them."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")
