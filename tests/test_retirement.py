"""Agents of whom nothing is heard any more: what is kept of them goes, and nothing that still matters goes with it."""

import json
from collections.abc import AsyncIterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from broker.errors import BrokerCode
from broker.mail.labels import held
from broker.mail.mailkeys import EPOCH_S, KEEP_S
from broker.ports import AgentState
from broker.ports.releases import Lease
from broker.wire.keys import KeysRequest
from tests.broker_world import FILES, Agent, World, outcome, write_bundle
from tests.test_topics import NEWS, RULES

DAYS = 30
SECRET = "acme/open/a"


@pytest_asyncio.fixture(params=[False, True], ids=["memory", "sqlite"])
async def world(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[World]:
    bundle = write_bundle(tmp_path / "topics", (FILES["policy.cedar"], RULES))
    made = await World.make(tmp_path, bundles=(bundle,), database=request.param, agents_days=DAYS)
    await made.put(SECRET, b"value", "secret")
    yield made
    await made.broker.close()


async def silent(world: World, days: float = DAYS + 1) -> int:
    """How many agents go when nothing was heard of anybody for as long."""
    world.machine.clock.advance(timedelta(days=days))
    await world.broker.collateral.refresh()
    return await world.broker.retirement.sweep()


def rows(world: World) -> list[str]:
    return [record.subject for record in world.broker.store.read(lambda tx: tx.agents.page())]


def labels(world: World, agent: Agent) -> set[str]:
    return set(world.broker.store.read(lambda tx: held(tx, agent.subject)))


@pytest.mark.asyncio
async def test_of_a_silent_agent_the_log_alone_tells_in_the_end(world: World) -> None:
    agent = await world.admitted()
    await agent.release(SECRET)
    assert labels(world, agent) == {"secret"}
    assert await silent(world, DAYS - 1) == 0
    assert await silent(world, 2) == 1
    assert rows(world) == []
    assert labels(world, agent) == set()
    assert world.broker.store.read(lambda tx: tx.marks.under("labels/")) == {}
    entry = json.loads(world.broker.audit.newest(kind="agents.retired", limit=1)[0].entry)
    assert entry["subjects"] == [agent.subject]
    assert await silent(world) == 0


@pytest.mark.asyncio
async def test_a_key_whose_account_of_labels_has_gone_is_never_admitted_again(world: World) -> None:
    agent, fresh = await world.admitted(), world.agent("fresh")
    await agent.release(SECRET)
    await silent(world)
    assert await outcome(agent.attest()) == BrokerCode.AGENT_RETIRED
    if world.settings.database:
        await world.restart()
        assert await outcome(agent.attest()) == BrokerCode.AGENT_RETIRED
    assert await outcome(fresh.attest()) == "ok"  # other keys of the same code are
    assert rows(world) == [fresh.subject]


@pytest.mark.asyncio
async def test_who_comes_back_in_time_stays_with_the_labels_it_had(world: World) -> None:
    agent = await world.admitted()
    await agent.release(SECRET)
    assert await silent(world, DAYS - 1) == 0
    await agent.attest()
    assert await silent(world, DAYS - 1) == 0
    assert labels(world, agent) == {"secret"}


@pytest.mark.asyncio
async def test_a_revoked_agent_stays_revoked_and_a_quarantined_one_that_goes_is_not_let_in_again(world: World) -> None:
    revoked, fallen = await world.admitted("revoked"), await world.admitted("fallen")
    await world.broker.administration.revoke(world.settings.admins[0], revoked.subject, "lost")
    record = world.broker.administration.agent(fallen.subject)

    def fall(tx: Any) -> None:
        tx.agents.put(type(record)(**{**_members(record), "state": AgentState.QUARANTINED}))

    await world.broker.store.transact(fall)
    assert await silent(world) == 1
    assert rows(world) == [revoked.subject]
    assert await outcome(revoked.attest()) == BrokerCode.AGENT_REVOKED
    assert await outcome(fallen.attest()) == BrokerCode.AGENT_RETIRED


def _members(record: Any) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__slots__}


