"""What docs/agents.md shows runs as it stands."""

import asyncio
import re
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jwt
import pytest

from broker.wire import dpop
from enclave import Agent, Context, direct
from enclave.errors import CloisterError
from policies.scaffold import starter
from simulator.broker_fixture import BrokerUnderTest
from simulator.machine import Machine

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "agents.md").read_text("utf-8")
AUDIENCE = "https://models.example"
PERMIT = f"""
@id("models")
permit (principal, action == Action::"IssueToken", resource == Tenant::"lab")
when {{ principal.simulated && context.audience == "{AUDIENCE}" }};
"""


def parts(name: str) -> str:
    return "\n\n".join(re.findall(rf"<!-- part: {re.escape(name)} -->\n```python\n(.*?)```", PAGE, re.DOTALL))


def example(name: str) -> str:
    return str(re.findall(rf"<!-- example: {name} -->\n```python\n(.*?)```", PAGE, re.DOTALL)[0])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerUnderTest]:
    machine = Machine.create(seed="docs")
    bundle = dict(starter("lab", tenant="lab", at=machine.clock.now()))
    bundle["policy.cedar"] += PERMIT.encode()
    with BrokerUnderTest(machine, tmp_path_factory.mktemp("docs"), bundle=bundle) as running:
        yield running


@pytest.fixture
def desk() -> Iterator[Any]:
    found = ModuleType("desk")  # dataclasses look their module up
    sys.modules["desk"] = found
    exec(compile(parts("desk.py"), "desk.py", "exec"), found.__dict__)
    yield found
    del sys.modules["desk"]


def run(world: BrokerUnderTest, story: Callable[[Context], Awaitable[Any]], *agents: Agent) -> Any:
    caller = Agent("reader")

    async def everything() -> Any:
        for agent in (*agents, caller):
            await agent.start(domain=world.machine.launch(agent.name), trust=world.trust, broker_url=world.url)
        try:
            return await story(caller.context())
        finally:
            for agent in (caller, *agents):
                await agent.stop()

    return asyncio.run(asyncio.wait_for(everything(), 30))


def test_the_desk_books_counts_prepares_hears_and_hands_over(world: BrokerUnderTest, desk: Any) -> None:
    async def story(ctx: Context) -> None:
        booked = await ctx.ask("desk", desk.Order("A-1", 2), desk.Booked)
        assert booked == desk.Booked("A-1")
        assert set(desk.stock) == {"carried-over", "A-1"}
        with pytest.raises(CloisterError) as caught:
            await ctx.ask("desk", desk.Order("A-2", 0), desk.Booked)
        assert caught.value.detail == "order.no_pieces"
        assert [part.value async for part in ctx.stream("desk", desk.Count(3), desk.Number)] == [0, 1, 2]
        while "extra" not in desk.stock:
            await ctx.publish("news", desk.News("extra"))
            await asyncio.sleep(0.05)

    run(world, story, desk.agent)
    assert desk.stock == {}


def test_the_desk_s_tools_are_called_as_it_says(world: BrokerUnderTest, desk: Any) -> None:
    world.put_secret("lab/desk/bank-key", b"7 bytes")
    names: dict[str, Any] = {**vars(desk), "Callable": Callable}
    exec(example("tools"), names)
    digest = desk.agent.tools["refund"].digest

    async def story(ctx: Context) -> None:
        assert await names["pay_back"](ctx, digest) == desk.Refunded("A-1", 7)
        shown: list[Any] = []
        assert await names["recall"](ctx, shown.append) == [0, 1, 2]
        assert [one.total for one in shown] == [3, 3, 3]
        assert await names["offered"](ctx) == ["history", "refund"]
        with pytest.raises(CloisterError) as caught:
            await ctx.tool("desk", "refund", digest=digest)(desk.Refund("A-1", 20_000), desk.Refunded)
        assert (caught.value.code, caught.value.detail) == ("tool.denied", "refund.too_much")

    run(world, story, desk.agent)


def test_the_queue_is_declared_as_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(parts("queue.py"), names)
    assert names["agent"].name == "queue"


def test_a_token_for_a_service_comes_with_a_proof_of_the_agents_key(world: BrokerUnderTest) -> None:
    names: dict[str, Any] = {"Context": Context}
    exec(example("token"), names)

    async def story(ctx: Context) -> None:
        headers = await names["call"](ctx)
        token = headers["authorization"].removeprefix("DPoP ")
        claims = jwt.decode(token, options={"verify_signature": False})
        proof = dpop.parse(headers["dpop"])
        assert (claims["aud"], claims["sub"]) == (AUDIENCE, ctx.verdict.subject)
        assert claims["cnf"]["jkt"] == proof.jkt

    run(world, story)


def test_two_agents_talk_directly(world: BrokerUnderTest) -> None:
    names: dict[str, Any] = {"Agent": Agent, "asyncio": asyncio, "direct": direct}
    exec(example("direct"), names)
    server, client = Agent("server"), Agent("client")

    async def story(ctx: Context) -> bytes:
        listening = await names["serve"](server, client.verdict.subject)
        async with listening:
            port = listening.sockets[0].getsockname()[1]
            found: bytes = await names["ask"](client, port, server.verdict.subject)
            return found

    assert run(world, story, server, client) == b"hello\n"


def test_every_call_of_a_context_is_on_the_page() -> None:
    for name, found in vars(Context).items():
        if not name.startswith("_") and (callable(found) or isinstance(found, property)):
            if name in ("reply", "reply_with", "tenant", "verdict", "attempt"):
                continue  # `return` says it better, and what the names say
            assert f"ctx.{name}" in PAGE, name
