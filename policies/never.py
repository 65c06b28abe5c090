"""Rules that can never apply, and names in rules that mean nothing: found while a bundle is loaded.

Decides what is impossible whatever the evidence says. Everything here is sound in one direction: a rule that is refused
can truly never fire; not every rule that can never fire is found.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from attestation.names import name_problem
from policies.codes import BundleCode
from policies.errors import BundleError
from policies.rules import Condition, Json, Rule, Scope, literal, path_of, walk
from policies.settings import Settings
from policies.tables import suggest
from policies.vocabulary import DOMAINS, HEX

RESOURCES = ("Secret", "Mailbox", "Topic", "Tool", "Target")


def check_rules(rules: list[Rule], settings: Settings) -> list[BundleError]:
    """Every rule that can never fire, and every pair of rules of which one is idle."""
    problems = [problem for rule in rules for problem in _check(rule, settings)]
    seen: dict[str, Rule] = {}
    for rule in rules:
        if rule.id in seen:
            first = seen[rule.id]
            detail = f"{rule.id!r} is also the id of the rule at {first.file}:{first.line}"
            problems.append(
                BundleError(BundleCode.DUPLICATE, rule.file, rule.line, detail, "give each rule its own @id")
            )
        seen.setdefault(rule.id, rule)
    forbids = [rule for rule in rules if not rule.permits]
    for rule in rules:
        if rule.permits and (cover := next((other for other in forbids if _covers(other, rule)), None)):
            detail = f"{rule.id}: the forbid {cover.id!r} applies whenever this permit does, and a forbid wins"
            hint = f"see {cover.file}:{cover.line}"
            problems.append(BundleError(BundleCode.RULE_NEVER_FIRES, rule.file, rule.line, detail, hint))
    return problems


def _check(rule: Rule, settings: Settings) -> Iterator[BundleError]:
    if rule.permits and not rule.conditions and rule.principal.op == "any":
        hint = 'write whom it is for: principal in Workload::"…", or when { … }'
        detail = f"{rule.id}: a permit for everybody, always"
        yield BundleError(BundleCode.RULE_UNCONDITIONAL, rule.file, rule.line, detail, hint)
    for scope in (rule.principal, rule.resource):
        yield from _check_scope(rule, scope, settings)
    for condition in rule.conditions:
        tree = json.loads(condition.tree)
        for detail, hint in _condition_problems(tree, settings, permits=rule.permits):
            yield _never(rule, condition.line, detail, hint)
    contradiction = _contradiction(rule.conditions)
    if contradiction:
        yield _never(rule, contradiction[0], contradiction[1], "")


def _never(rule: Rule, line: int, detail: str, hint: str) -> BundleError:
    return BundleError(BundleCode.RULE_NEVER_FIRES, rule.file, line, f"{rule.id}: {detail}", hint)


def _check_scope(rule: Rule, scope: Scope, settings: Settings) -> Iterator[BundleError]:
    if scope.entity[0]:
        for detail, hint in _entity_problems(*scope.entity, settings):
            yield _never(rule, rule.line, detail, hint)


def _entity_problems(kind: str, name: str, settings: Settings) -> Iterator[tuple[str, str]]:
    """What is wrong with a named entity: another tenant's, or one that does not exist."""
    if kind == "Workload":
        known = [workload.name for workload in settings.workloads]
        if name not in known:
            yield f"no workload {name!r} in reference-values.toml", suggest(name, known)
    elif kind == "Tenant" and name != settings.tenant:
        yield f"{name!r} is not this bundle's tenant", f'write Tenant::"{settings.tenant}"'
    elif kind == "Agent" and name.split("/")[:2] != ["agent", settings.tenant]:
        yield f"{name!r} is no agent of tenant {settings.tenant!r}", f'agents are named "agent/{settings.tenant}/…"'
    elif kind == "Path" or kind in RESOURCES:
        wrong = name_problem(name if kind != "Path" else f"{name}/x")
        if wrong:
            yield f"{kind}::{name!r} is no name: {wrong}", f'names look like "{settings.tenant}/path/name"'
        elif name.split("/")[0] != settings.tenant:
            fixed = "/".join([settings.tenant, *name.split("/")[1:]])
            yield f"{name!r} belongs to another tenant than {settings.tenant!r}", f'did you mean "{fixed}"?'


def _condition_problems(tree: Json, settings: Settings, *, permits: bool) -> Iterator[tuple[str, str]]:
    if literal(tree) is False:
        yield "the condition is the literal false", "remove the rule, or say when it holds"
    for node in walk(tree):
        if isinstance(node, dict):
            entity = node.get("Value", {}).get("__entity") if isinstance(node.get("Value"), dict) else None
            if entity:
                yield from _entity_problems(entity["type"], entity["id"], settings)
            for path, value in _comparisons(node):
                yield from _value_problems(path, value)
    if permits:
        yield from _not_accepted(tree, settings)


