"""Compact JWS with ES256 (RFC 7515, RFC 7518), strictly: the small part of JOSE that broker and clients speak.

Accepts one spelling of everything: canonical base64url, JSON without duplicate names, `alg` ES256 alone, no `crit`. The
ECDSA and base64url underneath are `attestation`'s. What the claims mean is left to the caller.
"""

from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec

from attestation import es256
from attestation.encoding import b64url as b64u
from attestation.encoding import compact_json, strict_json
from attestation.encoding import from_b64url as unb64u

__all__ = [
    "b64u",
    "es256_sign",
    "es256_valid",
    "jwk",
    "key_from_jwk",
    "p256_from_spki",
    "sign_compact",
    "spki",
    "spki_from_jwk",
    "split_compact",
    "thumbprint",
    "unb64u",
]

ES256_SIGNATURE_LEN: Final = es256.SIGNATURE_SIZE  # r ‖ s, 32 bytes each, big-endian
MAX_SPKI: Final = es256.SPKI_SIZE

p256_from_spki = es256.load_public  # the P-256 key in a DER SubjectPublicKeyInfo, or ValueError
spki = es256.dump_public  # and back
es256_sign = es256.sign  # (key, message) → r ‖ s
es256_valid = es256.verify  # (key, signature, message) → whether it is the key's


def jwk(key: ec.EllipticCurvePublicKey) -> dict[str, str]:
    """The members of a P-256 JWK that RFC 7638 hashes, and no other."""
    return es256.jwk(spki(key))


def key_from_jwk(members: object) -> ec.EllipticCurvePublicKey:
    """Raises ValueError unless it is a public P-256 JWK; a private part (`d`) is refused, not ignored."""
    return p256_from_spki(spki_from_jwk(members))


def spki_from_jwk(members: object) -> bytes:
    """The same key as a DER SubjectPublicKeyInfo."""
    if not isinstance(members, dict):
        raise ValueError("not a JWK")
    return es256.from_jwk(members)


def thumbprint(key: ec.EllipticCurvePublicKey) -> str:
    """RFC 7638 thumbprint, base64url: what `cnf.jkt` holds."""
    return es256.thumbprint(spki(key))


def sign_compact(header: dict[str, Any], claims: dict[str, Any], key: ec.EllipticCurvePrivateKey) -> str:
    """A compact JWS. The caller's header must say `alg` ES256."""
    signing_input = f"{b64u(compact_json(header))}.{b64u(compact_json(claims))}"
    return f"{signing_input}.{b64u(es256_sign(key, signing_input.encode('ascii')))}"


def split_compact(text: str, *, max_len: int) -> tuple[dict[str, Any], dict[str, Any], bytes, bytes]:
    """Header, claims, signing input and signature of a compact JWS; nothing is verified yet. Raises ValueError."""
    if len(text) > max_len or not text.isascii() or text.count(".") != 2:
        raise ValueError("not a compact JWS of acceptable length")
    head, body, tail = text.split(".")
    header, claims = strict_json(unb64u(head)), strict_json(unb64u(body))
    if not isinstance(header, dict) or not isinstance(claims, dict):
        raise ValueError("header and claims must be JSON objects")
    if header.get("alg") != "ES256" or "crit" in header:
        raise ValueError("alg must be ES256, without crit")
    return header, claims, f"{head}.{body}".encode("ascii"), unb64u(tail)
