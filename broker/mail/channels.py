"""Channels at the broker: batches from a judged sender into the queue of a mailbox or a topic, their bodies opaque.

Decides, before a batch is queued: that the channel is the sending agent's own and leads to that place, under a key that
is still good there; that the batch is signed by it and goes on exactly where the last one ended; that none of its
messages is from the future or lives too long; that the sender's labels are on each; and that the policy lets it send
every type with the labels that occur. A batch is taken whole or not at all, as one parcel. The same batch again is a
duplicate, which changes nothing; other messages under numbers that were used are a forgery.

A message that has expired does not stop its batch, since the numbers after it would wait for ever: who receives leaves
it out. An opening costs no decision of its own: it comes with the first batch, and is taken or refused with it. What
differs between a mailbox and a topic is decided in ways.py.
"""

import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache, partial
from typing import Final, final

from broker.audit import Audit, Entry
from broker.errors import BrokerCode, BrokerError
from broker.generation import Generation
from broker.mail.bell import Bell
from broker.mail.deadletters import DeadLetters
from broker.mail.edges import Edges, Owed
from broker.mail.labels import CLEARED, Labels, Ratchets, require
from broker.mail.routing import FULL_RETRY_S, SKEW_MS, belongs
from broker.mail.topics import TopicDesk
from broker.mail.vouchers import Vouchers
from broker.mail.ways import ToMailbox, Way
from broker.ports import Clock, Store, Transaction
from broker.ports.channels import ChannelRecord
from broker.ports.mail import NewMessage, Queued
from broker.reasons import Refusal
from broker.sessions import Session
from broker.wire.channel import MAX_OPENING_BODY, OPEN_TYPE, ChannelBatch, ChannelSend, FrameHeader, chain_start
from broker.wire.envelope import MAX_LIFE_MS, Envelope, Header
from broker.wire.errors import WireCode, WireError
from broker.wire.jose import p256_from_spki
from broker.wire.mailbox import SendStatus
from policies.model import Send

LIFE_MS: Final = 3600 * 1000 + SKEW_MS  # of a channel's key; its messages may live longer, and the opening with them
MAX_ENDS: Final = 64  # batches of a channel that a sender may send again
MAX_OPEN: Final = 64  # channels of one sender to one mailbox; one of which nothing is left there makes room
_END: Final = struct.Struct(">Q16s")  # a batch's last number, and half of the chain after it
_identity = lru_cache(4096)(p256_from_spki)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Opened:
    """An opening envelope that is the sender's own."""

    envelope: Envelope
    header: Header
    raw: bytes


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Checked:
    """A batch that may be queued if the channel stands where it begins."""

    batch: ChannelBatch
    message: NewMessage
    opening: _Opened | None
    way: Way
    needs: tuple[tuple[Labels, Labels], ...] = ()  # labels of messages, and which of the ratchet's may be missing
    entries: tuple[Owed, ...] = ()  # for the log, whatever becomes of the batch
    lowered: tuple[Entry, ...] = ()  # for the log when it is taken in
    refusal: Refusal | None = None


