"""The mail stream of one agent: sends, deliveries and their settling over one gRPC connection that mends itself.

    stream = Stream(target, base_url=…, keys=…, time=…, admit=…, lookup=…, inbox=…, outbox=…)
    await stream.start()
    msg_id = await stream.send("acme/mail/b", kind="note", plaintext=b"…")     # the broker holds it durably
    async for incoming in stream.deliveries():
        …
        stream.done(incoming)                                                  # or again(incoming, delay_s), reject(…)

Decides with which proof a connection begins, and what goes into the next message; when to connect is `staying`'s, what
may be sent and what may be believed is decided in `lanes`, `ledger` and `channel`. Whatever gathers while a message is
being written goes with the next one, so batches grow with the load and a lone message waits for nobody. After a lost
connection everything that the broker did not answer goes again as the same bytes, and what it had delivered comes again
under new leases.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final, final

import grpc

from attestation.errors import CloisterError
from broker.wire import stream_pb2 as pb
from broker.wire.mailbox import MailboxInfo
from broker.wire.topic import TopicInfo
from enclave.channel import Outgoing, ReceivingChannels, SendingChannel
from enclave.clock import BrokerTime
from enclave.detour import Detour
from enclave.errors import AgentError, Code
from enclave.keeping import Keep, Keeping
from enclave.keys import AgentKeys
from enclave.lanes import Announce, Carried, Item, Lane
from enclave.ledger import Incoming, Ledger
from enclave.mailbox import DEFAULT_TTL_S, Found, Inbox, Outbox
from enclave.session import Admission
from enclave.staying import LEASE_S, SEND_OCTETS, Admit, Find, Staying, now_s, why

METHOD: Final = "/cloister.v1.Mail/Stream"
CREDIT: Final = 1024  # messages that may be delivered and not settled; no sender is given more than 767 of them
LEAVE_S: Final = 1.0  # for the broker to hear that a reader leaves
MAX_QUEUE: Final = 4096  # messages to one mailbox that wait for the broker, before `send` waits itself
Lookup = Callable[[str], Awaitable[MailboxInfo]]
TopicLookup = Callable[[str], Awaitable[TopicInfo]]
Prepare = Callable[[], Awaitable[None]]
Call = grpc.aio.StreamStreamCall[Any, Any]


@final
class Stream(Staying):
    """See the module. Runs on one event loop; `close` fails what is still waiting.

    `admit(None)` is the present admission; `admit(old)` a newer one than that, which the broker no longer takes.
    `lookup` asks the broker for a mailbox's key, `lookup_topic` for a topic's. `prepare` is awaited before a new sender
    is judged, so that the list of the fallen can be fetched; `keep` before what was handled is called done, so that a
    checkpoint says so. `detour` is taken while no stream can be opened; `find` says then where the broker has it now.
    """

    def __init__(
        self,
        target: str,
        *,
        base_url: str,
        keys: AgentKeys,
        time: BrokerTime,
        admit: Admit,
        lookup: Lookup,
        lookup_topic: TopicLookup | None = None,
        inbox: Inbox,
        outbox: Outbox,
        channels: ReceivingChannels | None = None,
        ledger: Ledger | None = None,
        detour: Detour | None = None,
        find: Find | None = None,
        prepare: Prepare | None = None,
        keep: Keep | None = None,
        receive: bool = True,
        credit: int = CREDIT,
        carried: Carried | None = None,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        ledger = ledger or Ledger(
            inbox, channels or ReceivingChannels(inbox, time), lease_s=LEASE_S, keeps=keep is not None
        )
        super().__init__(
            target,
            admit=admit,
            ledger=ledger,
            keeping=Keeping(ledger, keep, lambda: self._news.set()) if keep is not None else None,
            detour=detour,
            find=find,
            carried=carried,
            credentials=credentials,
        )
        self._url = base_url.rstrip("/") + METHOD
        self._keys = keys
        self._time = time
        self._lookup = lookup
        self._lookup_topic = lookup_topic
        self._outbox = outbox
        self._inbox = inbox
        self._prepare = prepare
        self._receive = receive
        self._credit = credit
        self._incoming: deque[Incoming] = deque()
        self._looking: dict[Lane, asyncio.Task[None]] = {}
        self._renewal: Admission | None = None
        self._nonce: str | None = None
        self._closed = self._leaving = False
        self._left = asyncio.Event()  # the connection on which it was leaving has ended
        self._task: asyncio.Task[None] | None = None

    # ── for the agent ──────────────────────────────────────────────────────────────────────────────────────────────

    async def start(self) -> None:
        """Begin to connect; returns at once."""
        self._task = asyncio.create_task(self._run(), name="cloister-stream")
        if self._keeping is not None:
            self._keeping.start()

    def post(
        self,
        mailbox: str,
        *,
        kind: str,
        plaintext: bytes,
        labels: frozenset[str] = frozenset(),
        in_reply_to: bytes = b"",
        reply_to: str = "",
        ttl_s: float = DEFAULT_TTL_S,
        announce: Announce | None = None,
        topic: bool = False,
    ) -> asyncio.Future[bytes]:
        """Send when there is room; the future has the message's id once the broker holds it durably. To a mailbox, or
        if it is one to a topic.

        `announce` hears id and mailbox owner before an answer can come; again, with another id, if the message had to
        be sealed anew because the broker refused the first channel. The future raises BrokerRefused, EnvelopeRefused,
        WireError, TokenRefused, AgentError agent.not_running.
        """
        accepted: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        message = Outgoing(kind, plaintext, labels, in_reply_to, reply_to, ttl_s)
        if self._closed:
            accepted.set_exception(AgentError(Code.AGENT_NOT_RUNNING, "the stream was closed"))
            return accepted
        self._lanes.post(mailbox, Item(message, accepted, announce), topic=topic)
        self._news.set()
        return accepted

    async def send(self, mailbox: str, *, kind: str, plaintext: bytes, **how: Any) -> bytes:
        """`post`, once there is room for it, and wait. Raises as the future of `post` does."""
        while self._lanes.outstanding(mailbox, topic=how.get("topic", False)) >= MAX_QUEUE and not self._closed:
            self._room.clear()
            await self._room.wait()
        return await self.post(mailbox, kind=kind, plaintext=plaintext, **how)

    async def deliveries(self) -> AsyncIterator[Incoming]:
        """Messages as they come, until the stream is closed. For one reader."""
        while not self._closed:
            while self._incoming:
                yield self._incoming.popleft()
            self._arrived.clear()
            await self._arrived.wait()

    async def receive(self, limit: int, timeout_s: float) -> list[Incoming]:
        """What has come, up to so many; waits for a first one as long as that."""
        if not self._incoming:
            self._arrived.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._arrived.wait()
        return self.ready(limit)

    def ready(self, limit: int) -> list[Incoming]:
        """What has come, up to so many."""
        return [self._incoming.popleft() for _ in range(min(limit, len(self._incoming)))]

    def done(self, incoming: Incoming) -> None:
        """Handled: it will not come again."""
        self._ledger.done(incoming)
        self._told()

    def again(self, incoming: Incoming, delay_s: int = 0, code: str = "") -> None:
        """Not handled: it comes again, no sooner than in `delay_s`."""
        self._ledger.again(incoming, delay_s, code)
        self._told()

    def reject(self, incoming: Incoming, code: str) -> None:
        """Not to be handled: to the dead letters, with that code."""
        self._ledger.reject(incoming, code)
        self._told()

    async def settle(self) -> None:
        """What was said of deliveries goes by itself."""

    async def extend(self) -> None:
        """So do the requests for more time."""

    def _told(self) -> None:
        self._news.set()
        if self._keeping is not None:
            self._keeping.look()

    def renewed(self, admission: Admission) -> None:
        """The agent was admitted again: stream and channels go on under the newer token."""
        self._renewal = admission
        for lane in self._lanes:
            lane.renew(admission)
        self._news.set()

    async def close(self) -> None:
        """End the connection and fail what waits. What was delivered and not settled comes again elsewhere."""
        self._closed = True
        if self._keeping is not None:
            await self._keeping.close()
        if self._task is not None:
            if self.connected:
                self._leaving = True
                self._news.set()
                with suppress(TimeoutError):
                    async with asyncio.timeout(LEAVE_S):
                        await self._left.wait()
            self._task.cancel()
            await asyncio.gather(self._task, *self._looking.values(), return_exceptions=True)
        for lane in self._lanes:
            lane.close(AgentError(Code.AGENT_NOT_RUNNING, "the stream was closed"))
        self._arrived.set()
        self._room.set()

    # ── connecting ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def _connection(self, dialled: grpc.aio.Channel) -> None:
        """One connection, until it ends; it always ends with an error."""
        if self._leaving:
            await asyncio.Event().wait()  # until it is closed
        self._admission = admission = await self._admit(None)
        self._renewal = None
        mailbox = self._inbox.name if self._receive else ""
        hello = pb.ToBroker(hello=pb.Hello(mailbox=mailbox, credit=self._credit, lease_s=LEASE_S))
        first = hello.SerializeToString(deterministic=True)
        metadata = (
            ("authorization", f"DPoP {admission.token}"),
            ("dpop", self._proof(admission, first)),
        )
        call: Call = dialled.stream_stream(METHOD)(metadata=metadata)
        try:
            await call.write(first)
            reading = asyncio.create_task(self._read(call))
            writing = asyncio.create_task(self._write(call))
            try:
                await asyncio.wait((reading, writing), return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (reading, writing):
                    task.cancel()
                outcomes = await asyncio.gather(reading, writing, return_exceptions=True)
            call.cancel()  # unless it has ended already
            for outcome in outcomes:
                if isinstance(outcome, CloisterError):
                    raise outcome
            raise await self._why(call)
        except (grpc.RpcError, asyncio.InvalidStateError):
            raise await self._why(call) from None
        finally:
            call.cancel()
            if self._leaving:
                self._left.set()

    def _proof(self, admission: Admission, body: bytes) -> str:
        return self._keys.dpop(
            method="POST",
            url=self._url,
            body=body,
            at_s=int(self._time.now_s()),
            nonce=self._nonce,
            token=admission.token,
        )

    async def _why(self, call: Call) -> CloisterError:
        """What ended the call; the nonce for the next proof is kept."""
        error, nonce = await why(call, self._target)
        self._nonce = nonce or self._nonce
        return error

    # ── in both directions ─────────────────────────────────────────────────────────────────────────────────────────

    async def _read(self, call: Call) -> None:
        while isinstance(raw := await call.read(), bytes):
            message = pb.FromBroker()
            message.ParseFromString(raw)  # a broken one ends the connection
            at_s = now_s()
            if message.HasField("welcome"):
                self._nonce = message.welcome.nonce
                self._begun()
                self._news.set()
            for saved in message.saved:
                if self._keeping is not None:
                    self._keeping.saved(saved)
            for result in message.results:
                self._lanes.answered(result, at_s)
            if message.results:
                self._room.set()
            self._carried.arrived(message)
            admission = self._admission
            if admission is not None and (message.parcels or message.openings):
                if self._prepare is not None and (message.openings or message.senders):
                    await self._prepare()
                self._incoming.extend(self._ledger.delivered(message, admission.broker, at_s))
                if self._incoming:
                    self._arrived.set()
            if message.results or self._ledger.has_news:
                self._news.set()
            if self._keeping is not None:
                self._keeping.look()

    def _begun(self) -> None:
        """The broker bids welcome, or says how long a renewed token will do. What is out comes again, first."""
        if not self.connected:
            self._ledger.disconnected()
            self.detour.over()
        self._connected.set()
        self._trouble.over()
        if self._keeping is not None:
            self._keeping.connected()

    async def _write(self, call: Call) -> None:
        await self._connected.wait()
        while True:
            at_s = now_s()
            message = pb.ToBroker()
            if self._keeping is not None:
                self._keeping.take(message)
            self._ledger.take(message)
            self._carried.take(message)
            message.sends.extend(self._lanes.sends(at_s, SEND_OCTETS))
            if (renewal := self._renewal) is not None:
                self._renewal, self._admission = None, renewal
                message.renewal.token = renewal.token
                message.renewal.proof = self._proof(renewal, b"")
            self._look_up(at_s)
            if raw := message.SerializeToString():
                await call.write(raw)
                continue
            if self._leaving:  # what is not handled comes again elsewhere; nobody takes this reader for dead
                await call.done_writing()
                await asyncio.Event().wait()  # until the broker ends it, or who closes it waits no longer
            await self._told_something(self._idle_s(at_s))
            if self._ledger.keep(now_s()):
                self._news.set()

    # ── keys of mailboxes ──────────────────────────────────────────────────────────────────────────────────────────

    def _look_up(self, at_s: float) -> None:
        for lane in self._lanes:
            if lane not in self._looking and lane.wants_key(at_s):
                self._looking[lane] = asyncio.create_task(self._find(lane))

    async def _find(self, lane: Lane) -> None:
        """Ask for the mailbox's key and open a channel to it. What cannot be proved fails what waits there."""
        try:
            admission = await self._admit(None)
            found: Found = await (self._topic if lane.topic else self._lookup)(lane.mailbox)
            lane.found(found, partial(self._open, lane.mailbox, found, admission), now_s())
        except CloisterError as error:
            lane.fail(error)
        finally:
            self._looking.pop(lane, None)
            self._room.set()
            self._news.set()

    async def _topic(self, name: str) -> TopicInfo:
        if self._lookup_topic is None:
            raise AgentError(Code.AGENT_NOT_RUNNING, f"this stream leads to no topic: {name}")
        return await self._lookup_topic(name)

    def _open(self, mailbox: str, found: Found, admission: Admission) -> SendingChannel:
        return SendingChannel.open(
            self._outbox, found, mailbox=mailbox, admission=admission, keys=self._keys, time=self._time
        )
