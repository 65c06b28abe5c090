"""A second, slow and simple judge of the same bundles, and strategies that generate bundles and facts.

It shares nothing with the engine but the words: settings are plain dictionaries, conditions are Python predicates, and
every rule is looked at for every question. A condition is a pair: its Cedar text, and what it means.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from hypothesis import strategies as st

from policies.model import Action, Admit, CallTool, Context, Facts, LaunchFact, Receive, ReleaseSecret, Send
from policies.vocabulary import SCHEMA_TEXT
from tests.policy_world import AT, Files

TENANT = "acme"
DIGESTS = ("a" * 96, "b" * 96, "c" * 96)
FMSPCS = ("00906ed50000", "90c06f000000")
STATES = ("UpToDate", "SWHardeningNeeded", "OutOfDate")
ADVISORIES = ("INTEL-SA-00001", "INTEL-SA-00002")
WORKLOADS = ("one", "two")
ENDS = (AT - timedelta(days=1), AT + timedelta(days=1))
RESOURCES = ("acme/keys/a", "acme/keys/b/c", "acme/mail/a", "acme/x")

Meaning = Callable[[Facts, Context, Action], bool]


@dataclass(frozen=True)
class Condition:
    text: str
    holds: Meaning


CONDITIONS = (
    Condition('principal.tcb_status == "UpToDate"', lambda f, c, a: f.tcb_status == "UpToDate"),
    Condition(
        '["UpToDate", "SWHardeningNeeded"].contains(principal.tcb_status)', lambda f, c, a: f.tcb_status != "OutOfDate"
    ),
    Condition('context.via == "cloister"', lambda f, c, a: c.via == "cloister"),
    Condition("principal.tcb_evaluation_number >= 17", lambda f, c, a: f.tcb_evaluation_number >= 17),
    Condition(f'principal.mr_td == "{DIGESTS[0]}"', lambda f, c, a: f.mr_td == DIGESTS[0]),
    Condition("context.age_s < 120", lambda f, c, a: age_s(f, c) < 120),
    Condition(
        '(principal.launch_count == 1 || context.via == "kbs")', lambda f, c, a: len(f.launches) == 1 or c.via == "kbs"
    ),
    Condition('context.now < datetime("2026-12-01T12:00:30Z")', lambda f, c, a: c.at < AT + timedelta(seconds=30)),
    Condition('principal.advisory_ids.contains("INTEL-SA-00001")', lambda f, c, a: ADVISORIES[0] in f.advisory_ids),
    Condition("principal.tcb_evaluation_number + 9223372036854775788 > 0", lambda f, c, a: overflow(f)),
)


class Errs(Exception):
    """The condition cannot be evaluated."""


def overflow(facts: Facts) -> bool:
    if facts.tcb_evaluation_number + 9223372036854775788 > 2**63 - 1:
        raise Errs
    return True


def age_s(facts: Facts, context: Context) -> int:
    return int((context.at - facts.verified_at).total_seconds())


@dataclass(frozen=True)
class GeneratedRule:
    effect: str
    workload: str
    actions: tuple[str, ...]
    resource: tuple[str, str]
    conditions: tuple[int, ...]

    def text(self, index: int) -> str:
        principal = f'principal in Workload::"{self.workload}"' if self.workload else "principal"
        action = f"action in [{', '.join(f'Action::{chr(34)}{name}{chr(34)}' for name in self.actions)}]"
        op, name = self.resource
        resource = {"any": "resource", "in": f'resource in Path::"{name}"', "==": f'resource == Secret::"{name}"'}[op]
        body = " && ".join(CONDITIONS[number].text for number in self.conditions)
        when = f"when {{ {body} }}" if body else ""
        return (
            f'@id("r{index}") {self.effect} ({principal}, {action if self.actions else "action"}, {resource}) {when};'
        )


@dataclass(frozen=True)
class Generated:
    """A bundle as plain values, and as files."""

    accept: tuple[str, ...]
    minimum: int
    advisories: tuple[str, ...] | None
    fmspcs: tuple[str, ...]
    any_until: datetime | None
    max_age_s: int
    grace_s: int
    migratable_until: datetime | None
    values: tuple[tuple[str, str, datetime | None], ...]
    rules: tuple[GeneratedRule, ...]

    def files(self) -> Files:
        allow = '"any"' if self.advisories is None else quoted(self.advisories)
        platforms = (
            f'any_until = "{self.any_until.isoformat()}"' if self.any_until else f"fmspc = {quoted(self.fmspcs)}"
        )
        grant = ""
        if self.migratable_until:
            grant = f'[[allowance]]\nname = "migratable"\nuntil = "{self.migratable_until.isoformat()}"\n'
        main = (
            f'tenant = "{TENANT}"\nversion = 1\n[platforms]\n{platforms}\n{grant}'
            f"[tcb]\naccept = {quoted(self.accept)}\n"
            f"min_evaluation_number = {self.minimum}\n[tcb.advisories]\nallow = {allow}\n"
            f"[freshness]\nmax_age_s = {self.max_age_s}\ngrace_s = {self.grace_s}\n"
        )
        references = "\n".join(
            f'[[workload]]\nname = "{name}"\n'
            + "".join(
                f'[[workload.value]]\nsource = "s{index}"\nmr_td = "{digest}"\n'
                + (f'until = "{until.isoformat()}"\n' if until else "")
                for index, (owner, digest, until) in enumerate(self.values)
                if owner == name
            )
            for name in sorted({owner for owner, _, _ in self.values})
        )
        rules = "\n".join(rule.text(index) for index, rule in enumerate(self.rules))
        return {
            "bundle.toml": main.encode(),
            "reference-values.toml": references.encode(),
            "rules.cedar": rules.encode(),
            "schema.cedarschema": SCHEMA_TEXT.encode(),
        }


def quoted(words: tuple[str, ...]) -> str:
    return "[" + ", ".join(f'"{word}"' for word in words) + "]"


def permitted(made: Generated, facts: Facts, action: Action, context: Context) -> bool:
    """The reference: everything that must hold, one line each."""
    at, name, kind = context.at, resource_of(action), type(action).action
    workloads = {owner for owner, digest, until in made.values if digest == facts.mr_td and (not until or at < until)}
    attributes = int.from_bytes(bytes.fromhex(facts.td_attributes), "little")
    bound = facts.compared == "binding" or (facts.compared == "bytes" and context.via == "kbs")
    appraised = (
        facts.tee == "tdx"
        and attributes & 1 == 0
        and bound
        and facts.verified_at <= at <= facts.valid_until
        and (facts.tenant == TENANT or (facts.tenant == "" and facts.compared != "binding"))
        and name.split("/")[0] == TENANT
        and facts.tcb_status in made.accept
        and facts.tcb_evaluation_number >= made.minimum
        and (made.advisories is None or set(facts.advisory_ids) <= set(made.advisories))
        and (at < made.any_until if made.any_until else facts.fmspc in made.fmspcs)
        and (not attributes & 1 << 29 or bool(made.migratable_until and at < made.migratable_until))
        and bool(attributes & 1 << 28)
        and age_s(facts, context) <= made.max_age_s + made.grace_s
        and context.platform_addresses <= 1
        and bool(workloads)
        and (facts.suite == "mlkem768-x25519" or (facts.suite == "" and facts.compared != "binding"))
        and (facts.role == "agent" or (facts.role == "" and facts.compared != "binding"))
    )
    if not appraised:
        return False
    granted = False
    over_kbs = context.via == "kbs" and kind == "ReleaseSecret"
    for rule in made.rules:
        if not concerns(rule, workloads, kind, name):
            continue
        reads_log = 6 in rule.conditions and not facts.event_log_present
        if reads_log and rule.effect == "forbid":
            return False
        try:
            applies = all(CONDITIONS[number].holds(facts, context, action) for number in rule.conditions)
        except Errs:
            return False
        if applies and rule.effect == "forbid":
            return False
        names_via = bool({2, 6} & set(rule.conditions))
        granted |= applies and rule.effect == "permit" and not reads_log and (names_via or not over_kbs)
    return granted


def concerns(rule: GeneratedRule, workloads: set[str], kind: str, name: str) -> bool:
    op, wanted = rule.resource
    if op == "any":
        reached = True
    elif op == "in":
        reached = kind != "Admit" and name.startswith(f"{wanted}/")
    else:
        reached = kind == "ReleaseSecret" and name == wanted
    return reached and (not rule.workload or rule.workload in workloads) and (not rule.actions or kind in rule.actions)


def resource_of(action: Action) -> str:
    match action:
        case Admit():
            return TENANT
        case ReleaseSecret(name) | Send(name) | Receive(name) | CallTool(name):
            return name
    raise AssertionError(action)


def subsets(words: tuple[str, ...], least: int = 0) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(st.sampled_from(words), unique=True, min_size=least).map(lambda found: tuple(sorted(found)))


def likely(good: Any, *bad: Any) -> st.SearchStrategy[Any]:
    """Mostly the good value, so that permits happen often enough to mean something."""
    return st.sampled_from([good] * 12 + list(bad))


@st.composite
def rules(draw: Any, effect: str) -> GeneratedRule:
    numbers = draw(st.lists(st.integers(0, len(CONDITIONS) - 1), unique=True, min_size=effect == "forbid", max_size=3))
    workload = draw(st.sampled_from((*WORKLOADS, "")))
    op = draw(st.sampled_from(["any", "in", "in", "=="]))
    if not numbers and not workload:
        workload = WORKLOADS[0]
    name = {"any": "", "in": draw(st.sampled_from(["acme/keys", "acme/mail", "acme"])), "==": "acme/keys/a"}[op]
    choices: tuple[str, ...] = ("ReleaseSecret",) if op == "==" else ("ReleaseSecret", "Send", "Receive", "CallTool")
    choices += ("Admit",) if op == "any" else ()
    return GeneratedRule(effect, workload, draw(subsets(choices, 1)), (op, name), tuple(sorted(numbers)))


@st.composite
def broad(draw: Any) -> GeneratedRule:
    """A permit that is about much, so that the other rules have something to add to or take from."""
    numbers = draw(st.lists(st.integers(0, len(CONDITIONS) - 2), unique=True, max_size=1))
    return GeneratedRule("permit", WORKLOADS[0], (), ("any", ""), tuple(numbers))


@st.composite
def bundles(draw: Any) -> Generated:
    values = [
        (WORKLOADS[0], draw(likely(*DIGESTS[:2])), draw(likely(None, *ENDS))),
        (WORKLOADS[1], draw(st.sampled_from(DIGESTS)), draw(st.sampled_from((None, *ENDS)))),
    ]
    if draw(st.booleans()):
        values.append((WORKLOADS[0], "d" * 96, None))
    permits = [draw(broad()), *draw(st.lists(rules("permit"), max_size=3))]
    forbids = draw(st.lists(rules("forbid"), max_size=2)) if draw(st.booleans()) else []
    return Generated(
        accept=draw(likely(STATES, ("UpToDate",), ("OutOfDate", "UpToDate"))),
        minimum=draw(likely(0, 16, 18)),
        advisories=draw(likely(None, (), ADVISORIES[:1], ADVISORIES)),
        fmspcs=draw(likely(FMSPCS, FMSPCS[:1])),
        any_until=draw(st.sampled_from((None, None, *ENDS, ENDS[1]))),
        max_age_s=draw(st.sampled_from((60, 300))),
        grace_s=draw(st.sampled_from((0, 100))),
        migratable_until=draw(st.sampled_from((None, *ENDS))),
        values=tuple(values),
        rules=tuple(dict.fromkeys([*permits, *forbids])),
    )


@st.composite
def facts(draw: Any) -> Facts:
    unbound = draw(likely(False, True))
    launches = draw(st.lists(st.sampled_from(DIGESTS), max_size=2))
    log = bool(launches) or draw(st.booleans())
    number = draw(likely(18, 15, 17, 20))
    return Facts(
        subject="" if unbound else "agent/acme/k",
        tenant="" if unbound else draw(likely(TENANT, "globex")),
        role="" if unbound else draw(likely("agent", "peer")),
        suite="" if unbound else draw(likely("mlkem768-x25519", "x25519")),
        compared=draw(likely("bytes", "nothing")) if unbound else "binding",
        tee=draw(likely("tdx", "sgx")),
        tcb_status=draw(st.sampled_from(STATES)),
        platform_tcb_status="UpToDate",
        qe_tcb_status="UpToDate",
        tcb_evaluation_number=number,
        qe_evaluation_number=number,
        advisory_ids=draw(subsets(ADVISORIES)),
        fmspc=draw(st.sampled_from(FMSPCS)),
        mr_td=draw(likely(*DIGESTS)),
        td_attributes=draw(likely("0000001000000000", "0100001000000000", "0000003000000000", "0000000000000000")),
        launches=tuple(LaunchFact(digest=digest) for digest in launches),
        event_log_present=log,
        event_digests=((), (), (), tuple(launches)) if log else (),
        verified_at=AT - timedelta(seconds=draw(likely(30, 0, 60, 119, 120, 299, 301, 401))),
        valid_until=AT + timedelta(seconds=draw(likely(86_400, 0, 20))),
    )


contexts = st.builds(
    Context,
    at=likely(AT, AT + timedelta(seconds=29), AT + timedelta(seconds=30), AT - timedelta(seconds=1)),
    via=likely("cloister", "kbs"),
    platform_addresses=likely(1, 2),
)
actions: st.SearchStrategy[Action] = st.one_of(
    st.just(Admit()),
    st.sampled_from(RESOURCES).map(ReleaseSecret),
    st.sampled_from(RESOURCES).map(ReleaseSecret),
    st.sampled_from(RESOURCES).map(Send),
    st.sampled_from(RESOURCES).map(Receive),
    st.sampled_from(RESOURCES).map(CallTool),
)
