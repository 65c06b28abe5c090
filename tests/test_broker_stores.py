"""Both stores keep the same promises: one contract, run against memory and against SQLite."""

import asyncio
import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.errors import BrokerCode, BrokerError
from broker.ports import DAY_S, AgentRecord, AgentState, LogHead, SecretRecord, Store, Transaction
from broker.ports.mail import MAX_KEYS, End, MailboxRecord, NewMessage, Queued, Quota
from broker.store.memory import MemoryStore
from broker.store.sql import SqlStore
from broker.store.sql_schema import MIGRATIONS

T = TypeVar("T")
KEY = b"m" * 32


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    made: Store = MemoryStore() if request.param == "memory" else SqlStore(tmp_path / "a.db", mac_key=KEY)
    yield made
    made.close()


def do(store: Store, work: Callable[[Transaction], T]) -> T:
    return asyncio.run(store.transact(work))


def agent(subject: str = "agent/acme/a", **changes: Any) -> AgentRecord:
    record = AgentRecord(
        subject=subject,
        tenant="acme",
        jkt="j",
        state=AgentState.ADMITTED,
        codes=(),
        evidence=b"e",
        collateral="c",
        generation=1,
        admitted_at_s=1,
        judged_at_s=1,
        expires_at_s=100,
        simulated=True,
        tcb_status="UpToDate",
    )
    return replace(record, **changes)


def secret(name: str = "acme/a", version: int = 1) -> SecretRecord:
    return SecretRecord(
        name=name, version=version, labels=("x",), created_at_s=1, wrapped_key=b"wrapped", ciphertext=b"sealed"
    )


def box(*, key: bytes = b"k1", incarnation: bytes = b"i1", epoch: int = 1) -> MailboxRecord:
    return MailboxRecord(
        name="acme/mail", owner="agent/acme/b", key=key, incarnation=incarnation, epoch=epoch, statement="{}"
    )


def message(number: int = 1, *, sender: str = "agent/acme/a", **changes: Any) -> NewMessage:
    made = NewMessage(
        mailbox="acme/mail",
        sender=sender,
        msg_id=number.to_bytes(16, "big"),
        digest=number.to_bytes(32, "big"),
        envelope=b"envelope%d" % number,
        key=b"k1",
        accepted_at_ms=1_000,
        expires_at_ms=100_000,
    )
    return replace(made, **changes)


def ready(store: Store) -> None:
    def work(tx: Transaction) -> None:
        tx.agents.put(agent())
        tx.mail.open(box())

    do(store, work)


def lease(store: Store, *, now_ms: int = 2_000, most: int = 10, attempts: int = 5) -> list[tuple[bytes, str]]:
    tokens = [os.urandom(8).hex() for _ in range(most)]
    got = do(
        store,
        lambda tx: tx.mail.lease(
            "acme/mail", now_ms=now_ms, until_ms=now_ms + 30_000, leases=tokens, max_attempts=attempts
        ),
    )
    return [(item.envelope, item.lease) for item in got.messages]


def queue(store: Store, new: NewMessage, quota: Quota | None = None) -> Queued:
    return do(store, lambda tx: tx.mail.queue(new, quota or Quota()))


def take(store: Store, token: str, *, now_ms: int) -> list[tuple[bytes, int, str]]:
    got = do(
        store,
        lambda tx: tx.mail.lease("acme/mail", now_ms=now_ms, until_ms=now_ms + 5_000, leases=[token], max_attempts=3),
    )
    return [(item.envelope, item.attempt, item.lease) for item in got.messages]


def acknowledge(store: Store, token: str, *, now_ms: int) -> bool:
    return do(store, lambda tx: tx.mail.acknowledge("acme/mail", token, now_ms=now_ms))


def give_back(store: Store, token: str, *, now_ms: int, visible_at_ms: int) -> bool:
    return do(store, lambda tx: tx.mail.give_back("acme/mail", token, now_ms=now_ms, visible_at_ms=visible_at_ms))


def open_box(store: Store, **how: Any) -> None:
    do(store, lambda tx: tx.mail.open(box(**how)))


def put(store: Store, record: SecretRecord) -> None:
    do(store, lambda tx: tx.secrets.put(record))


