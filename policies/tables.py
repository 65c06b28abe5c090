"""TOML with lines: typed reading of tables in which every mistake names its file, its line and the nearest good word.

Decides how a value is read and how a mistake is reported; which keys exist is decided by the callers. The standard
library's parser gives no positions for keys, so `line_map` finds them: it walks the text once, knows comments, strings
and brackets, and records on which line each key or table header starts.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from difflib import get_close_matches
from typing import Any, Final

from policies.codes import BundleCode
from policies.errors import BundleError

Path = tuple[str | int, ...]

_HEADER: Final = re.compile(r"^\s*(\[\[?)\s*([^\]]+?)\s*\]\]?\s*(?:#.*)?$")
_KEY: Final = re.compile(
    r"""^\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*'))*)\s*="""
)
_PART: Final = re.compile(r"""[A-Za-z0-9_-]+|"[^"]*"|'[^']*'""")
# Format characters (Cf) that hide or turn text round, and the byte order mark.
_UNSEEN: Final = re.compile("[\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\U000e0000-\U000e007f]")
YEARS: Final = range(1970, 9000)
"""Of dates in bundles: far enough from the ends of what can be computed with."""
_ERROR_LINE: Final = re.compile(r"\(at line (\d+)")


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word closest to `word`, or the empty string when none is close."""
    choices = sorted(known)
    folded = {choice.casefold(): choice for choice in choices}
    found = get_close_matches(word.casefold(), folded, n=1, cutoff=0.5)
    return folded[found[0]] if found else ""


def suggest(word: str, known: Iterable[str]) -> str:
    """A hint: the nearest word if there is one, else the whole list."""
    choices = sorted(known)
    near = nearest(word, choices)
    return f"did you mean {near!r}?" if near else f"one of {', '.join(choices)}" if choices else ""


def line_map(text: str) -> dict[Path, int]:
    """Path of each key and table → line, counted from 1. Array tables have their index in the path."""
    lines: dict[Path, int] = {}
    counts: dict[Path, int] = {}
    here: Path = ()
    scanner = _Scanner()
    for number, line in enumerate(text.splitlines(), 1):
        if not scanner.inside:
            header, key = _HEADER.match(line), _KEY.match(line)
            if header and not key:
                here = _resolve(_parts(header[2]), header[1] == "[[", counts)
                lines.setdefault(here, number)
                continue
            if key:
                lines.setdefault((*here, *_parts(key[1])), number)
                line = line[key.end() :]
        scanner.feed(line)
    return lines


def _parts(dotted: str) -> Path:
    return tuple(part.strip("\"'") for part in _PART.findall(dotted))


def _resolve(parts: Path, array: bool, counts: dict[Path, int]) -> Path:
    """The header's path with the indices of the array tables that it lies in."""
    path: Path = ()
    for position, part in enumerate(parts):
        path = (*path, part)
        if array and position == len(parts) - 1:
            counts[path] = counts.get(path, -1) + 1
        if path in counts:
            path = (*path, counts[path])
    return path


class _Scanner:
    """Whether the next line still belongs to a value: inside a multi-line string, or inside brackets."""

    def __init__(self) -> None:
        self._depth = 0
        self._quote = ""

    @property
    def inside(self) -> bool:
        return bool(self._depth or self._quote)

    def feed(self, line: str) -> None:
        at = 0
        while at < len(line):
            if self._quote:
                at = self._through_string(line, at)
                continue
            char = line[at]
            if char == "#":
                return
            if char in "\"'":
                self._quote = char * 3 if line.startswith(char * 3, at) else char
                at += len(self._quote)
                continue
            self._depth += (char in "[{") - (char in "]}")
            at += 1
        if len(self._quote) == 1:
            self._quote = ""

    def _through_string(self, line: str, at: int) -> int:
        if line[at] == "\\" and '"' in self._quote:
            return at + 2
        if line.startswith(self._quote, at):
            at += len(self._quote)
            self._quote = ""
            return at
        return at + 1


