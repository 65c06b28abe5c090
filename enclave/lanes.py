"""What is on its way to mailboxes and topics: sealed once, sent again as the same bytes until the broker says what
became of it.

Decides, without a socket: what is sealed into one batch (what has gathered, of one mailbox, within bounds), how much
may be unanswered, and what follows from an answer. Taken: the senders hear of it. Refused for the moment: everything of
the channel from there on goes again, as it was, after a pause. Refused for good: those messages fail, and what stood
behind them, which the broker then cannot have taken, is sealed anew on another channel. A mailbox's messages keep their
order, so another channel begins only when nothing of the one before is unanswered.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Final, final

from attestation.errors import CloisterError
from broker.wire import stream_pb2 as pb
from broker.wire.channel import MAX_OUTSTANDING
from broker.wire.mailbox import SendStatus
from enclave.channel import Outgoing, SealedBatch, SendingChannel
from enclave.errors import BrokerRefused, ChannelDead
from enclave.mailbox import Found
from enclave.session import Admission

log: Final = logging.getLogger("cloister.agent")
Announce = Callable[[bytes, str], None]

BATCH_MESSAGES: Final = 256
BATCH_OCTETS: Final = 1 << 20
MAX_FLYING: Final = 32  # batches of one mailbox; the broker recognises the last 64
EAGER: Final = 2  # batches of one mailbox under way, beyond which only full ones set out
MAX_SEALED: Final = 3  # how often a message is sealed before it fails
KEY_LIFE_S: Final = 60.0  # how long what was found out about a mailbox is believed
MAX_FULL: Final = 8  # how often a batch is refused for want of room before smaller ones are tried
MAX_LANES: Final = 4096  # that are remembered with nothing on them
MIN_PAUSE_S: Final = 0.05
# The same bytes may be taken in a moment.
LATER: Final = frozenset(
    "broker.stopping channel.gap clock.behind collateral.pending generation.moved mailbox.full "
    "store.unavailable".split()
)
# The bytes never will be, but what is in them may be, sealed to the mailbox's present key.
ANEW: Final = frozenset("channel.forked channel.gap channel.unknown mailbox.key_stale".split())
# One kind of message may be refused where another is not: they are told apart before any fails.
APART: Final = frozenset("message.labels_lowered policy.refused".split())


@final
@dataclass(slots=True)
class Item:
    """A message that somebody waits for. `announce` hears its id and the mailbox's owner before it can be answered."""

    message: Outgoing
    accepted: asyncio.Future[bytes]
    announce: Announce | None = None
    sealed: int = 0


@final
@dataclass(slots=True, kw_only=True)
class _Flight:
    """A sealed batch that the broker has not answered for good."""

    number: int
    batch: SealedBatch
    items: list[Item]
    channel: SendingChannel
    asked: bool = False  # sent, and not answered
    full: int = 0  # how often there was no room for it


