"""Channels into mailboxes of both kinds, against a router that may do anything: what was handled is handled once, by
the next start of a durable mailbox's reader too, and nothing reordered, cut, forged or meant for another is taken."""

import asyncio
import itertools
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.evidence import MLKEM768_X25519
from attestation.sealing import SealingKey
from broker.errors import BrokerCode
from broker.wire import stream_pb2 as pb
from broker.wire.channel import MAX_OUTSTANDING, ChannelBatch
from broker.wire.envelope import MAX_LIFE_MS, Envelope, Header
from broker.wire.errors import WireCode
from broker.wire.jose import b64u, es256_sign
from broker.wire.mailbox import Delivery, MailboxInfo, MailboxKey, ReceiveResponse
from broker.wire.state import MAX_STATE, StateResponse, state_digest
from enclave import passage as limits
from enclave.channel import LIFE_S, OpenedBatch, Outgoing, ReceivingChannels, SealedBatch, SendingChannel
from enclave.checkpoint import MAX_PLAIN, Memory, decode, encode
from enclave.durable import BEHIND_MS
from enclave.errors import Code, StateLost
from enclave.fetching import as_streamed
from enclave.kept import KeptKey, KeptKeys
from enclave.ledger import Ledger
from enclave.mailbox import Inbox
from enclave.passage import Passage, runs_of
from enclave.replay import Window
from tests.channel_pair import code_of
from tests.mail_world import change, with_mail
from tests.stream_world import PATIENCE_S, mail
from tests.test_enclave_mailbox import NOW_S, Party, Router, party
from tests.test_stream import ended
from tests.test_stream import raw as spoken

KINDS = ("ephemeral", "durable")
BOX = "lab/inbox/b"


class Post:
    """A sender, a reader that can end and begin again, and the router between them."""

    def __init__(
        self, kind: str, *, box: str = BOX, router: Router | None = None, seed: SealingKey | None = None
    ) -> None:
        self.kind, self.box = kind, box
        self.router = router or Router()
        self.a = party(self.router, "a")
        self.a.admission = replace(self.a.admission, expires_at_s=NOW_S + 10**6)
        self.seed = seed or SealingKey.generate(MLKEM768_X25519)
        self.start()
        self.channel = self.opened()

    def start(self, memory: Memory | None = None) -> None:
        """A process of the reader's: what it knows is in its checkpoint, if it has one."""
        self.owner = party(self.router, self.box.rpartition("/")[2])
        self.inbox, self.key = self.owner.inbox, self.owner.key
        if self.kind == "durable":
            self.inbox = Inbox(self.box, self.owner.keys, self.owner.inbox._time, durable=True)
            self.key = self.inbox.adopt(self.kept(), self.owner.verdict.subject)
        self.channels = ReceivingChannels(self.inbox, self.inbox._time)
        if memory is not None:
            self.inbox.restore(memory.windows)
            self.inbox.refuse_before_ms = memory.refuse_before_ms
            self.channels.restore(memory.passages)

    def kept(self) -> KeptKeys:
        one = KeptKey(
            epoch=1,
            key=self.seed,
            not_before_s=NOW_S - 10,
            not_after_s=NOW_S + 24 * 3600,
            keep_until_s=NOW_S + 5 * 24 * 3600,
        )
        return KeptKeys(name=self.box, keys=(one,), state_key=bytes(32))

    def memory(self) -> Memory:
        """As it comes back from a checkpoint."""
        return decode(
            encode(
                Memory(
                    windows=self.inbox.windows(),
                    passages=tuple(self.channels.passages()),
                    refuse_before_ms=self.inbox.refuse_before_ms,
                )
            )
        )

    def restart(self) -> None:
        """The process ends with all that it did not save; the next one has its last checkpoint."""
        self.start(self.memory())

    def info(self) -> MailboxInfo:
        return MailboxInfo(key=self.key, owner_token=self.owner.token, next_seq=1)

    def opened(self, sender: Party | None = None) -> SendingChannel:
        who = sender or self.a
        return SendingChannel.open(
            who.outbox, self.info(), mailbox=self.box, admission=who.admission, keys=who.keys, time=who.outbox._time
        )

    def senders(self) -> dict[str, str]:
        return {self.a.verdict.subject: self.a.token}

    def admit(self, channel: SendingChannel | None = None, senders: dict[str, str] | None = None) -> str:
        raw = (channel or self.channel).opening
        delivery = self.router.accept(Envelope.from_bytes(raw), self.box)
        told = self.senders() if senders is None else senders
        return code_of(lambda: self.channels.admit(delivery, told, self.router.broker))

    def seal(self, *texts: bytes, channel: SendingChannel | None = None, **how: object) -> SealedBatch:
        made = [Outgoing(kind="note", plaintext=text, **how) for text in texts]  # type: ignore[arg-type]
        return (channel or self.channel).seal(made)

    def open(self, raw: bytes, *, accepted_for: str = "", remaining: frozenset[int] = frozenset()) -> OpenedBatch:
        at_ms = NOW_S * 1000
        stated = Delivery.message(accepted_for or self.box, ChannelBatch.from_bytes(raw).digest, at_ms)
        acceptance = es256_sign(self.router.identity, stated)
        return self.channels.open(raw, at_ms, acceptance, self.senders(), self.router.broker, remaining=remaining)

    def code(self, raw: bytes, **how: str) -> str:
        return code_of(partial(self.open, raw, **how))  # type: ignore[arg-type]

    def handle(self, raw: bytes, *, leave: frozenset[int] = frozenset()) -> list[bytes]:
        """What was handed out; all of it is done then, but for the numbers to leave."""
        opened = self.open(raw)
        for frame in opened.frames:
            if frame.header.seq not in leave:
                self.channels.done(opened.channel, frame.header.seq)
        return [frame.plaintext for frame in opened.frames]


