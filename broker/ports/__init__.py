"""What is kept, as Protocols: every store that implements them passes the same contract tests.

Decides the unit of work. A use-case hands the store a function over a `Transaction`; all of it happens or none, and
when `transact` returns it is durable. A `before_commit` hook sees the transaction last, which is where the log gets its
signed head. Queries run on what is committed. What the rows mean is decided by the use-cases.

Times are integers: `_s` seconds, `_ms` milliseconds since 1970.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final, Protocol, TypeVar, final

from broker.ports.channels import ChannelRows
from broker.ports.mail import Blobs, Mail
from broker.ports.releases import Releases
from broker.ports.svids import Svids as Svids
from broker.ports.topics import States, Topics

T = TypeVar("T")
Clock = Callable[[], datetime]  # aware, UTC
DAY_S: Final = 86_400


class AgentState(StrEnum):
    """What an agent may do: everything its policy permits, nothing until it passes again, nothing ever again."""

    ADMITTED = "admitted"
    QUARANTINED = "quarantined"
    REVOKED = "revoked"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class AgentRecord:
    """An agent as last judged. `facts` is JSON for people to read; no decision is taken from it."""

    subject: str
    tenant: str
    jkt: str
    state: AgentState
    codes: tuple[str, ...]  # why it is quarantined or revoked
    evidence: bytes  # digest of the archived evidence
    collateral: str  # hex digest of the collateral it was judged by
    generation: int
    admitted_at_s: int
    judged_at_s: int
    expires_at_s: int  # of the last token
    simulated: bool
    tcb_status: str
    facts: str = "{}"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SecretRecord:
    """One version of a secret, encrypted. A destroyed one has neither key nor ciphertext."""

    name: str
    version: int
    labels: tuple[str, ...]
    created_at_s: int
    wrapped_key: bytes = field(repr=False)
    ciphertext: bytes = field(repr=False)

    @property
    def destroyed(self) -> bool:
        return not self.wrapped_key


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LogRow:
    """One entry of the log with what it is found by."""

    index: int
    at_ms: int
    kind: str
    subject: str
    entry: bytes


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LogHead:
    """The newest signed checkpoint."""

    size: int
    note: str


class Nonces(Protocol):
    def consume(self, nonce: bytes, *, expires_at_s: int, now_s: int) -> bool:
        """True once for a nonce until it expires. Forgets those that have."""


class Agents(Protocol):
    def get(self, subject: str) -> AgentRecord | None: ...
    def put(self, record: AgentRecord) -> None: ...
    def page(self, *, tenant: str | None = None, after: str = "", limit: int = 100) -> Sequence[AgentRecord]:
        """In order of subject."""

    def stale(self, *, generation: int, live_at_s: int, limit: int) -> Sequence[AgentRecord]:
        """Admitted agents with an unexpired token that were last judged before this generation."""

    def counts(self) -> Mapping[str, int]:
        """How many there are in each state that anybody is in; no row is read for it."""

    def silent(
        self, *, state: AgentState, before_s: int, after: tuple[int, str] = (0, ""), limit: int
    ) -> Sequence[AgentRecord]:
        """Agents in that state whose last token ended before, in order of its end and of subject, behind `after`."""

    def drop(self, subject: str) -> None: ...
    def fallen(self, *, live_at_s: int, limit: int) -> Sequence[str]:
        """Subjects of quarantined and revoked agents whose token had not expired then, in order."""


class Archive(Protocol):
    """Blobs by their digest: evidence and collateral, so that every decision can be judged again."""

    def put(self, *blobs: tuple[bytes, bytes], at_s: int) -> None:
        """Digest and blob each; of one that is there, the time of use is brought up to the day."""

    def touch(self, digests: Sequence[bytes], *, at_s: int) -> None:
        """They are used now. Unknown ones are skipped."""

    def prune(self, *, before_s: int) -> int:
        """Drop what was last used before; how many."""

    def get(self, digest: bytes) -> bytes | None: ...


class Secrets(Protocol):
    def put(self, record: SecretRecord) -> None: ...
    def get(self, name: str, version: int | None = None) -> SecretRecord | None:
        """That version; without one the newest, destroyed or not."""

    def page(self, *, tenant: str | None = None, after: str = "", limit: int = 100) -> Sequence[SecretRecord]:
        """Every version of the next `limit` names, in order of name and version, without keys and ciphertexts."""

    def destroy(self, name: str, version: int | None = None) -> int:
        """Wipe keys and ciphertexts of one version or all; returns how many there were."""

    def discard(self, name: str, *, before: int | None = None) -> int:
        """Drop destroyed versions, those below `before` where it is given; how many there were."""


class Log(Protocol):
    def size(self) -> int: ...
    def append(self, *, at_ms: int, kind: str, subject: str, entry: bytes) -> int:
        """The entry's index. Its hashes are kept by `put_nodes`."""

    def put_nodes(self, *nodes: tuple[int, int, bytes]) -> None:
        """Level, index and hash each."""

    def node(self, level: int, index: int) -> bytes | None: ...
    def entry(self, index: int) -> LogRow | None: ...
    def page(
        self,
        *,
        start: int,
        limit: int,
        before: int | None = None,
        kind: str | None = None,
        subject: str | None = None,
    ) -> Sequence[LogRow]:
        """From index `start` upwards, those below `before` where it is given."""

    def newest(self, *, kind: str, limit: int) -> Sequence[LogRow]:
        """Newest first."""

    def head(self) -> LogHead | None: ...
    def set_head(self, head: LogHead) -> None: ...


