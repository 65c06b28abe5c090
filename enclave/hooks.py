"""What an author has done when his agent begins and before it ends, each within a time of its own.

    @agent.on_start                          runs beside everything else, for as long as it likes
    @agent.on_start(deadline_s=30)           first of all: no message is handled before it has ended
    @agent.on_stop                           after the last handler, while the mailbox is still open; 5 seconds
    @agent.on_stop(deadline_s=20)

Decides the bounds and how a failure is told. Plain functions are taken too; they run in a thread.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, final

from enclave.context import Context, Host
from enclave.declared import Handler, check_arguments, name_of
from enclave.errors import AgentError, Code
from enclave.handling import STOP_PATIENCE_S, call
from enclave.telling import follow_up, told

log: Final = logging.getLogger("cloister.agent")
STOP_S: Final = STOP_PATIENCE_S
MAX_DEADLINE_S: Final = 600.0


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Hook:
    """One function; `deadline_s` None: as long as it likes."""

    handler: Handler
    deadline_s: float | None

    @classmethod
    def of(cls, handler: Handler, deadline_s: float | None) -> Hook:
        """Raises AgentError agent.handler_invalid."""
        check_arguments(handler, 1)
        if inspect.isasyncgenfunction(handler) or inspect.isgeneratorfunction(handler):
            raise AgentError(
                Code.AGENT_HANDLER,
                f"{name_of(handler)} yields, and nobody takes it",
                "Leave `yield` out: what is to happen before the end belongs into @agent.on_stop.",
            )
        if deadline_s is not None and not 0 < deadline_s <= MAX_DEADLINE_S:
            raise AgentError(
                Code.AGENT_HANDLER,
                f"{name_of(handler)}: a deadline of {deadline_s} s",
                f"Declare more than 0 and at most {MAX_DEADLINE_S:g} seconds.",
            )
        return cls(handler=handler, deadline_s=deadline_s)

    async def run(self, host: Host) -> None:
        """Raises AgentError agent.hook_failed when it takes too long; else what the function raises."""
        try:
            async with asyncio.timeout(self.deadline_s) as limit:
                await call(self.handler, Context(host))
        except TimeoutError:
            if not limit.expired():
                raise
            detail = f"{name_of(self.handler)} did not end in {self.deadline_s:g} s"
            raise AgentError(Code.AGENT_HOOK, detail) from None


def register(hooks: list[Hook], handler: Handler | None, deadline_s: float | None) -> Callable[[Handler], Handler]:
    """The decorator, with or without parentheses behind it."""

    def keep(one: Handler) -> Handler:
        hooks.append(Hook.of(one, deadline_s))
        return one

    return keep if handler is None else keep(handler)


async def begin(hooks: Iterable[Hook], host: Host, ready: asyncio.Event) -> None:
    """Those with a deadline, one after another; then messages may be handled. The first failure ends the agent."""
    for hook in hooks:
        if hook.deadline_s is not None:
            await hook.run(host)
    ready.set()


async def beside(hook: Hook, host: Host, ready: asyncio.Event) -> None:
    """One without a deadline, once those with one have ended."""
    await ready.wait()
    await hook.run(host)


async def end(hooks: Iterable[Hook], host: Host) -> list[str]:
    """All of them, in the order in which they were declared, whatever becomes of the others; what failed."""
    failed = []
    for hook in hooks:
        try:
            await hook.run(host)
        except Exception as error:  # noqa: BLE001  an author's function may raise anything; the agent ends all the same
            log.error("on_stop: %s failed: %s", name_of(hook.handler), told(error))
            follow_up(error)
            failed.append(name_of(hook.handler))
    return failed
