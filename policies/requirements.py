"""The requirements of a bundle, one small function each: TCB, platform, allowances, age, suite and role.

Decides what meets a requirement and, where nothing does, what would: each answers with the reason why facts fall short,
or with none. All of them run, so that a refusal names every failure. How they make one appraisal, and until when it
stays the same, is decided in `appraisal`. `until` dates are exclusive: what ends on a date no longer counts at midnight
UTC when that date begins.
"""

from __future__ import annotations

from datetime import datetime
from functools import lru_cache
from typing import Final

from policies.codes import PolicyCode
from policies.errors import Reason
from policies.model import Context, Facts
from policies.settings import Settings, TcbRule

CURRENT: Final = "current"
GRACE: Final = "grace"
STALE: Final = "stale"
SEPT_VE_DISABLE: Final = 1 << 28
MIGRATABLE: Final = 1 << 29


def tcb(settings: Settings, facts: Facts, at: datetime) -> tuple[str, tuple[Reason, ...]]:
    reasons = _tcb_reasons(settings, settings.tcb, facts, "tcb")
    if not reasons:
        return CURRENT, ()
    grace = settings.grace
    if grace and at < grace.until and not _tcb_reasons(settings, grace.rule, facts, "tcb.grace"):
        return GRACE, ()
    return STALE, reasons


def _tcb_reasons(settings: Settings, rule: TcbRule, facts: Facts, table: str) -> tuple[Reason, ...]:
    """All that is wrong with the TCB under one rule. `table` is where the rule stands."""
    questions = (_status, _evaluation_number, _tcb_date, _advisories_denied, _advisories_not_allowed)
    answers = (question(settings, rule, facts, table) for question in questions)
    return tuple(answer for answer in answers if answer)


def _status(settings: Settings, rule: TcbRule, facts: Facts, table: str) -> Reason | None:
    if facts.tcb_status in rule.accept:
        return None
    platform, module, qe = facts.platform_tcb_status, facts.module_tcb_status, facts.qe_tcb_status
    expected = ", ".join(sorted(rule.accept))
    return settings.reason(
        PolicyCode.TCB_STATUS,
        f"{table}.accept",
        expected=expected,
        found=f"{facts.tcb_status} (platform {platform or '?'}, module {module or 'none'}, QE {qe or '?'})",
        nearest="UpToDate" if "UpToDate" in rule.accept else expected,
        passes_if=f"the platform's TCB becomes {expected}, or {table}.accept lists {facts.tcb_status}",
    )


def _evaluation_number(settings: Settings, rule: TcbRule, facts: Facts, table: str) -> Reason | None:
    lowest, want = min(facts.tcb_evaluation_number, facts.qe_evaluation_number), rule.min_evaluation_number
    if lowest >= want:
        return None
    return settings.reason(
        PolicyCode.EVALUATION_NUMBER,
        f"{table}.min_evaluation_number",
        expected=f"{want} or more",
        found=f"{lowest} ({'TCB info' if facts.tcb_evaluation_number == lowest else 'QE identity'})",
        nearest=str(want),
        passes_if=f"collateral of evaluation {want} is used (short by {want - lowest})",
    )


def _tcb_date(settings: Settings, rule: TcbRule, facts: Facts, table: str) -> Reason | None:
    if rule.min_tcb_date is None or facts.tcb_date >= rule.min_tcb_date:
        return None
    want = rule.min_tcb_date.date().isoformat()
    return settings.reason(
        PolicyCode.TCB_DATE,
        f"{table}.min_tcb_date",
        expected=f"{want} or later",
        found=facts.tcb_date.date().isoformat(),
        nearest=want,
        passes_if=f"the platform reaches a TCB level dated {want} or later",
    )


def _advisories_denied(settings: Settings, rule: TcbRule, facts: Facts, table: str) -> Reason | None:
    names = ", ".join(sorted(set(facts.advisory_ids) & rule.advisories_denied))
    if not names:
        return None
    return settings.reason(
        PolicyCode.ADVISORY_DENIED,
        f"{table}.advisories.deny",
        expected="none of the denied",
        found=names,
        passes_if=f"{names} no longer applies to the platform",
    )


def _advisories_not_allowed(settings: Settings, rule: TcbRule, facts: Facts, table: str) -> Reason | None:
    """Denied ones have a reason of their own."""
    if rule.advisories_allowed is None:
        return None
    names = ", ".join(sorted(set(facts.advisory_ids) - rule.advisories_allowed - rule.advisories_denied))
    if not names:
        return None
    return settings.reason(
        PolicyCode.ADVISORY_NOT_ALLOWED,
        f"{table}.advisories.allow",
        expected=", ".join(sorted(rule.advisories_allowed)) or "no advisory",
        found=names,
        passes_if=f"{names} no longer applies, or {table}.advisories.allow lists it",
    )


def platform(settings: Settings, facts: Facts, at: datetime) -> tuple[Reason, ...]:
    if settings.platforms.any_until:
        known = _any_platform(settings, facts, settings.platforms.any_until, at)
    else:
        known = _listed_platform(settings, facts)
    configuration = (
        _platform_configuration(settings, facts, name) for name in ("dynamic_platform", "cached_keys", "smt_enabled")
    )
    return tuple(answer for answer in (known, *configuration) if answer)


def _any_platform(settings: Settings, facts: Facts, until: datetime, at: datetime) -> Reason | None:
    if at < until:
        return None
    return settings.reason(
        PolicyCode.PLATFORM_ANY_ENDED,
        "platforms",
        expected=f"any platform, before {until.date().isoformat()}",
        found=f"{_platform_ids(facts)} at {at.date().isoformat()}",
        passes_if=f"platforms are listed by id (ppid {facts.ppid or '?'}), or the date is renewed",
    )