def log(store: Store, number: int) -> int:
    kind = "odd" if number % 2 else "even"
    return do(store, lambda tx: tx.log.append(at_ms=number, kind=kind, subject=f"s{number}", entry=b"%d" % number))


# ── units of work ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_unit_that_fails_leaves_nothing(store: Store) -> None:
    def work(tx: Transaction) -> None:
        tx.agents.put(agent())
        tx.marks.put("m", "1")
        tx.log.append(at_ms=1, kind="k", subject="s", entry=b"e")
        tx.log.put_nodes((0, 0, b"h"))
        tx.nonces.consume(b"n", expires_at_s=9, now_s=1)
        raise KeyError("stop")

    with pytest.raises(KeyError):
        do(store, work)
    assert store.read(lambda tx: tx.agents.get("agent/acme/a")) is None
    assert store.read(lambda tx: tx.marks.get("m")) is None
    assert store.read(lambda tx: tx.log.size()) == 0
    assert do(store, lambda tx: tx.nonces.consume(b"n", expires_at_s=9, now_s=1))


def test_a_failing_unit_takes_nothing_of_its_neighbours(store: Store) -> None:
    def good(tx: Transaction) -> None:
        tx.log.append(at_ms=1, kind="k", subject="s", entry=b"e")

    def bad(tx: Transaction) -> None:
        good(tx)
        raise KeyError("stop")

    async def both() -> list[object]:
        works = [good, bad, good, bad, good]
        return list(await asyncio.gather(*(store.transact(work) for work in works), return_exceptions=True))

    outcomes = asyncio.run(both())
    assert [type(found).__name__ for found in outcomes] == ["NoneType", "KeyError"] * 2 + ["NoneType"]
    assert store.read(lambda tx: tx.log.size()) == 3


def test_whoever_makes_units_fail_again_and_again_costs_its_neighbours_no_second_run(tmp_path: Path) -> None:
    store, runs = SqlStore(tmp_path / "a.db", mac_key=KEY), Counter[int]()

    def good(number: int, tx: Transaction) -> None:
        runs[number] += 1
        tx.log.append(at_ms=1, kind="k", subject="s", entry=b"e")

    def bad(_: Transaction) -> None:
        raise KeyError("stop")

    async def story() -> None:
        for number in range(4):
            together = (store.transact(partial(good, number)), store.transact(bad))
            assert [type(one) for one in await asyncio.gather(*together, return_exceptions=True)] == [
                type(None),
                KeyError,
            ]

    try:
        asyncio.run(story())
        assert runs == {0: 2, 1: 1, 2: 1, 3: 1}
        assert store.read(lambda tx: tx.log.size()) == 4
    finally:
        store.close()


def test_the_hook_runs_inside_what_it_closes(store: Store) -> None:
    store.before_commit(lambda tx: tx.log.set_head(LogHead(size=tx.log.size(), note="n")))
    do(store, lambda tx: tx.log.append(at_ms=1, kind="k", subject="s", entry=b"e"))
    head = store.read(lambda tx: tx.log.head())
    assert head is not None
    assert head.size == 1


def test_a_hook_that_fails_undoes_the_work(store: Store) -> None:
    def refuse(tx: Transaction) -> None:
        raise ValueError("cannot sign")

    store.before_commit(refuse)
    with pytest.raises((ValueError, BrokerError)):
        do(store, lambda tx: tx.agents.put(agent()))
    assert store.read(lambda tx: tx.agents.get("agent/acme/a")) is None


def test_a_listener_that_fails_stops_nobody_from_writing(tmp_path: Path) -> None:
    store, heard = SqlStore(tmp_path / "a.db", mac_key=KEY), list[int]()

    def fail() -> None:
        raise KeyError("stop")

    store.after_commit(fail)
    store.after_commit(lambda: heard.append(1))
    try:
        for number in range(2):
            do(store, lambda tx, at=number: tx.marks.put("m", str(at)))  # type: ignore[misc]
        assert heard == [1, 1]
    finally:
        store.close()


# ── tables ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_nonce_is_consumed_once_and_forgotten_after_its_end(store: Store) -> None:
    def consume(now_s: int) -> bool:
        return do(store, lambda tx: tx.nonces.consume(b"n", expires_at_s=60, now_s=now_s))

    assert [consume(1), consume(2), consume(60)] == [True, False, False]
    assert consume(61)


