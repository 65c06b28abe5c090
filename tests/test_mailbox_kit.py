"""The mailbox kit: what can happen to mail between two agents, once for every store.

Each case is a sentence. The broker is the real one, in process; receivers are the framework's own; senders are spoken
by hand where a case needs a wrong word.
"""

import hashlib
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from broker.errors import BrokerCode, BrokerError
from broker.mail.deadletters import RETENTION_MS
from broker.mail.leases import MAX_ATTEMPTS, Wanted
from broker.ports.mail import MAX_KEYS, MAX_OUT, MAX_OUT_OF_SENDER, Quota
from broker.wire.blob import BLOB_TYPE, BlobRef
from broker.wire.deadletters import PageRequest, RedriveRequest, Tombstone
from broker.wire.envelope import MAX_BODY, Envelope
from broker.wire.errors import WireCode, WireError
from broker.wire.leases import Extension, Nak, Partly, Rejection
from broker.wire.mailbox import SendStatus
from enclave.errors import Code, EnvelopeRefused
from enclave.mailbox import EPOCH_S, pad
from tests.broker_world import Agent, World, outcome
from tests.channel_world import HandMade
from tests.kit_world import Maker, pair, waiting
from tests.kit_world import maker as maker
from tests.mail_world import BOX, REDRIVE, Receiver, Sender, change


def opens(receiver: Receiver, delivery: Any, senders: dict[str, str], **how: Any) -> str:
    """ "ok", or the code with which the receiver refuses."""
    try:
        receiver.open(delivery, senders, **how)
    except (EnvelopeRefused, WireError) as error:
        return str(error.code)
    return "ok"


def stones(world: World, agent: Agent, name: str = BOX) -> Callable[[], Awaitable[list[Tombstone]]]:
    async def read() -> list[Tombstone]:
        async def ask(session: Any) -> Any:
            return world.broker.dead.tombstones(session, name, PageRequest())

        return list((await agent.acting(ask)).tombstones)

    return read


# ── 1 to 6: leases ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_01_a_message_that_is_published_twice_is_delivered_once(maker: Maker) -> None:
    a, b = await pair(await maker())
    (letter,) = await a.post(b"once")
    again = await a.agent.send(letter)
    assert again.results[0].status is SendStatus.DUPLICATE
    assert await b.read() == [b"once"]
    assert (await a.agent.send(letter)).results[0].status is SendStatus.DUPLICATE
    assert await b.read() == []


@pytest.mark.asyncio
async def test_02_what_a_receiver_took_before_it_died_comes_again(maker: Maker) -> None:
    world = await maker()
    a, b = await pair(world)
    await a.post(b"work")
    got = await b.take(lease_s=10)
    b.inbox.again(b.open(got.deliveries[0], got.senders).header)
    world.machine.clock.advance(9)
    assert await b.read() == []
    world.machine.clock.advance(2)
    assert await b.read() == [b"work"]


@pytest.mark.asyncio
async def test_03_an_acknowledgement_whose_answer_was_lost_stays_done(maker: Maker) -> None:
    world = await maker()
    a, b = await pair(world)
    await a.post(b"work")
    got = await b.take(lease_s=10)
    lease = got.deliveries[0].lease
    await b.ack(ack=(lease,))
    assert await outcome(b.ack(ack=(lease,))) == BrokerCode.LEASE_LOST
    world.machine.clock.advance(60)
    assert await b.read() == []


@pytest.mark.asyncio
async def test_04_a_late_acknowledgement_is_refused_and_the_message_comes_again_once(maker: Maker) -> None:
    world = await maker()
    a, b = await pair(world)
    await a.post(b"slow")
    first = (await b.take(lease_s=5)).deliveries[0]
    world.machine.clock.advance(5)
    assert await outcome(b.ack(ack=(first.lease,))) == BrokerCode.LEASE_LOST
    second = (await b.take()).deliveries[0]
    assert second.attempt == 2
    for verb in (
        {"nak": (Nak(lease=first.lease),)},
        {"extend": (Extension(lease=first.lease),)},
        {"reject": (Rejection(lease=first.lease, code="no"),)},
        {"partly": (Partly(lease=first.lease, but=(1,)),)},
    ):
        assert await outcome(b.ack(**verb)) == BrokerCode.LEASE_LOST
    done = await b.ack(ack=(first.lease, second.lease))
    assert (done.done, done.lost) == (1, (first.lease,))


