"""What a verification is asked for, checked before anything is judged.

Decides which arguments no caller should pass: those are a TypeError or ValueError, never a refusal, because a refusal
would blame the quote. What the right ones mean is decided in `verifier`.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Final, final

from attestation.appraisal import Allowance
from attestation.pki import TrustRoots
from attestation.quote import Quote
from attestation.tcb import TcbStatus

if TYPE_CHECKING:
    from attestation.evidence import Binding

_REPORT_DATA: Final = 64
_NO_REPORT_DATA: Final = bytes(_REPORT_DATA)
_STATES: Final = frozenset(TcbStatus)
_ALLOWANCES: Final = frozenset(Allowance)


@final
class NotCompared:
    """The type of NOT_COMPARED."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "NOT_COMPARED"


NOT_COMPARED: Final = NotCompared()
"""Say so explicitly: REPORT_DATA is not compared. Then nothing can be admitted on the strength of the quote."""


def expected_of(report_data: bytes | Binding | NotCompared) -> bytes | None:
    """The 64 bytes to compare with. Nothing may match by being empty."""
    if report_data is NOT_COMPARED:
        return None
    expected = report_data if type(report_data) is bytes else _bound(report_data)
    if len(expected) != _REPORT_DATA:
        raise ValueError(f"the expected REPORT_DATA has {len(expected)} bytes, not {_REPORT_DATA}")
    if expected == _NO_REPORT_DATA:
        raise ValueError("an all-zero REPORT_DATA is what a quote without a question holds; it can't be expected")
    return expected


def _bound(report_data: object) -> bytes:
    """What a Binding commits to. A quote has REPORT_DATA too: it must never be compared with itself."""
    from attestation.evidence import Binding  # only those who bind pay for the import

    if not isinstance(report_data, Binding):
        raise TypeError("report_data is 64 bytes, a Binding, or NOT_COMPARED")
    return report_data.report_data


def unix_seconds(at: object) -> float:
    """Of an aware datetime."""
    if not isinstance(at, datetime) or at.utcoffset() is None:
        raise TypeError("at must be an aware datetime")
    return at.timestamp()


def demand_known(accept: frozenset[object], allow: frozenset[object]) -> None:
    """A text is a set of letters: taken for one, it would refuse everything for the wrong reason."""
    if not (accept <= _STATES and allow <= _ALLOWANCES):
        raise TypeError("accept is a set of TcbStatus members, allow a set of Allowance members")


def demand_roots(roots: TrustRoots) -> None:
    if type(roots) is not TrustRoots:
        raise TypeError("roots are TrustRoots")


def demand_quote(quote: Quote) -> None:
    """What looks like a quote could show one body and have signed another."""
    if type(quote) is not Quote:
        raise TypeError("quote comes from Quote.parse()")
