"""What changes in meaning between two bundles: not lines of text, but who gains and who loses.

Decides for every setting, reference value and rule whether the new bundle is wider (permits more), narrower, or
different; and judges the test cases of both bundles under both, so that the effect stands beside the cause.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final

from policies.bundle import MAIN, Bundle
from policies.cases import read_cases
from policies.engine import judge
from policies.explain import scope_text
from policies.reference import FILE as REFERENCES
from policies.reference import Value
from policies.rules import Rule
from policies.settings import Platforms, TcbRule

WIDER: Final = "wider"
NARROWER: Final = "narrower"
CHANGED: Final = "changed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One difference. `effect` says who gains: wider permits more, narrower less, changed cannot be said."""

    effect: str
    what: str
    file: str
    line: int
    old: str
    new: str

    def to_dict(self) -> dict[str, str | int]:
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Flip:
    """A test case whose decision the new bundle changes. `source` is the bundle that carries the case."""

    case: str
    source: str
    old: str
    new: str
    codes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def diff(old: Bundle, new: Bundle) -> tuple[Change, ...]:
    """Every change of meaning, those that permit more first. Comments, order and spacing are none."""
    found = [*_head(old, new), *_tcb(old, new), *_platforms(old, new), *_rest(old, new), *_workloads(old, new)]
    found += _rules(old, new)
    return tuple(sorted(found, key=lambda change: ((WIDER, CHANGED, NARROWER).index(change.effect), change.file)))


def flips(old: Bundle, new: Bundle) -> tuple[Flip, ...]:
    """The cases of both bundles, with facts in them, that end otherwise under the new one."""
    found: list[Flip] = []
    for source, bundle in (("old", old), ("new", new)):
        for case in read_cases(bundle):
            if case.facts is None:
                continue
            before, after = (judge(each, case.facts, case.action, context=case.context) for each in (old, new))
            if before.permitted != after.permitted:
                codes = tuple(sorted({reason.code.value for reason in (*before.reasons, *after.reasons)}))
                words = [("refuse", "permit")[result.permitted] for result in (before, after)]
                if all((flip.case, flip.old) != (case.name, words[0]) for flip in found):
                    found.append(Flip(case=case.name, source=source, old=words[0], new=words[1], codes=codes))
    return tuple(found)


def _change(bundle: Bundle, key: str, effect: str, old: object, new: object) -> Change:
    place = bundle.settings.place(key)
    return Change(effect=effect, what=key, file=MAIN, line=place.line, old=show(old), new=show(new))


def show(value: object) -> str:
    """A value as people read it in a bundle."""
    if value is None:
        return "none"
    if isinstance(value, datetime):
        return value.isoformat().replace("T00:00:00+00:00", "")
    if isinstance(value, frozenset | tuple):
        return ", ".join(sorted(show(item) for item in value)) or "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _head(old: Bundle, new: Bundle) -> Iterator[Change]:
    if old.tenant != new.tenant:
        yield _change(new, "tenant", CHANGED, old.tenant, new.tenant)
    if new.version < old.version:
        yield _change(new, "version", CHANGED, old.version, f"{new.version} (older: brokers refuse it)")


def _set_change(
    bundle: Bundle, key: str, old: frozenset[str], new: frozenset[str], *, more_is: str = WIDER
) -> Iterator[Change]:
    less_is = NARROWER if more_is == WIDER else WIDER
    if new - old:
        yield _change(bundle, key, more_is, old, new)
    if old - new:
        yield _change(bundle, key, less_is, old, new)


def _order_change(bundle: Bundle, key: str, old: Any, new: Any, *, more_is: str) -> Iterator[Change]:
    """Numbers and dates. None means no limit at all when less is wider, and nothing granted when more is wider."""
    if old == new:
        return
    less_is = NARROWER if more_is == WIDER else WIDER
    grown = old is None or (new is not None and new > old)
    yield _change(bundle, key, more_is if grown else less_is, old, new)


def _tcb(old: Bundle, new: Bundle) -> Iterator[Change]:
    yield from _tcb_rule(new, "tcb", old.settings.tcb, new.settings.tcb)
    before, after = old.settings.grace, new.settings.grace
    if before and after:
        yield from _tcb_rule(new, "tcb.grace", before.rule, after.rule)
    ends = [grace.until if grace else None for grace in (before, after)]
    yield from _order_change(new, "tcb.grace.until", *ends, more_is=WIDER)


