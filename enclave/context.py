"""What a handler is given: the peer that sent, this agent's own verdict, secrets, labels, and ways to answer.

Decides how labels travel: everything that a handler reads (the message and the secrets) marks everything that it sends.
Labels are only ever added here; taking one away is a permit of the policy, not an agent's choice. The broker keeps its
own account, so an agent that bypasses this class gains nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, Protocol, TypeVar, final

from attestation.verdict import Verdict
from broker.wire.envelope import Header
from enclave.errors import AgentError, Code
from enclave.mailbox import DEFAULT_TTL_S
from enclave.release import Secret

T = TypeVar("T")
ASK_TIMEOUT_S: Final = 30.0
CLOCK_SLACK_S: Final = 5.0  # the broker tells the time in whole seconds, and some time ago


class Host(Protocol):
    """What a context needs of the agent that it belongs to."""

    @property
    def verdict(self) -> Verdict: ...

    async def secret(self, name: str, version: int | None) -> Secret: ...

    async def deliver(
        self, to: str, message: object, *, labels: frozenset[str], in_reply_to: bytes, expect_reply: bool, ttl_s: float
    ) -> bytes: ...

    async def answer_to(self, msg_id: bytes, kind: type[Any], timeout_s: float) -> tuple[Any, frozenset[str]]: ...


@final
class Context:
    """One handling of one message. In `on_start` there is no message: `peer` is None and `reply` is an error."""

    def __init__(self, host: Host, header: Header | None = None, peer: Verdict | None = None) -> None:
        self._host = host
        self._header = header
        self.peer: Final[Verdict | None] = peer
        self.secrets: Final = Secrets(self)
        self._labels = frozenset(header.labels if header else ())

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

    async def send(self, to: str, message: object, *, ttl_s: float = DEFAULT_TTL_S) -> None:
        """Send a message to an agent by its name, or to a mailbox by its full name `tenant/path/name`."""
        await self._host.deliver(to, message, labels=self._labels, in_reply_to=b"", expect_reply=False, ttl_s=ttl_s)

    async def ask(self, to: str, message: object, reply: type[T], *, timeout_s: float = ASK_TIMEOUT_S) -> T:
        """Send, and wait for the answer of that type. Raises MessageError message.no_answer, message.peer_failed."""
        msg_id = await self._host.deliver(
            to, message, labels=self._labels, in_reply_to=b"", expect_reply=True, ttl_s=timeout_s + CLOCK_SLACK_S
        )
        found, labels = await self._host.answer_to(msg_id, reply, timeout_s)
        self._labels |= labels
        answer: T = found
        return answer

    async def reply(self, message: object) -> None:
        """Answer the sender, at the mailbox that it named for answers."""
        if self._header is None or not self._header.reply_to:
            raise AgentError(Code.AGENT_NO_REPLY, "there is no message here, or its sender wants no answer")
        await self._host.deliver(
            self._header.reply_to,
            message,
            labels=self._labels,
            in_reply_to=self._header.msg_id,
            expect_reply=False,
            ttl_s=DEFAULT_TTL_S,
        )

    async def _secret(self, name: str, version: int | None) -> Secret:
        secret = await self._host.secret(name, version)
        self._labels |= secret.labels
        return secret


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

    def add_labels(self, *labels: str) -> None:
        self._context.add_labels(*labels)

    def send(self, to: str, message: object, *, ttl_s: float = DEFAULT_TTL_S) -> None:
        self._wait(self._context.send(to, message, ttl_s=ttl_s))

    def ask(self, to: str, message: object, reply: type[T], *, timeout_s: float = ASK_TIMEOUT_S) -> T:
        return self._wait(self._context.ask(to, message, reply, timeout_s=timeout_s))

    def reply(self, message: object) -> None:
        self._wait(self._context.reply(message))

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


@final
class BlockingSecrets:
    """`ctx.secrets.get("tenant/path/name")`, without await."""

    __slots__ = ("_context",)

    def __init__(self, context: BlockingContext) -> None:
        self._context = context

    def get(self, name: str, *, version: int | None = None) -> Secret:
        return self._context._wait(self._context._context.secrets.get(name, version=version))
