"""The mail stream: both directions of one agent's mail on one connection, each message a handful of batches.

Decides who is on the stream, and for how long: the DPoP proof in the metadata covers the first message, a renewal
proves the next token, and the stream is cut when the token ends, or as soon as the generation rises and the agent no
longer passes. One stream empties a mailbox; the newest one of its owner replaces the one before. Deliveries stay within
the credit that the agent gave, in messages (a batch may overdraw it once). What may be sent, and what is delivered, is
decided by channels.py and mailboxes.py; nothing here looks into a message.

What is under a lease when a stream ends is recalled: it comes again, in order, and the attempt does not count, because
nobody knows whether it arrived.
"""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, final

import grpc

from broker.calls import REFUSALS
from broker.errors import BrokerCode, BrokerError
from broker.mail.drawing import Drawn
from broker.ports import Transaction
from broker.ports.mail import MAX_OUT
from broker.reasons import Refusal
from broker.rest.refusals import as_refusal
from broker.rpc import doors
from broker.rpc.following import Following
from broker.rpc.settling import Settling, saving
from broker.service import Broker
from broker.sessions import Session
from broker.status import status_of
from broker.wire import stream_pb2 as pb
from broker.wire.channel import MAX_OUTSTANDING, ChannelSend, parsed
from broker.wire.errors import WireCode, WireError
from broker.wire.leases import DEFAULT_LEASE_S, MAX_LEASE_S
from broker.wire.mailbox import SendStatus
from broker.wire.names import MAX_RESOURCE
from broker.wire.state import SaveRequest
from policies.errors import Refused

SERVICE: Final = "cloister.v1.Mail"
METHOD: Final = f"/{SERVICE}/Stream"
MAX_MESSAGE: Final = 8 << 20
FULL: Final = 1 << 18  # bytes of parcels in a message, after which the next one begins: it is read while that is made
MAX_FULL: Final = 16  # such messages that wait to be written, beyond which nothing more is drawn
MAX_FLYING: Final = 64  # batches of one stream that are being written
MAX_STREAMS: Final = 8  # of one agent
MAX_UNREAD: Final = 4096  # answers that lie ready; an agent that does not read them is not read either
MAX_KNOWN: Final = 4096  # openings and tokens that are not sent twice; then they are sent again
WATCH_S: Final = 2.0  # how often the token's end is looked at; a rise of the generation is heard at once
Context = grpc.aio.ServicerContext[Any, Any]
logger = logging.getLogger("cloister.broker.stream")


