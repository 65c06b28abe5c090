"""Why Cedar said no: which rule, which condition of it, what was found, and what would make it pass.

Decides nothing; it is asked only after a refusal. Each condition of each permit that is about the request is put to
Cedar alone, so that the explanation has Cedar's semantics and not an imitation of them.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

import cedarpy

from policies.authorisation import Answer, RuleSet, Slice, ask
from policies.codes import PolicyCode
from policies.errors import Reason
from policies.model import Asked, Facts
from policies.rules import Condition, Rule, Scope, literal, path_of, paths_of, walk
from policies.tables import nearest

MAX_EXPLAINED: Final = 32
"""Permits explained in one refusal, the nearest first; a bundle with more about one thing is still decided exactly."""

_POLICY: Final = re.compile(r"`policy(\d+)`:? ?(.*)", re.S)


def explain(
    rules: RuleSet,
    part: Slice,
    answer: Answer,
    asked: Asked,
    question: dict[str, object],
    known: cedarpy.Entities,
    facts: Facts,
    workloads: tuple[str, ...],
) -> tuple[Reason, ...]:
    """Every reason for a refusal by the rules: errors, forbids that applied, and why no permit did."""
    found = Values(question, asked, facts, workloads)
    reasons = [rule_error(part, message) for message in answer.errors]
    forbids = {rule.id: rule for rule in part.rules if not rule.permits}
    reasons += [_forbidden(forbids[name], found) for name in answer.reasons if name in forbids]
    permits = [rules.rules[i] for i in rules.about(asked) if rules.rules[i].permits]
    if not permits:
        return (*reasons, _no_rule(rules, asked))
    judged = sorted((_unmet(rule, question, known, found) for rule in permits), key=len)
    if all(judged):
        reasons += [reason for unmet in judged[:MAX_EXPLAINED] for reason in unmet]
    return tuple(reasons)


def rule_error(part: Slice, message: str) -> Reason:
    match = _POLICY.search(message)
    index = int(match[1]) if match else len(part.rules)
    rule = part.rules[index] if index < len(part.rules) else None
    return Reason(
        code=PolicyCode.RULE_ERROR,
        rule=rule.id if rule else "schema",
        file=rule.file if rule else "",
        line=rule.line if rule else 0,
        expected="a rule set and a request that can be evaluated",
        found=(match[2] if match else message).strip(),
        passes_if="the rule is mended so that it evaluates for this request; an error always denies",
    )


def log_missing(part: Slice, answer: Answer) -> tuple[Reason, ...]:
    """What cannot be judged without the event log: a forbid that reads it, or a permit that nothing else backs.

    Leaving the log out would otherwise hide a launch from the rule that asks for it.
    """
    backed = any(rule.permits and rule.id in answer.reasons and not rule.reads_log for rule in part.rules)
    blind = [
        rule
        for rule in part.rules
        if rule.reads_log and (not rule.permits or (rule.id in answer.reasons and not backed))
    ]
    return tuple(
        Reason(
            code=PolicyCode.EVENT_LOG,
            rule=rule.id,
            file=rule.file,
            line=rule.line,
            expected="an event log: the rule reads the launches",
            found="none",
            passes_if="the event log is sent with the quote",
        )
        for rule in blind
    )


def _forbidden(rule: Rule, found: Values) -> Reason:
    conditions = [condition.text for condition in rule.conditions]
    scope = [text for text in (scope_text("principal", rule.principal), scope_text("resource", rule.resource)) if text]
    trees = [json.loads(condition.tree) for condition in rule.conditions]
    return Reason(
        code=PolicyCode.FORBIDDEN,
        rule=rule.id,
        file=rule.file,
        line=rule.conditions[0].line if rule.conditions else rule.line,
        expected="not: " + " && ".join(scope + conditions) if scope or conditions else "no such request at all",
        found=found.show(*trees) or found.request,
        passes_if="one of these stops holding: " + "; ".join(conditions or scope) if conditions or scope else "never",
    )


def _no_rule(rules: RuleSet, asked: Asked) -> Reason:
    """Default deny with not one permit about the thing; the nearest is the permit with the most similar name."""
    same = [rule for rule in rules.rules if rule.permits and (not rule.actions or asked.action in rule.actions)]
    names = {rule.resource.entity[1]: rule for rule in same if rule.resource.entity[1]}
    near = names.get(nearest(asked.name, names))
    word = f"{asked.action} on {asked.kind}::{json.dumps(asked.name)}"
    return Reason(
        code=PolicyCode.NO_RULE,
        rule=near.id if near else "default deny",
        file=near.file if near else "",
        line=near.line if near else 0,
        expected=f"a permit for {word}",
        found="none",
        nearest=f"{near.id}: {near.resource.entity[0]}::{json.dumps(near.resource.entity[1])}" if near else "",
        passes_if=f"a permit names {word}" + (f", or the name is {near.resource.entity[1]!r}" if near else ""),
    )


def _unmet(rule: Rule, question: dict[str, object], known: cedarpy.Entities, found: Values) -> tuple[Reason, ...]:
    """The conditions of a permit that do not hold, its principal scope among them. Empty when all hold."""
    wanted = conditions_of(rule)
    if not wanted:
        return ()
    answer = ask(question, condition_set(wanted), known)
    holding = {int(name) for name in answer.reasons}
    return tuple(_condition(rule, condition, found) for index, condition in enumerate(wanted) if index not in holding)


def conditions_of(rule: Rule) -> tuple[Condition, ...]:
    """The rule's conditions with its principal scope as the first, where it has one."""
    scope = scope_text("principal", rule.principal)
    if not scope:
        return rule.conditions
    return (Condition(scope, rule.line, "null"), *rule.conditions)


