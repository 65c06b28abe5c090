"""How a broker says who it is: the keys that its log key vouches for, and its signature over both nonces.

An agent pins the broker's id, the hash of the log key. The log key signs the identity key and the token keys; the
identity key signs every challenge answer. `verify` on the answer is all that an agent has to call before it sends
anything, unless it wants the broker itself attested: then `evidence`, named in what is signed, is judged too.
"""

import hmac
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Self, final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from broker.wire.errors import WireCode, WireError
from broker.wire.evidence import BrokerEvidence
from broker.wire.fields import NONCE_LEN, Reader
from broker.wire.jose import ES256_SIGNATURE_LEN, MAX_SPKI, b64u, es256_sign, es256_valid, p256_from_spki
from broker.wire.log import broker_id
from broker.wire.tags import Tag, tagged, u64

DIGEST_LEN: Final = 32
MAX_KID: Final = 64
MAX_ISSUER: Final = 1024
MAX_TOKEN_KEYS: Final = 8


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TokenKey:
    """A key that signs admission tokens: `kid` and DER SubjectPublicKeyInfo, P-256."""

    kid: str
    spki: bytes


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerKeys:
    """The broker's working keys, signed by its log key. Seconds since 1970; an answer's `at_s` judges `not_after_s`."""

    log_key: bytes  # Ed25519, 32 raw bytes
    log_name: str  # origin of the log's checkpoints
    issuer: str  # `iss` of admission tokens
    identity_key: bytes  # P-256, DER SubjectPublicKeyInfo
    token_keys: tuple[TokenKey, ...]
    issued_at_s: int
    not_after_s: int
    signature: bytes  # Ed25519, 64 bytes

    def message(self) -> bytes:
        keys = [part for key in self.token_keys for part in (key.kid.encode(), key.spki)]
        return tagged(
            Tag.BROKER_KEYS,
            self.log_key,
            self.log_name.encode(),
            self.issuer.encode(),
            self.identity_key,
            u64(self.issued_at_s),
            u64(self.not_after_s),
            *keys,
        )

    @classmethod
    def sign(
        cls,
        key: Ed25519PrivateKey,
        *,
        log_key: bytes,
        log_name: str,
        issuer: str,
        identity_key: bytes,
        token_keys: tuple[TokenKey, ...],
        issued_at_s: int,
        not_after_s: int,
    ) -> Self:
        def made(signature: bytes) -> Self:
            return cls(
                log_key=log_key,
                log_name=log_name,
                issuer=issuer,
                identity_key=identity_key,
                token_keys=token_keys,
                issued_at_s=issued_at_s,
                not_after_s=not_after_s,
                signature=signature,
            )

        return made(key.sign(made(b"").message()))

    def verify(self, pinned: bytes, *, at_s: int) -> ec.EllipticCurvePublicKey:
        """The identity key, if the broker with the pinned id vouches for it at that time.

        Raises WireError: challenge.wrong_broker, challenge.signature_invalid.
        """
        if not hmac.compare_digest(broker_id(self.log_key), pinned):
            raise WireError(WireCode.CHALLENGE_WRONG_BROKER, f"log key of broker {broker_id(self.log_key).hex()}")
        try:
            Ed25519PublicKey.from_public_bytes(self.log_key).verify(self.signature, self.message())
            key = p256_from_spki(self.identity_key)
        except (InvalidSignature, ValueError):
            raise WireError(WireCode.CHALLENGE_SIGNATURE, "the log key does not vouch for these keys") from None
        if not self.issued_at_s <= at_s <= self.not_after_s:
            raise WireError(WireCode.CHALLENGE_SIGNATURE, "the broker's keys are outside their validity")
        return key

    def to_dict(self) -> dict[str, Any]:
        return dict(_told(self))

    def _members(self) -> dict[str, Any]:
        return {
            "log_key": b64u(self.log_key),
            "log_name": self.log_name,
            "issuer": self.issuer,
            "identity_key": b64u(self.identity_key),
            "token_keys": [{"kid": key.kid, "spki": b64u(key.spki)} for key in self.token_keys],
            "issued_at_s": self.issued_at_s,
            "not_after_s": self.not_after_s,
            "signature": b64u(self.signature),
        }

    @classmethod
    def from_dict(cls, value: object) -> Self:
        read = Reader(value, "keys")
        return cls(
            log_key=read.raw("log_key", size=32),
            log_name=read.text("log_name", max_len=256),
            issuer=read.text("issuer", max_len=MAX_ISSUER),
            identity_key=read.raw("identity_key", max_len=MAX_SPKI),
            token_keys=read.items("token_keys", _token_key, max_items=MAX_TOKEN_KEYS),
            issued_at_s=read.number("issued_at_s"),
            not_after_s=read.number("not_after_s"),
            signature=read.raw("signature", size=64),
        )


@lru_cache(maxsize=16)
def _told(keys: BrokerKeys) -> dict[str, Any]:
    """One statement goes into very many answers."""
    return keys._members()


