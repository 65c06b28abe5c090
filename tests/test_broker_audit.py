"""The audit log: nothing gets in unsigned, nothing gets out unnoticed."""

import asyncio
import json
import shutil
import sqlite3
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from broker import tree
from broker.audit import Audit, Entry, Kind, recompute, rows, verify_store
from broker.errors import BrokerCode, BrokerError
from broker.ports import Store, Transaction
from broker.rest.routes import parse_tile
from broker.store.memory import MemoryStore
from broker.store.sql import SqlFile, SqlStore
from broker.wire.errors import WireCode, WireError
from broker.wire.log import Checkpoint, Receipt, leaf_hash, node_hash, verify_consistency, verify_inclusion

AT = datetime(2026, 7, 1, 12, tzinfo=UTC)
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
ORIGIN = "broker.test/log"


def entry(number: int) -> Entry:
    return Entry(kind=Kind.SECRET_RELEASED, at=AT, subject=f"agent/acme/{number}", resource="acme/a/b")


def filled(store: Store, count: int) -> tuple[Audit, list[Receipt]]:
    audit = Audit(store, key=KEY, origin=ORIGIN)

    async def fill() -> list[Receipt]:
        return [(await audit.record(entry(number), lambda _: None))[1] for number in range(count)]

    return audit, asyncio.run(fill())


# ── the tree ───────────────────────────────────────────────────────────────────────────────────────────────────────


@given(size=st.integers(1, 70), data=st.data())
@settings(max_examples=60)
def test_proofs_of_every_size_are_those_of_rfc_6962(size: int, data: st.DataObject) -> None:
    nodes: dict[tuple[int, int], bytes] = {}
    entries = [b"%d" % number for number in range(size)]

    def get(level: int, index: int) -> bytes:
        return nodes[level, index]

    def put(level: int, index: int, digest: bytes) -> None:
        nodes[level, index] = digest

    for index, raw in enumerate(entries):
        tree.grow(raw, index, get, put)

    root = tree.root(size, get)
    index = data.draw(st.integers(0, size - 1))
    verify_inclusion(leaf_hash(entries[index]), index, size, tree.inclusion(index, size, get), root)
    known: tree.Spans = {}
    for other in (index, 0, size - 1, index):
        assert tree.inclusion(other, size, get, known) == tree.inclusion(other, size, get)
    old = data.draw(st.integers(1, size))
    verify_consistency(old, tree.root(old, get), size, root, tree.consistency(old, size, get))
    assert recompute(enumerate(entries)) == (size, root)


def test_a_small_tree_by_hand() -> None:
    a, b, c = (leaf_hash(raw) for raw in (b"a", b"b", b"c"))
    assert recompute(enumerate([b"a", b"b", b"c"])) == (3, node_hash(node_hash(a, b), c))


def test_a_gap_is_no_log() -> None:
    with pytest.raises(BrokerError) as caught:
        recompute([(0, b"a"), (2, b"c")])
    assert caught.value.code is BrokerCode.LOG_TAMPERED


# ── entries and receipts ───────────────────────────────────────────────────────────────────────────────────────────


def test_every_receipt_verifies_with_the_public_key_alone() -> None:
    audit, receipts = filled(MemoryStore(), 9)
    for index, receipt in enumerate(receipts):
        assert receipt.index == index
        receipt.verify(audit.log_key)
    assert audit.prove(3).verify(audit.log_key).size == 9


def test_an_entry_says_what_happened_and_nothing_empty() -> None:
    told = json.loads(entry(1).to_bytes())
    assert told.pop("salt")
    assert told == {
        "v": 1,
        "at_ms": int(AT.timestamp() * 1000),
        "kind": "secret.released",
        "subject": "agent/acme/1",
        "resource": "acme/a/b",
    }


def test_equal_events_have_different_leaves() -> None:
    assert entry(1).to_bytes() != entry(1).to_bytes()


