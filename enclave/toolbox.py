"""The half of `Agent` that has to do with tools: which it serves, and the hooks before them.

Decides which pin is the trust file's, and what an agent's or a topic's name stands for. `serving` says what can be a
tool and how it is called, `guards` what hooks mean. Types of messages and their handlers are kept here, too, since
tools are both.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NoReturn, TypeVar, overload

from broker.wire.names import TENANT, is_resource
from broker.wire.tools import CALL, MAX_TOOLS, ToolsAllowed, tool_name
from enclave.context import Context
from enclave.declared import Declared, Handler, Key, Retry, declare, name_of
from enclave.errors import AgentError, BrokerRefused, Code
from enclave.guards import Guards, ToolUse
from enclave.messages import MessageType
from enclave.peers import TYPES as PROOF_TYPES
from enclave.replies import OWN
from enclave.runtime import Runtime
from enclave.serving import Served
from enclave.tools import ASKED, ToolAnswer, ToolCall, ToolDescription, ToolsAsked, ToolsGiven
from enclave.tools import TYPES as TOOL_TYPES

H = TypeVar("H", bound=Handler)
log: Final = logging.getLogger("cloister.agent")


class Toolbox(ABC):
    """See the module."""

    @property
    @abstractmethod
    def running(self) -> Runtime:
        """Raises AgentError agent.not_running."""

    def __init__(self, *, durable: bool) -> None:
        self._keeps = durable
        self._types: dict[type, MessageType] = {**OWN, **PROOF_TYPES, **TOOL_TYPES}
        self._handlers: dict[str, Declared] = {}
        self._tools: dict[str, Served] = {}
        self._before_tool: Final = Guards("before_tool")
        self._before_call: Final = Guards("before_call")
        self._own(ASKED, self._tell_tools)
        self._own(MessageType(ToolCall, CALL), self._unknown)  # for calls of what nothing else is called

    @overload
    def tool(self, function: H) -> H: ...
    @overload
    def tool(
        self,
        *,
        name: str = ...,
        needs: str | Iterable[str] = ...,
        retry: Retry | None = ...,
        deadline_s: float | None = ...,
        idempotent: bool | Key = ...,
        keyed: bool = ...,
    ) -> Callable[[H], H]: ...
    def tool(
        self,
        function: Handler | None = None,
        *,
        name: str = "",
        needs: str | Iterable[str] = (),
        retry: Retry | None = None,
        deadline_s: float | None = None,
        idempotent: bool | Key = False,
        keyed: bool = False,
    ) -> Any:
        """Serve a function to other agents: `async def find(ctx, wanted: Search) -> Hits`, with a docstring.

        name        what callers call it; the function's name unless told
        needs       secrets that it may ask for, without the tenant: "tools/corpus". It gets no others
        retry       how often a failed call is tried again; once in all unless it is idempotent
        deadline_s  an attempt that takes longer is broken off and counts as failed
        idempotent  a repetition does no harm; or `lambda arguments: key`: a repeated key is answered from memory
        keyed       callers must give a key, `key="…"`; under one key it is done once
        """

        def register(one: H) -> H:
            served = Served(
                one,
                message_type=self.message_type,
                guards=self._before_tool,
                name=name,
                needs=needs,
                idempotent=idempotent,
                keyed=keyed,
            )
            self._serve(served, retry, deadline_s)
            return one

        return register if function is None else register(function)

    def _serve(self, served: Served, retry: Retry | None, deadline_s: float | None) -> None:
        name = served.description.name
        if name in self._tools or len(self._tools) >= MAX_TOOLS:
            detail = f"two tools called {name}, or more than {MAX_TOOLS}"
            raise AgentError(Code.AGENT_TOOL, detail, "Give each a name of its own: @agent.tool(name=…).")
        made = served.declared(retry=retry, deadline_s=deadline_s, durable=self._keeps)
        self._handlers[made.kind.name] = made
        self._tools[name] = served

    def before_tool(self, hook: H) -> H:
        """Ask `hook(ctx, use)` before a tool of this agent runs. Whatever it answers but `Allow()` denies the call."""
        return self._before_tool.add(hook)

    def before_call(self, hook: H) -> H:
        """Ask `hook(ctx, use)` before this agent calls a tool of another. Whatever it answers but `Allow()` denies."""
        return self._before_call.add(hook)

    @property
    def tools(self) -> Mapping[str, ToolDescription]:
        """What this agent serves, by name."""
        return {name: served.description for name, served in self._tools.items()}

    def message_type(self, kind: type) -> MessageType:
        """Raises AgentError agent.handler_invalid for a type that cannot be a message."""
        found = self._types.get(kind)
        if found is None and not isinstance(kind, type):
            raise AgentError(
                Code.AGENT_HANDLER,
                f"{name_of(kind)} is not a type of messages",
                "Name the type in parentheses: `@agent.on_message(Type)`, `@agent.on_topic(topic, Type)`.",
            )
        if found is None:
            found = self._types[kind] = MessageType(kind)
        return found

    def pinned(self, to: str, tool: str) -> str:
        """The digest that the trust file names for that tool of that agent, or nothing."""
        trust = self.running.trust
        return trust.tool(tool_name(self._address(to, trust.tenant), tool) or "")

    async def callable_tools(self, to: str, tools: tuple[str, ...]) -> ToolsAllowed | None:
        """What the policy says of these tools; None where the broker cannot tell."""
        mailbox = self._address(to, self.running.trust.tenant)
        try:
            return await self.running.call(lambda calls: calls.tools(mailbox, tools))
        except BrokerRefused as refusal:
            if refusal.code != "route.unknown":
                raise
            return None

    async def may_call(
        self, ctx: Context, to: str, tool: str, digest: str, arguments: Callable[[], Any], key: str
    ) -> None:
        """Raises ToolRefused tool.denied, tool.hook_failed."""
        server = self._address(to, self.running.trust.tenant)
        await self._before_call.ask(
            ctx,
            lambda: ToolUse(
                server=server,
                tool=tool,
                digest=digest,
                caller=None,
                arguments=arguments(),
                labels=ctx.labels,
                key=key,
            ),
        )

    @staticmethod
    def _address(name: str, tenant: str, folder: str = "mail") -> str:
        """The mailbox of an agent's name, or a topic by its own; what has slashes is a full name already. Raises
        AgentError agent.name_invalid."""
        if not (TENANT.fullmatch(name) or ("/" in name and is_resource(name))):
            raise AgentError(Code.AGENT_NAME, f"{name[:80]!r}")
        return name if "/" in name else f"{tenant}/{folder}/{name}"

    def _own(self, kind: MessageType, handler: Handler) -> None:
        """A handler of the framework's own."""
        self._handlers[kind.name] = declare(kind, handler, retry=None, deadline_s=None, idempotent=True, durable=False)

    async def _tell_tools(self, ctx: Context, asked: ToolsAsked) -> ToolsGiven:
        return ToolsGiven(tools=tuple(self.tools[name].text.decode() for name in sorted(self._tools)))

    async def _unknown(self, ctx: Context, call: ToolCall) -> ToolAnswer:
        log.warning("%s calls a tool that is not served here", ctx.peer.subject if ctx.peer else "-")
        return ToolAnswer(tool="", kind="refused", code=str(Code.TOOL_UNKNOWN), text="")

    def _say_tools(self) -> None:
        for name, described in self.tools.items():
            log.info("serves the tool %s, digest %s", name, described.digest)


def two_handlers(what: str) -> NoReturn:
    raise AgentError(
        Code.AGENT_HANDLER,
        f"two handlers for {what}",
        "A type has one handler: give the second a type of its own, or call both from one.",
    )
