"""Simulated trust domains: reports, quotes of every version, every TCB state, restart, clone, migration, event logs."""

import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dcap_qvl
import pytest

from attestation.errors import AttestationError
from attestation.eventlog import EventLog
from attestation.ports import CollateralSource, TrustDomain
from attestation.quote import Quote
from attestation.tcb import ANY_TCB
from attestation.verifier import Allowance, VerifiedQuote, verify_quote
from simulator import tdreport
from simulator.catalogue import MICROCODE
from simulator.collateral import Documents
from simulator.domain import MIGRATABLE, SEPT_VE_DISABLE, Image, ServiceTd, SimulatedTd, service_td_hash
from simulator.errors import SimulatorCode, SimulatorError
from simulator.machine import MACHINE_VARIABLE, Machine, simulated_trust_domain
from simulator.seed import sha384

AT = datetime(2026, 7, 1, 12, tzinfo=UTC)
REPORT_DATA = bytes(range(64))
ALL = frozenset(Allowance)

MODULE = {"UpToDate": 11, "OutOfDate": 6, "Revoked": 2}
QE = {"UpToDate": 4, "OutOfDate": 3, "Revoked": 2}


@pytest.fixture
def machine() -> Machine:
    machine = Machine.create(seed="domain tests")
    machine.clock.set(AT)
    return machine


def code_of(action: Callable[[], Any]) -> SimulatorCode:
    with pytest.raises(SimulatorError) as caught:
        action()
    return caught.value.code


def verified(machine: Machine, quote: bytes, fmspc: str = "90C06F000000") -> VerifiedQuote:
    parsed = Quote.parse(quote)
    return verify_quote(
        parsed,
        machine.collateral(parsed.tee.value, fmspc),
        report_data=REPORT_DATA,
        roots=machine.roots,
        at=AT,
        accept=ANY_TCB,
        allow=ALL,
    )


def state(machine: Machine, quote: bytes) -> str:
    try:
        return str(verified(machine, quote).tcb_status)
    except AttestationError as error:
        return str(error.code)


def theirs(machine: Machine, quote: bytes, documents: Documents) -> str:
    """What dcap-qvl says under this machine's root: a state, or `refused`."""
    collateral = dcap_qvl.QuoteCollateralV3.from_json(documents.to_json())
    try:
        return str(dcap_qvl.verify_with_root_ca(quote, collateral, machine.root_der, int(AT.timestamp())).status)
    except ValueError:
        return "refused"


# --- good quotes, for us and for an independent verifier ---


@pytest.mark.parametrize(("version", "body"), [(4, 2), (5, 2), (5, 3), (5, 4), (None, None), (5, None), (4, None)])
@pytest.mark.parametrize(("platform", "fmspc"), [(0, "90C06F000000"), (1, "B0C06F000000")])
def test_every_good_td_quote_is_accepted_by_us_and_by_dcap_qvl(
    machine: Machine, platform: int, fmspc: str, version: int | None, body: int | None
) -> None:
    td = machine.launch(platform=platform)
    quote = td.quote(REPORT_DATA, version=version, body=body)
    assert verified(machine, quote, fmspc).tcb_status == "UpToDate"
    assert theirs(machine, quote, machine.documents("tdx", fmspc)) == "UpToDate"
    assert Quote.parse(quote).td.mr_td == td.mr_td


@pytest.mark.parametrize(("platform", "fmspc"), [(0, "90C06F000000"), (2, "00906ED50000")])
@pytest.mark.parametrize("version", [3, 5])
def test_every_good_sgx_quote_is_accepted(machine: Machine, platform: int, fmspc: str, version: int) -> None:
    quote = machine.platform(platform).sgx_quote(REPORT_DATA, version=version)
    assert verified(machine, quote, fmspc).tcb_status == "UpToDate"
    # dcap-qvl takes SGX in version 3 alone
    assert theirs(machine, quote, machine.documents("sgx", fmspc)) == ("UpToDate" if version == 3 else "refused")


def test_padding_is_zeros_and_changes_nothing(machine: Machine) -> None:
    quote = machine.launch(pad_to=8_000).quote(REPORT_DATA)
    assert len(quote) == 8_000
    assert Quote.parse(quote).size < 5_000
    assert verified(machine, quote).tcb_status == "UpToDate"


