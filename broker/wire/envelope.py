"""Envelopes: a signed header, a sealed body, and nothing that a router could read or change unseen.

    signature = ES256(tag, SHA-384(header), SHA-384(body))     by the sender's identity key
    HPKE info = tag, SHA-384(header)                           so a ciphertext fits one header, hence one sender
                                                               and one mailbox

Parsing wants the canonical serialisation, so that no two readers can see two messages in the same bytes. Whether the
sender is who the header says, and whether anything is fresh, is for broker and receiver to decide.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Self, TypeVar, final

from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf.message import Message

from broker.wire import canonical
from broker.wire import envelope_pb2 as pb
from broker.wire.errors import WireCode, WireError
from broker.wire.jose import ES256_SIGNATURE_LEN, es256_sign, es256_valid
from broker.wire.names import LABEL as LABEL
from broker.wire.names import SUBJECT, TENANT, is_resource
from broker.wire.tags import Tag, tagged

VERSION: Final = 1
MAX_HEADER: Final = 4096
MAX_BODY: Final = 256 * 1024 + 2048  # 256 KiB of plaintext and what HPKE adds
MAX_BATCH: Final = 64  # envelopes
MAX_BATCH_BYTES: Final = 4 << 20
MAX_LABELS: Final = 32
MAX_LIFE_MS: Final = 4 * 24 * 3600 * 1000
MSG_ID_LEN: Final = 16
TYPE: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:/-]{0,127}")
SUITE: Final = re.compile(r"[a-z0-9-]{1,64}")
M = TypeVar("M", bound=Message)


def _bad(detail: str) -> WireError:
    return WireError(WireCode.ENVELOPE_MALFORMED, detail)


def _parse(kind: type[M], raw: bytes, max_len: int) -> M:
    return canonical.parse(kind, raw, max_len=max_len, code=WireCode.ENVELOPE_MALFORMED)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What the broker may know about a message. Times in milliseconds since 1970; see envelope.proto for the rest."""

    suite: str
    tenant: str
    msg_id: bytes
    sender: str
    sender_jkt: str
    mailbox: str
    mailbox_key: bytes
    incarnation: bytes
    seq: int
    sent_at_ms: int
    expires_at_ms: int
    type: str
    labels: tuple[str, ...] = ()
    permit_digest: bytes = b""
    in_reply_to: bytes = b""
    reply_to: str = ""

    def __post_init__(self) -> None:
        """Raises WireError envelope.malformed: a header out of bounds cannot be made, neither here nor by parsing."""
        checks = (
            (SUITE.fullmatch(self.suite), "suite"),
            (TENANT.fullmatch(self.tenant), "tenant"),
            (len(self.msg_id) == MSG_ID_LEN, "msg_id"),
            (SUBJECT.fullmatch(self.sender), "sender"),
            (len(self.sender_jkt) == 43, "sender_jkt"),
            (is_resource(self.mailbox), "mailbox"),
            (len(self.mailbox_key) == 32, "mailbox_key"),
            (len(self.incarnation) == 32, "incarnation"),
            (0 < self.seq < 2**63, "seq"),
            (0 < self.sent_at_ms < self.expires_at_ms < 2**53, "sent_at_ms, expires_at_ms"),
            (self.expires_at_ms - self.sent_at_ms <= MAX_LIFE_MS, "life of more than 4 days"),
            (TYPE.fullmatch(self.type), "type"),
            (len(self.labels) <= MAX_LABELS and all(map(LABEL.fullmatch, self.labels)), "labels"),
            (list(self.labels) == sorted(set(self.labels)), "labels not sorted, or twice"),
            (len(self.permit_digest) in (0, 32), "permit_digest"),
            (len(self.in_reply_to) in (0, MSG_ID_LEN), "in_reply_to"),
            (not self.reply_to or is_resource(self.reply_to), "reply_to"),
        )
        for ok, what in checks:
            if not ok:
                raise _bad(f"header: {what}")

    def to_bytes(self) -> bytes:
        message = pb.Header(
            v=VERSION,
            suite=self.suite,
            tenant=self.tenant,
            msg_id=self.msg_id,
            sender=self.sender,
            sender_jkt=self.sender_jkt,
            mailbox=self.mailbox,
            mailbox_key=self.mailbox_key,
            incarnation=self.incarnation,
            seq=self.seq,
            sent_at_ms=self.sent_at_ms,
            expires_at_ms=self.expires_at_ms,
            type=self.type,
            labels=self.labels,
            permit_digest=self.permit_digest,
            in_reply_to=self.in_reply_to,
            reply_to=self.reply_to,
        )
        return message.SerializeToString(deterministic=True)

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """Raises WireError: envelope.malformed."""
        message = _parse(pb.Header, raw, MAX_HEADER)
        if message.v != VERSION:
            raise _bad(f"header version {message.v}, know {VERSION}")
        return cls(
            suite=message.suite,
            tenant=message.tenant,
            msg_id=message.msg_id,
            sender=message.sender,
            sender_jkt=message.sender_jkt,
            mailbox=message.mailbox,
            mailbox_key=message.mailbox_key,
            incarnation=message.incarnation,
            seq=message.seq,
            sent_at_ms=message.sent_at_ms,
            expires_at_ms=message.expires_at_ms,
            type=message.type,
            labels=tuple(message.labels),
            permit_digest=message.permit_digest,
            in_reply_to=message.in_reply_to,
            reply_to=message.reply_to,
        )


