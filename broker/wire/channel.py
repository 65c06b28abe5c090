"""Channels: one signed, sealed opening, and then batches of messages that cost a microsecond each to seal.

    channel   = SHA-256(tag, thumbprint of the sender's key, key), 16 bytes    nobody else can take the name
    chain     = SHA-256(tag, digest of the opening envelope)                   before the first batch
    chain     = SHA-256(the batch's bytes up to its signature)                 the chain before it is one of its fields
    signature = ES256(tag, channel, first number, last number, chain)          by the sender's identity key
    body_n    = AES-256-GCM(key, nonce = n as 96 bits, associated data = header_n)

The chain begins with the opening, which names sender and mailbox: a batch fits one channel, one place in it, and no
other mailbox. Who holds the batches can show a third party every message up to the last number, and a batch whose
tail was cut has no signature. Parsing wants the one canonical form. A header's numbers have fixed places, so that what
they come with (type, labels) is looked up instead of parsed again for each message. Whether a batch is fresh, follows
on what came before, and may be sent at all is for broker and receiver to decide.
"""

import hashlib
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import groupby
from typing import Final, NamedTuple, Self, TypeVar, final

from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf.message import DecodeError, Message

from broker.wire import canonical
from broker.wire import channel_pb2 as pb
from broker.wire.envelope import LABEL, MAX_BODY, MAX_HEADER, MAX_LABELS, MAX_LIFE_MS, MSG_ID_LEN, TYPE, Envelope
from broker.wire.errors import WireCode, WireError
from broker.wire.jose import ES256_SIGNATURE_LEN, es256_valid
from broker.wire.names import is_resource
from broker.wire.tags import Tag, tagged, u64

OPEN_TYPE: Final = "cloister.channel.open"
CHANNEL_LEN: Final = 16
KEY_LEN: Final = 32
HASH_LEN: Final = 32
TAG_LEN: Final = 16
MAX_OPENING_BODY: Final = 2048  # what a sealed opening needs, with room for another suite
MAX_SEQ: Final = 2**32
MAX_FRAMES: Final = 256  # in one batch
MAX_OUTSTANDING: Final = 1024  # messages that a sender has not heard of, and that a receiver has not settled
MAX_BATCH_BYTES: Final = (1 << 20) + MAX_BODY

_HEAD: Final = struct.Struct("<2s16sBQBQBQ")  # the protobuf fields 1 to 4 with their tags; fixed64 is little-endian
_PLACE_LEN: Final = 27  # of it: channel and number; what follows, most messages of a batch have in common
_new: Final = tuple.__new__  # a named tuple's own constructor takes three times as long
_TAGS: Final = (b"\x0a\x10", 0x11, 0x19, 0x21)
_HEADER, _BODY, _SIGNATURE = b"\x22", b"\x2a", b"\x32\x40"  # a batch's fields 4 to 6; the last one with its length
_SHAPES: Final = 4096
M = TypeVar("M", bound=Message)


def _bad(detail: str) -> WireError:
    return WireError(WireCode.CHANNEL_MALFORMED, detail)


def parsed(kind: type[M], raw: bytes, max_len: int) -> M:
    """The message, if `raw` is its canonical form. Raises WireError channel.malformed."""
    return canonical.parse(kind, raw, max_len=max_len, code=WireCode.CHANNEL_MALFORMED)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What the opening envelope's body says, to its receivers alone.

    `appraisal` and `policy` name the quote on which the sender was admitted, and the policy that did so: SHA-256 each.
    """

    channel: bytes
    key: bytes
    mailbox_key: bytes
    incarnation: bytes
    appraisal: bytes = b""
    policy: bytes = b""

    def __repr__(self) -> str:
        return f"Opening(channel={self.channel.hex()})"

    def to_bytes(self) -> bytes:
        message = pb.ChannelOpening(
            channel=self.channel,
            key=self.key,
            mailbox_key=self.mailbox_key,
            incarnation=self.incarnation,
            appraisal=self.appraisal,
            policy=self.policy,
        )
        return message.SerializeToString(deterministic=True)

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """Raises WireError: channel.malformed."""
        m = parsed(pb.ChannelOpening, raw, 256)
        lengths = (len(m.channel), len(m.key), len(m.mailbox_key), len(m.incarnation))
        if lengths != (CHANNEL_LEN, KEY_LEN, 32, 32) or {len(m.appraisal), len(m.policy)} - {0, HASH_LEN}:
            raise _bad("opening: a field of the wrong length")
        return cls(
            channel=m.channel,
            key=m.key,
            mailbox_key=m.mailbox_key,
            incarnation=m.incarnation,
            appraisal=m.appraisal,
            policy=m.policy,
        )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What the messages of a channel have in common more often than not. `raw` is how it stands in a header."""

    type: str
    labels: tuple[str, ...]
    label_set: frozenset[str]
    in_reply_to: bytes
    reply_to: str
    raw: bytes


