"""Whoever makes the broker look first is written down like everybody else: a look is no answer, and owes its entry."""

import os
from functools import partial

import pytest

from broker.audit import Kind
from broker.wire.keys import KeysRequest
from tests.broker_world import Agent, World, outcome
from tests.test_topics import NEWS, reader, say, world

__all__ = ["world"]
OTHER = "acme/elsewhere/daily"


async def join(agent: Agent, topic: str) -> str:
    request = KeysRequest(nonce=os.urandom(32))
    return await outcome(agent.acting(partial(agent.world.broker.topics.join, topic=topic, request=request)))


async def info(agent: Agent, topic: str) -> str:
    return await outcome(agent.acting(partial(agent.world.broker.topics.info, topic=topic)))


@pytest.mark.asyncio
@pytest.mark.parametrize("looks", [0, 1, 3])
async def test_a_refusal_to_read_a_topic_is_explained_in_the_log_though_it_was_looked_at_before(
    world: World, looks: int
) -> None:
    eve = await world.admitted("eve")
    for _ in range(looks):
        assert await info(eve, OTHER) == "mailbox.unknown"
    before = world.kinds()
    assert (await join(eve, OTHER)).startswith("refused")
    assert (await join(eve, OTHER)).startswith("refused")
    assert world.kinds()[len(before) :] == [Kind.EDGE_REFUSED]


@pytest.mark.asyncio
async def test_so_is_a_permit(world: World) -> None:
    eve = await world.admitted("eve")
    assert await info(eve, NEWS) == "ok"
    assert Kind.EDGE_PERMITTED not in world.kinds()
    assert await join(eve, NEWS) == "ok"
    assert world.kinds().count(Kind.EDGE_PERMITTED) == 1


@pytest.mark.asyncio
async def test_what_a_reader_is_not_shown_because_of_its_labels_is_explained_in_the_log(world: World) -> None:
    writer, one = await world.admitted("writer"), await reader(world)
    for _ in range(2):
        assert await say(writer, "far away", labels=("cosmic",)) == "ok"
    assert await one.texts() == await one.texts() == []
    assert world.kinds().count(Kind.EDGE_REFUSED) == 1
