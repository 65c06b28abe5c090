"""Simulator faults under a policy: what a case in TOML says of them, and that a refusal alone names the mend.

The mender below sees only the text of a refusal. It knows nothing of the fault; from the words it takes what to do,
does it on the evidence or the bundle, and asks again.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from attestation.errors import MEANING, AttestationError, VerificationFailed
from policies.bundle import Bundle, bundle_of
from policies.cases import read_cases, run_cases
from policies.engine import judge
from policies.errors import BundleError
from policies.faults import facts_of_exhibit, source
from policies.model import Admit, Context
from simulator.faults import exhibit, good
from simulator.registry import Exhibit
from tests.policy_world import Files, files, machine

World = tuple[Exhibit, Files]
REPORT_DATA = bytes(range(1, 65))


def start() -> Files:
    """The lab's bundle, for evidence that is bound to no agent."""
    made = files("lab", bundle=("version = 1", 'binding = "optional"\nversion = 1'))
    return {name: content for name, content in made.items() if not name.startswith("tests/")}


def refusal(world: World) -> str:
    """What an operator reads: codes, and what to do about each. Empty when it passes."""
    shown, made = world
    bundle = bundle_of(made)
    try:
        facts, at = facts_of_exhibit(shown, bundle.allowances)
    except AttestationError as error:
        return told(error)
    found = judge(bundle, facts, Admit(), context=Context(at=at))
    return "\n".join(f"{reason.code}: {reason.passes_if}" for reason in found.reasons)


def told(error: AttestationError) -> str:
    lines = [f"{error.code}: {MEANING[error.code][1]}"]
    if isinstance(error, VerificationFailed):
        lines += [f"{check.code}: {check.remedy}" for check in error.checks if not check.ok and not check.warning]
    return "\n".join(lines)


def fresh() -> Exhibit:
    return good(machine(), report_data=REPORT_DATA)


def quote_again(world: World, _: re.Match[str]) -> World:
    again = fresh()
    return replace(world[0], quote=again.quote, event_log=again.event_log, report_data=again.report_data), world[1]


def fetch_again(world: World, _: re.Match[str]) -> World:
    return replace(world[0], collateral=fresh().collateral), world[1]


def send_the_log(world: World, _: re.Match[str]) -> World:
    return replace(world[0], event_log=fresh().event_log, quote=fresh().quote), world[1]


def edit(world: World, old: str, new: str) -> World:
    shown, made = world
    text = made["bundle.toml"].decode()
    assert old in text
    return shown, {**made, "bundle.toml": text.replace(old, new, 1).encode()}


def accept(world: World, found: re.Match[str]) -> World:
    return edit(world, 'accept = ["UpToDate"', f'accept = ["UpToDate", "{found[1]}"')


def allow_advisories(world: World, found: re.Match[str]) -> World:
    listed = ", ".join(f'"{name}"' for name in found[1].split(", "))
    return edit(world, "[freshness]", f"[tcb.advisories]\nallow = [{listed}]\n[freshness]")


def grant(world: World, found: re.Match[str]) -> World:
    return edit(world, "[tcb]", f'[[allowance]]\nname = "{found[1]}"\nuntil = "2027-01-01"\n[tcb]')


# The first line that fits is what is done; policy first, where a refusal offers both.
MENDS: list[tuple[str, Callable[[World, re.Match[str]], World]]] = [
    (r"or tcb\.accept lists (\w+)", accept),
    (r"((?:INTEL-SA-\d+(?:, )?)+) no longer applies, or tcb\.advisories\.allow lists it", allow_advisories),
    (r"name the allowance (\w+)", grant),
    (r"Launch it without DEBUG", quote_again),
    (r"[Ff]etch (?:it|the collateral|what has ended|newer|TCB info|the PCK CRL)\b", fetch_again),
    (r"Send the whole log", send_the_log),
    (r"quote again|Get a fresh quote|Send the (?:whole )?quote|Update the quoting enclave", quote_again),
]


def mend(world: World) -> World | None:
    text = refusal(world)
    for pattern, action in MENDS:
        if found := re.search(pattern, text):
            return action(world, found)
    return None


MENDED = [
    "debug-td",
    "sept-ve-disable-clear",
    "migratable-td",
    "service-td",
    "unknown-attributes",
    "empty-quote",
    "truncated-quote",
    "trailing-bytes",
    "changed-body",
    "swapped-report-data",
    "out-of-date",
    "out-of-date-configuration-needed",
    "configuration-needed",
    "sw-hardening-needed",
    "configuration-and-sw-hardening-needed",
    "out-of-date-module",
    "out-of-date-qe",
    "relaunch-advised",
    "tcb-recovery",
    "no-tcb-level",
    "no-module-level",
    "stale-collateral",
    "expired-tcb-info",
    "edited-tcb-info",
    "other-fmspc",
    "sgx-tcb-info",
    "collateral-rubbish",
    "cut-event-log",
    "unlogged-extension",
]


@pytest.mark.parametrize("name", MENDED)
def test_the_refusal_of_a_fault_alone_names_the_mend(name: str) -> None:
    world: World | None = (exhibit(machine(), name, report_data=REPORT_DATA), start())
    assert world
    assert refusal(world)
    for _ in range(4):
        world = mend(world)
        assert world, "the refusal names nothing that can be done"
        if not refusal(world):
            return
    raise AssertionError(refusal(world))


def test_there_are_more_than_twenty_of_them() -> None:
    assert len(set(MENDED)) >= 20


def test_evidence_without_a_fault_passes() -> None:
    assert refusal((fresh(), start())) == ""


# Faults in a bundle's own tests

CASES = """
[[case]]
name = "a debug domain is refused by the verifier"
fault = "debug-td"
action = "Admit"
at = "2026-12-01T12:00:00Z"
expect = "refuse"
codes = ["quote.debug"]

[[case]]
name = "an out-of-date quoting enclave is refused by the policy"
fault = "out-of-date-qe"
action = "Admit"
at = "2026-12-01T12:00:00Z"
expect = "refuse"
codes = ["policy.tcb_not_accepted", "policy.advisory_not_allowed", "policy.floor_not_admitted"]
"""


def lab_with(cases: str) -> Bundle:
    return bundle_of({**files("lab"), "tests/starter.toml": cases.encode()})


def test_a_case_can_name_a_fault() -> None:
    loaded = lab_with(CASES)
    assert [
        (outcome.case.name, outcome.codes) for outcome in run_cases(loaded, read_cases(loaded)) if not outcome.passed
    ] == []


def test_an_unknown_fault_names_the_nearest() -> None:
    loaded = lab_with(CASES.replace("debug-td", "debug-tdx"))
    with pytest.raises(BundleError) as error:
        run_cases(loaded, read_cases(loaded))
    assert (error.value.code, error.value.line) == ("bundle.test_case", 2)
    assert "debug-td" in error.value.hint


def test_without_a_simulator_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(name: str) -> object:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr("policies.faults.import_module", gone)
    loaded = lab_with(CASES)
    with pytest.raises(BundleError) as error:
        run_cases(loaded, read_cases(loaded))
    assert error.value.hint == "pip install 'cloister[simulator]'"


def test_the_source_knows_every_fault_by_name() -> None:
    _, names = source()
    assert set(MENDED) <= set(names)
