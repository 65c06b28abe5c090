"""What was delivered on a stream and is not settled: opened once, settled when the last message of a parcel is.

Decides, without a socket: what of a delivery is handed out (what can be proved, and was not handed out before), under
which lease it is settled (the newest, when a parcel came again), and what the broker is told: done, done but for some,
again later, longer, never. What cannot be proved becomes a dead letter, with the code as its reason. When a connection
is lost the leases end, but what is being handled stays in hand: the same parcel under a new lease finds it here. Where
there are checkpoints (`keeps`), nothing is called done before one says so (`kept`).
"""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple, final

from attestation.errors import CloisterError
from attestation.verdict import Verdict
from broker.wire import stream_pb2 as pb
from broker.wire.channel import ChannelBatch, channel_of, frame_id
from broker.wire.envelope import Envelope, Header
from broker.wire.leases import CODE, MAX_LEASE_S
from broker.wire.mailbox import Delivery
from enclave.channel import ReceivingChannels
from enclave.errors import Code, EnvelopeRefused
from enclave.mailbox import Inbox
from enclave.openings import Openings
from enclave.session import Broker

log: Final = logging.getLogger("cloister.agent")
RETRY_S: Final = 5  # and twice as long each further time: there are only so many attempts
MAX_REJECTED: Final = 4096  # that are remembered until they come alone
# Not the message's fault: it may be opened when it comes again.
PASSING: Final = frozenset(
    {
        *("token.expired", "agent.not_running", str(Code.CHANNEL_OUTSTANDING)),
        *(str(Code.STANDING_UNKNOWN), str(Code.PEER_FALLEN)),
    }
)
MAX_CODE: Final = 128
PUT_OFF_S: Final = 60.0  # how long what is behind a batch that was put off waits for it
MAX_PUT_OFF: Final = 1024
MAX_TOKENS: Final = 4096  # of senders; beyond, those that came long ago are forgotten
TOKEN_S: Final = 600.0  # which is longer than any of them lives
_Key = tuple[bytes, int]
_new: Final = tuple.__new__  # a named tuple's own constructor takes three times as long


@final
@dataclass(slots=True, kw_only=True)
class _Entry:
    """A parcel in hand."""

    lease: str
    until_s: float
    size: int  # messages that the parcel holds
    credit: int  # what it took of this connection's
    pending: set[int]
    again: set[int] = field(default_factory=set)
    delay_s: int = 0
    code: str = ""
    rejected: str = ""


class Incoming(NamedTuple):
    """A message that was proved and opened. `done`, `again` or `reject` of the stream must be told about it once.

    `sender` is the subject, `verdict` what the broker proved of it; `key` and `seq` are the ledger's. A tuple, because
    thousands are made each second.
    """

    msg_id: bytes
    type: str
    labels: frozenset[str]
    in_reply_to: bytes
    reply_to: str
    sender: str
    verdict: Verdict
    plaintext: bytes
    attempt: int
    key: tuple[bytes, int]
    seq: int

    def __repr__(self) -> str:
        return f"Incoming({self.type!r} from {self.sender}, {len(self.plaintext)} bytes)"


