"""Agents on mail streams: the real broker behind a real gRPC port, the agents' real half, a clock that tests move."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from broker.rpc.server import GrpcServer, start
from broker.wire.jose import p256_from_spki
from broker.wire.log import Receipt
from enclave.clock import BrokerTime
from enclave.keys import AgentKeys
from enclave.ledger import Incoming
from enclave.mailbox import Inbox, Outbox
from enclave.session import Admission, Broker
from enclave.stream import Stream
from tests.broker_world import URL, Agent, World

PATIENCE_S = 10.0  # a test that waits longer has failed


@dataclass
class Member:
    """An admitted agent with a stream."""

    world: World
    agent: Agent
    target: str
    box: str
    keys: AgentKeys = field(init=False)
    time: BrokerTime = field(init=False)
    inbox: Inbox = field(init=False)
    outbox: Outbox = field(init=False)
    stream: Stream = field(init=False)

    def __post_init__(self) -> None:
        self.keys = AgentKeys(self.agent.key, self.agent.sealing)
        clock = self.world.machine.clock
        self.time = BrokerTime(lambda: clock.now().timestamp())
        self.time.learn(int(clock.now().timestamp()))
        self.inbox = Inbox(self.box, self.keys, self.time)
        self.outbox = Outbox(self.keys, self.time)

    def admission(self) -> Admission:
        identity, at = self.world.broker.identity, self.world.broker.clock()
        opened = identity.open(self.agent.token, at)
        tokens = {key.kid: p256_from_spki(key.spki) for key in identity.keys(at).token_keys}
        return Admission(
            token=self.agent.token,
            verdict=opened.verdict,
            subject=opened.verdict.subject,
            issued_at_s=opened.issued_at.timestamp(),
            expires_at_s=opened.expires_at.timestamp(),
            broker=Broker(
                broker_id=identity.broker_id,
                issuer=URL,
                log_key=identity.log_key,
                identity=identity.key.public_key(),
                token_keys=tokens,
            ),
            receipt=Receipt(index=0, entry=b"", proof=(), checkpoint=""),
        )

    async def admit(self, instead_of: Admission | None) -> Admission:
        if instead_of is not None and instead_of.token == self.agent.token:
            await self.agent.attest()
        return self.admission()

    async def publish(self) -> None:
        key = self.inbox.new_epoch(self.agent.subject)
        await self.agent.acting(lambda s: self.world.broker.mailboxes.open(s, self.box, key))

    def made(self, **how: Any) -> Stream:
        return Stream(
            self.target,
            base_url=URL,
            keys=self.keys,
            time=self.time,
            admit=self.admit,
            lookup=self.agent.find,
            inbox=self.inbox,
            outbox=self.outbox,
            **how,
        )

    async def join(self, **how: Any) -> Stream:
        self.stream = self.made(**how)
        await self.stream.start()
        await asyncio.wait_for(self.stream.wait_connected(), PATIENCE_S)
        return self.stream

    async def take(self, count: int, settle: Callable[[Incoming], None] | None = None) -> list[bytes]:
        """The next so many messages, each settled as it comes: done, unless told otherwise."""
        texts: list[bytes] = []
        async with asyncio.timeout(PATIENCE_S):
            while len(texts) < count:
                for incoming in await self.stream.receive(count - len(texts), PATIENCE_S):
                    texts.append(incoming.plaintext)
                    (settle or self.stream.done)(incoming)
        return texts


@dataclass
class Mail:
    """A broker with a gRPC port, which can go away and come back."""

    world: World
    server: GrpcServer
    members: list[Member] = field(default_factory=list)

    async def member(self, name: str, **how: Any) -> Member:
        made = Member(self.world, await self.world.admitted(name), self.server.address, f"acme/mail/{name}")
        self.members.append(made)
        await made.publish()
        await made.join(**how)
        return made

    async def pair(self, **how: Any) -> tuple[Member, Member]:
        return await self.member("a"), await self.member("b", **how)

    async def away(self) -> None:
        await self.server.stop(None)

    async def back(self) -> None:
        self.server = await start(self.world.broker, "127.0.0.1", self.server.port)

    def waiting(self, box: str = "acme/mail/b") -> int:
        return self.world.broker.store.read(lambda tx: tx.mail.waiting(box))

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not true():
                await asyncio.sleep(0.01)


@asynccontextmanager
async def mail(folder: Path, **settings: Any) -> AsyncIterator[Mail]:
    world = await World.make(folder, **({"database": True} | settings))
    made = Mail(world, await start(world.broker, "127.0.0.1", 0))
    try:
        yield made
    finally:
        for member in made.members:
            await member.stream.close()
        await made.server.stop(None)
        await made.world.broker.close()
