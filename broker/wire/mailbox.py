"""Mailboxes: the owner's signed epoch key, and the bodies of send and receive.

A sender seals to a mailbox key only after `MailboxKey.verify` with the identity key from the owner's verdict, so the
broker cannot put its own key there. Deliveries carry the broker's signature over the moment of acceptance.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Self, final

from cryptography.hazmat.primitives.asymmetric import ec

from broker.wire.envelope import MAX_BATCH, MAX_BATCH_BYTES, MAX_BODY, MAX_HEADER, MSG_ID_LEN, Envelope
from broker.wire.errors import WireCode, WireError
from broker.wire.fields import MAX_TOKEN, Reader
from broker.wire.jose import ES256_SIGNATURE_LEN, b64u, es256_sign, es256_valid
from broker.wire.leases import DEFAULT_LEASE_S, MAX_EXCEPT, MAX_LEASE_S, MAX_LEASE_TOKEN
from broker.wire.names import MAX_RESOURCE, MAX_SUBJECT, RESOURCE, SUBJECT
from broker.wire.tags import Tag, sealing_thumbprint, tagged, u64

INCARNATION_LEN: Final = 32
MAX_SEALING_KEY: Final = 2048  # X-Wing has 1216
MAX_EPOCH_S: Final = 24 * 3600
MAX_WAIT_S: Final = 20
_KINDS: Final = ("ephemeral", "durable")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class MailboxKey:
    """PUT /v1/mailboxes/{name}: one epoch's public sealing key, as the mailbox's owner signed it.

    `incarnation` is the owner's random 32 bytes of this process: envelopes name it, so nothing from before a restart
    can come back. `kind` is `ephemeral` (the private half dies with the process) or `durable`.
    """

    mailbox: str
    owner: str  # subject
    epoch: int
    kind: str
    suite: str
    key: bytes
    incarnation: bytes
    not_before_s: int
    not_after_s: int
    signature: bytes  # ES256 of the owner's identity key

    @property
    def thumbprint(self) -> bytes:
        return sealing_thumbprint(self.suite, self.key)

    @staticmethod
    def message(
        *,
        mailbox: str,
        owner: str,
        epoch: int,
        kind: str,
        suite: str,
        key: bytes,
        incarnation: bytes,
        not_before_s: int,
        not_after_s: int,
    ) -> bytes:
        return tagged(
            Tag.MAILBOX_KEY,
            mailbox.encode(),
            owner.encode(),
            u64(epoch),
            kind.encode(),
            suite.encode(),
            key,
            incarnation,
            u64(not_before_s),
            u64(not_after_s),
        )

    @classmethod
    def sign(
        cls,
        identity: ec.EllipticCurvePrivateKey,
        *,
        mailbox: str,
        owner: str,
        epoch: int,
        suite: str,
        key: bytes,
        incarnation: bytes,
        not_before_s: int,
        not_after_s: int,
        kind: str = "ephemeral",
    ) -> Self:
        message = cls.message(
            mailbox=mailbox,
            owner=owner,
            epoch=epoch,
            kind=kind,
            suite=suite,
            key=key,
            incarnation=incarnation,
            not_before_s=not_before_s,
            not_after_s=not_after_s,
        )
        return cls(
            mailbox=mailbox,
            owner=owner,
            epoch=epoch,
            kind=kind,
            suite=suite,
            key=key,
            incarnation=incarnation,
            not_before_s=not_before_s,
            not_after_s=not_after_s,
            signature=es256_sign(identity, message),
        )

    def verify(self, identity: ec.EllipticCurvePublicKey, *, mailbox: str, owner: str, at_s: int) -> None:
        """Is this the owner's key for that mailbox, at that time? Raises WireError: mailbox.key_signature_invalid."""
        message = self.message(
            mailbox=self.mailbox,
            owner=self.owner,
            epoch=self.epoch,
            kind=self.kind,
            suite=self.suite,
            key=self.key,
            incarnation=self.incarnation,
            not_before_s=self.not_before_s,
            not_after_s=self.not_after_s,
        )
        if not es256_valid(identity, self.signature, message):
            raise WireError(WireCode.MAILBOX_KEY_SIGNATURE, "not signed by the owner's identity key")
        if (self.mailbox, self.owner) != (mailbox, owner) or not self.not_before_s <= at_s <= self.not_after_s:
            raise WireError(WireCode.MAILBOX_KEY_SIGNATURE, "signed for another mailbox, owner or time")

    def to_dict(self) -> dict[str, Any]:
        return {
            "mailbox": self.mailbox,
            "owner": self.owner,
            "epoch": self.epoch,
            "kind": self.kind,
            "suite": self.suite,
            "key": b64u(self.key),
            "incarnation": b64u(self.incarnation),
            "not_before_s": self.not_before_s,
            "not_after_s": self.not_after_s,
            "signature": b64u(self.signature),
        }

    @classmethod
    def from_dict(cls, value: object) -> Self:
        read = Reader(value, "mailbox_key")
        made = cls(
            mailbox=read.text("mailbox", max_len=MAX_RESOURCE, pattern=RESOURCE),
            owner=read.text("owner", max_len=MAX_SUBJECT, pattern=SUBJECT),
            epoch=read.number("epoch"),
            kind=read.text("kind", max_len=16),
            suite=read.text("suite", max_len=64),
            key=read.raw("key", max_len=MAX_SEALING_KEY),
            incarnation=read.raw("incarnation", size=INCARNATION_LEN),
            not_before_s=read.number("not_before_s"),
            not_after_s=read.number("not_after_s"),
            signature=read.raw("signature", size=ES256_SIGNATURE_LEN),
        )
        read.end()
        if made.kind not in _KINDS or not 0 < made.not_after_s - made.not_before_s <= MAX_EPOCH_S:
            raise WireError(WireCode.BODY_FIELD_INVALID, f"mailbox_key: kind {_KINDS}, life of 1 to {MAX_EPOCH_S} s")
        return made


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class MailboxInfo:
    """GET /v1/mailboxes/{name}: where to send, and the owner's peer token with which to check the key."""

    key: MailboxKey
    owner_token: str = field(repr=False)
    next_seq: int  # what the asking sender should use next; a hint, since order is the sender's own affair
    streams: bool = False  # the owner receives on a mail stream, and so takes channels

    def to_dict(self) -> dict[str, Any]:
        return {
            "key": self.key.to_dict(),
            "owner_token": self.owner_token,
            "next_seq": self.next_seq,
            "streams": self.streams,
        }

    @classmethod
    def from_dict(cls, value: object) -> Self:
        read = Reader(value, "mailbox")
        return cls(
            key=MailboxKey.from_dict(read.mapping("key")),
            owner_token=read.text("owner_token", max_len=MAX_TOKEN),
            next_seq=read.number("next_seq", low=1),
            streams=read.flag("streams"),
        )


