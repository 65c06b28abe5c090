"""Publishers and readers of topics: the agents' real half on real streams, over a broker that a test can lie for."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from broker.ports.mail import Quota
from broker.wire import stream_pb2 as pb
from broker.wire.keys import KeysRequest, Place
from broker.wire.revocations import RevocationsRequest
from broker.wire.topic import TopicInfo, TopicRead
from enclave.ledger import Incoming
from enclave.standing import Standing
from enclave.topics.following import Follows
from enclave.topics.reader import TopicReader, as_news
from tests.broker_world import FILES, Agent, write_bundle
from tests.stream_world import Mail, Member, mail
from tests.test_topics import NEWS, RULES


@dataclass
class Publisher(Member):
    """An agent that publishes on its stream."""

    async def find_topic(self, name: str) -> TopicInfo:
        found: TopicInfo = await self.agent.acting(lambda s: self.world.broker.topics.info(s, name))
        return found

    async def open(self) -> "Publisher":
        await self.join(lookup_topic=self.find_topic, receive=False)
        return self

    async def say(self, *texts: bytes, topic: str = NEWS, **how: Any) -> None:
        for text in texts:
            await self.stream.send(topic, kind="item", plaintext=text, topic=True, **how)

    async def say_at_once(self, texts: Iterable[bytes], topic: str = NEWS, **how: Any) -> None:
        sent = [self.stream.post(topic, kind="item", plaintext=text, topic=True, **how) for text in texts]
        for one in sent:
            await one


@dataclass
class Calls:
    """What a reader calls, without a socket."""

    agent: Agent

    def keys(self, _: Place, name: str, request: KeysRequest) -> Awaitable[Any]:
        return self.agent.acting(lambda s: self.agent.world.broker.topics.join(s, name, request))

    def read_topic(self, name: str, request: TopicRead) -> Awaitable[Any]:
        return self.agent.acting(lambda s: self.agent.world.broker.topics.receive(s, name, request))

    def leave_topic(self, name: str) -> Awaitable[Any]:
        return self.agent.acting(lambda s: self.agent.world.broker.topics.leave(s, name))


@dataclass
class Listener(Member):
    """An agent that reads a topic; over its stream, or without one over REST's use-cases."""

    topic: str = NEWS
    reader: TopicReader = field(init=False)
    standing: Standing = field(init=False)
    heard: frozenset[str] = frozenset()
    follows: Follows = field(default_factory=Follows)

    def starts(self, pages: Any = None) -> TopicReader:
        """A reader as a process makes it when it starts."""
        self.standing = Standing(self.time)
        self.reader = TopicReader(
            self.topic,
            keys=self.keys,
            time=self.time,
            calls=cast("Any", Calls(self.agent)),
            admission=self.admission,
            do=cast("Any", do),
            heard=self.hear,
            standing=self.standing,
            renew=self.learn,
            pages=pages,
        )
        return self.reader

    async def open(self, *, stream: bool = True) -> "Listener":
        if stream:
            await self.join(receive=False, carried=self.follows)
        self.starts(self.follows.topic(self.topic) if stream else None)
        await self.reader.join()
        return self

    def hear(self, labels: frozenset[str]) -> None:
        self.heard |= labels

    async def learn(self) -> None:
        nonce, broker = bytes(32), self.world.broker
        answer = broker.standing.answer(RevocationsRequest(nonce=nonce), tenant="acme")
        self.standing.learn(answer, self.admission().broker, nonce=nonce, asked_s=self.time.now_s())

    async def texts(self, count: int, **how: Any) -> list[bytes]:
        """The next so many messages, each done as it comes."""
        return [one.plaintext for one in await self.messages(count, **how)]

    async def messages(self, count: int, *, wait_s: int = 10, **how: Any) -> list[Incoming]:
        found: list[Incoming] = []
        while len(found) < count:
            page = await self.reader.receive(wait_s=wait_s, **how)
            if not page and not wait_s:
                break
            for received in page:
                found.append(received)
                self.reader.done(received)
        return found

    async def nothing(self) -> bool:
        return await self.reader.receive(wait_s=0) == []


def numbered(count: int, start: int = 0) -> list[bytes]:
    return [b"%d" % number for number in range(start, start + count)]


async def do(make: Callable[[], Awaitable[Any]]) -> Any:
    return await make()


@dataclass
class Lying:
    """Pages as a test wants them."""

    pages: list[pb.TopicNews] = field(default_factory=list)

    async def read(self, _: TopicRead) -> pb.TopicNews:
        return self.pages.pop(0) if self.pages else pb.TopicNews()

    def again(self) -> None:
        pass


@dataclass
class Newsroom:
    """A broker, and who talks there."""

    mail: Mail

    async def publisher(self, name: str) -> Publisher:
        made = Publisher(**await self._agent(name))
        self.mail.members.append(made)
        return await made.open()

    async def listener(self, name: str, *, stream: bool = True, topic: str = NEWS) -> Listener:
        made = Listener(**await self._agent(name), topic=topic)
        if stream:
            self.mail.members.append(made)
        return await made.open(stream=stream)

    async def _agent(self, name: str) -> dict[str, Any]:
        world = self.mail.world
        agent = await world.admitted(name)
        return {"world": world, "agent": agent, "target": self.mail.server.address, "box": f"acme/mail/{name}"}

    def rows(self, topic: str = NEWS) -> list[tuple[str, int]]:
        found = self.mail.world.broker.store.read(lambda tx: tx.topics.page(topic, after=0, now_ms=0))
        return [(one.kind, one.count) for one in found]

    async def page(self, listener: Listener) -> pb.TopicNews:
        """What the broker would hand that reader now, without moving it on."""
        return as_news(await Calls(listener.agent).read_topic(listener.topic, TopicRead(max_messages=64)))

    async def revoke(self, member: Member) -> None:
        world = self.mail.world
        await world.broker.administration.revoke(world.settings.admins[0], member.agent.subject, "test")


@asynccontextmanager
async def newsroom(folder: Path, *, quota: Quota | None = None) -> AsyncIterator[Newsroom]:
    bundle = write_bundle(folder / "topics", (FILES["policy.cedar"], RULES))
    async with mail(folder, bundles=(bundle,), quota=quota or Quota()) as made:
        yield Newsroom(made)
