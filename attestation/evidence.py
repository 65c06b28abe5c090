"""What an agent sends to be believed: a quote, its event log, and the keys and circumstances that the quote binds.

Decides how a `Binding` becomes the 64 bytes of REPORT_DATA, what form evidence has, and whether its sender holds the
identity key. That the quote is genuine and carries this REPORT_DATA is `verifier`'s business; that the nonce is fresh
and the broker id is our own is the broker's.

The encoding is injective: two different bindings never hash the same bytes. So a quote made for one nonce, role,
tenant, broker or key serves no other (relay, reflection, diversion and concatenation mistakes end here).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from operator import attrgetter
from typing import Any, Final, Self, final

from cryptography.hazmat.primitives.asymmetric import ec

from attestation import es256
from attestation.encoding import b64url, framed, from_b64url, unframed
from attestation.errors import Code, MalformedEvidence, VerificationFailed
from attestation.eventlog import MAX_LOG, EventLog
from attestation.names import SEGMENT
from attestation.quote import MAX_QUOTE

MLKEM768_X25519: Final = "mlkem768-x25519"
X25519: Final = "x25519"
SEALING_KEY_SIZES: Final = {MLKEM768_X25519: 1216, X25519: 32}
"""Suite → bytes of its raw public key (X-Wing: ML-KEM-768 key 1184 ‖ X25519 key 32)."""

BINDING_TAG: Final = b"cloister/binding/v1"
PROOF_TAG: Final = b"cloister/proof/v1"
SEALING_KEY_TAG: Final = b"cloister/sealing-key/v1"
_ID_SIZE: Final = 32
_INIT_DATA_SIZES: Final = (0, 32, 48)


class Role(StrEnum):
    """Who speaks. A quote made in one role proves nothing in another."""

    AGENT = "agent"
    BROKER = "broker"
    PEER = "peer"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """What REPORT_DATA commits to. Raises MalformedEvidence (evidence.*) when a field has not its form.

    Every field has exactly its type: a bytearray could change after it was judged, a text could pass for bytes.

    nonce              32 bytes   the challenge of whoever will judge
    broker_id          32 bytes   SHA-256 of the broker's log key
    identity_key       91 bytes   SPKI DER of the agent's P-256 key
    suite, sealing_key            the HPKE suite by name, and the raw public key that secrets are sealed to
    init_data_digest   0, 32, 48  equals MRCONFIGID where that is used, else empty
    trust_file_digest  32 bytes   SHA-256 of the file that says whom the agent believes
    """

    version: int = 1
    role: Role
    tenant: str
    broker_id: bytes
    nonce: bytes
    identity_key: bytes
    suite: str
    sealing_key: bytes = field(repr=False)
    init_data_digest: bytes = b""
    trust_file_digest: bytes
    _encoded: bytes = field(default=b"", init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if tuple(map(type, _fields(self))) != _TYPES:
            for name, kind in _BINDING_TYPES.items():
                _expect_type(name, getattr(self, name), kind)
        if self.version != 1:
            raise MalformedEvidence(Code.EVIDENCE_FIELD, f"binding version {self.version}, know 1")
        if not SEGMENT.fullmatch(self.tenant):
            raise MalformedEvidence(
                Code.EVIDENCE_FIELD, "tenant is not 1 to 64 of A–Z a–z 0–9 _ . - without a dot first"
            )
        if not len(self.broker_id) == len(self.nonce) == len(self.trust_file_digest) == _ID_SIZE:
            for name in ("broker_id", "nonce", "trust_file_digest"):
                _expect_size(name, getattr(self, name), (_ID_SIZE,))
        _expect_size("init_data_digest", self.init_data_digest, _INIT_DATA_SIZES)
        if self.suite not in SEALING_KEY_SIZES:
            raise MalformedEvidence(Code.EVIDENCE_SUITE, f"know {', '.join(SEALING_KEY_SIZES)}")
        if len(self.sealing_key) != SEALING_KEY_SIZES[self.suite]:
            detail = (
                f"a sealing key of {self.suite} has {SEALING_KEY_SIZES[self.suite]} bytes, not {len(self.sealing_key)}"
            )
            raise MalformedEvidence(Code.EVIDENCE_KEY, detail)
        self.public_key()

    def public_key(self) -> ec.EllipticCurvePublicKey:
        """The identity key, to verify with."""
        try:
            return es256.load_public(self.identity_key)
        except ValueError as error:
            raise MalformedEvidence(Code.EVIDENCE_KEY, f"identity key: {error}") from error

    def encode(self) -> bytes:
        """The tag and every field in the order of the class, each after its length (u32, big-endian)."""
        if not self._encoded:
            encoded = framed(
                BINDING_TAG,
                self.version.to_bytes(4, "big"),
                self.role.encode(),
                self.tenant.encode(),
                self.broker_id,
                self.nonce,
                self.identity_key,
                self.suite.encode(),
                self.sealing_key,
                self.init_data_digest,
                self.trust_file_digest,
            )
            object.__setattr__(self, "_encoded", encoded)
        return self._encoded

    @classmethod
    def decode(cls, encoded: bytes) -> Self:
        """The inverse of `encode`. Raises MalformedEvidence: evidence.*"""
        try:
            tag, version, role, tenant, broker_id, nonce, key, suite, sealing_key, init_data, trust = unframed(encoded)
            if tag != BINDING_TAG or len(version) != 4:
                raise ValueError("another tag or version")
            return cls(
                version=int.from_bytes(version, "big"),
                role=Role(role.decode()),
                tenant=tenant.decode(),
                broker_id=broker_id,
                nonce=nonce,
                identity_key=key,
                suite=suite.decode(),
                sealing_key=sealing_key,
                init_data_digest=init_data,
                trust_file_digest=trust,
            )
        except ValueError as error:
            raise MalformedEvidence(Code.EVIDENCE_MALFORMED, f"no encoded binding: {error}") from error

    @property
    def report_data(self) -> bytes:
        """64 bytes: SHA-512 over `encode()`."""
        return hashlib.sha512(self.encode()).digest()

    @property
    def jkt(self) -> str:
        """RFC 7638 thumbprint of the identity key, base64url."""
        return es256.thumbprint(self.identity_key)

    def to_dict(self) -> dict[str, Any]:
        """JSON members, in order of name; bytes in base64url."""
        return {
            "broker_id": b64url(self.broker_id),
            "identity_key": b64url(self.identity_key),
            "init_data_digest": b64url(self.init_data_digest),
            "nonce": b64url(self.nonce),
            "role": str(self.role),
            "sealing_key": b64url(self.sealing_key),
            "suite": self.suite,
            "tenant": self.tenant,
            "trust_file_digest": b64url(self.trust_file_digest),
            "version": self.version,
        }

    @classmethod
    def from_dict(cls, members: object) -> Self:
        """Raises MalformedEvidence: evidence.*"""
        found = _members("binding", members, _BINDING_MEMBERS)
        version, role = found["version"], found["role"]
        if type(version) is not int or not isinstance(role, str) or role not in _ROLES:
            raise MalformedEvidence(Code.EVIDENCE_FIELD, "binding: version is not 1, or role not agent, broker or peer")
        return cls(
            version=version,
            role=_ROLES[role],
            tenant=_text("tenant", found["tenant"]),
            suite=_text("suite", found["suite"]),
            **{name: _bytes(name, found[name], 1216) for name in _BINDING_BYTES},
        )


_BINDING_BYTES: Final = (
    "broker_id",
    "nonce",
    "identity_key",
    "sealing_key",
    "init_data_digest",
    "trust_file_digest",
)
_BINDING_TYPES: Final[dict[str, type]] = {
    "version": int,
    "role": Role,
    "tenant": str,
    "suite": str,
    **dict.fromkeys(_BINDING_BYTES, bytes),
}
_BINDING_MEMBERS: Final = frozenset(_BINDING_TYPES)
_TYPES: Final = tuple(_BINDING_TYPES.values())
_fields: Final = attrgetter(*_BINDING_TYPES)
_ROLES: Final[dict[str, Role]] = {str(role): role for role in Role}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What goes over the wire, unverified. `proof` is a raw ES256 signature over `proof_message`; `digests` are SHA-256
    of quote and event log as sent, which go into it and name them wherever they are kept.

    Raises MalformedEvidence (evidence.*) when a field has not exactly its type, or not its size.
    """

    quote: bytes = field(repr=False)
    event_log: bytes | None = field(default=None, repr=False)
    binding: Binding
    proof: bytes = field(repr=False)
    digests: tuple[bytes, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _expect_type("quote", self.quote, bytes)
        _expect_type("binding", self.binding, Binding)
        _expect_type("proof", self.proof, bytes)
        if self.event_log is not None:
            _expect_type("event_log", self.event_log, bytes)
        if not 0 < len(self.quote) <= MAX_QUOTE:
            code = Code.EVIDENCE_TOO_LARGE if self.quote else Code.EVIDENCE_FIELD
            raise MalformedEvidence(code, f"quote has {len(self.quote)} bytes, need 1 to {MAX_QUOTE}")
        if self.event_log is not None and len(self.event_log) > MAX_LOG:
            raise MalformedEvidence(Code.EVIDENCE_TOO_LARGE, f"event log has more than {MAX_LOG} bytes")
        _expect_size("proof", self.proof, (es256.SIGNATURE_SIZE,))
        parts = (self.quote,) if self.event_log is None else (self.quote, self.event_log)
        object.__setattr__(self, "digests", tuple([hashlib.sha256(part).digest() for part in parts]))

    def log(self) -> EventLog | None:
        """The event log, parsed. Raises MalformedEvidence eventlog.*"""
        return None if self.event_log is None else EventLog.parse(self.event_log)

    def to_dict(self) -> dict[str, Any]:
        """JSON members: quote, event_log (absent without one), binding, proof; bytes in base64url."""
        log = {} if self.event_log is None else {"event_log": b64url(self.event_log)}
        return {"quote": b64url(self.quote), **log, "binding": self.binding.to_dict(), "proof": b64url(self.proof)}

    @classmethod
    def from_dict(cls, members: object) -> Self:
        """Raises MalformedEvidence: evidence.*; nothing larger than its bound is decoded."""
        found = _members("evidence", members, _EVIDENCE_MEMBERS, _OPTIONAL)
        log = found.get("event_log")
        return cls(
            quote=_bytes("quote", found["quote"], MAX_QUOTE, own=OWN_OF_QUOTE * 4 // 3),
            event_log=None if log is None else _bytes("event_log", log, MAX_LOG, own=0),
            binding=Binding.from_dict(found["binding"]),
            proof=_bytes("proof", found["proof"], es256.SIGNATURE_SIZE),
        )


OWN_OF_QUOTE: Final = 702
"""Bytes that hold the body and its signature of the usual quote, of version 4; what vouches for the attestation key
follows. A multiple of three, so that both parts are base64url texts of their own."""
_MAX_SHARED: Final = 128 << 10
_OPTIONAL: Final = frozenset({"event_log"})
_EVIDENCE_MEMBERS: Final = frozenset({"quote", "binding", "proof"})


def sealing_thumbprint(suite: str, public: bytes) -> bytes:
    """SHA-256 that names one public sealing key in one suite: 32 bytes."""
    return hashlib.sha256(framed(SEALING_KEY_TAG, suite.encode("ascii"), public)).digest()


def proof_message(
    broker_id: bytes, client_nonce: bytes, broker_nonce: bytes, quote: bytes, event_log: bytes | None
) -> bytes:
    """What the identity key signs to show that its holder takes part in this very exchange.

    Tag, broker id, both nonces, SHA-256 of the quote as sent, SHA-256 of the event log as sent (empty without one),
    each after its length.
    """
    digests = [hashlib.sha256(part).digest() for part in (quote, event_log) if part is not None]
    return _proof_message(broker_id, client_nonce, broker_nonce, *digests)


def _proof_message(
    broker_id: bytes, client_nonce: bytes, broker_nonce: bytes, quote_digest: bytes, log_digest: bytes = b""
) -> bytes:
    return framed(PROOF_TAG, broker_id, client_nonce, broker_nonce, quote_digest, log_digest)


def sign_proof(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    """The proof over a `proof_message`: 64 bytes."""
    return es256.sign(key, message)


def verify_proof(evidence: Evidence, *, client_nonce: bytes) -> None:
    """Check the proof of possession for the broker and nonce that the binding names.

    That they are this broker's own and a fresh nonce is for the caller to check. Raises VerificationFailed
    evidence.proof_invalid.
    """
    binding = evidence.binding
    message = _proof_message(binding.broker_id, client_nonce, binding.nonce, *evidence.digests)
    if not es256.verify(binding.public_key(), evidence.proof, message):
        raise VerificationFailed(Code.EVIDENCE_PROOF, "the identity key did not sign this exchange")


@lru_cache(maxsize=64)
def _shared(text: str) -> bytes:
    return from_b64url(text)


def _expect_type(name: str, value: object, kind: type) -> None:
    if type(value) is not kind:
        raise MalformedEvidence(Code.EVIDENCE_FIELD, f"{name} is {type(value).__name__}, not {kind.__name__}")


def _expect_size(name: str, value: bytes, sizes: tuple[int, ...]) -> None:
    if len(value) not in sizes:
        wanted = " or ".join(map(str, sizes))
        raise MalformedEvidence(Code.EVIDENCE_FIELD, f"{name} has {len(value)} bytes, need {wanted}")


def _members(
    what: str, value: object, required: frozenset[str], optional: frozenset[str] = frozenset()
) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise MalformedEvidence(Code.EVIDENCE_MALFORMED, f"{what} is not an object")
    names = value.keys()
    if names == required:
        return value
    if missing := required - names:
        raise MalformedEvidence(Code.EVIDENCE_MALFORMED, f"{what} lacks {', '.join(sorted(missing))}")
    if len(names) > len(required | optional) or not names <= required | optional:
        raise MalformedEvidence(Code.EVIDENCE_MALFORMED, f"{what} has members that do not belong there")
    return value


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise MalformedEvidence(Code.EVIDENCE_FIELD, f"{name} is not text")
    return value


def _bytes(name: str, value: object, most: int, *, own: int | None = None) -> bytes:
    """From the character `own` on, many agents send the same."""
    text = _text(name, value)
    if len(text) > (most * 4 + 2) // 3:
        raise MalformedEvidence(Code.EVIDENCE_TOO_LARGE, f"{name} has more than {most} bytes")
    try:
        if own is not None and own < len(text) <= _MAX_SHARED:
            return from_b64url(text[:own]) + _shared(text[own:])
        return from_b64url(text)
    except ValueError as error:
        raise MalformedEvidence(Code.EVIDENCE_FIELD, f"{name}: {error}") from error
