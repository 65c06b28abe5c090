"""The two ways in which policies say no: a bundle that is not usable, and a decision against an agent.

Decides their shape and the redacted twin; which checks make them is decided where the checks are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime

from policies.codes import BundleCode, PolicyCode


class BundleError(Exception):
    """One mistake in a bundle, with the place and a suggestion; `others` are the further ones found in the same go."""

    def __init__(self, code: BundleCode, file: str, line: int, detail: str, hint: str = "") -> None:
        where = f"{file}:{line}" if line else file
        super().__init__(f"{where}: {code}: {detail}" + (f" ({hint})" if hint else ""))
        self.code, self.file, self.line, self.detail, self.hint = code, file, line, detail, hint
        self.others: tuple[BundleError, ...] = ()

    @property
    def all(self) -> tuple[BundleError, ...]:
        """This mistake and every other one, in the order of files and lines."""
        return (self, *self.others)

    def to_dict(self) -> dict[str, str | int]:
        return {"code": self.code, "file": self.file, "line": self.line, "detail": self.detail, "hint": self.hint}


def raise_all(problems: Iterable[BundleError]) -> None:
    """Raise the first problem by file and line, carrying the others. Nothing happens when there is none."""
    ordered = sorted(problems, key=lambda problem: (problem.file, problem.line))
    if ordered:
        first, *rest = ordered
        first.others = tuple(rest)
        raise first


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """One failed check, for the operator.

    rule        id of a Cedar rule, or the key of the bundle that asked ("tcb.accept")
    file, line  where that stands; line 0 for the floor, which stands in no file
    expected    what would have passed; found: what was there; nearest: the accepted value closest to what was found
    passes_if   a counterfactual: the one change that makes this check pass
    """

    code: PolicyCode
    rule: str
    file: str = ""
    line: int = 0
    expected: str = ""
    found: str = ""
    nearest: str = ""
    passes_if: str = ""

    @property
    def where(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file

    def to_dict(self) -> dict[str, str | int]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Redacted:
    """What the remote side may know: that it was refused, and under which codes. No rule, value or file."""

    codes: tuple[str, ...]

    def to_dict(self) -> dict[str, list[str]]:
        return {"codes": list(self.codes)}


class Refused(Exception):
    """The decision is no. `reasons` are all failed checks; the redacted twin is for the side that asked.

    Until `not_after` nothing but another policy or other facts can change it; None: ask again each time.
    """

    def __init__(self, reasons: tuple[Reason, ...], *, not_after: datetime | None = None) -> None:
        super().__init__("; ".join(dict.fromkeys(reason.code.value for reason in reasons)))
        self.reasons = reasons
        self.not_after = not_after

    @property
    def code(self) -> PolicyCode:
        """The first reason's code, for tables that want one."""
        return self.reasons[0].code

    def redacted(self) -> Redacted:
        return Redacted(tuple(dict.fromkeys(reason.code.value for reason in self.reasons)))
