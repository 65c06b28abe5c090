"""The mail stream of one agent: sends, deliveries and their settling over one gRPC connection that mends itself.

    stream = Stream(target, base_url=…, keys=…, time=…, admit=…, lookup=…, inbox=…, outbox=…)
    await stream.start()
    msg_id = await stream.send("acme/mail/b", kind="note", plaintext=b"…")     # the broker holds it durably
    async for incoming in stream.deliveries():
        …
        stream.done(incoming)                                                  # or again(incoming, delay_s), reject(…)

Decides when to connect, with which proof, and what goes into the next message; what may be sent and what may be
believed is decided in `lanes`, `ledger` and `channel`. Whatever gathers while a message is being written goes with the
next one, so batches grow with the load and a lone message waits for nobody. After a lost connection everything that the
broker did not answer goes again as the same bytes, and what it had delivered comes again under new leases.
"""

from __future__ import annotations

import asyncio
import logging
import random
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
from enclave.errors import AgentError, BrokerRefused, Code
from enclave.keeping import Keep, Keeping
from enclave.keys import AgentKeys
from enclave.lanes import Announce, Carried, Item, Lane, Lanes
from enclave.ledger import Incoming, Ledger
from enclave.mailbox import DEFAULT_TTL_S, Found, Inbox, Outbox
from enclave.session import Admission
from enclave.telling import Trouble, why

log: Final = logging.getLogger("cloister.agent")
METHOD: Final = "/cloister.v1.Mail/Stream"
CREDIT: Final = 1024  # messages that may be delivered and not settled; no sender is given more than 767 of them
LEASE_S: Final = 30
MAX_MESSAGE: Final = 16 << 20  # that the broker may send
SEND_OCTETS: Final = 1 << 18  # of batches in a message to it, which reads one while the next is made
MAX_QUEUE: Final = 4096  # messages to one mailbox that wait for the broker, before `send` waits itself
FIRST_PAUSE_S: Final = 0.1
MAX_PAUSE_S: Final = 10.0
IDLE_S: Final = LEASE_S / 4
OPTIONS: Final = (
    ("grpc.http2.lookahead_bytes", 1 << 19),  # two messages of batches, so that neither end waits for leave to send
    ("grpc.http2.max_frame_size", 1 << 19),
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_send_message_length", MAX_MESSAGE),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.enable_http_proxy", 0),  # the environment is the host's
    ("grpc.enable_retries", 0),
)
Admit = Callable[[Admission | None], Awaitable[Admission]]
Lookup = Callable[[str], Awaitable[MailboxInfo]]
TopicLookup = Callable[[str], Awaitable[TopicInfo]]
Prepare = Callable[[], Awaitable[None]]
Call = grpc.aio.StreamStreamCall[Any, Any]


