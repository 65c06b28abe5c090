"""DPoP proofs (RFC 9449) as both ends build and read them, stricter than the RFC where it leaves a choice.

A proof is an ES256 JWT of type dpop+jwt whose header carries the public key. Claims: `htm`, `htu`, `iat`, `jti` as in
RFC 9449 §4.2, `ath` when a token goes with it, `nonce` from the server (mandatory at our doors; it replaces the window
around `iat`), and `bh`: base64url(SHA-256(body)), the empty body's hash included, so that a proof fits one body only.

Reading decides whether a proof is well formed and signed by the key it shows. Whether the nonce is ours, the `jti` new,
the address the configured one and the key the token's is for the server to decide.
"""

import hashlib
import secrets
from dataclasses import dataclass
from typing import Final, final

from cryptography.hazmat.primitives.asymmetric import ec

from attestation import es256
from broker.wire.errors import WireCode, WireError
from broker.wire.jose import b64u, es256_valid, jwk, p256_from_spki, sign_compact, spki_from_jwk, split_compact

TYP: Final = "dpop+jwt"
MAX_PROOF: Final = 4096  # characters
MAX_URL: Final = 1024
MAX_JTI: Final = 64
MAX_NONCE: Final = 128


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """A well-formed, correctly signed proof. What it claims must still be compared."""

    key: ec.EllipticCurvePublicKey
    jkt: str
    htm: str
    htu: str
    iat: int
    jti: str
    nonce: str | None
    ath: str | None
    bh: str


def token_hash(token: str) -> str:
    """`ath`: base64url(SHA-256(the token's ASCII))."""
    return b64u(hashlib.sha256(token.encode("ascii")).digest())


def body_hash(body: bytes) -> str:
    """`bh`: base64url(SHA-256(body))."""
    return b64u(hashlib.sha256(body).digest())


def build(
    key: ec.EllipticCurvePrivateKey,
    *,
    method: str,
    url: str,
    body: bytes,
    at_s: int,
    nonce: str | None,
    token: str | None = None,
) -> str:
    """A proof for one request. `url` is the broker's public URL of the endpoint, without query and fragment."""
    claims: dict[str, str | int] = {
        "jti": b64u(secrets.token_bytes(16)),
        "htm": method,
        "htu": url,
        "iat": at_s,
        "bh": body_hash(body),
    }
    if nonce is not None:
        claims["nonce"] = nonce
    if token is not None:
        claims["ath"] = token_hash(token)
    return sign_compact({"typ": TYP, "alg": "ES256", "jwk": jwk(key.public_key())}, claims, key)


def parse(text: str) -> Proof:
    """Raises WireError: dpop.malformed, dpop.signature_invalid."""
    try:
        header, claims, signing_input, signature = split_compact(text, max_len=MAX_PROOF)
        if header.get("typ") != TYP:
            raise ValueError("typ must be dpop+jwt")
        shown = spki_from_jwk(header.get("jwk"))
        key = p256_from_spki(shown)
    except ValueError as error:
        raise WireError(WireCode.DPOP_MALFORMED, str(error)) from None
    proof = Proof(
        key=key,
        jkt=es256.thumbprint(shown),
        htm=_text(claims, "htm", 16),
        htu=_text(claims, "htu", MAX_URL),
        iat=_integer(claims, "iat"),
        jti=_text(claims, "jti", MAX_JTI),
        nonce=_optional(claims, "nonce", MAX_NONCE),
        ath=_optional(claims, "ath", 43),
        bh=_text(claims, "bh", 43),
    )
    if not es256_valid(key, signature, signing_input):
        raise WireError(WireCode.DPOP_SIGNATURE, "signature does not fit the key in the header")
    return proof


def _text(claims: dict[str, object], name: str, max_len: int) -> str:
    found = claims.get(name)
    if not isinstance(found, str) or not 0 < len(found) <= max_len or not found.isascii():
        raise WireError(WireCode.DPOP_MALFORMED, f"{name} must be text of 1 to {max_len} characters")
    return found


def _optional(claims: dict[str, object], name: str, max_len: int) -> str | None:
    return _text(claims, name, max_len) if name in claims else None


def _integer(claims: dict[str, object], name: str) -> int:
    found = claims.get(name)
    if not isinstance(found, int) or isinstance(found, bool) or not 0 <= found < 2**53:
        raise WireError(WireCode.DPOP_MALFORMED, f"{name} must be an integer")
    return found
