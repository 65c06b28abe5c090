"""Mail that ended other than by being handled: the broker's signed word about it, and what is kept of it.

A tombstone tells sender and receiver that a parcel will not come any more, and why. It is signed by the broker's
identity key, so that it can be shown to somebody else; it names the parcel by id and digest, and says nothing of what
was in it.
"""

from dataclasses import dataclass
from typing import Any, Final, Self, final

from cryptography.hazmat.primitives.asymmetric import ec

from broker.wire.envelope import MSG_ID_LEN
from broker.wire.fields import Reader
from broker.wire.jose import ES256_SIGNATURE_LEN, b64u, es256_sign, es256_valid
from broker.wire.leases import CODE
from broker.wire.names import MAX_RESOURCE, MAX_SUBJECT
from broker.wire.tags import Tag, tagged, u64

MAX_PAGE: Final = 100
DIGEST_LEN: Final = 32


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Tombstone:
    """How a parcel ended: expired, attempts, rejected, sender_fallen or key_gone; `code` is what its receiver said."""

    number: int  # where to go on reading; not signed
    mailbox: str
    sender: str
    msg_id: bytes
    digest: bytes
    end: str
    code: str
    at_ms: int
    signature: bytes

    @staticmethod
    def message(*, mailbox: str, sender: str, msg_id: bytes, digest: bytes, end: str, code: str, at_ms: int) -> bytes:
        return tagged(
            Tag.TOMBSTONE,
            mailbox.encode(),
            sender.encode(),
            msg_id,
            digest,
            end.encode(),
            code.encode(),
            u64(at_ms),
        )

    @classmethod
    def sign(
        cls,
        key: ec.EllipticCurvePrivateKey,
        *,
        mailbox: str,
        sender: str,
        msg_id: bytes,
        digest: bytes,
        end: str,
        code: str,
        at_ms: int,
    ) -> Self:
        message = cls.message(
            mailbox=mailbox, sender=sender, msg_id=msg_id, digest=digest, end=end, code=code, at_ms=at_ms
        )
        return cls(
            number=0,
            mailbox=mailbox,
            sender=sender,
            msg_id=msg_id,
            digest=digest,
            end=end,
            code=code,
            at_ms=at_ms,
            signature=es256_sign(key, message),
        )

    def valid(self, broker_key: ec.EllipticCurvePublicKey) -> bool:
        """Whether the broker signed this."""
        message = self.message(
            mailbox=self.mailbox,
            sender=self.sender,
            msg_id=self.msg_id,
            digest=self.digest,
            end=self.end,
            code=self.code,
            at_ms=self.at_ms,
        )
        return es256_valid(broker_key, self.signature, message)

    def to_dict(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "mailbox": self.mailbox,
            "sender": self.sender,
            "msg_id": b64u(self.msg_id),
            "digest": b64u(self.digest),
            "end": self.end,
            "code": self.code,
            "at_ms": self.at_ms,
            "signature": b64u(self.signature),
        }

    @classmethod
    def from_dict(cls, value: object) -> Self:
        read = Reader(value, "tombstone")
        return cls(
            number=read.number("number"),
            mailbox=read.text("mailbox", max_len=MAX_RESOURCE),
            sender=read.text("sender", max_len=MAX_SUBJECT),
            msg_id=read.raw("msg_id", max_len=MSG_ID_LEN),
            digest=read.raw("digest", max_len=DIGEST_LEN),
            end=read.text("end", max_len=32, pattern=CODE),
            code=read.text("code", max_len=128),
            at_ms=read.number("at_ms"),
            signature=read.raw("signature", size=ES256_SIGNATURE_LEN),
        )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PageRequest:
    """Which part of a list: what comes after number `after`."""

    after: int = 0
    limit: int = MAX_PAGE

    def to_dict(self) -> dict[str, Any]:
        return {"after": self.after, "limit": self.limit}

    @classmethod
    def from_dict(cls, value: object) -> Self:
        read = Reader(value, "page")
        made = cls(
            after=read.number("after", default=0), limit=read.number("limit", low=1, high=MAX_PAGE, default=MAX_PAGE)
        )
        read.end()
        return made


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TombstoneResponse:
    """POST /v1/mailboxes/{name}:tombstones: to the owner all of the mailbox, to a sender those of its own parcels.

    `forgotten` says how many more there were in the last days, for which there was no room.
    """

    tombstones: tuple[Tombstone, ...]
    forgotten: int = 0

    def to_dict(self) -> dict[str, Any]:
        told: dict[str, Any] = {"tombstones": [stone.to_dict() for stone in self.tombstones]}
        return told | ({"forgotten": self.forgotten} if self.forgotten else {})

    @classmethod
    def from_dict(cls, value: object) -> Self:
        read = Reader(value, "tombstones")
        return cls(
            tombstones=read.items("tombstones", Tombstone.from_dict, max_items=MAX_PAGE),
            forgotten=read.number("forgotten", default=0),
        )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class DeadInfo:
    """A dead letter, still sealed: what is known about it from outside."""

    number: int
    sender: str
    kind: str
    count: int
    msg_id: bytes
    octets: int
    attempt: int
    accepted_at_ms: int
    expires_at_ms: int
    dead_at_ms: int
    reason: str
    code: str

    def to_dict(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "sender": self.sender,
            "kind": self.kind,
            "count": self.count,
            "msg_id": b64u(self.msg_id),
            "octets": self.octets,
            "attempt": self.attempt,
            "accepted_at_ms": self.accepted_at_ms,
            "expires_at_ms": self.expires_at_ms,
            "dead_at_ms": self.dead_at_ms,
            "reason": self.reason,
            "code": self.code,
        }

    @classmethod
    def from_dict(cls, value: object) -> Self:
        read = Reader(value, "dead")
        return cls(
            number=read.number("number"),
            sender=read.text("sender", max_len=MAX_SUBJECT),
            kind=read.text("kind", max_len=16),
            count=read.number("count"),
            msg_id=read.raw("msg_id", max_len=MSG_ID_LEN),
            octets=read.number("octets"),
            attempt=read.number("attempt"),
            accepted_at_ms=read.number("accepted_at_ms"),
            expires_at_ms=read.number("expires_at_ms"),
            dead_at_ms=read.number("dead_at_ms"),
            reason=read.text("reason", max_len=32),
            code=read.text("code", max_len=128),
        )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class DeadResponse:
    """POST /v1/mailboxes/{name}:dead: dead letters in order of number."""

    dead: tuple[DeadInfo, ...]

    def to_dict(self) -> dict[str, Any]:
        return {"dead": [letter.to_dict() for letter in self.dead]}

    @classmethod
    def from_dict(cls, value: object) -> Self:
        return cls(dead=Reader(value, "dead").items("dead", DeadInfo.from_dict, max_items=MAX_PAGE))


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RedriveRequest:
    """POST /v1/mailboxes/{name}:redrive: dead letters to send on their way again."""

    numbers: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        return {"numbers": list(self.numbers)}

    @classmethod
    def from_dict(cls, value: object) -> Self:
        read = Reader(value, "redrive")
        found = read.items(
            "numbers", lambda item: Reader({"n": item}, "redrive").number("n", low=1), max_items=MAX_PAGE
        )
        read.end()
        return cls(numbers=found)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RedriveResponse:
    """`gone` are numbers that are no dead letters of this mailbox any more, or whose messages have expired."""

    redriven: tuple[int, ...]
    gone: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        return {"redriven": list(self.redriven), "gone": list(self.gone)}

    @classmethod
    def from_dict(cls, value: object) -> Self:
        read = Reader(value, "redrive")
        return cls(
            redriven=read.items("redriven", _number, max_items=MAX_PAGE),
            gone=read.items("gone", _number, max_items=MAX_PAGE),
        )


def _number(item: object) -> int:
    return Reader({"number": item}, "redrive").number("number")
