"""Policy tests: cases in `tests/*.toml`, run against the bundle that carries them, and what they never exercised.

Decides how a case is written and what counts as covered. A case takes its facts from a table in the same file, from
recorded evidence, or from a named fault of the simulator; it says which decision it expects and, for a refusal, the
exact set of codes (a fault is judged at its own time, not at the case's).

    [facts.good]                          # named facts; `like = "other"` starts from another table
    tcb_status = "UpToDate"

    [[case]]
    name = "an out-of-date platform gets no key"
    action = "ReleaseSecret:acme/db/key"  # as on the command line
    facts = "good"                        # or evidence = "FILE" in tests/, or fault = "NAME"
    change = { tcb_status = "OutOfDate" } # laid over the facts
    context = { via = "kbs" }
    at = "2026-12-01T12:00:00Z"
    expect = "refuse"                     # or "permit"
    codes = ["policy.tcb_not_accepted"]
    rules = ["…"]                         # for a permit, if wanted: exactly these permits allowed it
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from typing import Any, Final

from attestation.errors import AttestationError
from policies.bundle import Bundle
from policies.codes import BundleCode
from policies.engine import judge
from policies.errors import BundleError, Reason, raise_all
from policies.model import ACTIONS, Action, Context, Facts, LaunchFact, parse_action
from policies.tables import Table, nearest, read_toml, suggest, to_moment

DEFAULT_AGE: Final = timedelta(seconds=60)
DEFAULT_LIFE: Final = timedelta(days=1)
_TIMES: Final = ("tcb_date", "verified_at", "valid_until")
_KINDS: Final[dict[str, Any]] = {item.name: item.type for item in fields(Facts)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One expectation. Exactly one of facts, evidence and fault says what is judged."""

    name: str
    file: str
    line: int
    action: Action
    context: Context
    permitted: bool
    codes: frozenset[str]
    rules: frozenset[str] = frozenset()
    facts: Facts | None = None
    evidence: str = ""
    fault: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a case ended. `codes` are those of the refusal, verification's own code included."""

    case: Case
    permitted: bool
    codes: frozenset[str]
    reasons: tuple[Reason, ...] = ()
    rules: tuple[str, ...] = ()
    workloads: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        case = self.case
        fits = self.codes == case.codes if not case.permitted else not case.rules or case.rules == set(self.rules)
        return self.permitted == case.permitted and fits

    def to_dict(self) -> dict[str, Any]:
        case = self.case
        return {
            "name": case.name,
            "file": case.file,
            "line": case.line,
            "passed": self.passed,
            "expected": {"decision": _word(case.permitted), "codes": sorted(case.codes)},
            "got": {"decision": _word(self.permitted), "codes": sorted(self.codes), "rules": list(self.rules)},
            "reasons": [reason.to_dict() for reason in self.reasons],
        }


def _word(permitted: bool) -> str:
    return "permit" if permitted else "refuse"


def read_cases(bundle: Bundle) -> tuple[Case, ...]:
    """Every case of a bundle. Raises BundleError with every mistake in the files."""
    problems: list[BundleError] = []
    cases: list[Case] = []
    for name in sorted(bundle.files):
        if name.startswith("tests/") and name.endswith(".toml"):
            cases += _read_file(bundle, name, problems)
    raise_all(problems)
    return tuple(cases)


def _read_file(bundle: Bundle, name: str, problems: list[BundleError]) -> list[Case]:
    document = read_toml(name, bundle.files[name], problems)
    tables = document.table("facts")
    named = {key: tables.table(key).data for key in tables.data}
    found: list[Case] = []
    for key, data in named.items():
        _check_facts(Table(document.document, ("facts", key), data), key, named)
    for table in document.tables("case"):
        case = _read_case(bundle, name, table, named)
        if case:
            found.append(case)
    document.done()
    return found


def _check_facts(table: Table, name: str, named: dict[str, Any]) -> None:
    table.known.update(_KINDS)
    table.known.add("like")
    like = table.text("like")
    if like and like not in named:
        table.complain("like", BundleCode.TEST_CASE, f"no [facts.{like}]", suggest(like, named))
    elif like and name in _ancestors(like, named):
        table.complain("like", BundleCode.TEST_CASE, f"like leads back to [facts.{name}]", "start from another table")
    for key in [key for key in table.data if key in _KINDS]:
        try:
            _value(key, table.data[key])
        except (TypeError, ValueError) as error:
            table.complain(key, BundleCode.TEST_CASE, f"{key}: {error}")
    table.done()


