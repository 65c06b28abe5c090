"""The simulated machine: what it keeps, who may use it at once, its clock, certificates, collateral and recoveries."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dcap_qvl
import pytest
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.collateral import Collateral
from attestation.errors import AttestationError, CollateralUnavailable
from attestation.pki import TrustRoots
from attestation.quote import Quote
from attestation.tcb import ANY_TCB
from attestation.verifier import NOT_COMPARED, verify_quote
from simulator import machine as machine_module
from simulator.errors import SimulatorCode, SimulatorError
from simulator.faults import exhibit
from simulator.machine import Machine
from simulator.pki import NOT_BEFORE, SERIAL_MARK
from simulator.platform import PPID_MARK
from simulator.recovery import Event, Ledger, replay

AT = datetime(2026, 7, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)


def code_of(action: Callable[[], Any]) -> SimulatorCode:
    with pytest.raises(SimulatorError) as caught:
        action()
    return caught.value.code


def stopped(seed: str = "machine tests") -> Machine:
    machine = Machine.create(seed=seed)
    machine.clock.set(AT)
    return machine


def status(machine: Machine, *, platform: int = 0, update: str = "standard") -> str:
    """The platform's TCB state under the machine's present collateral, or the code of the refusal."""
    chosen = machine.platform(platform)
    quote = Quote.parse(machine.launch(platform=platform).quote(bytes(range(64))))
    collateral = machine.collateral("tdx", chosen.spec.fmspc, update=update)
    at = machine.clock.now()
    try:
        found = verify_quote(
            quote, collateral, report_data=NOT_COMPARED, roots=machine.roots, at=at, accept=ANY_TCB
        ).tcb_status
    except AttestationError as error:
        return str(error.code)
    return str(found)


# --- what a seed gives ---


def test_one_seed_gives_one_machine_and_another_seed_another() -> None:
    first, again, other = stopped("a"), stopped("a"), stopped("b")
    assert first.root_pem == again.root_pem != other.root_pem
    assert first.documents() == again.documents() != other.documents()
    assert first.launch().quote(bytes(64)) == again.launch().quote(bytes(64))


def test_a_machine_without_a_seed_is_like_no_other() -> None:
    assert Machine.create().root_pem != Machine.create().root_pem


def test_certificates_look_like_intels_and_carry_the_marks_of_the_simulator() -> None:
    machine = stopped()
    pki = machine.pki
    for identity in (pki.root, pki.platform, pki.processor, pki.tcb_signing, machine.platform().pck):
        certificate = identity.certificate
        names = [attribute.rfc4514_attribute_name for attribute in certificate.subject]
        assert names == ["CN", "O", "L", "ST", "C"]
        assert certificate.serial_number.to_bytes(20, "big").startswith(SERIAL_MARK)
        assert certificate.not_valid_before_utc == NOT_BEFORE
        kinds = [extension.oid._name for extension in certificate.extensions]
        assert kinds[:5] == [
            "authorityKeyIdentifier",
            "cRLDistributionPoints",
            "subjectKeyIdentifier",
            "keyUsage",
            "basicConstraints",
        ]
        assert len(kinds) == (6 if identity is machine.platform().pck else 5)


def test_a_ppid_shows_that_it_is_simulated_and_names_one_platform() -> None:
    ppids = {platform.ppid for platform in stopped().platforms}
    assert len(ppids) == 3
    assert all(ppid.startswith(PPID_MARK) for ppid in ppids)


def test_a_processor_ca_certifies_five_facts_and_a_platform_ca_seven() -> None:
    machine = stopped()
    assert machine.platform(0).instance_id is not None
    assert machine.platform(2).instance_id is None
    assert machine.platform(2).extension().configuration is None


def test_a_simulated_quote_is_refused_under_intels_root() -> None:
    machine = stopped()
    quote = Quote.parse(machine.launch().quote(bytes(range(64))))
    with pytest.raises(AttestationError) as caught:
        verify_quote(quote, machine.collateral(), report_data=NOT_COMPARED, roots=TrustRoots.intel(), at=AT)
    assert caught.value.code == "chain.root_not_trusted"


# --- folder, lock, damage ---


def test_a_folder_keeps_the_machine_and_only_its_owner_reads_the_seed(tmp_path: Path) -> None:
    machine = Machine.create(tmp_path / "m", seed=7)
    machine.recover("publish", advisories=["INTEL-SA-09999"])
    machine.add_platform("50806F000000", microcode=4)
    again = Machine.open(tmp_path / "m")
    assert again.root_pem == machine.root_pem == (tmp_path / "m" / "root.pem").read_bytes()
    assert again.ledger().current("early").number == 21
    assert again.platform(3).spec.microcode == 4
    assert (tmp_path / "m" / "machine.json").stat().st_mode & 0o077 == 0


def test_two_who_opened_one_folder_see_the_same_collateral_at_once(tmp_path: Path) -> None:
    one = Machine.create(tmp_path, seed=7)
    other = Machine.open(tmp_path)
    one.clock.set(AT)
    one.recover("revoke-pck", platform=0)
    assert other.clock.now() == AT
    assert other.documents() == one.documents()
    assert status(other) == "chain.revoked"


def test_a_machine_is_not_made_over_another(tmp_path: Path) -> None:
    Machine.create(tmp_path, seed=7)
    assert code_of(lambda: Machine.create(tmp_path, seed=8)) is SimulatorCode.MACHINE_EXISTS
    assert Machine.open(tmp_path, create=True).root_pem == Machine.create(seed=7).root_pem


def test_opening_nothing_says_so(tmp_path: Path) -> None:
    assert code_of(lambda: Machine.open(tmp_path / "nowhere")) is SimulatorCode.MACHINE_MISSING


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "other format", "not text", "unknown member"])
def test_a_damaged_machine_is_refused_and_left_as_it_is(tmp_path: Path, damage: str) -> None:
    Machine.create(tmp_path, seed=7)
    file = tmp_path / "machine.json"
    raw = file.read_bytes()
    content = json.loads(raw)
    damaged = {
        "cut": raw[: len(raw) // 2],
        "empty": b"",
        "flipped": raw.replace(b'"microcode": 8', b'"microcode": 9', 1),
        "other format": json.dumps(content | {"format": "something else"}).encode(),
        "not text": b"\xff\xfe" + raw,
        "unknown member": json.dumps(content | {"extra": 1}).encode(),
    }[damage]
    file.write_bytes(damaged)
    assert code_of(lambda: Machine.open(tmp_path)) is SimulatorCode.MACHINE_DAMAGED
    assert code_of(lambda: Machine.open(tmp_path, create=True)) is SimulatorCode.MACHINE_DAMAGED
    assert file.read_bytes() == damaged


def test_a_machine_that_is_damaged_under_our_feet_is_not_overwritten(tmp_path: Path) -> None:
    machine = Machine.create(tmp_path, seed=7)
    (tmp_path / "machine.json").write_bytes(b"{}")
    assert code_of(lambda: machine.recover("promote")) is SimulatorCode.MACHINE_DAMAGED
    assert (tmp_path / "machine.json").read_bytes() == b"{}"


def test_a_machine_of_a_newer_release_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    Machine.create(tmp_path, seed=7)
    file = tmp_path / "machine.json"
    newer = json.dumps(json.loads(file.read_bytes()) | {"version": 2, "more": []})
    file.write_text(newer)
    assert code_of(lambda: Machine.open(tmp_path)) is SimulatorCode.MACHINE_NEWER
    assert file.read_text() == newer


def test_a_folder_that_cannot_be_written_still_quotes_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine.create(tmp_path, seed=7)
    before = (tmp_path / "machine.json").read_bytes()
    real = os.open

    def refuse(path: Any, flags: int, *more: Any, **options: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR) and str(path).startswith(str(tmp_path)):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, flags, *more, **options)

    monkeypatch.setattr(os, "open", refuse)
    assert code_of(lambda: machine.recover("promote")) is SimulatorCode.MACHINE_READ_ONLY
    assert code_of(lambda: machine.clock.advance(5)) is SimulatorCode.MACHINE_READ_ONLY
    assert code_of(lambda: Machine.create(tmp_path / "new")) is SimulatorCode.MACHINE_READ_ONLY
    assert Quote.parse(Machine.open(tmp_path).launch().quote(bytes(64))).version == 4
    assert (tmp_path / "machine.json").read_bytes() == before


def test_a_failed_write_leaves_the_old_state_and_no_rubbish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine.create(tmp_path, seed=7)
    listed = sorted(os.listdir(tmp_path))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert code_of(lambda: machine.recover("promote")) is SimulatorCode.MACHINE_READ_ONLY
    assert sorted(os.listdir(tmp_path)) == listed
    assert Machine.open(tmp_path).ledger().revision == 0


def test_a_lock_that_is_never_given_back_ends_in_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    machine = Machine.create(tmp_path, seed=7)
    monkeypatch.setattr("simulator.store._LOCK_WAIT_S", 0.05)
    with (tmp_path / "lock").open("r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert code_of(lambda: machine.recover("promote")) is SimulatorCode.MACHINE_LOCKED
    machine.recover("promote")


def test_processes_that_change_one_machine_at_once_lose_no_event(tmp_path: Path) -> None:
    Machine.create(tmp_path, seed=7)
    program = (
        "import sys; from simulator.machine import Machine; m = Machine.open(sys.argv[1])\n"
        "for i in range(10): m.recover('status', what='qe', svn=4, advisories=[f'{sys.argv[2]}-{i}'])"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path), name], cwd=Path(__file__).parent.parent)
        for name in "AB"
    ]
    assert [process.wait(60) for process in running] == [0, 0]
    assert Machine.open(tmp_path).ledger().revision == 20


def test_a_recovery_is_seen_by_everybody_even_while_an_older_state_is_being_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = stopped()
    begun, recorded = threading.Event(), threading.Event()

    def slow(events: Sequence[Event], at: int) -> Ledger:
        if threading.current_thread() is reader:
            begun.set()
            recorded.wait(0.2)  # with a lock held, the recovery waits for the reader; without, it comes between
        return replay(events, at)

    def record() -> None:
        begun.wait(10)
        machine.recover("revoke-pck", platform=0)
        machine.ledger()
        recorded.set()

    reader, recorder = threading.Thread(target=machine.ledger), threading.Thread(target=record)
    monkeypatch.setattr(machine_module, "replay", slow)
    for thread in (reader, recorder):
        thread.start()
    for thread in (reader, recorder):
        thread.join(10)
    assert machine.ledger().revision > 0


def test_threads_share_a_machine() -> None:
    machine = stopped()
    found: list[bytes] = []

    def work() -> None:
        for _ in range(20):
            found.append(machine.launch().quote(bytes(range(64))))
            machine.documents()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 80
    assert len(set(found)) == 1


# --- clock ---


def test_the_clock_is_the_wall_clock_until_it_is_moved() -> None:
    machine = Machine.create()
    assert abs((machine.clock.now() - datetime.now(UTC)).total_seconds()) < 5
    machine.clock.advance(timedelta(days=3))
    assert abs((machine.clock.now() - datetime.now(UTC) - 3 * DAY).total_seconds()) < 5
    machine.clock.set(AT)
    assert machine.clock.now() == AT
    machine.clock.advance(-60)
    assert machine.clock.now() == AT - timedelta(minutes=1)
    machine.clock.run()
    assert machine.clock.moved
    machine.clock.reset()
    assert not machine.clock.moved


def test_the_clock_takes_no_naive_time_and_does_not_leave_the_century() -> None:
    clock = Machine.create().clock
    with pytest.raises(TypeError):
        clock.set(datetime(2026, 1, 1))  # noqa: DTZ001 - that it is naive is the point
    for wrong in (0, 5e9, float("nan")):
        with pytest.raises(ValueError, match="2000"):
            clock.set(wrong)


def test_collateral_is_issued_again_every_day_and_in_force_at_every_second() -> None:
    machine = stopped()
    seen = set()
    for hours in range(0, 72, 3):
        at = AT + timedelta(hours=hours)
        machine.clock.set(at)
        assert status(machine) == "UpToDate"
        seen.add(machine.documents().tcb_info)
    assert len(seen) == 4


def test_crl_numbers_grow_with_days_and_with_events() -> None:
    machine = stopped()

    def number() -> int:
        crl = x509.load_der_x509_crl(machine.documents().pck_crl)
        return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number

    first = number()
    machine.recover("revoke-pck", platform=1)
    second = number()
    machine.clock.advance(DAY)
    assert first < second < number()


# --- recoveries ---


def test_a_new_evaluation_set_is_early_before_it_is_standard() -> None:
    machine = stopped()
    machine.recover("publish", advisories=["INTEL-SA-01313"])
    assert (status(machine, update="early"), status(machine)) == ("OutOfDate", "UpToDate")
    machine.recover("promote")
    assert status(machine) == "OutOfDate"
    machine.patch_platform(0, microcode=9)
    assert status(machine) == "UpToDate"


def test_a_level_gets_another_state_and_advisories() -> None:
    machine = stopped()
    machine.recover("status", svn=8, status="SWHardeningNeeded", advisories=["INTEL-SA-00615"])
    assert status(machine) == "SWHardeningNeeded"
    machine.recover("status", what="module", svn=11, status="OutOfDate")
    assert status(machine) == "OutOfDate"
    assert status(machine, platform=1) == "SWHardeningNeeded"


@pytest.mark.parametrize(
    ("recovery", "arguments", "expected"),
    [
        ("revoke-pck", {"platform": 0}, "chain.revoked"),
        ("revoke-ca", {"ca": "platform"}, "chain.revoked"),
        ("revoke-tcb-signer", {}, "signer.revoked"),
        ("expire", {}, "crl.expired"),
    ],
)
def test_a_recovery_ends_in_its_code(recovery: str, arguments: dict[str, Any], expected: str) -> None:
    machine = stopped()
    machine.recover(recovery, **arguments)
    assert status(machine) == expected


def test_revoking_one_platform_leaves_the_others() -> None:
    machine = stopped()
    machine.recover("revoke-pck", platform=0)
    assert status(machine, platform=1) == "UpToDate"


def test_a_frozen_pcs_lets_its_documents_age_until_it_issues_again() -> None:
    machine = stopped()
    machine.recover("freeze")
    machine.clock.advance(29 * DAY)
    assert status(machine) == "UpToDate"
    machine.clock.advance(2 * DAY)
    assert status(machine) == "crl.expired"
    machine.recover("reissue")
    assert status(machine) == "UpToDate"


def test_moving_the_clock_back_shows_the_past() -> None:
    machine = stopped()
    before = machine.documents()
    machine.clock.advance(DAY)
    machine.recover("revoke-pck", platform=0)
    machine.clock.advance(-DAY)
    assert machine.documents() == before


def test_a_recorded_past_changes_what_was_cached() -> None:
    machine = stopped()
    machine.recover("status", svn=8, status="OutOfDate", at=AT - DAY)
    assert status(machine) == "OutOfDate"
    machine.recover("status", svn=8, status="Revoked", at=AT - DAY)
    assert status(machine) == "tcb.revoked"


@pytest.mark.parametrize(
    ("recovery", "arguments"),
    [
        ("explode", {}),
        ("promote", {"svn": 3}),
        ("status", {"status": "OutOfDate"}),
        ("status", {"svn": 8, "status": "Splendid"}),
        ("status", {"svn": 8, "what": "qe", "status": "SWHardeningNeeded"}),
        ("status", {"svn": 77, "status": "OutOfDate"}),
        ("publish", {"fmspc": "FFFFFFFFFFFF"}),
        ("revoke-ca", {"ca": "root"}),
        ("freeze", {"platform": 0}),
    ],
)
def test_a_recovery_that_makes_no_sense_changes_nothing(recovery: str, arguments: dict[str, Any]) -> None:
    machine = stopped()
    assert code_of(lambda: machine.recover(recovery, **arguments)) is SimulatorCode.RECOVERY_INVALID
    assert machine.ledger().revision == 0


def test_the_same_platform_twice_is_a_clone_with_the_same_keys() -> None:
    machine = stopped()
    clone = machine.platform(machine.clone_platform(0))
    assert clone.ppid == machine.platform(0).ppid
    assert clone.tdqe.certified == machine.platform(0).tdqe.certified
    machine.recover("revoke-pck", platform=0)
    assert status(machine, platform=3) == "chain.revoked"


def test_unknown_platforms_and_families_are_named() -> None:
    machine = stopped()
    assert code_of(lambda: machine.platform(9)) is SimulatorCode.PLATFORM_UNKNOWN
    assert code_of(lambda: machine.add_platform("FFFFFFFFFFFF")) is SimulatorCode.PLATFORM_UNKNOWN
    assert code_of(lambda: machine.collateral("tdx", "00906ED50000")) is SimulatorCode.COLLATERAL_UNKNOWN
    with pytest.raises(ValueError, match="colour"):
        machine.patch_platform(0, colour="blue")


def test_the_machine_is_a_source_of_collateral_for_its_own_quotes_alone() -> None:
    machine = stopped()
    source = machine.as_source()
    quote = Quote.parse(machine.launch(platform=1).quote(bytes(64)))
    assert isinstance(source.fetch(quote), Collateral)
    enclave = Quote.parse(machine.platform(2).sgx_quote(bytes(64)))
    assert "Processor" not in source.fetch(quote).pck_crl_issuer_chain
    assert source.fetch(enclave).pck_crl_issuer_chain.encode() == machine.pki.processor.pem + machine.root_pem
    unchained = exhibit(machine, "encrypted-platform-id").quote
    with pytest.raises(CollateralUnavailable):
        source.fetch(Quote.parse(unchained))


def test_a_fork_changes_nothing_here() -> None:
    machine = stopped()
    fork = machine.fork(AT + DAY)
    fork.recover("revoke-ca", ca="platform")
    fork.patch_platform(0, microcode=1)
    assert (status(machine), status(fork)) == ("UpToDate", "chain.revoked")
    assert fork.root_pem == machine.root_pem


STEPS = st.lists(
    st.sampled_from(
        [
            ("publish", {}),
            ("publish", {"what": "module", "advisories": ["INTEL-SA-09999"]}),
            ("publish", {"what": "qe", "standard": True}),
            ("promote", {}),
            ("status", {"svn": 8, "status": "ConfigurationNeeded"}),
            ("status", {"svn": 8, "status": "SWHardeningNeeded"}),
            ("status", {"what": "module", "svn": 11, "status": "OutOfDate"}),
            ("revoke-pck", {"platform": 0}),
            ("freeze", {}),
            ("reissue", {}),
            ("expire", {}),
        ]
    ),
    max_size=5,
)


@settings(max_examples=40)
@given(steps=STEPS, days=st.integers(0, 45))
def test_after_any_history_an_independent_verifier_comes_to_the_same_state(
    steps: list[tuple[str, dict[str, Any]]], days: int
) -> None:
    machine = stopped()
    for recovery, arguments in steps:
        machine.clock.advance(3600)
        with suppress(SimulatorError):  # it is so already
            machine.recover(recovery, **arguments)
    machine.clock.advance(days * DAY)
    collateral = dcap_qvl.QuoteCollateralV3.from_json(machine.documents().to_json())
    quote = machine.launch().quote(bytes(range(64)))
    now = int(machine.clock.time())
    try:
        found = str(dcap_qvl.verify_with_root_ca(quote, collateral, machine.root_der, now).status)
    except ValueError:
        found = "refused"
    ours = status(machine)
    assert found == ("refused" if "." in ours else ours)
