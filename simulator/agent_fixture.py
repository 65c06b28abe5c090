"""Agents for tests: attested, on simulated trust domains, driven from plain test functions.

Decides how a test that is no coroutine talks with agents: they live on an event loop in a thread, and every call waits
for its result. Nothing about them is pretended but the hardware: they attest to the broker under test over HTTP, their
messages are sealed, and what they are refused, they are refused by the broker's policy.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Any, Final, Generic, Self, TypeVar, final

from attestation.errors import CloisterError
from attestation.verdict import Verdict
from enclave.agent import Agent
from enclave.calling import BlockingTool, Offer
from enclave.context import ASK_TIMEOUT_S, Context
from enclave.declared import Handler
from enclave.errors import AgentError
from enclave.release import Secret
from enclave.telling import everything_shown
from enclave.tools import Unpinned
from simulator.broker_fixture import PATIENCE_S, BrokerUnderTest
from simulator.domain import SimulatedTd

T = TypeVar("T")
A = TypeVar("A", bound="AgentUnderTest")


@final
class Agents:
    """The thread in which a test's agents live. A context manager: afterwards all of them are stopped."""

    def __init__(self, broker: BrokerUnderTest) -> None:
        self.broker: Final = broker
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="cloister-agents", daemon=True)
        self._running: list[AgentUnderTest] = []
        self._shown = ExitStack()

    def run(self, work: Coroutine[Any, Any, T], *, timeout_s: float = PATIENCE_S) -> T:
        """Run a coroutine where the agents live, and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout_s)

    def start(self, agent: Agent, *, domain: SimulatedTd | None = None) -> AgentUnderTest:
        """Start it in that trust domain, else in one that has just booted. Raises BrokerRefused when not admitted."""
        return self.add(AgentUnderTest(self, agent, domain or self.broker.machine.launch(agent.name)))

    def add(self, running: A) -> A:
        """To be stopped with the others."""
        self._running.append(running)
        return running

    def __enter__(self) -> Self:
        self._shown.enter_context(everything_shown())  # tracebacks of handlers: nothing here is protected anyway
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """All of them are stopped, whatever the `on_stop` of one does; then its failure is the test's."""
        with self._shown:
            failures = [failure for one in reversed(self._running) if (failure := _stopped(one))]
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(PATIENCE_S)
            self._loop.close()
        if failures and error is None:
            raise failures[0]


def _stopped(running: AgentUnderTest) -> AgentError | None:
    try:
        running.stop()
    except AgentError as failure:
        return failure
    return None


class AgentUnderTest:
    """One running agent, attested."""

    def __init__(self, agents: Agents, agent: Agent, domain: SimulatedTd) -> None:
        self.agent: Final = agent
        self.domain = domain
        self._agents = agents
        self._start()

    def _start(self) -> None:
        broker = self._agents.broker
        self._agents.run(self.agent.start(domain=self.domain, trust=broker.trust, broker_url=broker.url))

    @property
    def verdict(self) -> Verdict:
        """What the broker says about it."""
        return self.agent.verdict

    @property
    def subject(self) -> str:
        return self.verdict.subject

    def stop(self) -> None:
        """As SIGTERM does. Stopping twice is harmless."""
        self._agents.run(self.agent.stop())

    def restart(self, *, domain: SimulatedTd | None = None) -> None:
        """Stop, and start with new keys, in the same trust domain or in that one."""
        self.stop()
        self.domain = domain or self.domain
        self._start()

    def attest(self) -> Verdict:
        """Attest now instead of when the admission is about to end. Raises BrokerRefused."""
        running = self.agent.running
        before = running.admission if running.admitted else None
        return self._agents.run(running.attest(instead_of=before)).verdict


