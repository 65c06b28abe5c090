"""Topics on a mail stream: what one agent reads there, each topic in its order.

Decides how much of a topic is under way: so many messages that the agent has not called done (a batch may overdraw that
once), and no more than the stream's reader reads. What a reader may be shown is decided by topics.py. A topic that can
be read no longer ends with a code, and the stream goes on; the agent begins it anew when it has its keys again.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, final

from broker.calls import REFUSALS
from broker.errors import BrokerCode
from broker.mail.drawing import LOOK_IDLE_S
from broker.mail.topics import TopicDrawn
from broker.mail.ways import bell_of
from broker.reasons import Refusal
from broker.service import Broker
from broker.sessions import Session
from broker.status import status_of
from broker.wire import stream_pb2 as pb
from broker.wire.channel import MAX_OUTSTANDING
from broker.wire.errors import WireCode, WireError
from broker.wire.fields import MAX_INT
from broker.wire.names import MAX_RESOURCE
from broker.wire.topic import MAX_FOLLOWED
from policies.errors import Refused

PAUSE_S: Final = 0.5
MAX_KNOWN: Final = 1024  # openings and tokens of one topic that are not sent twice; then they are sent again
DRAWN_OCTETS: Final = 1 << 18  # one is read while the next is made


class Carrier(Protocol):
    """The stream, as this file needs it."""

    async def session(self) -> Session: ...
    async def carries(self) -> None:
        """Until the agent has read enough for more to be drawn."""

    def news(self) -> pb.TopicNews:
        """To be filled at once: it goes with the next message."""

    def failed(self, error: BaseException) -> None:
        """What nobody foresaw."""


@final
@dataclass(slots=True, eq=False)
class _Topic:
    """One topic from where the agent began it."""

    name: str
    begun: int
    done: int
    again: bool  # it was begun on this stream before
    told: asyncio.Event = field(default_factory=asyncio.Event)  # of more that is done
    room: asyncio.Event = field(default_factory=asyncio.Event)
    out: deque[tuple[int, int]] = field(default_factory=deque)  # places that were handed on, with their messages
    under_way: int = 0
    over: bool = False  # it was refused
    openings: set[bytes] = field(default_factory=set)
    tokens: dict[str, str] = field(default_factory=dict, repr=False)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def handled(self, done: int) -> None:
        """The agent says so."""
        self.done = max(self.done, done)
        while self.out and self.out[0][0] <= self.done:
            self.under_way -= self.out.popleft()[1]
        self.told.set()
        self.room.set()

    def end(self) -> None:
        for task in self.tasks:
            task.cancel()


Work = Callable[[_Topic], Awaitable[None]]


@final
class Following:
    """The topics that one stream reads."""

    def __init__(self, broker: Broker, carrier: Carrier, call_id: str) -> None:
        self._broker = broker
        self._carrier = carrier
        self._call_id = call_id
        self._topics: dict[str, _Topic] = {}

    def follow(self, follows: Sequence[pb.Follow]) -> None:
        """What one message says. Raises WireError body.field_invalid."""
        if len(follows) > MAX_FOLLOWED:
            raise WireError(WireCode.BODY_FIELD_INVALID, f"{len(follows)} follows in a message")
        for asked in follows:
            self._follow(asked)

    def _follow(self, asked: pb.Follow) -> None:
        """Begin, or hear how far the agent is."""
        if not 0 < len(asked.topic) <= MAX_RESOURCE or not asked.begun or max(asked.begun, asked.done) > MAX_INT:
            raise WireError(WireCode.BODY_FIELD_INVALID, "follows")
        known = self._topics.get(asked.topic)
        if known is not None and asked.begun <= known.begun:
            if asked.begun == known.begun and not known.over:
                known.handled(asked.done)
            return
        if known is None and len(self._topics) >= MAX_FOLLOWED:
            self._topics = {name: topic for name, topic in self._topics.items() if not topic.over}
        if known is None and len(self._topics) >= MAX_FOLLOWED:
            raise WireError(WireCode.BODY_FIELD_INVALID, f"follows more than {MAX_FOLLOWED} topics")
        if known is not None:
            known.end()
        topic = self._topics[asked.topic] = _Topic(asked.topic, asked.begun, asked.done, again=known is not None)
        topic.tasks += [self._begin(topic, self._hand_on), self._begin(topic, self._keep)]

    def _begin(self, topic: _Topic, work: Work) -> asyncio.Task[None]:
        task = asyncio.create_task(self._while_permitted(topic, work))
        task.add_done_callback(self._landed)
        return task

    def _landed(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._carrier.failed(error)

    async def close(self) -> None:
        tasks = [task for topic in self._topics.values() for task in topic.tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _while_permitted(self, topic: _Topic, work: Work) -> None:
        """What refuses the topic ends it, and is told once."""
        try:
            await work(topic)
        except REFUSALS as error:
            if self._topics.get(topic.name) is topic and not topic.over:
                topic.over = True
                topic.end()
                self._tell(topic, error)

    def _tell(self, topic: _Topic, error: Refusal) -> None:
        news = self._carrier.news()
        news.topic, news.begun, news.status = topic.name, topic.begun, status_of(error)
        news.code = BrokerCode.POLICY_REFUSED if isinstance(error, Refused) else str(error.code)
        self._broker.metrics.refused(news.code)

    async def _keep(self, topic: _Topic) -> None:
        """Write down how far the reader is."""
        while True:
            await topic.told.wait()
            topic.told.clear()
            await self._broker.topics.advance(await self._carrier.session(), topic.name, topic.done)

    async def _hand_on(self, topic: _Topic) -> None:
        desk, bell = self._broker.topics, self._broker.bell
        if topic.again:  # whoever begins again and again gets little for it
            await asyncio.sleep(PAUSE_S)
        after = await desk.advance(await self._carrier.session(), topic.name, topic.done)
        while not bell.stopping:
            while topic.under_way >= MAX_OUTSTANDING:
                topic.room.clear()
                await topic.room.wait()
            await self._carrier.carries()
            rung = bell.listen(bell_of(topic.name))
            session = await self._carrier.session()
            drawn = await desk.draw(
                session,
                topic.name,
                after=after,
                messages=MAX_OUTSTANDING - topic.under_way,
                octets=DRAWN_OCTETS,
                correlation_id=self._call_id,
            )
            found, after = drawn.upto > after, drawn.upto
            if drawn.messages:
                self._bring(topic, drawn)
            elif found and not topic.out:  # nothing there is for this reader, nor will be
                topic.handled(after)
            if not found:
                await bell.rings(rung, LOOK_IDLE_S)

    def _bring(self, topic: _Topic, drawn: TopicDrawn) -> None:
        news = self._carrier.news()
        news.topic, news.begun, news.missed = topic.name, topic.begun, drawn.missed
        for known in (topic.openings, topic.tokens):
            if len(known) >= MAX_KNOWN:
                known.clear()
        for subject, token in drawn.tokens.items():
            if topic.tokens.get(subject) != token:
                topic.tokens[subject] = news.senders[subject] = token
        fresh = [channel for channel in drawn.channels if channel not in topic.openings]
        topic.openings.update(fresh)
        for opening in self._broker.topics.openings(topic.name, fresh):
            news.openings.add(
                envelope=opening.envelope.to_bytes(),
                accepted_at_ms=opening.accepted_at_ms,
                acceptance=opening.acceptance,
            )
        for message, acceptance in zip(drawn.messages, drawn.acceptances, strict=True):
            news.parcels.add(
                kind=message.kind,
                content=message.envelope,
                attempt=1,
                accepted_at_ms=message.accepted_at_ms,
                acceptance=acceptance,
                messages=message.count,
            )
            news.places.append(message.number)
            topic.out.append((message.number, message.count))
            topic.under_way += message.count
