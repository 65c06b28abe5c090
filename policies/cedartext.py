"""Cedar text cut into rules, clauses and single conditions, each with the line on which it stands.

Decides positions only: Cedar's own parser gives none. What the pieces mean is Cedar's to say; this file never
evaluates anything. The cut is safe because `&&` binds tighter than only `||` and `if`, and a clause that has one of
those at its top level is left whole.
"""

from __future__ import annotations

import itertools
import re
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

_OPEN: Final = {"(": ")", "{": "}", "[": "]"}
_ID: Final = re.compile(r'@id\s*\(\s*"((?:[^"\\]|\\.)*)"\s*\)')
_LINE_END: Final = re.compile(r"[\n\r]")  # where Cedar's own lexer ends a comment
_CLAUSE: Final = re.compile(r"\b(when|unless)\s*$")


@dataclass(frozen=True, slots=True)
class Clause:
    """One condition: a piece of a `when` body between two `&&`, or a whole `unless` body."""

    kind: str
    text: str
    line: int

    @property
    def expression(self) -> str:
        """The condition as an expression that must be true."""
        return self.text if self.kind == "when" else f"!({self.text})"


@dataclass(frozen=True, slots=True)
class RuleText:
    """One policy as it stands in a file, without its closing semicolon's trailing text.

    id is as the text has it, escapes and all; nesting is that of the deepest bracket; size counts what stands outside
    strings, comments and blanks.
    """

    text: str
    line: int
    id: str
    id_line: int
    clauses: tuple[Clause, ...]
    complete: bool
    nesting: int
    size: int


def split_rules(source: str) -> list[RuleText]:
    """Every rule of a file, in order. A last piece without a semicolon comes with `complete` False."""
    rules: list[RuleText] = []
    start = 0
    depth = 0
    for at, char in _code(source):
        depth += (char in "({[") - (char in ")}]")
        if char == ";" and depth <= 0:
            rules.append(_rule(source, start, at + 1, complete=True))
            start, depth = at + 1, 0
    if any(not char.isspace() for _, char in _code(source, start)):
        rules.append(_rule(source, start, len(source), complete=False))
    return rules


def _rule(source: str, start: int, end: int, *, complete: bool) -> RuleText:
    code = [(at, char) for at, char in _code(source, start, end) if not char.isspace()]
    begin = code[0][0] if code else start
    found = _ID.search(_blank(source, begin, end, strings=True))
    depths = itertools.accumulate((char in "({[") - (char in ")}]") for _, char in code)
    return RuleText(
        text=source[begin:end],
        line=_line(source, begin),
        id=found[1] if found else "",
        id_line=_line(source, begin + found.start()) if found else _line(source, begin),
        clauses=tuple(_clauses(source, begin, end)),
        complete=complete,
        nesting=max(depths, default=0),
        size=len(code),
    )


def _clauses(source: str, start: int, end: int) -> Iterator[Clause]:
    depth = 0
    opened = start
    kind = ""
    for at, char in _code(source, start, end):
        if char in _OPEN:
            if depth == 0 and char == "{":
                found = _CLAUSE.search(_blank(source, start, at))
                kind, opened = (found[1] if found else ""), at + 1
            depth += 1
        elif char in _OPEN.values():
            depth -= 1
            if depth == 0 and char == "}" and kind:
                yield from _pieces(source, opened, at, kind)
                kind = ""


def _pieces(source: str, start: int, end: int, kind: str) -> Iterator[Clause]:
    """A clause's body cut at its top-level `&&`, unless it is an `unless`, or `||` or `if` stands at the top level."""
    cuts: list[int] = []
    depth = 0
    whole = kind == "unless"
    code = list(_code(source, start, end))
    for at, char in code:
        depth += (char in "({[") - (char in ")}]")
        if depth == 0:
            pair = source[at : at + 2]
            whole = whole or pair == "||" or bool(re.match(r"\bif\b", source[at : at + 3]) and not _in_word(source, at))
            if pair == "&&":
                cuts.append(at)
    solid = [at for at, char in code if not char.isspace()]
    edges = [start, *([] if whole else cuts)]
    for index, left in enumerate(edges):
        first = left + 2 if index else left
        right = edges[index + 1] if index + 1 < len(edges) else end
        place = bisect_left(solid, first)
        begin = solid[place] if place < len(solid) else first
        text = _strip(source, begin, right)
        if text:
            yield Clause(kind, text, _line(source, begin))


def _in_word(source: str, at: int) -> bool:
    return at > 0 and (source[at - 1].isalnum() or source[at - 1] in "_.")


def _strip(source: str, start: int, end: int) -> str:
    """The text without comments, on one line."""
    return " ".join(_blank(source, start, end, strings=True).split())


def _blank(source: str, start: int, end: int, *, strings: bool = False) -> str:
    """The text with comments (and, unless wanted, the inside of strings) replaced by blanks."""
    kept = [" "] * (end - start)
    for at, char in _code(source, start, end, strings=strings):
        kept[at - start] = char
    return "".join(kept)


def _code(source: str, start: int = 0, end: int | None = None, *, strings: bool = False) -> Iterator[tuple[int, str]]:
    """Characters outside comments and string literals, with their position. `strings` gives the literals too."""
    at, size = start, len(source) if end is None else end
    while at < size:
        char = source[at]
        if char == "/" and source.startswith("//", at):
            found = _LINE_END.search(source, at)
            at = found.start() if found else size
        elif char == '"':
            stop = at + 1
            while stop < size and source[stop] != '"':
                stop += 2 if source[stop] == "\\" else 1
            stop = min(stop + 1, size)
            if strings:
                yield from ((place, source[place]) for place in range(at, stop))
            at = stop
        else:
            yield at, char
            at += 1


def _line(source: str, at: int) -> int:
    return source.count("\n", 0, at) + 1
