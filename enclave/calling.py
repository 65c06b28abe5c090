"""Calling tools of another agent: which description was approved, what may be repeated, and whose word is taken.

    find = ctx.tool("search", "find", digest="5b1e…")      a handle; nothing is sent yet
    hits = await find(Search("fox"), Hits)                 one call, one answer
    async for hit in find.stream(Search("fox"), Hit): …    item by item; leaving the loop stops the tool

Decides that a call goes out only under a pin: a digest given here, one in the trust file, both where there are both;
where there is neither, one that the policy approves; or the word UNPINNED. The pin travels inside the sealed call, so
that the server refuses a call that means another tool, and every answer names the digest of what was served, so that
the caller need not believe that it did. A repeated call of a tool that does harm when it is repeated takes a key.
Everything else is asking as `context` does it: labels of the answer mark what the caller says afterwards.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, final, overload

from broker.wire.tools import DIGEST, MAX_ASKED, MAX_TOOLS, NAME, call_type
from enclave.errors import AgentError, Code, MessageError, ToolRefused, TransportFailed
from enclave.messages import MessageType, Shaped
from enclave.tools import (
    MAX_KEY,
    PROGRESS,
    Nothing,
    Progress,
    ToolAnswer,
    ToolCall,
    ToolDescription,
    ToolsAsked,
    ToolsGiven,
    Unpinned,
)

if TYPE_CHECKING:
    from enclave.context import Context, Host

log: Final = logging.getLogger("cloister.agent")
T = TypeVar("T")
TIMEOUT_S: Final = 30.0
MAX_ATTEMPTS: Final = 5
MAX_TOLD: Final = 300
APPROVAL_S: Final = 30.0
_OF_TOOLS: Final[Mapping[str, Code]] = {str(code): code for code in Code if code.startswith("tool.")}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A tool that another agent serves. `pinned`: trust file or policy name this very description. `permitted`: the
    broker says that this agent may call it now; without it the broker could not tell, and every tool is listed."""

    description: ToolDescription
    pinned: bool
    permitted: bool

    @property
    def name(self) -> str:
        return self.description.name

    @property
    def digest(self) -> str:
        return self.description.digest


