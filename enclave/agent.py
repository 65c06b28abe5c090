"""The API that authors of agents use.

    agent = Agent("researcher")

    @agent.on_message(Question)
    async def answer(ctx, question): ...          # ctx.secrets, ctx.peer, ctx.verdict, ctx.labels, ctx.reply

    agent.run()

Decides how messages meet handlers: in order per sender, several senders at once, a failed handling again later, five
times at most. Delivery is at least once, so handlers must not mind a repetition; inside one life of the mailbox key
the framework drops repetitions of what was handled. What a handler returns, if anything, is sent as the reply. Handlers
are coroutines, or plain functions, which run in a thread. Attesting, renewing and receiving happen by themselves.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import defaultdict, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar, final

import httpx2

from attestation.errors import AttestationError
from attestation.ports import TrustDomain
from attestation.verdict import Verdict
from broker.wire.envelope import Header
from broker.wire.errors import WireError
from enclave.context import BlockingContext, Context
from enclave.errors import AgentError, BrokerRefused, Code, EnclaveError, MessageError
from enclave.mailbox import Judge, everyone
from enclave.main import run_agent
from enclave.messages import MessageType
from enclave.release import Secret
from enclave.runtime import Received, Runtime
from enclave.trustfile import TrustFile

log: Final = logging.getLogger("cloister.agent")
Handler = Callable[..., Any]
H = TypeVar("H", bound=Handler)

MAX_OUTSTANDING: Final = 64
MAX_ATTEMPTS: Final = 5
STOP_PATIENCE_S: Final = 5.0
MAX_PAUSE_S: Final = 30.0
# What talking to a broker or about a message can raise; anything else is a bug of ours and ends the agent.
TROUBLE: Final = (BrokerRefused, EnclaveError, AttestationError, WireError)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """The answer to an `ask` that could not be handled: a code, never a detail of the receiver's inside."""

    code: str


_PROBLEM: Final = MessageType(Problem)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Expected:
    """An answer that somebody waits for: from whom, and where it goes (type, plaintext, labels)."""

    peer: str
    answer: asyncio.Future[tuple[str, bytes, frozenset[str]]] = field(repr=False)