@dataclass(slots=True)
class Document:
    """One TOML file while it is read: its data, where its keys stand, and the mistakes found so far."""

    file: str
    lines: dict[Path, int]
    problems: list[BundleError]

    def complain(self, path: Path, code: BundleCode, detail: str, hint: str = "") -> None:
        self.problems.append(BundleError(code, self.file, self.line(path), detail, hint))

    def line(self, path: Path) -> int:
        """The line of the path, or of the nearest table around it."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


@dataclass(slots=True)
class Table:
    """One table of a document. Each `take` names a known key; `done` complains of all the others."""

    document: Document
    path: Path
    data: Mapping[str, Any]
    known: set[str] = field(default_factory=set)

    def complain(self, key: str, code: BundleCode, detail: str, hint: str = "") -> None:
        self.document.complain((*self.path, key) if key else self.path, code, detail, hint)

    def line(self, key: str = "") -> int:
        return self.document.line((*self.path, key) if key else self.path)

    def name(self, key: str) -> str:
        """The key as people write it: `tcb.accept`, `workload.value.mr_td`."""
        return ".".join(str(part) for part in (*self.path, key) if not isinstance(part, int))

    def take(self, key: str, kinds: type | tuple[type, ...], what: str, *, required: bool = False) -> Any:
        """The value, or None when it is absent or of the wrong type (which is then complained about)."""
        self.known.add(key)
        if key not in self.data:
            if required:
                self.complain("", BundleCode.KEY_MISSING, f"{self.name(key)} is missing", f"add {key} = … ({what})")
            return None
        value = self.data[key]
        wanted = kinds if isinstance(kinds, tuple) else (kinds,)
        if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
            detail = f"{self.name(key)} is {_kind(value)}, need {what}"
            self.complain(key, BundleCode.TYPE, detail, f"write {key} = {_example(what)}")
            return None
        return value

    def text(self, key: str, *, required: bool = False, one_of: Iterable[str] = (), remark: bool = False) -> str:
        """The text; "" when it is absent or wrong. An empty one is a mistake, or it would pass for an absent one;
        remarks, which nothing reads, may be empty."""
        value = self.take(key, str, "a string", required=required)
        choices = tuple(one_of)
        if value is not None and choices and value not in choices:
            self.complain(key, BundleCode.VALUE, f"{self.name(key)} = {value!r} is unknown", suggest(value, choices))
        elif value == "" and not remark:
            self.complain(key, BundleCode.VALUE, f"{self.name(key)} is empty", "write what is meant, or leave it out")
        return value or ""

    def texts(self, key: str, *, required: bool = False, one_of: Iterable[str] = ()) -> tuple[str, ...]:
        value = self.take(key, list, "a list of strings", required=required)
        choices = tuple(one_of)
        good: list[str] = []
        for item in value or ():
            if not isinstance(item, str):
                self.complain(key, BundleCode.TYPE, f"{self.name(key)} holds {_kind(item)}, need strings only")
            elif choices and item not in choices:
                self.complain(key, BundleCode.VALUE, f"{self.name(key)} holds {item!r}", suggest(item, choices))
            elif item in good:
                self.complain(key, BundleCode.DUPLICATE, f"{self.name(key)} holds {item!r} twice", "remove one")
            else:
                good.append(item)
        return tuple(good)

    def number(self, key: str, *, required: bool = False, low: int = 0, high: int = 2**53) -> int | None:
        value: int | None = self.take(key, int, "an integer", required=required)
        if value is not None and not low <= value <= high:
            self.complain(key, BundleCode.VALUE, f"{self.name(key)} = {value}, need {low} to {high}")
            return None
        return value

    def flag(self, key: str) -> bool | None:
        value: bool | None = self.take(key, bool, "true or false")
        return value

    def moment(self, key: str, *, required: bool = False) -> datetime | None:
        """A date ("2027-06-30", midnight UTC) or an RFC 3339 time, as TOML date or as string. Ends are exclusive."""
        value = self.take(key, (str, date), "a date", required=required)
        if value is None:
            return None
        try:
            return to_moment(value)
        except ValueError:
            hint = f'write {key} = "2027-06-30" or "2027-06-30T12:00:00Z"'
            self.complain(key, BundleCode.VALUE, f"{self.name(key)} = {value!r} is not a date", hint)
            return None

    def hexes(self, key: str, length: int) -> tuple[str, ...]:
        return tuple(value for value in self.texts(key) if self.check_hex(key, value, length))

    def hex(self, key: str, length: int, *, required: bool = False, words: tuple[str, ...] = ()) -> str:
        value = self.text(key, required=required)
        return value if not value or value in words or self.check_hex(key, value, length) else ""

    def check_hex(self, key: str, value: str, length: int) -> bool:
        if re.fullmatch(rf"[0-9a-f]{{{length}}}", value):
            return True
        if re.fullmatch(rf"[0-9A-Fa-f]{{{length}}}", value):
            detail, hint = f"{self.name(key)} has upper-case digits", f'write "{value.lower()}"'
        else:
            odd = sorted({char for char in value if char not in "0123456789abcdefABCDEF"})
            detail = f"{self.name(key)} has {len(value)} characters" + (f", {odd} among them" if odd else "")
            hint = f"need {length} lower-case hex digits"
        self.complain(key, BundleCode.VALUE, detail, hint)
        return False

    def table(self, key: str, *, required: bool = False) -> Table:
        value = self.take(key, dict, "a table", required=required)
        return Table(self.document, (*self.path, key), value or {})

    def tables(self, key: str, *, required: bool = False) -> list[Table]:
        value = self.take(key, list, f"tables [[{key}]]", required=required)
        found: list[Table] = []
        for index, item in enumerate(value or ()):
            if isinstance(item, dict):
                found.append(Table(self.document, (*self.path, key, index), item))
            else:
                self.complain(key, BundleCode.TYPE, f"{self.name(key)} holds {_kind(item)}, need tables")
        return found

    def done(self) -> None:
        for key in self.data:
            if key not in self.known:
                detail = f"unknown key {self.name(key)!r}"
                self.complain(key, BundleCode.KEY_UNKNOWN, detail, suggest(key, self.known))


def to_moment(value: str | date) -> datetime:
    """Aware UTC. Raises ValueError for anything that is not a date, or an RFC 3339 time with a zone, in `YEARS`."""
    if isinstance(value, str):
        value = datetime.fromisoformat(value) if len(value) > 10 else date.fromisoformat(value)
    if value.year not in YEARS:
        raise ValueError(f"not in the years {YEARS[0]} to {YEARS[-1]}")
    if not isinstance(value, datetime):
        return datetime(value.year, value.month, value.day, tzinfo=UTC)
    if value.tzinfo is None:
        raise ValueError("no time zone")
    return value.astimezone(UTC)


def read_toml(file: str, raw: bytes, problems: list[BundleError]) -> Table:
    """Parse one file. A syntax error is added to `problems` and gives an empty table that complains of nothing."""
    text = read_text(file, raw, problems)
    if text is None:
        return Table(Document(file, {}, []), (), {})
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = _ERROR_LINE.search(str(error))
        detail = str(error).partition(" (at ")[0]
        line = int(found[1]) if found else text.count("\n") + 1
        problems.append(BundleError(BundleCode.SYNTAX, file, line, detail))
    except ValueError:
        problems.append(BundleError(BundleCode.SYNTAX, file, 1, "a number has too many digits"))
    except RecursionError:
        problems.append(BundleError(BundleCode.SYNTAX, file, 1, "brackets are nested too deeply"))
    else:
        return Table(Document(file, line_map(text), problems), (), data)
    return Table(Document(file, {}, []), (), {})


def read_text(file: str, raw: bytes, problems: list[BundleError]) -> str | None:
    """UTF-8 in which people see what is there. Else a mistake goes to `problems`, and there is no text.

    Characters that show nothing, or that show the text behind them in another order, let a rule say something else to
    its reviewer than to Cedar (Unicode Technical Report 36, section 3; CVE-2021-42574).
    """
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        problems.append(BundleError(BundleCode.SYNTAX, file, line, f"not UTF-8 at byte {error.start}", "save as UTF-8"))
        return None
    if found := _UNSEEN.search(text):
        line = text.count("\n", 0, found.start()) + 1
        detail = f"an invisible character, U+{ord(found[0]):04X}"
        problems.append(BundleError(BundleCode.SYNTAX, file, line, detail, "take it out; where it is meant, escape it"))
        return None
    return text


def _kind(value: object) -> str:
    names = {bool: "true or false", int: "an integer", float: "a decimal number", str: "a string", list: "a list"}
    return names.get(type(value), "a table" if isinstance(value, dict) else "a date")


def _example(what: str) -> str:
    return {
        "a string": '"…"',
        "a list of strings": '["…"]',
        "an integer": "1",
        "a date": '"2027-06-30"',
        "true or false": "true",
    }.get(what, what)
