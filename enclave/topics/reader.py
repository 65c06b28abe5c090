"""Reading topics: what was published with an envelope or on a channel, to everybody who was given the key.

Decides what a reader accepts: what the named sender's attested key signed, for this topic, under a key that the broker
released to this reader, in time, once, and not from before it began to read, so that nothing old can be shown again
after a restart. The broker makes the keys of a topic and could read it; it can't speak in anybody's name. A key that is
not known is asked for: the topic was rolled meanwhile.

What comes meets the same ledger as mail: a place in the topic's row stands for a lease. Openings have windows of their
own: one may be new to a reader that came late, when envelopes with higher numbers have come long before. A gap in a
channel is what the topic had no room for, what had ended, or what this reader may not see; it is told, and what was
passed over is not taken later.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from typing import Final, Protocol, final

from attestation.errors import CloisterError
from broker.wire import stream_pb2 as pb
from broker.wire.envelope import Envelope, Header
from broker.wire.keys import KeysRequest, Place
from broker.wire.topic import MAX_PAGE, TopicPage, TopicRead
from enclave.channel import ReceivingChannels
from enclave.client import BrokerCalls
from enclave.clock import BrokerTime
from enclave.durable import Do
from enclave.errors import Code
from enclave.fetching import LEASE_S, as_streamed
from enclave.kept import open_keys
from enclave.keys import AgentKeys
from enclave.ledger import PASSING, Incoming, Ledger
from enclave.mailbox import Inbox, Judge, everyone
from enclave.session import Admission
from enclave.standing import Standing

log: Final = logging.getLogger("cloister.agent")
WAIT_S: Final = 10
BEHIND_MS: Final = 2_000  # a sender's clock may be behind this one by so much
PAUSE_S: Final = 1.0  # before what could not be judged is asked for again
MAX_TRIES: Final = 8
WAITS: Final = PASSING - {str(Code.PEER_FALLEN)}  # who has fallen is not heard again: nobody else gets what he said


class Pages(Protocol):
    """Where a reader's messages come from, in order. `read` says how far it is, and waits for more."""

    async def read(self, request: TopicRead) -> pb.TopicNews: ...
    def again(self) -> None:
        """What was not done is to come once more."""


@final
class Fetched:
    """Pages over REST: each begins behind what is done."""

    def __init__(self, topic: str, calls: BrokerCalls, do: Do) -> None:
        self._topic = topic
        self._calls = calls
        self._do = do

    async def read(self, request: TopicRead) -> pb.TopicNews:
        return as_news(await self._do(lambda: self._calls.read_topic(self._topic, request)))

    def again(self) -> None:
        pass


@final
class Turning:
    """Pages of the stream, or over REST while no stream can be opened. What comes by both ways is known again."""

    def __init__(self, streamed: Pages, fetched: Pages, by_requests: Callable[[], bool]) -> None:
        self._streamed = streamed
        self._fetched = fetched
        self._by_requests = by_requests

    async def read(self, request: TopicRead) -> pb.TopicNews:
        return await (self._fetched if self._by_requests() else self._streamed).read(request)

    def again(self) -> None:
        self._streamed.again()


def as_news(page: TopicPage) -> pb.TopicNews:
    """A page as it would have come on a stream."""
    message = as_streamed(page)
    news = pb.TopicNews(senders=page.senders, openings=message.openings, missed=page.missed)
    places = (*page.places, *page.batch_places)
    for parcel, place in sorted(zip(message.parcels, places, strict=False), key=lambda pair: pair[1]):
        news.parcels.append(parcel)
        news.places.append(place)
    return news


