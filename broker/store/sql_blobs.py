"""The queries of the SQLite store that are about large sealed payloads."""

import sqlite3
from typing import final

from broker.ports.mail import MAX_ENDED, BlobRecord, Queued, Quota
from broker.store.shares import MIN_BLOB, blob_has_room, blob_octets


@final
class SqlBlobs:
    """`broker.ports.mail.Blobs` on one connection."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def put(self, r: BlobRecord, quota: Quota) -> Queued:
        if self._db.execute("SELECT 1 FROM blob WHERE digest = ?", (r.digest,)).fetchone() is not None:
            return Queued.DUPLICATE
        (all_octets, own_octets) = self._db.execute(
            """SELECT coalesce(sum(max(octets, ?1)), 0), coalesce(sum(max(octets, ?1)) FILTER (WHERE sender = ?2), 0)
               FROM blob WHERE mailbox = ?3 AND expires_at_ms > ?4""",
            (MIN_BLOB, r.sender, r.mailbox, r.accepted_at_ms),
        ).fetchone()
        if not blob_has_room(quota, held=all_octets, own=own_octets, more=blob_octets(r.octets)):
            return Queued.FULL
        self._db.execute(
            """INSERT INTO blob (digest, mailbox, sender, octets, accepted_at_ms, expires_at_ms, body)
               VALUES (?,?,?,?,?,?,?)""",
            (r.digest, r.mailbox, r.sender, r.octets, r.accepted_at_ms, r.expires_at_ms, r.body),
        )
        return Queued.QUEUED

    def get(self, digest: bytes) -> BlobRecord | None:
        row = self._db.execute(
            "SELECT digest, mailbox, sender, octets, accepted_at_ms, expires_at_ms, body FROM blob WHERE digest = ?",
            (digest,),
        ).fetchone()
        if row is None:
            return None
        return BlobRecord(
            digest=row[0],
            mailbox=row[1],
            sender=row[2],
            octets=row[3],
            accepted_at_ms=row[4],
            expires_at_ms=row[5],
            body=row[6],
        )

    def drop(self, digest: bytes) -> bool:
        return self._db.execute("DELETE FROM blob WHERE digest = ?", (digest,)).rowcount == 1

    def expire(self, *, now_ms: int, most: int = MAX_ENDED) -> int:
        done = self._db.execute(
            "DELETE FROM blob WHERE number IN (SELECT number FROM blob WHERE expires_at_ms <= ? LIMIT ?)",
            (now_ms, most),
        )
        return done.rowcount
