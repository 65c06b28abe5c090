"""Channels: what is sealed once opens once, in order, whole, and for nobody else."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.verdict import sign_admission
from broker.wire import channel_pb2 as pb
from broker.wire.bodies import peer_audience
from broker.wire.channel import (
    MAX_FRAMES,
    MAX_OUTSTANDING,
    MAX_SEQ,
    ChannelBatch,
    ChannelSend,
    FrameHeader,
    Opening,
    chain_start,
    nonce,
    renumbered,
    shape_of,
)
from broker.wire.envelope import Envelope
from broker.wire.errors import WireCode, WireError
from broker.wire.jose import es256_sign
from broker.wire.mailbox import Delivery
from enclave.channel import Outgoing, ReceivingChannels
from enclave.errors import Code, EnclaveError
from enclave.mailbox import MAX_PLAINTEXT
from tests.channel_pair import Pair, code_of
from tests.test_enclave_mailbox import ISSUER, NOW, NOW_S, party

ROOT = Path(__file__).resolve().parent.parent
CHANNEL = bytes(range(16))
BOX = "lab/inbox/b"


PAIR = Pair()  # for tests that change nothing in it
REFUSED = PAIR.seal(b"one", b"two" * 100, b"three")


# ── the form on the wire ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["channel", "stream"])
def test_the_committed_stubs_are_what_the_generator_writes(tmp_path: Path, name: str) -> None:
    protoc = pytest.importorskip("grpc_tools.protoc")
    arguments = ["protoc", f"-I{ROOT}", f"--python_out={tmp_path}", f"--pyi_out={tmp_path}"]
    assert protoc.main([*arguments, str(ROOT / f"broker/wire/{name}.proto")]) == 0
    for file in (f"broker/wire/{name}_pb2.py", f"broker/wire/{name}_pb2.pyi"):
        assert (ROOT / file).read_text() == (tmp_path / file).read_text(), file


@given(
    seq=st.integers(1, MAX_SEQ),
    sent=st.integers(1, 2**52),
    life=st.integers(1, 10**8),
    labels=st.sets(st.sampled_from(["pii", "secret", "top"])),
    reply=st.sampled_from([b"", bytes(16)]),
)
@settings(max_examples=50, deadline=None)
def test_a_frame_header_with_fixed_places_is_the_protobuf_of_the_schema(
    seq: int, sent: int, life: int, labels: set[str], reply: bytes
) -> None:
    shape = shape_of("note", tuple(sorted(labels)), reply, "acme/mail/a")
    header = FrameHeader(CHANNEL, seq, sent, sent + life, shape)
    message = pb.FrameHeader(
        channel=CHANNEL,
        seq=seq,
        sent_at_ms=sent,
        expires_at_ms=sent + life,
        type="note",
        labels=sorted(labels),
        in_reply_to=reply,
        reply_to="acme/mail/a",
    )
    assert header.to_bytes() == message.SerializeToString(deterministic=True)
    assert FrameHeader.from_bytes(header.to_bytes()) == header


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.ClearField("seq"),
        lambda m: setattr(m, "seq", MAX_SEQ + 1),
        lambda m: setattr(m, "channel", b"short"),
        lambda m: setattr(m, "expires_at_ms", m.sent_at_ms),
        lambda m: setattr(m, "expires_at_ms", m.sent_at_ms + 5 * 24 * 3600 * 1000),
        lambda m: setattr(m, "type", ""),
        lambda m: setattr(m, "type", "cloister.channel.open"),
        lambda m: m.labels.extend(["b", "a"]),
        lambda m: m.labels.extend(["a", "a"]),
        lambda m: setattr(m, "in_reply_to", b"short"),
        lambda m: setattr(m, "reply_to", "x"),
    ],
)
def test_a_frame_header_out_of_bounds_is_malformed(change: Callable[[pb.FrameHeader], None]) -> None:
    message = pb.FrameHeader(channel=CHANNEL, seq=1, sent_at_ms=1, expires_at_ms=2, type="note")
    change(message)
    raw = message.SerializeToString(deterministic=True)
    assert code_of(lambda: FrameHeader.from_bytes(raw)) == WireCode.CHANNEL_MALFORMED


def test_no_field_comes_twice_or_unknown() -> None:
    raw = FrameHeader(CHANNEL, 1, 1, 2, shape_of("note", ())).to_bytes()
    for more in (pb.FrameHeader(seq=9).SerializeToString(), pb.FrameHeader(type="x").SerializeToString(), b"\x7a\x01x"):
        assert code_of(partial(FrameHeader.from_bytes, raw + more)) == WireCode.CHANNEL_MALFORMED
    for kind, good in ((ChannelBatch, REFUSED.raw), (ChannelSend, ChannelSend(batch=REFUSED.raw).to_bytes())):
        assert code_of(partial(kind.from_bytes, good + b"\x7a\x01x")) == WireCode.CHANNEL_MALFORMED


@given(raw=st.binary(max_size=300))
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_a_value_or_malformed(raw: bytes) -> None:
    for parse in (FrameHeader.from_bytes, ChannelBatch.from_bytes, ChannelSend.from_bytes, Opening.from_bytes):
        assert code_of(partial(parse, raw)) in ("ok", WireCode.CHANNEL_MALFORMED)


def test_what_was_sent_comes_back_as_it_was() -> None:
    assert ChannelBatch.from_bytes(REFUSED.raw).to_bytes() == REFUSED.raw
    sent = ChannelSend(batch=REFUSED.raw, opening=PAIR.channel.opening)
    assert ChannelSend.from_bytes(sent.to_bytes()) == sent


@given(
    first_seq=st.integers(1, MAX_SEQ),
    sizes=st.lists(st.tuples(st.integers(0, 300), st.integers(16, 300)), min_size=1, max_size=6),
)
@settings(max_examples=50, deadline=None)
def test_a_batch_that_is_put_together_by_hand_is_the_protobuf_of_the_schema(
    first_seq: int, sizes: list[tuple[int, int]]
) -> None:
    headers, bodies = tuple(bytes(size) for size, _ in sizes), tuple(os.urandom(size) for _, size in sizes)
    fields: dict[str, Any] = {"channel": CHANNEL, "first_seq": first_seq, "prev_chain": bytes(32)}
    fields |= {"headers": headers, "bodies": bodies, "signature": bytes(64)}
    message, batch = pb.ChannelBatch(**fields), ChannelBatch(**fields)
    assert batch.to_bytes() == message.SerializeToString(deterministic=True)
    assert ChannelBatch.from_bytes(batch.to_bytes()) == batch
    assert replace(batch, signature=b"").signed(lambda _: bytes(64)) == batch.to_bytes()


def test_a_batch_in_another_form_is_malformed_though_protobuf_would_take_it() -> None:
    batch = ChannelBatch.from_bytes(REFUSED.raw)
    named, rest = REFUSED.raw[:18], REFUSED.raw[18:]
    longer_number = rest[:1] + b"\x81\x00" + rest[2:]
    assert (named, rest[:2]) == (b"\x0a\x10" + batch.channel, b"\x10\x01")
    for form in (rest + named, named + named + rest, named + longer_number, REFUSED.raw + REFUSED.raw[-66:]):
        assert pb.ChannelBatch.FromString(form) == pb.ChannelBatch.FromString(REFUSED.raw)
        assert code_of(partial(ChannelBatch.from_bytes, form)) == WireCode.CHANNEL_MALFORMED


def test_the_chain_is_over_a_batch_as_it_was_sent_up_to_its_signature() -> None:
    pair = Pair()
    first, second = pair.seal(b"one", b"two").raw, pair.seal(b"three").raw
    batch = ChannelBatch.from_bytes(second)
    assert batch.prev_chain == hashlib.sha256(first[:-66]).digest()
    assert batch.chain == hashlib.sha256(second[:-66]).digest()


# ── from one end to the other ──────────────────────────────────────────────────────────────────────────────────────


@given(sizes=st.lists(st.integers(0, 5000), min_size=1, max_size=8))
@settings(max_examples=20, deadline=None)
def test_messages_arrive_in_order_and_unchanged(sizes: list[int]) -> None:
    pair = Pair()
    texts = [os.urandom(size) for size in sizes]
    first = pair.seal(*texts, labels=frozenset({"pii"}), reply_to="lab/mail/a")
    second = pair.seal(b"last")
    opened = pair.open(first.raw)
    assert pair.texts(opened) == texts
    assert [frame.header.msg_id for frame in opened.frames] == first.msg_ids
    assert {frame.header.shape.labels for frame in opened.frames} == {("pii",)}
    assert opened.frames[0].sender.subject == pair.a.verdict.subject
    assert pair.texts(pair.open(second.raw)) == [b"last"]


_SAID = st.tuples(st.sampled_from(["note", "task"]), st.frozensets(st.sampled_from(["eu", "pii"])), st.integers(1, 3))


@given(said=st.lists(_SAID, min_size=1, max_size=12))
@settings(max_examples=30, deadline=None)
def test_headers_are_what_reading_each_of_them_gives_and_kinds_are_the_first_of_those_that_say_the_same(
    said: list[tuple[str, frozenset[str], int]],
) -> None:
    pair = Pair()
    channel = pair.opened(pair.a)
    outgoing = [Outgoing(kind=kind, plaintext=b"", labels=labels, ttl_s=ttl_s) for kind, labels, ttl_s in said]
    channel.seal([Outgoing(kind="note", plaintext=b"before")])
    batch = ChannelBatch.from_bytes(channel.seal(outgoing).raw)
    headers = [FrameHeader.from_bytes(raw) for raw in batch.headers]
    assert batch.frames() == headers
    assert [type(header) for header in batch.frames()] == [FrameHeader] * len(said)
    assert [header.to_bytes() for header in headers] == list(batch.headers)
    assert [(one.shape.type, one.shape.label_set) for one in headers] == [(kind, labels) for kind, labels, _ in said]
    first = {header[2:]: header for header in reversed(headers)}
    assert {header.seq: header for header in batch.kinds()} == {header.seq: header for header in first.values()}


@pytest.mark.parametrize(
    "change",
    [
        lambda headers: (headers[1], headers[0]),
        lambda headers: (headers[0], headers[0]),
        lambda headers: (renumbered(headers[0], 7), headers[1]),
        lambda headers: (bytes([*headers[0][:2], headers[0][2] ^ 1, *headers[0][3:]]), headers[1]),
        lambda headers: (headers[0], headers[1][:20]),
        lambda headers: (headers[0], b""),
    ],
    ids=["swapped", "twice", "another number", "another channel", "cut", "empty"],
)
def test_a_header_in_a_place_that_is_not_its_own_is_malformed(
    change: Callable[[tuple[bytes, ...]], tuple[bytes, ...]],
) -> None:
    pair = Pair()
    batch = ChannelBatch.from_bytes(pair.opened(pair.a).seal([Outgoing(kind="note", plaintext=b"")] * 2).raw)
    changed = replace(batch, headers=change(batch.headers))
    for read in (changed.frames, changed.kinds):
        assert code_of(read) == WireCode.CHANNEL_MALFORMED


@pytest.mark.parametrize("first_seq", [-1, 0, MAX_SEQ, 2**64])
def test_numbers_beyond_the_bounds_are_malformed(first_seq: int) -> None:
    pair = Pair()
    batch = ChannelBatch.from_bytes(pair.opened(pair.a).seal([Outgoing(kind="note", plaintext=b"")] * 2).raw)
    assert code_of(replace(batch, first_seq=first_seq).frames) == WireCode.CHANNEL_MALFORMED


def test_a_length_shows_only_its_highest_bits() -> None:
    pair = Pair()
    batch = ChannelBatch.from_bytes(pair.seal(b"", b"x" * 252, b"x" * 253, b"x" * 1024, b"x" * 1030).raw)
    assert [len(body) - 16 for body in batch.bodies] == [256, 256, 272, 1088, 1088]
    assert code_of(lambda: pair.seal(bytes(MAX_PLAINTEXT + 1))) == Code.ENVELOPE_TOO_LARGE


def test_what_could_not_be_sealed_used_no_number() -> None:
    pair = Pair()
    assert code_of(lambda: pair.seal(b"good", bytes(MAX_PLAINTEXT + 1))) == Code.ENVELOPE_TOO_LARGE
    assert code_of(lambda: pair.channel.seal([Outgoing(kind="", plaintext=b"")])) == WireCode.CHANNEL_MALFORMED
    assert code_of(lambda: pair.channel.seal([])) == WireCode.CHANNEL_MALFORMED
    assert pair.seal(b"first").first_seq == 1


# ── what a router or another agent could try ───────────────────────────────────────────────────────────────────────


@given(bit=st.integers(0, len(REFUSED.raw) * 8 - 1))
@settings(max_examples=150, deadline=None)
def test_no_bit_of_a_batch_can_be_changed(bit: int) -> None:
    raw = bytearray(REFUSED.raw)
    raw[bit // 8] ^= 1 << bit % 8
    try:
        opened = PAIR.open(bytes(raw))
    except (EnclaveError, WireError):
        return
    pytest.fail(f"bit {bit} was changed and {opened} came out")


def test_every_kind_of_tampering_has_its_code() -> None:
    pair = Pair()
    batch = ChannelBatch.from_bytes(pair.seal(b"one", b"two", b"three").raw)
    cut = replace(batch, headers=batch.headers[:2], bodies=batch.bodies[:2])
    swapped = replace(batch, bodies=(batch.bodies[1], batch.bodies[0], batch.bodies[2]))
    exchanged = replace(batch, headers=(batch.headers[1], batch.headers[0], batch.headers[2]))
    other_start = replace(batch, prev_chain=bytes(32))
    for changed, code in (
        (cut, WireCode.CHANNEL_SIGNATURE),
        (swapped, WireCode.CHANNEL_SIGNATURE),
        (exchanged, WireCode.CHANNEL_MALFORMED),
        (other_start, Code.CHANNEL_CHAIN),
        (replace(batch, channel=bytes(16)), Code.CHANNEL_UNOPENED),
        (replace(batch, first_seq=2), WireCode.CHANNEL_MALFORMED),
        (replace(batch, signature=bytes(64)), WireCode.CHANNEL_SIGNATURE),
    ):
        assert pair.code(changed.to_bytes()) == code
    assert pair.texts(pair.open(batch.to_bytes())) == [b"one", b"two", b"three"]


def test_neither_broker_nor_receiver_can_make_a_batch() -> None:
    """The receiver knows the key of the channel; without the sender's signature that is worth nothing."""
    pair = Pair()
    batch = ChannelBatch.from_bytes(pair.seal(b"good").raw)
    for forger in (pair.router.identity,):
        forged = replace(batch, signature=es256_sign(forger, batch.message))
        assert pair.code(forged.to_bytes()) == WireCode.CHANNEL_SIGNATURE
    forged = replace(batch, signature=pair.b.keys.sign(batch.message))
    assert pair.code(forged.to_bytes()) == WireCode.CHANNEL_SIGNATURE


