"""Who got what, and leases, in SQLite. The tables stand in sql_schema.py."""

import sqlite3
from collections.abc import Sequence
from typing import Any, Final, final

from broker.ports.releases import FactKind, Lease, Released, key_of

RELEASES_SCHEMA: Final[tuple[str, ...]] = (
    """CREATE TABLE release_row (
        entry INTEGER PRIMARY KEY, at_ms INTEGER NOT NULL, name TEXT NOT NULL, version INTEGER NOT NULL,
        subject TEXT NOT NULL, ground TEXT NOT NULL, via TEXT NOT NULL)""",
    "CREATE INDEX release_name ON release_row (name, entry)",
    "CREATE INDEX release_subject ON release_row (subject, entry)",
    "CREATE INDEX release_ground ON release_row (ground, entry)",
    """CREATE TABLE release_fact (
        ground TEXT NOT NULL, kind TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (ground, kind, value))
       WITHOUT ROWID""",
    "CREATE INDEX release_by_fact ON release_fact (kind, value)",
    """CREATE TABLE secret_lease (
        name TEXT NOT NULL, version INTEGER NOT NULL, subject TEXT NOT NULL, begun_at_s INTEGER NOT NULL,
        ends_at_s INTEGER NOT NULL, closed INTEGER NOT NULL, PRIMARY KEY (name, version, subject)) WITHOUT ROWID""",
    "CREATE INDEX secret_lease_end ON secret_lease (ends_at_s) WHERE closed = 0",
)
# Facts under their own digest: many grounds name the same ones. Column `ground` of release_fact holds either.
SHARED_FACTS: Final[tuple[str, ...]] = (
    "ALTER TABLE release_row ADD COLUMN facts TEXT NOT NULL DEFAULT ''",
    "UPDATE release_row SET facts = ground",
    "DROP INDEX release_ground",
    "CREATE INDEX release_facts ON release_row (facts, entry)",
)


def _released(row: Sequence[Any]) -> Released:
    return Released(entry=row[0], at_ms=row[1], name=row[2], version=row[3], subject=row[4], ground=row[5], via=row[6])


def _lease(row: Sequence[Any]) -> Lease:
    return Lease(name=row[0], version=row[1], subject=row[2], begun_at_s=row[3], ends_at_s=row[4], closed=bool(row[5]))


@final
class SqlReleases:
    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def record(self, released: Released, facts: Sequence[tuple[FactKind, str]]) -> None:
        r = released
        key = key_of(r.ground)
        known = self._db.execute("SELECT 1 FROM release_fact WHERE ground = ? LIMIT 1", (key,)).fetchone()
        if known is None:
            rows = [(key, kind, value) for kind, value in facts]
            self._db.executemany("INSERT OR IGNORE INTO release_fact VALUES (?,?,?)", rows)
        row = (r.entry, r.at_ms, r.name, r.version, r.subject, r.ground, r.via, key)
        self._db.execute("INSERT INTO release_row VALUES (?,?,?,?,?,?,?,?)", row)

    def page(
        self,
        *,
        tenant: str | None = None,
        name: str | None = None,
        subject: str | None = None,
        fact: tuple[FactKind, str] | None = None,
        after: int = -1,
        limit: int = 100,
    ) -> Sequence[Released]:
        kind, value = fact or (None, None)
        rows = self._db.execute(
            """SELECT * FROM release_row r
               WHERE entry > :after AND (:name IS NULL OR name = :name) AND (:subject IS NULL OR subject = :subject)
                 AND (:tenant IS NULL OR substr(name, 1, length(:tenant) + 1) = :tenant || '/')
                 AND (:kind IS NULL
                      OR facts IN (SELECT ground FROM release_fact WHERE kind = :kind AND value = :value))
               ORDER BY entry LIMIT :limit""",
            {
                "after": after,
                "name": name,
                "subject": subject,
                "tenant": tenant,
                "kind": kind,
                "value": value,
                "limit": limit,
            },
        )
        return [_released(row) for row in rows]

    def facts(self, ground: str) -> Sequence[tuple[FactKind, str]]:
        query = "SELECT kind, value FROM release_fact WHERE ground = ? ORDER BY kind, value"
        return [(row[0], row[1]) for row in self._db.execute(query, (key_of(ground),))]

    def lease(self, name: str, version: int, subject: str) -> Lease | None:
        query = "SELECT * FROM secret_lease WHERE name = ? AND version = ? AND subject = ?"
        row = self._db.execute(query, (name, version, subject)).fetchone()
        return _lease(row) if row else None

    def put_lease(self, lease: Lease) -> None:
        row = (lease.name, lease.version, lease.subject, lease.begun_at_s, lease.ends_at_s, int(lease.closed))
        self._db.execute("INSERT OR REPLACE INTO secret_lease VALUES (?,?,?,?,?,?)", row)

    def leases(self, *, tenant: str | None = None, after: str = "", limit: int = 100) -> Sequence[Lease]:
        rows = self._db.execute(
            """SELECT * FROM secret_lease WHERE closed = 0 AND name IN (
                 SELECT DISTINCT name FROM secret_lease WHERE closed = 0 AND name > :after
                   AND (:tenant IS NULL OR substr(name, 1, length(:tenant) + 1) = :tenant || '/')
                 ORDER BY name LIMIT :limit)
               ORDER BY name, version, subject""",
            {"after": after, "tenant": tenant, "limit": limit},
        )
        return [_lease(row) for row in rows]

    def lent(self, subject: str) -> bool:
        query = "SELECT 1 FROM secret_lease WHERE subject = ? AND closed = 0 LIMIT 1"
        return self._db.execute(query, (subject,)).fetchone() is not None

    def forget(self, subject: str) -> None:
        self._db.execute("DELETE FROM secret_lease WHERE subject = ? AND closed = 1", (subject,))

    def ended(self, *, now_s: int, limit: int) -> Sequence[Lease]:
        rows = self._db.execute(
            """SELECT l.* FROM secret_lease l INDEXED BY secret_lease_end LEFT JOIN agent a ON a.subject = l.subject
               WHERE closed = 0 AND (ends_at_s <= ? OR a.state <> 'admitted')
               ORDER BY name, version, l.subject LIMIT ?""",
            (now_s, limit),
        )
        return [_lease(row) for row in rows]
