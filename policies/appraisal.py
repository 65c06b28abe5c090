"""What a verdict must show before any rule about actions is asked: TCB, platform, allowances, workload, age.

Decides how the requirements and the reference values make one appraisal of facts, and from when until when it stays
the same. Reads no file and asks no engine. What each requirement asks is decided in `requirements`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from policies.errors import Reason
from policies.model import Facts
from policies.reference import Match, match_workloads, unmatched
from policies.requirements import CURRENT, GRACE, STALE, age, allowances, needed_allowances, platform, tcb, words
from policies.settings import Settings

_STANDINGS: Final = (CURRENT, GRACE, STALE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Appraised:
    """Result of an appraisal at one moment. It stays the same from `since` until just before `changes`."""

    reasons: tuple[Reason, ...]
    standing: str
    workloads: tuple[str, ...]
    since: datetime
    changes: datetime


def appraise(settings: Settings, facts: Facts, at: datetime) -> Appraised:
    """Judge facts by settings at a moment. Pure: same arguments, same answer. What the context alone tells
    (`platform_addresses`) is judged beside it, so that this result can be kept until `changes`."""
    return appraise_age(settings, facts, at, appraise_ageless(settings, facts, at))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ageless:
    """The part of an appraisal that does not ask how old the evidence is, or until when it holds."""

    standing: str
    before: tuple[Reason, ...]  # those of the age stand between
    after: tuple[Reason, ...]
    workloads: tuple[str, ...]
    moments: tuple[datetime, ...]
    """At which an input of this part changes, past ones too."""


def appraise_ageless(settings: Settings, facts: Facts, at: datetime) -> Ageless:
    standing, tcb_reasons = tcb(settings, facts, at)
    matches = match_workloads(settings.workloads, facts, at)
    return Ageless(
        standing=standing,
        before=(
            *tcb_reasons,
            *platform(settings, facts, at),
            *allowances(settings, facts, at),
            *(() if matches else unmatched(settings.workloads, facts, at)),
        ),
        after=words(settings, facts),
        workloads=tuple(sorted({match.workload for match in matches})),
        moments=tuple(_change_moments(settings, facts, matches)),
    )


def appraise_age(settings: Settings, facts: Facts, at: datetime, rest: Ageless) -> Appraised:
    """The whole, when the rest has been judged.

    Ages are whole seconds and hold through their last one, and so does `valid_until`: each gives two moments, its own
    and the first one after.
    """
    standing, reasons = age(settings, facts, at)
    fresh_s = settings.max_age_s
    moments = [facts.verified_at + timedelta(seconds=age_s) for age_s in (fresh_s, fresh_s + 1)]
    if settings.age_grace_s:
        moments += [moment + timedelta(seconds=settings.age_grace_s) for moment in moments]
    moments += [facts.valid_until, facts.valid_until + timedelta(microseconds=1), *rest.moments]
    return Appraised(
        reasons=(*rest.before, *reasons, *rest.after),
        standing=max(rest.standing, standing, key=_STANDINGS.index),
        workloads=rest.workloads,
        since=at,
        changes=min((moment for moment in moments if moment > at), default=facts.valid_until),
    )


def fresh_until(settings: Settings, facts: Facts, at: datetime, rest: Ageless) -> datetime | None:
    """`changes` of the whole, where age and validity are beyond question; None where they are not."""
    if (
        not facts.verified_at <= at <= facts.valid_until
        or int((at - facts.verified_at).total_seconds()) > settings.max_age_s
    ):
        return None
    aged = facts.verified_at + timedelta(seconds=settings.max_age_s)
    moments = [
        aged if aged > at else aged + timedelta(seconds=1),
        facts.valid_until if facts.valid_until > at else facts.valid_until + timedelta(microseconds=1),
    ]
    return min([*moments, *(moment for moment in rest.moments if moment > at)])


def end_moments(settings: Settings) -> list[datetime]:
    """Everything in these settings that ends, whatever facts are judged by them."""
    moments = [value.until for workload in settings.workloads for value in workload.values]
    moments += [settings.grace.until if settings.grace else None, settings.platforms.any_until]
    moments += [grant.until for grant in settings.grants]
    return [moment for moment in moments if moment is not None]


def _change_moments(settings: Settings, facts: Facts, matches: tuple[Match, ...]) -> set[datetime]:
    moments: set[datetime] = set()
    if settings.grace:
        moments.add(settings.grace.until)
    if settings.platforms.any_until:
        moments.add(settings.platforms.any_until)
    needed = needed_allowances(facts)
    moments.update(grant.until for grant in settings.grants if grant.name in needed)
    moments.update(match.until for match in matches if match.until)
    return moments
