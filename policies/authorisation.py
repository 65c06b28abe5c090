"""Cedar as the judge of who may do what: entities from facts, slices of the rule set, and answers that fail closed.

Decides nothing itself: it asks Cedar and reads the answer so that an error denies. Cedar alone *skips* a rule that
errors, so an errored forbid would let a permit win; here any error in the diagnostics, and any answer other than a
clean Allow, is a refusal. The rule set is cut by (action, tenant, resource, workloads) when a slice is first needed, so
that the cost of a decision follows the rules that can apply to it and not the size of the bundle.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final

import cedarpy

from policies.model import OF_ONE, Asked, Context, Facts
from policies.rules import Rule, Scope
from policies.store import Bounded
from policies.vocabulary import schema

MILLISECOND: Final = timedelta(milliseconds=1)
SECOND: Final = timedelta(seconds=1)
_PLAIN: Final = (
    "tenant role compared tcb_status platform_tcb_status module_tcb_status qe_tcb_status tcb_evaluation_number"
    " qe_evaluation_number fmspc ppid piid mr_td mr_seam rtmr0 rtmr1 rtmr2 rtmr3 mr_config_id mr_owner mr_owner_config"
    " mr_service_td td_attributes xfam event_log_present suite jkt trust_file_digest root_sha256 simulated"
).split()
_OPTIONAL: Final = ("dynamic_platform", "cached_keys", "smt_enabled")


@dataclass(frozen=True, slots=True)
class Slice:
    """The rules that can apply to one (action, resource, workloads), parsed."""

    rules: tuple[Rule, ...]
    policies: cedarpy.PolicySet | None
    permits: bool
    reads_time: bool
    reads_agent: tuple[str, ...] | None
    """The agent's attributes that these rules read; None when one of them asks which agent it is."""

    @property
    def common(self) -> bool:
        """Whether these rules read nothing that is one agent's own."""
        return self.reads_agent is not None and OF_ONE.isdisjoint(self.reads_agent)

    def seen_of(self, facts: Facts) -> tuple[object, ...] | None:
        """All of an agent that can change the answer of these rules, apart from its workloads."""
        return None if self.reads_agent is None else tuple([_attribute(facts, name) for name in self.reads_agent])


@dataclass(frozen=True, slots=True)
class Answer:
    """What Cedar said, read strictly. `allowed` needs a clean Allow and not one error."""

    allowed: bool
    reasons: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()


class RuleSet:
    """All rules of a bundle, indexed. Immutable; remembers the slices it has cut, up to a bound."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self.rules = tuple(rules)
        self._by_scope: dict[tuple[str, tuple[str, ...]], list[int]] = {}
        for index, rule in enumerate(self.rules):
            for action in rule.actions or ("*",):
                self._by_scope.setdefault((action, _resource_key(rule.resource)), []).append(index)
        self._slices: Bounded[tuple[str, str, str, tuple[str, ...]], Slice] = Bounded(8192)
        self._parsed: Bounded[tuple[int, ...], Slice] = Bounded(4096)

    def slice(self, asked: Asked, workloads: tuple[str, ...]) -> Slice:
        """Every rule whose action, resource and principal scope can match. Leaving out the others changes nothing."""
        key = (asked.action, asked.kind, asked.name, workloads)
        found = self._slices.get(key)
        if found is None:
            indices = [i for i in self.about(asked) if _may_concern(self.rules[i].principal, workloads)]
            found = self._slices.put(key, self._parse(tuple(indices)))
        return found

    def about(self, asked: Asked) -> list[int]:
        """Indices of the rules whose action and resource scope match, whoever asks."""
        keys = [("any",), ("is", asked.kind), ("==", asked.kind, asked.name)]
        keys += [("in", *parent) for parent in (*_parents(asked.name), (asked.kind, asked.name))]
        found = {i for action in (asked.action, "*") for key in keys for i in self._by_scope.get((action, key), ())}
        return sorted(i for i in found if self.rules[i].resource.kind in ("", asked.kind))

    def _parse(self, indices: tuple[int, ...]) -> Slice:
        found = self._parsed.get(indices)
        if found is None:
            rules = tuple(self.rules[i] for i in indices)
            text = "\n".join(rule.text for rule in rules)
            found = Slice(
                rules=rules,
                policies=cedarpy.PolicySet.from_str(text) if rules else None,
                permits=any(rule.permits for rule in rules),
                reads_time=any(rule.time for rule in rules),
                reads_agent=_together([rule.reads_agent for rule in rules]),
            )
            self._parsed.put(indices, found)
        return found


def _together(reads: list[frozenset[str] | None]) -> tuple[str, ...] | None:
    known = [names for names in reads if names is not None]
    return tuple(sorted(frozenset().union(*known))) if len(known) == len(reads) else None


def _resource_key(scope: Scope) -> tuple[str, ...]:
    if scope.entity[0]:
        return ("==" if scope.op == "==" else "in", *scope.entity)
    return ("is", scope.kind) if scope.op == "is" else ("any",)


def _may_concern(scope: Scope, workloads: tuple[str, ...]) -> bool:
    kind, name = scope.entity
    return not (scope.op != "==" and kind == "Workload" and name not in workloads)


def _parents(name: str) -> list[tuple[str, str]]:
    """The tenant and every path above a name."""
    parts = name.split("/")
    return [("Tenant", parts[0]), *(("Path", "/".join(parts[:size])) for size in range(1, len(parts)))]


def principal_json(facts: Facts, tenant: str, subject: str, workloads: tuple[str, ...]) -> str:
    """The Agent entity, as Cedar's JSON."""
    attrs: dict[str, object] = {name: getattr(facts, name) for name in _PLAIN}
    attrs.update({name: value for name in _OPTIONAL if (value := getattr(facts, name)) is not None})
    attrs["advisory_ids"] = list(facts.advisory_ids)
    attrs["allowances"] = list(facts.allowances)
    attrs["launches"] = [launch.digest for launch in facts.launches]
    attrs["launch_count"] = len(facts.launches)
    attrs["tcb_date"] = {"__extn": {"fn": "datetime", "arg": cedar_time(facts.tcb_date)}}
    parents = [{"type": "Workload", "id": name} for name in workloads] + [{"type": "Tenant", "id": tenant}]
    return json.dumps({"uid": {"type": "Agent", "id": subject}, "attrs": attrs, "parents": parents})


