"""Topics: everybody who may read gets the one copy, and who leaves or falls can't read what is said afterwards."""

import json
import os
import sqlite3
from collections.abc import AsyncIterator, Awaitable
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from attestation.errors import SealingFailed
from attestation.sealing import SealingKey, seal_to
from broker.mail.mailkeys import ring_of
from broker.ports.mail import Quota
from broker.wire.envelope import Envelope, Header, info
from broker.wire.keys import NO_INCARNATION, KeySet, KeysRequest, Place, TopicKey, grant_digest
from broker.wire.topic import TopicPage, TopicRead
from enclave.runtime import Runtime
from simulator.broker_fixture import BrokerUnderTest
from tests.broker_world import FILES, Agent, World, outcome, write_bundle

NEWS = "acme/news/daily"
RULES = (
    FILES["policy.cedar"]
    + """
@id("news")
permit (principal, action in [Action::"Send", Action::"Receive"], resource in Path::"acme/news")
when { resource is Topic };

@id("no-secrets-in-the-news")
forbid (principal, action == Action::"Send", resource is Topic)
when { resource.labels.contains("secret") };

@id("nobody-reads-cosmic")
forbid (principal, action == Action::"Receive", resource is Topic)
when { resource.labels.contains("cosmic") };
"""
)


@pytest_asyncio.fixture(params=[False, True], ids=["memory", "sqlite"])
async def world(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[World]:
    bundle = write_bundle(tmp_path / "topics", (FILES["policy.cedar"], RULES))
    made = await World.make(tmp_path, bundles=(bundle,), database=request.param, quota=Quota(messages=4))
    yield made
    await made.broker.close()


class Reader:
    """An agent that reads, with every key that it was ever given."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.keys: dict[bytes, SealingKey] = {}

    async def join(self) -> "Reader":
        desk, request = self.agent.world.broker.topics, KeysRequest(nonce=os.urandom(32))
        answer = await self.agent.acting(lambda s: desk.join(s, NEWS, request))
        found = KeySet.from_bytes(self.agent.sealing.open(answer.sealed, grant_digest(answer.grant)))
        for epoch in found.epochs:
            key = SealingKey.from_seed(epoch.seed, epoch.suite)
            self.keys[_thumbprint(key)] = key
        return self

    async def page(self, **how: int) -> TopicPage:
        desk = self.agent.world.broker.topics
        found: TopicPage = await self.agent.acting(lambda s: desk.receive(s, NEWS, TopicRead(**how)))
        return found

    async def texts(self, **how: int) -> list[str]:
        return [self.read(delivery.envelope) for delivery in (await self.page(**how)).deliveries]

    def read(self, envelope: Envelope) -> str:
        known = Header.from_bytes(envelope.header).mailbox_key in self.keys
        return self.open(envelope).decode() if known else "unreadable"

    def open(self, envelope: Envelope) -> bytes:
        key = self.keys[Header.from_bytes(envelope.header).mailbox_key]
        return key.open(envelope.body, info(envelope.header))


def _thumbprint(key: SealingKey) -> bytes:
    from broker.wire.tags import sealing_thumbprint

    return sealing_thumbprint(key.suite, key.public)


async def reader(world: World, label: str = "reader") -> Reader:
    return await Reader(await world.admitted(label)).join()


async def key_of(agent: Agent) -> TopicKey:
    found = await agent.acting(lambda s: agent.world.broker.topics.info(s, NEWS))
    found.key.verify(
        agent.world.broker.identity.key.public_key(), topic=NEWS, at_s=int(agent.world.broker.clock().timestamp())
    )
    key: TopicKey = found.key
    return key


def sealed(agent: Agent, key: TopicKey, text: str | bytes, **changes: Any) -> Envelope:
    """One envelope to the topic under that key, by hand."""
    agent.seq += 1
    now_ms = int(agent.world.broker.clock().timestamp() * 1000)
    members: dict[str, Any] = {
        "suite": key.suite,
        "tenant": "acme",
        "msg_id": os.urandom(16),
        "sender": agent.subject,
        "sender_jkt": agent.jkt,
        "mailbox": NEWS,
        "mailbox_key": key.thumbprint,
        "incarnation": NO_INCARNATION,
        "seq": agent.seq,
        "sent_at_ms": now_ms,
        "expires_at_ms": now_ms + 60_000,
        "type": "item",
    }
    raw = Header(**(members | changes)).to_bytes()
    plain = text.encode() if isinstance(text, str) else text
    return Envelope.sign(agent.key, header=raw, body=seal_to(key.suite, key.key, plain, info=info(raw)).blob)


def put(agent: Agent, *envelopes: Envelope) -> Awaitable[Any]:
    return agent.acting(lambda s: agent.world.broker.topics.publish(s, NEWS, envelopes))


async def say(agent: Agent, text: str, **changes: Any) -> str:
    return await outcome(put(agent, sealed(agent, await key_of(agent), text, **changes)))


def epochs(world: World) -> list[int]:
    return [epoch.number for epoch in world.broker.store.read(lambda tx: ring_of(tx, Place.TOPIC, NEWS))]


# ── one copy for everybody ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_every_reader_gets_the_one_copy_in_order(world: World) -> None:
    writer, one, two = await world.admitted("writer"), await reader(world, "one"), await reader(world, "two")
    for text in ("a", "b", "c"):
        assert await say(writer, text) == "ok"
    assert await one.texts() == await two.texts() == ["a", "b", "c"]
    assert world.broker.store.read(lambda tx: len(tx.topics.page(NEWS, after=0, now_ms=0))) == 3
    assert epochs(world)[-1] == epochs(world)[0]  # nobody left: nothing was rolled


@pytest.mark.asyncio
async def test_a_reader_moves_on_by_saying_how_far_it_is(world: World) -> None:
    writer, one = await world.admitted("writer"), await reader(world)
    for text in ("a", "b"):
        await say(writer, text)
    places = (await one.page()).places
    assert await one.texts() == ["a", "b"]  # at least once: it has not said that it is done
    assert await one.texts(done=places[0]) == ["b"]
    assert await one.texts(done=places[1]) == []
    assert await one.texts(done=places[0]) == []  # never back
    assert await one.texts(done=2**40) == []
    await say(writer, "c")
    assert await one.texts() == ["c"]


@pytest.mark.asyncio
async def test_a_newcomer_hears_what_is_said_from_then_on(world: World) -> None:
    writer, one = await world.admitted("writer"), await reader(world)
    await say(writer, "before")
    late = await reader(world, "late")
    await say(writer, "after")
    assert await one.texts() == ["before", "after"]
    assert await late.texts() == ["after"]


@pytest.mark.asyncio
async def test_the_same_envelope_is_taken_once(world: World) -> None:
    writer, one = await world.admitted("writer"), await reader(world)
    envelope = sealed(writer, await key_of(writer), "a")
    assert [str(result.status) for result in (await put(writer, envelope)).results] == ["queued"]
    assert [str(result.status) for result in (await put(writer, envelope)).results] == ["duplicate"]
    assert await one.texts() == ["a"]


@pytest.mark.asyncio
async def test_a_slow_reader_fills_the_topic_and_a_quick_one_empties_it(world: World) -> None:
    writer, one = await world.admitted("writer"), await reader(world)
    for number in range(4):
        assert await say(writer, str(number)) == "ok"
    assert await say(writer, "one too many") == "mailbox.full"
    await one.texts(done=(await one.page()).places[-1])
    assert await say(writer, "again") == "ok"


# ── who may, and until when ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_who_leaves_cannot_read_what_is_said_afterwards(world: World) -> None:
    writer, one, two = await world.admitted("writer"), await reader(world, "one"), await reader(world, "two")
    await say(writer, "before")
    await one.agent.acting(lambda s: world.broker.topics.leave(s, NEWS))
    await say(writer, "after")
    assert await outcome(one.page()) == "topic.not_reader"
    stolen = world.broker.store.read(lambda tx: tx.topics.page(NEWS, after=0, now_ms=0))
    assert [one.read(Envelope.from_bytes(message.envelope)) for message in stolen] == ["before", "unreadable"]
    await two.join()
    assert await two.texts() == ["before", "after"]


@pytest.mark.asyncio
async def test_who_falls_cannot_read_what_is_said_afterwards(world: World) -> None:
    writer, eve, two = await world.admitted("writer"), await reader(world, "eve"), await reader(world, "two")
    await say(writer, "before")
    await world.broker.administration.revoke(world.settings.admins[0], eve.agent.subject, "test")
    await say(writer, "after")
    assert await outcome(eve.page()) == "agent.revoked"
    stolen = world.broker.store.read(lambda tx: tx.topics.page(NEWS, after=0, now_ms=0))
    assert [eve.read(Envelope.from_bytes(message.envelope)) for message in stolen] == ["before", "unreadable"]
    await two.join()
    assert await two.texts() == ["before", "after"]


@pytest.mark.asyncio
async def test_who_does_not_come_back_is_rolled_out(world: World) -> None:
    writer, gone = await world.admitted("writer"), await reader(world, "gone")
    before = epochs(world)[-1]
    world.machine.clock.advance(timedelta(seconds=world.settings.token_ttl_s + 1))
    await writer.attest()
    await say(writer, "after")
    assert epochs(world)[-1] > before
    assert world.broker.store.read(lambda tx: tx.topics.readers(NEWS)) == []
    assert gone.keys.keys().isdisjoint({(await key_of(writer)).thumbprint})


@pytest.mark.asyncio
async def test_what_is_sealed_to_a_key_of_before_is_refused(world: World) -> None:
    writer, one = await world.admitted("writer"), await reader(world)
    old = await key_of(writer)
    await one.agent.acting(lambda s: world.broker.topics.leave(s, NEWS))
    assert await outcome(put(writer, sealed(writer, old, "late"))) == "mailbox.key_stale"


@pytest.mark.asyncio
async def test_the_policy_says_who_publishes_and_who_reads(world: World) -> None:
    eve = await world.admitted("eve")
    desk, request = world.broker.topics, KeysRequest(nonce=bytes(32))
    assert (await outcome(eve.acting(lambda s: desk.join(s, "acme/private/x", request)))).startswith("refused")
    assert await outcome(eve.acting(lambda s: desk.receive(s, NEWS, TopicRead()))) == "topic.not_reader"
    assert await outcome(eve.acting(lambda s: desk.info(s, "~topic/x"))) == "mailbox.name_invalid"
    one = await reader(world)
    assert await say(eve, "x", labels=("secret",)) == "refused: policy.forbidden"
    assert await say(eve, "x", labels=("cosmic",)) == "ok"
    assert await say(eve, "y") == "ok"
    assert await one.texts() == ["y"]


@pytest.mark.asyncio
async def test_labels_go_with_what_is_published_and_cannot_be_left_off(world: World) -> None:
    writer, one = await world.admitted("writer"), await reader(world)
    await world.put("acme/open/plan", b"v", "internal")
    await writer.release("acme/open/plan")
    assert await say(writer, "a") == "message.labels_lowered"
    assert await say(writer, "a", labels=("internal",)) == "ok"
    assert world.broker.labels.of(one.agent.subject) == frozenset()
    await one.texts()
    assert world.broker.labels.of(one.agent.subject) == {"internal"}


@pytest.mark.asyncio
async def test_a_mailbox_does_not_take_what_was_sealed_for_a_topic_of_its_name(world: World) -> None:
    writer, one = await world.admitted("writer"), await reader(world)
    await one.agent.open("acme/mail/b")
    envelope = sealed(writer, await key_of(writer), "x", mailbox="acme/mail/b")
    assert await outcome(writer.send(envelope, name="acme/mail/b")) == "mailbox.key_stale"
    with pytest.raises(SealingFailed):
        one.agent.read(envelope)


# ── agents ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_agents_publish_and_read_and_follow_when_the_key_is_rolled(broker: BrokerUnderTest) -> None:
    topic = "lab/mail/news"
    writer, one, two = [await _start(broker, name) for name in ("writer", "one", "two")]
    try:
        readers = [runtime.topic(topic) for runtime in (one, two)]
        for following in readers:
            await following.join()
        await writer.publish_to(topic, kind="item", plaintext=b"a", labels=frozenset({"internal"}))
        for following in readers:
            (received,) = await following.receive(wait_s=0)
            assert received.plaintext == b"a"
            assert received.verdict.subject == writer.admission.subject
            following.done(received)
        await readers[1].leave()
        await writer.publish_to(topic, kind="item", plaintext=b"b")
        (received,) = await readers[0].receive(wait_s=0)
        assert received.plaintext == b"b"
        assert one.labels == {"internal"}
    finally:
        for runtime in (writer, one, two):
            await runtime.close()


async def _start(broker: BrokerUnderTest, name: str) -> Runtime:
    domain = broker.machine.launch(name)
    made = Runtime(domain=domain, trust=broker.trust, broker_url=broker.url, mailbox=f"lab/mail/{name}")
    await made.attest()
    return made


@pytest.mark.asyncio
async def test_what_has_expired_is_dropped_and_shown_to_nobody(world: World) -> None:
    writer, one = await world.admitted("writer"), await reader(world)
    await say(writer, "short")
    world.machine.clock.advance(timedelta(seconds=61))
    assert await one.texts() == []
    assert await world.broker.topics.expire() == 1
    assert await world.broker.topics.expire() == 0


# ── rows that somebody has been at ─────────────────────────────────────────────────────────────────────────────────


def tamper(world: World, number: int, **columns: Any) -> None:
    """Change a message where it rests, behind the broker's back."""
    if world.settings.database is None:
        rows = world.broker.store._tables.topics._messages.rows  # type: ignore[attr-defined]
        rows[number] = replace(rows[number], **columns)
        return
    with closing(sqlite3.connect(world.settings.database, isolation_level=None)) as file:
        for name, value in columns.items():
            file.execute(f"UPDATE topic_message SET {name} = ? WHERE id = ?", (value, number))


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "columns",
    [
        {"envelope": b"nonsense"},
        {"digest": bytes(32)},
        {"kind": "batch"},
        {"accepted_at_ms": "yesterday"},
        {"accepted_at_ms": -1},
        {"accepted_at_ms": 2**62},
        {"sender": b"agent"},
    ],
    ids=lambda columns: "{}-{!s:.9}".format(*next(iter(columns.items()))),
)
async def test_a_row_that_somebody_has_been_at_is_dropped_and_told_and_the_others_are_read(
    world: World, columns: dict[str, Any]
) -> None:
    writer, one, two = await world.admitted("writer"), await reader(world, "one"), await reader(world, "two")
    for text in ("a", "b", "c"):
        assert await say(writer, text) == "ok"
    _, bad, _ = [row.number for row in _rows(world)]
    tamper(world, bad, **columns)
    assert await one.texts() == ["a", "c"]
    assert await one.texts() == ["a", "c"]
    assert (await two.page()).missed == 1
    entries = [json.loads(row.entry) for row in world.broker.audit.newest(kind="mail.dropped", limit=9)]
    assert [(entry["codes"], entry["numbers"], entry["resource"]) for entry in entries] == [
        (["store.row_forged"], [str(bad)], NEWS)
    ]
    assert b'cloister_forged_rows{of="mail"} 1.0' in world.broker.metrics.render()


def _rows(world: World) -> list[Any]:
    now_ms = int(world.broker.clock().timestamp() * 1000)
    return list(world.broker.store.read(lambda tx: tx.topics.page(NEWS, after=0, now_ms=now_ms)))