def test_agents_come_back_as_they_were_put(store: Store) -> None:
    put = agent(codes=("a", "b"), state=AgentState.QUARANTINED, facts='{"x": 1}')
    do(store, lambda tx: tx.agents.put(put))
    assert store.read(lambda tx: tx.agents.get(put.subject)) == put


def test_agents_are_listed_in_pages_by_tenant(store: Store) -> None:
    names = [f"agent/acme/{letter}" for letter in "abcde"]

    def work(tx: Transaction) -> None:
        for name in reversed(names):
            tx.agents.put(agent(name))
        tx.agents.put(agent("agent/other/z", tenant="other"))

    do(store, work)
    first = store.read(lambda tx: tx.agents.page(tenant="acme", limit=3))
    rest = store.read(lambda tx: tx.agents.page(tenant="acme", after=first[-1].subject, limit=3))
    assert [r.subject for r in (*first, *rest)] == names
    assert len(store.read(lambda tx: tx.agents.page())) == 6


def test_agents_are_counted_by_state(store: Store) -> None:
    assert dict(store.read(lambda tx: tx.agents.counts())) == {}

    def work(tx: Transaction) -> None:
        tx.agents.put(agent("agent/acme/in"))
        tx.agents.put(agent("agent/acme/too"))
        tx.agents.put(agent("agent/acme/out", state=AgentState.QUARANTINED))

    do(store, work)
    assert dict(store.read(lambda tx: tx.agents.counts())) == {"admitted": 2, "quarantined": 1}


def test_stale_agents_are_the_live_ones_judged_earlier(store: Store) -> None:
    def work(tx: Transaction) -> None:
        tx.agents.put(agent("agent/acme/old"))
        tx.agents.put(agent("agent/acme/new", generation=2))
        tx.agents.put(agent("agent/acme/gone", expires_at_s=5))
        tx.agents.put(agent("agent/acme/out", state=AgentState.QUARANTINED))

    do(store, work)
    found = store.read(lambda tx: tx.agents.stale(generation=2, live_at_s=50, limit=10))
    assert [r.subject for r in found] == ["agent/acme/old"]


def test_a_blob_is_kept_under_its_digest(store: Store) -> None:
    do(store, lambda tx: tx.archive.put((b"d", b"blob"), at_s=1))
    do(store, lambda tx: tx.archive.put((b"d", b"blob"), at_s=1))
    assert store.read(lambda tx: tx.archive.get(b"d")) == b"blob"
    assert store.read(lambda tx: tx.archive.get(b"x")) is None


def test_a_blob_that_was_cut_or_never_committed_can_be_put_again_at_once(store: Store) -> None:
    def fail(tx: Transaction) -> None:
        tx.archive.put((b"d", b"blob"), at_s=1)
        raise LookupError

    with pytest.raises(LookupError):
        do(store, fail)
    do(store, lambda tx: tx.archive.put((b"d", b"blob"), at_s=1))
    assert do(store, lambda tx: tx.archive.prune(before_s=2)) == 1
    do(store, lambda tx: tx.archive.put((b"d", b"blob"), at_s=2))
    assert store.read(lambda tx: tx.archive.get(b"d")) == b"blob"


def test_the_day_of_a_blobs_last_use_is_noted(store: Store) -> None:
    do(store, lambda tx: tx.archive.put((b"d", b"blob"), at_s=1))
    do(store, lambda tx: tx.archive.put((b"d", b"blob"), at_s=2 * DAY_S))
    assert do(store, lambda tx: tx.archive.prune(before_s=2 * DAY_S)) == 0
    assert do(store, lambda tx: tx.archive.prune(before_s=2 * DAY_S + 1)) == 1


def test_the_newest_version_of_a_secret_is_found_and_old_ones_stay(store: Store) -> None:
    for version in (1, 2):
        put(store, secret(version=version))
    assert store.read(lambda tx: tx.secrets.get("acme/a")) == secret(version=2)
    assert store.read(lambda tx: tx.secrets.get("acme/a", 1)) == secret(version=1)
    assert store.read(lambda tx: tx.secrets.get("acme/a", 3)) is None


