"""Cedar rules as values: scope, conditions, which inputs they read, and which of them can never apply.

Decides what is wrong with a rule before anything is judged. Cedar's validator checks words and types against the
schema; the checks here find what it cannot know: names of other tenants, workloads that no reference value defines,
states that do not exist, conditions that exclude each other, permits that a forbid always covers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import cedarpy

from policies.cedartext import Clause, RuleText, split_rules
from policies.codes import BundleCode
from policies.errors import BundleError
from policies.model import ACTIONS
from policies.tables import nearest, suggest, to_moment
from policies.vocabulary import ATTRIBUTES, CONTEXT

Json = Any
_QUOTED: Final = re.compile(r"`([^`]+)`")
MAX_NESTING: Final = 64
MAX_SIZE: Final = 4096
MAX_ID: Final = 128
LOG_PATHS: Final = ("principal.launches", "principal.launch_count")
VIA_PATH: Final = "context.via"
ENTITY_TYPES: Final = ("Tenant", "Path", "Workload", "Agent", "Secret", "Mailbox", "Topic", "Tool", "Target")


@dataclass(frozen=True, slots=True)
class Scope:
    """`principal` or `resource` of a rule's head: the operator and what it names. `any` names nothing."""

    op: str = "any"
    kind: str = ""
    entity: tuple[str, str] = ("", "")


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition of a rule that must be true, with Cedar's own syntax tree of it."""

    text: str
    line: int
    tree: str


@dataclass(frozen=True, slots=True)
class TimeReads:
    """How a rule reads the time: at which moments its answer can flip, or `always` when that cannot be told."""

    always: bool = False
    moments: tuple[datetime, ...] = ()
    ages_s: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return self.always or bool(self.moments) or bool(self.ages_s)


@dataclass(frozen=True, slots=True)
class Rule:
    """One permit or forbid. `actions` empty means every action."""

    id: str
    effect: str
    file: str
    line: int
    text: str
    actions: frozenset[str]
    principal: Scope
    resource: Scope
    conditions: tuple[Condition, ...]
    time: TimeReads

    reads_log: bool = False
    names_via: bool = False
    """Whether a condition reads `context.via`: only such a permit releases anything over the KBS protocol."""
    reads_agent: frozenset[str] | None = None
    """The agent's attributes that decide the answer; None when it depends on which agent it is, too."""

    @property
    def permits(self) -> bool:
        return self.effect == "permit"


def read_rules(file: str, source: str, schema: cedarpy.Schema, problems: list[BundleError]) -> list[Rule]:
    """Every well-formed rule of a file; each mistake goes to `problems` with its line."""
    found: list[Rule] = []
    before = len(problems)
    pieces = split_rules(source)
    for text in pieces:
        try:
            rule = _read_rule(file, text, schema, problems)
        except RecursionError:
            problems.append(_too_complex(file, text))
            continue
        if rule:
            found.append(rule)
    if len(problems) == before:
        problems += _complaints_of_all(file, source, len(pieces))
    return found


def _complaints_of_all(file: str, source: str, rules: int) -> list[BundleError]:
    """What Cedar says against a file whose rules are well formed one by one: what stands between them, or is none."""
    try:
        found = len(json.loads(cedarpy.policies_to_json_str(source))["staticPolicies"])
    except ValueError as error:
        hint = "nothing but rules and comments stands in the file"
        return [BundleError(BundleCode.SYNTAX, file, 1, _tidy(str(error)), hint)]
    if found == rules:
        return []
    detail = "Cedar finds another number of rules in this file than cloister"  # never: then one would not count
    return [BundleError(BundleCode.SYNTAX, file, 1, detail, "put each rule on lines of its own")]


def _too_complex(file: str, text: RuleText) -> BundleError:
    """Cedar's parser and ours recurse, and the end of a stack is the end of the process."""
    limit = f"brackets nested {MAX_NESTING} deep and {MAX_SIZE} characters beside strings, blanks and comments"
    hint = f"at most {limit}; write several rules, or a set of values"
    return BundleError(BundleCode.RULE_INVALID, file, text.line, "the rule is too long or nested too deeply", hint)


