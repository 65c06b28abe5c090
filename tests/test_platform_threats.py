"""Platforms that fall: blocked by id, or out of date. What rests on them stops at once, the most valuable first."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from attestation.chains import claimed_platform
from attestation.quote import Quote
from broker.platforms import WINDOW_S
from tests.broker_world import Agent, World, outcome, write_bundle

ANY = 'platforms = "any"\nplatforms_until = "2099-01-01"\n'
BOX = "acme/mail/b"
GRACE = """accept = ["UpToDate"]

[tcb.grace]
accept = ["OutOfDate"]
until = "2099-01-01"
"""
NO_SECRETS_IN_GRACE = """
@id("no-secrets-in-grace")
forbid (principal, action == Action::"ReleaseSecret", resource)
when { context.standing != "current" };
"""


def ppid(agent: Agent) -> str:
    return claimed_platform(Quote.parse(agent.td.quote(b"q" * 64))).ppid.hex()


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = await World.make(tmp_path)
    await made.prefetch(1)
    await made.put("acme/open/a", b"value")
    yield made
    await made.broker.close()


@pytest.mark.asyncio
async def test_t30_agents_of_a_blocked_platform_lose_everything_at_their_next_use(world: World, tmp_path: Path) -> None:
    fallen, other = [await world.admitted() for _ in range(3)], await world.admitted(platform=1)
    assert ppid(fallen[0]) != ppid(other)
    listed = f'[platforms]\nppid = ["{ppid(other)}"]\n'
    changes = ((ANY, ""), ("[freshness]", f"{listed}\n[freshness]"))
    write_bundle(tmp_path / "bundle", *changes, version=2)
    await world.broker.administration.reload_policies(world.settings.admins[0])
    for agent in fallen:
        assert await outcome(agent.release("acme/open/a")) == "agent.quarantined"
        assert await outcome(agent.open(BOX)) == "agent.quarantined"
        assert "policy.platform_not_allowed" in await outcome(agent.attest())
    assert await outcome(other.release("acme/open/a")) == "ok"


@pytest.mark.asyncio
async def test_t31_when_a_status_flips_the_most_valuable_stops_first(tmp_path: Path) -> None:
    """In a grace period agents work on, and get no secrets; after it they are out."""
    bundle = write_bundle(tmp_path / "grace", ('accept = ["UpToDate"]\n', GRACE))
    (bundle / "extra.cedar").write_text(NO_SECRETS_IN_GRACE)
    world = await World.make(tmp_path, bundles=(bundle,))
    await world.put("acme/open/a", b"value")
    agent = await world.admitted()
    await agent.open(BOX)
    assert await outcome(agent.release("acme/open/a")) == "ok"
    world.machine.recover("publish", advisories=[])
    world.machine.recover("promote")
    assert await world.broker.administration.refresh_collateral()
    assert await outcome(agent.release("acme/open/a")) == "refused: policy.forbidden"
    key = (await agent.find(BOX)).key
    assert await outcome(agent.send(agent.envelope(key))) == "ok"
    assert await outcome(world.agent().attest()) == "ok"
    await world.broker.close()


# ── one platform at two addresses ──────────────────────────────────────────────────────────────────────────────────


async def from_(agent: Agent, address: str) -> str:
    return await outcome(agent.world.broker.admission.attest(agent.request(), source_ip=address))


@pytest.mark.asyncio
async def test_a_restart_does_not_make_a_copied_platform_the_only_one(tmp_path: Path) -> None:
    world = await World.make(tmp_path, database=True)
    first, copy = world.agent("first"), world.agent("copy")
    assert await from_(first, "192.0.2.1") == "ok"
    await world.restart()
    assert "policy.platform_seen_elsewhere" in await from_(copy, "198.51.100.7")
    assert world.broker.upkeep.elsewhere() == {ppid(first): ["192.0.2.1", "198.51.100.7"]}
    await world.restart()
    assert "policy.platform_seen_elsewhere" in await from_(first, "192.0.2.1")
    assert await world.broker.upkeep.save_sightings() == 0  # that is no news yet
    world.machine.clock.advance(WINDOW_S + 1)
    assert await from_(first, "192.0.2.1") == "ok"
    assert await world.broker.upkeep.save_sightings() == 1
    world.machine.clock.advance(WINDOW_S + 1)
    assert await world.broker.upkeep.save_sightings() == 1  # forgotten
    assert world.broker.store.read(lambda tx: tx.marks.under("sightings/")) == {}
    await world.broker.close()