def test_the_verified_platform_is_the_simulated_one(machine: Machine) -> None:
    found = verified(machine, machine.launch().quote(REPORT_DATA))
    platform = machine.platform()
    assert (found.pck.ppid, found.pck.piid, found.pck.fmspc) == (platform.ppid, platform.instance_id, platform.fmspc)
    assert found.root_sha256 == machine.root_sha256


@pytest.mark.parametrize(("version", "body"), [(4, 3), (4, 4), (5, 1), (3, 2), (6, 2), (5, 9)])
def test_a_combination_that_does_not_exist_is_refused(machine: Machine, version: int, body: int) -> None:
    assert code_of(lambda: machine.launch().quote(REPORT_DATA, version=version, body=body)) is SimulatorCode.TD_INVALID


# --- TCB states ---


@pytest.mark.parametrize("platform", MICROCODE)
@pytest.mark.parametrize("module", MODULE)
@pytest.mark.parametrize("qe", QE)
def test_all_63_combinations_of_states_are_reachable(machine: Machine, platform: str, module: str, qe: str) -> None:
    machine.patch_platform(0, microcode=MICROCODE[platform], module_svn=MODULE[module], qe_svn=QE[qe])
    found = state(machine, machine.launch().quote(REPORT_DATA))
    if "Revoked" in (platform, module, qe):
        expected = "tcb.revoked"
    elif "OutOfDate" in (module, qe):
        expected = "OutOfDateConfigurationNeeded" if "Configuration" in platform else "OutOfDate"
    else:
        expected = platform
    assert found == expected


@pytest.mark.parametrize(
    ("platform", "expected"),
    [
        ("UpToDate", "TDRelaunchAdvised"),
        ("SWHardeningNeeded", "TDRelaunchAdvised"),
        ("ConfigurationNeeded", "TDRelaunchAdvisedConfigurationNeeded"),
        ("ConfigurationAndSWHardeningNeeded", "TDRelaunchAdvisedConfigurationNeeded"),
        ("OutOfDate", "OutOfDate"),
    ],
)
def test_a_module_update_under_a_running_domain_asks_for_a_relaunch(
    machine: Machine, platform: str, expected: str
) -> None:
    machine.patch_platform(0, microcode=MICROCODE[platform], module_svn=6)
    td = machine.launch()
    assert Quote.parse(td.quote(REPORT_DATA)).version == 4
    machine.patch_platform(0, module_svn=11)
    quote = td.quote(REPORT_DATA)
    assert Quote.parse(quote).version == 5
    assert state(machine, quote) == theirs(machine, quote, machine.documents()) == expected
    td.restart()
    assert Quote.parse(td.quote(REPORT_DATA)).version == 4
    assert state(machine, td.quote(REPORT_DATA)) == platform


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"microcode": 1}, "tcb.no_match"),
        ({"module_svn": 1}, "tcb.module_no_match"),
        ({"qe_svn": 1}, "tcb.qe_no_match"),
        ({"module_version": 5}, "module.identity_missing"),
    ],
)
def test_what_no_level_covers_is_refused(machine: Machine, change: dict[str, int], code: str) -> None:
    machine.patch_platform(0, **change)
    assert state(machine, machine.launch().quote(REPORT_DATA)) == code


# --- TDREPORT and the quoting enclave's rules ---


def test_a_report_has_its_hash_relations_and_its_mac(machine: Machine) -> None:
    raw = machine.launch().report(REPORT_DATA)
    assert len(raw) == 1024
    assert raw[0] == 0x81
    assert raw[32:80] == sha384(raw[256:495])
    assert raw[80:128] == sha384(raw[512:])
    assert raw[128:192] == REPORT_DATA
    assert not any(raw[495:512])
    assert machine.platform().check_report(raw).report_data == REPORT_DATA


@pytest.mark.parametrize("offset", [0, 2, 20, 60, 130, 230, 260, 300, 520, 700, 1000])
def test_a_report_that_was_touched_is_not_quoted(machine: Machine, offset: int) -> None:
    raw = bytearray(machine.launch().report(REPORT_DATA))
    raw[offset] ^= 1
    assert code_of(lambda: machine.platform().quote_report(bytes(raw))) is SimulatorCode.REPORT_REFUSED


@pytest.mark.parametrize("size", [0, 1023, 1025])
def test_a_report_of_another_size_is_not_quoted(machine: Machine, size: int) -> None:
    raw = machine.launch().report(REPORT_DATA).ljust(size, b"\0")[:size]
    assert code_of(lambda: machine.platform().quote_report(raw)) is SimulatorCode.REPORT_REFUSED


