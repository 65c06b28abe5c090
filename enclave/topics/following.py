"""Topics on a mail stream: what the broker brings of each, until its reader takes it.

Decides, without a socket, what the broker is told: which topics are read, from where on, and how far each reader is.
Whatever ends a connection ends what was begun on it; then it begins anew behind what was handled, and what is brought
under an earlier beginning is dropped. What may be believed of it is decided by the reader.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final, final

from broker.wire import stream_pb2 as pb
from broker.wire.topic import MAX_FOLLOWED, TopicRead
from enclave.errors import BrokerRefused
from enclave.lanes import Carried

MAX_WAITING: Final = 2048  # pages; a broker that keeps to what it may have under way has fewer


@final
class Followed:
    """One topic: pages for its reader."""

    def __init__(self, topic: str, tell: Callable[[], None], begun: int = 0) -> None:
        self._topic = topic
        self._tell = tell
        self._begun = begun  # how often
        self._reads = False  # since it was begun last
        self._done = 0
        self._due = False  # something is to be told
        self._missed = 0
        self._waiting: deque[pb.TopicNews] = deque()
        self._arrived = asyncio.Event()

    @property
    def begun(self) -> int:
        return self._begun

    async def read(self, request: TopicRead) -> pb.TopicNews:
        """The next page, if one comes in time. Raises BrokerRefused when the topic cannot be read any more."""
        if request.done > self._done:
            self._done = request.done
            self._say()
        if not self._reads:
            self.again()
        if not self._waiting:
            self._arrived.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(request.wait_s):
                    await self._arrived.wait()
        if not self._waiting:
            return pb.TopicNews(missed=self._missed)
        news = self._waiting.popleft()
        if news.code:
            self._reads = False
            raise BrokerRefused(status=news.status, code=news.code, detail=f"{self._topic} is read no longer")
        self._missed = news.missed
        return news

    def again(self) -> None:
        """What was not done is to come once more."""
        self._begun, self._reads = self._begun + 1, True
        self._waiting.clear()
        self._say()

    def disconnected(self) -> None:
        """Nothing more of that beginning will come."""
        if self._reads:
            self.again()

    def arrived(self, news: pb.TopicNews) -> None:
        if news.begun == self._begun and len(self._waiting) < MAX_WAITING:
            self._waiting.append(news)
            self._arrived.set()

    def take(self, message: pb.ToBroker) -> None:
        """Put what is to be said into the next message."""
        if self._due and self._reads:
            self._due = False
            message.follows.add(topic=self._topic, done=self._done, begun=self._begun)

    def _say(self) -> None:
        self._due = True
        self._tell()


@final
class Follows(Carried):
    """The topics of one stream, which carries what is said of them."""

    def __init__(self) -> None:
        super().__init__()
        self._topics: dict[str, Followed] = {}

    def has_room(self, name: str) -> bool:
        """Whether that one can be read on the stream, too."""
        return name in self._topics or len(self._topics) < MAX_FOLLOWED

    def topic(self, name: str) -> Followed:
        """For its one reader, that begins now."""
        before = self._topics.get(name)
        made = self._topics[name] = Followed(name, lambda: self.tell(), before.begun if before else 0)
        return made

    def take(self, message: pb.ToBroker) -> None:
        for topic in self._topics.values():
            topic.take(message)

    def arrived(self, message: pb.FromBroker) -> None:
        for one in message.news:
            if (topic := self._topics.get(one.topic)) is not None:
                topic.arrived(one)

    def disconnected(self) -> None:
        for topic in self._topics.values():
            topic.disconnected()
