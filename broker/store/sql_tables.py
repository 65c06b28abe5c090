"""The queries of the SQLite store.

Decides how rows become records and back. The tables stand in sql_schema.py; units of work, durability and threads are
sql.py's business.
"""

import hashlib
import hmac
import json
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any, Final, final

from broker.errors import BrokerCode, BrokerError
from broker.ports import DAY_S, AgentRecord, AgentState, LogHead, LogRow, SecretRecord
from broker.store.rows import element, head_of
from broker.store.sql_blobs import SqlBlobs
from broker.store.sql_channels import SqlChannels
from broker.store.sql_mail import SqlMail
from broker.store.sql_releases import SqlReleases
from broker.store.sql_svids import SqlSvids
from broker.store.sql_topics import SqlStates, SqlTopics

MAX_SECRETS: Final = 1024  # kept in memory, encrypted as they rest
NO_END: Final = 2**63 - 1
MAX_BLOBS: Final = 1024  # of which it is remembered that they were just put
AGAIN_S: Final = 3600
MAX_MARKS: Final = 4096  # kept in memory, those that are not there included


@final
class _Nonces:
    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._cleaned_s = 0

    def consume(self, nonce: bytes, *, expires_at_s: int, now_s: int) -> bool:
        if now_s != self._cleaned_s:
            self._db.execute("DELETE FROM nonce WHERE expires_at_s < ?", (now_s,))
            self._cleaned_s = now_s
        done = self._db.execute("INSERT OR IGNORE INTO nonce VALUES (?, ?)", (nonce, expires_at_s))
        return done.rowcount == 1


def _agent(row: Sequence[Any]) -> AgentRecord:
    return AgentRecord(
        subject=row[0],
        tenant=row[1],
        jkt=row[2],
        state=AgentState(row[3]),
        codes=tuple(json.loads(row[4])),
        evidence=row[5],
        collateral=row[6],
        generation=row[7],
        admitted_at_s=row[8],
        judged_at_s=row[9],
        expires_at_s=row[10],
        simulated=bool(row[11]),
        tcb_status=row[12],
        facts=row[13],
    )


@final
class _Agents:
    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def get(self, subject: str) -> AgentRecord | None:
        row = self._db.execute("SELECT * FROM agent WHERE subject = ?", (subject,)).fetchone()
        return _agent(row) if row else None

    def put(self, r: AgentRecord) -> None:
        self._db.execute(
            "INSERT OR REPLACE INTO agent VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
            (
                *(
                    r.subject,
                    r.tenant,
                    r.jkt,
                    r.state,
                    json.dumps(r.codes) if r.codes else "[]",
                    r.evidence,
                    r.collateral,
                    r.generation,
                ),
                *(r.admitted_at_s, r.judged_at_s, r.expires_at_s, int(r.simulated), r.tcb_status, r.facts),
            ),
        )

    def page(self, *, tenant: str | None = None, after: str = "", limit: int = 100) -> Sequence[AgentRecord]:
        rows = self._db.execute(
            "SELECT * FROM agent WHERE subject > ? AND (? IS NULL OR tenant = ?) ORDER BY subject LIMIT ?",
            (after, tenant, tenant, limit),
        )
        return [_agent(row) for row in rows]

    def stale(self, *, generation: int, live_at_s: int, limit: int) -> Sequence[AgentRecord]:
        rows = self._db.execute(
            "SELECT * FROM agent WHERE state = 'admitted' AND expires_at_s > ? AND generation < ? LIMIT ?",
            (live_at_s, generation, limit),
        )
        return [_agent(row) for row in rows]

    def counts(self) -> Mapping[str, int]:
        return dict(self._db.execute("SELECT state, count(*) FROM agent GROUP BY state").fetchall())

    def silent(
        self, *, state: AgentState, before_s: int, after: tuple[int, str] = (0, ""), limit: int
    ) -> Sequence[AgentRecord]:
        rows = self._db.execute(
            """SELECT * FROM agent WHERE state = ? AND expires_at_s < ? AND (expires_at_s, subject) > (?, ?)
               ORDER BY expires_at_s, subject LIMIT ?""",
            (state, before_s, *after, limit),
        )
        return [_agent(row) for row in rows]

    def drop(self, subject: str) -> None:
        self._db.execute("DELETE FROM agent WHERE subject = ?", (subject,))

    def fallen(self, *, live_at_s: int, limit: int) -> Sequence[str]:
        rows = self._db.execute(
            """SELECT subject FROM agent WHERE state IN ('quarantined', 'revoked') AND expires_at_s > ?
               ORDER BY subject LIMIT ?""",
            (live_at_s, limit),
        )
        return [row[0] for row in rows]