@final
class Channels:
    """Takes batches in."""

    def __init__(
        self,
        *,
        store: Store,
        audit: Audit,
        edges: Edges,
        generation: Generation,
        labels: Ratchets,
        vouchers: Vouchers,
        dead: DeadLetters,
        topics: TopicDesk,
        bell: Bell,
        clock: Clock,
    ) -> None:
        self._store = store
        self._audit = audit
        self._edges = edges
        self._generation = generation
        self._labels = labels
        self._vouchers = vouchers
        self._dead = dead
        self._topics = topics
        self._bell = bell
        self._clock = clock

    async def send(
        self, session: Session, name: str, sent: ChannelSend, *, topic: bool = False, correlation_id: str = ""
    ) -> SendStatus:
        """Queued, or a duplicate. `name` is a mailbox's, or a topic's.

        Raises WireError channel.*, envelope.*; BrokerError channel.*, mailbox.*, message.*, generation.moved; Refused.
        """
        return await self.submit(session, name, sent, topic=topic, correlation_id=correlation_id)()

    def submit(
        self, session: Session, name: str, sent: ChannelSend, *, topic: bool = False, correlation_id: str = ""
    ) -> Callable[[], Awaitable[SendStatus]]:
        """As `send`; everything that needs no transaction is done, and may raise, when this returns. What is returned
        does the rest, and may be dropped."""
        at = self._clock()
        way: Way = self._topics.way(name) if topic else ToMailbox(name, self._dead, self._bell)
        checked = self._check(session, name, sent, way, at, correlation_id)
        return partial(self._take, session, checked, at)

    async def _take(self, session: Session, checked: _Checked, at: datetime) -> SendStatus:
        generation, way = session.generation, checked.way  # as it was judged; the session's own may rise meanwhile
        await way.ready(at)
        voucher = self._vouchers.needed(session, checked.message.mailbox, at) if way.kind == "mailbox" else None

        def work(tx: Transaction) -> Refusal | SendStatus:
            self._generation.expect(tx, generation)
            self._vouchers.keep(tx, session, voucher, at)
            for entry in checked.entries:
                entry.pay(tx, self._audit)
            return checked.refusal or self._queue(tx, checked, at)

        outcome = await self._store.transact(work)
        self._vouchers.kept(session, voucher)
        if not isinstance(outcome, SendStatus):
            raise outcome
        if outcome is SendStatus.QUEUED:
            way.ring()
        return outcome

    # ── before the transaction ─────────────────────────────────────────────────────────────────────────────────────

    def _check(
        self, session: Session, name: str, sent: ChannelSend, way: Way, at: datetime, correlation_id: str
    ) -> _Checked:
        batch = ChannelBatch.from_bytes(sent.batch)
        opening = _opening(session, name, sent.opening, at) if sent.opening else None
        now_ms = int(at.timestamp() * 1000)
        kinds = batch.kinds()
        _timely(kinds, now_ms)
        batch.verify(_identity(session.verdict.identity_key))
        message = NewMessage(
            mailbox=name,
            sender=session.subject,
            msg_id=batch.msg_id,
            digest=batch.digest,
            envelope=sent.batch,
            key=b"",  # the channel's
            accepted_at_ms=now_ms,
            expires_at_ms=max(header.expires_at_ms for header in kinds),
            kind="batch",
            count=len(batch),
        )
        checked = _Checked(batch=batch, message=message, opening=opening, way=way)
        said = {(header.shape.type, header.shape.labels) for header in kinds}
        return self._permitted(session, checked, said, at, correlation_id)

    def _permitted(
        self,
        session: Session,
        checked: _Checked,
        kinds: set[tuple[str, tuple[str, ...]]],
        at: datetime,
        correlation_id: str,
    ) -> _Checked:
        """Ask once for each type with its labels; the first that is refused refuses the batch."""
        held = self._labels.of(session.subject)
        msg_id = checked.batch.msg_id
        needs, entries, lowered = [], [], []
        refusal: Refusal | None = None
        for kind, labels in kinds:
            action = Send(checked.message.mailbox, kind, frozenset(labels), checked.way.kind)
            answer = self._edges.ask(session, action, at, correlation_id=correlation_id)
            cleared = CLEARED
            if answer.permit is not None:
                cleared = self._labels.clear(session, action, held, at, msg_id=msg_id, correlation_id=correlation_id)
            entries += [entry for entry in (answer.entry, cleared.asked) if entry is not None]
            lowered += [cleared.lowered] if cleared.lowered is not None else []
            needs.append((action.labels, cleared.waived))
            refusal = refusal or answer.refusal or cleared.refusal
        return replace(checked, needs=tuple(needs), entries=tuple(entries), lowered=tuple(lowered), refusal=refusal)

    # ── inside it ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _queue(self, tx: Transaction, checked: _Checked, at: datetime) -> Refusal | SendStatus:
        batch, message, way = checked.batch, checked.message, checked.way
        found = tx.channels.get(batch.channel)
        record = found or _new_record(checked)
        if record is None:
            return BrokerError(BrokerCode.CHANNEL_UNKNOWN, batch.channel.hex())
        if (record.sender, record.mailbox) != (message.sender, way.address):
            return BrokerError(BrokerCode.CHANNEL_OWNER, f"{batch.channel.hex()} leads to {record.mailbox}")
        closed = way.closed(tx)
        if closed is not None:
            return closed
        placed = _place(record, batch)
        if placed is not None:
            return placed
        if not way.accepts(tx, record.key, record.incarnation):
            return BrokerError(BrokerCode.MAILBOX_KEY_STALE, record.mailbox)
        try:
            for labels, waived in checked.needs:
                require(tx, message.sender, labels, waived)
        except BrokerError as error:
            return error
        if found is None and not _room(tx, record, way):
            return BrokerError(BrokerCode.MAILBOX_FULL, f"channels to {record.mailbox}", retry_after_s=FULL_RETRY_S)
        if way.queue(tx, replace(message, key=record.key), at) is not Queued.QUEUED:
            return BrokerError(BrokerCode.MAILBOX_FULL, message.mailbox, retry_after_s=FULL_RETRY_S)
        for entry in checked.lowered:
            self._audit.append(tx, entry)
        after = _advanced(record, batch, until_ms=message.expires_at_ms)
        if found is None:
            tx.channels.open(after)
        else:
            tx.channels.advance(after)
        return SendStatus.QUEUED