def test_a_report_of_another_platform_is_not_quoted(machine: Machine) -> None:
    raw = machine.launch().report(REPORT_DATA)
    assert code_of(lambda: machine.platform(1).quote_report(raw)) is SimulatorCode.REPORT_REFUSED


@pytest.mark.parametrize(
    ("options", "upgraded", "version", "body"),
    [
        ({}, False, 4, 2),
        ({}, True, 5, 3),
        ({"tells_current_svn": False}, True, 4, 2),
        ({"service_tds": (ServiceTd(td_info_hash=bytes(48)),)}, False, 5, 3),
        ({"partitioned": True}, False, 5, 4),
    ],
)
def test_the_quoting_enclave_chooses_the_version_that_intels_does(
    machine: Machine, options: dict[str, Any], upgraded: bool, version: int, body: int
) -> None:
    td = machine.launch(**options)
    if upgraded:
        machine.patch_platform(0, module_svn=12)
    quote = Quote.parse(td.quote(REPORT_DATA))
    assert (quote.version, quote.body_type) == (version, body)


def test_a_plain_report_with_something_in_its_reserved_half_is_refused(machine: Machine) -> None:
    td = tdreport.TdInfo(
        attributes=bytes(8),
        xfam=bytes(8),
        mr_td=bytes(48),
        mr_config_id=bytes(48),
        mr_owner=bytes(48),
        mr_owner_config=bytes(48),
        rtmrs=bytes(192),
        service_td_hash=b"\1" * 48,
    )
    platform = machine.platform()
    raw = platform.td_report(
        version=tdreport.PLAIN,
        svn=bytes(16),
        mr_seam=bytes(48),
        td=td,
        report_data=REPORT_DATA,
        tell_current=True,
    )
    assert code_of(lambda: platform.quote_report(raw)) is SimulatorCode.REPORT_REFUSED


def test_service_tds_are_hashed_in_order_of_type_and_hash() -> None:
    one, two = ServiceTd(td_info_hash=b"\2" * 48), ServiceTd(td_info_hash=b"\1" * 48, attributes=3)
    assert service_td_hash((one, two)) == service_td_hash((two, one))
    assert service_td_hash(()) == bytes(48)
    assert service_td_hash((one,)) == sha384(b"\2" * 48 + bytes(10))


# --- registers and event log ---


def test_a_domain_is_a_trust_domain_that_says_it_is_simulated(machine: Machine) -> None:
    td = machine.launch()
    assert isinstance(td, TrustDomain)
    assert isinstance(machine.as_source(), CollateralSource)
    assert td.simulated
    assert td.name == "cloister-sim"


def test_the_event_log_of_boot_and_guest_replays_to_the_registers_of_the_quote(machine: Machine) -> None:
    td = machine.launch()
    assert td.rtmrs[3] == bytes(48)
    td.extend(3, sha384(b"program"), event_type=6, data=b"program")
    td.extend(2, sha384(b"module"), event_type=6, data=b"module")
    quote = Quote.parse(td.quote(REPORT_DATA))
    log = EventLog.parse(td.event_log())
    log.check(quote.td)
    assert quote.td.rtmrs == td.rtmrs == tuple(log.replay())
    assert td.rtmrs[3] == sha384(bytes(48) + sha384(b"program"))


@pytest.mark.parametrize(("register", "digest"), [(4, bytes(48)), (-1, bytes(48)), (3, bytes(32)), (3, b"")])
def test_an_extension_that_makes_no_sense_changes_nothing(machine: Machine, register: int, digest: bytes) -> None:
    td = machine.launch()
    before = td.rtmrs, td.event_log()
    assert code_of(lambda: td.extend(register, digest)) is SimulatorCode.TD_INVALID
    assert code_of(lambda: td.extend_unlogged(register, digest)) is SimulatorCode.TD_INVALID
    assert (td.rtmrs, td.event_log()) == before


@pytest.mark.parametrize("report_data", [b"", bytes(63), bytes(65)])
def test_report_data_has_64_bytes(machine: Machine, report_data: bytes) -> None:
    assert code_of(lambda: machine.launch().quote(report_data)) is SimulatorCode.TD_INVALID


