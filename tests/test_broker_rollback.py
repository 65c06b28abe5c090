"""What was revoked, destroyed or put in force stays so: a disk that somebody edited or set back is noticed at start."""

import asyncio
import base64
import os
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broker.audit import Audit, Entry, Kind
from broker.errors import BrokerCode, BrokerError
from broker.ports import Store, Transaction
from broker.store.memory import MemoryStore
from broker.store.sql import SqlStore
from broker.wire.errors import WireCode, WireError
from broker.wire.log import EMPTY_ROOT, Checkpoint
from tests.broker_world import World, outcome


async def refusal(world: World) -> str:
    try:
        await world.restart()
    except (BrokerError, WireError) as error:
        return str(error.code)
    return "ok"


def edited(database: Path, *statements: str) -> None:
    """What somebody with the disk in his hands does while the broker is off."""
    connection = sqlite3.connect(database)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


async def stopped(world: World) -> Path:
    """The database of a broker that was closed."""
    await world.broker.close()
    path = world.settings.database
    assert path is not None
    return path


@pytest.mark.parametrize(
    ("statement", "code"),
    [
        ("DELETE FROM mark WHERE name LIKE 'revoked/%'", BrokerCode.STORE_ROWS),
        ("DELETE FROM mark WHERE name LIKE 'policy/%'", BrokerCode.STORE_ROWS),
        ("DELETE FROM mark WHERE name = 'generation'", BrokerCode.STORE_ROWS),
        ("DELETE FROM mark", BrokerCode.STORE_ROWS),
        ("UPDATE mark SET value = '1' WHERE name = 'generation'", BrokerCode.STORE_ROW_FORGED),
        ("UPDATE mark SET name = 'x' WHERE name LIKE 'revoked/%'", BrokerCode.STORE_ROW_FORGED),
        ("INSERT INTO mark VALUES ('revoked/agent/acme/x', '{}', x'00')", BrokerCode.STORE_ROW_FORGED),
    ],
)
@pytest.mark.asyncio
async def test_edited_security_rows_keep_a_broker_from_starting(tmp_path: Path, statement: str, code: str) -> None:
    world = await World.make(tmp_path, database=True)
    agent = await world.admitted()
    await world.broker.administration.revoke(world.settings.admins[0], agent.subject, "lost")
    edited(await stopped(world), statement)
    assert await refusal(world) == code


@pytest.mark.asyncio
async def test_a_row_set_back_to_a_value_that_it_once_had_is_noticed(tmp_path: Path) -> None:
    """The old row with its old, valid MAC: only the head in the checkpoint tells."""
    world = await World.make(tmp_path, database=True)
    agent = await world.admitted()
    database = await stopped(world)
    connection = sqlite3.connect(database)
    old = connection.execute("SELECT name, value, mac FROM mark WHERE name = 'generation'").fetchone()
    connection.close()
    await world.restart()
    await world.broker.administration.revoke(world.settings.admins[0], agent.subject, "lost")
    await stopped(world)
    connection = sqlite3.connect(database)
    connection.execute("INSERT OR REPLACE INTO mark VALUES (?, ?, ?)", old)
    connection.commit()
    connection.close()
    assert await refusal(world) == BrokerCode.STORE_ROWS


@pytest.mark.asyncio
async def test_an_older_checkpoint_does_not_fit_the_log_that_it_is_put_over(tmp_path: Path) -> None:
    world = await World.make(tmp_path, database=True)
    agent = await world.admitted()
    note = world.broker.audit.head().note
    size = world.broker.audit.head().size
    await world.broker.administration.revoke(world.settings.admins[0], agent.subject, "lost")
    database = await stopped(world)
    edited(
        database, f"UPDATE log_head SET size = {size}, note = '{note}'", "DELETE FROM mark WHERE name LIKE 'revoked%'"
    )
    assert await refusal(world) in (BrokerCode.STORE_ROWS, BrokerCode.LOG_TAMPERED)


@pytest.mark.asyncio
async def test_a_broker_that_was_only_stopped_starts_again(tmp_path: Path) -> None:
    world = await World.make(tmp_path, database=True)
    agent = await world.admitted()
    await world.broker.administration.revoke(world.settings.admins[0], agent.subject, "lost")
    assert await refusal(world) == "ok"
    assert await outcome(agent.attest()) == BrokerCode.AGENT_REVOKED
    await world.broker.close()