def test_work_that_fails_leaves_no_entry_and_an_entry_that_fails_undoes_the_work() -> None:
    store = MemoryStore()
    audit, _ = filled(store, 1)

    def refuse(tx: object) -> None:
        raise BrokerError(BrokerCode.SECRET_UNKNOWN, "no")

    with pytest.raises(BrokerError):
        asyncio.run(audit.record(entry(1), refuse))
    assert store.read(lambda tx: tx.log.size()) == 1
    broken = Entry(kind=Kind.SECRET_PUT, at=AT, more={"x": object()})  # type: ignore[dict-item]  # not JSON, on purpose
    with pytest.raises(TypeError):
        asyncio.run(audit.record(broken, lambda tx: tx.marks.put("m", "1")))
    assert store.read(lambda tx: tx.marks.get("m")) is None


def test_t22_two_receipt_holders_catch_a_forked_log() -> None:
    honest, _ = filled(MemoryStore(), 5)
    forked, _ = filled(MemoryStore(), 8)  # other salts: another history under the same key
    old, new = honest.head(), forked.head()
    first, second = Checkpoint.open(old.note, honest.log_key), Checkpoint.open(new.note, honest.log_key)
    proof = forked.consistency(5, 8)
    with pytest.raises(WireError) as caught:
        verify_consistency(first.size, first.root, second.size, second.root, proof)
    assert caught.value.code is WireCode.LOG_PROOF


def test_a_log_that_grew_proves_it() -> None:
    store = MemoryStore()
    audit, _ = filled(store, 5)
    first = Checkpoint.open(audit.head().note, audit.log_key)
    asyncio.run(audit.record(entry(5), lambda _: None))
    second = Checkpoint.open(audit.head().note, audit.log_key)
    verify_consistency(first.size, first.root, second.size, second.root, audit.consistency(5, 6))


@pytest.mark.parametrize(("old", "size"), [(0, 3), (4, 3), (1, 9)])
def test_a_consistency_proof_that_cannot_be_is_unknown(old: int, size: int) -> None:
    audit, _ = filled(MemoryStore(), 3)
    with pytest.raises(BrokerError) as caught:
        audit.consistency(old, size)
    assert caught.value.code is BrokerCode.LOG_ENTRY_UNKNOWN


@pytest.mark.parametrize("index", [-1, 3, 2**63, 10**30])
def test_an_entry_that_is_not_there_is_unknown_whatever_its_number(index: int, tmp_path: Path) -> None:
    store = SqlStore(tmp_path / "log.sqlite", mac_key=bytes(32))
    try:
        audit, _ = filled(store, 3)
        for ask in (audit.entry, audit.prove):
            with pytest.raises(BrokerError) as caught:
                ask(index)
            assert caught.value.code is BrokerCode.LOG_ENTRY_UNKNOWN
    finally:
        store.close()


def test_tiles_hold_the_hashes_of_the_tree() -> None:
    store = MemoryStore()
    audit, _ = filled(store, 300)
    first, second = audit.tile(0, 0), audit.tile(0, 1)
    assert (len(first), len(second)) == (256 * 32, 44 * 32)
    assert first[:32] == leaf_hash(audit.entry(0).entry)
    assert audit.tile(1, 0) == recompute((row.index, row.entry) for row in list(rows(store))[:256])[1]
    for level, index in ((0, 2), (2, 0), (-1, 0), (9, 0)):
        with pytest.raises(BrokerError):
            audit.tile(level, index)


@pytest.mark.parametrize(
    ("path", "means"),
    [("0/000", (0, 0, 256)), ("0/x001/x234/067", (0, 1234067, 256)), ("1/005.p/7", (1, 5, 7))],
)
def test_tile_paths_are_those_of_the_specification(path: str, means: tuple[int, int, int]) -> None:
    assert parse_tile(path) == means


@pytest.mark.parametrize("path", ["", "0", "0/1", "0/0001", "0/001/002", "0/x001", "0/000.p/0", "0/000.p/256", "x/000"])
def test_other_tile_paths_are_unknown(path: str) -> None:
    with pytest.raises(BrokerError) as caught:
        parse_tile(path)
    assert caught.value.code is BrokerCode.LOG_ENTRY_UNKNOWN