@final
class Stream:
    """See the module. Runs on one event loop; `close` fails what is still waiting.

    `admit(None)` is the present admission; `admit(old)` a newer one than that, which the broker no longer takes.
    `lookup` asks the broker for a mailbox's key, `lookup_topic` for a topic's. `prepare` is awaited before a new sender
    is judged, so that the list of the fallen can be fetched; `keep` before what was handled is called done, so that a
    checkpoint says so.
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
        prepare: Prepare | None = None,
        keep: Keep | None = None,
        receive: bool = True,
        credit: int = CREDIT,
        carried: Carried | None = None,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self._target = target
        self._url = base_url.rstrip("/") + METHOD
        self._keys = keys
        self._time = time
        self._admit = admit
        self._lookup = lookup
        self._lookup_topic = lookup_topic
        self._outbox = outbox
        self._inbox = inbox
        self._prepare = prepare
        self._receive = receive
        self._credit = credit
        self._credentials = credentials
        self._carried = carried or Carried()
        self._lanes = Lanes()
        known = channels or ReceivingChannels(inbox, time)
        self._ledger = Ledger(inbox, known, lease_s=LEASE_S, keeps=keep is not None)
        self._incoming: deque[Incoming] = deque()
        self._trouble = Trouble(expected="dpop.nonce_required")  # the first connection learns the nonce so
        self._arrived = asyncio.Event()
        self._news = asyncio.Event()
        self._carried.tell = self._news.set
        self._keeping = Keeping(self._ledger, keep, self._news.set) if keep is not None else None
        self._room = asyncio.Event()
        self._connected = asyncio.Event()
        self._looking: dict[Lane, asyncio.Task[None]] = {}
        self._admission: Admission | None = None
        self._renewal: Admission | None = None
        self._nonce: str | None = None
        self._closed = False
        self._task: asyncio.Task[None] | None = None

    # ── for the agent ──────────────────────────────────────────────────────────────────────────────────────────────

    async def start(self) -> None:
        """Begin to connect; returns at once."""
        self._task = asyncio.create_task(self._run(), name="cloister-stream")
        if self._keeping is not None:
            self._keeping.start()

    @property
    def connected(self) -> bool:
        return self._connected.is_set()

    async def wait_connected(self) -> None:
        await self._connected.wait()

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
            self._task.cancel()
            await asyncio.gather(self._task, *self._looking.values(), return_exceptions=True)
        for lane in self._lanes:
            lane.close(AgentError(Code.AGENT_NOT_RUNNING, "the stream was closed"))
        self._arrived.set()
        self._room.set()

    # ── connecting ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def _run(self) -> None:
        pause = FIRST_PAUSE_S
        async with self._dial() as dialled:
            while True:
                try:
                    await self._connection(dialled)
                except CloisterError as error:
                    if self.connected:
                        pause = FIRST_PAUSE_S
                    self._trouble.tell(error)
                    self._give_up_on(error)
                    if not await self._admitted_anew(error):
                        continue_at_once = error.code == "dpop.nonce_required" and pause == FIRST_PAUSE_S
                        if not continue_at_once:
                            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311  jitter, not a secret
                        pause = min(2 * pause, MAX_PAUSE_S)
                finally:
                    self._connected.clear()
                    self._lanes.disconnected()
                    self._ledger.disconnected()
                    self._carried.disconnected()
                    if self._keeping is not None:
                        self._keeping.disconnected()

    def _dial(self) -> grpc.aio.Channel:
        if self._credentials is None:
            return grpc.aio.insecure_channel(self._target, options=OPTIONS)
        return grpc.aio.secure_channel(self._target, self._credentials, options=OPTIONS)

    async def _admitted_anew(self, error: CloisterError) -> bool:
        """Whether the broker no longer took the token, and there is a new one now."""
        if not (isinstance(error, BrokerRefused) and error.status == 401 and not str(error.code).startswith("dpop.")):
            return False
        try:
            await self._admit(self._admission)
        except CloisterError as refused:
            log.error("not admitted any more: %s", refused.code)
            self._give_up_on(refused)
            return False
        return True

    def _give_up_on(self, error: CloisterError) -> None:
        """An agent that the broker forbids to be here can send nothing: who waits for that is told so. Whether what
        was under way had arrived, nobody knows."""
        if isinstance(error, BrokerRefused) and error.status == 403:
            for lane in self._lanes:
                lane.give_up(error)

    async def _connection(self, dialled: grpc.aio.Channel) -> None:
        """One connection, until it ends; it always ends with an error."""
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
            now_s = _now_s()
            if message.HasField("welcome"):
                self._nonce = message.welcome.nonce
                self._connected.set()
                self._trouble.over()
                self._news.set()
            for saved in message.saved:
                if self._keeping is not None:
                    self._keeping.saved(saved)
            for result in message.results:
                self._lanes.answered(result, now_s)
            if message.results:
                self._room.set()
            self._carried.arrived(message)
            admission = self._admission
            if admission is not None and (message.parcels or message.openings):
                if self._prepare is not None and (message.openings or message.senders):
                    await self._prepare()
                self._incoming.extend(self._ledger.delivered(message, admission.broker, now_s))
                if self._incoming:
                    self._arrived.set()
            if message.results or self._ledger.has_news:
                self._news.set()
            if self._keeping is not None:
                self._keeping.look()

    async def _write(self, call: Call) -> None:
        await self._connected.wait()
        while True:
            now_s = _now_s()
            message = pb.ToBroker()
            if self._keeping is not None:
                self._keeping.take(message)
            self._ledger.take(message)
            self._carried.take(message)
            message.sends.extend(self._lanes.sends(now_s, SEND_OCTETS))
            if (renewal := self._renewal) is not None:
                self._renewal, self._admission = None, renewal
                message.renewal.token = renewal.token
                message.renewal.proof = self._proof(renewal, b"")
            self._look_up(now_s)
            if raw := message.SerializeToString():
                await call.write(raw)
                continue
            self._news.clear()
            with suppress(TimeoutError):
                # Not wait_for: before Python 3.12 it swallows a cancellation that comes together with the news.
                async with asyncio.timeout(self._idle_s(now_s)):
                    await self._news.wait()
            if self._ledger.keep(_now_s()):
                self._news.set()

    def _idle_s(self, now_s: float) -> float:
        """Until a pause is over, or leases want looking after."""
        pauses = [at_s - now_s for lane in self._lanes if (at_s := lane.wakes_at_s()) is not None and at_s > now_s]
        return min([IDLE_S, *pauses])

    # ── keys of mailboxes ──────────────────────────────────────────────────────────────────────────────────────────

    def _look_up(self, now_s: float) -> None:
        for lane in self._lanes:
            if lane not in self._looking and lane.wants_key(now_s):
                self._looking[lane] = asyncio.create_task(self._find(lane))

    async def _find(self, lane: Lane) -> None:
        """Ask for the mailbox's key and open a channel to it. What cannot be proved fails what waits there."""
        try:
            admission = await self._admit(None)
            found: Found = await (self._topic if lane.topic else self._lookup)(lane.mailbox)
            lane.found(found, partial(self._open, lane.mailbox, found, admission), _now_s())
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


def _now_s() -> float:
    """For pauses and leases; nothing that is proved depends on it."""
    return asyncio.get_running_loop().time()