@final
class RemoteTool:
    """A tool of another agent, called from one context."""

    def __init__(self, host: Host, ctx: Context, to: str, name: str, digest: str | Unpinned | None) -> None:
        """Raises AgentError agent.name_invalid."""
        if not NAME.fullmatch(name):
            raise AgentError(Code.AGENT_NAME, f"a tool called {name[:80]!r}")
        self._host = host
        self._ctx = ctx
        self._to = to
        self._name = name
        self._given = digest
        self._kind = MessageType(ToolCall, call_type(name))
        self._described: ToolDescription | None = None
        self._asked: tuple[float, str] | None = None  # until when what the policy approves is at hand

    @overload
    async def __call__(
        self, arguments: object = ..., *, timeout_s: float = ..., key: str = ..., attempts: int = ...
    ) -> None: ...
    @overload
    async def __call__(
        self, arguments: object, result: type[T], *, timeout_s: float = ..., key: str = ..., attempts: int = ...
    ) -> T: ...
    async def __call__(
        self,
        arguments: object = None,
        result: type[Any] | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
        key: str = "",
        attempts: int = 1,
    ) -> Any:
        """Call it and wait for its result, `timeout_s` for each attempt. Cancelled, it stops the tool.

        `attempts` above 1 calls again when no answer came; of a tool that is not idempotent only with a `key`, under
        which the server does it once.

        Raises ToolRefused tool.*; BrokerRefused when policy says no; MessageError as `ctx.ask` does.
        """
        pin = await self._pin()
        await self._may_repeat(attempts, key)
        wanted, call = self._host.message_type(result or Nothing), await self._prepared(arguments, key, pin)
        while True:
            attempts -= 1
            try:
                answer = await self._ctx.ask(self._to, call, ToolAnswer, timeout_s=timeout_s)
                break
            except MessageError as error:
                if attempts < 1 or error.code is not Code.MESSAGE_NO_ANSWER:
                    raise
            except TransportFailed:
                if attempts < 1:
                    raise
        taken = self._taken(answer, pin, wanted)
        return None if result is None else taken

    async def stream(
        self,
        arguments: object,
        item: type[T],
        *,
        timeout_s: float = TIMEOUT_S,
        progress: Callable[[Progress], object] | None = None,
    ) -> AsyncGenerator[T, None]:
        """Take what a tool yields; `progress` is called with what it says of how far it has come. At most `timeout_s`
        between two items. Leaving the loop, or `aclose()`, stops the tool. Raises as calling does."""
        pin = await self._pin()
        wanted, call = self._host.message_type(item), await self._prepared(arguments, "", pin)
        async with aclosing(self._ctx.stream(self._to, call, ToolAnswer, timeout_s=timeout_s)) as answers:
            async for answer in answers:
                taken = self._taken(answer, pin, PROGRESS if answer.kind == "progress" else wanted)
                if answer.kind != "progress":
                    found: T = taken
                    yield found
                elif progress is not None:
                    progress(taken)

    async def describe(self) -> ToolDescription:
        """What its server says of it, if that is what was pinned; asked once. Raises ToolRefused."""
        if self._described is None:
            pin = await self._pin()
            found = {one.name: one for one in await _descriptions(self._ctx, self._to)}
            if self._name not in found:
                raise ToolRefused(Code.TOOL_UNKNOWN, f"{self._to} serves no {self._name}")
            self._fits(found[self._name].digest, pin)
            self._described = found[self._name]
        return self._described

    async def _pin(self) -> str:
        """The digest to go by; empty where any will do. Raises ToolRefused tool.not_pinned, tool.drift."""
        given, trusted = self._given, self._host.pinned(self._to, self._name)
        if isinstance(given, Unpinned):
            return trusted
        if given is None:
            return trusted or await self._approved()
        if type(given) is not str or not DIGEST.fullmatch(given):  # an empty one must not let everything pass
            raise ToolRefused(Code.TOOL_UNPINNED, f"{self._name}: what is given as its digest is none")
        if trusted not in ("", given):
            detail = f"{self._name}: {given[:16]}… is given, the trust file has {trusted[:16]}…"
            raise ToolRefused(Code.TOOL_DRIFT, detail)
        return given

    async def _approved(self) -> str:
        """What the policy approves, asked for now and then. Raises ToolRefused tool.not_pinned."""
        now = asyncio.get_running_loop().time()
        if self._asked is None or now > self._asked[0]:
            said = await self._host.callable_tools(self._to, (self._name,))
            self._asked = now + APPROVAL_S, said.pins.get(self._name, "") if said else ""
        if not self._asked[1]:
            raise ToolRefused(Code.TOOL_UNPINNED, f"{self._name} of {self._to}")
        return self._asked[1]

    async def _may_repeat(self, attempts: int, key: str) -> None:
        if not 1 <= attempts <= MAX_ATTEMPTS or len(key) > MAX_KEY:
            raise ValueError(f"1 to {MAX_ATTEMPTS} attempts, a key of at most {MAX_KEY} characters")
        if attempts > 1 and not key and not (await self.describe()).idempotent:
            raise ToolRefused(Code.TOOL_KEY, f"{self._name} of {self._to}, {attempts} attempts")

    async def _prepared(self, arguments: object, key: str, pin: str) -> Shaped:
        given = Nothing() if arguments is None else arguments
        kind = self._host.message_type(type(given))
        try:
            body = kind.encode(given)
        except MessageError as error:
            raise ToolRefused(Code.TOOL_ARGUMENTS, error.detail) from None
        await self._host.may_call(self._ctx, self._to, self._name, pin, lambda: kind.decode(body), key)
        return Shaped(self._kind, ToolCall(pin=pin, key=key, arguments=body.decode()))

    def _taken(self, answer: ToolAnswer, pin: str, wanted: MessageType) -> Any:
        """Raises ToolRefused."""
        if (answer.kind, answer.code) == ("refused", Code.TOOL_UNKNOWN):
            raise ToolRefused(Code.TOOL_UNKNOWN, f"{self._to} serves no {self._name}")
        self._fits(answer.tool, pin)
        if answer.kind == "refused":
            code = _OF_TOOLS.get(answer.code, Code.TOOL_DENIED)
            raise ToolRefused(code, _plain(answer.text) or _plain(answer.code))
        try:
            return wanted.decode(answer.text.encode(errors="surrogatepass"))
        except MessageError as error:
            raise ToolRefused(Code.TOOL_RESULT, error.detail) from None

    def _fits(self, served: str, pin: str) -> None:
        if pin and served != pin:
            detail = f"{self._name} of {self._to} is {_plain(served)[:16]}…, pinned is {pin[:16]!a}…"
            log.warning("%s: %s", Code.TOOL_DRIFT, detail)
            raise ToolRefused(Code.TOOL_DRIFT, detail)


