"""Every named fault provokes exactly its code, for us; what an independent verifier says of it; the stored vectors."""

import re
from datetime import UTC, datetime
from operator import attrgetter
from pathlib import Path
from typing import Final

import dcap_qvl
import pytest

from attestation.checks import EVALUATION
from attestation.errors import Code, VerificationFailed
from attestation.tcb import ANY_TCB
from simulator import vectors
from simulator.errors import SimulatorCode, SimulatorError
from simulator.faults import FAULTS, evidence_source, exhibit, find, good
from simulator.judging import judge, outcome
from simulator.machine import Machine
from simulator.registry import BINDING, COLLATERAL, EVENT_LOG, FORMS, QUOTE, Exhibit, fault
from tests.differences import DOCUMENT

VECTORS: Final = Path(__file__).parent / "vectors"
AT: Final = datetime(2026, 7, 1, 12, tzinfo=UTC)

# What a quote, its collateral or its event log cannot provoke.
ELSEWHERE: Final = ("sealing.", "token.", "image.", "tsm.", "roots.")
NOT_EVIDENCE: Final = {
    "binding.not_compared": "the caller's choice, not the sender's",
    "collateral.answer_invalid": "what a PCS does",
    "collateral.evaluation_numbers_differ": "a warning; `mixed-evaluation-sets` shows it",
    "collateral.not_found": "what a PCS does",
    "collateral.platform_unknown": "what a PCS does",
    "collateral.rollback": "what a verifier with a memory sees",
    "collateral.stale": "what a verifier with a memory sees",
    "collateral.unavailable": "what a PCS does",
}

# Faults that dcap-qvl 0.7.0 lets through; docs/differences.md says why for each.
LENIENT: Final = frozenset(re.findall(r"^\| `([a-z0-9-]+)` \|", DOCUMENT.read_text("utf-8"), re.MULTILINE))


@pytest.fixture(scope="module")
def machine() -> Machine:
    machine = Machine.create(seed="fault tests")
    machine.clock.set(AT)
    return machine


def theirs(shown: Exhibit, machine: Machine) -> str:
    """What dcap-qvl says: a TCB state, or `refused`."""
    try:
        collateral = dcap_qvl.QuoteCollateralV3.from_json(shown.collateral)
        return str(dcap_qvl.verify_with_root_ca(shown.quote, collateral, machine.root_der, shown.at).status)
    except ValueError:
        return "refused"


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_provokes_exactly_its_code(machine: Machine, name: str) -> None:
    assert outcome(exhibit(machine, name)) == FAULTS[name].code


@pytest.mark.parametrize("name", [f.name for f in FAULTS.values() if f.forms & {QUOTE, COLLATERAL}])
def test_an_independent_verifier_agrees_or_the_difference_has_a_reason(machine: Machine, name: str) -> None:
    found = theirs(exhibit(machine, name), machine)
    if FAULTS[name].code is Code.TCB_NOT_ACCEPTED:  # it reports the state and leaves the decision to its caller
        assert found not in ("refused", "UpToDate")
    else:
        assert (found == "UpToDate") == (name in LENIENT), found


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("name", [f.name for f in FAULTS.values() if f.forms & {QUOTE, COLLATERAL}])
def test_a_fault_keeps_its_code_in_both_versions_and_on_another_platform(
    machine: Machine, name: str, version: int
) -> None:
    assert outcome(exhibit(machine, name, version=version, platform=1)) == FAULTS[name].code


@pytest.mark.parametrize(("version", "body"), [(None, None), (4, 2), (5, 2), (5, 3), (5, 4)])
def test_nothing_is_wrong_without_a_fault(machine: Machine, version: int | None, body: int | None) -> None:
    assert outcome(good(machine, version=version, body=body)) == "ok"