@final
class Ledger:
    """The deliveries of one mailbox."""

    def __init__(
        self,
        inbox: Inbox,
        channels: ReceivingChannels,
        *,
        lease_s: int,
        keeps: bool = False,
        passing: frozenset[str] = PASSING,
    ) -> None:
        self._inbox = inbox
        self._channels = channels
        self._lease_s = lease_s
        self._passing = passing
        self._entries: dict[_Key, _Entry] = {}
        self._headers: dict[_Key, Header] = {}
        self._senders: dict[str, str] = {}
        self._told_s: dict[str, float] = {}  # when each of their tokens came, oldest first
        self._put_off: OrderedDict[bytes, tuple[int, float]] = OrderedDict()  # channel → first number, and until when
        self._rejected: dict[tuple[_Key, int], str] = {}
        self._openings = Openings()
        self._settles: list[pb.Settle] = []
        self._credit = 0
        self._keeps = keeps
        self._unkept: deque[tuple[int, pb.Settle, int]] = deque()  # numbered, with what each is worth
        self._number = 0
        self.skipped = 0  # messages of channels that never came

    def delivered(self, message: pb.FromBroker | pb.TopicNews, broker: Broker, now_s: float) -> Iterator[Incoming]:
        """What of it is to be handled now, in order."""
        self._learn(message.senders, now_s)
        self._openings.retry(lambda opening: self._admit(opening, broker), now_s)
        for opening in message.openings:
            if not self._admit(opening, broker):
                self._openings.keep(opening, now_s)
        for parcel in message.parcels:
            senders = self._senders
            opened = self._batch if parcel.kind == "batch" else self._envelope
            try:
                yield from opened(parcel, senders, broker, now_s)
            except CloisterError as error:
                self._refused(parcel, str(error.code), now_s)

    def _learn(self, senders: Mapping[str, str], now_s: float) -> None:
        self._senders.update(senders)
        for subject in senders:
            self._told_s.pop(subject, None)
            self._told_s[subject] = now_s
        while len(self._told_s) > MAX_TOKENS and self._told_s[oldest := next(iter(self._told_s))] < now_s - TOKEN_S:
            del self._told_s[oldest], self._senders[oldest]

    def _admit(self, opening: pb.StreamOpening, broker: Broker) -> bool:
        """Whether the opening has been judged; one that cannot be yet is tried again with the next delivery."""
        try:
            delivery = Delivery(
                envelope=Envelope.from_bytes(opening.envelope),
                lease="",
                attempt=1,
                accepted_at_ms=opening.accepted_at_ms,
                acceptance=opening.acceptance,
                sender_token=opening.sender_token,
            )
            self._channels.admit(delivery, self._senders, broker)
        except CloisterError as error:
            log.warning("channel refused: %s", error.code)  # and then everything that comes on it
            return str(error.code) not in self._passing
        return True

    def _batch(self, parcel: pb.Parcel, senders: Mapping[str, str], broker: Broker, now_s: float) -> Iterator[Incoming]:
        self._in_turn(parcel, now_s)
        opened = self._channels.open(
            parcel.content,
            parcel.accepted_at_ms,
            parcel.acceptance,
            senders,
            broker,
            past=parcel.sender_token,
            remaining=frozenset(parcel.remaining),
        )
        if opened.skipped is not None:
            self.skipped += opened.skipped[1] - opened.skipped[0] + 1
            log.warning("messages %d to %d of a channel never came", *opened.skipped)
        key = (opened.channel, opened.first_seq)
        fresh = {frame.seq for frame in opened.frames}
        self._take(key, parcel, fresh, now_s, settled=opened.settled)
        withheld = self._withhold(key, fresh)
        attempt, channel, before = parcel.attempt, opened.channel, None
        for kind, seq, plaintext, sender in opened.frames:
            if seq in withheld:
                continue
            if kind is not before:  # most messages of a batch say the same of themselves
                before, shape, who = kind, kind.shape, sender.subject
                type_, labels, answers, reply_to = shape.type, shape.label_set, shape.in_reply_to, shape.reply_to
            msg_id = frame_id(channel, seq)
            said = (msg_id, type_, labels, answers, reply_to, who, sender, plaintext, attempt, key, seq)
            yield _new(Incoming, said)

    def _in_turn(self, parcel: pb.Parcel, now_s: float) -> None:
        """What was put off comes before what is behind it. Raises EnvelopeRefused channel.outstanding."""
        channel = channel_of(parcel.content)
        if channel not in self._put_off:
            return
        waits_for, until_s = self._put_off[channel]
        first = ChannelBatch.from_bytes(parcel.content).first_seq
        if first > waits_for and now_s < until_s:
            raise EnvelopeRefused(Code.CHANNEL_OUTSTANDING, f"{first} of {channel.hex()}, before {waits_for}")
        if first >= waits_for:
            del self._put_off[channel]

    def _put_it_off(self, parcel: pb.Parcel, now_s: float) -> None:
        batch = ChannelBatch.from_bytes(parcel.content)
        if batch.channel in self._put_off and batch.first_seq > self._put_off[batch.channel][0]:
            return  # it is one that waits
        self._put_off[batch.channel] = batch.first_seq, now_s + PUT_OFF_S
        if len(self._put_off) > MAX_PUT_OFF:
            self._put_off.popitem(last=False)

    def _envelope(
        self, parcel: pb.Parcel, senders: Mapping[str, str], broker: Broker, now_s: float
    ) -> Iterator[Incoming]:
        delivery = Delivery(
            envelope=Envelope.from_bytes(parcel.content),
            lease=parcel.lease,
            attempt=parcel.attempt,
            accepted_at_ms=parcel.accepted_at_ms,
            acceptance=parcel.acceptance,
            sender_token=parcel.sender_token,
        )
        key = (delivery.envelope.digest, 0)
        if key in self._entries:
            self._take(key, parcel, set(), now_s, settled=False)
            return
        opened = self._inbox.open(delivery, senders, broker)
        header = opened.header
        self._headers[key] = header
        self._take(key, parcel, {0}, now_s, settled=False)
        yield Incoming(
            msg_id=header.msg_id,
            type=header.type,
            labels=frozenset(header.labels),
            in_reply_to=header.in_reply_to,
            reply_to=header.reply_to,
            sender=opened.sender.subject,
            verdict=opened.sender,
            plaintext=opened.plaintext,
            attempt=parcel.attempt,
            key=key,
            seq=0,
        )

    def _take(self, key: _Key, parcel: pb.Parcel, fresh: set[int], now_s: float, *, settled: bool) -> None:
        """Note the parcel's newest lease; what is over already is acknowledged."""
        until_s = now_s + self._lease_s
        entry = self._entries.get(key)
        if entry is not None:
            entry.lease, entry.until_s, entry.size = parcel.lease, until_s, parcel.messages
            entry.credit += parcel.messages
            entry.pending |= fresh
        elif settled or not fresh:
            self._tell(pb.Settle(lease=parcel.lease), parcel.messages)
        else:
            self._entries[key] = _Entry(
                lease=parcel.lease, until_s=until_s, size=parcel.messages, credit=parcel.messages, pending=set(fresh)
            )

    def _withhold(self, key: _Key, fresh: set[int]) -> set[int]:
        """Messages that were rejected before, in a batch that held others too: alone, they become dead letters."""
        if not self._rejected:
            return set()
        rejected = {seq for seq in fresh if (key, seq) in self._rejected}
        entry = self._entries.get(key)
        if not rejected or entry is None:
            return rejected
        if len(rejected) == entry.size:
            entry.rejected = self._rejected[key, min(rejected)]
            for seq in rejected:
                del self._rejected[key, seq]
        else:
            entry.again |= rejected
        for seq in rejected:
            self._channels.again(key[0], seq)
        entry.pending -= rejected
        self._close(key, entry)
        return rejected

    def _refused(self, parcel: pb.Parcel, code: str, now_s: float) -> None:
        log.warning("message refused: %s", code)
        later = code in self._passing or (code == Code.CHANNEL_UNOPENED and len(self._openings) > 0)
        delay_s = RETRY_S << min(max(parcel.attempt - 1, 0), 3) if later else 0
        verb = pb.Settle.NAK if later else pb.Settle.REJECT
        if later and parcel.kind == "batch":
            self._put_it_off(parcel, now_s)
        if code == Code.ENVELOPE_REPLAYED:
            verb = pb.Settle.ACK  # handled before, under a lease that was lost
        self._tell(pb.Settle(lease=parcel.lease, verb=verb, delay_s=delay_s, code=code), parcel.messages)

    # ── what became of it ──────────────────────────────────────────────────────────────────────────────────────────

    def done(self, incoming: Incoming) -> None:
        """Handled."""
        if incoming.key[1]:
            self._channels.done(incoming.key[0], incoming.seq)
        elif header := self._headers.pop(incoming.key, None):
            self._inbox.done(header)
        self._leave(incoming)

    def again(self, incoming: Incoming, delay_s: int = 0, code: str = "") -> None:
        """Not handled: to be delivered again, no sooner than `delay_s` from now."""
        self._reopen(incoming)
        entry = self._entries.get(incoming.key)
        if entry is not None:
            entry.again.add(incoming.seq)
            entry.delay_s, entry.code = max(entry.delay_s, min(delay_s, MAX_LEASE_S)), _code(code) or entry.code
        self._leave(incoming)

    def reject(self, incoming: Incoming, code: str) -> None:
        """Not to be handled: a dead letter, which an operator may send on its way again. In a batch with others it is
        given back first, to become one alone."""
        entry, code = self._entries.get(incoming.key), _code(code) or str(Code.MESSAGE_REJECTED)
        if entry is not None and entry.size > 1:
            if len(self._rejected) < MAX_REJECTED:
                self._rejected[incoming.key, incoming.seq] = code
            self.again(incoming, 0, code)
            return
        if entry is not None:
            entry.rejected = code
        self._reopen(incoming)
        self._leave(incoming)

    def _reopen(self, incoming: Incoming) -> None:
        """It was not handled: a later delivery may be."""
        if incoming.key[1]:
            self._channels.again(incoming.key[0], incoming.seq)
        elif header := self._headers.pop(incoming.key, None):
            self._inbox.again(header)

    def _leave(self, incoming: Incoming) -> None:
        entry = self._entries.get(incoming.key)
        if entry is not None:
            entry.pending.discard(incoming.seq)
            self._close(incoming.key, entry)

    def _close(self, key: _Key, entry: _Entry) -> None:
        """Settle the parcel, if nothing of it is pending."""
        if entry.pending:
            return
        del self._entries[key]
        settle = pb.Settle(lease=entry.lease, code=entry.rejected or entry.code)
        if entry.rejected:
            settle.verb = pb.Settle.REJECT
        elif len(entry.again) >= entry.size:
            settle.verb, settle.delay_s = pb.Settle.NAK, entry.delay_s
        elif entry.again:
            settle.delay_s = entry.delay_s
            getattr(settle, "except").extend(sorted(entry.again))
        self._tell(settle, entry.credit)

    def _tell(self, settle: pb.Settle, worth: int) -> None:
        if self._keeps and settle.verb == pb.Settle.ACK:
            self._number += 1
            self._unkept.append((self._number, settle, worth))
            return
        self._settles.append(settle)
        self._credit += worth

    @property
    def unkept(self) -> int:
        """The number of the last settlement that waits for a checkpoint; 0 when none does."""
        return self._unkept[-1][0] if self._unkept else 0

    def cover(self, upto: int, message: pb.Save) -> None:
        """Put into a checkpoint's message what it covers."""
        while self._unkept and self._unkept[0][0] <= upto:
            _, settle, worth = self._unkept.popleft()
            message.settles.append(settle)
            self._credit += worth

    def uncover(self, upto: int, message: pb.Save) -> None:
        """That checkpoint was not kept: what it covered waits for the next."""
        self._unkept.extendleft((upto, settle, 0) for settle in reversed(message.settles))

    def kept(self, upto: int) -> None:
        """A checkpoint that was made after that settlement is kept."""
        while self._unkept and self._unkept[0][0] <= upto:
            _, settle, worth = self._unkept.popleft()
            self._settles.append(settle)
            self._credit += worth

    # ── for the transport ──────────────────────────────────────────────────────────────────────────────────────────

    def take(self, message: pb.ToBroker) -> None:
        """Put into the next message what is to be said."""
        message.settles.extend(self._settles)
        message.credit = self._credit
        self._settles, self._credit = [], 0

    @property
    def has_news(self) -> bool:
        return bool(self._settles)

    def keep(self, now_s: float) -> bool:
        """Ask for more time for what is still being handled after half of its lease; whether there is any."""
        due = [entry for entry in self._entries.values() if entry.until_s - now_s < self._lease_s / 2]
        for entry in due:
            entry.until_s = now_s + self._lease_s
            self._settles.append(pb.Settle(lease=entry.lease, verb=pb.Settle.EXTEND, delay_s=self._lease_s))
        return bool(due)

    def disconnected(self) -> None:
        """The leases have ended. What is in hand is credited to the next connection when it comes again."""
        self._settles, self._credit = [], 0
        self._unkept.clear()
        self._senders, self._told_s, self._openings = {}, {}, Openings()
        self._put_off.clear()
        for entry in self._entries.values():
            entry.credit = 0

    @property
    def outstanding(self) -> int:
        """Messages in hand."""
        return sum(len(entry.pending) for entry in self._entries.values())


def _code(code: str) -> str:
    """As the broker takes it: a code, never a text, which could carry what was in the message."""
    return code if CODE.fullmatch(code) and len(code) <= MAX_CODE else ""