def resigned(pair: Pair, batch: ChannelBatch, **changes: object) -> bytes:
    """The batch as its own sender would have signed it."""
    changed = replace(batch, **changes)  # type: ignore[arg-type]
    return replace(changed, signature=pair.a.keys.sign(changed.message)).to_bytes()


def test_what_the_sender_signed_must_decrypt_and_be_padded_as_ours_is() -> None:
    pair = Pair()
    batch = ChannelBatch.from_bytes(pair.seal(b"one", b"two").raw)
    swapped = resigned(pair, batch, bodies=batch.bodies[::-1])
    assert pair.code(swapped) == Code.CHANNEL_BODY
    assert pair.channel._cipher is not None
    for plaintext in (b"", b"\0\0\0\x05x", b"\0\0\0\x01x".ljust(256, b"\1"), b"\0\0\0\x01x".ljust(512, b"\0")):
        body = pair.channel._cipher.encrypt(nonce(1), plaintext, batch.headers[0])
        assert pair.code(resigned(pair, batch, bodies=(body, batch.bodies[1]))) == WireCode.CHANNEL_MALFORMED
    assert pair.texts(pair.open(batch.to_bytes())) == [b"one", b"two"]


def test_a_batch_is_handed_out_once() -> None:
    pair = Pair()
    raw = pair.seal(b"one", b"two").raw
    (one, two) = pair.open(raw).frames
    again = pair.open(raw)
    assert (again.frames, again.settled) == ((), False)
    pair.channels.done(one.header.channel, 1)
    pair.channels.done(one.header.channel, 2)
    over = pair.open(raw)
    assert (over.frames, over.settled) == ((), True)
    assert two.plaintext == b"two"


