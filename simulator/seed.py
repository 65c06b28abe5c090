"""Everything a machine keeps secret or makes up, derived from one seed.

Decides how a seed becomes keys and identifiers, and how signatures are made: deterministic ECDSA (RFC 6979), so that
the same seed gives the same bytes in every process and on every day. What the keys are for is decided by their users.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final, final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_ECDSA: Final = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)
_DOMAIN: Final = b"cloister-sim/seed/v1\0"

SigningKey = ec.EllipticCurvePrivateKey


@final
class Seed:
    """The secret of one machine. Labels separate its uses: another label, an unrelated value."""

    __slots__ = ("_secret",)

    def __init__(self, secret: bytes) -> None:
        self._secret = hmac.digest(_DOMAIN, secret, "sha512")

    def derive(self, label: str, size: int) -> bytes:
        """`size` bytes, at most 64, that only this seed and this label give."""
        return hmac.digest(self._secret, label.encode(), "sha512")[:size]

    def key(self, label: str) -> SigningKey:
        """A P-256 key."""
        scalar = int.from_bytes(self.derive(f"key/{label}", 64), "big") % (_ORDER - 1) + 1
        return ec.derive_private_key(scalar, ec.SECP256R1())


def sign(key: SigningKey, message: bytes) -> bytes:
    """ECDSA P-256 over SHA-256: 64 bytes, r ‖ s, big-endian."""
    r, s = utils.decode_dss_signature(key.sign(message, _ECDSA))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def public_point(key: SigningKey) -> bytes:
    """The public key as quotes carry it: 64 bytes, x ‖ y, big-endian."""
    return key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)[1:]


def sha256(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def sha384(*parts: bytes) -> bytes:
    return hashlib.sha384(b"".join(parts)).digest()
