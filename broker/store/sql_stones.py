"""The queries about tombstones of the SQLite store: kept up to a bound, and beyond it counted."""

import sqlite3
from collections.abc import Sequence
from typing import final

from broker.ports.mail import MAX_STONES, NO_LIMIT, TombstoneRecord
from broker.store.turns import beyond


@final
class SqlStones:
    """The part of `broker.ports.mail.Mail` that is about tombstones."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def bury(self, *tombstones: TombstoneRecord, most: int = MAX_STONES) -> None:
        self._db.executemany(
            "INSERT INTO tombstone (mailbox, sender, at_ms, statement) VALUES (?,?,?,?)",
            [(stone.mailbox, stone.sender, stone.at_ms, stone.statement) for stone in tombstones],
        )
        for mailbox, at_ms in {stone.mailbox: stone.at_ms for stone in tombstones}.items():
            (count,) = self._db.execute("SELECT count(*) FROM tombstone WHERE mailbox = ?", (mailbox,)).fetchone()
            if count > most:
                self._forget(mailbox, at_ms, most)

    def _forget(self, mailbox: str, at_ms: int, most: int) -> None:
        rows = self._db.execute(
            "SELECT number, 0, sender FROM tombstone WHERE mailbox = ? ORDER BY number", (mailbox,)
        ).fetchall()
        excess = set(beyond(rows, most - most // 16, NO_LIMIT))
        self._db.executemany(
            """INSERT INTO forgotten VALUES (?, ?, 1, ?)
               ON CONFLICT DO UPDATE SET stones = stones + 1, at_ms = excluded.at_ms""",
            [(mailbox, sender, at_ms) for number, _, sender in rows if number in excess],
        )
        self._db.executemany("DELETE FROM tombstone WHERE number = ?", [(number,) for number in excess])

    def tombstones(
        self, mailbox: str, *, sender: str | None = None, after: int = 0, limit: int = 100
    ) -> Sequence[TombstoneRecord]:
        rows = self._db.execute(
            """SELECT number, sender, at_ms, statement FROM tombstone
               WHERE mailbox = ? AND number > ? AND (? IS NULL OR sender = ?) ORDER BY number LIMIT ?""",
            (mailbox, after, sender, sender, limit),
        )
        return [
            TombstoneRecord(mailbox=mailbox, number=row[0], sender=row[1], at_ms=row[2], statement=row[3])
            for row in rows
        ]

    def forgotten(self, mailbox: str, *, sender: str | None = None) -> int:
        row = self._db.execute(
            "SELECT coalesce(sum(stones), 0) FROM forgotten WHERE mailbox = ? AND (? IS NULL OR sender = ?)",
            (mailbox, sender, sender),
        ).fetchone()
        return int(row[0])

    def expire(self, before_ms: int, most: int) -> None:
        """Those from before that moment are of no interest to anybody."""
        self._db.execute(
            "DELETE FROM tombstone WHERE rowid IN (SELECT rowid FROM tombstone WHERE at_ms < ? LIMIT ?)",
            (before_ms, most),
        )
        self._db.execute("DELETE FROM forgotten WHERE at_ms < ?", (before_ms,))
