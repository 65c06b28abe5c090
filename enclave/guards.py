"""Hooks that are asked before a tool is called, and what their answers mean.

    @agent.before_tool                       before a tool of this agent runs, for whoever calls it
    @agent.before_call                       before this agent calls a tool of another

    async def guard(ctx, use): return Allow()      or Deny("ledger.closed")

Decides that nothing but `Allow()` allows: a hook that raises, takes longer than five seconds, or answers anything else
(None, True, a coroutine) denies the call. All hooks are asked, in the order in which they were declared, until one
denies. A hook sees arguments of its own: what it does to them reaches no tool.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar, final

from attestation.verdict import Verdict
from enclave.context import Context
from enclave.declared import Handler, check_arguments, name_of
from enclave.errors import REASON, Code, ToolRefused
from enclave.handling import call
from enclave.telling import follow_up, told

H = TypeVar("H", bound=Handler)
log: Final = logging.getLogger("cloister.agent")
PATIENCE_S: Final = 5.0


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ToolUse:
    """One call, as a hook sees it. `server` is this agent's own subject, or the mailbox that is called; `caller` is
    None where this agent itself is about to call; `labels` mark what goes into the tool; `digest` is that of the
    description that is served, or pinned."""

    server: str
    tool: str
    digest: str
    caller: Verdict | None
    arguments: Any = field(repr=False)
    labels: frozenset[str]
    key: str


@final
@dataclass(frozen=True, slots=True)
class Allow:
    """The hook has nothing against it."""


@final
@dataclass(frozen=True, slots=True)
class Deny:
    """The hook is against it. `reason` is a code like `ledger.closed`, and all that the caller is told."""

    reason: str

    def __post_init__(self) -> None:
        if not REASON.fullmatch(self.reason):
            raise ValueError(f"{self.reason!r} is not a code like `ledger.closed`")


@final
class Guards:
    """The hooks of one kind."""

    def __init__(self, mark: str) -> None:
        self._mark = mark
        self._hooks: list[Handler] = []

    def add(self, hook: H) -> H:
        """Raises AgentError agent.handler_invalid."""
        check_arguments(hook, 2, what="(ctx, use)", mark=self._mark)
        self._hooks.append(hook)
        return hook

    async def ask(self, ctx: Context, use: Callable[[], ToolUse]) -> None:
        """Raises ToolRefused tool.denied, tool.hook_failed. `use` makes what one hook is shown."""
        for hook in self._hooks:
            answer = await _asked(hook, ctx, use())
            if type(answer) is Deny:
                raise ToolRefused(Code.TOOL_DENIED, answer.reason)
            if type(answer) is not Allow:
                log.error("%s: %s answered with %s: denied", self._mark, name_of(hook), type(answer).__name__)
                raise ToolRefused(Code.TOOL_HOOK, f"{name_of(hook)} neither allows nor denies")


async def _asked(hook: Handler, ctx: Context, use: ToolUse) -> Any:
    """What it answers. Raises ToolRefused tool.hook_failed for whatever it raises, and when it takes too long."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            return await call(hook, ctx, use)
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        failure: BaseException = TimeoutError()  # the hook's own idea, and as good as none
    except Exception as error:  # noqa: BLE001  a hook may raise anything; the call is denied
        failure = error
    log.error("%s failed, so the call is denied: %s", name_of(hook), told(failure))
    follow_up(failure)
    raise ToolRefused(Code.TOOL_HOOK, f"{name_of(hook)} failed")
