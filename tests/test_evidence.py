"""Bindings, proofs and evidence: one encoding per meaning, nothing unbounded, nothing off the curve."""

import base64
import contextlib
import dataclasses
import hashlib
import json
import string
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from attestation import es256
from attestation.encoding import (
    MAX_VALUES,
    TooManyValues,
    b64url,
    compact_json,
    framed,
    from_b64url,
    strict_json,
    unframed,
)
from attestation.errors import AttestationError, Code
from attestation.evidence import (
    MLKEM768_X25519,
    OWN_OF_QUOTE,
    X25519,
    Binding,
    Evidence,
    Role,
    proof_message,
    sign_proof,
    verify_proof,
)
from attestation.quote import MAX_QUOTE
from attestation.records import AgentEvidence, pack_agent, part_digests, unpack

KEY = ec.derive_private_key(7, ec.SECP256R1())
OTHER = ec.derive_private_key(8, ec.SECP256R1())
SPKI = es256.dump_public(KEY.public_key())
FIELDS: dict[str, Any] = {
    "role": Role.AGENT,
    "tenant": "acme",
    "broker_id": b"b" * 32,
    "nonce": b"n" * 32,
    "identity_key": SPKI,
    "suite": X25519,
    "sealing_key": b"s" * 32,
    "trust_file_digest": b"t" * 32,
}
CLIENT = b"c" * 32


def binding(**changes: Any) -> Binding:
    return Binding(**(FIELDS | changes))


def evidence(key: ec.EllipticCurvePrivateKey = KEY, log: bytes | None = b"log", **changes: Any) -> Evidence:
    message = proof_message(FIELDS["broker_id"], CLIENT, FIELDS["nonce"], b"quote", log)
    plain: dict[str, Any] = {
        "quote": b"quote",
        "event_log": log,
        "binding": binding(),
        "proof": sign_proof(key, message),
    }
    return Evidence(**(plain | changes))


def code_of(act: Callable[[], object]) -> str:
    try:
        act()
    except AttestationError as error:
        return error.code
    return "ok"


def test_report_data_is_sha512_over_the_tag_and_length_prefixed_fields() -> None:
    fields = (
        b"cloister/binding/v1",
        b"\0\0\0\1",
        b"agent",
        b"acme",
        b"b" * 32,
        b"n" * 32,
        SPKI,
        b"x25519",
        b"s" * 32,
        b"",
        b"t" * 32,
    )
    encoded = b"".join(len(field).to_bytes(4, "big") + field for field in fields)
    assert binding().encode() == encoded
    assert binding().report_data == hashlib.sha512(encoded).digest()


bindings = st.builds(
    Binding,
    role=st.sampled_from(Role),
    tenant=st.from_regex(r"[a-c_][a-c._-]{0,3}", fullmatch=True),
    broker_id=st.sampled_from([b"a" * 32, b"b" * 32]),
    nonce=st.binary(min_size=32, max_size=32),
    identity_key=st.sampled_from([SPKI, es256.dump_public(OTHER.public_key())]),
    suite=st.just(X25519),
    sealing_key=st.sampled_from([b"s" * 32, b"t" * 32]),
    init_data_digest=st.sampled_from([b"", b"i" * 32, b"i" * 48]),
    trust_file_digest=st.sampled_from([b"a" * 32, b"t" * 32]),
)


@given(one=bindings, other=bindings)
def test_different_bindings_never_have_the_same_encoding(one: Binding, other: Binding) -> None:
    assert (one == other) == (one.encode() == other.encode()) == (one.report_data == other.report_data)


@given(one=st.lists(st.binary(max_size=6), max_size=5), other=st.lists(st.binary(max_size=6), max_size=5))
def test_framing_tells_every_two_lists_apart(one: list[bytes], other: list[bytes]) -> None:
    assert (one == other) == (framed(*one) == framed(*other))