class SendStatus(StrEnum):
    QUEUED = "queued"
    DUPLICATE = "duplicate"  # the very same envelope was taken in before
    REFUSED = "refused"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SendResult:
    """What became of one envelope of a batch. `code` says why it was refused, else it is empty."""

    msg_id: bytes
    status: SendStatus
    code: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {"msg_id": b64u(self.msg_id), "status": self.status, "code": self.code}

    @classmethod
    def from_dict(cls, value: object) -> Self:
        read = Reader(value, "send.results")
        try:
            status = SendStatus(read.text("status", max_len=16))
        except ValueError:
            raise WireError(WireCode.BODY_FIELD_INVALID, "send.results.status") from None
        return cls(
            msg_id=read.raw("msg_id", size=MSG_ID_LEN),
            status=status,
            code=read.text("code", max_len=64),
        )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SendResponse:
    """POST /v1/mailboxes/{name}:send (the request is a Batch in protobuf): one result per envelope, in order."""

    results: tuple[SendResult, ...]

    def to_dict(self) -> dict[str, Any]:
        return {"results": [result.to_dict() for result in self.results]}

    @classmethod
    def from_dict(cls, value: object) -> Self:
        return cls(results=Reader(value, "send").items("results", SendResult.from_dict, max_items=MAX_BATCH))


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiveRequest:
    """POST /v1/mailboxes/{name}:receive. Waits up to `wait_s` for a first message; leases what it gives out.

    `max_messages` counts deliveries: an envelope or a batch is one. `anew` ends what the owner began before, perhaps on
    a stream that he has lost and the broker has not: what is out comes again, in order, and no attempt is counted.
    """

    max_messages: int = 16
    wait_s: int = 0
    lease_s: int = DEFAULT_LEASE_S
    anew: bool = False

    def to_dict(self) -> dict[str, Any]:
        told = {"max_messages": self.max_messages, "wait_s": self.wait_s, "lease_s": self.lease_s}
        return told | ({"anew": True} if self.anew else {})

    @classmethod
    def from_dict(cls, value: object) -> Self:
        read = Reader(value, "receive")
        made = cls(
            max_messages=read.number("max_messages", low=1, high=MAX_BATCH, default=16),
            wait_s=read.number("wait_s", high=MAX_WAIT_S, default=0),
            lease_s=read.number("lease_s", low=1, high=MAX_LEASE_S, default=DEFAULT_LEASE_S),
            anew=read.flag("anew", default=False),
        )
        read.end()
        return made


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One envelope under a lease. `acceptance` is the broker's ES256 over mailbox, envelope digest and time.

    `sender_token` is set when the sender has fallen since and the mailbox takes such mail: its verdict as it was then.
    """

    envelope: Envelope
    lease: str
    attempt: int
    accepted_at_ms: int
    acceptance: bytes
    sender_token: str = field(default="", repr=False)

    @staticmethod
    def message(mailbox: str, digest: bytes, accepted_at_ms: int) -> bytes:
        return tagged(Tag.ACCEPTANCE, mailbox.encode(), digest, u64(accepted_at_ms))

    def accepted(self, broker_key: ec.EllipticCurvePublicKey, mailbox: str) -> bool:
        """Whether the broker signed that it took this envelope in for this mailbox at `accepted_at_ms`."""
        message = self.message(mailbox, self.envelope.digest, self.accepted_at_ms)
        return es256_valid(broker_key, self.acceptance, message)

    def to_dict(self) -> dict[str, Any]:
        return {
            "envelope": b64u(self.envelope.to_bytes()),
            "lease": self.lease,
            "attempt": self.attempt,
            "accepted_at_ms": self.accepted_at_ms,
            "acceptance": b64u(self.acceptance),
            **({"sender_token": self.sender_token} if self.sender_token else {}),
        }

    @classmethod
    def from_dict(cls, value: object) -> Self:
        read = Reader(value, "receive.deliveries")
        return cls(
            envelope=Envelope.from_bytes(read.raw("envelope", max_len=MAX_HEADER + MAX_BODY + 128)),
            lease=read.text("lease", max_len=MAX_LEASE_TOKEN),
            attempt=read.number("attempt", low=1),
            accepted_at_ms=read.number("accepted_at_ms"),
            acceptance=read.raw("acceptance", size=ES256_SIGNATURE_LEN),
            sender_token=read.text_or_none("sender_token", max_len=MAX_TOKEN) or "",
        )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class BatchDelivery:
    """One batch of a channel under a lease; see broker.wire.channel for what is in it.

    `acceptance` is as in `Delivery`, over the batch's digest; `remaining` are the sequence numbers still to be handled,
    empty for all of them.
    """

    batch: bytes
    sender: str
    digest: bytes
    lease: str
    attempt: int
    accepted_at_ms: int
    acceptance: bytes
    remaining: tuple[int, ...] = ()
    sender_token: str = field(default="", repr=False)

    def to_dict(self) -> dict[str, Any]:
        return {
            "batch": b64u(self.batch),
            "sender": self.sender,
            "digest": b64u(self.digest),
            "lease": self.lease,
            "attempt": self.attempt,
            "accepted_at_ms": self.accepted_at_ms,
            "acceptance": b64u(self.acceptance),
            "remaining": list(self.remaining),
            **({"sender_token": self.sender_token} if self.sender_token else {}),
        }

    @classmethod
    def from_dict(cls, value: object) -> Self:
        read = Reader(value, "receive.batches")
        return cls(
            batch=read.raw("batch", max_len=MAX_BATCH_BYTES),
            sender=read.text("sender", max_len=MAX_SUBJECT),
            digest=read.raw("digest", max_len=64),
            lease=read.text("lease", max_len=MAX_LEASE_TOKEN),
            attempt=read.number("attempt", low=1),
            accepted_at_ms=read.number("accepted_at_ms"),
            acceptance=read.raw("acceptance", size=ES256_SIGNATURE_LEN),
            remaining=read.items("remaining", _seq, max_items=MAX_EXCEPT, optional=True),
            sender_token=read.text_or_none("sender_token", max_len=MAX_TOKEN) or "",
        )


def _seq(item: object) -> int:
    return Reader({"seq": item}, "receive.batches.remaining").number("seq")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class OpeningDelivery:
    """The envelope that opened a channel; under no lease, since it stays as long as messages of the channel do.

    `acceptance` and `sender_token` are as in `Delivery`.
    """

    envelope: Envelope
    accepted_at_ms: int
    acceptance: bytes
    sender_token: str = field(default="", repr=False)

    def to_dict(self) -> dict[str, Any]:
        return {
            "envelope": b64u(self.envelope.to_bytes()),
            "accepted_at_ms": self.accepted_at_ms,
            "acceptance": b64u(self.acceptance),
            **({"sender_token": self.sender_token} if self.sender_token else {}),
        }

    @classmethod
    def from_dict(cls, value: object) -> Self:
        read = Reader(value, "receive.openings")
        return cls(
            envelope=Envelope.from_bytes(read.raw("envelope", max_len=MAX_HEADER + MAX_BODY + 128)),
            accepted_at_ms=read.number("accepted_at_ms"),
            acceptance=read.raw("acceptance", size=ES256_SIGNATURE_LEN),
            sender_token=read.text_or_none("sender_token", max_len=MAX_TOKEN) or "",
        )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiveResponse:
    """Deliveries in order, and a peer token for each sender among them that may still speak.

    Beside batches stand the openings of their channels, every time: who knows a channel passes its opening over.
    """

    deliveries: tuple[Delivery, ...]
    senders: dict[str, str]  # subject → peer token
    batches: tuple[BatchDelivery, ...] = ()
    openings: tuple[OpeningDelivery, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "deliveries": [delivery.to_dict() for delivery in self.deliveries],
            "senders": self.senders,
        }
        if self.batches:
            found["batches"] = [batch.to_dict() for batch in self.batches]
            found["openings"] = [opening.to_dict() for opening in self.openings]
        return found

    @classmethod
    def from_dict(cls, value: object) -> Self:
        read = Reader(value, "receive")
        deliveries = read.items("deliveries", Delivery.from_dict, max_items=MAX_BATCH)
        senders = read.mapping("senders")
        entry = Reader(senders, "receive.senders")
        tokens = {name: entry.text(name, max_len=MAX_TOKEN) for name in list(senders)[:MAX_BATCH]}
        batches = read.items("batches", BatchDelivery.from_dict, max_items=MAX_BATCH, optional=True)
        openings = read.items("openings", OpeningDelivery.from_dict, max_items=MAX_BATCH, optional=True)
        return cls(deliveries=deliveries, senders=tokens, batches=batches, openings=openings)