@pytest.fixture(params=KINDS)
def post(request: pytest.FixtureRequest) -> Post:
    made = Post(request.param)
    assert made.admit() == "ok"
    return made


@pytest.fixture
def kept() -> Post:
    made = Post("durable")
    assert made.admit() == "ok"
    return made


# ── both kinds ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_the_router_brings_again_late_or_out_of_order_is_not_handled(post: Post) -> None:
    one, two, three = post.seal(b"1"), post.seal(b"2"), post.seal(b"3")
    assert post.handle(one.raw) == [b"1"]
    assert post.handle(three.raw) == [b"3"]  # two is passed over, which is shown
    assert post.handle(one.raw) == []
    assert post.code(two.raw) == Code.CHANNEL_REORDERED
    assert post.admit() == "ok"  # the opening again is nothing new
    assert post.handle(three.raw) == []


def test_a_batch_for_another_mailbox_does_not_fit(post: Post) -> None:
    """Of the same sender and the same owner, and for a durable mailbox even under the same key."""
    other = Post(post.kind, box="lab/inbox/c", router=post.router, seed=post.seed)
    raw = post.seal(b"pay").raw
    assert other.code(raw) == Code.CHANNEL_UNOPENED
    delivery = post.router.accept(Envelope.from_bytes(post.channel.opening), other.box)
    admitted = code_of(lambda: other.channels.admit(delivery, post.senders(), post.router.broker))
    assert admitted == Code.ENVELOPE_WRONG_MAILBOX
    assert post.code(raw, accepted_for=other.box) == Code.ENVELOPE_ACCEPTANCE
    assert post.handle(raw) == [b"pay"]


def test_a_cut_or_changed_batch_is_refused_and_changes_nothing(post: Post) -> None:
    batch = ChannelBatch.from_bytes(post.seal(b"1", b"2", b"3").raw)
    cut = replace(batch, headers=batch.headers[:2], bodies=batch.bodies[:2])
    tail = replace(batch, first_seq=2, headers=batch.headers[1:], bodies=batch.bodies[1:])
    swapped = replace(batch, bodies=(batch.bodies[1], batch.bodies[0], batch.bodies[2]))
    history = replace(batch, prev_chain=bytes(32))
    for forged in (cut, tail, swapped):
        assert post.code(forged.to_bytes()) == WireCode.CHANNEL_SIGNATURE
    assert post.code(history.to_bytes()) == Code.CHANNEL_CHAIN
    assert post.handle(batch.to_bytes()) == [b"1", b"2", b"3"]


