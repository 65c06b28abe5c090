"""States and levels, against tables written out by hand."""

from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.errors import VerificationFailed
from attestation.tcb import (
    ANY_TCB,
    ISV_STATES,
    PLATFORM_STATES,
    UP_TO_DATE,
    IsvLevel,
    PlatformSvns,
    Shortfall,
    TcbLevel,
    TcbStatus,
    converge,
    match_isv,
    match_platform,
    nearest,
    reaches,
    relaunch,
    short_of,
)
from tests.judging import judge
from tests.pki_factory import World

U, S, C, CS = "UpToDate", "SWHardeningNeeded", "ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded"
O, OC, R = "OutOfDate", "OutOfDateConfigurationNeeded", "Revoked"  # noqa: E741
RA, RC = "TDRelaunchAdvised", "TDRelaunchAdvisedConfigurationNeeded"

# platform → (components all UpToDate, some OutOfDate, some Revoked); Intel's library, EvaluateTcb.cpp
CONVERGENCE = {
    U: (U, O, R),
    S: (S, O, R),
    C: (C, OC, R),
    CS: (CS, OC, R),
    O: (O, O, R),
    OC: (OC, OC, R),
    R: (R, R, R),
}
# (module, quoting enclave) → column
COLUMN = {
    (U, U): 0,
    (U, O): 1,
    (O, U): 1,
    (O, O): 1,
    (U, R): 2,
    (R, U): 2,
    (O, R): 2,
    (R, O): 2,
    (R, R): 2,
}
# launch → now → result; Intel's library, TDRelaunchCheck.cpp, but Revoked in either half is Revoked
RELAUNCH = {
    U: {U: U, S: U, C: U, CS: U, O: U, OC: U, R: R},
    S: {U: S, S: S, C: S, CS: S, O: S, OC: S, R: R},
    C: {U: C, S: C, C: C, CS: C, O: C, OC: C, R: R},
    CS: {U: CS, S: CS, C: CS, CS: CS, O: CS, OC: CS, R: R},
    O: {U: RA, S: RA, C: RC, CS: RC, O: O, OC: O, R: R},
    OC: {U: RC, S: RC, C: RC, CS: RC, O: OC, OC: OC, R: R},
    R: {U: R, S: R, C: R, CS: R, O: R, OC: R, R: R},
}


def test_states_are_spelled_as_intel_spells_them() -> None:
    assert {str(status) for status in TcbStatus} == {U, S, C, CS, RA, RC, O, OC, R}
    assert {U} == UP_TO_DATE
    assert {U, S, C, CS, RA, RC, O, OC} == ANY_TCB
    assert {U, S, C, CS, O, OC, R} == PLATFORM_STATES
    assert {U, O, R} == ISV_STATES


@pytest.mark.parametrize(("platform", "parts"), [*product(CONVERGENCE, COLUMN)])
def test_all_63_convergence_combinations(platform: str, parts: tuple[str, str]) -> None:
    module, qe = map(TcbStatus, parts)
    assert converge(TcbStatus(platform), module, qe) == CONVERGENCE[platform][COLUMN[parts]]


@pytest.mark.parametrize("platform", CONVERGENCE)
@pytest.mark.parametrize("qe", [U, O, R])
def test_without_a_module_the_quoting_enclave_alone_counts(platform: str, qe: str) -> None:
    assert converge(TcbStatus(platform), None, TcbStatus(qe)) == CONVERGENCE[platform][COLUMN[(U, qe)]]


@pytest.mark.parametrize(("launch", "now"), [*product(RELAUNCH, RELAUNCH)])
def test_all_49_relaunch_combinations(launch: str, now: str) -> None:
    assert relaunch(TcbStatus(launch), TcbStatus(now)) == RELAUNCH[launch][now]


def test_the_tables_are_whole() -> None:
    assert len(CONVERGENCE) * len(COLUMN) == 63
    assert sum(map(len, RELAUNCH.values())) == 49


# -- levels

SGX = bytes([3, 3, 2, 2, 4, 1, 0, 5, *[0] * 8])
TDX = bytes([5, 0, 3, *[0] * 13])
COMPONENTS: list[dict[str, Any]] = [{"svn": 0} for _ in range(16)]
LABELS: dict[str, list[dict[str, Any]]] = {
    "sgxtcbcomponents": [{"svn": 0, "category": "BIOS", "type": "Early Microcode Update"}, *COMPONENTS[1:]],
    "tdxtcbcomponents": COMPONENTS,
}


def level(sgx: bytes = SGX, pcesvn: int = 13, tdx: bytes = TDX, status: str = U) -> TcbLevel:
    return TcbLevel(sgx, pcesvn, tdx, TcbStatus(status), "2025-05-14T00:00:00Z", (), LABELS)


def svns(sgx: bytes = SGX, pcesvn: int = 13, tdx: bytes = TDX) -> PlatformSvns:
    return PlatformSvns(sgx, pcesvn, tdx)


def lowered(octets: bytes, at: int) -> bytes:
    return bytes(value - (position == at) for position, value in enumerate(octets))


