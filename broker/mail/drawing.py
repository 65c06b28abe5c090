"""Mail as a stream hands it on: parcels in order, beside each new channel its opening, and a way to take them back.

Decides nothing about who may read what (leases.py does): it adds the broker's signatures, and recalls what was out when
a stream ended. A recalled delivery does not count as an attempt: whether it arrived, nobody knows. But what kills each
next reader of a durable mailbox must end some time, so what one was handling when it was lost without a word counts. A
reader that takes its leave, or that is sent away, has not died of anything.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, final

from broker.mail.acceptance import Acceptances
from broker.mail.bell import Bell
from broker.mail.leases import Leases, Wanted
from broker.ports import Clock, Store
from broker.ports.mail import LeasedMessage
from broker.sessions import Session
from broker.wire.channel import channel_of
from broker.wire.mailbox import OpeningDelivery

MAX_PARCELS: Final = 16  # at once: a fresh token is drawn for each, wanted or not
LOOK_AGAIN_S: Final = 1.0  # a lease may end, or a delay, while somebody waits
LOOK_IDLE_S: Final = 8.0  # nothing can come unheard; but the owner is to be noted as being there


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """A parcel under a lease, and the broker's word about when it came."""

    message: LeasedMessage
    acceptance: bytes
    channel: bytes  # empty for an envelope
    sender_token: str = field(default="", repr=False)

    @property
    def count(self) -> int:
        """How many messages it is worth."""
        return len(self.message.remaining) or self.message.count


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """What one look into a mailbox brought; `tokens` are peer tokens of the senders, by subject. Unless it was `cut`
    short by a bound of its own, there is no more before somebody rings."""

    parcels: tuple[Parcel, ...]
    tokens: dict[str, str] = field(repr=False)
    cut: bool = False


@final
class Drawing:
    """Draws mail for streams."""

    def __init__(self, *, store: Store, leases: Leases, accepted: Acceptances, bell: Bell, clock: Clock) -> None:
        self._store = store
        self._leases = leases
        self._accepted = accepted
        self._bell = bell
        self._clock = clock

    async def begin(self, session: Session, name: str, end: Callable[[str], Awaitable[None]]) -> None:
        """Everything that is out comes again, once what was begun before has been ended: the owner begins anew. Raises
        BrokerError mailbox.*"""
        await self._leases.hold(session, name, self._clock())
        await end(name)
        await self.recall(name)

    async def recall(self, name: str, *leases: str) -> None:
        """End those leases, or all of the mailbox, as if they had not been given."""
        now_ms = int(self._clock().timestamp() * 1000)
        if await self._store.transact(lambda tx: tx.mail.recall(name, leases, now_ms=now_ms)):
            self._bell.ring(name)

    async def left(self, name: str, leases: dict[str, str], *, died: bool) -> None:
        """A stream is gone on which these leases, with their senders, were handed on: recall what was out.

        A reader of a durable mailbox that `died` may have done so of what it handled: each sender's first. Those end by
        themselves, or when somebody else opens the mailbox, and count; when the same reader comes back they do not.
        """
        box = self._store.read(lambda tx: tx.mail.find(name))
        suspect = died and box is not None and box.kind == "durable"
        at_work = {sender: lease for lease, sender in reversed(leases.items())} if suspect else {}
        recalled = leases.keys() - set(at_work.values())
        if recalled:
            await self.recall(name, *recalled)

    async def draw(
        self, session: Session, name: str, *, messages: int, lease_s: int, correlation_id: str = ""
    ) -> Drawn:
        """What is there now, about so many messages. Raises as `Leases.take` does."""
        wanted = Wanted(parcels=MAX_PARCELS, messages=messages, lease_s=lease_s)
        taken = await self._leases.take(session, name, wanted, correlation_id=correlation_id)
        parcels = tuple(self._parcel(name, message, taken.past) for message in taken.messages)
        return Drawn(parcels=parcels, tokens=taken.tokens, cut=taken.cut)

    def listen(self, name: str) -> asyncio.Event:
        """To be asked for before `draw`, and given to `more`, so that nothing comes unheard."""
        return self._bell.listen(name)

    def waits(self, name: str) -> bool:
        """Whether there is mail that may not be handed out now: it is out already, or its time has not come."""
        return self._store.read(lambda tx: tx.mail.waiting(name)) > 0

    async def more(self, rung: asyncio.Event, *, waits: bool) -> None:
        """Until there may be more to draw."""
        await self._bell.rings(rung, LOOK_AGAIN_S if waits else LOOK_IDLE_S)

    def room(self, name: str) -> None:
        """What was out has come back: there may be more to draw."""
        self._bell.ring(name)

    def _parcel(self, name: str, message: LeasedMessage, past: dict[str, str]) -> Parcel:
        return Parcel(
            message=message,
            acceptance=self._accepted.of(name, message.digest, message.accepted_at_ms),
            channel=channel_of(message.envelope) if message.kind == "batch" else b"",
            sender_token=past.get(message.lease, ""),
        )

    def openings(self, name: str, parcel: Parcel) -> Iterator[OpeningDelivery]:
        """Of the channel on which it came, unless that is lost."""
        return self._accepted.openings(name, {parcel.channel: bool(parcel.sender_token)})
