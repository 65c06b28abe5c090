"""What two of the broker's own doings do to each other when they meet: one act, one entry; the newest counts."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from broker.wire.bodies import PutSecretRequest
from broker.wire.terms import LeaseEnd, SecretTerms
from tests.broker_world import World

SECRET = "acme/open/a"
LEASE_S = 300


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = await World.make(tmp_path, database=True)
    yield made
    await made.broker.close()


def told(world: World, kind: str) -> list[dict[str, Any]]:
    """Entries of a kind, newest first."""
    return [json.loads(row.entry) for row in world.broker.audit.newest(kind=kind, limit=100)]


# ── leases ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def lent(world: World) -> str:
    """The subject to whom a secret is lent that is drawn anew when the lease ends."""
    request = PutSecretRequest(value=b"v1", terms=SecretTerms(lease_s=LEASE_S, draw=True))
    await world.broker.administration.put_secret(world.settings.admins[0], SECRET, request)
    agent = await world.admitted()
    await agent.release(SECRET)
    return agent.subject


@pytest.mark.asyncio
async def test_a_lease_that_is_ended_twice_at_once_ends_and_rotates_once(world: World) -> None:
    wanted = LeaseEnd(name=SECRET, version=1, subject=await lent(world))
    world.machine.clock.advance(LEASE_S)
    leasing, admin = world.broker.leasing, world.settings.admins[0]
    swept, again, ended = await asyncio.gather(leasing.sweep(), leasing.sweep(), leasing.end(admin, wanted))
    assert sorted((swept, again)) == [0, 1]
    assert ended.closed
    assert [entry["rotation"] for entry in told(world, "lease.ended")] == ["rotated"]


@pytest.mark.asyncio
async def test_a_value_that_comes_while_a_lease_ends_is_not_called_a_rotation(world: World) -> None:
    await lent(world)
    world.machine.clock.advance(LEASE_S)
    await asyncio.gather(world.put(SECRET, b"v2"), world.broker.leasing.sweep())
    assert [entry["rotation"] for entry in told(world, "lease.ended")] == ["replaced before"]
    newest = world.broker.store.read(lambda tx: tx.secrets.get(SECRET))
    assert newest is not None
    assert newest.version == 2
