"""When the parts of a proof are in force.

Decides one thing: a part counts from its first to its last second, both included. Which parts there are, and when they
begin, is read where they are parsed.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import NamedTuple, final

from attestation.checks import Ledger, Step, Unmet


@final
class Window(NamedTuple):
    """When one thing is in force, in Unix seconds, both ends included."""

    begun: Step
    lasts: Step
    what: str
    begin: int
    end: int


def judge_time(ledger: Ledger, windows: Iterable[Window], moment: float) -> None:
    """Both edges count as inside."""
    begun: dict[Step, list[Window]] = {}
    lasts: dict[Step, list[Window]] = {}
    for window in windows:
        begun.setdefault(window.begun, []).append(window)
        lasts.setdefault(window.lasts, []).append(window)
    for demand, group in begun.items():
        newest = max(group, key=lambda window: window.begin)
        detail = f"{newest.what} begins at {_iso(newest.begin)}"
        if moment < newest.begin:
            ledger.failed(demand, Unmet(f"{detail}, judged at {_iso(moment)}", "Check the verifier's clock."))
        else:
            ledger.passed(demand, detail)
    for demand, group in lasts.items():
        first = min(group, key=lambda window: window.end)
        detail = f"{first.what} ends at {_iso(first.end)}"
        if moment > first.end:
            remedy = "Fetch what has ended again; check the verifier's clock."
            ledger.failed(demand, Unmet(f"{detail}, judged at {_iso(moment)}", remedy))
        else:
            ledger.passed(demand, detail)


def _iso(moment: float) -> str:
    try:
        return datetime.fromtimestamp(moment, UTC).isoformat().replace("+00:00", "Z")
    except (OverflowError, ValueError, OSError):
        return f"{moment} s"