@pytest.mark.asyncio
async def test_05_a_lease_is_kept_as_long_as_its_holder_says_and_twelve_hours_at_most(maker: Maker) -> None:
    world = await maker()
    a, b = await pair(world)
    await a.post(b"long", life_s=24 * 3600)
    lease = (await b.take(lease_s=10)).deliveries[0].lease
    for _ in range(3):
        world.machine.clock.advance(9)
        await b.ack(extend=(Extension(lease=lease, lease_s=10),))
    assert await b.read() == []
    await b.ack(extend=(Extension(lease=lease, lease_s=12 * 3600),))
    world.machine.clock.advance(12 * 3600 - 28)
    await b.agent.attest()
    assert await outcome(b.ack(extend=(Extension(lease=lease),))) == "ok"
    world.machine.clock.advance(2)
    assert await outcome(b.ack(ack=(lease,))) == BrokerCode.LEASE_LOST


@pytest.mark.asyncio
async def test_06_poison_becomes_a_sealed_dead_letter_and_goes_on_its_way_again_by_permit_alone(maker: Maker) -> None:
    world = await maker()
    a, b = await pair(world)
    await a.post(b"poison", b"next")
    for attempt in range(MAX_ATTEMPTS):
        got = await b.take(max_messages=1)
        assert got.deliveries[0].attempt == attempt + 1
        b.inbox.again(b.open(got.deliveries[0], got.senders).header)
        await b.ack(nak=(Nak(lease=got.deliveries[0].lease, code="handler.failed"),))
    assert await b.read() == [b"next"]
    (letter,) = world.broker.dead.dead(BOX, PageRequest()).dead
    assert (letter.reason, letter.code, letter.attempt) == ("attempts", "handler.failed", MAX_ATTEMPTS)
    (stone,) = await stones(world, a.agent)()
    assert stone.valid(world.broker.identity.key.public_key())
    assert (stone.end, stone.code, stone.msg_id) == ("attempts", "handler.failed", letter.msg_id)

    async def redrive() -> None:
        request = RedriveRequest(numbers=(letter.number, 999))
        done = await b.agent.acting(lambda s: world.broker.dead.redrive(s, BOX, request))
        assert (done.redriven, done.gone) == ((letter.number,), (999,))

    assert (await outcome(redrive())).startswith("refused: ")
    await change(world, ('@id("mail")', REDRIVE))
    await redrive()
    assert await b.read() == [b"poison"]
    kinds = world.kinds()
    assert (kinds.count("mail.died"), kinds.count("mail.redriven"), kinds.count("mailbox.refused")) == (1, 1, 1)


# ── 7 to 13: time, order, and copies ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_07_what_expires_in_the_queue_is_not_delivered_and_leaves_a_signed_tombstone(maker: Maker) -> None:
    world = await maker()
    a, b = await pair(world)
    await a.post(b"short", life_s=30)
    await a.post(b"long", life_s=300)
    await Sender(a.agent, replace(a.found)).post(b"unread", life_s=40)
    world.machine.clock.advance(31)
    assert await b.read() == [b"long", b"unread"]
    await a.post(b"nobody empties this", life_s=30)
    world.machine.clock.advance(31)
    assert await world.broker.dead.sweep() == 1
    found = await stones(world, a.agent)()
    assert [stone.end for stone in found] == ["expired", "expired"]
    assert all(stone.valid(world.broker.identity.key.public_key()) for stone in found)
    assert not replace(found[0], end="rejected").valid(world.broker.identity.key.public_key())
    assert await stones(world, b.agent)() == found
    stranger = await world.admitted("c")
    assert await stones(world, stranger)() == []
    world.machine.clock.advance(RETENTION_MS / 1000 + 1)
    await world.broker.dead.sweep()
    await a.agent.attest()
    assert await stones(world, a.agent)() == []


