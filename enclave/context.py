"""What a handler is given: the peer that sent, this agent's own verdict, secrets, labels, and ways to answer.

Decides how labels travel: everything that a handler reads (the message and the secrets) marks everything that it sends.
Labels are only ever added here; taking one away is a permit of the policy, not an agent's choice. The broker keeps its
own account, so an agent that bypasses this class gains nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import suppress
from typing import Any, Final, Protocol, TypeVar, final

from attestation.errors import CloisterError
from attestation.tcb import UP_TO_DATE, TcbStates
from attestation.verdict import Verdict
from broker.wire.relying import TokenKind, TokenResponse
from broker.wire.tools import ToolsAllowed
from enclave.calling import BlockingTool, Offer, RemoteTool, offers
from enclave.errors import AgentError, Code, MessageError, ToolRefused
from enclave.mailbox import DEFAULT_TTL_S, Judge
from enclave.messages import MessageType
from enclave.received import Received
from enclave.release import Secret
from enclave.replies import Inflow, Single, StreamState, Waits
from enclave.tools import Unpinned

T = TypeVar("T")
ASK_TIMEOUT_S: Final = 30.0
CLOCK_SLACK_S: Final = 5.0  # the broker tells the time in whole seconds, and some time ago


class Host(Protocol):
    """What a context needs of the agent that it belongs to."""

    @property
    def verdict(self) -> Verdict: ...

    async def secret(self, name: str, version: int | None) -> Secret: ...

    def message_type(self, kind: type) -> MessageType: ...

    async def deliver(
        self,
        to: str,
        message: object,
        *,
        labels: frozenset[str],
        without: frozenset[str] = frozenset(),
        in_reply_to: bytes = b"",
        item: int | None = None,
        waits: Waits | None = None,
        ttl_s: float = DEFAULT_TTL_S,
    ) -> bytes: ...

    async def publish(
        self, topic: str, message: object, *, labels: frozenset[str], without: frozenset[str], ttl_s: float
    ) -> None: ...

    async def token(self, audience: str, kind: TokenKind) -> TokenResponse: ...

    def proof(self, token: str, *, method: str, url: str, body: bytes, nonce: str | None) -> str: ...

    def forget(self, waits: Waits) -> None: ...

    def beside(self, work: Coroutine[Any, Any, None]) -> None: ...

    async def prove(self, to: str, *, judge: Judge, accept: TcbStates, timeout_s: float) -> Verdict: ...

    def pinned(self, to: str, tool: str) -> str: ...

    async def callable_tools(self, to: str, tools: tuple[str, ...]) -> ToolsAllowed | None: ...

    async def may_call(
        self, ctx: Context, to: str, tool: str, digest: str, arguments: Callable[[], Any], key: str
    ) -> None: ...


@final
class Context:
    """One handling of one message. In `on_start` there is no message: `peer` is None and `reply` is an error."""

    def __init__(self, host: Host, received: Received | None = None) -> None:
        self._host = host
        self._received = received
        self.peer: Final[Verdict | None] = received.peer if received else None
        self.secrets: Final = Secrets(self)
        self._labels = received.labels if received else frozenset()
        self._needs: frozenset[str] | None = None  # the secrets that may be asked for; None: any
        self.answers: list[tuple[object, frozenset[str]]] = []  # what was replied, for whoever must repeat it

    @property
    def verdict(self) -> Verdict:
        """What the broker says about this agent."""
        return self._host.verdict

    @property
    def tenant(self) -> str:
        return self._host.verdict.tenant

    @property
    def labels(self) -> frozenset[str]:
        """Labels of everything that was read so far."""
        return self._labels

    def add_labels(self, *labels: str) -> None:
        """Mark everything sent from now on."""
        self._labels |= frozenset(labels)

    @property
    def attempt(self) -> int:
        """Which handling of this message this is, from 1; 0 where there is no message."""
        return self._received.attempt if self._received else 0

    async def send(
        self, to: str, message: object, *, without: Iterable[str] = (), ttl_s: float = DEFAULT_TTL_S
    ) -> None:
        """Send a message to an agent by its name, or to a mailbox by its full name `tenant/path/name`.

        It carries the labels of all that this agent was given; leaving some off (`without`) takes a permit for
        `Declassify`, and is in the log.
        """
        await self._host.deliver(to, message, labels=self._labels, without=frozenset(without), ttl_s=ttl_s)

    async def publish(
        self, topic: str, message: object, *, without: Iterable[str] = (), ttl_s: float = DEFAULT_TTL_S
    ) -> None:
        """Tell all who read the topic, by its name or by its full name `tenant/path/name`. Labels as in `send`."""
        await self._host.publish(topic, message, labels=self._labels, without=frozenset(without), ttl_s=ttl_s)

    async def ask(self, to: str, message: object, reply: type[T], *, timeout_s: float = ASK_TIMEOUT_S) -> T:
        """Send, and wait for the answer of that type; both together within `timeout_s`.

        Cancelled, it calls the question off: the handler at the other end is cancelled, or never begun. A time-out
        calls nothing off: the handler may be about to finish, and who asks again finds it done.

        Raises MessageError message.no_answer, message.peer_failed.
        """
        waits, msg_id = Single(self._host.message_type(reply)), b""
        begun = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(timeout_s):
                msg_id = await self._host.deliver(
                    to, message, labels=self._labels, waits=waits, ttl_s=timeout_s + CLOCK_SLACK_S
                )
            answer = await waits.take(begun + timeout_s - asyncio.get_running_loop().time())
        except asyncio.CancelledError:
            if msg_id:
                self._host.beside(self._tell_state(to, msg_id, StreamState(taken=0, closed=True)))
            raise
        except TimeoutError:
            raise MessageError(Code.MESSAGE_NO_ANSWER, f"{to} was not even sent it within {timeout_s:g} s") from None
        except MessageError as error:
            if error.code is not Code.MESSAGE_NO_ANSWER:
                raise
            raise MessageError(error.code, f"{to} did not answer within {timeout_s:g} s") from None
        finally:
            self._host.forget(waits)
        self._labels |= answer.labels
        found: T = answer.message
        return found

    async def stream(
        self, to: str, message: object, item: type[T], *, timeout_s: float = ASK_TIMEOUT_S
    ) -> AsyncGenerator[T, None]:
        """Ask a handler that yields: `async for part in ctx.stream(…)`. At most `timeout_s` between two items.

        Leaving the loop, or `aclose()`, stops the handler at the other end. Raises MessageError as `ask` does.
        """
        flow = Inflow(self._host.message_type(item))
        msg_id = b""
        try:
            msg_id = await self._host.deliver(
                to, message, labels=self._labels, waits=flow, ttl_s=timeout_s + CLOCK_SLACK_S
            )
            while (answer := await flow.take(timeout_s)) is not None:
                self._labels |= answer.labels
                found: T = answer.message
                yield found
                if flow.state_due:
                    await self._tell_state(to, msg_id, StreamState(taken=flow.taken))
        finally:
            self._host.forget(flow)
            if msg_id and not flow.over:
                with suppress(CloisterError):  # the other side notices by itself that nobody takes any more
                    await self._tell_state(to, msg_id, StreamState(taken=flow.taken, closed=True))

    async def _tell_state(self, to: str, msg_id: bytes, state: StreamState) -> None:
        await self._host.deliver(to, state, labels=self._labels, in_reply_to=msg_id)

    async def prove(
        self, to: str, *, judge: Judge, accept: TcbStates = UP_TO_DATE, timeout_s: float = ASK_TIMEOUT_S
    ) -> Verdict:
        """Have a peer quote over a nonce of now, and judge the quote here: the broker's word counts for nothing.

        `judge` says from the verdict whether its measurements are good. Raises EnvelopeRefused peer.*,
        VerificationFailed, MessageError message.no_answer.
        """
        return await self._host.prove(to, judge=judge, accept=accept, timeout_s=timeout_s)

    def tool(self, to: str, name: str, *, digest: str | Unpinned | None = None) -> RemoteTool:
        """A tool that another agent serves, to be called under this digest of its description; see `calling`."""
        return RemoteTool(self._host, self, to, name, digest)

    async def tools_of(self, to: str) -> list[Offer]:
        """The tools that an agent serves and this one may call. What is not as the trust file pins it is left out, and
        told in the log.

        Raises BrokerRefused, MessageError, ToolRefused tool.description_malformed.
        """
        return await offers(self._host, self, to)

    async def token(self, audience: str, *, kind: TokenKind = TokenKind.EAR) -> TokenResponse:
        """A token for another service, by the policy's permit for `IssueToken`. It names this agent's key, so send
        `proof` with it: a service that checks none takes whoever has the token for this agent. Raises BrokerRefused."""
        return await self._host.token(audience, TokenKind(kind))

    def proof(self, token: str, *, method: str, url: str, body: bytes = b"", nonce: str | None = None) -> str:
        """The value of the header `DPoP` (RFC 9449) for one request that carries the token."""
        return self._host.proof(token, method=method, url=url, body=body, nonce=nonce)

    async def reply(self, message: object) -> None:
        """Answer the sender, at the mailbox that it named for answers."""
        await self.reply_with(message, self._labels)
        self.answers.append((message, self._labels))

    async def reply_with(self, message: object, labels: frozenset[str], *, item: int | None = None) -> None:
        """The framework's own replies: with labels of another moment, or as an item of a stream."""
        received = self._received
        if received is None or not received.reply_to:
            raise AgentError(Code.AGENT_NO_REPLY, "there is no message here, or its sender wants no answer")
        await self._host.deliver(received.reply_to, message, labels=labels, in_reply_to=received.msg_id, item=item)

    async def _secret(self, name: str, version: int | None) -> Secret:
        if self._needs is not None and name not in self._needs:
            raise ToolRefused(Code.TOOL_SECRET, f"{name[:80]!a} is none of {sorted(self._needs)}")
        secret = await self._host.secret(name, version)
        self._labels |= secret.labels
        return secret


