"""Issued certificates in SQLite. Times are seconds; the agents' states are looked up, never copied."""

import sqlite3
from collections.abc import Sequence
from typing import final

from broker.ports.svids import MAX_FALLEN, FallenSvid, SvidRecord


@final
class SqlSvids:
    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def add(self, record: SvidRecord, *, now_s: int) -> None:
        self._db.execute("DELETE FROM svid WHERE expires_at_s < ?", (now_s,))
        self._db.execute(
            "INSERT INTO svid (serial, authority, subject, issued_at_s, expires_at_s) VALUES (?, ?, ?, ?, ?)",
            (record.serial, record.authority, record.subject, record.issued_at_s, record.expires_at_s),
        )

    def fallen(self, *, now_s: int) -> Sequence[FallenSvid]:
        rows = self._db.execute(
            """SELECT serial, authority, state, judged_at_s FROM svid JOIN agent USING (subject)
                WHERE state <> 'admitted' AND svid.expires_at_s >= ? ORDER BY serial LIMIT ?""",
            (now_s, MAX_FALLEN),
        )
        return [
            FallenSvid(serial=serial, authority=authority, state=state, judged_at_s=judged_at_s)
            for serial, authority, state, judged_at_s in rows
        ]

    def of(self, subject: str, *, now_s: int) -> Sequence[SvidRecord]:
        rows = self._db.execute(
            """SELECT serial, authority, issued_at_s, expires_at_s FROM svid
                WHERE subject = ? AND expires_at_s >= ? ORDER BY serial""",
            (subject, now_s),
        )
        return [
            SvidRecord(
                serial=serial, authority=authority, subject=subject, issued_at_s=issued_at_s, expires_at_s=expires_at_s
            )
            for serial, authority, issued_at_s, expires_at_s in rows
        ]