def _comparisons(node: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Pairs of (path, string) that this node compares for equality or membership."""
    for op in ("==", "!=", "contains", "containsAny", "containsAll"):
        if op in node and isinstance(node[op], dict):
            left, right = node[op]["left"], node[op]["right"]
            for side, other in ((left, right), (right, left)):
                path = path_of(side)
                if path:
                    yield from ((path, value) for value in _strings(other))


def _strings(tree: Json) -> Iterator[str]:
    value = literal(tree)
    if isinstance(value, str):
        yield value
    elif isinstance(tree, dict) and set(tree) == {"Set"}:
        yield from (item for member in tree["Set"] if isinstance(item := literal(member), str))


def _value_problems(path: str, value: str) -> Iterator[tuple[str, str]]:
    domain = DOMAINS.get(path)
    if domain and value not in domain:
        yield f"{path} is never {value!r}", suggest(value, [word for word in domain if word])
    digits = HEX.get(path)
    if digits and value and not (len(value) == digits and all(char in "0123456789abcdef" for char in value)):
        yield f"{path} is never {value!r}", f"it has {digits} lower-case hex digits"


def _not_accepted(tree: Json, settings: Settings) -> Iterator[tuple[str, str]]:
    """A permit that asks for a TCB state, standing, suite or role that this bundle's own settings always refuse."""
    accepted = settings.tcb.accept | (settings.grace.rule.accept if settings.grace else frozenset())
    standings = {"current"} | ({"grace"} if settings.grace or settings.age_grace_s else set())
    limits: tuple[tuple[str, Iterable[str], str], ...] = (
        ("principal.tcb_status", accepted, "tcb.accept"),
        ("context.standing", standings, "tcb.grace or freshness.grace_s"),
        ("principal.suite", settings.suites | {""}, "suites"),
        ("principal.role", settings.roles | {""}, "roles"),
    )
    if isinstance(tree, dict) and "==" in tree:
        for path, value in _comparisons(tree):
            for limited, possible, key in limits:
                if path == limited and value in DOMAINS[path] and value not in set(possible):
                    yield f"{path} is never {value!r} here: bundle.toml does not accept it", f"see {key}"


def _contradiction(conditions: tuple[Condition, ...]) -> tuple[int, str] | None:
    """Two conditions of one rule that cannot both hold."""
    equal: dict[str, Any] = {}
    low: dict[str, int] = {}
    high: dict[str, int] = {}
    trees = {condition.tree for condition in conditions}
    for condition in conditions:
        tree = json.loads(condition.tree)
        if isinstance(tree, dict) and set(tree) == {"!"} and json.dumps(tree["!"]["arg"], sort_keys=True) in trees:
            return condition.line, "two conditions are each other's opposite"
        for path, op, value in _bounds(tree):
            if op == "==":
                if equal.setdefault(path, value) != value:
                    return condition.line, f"{path} cannot be both {equal[path]!r} and {value!r}"
            elif op in (">", ">="):
                low[path] = max(low.get(path, value), value + (op == ">"))
            else:
                high[path] = min(high.get(path, value), value - (op == "<"))
            if path in low and path in high and low[path] > high[path]:
                return condition.line, f"{path} cannot be at least {low[path]} and at most {high[path]}"
    return None


def _bounds(tree: Json) -> Iterator[tuple[str, str, Any]]:
    flipped = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "==": "=="}
    for op, other_op in flipped.items():
        if isinstance(tree, dict) and op in tree:
            left, right = tree[op]["left"], tree[op]["right"]
            for side, other, name in ((left, right, op), (right, left, other_op)):
                value = literal(other)
                if path_of(side) and value is not None and (op == "==" or type(value) is int):
                    yield path_of(side), name, value


def _covers(forbid: Rule, permit: Rule) -> bool:
    """Whether every request that the permit matches is matched by the forbid too (by syntax alone)."""
    if forbid.actions and not (permit.actions and permit.actions <= forbid.actions):
        return False
    for wide, narrow in ((forbid.principal, permit.principal), (forbid.resource, permit.resource)):
        same_kind = wide.op == "is" and not wide.entity[0] and narrow.kind == wide.kind and narrow.kind != ""
        if wide.op != "any" and wide != narrow and not same_kind:
            return False
    return {condition.tree for condition in forbid.conditions} <= {condition.tree for condition in permit.conditions}