@pytest.mark.asyncio
async def test_a_destroyed_secret_does_not_come_back_with_its_row(tmp_path: Path) -> None:
    world = await World.make(tmp_path, database=True)
    agent = await world.admitted()
    await world.put("acme/open/a", b"v1")
    database = world.settings.database
    assert database is not None
    connection = sqlite3.connect(database)
    row = connection.execute("SELECT * FROM secret").fetchone()
    await world.broker.administration.destroy_secret(world.settings.admins[0], "acme/open/a", None)
    await stopped(world)
    connection.execute("DELETE FROM secret")
    connection.execute(f"INSERT INTO secret VALUES ({','.join('?' * len(row))})", row)
    connection.commit()
    connection.close()
    await world.restart()
    assert await outcome(agent.release("acme/open/a")) == BrokerCode.SECRET_DESTROYED
    await world.broker.close()


@pytest.mark.asyncio
async def test_an_older_version_does_not_pass_for_the_newest(tmp_path: Path) -> None:
    world = await World.make(tmp_path, database=True)
    agent = await world.admitted()
    await world.put("acme/open/a", b"leaked")
    await world.put("acme/open/a", b"fresh")
    edited(await stopped(world), "DELETE FROM secret WHERE version = 2")
    await world.restart()
    assert await outcome(agent.release("acme/open/a")) == BrokerCode.STORE_ROW_FORGED
    await world.broker.close()


# ── the head of the rows ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(params=["memory", "sql"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Store]:
    key = os.urandom(32)
    if request.param == "memory":
        return MemoryStore
    return lambda: SqlStore(tmp_path / f"{os.urandom(4).hex()}.db", mac_key=key)


def test_the_head_depends_on_the_rows_and_not_on_their_history(make: Callable[[], Store]) -> None:
    store = make()

    def put(name: str, value: str) -> bytes:
        asyncio.run(store.transact(lambda tx: tx.marks.put(name, value)))
        return store.read(lambda tx: tx.marks.head())

    empty = store.read(lambda tx: tx.marks.head())
    first = put("a", "1")
    heads = [put("a", "2"), put("b", "1"), put("a", "1")]
    assert len({empty, first, *heads}) == 5
    asyncio.run(store.transact(lambda tx: tx.marks.drop("b")))
    assert store.read(lambda tx: tx.marks.head()) == first
    asyncio.run(store.transact(lambda tx: tx.marks.drop("a")))
    asyncio.run(store.transact(lambda tx: tx.marks.drop("never")))
    assert store.read(lambda tx: tx.marks.head()) == empty
    store.close()


def test_a_unit_that_fails_leaves_the_head_as_it_was(make: Callable[[], Store]) -> None:
    store = make()
    seen: list[bytes] = []
    store.before_commit(lambda tx: seen.append(tx.marks.head()))

    def failing(tx: Transaction) -> None:
        tx.marks.put("a", "2")
        tx.marks.drop("b")
        raise BrokerError(BrokerCode.SECRET_UNKNOWN, "no")

    async def both() -> None:
        for name in "ab":
            await store.transact(lambda tx, name=name: tx.marks.put(name, "1"))  # type: ignore[misc]
        good = store.transact(lambda tx: tx.marks.put("c", "1"))
        await asyncio.gather(store.transact(failing), good, store.transact(failing), return_exceptions=True)

    asyncio.run(both())
    assert seen[-1] == store.read(lambda tx: tx.marks.head())
    assert store.read(lambda tx: tx.marks.under("")) == {"a": "1", "b": "1", "c": "1"}
    store.close()


def test_each_checkpoint_carries_the_head_of_the_rows(make: Callable[[], Store]) -> None:
    store, key = make(), Ed25519PrivateKey.generate()
    audit = Audit(store, key=key, origin="test/log")
    entry = Entry(kind=Kind.GENERATION_CHANGED, at=datetime(2026, 7, 1, tzinfo=UTC))
    asyncio.run(audit.record(entry, lambda tx: tx.marks.put("a", "1")))
    first = Checkpoint.open(audit.head().note, audit.log_key)
    assert first.rows == store.read(lambda tx: tx.marks.head())
    asyncio.run(store.transact(lambda tx: tx.marks.put("a", "2")))
    second = Checkpoint.open(audit.head().note, audit.log_key)
    assert (second.size, second.root) == (first.size, first.root)
    assert second.rows == store.read(lambda tx: tx.marks.head()) != first.rows
    store.close()


@pytest.mark.parametrize("line", ["cloister-rows !", "cloister-rows AAAA", "cloister-rows " * 2])
def test_a_malformed_head_in_a_checkpoint_is_refused(line: str) -> None:
    key = Ed25519PrivateKey.generate()
    good = Checkpoint.sign("o", 0, EMPTY_ROOT, key, rows=bytes(32))
    assert Checkpoint.parse(good.note).rows == bytes(32)
    body = f"o\n0\n{base64.b64encode(EMPTY_ROOT).decode()}\n{line}\n"
    with pytest.raises(WireError) as caught:
        Checkpoint.parse(f"{body}\n\u2014 o AAAA\n")
    assert caught.value.code is WireCode.LOG_MALFORMED