def _read_rule(file: str, text: RuleText, schema: cedarpy.Schema, problems: list[BundleError]) -> Rule | None:
    try:
        policy = _policy(file, text)
        if complaints := _complaints(file, text, policy["annotations"]["id"], schema):
            problems += complaints
            return None
    except BundleError as problem:
        problems.append(problem)
        return None
    trees = [condition["body"] for condition in policy["conditions"]]  # Cedar's own, whatever the text looks like
    principal = _scope(policy["principal"])
    return Rule(
        id=policy["annotations"]["id"],
        effect=policy["effect"],
        file=file,
        line=text.line,
        text=text.text,
        actions=_actions(policy["action"]),
        principal=principal,
        resource=_scope(policy["resource"]),
        conditions=tuple(_condition(clause) for clause in text.clauses),
        time=_time_reads(trees),
        reads_log=any(path in LOG_PATHS for tree in trees for path in paths_of(tree)),
        names_via=any(path == VIA_PATH for tree in trees for path in paths_of(tree)),
        reads_agent=_agent_reads(principal, trees),
    )


def _policy(file: str, text: RuleText) -> Json:
    """The rule as Cedar reads it, with a usable @id. Raises BundleError."""

    def no(code: BundleCode, line: int, detail: str, hint: str) -> BundleError:
        return BundleError(code, file, line, detail, hint)

    if not text.complete:
        raise no(BundleCode.SYNTAX, text.line, "the rule does not end", "every rule ends with a semicolon")
    if text.nesting > MAX_NESTING or text.size > MAX_SIZE:
        raise _too_complex(file, text)
    try:
        policies = json.loads(cedarpy.policies_to_json_str(text.text))
    except ValueError as error:
        said = str(error)
        raise no(BundleCode.SYNTAX, _blame(text, said), _tidy(said), _syntax_hint(said)) from None
    if policies["templates"]:
        detail = "templates (?principal, ?resource) are not used here"
        raise no(BundleCode.RULE_INVALID, text.line, detail, "name the thing")
    (policy,) = policies["staticPolicies"].values()
    name = policy.get("annotations", {}).get("id") or ""
    if not name:
        raise no(BundleCode.RULE_ID, text.id_line, "the rule has no @id", 'put @id("some-name") before it')
    if len(name) > MAX_ID or not name.isprintable():
        hint = f"up to {MAX_ID} printable characters: logs and terminals show it"
        raise no(BundleCode.RULE_ID, text.id_line, f"@id({name[:MAX_ID]!a}) is no name", hint)
    return policy


def _complaints(file: str, text: RuleText, name: str, schema: cedarpy.Schema) -> list[BundleError]:
    """What Cedar's validator says against the rule; that no action is left after other complaints says nothing new."""
    found: list[BundleError] = []
    for complaint in cedarpy.validate_policies(text.text, schema).errors:
        detail = _tidy(complaint.error)
        if not detail.startswith("unable to find an applicable action") or not found:
            where, hint = _blame(text, complaint.error), _hint(complaint.error)
            found.append(BundleError(BundleCode.RULE_INVALID, file, where, f"{name}: {detail}", hint))
    return found


def _condition(clause: Clause) -> Condition:
    policy = f"permit (principal, action, resource) when {{ {clause.expression} }};"
    (parsed,) = json.loads(cedarpy.policies_to_json_str(policy))["staticPolicies"].values()
    body = parsed["conditions"][0]["body"]
    return Condition(clause.expression, clause.line, json.dumps(body, sort_keys=True))


def _actions(scope: Json) -> frozenset[str]:
    if scope["op"] == "All":
        return frozenset()
    entities = scope.get("entities") or [scope["entity"]]
    return frozenset(entity["id"] for entity in entities)


def _scope(scope: Json) -> Scope:
    if scope["op"] == "All":
        return Scope()
    inner = scope.get("in", {}).get("entity") if scope["op"] == "is" else scope.get("entity")
    entity = (inner["type"], inner["id"]) if inner else ("", "")
    return Scope(scope["op"], scope.get("entity_type", ""), entity)


# What the messages of Cedar's parser and validator become for the author of a rule.


def _tidy(message: str) -> str:
    message = re.sub(r"^for policy `[^`]*`, ", "", message)
    return re.sub(r"^Policy parse error: |^(?:error|failed) parsing polic(?:y|ies)[^:]*: ", "", message).strip()


def _blame(text: RuleText, message: str) -> int:
    """The line of the first word in back quotes that stands in the rule, else of the rule itself."""
    words = [*_QUOTED.findall(_tidy(message)), *re.findall(r"condition: (\w+)", message)]
    for word in words:
        for piece in (word, word.split('"')[-2] if '"' in word else word):
            at = text.text.find(piece)
            if at >= 0:
                return text.line + text.text.count("\n", 0, at)
    return text.line