def _ancestors(name: str, named: dict[str, Any]) -> list[str]:
    """The table of that name, the one that it is like, and so on, until there is none or one for the second time."""
    found: list[str] = []
    here: Any = name
    while isinstance(here, str) and here in named and here not in found:
        found.append(here)
        here = named[here].get("like")
    return found


def _read_case(bundle: Bundle, file: str, table: Table, named: dict[str, Any]) -> Case | None:
    before = len(table.document.problems)
    name = table.text("name", required=True)
    at = table.moment("at", required=True)
    expect = table.text("expect", required=True, one_of=("permit", "refuse"))
    codes = table.texts("codes")
    if expect == "refuse" and not codes:
        table.complain("", BundleCode.KEY_MISSING, f"case {name!r} has no codes", 'add codes = ["policy.…"]')
    rules = table.texts("rules", one_of=[rule.id for rule in bundle.rules.rules])
    sources = [key for key in ("facts", "evidence", "fault") if key in table.data]
    if len(sources) != 1:
        hint = 'facts = "name", evidence = "file.json" or fault = "name"'
        table.complain("", BundleCode.TEST_CASE, f"case {name!r} needs exactly one source of evidence", hint)
    action = _action(table)
    context = _context(table, at)
    facts = _facts(table, named, at)
    evidence, fault = table.text("evidence"), table.text("fault")
    if evidence and f"tests/{evidence}" not in bundle.files:
        present = [path.removeprefix("tests/") for path in bundle.files if path.startswith("tests/")]
        table.complain("evidence", BundleCode.TEST_CASE, f"no file tests/{evidence}", suggest(evidence, present))
    table.done()
    if len(table.document.problems) > before or action is None or context is None:
        return None
    return Case(
        name=name,
        file=file,
        line=table.line(),
        action=action,
        context=context,
        permitted=expect == "permit",
        codes=frozenset(codes),
        rules=frozenset(rules),
        facts=facts,
        evidence=evidence,
        fault=fault,
    )


def _action(table: Table) -> Action | None:
    text = table.text("action", required=True)
    extra = {key: table.take(key, (str, int, list), "a value") for key in ("labels", "version", "message_type")}
    try:
        return parse_action(text, {key: value for key, value in extra.items() if value is not None})
    except ValueError as error:
        word = text.partition(":")[0]
        near = nearest(word, ACTIONS)
        hint = f"did you mean {near!r}?" if near and near != word else ""
        table.complain("action", BundleCode.TEST_CASE, str(error), hint)
        return None


def _context(table: Table, at: datetime | None) -> Context | None:
    inner = table.table("context")
    via = inner.text("via", one_of=("cloister", "kbs")) or "cloister"
    source_ip = inner.text("source_ip") or None
    addresses = inner.number("platform_addresses", low=1)
    inner.done()
    if at is None:
        return None
    return Context(at=at, via=via, source_ip=source_ip, platform_addresses=addresses or 1)


def _facts(table: Table, named: dict[str, Any], at: datetime | None) -> Facts | None:
    name = table.text("facts")
    change: dict[str, Any] = table.take("change", dict, "a table of facts") or {}
    for key in change:
        if key not in _KINDS:
            table.complain("change", BundleCode.KEY_UNKNOWN, f"unknown fact {key!r}", suggest(key, _KINDS))
    if not name or at is None:
        return None
    if name not in named:
        table.complain("facts", BundleCode.TEST_CASE, f"no [facts.{name}]", suggest(name, named))
        return None
    known = {key: value for key, value in {**_resolved(name, named), **change}.items() if key in _KINDS}
    try:
        return make_facts(known, at)
    except (TypeError, ValueError) as error:
        table.complain("change" if change else "facts", BundleCode.TEST_CASE, str(error))
        return None


