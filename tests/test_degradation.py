"""What must happen when something fails: each fault against attest and release, routing, and what was given.

Time is the machine's clock. A refusal says whether trying again can help; nothing is ever let through because something
was missing.
"""

import sqlite3
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from attestation.collateral import Collateral
from attestation.errors import Code, CollateralUnavailable
from attestation.quote import Quote
from broker.collateral import PAUSE_S
from broker.errors import BrokerError
from broker.ports.mail import Quota
from broker.store.sql import SqlStore
from tests.broker_world import Agent, World, outcome

BOX = "acme/mail/b"


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = await World.make(tmp_path, database=True, quota=Quota(messages=3))
    await made.put("acme/open/a", b"value")
    yield made
    await made.broker.close()


async def pair(world: World) -> tuple[Agent, Agent]:
    """A sender, and a receiver whose mailbox is open."""
    sender, receiver = await world.admitted("sender"), await world.admitted("receiver")
    await receiver.open(BOX)
    return sender, receiver


async def sent(sender: Agent) -> str:
    key = (await sender.find(BOX)).key
    return await outcome(sender.send(sender.envelope(key)))


class Unreachable:
    """Intel, when nobody answers."""

    def fetch(self, quote: Quote) -> Collateral:
        raise CollateralUnavailable(Code.COLLATERAL_UNREACHABLE, "no route to host")


async def settled(world: World) -> None:
    """Fetches that were begun have ended."""
    while world.broker.collateral._fetching:
        await next(iter(world.broker.collateral._fetching.values()))


async def at_the_end_of_collateral(world: World, agent: Agent) -> None:
    """The last moment at which what is at hand is in force has passed."""
    session = await world.broker.sessions.of_subject(agent.subject, world.broker.clock())
    world.machine.clock.set(session.verdict.valid_until + timedelta(seconds=1))


# ── Intel's collateral cannot be reached ───────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_t35_without_intel_agents_attest_until_the_collateral_ends_and_then_are_told_to_try_again(
    world: World,
) -> None:
    first = await world.admitted()
    world.broker.collateral._source = Unreachable()
    await world.broker.administration.refresh_collateral()
    assert await outcome(world.agent().attest()) == "ok"
    assert await outcome(first.release("acme/open/a")) == "ok"
    await at_the_end_of_collateral(world, first)
    assert await outcome(world.agent().attest()) == "collateral.pending"
    await settled(world)
    assert await outcome(world.agent().attest()) == "collateral.unavailable"
    assert world.kinds().count("agent.quarantined") == 0


@pytest.mark.asyncio
async def test_without_intel_mail_goes_on(world: World) -> None:
    sender, receiver = await pair(world)
    world.broker.collateral._source = Unreachable()
    await world.broker.administration.refresh_collateral()
    assert await sent(sender) == "ok"
    assert len((await receiver.receive(BOX)).deliveries) == 1


@pytest.mark.asyncio
async def test_without_intel_what_was_given_lasts_until_its_end_and_comes_back_with_fresh_collateral(
    world: World,
) -> None:
    agent = await world.admitted()
    source, world.broker.collateral._source = world.broker.collateral._source, Unreachable()
    world.machine.clock.advance(200)
    assert await outcome(agent.release("acme/open/a")) == "ok"
    await at_the_end_of_collateral(world, agent)
    assert (await outcome(agent.release("acme/open/a"))).startswith("token.")  # no token outlives the collateral
    world.broker.collateral._source = source
    world.machine.clock.advance(PAUSE_S)
    assert await outcome(agent.attest()) in ("collateral.pending", "collateral.unavailable")
    await settled(world)
    assert await outcome(agent.attest()) == "ok"


@pytest.mark.asyncio
async def test_a_source_that_keeps_giving_what_has_ended_is_no_pass_either(world: World) -> None:
    world.machine.recover("freeze")
    await world.broker.administration.refresh_collateral()
    agent = await world.admitted()
    await at_the_end_of_collateral(world, agent)
    told = await outcome(world.agent().attest())
    await settled(world)
    assert (told, await outcome(world.agent().attest())) == ("collateral.pending", "collateral.stale")