def test_only_what_failed_is_handed_out_again() -> None:
    pair = Pair()
    raw = pair.seal(b"one", b"two", b"three").raw
    pair.open(raw)
    pair.channels.done(pair.channel.channel, 1)
    pair.channels.again(pair.channel.channel, 2)
    assert pair.texts(pair.open(raw)) == [b"two"]
    assert pair.texts(pair.open(raw)) == []
    for seq in (2, 3):
        pair.channels.done(pair.channel.channel, seq)
    assert pair.open(raw).settled


def test_a_batch_that_was_passed_over_is_refused_as_reordered() -> None:
    pair = Pair()
    first, second, third = pair.seal(b"1"), pair.seal(b"2", b"3"), pair.seal(b"4")
    assert pair.texts(pair.open(first.raw)) == [b"1"]
    late = pair.open(third.raw)
    assert (late.skipped, pair.texts(late)) == ((2, 3), [b"4"])
    assert pair.code(second.raw) == Code.CHANNEL_REORDERED


def test_batches_of_another_channel_or_mailbox_do_not_fit() -> None:
    pair = Pair()
    other = pair.opened(pair.a)
    assert pair.admit(other) == "ok"
    moved = ChannelBatch.from_bytes(other.seal([Outgoing(kind="note", plaintext=b"x")]).raw)
    assert pair.code(replace(moved, channel=pair.channel.channel).to_bytes()) == Code.CHANNEL_CHAIN
    joined = replace(
        moved, channel=pair.channel.channel, prev_chain=chain_start(Envelope.from_bytes(pair.channel.opening))
    )
    assert pair.code(joined.to_bytes()) == WireCode.CHANNEL_MALFORMED
    good = pair.seal(b"one")
    at_ms, digest = NOW_S * 1000, ChannelBatch.from_bytes(good.raw).digest
    elsewhere = es256_sign(pair.router.identity, Delivery.message("lab/inbox/c", digest, at_ms))
    opening = pair.channels.open
    refused = code_of(lambda: opening(good.raw, at_ms, elsewhere, pair.senders(), pair.router.broker))
    assert refused == Code.ENVELOPE_ACCEPTANCE


