"""JSON Web Tokens, written one way and read strictly.

Decides what a well-formed, authentic and current token is: compact form, ES256, a header of `alg`, `kid` and `typ`
and nothing else, the key chosen by `kid` from the reader's own map, canonical base64url, unambiguous JSON, exact
`typ`, `iss` and `aud`, integer times, a short life. What the claims say is left to the caller.

The library does the signature; everything lenient about JWT is settled here before it is asked.
Sources: RFC 7515 (JWS), RFC 7519 (JWT), RFC 8725 (best current practices).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from attestation.encoding import b64url, compact_json, from_b64url, strict_json
from attestation.errors import Code, TokenRefused

MAX_TOKEN: Final = 64 << 10
"""Bytes of the whole token."""
MAX_HEADER: Final = 8 << 10
"""Characters of its first part."""
MAX_LIFE_S: Final = 300
LAST_S: Final = 253_402_300_799
"""The last Unix second that a datetime can hold."""
SKEW_S: Final = 60
_ALGORITHM: Final = "ES256"
_ES256: Final = ECAlgorithm(ECAlgorithm.SHA256, ec.SECP256R1)

Keys = Mapping[str, ec.EllipticCurvePublicKey]
"""kid → public key on P-256."""


def write(claims: Mapping[str, Any], *, typ: str, key: ec.EllipticCurvePrivateKey, kid: str) -> str:
    """A signed compact token.

    Raises TokenRefused: token.too_large, token.claims_invalid (text that is not Unicode); ValueError for a key on
    another curve.
    """
    try:
        payload = compact_json(claims)
    except ValueError as error:
        raise TokenRefused(Code.TOKEN_CLAIMS, f"a claim cannot be written: {error}") from error
    return write_payload(payload, typ=typ, key=key, kid=kid)


def write_payload(payload: bytes, *, typ: str, key: ec.EllipticCurvePrivateKey, kid: str) -> str:
    """The same for claims that are JSON already, as `compact_json` would have written them."""
    if not isinstance(key.curve, ec.SECP256R1):
        raise ValueError("tokens are signed with a P-256 key")
    said = f"{_header(kid, typ)}.{b64url(payload)}"
    token = f"{said}.{b64url(_ES256.sign(said.encode(), key))}"
    if len(token) > MAX_TOKEN:
        raise TokenRefused(Code.TOKEN_TOO_LARGE, f"{len(token)} bytes, at most {MAX_TOKEN}")
    return token


@lru_cache(maxsize=64)
def _header(kid: str, typ: str) -> str:
    """The first part, the same for every token of one kind under one key."""
    try:
        return b64url(compact_json({"alg": _ALGORITHM, "kid": kid, "typ": typ}))
    except ValueError as error:
        raise TokenRefused(Code.TOKEN_CLAIMS, f"the header cannot be written: {error}") from error


def read(
    token: str, *, typ: str, keys: Keys, issuer: str, audience: str, at: datetime, skew_s: int = SKEW_S
) -> dict[str, Any]:
    """The claims of a token that may be believed at `at`, clocks differing by at most `skew_s` seconds.

    Raises TokenRefused: token.*; TypeError for a naive `at`; ValueError for a skew beyond MAX_LIFE_S.
    """
    if at.utcoffset() is None:
        raise TypeError("at must be an aware datetime")
    if not 0 <= skew_s <= MAX_LIFE_S:
        raise ValueError(f"clocks may differ by 0 to {MAX_LIFE_S} s")
    head, body, signature = _parts(token)
    key = _key(_object(head, "header"), typ, keys)
    if not _ES256.verify(f"{head}.{body}".encode(), key, signature):
        raise TokenRefused(Code.TOKEN_SIGNATURE, "the signature does not verify")
    claims = _object(body, "payload")
    _check_parties(claims, issuer, audience)
    _check_times(claims, at.timestamp(), skew_s)
    return claims


def text(claims: Mapping[str, Any], name: str, *, most: int = 512) -> str:
    """A text claim of 1 to `most` characters. Raises TokenRefused token.claims_invalid."""
    value = claims.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= most:
        raise TokenRefused(Code.TOKEN_CLAIMS, f"{name} is not text of 1 to {most} characters")
    return value


def _parts(token: object) -> tuple[str, str, bytes]:
    """Tokens come from outside, so anything may stand here."""
    if type(token) is not str or not token.isascii():
        raise TokenRefused(Code.TOKEN_MALFORMED, "not ASCII text")
    if len(token) > MAX_TOKEN:
        raise TokenRefused(Code.TOKEN_TOO_LARGE, f"{len(token)} bytes, at most {MAX_TOKEN}")
    parts = token.split(".", 3)
    if len(parts) != 3:
        raise TokenRefused(Code.TOKEN_MALFORMED, "not three parts")
    head, body, signature = parts
    if len(head) > MAX_HEADER:
        raise TokenRefused(Code.TOKEN_TOO_LARGE, f"header has {len(head)} characters, at most {MAX_HEADER}")
    try:
        return head, body, from_b64url(signature)
    except ValueError as error:
        raise TokenRefused(Code.TOKEN_MALFORMED, f"signature: {error}") from error


def _object(part: str, what: str) -> dict[str, Any]:
    try:
        members = strict_json(from_b64url(part))
    except ValueError as error:
        raise TokenRefused(Code.TOKEN_MALFORMED, f"{what}: {error}") from error
    if not isinstance(members, dict):
        raise TokenRefused(Code.TOKEN_MALFORMED, f"{what} is not an object")
    return members


def _key(header: dict[str, Any], typ: str, keys: Keys) -> ec.EllipticCurvePublicKey:
    if surplus := header.keys() - {"alg", "kid", "typ"}:
        raise TokenRefused(Code.TOKEN_CRITICAL, f"{len(surplus)} header members beside alg, kid and typ")
    if header.get("alg") != _ALGORITHM:
        raise TokenRefused(Code.TOKEN_ALGORITHM, f"only {_ALGORITHM} is read")
    if header.get("typ") != typ:
        raise TokenRefused(Code.TOKEN_TYPE, f"typ is not {typ}")
    kid = header.get("kid")
    key = keys.get(kid) if isinstance(kid, str) else None
    if key is None or not isinstance(key.curve, ec.SECP256R1):
        raise TokenRefused(Code.TOKEN_KEY, "kid names no key of this issuer")
    return key


def _check_parties(claims: dict[str, Any], issuer: str, audience: str) -> None:
    if not issuer or claims.get("iss") != issuer:
        raise TokenRefused(Code.TOKEN_ISSUER, f"iss is not {issuer}")
    if not audience or claims.get("aud") != audience:  # a list is another audience, even a list of one
        raise TokenRefused(Code.TOKEN_AUDIENCE, f"aud is not {audience}")


def _check_times(claims: dict[str, Any], now: float, skew_s: int) -> None:
    issued, ends = claims.get("iat"), claims.get("exp")
    begins = claims.get("nbf", issued)
    if type(issued) is not int or type(ends) is not int or type(begins) is not int:
        raise TokenRefused(Code.TOKEN_CLAIMS, "iat, exp and nbf (where there is one) must be integers")
    if not 0 < ends - issued <= MAX_LIFE_S:
        raise TokenRefused(Code.TOKEN_LIFETIME, f"lives {ends - issued} s, need 1 to {MAX_LIFE_S}")
    if min(issued, begins) < 0 or max(ends, begins) > LAST_S:
        raise TokenRefused(Code.TOKEN_CLAIMS, "iat, exp or nbf is no time from 1970 to 9999")
    if max(issued, begins) > now + skew_s:
        raise TokenRefused(Code.TOKEN_NOT_YET, f"begins {max(issued, begins) - now:.0f} s in the future")
    if now >= ends + skew_s:
        raise TokenRefused(Code.TOKEN_EXPIRED, f"ended {now - ends:.0f} s ago")
