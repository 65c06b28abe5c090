"""The queries of the SQLite store that are about mail.

Decides how parcels lie in tables: what changes with every lease is one small row, the sealed bytes are another that is
written once; how much each mailbox and each sender has waiting is counted by triggers. Who is next in turn is
remembered in memory only: after a restart somebody else begins.
"""

# ruff: noqa: S608  # queries are put together from texts of this file alone

import hmac
import json
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Final, final

from broker.ports.mail import (
    DEAD_LETTERS,
    MAX_ENDED,
    MAX_KEYS,
    MAX_OCTETS,
    MAX_OUT,
    MAX_SEEN,
    NO_LIMIT,
    DeadLetter,
    End,
    EndedParcel,
    Leased,
    MailboxRecord,
    NewMessage,
    Queued,
    Quota,
    TombstoneRecord,
    WhenFallen,
)
from broker.store.shares import Load, has_room
from broker.store.sql_parcel import COLUMNS, ParcelRow
from broker.store.sql_stones import SqlStones
from broker.store.turns import Harvest, beyond, hungry

REMEMBER_MS: Final = 24 * 3600 * 1000  # ids of handled messages, at least until they expire
PURGE_ROWS: Final = 4096
SEEN_EVERY: Final = 1024  # parcels, after which it is looked whether their sender has too many ids here
MAX_TURNS: Final = 16_384  # mailboxes of which it is known whose turn it is

_DEAD: Final = tuple(item.name for item in fields(DeadLetter))


