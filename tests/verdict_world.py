"""Verdicts of a simulated agent, their tokens and results, and what is made of them by changing a word."""

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from attestation import tokens
from attestation.encoding import from_b64url
from attestation.errors import AttestationError
from attestation.verdict import (
    ADMISSION_TYPE,
    Verdict,
    open_result,
    open_token,
    sign_admission,
    sign_result,
)
from tests.admitted import AT, verdict

KEY = ec.derive_private_key(11, ec.SECP256R1())
STRANGER = ec.derive_private_key(12, ec.SECP256R1())
KEYS = {"k1": KEY.public_key(), "k2": STRANGER.public_key()}
BROKER, RESULTS, LEDGER = "https://broker.example", "https://broker.example/results", "https://ledger.example"
POLICY = "9f" * 32


def admission(**changes: Any) -> str:
    arguments: dict[str, Any] = {
        "key": KEY,
        "kid": "k1",
        "issuer": BROKER,
        "audience": LEDGER,
        "at": AT,
        "ttl_s": 300,
        "policy_digest": POLICY,
        "jti": "01JD6Z",
    }
    return sign_admission(changes.pop("verdict", None) or verdict(), **(arguments | changes))


def result(**changes: Any) -> str:
    arguments: dict[str, Any] = {
        "key": KEY,
        "kid": "k1",
        "issuer": RESULTS,
        "audience": LEDGER,
        "at": AT,
        "ttl_s": 300,
        "jti": "01JD70",
    }
    return sign_result(changes.pop("verdict", None) or verdict("bytes"), **(arguments | changes))


def opened(token: str, *, issuer: str = BROKER, audience: str = LEDGER, at: datetime = AT, **more: Any) -> Verdict:
    return open_token(token, keys=KEYS, issuer=issuer, audience=audience, at=at, **more)


def code_of(act: Callable[[], object]) -> str:
    try:
        act()
    except AttestationError as error:
        return error.code
    return "ok"


def claims_of(token: str) -> dict[str, Any]:
    claims: dict[str, Any] = json.loads(from_b64url(token.split(".")[1]))
    return claims


def resigned(claims: dict[str, Any], typ: str = ADMISSION_TYPE) -> str:
    return tokens.write(claims, typ=typ, key=KEY, kid="k1")


def read_result(token: str, nonce: str = "") -> dict[str, Any]:
    return open_result(token, keys=KEYS, issuer=RESULTS, audience=LEDGER, at=AT, nonce=nonce)