def _listed_platform(settings: Settings, facts: Facts) -> Reason | None:
    wanted = settings.platforms
    if facts.ppid in wanted.ppids or facts.piid in wanted.piids or facts.fmspc in wanted.fmspcs:
        return None
    lists = [("ppid", wanted.ppids), ("piid", wanted.piids), ("fmspc", wanted.fmspcs)]
    return settings.reason(
        PolicyCode.PLATFORM,
        "platforms",
        expected="; ".join(f"{name} in {', '.join(sorted(ids))}" for name, ids in lists if ids),
        found=_platform_ids(facts),
        passes_if=f'[platforms] lists ppid "{facts.ppid}"' + (f' or piid "{facts.piid}"' if facts.piid else ""),
    )


def _platform_ids(facts: Facts) -> str:
    return f"ppid {facts.ppid or '?'}, piid {facts.piid or 'none'}, fmspc {facts.fmspc or '?'}"


def _platform_configuration(settings: Settings, facts: Facts, name: str) -> Reason | None:
    want, have = getattr(settings.platforms, name), getattr(facts, name)
    if want is None or have is want:
        return None
    return settings.reason(
        PolicyCode.PLATFORM_CONFIGURATION,
        f"platforms.{name}",
        expected=str(want).lower(),
        found="not stated by the PCK certificate" if have is None else str(have).lower(),
        passes_if=f"the PCK certificate states {name} = {str(want).lower()}",
    )


def platform_addresses(settings: Settings, context: Context) -> tuple[Reason, ...]:
    """The same platform id at too many addresses: what a copied attestation key looks like."""
    most = settings.platforms.max_addresses
    if context.platform_addresses <= most:
        return ()
    return (
        settings.reason(
            PolicyCode.PLATFORM_ADDRESSES,
            "platforms.max_addresses",
            expected=f"at most {most}",
            found=str(context.platform_addresses),
            nearest=str(most),
            passes_if=f"the platform id is seen at {most} address{'es' if most > 1 else ''} only",
        ),
    )


def needed_allowances(facts: Facts) -> frozenset[str]:
    """Those named by the verdict, and those that the attributes need whatever the verdict says."""
    needed = set(facts.allowances)
    bits = attribute_bits(facts.td_attributes)
    if bits is not None and not bits & SEPT_VE_DISABLE:
        needed.add("sept_ve_disable_clear")
    if bits is not None and bits & MIGRATABLE:
        needed.add("migratable")
    return frozenset(needed)


@lru_cache(maxsize=256)
def attribute_bits(td_attributes: str) -> int | None:
    """The 64 ATTRIBUTES bits (hex of 8 little-endian bytes), or None when they are not there."""
    try:
        raw = bytes.fromhex(td_attributes)
    except ValueError:
        return None
    return int.from_bytes(raw, "little") if len(raw) == 8 else None


def allowances(settings: Settings, facts: Facts, at: datetime) -> tuple[Reason, ...]:
    reasons: list[Reason] = []
    for name in sorted(needed_allowances(facts)):
        grant = next((grant for grant in settings.grants if grant.name == name), None)
        if grant and at < grant.until:
            continue
        place = settings.place("allowance")
        reasons.append(
            Reason(
                code=PolicyCode.ALLOWANCE_ENDED if grant else PolicyCode.ALLOWANCE,
                rule=f"allowance.{name}",
                file=place.file,
                line=grant.line if grant else place.line,
                expected=f"{name}, before {grant.until.date().isoformat()}" if grant else f"no need for {name}",
                found=f"td_attributes {facts.td_attributes}, allowances {', '.join(facts.allowances) or 'none'}",
                passes_if=f"the TD is launched so that it needs no {name}"
                + (", or the grant's `until` is renewed" if grant else f', or [[allowance]] name = "{name}" is dated'),
            )
        )
    return tuple(reasons)


def age(settings: Settings, facts: Facts, at: datetime) -> tuple[str, tuple[Reason, ...]]:
    age_s = int((at - facts.verified_at).total_seconds())
    if age_s <= settings.max_age_s:
        return CURRENT, ()
    limit = settings.max_age_s + settings.age_grace_s
    if age_s <= limit:
        return GRACE, ()
    grace = f", {settings.age_grace_s} s of grace" if settings.age_grace_s else ""
    reason = settings.reason(
        PolicyCode.STALE,
        "freshness.max_age_s",
        expected=f"at most {settings.max_age_s} s old{grace}",
        found=f"{age_s} s old" if facts.verified_at.year > 1 else "never verified",
        nearest=f"{limit} s",
        passes_if="the agent attests again",
    )
    return STALE, (reason,)


def words(settings: Settings, facts: Facts) -> tuple[Reason, ...]:
    """Suite and role of a binding. Evidence without a binding has neither; `engine` says what that may not do."""
    reasons: list[Reason] = []
    for key, value, accepted, code in (
        ("suites", facts.suite, settings.suites, PolicyCode.SUITE),
        ("roles", facts.role, settings.roles, PolicyCode.ROLE),
    ):
        if (value or facts.compared == "binding") and value not in accepted:
            reasons.append(
                settings.reason(
                    code,
                    key,
                    expected=", ".join(sorted(accepted)),
                    found=value or "none",
                    nearest=sorted(accepted)[0],
                    passes_if=f"the binding names {' or '.join(sorted(accepted))}",
                )
            )
    return tuple(reasons)
