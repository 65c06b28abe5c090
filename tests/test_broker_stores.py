"""Both stores keep the same promises: one contract, run against memory and against SQLite."""

import asyncio
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from broker.errors import BrokerError
from broker.ports import DAY_S, AgentState, LogHead, SecretRecord, Store, Transaction
from broker.store.sql import SqlStore
from tests.store_world import KEY, agent, do, put, secret
from tests.store_world import store as store


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
