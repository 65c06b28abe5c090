"""How long the policy's answers about mail stand, and how much of them a talkative agent can write into the log."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import pytest_asyncio

from broker.audit import Kind
from broker.mail import edges, sparing
from broker.mail.sparing import Sparing
from tests.broker_world import Agent, World, outcome
from tests.mail_world import change

AT = datetime(2026, 11, 22, tzinfo=UTC)


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = await World.make(tmp_path)
    yield made
    await made.broker.close()


async def pair(world: World) -> tuple[Agent, Agent]:
    a, b = await world.admitted("a"), await world.admitted("b")
    await b.open("acme/mail/b")
    return a, b


async def send(agent: Agent, kind: str = "note") -> str:
    key = (await agent.find("acme/mail/b")).key
    return await outcome(agent.send(agent.envelope(key, type=kind)))


def told(world: World, kind: str) -> int:
    return world.kinds().count(kind)


# ── answers that depend on the time ────────────────────────────────────────────────────────────────────────────────


def when(moment: datetime, is_now: str) -> tuple[str, str]:
    """Sending is permitted when the clock is before (`<`) or after (`>=`) that moment."""
    rule = f"""@id("timed")
forbid (principal, action == Action::"Send", resource)
unless {{ context.now {is_now} datetime("{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%S}Z") }};

@id("mail")"""
    return ('@id("mail")', rule)


@pytest.mark.asyncio
async def test_a_refusal_ends_at_the_moment_from_which_the_policy_permits(world: World) -> None:
    await change(world, when(world.broker.clock() + timedelta(seconds=60), ">="))
    a, _ = await pair(world)
    assert [await send(a), await send(a)] == ["refused: policy.forbidden"] * 2
    world.machine.clock.advance(timedelta(seconds=61))
    assert await send(a) == "ok"


@pytest.mark.asyncio
async def test_a_permit_ends_at_the_moment_from_which_the_policy_refuses(world: World) -> None:
    await change(world, when(world.broker.clock() + timedelta(seconds=60), "<"))
    a, _ = await pair(world)
    assert await send(a) == "ok"
    world.machine.clock.advance(timedelta(seconds=61))
    assert await send(a) == "refused: policy.forbidden"


@pytest.mark.asyncio
async def test_the_log_hears_once_of_an_answer_that_is_asked_for_with_every_message(world: World) -> None:
    await change(world, when(world.broker.clock() + timedelta(seconds=600), "<"))
    a, _ = await pair(world)
    before = told(world, Kind.EDGE_PERMITTED)
    for _ in range(5):
        assert await send(a) == "ok"
    assert told(world, Kind.EDGE_PERMITTED) == before + 1
    world.machine.clock.advance(timedelta(seconds=30))
    assert await send(a) == "ok"
    assert told(world, Kind.EDGE_PERMITTED) == before + 1


# ── answers that a sender can ask for without end ──────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_a_sender_that_makes_up_types_does_not_write_an_entry_with_each_message(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edges, "MAX_LISTED", 8)
    world.broker.router._edges._listed = Sparing(8)
    a, b = await pair(world)
    for number in range(20):
        assert await send(a, f"made-up-{number}") == "ok"
    assert told(world, Kind.EDGE_PERMITTED) <= 8 + 1
    c = await world.admitted("c")
    assert await send(c) == "ok"
    assert world.kinds()[-1] == Kind.EDGE_PERMITTED  # others are heard of as ever
    world.machine.clock.advance(timedelta(seconds=sparing.MINUTE_S))
    assert await send(a, "one-more") == "ok"
    (row,) = world.broker.audit.page(start=len(world.kinds()) - 1, limit=1)
    assert b'"unlisted":12' in row.entry.replace(b" ", b"")
    assert len((await b.receive(max_messages=64)).deliveries) == 22


def test_what_was_left_out_is_told_with_the_next_one() -> None:
    listed = Sparing(2)
    assert [listed.left_out("a", AT) for _ in range(4)] == [0, 0, None, None]
    assert listed.left_out("b", AT) == 0
    assert listed.left_out("a", AT + timedelta(seconds=sparing.MINUTE_S)) == 2
    assert listed.left_out("a", AT + timedelta(seconds=sparing.MINUTE_S)) is None
    later = AT + timedelta(days=1)
    assert [listed.left_out("a", later) for _ in range(3)] == [1, 0, None]


def test_the_books_on_many_who_write_are_bounded() -> None:
    listed = Sparing(2, keys=100)
    for number in range(1000):
        listed.left_out(str(number), AT)
    assert len(listed) == 100


@pytest.mark.asyncio
async def test_what_is_remembered_of_a_refusal_holds_nothing_of_what_was_refused(world: World) -> None:
    """An exception that is raised again grows by the frames of its way each time, and they hold messages."""
    a, _ = await pair(world)
    key = (await a.find("acme/mail/b")).key
    for _ in range(5):
        secret = a.envelope(key, mailbox="acme/secret/x")
        assert await outcome(a.send(secret, name="acme/secret/x")) == "refused: policy.no_rule"
    refusals = [answer.refusal for answer in world.broker.router._edges._known.values() if answer.refusal]
    assert [refusal.__traceback__ for refusal in refusals] == [None]
