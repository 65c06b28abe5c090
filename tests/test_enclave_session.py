"""The agent's half of attestation: nothing leaves before the broker has proved itself, in one legal order."""

import json
import os
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestation.errors import AttestationError, VerificationFailed
from attestation.evidence import Binding, Evidence, verify_proof
from broker.wire.bodies import AttestationRequest
from broker.wire.challenge import BrokerKeys, ChallengeResponse, TokenKey
from broker.wire.errors import WireCode, WireError
from broker.wire.jose import spki
from broker.wire.log import broker_id, raw_log_key
from enclave.clock import BrokerTime
from enclave.errors import Code, EnclaveError
from enclave.keys import AgentKeys
from enclave.session import TRANSITIONS, Session, State, Step
from enclave.trustfile import TrustFile, render
from simulator.machine import Machine

NOW_S = 1_800_000_000
MACHINE = Machine.create(seed="session")
TD = MACHINE.launch("session")


class Signer:
    """The keys of a broker, with which a test signs what a broker would."""

    def __init__(self) -> None:
        self.log = Ed25519PrivateKey.generate()
        self.identity = ec.generate_private_key(ec.SECP256R1())
        self.token = ec.generate_private_key(ec.SECP256R1())
        self.id = broker_id(raw_log_key(self.log.public_key()))

    def keys(self, *, signer: Ed25519PrivateKey | None = None) -> BrokerKeys:
        return BrokerKeys.sign(
            signer or self.log,
            log_key=raw_log_key(self.log.public_key()),
            log_name="log.example",
            issuer="http://127.0.0.1:1",
            identity_key=spki(self.identity.public_key()),
            token_keys=(TokenKey(kid="one", spki=spki(self.token.public_key())),),
            issued_at_s=NOW_S - 10,
            not_after_s=NOW_S + 3600,
        )

    def answer(self, client_nonce: bytes, *, keys: BrokerKeys | None = None, expires_s: int = 60) -> ChallengeResponse:
        return ChallengeResponse.sign(
            self.identity,
            keys=keys or self.keys(),
            broker_id=self.id,
            client_nonce=client_nonce,
            nonce=os.urandom(32),
            at_s=NOW_S,
            expires_s=expires_s,
        )

    def trust(self) -> TrustFile:
        return TrustFile.parse(
            render(tenant="lab", log_key=raw_log_key(self.log.public_key()), roots_pem=(MACHINE.root_pem,))
        )


@pytest.fixture
def broker() -> Signer:
    return Signer()


@pytest.fixture
def keys() -> AgentKeys:
    return AgentKeys.generate()