def test_a_router_cannot_speak_for_the_sender(post: Post) -> None:
    eve = party(post.router, "eve")
    batch = ChannelBatch.from_bytes(post.seal(b"1").raw)
    assert post.code(replace(batch, signature=eve.keys.sign(batch.message)).to_bytes()) == (WireCode.CHANNEL_SIGNATURE)
    assert post.admit(post.opened(eve)) == Code.ENVELOPE_SENDER


# ── the next start of an ephemeral mailbox ─────────────────────────────────────────────────────────────────────────


def test_nothing_of_an_ephemeral_mailbox_outlives_its_process() -> None:
    post = Post("ephemeral")
    assert post.admit() == "ok"
    raw = post.seal(b"1").raw
    post.start()
    assert post.admit() == Code.ENVELOPE_INCARNATION
    assert post.code(raw) == Code.CHANNEL_UNOPENED


# ── the next start of a durable mailbox ────────────────────────────────────────────────────────────────────────────


def test_the_next_reader_opens_what_waits_and_nothing_that_was_handled(kept: Post) -> None:
    one, two, three = kept.seal(b"1", b"2"), kept.seal(b"3", b"4"), kept.seal(b"5")
    assert kept.handle(one.raw) == [b"1", b"2"]
    assert kept.handle(two.raw, leave=frozenset({4})) == [b"3", b"4"]
    kept.restart()
    assert kept.code(three.raw) == Code.CHANNEL_UNOPENED  # before the opening has come again
    assert kept.admit() == "ok"
    assert kept.handle(one.raw) == []
    assert kept.handle(two.raw) == [b"4"]
    assert kept.handle(three.raw) == [b"5"]
    assert kept.handle(three.raw) == []


def test_a_frame_is_handled_once_though_the_queue_was_put_back_after_each_of_many_restarts(kept: Post) -> None:
    batches = [kept.seal(b"%d" % number, b"%d'" % number).raw for number in range(6)]
    handled = []
    for upto in range(1, len(batches) + 1):
        for batch in batches[:upto]:
            handled += kept.handle(batch, leave=frozenset({2 * upto}))
        kept.restart()
        assert kept.admit() == "ok"
    for raw in batches:
        handled += kept.handle(raw)
    left = {b"%d'" % number for number in range(6)}  # handed out, and never done before the restart
    assert sorted(handled) == sorted([b"%d" % number for number in range(6)] + 2 * sorted(left))


def test_the_next_reader_knows_where_the_chain_went_on(kept: Post) -> None:
    """A batch in the middle proves what stood before it: the chain is under its signature."""
    one, two = kept.seal(b"1"), kept.seal(b"2")
    assert kept.handle(one.raw) == [b"1"]
    kept.restart()
    assert kept.admit() == "ok"
    batch = ChannelBatch.from_bytes(two.raw)
    forged = replace(batch, prev_chain=bytes(32))
    assert kept.code(forged.to_bytes()) == Code.CHANNEL_CHAIN
    resigned = replace(forged, signature=kept.a.keys.sign(forged.message))  # the sender told two stories
    assert kept.code(resigned.to_bytes()) == Code.CHANNEL_CHAIN
    assert kept.handle(two.raw) == [b"2"]


