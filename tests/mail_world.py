"""Receivers for the mailbox kit: the framework's own Inbox over the broker in process, with time from the machine."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from broker.wire.envelope import Envelope
from broker.wire.jose import p256_from_spki
from broker.wire.leases import AckRequest, AckResponse
from broker.wire.mailbox import Delivery, MailboxInfo, ReceiveResponse
from enclave.clock import BrokerTime
from enclave.keys import AgentKeys
from enclave.mailbox import MAX_LARGE, Inbox, Opened, pad
from enclave.session import Broker
from tests.broker_world import URL, Agent, World, write_bundle

BOX = "acme/mail/b"
REDRIVE = """@id("redrive")
permit (principal, action == Action::"Administer", resource in Path::"acme/mail")
when { principal.simulated && context.operation == "redrive" };

@id("mail")"""


def with_mail(rule: str) -> tuple[str, str]:
    """A change of the bundle that adds `[mail]`."""
    return ("[freshness]", f"[mail]\n{rule}\n\n[freshness]")


async def make(folder: Path, *, database: bool, rule: str = "", redrive: bool = False, **settings: Any) -> World:
    world = await World.make(folder, database=database, **settings)
    changes = [with_mail(rule)] if rule else []
    changes += [('@id("mail")', REDRIVE)] if redrive else []
    if changes:
        await change(world, *changes)
    return world


async def change(world: World, *changes: tuple[str, str], version: int = 2) -> None:
    """Another bundle, in force at once."""
    write_bundle(world.settings.bundles[0], *changes, version=version)
    await world.broker.administration.reload_policies(world.settings.admins[0])


@dataclass
class Receiver:
    """An agent with a mailbox, as the framework reads it."""

    agent: Agent
    name: str = BOX
    inbox: Inbox = field(init=False)

    def __post_init__(self) -> None:
        self.inbox = self.another()

    def another(self) -> Inbox:
        """A fresh start of the same code: new incarnation, empty windows."""
        clock = self.agent.world.machine.clock
        time = BrokerTime(lambda: clock.now().timestamp())
        time.learn(int(clock.now().timestamp()))
        return Inbox(self.name, AgentKeys(self.agent.key, self.agent.sealing), time)

    async def publish(self) -> None:
        key = self.inbox.new_epoch(self.agent.subject)
        await self.agent.acting(lambda s: self.agent.world.broker.mailboxes.open(s, self.name, key))

    async def take(self, **how: int) -> ReceiveResponse:
        return await self.agent.receive(self.name, **how)

    def broker(self) -> Broker:
        identity = self.agent.world.broker.identity
        keys = identity.keys(self.agent.world.broker.clock()).token_keys
        return Broker(
            broker_id=identity.broker_id,
            issuer=URL,
            log_key=identity.log_key,
            identity=identity.key.public_key(),
            token_keys={key.kid: p256_from_spki(key.spki) for key in keys},
        )

    def open(self, delivery: Delivery, senders: dict[str, str], inbox: Inbox | None = None) -> Opened:
        return (inbox or self.inbox).open(delivery, senders, self.broker())

    async def read(self, **how: int) -> list[bytes]:
        """Take, open, handle and acknowledge."""
        got = await self.take(**how)
        texts = []
        for delivery in got.deliveries:
            opened = self.open(delivery, got.senders)
            texts.append(opened.plaintext)
            self.inbox.done(opened.header)
        if got.deliveries:
            await self.ack(ack=tuple(delivery.lease for delivery in got.deliveries))
        return texts

    async def ack(self, **how: Any) -> AckResponse:
        mailboxes = self.agent.world.broker.mailboxes
        answer: AckResponse = await self.agent.acting(lambda s: mailboxes.acknowledge(s, self.name, AckRequest(**how)))
        return answer


@dataclass
class Sender:
    """An agent that writes to one mailbox."""

    agent: Agent
    found: MailboxInfo

    @classmethod
    async def to(cls, agent: Agent, name: str = BOX) -> "Sender":
        return cls(agent=agent, found=await agent.find(name))

    def letter(self, text: bytes = b"hello", **how: Any) -> Envelope:
        return self.agent.envelope(self.found.key, pad(text, MAX_LARGE), **how)

    async def post(self, *texts: bytes, **how: Any) -> list[Envelope]:
        letters = [self.letter(text, **how) for text in texts]
        await self.agent.send(*letters, name=self.found.key.mailbox)
        return letters
