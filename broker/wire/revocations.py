"""Who may no longer speak, as the broker signs it over a reader's own nonce.

Decides the form. A peer's token lives for minutes after its holder fell; whoever opens mail or a channel compares the
sender with a list that is younger than a minute. Only agents whose tokens could still be alive are on it.
"""

import hashlib
from dataclasses import dataclass
from typing import Any, Final, Self, final

from cryptography.hazmat.primitives.asymmetric import ec

from broker.wire.errors import WireCode, WireError
from broker.wire.fields import NONCE_LEN, Reader
from broker.wire.jose import ES256_SIGNATURE_LEN, b64u, es256_sign, es256_valid
from broker.wire.names import MAX_SUBJECT
from broker.wire.tags import Tag, tagged, u64

MAX_FALLEN: Final = 65_536


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RevocationsRequest:
    """POST /v1/revocations. A fresh nonce of the agent, so that no older list can answer."""

    nonce: bytes

    def to_dict(self) -> dict[str, Any]:
        return {"nonce": b64u(self.nonce)}

    @classmethod
    def from_dict(cls, value: object) -> Self:
        read = Reader(value, "revocations")
        made = cls(nonce=read.raw("nonce", size=NONCE_LEN))
        read.end()
        return made


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Revocations:
    """Everybody quarantined or revoked whose tokens could still be alive, at that second, in that generation."""

    at_s: int
    generation: int
    fallen: tuple[str, ...]
    signature: bytes

    @classmethod
    def sign(
        cls, identity: ec.EllipticCurvePrivateKey, *, at_s: int, generation: int, fallen: tuple[str, ...], nonce: bytes
    ) -> Self:
        signature = es256_sign(identity, _message(at_s, generation, fallen, nonce))
        return cls(at_s=at_s, generation=generation, fallen=fallen, signature=signature)

    def verify(self, broker_key: ec.EllipticCurvePublicKey, *, nonce: bytes) -> None:
        """Raises WireError revocations.signature_invalid."""
        if not es256_valid(broker_key, self.signature, _message(self.at_s, self.generation, self.fallen, nonce)):
            raise WireError(WireCode.REVOCATIONS_SIGNATURE, "not signed by the broker over this nonce")

    def to_dict(self) -> dict[str, Any]:
        return {
            "at_s": self.at_s,
            "generation": self.generation,
            "fallen": list(self.fallen),
            "signature": b64u(self.signature),
        }

    @classmethod
    def from_dict(cls, value: object) -> Self:
        read = Reader(value, "revocations")
        return cls(
            at_s=read.number("at_s"),
            generation=read.number("generation"),
            fallen=read.texts("fallen", max_items=MAX_FALLEN, max_len=MAX_SUBJECT),
            signature=read.raw("signature", size=ES256_SIGNATURE_LEN),
        )


def _message(at_s: int, generation: int, fallen: tuple[str, ...], nonce: bytes) -> bytes:
    names = hashlib.sha256(tagged(Tag.REVOCATIONS, *(subject.encode() for subject in fallen))).digest()
    return tagged(Tag.REVOCATIONS, u64(at_s), u64(generation), names, nonce)