@pytest.mark.parametrize(
    "name", [field.name for field in dataclasses.fields(Binding) if field.init and field.name != "version"]
)
def test_every_field_is_bound(name: str) -> None:
    other: dict[str, Any] = {
        "role": Role.PEER,
        "tenant": "acmf",
        "identity_key": es256.dump_public(OTHER.public_key()),
        "suite": MLKEM768_X25519,
        "init_data_digest": b"i" * 48,
    }
    changes = {name: other.get(name, b"x" * 32)}
    if name == "suite":
        changes["sealing_key"] = b"s" * 1216
    assert binding(**changes).report_data != binding().report_data


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"version": 2}, Code.EVIDENCE_FIELD),
        ({"tenant": ""}, Code.EVIDENCE_FIELD),
        ({"tenant": ".hidden"}, Code.EVIDENCE_FIELD),
        ({"tenant": "a/b"}, Code.EVIDENCE_FIELD),
        ({"tenant": "a\n"}, Code.EVIDENCE_FIELD),
        ({"tenant": "a" * 65}, Code.EVIDENCE_FIELD),
        ({"broker_id": b"b" * 31}, Code.EVIDENCE_FIELD),
        ({"nonce": b"n" * 33}, Code.EVIDENCE_FIELD),
        ({"nonce": b""}, Code.EVIDENCE_FIELD),
        ({"trust_file_digest": b""}, Code.EVIDENCE_FIELD),
        ({"init_data_digest": b"i" * 20}, Code.EVIDENCE_FIELD),
        ({"suite": "x448"}, Code.EVIDENCE_SUITE),
        ({"suite": MLKEM768_X25519}, Code.EVIDENCE_KEY),
        ({"sealing_key": b"s" * 31}, Code.EVIDENCE_KEY),
        ({"identity_key": SPKI[:-1]}, Code.EVIDENCE_KEY),
        ({"identity_key": SPKI + b"\0"}, Code.EVIDENCE_KEY),
        ({"identity_key": SPKI[:-1] + bytes([SPKI[-1] ^ 1])}, Code.EVIDENCE_KEY),
        ({"identity_key": SPKI[:27] + bytes(64)}, Code.EVIDENCE_KEY),
    ],
    ids=repr,
)
def test_a_field_of_another_form_is_refused(changes: dict[str, Any], code: Code) -> None:
    assert code_of(lambda: binding(**changes)) == code


class Shout(str):
    """A text that is not what it looks like."""

    __slots__ = ()


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Binding) if field.init])
def test_a_binding_holds_exactly_the_types_that_cannot_change(name: str) -> None:
    good = getattr(binding(), name)
    twins: list[Any] = [None, 7.0, [good]]
    if isinstance(good, bytes):
        twins += [bytearray(good), memoryview(good), good.decode("latin-1")]
    if isinstance(good, str):
        twins += [Shout(good), good.encode()]
    if name == "role":
        twins.append("agent")
    if name == "version":
        twins.append(True)
    for twin in twins:
        assert code_of(lambda twin=twin: binding(**{name: twin})) == Code.EVIDENCE_FIELD, twin  # type: ignore[misc]


@pytest.mark.parametrize("name", ["quote", "event_log", "binding", "proof"])
def test_evidence_holds_exactly_the_types_that_cannot_change(name: str) -> None:
    good = getattr(evidence(), name)
    twins: list[Any] = (
        [7, bytearray(good), good.decode("latin-1")] if isinstance(good, bytes) else [None, good.to_dict()]
    )
    for twin in twins:
        assert code_of(lambda twin=twin: evidence(**{name: twin})) == Code.EVIDENCE_FIELD, twin  # type: ignore[misc]


def test_keys_of_other_curves_and_compressed_points_are_refused() -> None:
    other_curve = ec.derive_private_key(7, ec.SECP384R1()).public_key()
    compressed = KEY.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    for wrong in (
        other_curve.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        SPKI[:26] + compressed,
    ):
        assert code_of(lambda wrong=wrong: binding(identity_key=wrong)) == Code.EVIDENCE_KEY  # type: ignore[misc]
    with pytest.raises(ValueError):
        es256.dump_public(other_curve)


