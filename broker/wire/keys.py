"""Keys that the broker keeps: those of durable mailboxes and of topics, on their way to an agent that may read there.

Decides the form of a grant. Like a released secret it travels sealed to the key in the agent's verdict, under the
digest of a signed statement that names agent, request and place; its tags are its own, so that neither can pass for the
other. What is inside are seeds: whoever holds the broker's root could read such mail, which is the price of reading it
after a restart, and why a mailbox is ephemeral unless it is declared durable.
"""

import hashlib
import hmac
import json
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar, Final, Self, final

from cryptography.hazmat.primitives.asymmetric import ec

from broker.wire.errors import WireCode, WireError
from broker.wire.fields import NONCE_LEN, Reader, parse_object
from broker.wire.jose import ES256_SIGNATURE_LEN, b64u, es256_sign, es256_valid
from broker.wire.log import Receipt
from broker.wire.mailbox import MAX_SEALING_KEY
from broker.wire.names import MAX_RESOURCE, MAX_SUBJECT, RESOURCE
from broker.wire.tags import Tag, sealing_thumbprint, tagged, u64

SEED_LEN: Final = 32
STATE_KEY_LEN: Final = 32
MAX_EPOCHS: Final = 32
MAX_GRANT: Final = 8192
MAX_SEALED: Final = 32 * 1024
MAX_NUMBER: Final = 2**31 - 1
SKEW_S: Final = 5  # the broker tells agents the time in whole seconds, so theirs is behind its own
NO_INCARNATION: Final = bytes(32)
"""What a durable mailbox or a topic has in place of an incarnation: it outlives every process that reads it."""


class Place(StrEnum):
    """What the keys belong to."""

    MAILBOX = "mailbox"
    TOPIC = "topic"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class KeysRequest:
    """POST /v1/mailboxes/{name}:keys and /v1/topics/{name}:keys. A fresh nonce of the agent."""

    nonce: bytes

    def to_dict(self) -> dict[str, Any]:
        return {"nonce": b64u(self.nonce)}

    @classmethod
    def from_dict(cls, value: object) -> Self:
        read = Reader(value, "keys")
        made = cls(nonce=read.raw("nonce", size=NONCE_LEN))
        read.end()
        return made


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class EpochSeed:
    """One epoch's private key as the seed it comes from. Sealed to until `not_after_s`, kept until `keep_until_s`."""

    epoch: int
    suite: str
    seed: bytes = field(repr=False)
    not_before_s: int
    not_after_s: int
    keep_until_s: int

    def to_dict(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "suite": self.suite,
            "seed": b64u(self.seed),
            "not_before_s": self.not_before_s,
            "not_after_s": self.not_after_s,
            "keep_until_s": self.keep_until_s,
        }

    @classmethod
    def from_dict(cls, value: object) -> Self:
        read = Reader(value, "keys.epochs")
        return cls(
            epoch=read.number("epoch", low=1, high=MAX_NUMBER),
            suite=read.text("suite", max_len=64),
            seed=read.raw("seed", size=SEED_LEN),
            not_before_s=read.number("not_before_s"),
            not_after_s=read.number("not_after_s"),
            keep_until_s=read.number("keep_until_s"),
        )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class KeySet:
    """What is sealed: every epoch that can still be needed, oldest first, and the key for the reader's checkpoints."""

    epochs: tuple[EpochSeed, ...]
    state_key: bytes = field(repr=False)

    def to_bytes(self) -> bytes:
        members = {"epochs": [epoch.to_dict() for epoch in self.epochs], "state_key": b64u(self.state_key)}
        return json.dumps(members, separators=(",", ":")).encode("ascii")

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        read = Reader(parse_object(raw, max_len=MAX_SEALED), "keys")
        return cls(
            epochs=read.items("epochs", EpochSeed.from_dict, max_items=MAX_EPOCHS),
            state_key=read.raw("state_key", size=STATE_KEY_LEN),
        )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class KeyGrant:
    """Who may open which place's keys, until when, by which decision."""

    broker_id: bytes
    subject: str
    jkt: str
    sealing_key: bytes  # thumbprint, see tags.sealing_thumbprint
    suite: str
    of: Place
    name: str
    policy: str
    decision: bytes
    nonce: bytes
    issued_at_s: int
    not_after_s: int

    def to_bytes(self) -> bytes:
        members = {
            "broker_id": b64u(self.broker_id),
            "subject": self.subject,
            "jkt": self.jkt,
            "sealing_key": b64u(self.sealing_key),
            "suite": self.suite,
            "of": self.of,
            "name": self.name,
            "policy": self.policy,
            "decision": b64u(self.decision),
            "nonce": b64u(self.nonce),
            "issued_at_s": self.issued_at_s,
            "not_after_s": self.not_after_s,
        }
        return json.dumps(members, separators=(",", ":"), sort_keys=True).encode("ascii")

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        read = Reader(parse_object(raw, max_len=MAX_GRANT), "grant")
        return cls(
            broker_id=read.raw("broker_id", size=32),
            subject=read.text("subject", max_len=MAX_SUBJECT),
            jkt=read.text("jkt", max_len=43),
            sealing_key=read.raw("sealing_key", size=32),
            suite=read.text("suite", max_len=64),
            of=place(read.text("of", max_len=16)),
            name=read.text("name", max_len=MAX_RESOURCE, pattern=RESOURCE),
            policy=read.text("policy", max_len=64),
            decision=read.raw("decision", size=32),
            nonce=read.raw("nonce", size=NONCE_LEN),
            issued_at_s=read.number("issued_at_s"),
            not_after_s=read.number("not_after_s"),
        )


