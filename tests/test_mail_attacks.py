"""Attacks on mail that need more than one step: old keys brought back, windows wound back, room taken from others."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest

from attestation.errors import CloisterError
from attestation.evidence import MLKEM768_X25519
from attestation.sealing import SealingKey
from broker.errors import BrokerCode
from broker.mail import channels as broker_channels
from broker.mail.mailkeys import ring_of
from broker.ports.mail import Queued, Quota
from broker.ports.topics import TopicMessage, TopicReader
from broker.rpc import stream
from broker.wire import stream_pb2 as pb
from broker.wire.blob import BLOB_TYPE, BlobRef
from broker.wire.channel import channel_of
from broker.wire.deadletters import PageRequest
from broker.wire.jose import unb64u
from broker.wire.keys import NO_INCARNATION, KeysRequest, Place
from broker.wire.leases import AckRequest, Rejection
from broker.wire.mailbox import Delivery
from broker.wire.state import SaveRequest, StateRequest
from enclave import Agent as Author
from enclave import Context, passage
from enclave.checkpoint import Memory, decode, encode
from enclave.errors import Code, EnvelopeRefused, MessageError
from enclave.kept import KeptKey, KeptKeys
from enclave.mailbox import Inbox
from enclave.messages import MessageType
from enclave.replay import Window
from simulator.broker_fixture import BrokerUnderTest
from tests.broker_world import Agent, World, outcome
from tests.channel_pair import Pair
from tests.channel_world import HandMade
from tests.stream_world import mail
from tests.test_enclave_mailbox import NOW_S, Router, party
from tests.test_stream import ended, raw

KEY, JKT = bytes(32), "A" * 43
TAKEN = (Code.ENVELOPE_REPLAYED, Code.ENVELOPE_FORGOTTEN)


def code_of(act: Callable[[], object]) -> str:
    try:
        act()
    except EnvelopeRefused as error:
        return str(error.code)
    return "ok"


# ── a receiver is wound back ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("whole", "ahead"), [(2048, 2049), (2048, 3000), (2050, 3073), (5000, 6023)])
def test_nothing_that_was_handled_is_new_after_a_restart_while_something_was_in_hand(whole: int, ahead: int) -> None:
    window = Window()
    for seq in range(1, whole + 1):
        window.begin(seq, seq.to_bytes(16, "big"))
        window.finish(seq)
    window.begin(ahead, ahead.to_bytes(16, "big"))  # in hand when the checkpoint is made
    restored = decode(encode(Memory(windows={(KEY, JKT): window}))).windows[KEY, JKT]
    for number in range(1, whole + 1):
        assert code_of(partial(restored.check, number, bytes(16))) in TAKEN, number
    assert code_of(lambda: restored.check(ahead, bytes(16))) == "ok"


def kept(*keys: SealingKey) -> KeptKeys:
    return KeptKeys(
        name="lab/inbox/d",
        keys=tuple(
            KeptKey(
                epoch=number,
                key=key,
                not_before_s=NOW_S - 10,
                not_after_s=NOW_S + 3600,
                keep_until_s=NOW_S + 7200,
            )
            for number, key in enumerate(keys, start=1)
        ),
        state_key=bytes(32),
    )


class DurableBox:
    """A durable mailbox whose broker hands out whatever keys it likes."""

    def __init__(self) -> None:
        self.router = Router()
        self.a, self.owner = party(self.router, "a"), party(self.router, "d")
        self.old, self.new = SealingKey.generate(MLKEM768_X25519), SealingKey.generate(MLKEM768_X25519)
        self.inbox = self.another()
        self.inbox.take(kept(self.old))
        self.statement = self.inbox.adopt(kept(self.old), self.owner.verdict.subject)

    def another(self) -> Inbox:
        return Inbox("lab/inbox/d", self.owner.keys, self.owner.inbox._time, durable=True)

    def letter(self) -> Delivery:
        info = self.owner.info()
        envelope = self.a.outbox.seal(
            replace(info, key=self.statement),
            mailbox="lab/inbox/d",
            admission=self.a.admission,
            kind="job",
            plaintext=b"pay",
        )
        return self.router.accept(envelope, "lab/inbox/d")

    def code(self, delivery: Delivery, inbox: Inbox | None = None) -> str:
        box = inbox or self.inbox

        def read() -> None:
            box.done(box.open(delivery, {self.a.verdict.subject: self.a.token}, self.router.broker).header)

        return code_of(read)


def test_a_key_that_was_taken_away_and_brought_back_brings_no_message_back() -> None:
    box = DurableBox()
    letter = box.letter()
    assert box.code(letter) == "ok"
    box.inbox.take(kept(box.new))
    assert box.code(letter) == Code.ENVELOPE_EPOCH
    box.inbox.take(kept(box.old, box.new))
    assert box.code(letter) == Code.ENVELOPE_REPLAYED


def test_nor_over_a_restart_that_did_not_have_the_key() -> None:
    box = DurableBox()
    letter = box.letter()
    assert box.code(letter) == "ok"
    second = box.another()
    second.take(kept(box.new))
    second.restore(decode(encode(Memory(windows=box.inbox.windows()))).windows)
    third = box.another()
    third.take(kept(box.new))
    third.restore(decode(encode(Memory(windows=second.windows()))).windows)
    third.take(kept(box.old, box.new))
    assert box.code(letter, third) == Code.ENVELOPE_REPLAYED


# ── room is taken from others ──────────────────────────────────────────────────────────────────────────────────────


def test_one_sender_cannot_take_the_channels_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passage, "MAX_CHANNELS", 12)
    monkeypatch.setattr(passage, "MAX_OF_SENDER", 4)
    pair = Pair()
    noisy = party(pair.router, "noisy")
    opened = [pair.opened(noisy) for _ in range(20)]
    assert {pair.admit(channel, noisy) for channel in opened} == {"ok"}
    for _ in range(3):
        assert pair.admit(pair.opened(pair.a)) == "ok"
    assert pair.texts(pair.open(pair.seal(b"still heard").raw)) == [b"still heard"]
    assert pair.admit(opened[0], noisy) == Code.ENVELOPE_REPLAYED  # what made room does not come back


class Deaf:
    """An agent's end of a stream that talks for ever and reads nothing."""

    def __init__(self, *messages: bytes) -> None:
        self._messages = iter(messages)
        self.heard_out = asyncio.Event()

    async def read(self) -> bytes:
        if (raw := next(self._messages, None)) is None:
            self.heard_out.set()
            await asyncio.Event().wait()
        assert raw is not None
        return raw

    async def write(self, _: bytes) -> None:
        await asyncio.Event().wait()