ONES = bytes([1] * 16)


@pytest.mark.parametrize("at", range(16))
def test_every_component_counts(at: int) -> None:
    demanding = level(ONES, 1, ONES)
    assert reaches(svns(ONES, 1, bytes([1, 0, *[1] * 14])), level(ONES, 1, bytes([1, 0, *[1] * 14])))
    assert not reaches(svns(lowered(ONES, at), 1, ONES), demanding)
    assert reaches(svns(ONES, 1, lowered(ONES, at)), demanding) is (at == 0)  # 1 is then 0: an unversioned module
    assert reaches(svns(bytes([9] * 16), 9, bytes([9] * 16)), demanding)


def test_an_unversioned_module_is_judged_as_part_of_the_platform() -> None:
    assert not reaches(svns(tdx=bytes([4, 0, 3, *[0] * 13])), level())
    assert svns(tdx=TDX).first_tdx == 0


def test_a_versioned_module_is_judged_by_itself() -> None:
    assert reaches(svns(tdx=bytes([0, 1, 3, *[0] * 13])), level())
    assert svns(tdx=bytes([0, 1, 3, *[0] * 13])).first_tdx == 2


def test_pcesvn_counts() -> None:
    assert not reaches(svns(pcesvn=12), level())
    assert reaches(svns(pcesvn=14), level())


def test_one_higher_component_does_not_make_up_for_a_lower_one() -> None:
    assert not reaches(svns(bytes([255, 2, *SGX[2:]])), level())


def test_the_first_level_from_the_top_counts() -> None:
    old = level(lowered(SGX, 0), 13, TDX, O)
    levels = (level(), old)
    assert match_platform(levels, svns()) is levels[0]
    assert match_platform(levels, svns(lowered(SGX, 0))) is old
    assert match_platform(levels, svns(bytes(16))) is None
    assert match_platform((), svns()) is None


def test_isv_levels_match_from_the_top() -> None:
    levels = tuple(IsvLevel(isvsvn, TcbStatus(status), "", ()) for isvsvn, status in ((6, U), (4, O), (2, R)))
    found = [match_isv(levels, isvsvn) for isvsvn in (7, 6, 5, 4, 3, 2, 1)]
    assert [level.isvsvn if level else None for level in found] == [6, 6, 4, 4, 2, 2, None]


def test_what_is_short_is_named_with_its_label() -> None:
    short = short_of(level(), svns(lowered(SGX, 0), 11, bytes([5, 0, 1, *[0] * 13])))
    assert [(item.component, item.have, item.need) for item in short] == [
        ("sgxtcbcomponents[0]", 2, 3),
        ("pcesvn", 11, 13),
        ("tdxtcbcomponents[2]", 1, 3),
    ]
    assert str(short[0]) == "sgxtcbcomponents[0] (Early Microcode Update, BIOS) has 2, needs 3"
    assert str(Shortfall("x", "", "", 1, 2)) == "x has 1, needs 2"


def test_the_nearest_level_is_the_one_with_the_fewest_steps_missing() -> None:
    far, near = level(pcesvn=20), level(pcesvn=14)
    found = nearest((far, near), svns())
    assert found is not None
    assert found[0] is near
    assert nearest((), svns()) is None


_octets = st.binary(min_size=16, max_size=16)


@given(_octets, st.integers(0, 65535), _octets, _octets, st.integers(0, 65535), _octets)
def test_a_level_is_reached_when_nothing_is_short(
    sgx: bytes, pcesvn: int, tdx: bytes, need_sgx: bytes, need_pcesvn: int, need_tdx: bytes
) -> None:
    have, need = svns(sgx, pcesvn, tdx), level(need_sgx, need_pcesvn, need_tdx)
    assert reaches(have, need) is (short_of(need, have) == ())


@pytest.mark.parametrize("label", ["\ud800", "a\x1b[2J", "x" * 65, {"type": "BIOS"}, 7, None])
def test_a_label_that_no_log_should_hold_is_left_out(label: object) -> None:
    world = World()
    world.sgx.pcesvn = 1
    world.sgx.svns = [0] * 16
    for component in world.tcb_info["tcbLevels"][1]["tcb"]["sgxtcbcomponents"]:
        component |= {"type": label, "category": label}
    with pytest.raises(VerificationFailed) as caught:
        judge(world.input())
    short = next(check.short for check in caught.value.checks if check.short)
    assert {(item.label, item.category) for item in short if item.component.startswith("sgx")} == {("", "")}
    assert len(caught.value.detail) < 2000


def test_a_module_that_nobody_can_ask_for_is_not_told() -> None:
    world = World()
    world.td["tee_tcb_svn"] = bytes([5, 7, 3]) + bytes(13)
    world.tcb_info["tdxModuleIdentities"][0]["id"] = "\ud800" + "x" * 5000
    with pytest.raises(VerificationFailed) as caught:
        judge(world.input())
    assert caught.value.code == "module.identity_missing"
    assert caught.value.detail.endswith("TCB info has TDX_0A")
