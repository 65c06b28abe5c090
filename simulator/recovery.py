"""What happens to collateral over time: TCB recoveries, revocations, and a PCS that stops reissuing.

Decides how recorded events, replayed up to a moment, give the evaluation sets and revocations of that moment. Nothing
is ever rewritten: moving the clock back shows the past. How the result becomes signed documents is decided by
`collateral`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any, Final, Self

from simulator.catalogue import FMSPCS, EvaluationSet, Level, first_sets
from simulator.errors import SimulatorCode, SimulatorError

STATES: Final = (
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
    "Revoked",
)
COMPONENT_STATES: Final = ("UpToDate", "OutOfDate", "Revoked")
"""What a TDX module's or a quoting enclave's level can have."""

KINDS: Final = {
    "publish": "a new evaluation set, early at once; levels that were UpToDate become OutOfDate below a new one",
    "promote": "the newest evaluation set becomes the standard one",
    "status": "one level gets another state, advisories, or both",
    "revoke-pck": "a platform's PCK certificate goes on its CA's revocation list",
    "revoke-ca": "a PCK CA goes on the root's revocation list",
    "revoke-tcb-signer": "the TCB signing certificate goes on the root's revocation list",
    "freeze": "nothing is issued any more; what was issued last ages",
    "expire": "freeze, as if it had been 31 days ago: TCB info, identities and PCK revocation lists are past their end",
    "reissue": "documents are issued again",
}
"""Recovery → what it does."""

_ARGUMENTS: Final = {
    "publish": {"what", "fmspc", "tee", "advisories", "standard"},
    "status": {"what", "fmspc", "tee", "svn", "status", "advisories"},
    "revoke-pck": {"serial", "ca"},
    "revoke-ca": {"ca"},
}
EXPIRED_FOR_S: Final = 31 * 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened, at a Unix second."""

    at: int
    kind: str
    arguments: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {"at": self.at, "kind": self.kind, "arguments": self.arguments}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Raises KeyError, TypeError, ValueError: no event. SimulatorError recovery.invalid: a bad one."""
        at, kind, arguments = values["at"], values["kind"], values["arguments"]
        if not isinstance(at, int) or not isinstance(arguments, dict):
            raise ValueError("an event has a time and arguments")
        check(kind, arguments)
        return cls(at=at, kind=kind, arguments=arguments)


def check(kind: str, arguments: dict[str, Any]) -> None:
    """Raises SimulatorError recovery.invalid: unknown kind, argument, state or part."""
    if kind not in KINDS:
        raise _invalid(f"unknown recovery {kind!r}; known are {', '.join(KINDS)}")
    if unknown := set(arguments) - _ARGUMENTS.get(kind, set()):
        raise _invalid(f"{kind} takes no {', '.join(sorted(unknown))}")
    what = arguments.get("what", "platform")
    if what not in ("platform", "module", "qe"):
        raise _invalid(f"{what!r} has no TCB levels; platform, module and qe have")
    if arguments.get("fmspc") not in (None, *FMSPCS):
        raise _invalid(f"no FMSPC {arguments['fmspc']}; known are {', '.join(FMSPCS)}")
    status = arguments.get("status")
    if status is not None and status not in (STATES if what == "platform" else COMPONENT_STATES):
        raise _invalid(f"a level of {what} cannot be {status!r}")
    if kind == "status" and "svn" not in arguments:
        raise _invalid("status needs the svn of the level to change")
    if kind in ("revoke-ca", "revoke-pck") and arguments.get("ca") not in ("platform", "processor"):
        raise _invalid("the CA is platform or processor")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """What holds at one moment."""

    at: int
    """The moment, or the one at which a frozen PCS stopped"""
    sets: tuple[EvaluationSet, ...]
    revoked_pck: dict[tuple[str, int], int]
    """(CA, serial number) → Unix second"""
    revoked_by_root: dict[str, int]
    """platform, processor or tcb-signing → Unix second"""
    changed_at: int
    """The last event's second; 0 when nothing happened yet"""
    revision: int
    """How many events there were: CRL numbers grow with it"""

    def current(self, channel: str) -> EvaluationSet:
        """The newest set of `early` or `standard`."""
        if channel == "early":
            return max((s for s in self.sets if s.early_from <= self.at), key=lambda s: s.number)
        promoted = [s for s in self.sets if s.standard_from is not None and s.standard_from <= self.at]
        return max(promoted, key=lambda s: s.number)

    def numbered(self, number: int) -> EvaluationSet:
        """Raises SimulatorError collateral.retired (once served, no longer) or collateral.unknown."""
        for evaluation in self.sets:
            if evaluation.number == number and evaluation.early_from <= self.at:
                return evaluation
        oldest = min(s.number for s in self.sets)
        if number < oldest:
            raise SimulatorError(SimulatorCode.COLLATERAL_RETIRED, f"evaluation set {number}; the oldest is {oldest}")
        raise SimulatorError(SimulatorCode.COLLATERAL_UNKNOWN, f"evaluation set {number}")


