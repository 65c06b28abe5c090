"""The store in memory: for tests and for brokers whose life is one demonstration. Nothing survives the process.

Decides nothing that the SQLite store does not; both pass the same contract tests. A unit of work that fails is undone
by taking back its steps in reverse order.
"""

import hmac
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Generic, TypeVar, final

from broker.ports import (
    MAX_KEYS,
    AgentRecord,
    AgentState,
    LeasedMessage,
    LogHead,
    LogRow,
    MailboxRecord,
    NewMessage,
    Queued,
    Quota,
    SecretRecord,
    Transaction,
)

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")
REMEMBER_MS: Final = 24 * 3600 * 1000

Undo = list[Callable[[], object]]


class _Table(Generic[K, V]):
    """A dict whose changes can be taken back."""

    def __init__(self, undo: Undo) -> None:
        self.rows: dict[K, V] = {}
        self._undo = undo

    def get(self, key: K) -> V | None:
        return self.rows.get(key)

    def put(self, key: K, value: V) -> None:
        old = self.rows.get(key)
        self._undo.append((lambda: self.rows.pop(key)) if old is None else (lambda: self.rows.__setitem__(key, old)))
        self.rows[key] = value

    def drop(self, key: K) -> bool:
        old = self.rows.pop(key, None)
        if old is not None:
            self._undo.append(lambda: self.rows.__setitem__(key, old))
        return old is not None


@final
class _Nonces:
    def __init__(self, undo: Undo) -> None:
        self._rows: _Table[bytes, int] = _Table(undo)

    def consume(self, nonce: bytes, *, expires_at_s: int, now_s: int) -> bool:
        for old in [key for key, end in self._rows.rows.items() if end < now_s]:
            self._rows.drop(old)
        if self._rows.get(nonce) is not None:
            return False
        self._rows.put(nonce, expires_at_s)
        return True


@final
class _Agents:
    def __init__(self, undo: Undo) -> None:
        self._rows: _Table[str, AgentRecord] = _Table(undo)

    def get(self, subject: str) -> AgentRecord | None:
        return self._rows.get(subject)

    def put(self, record: AgentRecord) -> None:
        self._rows.put(record.subject, record)

    def _sorted(self) -> Iterator[AgentRecord]:
        return (self._rows.rows[subject] for subject in sorted(self._rows.rows))

    def page(self, *, tenant: str | None = None, after: str = "", limit: int = 100) -> Sequence[AgentRecord]:
        found = [r for r in self._sorted() if r.subject > after and tenant in (None, r.tenant)]
        return found[:limit]

    def stale(self, *, generation: int, live_at_s: int, limit: int) -> Sequence[AgentRecord]:
        found = [
            r
            for r in self._sorted()
            if r.state is AgentState.ADMITTED and r.expires_at_s > live_at_s and r.generation < generation
        ]
        return found[:limit]


@final
class _Archive:
    def __init__(self, undo: Undo) -> None:
        self._rows: _Table[bytes, bytes] = _Table(undo)

    def put(self, *blobs: tuple[bytes, bytes]) -> None:
        for digest, blob in blobs:
            if self._rows.get(digest) is None:
                self._rows.put(digest, blob)

    def get(self, digest: bytes) -> bytes | None:
        return self._rows.get(digest)


@final
class _Secrets:
    def __init__(self, undo: Undo) -> None:
        self._rows: _Table[tuple[str, int], SecretRecord] = _Table(undo)

    def put(self, record: SecretRecord) -> None:
        self._rows.put((record.name, record.version), record)

    def get(self, name: str, version: int | None = None) -> SecretRecord | None:
        found = [r for r in self._rows.rows.values() if r.name == name and version in (None, r.version)]
        return max(found, key=lambda r: r.version, default=None)

    def page(self, *, tenant: str | None = None, after: str = "", limit: int = 100) -> Sequence[SecretRecord]:
        names = sorted({n for n, _ in self._rows.rows if n > after and (tenant is None or n.startswith(f"{tenant}/"))})
        chosen = set(names[:limit])
        return [
            replace(row, wrapped_key=row.wrapped_key and b"\0", ciphertext=b"")
            for key, row in sorted(self._rows.rows.items())
            if key[0] in chosen
        ]

    def destroy(self, name: str, version: int | None = None) -> int:
        chosen = [
            row
            for row in self._rows.rows.values()
            if row.name == name and version in (None, row.version) and not row.destroyed
        ]
        for row in chosen:
            self.put(replace(row, wrapped_key=b"", ciphertext=b""))
        return len(chosen)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Message:
    new: NewMessage
    visible_at_ms: int
    attempt: int = 0
    lease: str | None = None