@pytest.mark.asyncio
async def test_08_a_clock_that_is_wrong_neither_stops_mail_nor_lets_it_live_longer(maker: Maker) -> None:
    world = await maker()
    a, b = await pair(world)
    now_ms = int(world.broker.clock().timestamp() * 1000)
    ahead = a.letter(b"a little ahead", sent_at_ms=now_ms + 4_000, expires_at_ms=now_ms + 90_000)
    await a.agent.send(ahead)
    far = a.letter(b"far ahead", sent_at_ms=now_ms + 61_000, expires_at_ms=now_ms + 90_000)
    assert await outcome(a.agent.send(far)) == BrokerCode.MESSAGE_EXPIRED
    assert await b.read() == [b"a little ahead"]
    behind = a.letter(b"far behind", sent_at_ms=now_ms - 3_600_000, expires_at_ms=now_ms + 1)
    world.machine.clock.advance(1)
    assert await outcome(a.agent.send(behind)) == BrokerCode.MESSAGE_EXPIRED
    skewed = a.letter(b"from the future", sent_at_ms=now_ms + 50_000, expires_at_ms=now_ms + 90_000)
    await a.agent.send(skewed)  # within a minute the broker takes it; the receiver does not open it before its time
    got = await b.take()
    assert opens(b, got.deliveries[0], got.senders) == Code.ENVELOPE_FUTURE


@pytest.mark.asyncio
async def test_09_a_backbone_that_changes_the_order_is_noticed_and_nothing_counts_twice(maker: Maker) -> None:
    world = await maker()
    a, b = await pair(world)
    await a.post(b"1", b"2", b"3")
    got = await b.take()
    numbers = []
    for delivery in reversed(got.deliveries):
        opened = b.open(delivery, got.senders)
        numbers.append(opened.header.seq)
        b.inbox.done(opened.header)
    assert numbers == sorted(numbers, reverse=True), "the signed numbers tell"
    assert {opens(b, delivery, got.senders) for delivery in got.deliveries} == {Code.ENVELOPE_REPLAYED}
    channel = HandMade(a.agent, a.found.key)
    await channel.begin(b"4")
    skipped = channel.batch(b"5")
    after = channel.batch(b"6")
    assert await outcome(channel.send(after)) == BrokerCode.CHANNEL_GAP
    assert await outcome(channel.send(skipped)) == "ok"
    assert await outcome(channel.send(after)) == "ok"


@pytest.mark.asyncio
async def test_10_a_copy_in_another_mailbox_is_refused_by_the_broker_and_by_its_owner(maker: Maker) -> None:
    world = await maker()
    a, b = await pair(world)
    other = Receiver(b.agent, "acme/mail/other")
    await other.publish()
    (letter,) = await a.post(b"for b")
    assert await outcome(a.agent.send(letter, name="acme/mail/other")) == BrokerCode.MESSAGE_MAILBOX
    got = await b.take()
    assert opens(other, got.deliveries[0], got.senders) == Code.ENVELOPE_WRONG_MAILBOX
    assert opens(b, got.deliveries[0], got.senders) == "ok"


@pytest.mark.asyncio
async def test_11_a_copy_in_another_tenant_is_refused_by_the_broker_and_by_the_receiver(maker: Maker) -> None:
    world = await maker()
    a, b = await pair(world)
    assert await outcome(a.agent.send(a.letter(tenant="other"))) == BrokerCode.MESSAGE_SENDER
    abroad = replace(a.found.key, mailbox="other/mail/b")
    letter = a.agent.envelope(abroad, pad(b"x"))
    assert (await outcome(a.agent.send(letter, name="other/mail/b"))).startswith(("refused: ", "mailbox.unknown"))
    (sent,) = await a.post(b"here")
    got = await b.take()
    there = Receiver(b.agent, "other/mail/b")
    assert opens(there, got.deliveries[0], got.senders) == Code.ENVELOPE_WRONG_MAILBOX
    assert got.deliveries[0].envelope == sent