def _tcb_rule(bundle: Bundle, key: str, old: TcbRule, new: TcbRule) -> Iterator[Change]:
    yield from _set_change(bundle, f"{key}.accept", old.accept, new.accept)
    name = f"{key}.min_evaluation_number"
    yield from _order_change(bundle, name, old.min_evaluation_number, new.min_evaluation_number, more_is=NARROWER)
    yield from _order_change(bundle, f"{key}.min_tcb_date", old.min_tcb_date, new.min_tcb_date, more_is=NARROWER)
    name = f"{key}.advisories.allow"
    if old.advisories_allowed is None or new.advisories_allowed is None:
        if old.advisories_allowed != new.advisories_allowed:
            words = ["any" if rule.advisories_allowed is None else rule.advisories_allowed for rule in (old, new)]
            yield _change(bundle, name, WIDER if new.advisories_allowed is None else NARROWER, *words)
    else:
        yield from _set_change(bundle, name, old.advisories_allowed, new.advisories_allowed)
    name = f"{key}.advisories.deny"
    yield from _set_change(bundle, name, old.advisories_denied, new.advisories_denied, more_is=NARROWER)


def _platforms(old: Bundle, new: Bundle) -> Iterator[Change]:
    before, after = old.settings.platforms, new.settings.platforms
    if bool(before.any_until) != bool(after.any_until):
        words = [_platform_words(platforms) for platforms in (before, after)]
        yield _change(new, "platforms", WIDER if after.any_until else NARROWER, *words)
    elif before.any_until != after.any_until:
        key = "platforms_until" if "platforms_until" in dict(new.settings.lines) else "platforms"
        yield from _order_change(new, key, before.any_until, after.any_until, more_is=WIDER)
    for name in ("ppids", "piids", "fmspcs"):
        if not (before.any_until or after.any_until):
            key = f"platforms.{name[:-1]}"
            yield from _set_change(new, key, getattr(before, name), getattr(after, name))
    for name in ("dynamic_platform", "cached_keys", "smt_enabled"):
        have, want = getattr(before, name), getattr(after, name)
        if have is not want:
            effect = WIDER if want is None else NARROWER if have is None else CHANGED
            yield _change(new, f"platforms.{name}", effect, have, want)
    key = "platforms.max_addresses"
    yield from _order_change(new, key, before.max_addresses, after.max_addresses, more_is=WIDER)


def _platform_words(platforms: Platforms) -> str:
    if platforms.any_until:
        return f"any until {show(platforms.any_until)}"
    return show(platforms.ppids | platforms.piids | platforms.fmspcs)


def _rest(old: Bundle, new: Bundle) -> Iterator[Change]:
    before, after = ({grant.name: grant.until for grant in each.settings.grants} for each in (old, new))
    for name in sorted(before | after):
        yield from _order_change(new, f"allowance.{name}", before.get(name), after.get(name), more_is=WIDER)
    one, two = old.settings, new.settings
    yield from _order_change(new, "freshness.max_age_s", one.max_age_s, two.max_age_s, more_is=WIDER)
    yield from _order_change(new, "freshness.grace_s", one.age_grace_s, two.age_grace_s, more_is=WIDER)
    yield from _set_change(new, "suites", one.suites, two.suites)
    yield from _set_change(new, "roles", one.roles, two.roles)
    if one.unbound != two.unbound:
        words = ["optional" if each.unbound else "required" for each in (one, two)]
        yield _change(new, "binding", WIDER if two.unbound else NARROWER, *words)
    yield from _mail(old, new)
    yield from _tools(new, dict(one.tools), dict(two.tools))


def _tools(new: Bundle, before: dict[str, str], after: dict[str, str]) -> Iterator[Change]:
    """Another digest approves another description, and no longer the one of before."""
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            yield _change(new, f"tool {name}", CHANGED, before.get(name, "none"), after.get(name, "none"))


def _mail(old: Bundle, new: Bundle) -> Iterator[Change]:
    """Who gains by another word cannot always be said: senders, receivers and successors are others."""
    before, after = old.settings.mail, new.settings.mail
    for path in sorted({"", *(rule.path for rule in (*before.rules, *after.rules))}):
        one, two = before.of(path), after.of(path)
        name = f"mail.{path}." if path else "mail."
        if one.fallen_sender != two.fallen_sender:
            yield _change(new, f"{name}fallen_sender", CHANGED, one.fallen_sender, two.fallen_sender)
        if one.takeover != two.takeover:
            effect = WIDER if two.takeover == "permitted" else NARROWER
            yield _change(new, f"{name}takeover", effect, one.takeover, two.takeover)
        if one.labels is None or two.labels is None:
            if one.labels != two.labels:
                words = ["any" if labels is None else labels for labels in (one.labels, two.labels)]
                yield _change(new, f"{name}labels", NARROWER if one.labels is None else WIDER, *words)
        else:
            yield from _set_change(new, f"{name}labels", one.labels, two.labels)