@final
class SqlMail:
    """`broker.ports.mail.Mail` on one connection."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._stones = SqlStones(db)
        self._turns: dict[str, str] = {}  # mailbox → who was served last
        self._forgot_s = 0

    # ── mailboxes ──────────────────────────────────────────────────────────────────────────────────────────────────

    def open(self, r: MailboxRecord) -> Sequence[EndedParcel]:
        before = self.find(r.name)
        self._db.execute(
            """INSERT OR REPLACE INTO mailbox (name, owner, key, incarnation, epoch, statement, kind, held_until_ms)
               VALUES (?,?,?,?,?,?,?,?)""",
            (r.name, r.owner, r.key, r.incarnation, r.epoch, r.statement, r.kind, r.held_until_ms),
        )
        if before is not None and before.owner != r.owner:
            self._db.execute(
                "UPDATE parcel SET lease = NULL, visible_at_ms = 0 WHERE mailbox = ? AND lease IS NOT NULL", (r.name,)
            )
        if r.kind != "durable":
            self._db.execute("DELETE FROM mailbox_key WHERE name = ? AND incarnation <> ?", (r.name, r.incarnation))
        self._db.execute(
            "INSERT OR REPLACE INTO mailbox_key (name, key, incarnation) VALUES (?,?,?)", (r.name, r.key, r.incarnation)
        )
        self._db.execute(
            """DELETE FROM mailbox_key WHERE name = ? AND number NOT IN
               (SELECT number FROM mailbox_key WHERE name = ? ORDER BY number DESC LIMIT ?)""",
            (r.name, r.name, MAX_KEYS),
        )
        return [] if r.kind == "durable" else self._drop_unreadable(r.name)

    def _drop_unreadable(self, name: str) -> Sequence[EndedParcel]:
        where = "mailbox = ? AND key NOT IN (SELECT key FROM mailbox_key WHERE name = ?)"
        found = self._db.execute(f"SELECT {COLUMNS} FROM parcel WHERE dead_at_ms = 0 AND {where}", (name, name))
        rows = list(map(ParcelRow._make, found))
        self._db.execute(f"DELETE FROM parcel WHERE {where}", (name, name))
        return [row.ended(End.KEY_GONE) for row in rows]

    def find(self, name: str) -> MailboxRecord | None:
        row = self._db.execute(
            "SELECT name, owner, key, incarnation, epoch, statement, kind, held_until_ms FROM mailbox WHERE name = ?",
            (name,),
        ).fetchone()
        if row is None:
            return None
        return MailboxRecord(
            name=row[0],
            owner=row[1],
            key=row[2],
            incarnation=row[3],
            epoch=row[4],
            statement=row[5],
            kind=row[6],
            held_until_ms=row[7],
        )

    def owned(self, owner: str) -> int:
        return int(self._db.execute("SELECT count(*) FROM mailbox WHERE owner = ?", (owner,)).fetchone()[0])

    def of_tenant(self, tenant: str) -> int:
        query = "SELECT count(*) FROM mailbox WHERE name > ? AND name < ?"  # between `acme/` and `acme0`
        return int(self._db.execute(query, (f"{tenant}/", f"{tenant}0")).fetchone()[0])

    def forget(self, *, before_ms: int, most: int = MAX_ENDED) -> int:
        rows = self._db.execute(
            """SELECT name FROM mailbox WHERE kind = 'ephemeral' AND held_until_ms < ?
               AND NOT EXISTS (SELECT 1 FROM parcel WHERE mailbox = name AND dead_at_ms = 0)
               AND NOT EXISTS (SELECT 1 FROM parcel WHERE mailbox = name AND dead_at_ms > 0) LIMIT ?""",
            (before_ms, most),
        ).fetchall()
        for table, column in (("mailbox", "name"), ("mailbox_key", "name"), ("load", "mailbox"), ("lane", "mailbox")):
            self._db.executemany(f"DELETE FROM {table} WHERE {column} = ?", rows)
        return len(rows)

    def lapse(self, name: str) -> None:
        self._db.execute("UPDATE mailbox SET kind = 'ephemeral' WHERE name = ?", (name,))

    def hold(self, name: str, *, owner: str, until_ms: int) -> bool:
        done = self._db.execute(
            "UPDATE mailbox SET held_until_ms = ? WHERE name = ? AND owner = ?", (until_ms, name, owner)
        )
        return done.rowcount == 1

    def accepts(self, name: str, key: bytes, incarnation: bytes) -> bool:
        query = "SELECT 1 FROM mailbox_key WHERE name = ? AND key = ? AND incarnation = ?"
        return self._db.execute(query, (name, key, incarnation)).fetchone() is not None

    def concerns(self, subject: str) -> bool:
        query = """SELECT EXISTS (SELECT 1 FROM mailbox WHERE owner = ?1)
            OR EXISTS (SELECT 1 FROM lane WHERE sender = ?1 AND messages > 0)
            OR EXISTS (SELECT 1 FROM lane AS l JOIN parcel AS p ON p.mailbox = l.mailbox
                       WHERE l.sender = ?1 AND p.sender = ?1 AND p.dead_at_ms > 0)"""
        return bool(self._db.execute(query, (subject,)).fetchone()[0])

    def leave(self, subject: str) -> None:
        for table in ("lane", "peer_token"):
            self._db.execute(f"DELETE FROM {table} WHERE sender = ?", (subject,))

    # ── the queue ──────────────────────────────────────────────────────────────────────────────────────────────────

    def queue(self, m: NewMessage, quota: Quota) -> Queued:
        if m.kind == "envelope":
            seen = self._seen(m)
            if seen is not None:
                return seen
        if self._full(m, quota):
            return Queued.FULL
        if m.kind == "envelope":
            until = max(m.expires_at_ms, m.accepted_at_ms + REMEMBER_MS)
            self._db.execute("INSERT INTO seen VALUES (?,?,?,?,?)", (m.mailbox, m.sender, m.msg_id, m.digest, until))
        added = self._db.execute(
            """INSERT INTO parcel (mailbox, sender, kind, count, undone, msg_id, digest, key,
                   accepted_at_ms, expires_at_ms, visible_at_ms, octets) VALUES (?,?,?,?,?,?,?,?,?,?,?,?)""",
            (
                *(m.mailbox, m.sender, m.kind, m.count, m.count, m.msg_id, m.digest, m.key),
                *(m.accepted_at_ms, m.expires_at_ms, m.accepted_at_ms, len(m.envelope)),
            ),
        )
        self._db.execute("INSERT INTO parcel_body VALUES (?, ?)", (added.lastrowid, m.envelope))
        if m.kind == "envelope" and (added.lastrowid or 0) % SEEN_EVERY == 0:
            self._forget_ids(m.mailbox, m.sender)
        return Queued.QUEUED

    def _forget_ids(self, mailbox: str, sender: str) -> None:
        lane = (mailbox, sender)
        (count,) = self._db.execute("SELECT count(*) FROM seen WHERE mailbox = ? AND sender = ?", lane).fetchone()
        first = "SELECT msg_id FROM seen WHERE mailbox = ? AND sender = ? ORDER BY msg_id LIMIT ?"
        self._db.execute(
            f"DELETE FROM seen WHERE mailbox = ? AND sender = ? AND msg_id IN ({first})",
            (*lane, *lane, max(0, count - MAX_SEEN)),
        )

    def _forget_ended_ids(self, now_ms: int) -> None:
        self._db.execute(
            "DELETE FROM seen WHERE (mailbox, sender, msg_id) IN "
            "(SELECT mailbox, sender, msg_id FROM seen WHERE until_ms < ? LIMIT ?)",
            (now_ms, PURGE_ROWS),
        )

    def _seen(self, m: NewMessage) -> Queued | None:
        if m.accepted_at_ms // 1000 != self._forgot_s:
            self._forgot_s = m.accepted_at_ms // 1000
            self._forget_ended_ids(m.accepted_at_ms)
        row = self._db.execute(
            "SELECT digest, until_ms FROM seen WHERE mailbox = ? AND sender = ? AND msg_id = ?",
            (m.mailbox, m.sender, m.msg_id),
        ).fetchone()
        if row is None:
            return None
        return Queued.DUPLICATE if hmac.compare_digest(row[0], m.digest) else Queued.ID_REUSED

    def _full(self, m: NewMessage, quota: Quota) -> bool:
        row = self._db.execute(
            """SELECT coalesce(l.messages, 0), coalesce(l.octets, 0), coalesce(s.messages, 0), coalesce(s.octets, 0)
               FROM (SELECT 1) LEFT JOIN load AS l ON l.mailbox = ?
               LEFT JOIN lane AS s ON s.mailbox = ? AND s.sender = ?""",
            (m.mailbox, m.mailbox, m.sender),
        ).fetchone()
        return not has_room(quota, held=Load(*row[:2]), own=Load(*row[2:]), more=Load(m.count, len(m.envelope)))

    def channels(self, mailbox: str, sender: str) -> frozenset[bytes]:
        query = "SELECT DISTINCT substr(msg_id, 1, 8) FROM parcel WHERE mailbox = ? AND sender = ? AND kind = 'batch'"
        both = f"{query} AND dead_at_ms = 0 UNION {query} AND dead_at_ms > 0"
        return frozenset(bytes(row[0]) for row in self._db.execute(both, (mailbox, sender) * 2))

    def senders(self, mailbox: str, *, now_ms: int, max_messages: int = NO_LIMIT) -> Sequence[str]:
        rows = self._db.execute(
            """SELECT l.sender, l.messages, coalesce(o.messages, 0) FROM lane AS l INDEXED BY lane_busy LEFT JOIN
                   (SELECT sender, sum(undone) AS messages FROM parcel
                    WHERE mailbox = ? AND lease IS NOT NULL AND visible_at_ms > ? GROUP BY sender) AS o
               ON o.sender = l.sender WHERE l.mailbox = ? AND l.messages > 0""",
            (mailbox, now_ms, mailbox),
        ).fetchall()
        return hungry(rows, max_messages)

    def lease(
        self,
        mailbox: str,
        *,
        now_ms: int,
        until_ms: int,
        leases: Sequence[str],
        max_attempts: int,
        max_messages: int = NO_LIMIT,
        max_octets: int = MAX_OCTETS,
        fallen: WhenFallen = "hold",
        ready: frozenset[str] | None = None,
    ) -> Leased:
        out: dict[str, int] = dict(
            self._db.execute(
                """SELECT sender, sum(undone) FROM parcel
                   WHERE mailbox = ? AND lease IS NOT NULL AND visible_at_ms > ? GROUP BY sender""",
                (mailbox, now_ms),
            )
        )
        harvest: Harvest[ParcelRow] = Harvest(
            now_ms=now_ms,
            max_attempts=max_attempts,
            parcels=len(leases),
            messages=min(max_messages, MAX_OUT - sum(out.values())),
            octets=max_octets,
            out=out,
        )
        harvest.reap(self._lanes(mailbox, ready), lambda sender: self._lane(mailbox, sender), fallen=fallen)
        self._note_turn(mailbox, harvest.last)
        ended = tuple(self._end(row, end, now_ms=now_ms) for row, end in harvest.ended)
        given = list(zip(harvest.taken, leases, strict=False))
        self._db.executemany(
            "UPDATE parcel SET lease = ?, visible_at_ms = ?, leased_at_ms = ?, attempt = attempt + 1 WHERE id = ?",
            [(lease, until_ms, now_ms, row.id) for row, lease in given],
        )
        messages = tuple(row.leased(lease, self._body(row.id)) for row, lease in given)
        return Leased(messages=messages, ended=ended, cut=harvest.cut)

    def _body(self, number: int) -> bytes:
        row = self._db.execute("SELECT envelope FROM parcel_body WHERE id = ?", (number,)).fetchone()
        return bytes(row[0])

    def _end(self, row: ParcelRow, end: End, *, now_ms: int, code: str = "") -> EndedParcel:
        """Out of the queue: dead letters are kept, everything else goes."""
        if end in DEAD_LETTERS:
            self._db.execute(
                """UPDATE parcel SET dead_at_ms = ?, dead_reason = ?, last_code = ?, lease = NULL, visible_at_ms = 0
                   WHERE id = ?""",
                (now_ms, end, code or row.last_code, row.id),
            )
        else:
            self._db.execute("DELETE FROM parcel WHERE id = ?", (row.id,))
        return row.ended(end, code)

    def _note_turn(self, mailbox: str, sender: str) -> None:
        if sender:
            if len(self._turns) >= MAX_TURNS:
                self._turns.clear()
            self._turns[mailbox] = sender

    def _lanes(self, mailbox: str, ready: frozenset[str] | None) -> Iterator[tuple[str, bool]]:
        """Senders with mail here and whether they are admitted, beginning after the one who was served last."""
        for sender, admitted in self._busy(mailbox):
            if not admitted or ready is None or sender in ready:
                yield sender, bool(admitted)

    def _busy(self, mailbox: str) -> Iterator[tuple[str, int]]:
        last = self._turns.get(mailbox, "")
        for where in ("sender > ?", "sender <= ?"):
            yield from self._db.execute(
                f"""SELECT sender, EXISTS (SELECT 1 FROM agent WHERE subject = sender AND state = 'admitted')
                    FROM lane INDEXED BY lane_busy WHERE mailbox = ? AND messages > 0 AND {where} ORDER BY sender""",
                (mailbox, last),
            )

    def _lane(self, mailbox: str, sender: str) -> Iterator[ParcelRow]:
        rows = self._db.execute(
            f"SELECT {COLUMNS} FROM parcel WHERE mailbox = ? AND sender = ? AND dead_at_ms = 0 ORDER BY id",
            (mailbox, sender),
        )
        return map(ParcelRow._make, rows)

    # ── what a receiver says about a lease ─────────────────────────────────────────────────────────────────────────

    def acknowledge(self, mailbox: str, lease: str, *, now_ms: int) -> bool:
        done = self._db.execute(
            "DELETE FROM parcel WHERE lease = ? AND mailbox = ? AND visible_at_ms > ?", (lease, mailbox, now_ms)
        )
        return done.rowcount == 1

    def give_back(
        self,
        mailbox: str,
        lease: str,
        *,
        now_ms: int,
        visible_at_ms: int,
        remaining: tuple[int, ...] = (),
        code: str = "",
    ) -> bool:
        left = json.dumps(remaining) if remaining else ""
        done = self._db.execute(
            """UPDATE parcel SET lease = NULL, visible_at_ms = ?, last_code = coalesce(nullif(?, ''), last_code),
                   remaining = coalesce(nullif(?, ''), remaining), undone = coalesce(nullif(?, 0), undone)
               WHERE lease = ? AND mailbox = ? AND visible_at_ms > ? AND undone >= ?""",
            (visible_at_ms, code, left, len(remaining), lease, mailbox, now_ms, len(remaining)),
        )
        return done.rowcount == 1

    def recall(self, mailbox: str, leases: Sequence[str], *, now_ms: int) -> int:
        query = """UPDATE parcel SET lease = NULL, visible_at_ms = ?, attempt = max(attempt - 1, 0)
                   WHERE mailbox = ? AND visible_at_ms > ? AND lease"""
        if not leases:
            return self._db.execute(query + " IS NOT NULL", (now_ms, mailbox, now_ms)).rowcount
        return sum(self._db.execute(query + " = ?", (now_ms, mailbox, now_ms, one)).rowcount for one in leases)

    def extend(self, mailbox: str, lease: str, *, now_ms: int, until_ms: int, max_ms: int) -> bool:
        done = self._db.execute(
            """UPDATE parcel SET visible_at_ms = min(?, leased_at_ms + ?)
               WHERE lease = ? AND mailbox = ? AND visible_at_ms > ?""",
            (until_ms, max_ms, lease, mailbox, now_ms),
        )
        return done.rowcount == 1

    def reject(self, mailbox: str, lease: str, *, now_ms: int, code: str) -> EndedParcel | None:
        row = self._db.execute(
            f"SELECT {COLUMNS} FROM parcel WHERE lease = ? AND mailbox = ? AND visible_at_ms > ?",
            (lease, mailbox, now_ms),
        ).fetchone()
        return None if row is None else self._end(ParcelRow._make(row), End.REJECTED, now_ms=now_ms, code=code)

    def waiting(self, mailbox: str) -> int:
        row = self._db.execute("SELECT messages FROM load WHERE mailbox = ?", (mailbox,)).fetchone()
        return int(row[0]) if row else 0

    def next_seq(self, mailbox: str, sender: str) -> int:
        row = self._db.execute("SELECT taken FROM lane WHERE mailbox = ? AND sender = ?", (mailbox, sender)).fetchone()
        return int(row[0]) + 1 if row else 1

    # ── what ended ─────────────────────────────────────────────────────────────────────────────────────────────────

    def expire(
        self, *, now_ms: int, dead_before_ms: int, most: int = MAX_ENDED, mailbox: str | None = None
    ) -> Sequence[EndedParcel]:
        rows = self._db.execute(
            f"""SELECT {COLUMNS} FROM parcel WHERE dead_at_ms = 0 AND expires_at_ms <= ?
                AND (lease IS NULL OR visible_at_ms <= ?) AND (? IS NULL OR mailbox = ?)
                ORDER BY expires_at_ms, id LIMIT ?""",
            (now_ms, now_ms, mailbox, mailbox, most),
        ).fetchall()
        self._db.execute(
            "DELETE FROM parcel WHERE id IN (SELECT id FROM parcel WHERE dead_at_ms > 0 AND dead_at_ms < ? LIMIT ?)",
            (dead_before_ms, most),
        )
        self._stones.expire(dead_before_ms, most)
        self._forget_ended_ids(now_ms)
        self._db.execute(
            "DELETE FROM peer_token WHERE rowid IN (SELECT rowid FROM peer_token WHERE expires_at_s < ? LIMIT ?)",
            (dead_before_ms // 1000, most),
        )
        return [self._end(ParcelRow._make(row), End.EXPIRED, now_ms=now_ms) for row in rows]

    def dead(self, mailbox: str, *, after: int = 0, limit: int = 100) -> Sequence[DeadLetter]:
        rows = self._db.execute(
            """SELECT id, sender, kind, undone, msg_id, octets, attempt, accepted_at_ms, expires_at_ms, dead_at_ms,
                   dead_reason, last_code
               FROM parcel WHERE mailbox = ? AND dead_at_ms > 0 AND id > ? ORDER BY id LIMIT ?""",
            (mailbox, after, limit),
        )
        return [DeadLetter(**dict(zip(_DEAD, row, strict=True))) for row in rows]

    def redrive(self, mailbox: str, number: int, *, now_ms: int) -> bool:
        done = self._db.execute(
            """UPDATE parcel SET dead_at_ms = 0, attempt = 0, visible_at_ms = 0
               WHERE id = ? AND mailbox = ? AND dead_at_ms > 0 AND expires_at_ms > ?""",
            (number, mailbox, now_ms),
        )
        return done.rowcount == 1

    def trim(self, mailbox: str, *, dead: int, octets: int) -> int:
        rows = self._db.execute(
            "SELECT id, octets, sender FROM parcel WHERE mailbox = ? AND dead_at_ms > 0 ORDER BY id", (mailbox,)
        ).fetchall()
        excess = beyond(rows, dead, octets)
        self._db.executemany("DELETE FROM parcel WHERE id = ?", [(number,) for number in excess])
        return len(excess)

    def bury(self, *tombstones: TombstoneRecord) -> None:
        self._stones.bury(*tombstones)

    def tombstones(
        self, mailbox: str, *, sender: str | None = None, after: int = 0, limit: int = 100
    ) -> Sequence[TombstoneRecord]:
        return self._stones.tombstones(mailbox, sender=sender, after=after, limit=limit)

    def forgotten(self, mailbox: str, *, sender: str | None = None) -> int:
        return self._stones.forgotten(mailbox, sender=sender)

    # ── the senders' verdicts at the time ──────────────────────────────────────────────────────────────────────────

    def keep_token(self, sender: str, token: str, *, issued_at_s: int, expires_at_s: int) -> None:
        self._db.execute(
            "INSERT OR IGNORE INTO peer_token (sender, issued_at_s, expires_at_s, token) VALUES (?,?,?,?)",
            (sender, issued_at_s, expires_at_s, token),
        )

    def token_at(self, sender: str, at_s: int) -> str | None:
        row = self._db.execute(
            """SELECT token FROM peer_token WHERE sender = ? AND issued_at_s <= ? AND expires_at_s > ?
               ORDER BY issued_at_s DESC LIMIT 1""",
            (sender, at_s, at_s),
        ).fetchone()
        return row[0] if row else None