def confine(ctx: Context, needs: frozenset[str]) -> None:
    """From now on only these secrets may be asked for: those that a tool declares."""
    ctx._needs = needs


@final
class Secrets:
    """`await ctx.secrets.get("tenant/path/name")`."""

    __slots__ = ("_context",)

    def __init__(self, context: Context) -> None:
        self._context = context

    async def get(self, name: str, *, version: int | None = None) -> Secret:
        """Ask the broker to release it to this trust domain. Raises BrokerRefused when policy says no."""
        return await self._context._secret(name, version)


@final
class BlockingContext:
    """The same for handlers that are plain functions: they run in a thread, and each call waits."""

    def __init__(self, context: Context, loop: asyncio.AbstractEventLoop) -> None:
        self._context = context
        self._loop = loop
        self._over = False
        self.peer: Final = context.peer
        self.secrets: Final = BlockingSecrets(self)

    @property
    def verdict(self) -> Verdict:
        return self._context.verdict

    @property
    def tenant(self) -> str:
        return self._context.tenant

    @property
    def labels(self) -> frozenset[str]:
        return self._context.labels

    @property
    def attempt(self) -> int:
        return self._context.attempt

    def add_labels(self, *labels: str) -> None:
        self._context.add_labels(*labels)

    def send(self, to: str, message: object, *, without: Iterable[str] = (), ttl_s: float = DEFAULT_TTL_S) -> None:
        self.wait(self._context.send(to, message, without=without, ttl_s=ttl_s))

    def publish(
        self, topic: str, message: object, *, without: Iterable[str] = (), ttl_s: float = DEFAULT_TTL_S
    ) -> None:
        self.wait(self._context.publish(topic, message, without=without, ttl_s=ttl_s))

    def ask(self, to: str, message: object, reply: type[T], *, timeout_s: float = ASK_TIMEOUT_S) -> T:
        return self.wait(self._context.ask(to, message, reply, timeout_s=timeout_s))

    def stream(self, to: str, message: object, item: type[T], *, timeout_s: float = ASK_TIMEOUT_S) -> Iterator[T]:
        return self.each(self._context.stream(to, message, item, timeout_s=timeout_s))

    def each(self, items: AsyncGenerator[T, None]) -> Iterator[T]:
        """One after the other, waiting for each."""
        try:
            while True:
                try:
                    yield self.wait(anext(items))
                except StopAsyncIteration:
                    return
        finally:
            self.wait(items.aclose())

    def tool(self, to: str, name: str, *, digest: str | Unpinned | None = None) -> BlockingTool:
        return BlockingTool(self, self._context.tool(to, name, digest=digest))

    def tools_of(self, to: str) -> list[Offer]:
        return self.wait(self._context.tools_of(to))

    def token(self, audience: str, *, kind: TokenKind = TokenKind.EAR) -> TokenResponse:
        return self.wait(self._context.token(audience, kind=kind))

    def proof(self, token: str, *, method: str, url: str, body: bytes = b"", nonce: str | None = None) -> str:
        return self._context.proof(token, method=method, url=url, body=body, nonce=nonce)

    def reply(self, message: object) -> None:
        self.wait(self._context.reply(message))

    @property
    def over(self) -> bool:
        """Whether nobody waits for this handler any more: its deadline has passed, or who asked wants no answer. A
        thread cannot be broken off; one that works for long looks here, and returns."""
        return self._over

    def end(self) -> None:
        """The handling is over; its thread may not know it yet."""
        self._over = True

    def wait(self, work: Awaitable[T]) -> T:
        """For what the agent's loop is to do. Raises AgentError agent.handler_over."""
        if self._over:
            _discard(work)
            raise AgentError(Code.AGENT_HANDLER_OVER, "its context is not usable any more")
        return asyncio.run_coroutine_threadsafe(_await(work), self._loop).result()


async def _await(work: Awaitable[T]) -> T:
    return await work


def _discard(work: Awaitable[Any]) -> None:
    """Nobody will await it, and that is meant."""
    if isinstance(work, Coroutine):
        work.close()


@final
class BlockingSecrets:
    """`ctx.secrets.get("tenant/path/name")`, without await."""

    __slots__ = ("_context",)

    def __init__(self, context: BlockingContext) -> None:
        self._context = context

    def get(self, name: str, *, version: int | None = None) -> Secret:
        return self._context.wait(self._context._context.secrets.get(name, version=version))
