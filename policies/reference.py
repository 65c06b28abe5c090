"""Reference values: what a workload's measurements must be, which value comes nearest, and what would make it match.

Decides whether facts show a known workload. A workload has one or more accepted values side by side (old and new image
during a roll-out), each with its provenance and, if wanted, an end date. Reading them from files is `bundle`'s work.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from policies.codes import PolicyCode
from policies.errors import Reason
from policies.model import Facts

ANY: Final = "any"
FILE: Final = "reference-values.toml"
REGISTERS: Final = (
    "mr_td",
    "rtmr0",
    "rtmr1",
    "rtmr2",
    "rtmr3",
    "mr_seam",
    "mr_config_id",
    "mr_owner",
    "mr_owner_config",
    "mr_service_td",
)
ATTRIBUTES: Final = ("td_attributes", "xfam")
PINNED_FOR_LAUNCHES: Final = ("mr_td", "rtmr1", "rtmr2")


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """One accepted set of measurements.

    fields         register or attribute → hex, or "any" (mr_td alone, and only with `until`)
    launches       the whole ordered list of launch digests, or None when launches are not read
    more_launches  whether further launches may follow the listed ones
    other_events   whether RTMR3 may hold events other than launches
    events         digests that must be in the event log, in any register
    source         provenance: who built this and how one can tell
    """

    fields: tuple[tuple[str, str], ...]
    source: str
    line: int
    launches: tuple[str, ...] | None = None
    more_launches: bool = False
    other_events: bool = False
    events: tuple[str, ...] = ()
    until: datetime | None = None
    lines: tuple[tuple[str, int], ...] = ()

    def line_of(self, key: str) -> int:
        return dict(self.lines).get(key, self.line)

    def pinned(self) -> dict[str, str]:
        return {key: value for key, value in self.fields if value != ANY}


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A named program or image that rules can speak of."""

    name: str
    line: int
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """A workload that the facts show, and until when the matching value holds."""

    workload: str
    until: datetime | None


def match_workloads(workloads: Iterable[Workload], facts: Facts, at: datetime) -> tuple[Match, ...]:
    """Every workload with a value that the facts meet and that has not ended."""
    found: list[Match] = []
    for workload in workloads:
        ends = [value.until for value in workload.values if _alive(value, at) and not _differences(value, facts)]
        if ends:
            until = None if None in ends else max(end for end in ends if end)
            found.append(Match(workload=workload.name, until=until))
    return tuple(found)


def _alive(value: Value, at: datetime) -> bool:
    return value.until is None or at < value.until


@dataclass(frozen=True, slots=True, kw_only=True)
class _Difference:
    code: PolicyCode
    key: str
    expected: str
    found: str
    passes_if: str


def _differences(value: Value, facts: Facts) -> tuple[_Difference, ...]:
    different = [
        _Difference(
            code=PolicyCode.MEASUREMENT,
            key=key,
            expected=wanted,
            found=getattr(facts, key) or "none",
            passes_if=f"{key} is {wanted}",
        )
        for key, wanted in value.fields
        if wanted != ANY and getattr(facts, key) != wanted
    ]
    if value.launches is not None or value.events:
        different.extend(_log_differences(value, facts))
    return tuple(different)


def _log_differences(value: Value, facts: Facts) -> list[_Difference]:
    """What the event log shows against the listed launches and events. No log shows nothing, which never matches."""
    if not facts.event_log_present:
        key = "launches" if value.launches is not None else "events"
        passes = "the event log is sent with the quote"
        return [
            _Difference(code=PolicyCode.EVENT_LOG, key=key, expected="an event log", found="none", passes_if=passes)
        ]
    different: list[_Difference] = []
    if value.launches is not None:
        different.extend(_launch_differences(value, value.launches, facts))
    logged = {digest for register in facts.event_digests for digest in register}
    different.extend(
        _Difference(
            code=PolicyCode.EVENT,
            key="events",
            expected=wanted,
            found="not in the log",
            passes_if=f"the image measures an event with digest {wanted}",
        )
        for wanted in value.events
        if wanted not in logged
    )
    return different


def _launch_differences(value: Value, wanted: tuple[str, ...], facts: Facts) -> list[_Difference]:
    seen = tuple(launch.digest for launch in facts.launches)
    compared = seen[: len(wanted)] if value.more_launches else seen
    different: list[_Difference] = []
    if compared != wanted:
        passes = f"exactly {len(wanted)} launch(es) happen, in this order: {_short(wanted)}"
        if len(seen) > len(wanted) and seen[: len(wanted)] == wanted:
            passes += ", or more_launches = true allows later ones"
        different.append(
            _Difference(
                code=PolicyCode.LAUNCHES,
                key="launches",
                expected=_short(wanted),
                found=_short(seen),
                passes_if=passes,
            )
        )
    events = len(facts.event_digests[3]) if len(facts.event_digests) > 3 else 0
    if not value.other_events and events != len(seen):
        different.append(
            _Difference(
                code=PolicyCode.LAUNCHES,
                key="other_events",
                expected=f"nothing in RTMR3 but the {len(seen)} launch(es)",
                found=f"{events} events",
                passes_if="nothing else extends RTMR3, or other_events = true accepts it",
            )
        )
    return different


def _short(digests: tuple[str, ...]) -> str:
    return "[" + ", ".join(digests) + "]"


def unmatched(workloads: tuple[Workload, ...], facts: Facts, at: datetime) -> tuple[Reason, ...]:
    """Why no workload matches: every difference to the nearest value, which is the one that differs in least.

    A value that matches but has ended is nearest of all, and is reported as ended.
    """
    candidates = [
        (len(different), not _alive(value, at), position, workload, value, different)
        for position, (workload, value) in enumerate(
            (workload, value) for workload in workloads for value in workload.values
        )
        for different in (_differences(value, facts),)
    ]
    if not candidates:
        return (Reason(code=PolicyCode.MEASUREMENT, rule="workload", file=FILE, line=1, expected="a workload"),)
    _, ended, _, workload, value, different = min(candidates, key=lambda candidate: candidate[:3])
    nearest = f"{workload.name} ({value.source})"
    reasons = [
        Reason(
            code=item.code,
            rule=f"workload.{workload.name}.{item.key}",
            file=FILE,
            line=value.line_of(item.key),
            expected=item.expected,
            found=item.found,
            nearest=nearest,
            passes_if=item.passes_if,
        )
        for item in different
    ]
    if ended and value.until:
        reasons.append(
            Reason(
                code=PolicyCode.REFERENCE_ENDED,
                rule=f"workload.{workload.name}.until",
                file=FILE,
                line=value.line_of("until"),
                expected=f"a decision before {value.until.date().isoformat()}",
                found=at.date().isoformat(),
                nearest=nearest,
                passes_if="a newer image with a value of its own runs, or `until` is extended",
            )
        )
    return tuple(reasons)