@pytest.mark.asyncio
async def test_12_what_is_sealed_to_an_old_epochs_key_is_refused_after_that_key_has_gone(maker: Maker) -> None:
    world = await maker()
    a, b = await pair(world)
    early = a.letter(b"to the first key", life_s=4 * 3600)
    for _ in range(MAX_KEYS - 1):
        await b.publish()
    assert await outcome(a.agent.send(early)) == "ok"
    assert await b.read() == [b"to the first key"]
    late = a.letter(b"to the first key, later")
    await b.publish()
    assert await outcome(a.agent.send(late)) == BrokerCode.MAILBOX_KEY_STALE
    world.machine.clock.advance(EPOCH_S + 10)
    await a.agent.attest()
    await b.agent.attest()
    await b.publish()  # keys past their end are dropped with it, at the receiver
    fresh = await Sender.to(a.agent)
    old_key = replace(fresh.found, key=a.found.key)
    assert await outcome(Sender(a.agent, old_key).post(b"x")) == BrokerCode.MAILBOX_KEY_STALE


@pytest.mark.asyncio
async def test_13_a_receiver_that_was_rolled_back_is_handed_nothing_that_it_has_seen(maker: Maker) -> None:
    world = await maker()
    a, b = await pair(world)
    await a.post(b"seen", b"queued")
    seen = await b.take(max_messages=1)
    b.inbox.done(b.open(seen.deliveries[0], seen.senders).header)
    await b.ack(ack=(seen.deliveries[0].lease,))
    b.inbox = b.another()
    assert opens(b, seen.deliveries[0], seen.senders) == Code.ENVELOPE_INCARNATION
    await b.publish()
    assert opens(b, seen.deliveries[0], seen.senders) == Code.ENVELOPE_INCARNATION
    assert await b.read() == [], "what was queued for the old start nobody can read"
    assert [stone.end for stone in await stones(world, a.agent)()] == ["key_gone"]
    assert await outcome(a.post(b"late")) == BrokerCode.MAILBOX_KEY_STALE


# ── 14 to 17: too much ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_14_a_slow_consumer_holds_a_bounded_number_and_pushes_back_on_its_senders(maker: Maker) -> None:
    world = await maker(quota=Quota(messages=2 * MAX_OUT, sender_messages=2 * MAX_OUT))
    a, b = await pair(world)
    channel = HandMade(a.agent, a.found.key)
    texts = [b"x"] * 256
    await channel.begin(*texts)
    for _ in range(7):
        await channel.send(channel.batch(*texts))
    assert await outcome(channel.send(channel.batch(b"one more"))) == BrokerCode.MAILBOX_FULL
    first = await b.take(max_messages=64)
    assert len(first.batches) == MAX_OUT_OF_SENDER // 256  # the rest of the room is for others
    assert (await b.take(max_messages=64)).batches == ()
    await b.ack(ack=(first.batches[0].lease,))
    assert len((await b.take(max_messages=64)).batches) == 1


@pytest.mark.asyncio
async def test_15_nobody_is_handed_more_than_he_asked_for(maker: Maker) -> None:
    world = await maker()
    a, b = await pair(world)
    channel = HandMade(a.agent, a.found.key)
    await channel.begin(*[b"x"] * 10)
    await channel.send(channel.batch(*[b"x"] * 10))

    async def take(**how: Any) -> int:
        taken = await b.agent.acting(lambda s: world.broker.leases.take(s, BOX, Wanted(**how)))
        return sum(message.count for message in taken.messages)

    assert await take(messages=15) == 10, "a batch is handed out whole"
    assert await take(messages=3) == 10, "the first, even if it is too much"
    assert await take(messages=100) == 0
    await a.post(*[b"%d" % number for number in range(5)])
    assert await take(parcels=2) == 2
    assert await take(octets=1) == 1
    assert await take() == 2


@pytest.mark.asyncio
async def test_16_a_mailbox_has_a_quota_and_no_sender_may_fill_it_alone(maker: Maker) -> None:
    world = await maker(quota=Quota(messages=4, sender_messages=3, octets=1 << 20, sender_octets=1 << 19))
    a, b = await pair(world)
    other = await Sender.to(await world.admitted("c"))
    await a.post(b"1", b"2", b"3")
    with pytest.raises(BrokerError) as caught:
        await a.post(b"4")
    assert caught.value.code is BrokerCode.MAILBOX_FULL
    assert caught.value.retry_after_s
    await other.post(b"5")
    assert await outcome(other.post(b"6")) == BrokerCode.MAILBOX_FULL
    assert len(await b.read(max_messages=1)) == 1
    await other.post(b"6")
    big = a.letter(bytes(200_000))
    assert await outcome(a.agent.send(big)) == BrokerCode.MAILBOX_FULL
    assert waiting(world) == 4
    world.machine.clock.advance(601)
    await a.agent.attest()
    await other.agent.attest()
    await a.post(b"7")
    assert waiting(world) == 1, "what has expired makes room"
    assert len(await stones(world, a.agent)()) + len(await stones(world, other.agent)()) == 4, "and leaves tombstones"


