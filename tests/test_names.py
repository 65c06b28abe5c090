"""How many names an agent can make: mailboxes, durable ones, topics. What nobody uses any more goes by itself."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from attestation.encoding import from_b64url
from broker.errors import BrokerCode
from broker.mail.mailkeys import EPOCH_S, KEEP_S, ring_of
from broker.ports.mail import Quota
from broker.wire.keys import NO_INCARNATION, KeysRequest, Place, TopicKey
from tests.broker_world import FILES, Agent, World, outcome, write_bundle
from tests.test_topics import NEWS, RULES, reader, say, sealed

ASK = KeysRequest(nonce=bytes(32))
FEW = Quota(mailboxes=3, tenant_mailboxes=5, tenant_keys=5)


@pytest_asyncio.fixture(params=[False, True], ids=["memory", "sqlite"])
async def world(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[World]:
    bundle = write_bundle(tmp_path / "topics", (FILES["policy.cedar"], RULES))
    made = await World.make(tmp_path, bundles=(bundle,), database=request.param, quota=FEW)
    yield made
    await made.broker.close()


async def durable(agent: Agent, name: str) -> str:
    """Ask for the keys of a mailbox that outlives its reader."""
    desk = agent.world.broker.keys
    return await outcome(agent.acting(partial(desk.grant, of=Place.MAILBOX, name=name, request=ASK)))


async def join(agent: Agent, topic: str) -> str:
    return await outcome(agent.acting(partial(agent.world.broker.topics.join, topic=topic, request=ASK)))


def rings(world: World) -> list[str]:
    return sorted(world.broker.store.read(lambda tx: tx.marks.under("keys/")))


# ── kept keys ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
@pytest.mark.parametrize("make", [durable, join])
async def test_an_agent_makes_so_many_names_with_kept_keys_and_no_more(world: World, make: Any) -> None:
    path = "acme/news" if make is join else "acme/mail"
    eve, bob, carol = [await world.admitted(name) for name in ("eve", "bob", "carol")]
    assert [await make(eve, f"{path}/{number}") for number in range(3)] == ["ok"] * 3
    assert await make(eve, f"{path}/3") == BrokerCode.MAILBOX_TOO_MANY
    assert await make(eve, f"{path}/0") == "ok"  # what there is can be asked for again
    assert await make(bob, f"{path}/0") == "ok"  # and by others, who have not made it
    assert [await make(bob, f"{path}/b{number}") for number in range(2)] == ["ok"] * 2
    assert await make(carol, f"{path}/c") == BrokerCode.MAILBOX_TOO_MANY  # of the tenant
    assert await make(carol, f"{path}/b0") == "ok"
    assert len(rings(world)) == 5


@pytest.mark.asyncio
async def test_who_asks_for_many_names_at_once_makes_no_more_of_them(world: World) -> None:
    eve = await world.admitted("eve")
    asked = await asyncio.gather(*(durable(eve, f"acme/mail/{number}") for number in range(9)))
    assert sorted(asked) == [BrokerCode.MAILBOX_TOO_MANY] * 6 + ["ok"] * 3
    assert len(rings(world)) == 3


@pytest.mark.asyncio
async def test_names_whose_keys_nobody_asks_for_any_more_make_room(world: World) -> None:
    eve = await world.admitted("eve")
    assert [await durable(eve, f"acme/mail/{number}") for number in range(3)] == ["ok"] * 3
    world.machine.clock.advance(timedelta(seconds=EPOCH_S + KEEP_S + 1))
    await world.prefetch()
    await eve.attest()
    await world.broker.keys.purge()
    assert rings(world) == []
    assert await durable(eve, "acme/mail/another") == "ok"


def resting(world: World) -> list[tuple[str, int]]:
    """Every version of every kept key, destroyed or not."""
    return [(row.name, row.version) for row in world.broker.store.read(lambda tx: tx.secrets.page(after="~"))]


@pytest.mark.asyncio
async def test_nothing_rests_of_a_mailbox_whose_last_key_has_ended(world: World) -> None:
    eve = await world.admitted("eve")
    assert await durable(eve, "acme/mail/jobs") == "ok"
    assert resting(world) == [("~mailbox/acme/mail/jobs", 1), ("~state/mailbox/acme/mail/jobs", 1)]
    world.machine.clock.advance(timedelta(seconds=EPOCH_S + KEEP_S + 1))
    await world.prefetch()
    await eve.attest()
    await world.broker.keys.purge()
    assert resting(world) == []
    assert world.broker.store.read(lambda tx: tx.marks.under("secret/~")) == {}
    assert await durable(eve, "acme/mail/jobs") == "ok"  # and the name can be had again


@pytest.mark.asyncio
async def test_of_ended_epochs_no_rows_are_kept_while_a_mailbox_goes_on(world: World) -> None:
    eve = await world.admitted("eve")
    for _ in range(9):
        assert await durable(eve, "acme/mail/jobs") == "ok"
        world.machine.clock.advance(timedelta(seconds=EPOCH_S))
        await world.prefetch()
        await eve.attest()
        await world.broker.keys.purge()
    kept = [version for name, version in resting(world) if name.startswith("~mailbox")]
    ring = world.broker.store.read(lambda tx: ring_of(tx, Place.MAILBOX, "acme/mail/jobs"))
    assert kept == [epoch.number for epoch in ring]
    assert 1 not in kept
    assert kept[-1] == 9


@pytest.mark.asyncio
async def test_of_a_topic_that_its_last_reader_leaves_after_its_last_key_nothing_rests(world: World) -> None:
    one = await reader(world, "one")
    world.machine.clock.advance(timedelta(seconds=EPOCH_S + KEEP_S + 1))
    await world.prefetch()
    await world.broker.keys.purge()
    assert [version for _, version in resting(world)] == [1, 1]  # whoever comes back counts on
    await world.broker.store.transact(lambda tx: tx.topics.leave(NEWS, one.agent.subject))
    await world.broker.keys.purge()
    assert resting(world) == []


@pytest.mark.asyncio
async def test_publishing_makes_no_keys(world: World) -> None:
    """Whoever may read makes the first key; publishing to a made-up name, or to another tenant's, changes nothing."""
    eve = await world.admitted("eve")
    made_up = TopicKey.sign(
        world.broker.identity.key,
        topic="acme/news/daily",
        epoch=1,
        suite=eve.sealing.suite,
        key=eve.sealing.public,
        not_before_s=0,
        not_after_s=2**40,
    )
    for topic in ("acme/news/made-up", "acme/private/x", "other/news/x"):
        envelope = sealed(eve, made_up, "x", mailbox=topic)
        put = partial(world.broker.topics.publish, topic=topic, envelopes=(envelope,))
        assert await outcome(eve.acting(put)) == BrokerCode.MAILBOX_UNKNOWN
    assert rings(world) == []


