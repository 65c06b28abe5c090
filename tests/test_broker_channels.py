"""Batches at the broker: whole or not at all, each number once, as far as the policy goes."""

import secrets
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio

from broker.app import create_app
from broker.errors import BrokerCode
from broker.ports import Transaction
from broker.ports.channels import ChannelRecord
from broker.ports.mail import Quota
from broker.wire.channel import MAX_SEQ, ChannelSend, chain_start
from broker.wire.envelope import MAX_LIFE_MS
from broker.wire.errors import WireCode
from broker.wire.jose import es256_sign, es256_valid
from broker.wire.leases import AckRequest, Partly
from broker.wire.mailbox import Delivery, ReceiveResponse, SendStatus
from tests.broker_world import URL, Agent, World, outcome, write_bundle
from tests.channel_world import HandMade

BOX = "acme/mail/b"
QUEUED, DUPLICATE = SendStatus.QUEUED, SendStatus.DUPLICATE


@pytest_asyncio.fixture(params=["memory", "sql"])
async def world(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[World]:
    made = await World.make(tmp_path, database=request.param == "sql")
    yield made
    await made.broker.close()


async def channel(world: World) -> tuple[HandMade, Agent]:
    a, b = await world.admitted("a"), await world.admitted("b")
    await b.open(BOX)
    return HandMade(a, (await a.find(BOX)).key), b


def waiting(world: World) -> int:
    return world.broker.store.read(lambda tx: tx.mail.waiting(BOX))


@pytest.mark.asyncio
async def test_batches_are_taken_in_order_and_counted_by_the_message(world: World) -> None:
    made, _ = await channel(world)
    assert await made.begin(b"one", b"two") is QUEUED
    assert await made.send(made.batch(b"three")) is QUEUED
    assert waiting(world) == 3


@pytest.mark.asyncio
async def test_the_same_batch_again_is_a_duplicate_also_after_a_restart(tmp_path: Path) -> None:
    world = await World.make(tmp_path, database=True)
    made, _ = await channel(world)
    first, second = made.batch(b"one"), made.batch(b"two", b"three")
    assert await made.send(first, opening=made.opening) is QUEUED
    assert await made.send(second) is QUEUED
    await world.restart()
    for batch in (first, second):
        assert await made.send(batch, opening=made.opening) is DUPLICATE
    assert waiting(world) == 3
    assert await made.send(made.batch(b"four")) is QUEUED
    await world.broker.close()


@pytest.mark.asyncio
async def test_other_messages_under_used_numbers_are_a_forgery(world: World) -> None:
    made, _ = await channel(world)
    await made.begin(b"one", b"two")
    start, made.next = made.chain, 1
    assert await outcome(made.send(made.batch(b"other"))) == BrokerCode.CHANNEL_FORKED
    made.next, made.chain = 2, start
    assert await outcome(made.send(made.batch(b"b", b"c"))) == BrokerCode.CHANNEL_FORKED
    made.next, made.chain = 3, start
    assert await outcome(made.send(made.batch(b"d", prev_chain=bytes(32)))) == BrokerCode.CHANNEL_FORKED
    made.next, made.chain = 3, start
    assert await outcome(made.send(made.batch(b"e"))) == "ok"
    assert waiting(world) == 3


@pytest.mark.asyncio
async def test_a_gap_is_refused_until_it_is_filled(world: World) -> None:
    made, _ = await channel(world)
    first, second, third = made.batch(b"1"), made.batch(b"2"), made.batch(b"3")
    assert await outcome(made.send(second)) == BrokerCode.CHANNEL_UNKNOWN
    assert await outcome(made.send(second, opening=made.opening)) == BrokerCode.CHANNEL_GAP
    assert await made.send(first, opening=made.opening) is QUEUED
    assert await outcome(made.send(third)) == BrokerCode.CHANNEL_GAP
    assert [await made.send(batch) for batch in (second, third)] == [QUEUED, QUEUED]


@pytest.mark.asyncio
async def test_a_channel_is_its_openers_alone_and_leads_to_one_mailbox(world: World) -> None:
    made, b = await channel(world)
    mallory = await world.admitted("m")
    await b.open("acme/mail/c")
    await made.begin(b"one")
    theirs = HandMade(mallory, made.key, channel=made.channel, secret=made.secret)
    theirs.next, theirs.chain = made.next, made.chain
    assert await outcome(theirs.send(theirs.batch(b"x"), opening=theirs.opening)) == BrokerCode.CHANNEL_OWNER
    stolen = made.batch(b"two")
    assert await outcome(made.send(stolen, by=mallory)) == WireCode.CHANNEL_SIGNATURE
    assert await outcome(made.send(stolen, name="acme/mail/c")) == BrokerCode.CHANNEL_OWNER
    assert await made.send(stolen) is QUEUED


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"type": "note"}, WireCode.CHANNEL_MALFORMED),
        ({"labels": ("pii",)}, WireCode.CHANNEL_MALFORMED),
        ({"mailbox": "acme/mail/c"}, BrokerCode.MESSAGE_MAILBOX),
        ({"sender_jkt": "x" * 43}, BrokerCode.MESSAGE_SENDER),
        ({"incarnation": bytes(32)}, BrokerCode.MAILBOX_KEY_STALE),
        ({"mailbox_key": bytes(32)}, BrokerCode.MAILBOX_KEY_STALE),
    ],
    ids=str,
)
async def test_an_opening_that_does_not_fit_is_refused(world: World, changes: dict[str, Any], code: str) -> None:
    made, _ = await channel(world)
    made.opening = made.opened(**changes)
    made.chain = chain_start(made.opening)
    assert await outcome(made.begin(b"one")) == code
    assert waiting(world) == 0