def test_a_listing_holds_neither_keys_nor_ciphertexts(store: Store) -> None:
    def work(tx: Transaction) -> None:
        for name in ("acme/a", "acme/b", "other/a"):
            tx.secrets.put(secret(name))
        tx.secrets.put(secret("acme/a", 2))

    do(store, work)
    found = store.read(lambda tx: tx.secrets.page(tenant="acme"))
    assert [(r.name, r.version) for r in found] == [("acme/a", 1), ("acme/a", 2), ("acme/b", 1)]
    assert {r.ciphertext for r in found} == {b""}
    assert b"wrapped" not in {r.wrapped_key for r in found}
    assert not any(r.destroyed for r in found)
    assert [r.name for r in store.read(lambda tx: tx.secrets.page(after="acme/b"))] == ["other/a"]


def test_a_destroyed_secret_has_nothing_left(store: Store) -> None:
    for version in (1, 2):
        put(store, secret(version=version))
    assert do(store, lambda tx: tx.secrets.destroy("acme/a", 1)) == 1
    gone = store.read(lambda tx: tx.secrets.get("acme/a", 1))
    assert gone is not None
    assert gone.destroyed
    assert (gone.wrapped_key, gone.ciphertext) == (b"", b"")
    assert do(store, lambda tx: tx.secrets.destroy("acme/a")) == 1
    assert all(r.destroyed for r in store.read(lambda tx: tx.secrets.page()))


def test_destroyed_versions_of_a_secret_can_be_dropped_and_living_ones_cannot(store: Store) -> None:
    for version in (1, 2, 3):
        put(store, secret(version=version))
    for version in (1, 2):
        do(store, lambda tx, gone=version: tx.secrets.destroy("acme/a", gone))  # type: ignore[misc]
    assert do(store, lambda tx: tx.secrets.discard("acme/a", before=2)) == 1
    assert [row.version for row in store.read(lambda tx: tx.secrets.page())] == [2, 3]
    assert do(store, lambda tx: tx.secrets.discard("acme/a")) == 1
    assert [row.version for row in store.read(lambda tx: tx.secrets.page())] == [3]


def test_the_log_counts_from_zero_without_gaps(store: Store) -> None:
    for number in range(5):
        assert log(store, number) == number
    assert [r.entry for r in store.read(lambda tx: tx.log.page(start=1, limit=2))] == [b"1", b"2"]
    assert [r.index for r in store.read(lambda tx: tx.log.page(start=0, limit=9, kind="odd"))] == [1, 3]
    assert [r.index for r in store.read(lambda tx: tx.log.page(start=0, limit=9, before=3, kind="odd"))] == [1]
    assert [r.index for r in store.read(lambda tx: tx.log.page(start=0, limit=9, subject="s4"))] == [4]
    assert [r.index for r in store.read(lambda tx: tx.log.newest(kind="even", limit=2))] == [4, 2]
    assert store.read(lambda tx: tx.log.entry(9)) is None


def test_marks_are_found_by_prefix(store: Store) -> None:
    def work(tx: Transaction) -> None:
        for name in ("a/2", "a/1", "b/1"):
            tx.marks.put(name, name)
        tx.marks.put("a/1", "again")

    do(store, work)
    assert store.read(lambda tx: tx.marks.under("a/")) == {"1": "again", "2": "a/2"}


def test_a_mark_that_was_missed_is_found_once_it_is_there_and_not_when_that_was_undone(store: Store) -> None:
    def fails(tx: Transaction) -> None:
        tx.marks.put("a", "never")
        raise LookupError

    assert do(store, lambda tx: tx.marks.get("a")) is None
    with pytest.raises(LookupError):
        do(store, fails)
    assert do(store, lambda tx: tx.marks.get("a")) is None
    do(store, lambda tx: tx.marks.put("a", "1"))
    assert do(store, lambda tx: tx.marks.get("a")) == store.read(lambda tx: tx.marks.get("a")) == "1"
    do(store, lambda tx: tx.marks.drop("a"))
    assert do(store, lambda tx: tx.marks.get("a")) is None
    assert store.read(lambda tx: tx.marks.get("a")) is None


