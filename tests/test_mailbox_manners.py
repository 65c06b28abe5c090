"""Mailboxes beside the twenty cases: turns, delays, parts of batches, dead letters, take-overs."""

import pytest

from attestation.encoding import from_b64url
from broker.errors import BrokerCode, BrokerError
from broker.wire.keys import NO_INCARNATION, Place
from broker.wire.leases import Nak, Partly
from tests.broker_world import Agent, outcome
from tests.channel_world import HandMade
from tests.kit_world import Maker, pair, waiting
from tests.kit_world import maker as maker
from tests.mail_world import BOX, Sender, change, with_mail


@pytest.mark.asyncio
async def test_what_was_given_back_with_a_delay_keeps_its_senders_later_messages_waiting(maker: Maker) -> None:
    world = await maker()
    a, b = await pair(world)
    other = await Sender.to(await world.admitted("c"))
    await a.post(b"first", b"second")
    await other.post(b"of another")
    got = await b.take(max_messages=1)
    text = b.open(got.deliveries[0], got.senders)
    b.inbox.again(text.header)
    mine = text.plaintext == b"first"
    if not mine:  # whose turn it was is nobody's promise
        await b.ack(ack=(got.deliveries[0].lease,))
        got = await b.take(max_messages=1)
        b.inbox.again(b.open(got.deliveries[0], got.senders).header)
    await b.ack(nak=(Nak(lease=got.deliveries[0].lease, delay_s=20),))
    assert await b.read() == ([b"of another"] if mine else [])
    world.machine.clock.advance(21)
    assert await b.read() == [b"first", b"second"]


@pytest.mark.asyncio
async def test_of_a_batch_that_was_handled_in_part_the_rest_comes_again(maker: Maker) -> None:
    world = await maker()
    a, b = await pair(world)
    channel = HandMade(a.agent, a.found.key)
    await channel.begin(*[b"m%d" % number for number in range(1, 6)])
    (batch,) = (await b.take()).batches
    await b.ack(partly=(Partly(lease=batch.lease, but=(2, 4), code="handler.failed"),))
    assert waiting(world) == 2
    (again,) = (await b.take()).batches
    assert (again.remaining, again.attempt, again.batch) == ((2, 4), 2, batch.batch)
    assert await outcome(b.ack(partly=(Partly(lease=again.lease, but=(1, 2, 4)),))) == BrokerCode.LEASE_LOST
    await b.ack(ack=(again.lease,))
    assert waiting(world) == 0


@pytest.mark.asyncio
async def test_a_durable_mailbox_keeps_its_mail_when_another_takes_it_over(maker: Maker) -> None:
    world = await maker()
    a, b, heir = [await world.admitted(name) for name in ("a", "b", "heir")]

    async def open_durable(agent: Agent) -> None:
        (epoch,) = await world.broker.keys.current(Place.MAILBOX, BOX, world.broker.clock())
        key = agent.mailbox_key(
            BOX,
            kind="durable",
            epoch=epoch.number,
            suite=epoch.suite,
            key=from_b64url(epoch.public),
            incarnation=NO_INCARNATION,
        )
        await agent.acting(lambda s: world.broker.mailboxes.open(s, BOX, key))

    await open_durable(b)
    found = (await a.find(BOX)).key
    await a.send(a.envelope(found, b"for whoever may"))
    await b.receive()
    assert await outcome(open_durable(heir)) == BrokerCode.MAILBOX_TAKEN
    world.machine.clock.advance(31)
    await open_durable(heir)
    got = await heir.receive()
    assert [delivery.attempt for delivery in got.deliveries] == [2], "the former owner's lease ended with his ownership"
    assert await outcome(b.receive()) == BrokerCode.MAILBOX_NOT_OWNER


@pytest.mark.asyncio
async def test_a_wrong_word_in_a_mailboxs_rule_is_found_before_it_is_in_force(maker: Maker) -> None:
    world = await maker()
    with pytest.raises(BrokerError) as refused:
        await change(world, with_mail('fallen_sender = "lose"'))
    assert refused.value.code is BrokerCode.CONFIG_INVALID
    assert "mail.fallen_sender" in refused.value.detail
