"""Encrypt to a key inside a trust domain, and open inside it: HPKE in base mode, one message, no state.

Decides the suites, and that a secret is sealed only to the key that a verified quote binds: `seal` takes a Verdict,
never a bare key. `seal_to` is for keys that an identity key has signed (mailbox epochs); whoever calls it has checked
that signature.

HPKE's base mode authenticates nobody: whoever opens must first verify the sender's signature over the sealed bytes.
It has no associated data here either, so everything that must hold (permit, mailbox, direction) goes into `info`.

Suites: X-Wing = ML-KEM-768 + X25519 (KEM 0x647a) by default, X25519 (0x0020) only where it is named; both with
HKDF-SHA256 and AES-256-GCM. One is never replaced by the other silently. Sources: RFC 9180; draft-ietf-hpke-pq;
draft-connolly-cfrg-xwing-kem (key expansion).
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from typing import Final, NoReturn, final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.backends.openssl import backend
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attestation.encoding import framed
from attestation.errors import Code, SealingFailed
from attestation.evidence import MLKEM768_X25519, SEALING_KEY_SIZES, X25519
from attestation.verdict import Verdict

MAX_PLAINTEXT: Final = 16 << 20
"""Bytes. Larger things are encrypted under a key, and the key is sealed."""
SEED_SIZE: Final = 32

_INFO_TAG: Final = b"cloister/seal/v1"
_OVERHEAD: Final = {MLKEM768_X25519: 1120 + 16, X25519: 32 + 16}  # encapsulated key and AES-GCM's tag
_KEM: Final = {MLKEM768_X25519: hpke.KEM.MLKEM768_X25519, X25519: hpke.KEM.X25519}
_SUITES: Final = {name: hpke.Suite(kem, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM) for name, kem in _KEM.items()}
_MLKEM_PUBLIC: Final = 1184


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    """`blob` = encapsulated key ‖ ciphertext ‖ tag. Only the holder of the private key can open it."""

    suite: str
    blob: bytes = field(repr=False)


@final
class SealingKey:
    """A private key, made here and never given out: no repr, no pickle, no copy, no export."""

    __slots__ = ("_private", "public", "suite")

    def __init__(self, suite: str, private: hpke.MLKEM768X25519PrivateKey | X25519PrivateKey, public: bytes) -> None:
        self._private = private
        self.suite = suite
        self.public = public

    @classmethod
    def generate(cls, suite: str = MLKEM768_X25519) -> SealingKey:
        """A new key. Raises SealingFailed: sealing.suite_unknown, sealing.suite_unavailable."""
        return cls.from_seed(os.urandom(SEED_SIZE), suite)

    @classmethod
    def from_seed(cls, seed: bytes, suite: str = MLKEM768_X25519) -> SealingKey:
        """The key of a 32-byte seed (X-Wing's private key format; X25519's scalar). Same seed, same key.

        Raises SealingFailed: sealing.key_invalid, sealing.suite_unknown, sealing.suite_unavailable.
        """
        require(suite)
        if len(seed) != SEED_SIZE:
            raise SealingFailed(Code.SEALING_KEY, f"a seed has {SEED_SIZE} bytes")
        if suite == X25519:
            scalar = X25519PrivateKey.from_private_bytes(seed)
            return cls(suite, scalar, _raw(scalar.public_key()))
        expanded = hashlib.shake_256(seed).digest(96)
        mlkem = MLKEM768PrivateKey.from_seed_bytes(expanded[:64])
        x25519 = X25519PrivateKey.from_private_bytes(expanded[64:])
        public = mlkem.public_key().public_bytes_raw() + _raw(x25519.public_key())
        return cls(suite, hpke.MLKEM768X25519PrivateKey(mlkem, x25519), public)

    def open(self, blob: bytes, info: bytes) -> bytes:
        """The plaintext. Raises SealingFailed sealing.open_failed, whatever the cause was."""
        try:
            return _SUITES[self.suite].decrypt(blob, self._private, info=_info(self.suite, info))
        except (InvalidTag, ValueError) as error:
            raise SealingFailed(Code.SEALING_OPEN, "these bytes do not open with this key and context") from error

    def __repr__(self) -> str:
        return "<SealingKey>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a SealingKey cannot be copied or pickled")


def seal(verdict: Verdict, plaintext: bytes, *, context: bytes) -> Sealed:
    """Encrypt to the sealing key that `verdict` carries; it opens only with the same `context`.

    Raises SealingFailed: sealing.not_bound (the verdict was not made from a Binding), sealing.too_large; TypeError for
    what is not a Verdict.
    """
    if type(verdict) is not Verdict:
        raise TypeError("a secret is sealed to a Verdict only")
    if not verdict.admission or not verdict.sealing_key:
        raise SealingFailed(Code.SEALING_NOT_BOUND, "this verdict was not made from a Binding")
    return seal_to(verdict.suite, verdict.sealing_key, plaintext, info=context)


def seal_to(suite: str, public: bytes, plaintext: bytes, *, info: bytes) -> Sealed:
    """Encrypt to a raw public key of `suite`. The caller has proved whose it is.

    Raises SealingFailed: sealing.suite_unknown, sealing.suite_unavailable, sealing.key_invalid, sealing.too_large.
    """
    require(suite)
    if len(plaintext) > MAX_PLAINTEXT:
        raise SealingFailed(Code.SEALING_TOO_LARGE, f"{len(plaintext)} bytes, at most {MAX_PLAINTEXT}")
    if len(public) != SEALING_KEY_SIZES[suite]:
        raise SealingFailed(Code.SEALING_KEY, f"a key of {suite} has {SEALING_KEY_SIZES[suite]} bytes")
    try:
        key = _public_key(suite, public)
        blob = _SUITES[suite].encrypt(plaintext, key, info=_info(suite, info))
    except ValueError as error:  # coefficients out of range, or a point of small order
        raise SealingFailed(Code.SEALING_KEY, f"not a public key of {suite}") from error
    return Sealed(suite=suite, blob=blob)


def require(suite: str) -> None:
    """Programs call this at start for the suites they will need: better to fail then than at the first release.

    Raises SealingFailed: sealing.suite_unknown, or sealing.suite_unavailable where the library lacks ML-KEM.
    """
    if suite not in _SUITES:
        raise SealingFailed(Code.SEALING_SUITE, f"know {', '.join(_SUITES)}")
    if suite == MLKEM768_X25519 and not backend.mlkem_supported():
        raise SealingFailed(Code.SEALING_UNAVAILABLE, "the cryptography library was built without ML-KEM-768")


def overhead(suite: str) -> int:
    """Bytes that sealing adds to a plaintext."""
    return _OVERHEAD[suite]


def _info(suite: str, info: bytes) -> bytes:
    return framed(_INFO_TAG, suite.encode(), info)


def _public_key(suite: str, public: bytes) -> hpke.MLKEM768X25519PublicKey | X25519PublicKey:
    if suite == X25519:
        return X25519PublicKey.from_public_bytes(public)
    mlkem = MLKEM768PublicKey.from_public_bytes(public[:_MLKEM_PUBLIC])
    return hpke.MLKEM768X25519PublicKey(mlkem, X25519PublicKey.from_public_bytes(public[_MLKEM_PUBLIC:]))


def _raw(key: X25519PublicKey) -> bytes:
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw)
