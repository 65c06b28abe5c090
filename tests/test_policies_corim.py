"""CoRIM import: measurements in each form that the drafts know, and nothing from what is none."""

from __future__ import annotations

import tomllib
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.bundle import bundle_of
from policies.corim import import_corim
from policies.errors import BundleError
from tests.policy_world import files

cbor2 = pytest.importorskip("cbor2")
ONE, TWO, THREE = (bytes([digit]) * 48 for digit in (1, 2, 3))


def corim(*values: dict[int, Any], sign: bool = False, tags: bool = True) -> bytes:
    triples = [[{0: {1: "Intel"}}, [{1: value} for value in values]]]
    comid = {1: {0: "comid"}, 4: {0: triples}}
    inner = cbor2.CBORTag(506, cbor2.dumps(comid))
    manifest: Any = {0: "image-7", 1: [inner], 3: "2.16.840.1.113741.1.16.1"}
    manifest = cbor2.CBORTag(501, manifest) if tags else manifest
    return bytes(cbor2.dumps(cbor2.CBORTag(18, [b"", {}, cbor2.dumps(manifest), b"s" * 64]) if sign else manifest))


@pytest.mark.parametrize(
    "mr_td",
    [
        pytest.param({2: [[7, ONE]]}, id="digest list"),
        pytest.param({-83: ONE}, id="mrtee bytes"),
        pytest.param({-83: [[7, ONE]]}, id="mrtee digests"),
        pytest.param({-83: cbor2.CBORTag(60020, [6, [[7, ONE]]])}, id="mrtee member of a set"),
        pytest.param({-83: cbor2.CBORTag(560, ONE)}, id="mrtee tagged bytes"),
        pytest.param({2: [[8, ONE], [1, b"x" * 32]]}, id="mislabelled algorithm"),
    ],
)
def test_mrtd_is_read_in_every_form(mr_td: dict[int, Any]) -> None:
    found = import_corim("x", corim(mr_td, {14: {0: [[7, TWO]], "rtmr1": [[7, THREE]]}}))
    assert dict(found.registers) == {"mr_td": (ONE.hex(),), "rtmr0": (TWO.hex(),), "rtmr1": (THREE.hex(),)}
    assert (found.id, found.signed) == ("image-7", False)


def test_a_signed_manifest_is_opened_and_said_to_be_unverified() -> None:
    assert import_corim("x", corim({2: [[7, ONE]]}, sign=True)).signed


def test_what_is_printed_is_a_workload_that_loads() -> None:
    found = import_corim("x", corim({-83: cbor2.CBORTag(60020, [6, [[7, ONE], [7, TWO]]])}, {14: {2: [[7, THREE]]}}))
    text = found.to_toml("agent", "CoRIM image-7")
    made = {name: content for name, content in files().items() if not name.startswith("tests/")}
    loaded = bundle_of({**made, "reference-values.toml": text.encode()})
    (workload,) = loaded.settings.workloads
    assert [dict(value.fields) for value in workload.values] == [
        {"mr_td": digest.hex(), "rtmr2": THREE.hex()} for digest in (ONE, TWO)
    ]


def test_a_name_from_outside_writes_nothing_but_itself() -> None:
    name = 'x"\nmr_td = "any"\n# \\ \x7f'
    text = import_corim("x", corim({2: [[7, ONE]]})).to_toml("agent", name)
    assert tomllib.loads(text)["workload"][0]["value"] == [{"source": name, "mr_td": ONE.hex()}]


def test_more_combinations_than_anybody_reads_are_refused_rather_than_cut() -> None:
    many = [[7, bytes([number]) * 48] for number in range(9)]
    found = import_corim("x", corim({2: many}, {14: {1: many}}))
    with pytest.raises(BundleError, match="81 combinations"):
        found.to_toml("agent", "x")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xff",
        cbor2.dumps([]),
        cbor2.dumps({0: "x"}),
        corim({14: {0: [[7, ONE]]}}),
        corim({-83: cbor2.CBORTag(60020, [7, [[7, ONE]]])}),
        corim({2: [[1, b"x" * 32]]}),
    ],
)
def test_what_holds_no_mrtd_is_refused(raw: bytes) -> None:
    with pytest.raises(BundleError) as error:
        import_corim("x", raw)
    assert error.value.code == "bundle.syntax"


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    with pytest.raises(BundleError):
        import_corim("x", raw)


@given(data=st.data())
def test_any_damage_is_read_or_refused(data: st.DataObject) -> None:
    raw = bytearray(corim({2: [[7, ONE]]}, {14: {0: [[7, TWO]]}}))
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with suppress(BundleError):
        import_corim("x", bytes(raw))


def test_without_cbor2_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "cbor2", None)
    with pytest.raises(BundleError) as error:
        import_corim("x", b"")
    assert error.value.hint == "pip install 'cloister[corim]'"