def _opening(session: Session, mailbox: str, raw: bytes, at: datetime) -> _Opened:
    """Raises WireError envelope.*, channel.malformed; BrokerError message.*"""
    envelope = Envelope.from_bytes(raw)
    header = Header.from_bytes(envelope.header)
    if header.type != OPEN_TYPE or header.labels or len(envelope.body) > MAX_OPENING_BODY:
        raise WireError(WireCode.CHANNEL_MALFORMED, f"no opening: {header.type}, body of {len(envelope.body)} bytes")
    belongs(header, session, mailbox, at)
    envelope.verify(_identity(session.verdict.identity_key))
    return _Opened(envelope=envelope, header=header, raw=raw)


def _timely(headers: list[FrameHeader], now_ms: int) -> None:
    """Raises BrokerError message.expired for what is sent in the future, or lives too long."""
    if max(header.sent_at_ms for header in headers) > now_ms + SKEW_MS:
        raise BrokerError(BrokerCode.MESSAGE_EXPIRED, "a message that is sent in the future")
    if max(header.expires_at_ms for header in headers) > now_ms + MAX_LIFE_MS:
        raise BrokerError(BrokerCode.MESSAGE_EXPIRED, "a message that lives too long")


def _new_record(checked: _Checked) -> ChannelRecord | None:
    """A channel at its beginning, if its opening came along."""
    opened, message = checked.opening, checked.message
    if opened is None:
        return None
    return ChannelRecord(
        channel=checked.batch.channel,
        sender=message.sender,
        mailbox=checked.way.address,
        key=opened.header.mailbox_key,
        incarnation=opened.header.incarnation,
        highest=0,
        chain=chain_start(opened.envelope),
        ends=b"",
        accepted_at_ms=message.accepted_at_ms,
        until_ms=min(opened.header.expires_at_ms, message.accepted_at_ms + LIFE_MS),
        opening=opened.raw,
    )


def _room(tx: Transaction, record: ChannelRecord, way: Way) -> bool:
    """Whether the sender may have another channel there: openings are kept for an hour, and as long as messages are."""
    own = tx.channels.of(record.sender, record.mailbox)
    if len(own) < MAX_OPEN:
        return True
    busy = way.busy(tx, record.sender)
    idle = next((channel for channel in own if channel[:8] not in busy), None)
    if idle is None:
        return False
    tx.channels.drop(idle)
    return True


def _place(record: ChannelRecord, batch: ChannelBatch) -> Refusal | SendStatus | None:
    """None when the batch begins where the channel stands."""
    if batch.first_seq == record.highest + 1:
        if batch.prev_chain == record.chain:
            return None
        return BrokerError(BrokerCode.CHANNEL_FORKED, f"{batch.channel.hex()} at {batch.first_seq}: another history")
    if batch.first_seq > record.highest:
        detail = f"{batch.channel.hex()} at {batch.first_seq}, after {record.highest}"
        return BrokerError(BrokerCode.CHANNEL_GAP, detail, retry_after_s=FULL_RETRY_S)
    if (batch.last_seq, batch.chain[:16]) in _END.iter_unpack(record.ends):
        return SendStatus.DUPLICATE
    return BrokerError(BrokerCode.CHANNEL_FORKED, f"{batch.channel.hex()} at {batch.first_seq}: numbers used before")


def _advanced(record: ChannelRecord, batch: ChannelBatch, *, until_ms: int) -> ChannelRecord:
    ends = record.ends + _END.pack(batch.last_seq, batch.chain[:16])
    return replace(
        record,
        highest=batch.last_seq,
        chain=batch.chain,
        ends=ends[-MAX_ENDS * _END.size :],
        until_ms=max(record.until_ms, until_ms),
    )