def test_an_opening_for_another_mailbox_or_start_is_refused() -> None:
    pair = Pair()
    c = party(pair.router, "c")
    assert pair.admit(pair.opened(pair.a, to=c)) == Code.ENVELOPE_WRONG_MAILBOX
    restarted = party(pair.router, "b")
    delivery = pair.router.accept(Envelope.from_bytes(pair.channel.opening), BOX)
    channels = ReceivingChannels(restarted.inbox, restarted.inbox._time)
    refused = code_of(lambda: channels.admit(delivery, pair.senders(), pair.router.broker))
    assert refused == Code.ENVELOPE_INCARNATION
    assert code_of(lambda: channels.admit(delivery, {}, pair.router.broker)) == Code.ENVELOPE_SENDER


def test_the_same_opening_again_changes_nothing() -> None:
    pair = Pair()
    raw = pair.seal(b"one").raw
    pair.open(raw)
    assert pair.admit(pair.channel) == "ok"
    assert pair.texts(pair.open(raw)) == []


def test_a_name_of_another_senders_channel_is_refused() -> None:
    """An opening that names a channel that is there: nobody can take over another's numbers."""
    pair = Pair()
    mallory = party(pair.router, "m")
    inside = Opening(
        channel=pair.channel.channel,
        key=bytes(32),
        mailbox_key=pair.b.key.thumbprint,
        incarnation=pair.b.key.incarnation,
    )
    forged = mallory.outbox.seal(
        pair.b.info(),
        mailbox=BOX,
        admission=mallory.admission,
        kind="cloister.channel.open",
        plaintext=inside.to_bytes(),
    )
    delivery = pair.router.accept(forged, BOX)
    refused = code_of(lambda: pair.channels.admit(delivery, pair.senders(mallory), pair.router.broker))
    assert refused == Code.CHANNEL_OPENING
    assert pair.texts(pair.open(pair.seal(b"still his").raw)) == [b"still his"]