@pytest.mark.asyncio
@pytest.mark.parametrize("sends", [True, False])
async def test_who_reads_no_answers_is_not_read_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sends: bool
) -> None:
    monkeypatch.setattr(stream, "MAX_UNREAD", 100)
    world = await World.make(tmp_path)
    agent = await world.admitted("deaf")
    await agent.open("acme/mail/deaf")
    junk = pb.ToBroker(
        sends=[pb.StreamSend(id=1, mailbox="acme/mail/b", batch=b"junk")] * 50 if sends else [],
        settles=[] if sends else [pb.Settle(lease="gone")] * 50,
    )
    context = Deaf(*[junk.SerializeToString(deterministic=True)] * 300)
    hello = pb.Hello(mailbox="acme/mail/deaf", credit=1, lease_s=30)
    made = stream.MailStream(stream.Streams(world.broker), world.broker, cast("Any", context), agent.token, hello, "")
    await made.welcome()
    running = asyncio.create_task(made.run())
    with suppress(TimeoutError):
        async with asyncio.timeout(1):
            await context.heard_out.wait()
    assert not context.heard_out.is_set()
    assert len(made._next.results) + len(made._next.lost) <= 100 + 2 * 64 * 50
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await world.broker.close()


@pytest.mark.asyncio
@pytest.mark.parametrize("database", [False, True], ids=["memory", "sql"])
async def test_a_sender_that_opens_channel_after_channel_fills_no_disk_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database: bool
) -> None:
    monkeypatch.setattr(broker_channels, "MAX_OPEN", 4)
    world = await World.make(tmp_path, database=database)
    noisy, quiet, owner = [await world.admitted(name) for name in ("noisy", "quiet", "owner")]
    await owner.open("acme/mail/b")
    key = (await noisy.find("acme/mail/b")).key
    for _ in range(4):
        assert await HandMade(noisy, key).begin(b"one") == "queued"
    assert await outcome(HandMade(noisy, key).begin(b"too many")) == BrokerCode.MAILBOX_FULL  # all of them have mail
    assert await HandMade(quiet, key).begin(b"one") == "queued"
    taken = await owner.receive()
    assert len(taken.batches) == 5
    first = next(one for one in taken.batches if one.sender == noisy.subject)
    await owner.acting(lambda s: world.broker.mailboxes.acknowledge(s, "acme/mail/b", AckRequest(ack=(first.lease,))))
    assert await HandMade(noisy, key).begin(b"in its place") == "queued"
    gone = channel_of(first.batch)
    assert world.broker.store.read(lambda tx: tx.channels.get(gone)) is None
    others = [channel_of(one.batch) for one in taken.batches if one is not first]
    assert all(world.broker.store.read(lambda tx: [tx.channels.opening(one) for one in others]))
    await world.broker.close()


