"""What both stores promise of topics that hold batches of channels beside single envelopes."""

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from broker.ports import Store, Transaction
from broker.ports.mail import Queued, Quota
from broker.ports.topics import BEHIND_MS, TopicMessage, TopicReader
from broker.store.memory import MemoryStore
from broker.store.sql import SqlStore
from broker.store.sql_schema import MIGRATIONS

T = TypeVar("T")
TOPIC = "acme/news/daily"
ROOM = Quota(messages=100, sender_messages=80)
BEFORE_BATCHES = next(n for n, steps in enumerate(MIGRATIONS) if any("topic_before" in step for step in steps))


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    made: Store = MemoryStore() if request.param == "memory" else SqlStore(tmp_path / "a.db", mac_key=b"m" * 32)
    yield made
    made.close()


def do(store: Store, work: Callable[[Transaction], T]) -> T:
    return asyncio.run(store.transact(work))


def batch(name: bytes, first: int, count: int, **changes: Any) -> TopicMessage:
    message = TopicMessage(
        topic=TOPIC,
        sender="agent/acme/a",
        msg_id=name.ljust(8, b"\0") + first.to_bytes(8, "big"),
        digest=bytes(32),
        key=b"k" * 32,
        accepted_at_ms=1,
        expires_at_ms=10**12,
        envelope=b"s" * count,
        kind="batch",
        count=count,
    )
    return replace(message, **changes)


def put(store: Store, *messages: TopicMessage, quota: Quota = ROOM) -> list[Queued]:
    return [do(store, lambda tx, one=message: tx.topics.publish(one, quota)) for message in messages]  # type: ignore[misc]


def reads(store: Store, subject: str = "reader") -> None:
    do(store, lambda tx: tx.topics.join(TopicReader(topic=TOPIC, subject=subject, place=0, epoch=1, joined_at_ms=0)))


def missed(store: Store, subject: str = "reader") -> int:
    found = store.read(lambda tx: tx.topics.reader(TOPIC, subject))
    assert found is not None
    return found.missed


def test_a_batch_takes_as_much_room_as_it_has_messages(store: Store) -> None:
    reads(store)
    assert put(store, batch(b"a", 1, 50), batch(b"a", 51, 30)) == [Queued.QUEUED] * 2
    assert put(store, batch(b"a", 81, 1)) == [Queued.FULL]
    assert put(store, batch(b"b", 1, 1, sender="agent/acme/b", kind="envelope")) == [Queued.QUEUED]


def test_what_a_laggard_loses_is_counted_in_messages(store: Store) -> None:
    reads(store)
    put(store, batch(b"a", 1, 40), batch(b"a", 41, 40))
    assert put(store, batch(b"a", 81, 30, accepted_at_ms=BEHIND_MS + 1)) == [Queued.QUEUED]
    assert missed(store) == 40
    assert [one.count for one in store.read(lambda tx: tx.topics.page(TOPIC, after=0, now_ms=1))] == [40, 30]


def test_a_page_ends_before_what_is_too_much_but_never_before_its_first(store: Store) -> None:
    reads(store)
    put(store, *[batch(b"a", first, 10) for first in (1, 11, 21, 31)])

    def sizes(**bounds: int) -> int:
        return len(store.read(lambda tx: tx.topics.page(TOPIC, after=0, now_ms=1, **bounds)))

    assert (sizes(messages=20), sizes(messages=29), sizes(messages=1)) == (2, 2, 1)
    assert (sizes(octets=30), sizes(octets=9), sizes(limit=3)) == (3, 1, 3)
    assert sizes() == 4


def test_channels_are_those_of_which_a_batch_is_left(store: Store) -> None:
    reads(store)
    put(store, batch(b"a", 1, 2), batch(b"a", 3, 2), batch(b"b", 1, 2, expires_at_ms=5))
    put(store, batch(b"c", 1, 1, kind="envelope"), batch(b"d", 1, 1, sender="agent/acme/b"))

    def names(sender: str = "agent/acme/a") -> frozenset[bytes]:
        return frozenset(name.rstrip(b"\0") for name in store.read(lambda tx: tx.topics.channels(TOPIC, sender)))

    assert names() == {b"a", b"b"}
    assert names("agent/acme/b") == {b"d"}
    assert do(store, lambda tx: tx.topics.expire(now_ms=6)) == 1
    assert names() == {b"a"}


def test_a_batch_comes_out_as_it_was_put_in(store: Store) -> None:
    reads(store)
    message = batch(b"a", 1, 7)
    assert put(store, message, message, replace(message, digest=b"x" * 32)) == [
        Queued.QUEUED,
        Queued.DUPLICATE,
        Queued.ID_REUSED,
    ]
    (found,) = store.read(lambda tx: tx.topics.page(TOPIC, after=0, now_ms=1))
    assert replace(found, number=0) == message


@pytest.mark.parametrize("left", [0, 2], ids=["nothing left", "two left"])
def test_numbers_go_on_after_the_step_to_batches(tmp_path: Path, left: int) -> None:
    """A reader's place is a number: were they to begin again, everything new would be behind it."""
    with closing(sqlite3.connect(tmp_path / "a.db", isolation_level=None)) as db:
        for steps in MIGRATIONS[:BEFORE_BATCHES]:
            for step in steps:
                db.execute(step)
        for number in range(3):
            row = (TOPIC, "agent/acme/a", bytes([number]) * 16, bytes(32), bytes(32), 1, 10**12, b"old")
            db.execute(
                "INSERT INTO topic_message (topic, sender, msg_id, digest, key, accepted_at_ms, expires_at_ms,"
                " envelope) VALUES (?,?,?,?,?,?,?,?)",
                row,
            )
        db.execute("INSERT INTO topic_reader VALUES (?, 'reader', ?, 1, 0, 0)", (TOPIC, 3 - left))
        db.execute("DELETE FROM topic_message WHERE id <= ?", (3 - left,))
        db.execute(f"PRAGMA user_version = {BEFORE_BATCHES}")
    store = SqlStore(tmp_path / "a.db", mac_key=b"m" * 32)
    put(store, batch(b"a", 1, 78))
    page = store.read(lambda tx: tx.topics.page(TOPIC, after=3 - left, now_ms=1))
    assert [(one.number, one.kind, one.count) for one in page] == [
        *[(number, "envelope", 1) for number in range(4 - left, 4)],
        (4, "batch", 78),
    ]
    assert put(store, batch(b"a", 79, 2)) == [Queued.FULL if left else Queued.QUEUED]
    store.close()
