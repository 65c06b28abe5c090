"""The queries about topics and checkpoints of the SQLite store."""

import hmac
import sqlite3
from collections.abc import Sequence
from typing import Any, Final, final

from broker.ports.mail import NO_LIMIT, Queued, Quota
from broker.ports.topics import BEHIND_MS, MAX_PAGE, TopicMessage, TopicReader
from broker.store.shares import Load, first_of, has_room, let_go

_EVERYTHING: Final = 2**63 - 1
_READERS: Final = "SELECT topic, subject, place, epoch, joined_at_ms, missed FROM topic_reader WHERE topic = ?"


def _message(row: Sequence[Any]) -> TopicMessage:
    return TopicMessage(
        number=row[0],
        topic=row[1],
        sender=row[2],
        msg_id=row[3],
        digest=row[4],
        key=row[5],
        accepted_at_ms=row[6],
        expires_at_ms=row[7],
        kind=row[8],
        count=_count(row[9]),
        envelope=row[10] if isinstance(row[10], bytes) else b"",
    )


def _count(value: Any) -> int:
    """A row that somebody has been at may hold anything, and is found out where it is looked into."""
    return value if isinstance(value, int) and value > 0 else 1


def _reader(row: Sequence[Any]) -> TopicReader:
    return TopicReader(topic=row[0], subject=row[1], place=row[2], epoch=row[3], joined_at_ms=row[4], missed=row[5])


def _load(message: TopicMessage) -> Load:
    return Load(message.count, len(message.envelope))


