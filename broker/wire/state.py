"""A reader's checkpoint: what it has received, sealed by itself, under a number that the broker signs.

Decides the form. The disk of a trust domain belongs to its host, who can put back an older one; the number says that it
is older. The broker keeps the newest checkpoint beside the mailbox and signs, over the reader's own nonce, which number
it has and the digest of the bytes; it can't read them without opening the mailbox's keys.
"""

import hashlib
from dataclasses import dataclass
from typing import Any, Final, Self, final

from cryptography.hazmat.primitives.asymmetric import ec

from broker.wire.errors import WireCode, WireError
from broker.wire.fields import NONCE_LEN, Reader
from broker.wire.jose import ES256_SIGNATURE_LEN, b64u, es256_sign, es256_valid
from broker.wire.tags import Tag, tagged, u64

MAX_STATE: Final = 192 * 1024  # in base64 within what a small body may have


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class StateRequest:
    """POST /v1/mailboxes/{name}:state: which checkpoint is the newest? A fresh nonce of the agent."""

    nonce: bytes

    def to_dict(self) -> dict[str, Any]:
        return {"nonce": b64u(self.nonce)}

    @classmethod
    def from_dict(cls, value: object) -> Self:
        read = Reader(value, "state")
        made = cls(nonce=read.raw("nonce", size=NONCE_LEN))
        read.end()
        return made


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SaveRequest:
    """POST /v1/mailboxes/{name}:checkpoint: the next checkpoint. `number` is one more than the newest one's."""

    number: int
    sealed: bytes
    nonce: bytes

    def to_dict(self) -> dict[str, Any]:
        return {"number": self.number, "sealed": b64u(self.sealed), "nonce": b64u(self.nonce)}

    @classmethod
    def from_dict(cls, value: object) -> Self:
        read = Reader(value, "checkpoint")
        made = cls(
            number=read.number("number", low=1),
            sealed=read.raw("sealed", max_len=MAX_STATE),
            nonce=read.raw("nonce", size=NONCE_LEN),
        )
        read.end()
        return made


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class StateResponse:
    """The newest checkpoint's number, 0 when there was never one, its bytes where they are asked for, and the proof."""

    number: int
    digest: bytes  # SHA-256 of the sealed bytes; of nothing for number 0
    sealed: bytes
    signature: bytes

    @classmethod
    def sign(
        cls,
        identity: ec.EllipticCurvePrivateKey,
        *,
        mailbox: str,
        number: int,
        digest: bytes,
        nonce: bytes,
        sealed: bytes = b"",
    ) -> Self:
        message = tagged(Tag.STATE, mailbox.encode(), u64(number), digest, nonce)
        return cls(number=number, digest=digest, sealed=sealed, signature=es256_sign(identity, message))

    def verify(self, broker_key: ec.EllipticCurvePublicKey, *, mailbox: str, nonce: bytes) -> None:
        """Raises WireError state.signature_invalid."""
        message = tagged(Tag.STATE, mailbox.encode(), u64(self.number), self.digest, nonce)
        if not es256_valid(broker_key, self.signature, message):
            raise WireError(WireCode.STATE_SIGNATURE, "not signed by the broker for this mailbox and nonce")

    def to_dict(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "digest": b64u(self.digest),
            "sealed": b64u(self.sealed),
            "signature": b64u(self.signature),
        }

    @classmethod
    def from_dict(cls, value: object) -> Self:
        read = Reader(value, "state")
        return cls(
            number=read.number("number"),
            digest=read.raw("digest", size=32),
            sealed=read.raw("sealed", max_len=MAX_STATE),
            signature=read.raw("signature", size=ES256_SIGNATURE_LEN),
        )


def state_digest(sealed: bytes) -> bytes:
    return hashlib.sha256(sealed).digest()