@final
class Agent:
    """One agent. `peers` says, from its verdict, whether a sender or a mailbox's owner is one to talk to."""

    def __init__(self, name: str, *, peers: Judge = everyone) -> None:
        self.name = name
        self._judge = peers
        self._handlers: dict[str, tuple[MessageType, Handler]] = {}
        self._types: dict[type, MessageType] = {}
        self._on_start: list[Handler] = []
        self._runtime: Runtime | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._working: set[asyncio.Task[None]] = set()
        self._queues: defaultdict[str, deque[Received]] = defaultdict(deque)
        self._waiting: dict[bytes, _Expected] = {}
        self._outstanding = 0
        self._room = asyncio.Event()

    # --- what authors call ---

    def on_message(self, kind: type) -> Callable[[H], H]:
        """Handle messages of a dataclass or pydantic model. One handler for each type."""

        def register(handler: H) -> H:
            message_type = self._type(kind)
            if message_type.name in self._handlers:
                raise AgentError(Code.AGENT_HANDLER, f"two handlers for {message_type.name}")
            _check_arguments(handler, 2)
            self._handlers[message_type.name] = (message_type, handler)
            return handler

        return register

    def on_start(self, handler: H) -> H:
        """Run `handler(ctx)` once, after the first admission. It may take as long as it likes; if it raises, the agent
        ends."""
        _check_arguments(handler, 1)
        self._on_start.append(handler)
        return handler

    def run(self) -> None:
        """Run until SIGTERM or SIGINT, in the trust domain that `cloister run` prepared. Failures exit the process."""
        run_agent(self)

    async def start(
        self,
        *,
        domain: TrustDomain,
        trust: TrustFile,
        broker_url: str,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> Verdict:
        """Attest, publish the mailbox, begin to receive. Raises BrokerRefused when the broker does not admit it."""
        if self._runtime is not None:
            raise AgentError(Code.AGENT_RUNNING, f"{self.name} runs already")
        self._runtime = runtime = Runtime(
            domain=domain,
            trust=trust,
            broker_url=broker_url,
            mailbox=self._address(self.name, trust.tenant),
            judge=self._judge,
            transport=transport,
        )
        try:
            admission = await runtime.attest()
            await runtime.publish()
        except BaseException:
            await self.stop()
            raise
        self._tasks = [asyncio.create_task(self._renew(runtime)), asyncio.create_task(self._receive(runtime))]
        self._tasks += [asyncio.create_task(self._begin(handler)) for handler in self._on_start]
        return admission.verdict

    async def stop(self) -> None:
        """Stop receiving, let running handlers finish for a while, then drop everything and destroy the keys."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._working:
            _, late = await asyncio.wait(self._working, timeout=STOP_PATIENCE_S)
            for one in late:
                one.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        if self._runtime is not None:
            await self._runtime.close()
        self._runtime, self._tasks = None, []

    async def wait(self) -> None:
        """Return when the agent was stopped; raise what ended it otherwise."""
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            if not task.cancelled():
                task.result()

    async def _begin(self, handler: Handler) -> None:
        await self._call(handler, Context(self))

    def context(self) -> Context:
        """A context of its own, outside any message: for programs that drive an agent themselves."""
        return Context(self)

    @property
    def running(self) -> Runtime:
        """Raises AgentError agent.not_running."""
        if self._runtime is None:
            raise AgentError(Code.AGENT_NOT_RUNNING, f"{self.name} was not started")
        return self._runtime

    # --- what contexts call ---

    @property
    def verdict(self) -> Verdict:
        return self.running.admission.verdict

    async def secret(self, name: str, version: int | None) -> Secret:
        return await self.running.secret(name, version)

    async def deliver(
        self, to: str, message: object, *, labels: frozenset[str], in_reply_to: bytes, expect_reply: bool, ttl_s: float
    ) -> bytes:
        runtime, message_type = self.running, self._type(type(message))
        expected: list[bytes] = []

        def expect(msg_id: bytes, peer: str) -> None:
            expected.append(msg_id)
            self._waiting[msg_id] = _Expected(peer=peer, answer=asyncio.get_running_loop().create_future())

        try:
            return await runtime.send(
                self._address(to, runtime.trust.tenant),
                kind=message_type.name,
                plaintext=message_type.encode(message),
                labels=labels,
                in_reply_to=in_reply_to,
                reply_to=runtime.inbox.name if expect_reply else "",
                ttl_s=ttl_s,
                announce=expect if expect_reply else None,
            )
        except BaseException:
            for msg_id in expected:
                self._waiting.pop(msg_id, None)
            raise

    async def answer_to(self, msg_id: bytes, kind: type[Any], timeout_s: float) -> tuple[Any, frozenset[str]]:
        try:
            name, plaintext, labels = await asyncio.wait_for(self._waiting[msg_id].answer, timeout_s)
        except TimeoutError:
            raise MessageError(Code.MESSAGE_NO_ANSWER, f"within {timeout_s:g} s") from None
        finally:
            self._waiting.pop(msg_id, None)
        if name == _PROBLEM.name:
            raise MessageError(Code.MESSAGE_PEER_FAILED, str(_PROBLEM.decode(plaintext).code))
        wanted = self._type(kind)
        if name != wanted.name:
            raise MessageError(Code.MESSAGE_SCHEMA, f"the answer is a {name}, not a {wanted.name}")
        return wanted.decode(plaintext), labels

    # --- what runs by itself ---

    async def _renew(self, runtime: Runtime) -> None:
        """Attest before the admission ends; when the broker refuses, keep asking, less and less often."""
        pause = 1.0
        while True:
            await asyncio.sleep(runtime.renewal_due_s() if runtime.admitted else pause)
            try:
                await runtime.attest(instead_of=runtime.admission if runtime.admitted else None)
                await runtime.publish()
                pause = 1.0
            except TROUBLE as error:
                log.error("not admitted any more: %s", error)
                pause = min(2 * pause, MAX_PAUSE_S)

    async def _receive(self, runtime: Runtime) -> None:
        pause = 0.5
        while True:
            self._room.clear()
            if self._outstanding >= MAX_OUTSTANDING:
                await self._room.wait()
                continue
            try:
                for received in await runtime.receive(MAX_OUTSTANDING - self._outstanding):
                    self._dispatch(runtime, received)
                pause = 0.5
            except TROUBLE as error:
                log.warning("receiving failed: %s", getattr(error, "code", error))
                await asyncio.sleep(pause)
                pause = min(2 * pause, MAX_PAUSE_S)

    def _dispatch(self, runtime: Runtime, received: Received) -> None:
        """An awaited answer goes to who awaits it; anything else into its sender's queue."""
        header = received.opened.header
        waiting = self._waiting.get(header.in_reply_to)
        self._outstanding += 1
        if waiting is not None and waiting.peer == header.sender and not waiting.answer.done():
            waiting.answer.set_result((header.type, received.opened.plaintext, frozenset(header.labels)))
            self._spawn(self._finish(runtime, received))
            return
        queue = self._queues[header.sender]
        queue.append(received)
        if len(queue) == 1:
            self._spawn(self._drain(runtime, header.sender))

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._working.add(task)
        task.add_done_callback(self._working.discard)

    async def _drain(self, runtime: Runtime, sender: str) -> None:
        queue = self._queues[sender]
        while queue:
            try:
                await self._handle(runtime, queue[0])
            finally:
                queue.popleft()
        del self._queues[sender]

    async def _handle(self, runtime: Runtime, received: Received) -> None:
        header = received.opened.header
        context = Context(self, header, received.opened.sender)
        try:
            message_type, handler = self._handlers.get(header.type, (None, None))
            if message_type is None or handler is None:
                raise MessageError(Code.MESSAGE_TYPE, f"{header.type} from {header.sender}")
            result = await self._call(handler, context, message_type.decode(received.opened.plaintext))
            if result is not None and header.reply_to:  # who only told us something wants no answer
                await context.reply(result)
        except MessageError as error:
            log.warning("message dropped: %s", error)
            await self._tell(context, header, error.code)
        except Exception as error:  # noqa: BLE001  a handler may raise anything; its message is tried again
            if await self._again(runtime, received, error):
                return
            await self._tell(context, header, Code.MESSAGE_HANDLER)
        await self._finish(runtime, received)

    async def _again(self, runtime: Runtime, received: Received, error: Exception) -> bool:
        """Give the message back for another attempt, unless there were enough."""
        code = getattr(error, "code", type(error).__name__)
        log.error("handler of %s failed in attempt %d: %s", received.opened.header.type, received.attempt, code)
        if received.attempt >= MAX_ATTEMPTS:
            return False
        runtime.inbox.again(received.opened.header)
        self._leave()
        with suppress(*TROUBLE):  # the lease ends by itself if this does not get through
            await runtime.give_back(received.lease, received.attempt)
        return True

    async def _finish(self, runtime: Runtime, received: Received) -> None:
        runtime.inbox.done(received.opened.header)
        self._leave()
        with suppress(*TROUBLE):  # a repetition is recognised by the inbox
            await runtime.acknowledge(received.lease)

    def _leave(self) -> None:
        self._outstanding -= 1
        self._room.set()

    async def _tell(self, context: Context, header: Header, code: Code) -> None:
        if header.reply_to:
            with suppress(*TROUBLE):  # the asker's time-out covers this
                await context.reply(Problem(code=str(code)))

    async def _call(self, handler: Handler, context: Context, *message: object) -> Any:
        if inspect.iscoroutinefunction(handler):
            return await handler(context, *message)
        blocking = BlockingContext(context, asyncio.get_running_loop())
        return await asyncio.to_thread(handler, blocking, *message)

    def _type(self, kind: type) -> MessageType:
        found = self._types.get(kind)
        if found is None:
            found = self._types[kind] = MessageType(kind)
        return found

    @staticmethod
    def _address(name: str, tenant: str) -> str:
        """The mailbox of an agent's name; a name with slashes is a mailbox already."""
        return name if "/" in name else f"{tenant}/mail/{name}"


def _check_arguments(handler: Handler, count: int) -> None:
    try:
        inspect.signature(handler).bind(*range(count))
    except TypeError:
        what = "(ctx, message)" if count == 2 else "(ctx)"
        name = getattr(handler, "__name__", repr(handler))
        raise AgentError(Code.AGENT_HANDLER, f"{name} cannot be called with {what}") from None
