"""A released secret on its way: the permit it rests on, the ciphertext, and the broker's signature over both.

HPKE's base mode authenticates nobody, so `ReleaseResponse.verify` comes before opening: it compares every member of the
permit with what the agent asked for and holds. The permit travels as the exact bytes that were signed; its digest is
the context under which the secret was sealed.
"""

import hashlib
import hmac
import json
from dataclasses import dataclass
from typing import Any, Final, Self, final

from cryptography.hazmat.primitives.asymmetric import ec

from broker.wire.errors import WireCode, WireError
from broker.wire.fields import NONCE_LEN, Reader, parse_object
from broker.wire.jose import ES256_SIGNATURE_LEN, b64u, es256_sign, es256_valid
from broker.wire.log import Receipt
from broker.wire.names import MAX_RESOURCE, MAX_SUBJECT, RESOURCE
from broker.wire.tags import Tag, tagged

MAX_SECRET: Final = 64 * 1024  # bytes of plaintext
MAX_SEALED: Final = MAX_SECRET + 4096
MAX_PERMIT: Final = 8192
MAX_LABELS: Final = 32
MAX_LABEL: Final = 64
MAX_VERSION: Final = 2**31 - 1
_SORTED: Final = json.JSONEncoder(separators=(",", ":"), sort_keys=True)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseRequest:
    """POST /v1/secrets/{name}:release. A fresh nonce of the agent; without `version`, the newest."""

    nonce: bytes
    version: int | None = None

    def to_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = {"nonce": b64u(self.nonce)}
        if self.version is not None:
            found["version"] = self.version
        return found

    @classmethod
    def from_dict(cls, value: object) -> Self:
        read = Reader(value, "release")
        made = cls(
            nonce=read.raw("nonce", size=NONCE_LEN), version=read.number_or_none("version", low=1, high=MAX_VERSION)
        )
        read.end()
        return made


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ReleasePermit:
    """Who may open what, until when, by which decision."""

    broker_id: bytes
    subject: str
    jkt: str  # thumbprint of the identity key
    sealing_key: bytes  # thumbprint of the sealing key, see tags.sealing_thumbprint
    suite: str
    name: str
    version: int
    labels: tuple[str, ...]
    policy: str  # hex digest of the bundle that decided
    decision: bytes  # digest of the policy's own permit
    nonce: bytes  # the agent's
    issued_at_s: int
    not_after_s: int

    def to_bytes(self) -> bytes:
        members = {
            "broker_id": b64u(self.broker_id),
            "subject": self.subject,
            "jkt": self.jkt,
            "sealing_key": b64u(self.sealing_key),
            "suite": self.suite,
            "name": self.name,
            "version": self.version,
            "labels": list(self.labels),
            "policy": self.policy,
            "decision": b64u(self.decision),
            "nonce": b64u(self.nonce),
            "issued_at_s": self.issued_at_s,
            "not_after_s": self.not_after_s,
        }
        return _SORTED.encode(members).encode("ascii")

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        read = Reader(parse_object(raw, max_len=MAX_PERMIT), "permit")
        return cls(
            broker_id=read.raw("broker_id", size=32),
            subject=read.text("subject", max_len=MAX_SUBJECT),
            jkt=read.text("jkt", max_len=43),
            sealing_key=read.raw("sealing_key", size=32),
            suite=read.text("suite", max_len=64),
            name=read.text("name", max_len=MAX_RESOURCE, pattern=RESOURCE),
            version=read.number("version", low=1, high=MAX_VERSION),
            labels=read.texts("labels", max_items=MAX_LABELS, max_len=MAX_LABEL),
            policy=read.text("policy", max_len=64),
            decision=read.raw("decision", size=32),
            nonce=read.raw("nonce", size=NONCE_LEN),
            issued_at_s=read.number("issued_at_s"),
            not_after_s=read.number("not_after_s"),
        )


def permit_digest(permit: bytes) -> bytes:
    """SHA-256 over the tagged permit bytes: the `context` (HPKE info) under which the secret is sealed."""
    return hashlib.sha256(tagged(Tag.PERMIT, permit)).digest()


def _message(permit: bytes, sealed: bytes) -> bytes:
    return tagged(Tag.RELEASE, permit, hashlib.sha256(sealed).digest())


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseResponse:
    """The answer to a release: ciphertext, permit bytes, the broker's signature over both, and the log's receipt."""

    sealed: bytes
    suite: str
    permit: bytes
    signature: bytes
    receipt: Receipt

    @classmethod
    def sign(
        cls, key: ec.EllipticCurvePrivateKey, *, sealed: bytes, suite: str, permit: bytes, receipt: Receipt
    ) -> Self:
        signature = es256_sign(key, _message(permit, sealed))
        return cls(sealed=sealed, suite=suite, permit=permit, signature=signature, receipt=receipt)

    @property
    def context(self) -> bytes:
        return permit_digest(self.permit)

    def verify(
        self,
        broker_key: ec.EllipticCurvePublicKey,
        *,
        broker_id: bytes,
        jkt: str,
        sealing_key: bytes,
        name: str,
        nonce: bytes,
    ) -> ReleasePermit:
        """The permit, if the broker signed it and it answers this very request. Then, and only then, open.

        `sealing_key` is the thumbprint of the agent's own key. Raises WireError: release.signature_invalid,
        release.mismatch, body.*.
        """
        if not es256_valid(broker_key, self.signature, _message(self.permit, self.sealed)):
            raise WireError(WireCode.RELEASE_SIGNATURE, "not signed by the broker's identity key")
        permit = ReleasePermit.from_bytes(self.permit)
        same = (
            hmac.compare_digest(permit.broker_id, broker_id)
            and hmac.compare_digest(permit.sealing_key, sealing_key)
            and hmac.compare_digest(permit.nonce, nonce)
            and permit.jkt == jkt
            and permit.name == name
            and permit.suite == self.suite
        )
        if not same:
            raise WireError(WireCode.RELEASE_MISMATCH, f"permit is for {permit.name!a} and {permit.subject!a}")
        return permit

    def to_dict(self) -> dict[str, Any]:
        return {
            "sealed": b64u(self.sealed),
            "suite": self.suite,
            "permit": b64u(self.permit),
            "permit_digest": b64u(self.context),
            "signature": b64u(self.signature),
            "receipt": self.receipt.to_dict(),
        }

    @classmethod
    def from_dict(cls, value: object) -> Self:
        """`permit_digest` is for readers; it is recomputed here, not believed."""
        read = Reader(value, "release")
        return cls(
            sealed=read.raw("sealed", max_len=MAX_SEALED),
            suite=read.text("suite", max_len=64),
            permit=read.raw("permit", max_len=MAX_PERMIT),
            signature=read.raw("signature", size=ES256_SIGNATURE_LEN),
            receipt=Receipt.from_dict(read.mapping("receipt")),
        )