@final
class _Mail:
    def __init__(self, undo: Undo, agents: _Agents) -> None:
        self._boxes: _Table[str, MailboxRecord] = _Table(undo)
        self._keys: _Table[str, tuple[tuple[bytes, bytes], ...]] = _Table(undo)  # (key, incarnation), newest first
        self._messages: _Table[int, _Message] = _Table(undo)
        self._seen: _Table[tuple[str, str, bytes], tuple[bytes, int]] = _Table(undo)
        self._edges: _Table[tuple[str, str], int] = _Table(undo)
        self._agents = agents
        self._next = 0

    def open(self, record: MailboxRecord) -> None:
        self._boxes.put(record.name, record)
        pair = (record.key, record.incarnation)
        older = (old for old in self._keys.get(record.name) or () if old[1] == record.incarnation and old != pair)
        self._keys.put(record.name, (pair, *older)[:MAX_KEYS])
        for number, message in self._of(record.name):
            if not self.accepts(record.name, message.new.key):
                self._messages.drop(number)

    def accepts(self, name: str, key: bytes) -> bool:
        return any(key == known for known, _ in self._keys.get(name) or ())

    def find(self, name: str) -> MailboxRecord | None:
        return self._boxes.get(name)

    def _of(self, mailbox: str) -> list[tuple[int, _Message]]:
        return [(number, m) for number, m in self._messages.rows.items() if m.new.mailbox == mailbox]

    def queue(self, message: NewMessage, quota: Quota) -> Queued:
        for old in [key for key, (_, until) in self._seen.rows.items() if until < message.accepted_at_ms]:
            self._seen.drop(old)
        key = (message.mailbox, message.sender, message.msg_id)
        if (seen := self._seen.get(key)) is not None:
            return Queued.DUPLICATE if hmac.compare_digest(seen[0], message.digest) else Queued.ID_REUSED
        waiting = [m for _, m in self._of(message.mailbox) if m.new.expires_at_ms > message.accepted_at_ms]
        octets = sum(len(m.new.envelope) for m in waiting) + len(message.envelope)
        if len(waiting) >= quota.messages or octets > quota.octets:
            return Queued.FULL
        until = max(message.expires_at_ms, message.accepted_at_ms + REMEMBER_MS)
        self._seen.put(key, (message.digest, until))
        self._next += 1
        self._messages.put(self._next, _Message(new=message, visible_at_ms=message.accepted_at_ms))
        edge = (message.mailbox, message.sender)
        self._edges.put(edge, (self._edges.get(edge) or 0) + 1)
        return Queued.QUEUED

    def senders(self, mailbox: str) -> Sequence[str]:
        return list({m.new.sender for _, m in self._of(mailbox)})

    def lease(
        self, mailbox: str, *, now_ms: int, until_ms: int, leases: Sequence[str], max_attempts: int
    ) -> Sequence[LeasedMessage]:
        taken: list[LeasedMessage] = []
        for number, m in sorted(self._of(mailbox), key=lambda item: item[0]):
            if m.visible_at_ms > now_ms:
                continue
            if m.new.expires_at_ms <= now_ms or m.attempt >= max_attempts:
                self._messages.drop(number)
                continue
            sender = self._agents.get(m.new.sender)
            if len(taken) == len(leases) or sender is None or sender.state is not AgentState.ADMITTED:
                continue
            lease = leases[len(taken)]
            leased = replace(m, lease=lease, visible_at_ms=until_ms, attempt=m.attempt + 1)
            self._messages.put(number, leased)
            taken.append(
                LeasedMessage(
                    sender=m.new.sender,
                    envelope=m.new.envelope,
                    accepted_at_ms=m.new.accepted_at_ms,
                    attempt=leased.attempt,
                    lease=lease,
                )
            )
        return taken

    def _leased(self, mailbox: str, lease: str, now_ms: int) -> tuple[int, _Message] | None:
        found = [(n, m) for n, m in self._of(mailbox) if m.lease == lease and m.visible_at_ms > now_ms]
        return found[0] if found else None

    def acknowledge(self, mailbox: str, lease: str, *, now_ms: int) -> bool:
        found = self._leased(mailbox, lease, now_ms)
        return found is not None and self._messages.drop(found[0])

    def give_back(self, mailbox: str, lease: str, *, now_ms: int, visible_at_ms: int) -> bool:
        found = self._leased(mailbox, lease, now_ms)
        if found is None:
            return False
        self._messages.put(found[0], replace(found[1], lease=None, visible_at_ms=visible_at_ms))
        return True

    def waiting(self, mailbox: str) -> int:
        return len(self._of(mailbox))

    def next_seq(self, mailbox: str, sender: str) -> int:
        return (self._edges.get((mailbox, sender)) or 0) + 1


