"""What SQLite alone can do wrong: restarts, edited rows, older databases, full disks, second processes."""

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from broker.errors import BrokerCode, BrokerError
from broker.ports import Store, Transaction
from broker.ports.mail import Quota
from broker.store.sql import SqlStore
from broker.store.sql_schema import MIGRATIONS
from broker.store.sql_tables import SqlTransaction
from tests.store_world import KEY, acknowledge, agent, box, do, message, put, secret
from tests.store_world import store as store


def take(store: Store, token: str, *, now_ms: int) -> list[tuple[bytes, int, str]]:
    got = do(
        store,
        lambda tx: tx.mail.lease("acme/mail", now_ms=now_ms, until_ms=now_ms + 5_000, leases=[token], max_attempts=3),
    )
    return [(item.envelope, item.attempt, item.lease) for item in got.messages]


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


def test_senders_of_long_ago_cost_nothing_when_mail_is_handed_out(tmp_path: Path) -> None:
    """A mailbox that lasts has heard many; who has something lying there is found without a look at the others."""
    store, steps = SqlStore(tmp_path / "a.db", mac_key=KEY), list[int]()

    def come(tx: Transaction) -> None:
        tx.agents.put(agent())
        tx.mail.open(box())
        tx.mail.queue(message(), Quota())

    def look() -> int:
        steps.clear()
        store._reader.set_progress_handler(lambda: steps.append(1), 10)
        assert store.read(lambda tx: tx.mail.senders("acme/mail", now_ms=2_000)) == ["agent/acme/a"]
        assert list(SqlTransaction(store._reader, KEY).mail._busy("acme/mail")) == [("agent/acme/a", 1)]
        return len(steps)

    try:
        do(store, come)
        before = look()
        idle = [("acme/mail", f"agent/acme/{number:05}", 0, 0, 1) for number in range(5_000)]
        do(store, lambda tx: tx.mail._db.executemany("INSERT INTO lane VALUES (?,?,?,?,?)", idle))  # type: ignore[attr-defined]
        assert look() <= before + 5
    finally:
        store._reader.set_progress_handler(None, 0)
        store.close()
