"""Answers to challenges and proofs of possession as they travel."""

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from broker.wire import dpop
from broker.wire.challenge import BrokerKeys, ChallengeResponse, TokenKey
from broker.wire.errors import WireCode
from broker.wire.jose import b64u, key_from_jwk, sign_compact, spki, thumbprint
from broker.wire.log import (
    broker_id,
    raw_log_key,
)
from tests.wire_world import KEY, LOG, LOG_RAW, OTHER, answer, outcome

URL = "https://broker.example/v1/secrets/acme/db/password:release"


# ── challenges ─────────────────────────────────────────────────────────────────────────────────────────────────────


def broker_keys(log: Ed25519PrivateKey = LOG, identity: ec.EllipticCurvePrivateKey = KEY) -> BrokerKeys:
    return BrokerKeys.sign(
        log,
        log_key=raw_log_key(log.public_key()),
        log_name="broker.example/log",
        issuer="https://broker.example",
        identity_key=spki(identity.public_key()),
        token_keys=(TokenKey(kid="k1", spki=spki(OTHER.public_key())),),
        issued_at_s=100,
        not_after_s=1000,
    )


def test_an_answer_of_the_pinned_broker_to_this_nonce_is_accepted() -> None:
    sent = ChallengeResponse.from_dict(json.loads(json.dumps(answer(broker_keys()).to_dict())))
    assert spki(sent.verify(broker_id(LOG_RAW), client_nonce=b"c" * 32)) == spki(KEY.public_key())


def test_t12_an_answer_of_another_broker_or_to_another_nonce_is_refused() -> None:
    stranger = Ed25519PrivateKey.from_private_bytes(b"s" * 32)
    pinned = broker_id(LOG_RAW)
    wrong = WireCode.CHALLENGE_SIGNATURE
    assert outcome(lambda: answer(broker_keys()).verify(pinned, client_nonce=b"x" * 32)) == wrong
    assert outcome(lambda: answer(broker_keys(identity=OTHER)).verify(pinned, client_nonce=b"c" * 32)) == wrong
    assert outcome(lambda: answer(broker_keys(), at_s=2000).verify(pinned, client_nonce=b"c" * 32)) == wrong
    assert (
        outcome(lambda: answer(broker_keys(stranger)).verify(pinned, client_nonce=b"c" * 32))
        == WireCode.CHALLENGE_WRONG_BROKER
    )


def test_keys_that_the_log_key_did_not_sign_are_refused() -> None:
    members = answer(broker_keys()).to_dict()
    members["keys"]["token_keys"][0]["spki"] = b64u(spki(KEY.public_key()))
    forged = ChallengeResponse.from_dict(members)
    assert outcome(lambda: forged.verify(broker_id(LOG_RAW), client_nonce=b"c" * 32)) == WireCode.CHALLENGE_SIGNATURE


# ── DPoP ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_proof_says_what_it_was_built_for() -> None:
    text = dpop.build(KEY, method="POST", url=URL, body=b"{}", at_s=7, nonce="n", token="t")
    proof = dpop.parse(text)
    assert (proof.htm, proof.htu, proof.iat, proof.nonce) == ("POST", URL, 7, "n")
    assert (proof.ath, proof.bh) == (dpop.token_hash("t"), dpop.body_hash(b"{}"))
    assert proof.jkt == thumbprint(KEY.public_key())


def _proof(head: dict[str, Any], claims: dict[str, Any]) -> str:
    base_head: dict[str, Any] = {"typ": "dpop+jwt", "alg": "ES256", "jwk": broker_jwk()}
    base: dict[str, Any] = {"jti": "j", "htm": "POST", "htu": URL, "iat": 1, "bh": dpop.body_hash(b"")}
    return sign_compact(base_head | head, base | claims, KEY)


def broker_jwk() -> dict[str, str]:
    numbers = KEY.public_key().public_numbers()
    x, y = (b64u(number.to_bytes(32, "big")) for number in (numbers.x, numbers.y))
    return {"kty": "EC", "crv": "P-256", "x": x, "y": y}


@pytest.mark.parametrize(
    ("head", "claims"),
    [
        ({"typ": "JWT"}, {}),
        ({"alg": "none"}, {}),
        ({"alg": "HS256"}, {}),
        ({"crit": ["x"]}, {}),
        ({"jwk": broker_jwk() | {"d": "AAAA"}}, {}),
        ({"jwk": broker_jwk() | {"x": b64u(bytes(32))}}, {}),
        ({"jwk": broker_jwk() | {"crv": "P-384"}}, {}),
        ({"jwk": None}, {}),
        ({}, {"jti": ""}),
        ({}, {"jti": "x" * 65}),
        ({}, {"iat": "now"}),
        ({}, {"iat": True}),
        ({}, {"bh": None}),
        ({}, {"nonce": 5}),
        ({}, {"htu": "x" * 2000}),
    ],
    ids=str,
)
def test_a_proof_of_another_form_is_malformed(head: dict[str, Any], claims: dict[str, Any]) -> None:
    assert outcome(lambda: dpop.parse(_proof(head, claims))) == WireCode.DPOP_MALFORMED


def test_a_proof_signed_by_another_key_is_refused() -> None:
    other = thumbprint(OTHER.public_key())
    numbers = OTHER.public_key().public_numbers()
    shown = {"kty": "EC", "crv": "P-256", "x": b64u(numbers.x.to_bytes(32)), "y": b64u(numbers.y.to_bytes(32))}
    assert thumbprint(key_from_jwk(shown)) == other
    assert outcome(lambda: dpop.parse(_proof({"jwk": shown}, {}))) == WireCode.DPOP_SIGNATURE


@given(text=st.text(max_size=80) | st.from_regex(r"[A-Za-z0-9_-]{1,20}\.[A-Za-z0-9_-]{1,20}\.[A-Za-z0-9_-]{1,20}"))
def test_any_text_is_a_proof_or_malformed(text: str) -> None:
    assert outcome(lambda: dpop.parse(text)) == WireCode.DPOP_MALFORMED