def _checked(shape: Shape) -> Shape:
    checks = (
        (TYPE.fullmatch(shape.type) and shape.type != OPEN_TYPE, "type"),
        (len(shape.labels) <= MAX_LABELS and all(map(LABEL.fullmatch, shape.labels)), "labels"),
        (list(shape.labels) == sorted(set(shape.labels)), "labels not sorted, or twice"),
        (len(shape.in_reply_to) in (0, MSG_ID_LEN), "in_reply_to"),
        (not shape.reply_to or is_resource(shape.reply_to), "reply_to"),
        (_HEAD.size + len(shape.raw) <= MAX_HEADER, "too long"),
    )
    for ok, what in checks:
        if not ok:
            raise _bad(f"frame header: {what}")
    return shape


@lru_cache(_SHAPES)
def shape_of(type_: str, labels: tuple[str, ...], in_reply_to: bytes = b"", reply_to: str = "") -> Shape:
    """Raises WireError: channel.malformed."""
    message = pb.FrameHeader(type=type_, labels=labels, in_reply_to=in_reply_to, reply_to=reply_to)
    raw = message.SerializeToString(deterministic=True)
    return _checked(
        Shape(
            type=type_,
            labels=labels,
            label_set=frozenset(labels),
            in_reply_to=in_reply_to,
            reply_to=reply_to,
            raw=raw,
        )
    )


@lru_cache(_SHAPES)
def _shape_from(raw: bytes) -> Shape:
    m = parsed(pb.FrameHeader, raw, MAX_HEADER)
    if m.channel or m.seq or m.sent_at_ms or m.expires_at_ms:
        raise _bad("frame header has fields twice")
    return _checked(
        Shape(
            type=m.type,
            labels=tuple(m.labels),
            label_set=frozenset(m.labels),
            in_reply_to=m.in_reply_to,
            reply_to=m.reply_to,
            raw=raw,
        )
    )


class FrameHeader(NamedTuple):
    """What the broker may know about one message. A tuple, because thousands are made each second."""

    channel: bytes
    seq: int
    sent_at_ms: int
    expires_at_ms: int
    shape: Shape

    def to_bytes(self) -> bytes:
        """The numbers must have been checked: `from_bytes` takes only those within bounds."""
        one, two, three, four = _TAGS
        head = _HEAD.pack(one, self.channel, two, self.seq, three, self.sent_at_ms, four, self.expires_at_ms)
        return head + self.shape.raw

    def at(self, seq: int) -> "FrameHeader":
        """The same under another number."""
        channel, _, sent_at_ms, expires_at_ms, shape = self
        return _new(FrameHeader, (channel, seq, sent_at_ms, expires_at_ms, shape))

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """Raises WireError: channel.malformed."""
        if len(raw) < _HEAD.size:
            raise _bad(f"frame header of {len(raw)} bytes")
        one, channel, two, seq, three, sent_at_ms, four, expires_at_ms = _HEAD.unpack_from(raw)
        if (one, two, three, four) != _TAGS:
            raise _bad("frame header is not in canonical form")
        if not 0 < seq <= MAX_SEQ or not 0 < sent_at_ms < expires_at_ms <= sent_at_ms + MAX_LIFE_MS < 2**53:
            raise _bad("frame header: seq, sent_at_ms, expires_at_ms")
        return cls(channel, seq, sent_at_ms, expires_at_ms, _shape_from(raw[_HEAD.size :]))

    @property
    def msg_id(self) -> bytes:
        return frame_id(self.channel, self.seq)


