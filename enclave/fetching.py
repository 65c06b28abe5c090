"""Mail over REST, for an agent that has no mail stream, or none at the moment: asked for, opened, and settled request
by request.

    fetching = Fetching(inbox, ledger, calls=…, do=…, broker=…, prepare=…)
    for incoming in await fetching.receive(16, wait_s=10):
        …
        fetching.done(incoming)                                                # or again(incoming, delay_s), reject(…)
        await fetching.settle()

Decides nothing about what may be believed or settled: an answer is read as if it had come on a stream, so single
envelopes and batches of channels meet the same ledger. What several handlers have to say goes in one request, after the
one checkpoint (`keep`) that covers it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Final, final

from broker.wire import stream_pb2 as pb
from broker.wire.channel import ChannelBatch
from broker.wire.envelope import MAX_BATCH
from broker.wire.errors import WireError
from broker.wire.leases import AckRequest, Extension, Nak, Partly, Rejection
from broker.wire.mailbox import ReceiveRequest, ReceiveResponse
from broker.wire.topic import TopicPage
from enclave.client import BrokerCalls
from enclave.durable import Do
from enclave.errors import BrokerRefused
from enclave.ledger import Incoming, Ledger
from enclave.mailbox import Inbox
from enclave.session import Broker

LEASE_S: Final = 30


@final
class Fetching:
    """See the module. `prepare` is awaited before anything is opened; `keep` before anything is called done."""

    def __init__(
        self,
        inbox: Inbox,
        ledger: Ledger,
        *,
        calls: BrokerCalls,
        do: Do,
        broker: Callable[[], Broker],
        prepare: Callable[[], Awaitable[None]],
        keep: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._name = inbox.name
        self._calls = calls
        self._do = do
        self._broker = broker
        self._prepare = prepare
        self._keep = keep
        self._ledger = ledger
        self._incoming: deque[Incoming] = deque()
        self._settling = asyncio.Lock()
        self._unheard = False  # a request was not answered, and may have drawn something

    async def receive(self, limit: int, wait_s: int, *, anew: bool = False, repeat: bool = True) -> list[Incoming]:
        """What has come, up to so many; `anew` what is out, too, as after a request that nobody answered: what that one
        drew would come late, and be refused. Raises what the call raises, at once unless it is to be repeated."""
        if not self._incoming:
            anew, self._unheard = anew or self._unheard, True
            request = ReceiveRequest(max_messages=limit, wait_s=wait_s, lease_s=LEASE_S, anew=anew)
            answer = await self._do(lambda: self._calls.receive(self._name, request, repeat=repeat))
            self._unheard = False
            if answer.deliveries or answer.batches:
                await self._prepare()
            self._incoming.extend(self._ledger.delivered(as_streamed(answer), self._broker(), _now_s()))
            with suppress(BrokerRefused):  # the leases have ended meanwhile; what is said of them is said again
                await self.settle()
        return self.ready(limit)

    def ready(self, limit: int) -> list[Incoming]:
        """What has come, up to so many."""
        return [self._incoming.popleft() for _ in range(min(limit, len(self._incoming)))]

    def done(self, incoming: Incoming) -> None:
        """Handled: it will not come again."""
        self._ledger.done(incoming)

    def again(self, incoming: Incoming, delay_s: int = 0, code: str = "") -> None:
        """Not handled: it comes again, no sooner than in `delay_s`."""
        self._ledger.again(incoming, delay_s, code)

    def reject(self, incoming: Incoming, code: str) -> None:
        """Not to be handled: to the dead letters, with that code."""
        self._ledger.reject(incoming, code)

    async def settle(self) -> None:
        """Return when the broker has heard everything that was to be said when this was called.

        Raises what keeping a checkpoint and the call raise: then it comes again, and is recognised.
        """
        async with self._settling:
            if self._keep is not None and (upto := self._ledger.unkept):
                await self._keep()
                self._ledger.kept(upto)
            told = pb.ToBroker()
            self._ledger.take(told)
            for start in range(0, len(told.settles), MAX_BATCH):
                request = _request(told.settles[start : start + MAX_BATCH])
                await self._do(partial(self._calls.ack, self._name, request))

    async def extend(self) -> None:
        """Ask for more time for what is in hand. Raises as `settle` does."""
        if self._ledger.keep(_now_s()):
            await self.settle()

    async def close(self) -> None:
        """What was received and not settled comes again."""


def _now_s() -> float:
    """For leases; nothing that is proved depends on it."""
    return asyncio.get_running_loop().time()


def as_streamed(answer: ReceiveResponse | TopicPage) -> pb.FromBroker:
    """An answer as it would have come on a stream."""
    message = pb.FromBroker(senders=answer.senders)
    for opening in answer.openings:
        message.openings.add(
            envelope=opening.envelope.to_bytes(),
            accepted_at_ms=opening.accepted_at_ms,
            acceptance=opening.acceptance,
            sender_token=opening.sender_token,
        )
    for one in answer.deliveries:
        message.parcels.add(
            kind="envelope",
            content=one.envelope.to_bytes(),
            lease=one.lease,
            attempt=one.attempt,
            accepted_at_ms=one.accepted_at_ms,
            acceptance=one.acceptance,
            sender_token=one.sender_token,
            messages=1,
        )
    for batch in answer.batches:
        message.parcels.add(
            kind="batch",
            content=batch.batch,
            lease=batch.lease,
            attempt=batch.attempt,
            accepted_at_ms=batch.accepted_at_ms,
            acceptance=batch.acceptance,
            remaining=batch.remaining,
            sender_token=batch.sender_token,
            messages=len(batch.remaining) or _count(batch.batch),
        )
    return message


def _count(batch: bytes) -> int:
    with suppress(WireError):  # it is refused where it is opened
        return len(ChannelBatch.from_bytes(batch))
    return 1


def _request(settles: Sequence[pb.Settle]) -> AckRequest:
    def those(verb: int) -> Iterator[pb.Settle]:
        return (settle for settle in settles if settle.verb == verb)

    def but(settle: pb.Settle) -> tuple[int, ...]:
        return tuple(getattr(settle, "except"))

    acks = list(those(pb.Settle.ACK))
    return AckRequest(
        ack=tuple(one.lease for one in acks if not but(one)),
        partly=tuple(
            Partly(lease=one.lease, but=but(one), delay_s=one.delay_s, code=one.code) for one in acks if but(one)
        ),
        nak=tuple(Nak(lease=one.lease, delay_s=one.delay_s, code=one.code) for one in those(pb.Settle.NAK)),
        extend=tuple(Extension(lease=one.lease, lease_s=one.delay_s) for one in those(pb.Settle.EXTEND)),
        reject=tuple(Rejection(lease=one.lease, code=one.code) for one in those(pb.Settle.REJECT)),
    )