@final
class _Log:
    def __init__(self, undo: Undo) -> None:
        self._rows: _Table[int, LogRow] = _Table(undo)
        self._nodes: _Table[tuple[int, int], bytes] = _Table(undo)
        self._heads: _Table[int, LogHead] = _Table(undo)

    def size(self) -> int:
        return len(self._rows.rows)

    def append(self, *, at_ms: int, kind: str, subject: str, entry: bytes) -> int:
        index = self.size()
        self._rows.put(index, LogRow(index=index, at_ms=at_ms, kind=kind, subject=subject, entry=entry))
        return index

    def put_nodes(self, *nodes: tuple[int, int, bytes]) -> None:
        for level, index, digest in nodes:
            self._nodes.put((level, index), digest)

    def node(self, level: int, index: int) -> bytes | None:
        return self._nodes.get((level, index))

    def entry(self, index: int) -> LogRow | None:
        return self._rows.get(index)

    def page(self, *, start: int, limit: int, kind: str | None = None, subject: str | None = None) -> Sequence[LogRow]:
        found: list[LogRow] = []
        for index in range(start, self.size()):
            row = self._rows.rows[index]
            if kind in (None, row.kind) and subject in (None, row.subject):
                found.append(row)
                if len(found) == limit:
                    break
        return found

    def newest(self, *, kind: str, limit: int) -> Sequence[LogRow]:
        return [row for row in reversed(self._rows.rows.values()) if row.kind == kind][:limit]

    def head(self) -> LogHead | None:
        return self._heads.get(1)

    def set_head(self, head: LogHead) -> None:
        self._heads.put(1, head)


@final
class _Marks:
    def __init__(self, undo: Undo) -> None:
        self._rows: _Table[str, str] = _Table(undo)

    def get(self, name: str) -> str | None:
        return self._rows.get(name)

    def under(self, prefix: str) -> dict[str, str]:
        rows = self._rows.rows
        return {name.removeprefix(prefix): rows[name] for name in sorted(rows) if name.startswith(prefix)}

    def put(self, name: str, value: str) -> None:
        self._rows.put(name, value)


@final
class _Tables:
    def __init__(self, undo: Undo) -> None:
        self.nonces = _Nonces(undo)
        self.agents = _Agents(undo)
        self.archive = _Archive(undo)
        self.secrets = _Secrets(undo)
        self.mail = _Mail(undo, self.agents)
        self.log = _Log(undo)
        self.marks = _Marks(undo)


@final
class MemoryStore:
    """A `Store` that forgets everything with the process."""

    def __init__(self) -> None:
        self._undo: Undo = []
        self._tables = _Tables(self._undo)
        self._hooks: list[Callable[[Transaction], None]] = []
        self._after: list[Callable[[], None]] = []

    def before_commit(self, hook: Callable[[Transaction], None]) -> None:
        self._hooks.append(hook)

    def after_commit(self, hook: Callable[[], None]) -> None:
        self._after.append(hook)

    async def transact(self, work: Callable[[Transaction], T]) -> T:
        self._undo.clear()
        try:
            done = work(self._tables)
            for hook in self._hooks:
                hook(self._tables)
        except BaseException:
            self._take_back()
            raise
        for after in self._after:
            after()
        return done

    def _take_back(self) -> None:
        steps: list[Any] = list(self._undo)
        for step in reversed(steps):
            step()
        self._undo.clear()

    def read(self, query: Callable[[Transaction], T]) -> T:
        return query(self._tables)

    def close(self) -> None:
        """Nothing to let go of."""