@pytest.mark.asyncio
async def test_an_opening_signed_by_another_is_refused(world: World) -> None:
    made, _ = await channel(world)
    mallory = await world.admitted("m")
    forged = replace(made.opening, signature=es256_sign(mallory.key, b"x"))
    assert await outcome(made.send(made.batch(b"one"), opening=forged)) == WireCode.ENVELOPE_SIGNATURE


@pytest.mark.asyncio
async def test_times_out_of_bounds_are_refused_and_expired_messages_stop_nobody(world: World) -> None:
    made, _ = await channel(world)
    now_ms = int(world.broker.clock().timestamp() * 1000)
    early = HandMade(made.agent, made.key)
    assert await outcome(early.begin(b"x", sent_at_ms=now_ms + 120_000)) == BrokerCode.MESSAGE_EXPIRED
    long = HandMade(made.agent, made.key)
    changes = {"sent_at_ms": now_ms + 50_000, "expires_at_ms": now_ms + 50_000 + MAX_LIFE_MS}
    assert await outcome(long.begin(b"x", **changes)) == BrokerCode.MESSAGE_EXPIRED
    old = made.batch(b"old", sent_at_ms=now_ms - 1000, expires_at_ms=now_ms - 1)
    assert await made.send(old, opening=made.opening) is QUEUED
    assert await made.send(made.batch(b"new")) is QUEUED


@pytest.mark.asyncio
async def test_the_policy_is_asked_once_for_each_type_and_refuses_the_whole_batch(world: World) -> None:
    made, _ = await channel(world)
    await made.begin(b"one", b"two", kind="a")
    await made.send(made.batch(b"three", kind="a"))
    await made.send(made.batch(b"four", kind="b"))
    assert world.kinds().count("edge.permitted") == 3  # b may receive, a may send either type
    write_bundle(world.settings.bundles[0], ('Path::"acme/mail"', 'Path::"acme/post"'), version=2)
    await world.broker.administration.reload_policies(world.settings.admins[0])
    assert (await outcome(made.send(made.batch(b"five", kind="a")))).startswith("refused: ")
    assert world.kinds()[-1] == "edge.refused"
    assert waiting(world) == 4


@pytest.mark.asyncio
async def test_a_label_that_the_sender_is_held_to_may_not_be_left_off(world: World) -> None:
    made, _ = await channel(world)
    await world.put("acme/open/key", b"k", "pii")
    await made.agent.release("acme/open/key")
    refused = await outcome(made.begin(b"leak"))
    assert refused == BrokerCode.MESSAGE_LABELS
    made.next = 1
    again = HandMade(made.agent, made.key)
    assert await again.begin(b"marked", labels=("pii",)) is QUEUED


@pytest.mark.asyncio
async def test_a_full_mailbox_refuses_the_batch_and_takes_it_later(tmp_path: Path) -> None:
    world = await World.make(tmp_path, quota=Quota(messages=3))
    made, _ = await channel(world)
    await made.begin(b"1", b"2")
    late = made.batch(b"3", b"4")
    assert await outcome(made.send(late)) == BrokerCode.MAILBOX_FULL
    now_ms = int(world.broker.clock().timestamp() * 1000)

    def handled(tx: Transaction) -> None:
        leased = tx.mail.lease(BOX, now_ms=now_ms, until_ms=now_ms + 9, leases=["l"], max_attempts=5)
        assert [tx.mail.acknowledge(BOX, one.lease, now_ms=now_ms) for one in leased.messages] == [True]

    await world.broker.store.transact(handled)
    assert await made.send(late) is QUEUED
    await world.broker.close()


@pytest.mark.asyncio
async def test_the_receivers_next_start_ends_the_channel(world: World) -> None:
    made, b = await channel(world)
    await made.begin(b"one")
    b.incarnation = secrets.token_bytes(32)
    b.mail_key = type(b.mail_key).generate()
    await b.open(BOX)
    assert await outcome(made.send(made.batch(b"two"))) == BrokerCode.MAILBOX_KEY_STALE
    assert await outcome(made.send(made.batch(b"x"), name="acme/mail/none")) == BrokerCode.CHANNEL_OWNER