@given(groups=st.lists(st.lists(st.booleans(), min_size=1, max_size=6), max_size=8))
@settings(max_examples=25)
def test_failures_among_successes_leave_a_log_that_verifies(
    groups: list[list[bool]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = SqlStore(tmp_path_factory.mktemp("log") / "a.db", mac_key=b"m" * 32)
    audit = Audit(store, key=KEY, origin=ORIGIN)

    async def one(fails: bool) -> Receipt | None:
        def work(tx: Transaction) -> None:
            audit.append(tx, entry(1))
            audit.append(tx, entry(2))
            if fails:
                raise BrokerError(BrokerCode.SECRET_UNKNOWN, "undo both")

        try:
            return (await audit.record(entry(3), work))[1]
        except BrokerError:
            return None

    async def run() -> None:
        for group in groups:
            for receipt in await asyncio.gather(*(one(fails) for fails in group)):
                if receipt is not None:
                    receipt.verify(audit.log_key)

    asyncio.run(run())
    successes = sum(not fails for group in groups for fails in group)
    assert audit.head().size == 3 * successes
    if successes:
        assert verify_store(store, audit.log_key).size == 3 * successes
        audit.prove(0).verify(audit.log_key)
    audit.check_head()
    store.close()


# ── tampering ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def database(tmp_path: Path) -> Path:
    store = SqlStore(tmp_path / "a.db", mac_key=b"m" * 32)
    filled(store, 20)
    store.close()
    return tmp_path / "a.db"


def verify(path: Path) -> str:
    try:
        return str(verify_store(SqlFile(path), Audit(MemoryStore(), key=KEY, origin=ORIGIN).log_key).size)
    except (BrokerError, WireError) as error:
        return str(error.code)


def test_an_untouched_copy_verifies_offline(database: Path, tmp_path: Path) -> None:
    shutil.copy(database, tmp_path / "copy.db")
    assert verify(tmp_path / "copy.db") == "20"


@pytest.mark.parametrize(
    "tampering",
    [
        "DELETE FROM log_entry WHERE idx = 7",
        "DELETE FROM log_entry WHERE idx = 19",
        "UPDATE log_entry SET entry = replace(entry, 'released', 'refused') WHERE idx = 3",
        "UPDATE log_entry SET entry = (SELECT entry FROM log_entry WHERE idx = 4) WHERE idx = 5",
        "INSERT INTO log_entry SELECT 20, at_ms, kind, subject, entry FROM log_entry WHERE idx = 0",
        "UPDATE log_head SET note = replace(note, '20', '19')",
        "UPDATE log_head SET note = ''",
        "DELETE FROM log_head",
    ],
)
def test_t27_an_edited_log_does_not_verify(database: Path, tampering: str) -> None:
    with sqlite3.connect(database) as connection:
        assert connection.execute(tampering).rowcount == 1
    assert verify(database) in (BrokerCode.LOG_TAMPERED, WireCode.LOG_SIGNATURE, WireCode.LOG_MALFORMED)


@pytest.mark.parametrize(
    "tampering",
    ["DELETE FROM log_entry WHERE idx = 19", "DELETE FROM log_node WHERE level = 4", "DELETE FROM log_head"],
)
def test_a_broker_does_not_start_on_a_log_that_was_cut(database: Path, tampering: str) -> None:
    with sqlite3.connect(database) as connection:
        connection.execute(tampering)
    store = SqlStore(database, mac_key=b"m" * 32)
    with pytest.raises((BrokerError, WireError), match=r"^log\."):
        Audit(store, key=KEY, origin=ORIGIN).check_head()
    store.close()


def test_a_database_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.db").write_bytes(b"no database" * 100)
    assert verify(tmp_path / "a.db") == BrokerCode.STORE_UNAVAILABLE