@final
class Lane:
    """What goes to one mailbox or topic, in order."""

    def __init__(self, mailbox: str, numbers: Iterator[int], *, topic: bool = False) -> None:
        self.mailbox: Final = mailbox
        self.topic: Final = topic
        self._numbers = numbers
        self._waiting: deque[Item] = deque()
        self._flying: deque[_Flight] = deque()
        self._channel: SendingChannel | None = None
        self._opened = False  # the broker has taken a batch of this channel, so it knows the opening
        self._most = BATCH_MESSAGES
        self._apart = False
        self._anew = False  # the channel is given up
        self._rekey = False  # the mailbox has another key: nothing more on this channel
        self._not_before_s = 0.0
        self._found_s = -KEY_LIFE_S

    def post(self, item: Item) -> None:
        self._waiting.append(item)

    @property
    def idle(self) -> bool:
        return not self._waiting and not self._flying

    @property
    def outstanding(self) -> int:
        """Messages that were accepted here and not by the broker."""
        return len(self._waiting) + sum(len(flight.items) for flight in self._flying)

    # ── the channel ────────────────────────────────────────────────────────────────────────────────────────────────

    def wants_key(self, now_s: float) -> bool:
        """Whether the mailbox's present key must be asked for before anything more is sealed."""
        if not self._waiting or self._anew:
            return False
        if self._rekey:
            return not self._flying
        stale = now_s - self._found_s >= KEY_LIFE_S
        return stale or ((self._channel is None or bool(self._channel.why_dead())) and not self._flying)

    def found(self, info: Found, open_channel: Callable[[], SendingChannel], now_s: float) -> None:
        """Go on with the channel if it is to the mailbox's newest key, and to the same owner, who was proved; else with
        a new one once nothing is flying."""
        self._found_s = now_s
        channel = self._channel
        told = (info.key.thumbprint, info.key.owner)  # a durable key stays the same under another owner
        fits = channel is not None and not channel.why_dead() and (channel.mailbox_key, channel.owner) == told
        if not fits and not self._flying:
            if channel is not None:
                channel.close()
            self._channel, self._opened, self._rekey = open_channel(), False, False
        elif not fits:
            self._rekey = True

    def renew(self, admission: Admission) -> None:
        if self._channel is not None:
            self._channel.renew(admission)

    def fail(self, error: Exception) -> None:
        """Nothing can be sealed to this mailbox: whatever waits fails. What is flying still may arrive."""
        for item in self._waiting:
            _fail(item, error)
        self._waiting.clear()

    def give_up(self, error: Exception) -> None:
        """Nobody waits any longer: neither for what waits nor for what is flying, which goes again if it ever can."""
        for flight in self._flying:
            for item in flight.items:
                _fail(item, error)
        self.fail(error)

    # ── sending ────────────────────────────────────────────────────────────────────────────────────────────────────

    def sends(self, now_s: float) -> Iterator[pb.StreamSend]:
        """What may go now. Each is sent once, until it is answered or the connection is lost."""
        if now_s < self._not_before_s:
            return
        if any(not flight.asked for flight in self._flying):
            if any(flight.asked for flight in self._flying):
                return  # hear the rest of the answers first, then everything goes again in order
            for flight in self._flying:
                yield self._sent(flight)
        while (sealed := self._seal()) is not None:
            yield self._sent(sealed)

    def _sent(self, flight: _Flight) -> pb.StreamSend:
        flight.asked = True
        opening = b"" if self._opened and flight.channel is self._channel else flight.channel.opening
        raw = flight.batch.raw
        return pb.StreamSend(id=flight.number, mailbox=self.mailbox, opening=opening, batch=raw, topic=self.topic)

    def _seal(self) -> _Flight | None:
        """The next batch of what waits, if there is room for it and a channel."""
        channel = self._channel
        if not self._waiting or channel is None or self._anew or self._rekey:
            return None
        room = MAX_OUTSTANDING - sum(len(flight.items) for flight in self._flying)
        if not self._worth_while(room):
            return None
        items = self._gather(min(self._most, room))
        try:
            batch = channel.seal([item.message for item in items])
        except ChannelDead:
            self._waiting.extendleft(reversed(items))
            return None
        except CloisterError as error:
            if len(items) == 1:
                _fail(items[0], error)
            else:  # one of them is at fault: each alone
                self._waiting.extendleft(reversed(items))
                self._apart = True
            return self._seal()
        for item, seq in zip(items, range(batch.first_seq, batch.last_seq + 1), strict=True):
            item.sealed += 1
            if item.announce is not None:
                item.announce(channel.id_of(seq), channel.owner)
        flight = _Flight(number=next(self._numbers), batch=batch, items=items, channel=channel)
        self._flying.append(flight)
        return flight

    def _worth_while(self, room: int) -> bool:
        """Whether a batch sets out now: one of the first few, or a full one. Else an answer will come, and until then
        more messages to go with it."""
        flying = len(self._flying)
        if flying < EAGER:
            return room > 0
        return flying < MAX_FLYING and min(room, len(self._waiting)) >= self._most

    def _gather(self, most: int) -> list[Item]:
        """The first messages that wait, as many as go into one batch; nobody who gave up waiting is among them.

        For a topic they have the same labels: a reader is shown a batch, or may not see it.
        """
        items: list[Item] = []
        octets = 0
        while self._waiting and len(items) < (1 if self._apart else most):
            octets += len(self._waiting[0].message.plaintext)
            if items and (octets > BATCH_OCTETS or (self.topic and not _alike(items[-1], self._waiting[0]))):
                break
            items.append(self._waiting.popleft())
        self._apart = self._apart and bool(self._waiting)
        return items

    # ── answers ────────────────────────────────────────────────────────────────────────────────────────────────────

    def answered(self, result: pb.StreamResult, now_s: float) -> None:
        flight = next((flight for flight in self._flying if flight.number == result.id), None)
        if flight is None or not flight.asked:
            return
        flight.asked = False
        if result.status in (SendStatus.QUEUED, SendStatus.DUPLICATE):
            self._taken(flight)
        elif result.code == "mailbox.full" and self._too_large(flight):
            self._anew = True
        elif result.code in LATER and not self._anew and not self._bereft(flight, result.code):
            self._not_before_s = max(self._not_before_s, now_s + _pause_s(result, flight))
        else:
            self._refused(flight, result.code)
        if self._anew and not any(flight.asked for flight in self._flying):
            self._begin_anew()

    def _bereft(self, flight: _Flight, code: str) -> bool:
        """Whether the batch waits for one that was called taken and is not there: nobody will send that again."""
        return code == "channel.gap" and flight is self._flying[0]

    def _too_large(self, flight: _Flight) -> bool:
        """Whether the batch may be larger than the mailbox will ever have room for."""
        flight.full += 1
        if flight.full < MAX_FULL or len(flight.items) == 1:
            return False
        self._most = len(flight.items) // 2
        for item in flight.items:
            item.sealed -= 1  # no fault of its own
        return True

    def _taken(self, flight: _Flight) -> None:
        self._flying.remove(flight)
        self._most = min(2 * self._most, BATCH_MESSAGES)
        self._opened = self._opened or flight.channel is self._channel
        for item, seq in zip(flight.items, range(flight.batch.first_seq, flight.batch.last_seq + 1), strict=True):
            if not item.accepted.done():
                item.accepted.set_result(flight.channel.id_of(seq))

    def _refused(self, flight: _Flight, code: str) -> None:
        """For good. Only the first one's reason counts: those behind it were refused because it was."""
        if self._anew:
            return
        self._anew = True
        kinds = {(item.message.kind, item.message.labels) for item in flight.items}
        worn = any(item.sealed >= MAX_SEALED for item in flight.items)
        if code in APART and len(kinds) > 1:
            self._apart = True
        elif code not in ANEW or worn:
            error = BrokerRefused(status=403, code=code, detail=f"{self.mailbox} did not take the message")
            for item in flight.items:
                _fail(item, error)
            self._flying.remove(flight)
        log.info("channel to %s given up: %s", self.mailbox, code)

    def _begin_anew(self) -> None:
        """What was not taken waits again, in its order, for another channel."""
        for flight in reversed(self._flying):
            self._waiting.extendleft(item for item in reversed(flight.items) if not item.accepted.done())
        self._flying.clear()
        if self._channel is not None:
            self._channel.close()
        self._channel, self._anew, self._found_s = None, False, -KEY_LIFE_S

    def disconnected(self) -> None:
        """Nobody knows what arrived: everything goes again, as it was."""
        for flight in self._flying:
            flight.asked = False
        self._not_before_s = 0.0
        self._opened = False
        if self._anew:
            self._begin_anew()

    def leave(self) -> None:
        """Nothing is on it, and nothing will be."""
        if self._channel is not None:
            self._channel.close()

    def close(self, error: Exception) -> None:
        """Nothing more will be sent."""
        for flight in self._flying:
            for item in flight.items:
                _fail(item, error)
        self._flying.clear()
        self.fail(error)
        self.leave()

    def wakes_at_s(self) -> float | None:
        """When a pause ends, after which there is something to send again."""
        return self._not_before_s if self._not_before_s and not self.idle else None