def place(text: str) -> Place:
    """Raises WireError body.field_invalid."""
    try:
        return Place(text)
    except ValueError:
        raise WireError(WireCode.BODY_FIELD_INVALID, "of must be mailbox or topic") from None


def grant_digest(grant: bytes) -> bytes:
    """The HPKE info under which the key set is sealed."""
    return hashlib.sha256(tagged(Tag.KEY_GRANT, grant)).digest()


def _message(grant: bytes, sealed: bytes) -> bytes:
    return tagged(Tag.KEYS_RELEASE, grant, hashlib.sha256(sealed).digest())


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class KeysResponse:
    """Ciphertext, grant bytes, the broker's signature over both, and the log's receipt."""

    sealed: bytes
    suite: str
    grant: bytes
    signature: bytes
    receipt: Receipt

    @classmethod
    def sign(
        cls, key: ec.EllipticCurvePrivateKey, *, sealed: bytes, suite: str, grant: bytes, receipt: Receipt
    ) -> Self:
        signature = es256_sign(key, _message(grant, sealed))
        return cls(sealed=sealed, suite=suite, grant=grant, signature=signature, receipt=receipt)

    def verify(
        self,
        broker_key: ec.EllipticCurvePublicKey,
        *,
        broker_id: bytes,
        jkt: str,
        sealing_key: bytes,
        of: Place,
        name: str,
        nonce: bytes,
    ) -> KeyGrant:
        """The grant, if the broker signed it and it answers this very request. Then, and only then, open.

        Raises WireError: release.signature_invalid, release.mismatch, body.*.
        """
        if not es256_valid(broker_key, self.signature, _message(self.grant, self.sealed)):
            raise WireError(WireCode.RELEASE_SIGNATURE, "not signed by the broker's identity key")
        grant = KeyGrant.from_bytes(self.grant)
        same = (
            hmac.compare_digest(grant.broker_id, broker_id)
            and hmac.compare_digest(grant.sealing_key, sealing_key)
            and hmac.compare_digest(grant.nonce, nonce)
            and (grant.jkt, grant.of, grant.name, grant.suite) == (jkt, of, name, self.suite)
        )
        if not same:
            raise WireError(WireCode.RELEASE_MISMATCH, f"grant is for {grant.name!a} and {grant.subject!a}")
        return grant

    def to_dict(self) -> dict[str, Any]:
        return {
            "sealed": b64u(self.sealed),
            "suite": self.suite,
            "grant": b64u(self.grant),
            "signature": b64u(self.signature),
            "receipt": self.receipt.to_dict(),
        }

    @classmethod
    def from_dict(cls, value: object) -> Self:
        read = Reader(value, "keys")
        return cls(
            sealed=read.raw("sealed", max_len=MAX_SEALED),
            suite=read.text("suite", max_len=64),
            grant=read.raw("grant", max_len=MAX_GRANT),
            signature=read.raw("signature", size=ES256_SIGNATURE_LEN),
            receipt=Receipt.from_dict(read.mapping("receipt")),
        )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TopicKey:
    """One epoch's public key of a topic, as the broker signed it."""

    topic: str
    epoch: int
    suite: str
    key: bytes
    not_before_s: int
    not_after_s: int
    signature: bytes

    # What a mailbox's key says, and a topic's need not: nobody owns it, and it outlives every process that reads there.
    kind: ClassVar[str] = "topic"
    owner: ClassVar[str] = ""
    incarnation: ClassVar[bytes] = NO_INCARNATION

    @classmethod
    def sign(
        cls,
        identity: ec.EllipticCurvePrivateKey,
        *,
        topic: str,
        epoch: int,
        suite: str,
        key: bytes,
        not_before_s: int,
        not_after_s: int,
    ) -> Self:
        message = _topic_message(topic, epoch, suite, key, not_before_s, not_after_s)
        return cls(
            topic=topic,
            epoch=epoch,
            suite=suite,
            key=key,
            not_before_s=not_before_s,
            not_after_s=not_after_s,
            signature=es256_sign(identity, message),
        )

    @property
    def thumbprint(self) -> bytes:
        return sealing_thumbprint(self.suite, self.key)

    def verify(self, broker_key: ec.EllipticCurvePublicKey, *, topic: str, at_s: int) -> None:
        """Raises WireError mailbox.key_signature_invalid."""
        message = _topic_message(self.topic, self.epoch, self.suite, self.key, self.not_before_s, self.not_after_s)
        if not es256_valid(broker_key, self.signature, message):
            raise WireError(WireCode.MAILBOX_KEY_SIGNATURE, "not signed by the broker's identity key")
        if self.topic != topic or not self.not_before_s - SKEW_S <= at_s <= self.not_after_s:
            raise WireError(WireCode.MAILBOX_KEY_SIGNATURE, "signed for another topic or time")

    def to_dict(self) -> dict[str, Any]:
        return {
            "topic": self.topic,
            "epoch": self.epoch,
            "suite": self.suite,
            "key": b64u(self.key),
            "not_before_s": self.not_before_s,
            "not_after_s": self.not_after_s,
            "signature": b64u(self.signature),
        }

    @classmethod
    def from_dict(cls, value: object) -> Self:
        read = Reader(value, "topic")
        return cls(
            topic=read.text("topic", max_len=MAX_RESOURCE, pattern=RESOURCE),
            epoch=read.number("epoch", low=1, high=MAX_NUMBER),
            suite=read.text("suite", max_len=64),
            key=read.raw("key", max_len=MAX_SEALING_KEY),
            not_before_s=read.number("not_before_s"),
            not_after_s=read.number("not_after_s"),
            signature=read.raw("signature", size=ES256_SIGNATURE_LEN),
        )


def _topic_message(topic: str, epoch: int, suite: str, key: bytes, not_before_s: int, not_after_s: int) -> bytes:
    return tagged(Tag.TOPIC_KEY, topic.encode(), u64(epoch), suite.encode(), key, u64(not_before_s), u64(not_after_s))