class Marks(Protocol):
    """Small values that decide about security, each under a MAC. Raises BrokerError store.row_forged when it fails."""

    def get(self, name: str) -> str | None: ...
    def put(self, name: str, value: str) -> None: ...
    def drop(self, name: str) -> None:
        """Forget it; nothing happens when there is none."""

    def under(self, prefix: str) -> dict[str, str]:
        """Every mark whose name begins so, without the prefix, in order."""

    def head(self) -> bytes:
        """32 bytes that stand for all of them: the same rows, the same head."""


class Transaction(Protocol):
    @property
    def nonces(self) -> Nonces: ...
    @property
    def agents(self) -> Agents: ...
    @property
    def archive(self) -> Archive: ...
    @property
    def secrets(self) -> Secrets: ...
    @property
    def mail(self) -> Mail: ...
    @property
    def blobs(self) -> Blobs: ...
    @property
    def channels(self) -> ChannelRows: ...
    @property
    def svids(self) -> Svids: ...
    @property
    def releases(self) -> Releases: ...
    @property
    def topics(self) -> Topics: ...
    @property
    def states(self) -> States: ...
    @property
    def log(self) -> Log: ...
    @property
    def marks(self) -> Marks: ...


class Readable(Protocol):
    def read(self, query: Callable[[Transaction], T]) -> T:
        """Run a query on what is committed."""


class Store(Protocol):
    def before_commit(self, hook: Callable[[Transaction], None]) -> None:
        """Run `hook` at the end of every transaction, or of every group of them, inside it."""

    def after_commit(self, hook: Callable[[], None]) -> None:
        """Run `hook` when what `before_commit` saw last has become durable, before anybody hears of it."""

    async def transact(self, work: Callable[[Transaction], T]) -> T:
        """Run `work` alone; durable on return. What it raises undoes it and comes back unchanged.

        `work` must not wait for anything and must not keep the transaction. It may be run again from the start, after
        a first run was undone, so it changes nothing but the transaction. Raises BrokerError store.unavailable.
        """

    def read(self, query: Callable[[Transaction], T]) -> T:
        """Run a query on what is committed."""

    def close(self) -> None:
        """Finish what was begun, then let go."""