def replay(events: Iterable[Event], at: int) -> Ledger:
    """The ledger at `at`. Events of one second count in the order in which they were recorded."""
    past = sorted((event for event in events if event.at <= at), key=lambda event: event.at)
    moment = at
    for event in past:
        if event.kind in ("freeze", "expire"):
            moment = min(moment, event.at - (EXPIRED_FOR_S if event.kind == "expire" else 0))
        elif event.kind == "reissue":
            moment = at
    ledger = Ledger(at=moment, sets=first_sets(), revoked_pck={}, revoked_by_root={}, changed_at=0, revision=0)
    for event in past:
        if event.at <= moment:
            ledger = _apply(ledger, event)
    return ledger


def _apply(ledger: Ledger, event: Event) -> Ledger:
    arguments = event.arguments
    ledger = replace(ledger, changed_at=event.at, revision=ledger.revision + 1)
    match event.kind:
        case "publish":
            return replace(ledger, sets=(*ledger.sets, _published(ledger, event)))
        case "promote":
            newest = max(ledger.sets, key=lambda s: s.number)
            promoted = replace(newest, standard_from=event.at)
            return replace(ledger, sets=tuple(promoted if s is newest else s for s in ledger.sets))
        case "status":
            return replace(ledger, sets=tuple(_amended(s, arguments) for s in ledger.sets))
        case "revoke-pck":
            entry = {(arguments["ca"], int(arguments["serial"], 16)): event.at}
            return replace(ledger, revoked_pck=entry | ledger.revoked_pck)
        case "revoke-ca":
            return replace(ledger, revoked_by_root={arguments["ca"]: event.at} | ledger.revoked_by_root)
        case "revoke-tcb-signer":
            return replace(ledger, revoked_by_root={"tcb-signing": event.at} | ledger.revoked_by_root)
    return ledger


def _matches(name: str, arguments: dict[str, Any]) -> bool:
    """Whether levels of that name are meant by the event's `what`, `fmspc` and `tee`."""
    fmspc = arguments.get("fmspc") or "*"
    tee = arguments.get("tee")
    match arguments.get("what", "platform"):
        case "platform":
            return fnmatchcase(name, f"{tee or '[st][gd]x'}/{fmspc}")
        case "module":
            return fnmatchcase(name, f"module/{fmspc}/*")
    return fnmatchcase(name, f"qe/{'TD_QE' if tee == 'tdx' else 'QE' if tee == 'sgx' else '*QE'}")


def _published(ledger: Ledger, event: Event) -> EvaluationSet:
    newest = max(ledger.sets, key=lambda s: s.number)
    date = datetime.fromtimestamp(event.at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    advisories = tuple(event.arguments.get("advisories", ()))
    levels = dict(newest.levels)
    for name, ladder in levels.items():
        if _matches(name, event.arguments):
            top = Level(svn=ladder[0].svn + 1, pcesvn=ladder[0].pcesvn, status="UpToDate", date=date)
            levels[name] = (top, *(_outdated(level, advisories) for level in ladder))
    return EvaluationSet(
        number=newest.number + 1,
        tcb_date=date,
        early_from=event.at,
        standard_from=event.at if event.arguments.get("standard") else None,
        levels=levels,
    )


def _outdated(level: Level, advisories: tuple[str, ...]) -> Level:
    status = "OutOfDate" if level.status == "UpToDate" else level.status
    return replace(level, status=status, advisories=tuple(dict.fromkeys((*level.advisories, *advisories))))


def _amended(evaluation: EvaluationSet, arguments: dict[str, Any]) -> EvaluationSet:
    added = tuple(arguments.get("advisories", ()))
    levels = dict(evaluation.levels)
    for name, ladder in levels.items():
        if _matches(name, arguments):
            levels[name] = tuple(
                replace(
                    level,
                    status=arguments.get("status") or level.status,
                    advisories=tuple(dict.fromkeys((*level.advisories, *added))),
                )
                if level.svn == arguments["svn"]
                else level
                for level in ladder
            )
    return replace(evaluation, levels=levels)


def _invalid(detail: str) -> SimulatorError:
    return SimulatorError(SimulatorCode.RECOVERY_INVALID, detail)