@final
class TopicReader:
    """One topic as this process reads it: `join`, then `receive` and `done` in turn; `leave` in the end."""

    def __init__(
        self,
        topic: str,
        *,
        keys: AgentKeys,
        time: BrokerTime,
        calls: BrokerCalls,
        admission: Callable[[], Admission],
        do: Do,
        heard: Callable[[frozenset[str]], None],
        judge: Judge = everyone,
        standing: Standing,
        renew: Callable[[], Awaitable[None]],
        pages: Pages | None = None,
    ) -> None:
        self.topic = topic
        self._keys = keys
        self._time = time
        self._calls = calls
        self._admission = admission
        self._do = do
        self._heard = heard
        self._standing = standing
        self._renew = renew
        self._pages = pages or Fetched(topic, calls, do)
        self._inboxes = [
            Inbox(topic, keys, time, judge=judge, durable=True, standing=standing) for _ in ("envelopes", "openings")
        ]
        channels = ReceivingChannels(self._inboxes[1], time, judge=judge)
        self._ledger = Ledger(self._inboxes[0], channels, lease_s=LEASE_S, passing=WAITS)
        self._done = 0  # told to the broker with the next question
        self._highest = 0
        self._out: set[int] = set()  # places that came and are not over
        self._tries: dict[int, int] = {}  # of those that could not be judged
        self._later = False  # something is to come once more
        self._anew = False  # that was asked for, and the first page of it has not come
        self.missed = 0  # messages that went before this reader came to them
        self._told = 0  # of them, as the broker counts since it was joined last

    @property
    def skipped(self) -> int:
        """Messages on channels that never came: missed, ended, not for this reader, or kept back."""
        return self._ledger.skipped

    async def join(self) -> None:
        """Be given the keys, from now on; again when the topic was rolled. Raises BrokerRefused, and as `open_keys`."""
        nonce = os.urandom(32)
        request = KeysRequest(nonce=nonce)
        answer = await self._do(lambda: self._calls.keys(Place.TOPIC, self.topic, request))
        kept = open_keys(
            answer,
            admission=self._admission(),
            keys=self._keys,
            of=Place.TOPIC,
            name=self.topic,
            nonce=nonce,
            now_s=self._time.now_s(),
        )
        for inbox in self._inboxes:
            inbox.take(kept)
            inbox.refuse_before_ms = inbox.refuse_before_ms or self._time.now_ms() - BEHIND_MS

    async def receive(self, limit: int = 16, *, wait_s: int = WAIT_S) -> list[Incoming]:
        """What has come since, opened; `done` must be told of each. What cannot be proved is passed over, and logged.

        `limit` counts envelopes and batches, of one request; on a stream the broker brings what there is room for.
        """
        if self._later:
            await asyncio.sleep(PAUSE_S)
            self._pages.again()
            self._later, self._anew = False, True
        request = TopicRead(done=self._done, max_messages=min(limit, MAX_PAGE), wait_s=wait_s)
        news = await self._pages.read(request)
        del news.parcels[len(news.places) :]
        self._count(news.missed)
        if not news.parcels:
            return []
        self._later = True  # unless all goes well: then it waits, and so does what is behind it
        if self._standing.due:
            await self._renew()
        if not self._standing.known:
            log.warning("reading %s: %s", self.topic, Code.STANDING_UNKNOWN)
            return []
        if not all(map(self._known, _envelopes(news))):
            await self.join()
        self._later = False
        return self._delivered(news)

    def _delivered(self, news: pb.TopicNews) -> list[Incoming]:
        anew, self._anew = self._anew, False
        for place in [place for place in self._tries if anew and place < news.places[0]]:
            self._over(place)  # it is not there any more
        for parcel, place in zip(news.parcels, news.places, strict=False):
            parcel.lease, parcel.sender_token = str(place), ""  # a topic's senders are judged as they are now
            self._out.add(place)
            self._highest = max(self._highest, place)
        for opening in news.openings:
            opening.sender_token = ""
        now_s = asyncio.get_running_loop().time()
        received = list(self._ledger.delivered(news, self._admission().broker, now_s))
        self._settle()
        self._heard(frozenset().union(*{incoming.labels for incoming in received}))
        return received

    def _settle(self) -> None:
        """What the ledger has to say: it is over, or cannot be judged yet."""
        told = pb.ToBroker()
        self._ledger.take(told)
        for settle in told.settles:
            place = int(settle.lease)
            tries = self._tries.get(place, 0) + 1
            if settle.verb == pb.Settle.NAK and tries < MAX_TRIES:
                self._tries[place], self._later = tries, True
            else:
                self._over(place)
        self._done = max(self._done, min(self._out) - 1 if self._out else self._highest)

    def _over(self, place: int) -> None:
        self._out.discard(place)
        self._tries.pop(place, None)

    def _count(self, missed: int) -> None:
        fresh = missed - self._told if missed >= self._told else missed
        self._told = missed
        if fresh:
            self.missed += fresh
            log.warning("reading %s: %s, %d messages", self.topic, Code.TOPIC_MISSED, fresh)

    def _known(self, envelope: bytes) -> bool:
        try:
            return self._inboxes[0].knows(Header.from_bytes(Envelope.from_bytes(envelope).header).mailbox_key)
        except CloisterError:
            return True  # whatever it is, no key will help

    def done(self, incoming: Incoming) -> None:
        """It was handled. The broker hears of it with the next `receive`, up to the first that is still open."""
        self._ledger.done(incoming)
        if self._ledger.has_news:  # that was the last of its batch
            self._settle()

    async def leave(self) -> None:
        """Read no more: the topic's key is rolled without this agent."""
        await self._do(lambda: self._calls.leave_topic(self.topic))


def _envelopes(news: pb.TopicNews) -> list[bytes]:
    """Whatever is sealed to a key of the topic itself."""
    single = [parcel.content for parcel in news.parcels if parcel.kind != "batch"]
    return [*(opening.envelope for opening in news.openings), *single]
