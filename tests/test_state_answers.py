"""The broker's word about a checkpoint counts for that mailbox, nonce, number and digest alone."""

from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from broker.wire.errors import WireCode, WireError
from broker.wire.state import StateResponse, state_digest

KEY, OTHER = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
NONCE = b"n" * 32
ANSWER = StateResponse.sign(KEY, mailbox="acme/mail/jobs", number=7, digest=state_digest(b"seen"), nonce=NONCE)


def test_what_the_broker_signed_is_taken() -> None:
    ANSWER.verify(KEY.public_key(), mailbox="acme/mail/jobs", nonce=NONCE)


@pytest.mark.parametrize(
    ("answer", "key", "mailbox", "nonce"),
    [
        pytest.param(replace(ANSWER, number=6), KEY, "acme/mail/jobs", NONCE, id="number"),
        pytest.param(replace(ANSWER, digest=bytes(32)), KEY, "acme/mail/jobs", NONCE, id="digest"),
        pytest.param(ANSWER, OTHER, "acme/mail/jobs", NONCE, id="key"),
        pytest.param(ANSWER, KEY, "acme/mail/job", NONCE, id="mailbox"),
        pytest.param(ANSWER, KEY, "acme/mail/jobs", bytes(32), id="nonce"),
    ],
)
def test_what_the_broker_did_not_sign_is_refused(
    answer: StateResponse, key: ec.EllipticCurvePrivateKey, mailbox: str, nonce: bytes
) -> None:
    with pytest.raises(WireError) as refused:
        answer.verify(key.public_key(), mailbox=mailbox, nonce=nonce)
    assert refused.value.code is WireCode.STATE_SIGNATURE
