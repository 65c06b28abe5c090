"""secp256k1 as dstack uses it: keys from 32 bytes, signatures from which the public key can be recovered.

Decides the one thing that `cryptography` does not offer, the recovery id; keys, signing and checking are its. Numbers
are big-endian. Sources: SEC 1 and SEC 2 (curve, point encoding, recovery); RFC 6979.
"""

from __future__ import annotations

from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

ORDER: Final = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
_FIELD: Final = 2**256 - 2**32 - 977
_GENERATOR: Final = (
    0x79BE667EF9DCBBAC55A06295CE870B07029BFCDB2DCE28D959F2815B16F81798,
    0x483ADA7726A3C4655DA4FBFC0E1108A8FD17B448A68554199C47D08FFB10D4B8,
)
_PREHASHED: Final = ec.ECDSA(utils.Prehashed(hashes.SHA256()), deterministic_signing=True)
_CHECKED: Final = ec.ECDSA(utils.Prehashed(hashes.SHA256()))

Point = tuple[int, int] | None
"""Affine coordinates; None is the point at infinity."""


def private_key(secret: bytes) -> ec.EllipticCurvePrivateKey:
    """The key whose number these 32 bytes are. Raises ValueError for zero and for the group order and above."""
    return ec.derive_private_key(int.from_bytes(secret, "big"), ec.SECP256K1())


def compressed(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The public key: 33 bytes, 02 or 03 and x."""
    return key.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)


def sign_recoverable(key: ec.EllipticCurvePrivateKey, digest: bytes) -> bytes:
    """65 bytes over a 32-byte digest: r ‖ s ‖ recovery id; s is the smaller of its two values."""
    r, s = utils.decode_dss_signature(key.sign(digest, _PREHASHED))
    public = key.public_key().public_numbers()
    inverse = pow(s, -1, ORDER)
    nonce_point = _add(
        _multiply(int.from_bytes(digest, "big") * inverse % ORDER, _GENERATOR),
        _multiply(r * inverse % ORDER, (public.x, public.y)),
    )
    if nonce_point is None:
        raise ValueError("not a signature of this key")
    odd = nonce_point[1] & 1
    if s > ORDER // 2:
        s, odd = ORDER - s, odd ^ 1
    recovery = odd | (2 if nonce_point[0] >= ORDER else 0)
    return r.to_bytes(32, "big") + s.to_bytes(32, "big") + bytes((recovery,))


def sign(key: ec.EllipticCurvePrivateKey, digest: bytes) -> bytes:
    """64 bytes: r ‖ s."""
    return sign_recoverable(key, digest)[:64]


def verify(public: bytes, digest: bytes, signature: bytes) -> bool:
    """Whether 64 bytes (or 65, the last ignored) are a signature by the key with this SEC 1 encoding."""
    if len(signature) not in (64, 65):
        return False
    encoded = utils.encode_dss_signature(int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:64], "big"))
    try:
        ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256K1(), public).verify(encoded, digest, _CHECKED)
    except (InvalidSignature, ValueError):
        return False
    return True


def _add(a: Point, b: Point) -> Point:
    if a is None or b is None:
        return a or b
    if a[0] == b[0]:
        if (a[1] + b[1]) % _FIELD == 0:
            return None
        slope = 3 * a[0] * a[0] * pow(2 * a[1], -1, _FIELD)
    else:
        slope = (b[1] - a[1]) * pow(b[0] - a[0], -1, _FIELD)
    x = (slope * slope - a[0] - b[0]) % _FIELD
    return x, (slope * (a[0] - x) - a[1]) % _FIELD


def _multiply(scalar: int, point: Point) -> Point:
    """Double and add. Not constant-time: the keys are pretend ones."""
    total: Point = None
    while scalar:
        if scalar & 1:
            total = _add(total, point)
        point = _add(point, point)
        scalar >>= 1
    return total