def test_every_code_that_evidence_can_provoke_has_a_fault() -> None:
    provoked = {fault.code for fault in FAULTS.values()}
    missing = {
        str(code)
        for code in Code
        if code not in provoked and not code.startswith(ELSEWHERE) and code not in NOT_EVIDENCE
    }
    assert missing == set()
    assert provoked.isdisjoint(NOT_EVIDENCE)


def test_there_are_many_faults_in_every_form() -> None:
    assert sum(bool(f.forms & {QUOTE, COLLATERAL}) for f in FAULTS.values()) >= 40
    for form in FORMS:
        assert any(form in f.forms for f in FAULTS.values())
    assert all(f.what and f.forms <= set(FORMS) for f in FAULTS.values())


def test_a_fault_is_played_on_a_copy(machine: Machine) -> None:
    before = machine.documents(), machine.platform().spec, machine.clock.now()
    for name in ("revoked-ca", "no-tcb-level", "mixed-evaluation-sets", "cloned-platform"):
        exhibit(machine, name)
    assert (machine.documents(), machine.platform().spec, machine.clock.now()) == before
    assert outcome(good(machine)) == "ok"


def test_a_fault_is_wrong_at_any_time(machine: Machine) -> None:
    for year in (2021, 2035):
        at = datetime(year, 3, 1, tzinfo=UTC)
        assert outcome(good(machine, at=at)) == "ok"
        for name in ("pck-expired", "stale-crl", "collateral-of-tomorrow", "tcb-recovery"):
            assert outcome(exhibit(machine, name, at=at)) == FAULTS[name].code


def test_mixed_evaluation_sets_are_a_warning_beside_the_refusal(machine: Machine) -> None:
    with pytest.raises(VerificationFailed) as caught:
        judge(exhibit(machine, "mixed-evaluation-sets"))
    assert [check.warning for check in caught.value.checks if check.name == EVALUATION.name] == [True]


def test_what_is_out_of_date_passes_where_any_state_is_accepted(machine: Machine) -> None:
    assert judge(exhibit(machine, "relaunch-advised"), accept=ANY_TCB).tcb_status == "TDRelaunchAdvised"
    assert judge(exhibit(machine, "out-of-date"), accept=ANY_TCB).simulated


def test_an_unknown_fault_names_the_nearest() -> None:
    with pytest.raises(SimulatorError, match="debug-td") as caught:
        find("debug-tdd")
    assert caught.value.code is SimulatorCode.FAULT_UNKNOWN


def test_two_faults_cannot_have_one_name() -> None:
    with pytest.raises(ValueError, match="debug-td"):
        fault("debug-td", Code.QUOTE_DEBUG, "again")(lambda scene: scene.exhibit())


def test_policy_tests_get_exhibits_by_name() -> None:
    found = evidence_source(["debug-td", "stolen-evidence"])
    assert {name: outcome(shown) for name, shown in found.items()} == {
        "debug-td": "quote.debug",
        "stolen-evidence": "evidence.proof_invalid",
    }


# --- the stored vectors ---


def test_the_stored_vectors_are_what_the_faults_give() -> None:
    stored = {path.name: path.read_text("utf-8") for path in VECTORS.iterdir() if path.is_file()}
    assert stored == vectors.build(), "write them again: python -m simulator.vectors tests/vectors"


@pytest.mark.parametrize("vector", vectors.load(VECTORS), ids=attrgetter("id"))
def test_every_stored_vector_ends_as_it_says(vector: vectors.Vector) -> None:
    assert outcome(vector.exhibit) == vector.expect


def test_the_vectors_hold_no_private_key() -> None:
    text = "".join(path.read_text("utf-8") for path in VECTORS.iterdir())
    assert "PRIVATE" not in text


def test_event_log_and_binding_faults_have_a_good_quote(machine: Machine) -> None:
    for name in ("cut-event-log", "unlogged-extension", "stolen-evidence"):
        shown = exhibit(machine, name)
        assert FAULTS[name].forms <= {EVENT_LOG, BINDING}
        assert theirs(shown, machine) == "UpToDate"