def _syntax_hint(message: str) -> str:
    found = re.search(r"condition: (\w+)|unexpected token `(\w+)`", message)
    word = next((group for group in (found.groups() if found else ()) if group), "")
    near = nearest(word, ("when", "unless", "permit", "forbid", "principal", "action", "resource")) if word else ""
    return f"did you mean {near!r}?" if near and near != word else ""


def _hint(message: str) -> str:
    """The nearest word that the schema knows."""
    tidy = _tidy(message)
    words = _QUOTED.findall(tidy)
    if "unrecognized action" in tidy:
        return suggest(words[0].split('"')[-2], ACTIONS)
    if "unrecognized entity type" in tidy:
        return suggest(words[0], ENTITY_TYPES)
    if "attribute" in tidy and "not found" in tidy:
        return suggest(words[0], _attributes(words[1] if len(words) > 1 else ""))
    if "optional attribute" in tidy:
        return f"guard it: principal has {words[0]} && …"
    if "not compatible" in tidy:
        return "compare values of one type: text in quotes, numbers without"
    return ""


def _attributes(owner: str) -> set[str]:
    """Attributes of an entity type or of the context, as the shipped schema has them."""
    return set(ATTRIBUTES.get(owner, CONTEXT))


# Which inputs a rule reads.


def walk(tree: Json) -> Iterator[Json]:
    yield tree
    if isinstance(tree, dict):
        for value in tree.values():
            yield from walk(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from walk(value)


def path_of(tree: Json) -> str:
    """`principal.tcb_status` for an attribute of a variable, else the empty string."""
    if isinstance(tree, dict) and "." in tree:
        left = tree["."]["left"]
        if isinstance(left, dict) and "Var" in left:
            return f"{left['Var']}.{tree['.']['attr']}"
    return ""


def paths_of(tree: Json) -> tuple[str, ...]:
    """Every attribute of a variable that the condition reads, in order, and the variables of its `in` and `==`."""
    found = [path for node in walk(tree) if (path := path_of(node))]
    return tuple(dict.fromkeys(found))


def _agent_reads(scope: Scope, trees: list[Json]) -> frozenset[str] | None:
    """Sound rather than sharp: whatever uses `principal` other than by an attribute counts as asking who it is.

    Being in a workload or a tenant is not in here: that is part of every question.
    """
    if scope.entity[0] not in ("", "Workload", "Tenant"):
        return None
    found: set[str] = set()
    return frozenset(found) if all(_by_attribute(tree, found) for tree in trees) else None


def _by_attribute(tree: Json, found: set[str]) -> bool:
    if isinstance(tree, list):
        return all(_by_attribute(item, found) for item in tree)
    if not isinstance(tree, dict):
        return True
    if tree.get("Var") == "principal":
        return False
    for operator in (".", "has"):
        inner = tree.get(operator)
        if isinstance(inner, dict) and inner.get("left") == {"Var": "principal"}:
            found.add(str(inner["attr"]))
            return True
    return all(_by_attribute(item, found) for item in tree.values())


_COMPARISONS: Final = ("<", "<=", ">", ">=", "==", "!=")


def _time_reads(trees: list[Json]) -> TimeReads:
    moments: list[datetime] = []
    ages: list[int] = []
    reads = sum(path_of(node) in ("context.now", "context.age_s") for tree in trees for node in walk(tree))
    for tree in trees:
        for node in walk(tree):
            if isinstance(node, dict) and len(node) == 1 and (op := next(iter(node))) in _COMPARISONS:
                sides = (node[op]["left"], node[op]["right"])
                for side, other in (sides, sides[::-1]):
                    if path_of(side) == "context.now" and (moment := datetime_literal(other)):
                        moments.append(moment)
                    if path_of(side) == "context.age_s" and isinstance(literal(other), int):
                        ages.append(int(literal(other)))
    return TimeReads(always=reads > len(moments) + len(ages), moments=tuple(moments), ages_s=tuple(ages))


def literal(tree: Json) -> Any:
    """The literal's value, or None for anything else."""
    return tree["Value"] if isinstance(tree, dict) and set(tree) == {"Value"} else None


def datetime_literal(tree: Json) -> datetime | None:
    """The moment of `datetime("…")` with a literal, else None."""
    if isinstance(tree, dict) and set(tree) == {"datetime"}:
        text = literal(tree["datetime"][0])
        if isinstance(text, str):
            try:
                return to_moment(text)
            except ValueError:
                return None
    return None