def info(header: bytes) -> bytes:
    """The HPKE `info` for the body that goes with these header bytes."""
    return tagged(Tag.ENVELOPE_INFO, hashlib.sha384(header).digest())


def _message(header: bytes, body: bytes) -> bytes:
    return tagged(Tag.ENVELOPE, hashlib.sha384(header).digest(), hashlib.sha384(body).digest())


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """Header bytes exactly as signed, sealed body, the sender's signature over both."""

    header: bytes
    body: bytes
    signature: bytes

    @classmethod
    def sign(cls, key: ec.EllipticCurvePrivateKey, *, header: bytes, body: bytes) -> Self:
        return cls(header=header, body=body, signature=es256_sign(key, _message(header, body)))

    def verify(self, key: ec.EllipticCurvePublicKey) -> None:
        """Raises WireError: envelope.signature_invalid."""
        if not es256_valid(key, self.signature, _message(self.header, self.body)):
            raise WireError(WireCode.ENVELOPE_SIGNATURE, "not signed by the sender's identity key")

    @property
    def digest(self) -> bytes:
        """SHA-256 that names exactly this envelope: what an acceptance is about, and how a resend is recognised."""
        return hashlib.sha256(_message(self.header, self.body)).digest()

    def to_bytes(self) -> bytes:
        return _to_pb(self).SerializeToString(deterministic=True)

    @classmethod
    def from_bytes(cls, raw: bytes, *, max_body: int = MAX_BODY) -> Self:
        """Raises WireError: envelope.malformed."""
        return cls._of(_parse(pb.Envelope, raw, MAX_HEADER + max_body + 128), max_body)

    @classmethod
    def _of(cls, message: pb.Envelope, max_body: int = MAX_BODY) -> Self:
        if not message.header or len(message.header) > MAX_HEADER or len(message.body) > max_body:
            raise _bad(f"header of {len(message.header)} bytes, body of {len(message.body)}")
        if len(message.signature) != ES256_SIGNATURE_LEN:
            raise _bad(f"signature of {len(message.signature)} bytes")
        return cls(header=message.header, body=message.body, signature=message.signature)


def _to_pb(envelope: Envelope) -> pb.Envelope:
    return pb.Envelope(header=envelope.header, body=envelope.body, signature=envelope.signature)


def batch_to_bytes(envelopes: Iterable[Envelope]) -> bytes:
    """The body of a send: at most MAX_BATCH envelopes."""
    return pb.Batch(envelopes=[_to_pb(envelope) for envelope in envelopes]).SerializeToString(deterministic=True)


def batch_from_bytes(raw: bytes) -> tuple[Envelope, ...]:
    """Raises WireError: envelope.malformed, also for a batch without envelopes."""
    message = _parse(pb.Batch, raw, MAX_BATCH_BYTES)
    if not 0 < len(message.envelopes) <= MAX_BATCH:
        raise _bad(f"a batch of {len(message.envelopes)} envelopes, 1 to {MAX_BATCH}")
    return tuple(Envelope._of(envelope) for envelope in message.envelopes)
