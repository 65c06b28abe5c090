"""The broker's chores: what early collateral warns of, and that it decides nothing."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from attestation.collateral import Collateral
from attestation.errors import Code, CollateralUnavailable
from attestation.quote import Quote
from tests.broker_world import World, outcome


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = await World.make(tmp_path)
    await made.put("acme/open/a", b"value")
    made.broker.upkeep.watch(made.machine.as_source("early"))
    yield made
    await made.broker.close()


@pytest.mark.asyncio
async def test_early_collateral_is_judged_in_parallel_and_warns_before_anybody_falls(world: World) -> None:
    agent = await world.admitted()
    assert await world.broker.upkeep.judge_early() == {}
    world.machine.recover("publish")
    (warned,) = (await world.broker.upkeep.judge_early()).values()
    assert set(warned.falling) == {agent.subject}
    assert "policy.tcb_not_accepted" in warned.falling[agent.subject]
    assert await outcome(agent.release("acme/open/a")) == "ok"  # it warns, and decides nothing
    entry = json.loads(world.broker.audit.newest(kind="collateral.early_warning", limit=1)[0].entry)
    assert (entry["agents"], entry["subjects"]) == (1, [agent.subject])
    assert agent.subject in str(world.broker.upkeep.warnings())
    assert await world.broker.upkeep.judge_early() == {}  # the same news is told once
    assert world.kinds().count("collateral.early_warning") == 1


@pytest.mark.asyncio
async def test_what_was_warned_of_happens_when_early_becomes_standard(world: World) -> None:
    agent = await world.admitted()
    world.machine.recover("publish")
    await world.broker.upkeep.judge_early()
    world.machine.recover("promote")
    assert await world.broker.administration.refresh_collateral()
    assert await outcome(agent.release("acme/open/a")) == "agent.quarantined"
    await world.broker.upkeep.judge_early()
    assert world.broker.upkeep.warnings() == {}


@pytest.mark.asyncio
async def test_an_early_channel_that_fails_is_no_news(world: World) -> None:
    class Down:
        def fetch(self, quote: Quote) -> Collateral:
            raise CollateralUnavailable(Code.COLLATERAL_UNREACHABLE, "down")

    agent = await world.admitted()
    world.broker.upkeep.watch(Down())
    assert await world.broker.upkeep.judge_early() == {}
    assert await outcome(agent.release("acme/open/a")) == "ok"
