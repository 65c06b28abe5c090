"""The queries of the SQLite store that are about channels: a small row changes with every batch, the opening never."""

import sqlite3
from collections.abc import Sequence
from typing import Final, final

from broker.ports.channels import ChannelRecord

PURGE_ROWS: Final = 64
_COLUMNS: Final = "channel, sender, mailbox, key, incarnation, highest, chain, ends, accepted_at_ms, until_ms"


@final
class SqlChannels:
    """`broker.ports.channels.ChannelRows` on one connection."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def get(self, channel: bytes) -> ChannelRecord | None:
        query = f"SELECT {_COLUMNS} FROM channel WHERE channel = ?"  # noqa: S608  # a text of this file
        row = self._db.execute(query, (channel,)).fetchone()
        if row is None:
            return None
        return ChannelRecord(
            channel=row[0],
            sender=row[1],
            mailbox=row[2],
            key=row[3],
            incarnation=row[4],
            highest=row[5],
            chain=row[6],
            ends=row[7],
            accepted_at_ms=row[8],
            until_ms=row[9],
        )

    def of(self, sender: str, mailbox: str) -> Sequence[bytes]:
        rows = self._db.execute(
            "SELECT channel FROM channel WHERE sender = ? AND mailbox = ? ORDER BY accepted_at_ms, rowid",
            (sender, mailbox),
        )
        return [bytes(row[0]) for row in rows]

    def last(self, sender: str) -> int:
        query = "SELECT coalesce(max(until_ms), 0) FROM channel WHERE sender = ?"
        return int(self._db.execute(query, (sender,)).fetchone()[0])

    def drop(self, channel: bytes) -> None:
        for table in ("channel_opening", "channel"):
            self._db.execute(f"DELETE FROM {table} WHERE channel = ?", (channel,))  # noqa: S608  # texts of this file

    def open(self, r: ChannelRecord) -> None:
        ended = "SELECT channel FROM channel WHERE until_ms < ? LIMIT ?"
        for table in ("channel_opening", "channel"):
            self._db.execute(
                f"DELETE FROM {table} WHERE channel IN ({ended})",  # noqa: S608  # texts of this file
                (r.accepted_at_ms, PURGE_ROWS),
            )
        self._db.execute(
            "INSERT INTO channel VALUES (?,?,?,?,?,?,?,?,?,?)",
            (
                *(r.channel, r.sender, r.mailbox, r.key, r.incarnation),
                *(r.highest, r.chain, r.ends, r.accepted_at_ms, r.until_ms),
            ),
        )
        self._db.execute("INSERT INTO channel_opening VALUES (?,?)", (r.channel, r.opening))

    def advance(self, r: ChannelRecord) -> None:
        self._db.execute(
            "UPDATE channel SET highest = ?, chain = ?, ends = ?, until_ms = ? WHERE channel = ?",
            (r.highest, r.chain, r.ends, r.until_ms, r.channel),
        )

    def opening(self, channel: bytes) -> tuple[bytes, int] | None:
        row = self._db.execute(
            """SELECT o.envelope, c.accepted_at_ms FROM channel AS c JOIN channel_opening AS o
               ON o.channel = c.channel WHERE c.channel = ?""",
            (channel,),
        ).fetchone()
        return None if row is None else (bytes(row[0]), int(row[1]))