class Peer(AgentUnderTest):
    """An agent that does what the test says. Its labels grow with what it reads, like any agent's."""

    def __init__(self, agents: Agents, agent: Agent, domain: SimulatedTd) -> None:
        super().__init__(agents, agent, domain)
        self._context = agent.context()

    @property
    def labels(self) -> frozenset[str]:
        return self._context.labels

    def add_labels(self, *labels: str) -> None:
        self._context.add_labels(*labels)

    def send(self, to: str, message: object) -> None:
        """Tell an agent something, by its name or its mailbox."""
        self._agents.run(self._context.send(to, message))

    def ask(self, to: str, message: object, reply: type[T], *, timeout_s: float = ASK_TIMEOUT_S) -> T:
        """Ask, and return the answer. Raises MessageError, BrokerRefused."""
        asking = self._context.ask(to, message, reply, timeout_s=timeout_s)
        return self._agents.run(asking, timeout_s=timeout_s + PATIENCE_S)

    def stream(self, to: str, message: object, item: type[T]) -> Iterator[T]:
        """Ask a handler that yields."""
        return self.each(self._context.stream(to, message, item))

    def tool(self, to: str, name: str, *, digest: str | Unpinned | None = None) -> BlockingTool:
        """A tool that an agent serves: `tool(arguments, Result)`, `tool.stream(arguments, Item)`, `tool.describe()`."""
        return BlockingTool(self, self._context.tool(to, name, digest=digest))

    def tools_of(self, to: str) -> list[Offer]:
        """The tools that an agent serves."""
        return self.wait(self._context.tools_of(to))

    def wait(self, work: Awaitable[T]) -> T:
        """For something that is done where the agents live."""
        return self._agents.run(_await(work))

    def each(self, items: AsyncGenerator[T, None]) -> Iterator[T]:
        """One after the other; leaving the loop closes them."""
        try:
            while (item := self._agents.run(_next(items))) is not None:
                yield item
        finally:
            self._agents.run(items.aclose())

    def secret(self, name: str) -> Secret:
        """Raises BrokerRefused when policy says no."""
        return self._agents.run(self._context.secrets.get(name))

    def listen(self, kind: type[T]) -> Heard[T]:
        """Collect messages of that type that are sent to this peer from now on."""
        return Heard(self.agent, kind)


def stand_in(agent: Agent, **functions: Handler) -> Agent:
    """An agent of the same name that serves tools as that one describes them, with these functions behind them: whoever
    pins the descriptions takes it for the real one. Tools for which no function is given are not served."""
    made = Agent(agent.name)
    for name, function in functions.items():
        made._serve(agent._tools[name].replaced(function, made._before_tool), None, None)
    return made


@final
class Heard(Generic[T]):
    """Messages of one type, in the order in which they were handled."""

    def __init__(self, agent: Agent, kind: type[T]) -> None:
        self._found: queue.SimpleQueue[tuple[T, frozenset[str], Verdict | None]] = queue.SimpleQueue()

        @agent.on_message(kind)
        async def hear(ctx: Context, message: T) -> None:
            self._found.put((message, ctx.labels, ctx.peer))

    def next(self, *, timeout_s: float = PATIENCE_S) -> T:
        """The next message. Raises TimeoutError."""
        return self.next_with(timeout_s=timeout_s)[0]

    def next_with(self, *, timeout_s: float = PATIENCE_S) -> tuple[T, frozenset[str], Verdict | None]:
        """The next message with its labels and its sender's verdict. Raises TimeoutError."""
        try:
            return self._found.get(timeout=timeout_s)
        except queue.Empty:
            raise TimeoutError(f"nothing came within {timeout_s:g} s") from None


async def _await(work: Awaitable[T]) -> T:
    return await work


async def _next(parts: Any) -> Any:
    with suppress(StopAsyncIteration):
        return await anext(parts)
    return None


def code_of(work: Callable[[], object]) -> str:
    """The code with which it is refused, or "ok"."""
    try:
        work()
    except CloisterError as error:
        return str(error.code)
    return "ok"