def test_who_knows_a_channel_cannot_take_its_name_before_its_sender_came() -> None:
    """A reader of a topic knows name and key of all that is published there: shown to others first, an opening of his
    under that name would keep out its owner's."""
    pair = Pair()
    mallory, owned = party(pair.router, "m"), pair.opened(pair.a)
    shown = pair.router.accept(Envelope.from_bytes(owned.opening), BOX)
    known = pair.b.inbox.open(shown, pair.senders(), pair.router.broker, way="known opening")
    taken = mallory.outbox.seal(
        pair.b.info(),
        mailbox=BOX,
        admission=mallory.admission,
        kind="cloister.channel.open",
        plaintext=known.plaintext,
    )
    delivery = pair.router.accept(taken, BOX)
    refused = code_of(lambda: pair.channels.admit(delivery, pair.senders(mallory), pair.router.broker))
    assert refused == Code.CHANNEL_OPENING
    assert pair.admit(owned) == "ok"
    pair.channel = owned
    assert pair.texts(pair.open(pair.seal(b"his own").raw)) == [b"his own"]


def test_a_moment_of_acceptance_that_is_no_date_is_refused_like_any_other_lie() -> None:
    pair = Pair()
    delivery = pair.router.accept(Envelope.from_bytes(pair.opened(pair.a).opening), BOX)
    lie = replace(delivery, accepted_at_ms=2**63, sender_token=pair.a.token)
    assert code_of(lambda: pair.channels.admit(lie, {}, pair.router.broker)) == Code.ENVELOPE_ACCEPTANCE


