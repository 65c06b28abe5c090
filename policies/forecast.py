"""When the decision on recorded evidence will change, and why.

Decides nothing about the evidence itself: it collects every moment at which something that the decision rests on ends
(collateral, certificates, revocation lists, dates in the bundle), judges just before and at each of them, and reports
those at which the answer changes or at which something must be renewed for it to stay. With the collateral of the
`early` channel it also tells what the next TCB recovery will do to this platform, down to the SVN that will be missing.

Evidence is taken to be attested afresh at each moment: an agent does that every few minutes, so its age says nothing.
Dates in the bundle are judged as if the collateral had been renewed by then, so that its end does not hide them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from attestation.chains import judge_pck_chain
from attestation.collateral import Collateral
from attestation.endorsements import endorse
from attestation.errors import AttestationError, VerificationFailed
from attestation.pki import TrustRoots
from attestation.quote import Quote
from attestation.tcb import UP_TO_DATE
from attestation.verifier import NOT_COMPARED, verify_quote
from policies.bundle import Bundle
from policies.model import Action
from policies.recording import Recording, facts_of
from policies.replay import Answer, answer, judged

SECOND: Final = timedelta(seconds=1)
RENEWABLE: Final = ("TCB info", "QE identity", "PCK CRL", "root CRL")
"""What a broker fetches anew by itself; its end changes a decision only where that fails."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One future moment. `changes` tells whether the decision on this very recording changes there.

    what        the document, certificate or bundle entry that ends
    renewable   a broker renews it by itself; otherwise somebody has to act
    codes       why it is refused from then on; component, missing: which SVN will be too low, and by how much
    """

    at: datetime
    what: str
    changes: bool
    renewable: bool
    decision: str
    codes: tuple[str, ...] = ()
    where: str = ""
    mend: str = ""
    missing: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {
            "at": self.at.isoformat(),
            "what": self.what,
            "changes": self.changes,
            "renewable": self.renewable,
            "decision": self.decision,
            "codes": list(self.codes),
            "where": self.where,
            "mend": self.mend,
            "missing": list(self.missing),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What lies ahead of one recording, from `at` on. `change` is the first moment at which the decision changes."""

    name: str
    at: datetime
    now: Answer
    events: tuple[Event, ...]

    @property
    def change(self) -> Event | None:
        return next((event for event in self.events if event.changes), None)

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "at": self.at.isoformat(),
            "now": self.now.to_dict(),
            "change": self.change.to_dict() if self.change else None,
            "events": [event.to_dict() for event in self.events],
        }


def forecast(
    bundle: Bundle, recording: Recording, action: Action, *, at: datetime, early: Collateral | None = None
) -> Forecast:
    """Everything ahead of a recording after `at`, earliest first."""
    now = answer(bundle, recording, action, at=at)
    events: list[Event] = []
    if early is not None and (coming := _coming(bundle, recording, action, at, now, early)):
        events.append(coming)
    previous = {"": now, "bundle": now}
    for moment, what, where in sorted(_moments(bundle, recording)):
        if moment > at:
            lane = "bundle" if where else ""
            then = (
                _renewed(bundle, recording, action, at, moment)
                if where
                else answer(bundle, recording, action, at=moment)
            )
            events.append(_event(moment, what, where, previous[lane], then))
            previous[lane] = then
    return Forecast(name=recording.name, at=at, now=now, events=tuple(events))


def _renewed(bundle: Bundle, recording: Recording, action: Action, at: datetime, moment: datetime) -> Answer:
    """The answer at a moment by which everything has been renewed that a broker renews by itself."""
    try:
        facts = facts_of(recording, at=at, allow=bundle.allowances(at))
    except AttestationError as error:
        return Answer(permitted=False, codes=(error.code.value,), detail=error.detail)
    return judged(bundle, replace(facts, verified_at=moment, valid_until=moment + SECOND), action, moment, "cloister")


def _event(moment: datetime, what: str, where: str, previous: Answer, then: Answer) -> Event:
    renewable = what.startswith(RENEWABLE)
    if where:
        mend = f"renew or replace it in {where}"
    elif renewable:
        mend = "fetch it anew before then; brokers do so by themselves"
    else:
        mend = "the certificate must be replaced by then"
    return Event(
        at=moment,
        what=what,
        changes=(previous.permitted, previous.codes) != (then.permitted, then.codes),
        renewable=renewable,
        decision="permit" if then.permitted else "refuse",
        codes=then.codes,
        where=where,
        mend=mend,
    )


def _roots(recording: Recording) -> TrustRoots:
    return TrustRoots.from_pem(recording.root.encode()) if recording.root else TrustRoots.intel()


def _moments(bundle: Bundle, recording: Recording) -> Iterator[tuple[datetime, str, str]]:
    """First moment after each end: collateral and certificates hold through their last second, bundle dates do not."""
    roots = _roots(recording)
    windows = endorse(recording.collateral, roots).windows
    with suppress(AttestationError):  # a quote that cannot be read has no chain that could end
        windows += judge_pck_chain(Quote.parse(recording.quote), roots).windows
    for what, end in {(window.what, window.end) for window in windows}:
        yield datetime.fromtimestamp(end, UTC) + SECOND, f"{what} ends", ""
    for moment, what, file, line in bundle.ends():
        yield moment, f"{what} ends", f"{file}:{line}"


def _coming(
    bundle: Bundle, recording: Recording, action: Action, at: datetime, now: Answer, early: Collateral
) -> Event | None:
    """What the `early` collateral will mean once it becomes `standard`. Nothing when it changes nothing."""
    later = replace(recording, collateral=early)
    endorsed = endorse(early, _roots(recording))
    moment = at
    if endorsed.tcb_info is not None:
        moment = max(at, datetime.fromtimestamp(endorsed.tcb_info.issued, UTC))
    then = answer(bundle, later, action, at=moment)
    short = missing_svns(later, moment)
    if (now.permitted, now.codes) == (then.permitted, then.codes) and not short:
        return None
    number = f" {endorsed.tcb_info.evaluation_number}" if endorsed.tcb_info else ""
    return Event(
        at=moment,
        what=f"TCB evaluation{number} of the early channel becomes standard",
        changes=(now.permitted, now.codes) != (then.permitted, then.codes),
        renewable=False,
        decision="permit" if then.permitted else "refuse",
        codes=then.codes,
        mend="update the platform before then: " + "; ".join(short) if short else "see the codes",
        missing=short,
    )


def missing_svns(recording: Recording, at: datetime) -> tuple[str, ...]:
    """The SVNs that keep the platform from UpToDate under the recording's collateral, each with has and needs."""
    try:
        verify_quote(
            Quote.parse(recording.quote),
            recording.collateral,
            report_data=NOT_COMPARED,
            roots=_roots(recording),
            at=at,
            accept=UP_TO_DATE,
        )
    except VerificationFailed as error:
        return tuple(dict.fromkeys(str(short) for check in error.checks for short in check.short))
    except AttestationError:
        return ()
    return ()