class Ticks:
    """A monotonic clock that a test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def ticks() -> Ticks:
    return Ticks()


@pytest.fixture
def session(broker: Signer, keys: AgentKeys, ticks: Ticks) -> Session:
    return Session(keys, broker.trust(), BrokerTime(ticks))


def code_of(action: object, *arguments: object) -> str:
    try:
        action(*arguments)  # type: ignore[operator]  # a callable that the test names
    except (EnclaveError, WireError, AttestationError) as error:
        return str(error.code)
    return "ok"


def nonce() -> bytes:
    return os.urandom(32)


def test_the_quote_must_carry_the_binding_of_these_keys_this_nonce_and_this_broker(
    session: Session, broker: Signer, keys: AgentKeys
) -> None:
    question = session.ask(nonce())
    answer = broker.answer(question.client_nonce)
    report_data = session.challenged(answer)
    expected = Binding.from_dict(
        {
            **session._binding.to_dict(),  # type: ignore[union-attr]  # set by challenged()
        }
    )
    assert report_data == expected.report_data
    assert (expected.broker_id, expected.nonce) == (broker.id, answer.nonce)
    assert (expected.identity_key, expected.sealing_key) == (keys.identity_key, keys.sealing_key)
    assert expected.trust_file_digest == broker.trust().digest


def test_evidence_proves_possession_of_the_identity_key_for_both_nonces(session: Session, broker: Signer) -> None:
    question = session.ask(nonce())
    report_data = session.challenged(broker.answer(question.client_nonce))
    request = session.quoted(TD.quote(report_data), TD.event_log())
    evidence = Evidence.from_dict(AttestationRequest.from_dict(request.to_dict()).evidence)
    verify_proof(evidence, client_nonce=question.client_nonce)
    with pytest.raises(VerificationFailed):
        verify_proof(evidence, client_nonce=nonce())


def test_another_brokers_answer_is_refused_before_anything_is_sent(session: Session) -> None:
    question = session.ask(nonce())
    stranger = Signer()
    assert code_of(session.challenged, stranger.answer(question.client_nonce)) == WireCode.CHALLENGE_WRONG_BROKER
    assert session.state is State.FAILED


def test_a_swapped_answer_that_names_the_pinned_broker_is_refused(session: Session, broker: Signer) -> None:
    question = session.ask(nonce())
    stranger = Signer()
    stranger.id = broker.id
    forged = stranger.answer(question.client_nonce, keys=broker.keys())
    assert code_of(session.challenged, forged) == WireCode.CHALLENGE_SIGNATURE


def test_keys_that_the_log_key_did_not_sign_are_refused(session: Session, broker: Signer) -> None:
    question = session.ask(nonce())
    forged = broker.answer(question.client_nonce, keys=broker.keys(signer=Ed25519PrivateKey.generate()))
    assert code_of(session.challenged, forged) == WireCode.CHALLENGE_SIGNATURE


def test_an_answer_to_another_nonce_is_refused_so_none_can_be_reflected_or_replayed(
    session: Session, broker: Signer
) -> None:
    old = broker.answer(session.ask(nonce()).client_nonce)
    session.ask(nonce())
    assert code_of(session.challenged, old) == WireCode.CHALLENGE_SIGNATURE


@pytest.mark.parametrize("field", ["nonce", "broker_id", "at_s", "expires_s", "signature"])
def test_no_member_of_an_answer_can_be_changed(session: Session, broker: Signer, field: str) -> None:
    answer = broker.answer(session.ask(nonce()).client_nonce)
    value = getattr(answer, field)
    changed: Any = value + 1 if isinstance(value, int) else bytes([value[0] ^ 1]) + value[1:]
    code = code_of(session.challenged, replace(answer, **{field: changed}))
    assert code in {str(WireCode.CHALLENGE_SIGNATURE), str(WireCode.CHALLENGE_WRONG_BROKER)}


def test_a_broker_whose_measurements_are_demanded_is_refused_when_it_proves_none(
    broker: Signer, keys: AgentKeys
) -> None:
    members = json.loads(render(tenant="lab", log_key=raw_log_key(broker.log.public_key()), intel=True))
    registers = dict.fromkeys(("mr_td", "rtmr1", "rtmr2", "rtmr3"), "00" * 48)
    members["broker"]["reference"] = registers | {"platforms": ["00" * 16]}
    session = Session(keys, TrustFile.parse(json.dumps(members).encode()), BrokerTime(Ticks()))
    question = session.ask(nonce())
    assert code_of(session.challenged, broker.answer(question.client_nonce)) == Code.SESSION_UNATTESTED


def test_a_challenge_that_never_ends_is_refused(session: Session, broker: Signer) -> None:
    question = session.ask(nonce())
    assert code_of(session.challenged, broker.answer(question.client_nonce, expires_s=3600)) == Code.SESSION_CHALLENGE


def test_a_quote_over_something_else_is_not_sent(session: Session, broker: Signer) -> None:
    session.challenged(broker.answer(session.ask(nonce()).client_nonce))
    assert code_of(session.quoted, TD.quote(bytes(range(64))), None) == Code.SESSION_QUOTE


def test_a_quote_that_is_none_is_not_sent(session: Session, broker: Signer) -> None:
    session.challenged(broker.answer(session.ask(nonce()).client_nonce))
    assert code_of(session.quoted, b"", None) == "quote.empty"
    assert session.state is State.FAILED


def test_a_quote_that_came_too_late_is_not_sent(session: Session, broker: Signer, ticks: Ticks) -> None:
    report_data = session.challenged(broker.answer(session.ask(nonce()).client_nonce))
    ticks.now = 61.0
    assert code_of(session.quoted, TD.quote(report_data), None) == Code.SESSION_EXPIRED


def at(state: State, broker: Signer, keys: AgentKeys) -> Session:
    session = Session(keys, broker.trust(), BrokerTime(Ticks()))
    session.state = state
    return session


@pytest.mark.parametrize(("state", "step"), list(product(State, Step)), ids=lambda one: one.value)
def test_only_the_transitions_of_the_table_are_possible(
    broker: Signer, keys: AgentKeys, state: State, step: Step
) -> None:
    session = at(state, broker, keys)
    if (state, step) in TRANSITIONS:
        session._step(step)
        assert session.state is TRANSITIONS[state, step]
    else:
        assert code_of(session._step, step) == Code.SESSION_STEP
        assert session.state is state


def test_public_calls_go_through_the_table(session: Session, broker: Signer) -> None:
    answer = broker.answer(nonce())
    assert code_of(session.challenged, answer) == Code.SESSION_STEP
    assert code_of(session.quoted, b"", None) == Code.SESSION_STEP
    session.close()
    assert code_of(session.ask, nonce()) == Code.SESSION_STEP


def test_time_comes_from_the_broker_and_never_runs_backwards(ticks: Ticks) -> None:
    time = BrokerTime(ticks)
    assert code_of(time.now_s) == Code.AGENT_NOT_RUNNING
    time.learn(1000)
    ticks.now = 5.0
    assert time.now_s() == 1005.0
    time.learn(1001)
    assert time.now_s() == 1005.0
    time.learn(2000)
    assert time.now_s() == 2000.0