@final
class SqlTopics:
    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def publish(self, message: TopicMessage, quota: Quota) -> Queued:
        m = message
        row = self._db.execute(
            "SELECT digest FROM topic_message WHERE topic = ? AND sender = ? AND msg_id = ?",
            (m.topic, m.sender, m.msg_id),
        ).fetchone()
        if row is not None:
            return Queued.DUPLICATE if hmac.compare_digest(row[0], m.digest) else Queued.ID_REUSED
        if self._full(m, quota):
            self._prune(m.topic, m.accepted_at_ms)
            if self._full(m, quota) and not self._make_room(m, quota):
                return Queued.FULL
        self._db.execute(
            """INSERT INTO topic_message
               (topic, sender, msg_id, digest, key, accepted_at_ms, expires_at_ms, kind, count, envelope)
               VALUES (?,?,?,?,?,?,?,?,?,?)""",
            (
                *(m.topic, m.sender, m.msg_id, m.digest, m.key),
                *(m.accepted_at_ms, m.expires_at_ms, m.kind, m.count, m.envelope),
            ),
        )
        return Queued.QUEUED

    def _full(self, m: TopicMessage, quota: Quota) -> bool:
        row = self._db.execute(
            """SELECT coalesce(sum(messages), 0), coalesce(sum(octets), 0), coalesce(sum(messages) FILTER
               (WHERE sender = ?), 0), coalesce(sum(octets) FILTER (WHERE sender = ?), 0)
               FROM topic_lane WHERE topic = ?""",
            (m.sender, m.sender, m.topic),
        ).fetchone()
        return not has_room(quota, held=Load(*row[:2]), own=Load(*row[2:]), more=_load(m))

    def _make_room(self, m: TopicMessage, quota: Quota) -> bool:
        timely = self._db.execute(
            """SELECT min(place) FROM topic_reader AS r WHERE topic = ? AND coalesce((SELECT accepted_at_ms
               FROM topic_message AS m WHERE m.topic = r.topic AND m.id > r.place ORDER BY id LIMIT 1), ?) > ?""",
            (m.topic, m.accepted_at_ms, m.accepted_at_ms - BEHIND_MS),
        ).fetchone()[0]
        found = self._db.execute(
            "SELECT id, count, length(envelope), sender FROM topic_message WHERE topic = ? ORDER BY id", (m.topic,)
        )
        rows = [(row[0], Load(row[1], row[2]), row[3]) for row in found]
        gone = let_go(quota, rows, m.sender, _load(m), up_to=_EVERYTHING if timely is None else timely)
        counts = {number: load.messages for number, load, _ in rows}
        missed = [(counts[number], m.topic, number) for number in gone or ()]
        self._db.executemany("UPDATE topic_reader SET missed = missed + ? WHERE topic = ? AND place < ?", missed)
        self._db.executemany("DELETE FROM topic_message WHERE id = ?", [(number,) for number in gone or ()])
        return gone is not None

    def _prune(self, topic: str, now_ms: int) -> None:
        self._db.execute(
            """DELETE FROM topic_message WHERE topic = ? AND (expires_at_ms <= ? OR id <= coalesce(
               (SELECT min(place) FROM topic_reader WHERE topic = ?), ?))""",
            (topic, now_ms, topic, _EVERYTHING),
        )

    def _newest(self) -> int:
        """Behind everything of any topic: numbers are the store's, and none comes twice."""
        row = self._db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'topic_message'").fetchone()
        return int(row[0]) if row else 0

    def join(self, reader: TopicReader) -> TopicReader:
        self._db.execute(
            """INSERT OR IGNORE INTO topic_reader (topic, subject, place, epoch, joined_at_ms) VALUES (?,?,?,?,?)""",
            (reader.topic, reader.subject, self._newest(), reader.epoch, reader.joined_at_ms),
        )
        found = self.reader(reader.topic, reader.subject)
        assert found is not None
        return found

    def reader(self, topic: str, subject: str) -> TopicReader | None:
        row = self._db.execute(f"{_READERS} AND subject = ?", (topic, subject)).fetchone()
        return _reader(row) if row else None

    def readers(self, topic: str) -> Sequence[TopicReader]:
        rows = self._db.execute(f"{_READERS} ORDER BY subject", (topic,))
        return [_reader(row) for row in rows]

    def of(self, subject: str) -> Sequence[str]:
        rows = self._db.execute("SELECT topic FROM topic_reader WHERE subject = ? ORDER BY topic", (subject,))
        return [row[0] for row in rows]

    def leave(self, topic: str, subject: str) -> bool:
        done = self._db.execute("DELETE FROM topic_reader WHERE topic = ? AND subject = ?", (topic, subject))
        return done.rowcount == 1

    def page(
        self,
        topic: str,
        *,
        after: int,
        now_ms: int,
        limit: int = MAX_PAGE,
        messages: int = NO_LIMIT,
        octets: int = NO_LIMIT,
    ) -> Sequence[TopicMessage]:
        rows = self._db.execute(
            """SELECT id, topic, sender, msg_id, digest, key, accepted_at_ms, expires_at_ms, kind, count, envelope
               FROM topic_message WHERE topic = ? AND id > ? AND expires_at_ms > ? ORDER BY id LIMIT ?""",
            (topic, after, now_ms, limit),
        )
        return first_of(map(_message, rows), limit=limit, most=Load(messages, octets))

    def drop(self, topic: str, number: int) -> bool:
        row = self._db.execute("SELECT count FROM topic_message WHERE id = ? AND topic = ?", (number, topic)).fetchone()
        if row is None:
            return False
        self._db.execute(
            "UPDATE topic_reader SET missed = missed + ? WHERE topic = ? AND place < ?", (_count(row[0]), topic, number)
        )
        self._db.execute("DELETE FROM topic_message WHERE id = ?", (number,))
        return True

    def advance(self, topic: str, subject: str, place: int) -> bool:
        done = self._db.execute(
            "UPDATE topic_reader SET place = max(place, min(?, ?)) WHERE topic = ? AND subject = ?",
            (place, self._newest(), topic, subject),
        )
        return done.rowcount == 1

    def keys(self, topic: str) -> frozenset[bytes]:
        rows = self._db.execute("SELECT DISTINCT key FROM topic_message WHERE topic = ?", (topic,))
        return frozenset(row[0] for row in rows)

    def channels(self, topic: str, sender: str) -> frozenset[bytes]:
        rows = self._db.execute(
            """SELECT DISTINCT substr(msg_id, 1, 8) FROM topic_message
               WHERE topic = ? AND sender = ? AND kind = 'batch'""",
            (topic, sender),
        )
        return frozenset(bytes(row[0]) for row in rows)

    def expire(self, *, now_ms: int) -> int:
        return self._db.execute("DELETE FROM topic_message WHERE expires_at_ms <= ?", (now_ms,)).rowcount


@final
class SqlStates:
    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def put(self, mailbox: str, sealed: bytes) -> None:
        self._db.execute("INSERT OR REPLACE INTO reader_state VALUES (?, ?)", (mailbox, sealed))

    def get(self, mailbox: str) -> bytes:
        row = self._db.execute("SELECT sealed FROM reader_state WHERE mailbox = ?", (mailbox,)).fetchone()
        return row[0] if row else b""

    def drop(self, mailbox: str) -> None:
        self._db.execute("DELETE FROM reader_state WHERE mailbox = ?", (mailbox,))