def condition_set(conditions: tuple[Condition, ...]) -> cedarpy.PolicySet:
    """One permit per condition, its position as the id: the satisfied ones are the conditions that hold."""
    return cedarpy.PolicySet.from_str(
        "\n".join(
            f'@id("{index}") permit (principal, action, resource) when {{ {condition.text} }};'
            for index, condition in enumerate(conditions)
        )
    )


def _condition(rule: Rule, condition: Condition, found: Values) -> Reason:
    tree = json.loads(condition.tree)
    return Reason(
        code=PolicyCode.CONDITION,
        rule=rule.id,
        file=rule.file,
        line=condition.line,
        expected=condition.text,
        found=found.workloads if tree is None else found.show(tree),
        nearest=_literal_text(tree),
        passes_if=_passes_if(condition.text, tree),
    )


def _passes_if(text: str, tree: Any) -> str:
    for op, word in (("==", "is"), (">=", "is at least"), ("<=", "is at most"), (">", "is above"), ("<", "is below")):
        if isinstance(tree, dict) and op in tree:
            path, value = path_of(tree[op]["left"]), literal(tree[op]["right"])
            if path and value is not None:
                return f"{path} {word} {json.dumps(value)}"
    return f"this holds: {text}"


def _literal_text(tree: Any) -> str:
    """The literals that a condition names: the accepted values nearest to whatever was found."""
    values = [value for node in walk(tree) if isinstance(value := literal(node), str | int) and value != ""]
    return ", ".join(dict.fromkeys(str(value) for value in values))


def scope_text(variable: str, scope: Scope) -> str:
    """A scope as a condition: `principal in Workload::"x"`; empty when it names nothing."""
    kind, name = scope.entity
    entity = f"{kind}::{json.dumps(name)}"
    if scope.op in ("==", "in"):
        return f"{variable} {scope.op} {entity}"
    if scope.op == "is":
        return f"{variable} is {scope.kind}" + (f" in {entity}" if kind else "")
    return ""


class Values:
    """What the request and the facts say at the paths that a condition reads."""

    def __init__(self, question: dict[str, object], asked: Asked, facts: Facts, workloads: tuple[str, ...]) -> None:
        self._context: dict[str, Any] = json.loads(str(question["context"]))
        self._asked = asked
        self._facts = facts
        self.workloads = f"it is {' and '.join(workloads)}" if workloads else "no workload has its measurements"
        self.request = f"{asked.action} on {asked.kind}::{json.dumps(asked.name)}"

    def show(self, *trees: Any) -> str:
        """`principal.tcb_status = "OutOfDate", context.via = "kbs"`: one entry per path read, in order."""
        paths = dict.fromkeys(path for tree in trees for path in paths_of(tree))
        shown = [f"{path} = {self._value(path)}" for path in paths]
        if not shown and trees:
            shown = [self.request]
        return ", ".join(shown)

    def _value(self, path: str) -> str:
        variable, _, name = path.partition(".")
        if variable == "context":
            value = self._context.get(name)
        elif variable == "resource":
            value = sorted(self._asked.labels) if name == "labels" else self._asked.version
        else:
            value = self._principal(name)
        if isinstance(value, dict) and "__extn" in value:
            return str(value["__extn"]["arg"])
        return "absent" if value is None else json.dumps(value, default=str)

    def _principal(self, name: str) -> Any:
        if name == "launches":
            return [launch.digest for launch in self._facts.launches]
        if name == "launch_count":
            return len(self._facts.launches)
        value = getattr(self._facts, name, None)
        return list(value) if isinstance(value, tuple) else value