def renumbered(header: bytes, seq: int) -> bytes:
    """A header's bytes under another number."""
    return header[: _PLACE_LEN - 8] + seq.to_bytes(8, "little") + header[_PLACE_LEN:]


def frame_id(channel: bytes, seq: int) -> bytes:
    """The id of a message on a channel: half of the channel's name, and the number. Answers refer to it."""
    return channel[:8] + seq.to_bytes(8, "big")


def nonce(seq: int) -> bytes:
    """AES-GCM's nonce for a number of a channel: 96 bits, big-endian."""
    return seq.to_bytes(12, "big")


def channel_name(sender_jkt: str, key: bytes) -> bytes:
    """What the channel of that sender under that key is called. Readers of a topic learn both, and can call no channel
    of their own so."""
    return hashlib.sha256(tagged(Tag.CHANNEL_NAME, sender_jkt.encode(), key)).digest()[:CHANNEL_LEN]


def chain_start(opening: Envelope) -> bytes:
    """The chain before the first message of the channel that this envelope opens."""
    return hashlib.sha256(tagged(Tag.CHANNEL_CHAIN, opening.digest)).digest()


def batch_message(channel: bytes, first_seq: int, last_seq: int, chain: bytes) -> bytes:
    """What the sender signs at the end of a batch."""
    return tagged(Tag.CHANNEL_BATCH, channel, u64(first_seq), u64(last_seq), chain)


@final
@dataclass(frozen=True, kw_only=True)  # without slots: the chain is computed once and kept
class ChannelBatch:
    """Frames `first_seq` to `last_seq` of a channel, and the sender's signature that there are no fewer."""

    channel: bytes
    first_seq: int
    prev_chain: bytes
    headers: tuple[bytes, ...]
    bodies: tuple[bytes, ...]
    signature: bytes = b""

    def __len__(self) -> int:
        return len(self.headers)

    @property
    def last_seq(self) -> int:
        return self.first_seq + len(self.headers) - 1

    @cached_property
    def unsigned(self) -> bytes:
        """The bytes up to the signature. Put together here: of so many small fields that is much faster."""
        head = b"\x0a\x10" + self.channel + b"\x10" + _varint(self.first_seq) + b"\x1a\x20" + self.prev_chain
        return head + _repeated(_HEADER, self.headers) + _repeated(_BODY, self.bodies)

    @cached_property
    def chain(self) -> bytes:
        """The chain after this batch."""
        return hashlib.sha256(self.unsigned).digest()

    @cached_property
    def message(self) -> bytes:
        return batch_message(self.channel, self.first_seq, self.last_seq, self.chain)

    @property
    def digest(self) -> bytes:
        """SHA-256 that names exactly these messages: what an acceptance is about, how a resend is recognised."""
        return hashlib.sha256(self.message).digest()

    @property
    def msg_id(self) -> bytes:
        """The first message's: what the batch is called in a queue."""
        return frame_id(self.channel, self.first_seq)

    def verify(self, key: ec.EllipticCurvePublicKey) -> None:
        """Raises WireError: channel.signature_invalid."""
        if not es256_valid(key, self.signature, self.message):
            raise WireError(WireCode.CHANNEL_SIGNATURE, "not signed by the sender's identity key, or cut")

    def frames(self) -> list[FrameHeader]:
        """The headers, each of this channel and in its place. Raises WireError: channel.malformed."""
        return [kind.at(seq) for seq, kind in enumerate(self.said(), start=self.first_seq)]

    def said(self) -> list[FrameHeader]:
        """As `frames`, but for each the first of those that differ in nothing but their number."""
        kinds = self._kinds
        return [kinds[raw[_PLACE_LEN:]] for raw in self.headers]

    def kinds(self) -> list[FrameHeader]:
        """As `said`, each once."""
        return list(self._kinds.values())

    @cached_property
    def _kinds(self) -> dict[bytes, FrameHeader]:
        """By what stands after the number. Most batches have one or two, so each is read once."""
        if not 0 < self.first_seq <= self.last_seq <= MAX_SEQ:
            raise _bad(f"frames {self.first_seq} to {self.last_seq}")
        channel, numbers = b"\x0a\x10" + self.channel + b"\x11", range(self.first_seq, self.last_seq + 1)
        if [raw[:_PLACE_LEN] for raw in self.headers] != [channel + seq.to_bytes(8, "little") for seq in numbers]:
            raise _bad(f"another header in the place of one of {self.channel.hex()}")
        first = {raw[_PLACE_LEN:]: raw for raw in reversed(self.headers)}
        return {said: FrameHeader.from_bytes(raw) for said, raw in first.items()}

    def signed(self, sign: Callable[[bytes], bytes]) -> bytes:
        """The bytes of the batch with the signature that `sign` makes of its message."""
        return b"".join((self.unsigned, _SIGNATURE, sign(self.message)))

    def to_bytes(self) -> bytes:
        return b"".join((self.unsigned, _SIGNATURE, self.signature))

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """Raises WireError: channel.malformed."""
        if len(raw) > MAX_BATCH_BYTES:
            raise _bad(f"batch of {len(raw)} bytes, at most {MAX_BATCH_BYTES}")
        m = _batch(raw)
        lengths = (len(m.channel), len(m.prev_chain), len(m.signature))
        if lengths != (CHANNEL_LEN, HASH_LEN, ES256_SIGNATURE_LEN):
            raise _bad("batch: a field of the wrong length")
        headers, bodies = tuple(m.headers), tuple(m.bodies)
        if not 0 < len(headers) == len(bodies) <= MAX_FRAMES:
            raise _bad(f"batch: {len(headers)} headers, {len(bodies)} bodies, at most {MAX_FRAMES}")
        sizes = set(map(len, bodies))
        if not 0 < m.first_seq <= MAX_SEQ or min(sizes) < TAG_LEN or max(sizes) > MAX_BODY:
            raise _bad("batch: first_seq, or the length of a body")
        batch = cls(
            channel=m.channel,
            first_seq=m.first_seq,
            prev_chain=m.prev_chain,
            headers=headers,
            bodies=bodies,
            signature=m.signature,
        )
        if not raw.startswith(batch.unsigned) or raw[len(batch.unsigned) :] != _SIGNATURE + batch.signature:
            raise _bad("batch is not in canonical form, or has fields that version 1 does not know")
        return batch