# ── keys that nobody should have made ──────────────────────────────────────────────────────────────────────────────


def rings(world: World) -> list[str]:
    return sorted(world.broker.store.read(lambda tx: tx.marks.under("keys/")))


@pytest.mark.asyncio
async def test_asking_about_topics_makes_no_keys(tmp_path: Path) -> None:
    """Whoever may read there makes the first key; asking for one takes no permit, and so changes nothing."""
    world = await World.make(tmp_path)
    eve = await world.admitted("eve")
    desk, topics = world.broker.topics, ("acme/made/up", "other/tenants/topic")
    for topic in topics:
        asked = eve.acting(partial(desk.info, topic=topic))
        assert await outcome(asked) == BrokerCode.MAILBOX_UNKNOWN
    assert rings(world) == []
    await world.broker.close()


@pytest.mark.asyncio
async def test_asking_for_keys_of_anothers_mailbox_does_not_make_it_durable(tmp_path: Path) -> None:
    world = await World.make(tmp_path)
    eve, bob = await world.admitted("eve"), await world.admitted("bob")
    await bob.open("acme/mail/b")
    request = KeysRequest(nonce=bytes(32))
    asked = eve.acting(lambda s: world.broker.keys.grant(s, Place.MAILBOX, "acme/mail/b", request))
    assert await outcome(asked) == BrokerCode.MAILBOX_KIND
    assert rings(world) == []
    await bob.open("acme/mail/b", epoch=2)  # goes on
    await world.broker.close()


# ── labels as a weapon ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
@pytest.mark.parametrize("database", [False, True], ids=["memory", "sql"])
async def test_nobody_is_silenced_by_mail_with_more_labels_than_a_header_holds(tmp_path: Path, database: bool) -> None:
    world = await World.make(tmp_path, database=database)
    eve, bob, carol = [await world.admitted(name) for name in ("eve", "bob", "carol")]
    await bob.open("acme/mail/b")
    await carol.open("acme/mail/c")
    key = (await eve.find("acme/mail/b")).key
    labels = [f"junk-{number:03d}" for number in range(60)]
    for part in (labels[:20], labels[20:40], labels[40:]):
        await eve.send(eve.envelope(key, labels=tuple(part)))
    await eve.send(eve.envelope(key, b"plain"))
    assert len((await bob.receive()).deliveries) == 2  # the first with labels, and the plain one
    assert len(world.broker.store.read(lambda tx: tx.mail.dead("acme/mail/b"))) == 2
    to_carol = (await bob.find("acme/mail/c")).key
    sent = bob.send(bob.envelope(to_carol, labels=tuple(labels[:20])), name="acme/mail/c")
    assert await outcome(sent) == "ok"
    await world.broker.close()


@pytest.mark.asyncio
async def test_nor_by_what_lies_beside_mail(tmp_path: Path) -> None:
    world = await World.make(tmp_path)
    eve, bob = await world.admitted("eve"), await world.admitted("bob")
    await bob.open("acme/mail/b")
    key, refs = (await eve.find("acme/mail/b")).key, []
    for part in range(2):
        labels = tuple(f"junk-{part}-{number:02d}" for number in range(20))
        raw = eve.envelope(key, type=BLOB_TYPE, labels=labels).to_bytes()
        refs.append(BlobRef.of(raw).sha256)
        await eve.acting(partial(world.broker.blobs.put, name=refs[-1], raw=raw))
    codes = [await outcome(bob.acting(partial(world.broker.blobs.get, name=name))) for name in refs]
    assert codes == ["ok", BrokerCode.BLOB_UNKNOWN]
    assert len(world.broker.labels.of(bob.subject)) == 20
    await world.broker.close()


