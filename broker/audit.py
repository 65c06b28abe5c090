"""The audit log: what an entry says, that it is durable before its effect, and how anybody can check it later.

Decides the form of entries and the moment of signing: a checkpoint closes every group of transactions that added
entries, inside the same commit, so no entry is ever durable without a signed head over it. Which events are worth an
entry is the use-cases' decision. Entries hold names, digests and codes, never values.
"""

import asyncio
import base64
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, TypeVar, final

import orjson
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broker import tree
from broker.errors import BrokerCode, BrokerError
from broker.ports import LogHead, LogRow, Readable, Store, Transaction
from broker.wire.log import EMPTY_ROOT, Checkpoint, Receipt, leaf_hash, raw_log_key

T = TypeVar("T")
TILE: Final = 256  # hashes or entries in a full tile (C2SP tlog-tiles)
TILE_HEIGHT: Final = 8
CACHED_NODES: Final = 65_536
CHECKED_AT_START: Final = 4096  # entries
SALT_LEN: Final = 16
PAGE: Final = 1000  # entries that are read at once
STEP: Final = 512  # entries that a search looks at before others have their turn
MAX_SEARCHED: Final = 16 * STEP  # by one search


class Kind(StrEnum):
    """What happened. Public and stable: add, never rename or reuse."""

    ADMIN_PROPOSED = "admin.proposed"
    ARCHIVE_PRUNED = "archive.pruned"
    BROKER_STARTED = "broker.started"
    BROKER_ATTESTED = "broker.attested"
    EARLY_WARNING = "collateral.early_warning"
    GENERATION_CHANGED = "generation.changed"
    AGENT_ADMITTED = "agent.admitted"
    AGENT_REFUSED = "agent.refused"
    AGENT_QUARANTINED = "agent.quarantined"
    AGENT_RESTORED = "agent.restored"
    AGENT_REVOKED = "agent.revoked"
    AGENTS_RETIRED = "agents.retired"
    GUEST_ADMITTED = "guest.admitted"  # over the KBS protocol
    GUEST_REFUSED = "guest.refused"
    SECRET_RELEASED = "secret.released"
    SECRET_REFUSED = "secret.refused"
    SECRET_PUT = "secret.put"
    SECRET_DESTROYED = "secret.destroyed"
    KEY_DERIVED = "key.derived"
    KEY_REFUSED = "key.refused"
    LEASE_ENDED = "lease.ended"
    MAILBOX_OPENED = "mailbox.opened"
    MAILBOX_REFUSED = "mailbox.refused"
    MAIL_DIED = "mail.died"
    MAIL_DROPPED = "mail.dropped"
    MAIL_REDRIVEN = "mail.redriven"
    EDGE_PERMITTED = "edge.permitted"
    EDGE_REFUSED = "edge.refused"
    KEYS_MADE = "keys.made"
    KEYS_RELEASED = "keys.released"
    KEYS_ROTATED = "keys.rotated"
    LABELS_RAISED = "labels.raised"
    LABELS_LOWERED = "labels.lowered"
    TOKEN_ISSUED = "token.issued"
    TOKEN_REFUSED = "token.refused"
    VERIFICATION_DONE = "verification.done"
    SVID_ISSUED = "svid.issued"
    AUTHORITY_DRAWN = "authority.drawn"
    REFUSALS_COUNTED = "refusals.counted"
    ROOT_REWRAPPED = "root.rewrapped"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One event. `codes` are empty when it went well; digests are hex; `more` holds small extra facts."""

    kind: Kind
    at: datetime
    subject: str = ""
    tenant: str = ""
    resource: str = ""
    codes: tuple[str, ...] = ()
    policy: str = ""
    evidence: str = ""
    collateral: str = ""
    permit: str = ""
    generation: int = 0
    correlation_id: str = ""
    more: Mapping[str, str | int | list[str]] = field(default_factory=dict)

    @property
    def at_ms(self) -> int:
        return int(self.at.timestamp() * 1000)

    def to_bytes(self) -> bytes:
        """Compact JSON, members sorted, empty ones left out. The salt keeps a leaf's hash from telling its entry."""
        members: dict[str, Any] = {
            "v": 1,
            "salt": base64.b64encode(secrets.token_bytes(SALT_LEN)).decode("ascii"),
            "at_ms": self.at_ms,
            "kind": self.kind,
            "subject": self.subject,
            "tenant": self.tenant,
            "resource": self.resource,
            "codes": list(self.codes),
            "policy": self.policy,
            "evidence": self.evidence,
            "collateral": self.collateral,
            "permit": self.permit,
            "generation": self.generation,
            "correlation_id": self.correlation_id,
            **self.more,
        }
        told = {name: value for name, value in members.items() if value}
        return orjson.dumps(told, option=orjson.OPT_SORT_KEYS)


