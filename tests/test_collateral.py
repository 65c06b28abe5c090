"""Collateral files, and the two documents inside: what is read is what was written."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.checks import Unmet
from attestation.collateral import MEMBERS, Collateral
from attestation.documents import parse_qe_identity, parse_tcb_info
from attestation.endorsements import endorse
from attestation.errors import Code, MalformedEvidence
from attestation.pki import TrustRoots
from attestation.quote import Tee
from attestation.tcb import TcbStatus
from tests import vectors_real
from tests.judging import outcome
from tests.pki_factory import AT, DAY, World, compact

TEXT = World().input().collateral_text


def test_a_collateral_file_goes_round() -> None:
    collateral = Collateral.from_json(TEXT)
    assert Collateral.from_json(collateral.to_json()) == collateral
    assert Collateral.from_json(TEXT.encode()) == collateral
    assert json.loads(collateral.to_json()) == json.loads(TEXT)


def test_the_digest_covers_each_member() -> None:
    good = Collateral.from_json(TEXT)
    members = {name: getattr(good, name) for name in MEMBERS}
    digests = {good.digest}
    for name, value in members.items():
        changed = value + " " if isinstance(value, str) else bytes([value[0] ^ 1]) + value[1:]
        digests.add(Collateral(**{**members, name: changed}).digest)
    assert len(digests) == 10


def test_the_digest_tells_where_one_member_ends() -> None:
    good = Collateral.from_json(TEXT)
    members = {name: getattr(good, name) for name in MEMBERS}
    moved = {**members, "pck_crl_issuer_chain": members["pck_crl_issuer_chain"] + "x", "root_ca_crl": b"y"}
    other = {**members, "pck_crl_issuer_chain": members["pck_crl_issuer_chain"], "root_ca_crl": b"xy"}
    assert Collateral(**moved).digest != Collateral(**other).digest


@pytest.mark.parametrize("name", MEMBERS)
def test_every_member_is_wanted(name: str) -> None:
    members = json.loads(TEXT)
    del members[name]
    with pytest.raises(MalformedEvidence) as caught:
        Collateral.from_json(json.dumps(members))
    assert caught.value.code is Code.COLLATERAL_MALFORMED
    assert name in caught.value.detail


@given(member=st.sampled_from(MEMBERS), value=st.none() | st.integers() | st.text(max_size=20) | st.lists(st.text()))
@settings(max_examples=150)
def test_any_member_may_be_anything_and_gets_a_coded_answer(member: str, value: object) -> None:
    text = json.dumps({**json.loads(TEXT), member: value})
    assert outcome(lambda: endorse(Collateral.from_json(text), TrustRoots.intel())) in (
        "ok",  # judged; what is wrong is in its checks
        "collateral.malformed",
    )


def test_tcb_info_is_read_as_it_was_written() -> None:
    world = World()
    info = parse_tcb_info(compact(world.tcb_info))
    assert (info.tee, info.tcb_type, info.evaluation_number) == (Tee.TDX, 0, 19)
    assert (info.issued, info.next_update) == (AT - 5 * DAY, AT + 25 * DAY)
    assert (info.fmspc.hex(), info.pceid.hex()) == ("90c06f000000", "0000")
    assert set(info.modules) == {"TDX_01", "TDX_0A"}
    assert info.module is not None
    assert info.module.levels == ()
    assert [level.isvsvn for level in info.modules["TDX_01"].levels] == [5, 3]
    assert [level.status for level in info.levels] == [TcbStatus.UP_TO_DATE, TcbStatus.OUT_OF_DATE]
    assert info.levels[0].sgx == bytes([3, 3, 2, 2, 4, 1, 0, 5, 0, 200, 0, 0, 0, 0, 0, 0])
    assert info.levels[1].advisories == ("INTEL-SA-00001", "INTEL-SA-00002")


def test_sgx_tcb_info_has_no_tdx_half() -> None:
    info = parse_tcb_info(compact(World("sgx", 3, 1).tcb_info))
    assert (info.tee, info.module, info.modules) == (Tee.SGX, None, {})
    assert info.levels[0].tdx == b""


def test_levels_are_sorted_from_the_highest_down() -> None:
    world = World()
    world.tcb_info["tcbLevels"].reverse()
    world.qe_identity["tcbLevels"].reverse()
    assert [level.pcesvn for level in parse_tcb_info(compact(world.tcb_info)).levels] == [13, 11]
    assert [level.isvsvn for level in parse_qe_identity(compact(world.qe_identity)).levels] == [4, 2]


def test_qe_identity_is_read_as_it_was_written() -> None:
    identity = parse_qe_identity(compact(World().qe_identity))
    assert (identity.tee, identity.evaluation_number, identity.isv_prod_id) == (Tee.TDX, 19, 2)
    assert identity.mr_signer == b"\xab" * 32
    assert identity.attributes.to_bytes(16, "little").hex() == "11" + "00" * 15
    assert identity.attributes_mask.to_bytes(16, "little").hex() == "fb" + "ff" * 7 + "00" * 8


def test_a_malformed_document_says_what_is_missing() -> None:
    world = World()
    del world.tcb_info["tcbLevels"][1]["tcb"]["pcesvn"]
    with pytest.raises(Unmet, match="TCB info: 'pcesvn' is missing"):
        parse_tcb_info(compact(world.tcb_info))


@given(text=st.text(max_size=200))
def test_any_text_as_a_document_is_a_value_or_unmet(text: str) -> None:
    for parse in (parse_tcb_info, parse_qe_identity):
        with pytest.raises(Unmet):
            parse(text)


@vectors_real.needed
def test_every_real_collateral_set_is_endorsed_by_intels_root() -> None:
    folder = vectors_real.folder()
    assert folder is not None
    old = 0
    for path in sorted((folder / "collateral").glob("*.json")):
        found = endorse(Collateral.from_json(path.read_bytes()), TrustRoots.intel())
        failed = {check.code for check in found.checks if not check.ok}
        if failed:
            assert failed == {Code.COLLATERAL_VERSION}
            old += 1
            continue
        assert found.tcb_info is not None
        assert found.qe_identity is not None
        assert path.name.startswith(found.tcb_info.tee)
        assert found.tcb_info.fmspc.hex() in path.name
        assert found.ok
    assert old == 1  # one set of 2023 is TCB info version 2


TCB_INFO = Collateral.from_json(TEXT).tcb_info
PLACES = [match.span() for match in re.finditer(r'"[A-Za-z0-9]+":(?:"[^"]*"|[0-9]+)', TCB_INFO)]


@given(
    at=st.integers(0, len(PLACES) - 1),
    end=st.sampled_from([None, "0", '""', '"::"', '{"a":{}}', "null"]),
    space=st.sampled_from(["", " ", "\n"]),
    escaped=st.booleans(),
)
def test_a_name_that_occurs_twice_is_seen_at_every_place_whatever_else_stands_there(
    at: int, end: str | None, space: str, escaped: bool
) -> None:
    """Counting colons spares looking at each object; so no text may hide a second name behind colons of its own."""
    start, stop = PLACES[at]
    name, _, value = TCB_INFO[start:stop].partition(":")
    name = f'"\\u{ord(name[1]):04x}{name[2:]}' if escaped else name
    twice = f"{TCB_INFO[:stop]},{name}{space}:{space}{value if end is None else end}{TCB_INFO[stop:]}"
    assert json.loads(twice)
    with pytest.raises(Unmet):
        parse_tcb_info(twice)
    assert parse_tcb_info(TCB_INFO).levels