# ── what was read leaves by the small print ────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
@pytest.mark.parametrize("database", [False, True], ids=["memory", "sql"])
async def test_the_reason_of_a_rejection_tells_the_sender_nothing_that_he_may_not_know(
    tmp_path: Path, database: bool
) -> None:
    """A reason is the receiver's choice and can say anything."""
    world = await World.make(tmp_path, database=database)
    await world.put("acme/open/plan", b"the plan", "secret")
    eve, spy = await world.admitted("eve"), await world.admitted("spy")
    await spy.open("acme/mail/b")
    key = (await eve.find("acme/mail/b")).key

    async def told(code: str) -> list[str]:
        await eve.send(eve.envelope(key))
        (delivery,) = (await spy.receive()).deliveries
        ack = AckRequest(reject=(Rejection(lease=delivery.lease, code=code),))
        await spy.acting(lambda s: world.broker.mailboxes.acknowledge(s, "acme/mail/b", ack))
        page = PageRequest()
        session = await world.broker.sessions.of_subject(eve.subject, world.broker.clock())
        return [stone.code for stone in world.broker.dead.tombstones(session, "acme/mail/b", page).tombstones]

    assert await told("app.broken") == ["app.broken"]
    await spy.release("acme/open/plan")
    assert (await told("leak.the_plan_is"))[1:] == [""]
    assert (await told(str(BrokerCode.POLICY_REFUSED)))[2:] == [BrokerCode.POLICY_REFUSED]
    assert [one.code for one in world.broker.dead.dead("acme/mail/b", PageRequest()).dead][1] == "leak.the_plan_is"
    await eve.release("acme/open/plan")
    eve_sends = eve.envelope(key, labels=("secret",))
    await eve.send(eve_sends)
    (delivery,) = (await spy.receive()).deliveries
    ack = AckRequest(reject=(Rejection(lease=delivery.lease, code="app.now_both_know"),))
    await spy.acting(lambda s: world.broker.mailboxes.acknowledge(s, "acme/mail/b", ack))
    session = await world.broker.sessions.of_subject(eve.subject, world.broker.clock())
    stones = world.broker.dead.tombstones(session, "acme/mail/b", PageRequest()).tombstones
    assert stones[-1].code == "app.now_both_know"
    await world.broker.close()


@pytest.mark.asyncio
async def test_a_checkpoint_carries_the_labels_of_who_wrote_it(tmp_path: Path) -> None:
    """It is sealed by its writer and can say anything; whoever succeeds to the mailbox reads it."""
    world = await World.make(tmp_path)
    await world.put("acme/open/plan", b"the plan", "secret")
    spy, heir = await world.admitted("spy"), await world.admitted("heir")
    desk, box = world.broker.states, "acme/mail/jobs"
    await spy.acting(partial(world.broker.keys.grant, of=Place.MAILBOX, name=box, request=KeysRequest(nonce=bytes(32))))
    await durable(world, spy, box)
    nonce = bytes(32)
    await spy.acting(partial(desk.save, mailbox=box, request=SaveRequest(number=1, sealed=b"nothing yet", nonce=nonce)))
    asked = partial(desk.newest, mailbox=box, request=StateRequest(nonce=nonce))
    assert (await heir.acting(asked)).sealed == b"nothing yet"
    assert world.broker.labels.of(heir.subject) == frozenset()
    await spy.release("acme/open/plan")
    await spy.acting(partial(desk.save, mailbox=box, request=SaveRequest(number=2, sealed=b"the plan", nonce=nonce)))
    assert (await heir.acting(asked)).sealed == b"the plan"
    assert world.broker.labels.of(heir.subject) == {"secret"}
    await world.broker.close()


async def durable(world: World, owner: Agent, box: str) -> None:
    """Open the mailbox under the newest kept key."""
    epoch = world.broker.store.read(lambda tx: ring_of(tx, Place.MAILBOX, box))[-1]
    await owner.open(
        box,
        epoch=epoch.number,
        kind="durable",
        suite=epoch.suite,
        key=unb64u(epoch.public),
        incarnation=NO_INCARNATION,
        not_before_s=epoch.not_before_s,
        not_after_s=epoch.not_after_s,
    )


# ── a flood that keeps answers away ────────────────────────────────────────────────────────────────────────────────


@dataclass
class Question:
    number: int


@dataclass
class Answered:
    number: int


@pytest.mark.parametrize("count", [1500])
def test_an_agent_that_waits_for_an_answer_gets_it_though_somebody_floods_it(
    broker: BrokerUnderTest, count: int
) -> None:
    helper, busy, flood = Author("helper"), Author("busy"), Author("flood")
    outcomes: list[str] = []
    enough = asyncio.Event()

    @helper.on_message(Question)
    async def answer(ctx: Context, question: Question) -> Answered:
        return Answered(number=question.number)

    @busy.on_message(Question)
    async def work(ctx: Context, question: Question) -> None:
        try:
            outcomes.append(str((await ctx.ask("helper", question, Answered, timeout_s=3)).number))
        except CloisterError as error:
            outcomes.append(str(error.code))
        if len(outcomes) == 10:
            enough.set()

    async def story() -> None:
        async with asyncio.timeout(40):
            for agent in (helper, busy, flood):
                domain = broker.machine.launch(agent.name)
                await agent.start(domain=domain, trust=broker.trust, broker_url=broker.url)
            context = flood.context()
            await asyncio.gather(*[context.send("busy", Question(number=n)) for n in range(count)])
            await enough.wait()
            for agent in (flood, helper, busy):
                await agent.stop()

    asyncio.run(story())
    assert outcomes[:10] == [str(n) for n in range(10)]


