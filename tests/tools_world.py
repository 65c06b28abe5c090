"""A desk whose tools others call, and a rogue that answers as it likes."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx2
import pydantic
import pytest

from attestation.errors import CloisterError
from enclave import Agent, Allow, Context, Progress, Reject, Retry, ToolUse
from enclave.context import BlockingContext
from policies.scaffold import starter
from simulator.agent_fixture import Agents, AgentUnderTest, Peer
from simulator.broker_fixture import BrokerUnderTest
from simulator.hostile import HostileAgent
from simulator.machine import Machine

FORBIDDEN = """
@id("never-the-safe")
forbid (principal, action == Action::"CallTool", resource == Tool::"lab/tools/desk/safe");

@id("restricted-stays-inside")
forbid (principal, action in [Action::"Send", Action::"CallTool"], resource)
when { resource.labels.contains("restricted") };
"""


@dataclass
class Order:
    number: str
    pieces: int


@dataclass
class Booked:
    number: str
    times: int


@dataclass
class Part:
    value: int


class Strict(pydantic.BaseModel):
    count: int = pydantic.Field(ge=1)


@dataclass
class Desk:
    """The agent that serves, and what its tools saw."""

    agent: Agent = field(default_factory=lambda: Agent("desk"))
    runs: list[str] = field(default_factory=list)
    closed: threading.Event = field(default_factory=threading.Event)
    hang: threading.Event = field(default_factory=threading.Event)
    said: Any = field(default_factory=Allow)

    def __post_init__(self) -> None:
        agent = self.agent

        @agent.tool
        async def book(ctx: Context, order: Order) -> Booked:
            """Book an order."""
            self.runs.append(order.number)
            if order.number == "rejected":
                raise Reject("order.unknown")
            if order.number == "fails":
                raise RuntimeError("never")
            return Booked(order.number, len(self.runs))

        @agent.tool(idempotent=True, retry=Retry(attempts=2, first_s=0, most_s=0))
        def look(ctx: BlockingContext, order: Order) -> Booked:
            """Look an order up, in a thread."""
            self.runs.append(f"look {ctx.attempt}")
            if order.number == "once more" and ctx.attempt == 1:
                raise RuntimeError("not yet")
            return Booked(order.number, ctx.attempt)

        @agent.tool(idempotent=lambda order: order.number)
        async def pay(order: Order) -> Booked:
            """Pay for an order."""
            self.runs.append(order.number)
            return Booked(order.number, len(self.runs))

        @agent.tool
        async def count(order: Order) -> AsyncIterator[Part | Progress]:
            """Count pieces."""
            try:
                for value in range(order.pieces):
                    yield Progress(done=value, total=order.pieces)
                    yield Part(value)
                if order.number == "endless":
                    await asyncio.Event().wait()
            finally:
                self.closed.set()

        self._odd_ones(agent)

        @agent.before_tool
        async def asked(ctx: Context, use: ToolUse) -> Any:
            if isinstance(self.said, Exception):
                raise self.said
            use.arguments.__dict__["number"] = "changed by the hook"
            return self.said(use) if callable(self.said) else self.said

    def _odd_ones(self, agent: Agent) -> None:
        @agent.tool(deadline_s=0.2)
        async def slow(order: Order) -> None:
            """Never end."""
            self.runs.append(order.number)
            await asyncio.Event().wait()

        @agent.tool
        def steps(order: Order) -> Iterator[Part]:
            """Count pieces in a thread."""
            yield from map(Part, range(order.pieces))

        @agent.tool
        async def wrong(order: Order) -> Booked:
            """Return what is not declared."""
            return Booked(order.number, "many")  # type: ignore[arg-type]  # what is tested

        @agent.tool(name="strict")
        async def with_pydantic(wanted: Strict) -> Strict:
            """Take a pydantic model."""
            return wanted

        @agent.tool
        async def ping() -> None:
            """Do nothing."""

        @agent.tool(keyed=True)
        async def once(order: Order) -> Booked:
            """Do something that must not be done twice."""
            self.runs.append(order.number)
            return Booked(order.number, len(self.runs))

        @agent.tool
        async def safe() -> None:
            """Open the safe."""
            self.runs.append("safe")

        @agent.tool(needs="desk/declared")
        async def secrets(ctx: Context, order: Order) -> Booked:
            """Read a secret."""
            return Booked((await ctx.secrets.get(f"{ctx.tenant}/{order.number}")).text(), 1)

    def digest(self, tool: str) -> str:
        return self.agent.tools[tool].digest


@dataclass
class World:
    broker: BrokerUnderTest
    agents: Agents
    desk: Desk
    server: AgentUnderTest
    peer: Peer
    rest: Peer
    hostile: HostileAgent

    def call(self, tool: str, arguments: object = None, result: Any = Booked, **how: Any) -> Any:
        return self.peer.tool("desk", tool, digest=self.desk.digest(tool))(arguments, result, **how)

    def refused(self, work: Callable[[], object]) -> tuple[str, str]:
        with pytest.raises(CloisterError) as caught:
            work()
        return str(caught.value.code), caught.value.detail

    def denials(self, subject: str) -> list[dict[str, Any]]:
        rows = self.broker.broker.audit.page(start=0, limit=1000, subject=subject)
        return [entry for row in rows if "refused" in (entry := json.loads(row.entry))["kind"]]


class OverRest(Peer):
    """A peer that has no mail stream."""

    def _start(self) -> None:
        broker, how = self._agents.broker, httpx2.AsyncHTTPTransport()
        self._agents.run(self.agent.start(domain=self.domain, trust=broker.trust, broker_url=broker.url, transport=how))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    machine, desk = Machine.create(seed="tools"), Desk()
    bundle = {name: text for name, text in starter("lab", at=machine.clock.now()).items() if "tests/" not in name}
    bundle["policy.cedar"] += FORBIDDEN.encode()
    for tool, digest in (("look", desk.digest("look")), ("pay", "0" * 64)):
        bundle["bundle.toml"] += f'\n[[tool]]\nname = "lab/tools/desk/{tool}"\ndigest = "{digest}"\n'.encode()
    folder = tmp_path_factory.mktemp("tools")
    with BrokerUnderTest(machine, folder, bundle=bundle) as broker, Agents(broker) as agents:
        broker.put_secret("lab/desk/declared", b"told", labels=["internal"])
        broker.put_secret("lab/desk/other", b"never told")
        broker.put_secret("lab/restricted", b"restricted", labels=["restricted"])
        server = agents.start(desk.agent)
        peer = agents.add(Peer(agents, Agent("peer"), machine.launch("peer")))
        rest = agents.add(OverRest(agents, Agent("rest"), machine.launch("rest")))
        hostile = agents.add(HostileAgent(agents, Agent("hostile"), machine.launch("hostile")))
        yield World(broker, agents, desk, server, peer, rest, hostile)


@pytest.fixture
def world(shared: World) -> World:
    shared.desk.runs.clear()
    shared.desk.closed.clear()
    shared.desk.said = Allow()
    return shared