def test_a_reader_without_memory_begins_where_the_mail_does(kept: Post) -> None:
    """The first batches were acknowledged and are gone; whoever declared that repetitions do no harm goes on."""
    for number in range(3):
        kept.seal(b"%d" % number)
    last = kept.seal(b"3")
    kept.start()
    assert kept.admit() == "ok"
    opened = kept.open(last.raw)
    assert (opened.skipped, [frame.plaintext for frame in opened.frames]) == ((1, 3), [b"3"])
    forged = replace(ChannelBatch.from_bytes(last.raw), prev_chain=bytes(32))
    kept.start()
    assert kept.admit() == "ok"
    assert kept.code(forged.to_bytes()) == WireCode.CHANNEL_SIGNATURE


def test_what_was_passed_over_does_not_come_back_after_a_restart(kept: Post) -> None:
    _, two, three = kept.seal(b"1"), kept.seal(b"2"), kept.seal(b"3")
    assert kept.handle(three.raw) == [b"3"]
    kept.restart()
    assert kept.admit() == "ok"
    assert kept.code(two.raw) == Code.CHANNEL_REORDERED


def test_an_opening_that_no_checkpoint_knows_any_more_does_not_come_back(kept: Post) -> None:
    raw = kept.seal(b"1").raw
    assert kept.handle(raw) == [b"1"]
    memory = kept.memory()
    kept.start(replace(memory, passages=()))
    assert kept.admit() == Code.ENVELOPE_REPLAYED
    assert kept.code(raw) == Code.CHANNEL_UNOPENED


def test_an_opening_is_judged_again_at_each_start(kept: Post) -> None:
    kept.restart()
    assert kept.admit(senders={}) == Code.ENVELOPE_SENDER
    assert kept.admit(senders={kept.a.verdict.subject: party(kept.router, "eve").token}) == Code.ENVELOPE_SENDER
    assert kept.admit() == "ok"


def test_a_checkpoint_of_another_channel_says_nothing_about_this_one(kept: Post) -> None:
    raw = kept.seal(b"1").raw
    other = kept.opened()
    memory = kept.memory()
    kept.start(replace(memory, windows={}))
    assert kept.admit(other) == "ok"
    assert kept.handle(kept.seal(b"other", channel=other).raw) == [b"other"]
    assert kept.admit() == "ok"
    assert kept.handle(raw) == [b"1"]


# ── lost state ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_was_sent_before_the_state_was_lost_stays_refused_on_a_channel_that_lives_on(kept: Post) -> None:
    old = kept.seal(b"old").raw
    kept.start()
    kept.inbox.refuse_before_ms = kept.inbox._time.now_ms() + BEHIND_MS
    assert kept.admit() == "ok"
    assert kept.code(old) == Code.ENVELOPE_BEFORE_BOOT
    for who in (kept.a.ticks, kept.owner.ticks):
        who.now += 3
    new = kept.seal(b"new").raw
    assert kept.handle(new) == [b"new"]
    kept.restart()
    kept.owner.ticks.now += 3
    assert kept.admit() == "ok"
    assert kept.code(old) == Code.CHANNEL_REORDERED


def test_lost_state_is_remembered_by_every_later_start(kept: Post) -> None:
    """Else a second restart would take what the first one had refused."""
    old = kept.seal(b"old").raw
    kept.start()
    kept.inbox.refuse_before_ms = kept.inbox._time.now_ms() + BEHIND_MS
    kept.restart()
    assert kept.admit() == "ok"
    assert kept.code(old) == Code.ENVELOPE_BEFORE_BOOT


# ── how long, and how much ─────────────────────────────────────────────────────────────────────────────────────────


def test_the_key_ends_with_the_hour_and_what_it_sealed_lives_as_long_as_mail_may() -> None:
    post = Post("durable")
    header = Header.from_bytes(Envelope.from_bytes(post.channel.opening).header)
    assert MAX_LIFE_MS - 120_000 < header.expires_at_ms - header.sent_at_ms < MAX_LIFE_MS
    assert post.admit() == "ok"
    for ttl_s, most_ms in ((600, 600_000), (10**6, header.expires_at_ms - header.sent_at_ms)):
        (frame,) = ChannelBatch.from_bytes(post.seal(b"1", ttl_s=ttl_s).raw).frames()
        assert frame.expires_at_ms - frame.sent_at_ms == most_ms
    post.a.ticks.now += LIFE_S - 1
    assert post.channel.why_dead() == ""
    post.a.ticks.now += 1
    assert post.channel.why_dead() != ""