@pytest.mark.asyncio
async def test_an_opening_is_kept_as_long_as_a_message_on_its_channel_and_no_longer(world: World) -> None:
    """It says four days, so that messages may live as long; nothing of it lies there once they have ended."""
    made, _ = await channel(world)
    made.opening = made.opened(life_s=4 * 24 * 3600 - 60)
    made.chain = chain_start(made.opening)
    now_ms = int(world.broker.clock().timestamp() * 1000)
    await made.begin(b"one", expires_at_ms=now_ms + 3 * 3600_000)

    async def kept_after(hours: float) -> bool:
        world.machine.clock.advance(timedelta(hours=hours))
        await made.agent.attest()
        await HandMade(made.agent, made.key).begin(b"later")
        return world.broker.store.read(lambda tx: tx.channels.opening(made.channel)) is not None

    assert await kept_after(2)
    assert not await kept_after(1.1)


@pytest.mark.asyncio
async def test_a_revoked_or_quarantined_sender_sends_nothing_more(world: World) -> None:
    made, _ = await channel(world)
    await made.begin(b"one")
    await world.broker.administration.revoke(world.settings.admins[0], made.agent.subject, "lost")
    assert await outcome(made.send(made.batch(b"two"))) == BrokerCode.AGENT_REVOKED


@pytest.mark.asyncio
async def test_stores_keep_channels_alike(world: World) -> None:
    record = ChannelRecord(
        channel=bytes(16),
        sender="agent/acme/x",
        mailbox=BOX,
        key=bytes(32),
        incarnation=bytes(32),
        highest=3,
        chain=b"c" * 32,
        ends=b"e" * 24,
        accepted_at_ms=1000,
        until_ms=2000,
        opening=b"envelope",
    )
    further = replace(record, highest=MAX_SEQ, chain=b"d" * 32, ends=b"", until_ms=3000)

    def work(tx: Transaction) -> None:
        assert tx.channels.get(record.channel) is None
        assert tx.channels.opening(record.channel) is None
        tx.channels.open(record)
        tx.channels.advance(further)

    await world.broker.store.transact(work)
    found = world.broker.store.read(lambda tx: tx.channels.get(record.channel))
    assert found == replace(further, opening=b"")
    assert world.broker.store.read(lambda tx: tx.channels.opening(record.channel)) == (b"envelope", 1000)
    newer = replace(record, channel=b"n" * 16, accepted_at_ms=3001)
    await world.broker.store.transact(lambda tx: tx.channels.open(newer))
    assert world.broker.store.read(lambda tx: tx.channels.get(record.channel)) is None


@pytest.mark.asyncio
async def test_a_batch_sent_over_rest_is_received_over_rest_with_its_opening(world: World) -> None:
    made, b = await channel(world)
    batch = made.batch(b"one", b"two")
    assert await made.send(batch, opening=made.opening) is QUEUED
    got = ReceiveResponse.from_dict((await b.receive()).to_dict())
    (delivery,), (opening,) = got.batches, got.openings
    assert made.read(delivery.batch) == [b"one", b"two"]
    assert opening.envelope == made.opening
    key = world.broker.identity.key.public_key()
    for digest, one in ((made.opening.digest, opening), (batch.digest, delivery)):
        assert es256_valid(key, one.acceptance, Delivery.message(BOX, digest, one.accepted_at_ms))
    request = AckRequest(partly=(Partly(lease=delivery.lease, but=(2,)),))
    await b.acting(lambda s: world.broker.mailboxes.acknowledge(s, BOX, request))
    (again,) = (await b.receive()).batches
    assert (again.remaining, waiting(world)) == ((2,), 1)


@pytest.mark.asyncio
async def test_a_batch_goes_through_the_same_door_as_envelopes(tmp_path: Path) -> None:
    world = await World.make(tmp_path)
    made, _ = await channel(world)
    sent = ChannelSend(batch=made.batch(b"one").to_bytes(), opening=made.opening.to_bytes()).to_bytes()
    app, path = create_app(world.broker, background=False), f"/v1/mailboxes/{BOX}:send"
    transport = httpx2.ASGITransport(app)
    async with httpx2.AsyncClient(transport=transport, base_url=URL) as client:
        for status in ("queued", "duplicate"):
            headers = made.agent.headers("POST", path, sent, nonce=world.broker.gate.nonce(world.broker.clock()))
            answer = await client.post(path, content=sent, headers=headers)
            assert (answer.status_code, answer.json()["results"][0]["status"]) == (200, status)
    await world.broker.close()
