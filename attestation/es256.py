"""ECDSA over P-256 with SHA-256 in the form JOSE uses: raw 64-byte signatures, SPKI keys, RFC 7638 thumbprints.

Decides which bytes are a P-256 public key (one DER encoding, uncompressed, on the curve) and whether a signature
verifies. What a signature means, and its domain tag, is the business of whoever builds the message.

Sources: RFC 7518 §3.4 (raw signature); RFC 5480 (SPKI of an EC key); RFC 7638 (thumbprint).
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attestation.encoding import b64url, from_b64url

SIGNATURE_SIZE: Final = 64
SPKI_SIZE: Final = 91
# SEQUENCE { SEQUENCE { id-ecPublicKey, prime256v1 }, BIT STRING } up to and with the byte 04 (uncompressed)
_SPKI_PREFIX: Final = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d03010703420004")
_ECDSA: Final = ec.ECDSA(SHA256())
_CURVE: Final = ec.SECP256R1()


@lru_cache(maxsize=4096)
def load_public(spki: bytes) -> ec.EllipticCurvePublicKey:
    """ValueError unless these are the 91 bytes that DER has for an uncompressed point on P-256.

    Remembered, because a key is loaded wherever it is looked at.
    """
    if len(spki) != SPKI_SIZE or not spki.startswith(_SPKI_PREFIX):
        raise ValueError("not the SPKI of an uncompressed P-256 key")
    return ec.EllipticCurvePublicKey.from_encoded_point(_CURVE, spki[len(_SPKI_PREFIX) - 1 :])


def dump_public(key: ec.EllipticCurvePublicKey) -> bytes:
    """SPKI DER, 91 bytes. ValueError for another curve."""
    if not isinstance(key.curve, ec.SECP256R1):
        raise ValueError("not a P-256 key")
    return _SPKI_PREFIX[:-1] + key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def jwk(spki: bytes) -> dict[str, str]:
    """The public key as a JWK with its four required members. The bytes must have passed `load_public`."""
    x, y = spki[-64:-32], spki[-32:]
    return {"crv": "P-256", "kty": "EC", "x": b64url(x), "y": b64url(y)}


def from_jwk(members: dict[str, object]) -> bytes:
    """SPKI of a JWK; members beyond the required four are ignored. ValueError unless it is a P-256 public key."""
    x, y = members.get("x"), members.get("y")
    if members.get("kty") != "EC" or members.get("crv") != "P-256" or "d" in members:
        raise ValueError("not a P-256 public key")
    if not isinstance(x, str) or not isinstance(y, str):
        raise ValueError("x and y must be text")
    spki = _SPKI_PREFIX + from_b64url(x) + from_b64url(y)
    if len(x) != len(y):
        raise ValueError("x and y have 32 bytes each")
    load_public(spki)
    return spki


@lru_cache(maxsize=4096)
def thumbprint(spki: bytes) -> str:
    """RFC 7638: base64url of SHA-256 over the JWK's required members in their order. Remembered, like the key."""
    key = jwk(spki)
    text = f'{{"crv":"P-256","kty":"EC","x":"{key["x"]}","y":"{key["y"]}"}}'
    return b64url(hashlib.sha256(text.encode()).digest())


def sign(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    """r ‖ s, 32 bytes each. ValueError for a key on another curve."""
    if type(key.curve) is not ec.SECP256R1:
        raise ValueError("not a P-256 key")
    r, s = decode_dss_signature(key.sign(message, _ECDSA))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def verify(key: ec.EllipticCurvePublicKey, signature: bytes, message: bytes) -> bool:
    """Whether `signature` (raw, 64 bytes) is the key's over `message`."""
    if len(signature) != SIGNATURE_SIZE:
        return False
    der = encode_dss_signature(int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big"))
    try:
        key.verify(der, message, _ECDSA)
    except InvalidSignature:
        return False
    return True
