"""The store in memory: for tests and for brokers whose life is one demonstration. Nothing survives the process.

Decides nothing that the SQLite store does not; both pass the same contract tests. A unit of work that fails is undone
by taking back its steps in reverse order.
"""

import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar, final

from broker.ports import DAY_S, AgentRecord, AgentState, LogHead, LogRow, SecretRecord, Transaction
from broker.store.memory_blobs import MemoryBlobs
from broker.store.memory_channels import MemoryChannels
from broker.store.memory_mail import MemoryMail
from broker.store.memory_releases import MemoryReleases
from broker.store.memory_svids import MemorySvids
from broker.store.memory_topics import MemoryStates, MemoryTopics
from broker.store.rows import element, head_of
from broker.store.undo import Table, Undo

T = TypeVar("T")


@final
class _Nonces:
    def __init__(self, undo: Undo) -> None:
        self._rows: Table[bytes, int] = Table(undo)

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
        self._rows: Table[str, AgentRecord] = Table(undo)

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

    def counts(self) -> Mapping[str, int]:
        return Counter(str(record.state) for record in self._rows.rows.values())

    def silent(
        self, *, state: AgentState, before_s: int, after: tuple[int, str] = (0, ""), limit: int
    ) -> Sequence[AgentRecord]:
        found = [r for r in self._rows.rows.values() if r.state is state and r.expires_at_s < before_s]
        found.sort(key=lambda r: (r.expires_at_s, r.subject))
        return [r for r in found if (r.expires_at_s, r.subject) > after][:limit]

    def drop(self, subject: str) -> None:
        self._rows.drop(subject)

    def fallen(self, *, live_at_s: int, limit: int) -> Sequence[str]:
        down = (AgentState.QUARANTINED, AgentState.REVOKED)
        return [r.subject for r in self._sorted() if r.state in down and r.expires_at_s > live_at_s][:limit]


@final
class _Archive:
    def __init__(self, undo: Undo) -> None:
        self._rows: Table[bytes, tuple[bytes, int]] = Table(undo)

    def put(self, *blobs: tuple[bytes, bytes], at_s: int) -> None:
        for digest, blob in blobs:
            known = self._rows.get(digest)
            if known is None or at_s > known[1] + DAY_S:
                self._rows.put(digest, (blob, at_s))

    def touch(self, digests: Sequence[bytes], *, at_s: int) -> None:
        for digest in digests:
            if known := self._rows.get(digest):
                self._rows.put(digest, (known[0], at_s))

    def prune(self, *, before_s: int) -> int:
        old = [digest for digest, (_, used_at_s) in self._rows.rows.items() if used_at_s < before_s]
        return sum(self._rows.drop(digest) for digest in old)

    def get(self, digest: bytes) -> bytes | None:
        known = self._rows.get(digest)
        return known[0] if known else None


@final
class _Secrets:
    def __init__(self, undo: Undo) -> None:
        self._rows: Table[tuple[str, int], SecretRecord] = Table(undo)

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

    def discard(self, name: str, *, before: int | None = None) -> int:
        rows = [row for row in self._rows.rows.values() if row.name == name and row.destroyed]
        chosen = [row.version for row in rows if before is None or row.version < before]
        for version in chosen:
            self._rows.drop((name, version))
        return len(chosen)


@final
class _Log:
    def __init__(self, undo: Undo) -> None:
        self._rows: Table[int, LogRow] = Table(undo)
        self._nodes: Table[tuple[int, int], bytes] = Table(undo)
        self._heads: Table[int, LogHead] = Table(undo)

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

    def page(
        self,
        *,
        start: int,
        limit: int,
        before: int | None = None,
        kind: str | None = None,
        subject: str | None = None,
    ) -> Sequence[LogRow]:
        found: list[LogRow] = []
        for index in range(start, self.size() if before is None else min(before, self.size())):
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
        self._rows: Table[str, str] = Table(undo)
        self._key = secrets.token_bytes(32)

    def get(self, name: str) -> str | None:
        return self._rows.get(name)

    def under(self, prefix: str) -> dict[str, str]:
        rows = self._rows.rows
        return {name.removeprefix(prefix): rows[name] for name in sorted(rows) if name.startswith(prefix)}

    def put(self, name: str, value: str) -> None:
        self._rows.put(name, value)

    def drop(self, name: str) -> None:
        self._rows.drop(name)

    def head(self) -> bytes:
        total = 0
        for name, value in self._rows.rows.items():
            total ^= element(self._key, name, value)
        return head_of(self._key, total)


@final
class _Tables:
    def __init__(self, undo: Undo) -> None:
        self.nonces = _Nonces(undo)
        self.agents = _Agents(undo)
        self.archive = _Archive(undo)
        self.secrets = _Secrets(undo)
        self.mail = MemoryMail(undo, self._admitted)
        self.blobs = MemoryBlobs(undo)
        self.channels = MemoryChannels(undo)
        self.svids = MemorySvids(undo, self.agents.get)
        self.releases = MemoryReleases(undo, self.agents.get)
        self.topics = MemoryTopics(undo)
        self.states = MemoryStates(undo)
        self.log = _Log(undo)
        self.marks = _Marks(undo)

    def _admitted(self, subject: str) -> bool:
        agent = self.agents.get(subject)
        return agent is not None and agent.state is AgentState.ADMITTED


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