@final
class _Archive:
    """With `remember`, for the only connection that writes, a blob that was just put is not put again."""

    def __init__(self, db: sqlite3.Connection, *, remember: bool) -> None:
        self._db = db
        self._remember = remember
        self._put_at_s: dict[bytes, int] = {}

    def forget(self) -> None:
        self._put_at_s.clear()

    def put(self, *blobs: tuple[bytes, bytes], at_s: int) -> None:
        fresh = [(digest, blob, at_s, DAY_S) for digest, blob in blobs if not self._just_put(digest, at_s)]
        self._db.executemany(
            """INSERT INTO archive (digest, blob, used_at_s) VALUES (?, ?, ?) ON CONFLICT DO UPDATE
               SET used_at_s = excluded.used_at_s WHERE excluded.used_at_s > used_at_s + ?""",
            fresh,
        )
        if self._remember:
            if len(self._put_at_s) >= MAX_BLOBS:
                self.forget()
            self._put_at_s.update((digest, at_s) for digest, *_ in fresh)

    def _just_put(self, digest: bytes, at_s: int) -> bool:
        then_s = self._put_at_s.get(digest)
        return then_s is not None and 0 <= at_s - then_s < AGAIN_S

    def touch(self, digests: Sequence[bytes], *, at_s: int) -> None:
        self._db.executemany(
            "UPDATE archive SET used_at_s = ? WHERE digest = ?", [(at_s, digest) for digest in digests]
        )

    def prune(self, *, before_s: int) -> int:
        self.forget()
        return self._db.execute("DELETE FROM archive WHERE used_at_s < ?", (before_s,)).rowcount

    def get(self, digest: bytes) -> bytes | None:
        row = self._db.execute("SELECT blob FROM archive WHERE digest = ?", (digest,)).fetchone()
        return row[0] if row else None


def _secret(row: Sequence[Any]) -> SecretRecord:
    return SecretRecord(
        name=row[0],
        version=row[1],
        labels=tuple(json.loads(row[2])),
        created_at_s=row[3],
        wrapped_key=row[4],
        ciphertext=row[5],
    )


