"""Several who flood together: a mailbox keeps room for whoever comes new, and hands out what they say."""

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from broker.audit import Kind
from broker.mail import deadletters
from broker.ports import Store, Transaction
from broker.ports.mail import MAX_OUT, MAX_STONES, BlobRecord, LeasedMessage, Queued, Quota, TombstoneRecord
from broker.store import memory_mail, sql_mail
from broker.store.memory import MemoryStore
from broker.store.sql import SqlStore
from broker.wire.leases import AckRequest, Rejection
from enclave import runtime
from simulator.broker_fixture import BrokerUnderTest
from tests.broker_world import World
from tests.store_world import KEY, agent, box, message

T = TypeVar("T")
BOX, FLOOD, QUIET = "acme/mail", [f"agent/acme/flood-{number}" for number in range(6)], "agent/acme/quiet"
QUOTA = Quota(messages=400, sender_messages=200, octets=1 << 20, sender_octets=1 << 19)


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    made: Store = MemoryStore() if request.param == "memory" else SqlStore(tmp_path / "a.db", mac_key=KEY)

    def ready(tx: Transaction) -> None:
        tx.mail.open(box())
        for subject in (*FLOOD, QUIET):
            tx.agents.put(agent(subject))

    do(made, ready)
    yield made
    made.close()


def do(store: Store, work: Callable[[Transaction], T]) -> T:
    return asyncio.run(store.transact(work))


class Flood:
    """Senders who put in batches until there is no room."""

    def __init__(self, store: Store, size: int) -> None:
        self.store, self.size, self.next = store, size, 0

    def queue(self, sender: str, count: int, quota: Quota = QUOTA) -> Queued:
        self.next += 1
        new = message(self.next, sender=sender, kind="batch", count=count)
        return do(self.store, lambda tx: tx.mail.queue(new, quota))

    def fill(self, *senders: str, quota: Quota = QUOTA) -> None:
        for sender in senders:
            while self.queue(sender, self.size, quota) is Queued.QUEUED:
                pass


def waiting(store: Store) -> int:
    return store.read(lambda tx: tx.mail.waiting(BOX))


@pytest.mark.parametrize("size", [1, 20])
def test_however_many_fill_a_mailbox_whoever_comes_new_finds_a_place(store: Store, size: int) -> None:
    flood = Flood(store, size)
    flood.fill(FLOOD[0])
    assert waiting(store) == 200 // size * size  # alone, what the quota gives to one
    flood.fill(*FLOOD)
    before = waiting(store)
    assert before < 400 * 7 / 8 + 5
    assert flood.queue(QUIET, 1) is Queued.QUEUED
    assert flood.queue("agent/acme/another", 3) is Queued.QUEUED
    flood.fill(*FLOOD)
    assert waiting(store) == before + 4  # nobody who has something there takes what is for others


def test_shares_grow_again_when_others_have_been_read(store: Store) -> None:
    flood = Flood(store, 10)
    flood.fill(*FLOOD)
    taken = lease(store, most=64)
    while taken:
        for one in taken:
            do(store, lambda tx, token=one.lease: tx.mail.acknowledge(BOX, token, now_ms=3_000))  # type: ignore[misc]
        taken = lease(store, most=64)
    assert waiting(store) == 0
    flood.fill(QUIET)
    assert waiting(store) == 200


# ── what is out ────────────────────────────────────────────────────────────────────────────────────────────────────


def lease(store: Store, *, most: int = 16, messages: int = MAX_OUT) -> tuple[LeasedMessage, ...]:
    tokens = [os.urandom(8).hex() for _ in range(most)]
    return do(
        store,
        lambda tx: tx.mail.lease(
            BOX, now_ms=2_000, until_ms=32_000, leases=tokens, max_attempts=5, max_messages=messages
        ),
    ).messages


def out(leased: list[LeasedMessage]) -> int:
    return sum(one.count for one in leased)


@pytest.mark.parametrize("size", [256, 16])
def test_what_somebody_new_says_is_handed_out_while_others_who_flood_are_not_handled(store: Store, size: int) -> None:
    """A receiver that waits for an answer before it goes on would else wait for ever."""
    flood, large = Flood(store, size), Quota(messages=4_000, sender_messages=1_000)
    flood.fill(*FLOOD, quota=large)
    held: list[LeasedMessage] = []
    while taken := lease(store, messages=MAX_OUT - out(held)):
        held += taken
    assert out(held) < MAX_OUT
    assert flood.queue(QUIET, 1, large) is Queued.QUEUED
    answer = lease(store, messages=MAX_OUT - out(held))
    assert [one.sender for one in answer] == [QUIET]


def test_a_batch_that_is_too_large_for_what_is_kept_free_waits_for_its_turn_and_no_longer(store: Store) -> None:
    flood, large = Flood(store, 256), Quota(messages=4_000, sender_messages=1_000)
    flood.fill(*FLOOD[:2], quota=large)
    held = [*lease(store, messages=MAX_OUT)]
    assert flood.queue(QUIET, 200, large) is Queued.QUEUED
    assert lease(store, messages=MAX_OUT - out(held)) == ()
    for _ in range(2):
        first = held.pop(0)
        do(store, lambda tx, token=first.lease: tx.mail.acknowledge(BOX, token, now_ms=3_000))  # type: ignore[misc]
        held += lease(store, messages=MAX_OUT - out(held))
    assert QUIET in [one.sender for one in held]


# ── what lies beside mail ──────────────────────────────────────────────────────────────────────────────────────────

BESIDE = Quota(blob_octets=4 << 20, sender_blob_octets=2 << 20)