def _pause_s(result: pb.StreamResult, flight: _Flight) -> float:
    """A mailbox that is full is asked soon at first, since its owner may be at work; others when they say."""
    if result.code in ("channel.gap", "generation.moved"):
        return MIN_PAUSE_S
    soon = MIN_PAUSE_S * 2.0 ** (flight.full - 1) if flight.full else 1.0
    return max(MIN_PAUSE_S, min(soon, float(result.retry_after_s)))


def _alike(one: Item, other: Item) -> bool:
    return one.message.labels == other.message.labels


def _fail(item: Item, error: Exception) -> None:
    if not item.accepted.done():
        item.accepted.set_exception(error)
        item.accepted.exception()  # who posted and did not wait has been told in the log


class Carried:
    """What else is said on a stream; `tell` is called when there is something for the broker. This says nothing."""

    def __init__(self) -> None:
        self.tell: Callable[[], None] = lambda: None

    def take(self, message: pb.ToBroker) -> None:
        pass

    def arrived(self, message: pb.FromBroker) -> None:
        pass

    def disconnected(self) -> None:
        pass


@final
class Lanes:
    """The lanes of one stream."""

    def __init__(self) -> None:
        self._numbers = count(1)
        self._lanes: dict[tuple[str, bool], Lane] = {}  # by name, and whether it is a topic's
        self._of: dict[int, Lane] = {}

    def __iter__(self) -> Iterator[Lane]:
        return iter(list(self._lanes.values()))

    def post(self, mailbox: str, item: Item, *, topic: bool = False) -> None:
        lane = self._lanes.get((mailbox, topic))
        if lane is None:
            if len(self._lanes) >= MAX_LANES:
                self._make_room()
            lane = self._lanes[mailbox, topic] = Lane(mailbox, self._numbers, topic=topic)
        lane.post(item)

    def _make_room(self) -> None:
        """Drop the oldest half of those on which nothing is: who comes back begins with another channel."""
        idle = [name for name, lane in self._lanes.items() if lane.idle]
        for name in idle[: MAX_LANES // 2]:
            self._lanes.pop(name).leave()

    def outstanding(self, mailbox: str, *, topic: bool = False) -> int:
        lane = self._lanes.get((mailbox, topic))
        return lane.outstanding if lane else 0

    def sends(self, now_s: float, most_octets: int) -> list[pb.StreamSend]:
        """What may go now, of all mailboxes in turn, about so much."""
        found: list[pb.StreamSend] = []
        octets = 0
        for lane in self:
            for send in lane.sends(now_s):
                self._of[send.id] = lane
                found.append(send)
                octets += len(send.batch)
                if octets >= most_octets:
                    break
            if octets >= most_octets:
                break
        return found

    def answered(self, result: pb.StreamResult, now_s: float) -> None:
        lane = self._of.pop(result.id, None)
        if lane is not None:
            lane.answered(result, now_s)

    def disconnected(self) -> None:
        self._of.clear()
        for lane in self:
            lane.disconnected()