def test_a_secret_that_was_read_before_is_read_as_it_is_now(store: Store) -> None:
    def put(version: int) -> None:
        record = SecretRecord(
            name="a/b", version=version, labels=(), created_at_s=1, wrapped_key=b"k", ciphertext=b"%d" % version
        )
        do(store, lambda tx: tx.secrets.put(record))

    def newest() -> int:
        found = store.read(lambda tx: tx.secrets.get("a/b"))
        return found.version if found else 0

    def first() -> SecretRecord | None:
        return store.read(lambda tx: tx.secrets.get("a/b", 1))

    assert newest() == 0
    put(1)
    assert newest() == newest() == 1
    put(2)
    assert newest() == 2
    kept = first()
    assert kept is not None
    assert not kept.destroyed
    do(store, lambda tx: tx.secrets.destroy("a/b", 1))
    wiped = first()
    assert wiped is not None
    assert wiped.destroyed
    assert newest() == 2


# ── mail ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_message_is_taken_once_and_a_reused_id_is_seen(store: Store) -> None:
    ready(store)

    assert queue(store, message()) is Queued.QUEUED
    assert queue(store, message()) is Queued.DUPLICATE
    assert queue(store, message(digest=bytes(32))) is Queued.ID_REUSED
    assert store.read(lambda tx: tx.mail.waiting("acme/mail")) == 1
    assert store.read(lambda tx: tx.mail.next_seq("acme/mail", "agent/acme/a")) == 2


def test_a_handled_message_stays_known(store: Store) -> None:
    ready(store)
    queue(store, message())
    ((_, token),) = lease(store)
    assert do(store, lambda tx: tx.mail.acknowledge("acme/mail", token, now_ms=3_000))
    assert queue(store, message(accepted_at_ms=4_000)) is Queued.DUPLICATE
    assert store.read(lambda tx: tx.mail.waiting("acme/mail")) == 0


def test_quotas_count_messages_and_octets_and_expired_ones_make_room(store: Store) -> None:
    ready(store)

    assert queue(store, message(1, expires_at_ms=5_000), Quota(messages=1)) is Queued.QUEUED
    assert queue(store, message(2), Quota(messages=1)) is Queued.FULL
    assert queue(store, message(2), Quota(octets=15)) is Queued.FULL
    assert queue(store, message(3, accepted_at_ms=6_000), Quota(messages=1)) is Queued.FULL
    assert not do(store, lambda tx: tx.mail.expire(now_ms=6_000, dead_before_ms=0, mailbox="acme/other"))
    gone = do(store, lambda tx: tx.mail.expire(now_ms=6_000, dead_before_ms=0, mailbox="acme/mail"))
    assert [(parcel.msg_id, parcel.end) for parcel in gone] == [(message(1).msg_id, End.EXPIRED)]
    assert queue(store, message(3, accepted_at_ms=6_000), Quota(messages=1)) is Queued.QUEUED


def test_order_is_kept_and_a_lease_hides(store: Store) -> None:
    ready(store)
    for number in (1, 2, 3):
        queue(store, message(number))
    assert [envelope for envelope, _ in lease(store, most=2)] == [b"envelope1", b"envelope2"]
    assert [envelope for envelope, _ in lease(store)] == [b"envelope3"]
    assert lease(store) == []
    assert [envelope for envelope, _ in lease(store, now_ms=40_000)] == [b"envelope1", b"envelope2", b"envelope3"]


def test_a_late_or_foreign_acknowledgement_is_refused(store: Store) -> None:
    ready(store)
    queue(store, message())
    ((_, token),) = lease(store)
    assert not do(store, lambda tx: tx.mail.acknowledge("acme/mail", token, now_ms=33_000))
    assert not do(store, lambda tx: tx.mail.acknowledge("acme/other", token, now_ms=3_000))
    assert not do(store, lambda tx: tx.mail.acknowledge("acme/mail", "other", now_ms=3_000))
    assert do(store, lambda tx: tx.mail.acknowledge("acme/mail", token, now_ms=3_000))
    assert not do(store, lambda tx: tx.mail.acknowledge("acme/mail", token, now_ms=3_000))