@final
class Audit:
    """Appends entries through the store and answers for them. `key` signs the checkpoints.

    The newest durable head and recent nodes are kept in memory, so that a receipt costs no query. What was written is
    kept aside until its commit: a node of an index below a durable head is always the one that was committed last.
    """

    def __init__(self, store: Store, *, key: Ed25519PrivateKey, origin: str) -> None:
        self._store = store
        self._key = key
        self.log_key: Final[bytes] = raw_log_key(key.public_key())
        self.origin: Final[str] = origin
        self._nodes: dict[tuple[int, int], bytes] = {}
        self._keeping = threading.Lock()
        self._head: LogHead | None = store.read(lambda tx: tx.log.head())
        self._written: dict[tuple[int, int], bytes] = {}  # in the group that is being committed
        self._signed: LogHead | None = self._head
        self._rows: bytes = Checkpoint.parse(self._head.note).rows if self._head else b""
        self._signed_rows: bytes = self._rows
        self._spans: tuple[int, tree.Spans] = 0, {}  # of the tree of that size
        store.before_commit(self._sign_head)
        store.after_commit(self._committed)

    async def record(self, entry: Entry, work: Callable[[Transaction], T]) -> tuple[T, Receipt]:
        """Do `work` and append the entry, both or neither; the receipt exists when both are durable.

        Raises what `work` raises, and BrokerError store.unavailable; then there is no entry.
        """

        def unit(tx: Transaction) -> tuple[T, int, bytes]:
            done = work(tx)
            index, raw = self.append(tx, entry)
            return done, index, raw

        done, index, raw = await self._store.transact(unit)
        return done, self.receipt(index, raw)

    def append(self, tx: Transaction, entry: Entry) -> tuple[int, bytes]:
        """Add the entry to the log inside a transaction; its index and exact bytes. Nodes follow with the head."""
        raw = entry.to_bytes()
        index = tx.log.append(at_ms=entry.at_ms, kind=entry.kind, subject=entry.subject, entry=raw)
        tree.grow(raw, index, self._writing(tx), self._put)
        return index, raw

    def _put(self, level: int, index: int, digest: bytes) -> None:
        self._written[level, index] = digest

    def _writing(self, tx: Transaction) -> tree.GetNode:
        """Nodes inside a transaction. Those of a run that was undone are written anew before anybody asks for them."""
        stored = _getter(tx)

        def get(level: int, index: int) -> bytes:
            found = self._written.get((level, index)) or self._nodes.get((level, index))
            return found or stored(level, index)

        return get

    def _sign_head(self, tx: Transaction) -> None:
        head, size, rows = self._head, tx.log.size(), tx.marks.head()
        if (head is None and size) or (head is not None and (head.size, self._rows) != (size, rows)):
            # A unit that was undone may have left nodes behind; what took its place has written over those within.
            found = self._written.items()
            tx.log.put_nodes(*[(level, at, node) for (level, at), node in found if (at + 1) << level <= size])
            root = tree.root(size, self._writing(tx))
            signed = Checkpoint.sign(self.origin, size, root, self._key, rows=rows)
            head = LogHead(size=size, note=signed.note)
            tx.log.set_head(head)
        self._signed, self._signed_rows = head, rows

    def _committed(self) -> None:
        written, self._written = self._written, {}
        self._keep(written)
        self._head, self._rows = self._signed, self._signed_rows

    def _keep(self, nodes: Mapping[tuple[int, int], bytes]) -> None:
        """The older half goes when there are too many. Called by the store's thread and by readers."""
        with self._keeping:
            if len(self._nodes) + len(nodes) > CACHED_NODES:
                self._nodes = dict(list(self._nodes.items())[CACHED_NODES // 2 :])
            self._nodes.update(nodes)

    def check_head(self) -> None:
        """At start: the stored tree has the root that its checkpoint was signed for, and nothing beyond it.

        Raises BrokerError log.tampered; WireError log.malformed, log.signature_invalid.
        """
        head, size = self._store.read(lambda tx: (tx.log.head(), tx.log.size()))
        if head is None and size == 0:
            return
        checkpoint = Checkpoint.open(head.note if head else "", self.log_key)
        found = self._store.read(lambda tx: tree.root(size, _getter(tx)))
        if (size, found) != (checkpoint.size, checkpoint.root):
            raise BrokerError(BrokerCode.LOG_TAMPERED, f"{size} entries, checkpoint of {checkpoint.size}")
        self._check_tail(size)

    def _check_tail(self, size: int) -> None:
        """The newest entries are those that were hashed. All of them are for `audit verify`, which takes its time."""
        start = max(0, size - CHECKED_AT_START)

        def check(tx: Transaction) -> None:
            for row in tx.log.page(start=start, limit=CHECKED_AT_START):
                if tx.log.node(0, row.index) != leaf_hash(row.entry):
                    raise BrokerError(BrokerCode.LOG_TAMPERED, f"entry {row.index} is not the one that was written")

        self._store.read(check)

    # ── what readers ask ───────────────────────────────────────────────────────────────────────────────────────────

    def head(self) -> LogHead:
        """The newest durable checkpoint; an empty log has one too."""
        return self._head or LogHead(size=0, note=Checkpoint.sign(self.origin, 0, EMPTY_ROOT, self._key).note)

    def receipt(self, index: int, entry: bytes) -> Receipt:
        """Proof that the entry stands at `index` of the newest checkpoint. Raises BrokerError log.entry_unknown."""
        head = self._head
        if head is None or not 0 <= index < head.size:
            raise BrokerError(BrokerCode.LOG_ENTRY_UNKNOWN, f"entry {index}")
        size, known = self._spans
        if size != head.size:
            _, known = self._spans = head.size, {}
        proof = tree.inclusion(index, head.size, self._node, known)
        return Receipt(index=index, entry=entry, proof=proof, checkpoint=head.note)

    def prove(self, index: int) -> Receipt:
        """Raises BrokerError log.entry_unknown."""
        return self.receipt(index, self.entry(index).entry)

    def entry(self, index: int) -> LogRow:
        """Raises BrokerError log.entry_unknown, for whatever number somebody asks."""
        row = self._store.read(lambda tx: tx.log.entry(index)) if 0 <= index < self.head().size else None
        if row is None:
            raise BrokerError(BrokerCode.LOG_ENTRY_UNKNOWN, f"entry {index}")
        return row

    def page(self, *, start: int, limit: int, kind: str | None = None, subject: str | None = None) -> Sequence[LogRow]:
        """Entries from index `start` upwards."""
        return self._store.read(lambda tx: tx.log.page(start=start, limit=limit, kind=kind, subject=subject))

    async def search(
        self,
        fits: Callable[[LogRow], bool],
        *,
        start: int,
        limit: int,
        kind: str | None = None,
        subject: str | None = None,
    ) -> tuple[list[LogRow], int | None]:
        """Entries that fit, and the index to go on from, None behind the last.

        One search looks at MAX_SEARCHED entries, so it may end before it has found as many as are wanted.
        """
        size = self.head().size
        at, end = start, min(size, start + MAX_SEARCHED)
        found: list[LogRow] = []
        while at < end and len(found) < limit:
            before, most = min(end, at + STEP), limit - len(found)
            rows = [row for row in self._between(at, before, kind, subject) if fits(row)]
            found += rows[:most]
            at = found[-1].index + 1 if len(rows) >= most else before
            await asyncio.sleep(0)  # others have their turn
        return found, at if at < size else None

    def _between(self, start: int, before: int, kind: str | None, subject: str | None) -> Sequence[LogRow]:
        most = before - start
        return self._store.read(
            lambda tx: tx.log.page(start=start, before=before, limit=most, kind=kind, subject=subject)
        )

    def newest(self, *, kind: str, limit: int) -> Sequence[LogRow]:
        """The newest entries of a kind, newest first."""
        return self._store.read(lambda tx: tx.log.newest(kind=kind, limit=limit))

    def consistency(self, old: int, size: int) -> tuple[bytes, ...]:
        """That the first `old` entries begin the first `size`. Raises BrokerError log.entry_unknown."""
        head = self.head()
        if not 0 < old <= size <= head.size:
            raise BrokerError(BrokerCode.LOG_ENTRY_UNKNOWN, f"sizes {old} and {size} in a log of {head.size}")
        return tree.consistency(old, size, self._node)

    def tile(self, level: int, index: int) -> bytes:
        """Up to 256 hashes of level 8·`level`, as far as the newest checkpoint covers them: tlog-tiles' `tile/L/N`.

        Raises BrokerError log.entry_unknown for a tile that is empty.
        """
        at, end = level * TILE_HEIGHT, 0
        if 0 <= level < 8 and index >= 0:
            end = min((index + 1) * TILE, self.head().size >> at)
        found = b"".join(self._node(at, number) for number in range(index * TILE, end))
        if not found:
            raise BrokerError(BrokerCode.LOG_ENTRY_UNKNOWN, f"tile {level}/{index}")
        return found

    def _node(self, level: int, index: int) -> bytes:
        """A committed node, which never changes any more."""
        found = self._nodes.get((level, index))
        if found is None:
            found = self._store.read(lambda tx: _getter(tx)(level, index))
            self._keep({(level, index): found})
        return found


def check_rows(tx: Transaction) -> None:
    """At start, before anything is written: the rows that decide about security are those of the newest checkpoint.

    A checkpoint from before there was such a line says nothing about them. Raises BrokerError store.rows_changed,
    store.row_forged; WireError log.malformed.
    """
    head = tx.log.head()
    signed = Checkpoint.parse(head.note).rows if head else b""
    if signed and signed != tx.marks.head():
        raise BrokerError(BrokerCode.STORE_ROWS, "security rows were removed, put back or set to earlier values")


def sign_again(tx: Transaction, key: Ed25519PrivateKey) -> None:
    """Bring the newest checkpoint up to date with the rows, where no `Audit` is there yet to do it."""
    head = tx.log.head()
    if head is not None:
        old = Checkpoint.parse(head.note)
        signed = Checkpoint.sign(old.origin, old.size, old.root, key, rows=tx.marks.head())
        tx.log.set_head(LogHead(size=old.size, note=signed.note))


def _getter(tx: Transaction) -> tree.GetNode:
    def get(level: int, index: int) -> bytes:
        found = tx.log.node(level, index)
        if found is None:
            raise BrokerError(BrokerCode.LOG_TAMPERED, f"node {level}/{index} is missing")
        return found

    return get


def rows(store: Readable) -> Iterator[LogRow]:
    """Every entry, read page by page."""
    start = 0
    while found := _page(store, start):
        yield from found
        start = found[-1].index + 1


def _page(store: Readable, start: int) -> Sequence[LogRow]:
    return store.read(lambda tx: tx.log.page(start=start, limit=PAGE))


def verify_store(store: Readable, log_key: bytes) -> Checkpoint:
    """Recompute the whole tree from the stored entries and compare it with the signed head.

    The public key is all it takes. Raises BrokerError log.tampered; WireError log.malformed, log.signature_invalid.
    """
    head = store.read(lambda tx: tx.log.head())
    if head is None:
        raise BrokerError(BrokerCode.LOG_TAMPERED, "no checkpoint")
    checkpoint = Checkpoint.open(head.note, log_key)
    found = recompute((row.index, _covered(row)) for row in rows(store))
    if found != (checkpoint.size, checkpoint.root):
        raise BrokerError(BrokerCode.LOG_TAMPERED, f"{found[0]} entries do not give the root of {checkpoint.size}")
    return checkpoint


def _covered(row: LogRow) -> bytes:
    """The entry, of which the tree has the hash; what the row is found by must say the same.

    Raises BrokerError log.tampered.
    """
    try:
        told = orjson.loads(row.entry)
        same = (told.get("at_ms", 0), told["kind"], told.get("subject", "")) == (row.at_ms, row.kind, row.subject)
    except (ValueError, KeyError, AttributeError):
        same = False
    if not same:
        raise BrokerError(BrokerCode.LOG_TAMPERED, f"row {row.index} says other than its entry")
    return row.entry


def recompute(entries: Iterable[tuple[int, bytes]]) -> tuple[int, bytes]:
    """Number and root hash of entries that come in order, in constant memory.

    Raises BrokerError log.tampered for a gap.
    """
    peaks: dict[tuple[int, int], bytes] = {}  # the complete subtrees that no larger one has swallowed

    def put(level: int, index: int, digest: bytes) -> None:
        peaks[level, index] = digest
        if level:
            del peaks[level - 1, 2 * index], peaks[level - 1, 2 * index + 1]

    size = 0
    for index, entry in entries:
        if index != size:
            raise BrokerError(BrokerCode.LOG_TAMPERED, f"entry {size} is missing")
        tree.grow(entry, index, lambda level, at: peaks[level, at], put)
        size += 1
    return size, tree.root(size, lambda level, at: peaks[level, at])
