"""The language between broker and clients: one spelling of everything, every signature for one purpose."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.wire import envelope, envelope_pb2, names
from broker.wire.bodies import AttestationRequest, Problem, PutSecretRequest, VerificationRequest
from broker.wire.challenge import ChallengeRequest
from broker.wire.deadletters import PageRequest, RedriveRequest
from broker.wire.envelope import Envelope, Header, batch_from_bytes, batch_to_bytes
from broker.wire.errors import MEANING, WireCode
from broker.wire.fields import parse_object
from broker.wire.jose import b64u, thumbprint
from broker.wire.leases import AckRequest, Extension, Nak, Partly, Rejection
from broker.wire.log import (
    broker_id,
)
from broker.wire.mailbox import Delivery, MailboxKey, ReceiveRequest
from broker.wire.release import ReleasePermit, ReleaseRequest, ReleaseResponse, permit_digest
from broker.wire.relying import TokenKind, TokenRequest, TokenResponse
from broker.wire.tags import Tag, sealing_thumbprint, tagged
from tests.wire_world import KEY, LOG_RAW, OTHER, outcome, receipt

ROOT = Path(__file__).resolve().parent.parent


def header(**changes: Any) -> Header:
    members: dict[str, Any] = {
        "suite": "mlkem768-x25519",
        "tenant": "acme",
        "msg_id": bytes(16),
        "sender": f"agent/acme/{thumbprint(KEY.public_key())}",
        "sender_jkt": thumbprint(KEY.public_key()),
        "mailbox": "acme/inbox",
        "mailbox_key": bytes(32),
        "incarnation": bytes(32),
        "seq": 1,
        "sent_at_ms": 1_000,
        "expires_at_ms": 2_000,
        "type": "question",
    }
    return Header(**(members | changes))


# ── protobuf ───────────────────────────────────────────────────────────────────────────────────────────────────────


PROTOS = sorted((ROOT / "broker/wire").glob("*.proto"))


@pytest.mark.parametrize("proto", PROTOS, ids=lambda path: path.stem)
def test_the_committed_stubs_are_what_the_generator_writes(proto: Path, tmp_path: Path) -> None:
    protoc = pytest.importorskip("grpc_tools.protoc")
    well_known = Path(protoc.__file__).parent / "_proto"
    arguments = ["protoc", f"-I{ROOT}", f"-I{well_known}", f"--python_out={tmp_path}", f"--pyi_out={tmp_path}"]
    assert protoc.main([*arguments, str(proto)]) == 0
    for name in (f"{proto.stem}_pb2.py", f"{proto.stem}_pb2.pyi"):
        assert (ROOT / "broker/wire" / name).read_text() == (tmp_path / "broker/wire" / name).read_text(), name


def test_a_header_comes_back_as_it_was_sent() -> None:
    sent = header(labels=("pii", "secret"), in_reply_to=bytes(16), reply_to="acme/other", permit_digest=bytes(32))
    assert Header.from_bytes(sent.to_bytes()) == sent


@pytest.mark.parametrize(
    "changes",
    [
        {"msg_id": b"short"},
        {"mailbox": "nobody"},
        {"mailbox": "acme/../etc"},
        {"sender": "agent/acme"},
        {"seq": 0},
        {"expires_at_ms": 1_000},
        {"expires_at_ms": 1_000 + 5 * 24 * 3600 * 1000},
        {"labels": ("b", "a")},
        {"labels": ("a", "a")},
        {"labels": tuple(f"l{i:03}" for i in range(40))},
        {"type": ""},
        {"type": "x" * 200},
        {"mailbox_key": b""},
        {"incarnation": bytes(31)},
        {"permit_digest": bytes(31)},
        {"tenant": ".hidden"},
        {"reply_to": "x"},
    ],
    ids=str,
)
def test_a_header_out_of_bounds_is_malformed(changes: dict[str, Any]) -> None:
    assert outcome(lambda: header(**changes)) == WireCode.ENVELOPE_MALFORMED


def test_a_header_that_two_readers_could_read_differently_is_malformed() -> None:
    raw = header().to_bytes()
    doubled = raw + header(mailbox="acme/elsewhere").to_bytes()  # protobuf: the last one wins
    unknown = raw + b"\xfa\x01\x01x"  # field 31
    assert outcome(lambda: Header.from_bytes(doubled)) == WireCode.ENVELOPE_MALFORMED
    assert outcome(lambda: Header.from_bytes(unknown)) == WireCode.ENVELOPE_MALFORMED
    assert outcome(lambda: Header.from_bytes(raw[:-1])) == WireCode.ENVELOPE_MALFORMED


def test_a_header_has_every_field_of_its_format() -> None:
    """What is read comes back the same only if nothing that the format knows is left behind."""
    assert {field.name for field in envelope_pb2.Header.DESCRIPTOR.fields} - {"v"} == {
        field.name for field in dataclasses.fields(Header)
    }
    assert Header.from_bytes(header().to_bytes()) == header()


def test_nothing_unsigned_travels_in_an_envelope_or_beside_one() -> None:
    sealed = Envelope.sign(KEY, header=header().to_bytes(), body=b"sealed")
    more = b"\xfa\x01\x01x"  # field 31, under no signature and in no digest
    batch = envelope_pb2.Batch.FromString(batch_to_bytes([sealed]))
    batch.envelopes[0].MergeFromString(more)
    assert outcome(lambda: Envelope.from_bytes(sealed.to_bytes() + more)) == WireCode.ENVELOPE_MALFORMED
    assert outcome(lambda: batch_from_bytes(batch_to_bytes([sealed]) + more)) == WireCode.ENVELOPE_MALFORMED
    assert outcome(lambda: batch_from_bytes(batch.SerializeToString())) == WireCode.ENVELOPE_MALFORMED


@given(raw=st.binary(max_size=300))
@settings(max_examples=200)
def test_any_bytes_are_a_batch_or_malformed(raw: bytes) -> None:
    assert outcome(lambda: batch_from_bytes(raw)) in ("ok", WireCode.ENVELOPE_MALFORMED)
    assert outcome(lambda: Header.from_bytes(raw)) in ("ok", WireCode.ENVELOPE_MALFORMED)


def test_a_signature_covers_header_and_body() -> None:
    sealed = Envelope.sign(KEY, header=header().to_bytes(), body=b"sealed")
    sealed.verify(KEY.public_key())
    (again,) = batch_from_bytes(batch_to_bytes([sealed]))
    assert again == sealed
    elsewhere = Envelope(
        header=header(mailbox="acme/elsewhere").to_bytes(), body=sealed.body, signature=sealed.signature
    )
    changed = Envelope(header=sealed.header, body=b"sealeD", signature=sealed.signature)
    for forged, key in ((elsewhere, KEY), (changed, KEY), (sealed, OTHER)):
        assert outcome(forged.verify, key.public_key()) == WireCode.ENVELOPE_SIGNATURE


def test_the_hpke_context_names_header_and_so_sender_and_mailbox() -> None:
    assert envelope.info(header().to_bytes()) != envelope.info(header(mailbox="acme/elsewhere").to_bytes())


def test_an_empty_or_overfull_batch_is_malformed() -> None:
    one = Envelope.sign(KEY, header=header().to_bytes(), body=b"")
    assert outcome(lambda: batch_from_bytes(b"")) == WireCode.ENVELOPE_MALFORMED
    assert outcome(lambda: batch_from_bytes(batch_to_bytes([one] * 65))) == WireCode.ENVELOPE_MALFORMED


# ── tags ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(a=st.lists(st.binary(max_size=8), max_size=4), b=st.lists(st.binary(max_size=8), max_size=4))
def test_two_lists_of_fields_never_give_the_same_bytes(a: list[bytes], b: list[bytes]) -> None:
    assert (tagged(Tag.RELEASE, *a) == tagged(Tag.RELEASE, *b)) == (a == b)
    assert tagged(Tag.RELEASE, *a) != tagged(Tag.CHALLENGE, *b)


def test_no_tag_is_used_twice_or_begins_another() -> None:
    values = [str(tag) for tag in Tag]
    assert all(a == b or not a.startswith(b) for a in values for b in values)


# ── bodies ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"x",
        b"[]",
        b"1",
        b'"text"',
        b"null",
        b"\xff\xfe",
        b'{"a":1,"a":2}',
        b'{"a":NaN}',
        b"{" * 5000,
        b'{"a":1.5}',
    ],
    ids=str,
)
def test_what_is_not_one_json_object_has_its_own_code(raw: bytes) -> None:
    assert outcome(lambda: parse_object(raw, max_len=10_000)) == WireCode.BODY_NOT_JSON


def test_a_body_over_the_limit_is_not_parsed() -> None:
    assert outcome(lambda: parse_object(b" " * 101, max_len=100)) == WireCode.BODY_TOO_LARGE


def test_each_mistake_in_a_body_has_its_code() -> None:
    good = {"client_nonce": b64u(bytes(32))}
    assert outcome(lambda: ChallengeRequest.from_dict(good)) == "ok"
    assert outcome(lambda: ChallengeRequest.from_dict({})) == WireCode.BODY_FIELD_MISSING
    assert outcome(lambda: ChallengeRequest.from_dict(good | {"more": 1})) == WireCode.BODY_FIELD_UNKNOWN
    for bad in (None, 7, "", b64u(bytes(31)), b64u(bytes(33)), b64u(bytes(32)) + "=", "!" * 43, "A" * 42 + "B"):
        assert outcome(ChallengeRequest.from_dict, {"client_nonce": bad}) == WireCode.BODY_FIELD_INVALID


@pytest.mark.parametrize(
    "body",
    [
        AttestationRequest(evidence={"quote": "x"}, client_nonce=bytes(32)),
        VerificationRequest(quote=b"q", event_log=b"l", report_data=bytes(64), accept=("UpToDate",), nonce="n"),
        VerificationRequest(quote=b"q"),
        PutSecretRequest(value=b"v", labels=("pii",)),
        PutSecretRequest(),
        ReleaseRequest(nonce=bytes(32), version=3),
        ReceiveRequest(max_messages=2, wait_s=5, lease_s=60),
        AckRequest(ack=("a",), nak=(Nak(lease="b", delay_s=3),)),
        AckRequest(
            partly=(Partly(lease="c", but=(1, 9), delay_s=2, code="handler.failed"),),
            extend=(Extension(lease="d", lease_s=7),),
            reject=(Rejection(lease="e", code="message.malformed"),),
        ),
        RedriveRequest(numbers=(1, 2)),
        PageRequest(after=7, limit=3),
        Problem(status=404, code="secret.unknown", title="t", correlation_id="c", codes=("a", "b")),
    ],
    ids=lambda body: type(body).__name__,
)
def test_a_body_comes_back_as_it_was_sent(body: Any) -> None:
    assert type(body).from_dict(json.loads(json.dumps(body.to_dict()))) == body


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3),
    max_leaves=8,
)


@given(
    value=JSON, name=st.sampled_from(["client_nonce", "evidence", "quote", "value", "labels", "nonce", "ack", "nak"])
)
def test_any_json_is_a_body_or_a_body_error(value: object, name: str) -> None:
    for kind in (AttestationRequest, VerificationRequest, PutSecretRequest, ReleaseRequest, AckRequest, MailboxKey):
        for body in (value, {name: value}):
            result = outcome(kind.from_dict, body)
            assert result == "ok" or result.startswith("body.")


def test_a_token_of_another_kind_is_no_token() -> None:
    answer = {"token": "t", "audience": "a", "kind": "macaroon", "expires_at_s": 1, "receipt": {}}
    assert outcome(lambda: TokenResponse.from_dict(answer)) == WireCode.BODY_FIELD_INVALID
    assert outcome(lambda: TokenRequest.from_dict({"audience": "a", "kind": "macaroon"})) == WireCode.BODY_FIELD_INVALID
    assert TokenRequest.from_dict({"audience": "a"}).kind is TokenKind.EAR


def test_a_secret_value_is_not_in_the_repr_of_its_body() -> None:
    assert "hunter2" not in repr(PutSecretRequest(value=b"hunter2"))


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("acme/db", True),
        ("acme/a/b/c/d/e/f/g", True),
        ("acme", False),
        ("a/b/c/d/e/f/g/h/i", False),
        ("acme//db", False),
        ("acme/.hidden", False),
        ("acme/..", False),
        ("acme/db ", False),
        ("acme/dé", False),
        ("acme/db\n", False),
        ("acme/" + "x" * 65, False),
        ("/acme/db", False),
    ],
)
def test_a_resource_name_has_two_to_eight_plain_segments(name: str, good: bool) -> None:
    assert names.is_resource(name) is good


# ── releases ───────────────────────────────────────────────────────────────────────────────────────────────────────


def permit(**changes: Any) -> ReleasePermit:
    members: dict[str, Any] = {
        "broker_id": broker_id(LOG_RAW),
        "subject": "agent/acme/x",
        "jkt": thumbprint(OTHER.public_key()),
        "sealing_key": sealing_thumbprint("x25519", b"k" * 32),
        "suite": "x25519",
        "name": "acme/db/password",
        "version": 1,
        "labels": ("pii",),
        "policy": "00" * 32,
        "decision": bytes(32),
        "nonce": b"n" * 32,
        "issued_at_s": 1,
        "not_after_s": 61,
    }
    return ReleasePermit(**(members | changes))


def released(given_permit: ReleasePermit, key: ec.EllipticCurvePrivateKey = KEY) -> ReleaseResponse:
    return ReleaseResponse.sign(
        key, sealed=b"ciphertext", suite="x25519", permit=given_permit.to_bytes(), receipt=receipt()
    )


def check(response: ReleaseResponse) -> ReleasePermit:
    return response.verify(
        KEY.public_key(),
        broker_id=broker_id(LOG_RAW),
        jkt=thumbprint(OTHER.public_key()),
        sealing_key=sealing_thumbprint("x25519", b"k" * 32),
        name="acme/db/password",
        nonce=b"n" * 32,
    )


def test_a_release_for_this_request_is_accepted() -> None:
    sent = released(permit())
    assert check(ReleaseResponse.from_dict(json.loads(json.dumps(sent.to_dict())))) == permit()
    assert sent.context == permit_digest(permit().to_bytes())


@pytest.mark.parametrize(
    "changes",
    [
        {"broker_id": bytes(32)},
        {"jkt": "x" * 43},
        {"sealing_key": bytes(32)},
        {"suite": "mlkem768-x25519"},
        {"name": "acme/db/other"},
        {"nonce": bytes(32)},
    ],
    ids=str,
)
def test_a_release_for_another_request_is_refused_before_it_is_opened(changes: dict[str, Any]) -> None:
    assert outcome(lambda: check(released(permit(**changes)))) == WireCode.RELEASE_MISMATCH


def test_a_release_that_the_broker_did_not_sign_is_refused() -> None:
    good = released(permit())
    swapped = ReleaseResponse(
        sealed=b"other", suite=good.suite, permit=good.permit, signature=good.signature, receipt=good.receipt
    )
    assert outcome(lambda: check(swapped)) == WireCode.RELEASE_SIGNATURE
    assert outcome(lambda: check(released(permit(), key=OTHER))) == WireCode.RELEASE_SIGNATURE


# ── mailboxes ──────────────────────────────────────────────────────────────────────────────────────────────────────


def mailbox_key(key: ec.EllipticCurvePrivateKey = KEY) -> MailboxKey:
    return MailboxKey.sign(
        key,
        mailbox="acme/inbox",
        owner=f"agent/acme/{thumbprint(KEY.public_key())}",
        epoch=1,
        suite="x25519",
        key=b"k" * 32,
        incarnation=b"i" * 32,
        not_before_s=10,
        not_after_s=20,
    )


def test_a_mailbox_key_is_the_owners_or_refused() -> None:
    owner = mailbox_key().owner
    sent = MailboxKey.from_dict(json.loads(json.dumps(mailbox_key().to_dict())))
    sent.verify(KEY.public_key(), mailbox="acme/inbox", owner=owner, at_s=15)
    wrong = WireCode.MAILBOX_KEY_SIGNATURE
    by_other = mailbox_key(OTHER)
    assert outcome(lambda: by_other.verify(KEY.public_key(), mailbox="acme/inbox", owner=owner, at_s=15)) == wrong
    assert outcome(lambda: sent.verify(KEY.public_key(), mailbox="acme/other", owner=owner, at_s=15)) == wrong
    assert outcome(lambda: sent.verify(KEY.public_key(), mailbox="acme/inbox", owner=owner, at_s=21)) == wrong


def test_an_acceptance_is_about_one_envelope_one_mailbox_and_one_time() -> None:
    from broker.wire.jose import es256_sign

    sealed = Envelope.sign(KEY, header=header().to_bytes(), body=b"sealed")
    acceptance = es256_sign(KEY, Delivery.message("acme/inbox", sealed.digest, 5))
    good = Delivery(envelope=sealed, lease="l", attempt=1, accepted_at_ms=5, acceptance=acceptance)
    later = Delivery(envelope=sealed, lease="l", attempt=1, accepted_at_ms=6, acceptance=acceptance)
    assert Delivery.from_dict(good.to_dict()) == good
    assert good.accepted(KEY.public_key(), "acme/inbox")
    assert not good.accepted(KEY.public_key(), "acme/other")
    assert not good.accepted(OTHER.public_key(), "acme/inbox")
    assert not later.accepted(KEY.public_key(), "acme/inbox")


def test_every_code_is_explained() -> None:
    assert set(MEANING) == set(WireCode)