def test_what_is_given_back_comes_again_after_the_delay(store: Store) -> None:
    ready(store)
    queue(store, message())
    ((_, token),) = lease(store)
    assert do(store, lambda tx: tx.mail.give_back("acme/mail", token, now_ms=3_000, visible_at_ms=9_000))
    assert lease(store, now_ms=8_000) == []
    ((_, other),) = lease(store, now_ms=9_000)
    assert other != token
    assert not do(store, lambda tx: tx.mail.acknowledge("acme/mail", token, now_ms=9_100))


def test_expired_and_too_often_tried_messages_are_not_handed_out(store: Store) -> None:
    ready(store)
    queue(store, message(1, expires_at_ms=1_500))
    queue(store, message(2, expires_at_ms=10_000_000))
    times = [len(lease(store, now_ms=2_000 + 40_000 * turn, attempts=3)) for turn in range(5)]
    assert times == [1, 1, 1, 0, 0]
    assert store.read(lambda tx: tx.mail.waiting("acme/mail")) == 0


def test_mail_of_a_sender_who_fell_is_held_until_he_is_back(store: Store) -> None:
    ready(store)
    queue(store, message())
    do(store, lambda tx: tx.agents.put(agent(state=AgentState.QUARANTINED)))
    assert lease(store) == []
    assert store.read(lambda tx: tx.mail.waiting("acme/mail")) == 1
    do(store, lambda tx: tx.agents.put(agent()))
    assert len(lease(store)) == 1


def test_a_new_incarnation_drops_what_nobody_can_read_any_more(store: Store) -> None:
    ready(store)
    queue(store, message())
    do(store, lambda tx: tx.mail.open(box(key=b"k2", incarnation=b"i1", epoch=2)))
    assert store.read(lambda tx: tx.mail.waiting("acme/mail")) == 1
    assert store.read(lambda tx: tx.mail.accepts("acme/mail", b"k1", b"i1"))
    do(store, lambda tx: tx.mail.open(box(key=b"k3", incarnation=b"i2")))
    assert store.read(lambda tx: tx.mail.waiting("acme/mail")) == 0
    assert not store.read(lambda tx: tx.mail.accepts("acme/mail", b"k1", b"i1"))


def test_only_the_newest_keys_of_a_mailbox_are_kept(store: Store) -> None:
    for number in range(MAX_KEYS + 2):
        open_box(store, key=b"k%d" % number, epoch=number)
    known = store.read(lambda tx: [tx.mail.accepts("acme/mail", b"k%d" % n, b"i1") for n in range(MAX_KEYS + 2)])
    assert known == [False, False] + [True] * MAX_KEYS


VERBS = "send batch lease ack nak partly extend reject redrive expire take_over hold later".split()