@pytest.mark.asyncio
async def test_a_topic_that_was_silent_until_its_keys_ended_goes_on_for_the_readers_who_stayed(world: World) -> None:
    one, writer = await reader(world, "one"), await world.admitted("writer")
    world.machine.clock.advance(timedelta(seconds=EPOCH_S + KEEP_S + 1))
    await world.prefetch()
    await world.broker.keys.purge()
    assert rings(world) == []
    for agent in (one.agent, writer):
        await agent.attest()
    assert await say(writer, "still here") == "ok"
    assert len((await one.page()).deliveries) == 1


# ── mailboxes ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_a_tenant_has_so_many_mailboxes_however_often_its_agents_start_again(world: World) -> None:
    one, two, three = [await world.admitted(name) for name in ("one", "two", "three")]
    for number in range(3):
        await one.open(f"acme/mail/{number}")
    assert await outcome(one.open("acme/mail/3")) == BrokerCode.MAILBOX_TOO_MANY
    for number in range(3, 5):
        await two.open(f"acme/mail/{number}")
    assert await outcome(three.open("acme/mail/5")) == BrokerCode.MAILBOX_TOO_MANY
    await one.open("acme/mail/0", epoch=2)  # its own goes on
    world.machine.clock.advance(timedelta(seconds=31))
    await three.attest()
    await three.open("acme/mail/4")  # and one whose owner has gone can be had


@pytest.mark.asyncio
async def test_a_mailbox_that_nobody_has_held_for_days_goes_and_one_that_keeps_mail_stays(world: World) -> None:
    gone, a = await world.admitted("gone"), await world.admitted("a")
    for name in ("acme/mail/idle", "acme/mail/busy"):
        await gone.open(name)
    key = (await a.find("acme/mail/busy")).key
    world.machine.clock.advance(timedelta(days=3))
    await a.attest()
    await a.send(a.envelope(key, life_s=3 * 86_400), name="acme/mail/busy")
    world.machine.clock.advance(timedelta(days=1, seconds=40))
    await world.broker.dead.sweep()

    def there(name: str) -> bool:
        return world.broker.store.read(lambda tx: tx.mail.find(name)) is not None

    assert (there("acme/mail/idle"), there("acme/mail/busy")) == (False, True)
    world.machine.clock.advance(timedelta(days=3))
    await world.broker.dead.sweep()
    await world.broker.dead.sweep()
    assert not there("acme/mail/busy")


@pytest.mark.asyncio
async def test_a_durable_mailbox_stays_as_long_as_its_keys(world: World) -> None:
    eve = await world.admitted("eve")
    await durable(eve, "acme/mail/jobs")
    epoch = (await world.broker.keys.current(Place.MAILBOX, "acme/mail/jobs", world.broker.clock()))[-1]
    await eve.open(
        "acme/mail/jobs",
        kind="durable",
        epoch=epoch.number,
        suite=epoch.suite,
        key=from_b64url(epoch.public),
        incarnation=NO_INCARNATION,
        not_before_s=epoch.not_before_s,
        not_after_s=epoch.not_after_s,
    )

    async def there() -> bool:
        await world.broker.keys.purge()
        await world.broker.dead.sweep()
        return world.broker.store.read(lambda tx: tx.mail.find("acme/mail/jobs")) is not None

    world.machine.clock.advance(timedelta(days=4, seconds=40))
    assert await there()
    world.machine.clock.advance(timedelta(seconds=EPOCH_S + KEEP_S))
    assert not await there()
