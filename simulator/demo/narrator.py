"""How the demo speaks: numbered steps, short lines, colours on a terminal only, or one JSON object at the end.

Decides the form alone; what is said is the story's. Lines that come from somebody else (an agent, a refusal) are
indented, so that nobody takes a quotation for the narrator.
"""

from __future__ import annotations

import json
import os
import sys
import textwrap
import time
from typing import Any, Final, TextIO, final

WIDTH: Final = 100
_BOLD, _GREEN, _RED, _GREY, _PLAIN = "\033[1m", "\033[32m", "\033[31m", "\033[90m", "\033[0m"


@final
class Narrator:
    """Tells the story as it happens. In JSON mode it is silent and collects."""

    def __init__(self, out: TextIO | None = None, *, as_json: bool = False) -> None:
        self._out = out or sys.stdout
        self._json = as_json
        self._colours = not as_json and self._out.isatty() and "NO_COLOR" not in os.environ
        self._began = time.monotonic()
        self.steps: list[dict[str, Any]] = []

    def title(self, text: str) -> None:
        self._write(self._paint(_BOLD, text))

    def step(self, name: str, text: str) -> None:
        """The next numbered step. `name` is its key in the JSON."""
        self.steps.append({"step": len(self.steps) + 1, "name": name, "title": text, "ok": None, "facts": {}})
        self._write("")
        self._write(self._paint(_BOLD, f"{len(self.steps)}. {text}"))

    def say(self, text: str) -> None:
        for line in textwrap.wrap(text, WIDTH - 3):
            self._write(f"   {line}")

    def quote(self, text: str) -> None:
        """Somebody else's words."""
        for line in textwrap.wrap(text, WIDTH - 7, subsequent_indent="  "):
            self._write(self._paint(_GREY, f"     | {line}"))

    def good(self, text: str, **facts: Any) -> None:
        """The step ended as it should, with what a program may want to know."""
        self._end(True, "✓", _GREEN, text, facts)

    def refused(self, text: str, **facts: Any) -> None:
        """A refusal that the story is about: the step ended as it should, too."""
        self._end(True, "✗ refused:", _RED, text, facts)

    def skipped(self, text: str) -> None:
        self._end(None, "–", _GREY, text, {})

    def summary(self, text: str) -> None:
        took = time.monotonic() - self._began
        if self._json:
            members = {"ok": True, "steps": self.steps, "summary": text, "seconds": round(took, 1)}
            self._out.write(json.dumps(members) + "\n")
        else:
            self._write("")
            for line in textwrap.wrap(f"In {took:.0f} seconds: {text}", WIDTH):
                self._write(line)
        self._out.flush()

    def _end(self, ok: bool | None, mark: str, colour: str, text: str, facts: dict[str, Any]) -> None:
        self.steps[-1]["ok"] = ok
        self.steps[-1]["facts"] |= facts
        first, *more = textwrap.wrap(text, WIDTH - 5)
        self._write(f"   {self._paint(colour, mark)} {first}")
        for line in more:
            self._write(f"     {line}")

    def _paint(self, colour: str, text: str) -> str:
        return f"{colour}{text}{_PLAIN}" if self._colours else text

    def _write(self, line: str) -> None:
        if not self._json:
            self._out.write(line + "\n")
            self._out.flush()