def put(store: Store, sender: str, octets: int = 10) -> Queued:
    record = BlobRecord(
        digest=os.urandom(32), mailbox=BOX, sender=sender, octets=octets, accepted_at_ms=1, expires_at_ms=9_000
    )
    return do(store, lambda tx: tx.blobs.put(record, BESIDE))


def test_small_payloads_without_number_are_no_way_around_the_quota_and_newcomers_find_room(store: Store) -> None:
    for sender in FLOOD:
        while put(store, sender) is Queued.QUEUED:
            pass
    assert put(store, QUIET, 300_000) is Queued.QUEUED
    assert put(store, QUIET, 300_000) is Queued.FULL
    assert put(store, "agent/acme/another", 10) is Queued.QUEUED


# ── what is said about what ended ──────────────────────────────────────────────────────────────────────────────────


def bury(store: Store, sender: str, count: int, at_ms: int = 1_000) -> None:
    stones = [TombstoneRecord(mailbox=BOX, sender=sender, at_ms=at_ms, statement="{}") for _ in range(count)]
    do(store, lambda tx: tx.mail.bury(*stones))


def told(store: Store, sender: str | None = None) -> tuple[int, int]:
    """Tombstones that are there, and those that there was no room for."""
    return store.read(
        lambda tx: (
            len(tx.mail.tombstones(BOX, sender=sender, limit=2 * MAX_STONES)),
            tx.mail.forgotten(BOX, sender=sender),
        )
    )


def test_no_sender_buries_the_tombstones_of_others_and_what_is_forgotten_is_counted(store: Store) -> None:
    bury(store, QUIET, 10)
    bury(store, FLOOD[0], MAX_STONES)
    assert told(store, QUIET) == (10, 0)
    there, forgotten = told(store, FLOOD[0])
    assert there + forgotten == MAX_STONES
    assert forgotten > 0
    assert told(store) == (there + 10, forgotten)
    bury(store, FLOOD[0], 3, at_ms=5_000)
    assert told(store, FLOOD[0]) == (there + 3, forgotten)  # room for more is made at once
    do(store, lambda tx: tx.mail.expire(now_ms=9_000, dead_before_ms=4_000, most=2 * MAX_STONES))
    assert told(store) == (3, 0)


# ── ids, and what the log hears ────────────────────────────────────────────────────────────────────────────────────


def ids(store: Store) -> int:
    """How many ids of messages the store remembers."""
    if isinstance(store, MemoryStore):
        return len(store.read(lambda tx: tx.mail)._seen.rows)  # type: ignore[attr-defined]
    query = "SELECT count(*) FROM seen"
    return int(store.read(lambda tx: tx.mail._db.execute(query).fetchone()[0]))  # type: ignore[attr-defined]


def test_ids_are_remembered_up_to_a_bound_for_each_sender_and_not_beyond_their_end(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_mail, "MAX_SEEN", 8)
    monkeypatch.setattr(sql_mail, "MAX_SEEN", 8)
    monkeypatch.setattr(sql_mail, "SEEN_EVERY", 4)
    quiet = message(1_000, sender=QUIET)
    assert do(store, lambda tx: tx.mail.queue(quiet, QUOTA)) is Queued.QUEUED
    for number in range(1, 40):
        new = message(number, sender=FLOOD[0])
        assert do(store, lambda tx, new=new: tx.mail.queue(new, QUOTA)) is Queued.QUEUED  # type: ignore[misc]
    assert ids(store) <= 8 + 4 + 1
    assert do(store, lambda tx: tx.mail.queue(new, QUOTA)) is Queued.DUPLICATE
    assert do(store, lambda tx: tx.mail.queue(quiet, QUOTA)) is Queued.DUPLICATE  # others' are not touched
    later = 1_000 + memory_mail.REMEMBER_MS + 1
    do(store, lambda tx: tx.mail.expire(now_ms=later, dead_before_ms=0))
    assert ids(store) == 0


@pytest.mark.asyncio
async def test_dead_letters_without_end_do_not_fill_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A receiver that rejects what an accomplice sends could else write an entry with each message."""
    monkeypatch.setattr(deadletters, "MAX_LISTED", 3)
    world = await World.make(tmp_path)
    a, b = await world.admitted("a"), await world.admitted("b")
    await b.open("acme/mail/b")
    key = (await a.find("acme/mail/b")).key
    for _ in range(10):
        await a.send(a.envelope(key))
        (delivery,) = (await b.receive()).deliveries
        request = AckRequest(reject=(Rejection(lease=delivery.lease, code="app.no"),))
        await b.acting(lambda s, said=request: world.broker.mailboxes.acknowledge(s, "acme/mail/b", said))  # type: ignore[misc]
    assert world.kinds().count(Kind.MAIL_DIED) == 3
    assert len(world.broker.store.read(lambda tx: tx.mail.tombstones("acme/mail/b"))) == 10
    await world.broker.close()


@pytest.mark.asyncio
async def test_an_agent_that_answers_wherever_it_is_asked_to_remembers_few_mailboxes(
    broker: BrokerUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "MAX_MET", 2)
    agents = [
        runtime.Runtime(
            domain=broker.machine.launch("pressure"),
            trust=broker.trust,
            broker_url=broker.url,
            mailbox=f"lab/mail/{at}",
        )
        for at in range(4)
    ]
    try:
        for each in agents:
            await each.attest()
            await each.publish()
        sender, *others = agents
        for number in (1, 2, 3, 1):
            await sender.send(f"lab/mail/{number}", kind="note", plaintext=b"x")
        assert len(sender._met) == len(sender._found) == 2
        assert len(sender._sending) == 0
        assert [len(await other.receive(16)) for other in others] == [2, 1, 1]
    finally:
        for each in agents:
            await each.close()
