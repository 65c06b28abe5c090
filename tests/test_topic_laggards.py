"""A reader that stays and does not read holds up nobody for longer than a minute, and is told what it has missed."""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.ports.mail import Quota
from broker.ports.topics import BEHIND_MS
from broker.store.shares import Load, has_room, let_go
from broker.wire.topic import TopicPage
from enclave.topics.reader import TopicReader
from tests.broker_world import FILES, Agent, World, write_bundle
from tests.test_topics import RULES, reader, say

PATIENCE = timedelta(milliseconds=BEHIND_MS + 1)


@pytest_asyncio.fixture(params=[False, True], ids=["memory", "sqlite"])
async def world(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[World]:
    bundle = write_bundle(tmp_path / "topics", (FILES["policy.cedar"], RULES))
    made = await World.make(tmp_path, bundles=(bundle,), database=request.param, quota=Quota(messages=4))
    yield made
    await made.broker.close()


async def tell(agent: Agent, text: str) -> str:
    """Something that lives for long enough."""
    return await say(agent, text, expires_at_ms=int(agent.world.broker.clock().timestamp() * 1000) + 3_600_000)


# ── readers who are behind, and readers who are not ────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_a_reader_that_never_reads_does_not_stop_the_publishers(world: World) -> None:
    writer = await world.admitted("writer")
    stuck, quick = await reader(world, "stuck"), await reader(world, "quick")
    for number in range(4):
        assert await tell(writer, str(number)) == "ok"
    assert await tell(writer, "too soon") == "mailbox.full"
    page = await quick.page()
    assert len(page.places) == 4
    world.machine.clock.advance(PATIENCE)
    assert await quick.texts(done=page.places[-1]) == []
    for number in range(4, 8):
        assert await tell(writer, str(number)) == "ok"
        assert await quick.texts() == [str(number)]
        assert await quick.texts(done=(await quick.page()).places[-1]) == []
    assert await tell(writer, "nobody is behind now") == "mailbox.full"
    assert (await quick.page()).missed == 0
    left = await stuck.page()
    assert left.missed == 4
    assert [stuck.read(one.envelope) for one in left.deliveries] == ["4", "5", "6", "7"]


@pytest.mark.asyncio
async def test_what_a_reader_who_keeps_up_has_not_read_stays(world: World) -> None:
    writer = await world.admitted("writer")
    await reader(world, "stuck")
    quick = await reader(world, "quick")
    for number in range(2):
        assert await tell(writer, str(number)) == "ok"
    await quick.texts(done=(await quick.page()).places[-1])
    world.machine.clock.advance(PATIENCE)
    for number in range(2, 6):  # two take the place of two that nobody but the laggard wants
        assert await tell(writer, str(number)) == "ok"
    assert await tell(writer, "one too many") == "mailbox.full"
    assert await quick.texts() == ["2", "3", "4", "5"]


@pytest.mark.asyncio
async def test_a_lone_reader_that_is_behind_loses_no_more_than_there_must_be_room_for(world: World) -> None:
    writer, slow = await world.admitted("writer"), await reader(world, "slow")
    for number in range(4):
        assert await tell(writer, str(number)) == "ok"
    world.machine.clock.advance(PATIENCE)
    assert await tell(writer, "4") == "ok"
    page = await slow.page()
    assert page.missed == 1
    assert [slow.read(one.envelope) for one in page.deliveries] == ["1", "2", "3", "4"]


@pytest.mark.asyncio
async def test_one_publisher_pushes_out_its_own_before_what_others_have_said(world: World) -> None:
    noisy, quiet = await world.admitted("noisy"), await world.admitted("quiet")
    slow = await reader(world, "slow")
    assert await tell(quiet, "hear me") == "ok"
    for number in range(2):
        assert await tell(noisy, str(number)) == "ok"
    world.machine.clock.advance(PATIENCE)
    for number in range(2, 20):
        assert await tell(noisy, str(number)) == "ok"
    page = await slow.page()
    assert slow.read(page.deliveries[0].envelope) == "hear me"
    assert page.missed == 17


# ── what a reader makes of it ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_an_agent_is_told_what_it_has_missed(caplog: pytest.LogCaptureFixture) -> None:
    pages = iter([0, 3, 3, 7, 2])  # the last one: the broker has forgotten this reader, and it joined again

    async def do(_: Any) -> TopicPage:
        return TopicPage.from_dict({"deliveries": [], "places": [], "senders": {}, "missed": next(pages)})

    nothing = cast("Any", SimpleNamespace())
    made = TopicReader(
        "acme/news/daily",
        keys=nothing,
        time=nothing,
        calls=nothing,
        admission=nothing,
        do=cast("Any", do),
        heard=nothing,
        standing=nothing,
        renew=nothing,
    )
    counts = []
    for _ in range(5):
        assert await made.receive() == []
        counts.append(made.missed)
    assert counts == [0, 3, 3, 7, 9]
    assert caplog.text.count("topic.missed") == 3


# ── shares ─────────────────────────────────────────────────────────────────────────────────────────────────────────

ROOM = Quota(messages=1000, octets=1_000_000, sender_messages=500, sender_octets=500_000)


@given(waves=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 200)), max_size=60))
@settings(max_examples=100, deadline=None)
def test_however_many_flood_somebody_new_finds_room(waves: list[tuple[int, int]]) -> None:
    held: dict[int, int] = {}
    for sender, count in waves:
        while has_room(ROOM, held=Load(sum(held.values())), own=Load(held.get(sender, 0)), more=Load(count)):
            held[sender] = held.get(sender, 0) + count
    assert max(held.values(), default=0) <= 500
    assert sum(held.values()) <= 875 + 10 * 7  # all of who has something there, and the small parcels of newcomers
    assert has_room(ROOM, held=Load(sum(held.values())), own=Load(), more=Load(1, 1000))


def test_alone_a_sender_fills_what_the_quota_says() -> None:
    assert has_room(ROOM, held=Load(499), own=Load(499), more=Load(1))
    assert not has_room(ROOM, held=Load(500), own=Load(500), more=Load(1))
    assert not has_room(ROOM, held=Load(501), own=Load(499), more=Load(1))


@given(
    rows=st.lists(st.tuples(st.integers(1, 300_000), st.sampled_from("abc")), max_size=40),
    sender=st.sampled_from("abcd"),
    size=st.integers(1, 300_000),
    up_to=st.integers(0, 40),
)
@settings(max_examples=200, deadline=None)
def test_what_is_let_go_makes_room_and_is_wanted_by_nobody(
    rows: list[tuple[int, str]], sender: str, size: int, up_to: int
) -> None:
    numbered = [(number, Load(1, octets), owner) for number, (octets, owner) in enumerate(rows, start=1)]
    gone = let_go(ROOM, numbered, sender, Load(1, size), up_to=up_to)
    left = [row for row in numbered if row[0] not in (gone or ())]
    assert all(number <= up_to for number in gone or ())
    if gone is not None:
        own = Load(sum(row[2] == sender for row in left), sum(row[1].octets for row in left if row[2] == sender))
        assert has_room(ROOM, held=Load(len(left), sum(row[1].octets for row in left)), own=own, more=Load(1, size))