def test_who_is_a_moment_behind_the_broker_can_write_to_a_key_that_it_has_just_made() -> None:
    post = Post("durable")
    made = replace(post.kept().keys[0], not_before_s=NOW_S + 3, not_after_s=NOW_S + 3 + 24 * 3600)
    post.key = post.inbox.adopt(replace(post.kept(), keys=(made,)), post.owner.verdict.subject)
    assert MailboxKey.from_dict(post.key.to_dict()) == post.key
    assert post.admit(post.opened()) == "ok"


def test_a_sender_who_begins_anew_and_anew_leaves_little_behind_in_the_checkpoint(kept: Post) -> None:
    for _ in range(20):
        channel = kept.opened()
        assert kept.admit(channel) == "ok"
        assert kept.handle(kept.seal(b"1", channel=channel).raw) == [b"1"]
    left = kept.memory().passages
    assert channel.channel in {one.channel for one in left}
    assert len(left) == limits.MAX_COMPLETE + 1
    unfinished = kept.opened()
    assert kept.admit(unfinished) == "ok"
    kept.open(kept.seal(b"in hand", channel=unfinished).raw)
    kept.restart()
    assert kept.admit(kept.opened()) == "ok"
    assert unfinished.channel in {one.channel for one in kept.memory().passages}


def test_who_lets_messages_fail_without_end_loses_the_oldest(kept: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_AGAIN", 3)
    raws = [kept.seal(b"%d" % number).raw for number in range(5)]
    for raw in raws:
        opened = kept.open(raw)
        kept.channels.again(opened.channel, opened.first_seq)
    assert [kept.handle(raw) for raw in raws] == [[], [], [b"2"], [b"3"], [b"4"]]


def passage(number: int, jkt: str = "A" * 43, **how: object) -> Passage:
    members: dict[str, object] = {
        "channel": number.to_bytes(16, "big"),
        "mailbox_key": bytes(32),
        "jkt": jkt,
        "opening": number.to_bytes(16, "big"),
        "ends_at_ms": NOW_S * 1000,
        "highest": MAX_OUTSTANDING,
        "chain": bytes(32),
    }
    return Passage(**(members | how))  # type: ignore[arg-type]


def test_one_senders_gaps_do_not_push_others_out_of_the_checkpoint() -> None:
    gaps = tuple((number, number) for number in range(1, MAX_OUTSTANDING, 2))
    noisy = [passage(number, holes=gaps) for number in range(300)]
    quiet = [passage(number, jkt="B" * 42 + "A") for number in range(1000, 1400)]
    raw = encode(Memory(passages=(*noisy, *quiet)))
    assert len(raw) <= MAX_PLAIN
    found = decode(raw).passages
    assert {one.channel for one in quiet} <= {one.channel for one in found}
    assert len(found) < 700


def test_windows_come_before_channels() -> None:
    windows = {(bytes(32), b64u(number.to_bytes(32, "big"))): Window.of(5, {1, 2, 3, 4, 5}) for number in range(4_600)}
    found = decode(encode(Memory(windows=windows, passages=tuple(map(passage, range(500))))))
    assert len(found.windows) == 4_600
    assert len(found.passages) < 500


@given(
    highest=st.integers(1, 2**32),
    holes=st.sets(st.integers(0, 600), max_size=40),
    skipped=st.sets(st.integers(601, 5000), max_size=20),
    boot=st.integers(0, 2**53),
)
@settings(max_examples=50, deadline=None)
def test_a_checkpoint_brings_back_where_a_channel_was(
    highest: int, holes: set[int], skipped: set[int], boot: int
) -> None:
    one = passage(
        7,
        highest=highest,
        holes=runs_of(highest - number for number in holes if number < highest),
        skipped=runs_of(highest - number for number in skipped if number < highest),
    )
    memory = Memory(passages=(one,), refuse_before_ms=boot)
    assert decode(encode(memory)) == memory


def test_a_checkpoint_that_claims_more_than_can_be_in_hand_is_unreadable() -> None:
    whole = encode(Memory(passages=(passage(7, highest=2**32, holes=((1, 10**6),)),)))
    below = encode(Memory(passages=(passage(7, highest=5, holes=((1, 5),)),)))
    for raw in (whole, below[:-1] + b"\x7f", below[:-1] + b"\xff" * 6):
        with pytest.raises(StateLost):
            decode(raw)


def test_checkpoints_from_before_channels_are_read() -> None:
    window = {(bytes(32), "A" * 43): Window.of(5, {1, 2, 3, 4, 5})}
    raw = b"\x01" + bytes(32) + b"\x00" + bytes(32) + (5).to_bytes(8, "big") + b"\x00"
    assert raw == encode(Memory(windows=window))
    found = decode(raw)
    assert found.windows[bytes(32), "A" * 43].state() == (5, frozenset(range(1, 6)))
    assert (found.passages, found.refuse_before_ms) == ((), 0)


def test_runs_say_what_the_numbers_said() -> None:
    for numbers in itertools.chain.from_iterable(itertools.combinations(range(1, 7), size) for size in range(7)):
        runs = runs_of(numbers)
        assert [number for first, last in runs for number in range(first, last + 1)] == list(numbers)
        assert all(after[0] > before[1] + 1 for before, after in itertools.pairwise(runs))


def test_a_mailbox_key_is_the_same_for_every_owner_and_signed_by_each() -> None:
    post = Post("durable")
    before: MailboxKey = post.key
    post.restart()
    assert (post.key.thumbprint, post.key.incarnation) == (before.thumbprint, before.incarnation)
    assert post.key.owner != before.owner


# ── at the broker ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
@pytest.mark.parametrize("rest", [False, True], ids=["stream", "rest"])
async def test_a_channel_of_a_sender_who_fell_is_judged_as_of_then_where_the_rule_is_to_deliver(
    tmp_path: Path, rest: bool
) -> None:
    """By a reader who has never seen the channel before: a durable mailbox's next one, or one who was away."""
    async with mail(tmp_path) as net:
        await change(net.world, with_mail('fallen_sender = "deliver"'))
        a, b = await net.pair()
        await b.stream.close()
        await asyncio.gather(*(a.stream.post(b.box, kind="note", plaintext=b"%d" % number) for number in range(3)))
        await a.stream.close()
        await net.world.broker.administration.revoke(net.world.settings.admins[0], a.agent.subject, "lost")
        if rest:
            got = await b.agent.receive(b.box)
            assert [opening.sender_token for opening in got.openings] == [batch.sender_token for batch in got.batches]
            got = ReceiveResponse.from_dict(got.to_dict())
            channels = ReceivingChannels(b.inbox, b.time)
            ledger = Ledger(b.inbox, channels, lease_s=30)
            found = list(ledger.delivered(as_streamed(got), b.admission().broker, 0.0))
            assert [one.plaintext for one in found] == [b"0", b"1", b"2"]
        else:
            await b.join()
            assert await b.take(3) == [b"0", b"1", b"2"]


@pytest.mark.asyncio
async def test_a_lost_opening_costs_the_messages_of_its_channel_and_not_the_stream(tmp_path: Path) -> None:
    async with mail(tmp_path) as net:
        a, b = await net.pair()
        await b.stream.close()
        await a.stream.send(b.box, kind="note", plaintext=b"lost")
        batch = net.world.broker.store.read(lambda tx: tx.channels.of(a.agent.subject, b.box))
        await net.world.broker.store.transact(lambda tx: tx.channels.drop(batch[0]))
        await b.join()
        await net.until(lambda: bool(net.world.broker.store.read(lambda tx: tx.mail.dead(b.box))))
        (dead,) = net.world.broker.store.read(lambda tx: tx.mail.dead(b.box))
        assert dead.code == Code.CHANNEL_UNOPENED
        await a.stream.send(b.box, kind="note", plaintext=b"anew")  # the broker knows it no more: another channel
        assert await b.take(1) == [b"anew"]


async def saved(call: Any, **how: Any) -> pb.Saved:
    """What the broker says of a checkpoint."""
    await call.write(pb.ToBroker(save=pb.Save(**({"nonce": bytes(32)} | how))).SerializeToString())
    async with asyncio.timeout(PATIENCE_S):
        while not (answer := pb.FromBroker.FromString(await call.read())).saved:
            pass
    (told,) = answer.saved
    return told


def _durable(tx: Any, name: str) -> None:
    """Its mail was sealed to a key that nobody keeps, which is no matter here."""
    tx.mail.open(replace(tx.mail.find(name), kind="durable"))


@pytest.mark.asyncio
async def test_a_checkpoint_and_what_it_says_is_done_are_taken_together_or_not_at_all(tmp_path: Path) -> None:
    async with mail(tmp_path) as net:
        a, b = await net.pair()
        await b.stream.close()
        for text in (b"1", b"2"):
            await a.stream.send(b.box, kind="note", plaintext=text)
        await net.world.broker.store.transact(partial(_durable, name=b.box))
        async with spoken(net, b.agent, mailbox=b.box) as call:
            parcels: list[pb.Parcel] = []
            while len(parcels) < 2:
                parcels += pb.FromBroker.FromString(await call.read()).parcels
            one, two = (pb.Settle(lease=parcel.lease) for parcel in parcels)
            first = await saved(call, number=1, sealed=b"one", settles=[one])
            assert (first.number, first.digest, first.code) == (1, state_digest(b"one"), "")
            answer = StateResponse(number=1, digest=first.digest, sealed=b"", signature=first.signature)
            answer.verify(net.world.broker.identity.key.public_key(), mailbox=b.box, nonce=bytes(32))
            assert net.waiting() == 1
            stale = await saved(call, number=1, sealed=b"another", settles=[two])
            assert (stale.code, stale.status, stale.signature) == (BrokerCode.MAILBOX_CHECKPOINT, 409, b"")
            assert net.waiting() == 1
            again = await saved(call, number=1, sealed=b"one", settles=[one])  # its answer may have been lost
            assert (again.code, again.digest) == ("", first.digest)
            last = await saved(call, number=2, sealed=b"two", settles=[two])
            assert (last.code, net.waiting()) == ("", 0)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("save", "code"),
    [
        ({"number": 1, "nonce": b"short"}, WireCode.BODY_FIELD_INVALID),
        ({"number": 0}, WireCode.BODY_FIELD_INVALID),
        ({"number": 2**63}, WireCode.BODY_FIELD_INVALID),
        ({"number": 1, "sealed": bytes(MAX_STATE + 1)}, WireCode.BODY_FIELD_INVALID),
    ],
)
async def test_a_checkpoint_out_of_bounds_ends_the_stream(tmp_path: Path, save: dict[str, Any], code: str) -> None:
    async with mail(tmp_path) as net:
        b = await net.member("b")
        await b.stream.close()
        async with spoken(net, b.agent, mailbox=b.box) as call:
            await call.write(pb.ToBroker(save=pb.Save(**({"nonce": bytes(32)} | save))).SerializeToString())
            assert await asyncio.wait_for(ended(call), PATIENCE_S) == code


@pytest.mark.asyncio
async def test_nobody_saves_for_a_mailbox_that_he_does_not_read(tmp_path: Path) -> None:
    async with mail(tmp_path) as net:
        agent = await net.world.admitted("a")
        async with spoken(net, agent) as call:
            await call.write(pb.ToBroker(save=pb.Save(number=1, nonce=bytes(32))).SerializeToString())
            assert await asyncio.wait_for(ended(call), PATIENCE_S) == WireCode.BODY_FIELD_INVALID