@given(steps=st.lists(st.tuples(st.sampled_from(VERBS), st.integers(0, 5)), max_size=30))
@settings(max_examples=40)
def test_both_stores_tell_the_same_story(
    steps: list[tuple[str, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    stores: list[Store] = [MemoryStore(), SqlStore(tmp_path_factory.mktemp("s") / "a.db", mac_key=KEY)]
    stories = [_Story(one).tell(steps) for one in stores]
    for one in stores:
        one.close()
    assert stories[0] == stories[1]


class _Story:
    """What a store says to a list of steps: two senders, one of whom falls when he is told to."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.now_ms, self.count = 2_000, 0
        ready(store)
        do(store, lambda tx: tx.agents.put(agent("agent/acme/c")))

    def tell(self, steps: list[tuple[str, int]]) -> list[object]:
        told: list[object] = []
        for what, number in steps:
            told.append(getattr(self, what)(number, f"lease{number}"))
            told.append(self.store.read(lambda tx: tx.mail.waiting("acme/mail")))
            told.append(self.store.read(lambda tx: sorted(tx.mail.senders("acme/mail", now_ms=self.now_ms))))
            told.append([letter.number for letter in self.store.read(lambda tx: tx.mail.dead("acme/mail"))])
        return told

    def _new(self, number: int, **how: Any) -> NewMessage:
        sender = "agent/acme/c" if number % 2 else "agent/acme/a"
        end = {"accepted_at_ms": self.now_ms, "expires_at_ms": self.now_ms + 50_000}
        return message(number, sender=sender, **(end | how))

    def send(self, number: int, _: str) -> object:
        return queue(self.store, self._new(number), Quota(messages=6, sender_messages=4))

    def batch(self, number: int, _: str) -> object:
        return queue(self.store, self._new(number, kind="batch", count=3), Quota(messages=6, sender_messages=4))

    def lease(self, number: int, _: str) -> object:
        tokens = [f"lease{self.count + i}" for i in range(2)]
        self.count += 2
        fallen: Any = ("hold", "deliver", "drop")[number % 3]
        return do(
            self.store,
            lambda tx: tx.mail.lease(
                "acme/mail",
                now_ms=self.now_ms,
                until_ms=self.now_ms + 5_000,
                leases=tokens,
                max_attempts=2,
                max_messages=4,
                fallen=fallen,
            ),
        )

    def ack(self, _: int, token: str) -> object:
        return acknowledge(self.store, token, now_ms=self.now_ms)

    def nak(self, _: int, token: str) -> object:
        return give_back(self.store, token, now_ms=self.now_ms, visible_at_ms=self.now_ms + 2_000)

    def partly(self, number: int, token: str) -> object:
        return do(
            self.store,
            lambda tx: tx.mail.give_back(
                "acme/mail",
                token,
                now_ms=self.now_ms,
                visible_at_ms=self.now_ms,
                remaining=tuple(range(number)),
                code="handler.failed",
            ),
        )

    def extend(self, number: int, token: str) -> object:
        until_ms = self.now_ms + number * 4_000
        return do(
            self.store,
            lambda tx: tx.mail.extend("acme/mail", token, now_ms=self.now_ms, until_ms=until_ms, max_ms=9_000),
        )

    def reject(self, _: int, token: str) -> object:
        return do(self.store, lambda tx: tx.mail.reject("acme/mail", token, now_ms=self.now_ms, code="no"))

    def redrive(self, number: int, _: str) -> object:
        return do(self.store, lambda tx: tx.mail.redrive("acme/mail", number, now_ms=self.now_ms))

    def expire(self, number: int, _: str) -> object:
        before = self.now_ms - number * 10_000
        return do(self.store, lambda tx: tx.mail.expire(now_ms=self.now_ms, dead_before_ms=before))

    def take_over(self, number: int, _: str) -> object:
        record = replace(box(), owner=f"agent/acme/{number}", kind="durable" if number % 2 else "ephemeral")
        return do(self.store, lambda tx: tx.mail.open(record))

    def hold(self, number: int, _: str) -> object:
        state = AgentState.QUARANTINED if number % 2 else AgentState.ADMITTED
        return do(self.store, lambda tx: tx.agents.put(agent("agent/acme/c", state=state)))

    def later(self, number: int, _: str) -> None:
        self.now_ms += number * 4_000


# ── SQLite alone ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_was_committed_is_there_after_a_restart(tmp_path: Path) -> None:
    first = SqlStore(tmp_path / "a.db", mac_key=KEY)
    do(first, lambda tx: tx.agents.put(agent()))
    first.close()
    second = SqlStore(tmp_path / "a.db", mac_key=KEY)
    assert second.read(lambda tx: tx.agents.get("agent/acme/a")) == agent()
    second.close()


def test_an_edited_security_row_is_noticed(tmp_path: Path) -> None:
    store = SqlStore(tmp_path / "a.db", mac_key=KEY)
    do(store, lambda tx: tx.marks.put("revoked/x", "1"))
    with sqlite3.connect(tmp_path / "a.db") as other:
        other.execute("UPDATE mark SET value = '0'")
    with pytest.raises(BrokerError) as caught:
        store.read(lambda tx: tx.marks.get("revoked/x"))
    assert caught.value.code is BrokerCode.STORE_ROW_FORGED
    store.close()


def test_mail_of_an_older_database_is_carried_over(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "a.db") as old:
        for statement in MIGRATIONS[0]:
            old.execute(statement)
        old.execute("INSERT INTO mailbox VALUES ('acme/mail', 'agent/acme/b', x'6b31', x'6931', 1, '{}')")
        old.execute("INSERT INTO mailbox_key (name, key, incarnation) VALUES ('acme/mail', x'6b31', x'6931')")
        for number in (1, 2):
            old.execute(
                """INSERT INTO message (mailbox, sender, key, accepted_at_ms, expires_at_ms, visible_at_ms, attempt,
                       octets, envelope) VALUES ('acme/mail', 'agent/acme/a', x'6b31', 1000, 100000, 1000, 1, 9, ?)""",
                (b"envelope%d" % number,),
            )
        old.execute("INSERT INTO edge VALUES ('acme/mail', 'agent/acme/a', 7)")
        old.execute("PRAGMA user_version = 1")
    store = SqlStore(tmp_path / "a.db", mac_key=KEY)
    do(store, lambda tx: tx.agents.put(agent()))
    assert store.read(lambda tx: tx.mail.waiting("acme/mail")) == 2
    assert store.read(lambda tx: tx.mail.next_seq("acme/mail", "agent/acme/a")) == 8
    assert take(store, "token", now_ms=2_000) == [(b"envelope1", 2, "token")]
    assert acknowledge(store, "token", now_ms=2_001)
    assert store.read(lambda tx: tx.mail.waiting("acme/mail")) == 1
    store.close()


def test_a_database_from_the_future_is_left_alone(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "a.db") as other:
        other.execute("PRAGMA user_version = 99")
    with pytest.raises(BrokerError) as caught:
        SqlStore(tmp_path / "a.db", mac_key=KEY)
    assert caught.value.code is BrokerCode.STORE_VERSION


def test_the_database_is_nobody_elses_to_read(tmp_path: Path) -> None:
    store = SqlStore(tmp_path / "a.db", mac_key=KEY)
    do(store, lambda tx: tx.agents.put(agent()))
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    store.close()
    assert set(modes.values()) == {0o600}, modes


def test_of_a_destroyed_secret_no_byte_is_left_in_the_files(tmp_path: Path) -> None:
    store = SqlStore(tmp_path / "a.db", mac_key=KEY)
    marks = [b"key-%d-" % number * 8 for number in range(2)] + [b"value-%d-" % number * 2000 for number in range(2)]
    for number in range(2):
        kept = replace(secret(version=number + 1), wrapped_key=marks[number], ciphertext=marks[2 + number])
        put(store, kept)
    assert store._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
    assert all(mark in (tmp_path / "a.db").read_bytes() for mark in (b"key-0-", b"value-0-value"))
    do(store, lambda tx: tx.secrets.destroy("acme/a", 1))
    assert store._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
    left = b"".join(path.read_bytes() for path in tmp_path.glob("a.db*"))
    store.close()
    assert [mark in left for mark in (b"key-0-", b"value-0-value", b"key-1-", b"value-1-value")] == [
        *(False, False),
        *(True, True),
    ]


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = SqlStore(tmp_path / "a.db", mac_key=KEY)
    store.close()
    store.close()
    with pytest.raises(BrokerError) as caught:
        do(store, lambda tx: tx.log.size())
    assert caught.value.code is BrokerCode.STORE_UNAVAILABLE


def test_a_write_that_the_disk_refuses_is_no_success(tmp_path: Path) -> None:
    store = SqlStore(tmp_path / "a.db", mac_key=KEY)
    blocker = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
    store._writer.execute("PRAGMA busy_timeout = 10")
    blocker.execute("BEGIN EXCLUSIVE")
    with pytest.raises(BrokerError) as caught:
        do(store, lambda tx: tx.agents.put(agent()))
    assert caught.value.code is BrokerCode.STORE_UNAVAILABLE
    blocker.execute("ROLLBACK")
    blocker.close()
    do(store, lambda tx: tx.agents.put(agent()))
    assert store.read(lambda tx: tx.agents.get("agent/acme/a")) == agent()
    store.close()


def test_a_second_process_is_not_let_in_to_write(tmp_path: Path) -> None:
    """Not even in one process: there is one sequencer, and a generation is heard of at once."""
    first = SqlStore(tmp_path / "a.db", mac_key=KEY)
    with pytest.raises(BrokerError) as caught:
        SqlStore(tmp_path / "a.db", mac_key=KEY)
    assert caught.value.code is BrokerCode.STORE_IN_USE
    first.close()
    SqlStore(tmp_path / "a.db", mac_key=KEY).close()