@final
class Streams:
    """Every stream of this process."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._live: dict[MailStream, None] = {}  # oldest first
        self._emptying: dict[str, MailStream] = {}
        broker.generation.on_change(self._generation_rose)
        broker.mailboxes.streams_end_by(self.end)

    def _generation_rose(self) -> None:
        for stream in self._live:
            stream.look.set()

    def empties(self, mailbox: str, stream: "MailStream") -> None:
        """From now on this stream empties the mailbox; the one that did is cut."""
        if (before := self._emptying.get(mailbox)) is not None:
            before.superseded.set()
        self._emptying[mailbox] = stream

    async def end(self, mailbox: str) -> None:
        """Its owner begins anew: nothing is drawn for the stream that there was any more, so that a recall is final."""
        if (before := self._emptying.pop(mailbox, None)) is not None:
            before.superseded.set()
            await before.over.wait()

    def _make_room(self, stream: "MailStream") -> None:
        """There are so many streams for everybody: an agent that begins too many loses its oldest."""
        own = [one for one in self._live if one.subject == stream.subject and not one.superseded.is_set()]
        for one in own[: len(own) - MAX_STREAMS + 1]:
            one.superseded.set()

    def is_latest(self, mailbox: str, stream: "MailStream") -> bool:
        return self._emptying.get(mailbox) is stream

    async def serve(self, _: object, context: Context) -> None:
        broker, call_id = self._broker, doors.correlation_id()
        try:
            stream = await self._begin(context, call_id)
        except Exception as error:  # noqa: BLE001  # each becomes a refusal; what nobody foresaw is logged by its type
            await doors.refuse(context, broker, as_refusal(error, call_id), call_id)
        self._make_room(stream)
        self._live[stream] = None
        ended: Exception | None = None
        died = True  # unless the reader ends it, or the broker does
        try:
            await stream.run()
            died = False
        except Exception as error:  # noqa: BLE001  # as above
            ended, died = error, isinstance(error, WireError)
        finally:  # also where the caller went while it was being ended
            del self._live[stream]
            stream.over.set()
            await stream.leave(died=died)
            if stream.mailbox and self.is_latest(stream.mailbox, stream):
                del self._emptying[stream.mailbox]
        if ended is not None:
            await doors.refuse(context, broker, as_refusal(ended, call_id), call_id)

    async def _begin(self, context: Context, call_id: str) -> "MailStream":
        """Prove who is there. Raises what proving and judging do."""
        source_ip, limits = doors.address_of(context.peer()), self._broker.limits
        limits.enter(source_ip, time.monotonic())
        raw = await doors.first(self._broker, context)
        token = doors.token(self._broker, context.invocation_metadata(), METHOD, raw)
        limits.honest(source_ip, time.monotonic())
        hello = (first := parsed(pb.ToBroker, raw, MAX_MESSAGE)).hello
        if not first.HasField("hello") or len(hello.mailbox) > MAX_RESOURCE or not 0 < hello.lease_s <= MAX_LEASE_S:
            raise WireError(WireCode.BODY_FIELD_INVALID, "hello")
        await context.send_initial_metadata(())  # now: behind a write that is broken off a refusal would send it again
        stream = MailStream(self, self._broker, context, token, hello, call_id)
        await stream.welcome()
        return stream


@final
class MailStream:
    """One stream."""

    def __init__(
        self, streams: Streams, broker: Broker, context: Context, token: str, hello: pb.Hello, call_id: str
    ) -> None:
        self._streams = streams
        self._broker = broker
        self._context = context
        self._token = token
        self._call_id = call_id
        self.subject = ""
        self._lease_s = hello.lease_s or DEFAULT_LEASE_S
        self._credit = min(hello.credit, MAX_OUTSTANDING)
        self._credited = asyncio.Event()  # or what lay ready was written
        self._starved = False  # there is mail, and nothing of it could be drawn
        self._flying = asyncio.Semaphore(MAX_FLYING)
        self._tasks: set[asyncio.Task[None]] = set()
        self._leases: dict[str, str] = {}  # that were given here and not settled, with whose parcel each is for
        self._openings: set[bytes] = set()
        self._tokens: dict[str, str] = {}
        self._full: deque[pb.FromBroker] = deque()
        self._next = pb.FromBroker()
        self._octets = 0  # of parcels in it
        self._news = asyncio.Event()
        self._read_on = asyncio.Event()
        self._refused: Refusal | None = None  # what ends the stream
        self._following = Following(broker, self, call_id)
        self.mailbox: Final = hello.mailbox
        self.look: Final = asyncio.Event()
        self.superseded: Final = asyncio.Event()
        self.over: Final = asyncio.Event()  # it draws nothing any more

    async def session(self) -> Session:
        """Of the agent, as long as it may act. Raises what judging does."""
        return await self._broker.sessions.of_token(self._token, self._broker.clock())

    async def welcome(self) -> None:
        """Judge the agent, claim the mailbox, and say until when. Raises what judging does, mailbox.*"""
        session = await self.session()
        self.subject = session.subject
        if self.mailbox:
            await self._broker.drawing.begin(session, self.mailbox, self._streams.end)
            self._broker.mailboxes.on_stream(session, self.mailbox)
            self._streams.empties(self.mailbox, self)
        self._greet(session)

    def _greet(self, session: Session) -> None:
        self._next.welcome.ends_at_s = session.record.expires_at_s
        self._next.welcome.nonce = self._broker.gate.nonce(self._broker.clock())
        self._news.set()

    async def run(self) -> None:
        """Until the agent goes, or may no longer stay. Raises what ended it."""
        works: list[Coroutine[Any, Any, None]] = [self._read(), self._write(), self._watch(), self._yield_place()]
        if self.mailbox:
            works.append(self._deliver())
        tasks = [asyncio.create_task(work) for work in works]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in (*tasks, *self._tasks):
                task.cancel()
            await asyncio.gather(*tasks, *self._tasks, return_exceptions=True)

    async def leave(self, *, died: bool) -> None:
        """Recall what is still out, unless a later stream has done so."""
        await self._following.close()
        if self.mailbox and self._leases and self._streams.is_latest(self.mailbox, self):
            with contextlib.suppress(BrokerError):  # a closed store: the leases end by themselves
                await self._broker.drawing.left(self.mailbox, self._leases, died=died)

    # ── from the agent ─────────────────────────────────────────────────────────────────────────────────────────────

    async def _read(self) -> None:
        while isinstance(raw := await self._context.read(), bytes):
            message = parsed(pb.ToBroker, raw, MAX_MESSAGE)
            if message.HasField("hello"):
                raise WireError(WireCode.BODY_FIELD_INVALID, "a second hello")
            if message.HasField("renewal"):
                await self._renew(message.renewal)
            for send in message.sends:
                await self._turn()
                self._spawn(self._send(send.id, await self._begun(send)))
            if (message.settles or message.HasField("save")) and not self.mailbox:
                raise WireError(WireCode.BODY_FIELD_INVALID, "settles without a mailbox")
            if message.HasField("save"):
                await self._turn()
                self._spawn(self._save(saving(message.save), Settling.of(message.save.settles)))
            if message.settles:
                await self._turn()
                self._spawn(self._settle(Settling.of(message.settles)))
            self._following.follow(message.follows)
            if message.credit:
                self._credit = min(self._credit + message.credit, MAX_OUTSTANDING)
                self._credited.set()
        await asyncio.gather(*self._tasks, return_exceptions=True)  # what was said before the end counts

    async def _turn(self) -> None:
        """Until there is room for another answer, and one more may be under way."""
        while len(self._next.results) + len(self._next.lost) + len(self._next.saved) >= MAX_UNREAD:
            self._read_on.clear()
            await self._read_on.wait()
        await self._flying.acquire()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._landed)

    def _landed(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._flying.release()
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failed(error)

    def failed(self, error: BaseException) -> None:
        """End the stream, with what refused it or without a word."""
        if isinstance(error, REFUSALS):
            self._refused = self._refused or error
        else:
            logger.error("stream.failed", exc_info=error, extra={"correlation_id": self._call_id})
        self.look.set()  # the watch ends the stream, or finds out what became of the agent, or of the broker

    async def _begun(self, send: pb.StreamSend) -> Callable[[], Awaitable[SendStatus]] | Refusal:
        """Checked now, so that sends keep their order; what is left needs the store alone."""
        try:
            session = await self.session()
            sent = ChannelSend(batch=send.batch, opening=send.opening)
            return self._broker.channels.submit(
                session, send.mailbox, sent, topic=send.topic, correlation_id=self._call_id
            )
        except REFUSALS as error:
            return error

    async def _send(self, number: int, begun: Callable[[], Awaitable[SendStatus]] | Refusal) -> None:
        result = pb.StreamResult(id=number)
        try:
            if isinstance(begun, Exception):
                raise begun
            result.status = await begun()
        except REFUSALS as error:
            result.status = SendStatus.REFUSED
            policy = isinstance(error, Refused)
            result.code = BrokerCode.POLICY_REFUSED if policy else str(error.code)
            result.retry_after_s = (isinstance(error, BrokerError) and error.retry_after_s) or 0
            self._broker.metrics.refused(result.code)
        self._next.results.append(result)
        self._news.set()

    async def _save(self, request: SaveRequest, settling: Settling) -> None:
        """Keep a checkpoint, and with it take what it says is done."""
        saved = pb.Saved(number=request.number)
        try:
            states = self._broker.states
            keep = await states.saving(await self.session(), self.mailbox, request, correlation_id=self._call_id)
            await self._settle(settling, keep)
            signed = states.signed(self.mailbox, request)
            saved.digest, saved.signature = signed.digest, signed.signature
        except REFUSALS as error:
            saved.code = BrokerCode.POLICY_REFUSED if isinstance(error, Refused) else str(error.code)
            saved.status = status_of(error)
            self._broker.metrics.refused(saved.code)
        self._next.saved.append(saved)
        self._news.set()

    async def _settle(self, settling: Settling, first: Callable[[Transaction], None] | None = None) -> None:
        session = await self.session()
        try:
            answer = await self._broker.mailboxes.acknowledge(session, self.mailbox, settling.request, first=first)
            lost = answer.lost
        except BrokerError as error:
            if error.code is not BrokerCode.LEASE_LOST:
                raise
            lost = settling.named
        for lease in settling.ended:
            self._leases.pop(lease, None)
        if self._starved:
            self._broker.drawing.room(self.mailbox)
        if lost:
            self._next.lost.extend(lost)
            self._news.set()

    async def _renew(self, renewal: pb.Renewal) -> None:
        """The same agent goes on under a newer token. Raises what proving and judging do."""
        metadata = (("authorization", f"DPoP {renewal.token}"), ("dpop", renewal.proof))
        self._token = doors.token(self._broker, metadata, METHOD)
        session = await self.session()
        if session.subject != self.subject:
            raise BrokerError(BrokerCode.DPOP_KEY, f"{session.subject} renews the stream of {self.subject}")
        self._greet(session)

    # ── to the agent ───────────────────────────────────────────────────────────────────────────────────────────────

    async def carries(self) -> None:
        """Until little enough waits to be written for more to be drawn."""
        while len(self._full) >= MAX_FULL:
            self._credited.clear()
            await self._credited.wait()

    def news(self) -> pb.TopicNews:
        """A place for what came to a topic, in a message that goes as soon as it can."""
        if self._next.news:
            self._begin_next()
        self._news.set()
        return self._next.news.add()

    async def _write(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            self._begin_next()
            self._read_on.set()
            while self._full:
                await self._context.write(self._full.popleft().SerializeToString())
                self._credited.set()

    def _begin_next(self) -> None:
        self._full.append(self._next)
        self._next, self._octets = pb.FromBroker(), 0

    async def _deliver(self) -> None:
        while not self._broker.bell.stopping:
            while self._credit <= 0 or len(self._full) >= MAX_FULL:
                self._credited.clear()
                await self._credited.wait()
            session = await self.session()
            rung = self._broker.drawing.listen(self.mailbox)
            self._starved = True  # before the look: what is settled during it may be what it waited for
            try:
                drawn = await self._broker.drawing.draw(
                    session,
                    self.mailbox,
                    messages=self._credit,
                    lease_s=self._lease_s,
                    correlation_id=self._call_id,
                )
            except BrokerError as error:
                if error.code is BrokerCode.GENERATION_MOVED:
                    continue
                raise
            if drawn.parcels:
                self._hand_on(drawn)
            if drawn.cut:
                continue
            self._starved = bool(drawn.parcels) or self._broker.drawing.waits(self.mailbox)
            await self._broker.drawing.more(rung, waits=self._starved)
        raise BrokerError(BrokerCode.BROKER_STOPPING, "the broker stops")

    def _hand_on(self, drawn: Drawn) -> None:
        for known in (self._openings, self._tokens):
            if len(known) >= MAX_KNOWN:
                known.clear()
        for subject, token in drawn.tokens.items():
            if self._tokens.get(subject) != token:
                self._tokens[subject] = self._next.senders[subject] = token
        for parcel in drawn.parcels:
            if self._octets >= FULL:
                self._begin_next()
            message, found = self._next, parcel.message
            self._octets += len(found.envelope)
            if parcel.channel and parcel.channel not in self._openings:
                self._openings.add(parcel.channel)
                for opening in self._broker.drawing.openings(self.mailbox, parcel):
                    message.openings.add(
                        envelope=opening.envelope.to_bytes(),
                        accepted_at_ms=opening.accepted_at_ms,
                        acceptance=opening.acceptance,
                        sender_token=opening.sender_token,
                    )
            message.parcels.add(
                kind=found.kind,
                content=found.envelope,
                lease=found.lease,
                attempt=found.attempt,
                accepted_at_ms=found.accepted_at_ms,
                acceptance=parcel.acceptance,
                remaining=found.remaining,
                sender_token=parcel.sender_token,
                messages=parcel.count,
            )
            self._credit -= parcel.count
            self._leases[found.lease] = found.sender
        while len(self._leases) > MAX_OUT:  # of so many some have ended
            del self._leases[next(iter(self._leases))]
        self._news.set()

    # ── who may stay ───────────────────────────────────────────────────────────────────────────────────────────────

    async def _watch(self) -> None:
        """Raises as soon as the agent may no longer act."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WATCH_S):
                    await self.look.wait()
            self.look.clear()
            if self._refused is not None:
                raise self._refused
            session = await self.session()
            if self.mailbox:  # a receiver without credit, too, is there
                await self._broker.leases.hold(session, self.mailbox, self._broker.clock())
            if self._broker.bell.stopping:
                raise BrokerError(BrokerCode.BROKER_STOPPING, "the broker stops")

    async def _yield_place(self) -> None:
        await self.superseded.wait()
        raise BrokerError(BrokerCode.STREAM_SUPERSEDED, f"a later stream took the place of one for {self.mailbox!a}")


def services(broker: Broker) -> tuple[grpc.GenericRpcHandler, ...]:
    """The stream's handler. Messages arrive as bytes: the first one's hash is in the proof."""
    handler: Any = grpc.stream_stream_rpc_method_handler(Streams(broker).serve)
    return (grpc.method_handlers_generic_handler(SERVICE, {"Stream": handler}),)
