"""Fallen agents: the signed list of them, how fresh it must be, and that mail waits rather than be opened without."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from broker.wire.errors import WireCode, WireError
from broker.wire.revocations import Revocations, RevocationsRequest
from enclave.clock import BrokerTime
from enclave.errors import Code, EnvelopeRefused
from enclave.runtime import Runtime
from enclave.standing import MAX_AGE_S, RENEW_S, Standing
from simulator.broker_fixture import BrokerUnderTest
from tests.broker_world import World
from tests.test_enclave_mailbox import NOW_S, Router, Ticks

WHO = f"agent/lab/{'a' * 43}"


@pytest_asyncio.fixture(params=[False, True], ids=["memory", "sqlite"])
async def world(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[World]:
    made = await World.make(tmp_path, database=request.param)
    yield made
    await made.broker.close()


@pytest.mark.asyncio
async def test_the_list_names_who_fell_and_nobody_else(world: World) -> None:
    eve, bob = await world.admitted("eve"), await world.admitted("bob")
    nonce = os.urandom(32)
    assert world.broker.standing.answer(RevocationsRequest(nonce=nonce)).fallen == ()
    await world.broker.administration.revoke(world.settings.admins[0], eve.subject, "test")
    answer = world.broker.standing.answer(RevocationsRequest(nonce=nonce))
    answer.verify(world.broker.identity.key.public_key(), nonce=nonce)
    assert answer.fallen == (eve.subject,)
    assert answer.generation == world.broker.generation.current
    assert bob.subject not in answer.fallen


class Reader:
    """A standing, a broker's key in the hands of a test, and a clock that the test moves."""

    def __init__(self) -> None:
        self.router, self.ticks = Router(), Ticks()
        self.time = BrokerTime(self.ticks)
        self.time.learn(NOW_S)
        self.standing = Standing(self.time)

    def hear(self, *fallen: str, at_s: int = NOW_S, nonce: bytes | None = None, signer: Router | None = None) -> str:
        asked = os.urandom(32)
        key = (signer or self.router).identity
        answer = Revocations.sign(key, at_s=at_s, generation=1, fallen=fallen, nonce=nonce or asked)
        again = Revocations.from_dict(answer.to_dict())
        try:
            self.standing.learn(again, self.router.broker, nonce=asked, asked_s=self.time.now_s())
        except WireError as error:
            return str(error.code)
        return "ok"

    def ask(self, subject: str = WHO) -> str:
        try:
            self.standing.require(subject)
        except EnvelopeRefused as error:
            return str(error.code)
        return "ok"


def test_without_a_list_nothing_is_opened() -> None:
    reader = Reader()
    assert reader.standing.due
    assert reader.ask() == Code.STANDING_UNKNOWN


def test_a_list_serves_for_a_minute_and_is_renewed_before() -> None:
    reader = Reader()
    assert reader.hear() == "ok"
    assert reader.ask() == "ok"
    assert not reader.standing.due
    asked = []
    reader.standing.on_due = lambda: asked.append(1)
    reader.ticks.now = RENEW_S + 1
    assert (reader.ask(), len(asked)) == ("ok", 1)
    reader.ticks.now = MAX_AGE_S + 1
    assert reader.ask() == Code.STANDING_UNKNOWN


def test_who_is_on_it_is_refused() -> None:
    reader = Reader()
    reader.hear(WHO)
    assert reader.ask() == Code.PEER_FALLEN
    assert reader.ask(f"agent/lab/{'b' * 43}") == "ok"


def test_another_ones_list_an_older_question_and_a_shortened_list_are_refused() -> None:
    reader = Reader()
    assert reader.hear(signer=Router()) == WireCode.REVOCATIONS_SIGNATURE
    assert reader.hear(nonce=bytes(32)) == WireCode.REVOCATIONS_SIGNATURE
    nonce = os.urandom(32)
    full = Revocations.sign(reader.router.identity, at_s=NOW_S, generation=1, fallen=(WHO,), nonce=nonce)
    short = Revocations.from_dict({**full.to_dict(), "fallen": []})
    with pytest.raises(WireError):
        reader.standing.learn(short, reader.router.broker, nonce=nonce, asked_s=reader.time.now_s())
    assert reader.ask() == Code.STANDING_UNKNOWN


def test_an_answer_that_was_overtaken_takes_nobody_off_the_list() -> None:
    reader = Reader()
    reader.hear(WHO, at_s=NOW_S + 5)
    reader.hear(at_s=NOW_S)
    assert reader.ask() == Code.PEER_FALLEN


@pytest.mark.asyncio
async def test_mail_of_a_fallen_sender_that_a_broker_hands_out_all_the_same_is_held(broker: BrokerUnderTest) -> None:
    """The broker that delivers is told by nobody; the list that the receiver asked for is what counts."""
    reader, sender = await _start(broker, "lab/mail/r"), await _start(broker, "lab/mail/s")
    try:
        await sender.send("lab/mail/r", kind="note", plaintext=b"one")
        await reader.learn_standing()
        reader.standing._fallen = frozenset({sender.admission.subject})
        assert await reader.receive(16) == []
        waiting = broker.broker.store.read(lambda tx: (tx.mail.waiting("lab/mail/r"), tx.mail.dead("lab/mail/r")))
        assert (waiting[0], list(waiting[1])) == (1, [])
    finally:
        await reader.close()
        await sender.close()


async def _start(broker: BrokerUnderTest, mailbox: str) -> Runtime:
    domain = broker.machine.launch("standing")
    made = Runtime(domain=domain, trust=broker.trust, broker_url=broker.url, mailbox=mailbox)
    await made.attest()
    await made.publish()
    return made