# ── one noisy sender ───────────────────────────────────────────────────────────────────────────────────────────────


def of_topic(sender: str, number: int) -> TopicMessage:
    return TopicMessage(
        topic="acme/news/daily",
        sender=sender,
        msg_id=number.to_bytes(16, "big"),
        digest=bytes(32),
        key=bytes(32),
        accepted_at_ms=1,
        expires_at_ms=10**15,
        envelope=b"sealed",
    )


@pytest.mark.asyncio
@pytest.mark.parametrize("database", [False, True], ids=["memory", "sql"])
@pytest.mark.parametrize("quota", [Quota(messages=4, sender_messages=3), Quota(octets=24, sender_octets=18)])
async def test_one_publisher_cannot_fill_a_topic(tmp_path: Path, database: bool, quota: Quota) -> None:
    world = await World.make(tmp_path, database=database)

    def publish(sender: str, number: int) -> Awaitable[Queued]:
        return world.broker.store.transact(lambda tx: tx.topics.publish(of_topic(sender, number), quota))

    reader = TopicReader(topic="acme/news/daily", subject="slow", place=0, epoch=1, joined_at_ms=0)
    await world.broker.store.transact(lambda tx: tx.topics.join(reader))
    assert [await publish("noisy", number) for number in range(4)] == [Queued.QUEUED] * 3 + [Queued.FULL]
    assert [await publish("quiet", number) for number in range(2)] == [Queued.QUEUED, Queued.FULL]
    await world.broker.close()


@pytest.mark.asyncio
@pytest.mark.parametrize("database", [False, True], ids=["memory", "sql"])
async def test_one_senders_dead_letters_push_out_his_own_first(tmp_path: Path, database: bool) -> None:
    world = await World.make(tmp_path, database=database, quota=Quota(dead=4))
    quiet, noisy, owner = [await world.admitted(name) for name in ("quiet", "noisy", "owner")]
    await owner.open("acme/mail/b")
    key = (await quiet.find("acme/mail/b")).key
    for sender in (quiet, *[noisy] * 8):
        await sender.send(sender.envelope(key))
        (delivery,) = (await owner.receive()).deliveries
        ack = AckRequest(reject=(Rejection(lease=delivery.lease, code="app.poison"),))
        await owner.acting(partial(world.broker.mailboxes.acknowledge, name="acme/mail/b", request=ack))
    dead = world.broker.dead.dead("acme/mail/b", PageRequest()).dead
    assert [letter.sender for letter in dead] == [quiet.subject] + [noisy.subject] * 3
    await world.broker.close()


@pytest.mark.asyncio
async def test_one_agent_cannot_have_all_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "MAX_STREAMS", 3)
    async with mail(tmp_path) as net:
        other = await net.member("other")
        eve = await net.world.admitted("eve")
        async with AsyncExitStack() as open_ones:
            first, *rest = [await open_ones.enter_async_context(raw(net, eve)) for _ in range(4)]
            assert await asyncio.wait_for(ended(first), 10) == BrokerCode.STREAM_SUPERSEDED
            assert not any(call.done() for call in rest)
            assert other.stream.connected


@dataclass
class Measured:
    value: float


class Fussy:
    """As a pydantic model looks from outside, with a check that expects too much of its input."""

    @classmethod
    def model_json_schema(cls) -> dict[str, Any]:
        return {"title": "Fussy"}

    @classmethod
    def model_validate(cls, data: dict[str, Any]) -> object:
        return data["missing"]


@pytest.mark.parametrize(
    ("kind", "data"), [(Measured, {"value": 10**400}), (Fussy, {}), (Measured, {"value": -(10**999)})]
)
def test_no_body_gets_past_the_reading_of_messages_as_another_error(kind: type, data: dict[str, Any]) -> None:
    """An error that nobody expects would end the task that handles this sender's mail, with all that is queued."""
    made = MessageType(kind)
    with pytest.raises(MessageError) as caught:
        made.decode(json.dumps({"schema": made.digest, "data": data}).encode())
    assert caught.value.code is Code.MESSAGE_SCHEMA