# ── the policy cannot be read ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_without_its_policy_files_the_broker_goes_on_with_those_in_force(world: World) -> None:
    sender, _ = await pair(world)
    (world.settings.bundles[0] / "bundle.toml").unlink()
    with pytest.raises(BrokerError) as refused:
        await world.broker.administration.reload_policies(world.settings.admins[0])
    assert refused.value.codes[0] == "bundle.file_missing"
    assert await outcome(world.agent().attest()) == "ok"  # attest and release: the last bundle
    assert await outcome(sender.release("acme/open/a")) == "ok"  # what was given: until it ends
    assert await sent(sender) == "ok"  # routing goes on
    assert world.kinds().count("generation.changed") <= 2


# ── the log cannot be written ──────────────────────────────────────────────────────────────────────────────────────


class FullDisk:
    """A store whose every commit fails, as on a full disk; what is committed can still be read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: Any, **__: Any) -> bool:
            raise sqlite3.OperationalError("database or disk is full")

        monkeypatch.setattr(SqlStore, "_attempt", fail)


@pytest.mark.asyncio
async def test_without_the_log_nothing_is_admitted_released_or_routed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    sender, receiver = await pair(world)
    envelope = sender.envelope((await sender.find(BOX)).key)
    size = world.broker.audit.head().size
    FullDisk(monkeypatch)
    assert await outcome(world.agent().attest()) == "store.unavailable"
    assert await outcome(sender.release("acme/open/a")) == "store.unavailable"
    assert await outcome(sender.send(envelope)) == "store.unavailable"
    assert await outcome(receiver.open("acme/mail/new")) == "store.unavailable"
    assert await outcome(world.put("acme/open/a", b"next")) == "store.unavailable"
    monkeypatch.undo()
    assert world.broker.audit.head().size == size
    assert await outcome(sender.send(envelope)) == "ok"  # the very same bytes, once it can be written again
    assert await outcome(sender.release("acme/open/a")) == "ok"


@pytest.mark.asyncio
async def test_without_the_log_what_was_given_can_still_be_looked_at(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Draining: who is in is known, and tokens verify; nothing new is given."""
    sender, receiver = await pair(world)
    FullDisk(monkeypatch)
    at = world.broker.clock()
    assert (await world.broker.sessions.peer(receiver.subject, at)).subject == receiver.subject
    assert world.broker.sessions.key_of(sender.token, at) == sender.jkt


# ── mail cannot be delivered ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_while_nobody_takes_mail_it_is_kept_to_a_bound_and_then_pushed_back(world: World) -> None:
    sender, _ = await pair(world)
    for _ in range(3):
        assert await sent(sender) == "ok"
    with pytest.raises(BrokerError) as caught:
        await sender.send(sender.envelope((await sender.find(BOX)).key))
    assert (caught.value.code, caught.value.retry_after_s) == ("mailbox.full", 1)
    assert await outcome(world.agent().attest()) == "ok"
    assert await outcome(sender.release("acme/open/a")) == "ok"


# ── the clock jumps ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_while_the_clock_is_behind_nothing_is_decided_and_what_was_given_is_frozen(world: World) -> None:
    sender, receiver = await pair(world)
    envelope = sender.envelope((await sender.find(BOX)).key)
    request = world.agent().request()
    right = world.machine.clock.now()
    world.machine.clock.set(right - timedelta(hours=1))
    assert await outcome(world.broker.admission.attest(request)) == "clock.behind"
    assert await outcome(sender.release("acme/open/a")) == "clock.behind"
    assert await outcome(sender.send(envelope)) == "clock.behind"
    assert await outcome(receiver.receive(BOX)) == "clock.behind"
    world.machine.clock.set(right + timedelta(seconds=1))
    assert await outcome(sender.release("acme/open/a")) == "ok"  # not lost, only frozen


@pytest.mark.asyncio
async def test_a_clock_that_jumps_ahead_ends_what_was_given(world: World) -> None:
    sender, _ = await pair(world)
    request = world.agent().request()
    world.machine.clock.advance(3600)
    assert await outcome(world.broker.admission.attest(request)) == "challenge.expired"
    assert await outcome(sender.release("acme/open/a")) == "token.expired"
    assert await outcome(sender.attest()) == "ok"


# ── a replica lies ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_a_second_writer_is_not_let_in_so_that_it_could_lie(world: World) -> None:
    """What a copy of the disk can do beside it, two receipts tell: tests/test_auditing.py, T22."""
    before = world.broker.audit.head().size
    with pytest.raises(BrokerError, match=r"store\.in_use"):
        SqlStore(world.settings.database or Path(), mac_key=b"k" * 32)
    assert await outcome(world.agent().attest()) == "ok"
    assert world.broker.audit.head().size == before + 1