def _workloads(old: Bundle, new: Bundle) -> Iterator[Change]:
    before, after = ({item.name: item.values for item in each.settings.workloads} for each in (old, new))
    for name in sorted(before | after):
        yield from _values(name, before.get(name, ()), after.get(name, ()))


def _meaning(value: Value) -> dict[str, object]:
    """All of a value that decides, which is all but its provenance, its end and its place."""
    known: dict[str, object] = dict(value.fields)
    if value.launches is not None:
        known["launches"] = "[" + ", ".join(value.launches) + "]"
        known["more_launches"], known["other_events"] = value.more_launches, value.other_events
    if value.events:
        known["events"] = value.events
    return known


def _values(name: str, old: tuple[Value, ...], new: tuple[Value, ...]) -> Iterator[Change]:
    gone = [value for value in old if _meaning(value) not in [_meaning(item) for item in new]]
    fresh = [value for value in new if _meaning(value) not in [_meaning(item) for item in old]]
    for value in new:
        twin = next((item for item in old if _meaning(item) == _meaning(value)), None)
        if twin and twin.until != value.until:
            later = value.until is None or (twin.until is not None and value.until > twin.until)
            yield _value_change(name, value, WIDER if later else NARROWER, "until", twin.until, value.until)
    for value in list(fresh):
        twin = next((item for item in gone if item.source == value.source), gone[0] if len(gone) == 1 else None)
        if twin:
            gone.remove(twin)
            fresh.remove(value)
            yield from _fields(name, value, _meaning(twin), _meaning(value))
    for value in fresh:
        yield _value_change(name, value, WIDER, "value", None, value.source)
    for value in gone:
        yield Change(
            effect=NARROWER, what=f"workload {name}: value", file=REFERENCES, line=0, old=value.source, new="none"
        )


def _fields(name: str, value: Value, old: Mapping[str, object], new: Mapping[str, object]) -> Iterator[Change]:
    for key in sorted(old.keys() | new.keys()):
        have, want = old.get(key), new.get(key)
        if have != want:
            loose = want is None or want == "any" or (want is True and not have)
            tight = have is None or have == "any" or (have is True and not want)
            yield _value_change(name, value, WIDER if loose else NARROWER if tight else CHANGED, key, have, want)


def _value_change(name: str, value: Value, effect: str, key: str, old: object, new: object) -> Change:
    line = value.line_of(key)
    return Change(
        effect=effect, what=f"workload {name}: {key}", file=REFERENCES, line=line, old=show(old), new=show(new)
    )


def _rules(old: Bundle, new: Bundle) -> Iterator[Change]:
    before, after = ({rule.id: rule for rule in each.rules.rules} for each in (old, new))
    for name in [*before, *(name for name in after if name not in before)]:
        have, want = before.get(name), after.get(name)
        if have and want:
            yield from _rule(have, want)
        elif want:
            yield _rule_change(want, WIDER if want.permits else NARROWER, want.effect, "none", "added")
        elif have:
            effect = NARROWER if have.permits else WIDER
            yield Change(
                effect=effect, what=f"{name}: {have.effect}", file=have.file, line=0, old="there", new="removed"
            )


def _rule(old: Rule, new: Rule) -> Iterator[Change]:
    """One rule under one id. What widens a permit narrows what is allowed when the rule is a forbid."""
    if old.effect != new.effect:
        yield _rule_change(new, WIDER if new.permits else NARROWER, "effect", old.effect, new.effect)
        return
    wider, narrower = (WIDER, NARROWER) if new.permits else (NARROWER, WIDER)
    if old.actions != new.actions:
        grown = not new.actions or (old.actions and old.actions < new.actions)
        shrunk = not old.actions or (new.actions and new.actions < old.actions)
        effect = wider if grown else narrower if shrunk else CHANGED
        yield _rule_change(
            new, effect, "action", show(old.actions) if old.actions else "any", show(new.actions or "any")
        )
    for part in ("principal", "resource"):
        have, want = (scope_text(part, getattr(rule, part)) for rule in (old, new))
        if have != want:
            effect = wider if not want else narrower if not have else CHANGED
            yield _rule_change(new, effect, part, have or "any", want or "any")
    gone = [item.text for item in old.conditions if item.tree not in {other.tree for other in new.conditions}]
    fresh = [item.text for item in new.conditions if item.tree not in {other.tree for other in old.conditions}]
    if gone or fresh:
        effect = wider if not fresh else narrower if not gone else CHANGED
        yield _rule_change(new, effect, "conditions", " && ".join(gone) or "none", " && ".join(fresh) or "none")


def _rule_change(rule: Rule, effect: str, part: str, old: str, new: str) -> Change:
    return Change(effect=effect, what=f"{rule.id}: {part}", file=rule.file, line=rule.line, old=old, new=new)