def _resolved(name: str, named: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for table in reversed(_ancestors(name, named)):
        found |= named[table]
    return found


def make_facts(values: dict[str, Any], at: datetime) -> Facts:
    """Facts from plain TOML or JSON values, verified a minute before `at` and good for a day unless they say else.

    Raises ValueError or TypeError that names the field.
    """
    made = {key: _value(key, value) for key, value in values.items()}
    made.setdefault("verified_at", at - DEFAULT_AGE)
    made.setdefault("valid_until", at + DEFAULT_LIFE)
    made.setdefault("platform_tcb_status", made.get("tcb_status", ""))
    made.setdefault("qe_tcb_status", "UpToDate" if made.get("tcb_status") else "")
    made.setdefault("qe_evaluation_number", made.get("tcb_evaluation_number", 0))
    return Facts(**made)


def _value(name: str, value: Any) -> Any:
    kind = str(_KINDS[name])
    if name in _TIMES:
        return to_moment(value)
    if name == "launches":
        return tuple(map(_launch, _each(value, (str, dict), "launches is a list of digests, or of tables with one")))
    if name == "event_digests":
        need = "event_digests is a list of lists of digests"
        return tuple(tuple(_each(register, str, need)) for register in _each(value, list, need))
    if kind.startswith("tuple"):
        return tuple(_each(value, str, f"{name} is a list of strings"))
    wanted: Any = {"int": int, "bool": bool, "bool | None": bool}.get(kind, str)
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise TypeError(f"{name} is {wanted.__name__}, not {type(value).__name__}")
    return value


def _each(value: Any, kind: type | tuple[type, ...], need: str) -> list[Any]:
    if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
        raise TypeError(need)
    return value


def _launch(value: str | dict[str, Any]) -> LaunchFact:
    made = LaunchFact(**value) if isinstance(value, dict) else LaunchFact(digest=value)
    _each([made.digest, made.name], str, "a launch has a digest and a name, both texts")
    return made


def run_cases(bundle: Bundle, cases: Iterable[Case]) -> tuple[Outcome, ...]:
    """Every case with its outcome. Raises BundleError for evidence that cannot be read or made."""
    return tuple(_run(bundle, case) for case in cases)


def _run(bundle: Bundle, case: Case) -> Outcome:
    facts, context = case.facts, case.context
    if facts is None:
        try:
            facts, context = _evidence(bundle, case)
        except AttestationError as error:
            return Outcome(case=case, permitted=False, codes=frozenset({error.code.value}))
    result = judge(bundle, facts, case.action, context=context)
    return Outcome(
        case=case,
        permitted=result.permitted,
        codes=frozenset(reason.code.value for reason in result.reasons),
        reasons=result.reasons,
        rules=result.rules,
        workloads=result.workloads,
    )


def _evidence(bundle: Bundle, case: Case) -> tuple[Facts, Context]:
    """Facts from recorded evidence at the case's time, or from a fault at the time for which it was played."""
    from policies import faults, recording  # the whole verifier; cases with plain facts need none of it

    at = case.context.at
    if case.fault:
        facts, at = faults.facts_of_fault(case.fault, bundle.allowances, where=(case.file, case.line))
        return facts, replace(case.context, at=at)
    recorded = recording.Recording.from_json(f"tests/{case.evidence}", bundle.files[f"tests/{case.evidence}"])
    return recording.facts_of(recorded, at=at, allow=bundle.allowances(at)), case.context


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """What no case exercised: rules that never applied, conditions never seen false, workloads never matched."""

    rules: tuple[str, ...]
    workloads: tuple[str, ...]
    actions: tuple[str, ...]

    @property
    def complete(self) -> bool:
        return not (self.rules or self.workloads or self.actions)


def coverage(bundle: Bundle, outcomes: Iterable[Outcome]) -> Coverage:
    """What the outcomes leave out. A rule counts when it permitted or forbade in some case."""
    seen = list(outcomes)
    fired = {name for outcome in seen for name in outcome.rules}
    fired |= {reason.rule for outcome in seen for reason in outcome.reasons if reason.code == "policy.forbidden"}
    matched = {name for outcome in seen for name in outcome.workloads}
    permitted = {type(outcome.case.action).action for outcome in seen if outcome.permitted}
    offered: set[str] = set()
    for rule in bundle.rules.rules:
        if rule.permits:
            offered |= rule.actions or set(ACTIONS)
    return Coverage(
        rules=tuple(rule.id for rule in bundle.rules.rules if rule.id not in fired),
        workloads=tuple(item.name for item in bundle.settings.workloads if item.name not in matched),
        actions=tuple(sorted(offered - permitted)),
    )
