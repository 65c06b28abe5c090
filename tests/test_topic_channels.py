"""Channels to topics at the broker: whose they are, how long they lead anywhere, and what readers are shown of them."""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest
import pytest_asyncio

from broker.ports.mail import Quota
from broker.wire.channel import OPEN_TYPE, ChannelBatch, ChannelSend, Opening, channel_of
from broker.wire.envelope import Envelope
from broker.wire.keys import NO_INCARNATION
from broker.wire.mailbox import SendStatus
from broker.wire.topic import TopicPage
from tests.broker_world import FILES, Agent, World, outcome, write_bundle
from tests.channel_world import HandMade
from tests.test_topics import NEWS, RULES, Reader, key_of, put, reader, sealed

QUEUED, DUPLICATE = SendStatus.QUEUED, SendStatus.DUPLICATE


@pytest_asyncio.fixture(params=[False, True], ids=["memory", "sqlite"])
async def world(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[World]:
    bundle = write_bundle(tmp_path / "topics", (FILES["policy.cedar"], RULES))
    made = await World.make(tmp_path, bundles=(bundle,), database=request.param, quota=Quota(messages=40))
    yield made
    await made.broker.close()


class Wire(HandMade):
    """A channel by hand that leads to the topic."""

    @classmethod
    async def of(cls, agent: Agent, **how: Any) -> "Wire":
        return cls(agent, cast("Any", await key_of(agent)), **how)

    def opened(self, **changes: Any) -> Envelope:
        inside = Opening(
            channel=self.channel, key=self.secret, mailbox_key=self.key.thumbprint, incarnation=NO_INCARNATION
        )
        now_ms = int(self.agent.world.broker.clock().timestamp() * 1000)
        members: dict[str, Any] = {"type": OPEN_TYPE, "expires_at_ms": now_ms + 3_600_000}
        return sealed(self.agent, cast("Any", self.key), inside.to_bytes(), **(members | changes))

    async def send(self, batch: ChannelBatch, **how: Any) -> SendStatus:
        agent, opening = how.get("by") or self.agent, how.get("opening")
        sent = ChannelSend(batch=batch.to_bytes(), opening=opening.to_bytes() if opening else b"")
        channels, name, topic = agent.world.broker.channels, how.get("name", NEWS), how.get("topic", True)
        status: SendStatus = await agent.acting(lambda s: channels.send(s, name, sent, topic=topic))
        return status


async def texts(line: Wire, one: Reader, **how: int) -> list[list[bytes]]:
    return [line.read(batch.batch) for batch in (await one.page(**how)).batches]


def names(page: TopicPage) -> list[bytes]:
    return [channel_of(batch.batch) for batch in page.batches]


# ── from one to everybody ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_every_reader_is_shown_the_one_batch_and_the_opening_of_its_channel(world: World) -> None:
    one, two = await reader(world, "one"), await reader(world, "two")
    line = await Wire.of(await world.admitted("writer"))
    assert await line.begin(b"a", b"b") is QUEUED
    assert await line.send(line.batch(b"c")) is QUEUED
    for following in (one, two):
        page = await following.page()
        assert [line.read(batch.batch) for batch in page.batches] == [[b"a", b"b"], [b"c"]]
        assert [opening.envelope for opening in page.openings] == [line.opening]
        assert set(page.senders) == {line.agent.subject}
        assert (page.deliveries, page.places) == ((), ())
        assert TopicPage.from_dict(page.to_dict()) == page
        assert [batch.batch for batch in (await following.page(done=page.batch_places[0])).batches] == [
            page.batches[1].batch
        ]
    assert world.broker.store.read(lambda tx: len(tx.topics.page(NEWS, after=0, now_ms=0))) == 2


@pytest.mark.asyncio
async def test_envelopes_and_batches_lie_in_one_row(world: World) -> None:
    one, writer = await reader(world), await world.admitted("writer")
    line = await Wire.of(writer)
    await line.begin(b"1")
    await put(writer, sealed(writer, await key_of(writer), "2"))
    await line.send(line.batch(b"3"))
    page = await one.page()
    assert page.batch_places[0] < page.places[0] < page.batch_places[1]


@pytest.mark.asyncio
async def test_a_late_reader_is_shown_the_opening_and_what_is_said_from_then_on(world: World) -> None:
    await reader(world, "early")
    line = await Wire.of(await world.admitted("writer"))
    await line.begin(b"before")
    late = await reader(world, "late")
    await line.send(line.batch(b"after"))
    page = await late.page()
    assert [line.read(batch.batch) for batch in page.batches] == [[b"after"]]
    inside = Opening.from_bytes(late.open(page.openings[0].envelope))
    assert inside.key == line.secret


@pytest.mark.asyncio
async def test_an_opening_stays_as_long_as_a_batch_of_its_channel(world: World) -> None:
    one = await reader(world)
    line = await Wire.of(await world.admitted("writer"))
    now_ms = int(world.broker.clock().timestamp() * 1000)
    await line.begin(b"a", expires_at_ms=now_ms + 2 * 3_600_000)
    for _ in range(13):
        world.machine.clock.advance(timedelta(minutes=9))
        for agent in (one.agent, line.agent):
            await agent.attest()
        await (await Wire.of(line.agent)).begin(b"b")  # which prunes those that have ended
    page = await one.page()
    assert line.channel in names(page)
    assert line.opening in [opening.envelope for opening in page.openings]


@pytest.mark.asyncio
async def test_an_opening_that_somebody_has_been_at_keeps_nobody_from_the_channels_of_others(world: World) -> None:
    one = await reader(world)
    bad, good = await Wire.of(await world.admitted("bad")), await Wire.of(await world.admitted("good"))
    await bad.begin(b"a")
    await good.begin(b"b")
    if world.settings.database is None:
        rows = world.broker.store._tables.channels._rows.rows  # type: ignore[attr-defined]  # behind the broker's back
        rows[bad.channel] = replace(rows[bad.channel], opening=b"nonsense")
    else:
        with closing(sqlite3.connect(world.settings.database, isolation_level=None)) as file:
            file.execute("UPDATE channel_opening SET envelope = ? WHERE channel = ?", (b"nonsense", bad.channel))
    page = await one.page()
    assert names(page) == [bad.channel, good.channel]
    assert [opening.envelope for opening in page.openings] == [good.opening]


# ── whose it is, and where it leads ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_a_channel_is_its_openers_alone(world: World) -> None:
    await reader(world)
    line, eve = await Wire.of(await world.admitted("writer")), await world.admitted("eve")
    await line.begin(b"a")
    assert await outcome(line.send(line.batch(b"b"), by=eve)) == "channel.signature_invalid"
    theirs = Wire(eve, line.key, channel=line.channel, secret=line.secret)
    assert await outcome(theirs.send(theirs.batch(b"x"))) == "channel.not_owner"
    assert await outcome(theirs.send(theirs.batch(b"x"), opening=line.opening)) == "message.sender_mismatch"


@pytest.mark.asyncio
async def test_a_channel_to_a_topic_leads_to_no_mailbox_of_its_name_and_to_no_other_topic(world: World) -> None:
    await reader(world)
    owner = await world.admitted("owner")
    line = await Wire.of(await world.admitted("writer"))
    await line.begin(b"a")
    await owner.open("acme/mail/b")
    following = line.batch(b"b")
    assert await outcome(line.send(following, name="acme/news/other")) == "mailbox.unknown"
    assert await outcome(line.send(following, name="acme/mail/b", topic=False)) == "channel.not_owner"
    mailbox = HandMade(line.agent, (await line.agent.find("acme/mail/b")).key)
    await mailbox.begin(b"x")
    assert await outcome(line.send(mailbox.batch(b"y"))) == "channel.not_owner"
    fresh = await Wire.of(line.agent)
    elsewhere = fresh.opened(mailbox="acme/news/other")
    assert await outcome(fresh.send(fresh.batch(b"x"), opening=elsewhere)) == "message.mailbox_mismatch"
    assert await line.send(following) is QUEUED


@pytest.mark.asyncio
async def test_what_comes_twice_changes_nothing_and_what_does_not_follow_on_is_refused(world: World) -> None:
    one = await reader(world)
    line = await Wire.of(await world.admitted("writer"))
    first = line.batch(b"a")
    assert await outcome(line.send(first)) == "channel.unknown"
    assert await line.send(first, opening=line.opening) is QUEUED
    assert await line.send(first) is DUPLICATE
    second, third = line.batch(b"b"), line.batch(b"c")
    assert await outcome(line.send(third)) == "channel.gap"
    assert await line.send(second) is QUEUED
    line.next = 2
    assert await outcome(line.send(line.batch(b"another"))) == "channel.forked"
    assert await texts(line, one) == [[b"a"], [b"b"]]


@pytest.mark.asyncio
async def test_a_topic_that_nobody_has_read_has_no_channels(world: World) -> None:
    one = await reader(world)
    line = await Wire.of(await world.admitted("writer"))
    await line.begin(b"a")
    world.machine.clock.advance(timedelta(days=10))
    await world.broker.keys.purge()
    await line.agent.attest()
    await world.broker.store.transact(lambda tx: tx.topics.leave(NEWS, one.agent.subject))
    assert await outcome(line.send(line.batch(b"b"))) == "mailbox.unknown"


# ── who may, and until when ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_a_channel_ends_with_the_key_that_it_was_opened_to(world: World) -> None:
    one, two = await reader(world, "one"), await reader(world, "two")
    line = await Wire.of(await world.admitted("writer"))
    await line.begin(b"before")
    await two.agent.acting(lambda s: world.broker.topics.leave(s, NEWS))
    assert await outcome(line.send(line.batch(b"after"))) == "mailbox.key_stale"
    fresh = await Wire.of(line.agent)
    assert await fresh.begin(b"after") is QUEUED
    with pytest.raises(KeyError):
        two.open(fresh.opening)
    await one.join()
    page = await one.page()
    assert names(page) == [line.channel, fresh.channel]
    assert [Opening.from_bytes(one.open(opening.envelope)).key for opening in page.openings] == [
        line.secret,
        fresh.secret,
    ]


@pytest.mark.asyncio
async def test_the_key_is_rolled_before_the_next_batch_when_a_reader_falls(world: World) -> None:
    eve = await reader(world, "eve")
    await reader(world, "one")
    line = await Wire.of(await world.admitted("writer"))
    await line.begin(b"before")
    await world.broker.administration.revoke(world.settings.admins[0], eve.agent.subject, "test")
    assert await outcome(line.send(line.batch(b"after"))) == "mailbox.key_stale"
    assert await outcome(eve.page()) == "agent.revoked"
    assert (await key_of(line.agent)).thumbprint not in eve.keys


@pytest.mark.asyncio
async def test_nothing_of_a_publisher_that_has_fallen_is_taken_or_shown(world: World) -> None:
    one = await reader(world)
    line, other = await Wire.of(await world.admitted("eve")), await Wire.of(await world.admitted("writer"))
    await line.begin(b"a")
    await other.begin(b"b")
    await world.broker.administration.revoke(world.settings.admins[0], line.agent.subject, "test")
    assert await outcome(line.send(line.batch(b"c"))) == "agent.revoked"
    page = await one.page()
    assert names(page) == [other.channel]
    assert set(page.senders) == {other.agent.subject}


@pytest.mark.asyncio
async def test_the_policy_is_asked_about_every_type_with_its_labels(world: World) -> None:
    one = await reader(world)
    line = await Wire.of(await world.admitted("writer"))
    await line.begin(b"a", labels=("cosmic",))
    assert await line.send(line.batch(b"b")) is QUEUED
    assert await outcome(line.send(line.batch(b"c", labels=("secret",)))) == "refused: policy.forbidden"
    assert await texts(line, one) == [[b"b"]]  # nobody reads cosmic


@pytest.mark.asyncio
async def test_labels_cannot_be_left_off_and_whoever_reads_is_held_to_them(world: World) -> None:
    one = await reader(world)
    line = await Wire.of(await world.admitted("writer"))
    await world.put("acme/open/plan", b"v", "internal")
    await line.agent.release("acme/open/plan")
    assert await outcome(line.begin(b"a")) == "message.labels_lowered"
    fresh = await Wire.of(line.agent)
    assert await fresh.begin(b"a", labels=("internal",)) is QUEUED
    assert world.broker.labels.of(one.agent.subject) == frozenset()
    await one.page()
    assert world.broker.labels.of(one.agent.subject) == {"internal"}


@pytest.mark.asyncio
async def test_a_topic_holds_as_many_messages_as_the_quota_says_however_they_come(world: World) -> None:
    one = await reader(world)
    line = await Wire.of(await world.admitted("writer"))
    await line.begin(*[b"x"] * 35)
    assert await outcome(line.send(line.batch(*[b"x"] * 6))) == "mailbox.full"
    page = await one.page()
    await one.page(done=page.batch_places[-1])
    line.next, line.chain = 36, ChannelBatch.from_bytes(page.batches[-1].batch).chain
    assert await line.send(line.batch(*[b"x"] * 6)) is QUEUED