def _batch(raw: bytes) -> pb.ChannelBatch:
    message = pb.ChannelBatch()
    try:
        message.ParseFromString(raw)
    except DecodeError:
        raise _bad("batch is not protobuf") from None
    return message


@lru_cache(_SHAPES)
def _varint(number: int) -> bytes:
    """Protobuf's form of a number: 7 bits a byte, lowest first, the highest bit set on all but the last."""
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


def _repeated(field: bytes, values: Sequence[bytes]) -> bytes:
    """A repeated field: its tag and a length before each value. Most that stand together are of one length."""
    parts = []
    for size, run in groupby(values, len):
        head = field + _varint(size)
        parts.append(head + head.join(run))
    return b"".join(parts)


def channel_of(batch: bytes) -> bytes:
    """The channel that a batch names, of the bytes of one that was parsed before: its first field."""
    return batch[2 : 2 + CHANNEL_LEN]


def labels_of(batch: bytes) -> frozenset[str]:
    """The labels of all messages of a batch that was taken in, each shape of header read once.

    Raises WireError: channel.malformed.
    """
    shapes = {header[_HEAD.size :] for header in _batch(batch).headers}
    return frozenset(label for shape in shapes for label in _shape_from(shape).labels)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelSend:
    """A batch, with the envelope that opens its channel when the broker may not know it."""

    batch: bytes
    opening: bytes = b""

    @staticmethod
    def looks(raw: bytes) -> bool:
        """Whether a body can be one of these at all, rather than a batch of envelopes."""
        return raw[:1] in (b"\x12", b"\x1a")

    def to_bytes(self) -> bytes:
        return pb.ChannelSend(opening=self.opening, batch=self.batch).SerializeToString(deterministic=True)

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """Raises WireError: channel.malformed."""
        m = parsed(pb.ChannelSend, raw, MAX_BATCH_BYTES + MAX_HEADER + MAX_OPENING_BODY + 256)
        return cls(batch=m.batch, opening=m.opening)