def test_measurements_follow_from_image_and_configuration(machine: Machine) -> None:
    one, same, other = machine.launch("a"), machine.launch("b"), machine.launch("c", image="other")
    assert (one.mr_td, one.rtmrs) == (same.mr_td, same.rtmrs)
    assert one.mr_td != other.mr_td
    assert one.rtmrs[1] != other.rtmrs[1]
    slow = machine.launch(command_line="init=/bin/sh")
    assert slow.rtmrs[:2] == one.rtmrs[:2]
    assert slow.rtmrs[2] != one.rtmrs[2]
    assert Machine.create().launch().mr_td == one.mr_td


def test_host_chosen_values_stand_in_the_quote(machine: Machine) -> None:
    td = machine.launch(mr_config_id=b"\1" * 48, mr_owner=b"\2" * 48, mr_owner_config=b"\3" * 48, xfam=0x3)
    report = Quote.parse(td.quote(REPORT_DATA)).td
    assert (report.mr_config_id, report.mr_owner, report.mr_owner_config) == (b"\1" * 48, b"\2" * 48, b"\3" * 48)
    assert report.xfam == (3).to_bytes(8, "little")
    assert code_of(lambda: machine.launch(mr_owner=b"\2")) is SimulatorCode.TD_INVALID
    assert code_of(lambda: machine.launch(attributes=1 << 64)) is SimulatorCode.TD_INVALID


def test_an_image_file_is_measured_as_the_hypervisor_would(machine: Machine) -> None:
    with pytest.raises(AttestationError):
        machine.launch(image=b"not a firmware image")
    assert machine.launch(image=Image.named("default")).mr_td == machine.launch().mr_td


# --- life of a domain ---


def test_a_restart_forgets_what_was_extended(machine: Machine) -> None:
    td = machine.launch()
    fresh, first_id = (td.rtmrs, td.event_log()), td.td_id
    td.extend(3, sha384(b"x"), event_type=6, data=b"x")
    td.restart()
    assert (td.rtmrs, td.event_log()) == fresh
    assert td.td_id != first_id


def test_a_clone_measures_the_same_and_is_another_domain(machine: Machine) -> None:
    td = machine.launch()
    td.extend(3, sha384(b"x"), event_type=6, data=b"x")
    clone = td.clone(platform=1)
    assert clone.mr_td == td.mr_td
    assert clone.rtmrs[3] == bytes(48)
    assert clone.platform.ppid != td.platform.ppid


def test_a_migratable_domain_moves_with_its_registers_and_remembers_where_it_came_from(machine: Machine) -> None:
    migration = ServiceTd(td_info_hash=sha384(b"migration TD"))
    td = machine.launch(attributes=SEPT_VE_DISABLE | MIGRATABLE, service_tds=(migration,), partitioned=True)
    td.extend(3, sha384(b"x"), event_type=6, data=b"x")
    before = td.rtmrs
    td.migrate(1)
    quote = td.quote(REPORT_DATA)
    report = Quote.parse(quote).td
    assert report.rtmrs == before
    assert report.extended is not None
    assert report.extended.initial_fmspc[:6] == bytes.fromhex("90C06F000000")
    assert verified(machine, quote, "B0C06F000000").pck.fmspc == bytes.fromhex("B0C06F000000")


def test_a_domain_that_is_not_migratable_stays(machine: Machine) -> None:
    assert code_of(lambda: machine.launch().migrate(1)) is SimulatorCode.TD_INVALID
    movable = machine.launch(attributes=SEPT_VE_DISABLE | MIGRATABLE)
    assert code_of(lambda: movable.migrate(2)) is SimulatorCode.TD_INVALID


def test_no_domain_is_launched_where_there_is_no_tdx(machine: Machine) -> None:
    assert code_of(lambda: machine.launch(platform=2)) is SimulatorCode.TD_INVALID
    assert code_of(lambda: machine.launch(platform=7)) is SimulatorCode.PLATFORM_UNKNOWN


def test_the_named_trust_domain_lives_in_the_folder_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(MACHINE_VARIABLE, raising=False)
    assert code_of(simulated_trust_domain) is SimulatorCode.MACHINE_MISSING
    monkeypatch.setenv(MACHINE_VARIABLE, str(tmp_path))
    td = simulated_trust_domain(label="agent")
    assert isinstance(td, SimulatedTd)
    assert Machine.open(tmp_path).platform().ppid == td.platform.ppid


# --- size and speed ---


def test_a_thousand_domains_take_little_memory(machine: Machine) -> None:
    machine.launch()
    tracemalloc.start()
    domains = [machine.launch(f"td-{number}") for number in range(1_000)]
    for td in domains:
        td.extend(3, bytes(48), event_type=6, data=b"program")
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken < 20 << 20
