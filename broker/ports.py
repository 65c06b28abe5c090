"""What is kept, as Protocols: every store that implements them passes the same contract tests.

Decides the unit of work. A use-case hands the store a function over a `Transaction`; all of it happens or none, and
when `transact` returns it is durable. A `before_commit` hook sees the transaction last, which is where the log gets its
signed head. Queries run on what is committed. What the rows mean is decided by the use-cases.

Times are integers: `_s` seconds, `_ms` milliseconds since 1970.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol, TypeVar, final

T = TypeVar("T")
MAX_KEYS = 4  # epochs of a mailbox to which senders may still seal
Clock = Callable[[], datetime]  # aware, UTC


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
class MailboxRecord:
    """An open mailbox: its owner and the owner's signed key (JSON)."""

    name: str
    owner: str
    key: bytes  # thumbprint
    incarnation: bytes
    epoch: int
    statement: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class NewMessage:
    """An envelope to be queued. `digest` names its exact bytes."""

    mailbox: str
    sender: str
    msg_id: bytes
    digest: bytes
    envelope: bytes
    key: bytes  # thumbprint of the mailbox key it is sealed to
    accepted_at_ms: int
    expires_at_ms: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LeasedMessage:
    """A queued envelope in the hands of its receiver until the lease ends."""

    sender: str
    envelope: bytes
    accepted_at_ms: int
    attempt: int
    lease: str


class Queued(StrEnum):
    QUEUED = "queued"
    DUPLICATE = "duplicate"
    ID_REUSED = "id_reused"
    FULL = "full"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """How much a mailbox holds."""

    messages: int = 10_000
    octets: int = 64 << 20


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


class Archive(Protocol):
    """Blobs by their digest: evidence and collateral, so that every decision can be judged again."""

    def put(self, *blobs: tuple[bytes, bytes]) -> None:
        """Digest and blob each; one that is there stays."""

    def get(self, digest: bytes) -> bytes | None: ...


class Secrets(Protocol):
    def put(self, record: SecretRecord) -> None: ...
    def get(self, name: str, version: int | None = None) -> SecretRecord | None:
        """That version; without one the newest, destroyed or not."""

    def page(self, *, tenant: str | None = None, after: str = "", limit: int = 100) -> Sequence[SecretRecord]:
        """Every version of the next `limit` names, in order of name and version, without keys and ciphertexts."""

    def destroy(self, name: str, version: int | None = None) -> int:
        """Wipe keys and ciphertexts of one version or all; returns how many there were."""


class Mail(Protocol):
    def open(self, record: MailboxRecord) -> None:
        """Make or replace. Messages sealed to another incarnation's keys can never be read: they are dropped."""

    def find(self, name: str) -> MailboxRecord | None: ...
    def accepts(self, name: str, key: bytes) -> bool:
        """Whether that thumbprint is one of the mailbox's newest MAX_KEYS keys of its present incarnation."""

    def queue(self, message: NewMessage, quota: Quota) -> Queued: ...
    def senders(self, mailbox: str) -> Sequence[str]:
        """Whose messages wait there, in no order."""

    def lease(
        self, mailbox: str, *, now_ms: int, until_ms: int, leases: Sequence[str], max_attempts: int
    ) -> Sequence[LeasedMessage]:
        """The oldest visible messages, at most one for each of the fresh tokens in `leases`.

        Messages of senders that are not `admitted` are held back. Expired messages, and those handed out `max_attempts`
        times, are dropped on the way.
        """

    def acknowledge(self, mailbox: str, lease: str, *, now_ms: int) -> bool:
        """Remove; False when the lease has ended or is unknown."""

    def give_back(self, mailbox: str, lease: str, *, now_ms: int, visible_at_ms: int) -> bool: ...
    def waiting(self, mailbox: str) -> int:
        """How many messages it holds, leased ones too."""

    def next_seq(self, mailbox: str, sender: str) -> int:
        """One more than the number of messages ever taken in from this sender."""


class Log(Protocol):
    def size(self) -> int: ...
    def append(self, *, at_ms: int, kind: str, subject: str, entry: bytes) -> int:
        """The entry's index. Its hashes are kept by `put_nodes`."""

    def put_nodes(self, *nodes: tuple[int, int, bytes]) -> None:
        """Level, index and hash each."""

    def node(self, level: int, index: int) -> bytes | None: ...
    def entry(self, index: int) -> LogRow | None: ...
    def page(self, *, start: int, limit: int, kind: str | None = None, subject: str | None = None) -> Sequence[LogRow]:
        """From index `start` upwards."""

    def newest(self, *, kind: str, limit: int) -> Sequence[LogRow]:
        """Newest first."""

    def head(self) -> LogHead | None: ...
    def set_head(self, head: LogHead) -> None: ...


class Marks(Protocol):
    """Small values that decide about security, each under a MAC. Raises BrokerError store.row_forged when it fails."""

    def get(self, name: str) -> str | None: ...
    def put(self, name: str, value: str) -> None: ...
    def under(self, prefix: str) -> dict[str, str]:
        """Every mark whose name begins so, without the prefix, in order."""


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