@pytest.mark.asyncio
async def test_17_what_is_too_large_for_a_message_goes_by_handle_under_the_same_rules(maker: Maker) -> None:
    world = await maker(quota=Quota(blob_octets=5 << 20, sender_blob_octets=3 << 20))
    a, b = await pair(world)
    blobs = world.broker.blobs
    payload = secrets.token_bytes(1 << 20)
    sealed = a.letter(payload, type=BLOB_TYPE)
    assert len(sealed.body) > MAX_BODY
    with pytest.raises(WireError, match=WireCode.ENVELOPE_MALFORMED):
        Envelope.from_bytes(sealed.to_bytes())
    ref = BlobRef.of(sealed.to_bytes())

    async def put(raw: bytes, name: str, by: Agent = a.agent) -> str:
        return await outcome(by.acting(lambda s: blobs.put(s, name, raw)))

    async def get(by: Agent) -> bytes:
        found: bytes = await by.acting(lambda s: blobs.get(s, ref.sha256))
        return found

    assert await put(sealed.to_bytes(), "0" * 64) == BrokerCode.BLOB_DIGEST
    assert await put(sealed.to_bytes(), ref.sha256) == "ok"
    assert await put(sealed.to_bytes(), ref.sha256) == "ok", "the same again changes nothing"
    envelope = ref.open(await get(b.agent))
    assert envelope == sealed
    assert await outcome(get(a.agent)) == BrokerCode.BLOB_UNKNOWN, "nobody but the mailbox's owner hears of it"
    second = a.letter(bytes(1 << 20), type=BLOB_TYPE).to_bytes()
    assert await put(second, hashlib.sha256(second).hexdigest()) == BrokerCode.MAILBOX_FULL
    note = a.letter(b"x").to_bytes()
    assert await put(note, hashlib.sha256(note).hexdigest()) == WireCode.ENVELOPE_MALFORMED
    mallory = await world.admitted("mallory")
    assert await put(second, hashlib.sha256(second).hexdigest(), by=mallory) == BrokerCode.MESSAGE_SENDER
    with pytest.raises(WireError, match=WireCode.ENVELOPE_MALFORMED):
        ref.open(second)
    world.machine.clock.advance(601)
    await b.agent.attest()
    assert await outcome(get(b.agent)) == BrokerCode.BLOB_UNKNOWN


# ── 18 to 20: somebody falls ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
@pytest.mark.parametrize("rule", ["hold", "deliver", "drop"])
async def test_18_mail_of_a_sender_who_is_revoked_meanwhile_is_held_delivered_or_dropped_as_the_policy_says(
    maker: Maker, rule: str
) -> None:
    world = await maker(rule=f'fallen_sender = "{rule}"')
    a, b = await pair(world)
    await a.post(b"before the fall")
    await world.broker.administration.revoke(world.settings.admins[0], a.agent.subject, "test")
    assert await outcome(a.post(b"after it")) == BrokerCode.AGENT_REVOKED
    got = await b.take()
    if rule == "deliver":
        assert a.agent.subject not in got.senders, "it has no verdict of today"
        assert b.open(got.deliveries[0], got.senders).plaintext == b"before the fall"
        forged = replace(got.deliveries[0], accepted_at_ms=got.deliveries[0].accepted_at_ms - 1)
        assert opens(b, forged, got.senders) == Code.ENVELOPE_ACCEPTANCE
        return
    assert got.deliveries == ()
    assert waiting(world) == (1 if rule == "hold" else 0)
    assert [stone.end for stone in await stones(world, b.agent)()] == ([] if rule == "hold" else ["sender_fallen"])
    assert world.kinds().count("mail.dropped") == (0 if rule == "hold" else 1)


