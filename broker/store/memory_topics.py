"""Topics and checkpoints of the store in memory; the same contract as sql_topics.py, row by row."""

import hmac
from collections.abc import Sequence
from dataclasses import replace
from typing import final

from broker.ports.mail import NO_LIMIT, Queued, Quota
from broker.ports.topics import BEHIND_MS, MAX_PAGE, TopicMessage, TopicReader
from broker.store.shares import Load, first_of, has_room, let_go
from broker.store.undo import Table, Undo


@final
class MemoryTopics:
    def __init__(self, undo: Undo) -> None:
        self._messages: Table[int, TopicMessage] = Table(undo)
        self._readers: Table[tuple[str, str], TopicReader] = Table(undo)
        self._next = 0

    def _of(self, topic: str) -> list[TopicMessage]:
        return [self._messages.rows[number] for number in sorted(self._messages.rows) if self._in(number, topic)]

    def _in(self, number: int, topic: str) -> bool:
        return self._messages.rows[number].topic == topic

    def publish(self, message: TopicMessage, quota: Quota) -> Queued:
        for known in self._of(message.topic):
            if (known.sender, known.msg_id) == (message.sender, message.msg_id):
                same = hmac.compare_digest(known.digest, message.digest)
                return Queued.DUPLICATE if same else Queued.ID_REUSED
        if self._full(message, quota):
            self._prune(message.topic, message.accepted_at_ms)
            if self._full(message, quota) and not self._make_room(message, quota):
                return Queued.FULL
        self._next += 1
        self._messages.put(self._next, replace(message, number=self._next))
        return Queued.QUEUED

    def _full(self, message: TopicMessage, quota: Quota) -> bool:
        waiting = self._of(message.topic)
        own = [one for one in waiting if one.sender == message.sender]
        return not has_room(quota, held=_load(waiting), own=_load(own), more=_load([message]))

    def _prune(self, topic: str, now_ms: int) -> None:
        done = min((reader.place for reader in self.readers(topic)), default=self._next)
        for message in self._of(topic):
            if message.expires_at_ms <= now_ms or message.number <= done:
                self._messages.drop(message.number)

    def _make_room(self, message: TopicMessage, quota: Quota) -> bool:
        oldest_ms = message.accepted_at_ms - BEHIND_MS
        timely = [reader.place for reader in self.readers(message.topic) if not self._behind(reader, oldest_ms)]
        counts = {one.number: one.count for one in self._of(message.topic)}
        rows = [(one.number, _load([one]), one.sender) for one in self._of(message.topic)]
        up_to = min(timely, default=self._next)
        gone = let_go(quota, rows, message.sender, _load([message]), up_to=up_to)
        for number in gone or ():
            self._messages.drop(number)
        for reader in self.readers(message.topic) if gone else ():
            missed = reader.missed + sum(counts[number] for number in gone or () if number > reader.place)
            self._readers.put((reader.topic, reader.subject), replace(reader, missed=missed))
        return gone is not None

    def _behind(self, reader: TopicReader, oldest_ms: int) -> bool:
        first = next((one for one in self._of(reader.topic) if one.number > reader.place), None)
        return first is not None and first.accepted_at_ms <= oldest_ms

    def join(self, reader: TopicReader) -> TopicReader:
        known = self._readers.get((reader.topic, reader.subject))
        if known is None:
            known = replace(reader, place=self._next)
            self._readers.put((reader.topic, reader.subject), known)
        return known

    def reader(self, topic: str, subject: str) -> TopicReader | None:
        return self._readers.get((topic, subject))

    def readers(self, topic: str) -> Sequence[TopicReader]:
        return [self._readers.rows[key] for key in sorted(self._readers.rows) if key[0] == topic]

    def of(self, subject: str) -> Sequence[str]:
        return sorted(topic for topic, reader in self._readers.rows if reader == subject)

    def leave(self, topic: str, subject: str) -> bool:
        return self._readers.drop((topic, subject))

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
        alive = (one for one in self._of(topic) if one.number > after and one.expires_at_ms > now_ms)
        return first_of(alive, limit=limit, most=Load(messages, octets))

    def drop(self, topic: str, number: int) -> bool:
        found = self._messages.get(number)
        if found is None or found.topic != topic:
            return False
        for reader in self.readers(topic):
            if reader.place < number:
                missed = reader.missed + found.count
                self._readers.put((topic, reader.subject), replace(reader, missed=missed))
        return self._messages.drop(number)

    def advance(self, topic: str, subject: str, place: int) -> bool:
        known = self._readers.get((topic, subject))
        if known is None:
            return False
        self._readers.put((topic, subject), replace(known, place=max(known.place, min(place, self._next))))
        return True

    def keys(self, topic: str) -> frozenset[bytes]:
        return frozenset(message.key for message in self._of(topic))

    def channels(self, topic: str, sender: str) -> frozenset[bytes]:
        return frozenset(one.msg_id[:8] for one in self._of(topic) if (one.sender, one.kind) == (sender, "batch"))

    def expire(self, *, now_ms: int) -> int:
        ended = [number for number, message in self._messages.rows.items() if message.expires_at_ms <= now_ms]
        for number in ended:
            self._messages.drop(number)
        return len(ended)


def _load(messages: Sequence[TopicMessage]) -> Load:
    return Load(sum(one.count for one in messages), sum(len(one.envelope) for one in messages))


@final
class MemoryStates:
    def __init__(self, undo: Undo) -> None:
        self._rows: Table[str, bytes] = Table(undo)

    def put(self, mailbox: str, sealed: bytes) -> None:
        self._rows.put(mailbox, sealed)

    def get(self, mailbox: str) -> bytes:
        return self._rows.get(mailbox) or b""

    def drop(self, mailbox: str) -> None:
        self._rows.drop(mailbox)