async def _descriptions(ctx: Context, to: str) -> list[ToolDescription]:
    """All that an agent says it serves. Raises ToolRefused tool.description_malformed, MessageError, BrokerRefused."""
    given = await ctx.ask(to, ToolsAsked(), ToolsGiven)
    found = [ToolDescription.parse(text) for text in given.tools]
    if len({one.name for one in found}) != len(found) or len(found) > MAX_TOOLS:
        raise ToolRefused(Code.TOOL_DESCRIPTION, f"{to} serves two tools of one name, or more than {MAX_TOOLS}")
    return found


async def offers(host: Host, ctx: Context, to: str) -> list[Offer]:
    """The tools of an agent that this one may call, without those that are other than trust file or policy say."""
    served = await _descriptions(ctx, to)
    found: list[Offer] = []
    for first in range(0, len(served), MAX_ASKED):
        part = served[first : first + MAX_ASKED]
        allowed = await host.callable_tools(to, tuple(one.name for one in part))
        for one in part:
            pin = host.pinned(to, one.name) or (allowed.pins.get(one.name, "") if allowed else "")
            if pin not in ("", one.digest):
                log.warning("%s: %s of %s is not the tool that is pinned", Code.TOOL_DRIFT, one.name, to)
            elif allowed is None or one.name in allowed.tools:
                found.append(Offer(description=one, pinned=bool(pin), permitted=allowed is not None))
    return found


class Blocking(Protocol):
    """What a plain function's context does for its tools."""

    def wait(self, work: Awaitable[T]) -> T: ...

    def each(self, items: AsyncGenerator[T, None]) -> Iterator[T]: ...


@final
class BlockingTool:
    """The same for handlers that are plain functions."""

    def __init__(self, context: Blocking, tool: RemoteTool) -> None:
        self._context = context
        self._tool = tool

    @overload
    def __call__(
        self, arguments: object = ..., *, timeout_s: float = ..., key: str = ..., attempts: int = ...
    ) -> None: ...
    @overload
    def __call__(
        self, arguments: object, result: type[T], *, timeout_s: float = ..., key: str = ..., attempts: int = ...
    ) -> T: ...
    def __call__(
        self,
        arguments: object = None,
        result: type[Any] | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
        key: str = "",
        attempts: int = 1,
    ) -> Any:
        found = self._tool(arguments, result or Nothing, timeout_s=timeout_s, key=key, attempts=attempts)
        taken = self._context.wait(found)
        return None if result is None else taken

    def stream(
        self,
        arguments: object,
        item: type[T],
        *,
        timeout_s: float = TIMEOUT_S,
        progress: Callable[[Progress], object] | None = None,
    ) -> Iterator[T]:
        return self._context.each(self._tool.stream(arguments, item, timeout_s=timeout_s, progress=progress))

    def describe(self) -> ToolDescription:
        return self._context.wait(self._tool.describe())


def _plain(text: str) -> str:
    """A peer's words, fit to be shown."""
    return "".join(one if one.isprintable() else "?" for one in text[:MAX_TOLD])