@pytest.mark.asyncio
async def test_18b_held_mail_of_a_quarantined_sender_comes_when_he_passes_again_and_others_do_not_wait(
    maker: Maker,
) -> None:
    world = await maker()
    await world.prefetch(platform=1)
    a, b = await world.admitted("a", platform=1), Receiver(await world.admitted("b"))
    await b.publish()
    fallen, other = await Sender.to(a), await Sender.to(await world.admitted("c"))
    await fallen.post(b"held")
    world.machine.recover("publish", fmspc="B0C06F000000", standard=True)
    world.machine.clock.advance(1)
    await world.broker.collateral.refresh()
    await other.post(b"not held")
    assert await b.read() == [b"not held"]
    await change(world, ('["UpToDate"]', '["UpToDate", "OutOfDate"]'))
    assert await b.read() == [b"held"]


@pytest.mark.asyncio
async def test_19_a_revoked_receiver_is_handed_nothing_and_nobody_writes_to_it_any_more(maker: Maker) -> None:
    world = await maker()
    a, b = await pair(world)
    await a.post(b"unread", b"leased")
    await b.take(max_messages=1)
    channel = HandMade(a.agent, a.found.key)
    await channel.begin(b"on a channel")
    await world.broker.administration.revoke(world.settings.admins[0], b.agent.subject, "test")
    assert await outcome(b.take()) == BrokerCode.AGENT_REVOKED
    assert await outcome(a.post(b"more")) == BrokerCode.MAILBOX_OWNER_GONE
    assert await outcome(channel.send(channel.batch(b"more"))) == BrokerCode.MAILBOX_OWNER_GONE
    assert await outcome(a.agent.find(BOX)) == BrokerCode.AGENT_REVOKED
    heir = Receiver(await world.admitted("heir"))
    await heir.publish()
    assert await heir.read() == [], "it was sealed to keys that went with the revoked one"
    assert {stone.end for stone in await stones(world, a.agent)()} == {"key_gone"}
    await (await Sender.to(a.agent)).post(b"to the heir")
    assert await heir.read() == [b"to the heir"]


@pytest.mark.asyncio
async def test_20_when_the_store_fails_nothing_counts_as_sent_and_what_counted_is_there_afterwards(
    maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = await maker()
    a, b = await pair(world)
    await a.post(b"kept")
    lost = a.letter(b"lost and sent again")
    store = world.broker.store

    def failing(tx: Any) -> None:
        raise OSError("the disk is gone")

    with monkeypatch.context() as patched:
        patched.setattr(store, "_hooks", [*store._hooks, failing])  # type: ignore[attr-defined]
        with pytest.raises((BrokerError, OSError)):
            await a.agent.send(lost)
        with pytest.raises((BrokerError, OSError)):
            await b.take()
    if world.settings.database is not None:
        await world.restart()
    assert (await a.agent.send(lost)).results[0].status is SendStatus.QUEUED
    assert await b.read() == [b"kept", b"lost and sent again"]
    assert (await a.agent.send(lost)).results[0].status is SendStatus.DUPLICATE


# ── and what goes with them ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_senders_take_turns_so_that_a_noisy_one_starves_nobody_and_each_ones_order_stays(maker: Maker) -> None:
    world = await maker()
    noisy, b = await pair(world)
    quiet = await Sender.to(await world.admitted("quiet"))
    await noisy.post(*[b"noise %d" % number for number in range(20)])
    await quiet.post(b"word 0", b"word 1")
    got = await b.read(max_messages=4)
    assert sorted(got) == [b"noise 0", b"noise 1", b"word 0", b"word 1"]
    assert await b.read(max_messages=2) == [b"noise 2", b"noise 3"]


@pytest.mark.asyncio
async def test_dead_letters_are_bounded_and_the_oldest_make_room(maker: Maker) -> None:
    world = await maker(quota=Quota(dead=2))
    a, b = await pair(world)
    await a.post(b"1", b"2", b"3")
    got = await b.take()
    await b.ack(reject=tuple(Rejection(lease=d.lease, code="message.malformed") for d in got.deliveries))
    dead = world.broker.dead.dead(BOX, PageRequest()).dead
    assert len(dead) == 2
    assert {(letter.reason, letter.code) for letter in dead} == {("rejected", "message.malformed")}
    assert waiting(world) == 0
    assert [stone.end for stone in await stones(world, a.agent)()] == ["rejected"] * 3
