"""CoRIM import: measurements in each form that the drafts know, of the environment that is meant, and nothing else."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.bundle import bundle_of
from policies.corim import UNSIGNED, Imported, import_corim, parse_environment
from policies.errors import BundleError
from tests.policy_world import files

cbor2 = pytest.importorskip("cbor2")

from tests.corim_files import AT, MEANT, ONE, THREE, TWO, good, manifest, triple  # noqa: E402 - needs cbor2


def read(raw: bytes, environment: Mapping[str, str] = MEANT, at: datetime = AT) -> Imported:
    return import_corim("x", raw, signer=UNSIGNED, environment=environment, at=at)


def refused(raw: bytes, environment: Mapping[str, str] = MEANT) -> BundleError:
    with pytest.raises(BundleError) as error:
        read(raw, environment)
    return error.value


def corim(*values: dict[int, Any], **more: Any) -> bytes:
    return manifest(triple(*values), **more)


@pytest.mark.parametrize(
    "mr_td",
    [
        pytest.param({2: [[7, ONE]]}, id="digest list"),
        pytest.param({-83: ONE}, id="mrtee bytes"),
        pytest.param({-83: [7, ONE]}, id="mrtee digest"),
        pytest.param({-83: [[7, ONE]]}, id="mrtee digests"),
        pytest.param({-83: cbor2.CBORTag(60020, [6, [[7, ONE]]])}, id="mrtee member of a set"),
        pytest.param({-83: cbor2.CBORTag(560, ONE)}, id="mrtee tagged bytes"),
        pytest.param({2: [[8, ONE], [1, b"x" * 32]]}, id="mislabelled algorithm"),
    ],
)
def test_mrtd_is_read_in_every_form(mr_td: dict[int, Any]) -> None:
    found = read(corim(mr_td, {14: {0: [[7, TWO]], "rtmr1": [[7, THREE]]}}))
    assert [dict(value) for value in found.values] == [{"mr_td": ONE.hex(), "rtmr0": TWO.hex(), "rtmr1": THREE.hex()}]
    assert (found.id, found.verified, found.until, found.left_out) == ("image-7", False, None, ())


@pytest.mark.parametrize("profile", ["2.16.840.1.113741.1.16.1", "urn:oid:2.16.840.1.113741.1.16.1", None])
def test_a_profile_may_be_text_or_missing(profile: str | None) -> None:
    assert read(good(profile=profile)).values


def test_what_a_profile_defines_means_nothing_without_it() -> None:
    raw = corim({2: [[7, ONE]], -83: TWO}, profile=None)
    assert read(raw).values == ((("mr_td", ONE.hex()),),)
    assert read(raw).left_out == ("value -83",)


@pytest.mark.parametrize("profile", ["1.2.3", cbor2.CBORTag(32, "https://acme.example/profile"), 7])
def test_an_unknown_profile_refuses_the_whole(profile: Any) -> None:
    assert refused(good(profile=profile)).code == "manifest.profile_unknown"


def test_digests_of_something_else_in_the_domain_are_no_mrtd() -> None:
    kernel = triple({2: [[7, TWO]]}, key="kernel")[1]
    domain = triple({2: [[7, ONE]]}, key="MRTD")[1]
    register = triple({2: [[7, THREE]]}, key="rtmr2")[1]
    environment, _ = triple()
    found = read(manifest([environment, [*kernel, *domain, *register]]))
    assert [dict(value) for value in found.values] == [{"mr_td": ONE.hex(), "rtmr2": THREE.hex()}]
    assert found.left_out == ("value 2 of kernel",)


def test_what_no_reference_value_can_say_is_listed() -> None:
    environment, (measurement,) = triple({2: [[7, ONE]], -82: cbor2.CBORTag(563, [b"\0" * 8, b"\1" * 8]), 1: 3})
    measurement[2] = [cbor2.CBORTag(554, "key")]
    registers = {1: {14: {"my-ir": [[7, TWO]]}}}
    found = read(manifest([environment, [measurement, registers]]))
    assert found.left_out == ("authorized-by", "value -82", "value 1", "integrity register my-ir")


def test_states_of_two_triples_are_not_mixed() -> None:
    old, new = triple({2: [[7, ONE]], 14: {1: [[7, ONE]]}}), triple({2: [[7, TWO]], 14: {1: [[7, TWO]]}})
    found = read(manifest(old, new))
    assert [dict(value) for value in found.values] == [
        {"mr_td": digest.hex(), "rtmr1": digest.hex()} for digest in (ONE, TWO)
    ]


@pytest.mark.parametrize(
    "environment",
    [
        {0: {1: "acme", 2: "gpu-firmware"}},
        {0: {1: "acme"}},
        {0: {1: "acme", 2: "td-image", 3: 1}},
        {0: {1: "acme", 2: "td-image", 4: 0}},
        {0: {1: "acme", 2: "td-image", 9: "more"}},
        {0: {0: cbor2.CBORTag(560, b"\1"), 1: "acme", 2: "td-image"}},
        {0: {1: "acme", 2: "td-image"}, 1: cbor2.CBORTag(560, b"\1")},
        {0: {1: "acme", 2: "td-image"}, 2: cbor2.CBORTag(560, b"\1")},
        {1: cbor2.CBORTag(550, b"\1" * 17)},
    ],
)
def test_another_environment_becomes_nothing(environment: Any) -> None:
    beside = manifest(triple({2: [[7, TWO]]}, environment=environment), triple({2: [[7, ONE]]}))
    assert read(beside).values == ((("mr_td", ONE.hex()),),)
    alone = refused(manifest(triple({2: [[7, TWO]]}, environment=environment)))
    assert (alone.code, "Name the one" in alone.hint) == ("manifest.environment_not_meant", True)


def test_an_environment_must_be_named_and_what_is_there_is_told_as_it_is_named() -> None:
    uuid = bytes.fromhex("67b28b6c34cc40a19117ab5b05911e37")
    environment = {0: {0: cbor2.CBORTag(37, uuid), 1: "ACME Inc.", 3: 1}, 1: cbor2.CBORTag(560, b"\7\7")}
    raw = manifest(triple({2: [[7, ONE]]}, environment=environment))
    told = refused(raw, {})
    assert told.code == "manifest.environment_not_meant"
    words = [
        "class-id=67b28b6c-34cc-40a1-9117-ab5b05911e37",
        "vendor=ACME Inc.",
        "layer=1",
        "instance=0707",
    ]
    assert all(word in told.hint for word in words)
    assert read(raw, parse_environment(words)).values


@pytest.mark.parametrize("arc", ["4.1", "4.3", "5.1"])
def test_intels_other_components_are_no_trust_domain_even_if_they_are_named(arc: str) -> None:
    encoded = bytes.fromhex("6086480186f84d010203") + bytes(int(number) for number in arc.split("."))
    raw = manifest(triple({-83: ONE}, environment={0: {0: cbor2.CBORTag(111, encoded)}}))
    error = refused(raw, {"class-id": f"2.16.840.1.113741.1.2.3.{arc}"})
    assert (error.code, "no trust domain" in error.detail) == ("manifest.environment_not_meant", True)


@pytest.mark.parametrize("word", ["", "vendor", "vendor=", "=x", "vendr=x"])
def test_an_environment_in_other_words_is_refused(word: str) -> None:
    with pytest.raises(BundleError) as error:
        parse_environment([word])
    assert error.value.code == "bundle.value"


def test_an_attribute_of_the_environment_is_named_once() -> None:
    with pytest.raises(BundleError) as error:
        parse_environment(["vendor=a", "vendor=b"])
    assert error.value.code == "bundle.duplicate"


def test_what_is_printed_is_a_workload_that_loads() -> None:
    found = read(corim({-83: cbor2.CBORTag(60020, [6, [[7, ONE], [7, TWO]]])}, {14: {2: [[7, THREE]]}}))
    text = found.to_toml("agent", "CoRIM image-7")
    made = {name: content for name, content in files().items() if not name.startswith("tests/")}
    loaded = bundle_of({**made, "reference-values.toml": text.encode()})
    (workload,) = loaded.settings.workloads
    assert [dict(value.fields) for value in workload.values] == [
        {"mr_td": digest.hex(), "rtmr2": THREE.hex()} for digest in (ONE, TWO)
    ]


def test_values_end_with_the_manifest_that_they_came_from() -> None:
    end = AT + timedelta(days=30)
    found = read(good(validity={0: AT, 1: end}))
    made = {name: content for name, content in files().items() if not name.startswith("tests/")}
    loaded = bundle_of({**made, "reference-values.toml": found.to_toml("agent", "x").encode()})
    assert (found.until, loaded.settings.workloads[0].values[0].until) == (end, end)


@pytest.mark.parametrize(
    "window",
    [{0: AT + timedelta(seconds=1), 1: AT + timedelta(days=1)}, {1: AT}, {0: AT - timedelta(days=2), 1: AT}],
)
def test_a_manifest_that_is_not_in_force_is_refused(window: dict[int, datetime]) -> None:
    assert refused(good(validity=window)).code == "manifest.not_in_force"


def test_a_name_from_outside_writes_nothing_but_itself() -> None:
    name = 'x"\nmr_td = "any"\n# \\ \x7f'
    text = read(corim({2: [[7, ONE]]})).to_toml("agent", name)
    assert tomllib.loads(text)["workload"][0]["value"] == [{"source": name, "mr_td": ONE.hex()}]


def test_more_combinations_than_anybody_reads_are_refused_rather_than_cut() -> None:
    many = cbor2.CBORTag(60020, [6, [[7, bytes([number]) * 48] for number in range(9)]])
    assert "81 combinations" in refused(corim({-83: many}, {14: {1: many}})).detail
    assert "65 combinations" in refused(manifest(*(triple({2: [[7, bytes([n]) * 48]]}) for n in range(65)))).detail


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xff",
        cbor2.dumps([]),
        cbor2.dumps({0: "x"}),
        good() + b"\0",
        corim({14: {0: [[7, ONE]]}}),
        corim({-83: cbor2.CBORTag(60020, [7, [[7, ONE]]])}),
        corim({-83: cbor2.CBORTag(60020, [6, [[7, ONE]]])}, profile=None) + b"\0",
        corim({2: [[1, b"x" * 32]]}),
        corim({2: [[7, ONE], [8, TWO]]}),
        corim({2: [[7, ONE]]}, {2: [[7, TWO]]}),
        good(tags=[cbor2.CBORTag(508, b"")]),
        good(comid={3: [{0: "older", 1: 1}]}),
        manifest(triple({2: [[7, ONE]]}, environment={})),
        manifest(triple({2: [[7, ONE]]}, environment={0: {1: "x" * 300}}), triple({2: [[7, ONE]]})),
        manifest(triple({2: [[7, ONE]]}, environment={0: {0: cbor2.CBORTag(111, b"\x80")}})),
        bytes.fromhex("bf0001ff"),
        bytes.fromhex("a200010002"),
    ],
)
def test_what_holds_no_mrtd_is_refused(raw: bytes) -> None:
    assert refused(raw).code == "bundle.syntax"


def test_an_identifier_writes_no_control_characters_to_a_terminal() -> None:
    environment = {0: {1: "\x1b[2Jacme"}}
    assert refused(manifest(triple({2: [[7, ONE]]}, environment=environment))).hint.isprintable()


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    refused(raw)


@given(data=st.data())
def test_any_damage_is_read_or_refused(data: st.DataObject) -> None:
    raw = bytearray(corim({2: [[7, ONE]]}, {14: {0: [[7, TWO]]}}))
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with suppress(BundleError):
        read(bytes(raw))


def test_without_cbor2_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "cbor2", None)
    assert refused(b"").hint == "pip install 'cloister[corim]'"