def _token_key(value: object) -> TokenKey:
    read = Reader(value, "keys.token_keys")
    return TokenKey(kid=read.text("kid", max_len=MAX_KID), spki=read.raw("spki", max_len=MAX_SPKI))


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ChallengeRequest:
    """POST /v1/challenges. The caller's own 32 random bytes, and the digest of evidence that it has judged already."""

    client_nonce: bytes
    known: bytes | None = None

    def to_dict(self) -> dict[str, Any]:
        known = {} if self.known is None else {"known": b64u(self.known)}
        return {"client_nonce": b64u(self.client_nonce), **known}

    @classmethod
    def from_dict(cls, value: object) -> Self:
        read = Reader(value, "challenge")
        made = cls(
            client_nonce=read.raw("client_nonce", size=NONCE_LEN), known=read.raw_or_none("known", size=DIGEST_LEN)
        )
        read.end()
        return made


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ChallengeResponse:
    """The broker's nonce and its proof of being the broker that it says it is.

    `at_s` is the broker's time and is signed: an agent, whose clock belongs to the host, may take time from here,
    because the answer covers the agent's own nonce. A broker in a trust domain names its evidence by digest, and sends
    it along unless the caller said that it knows it.
    """

    nonce: bytes
    broker_id: bytes
    at_s: int
    expires_s: int  # life of the nonce from `at_s`
    keys: BrokerKeys
    signature: bytes  # ES256 of the identity key
    evidence_digest: bytes = b""  # empty: this broker is not attested
    evidence: BrokerEvidence | None = None

    @staticmethod
    def message(
        *, broker_id: bytes, client_nonce: bytes, nonce: bytes, at_s: int, expires_s: int, evidence_digest: bytes = b""
    ) -> bytes:
        attested = (evidence_digest,) if evidence_digest else ()
        return tagged(Tag.CHALLENGE, broker_id, client_nonce, nonce, u64(at_s), u64(expires_s), *attested)

    @classmethod
    def sign(
        cls,
        key: ec.EllipticCurvePrivateKey,
        *,
        keys: BrokerKeys,
        broker_id: bytes,
        client_nonce: bytes,
        nonce: bytes,
        at_s: int,
        expires_s: int,
        evidence_digest: bytes = b"",
        evidence: BrokerEvidence | None = None,
    ) -> Self:
        message = cls.message(
            broker_id=broker_id,
            client_nonce=client_nonce,
            nonce=nonce,
            at_s=at_s,
            expires_s=expires_s,
            evidence_digest=evidence_digest,
        )
        return cls(
            nonce=nonce,
            broker_id=broker_id,
            at_s=at_s,
            expires_s=expires_s,
            keys=keys,
            signature=es256_sign(key, message),
            evidence_digest=evidence_digest,
            evidence=evidence,
        )

    def verify(self, pinned: bytes, *, client_nonce: bytes) -> ec.EllipticCurvePublicKey:
        """The broker's identity key, proved to be the pinned broker's and to have answered this very nonce.

        Raises WireError: challenge.wrong_broker, challenge.signature_invalid, challenge.evidence_mismatch.
        """
        key = self.keys.verify(pinned, at_s=self.at_s)
        if not hmac.compare_digest(self.broker_id, pinned):
            raise WireError(WireCode.CHALLENGE_WRONG_BROKER, f"answer names broker {self.broker_id.hex()}")
        message = self.message(
            broker_id=self.broker_id,
            client_nonce=client_nonce,
            nonce=self.nonce,
            at_s=self.at_s,
            expires_s=self.expires_s,
            evidence_digest=self.evidence_digest,
        )
        if not es256_valid(key, self.signature, message):
            raise WireError(WireCode.CHALLENGE_SIGNATURE, "the answer is not signed by the broker's identity key")
        if self.evidence is not None and self.evidence.digest != self.evidence_digest:
            raise WireError(WireCode.CHALLENGE_EVIDENCE, "the evidence is not the one that the broker signed for")
        return key

    def to_dict(self) -> dict[str, Any]:
        found = self.brief()
        if self.evidence is not None:
            found["evidence"] = self.evidence.to_dict()
        return found

    def brief(self) -> dict[str, Any]:
        """Without the evidence, which is long and the same for everybody."""
        found: dict[str, Any] = {
            "nonce": b64u(self.nonce),
            "broker_id": b64u(self.broker_id),
            "at_s": self.at_s,
            "expires_s": self.expires_s,
            "keys": self.keys.to_dict(),
            "signature": b64u(self.signature),
        }
        if self.evidence_digest:
            found["evidence_digest"] = b64u(self.evidence_digest)
        return found

    @classmethod
    def from_dict(cls, value: object) -> Self:
        read = Reader(value, "challenge")
        evidence = read.mapping_or_none("evidence")
        return cls(
            nonce=read.raw("nonce", size=NONCE_LEN),
            broker_id=read.raw("broker_id", size=32),
            at_s=read.number("at_s"),
            expires_s=read.number("expires_s", high=3600),
            keys=BrokerKeys.from_dict(read.mapping("keys")),
            signature=read.raw("signature", size=ES256_SIGNATURE_LEN),
            evidence_digest=read.raw_or_none("evidence_digest", size=DIGEST_LEN) or b"",
            evidence=None if evidence is None else BrokerEvidence.from_dict(evidence),
        )