@pytest.mark.asyncio
async def test_who_owns_a_mailbox_stays_as_long_as_that_does(world: World) -> None:
    agent = await world.admitted()
    await agent.open("acme/mail/b")
    assert await silent(world) == 0
    await world.broker.dead.sweep()
    assert await silent(world, 0) == 1


@pytest.mark.asyncio
async def test_who_reads_a_topic_stays_as_long_as_that_has_keys(world: World) -> None:
    agent = await world.admitted()
    ask = KeysRequest(nonce=bytes(32))
    await agent.acting(partial(world.broker.topics.join, topic=NEWS, request=ask))
    assert await silent(world) == 0
    world.machine.clock.advance(timedelta(seconds=EPOCH_S + KEEP_S))
    await world.broker.keys.purge()
    assert await silent(world, 0) == 1
    assert not world.broker.store.read(lambda tx: tx.topics.readers(NEWS))


@pytest.mark.asyncio
async def test_to_whom_a_secret_is_lent_stays_until_the_lease_is_closed_and_its_closed_leases_go(world: World) -> None:
    agent = await world.admitted()
    until_s = int(world.broker.clock().timestamp()) + (DAYS + 5) * 86_400
    lease = Lease(name=SECRET, version=1, subject=agent.subject, begun_at_s=1, ends_at_s=until_s)
    await world.broker.store.transact(lambda tx: tx.releases.put_lease(lease))
    assert await silent(world) == 0
    world.machine.clock.advance(timedelta(days=5))
    await world.broker.leasing.sweep()
    assert await silent(world, 0) == 1
    assert world.broker.store.read(lambda tx: tx.releases.lease(SECRET, 1, agent.subject)) is None


@pytest.mark.asyncio
async def test_mail_of_a_silent_agent_keeps_it_and_its_place_among_the_senders_goes_with_it(world: World) -> None:
    sender, owner = await world.admitted("sender"), await world.admitted("owner")
    await owner.open("acme/mail/b")
    await sender.send(sender.envelope((await sender.find("acme/mail/b")).key))
    subject = sender.subject

    def known() -> tuple[bool, int]:
        return world.broker.store.read(lambda tx: (tx.mail.concerns(subject), tx.mail.next_seq("acme/mail/b", subject)))

    assert known() == (True, 2)
    for _ in range(5):  # the owner's mailbox is held, so that it stays
        world.machine.clock.advance(timedelta(days=(DAYS + 1) / 5))
        await world.broker.collateral.refresh()
        await owner.attest()
        await owner.receive("acme/mail/b")
    assert await silent(world, 0) == 1
    assert rows(world) == [owner.subject]
    assert known() == (False, 1)


@pytest.mark.asyncio
async def test_a_turn_is_bounded_and_the_next_one_goes_on_behind_those_who_stay(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.retirement.AT_ONCE", 2)
    monkeypatch.setattr("broker.retirement.MOST", 2)
    agents = [await world.admitted(str(number)) for number in range(5)]
    for agent in sorted(agents, key=lambda agent: agent.subject)[:2]:
        await agent.open(f"acme/mail/{agent.jkt[:8]}")
    went = [await silent(world), *[await silent(world, 0) for _ in range(3)]]
    assert sum(went) == 3
    assert max(went) <= 2
    assert len(rows(world)) == 2


@pytest.mark.asyncio
async def test_who_attests_while_it_is_looked_at_stays(world: World) -> None:
    agent = await world.admitted()
    world.machine.clock.advance(timedelta(days=DAYS + 1))
    await world.broker.collateral.refresh()
    retirement = world.broker.retirement
    found = retirement._candidates(AgentState.ADMITTED, int(world.broker.clock().timestamp()) - DAYS * 86_400, (0, ""))
    assert [record.subject for record in found] == [agent.subject]
    await agent.attest()
    at = world.broker.clock()
    assert await retirement._let_go(found, int(at.timestamp()) - DAYS * 86_400, at) == 0
    assert await outcome(agent.release(SECRET)) == "ok"
