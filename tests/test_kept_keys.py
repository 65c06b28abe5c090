"""Keys that the broker keeps: for whom, by which door, how they are rolled and destroyed."""

from collections.abc import AsyncIterator, Awaitable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from broker.mail.mailkeys import EPOCH_S, KEEP_S, ring_of
from broker.wire.keys import NO_INCARNATION, KeySet, KeysRequest, Place
from broker.wire.names import is_resource
from tests.broker_world import Agent, World, outcome

# ── who gets a key ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = await World.make(tmp_path, database=True)
    yield made
    await made.broker.close()


def ask(agent: Agent, name: str = "acme/mail/b") -> Awaitable[Any]:
    keys = agent.world.broker.keys
    request = KeysRequest(nonce=bytes(32))
    return agent.acting(lambda s: keys.grant(s, Place.MAILBOX, name, request))


@pytest.mark.asyncio
async def test_keys_are_for_those_who_may_receive_there(world: World) -> None:
    eve = await world.admitted("eve")
    assert await outcome(ask(eve)) == "ok"
    assert (await outcome(ask(eve, "acme/private/b"))).startswith("refused")
    assert await outcome(ask(eve, "~mailbox/acme/mail/b")) == "mailbox.name_invalid"
    assert [kind for kind in world.kinds() if kind.startswith("keys.")] == ["keys.made", "keys.released"]


@pytest.mark.asyncio
async def test_no_other_door_leads_to_a_kept_key(world: World) -> None:
    eve = await world.admitted("eve")
    await ask(eve)
    names = world.broker.store.read(lambda tx: [row.name for row in tx.secrets.page(limit=100)])
    assert names == ["~mailbox/acme/mail/b", "~state/mailbox/acme/mail/b"]
    assert not any(map(is_resource, names))
    assert world.broker.administration.secrets(tenant=None, after="", limit=100) == []
    admin = world.settings.admins[0]
    for name in names:
        assert await outcome(eve.release(name)) == "secret.name_invalid"
        assert await outcome(world.broker.administration.destroy_secret(admin, name, None)) == "secret.name_invalid"
    assert world.settings.database is not None
    seed = _seed(world)
    assert all(seed not in file.read_bytes() for file in world.settings.database.parent.glob("broker.db*"))


def _seed(world: World) -> bytes:
    record = world.broker.store.read(lambda tx: tx.secrets.get("~mailbox/acme/mail/b"))
    assert record is not None
    return world.broker.keys._vault._open(record)


@pytest.mark.asyncio
async def test_the_answer_opens_for_the_agent_that_asked_and_names_its_request(world: World) -> None:
    eve, other = await world.admitted("eve"), await world.admitted("other")
    answer = await ask(eve)
    from broker.wire.keys import grant_digest

    keys = KeySet.from_bytes(eve.sealing.open(answer.sealed, grant_digest(answer.grant)))
    assert keys.epochs[0].seed == _seed(world)
    assert await outcome(_opens(other, answer.sealed, grant_digest(answer.grant))) == "sealing.open_failed"


async def _opens(agent: Agent, sealed: bytes, context: bytes) -> None:
    agent.sealing.open(sealed, context)


@pytest.mark.asyncio
async def test_a_durable_mailbox_is_opened_under_a_kept_key_alone_and_stays_durable(world: World) -> None:
    eve = await world.admitted("eve")
    foreign = {"kind": "durable", "incarnation": NO_INCARNATION}
    assert await outcome(eve.open("acme/mail/b", **foreign)) == "mailbox.key_not_kept"
    await ask(eve)
    assert await outcome(eve.open("acme/mail/b", **foreign)) == "mailbox.key_not_kept"
    assert await outcome(eve.open("acme/mail/b")) == "mailbox.kind_mismatch"


@pytest.mark.asyncio
async def test_an_epoch_rolls_at_half_of_its_life_and_is_destroyed_when_nothing_can_need_it(world: World) -> None:
    eve = await world.admitted("eve")
    await ask(eve)
    assert numbers(world) == [1]
    world.machine.clock.advance(timedelta(seconds=EPOCH_S // 2 + 1))
    await world.broker.keys.current(Place.MAILBOX, "acme/mail/b", world.broker.clock())
    assert numbers(world) == [1, 2]
    world.machine.clock.advance(timedelta(seconds=EPOCH_S // 2 + KEEP_S))
    await world.broker.keys.purge()
    assert numbers(world) == [2]
    gone = world.broker.store.read(lambda tx: tx.secrets.get("~mailbox/acme/mail/b", 1))
    assert gone is None


def numbers(world: World) -> list[int]:
    ring = world.broker.store.read(lambda tx: ring_of(tx, Place.MAILBOX, "acme/mail/b"))
    return [epoch.number for epoch in ring]