def _attribute(facts: Facts, name: str) -> object:
    """An attribute as `principal_json` has it, hashable."""
    match name:
        case "launches":
            return facts.launches
        case "launch_count":
            return len(facts.launches)
        case _:
            return getattr(facts, name)


def entities(principal: str, asked: Asked) -> cedarpy.Entities:
    """Agent and resource, validated against the schema."""
    uid = {"type": asked.kind, "id": asked.name}
    if asked.kind == "Tenant":
        resource: dict[str, object] = {"uid": uid, "attrs": {}, "parents": []}
    else:
        parents = [{"type": kind, "id": name} for kind, name in _parents(asked.name)]
        attrs = {"labels": sorted(asked.labels), "version": asked.version}
        resource = {"uid": uid, "attrs": attrs, "parents": parents}
    return cedarpy.Entities.from_json_str(f"[{principal},{json.dumps(resource)}]", schema())


def cedar_time(moment: datetime) -> str:
    """Cedar's form, to the millisecond (rounded down): `2026-11-22T17:30:00.000Z`."""
    utc = moment if moment.tzinfo is UTC else moment.astimezone(UTC)
    return utc.isoformat(timespec="milliseconds")[:-6] + "Z"


def request(subject: str, asked: Asked, facts: Facts, standing: str, context: Context) -> dict[str, object]:
    """The question, with the circumstances that the schema wants. Whatever does not fit the schema denies."""
    age_s = max(0, int((context.at - facts.verified_at).total_seconds()))
    fixed = _fixed_circumstances(standing, context.via, context.platform_addresses, context.source_ip, asked.extra)
    now = f'"now":{{"__extn":{{"fn":"datetime","arg":"{cedar_time(context.at)}"}}}}'
    return {
        "principal": {"type": "Agent", "id": subject},
        "action": {"type": "Action", "id": asked.action},
        "resource": {"type": asked.kind, "id": asked.name},
        "context": f'{{{now},"age_s":{min(age_s, 2**62)},{fixed}',
    }


@lru_cache(maxsize=1024)
def _fixed_circumstances(
    standing: str, via: str, addresses: int, source_ip: str | None, extra: tuple[tuple[str, str], ...]
) -> str:
    """The members of the context that do not move with time, as the tail of a JSON object."""
    members: dict[str, object] = {"standing": standing, "via": via, "platform_addresses": addresses, **dict(extra)}
    if source_ip is not None:
        members["source_ip"] = {"__extn": {"fn": "ip", "arg": source_ip}}
    return json.dumps(members)[1:]


def ask(question: dict[str, object], policies: cedarpy.PolicySet, known: cedarpy.Entities) -> Answer:
    """One question to Cedar. Anything but a clean Allow denies: an error anywhere, NoDecision, a bad request.

    Cedar lists rules in no fixed order; they are sorted, so that the same question has the same answer.
    """
    try:
        result = cedarpy.is_authorized(question, policies, known, schema())
    except ValueError as error:
        return Answer(allowed=False, errors=(str(error),))
    diagnostics = result.diagnostics
    errors = tuple(sorted(diagnostics.errors))
    if not errors and result.decision is cedarpy.Decision.NoDecision:
        errors = ("Cedar gave no decision",)
    ids = diagnostics.id_annotations_by_reason
    return Answer(
        allowed=result.allowed and not errors,
        reasons=tuple(sorted(ids[name] for name in diagnostics.reasons if name in ids)),
        errors=errors,
    )


def next_time_change(rules: Iterable[Rule], facts: Facts, at: datetime) -> datetime | None:
    """The first moment after `at` at which one of these rules can answer differently only because time passed.

    A rule that computes with the time can change at any second.
    """
    moments: list[datetime] = []
    for rule in rules:
        if rule.time.always:
            moments.append(at + SECOND)
        moments.extend(at_ for literal in rule.time.moments for at_ in (literal, literal + MILLISECOND))
        for age in rule.time.ages_s:
            start = facts.verified_at + timedelta(seconds=min(max(age, 0), 10**9))
            moments.extend((start, start + SECOND))
    return min((moment for moment in moments if moment > at), default=None)