@final
class _Secrets:
    """With `remember`, for the connection that reads, what was found is kept until `forget`, which has to follow every
    commit of the one that writes, if that `changed` any.
    """

    def __init__(self, db: sqlite3.Connection, *, remember: bool) -> None:
        self._db = db
        self._remember = remember
        self._known: dict[tuple[str, int | None], SecretRecord] = {}
        self.changed = False

    def forget(self) -> None:
        self._known.clear()

    def put(self, r: SecretRecord) -> None:
        self.changed = True
        self._db.execute(
            "INSERT INTO secret VALUES (?,?,?,?,?,?)",
            (r.name, r.version, json.dumps(r.labels), r.created_at_s, r.wrapped_key, r.ciphertext),
        )

    def get(self, name: str, version: int | None = None) -> SecretRecord | None:
        known = self._known.get((name, version))
        if known is not None:
            return known
        row = self._db.execute(
            "SELECT * FROM secret WHERE name = ? AND (? IS NULL OR version = ?) ORDER BY version DESC LIMIT 1",
            (name, version, version),
        ).fetchone()
        found = _secret(row) if row else None
        if found is not None and self._remember:
            if len(self._known) >= MAX_SECRETS:
                self._known.clear()
            self._known[name, version] = found
        return found

    def page(self, *, tenant: str | None = None, after: str = "", limit: int = 100) -> Sequence[SecretRecord]:
        rows = self._db.execute(
            """SELECT name, version, labels, created_at_s, CASE WHEN wrapped_key = x'' THEN x'' ELSE x'00' END, x''
               FROM secret WHERE name IN (
                   SELECT DISTINCT name FROM secret WHERE name > ? AND (? IS NULL OR substr(name, 1, ?) = ?)
                   ORDER BY name LIMIT ?)
               ORDER BY name, version""",
            (after, tenant, len(tenant or "") + 1, f"{tenant}/", limit),
        )
        return [_secret(row) for row in rows]

    def destroy(self, name: str, version: int | None = None) -> int:
        self.changed = True
        self._db.execute("PRAGMA secure_delete = ON")  # every page that held it is overwritten
        done = self._db.execute(
            """UPDATE secret SET wrapped_key = x'', ciphertext = x''
               WHERE name = ? AND (? IS NULL OR version = ?) AND wrapped_key <> x''""",
            (name, version, version),
        )
        self._db.execute("PRAGMA secure_delete = FAST")
        return done.rowcount

    def discard(self, name: str, *, before: int | None = None) -> int:
        self.changed = True
        done = self._db.execute(
            "DELETE FROM secret WHERE name = ? AND version < ? AND wrapped_key = x''",
            (name, NO_END if before is None else before),
        )
        return done.rowcount


def _log_row(row: Sequence[Any]) -> LogRow:
    return LogRow(index=row[0], at_ms=row[1], kind=row[2], subject=row[3], entry=row[4])


@final
class _Log:
    def __init__(self, db: sqlite3.Connection, *, remember: bool) -> None:
        self._db = db
        self._remember = remember
        self.known_size: int | None = None

    def size(self) -> int:
        if self.known_size is not None:
            return self.known_size
        (size,) = self._db.execute("SELECT coalesce(max(idx) + 1, 0) FROM log_entry").fetchone()
        if self._remember:
            self.known_size = int(size)
        return int(size)

    def append(self, *, at_ms: int, kind: str, subject: str, entry: bytes) -> int:
        index = self.size()
        self._db.execute("INSERT INTO log_entry VALUES (?,?,?,?,?)", (index, at_ms, kind, subject, entry))
        if self._remember:
            self.known_size = index + 1
        return index

    def put_nodes(self, *nodes: tuple[int, int, bytes]) -> None:
        self._db.executemany("INSERT INTO log_node VALUES (?,?,?)", nodes)

    def node(self, level: int, index: int) -> bytes | None:
        row = self._db.execute("SELECT hash FROM log_node WHERE level = ? AND idx = ?", (level, index)).fetchone()
        return row[0] if row else None

    def entry(self, index: int) -> LogRow | None:
        rows = self.page(start=index, limit=1)
        return rows[0] if rows and rows[0].index == index else None

    def page(
        self,
        *,
        start: int,
        limit: int,
        before: int | None = None,
        kind: str | None = None,
        subject: str | None = None,
    ) -> Sequence[LogRow]:
        rows = self._db.execute(
            """SELECT idx, at_ms, kind, subject, CAST(entry AS BLOB) FROM log_entry
               WHERE idx >= ? AND idx < ? AND (? IS NULL OR kind = ?) AND (? IS NULL OR subject = ?)
               ORDER BY idx LIMIT ?""",
            (start, NO_END if before is None else before, kind, kind, subject, subject, limit),
        )
        return [_log_row(row) for row in rows]

    def newest(self, *, kind: str, limit: int) -> Sequence[LogRow]:
        rows = self._db.execute(
            """SELECT idx, at_ms, kind, subject, CAST(entry AS BLOB) FROM log_entry
               WHERE kind = ? ORDER BY idx DESC LIMIT ?""",
            (kind, limit),
        )
        return [_log_row(row) for row in rows]

    def head(self) -> LogHead | None:
        row = self._db.execute("SELECT size, note FROM log_head").fetchone()
        return LogHead(size=row[0], note=row[1]) if row else None

    def set_head(self, head: LogHead) -> None:
        self._db.execute("INSERT OR REPLACE INTO log_head VALUES (1, ?, ?)", (head.size, head.note))


