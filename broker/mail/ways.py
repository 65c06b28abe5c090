"""Where mail goes: what mailboxes and topics do not have in common, for whoever takes in a batch or an envelope.

Decides who keeps the keys that may be sealed to, what has to be settled before something is taken in, where it then
lies, and whom to wake. What is taken in at all is decided by routing.py and channels.py.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal, Protocol, final

from broker.errors import BrokerError
from broker.mail.bell import Bell
from broker.mail.deadletters import DeadLetters
from broker.mail.mailkeys import Ring, ring_of
from broker.mail.routing import open_box
from broker.ports import Transaction
from broker.ports.mail import NewMessage, Queued, Quota
from broker.ports.topics import TopicMessage
from broker.wire.keys import NO_INCARNATION, Place

Settle = Callable[[str, datetime], Awaitable[Ring]]
"""A topic's keys, once whoever may not read there any more is out."""


class Way(Protocol):
    """Where a channel leads, for one batch."""

    @property
    def kind(self) -> Literal["mailbox", "topic"]: ...
    @property
    def address(self) -> str:
        """What rows of channels call it. No mailbox has the address of a topic."""

    async def ready(self, at: datetime) -> None:
        """What must be settled before the transaction. Raises BrokerError."""

    def closed(self, tx: Transaction) -> BrokerError | None:
        """Why nothing can be sent there."""

    def accepts(self, tx: Transaction, key: bytes, incarnation: bytes) -> bool:
        """Whether what was opened to that key may go on."""

    def busy(self, tx: Transaction, sender: str) -> frozenset[bytes]:
        """First halves of the names of the sender's channels of which something lies there."""

    def queue(self, tx: Transaction, message: NewMessage, at: datetime) -> Queued: ...
    def ring(self) -> None: ...


@final
@dataclass(frozen=True, slots=True)
class ToMailbox:
    """The way to a mailbox."""

    address: str
    dead: DeadLetters
    bell: Bell
    kind: Literal["mailbox"] = "mailbox"

    async def ready(self, at: datetime) -> None:
        pass

    def closed(self, tx: Transaction) -> BrokerError | None:
        box = open_box(tx, self.address)
        return box if isinstance(box, BrokerError) else None

    def accepts(self, tx: Transaction, key: bytes, incarnation: bytes) -> bool:
        return tx.mail.accepts(self.address, key, incarnation)

    def busy(self, tx: Transaction, sender: str) -> frozenset[bytes]:
        return tx.mail.channels(self.address, sender)

    def queue(self, tx: Transaction, message: NewMessage, at: datetime) -> Queued:
        return self.dead.queue(tx, message, at)

    def ring(self) -> None:
        self.bell.ring(self.address)


@final
class ToTopic:
    """The way of an envelope or a batch to a topic. `ready` comes first."""

    kind: Final = "topic"

    def __init__(self, topic: str, settle: Settle, quota: Quota, bell: Bell) -> None:
        self._topic = topic
        self._settle = settle
        self._quota = quota
        self._bell = bell
        self._ring: Ring = ()

    @property
    def address(self) -> str:
        return f"~topic/{self._topic}"  # no segment of a mailbox's name begins like this

    async def ready(self, at: datetime) -> None:
        """Whoever may not read any more is out, and the key rolled. Raises BrokerError mailbox.unknown."""
        self._ring = await self._settle(self._topic, at)

    def closed(self, _: Transaction) -> BrokerError | None:
        return None

    def accepts(self, tx: Transaction, key: bytes, incarnation: bytes) -> bool:
        """Whether that is the key of now, and still the one that it was when readers were looked at."""
        newest = ring_of(tx, Place.TOPIC, self._topic)[-1:]
        named = (key.hex(), incarnation) == (self._ring[-1].thumbprint, NO_INCARNATION)
        return named and newest == self._ring[-1:]

    def busy(self, tx: Transaction, sender: str) -> frozenset[bytes]:
        return tx.topics.channels(self._topic, sender)

    def queue(self, tx: Transaction, message: NewMessage, _: datetime) -> Queued:
        kept = TopicMessage(
            topic=self._topic,
            sender=message.sender,
            msg_id=message.msg_id,
            digest=message.digest,
            key=message.key,
            accepted_at_ms=message.accepted_at_ms,
            expires_at_ms=message.expires_at_ms,
            envelope=message.envelope,
            kind=message.kind,
            count=message.count,
        )
        return tx.topics.publish(kept, self._quota)

    def ring(self) -> None:
        self._bell.ring(bell_of(self._topic))


def bell_of(topic: str) -> str:
    """What is rung when something was published there."""
    return f"topic/{topic}"