def test_a_sender_whose_admission_ended_is_not_heard_until_the_broker_says_that_it_was_renewed() -> None:
    pair = Pair()
    pair.b.ticks.now = 400.0  # its token of 300 s has ended
    raw = pair.seal(b"one").raw
    assert pair.code(raw) == "token.expired"
    mallory = party(pair.router, "m")
    senders = {pair.a.verdict.subject: pair.router.token_for(mallory.verdict)}
    at_ms = NOW_S * 1000
    acceptance = es256_sign(pair.router.identity, Delivery.message(BOX, ChannelBatch.from_bytes(raw).digest, at_ms))
    opening = pair.channels.open
    refused = code_of(lambda: opening(raw, at_ms, acceptance, senders, pair.router.broker))
    assert refused == "token.expired"
    renewed = sign_admission(
        pair.a.verdict,
        key=pair.router.token,
        kid="one",
        issuer=ISSUER,
        audience=peer_audience(ISSUER),
        at=NOW + timedelta(seconds=390),
        ttl_s=300,
        policy_digest="00" * 32,
        jti="two",
    )
    senders = {pair.a.verdict.subject: renewed}
    assert pair.texts(opening(raw, at_ms, acceptance, senders, pair.router.broker)) == [b"one"]


def test_expired_messages_are_left_out_and_the_rest_is_handed_out() -> None:
    pair = Pair()
    batch = pair.channel.seal(
        [Outgoing(kind="note", plaintext=b"brief", ttl_s=1), Outgoing(kind="note", plaintext=b"long")]
    )
    pair.b.ticks.now = 2.0
    assert pair.texts(pair.open(batch.raw)) == [b"long"]
    early = Pair()
    early.a.ticks.now = 60.0
    assert early.code(early.seal(b"x").raw) == Code.ENVELOPE_FUTURE


def test_no_more_than_the_window_is_outstanding() -> None:
    pair = Pair()
    refused = ""
    for _ in range(2 + MAX_OUTSTANDING // MAX_FRAMES):
        refused = pair.code(pair.seal(*[b""] * MAX_FRAMES).raw)
    assert refused == Code.CHANNEL_OUTSTANDING