@final
class _Marks:
    def __init__(self, db: sqlite3.Connection, key: bytes, *, remember: bool) -> None:
        self._db, self._key = db, key
        self._rows_key = hmac.digest(key, b"rows", hashlib.sha256)
        self._remember = remember
        self.known: dict[str, str | None] = {}  # None: there is none
        self.total: int | None = None  # of every row, for the connection that writes

    def _mac(self, name: str, value: str) -> bytes:
        return hmac.digest(self._key, f"{len(name)}:{name}{value}".encode(), hashlib.sha256)

    def get(self, name: str) -> str | None:
        if name in self.known:
            return self.known[name]
        row = self._db.execute("SELECT value, mac FROM mark WHERE name = ?", (name,)).fetchone()
        return self._keep(name, None if row is None else self._checked(name, *row))

    def _keep(self, name: str, value: str | None) -> str | None:
        if self._remember:
            if len(self.known) >= MAX_MARKS:
                self.known.clear()
            self.known[name] = value
        return value

    def _checked(self, name: str, value: str, mac: bytes) -> str:
        if not hmac.compare_digest(self._mac(name, value), mac):
            raise BrokerError(BrokerCode.STORE_ROW_FORGED, f"mark {name}")
        return value

    def under(self, prefix: str) -> dict[str, str]:
        rows = self._db.execute(
            "SELECT name, value, mac FROM mark WHERE substr(name, 1, ?) = ? ORDER BY name", (len(prefix), prefix)
        )
        return {row[0].removeprefix(prefix): self._checked(*row) for row in rows}

    def put(self, name: str, value: str) -> None:
        self._move(name, value)
        self._db.execute("INSERT OR REPLACE INTO mark VALUES (?,?,?)", (name, value, self._mac(name, value)))
        self._keep(name, value)

    def drop(self, name: str) -> None:
        self._move(name, None)
        self._db.execute("DELETE FROM mark WHERE name = ?", (name,))
        self._keep(name, None)

    def _move(self, name: str, value: str | None) -> None:
        """Take the old row out of the total and the new one in."""
        total, old = self._sum(), self.get(name)
        for text in (old, value):
            if text is not None:
                total ^= element(self._rows_key, name, text)
        self.total = total

    def _sum(self) -> int:
        if self.total is not None:
            return self.total
        total = 0
        for name, value in self.under("").items():
            total ^= element(self._rows_key, name, value)
        if self._remember:
            self.total = total
        return total

    def head(self) -> bytes:
        return head_of(self._rows_key, self._sum())


@final
class SqlTransaction:
    """The tables as a `Transaction`, on one connection.

    With `remember`, for the only connection that writes, the log's size and marks that were read are kept until
    `forget`, which has to follow every rollback. `remember_secrets` is for the one that only reads.
    """

    def __init__(
        self, db: sqlite3.Connection, mac_key: bytes, *, remember: bool = False, remember_secrets: bool = False
    ) -> None:
        self.nonces = _Nonces(db)
        self.agents = _Agents(db)
        self.archive = _Archive(db, remember=remember)
        self.secrets = _Secrets(db, remember=remember_secrets)
        self.mail = SqlMail(db)
        self.blobs = SqlBlobs(db)
        self.channels = SqlChannels(db)
        self.svids = SqlSvids(db)
        self.releases = SqlReleases(db)
        self.topics = SqlTopics(db)
        self.states = SqlStates(db)
        self.log = _Log(db, remember=remember)
        self.marks = _Marks(db, mac_key, remember=remember)

    def forget(self, total: int | None) -> None:
        """`total` is that of the marks before what was rolled back, when it was known."""
        self.log.known_size = None
        self.archive.forget()
        self.marks.known.clear()
        self.marks.total = total