def test_the_thumbprint_is_that_of_rfc_7638() -> None:
    key = es256.jwk(SPKI)
    text = compact_json({name: key[name] for name in sorted(key)})
    assert binding().jkt == b64url(hashlib.sha256(text).digest())
    assert es256.from_jwk({**key, "kid": "ignored"}) == SPKI


@pytest.mark.parametrize("wrong", [{"kty": "RSA"}, {"crv": "P-384"}, {"x": "AA"}, {"x": 1}, {"d": "AA"}, {"y": "!"}])
def test_a_jwk_that_is_no_public_p256_key_is_a_value_error(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        es256.from_jwk({**es256.jwk(SPKI), **wrong})


def test_the_holder_of_the_identity_key_passes() -> None:
    for log in (b"log", b"", None):
        verify_proof(evidence(log=log), client_nonce=CLIENT)


def test_a_proof_by_another_key_or_for_another_exchange_is_refused() -> None:
    good = evidence()
    refused = [
        (evidence(OTHER), CLIENT),
        (good, b"d" * 32),
        (dataclasses.replace(good, quote=b"quotf"), CLIENT),
        (dataclasses.replace(good, event_log=b"loh"), CLIENT),
        (dataclasses.replace(good, event_log=None), CLIENT),
        (dataclasses.replace(evidence(log=None), event_log=b""), CLIENT),
        (dataclasses.replace(good, binding=binding(nonce=b"m" * 32)), CLIENT),
        (dataclasses.replace(good, binding=binding(broker_id=b"c" * 32)), CLIENT),
        (dataclasses.replace(good, proof=bytes(64)), CLIENT),
        (dataclasses.replace(good, proof=b"\xff" * 64), CLIENT),
    ]
    for wrong, nonce in refused:
        assert code_of(lambda w=wrong, n=nonce: verify_proof(w, client_nonce=n)) == Code.EVIDENCE_PROOF  # type: ignore[misc]


def test_a_proof_is_never_a_binding_or_another_message() -> None:
    assert proof_message(b"", b"", b"", b"", b"").startswith(framed(b"cloister/proof/v1"))
    assert binding().encode().startswith(framed(b"cloister/binding/v1"))
    with pytest.raises(ValueError):
        es256.sign(ec.derive_private_key(7, ec.SECP384R1()), b"")


@pytest.mark.parametrize("log", [b"log", b"", None])
def test_evidence_survives_the_wire(log: bytes | None) -> None:
    sent = evidence(log=log)
    assert Evidence.from_dict(strict_json(compact_json(sent.to_dict()))) == sent


def mutations() -> list[tuple[str, Any, Code]]:
    good = evidence().to_dict()
    inner = good["binding"]
    lacking = [({k: v for k, v in good.items() if k != name}, name) for name in ("quote", "binding", "proof")]
    inner_lacking = [({k: v for k, v in inner.items() if k != name}, name) for name in inner]
    return [
        *[(f"without {name}", value, Code.EVIDENCE_MALFORMED) for value, name in lacking],
        *[
            (f"binding without {name}", good | {"binding": value}, Code.EVIDENCE_MALFORMED)
            for value, name in inner_lacking
        ],
        ("a list", [good], Code.EVIDENCE_MALFORMED),
        ("another member", good | {"collateral": ""}, Code.EVIDENCE_MALFORMED),
        ("another binding member", good | {"binding": inner | {"x": 1}}, Code.EVIDENCE_MALFORMED),
        ("an empty quote", good | {"quote": ""}, Code.EVIDENCE_FIELD),
        ("a quote that is no text", good | {"quote": 1}, Code.EVIDENCE_FIELD),
        ("padding", good | {"quote": "AA=="}, Code.EVIDENCE_FIELD),
        ("stray bits", good | {"quote": "AB"}, Code.EVIDENCE_FIELD),
        ("standard base64", good | {"quote": "+/+/"}, Code.EVIDENCE_FIELD),
        ("a blank", good | {"quote": "AA AA"}, Code.EVIDENCE_FIELD),
        ("umlauts", good | {"quote": "ÄÄÄÄ"}, Code.EVIDENCE_FIELD),
        ("a huge quote", good | {"quote": "A" * (MAX_QUOTE * 4 // 3 + 8)}, Code.EVIDENCE_TOO_LARGE),
        ("a huge log", good | {"event_log": "A" * (MAX_QUOTE * 4 // 3 + 8)}, Code.EVIDENCE_TOO_LARGE),
        ("a long proof", good | {"proof": "A" * 100}, Code.EVIDENCE_TOO_LARGE),
        ("a short proof", good | {"proof": "AAAA"}, Code.EVIDENCE_FIELD),
        ("another role", good | {"binding": inner | {"role": "root"}}, Code.EVIDENCE_FIELD),
        ("a role that is no text", good | {"binding": inner | {"role": []}}, Code.EVIDENCE_FIELD),
        ("version true", good | {"binding": inner | {"version": True}}, Code.EVIDENCE_FIELD),
        ("version 1.0", good | {"binding": inner | {"version": 1.0}}, Code.EVIDENCE_FIELD),
        ("version 2", good | {"binding": inner | {"version": 2}}, Code.EVIDENCE_FIELD),
        ("a tenant that is no text", good | {"binding": inner | {"tenant": None}}, Code.EVIDENCE_FIELD),
        ("a suite that is a list", good | {"binding": inner | {"suite": ["x25519"]}}, Code.EVIDENCE_FIELD),
    ]


@pytest.mark.parametrize(
    ("what", "value", "code"), mutations(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_evidence_of_another_form_is_refused(what: str, value: Any, code: Code) -> None:
    assert code_of(lambda: Evidence.from_dict(value)) == code


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**19) + 1, 10**20 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(member=st.sampled_from(["quote", "event_log", "proof", *binding().to_dict()]), value=json_values)
def test_any_json_in_any_member_is_evidence_or_malformed(member: str, value: Any) -> None:
    good = evidence().to_dict()
    changed = good | {member: value} if member in good else good | {"binding": good["binding"] | {member: value}}
    assert code_of(lambda: Evidence.from_dict(changed)).startswith(("ok", "evidence."))


@given(data=st.binary(max_size=40))
def test_base64url_goes_there_and_back(data: bytes) -> None:
    assert from_b64url(b64url(data)) == data


@given(text=st.text(alphabet="ABab01-_=+/ \n", max_size=12))
def test_base64url_has_one_spelling(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert b64url(from_b64url(text)) == text


@given(
    data=st.binary(max_size=40), last=st.text(alphabet=string.ascii_letters + string.digits + "-_=+/\n é", max_size=2)
)
def test_only_one_text_stands_for_bytes_whatever_it_ends_with(data: bytes, last: str) -> None:
    text = b64url(data)[:-1] + last
    try:
        found = from_b64url(text)
    except ValueError:
        return
    assert base64.urlsafe_b64encode(found).rstrip(b"=").decode() == text


@pytest.mark.parametrize(
    "text",
    [
        '{"a":1,"a":1}',
        "1.0",
        "1e3",
        "NaN",
        "-Infinity",
        "[" * 9 + "]" * 9,
        "[" * 100000,
        '"\\ud800"',
        "",
        "1" * 5000,
        "1" * 21,
        "-" + "1" * 20,
        '{"\\ud800":1}',
        '{"a":[{"b":"x\\uD800"}]}',
        '"\ud800"',
        '{"a":{"\ud800":1}}',
        "\ufeff{}",
    ],
    ids=lambda text: ascii(text)[:16],
)
def test_json_with_two_meanings_or_none_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        strict_json(text)
    with pytest.raises(ValueError):
        strict_json(b"\xff" + text.encode())


@given(value=json_values)
def test_strict_json_reads_what_compact_json_writes_unless_it_has_fractions(value: Any) -> None:
    try:
        assert strict_json(compact_json(value)) == value
    except ValueError:
        assert any(mark in repr(value) for mark in (".", "e", "ud", "inf", "nan"))


def test_json_is_counted_before_it_is_built() -> None:
    assert len(strict_json("[" + ",".join(["0"] * MAX_VALUES) + "]")) == MAX_VALUES
    for unit in ("0", "{}", "[]", '"a"', '{"a":[]}'):
        with pytest.raises(TooManyValues):
            strict_json("[" + ",".join([unit] * (MAX_VALUES + 1)) + "]")
    with pytest.raises(TooManyValues):
        strict_json("{" + ",".join(f'"{number}":0' for number in range(MAX_VALUES + 1)) + "}")


def test_numbers_of_64_bits_are_read() -> None:
    assert strict_json(f"[{2**64 - 1},{-(2**63)}]") == [2**64 - 1, -(2**63)]


LONG = b64url(bytes(range(256)) * 5)


@given(at=st.integers(0, len(LONG)), new=st.text(alphabet="Aa-_=+/ é", max_size=5), most=st.integers(0, 2000))
def test_long_parts_are_read_like_short_ones_whatever_was_read_before(at: int, new: str, most: int) -> None:
    text = (LONG[:at] + new + LONG[at + len(new) :])[: most or None]
    for part in ("quote", "event_log"):
        changed = evidence().to_dict() | {part: text}
        try:
            expected = from_b64url(text)
        except ValueError:
            assert code_of(lambda: Evidence.from_dict(changed)) == Code.EVIDENCE_FIELD  # noqa: B023  # called at once
        else:
            assert getattr(Evidence.from_dict(changed), part) == expected


@pytest.mark.parametrize("log", [b"log", None], ids=["log", "no log"])
@pytest.mark.parametrize("size", [1, OWN_OF_QUOTE - 1, OWN_OF_QUOTE, OWN_OF_QUOTE + 1, 5000])
def test_evidence_is_stored_as_its_parts_and_a_record_that_names_them(log: bytes | None, size: int) -> None:
    told = evidence(quote=bytes(number % 251 for number in range(size)), log=log)
    packed = pack_agent(told, CLIENT)
    blobs = dict(packed.blobs)
    assert all(hashlib.sha256(blob).digest() == digest for digest, blob in blobs.items())
    rest = told.quote[OWN_OF_QUOTE:]
    assert set(blobs.values()) - {blobs[packed.digest]} == {part for part in (rest, log) if part is not None}
    assert set(part_digests(blobs[packed.digest])) == blobs.keys() - {packed.digest}
    found = unpack(packed.digest, blobs.__getitem__)
    assert isinstance(found, AgentEvidence)
    assert (found.evidence, found.client_nonce) == (told, CLIENT)


@pytest.mark.parametrize("log", [b"log", None])
def test_records_of_an_earlier_version_are_read(log: bytes | None) -> None:
    told = evidence(log=log)
    parts = [told.quote] if log is None else [told.quote, log]
    members = {
        "parts": [b64url(hashlib.sha256(part).digest()) for part in parts],
        "binding": told.binding.to_dict(),
        "proof": b64url(told.proof),
        "client_nonce": b64url(CLIENT),
    }
    record = json.dumps(members, sort_keys=True, separators=(",", ":")).encode()
    blobs = {hashlib.sha256(part).digest(): part for part in (*parts, record)}
    found = unpack(hashlib.sha256(record).digest(), blobs.__getitem__)
    assert isinstance(found, AgentEvidence)
    assert (found.evidence, found.client_nonce) == (told, CLIENT)
    assert part_digests(record) == told.digests


@pytest.mark.parametrize("log", [b"log", None], ids=["log", "no log"])
def test_records_with_the_digest_of_the_whole_quote_are_read(log: bytes | None) -> None:
    told = evidence(quote=bytes(1000), log=log)
    record = framed(b"cloister/agent-evidence/v1", told.binding.encode(), told.proof, CLIENT, *told.digests)
    blobs = {hashlib.sha256(part).digest(): part for part in (told.quote, log, record) if part is not None}
    found = unpack(hashlib.sha256(record).digest(), blobs.__getitem__)
    assert isinstance(found, AgentEvidence)
    assert (found.evidence, found.client_nonce) == (told, CLIENT)
    assert part_digests(record) == told.digests


def test_agents_of_one_platform_have_what_vouches_for_their_key_in_common() -> None:
    packed = [pack_agent(evidence(quote=bytes([number] * OWN_OF_QUOTE) + b"chain"), CLIENT) for number in (1, 2)]
    first, second = ({digest for digest, _ in each.blobs} - {each.digest} for each in packed)
    assert first == second
    assert packed[0].digest != packed[1].digest


def test_a_quote_is_cut_at_one_place_alone() -> None:
    told = evidence(quote=bytes(1000))
    for at in (OWN_OF_QUOTE - 1, OWN_OF_QUOTE + 1):
        rest = told.quote[at:]
        fields = (told.binding.encode(), told.proof, CLIENT, told.quote[:at], hashlib.sha256(rest).digest())
        record = framed(b"cloister/agent-evidence/v2", *fields)
        blobs = {hashlib.sha256(part).digest(): part for part in (rest, record)}
        with pytest.raises(ValueError, match="cut"):
            unpack(hashlib.sha256(record).digest(), blobs.__getitem__)


@pytest.mark.parametrize("fields", [(), (b"cloister/agent-evidence/v2",), (b"another", b"", b"", b"", b"", bytes(32))])
def test_what_is_no_record_names_no_parts_and_no_evidence(fields: tuple[bytes, ...]) -> None:
    record = framed(*fields)
    digest = hashlib.sha256(record).digest()
    with pytest.raises(ValueError, match=r".+"):
        unpack(digest, {digest: record}.__getitem__)
    if fields[:1] != (b"cloister/agent-evidence/v2",):
        with pytest.raises(ValueError, match=r".+"):
            part_digests(record)


@given(at=st.integers(0, 2000), flip=st.integers(0, 255), cut=st.booleans())
def test_a_record_that_was_changed_is_none_or_says_something_else(at: int, flip: int, cut: bool) -> None:
    packed = pack_agent(evidence(), CLIENT)
    blobs = dict(packed.blobs)
    raw = bytearray(blobs[packed.digest])
    at %= len(raw)
    raw[at] ^= flip
    changed = bytes(raw[:at] if cut else raw)
    digest = hashlib.sha256(changed).digest()
    try:
        found = unpack(digest, (blobs | {digest: changed}).__getitem__)
    except (ValueError, LookupError):
        return
    assert isinstance(found, AgentEvidence)
    assert pack_agent(found.evidence, found.client_nonce).digest == digest


@given(fields=st.lists(st.binary(max_size=9), max_size=5), rest=st.binary(max_size=9))
def test_framed_fields_come_back_and_nothing_else_is_read(fields: list[bytes], rest: bytes) -> None:
    assert unframed(framed(*fields)) == fields
    raw = framed(*fields) + rest
    with contextlib.suppress(ValueError):
        assert framed(*unframed(raw)) == raw


def test_a_binding_is_read_as_it_was_encoded() -> None:
    made = binding(init_data_digest=b"i" * 32)
    assert Binding.decode(made.encode()) == made
    for changed in (made.encode() + b"x", made.encode()[:-1], framed(b"other", *unframed(made.encode())[1:]), b""):
        with pytest.raises(AttestationError) as caught:
            Binding.decode(changed)
        assert caught.value.code.startswith("evidence.")


def test_the_digests_of_evidence_are_those_of_its_parts_as_sent() -> None:
    assert evidence().digests == (hashlib.sha256(b"quote").digest(), hashlib.sha256(b"log").digest())
    assert evidence(log=None).digests == (hashlib.sha256(b"quote").digest(),)
