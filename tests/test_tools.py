"""Served tools: called, pinned, guarded, refused. Real agents over a real broker; T17, and T13 for tools."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest

from broker.wire.tools import MAX_ASKED
from enclave import UNPINNED, Agent, Allow, Context, Progress, ToolUse
from enclave.errors import Code
from simulator.agent_fixture import Peer, code_of
from tests.agent_world import PATIENCE_S
from tests.tools_world import Booked, Order, Part, Strict, World
from tests.tools_world import shared as shared
from tests.tools_world import world as world

# --- called ---


@pytest.mark.parametrize("way", ["grpc", "rest"])
def test_a_tool_is_called_by_its_name_and_under_its_pin(world: World, way: str) -> None:
    caller, digest = world.peer if way == "grpc" else world.rest, world.desk.digest
    assert (caller.agent.running._stream is None) == (way == "rest")
    for number in ("A-1", "A-2"):  # the first goes as an envelope, the second on a channel where there is one
        assert caller.tool("desk", "book", digest=digest("book"))(Order(number, 1), Booked).number == number
    assert caller.tool("desk", "look", digest=digest("look"))(Order("A", 1), Booked) == Booked("A", 1)
    assert caller.tool("desk", "ping", digest=digest("ping"))() is None
    many = caller.tool("desk", "count", digest=digest("count")).stream(Order("A", 3), Part)
    assert list(many) == [Part(0), Part(1), Part(2)]
    assert list(caller.tool("desk", "steps", digest=digest("steps")).stream(Order("A", 2), Part)) == [Part(0), Part(1)]


def test_a_pydantic_model_is_taken_and_its_faults_are_named_by_place(world: World) -> None:
    assert world.call("strict", Strict(count=2), Strict) == Strict(count=2)
    bad = Strict.model_construct(count=0)
    code, detail = world.refused(lambda: world.call("strict", bad, Strict))
    assert (code, detail) == (Code.TOOL_ARGUMENTS, "Strict.count: greater_than_equal")


def test_progress_is_told_beside_the_items(world: World) -> None:
    far: list[Progress] = []
    tool = world.peer.tool("desk", "count", digest=world.desk.digest("count"))
    assert len(list(tool.stream(Order("A", 2), Part, progress=far.append))) == 2
    assert [(one.done, one.total) for one in far] == [(0, 2), (1, 2)]


def test_who_leaves_a_stream_closes_the_tool(world: World) -> None:
    items = world.peer.tool("desk", "count", digest=world.desk.digest("count")).stream(Order("endless", 1), Part)
    assert next(items) == Part(0)
    assert not world.desk.closed.is_set()
    items.close()  # type: ignore[attr-defined]  # a generator
    assert world.desk.closed.wait(PATIENCE_S)


def test_who_is_cancelled_stops_the_tool(world: World) -> None:
    begun, stopped, agent = asyncio.Event(), asyncio.Event(), Agent("patient")

    @agent.tool
    async def wait() -> None:
        """Wait."""
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    world.agents.start(agent)

    async def story() -> None:
        tool = world.peer.agent.context().tool("patient", "wait", digest=agent.tools["wait"].digest)
        calling = asyncio.create_task(tool())
        await begun.wait()
        calling.cancel()
        await stopped.wait()

    world.agents.run(asyncio.wait_for(story(), PATIENCE_S))


def test_calls_of_one_caller_run_beside_each_other_and_beside_a_stream(world: World) -> None:
    agent, other = Agent("parallel"), asyncio.Event()

    @agent.tool
    async def first() -> None:
        """End after the second."""
        await other.wait()

    @agent.tool
    async def second() -> None:
        """Let the first end."""
        other.set()

    @agent.tool
    async def numbers(order: Order) -> AsyncIterator[Part]:
        """Count."""
        for value in range(order.pieces):
            yield Part(value)

    world.agents.start(agent)

    async def story() -> int:
        ctx, found = world.peer.agent.context(), 0
        tools = [ctx.tool("parallel", name, digest=UNPINNED) for name in ("first", "second")]
        await asyncio.gather(*(tool() for tool in tools))
        async with aclosing(ctx.tool("parallel", "numbers", digest=UNPINNED).stream(Order("", 200), Part)) as parts:
            async for _ in parts:  # more than may be on their way while nobody takes any
                found += 1
                if found == 1:
                    await tools[1]()
        return found

    assert world.agents.run(asyncio.wait_for(story(), PATIENCE_S)) == 200


def test_a_call_that_is_repeated_while_it_runs_waits_for_its_answer(world: World) -> None:
    agent, runs, go = Agent("busy"), [], asyncio.Event()

    @agent.tool
    async def act(order: Order) -> Booked:
        """Act."""
        runs.append(order.number)
        await go.wait()
        if order.number == "fails":
            raise RuntimeError("never")
        return Booked(order.number, len(runs))

    @agent.before_tool
    async def both_are_here(ctx: Context, use: ToolUse) -> Allow:
        if runs:
            go.set()
        return Allow()

    world.agents.start(agent)

    async def twice(number: str) -> list[Any]:
        tool = world.peer.agent.context().tool("busy", "act", digest=UNPINNED)
        calls = [tool(Order(number, 1), Booked, key=number) for _ in range(2)]
        found = await asyncio.gather(*calls, return_exceptions=True)
        return [getattr(one, "code", one) for one in found]

    assert world.agents.run(asyncio.wait_for(twice("A"), PATIENCE_S)) == [Booked("A", 1)] * 2
    assert runs == ["A"]
    runs.clear()
    go.clear()
    assert set(world.agents.run(asyncio.wait_for(twice("fails"), PATIENCE_S))) == {
        Code.MESSAGE_PEER_FAILED,
        Code.TOOL_UNSURE,
    }
    assert runs == ["fails"]


def test_large_arguments_go_beside_the_mail(world: World) -> None:
    number = "A" * 300_000
    assert world.call("look", Order(number, 1)) == Booked(number, 1)


def test_a_tool_that_streams_is_not_called_for_one_answer(world: World) -> None:
    assert code_of(lambda: world.call("count", Order("A", 2), Part)) == Code.MESSAGE_STREAM


def test_labels_of_what_a_tool_read_mark_its_caller_and_only_declared_secrets_are_read(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caller = world.agents.add(Peer(world.agents, Agent("clean"), world.broker.machine.launch("clean")))
    tool = caller.tool("desk", "secrets", digest=world.desk.digest("secrets"))
    assert caller.labels == set()
    assert tool(Order("desk/declared", 1), Booked) == Booked("told", 1)
    assert caller.labels == {"internal"}
    failed = world.refused(lambda: tool(Order("desk/other", 1), Booked))
    assert failed == (Code.MESSAGE_PEER_FAILED, Code.MESSAGE_HANDLER)
    assert str(Code.TOOL_SECRET) in caplog.text  # for the server alone


# --- arguments and results ---


def test_arguments_and_results_that_do_not_fit_are_refused_with_the_place(world: World) -> None:
    wrong = Order("A", "many")  # type: ignore[arg-type]  # what is tested
    assert world.refused(lambda: world.call("book", wrong)) == (Code.TOOL_ARGUMENTS, "Order.pieces must be a integer")
    code, detail = world.refused(lambda: world.call("book", Part(1)))
    assert code == Code.TOOL_ARGUMENTS
    assert detail.startswith("another schema of Order")
    assert world.desk.runs == []
    assert world.refused(lambda: world.call("wrong", Order("A", 1))) == (
        Code.TOOL_RESULT,
        "Booked.times must be a integer",
    )
    assert world.refused(lambda: world.call("book", Order("A", 1), Part))[0] == Code.TOOL_RESULT
    stream = world.peer.tool("desk", "count", digest=world.desk.digest("count"))
    assert world.refused(lambda: list(stream.stream(Part(1), Part)))[0] == Code.TOOL_ARGUMENTS
    assert world.hostile.call_tool(world.server, "book", arguments='{"schema":"","data":"\\ud800"}') == (
        Code.TOOL_ARGUMENTS
    )


def test_what_a_tool_itself_says_no_to_reaches_the_caller_as_its_reason(world: World) -> None:
    failed = Code.MESSAGE_PEER_FAILED
    assert world.refused(lambda: world.call("book", Order("rejected", 1))) == (failed, "order.unknown")
    assert world.refused(lambda: world.call("book", Order("fails", 1))) == (failed, Code.MESSAGE_HANDLER)
    assert world.refused(lambda: world.call("slow", Order("A", 1))) == (failed, Code.MESSAGE_DEADLINE)


# --- who may ---


def test_a_tool_that_policy_forbids_is_an_explained_denial_in_the_log(world: World) -> None:
    assert code_of(lambda: world.call("safe", None, None)) == "policy.refused"
    denial = world.denials(world.peer.subject)[-1]
    assert (denial["action"], denial["resource"]) == ("CallTool", "lab/tools/desk/safe")
    assert "never-the-safe" in str(denial["reasons"])
    assert world.desk.runs == []


def test_t13_a_hostile_agent_calls_no_tool_that_it_may_not(world: World) -> None:
    hostile = world.hostile
    good = {"book": '{"schema":"x","data":{}}'}
    assert "ok" not in hostile.attack(world.server).values()
    assert hostile.call_tool(world.server, "safe") == "policy.refused"
    assert hostile.call_tool(world.server, "book", arguments=good["book"]) == Code.TOOL_ARGUMENTS
    assert set(hostile.call_tools(world.server, pin="0" * 64).values()) == {Code.TOOL_DRIFT, "policy.refused"}
    assert hostile.send_raw("lab/mail/desk", b"{}", kind="cloister.tool:a/b") == "policy.refused"
    assert world.desk.runs == []
    hostile.secret("lab/restricted")
    assert set(hostile.call_tools(world.server).values()) == {"policy.refused"}  # and takes out nothing that it read
    assert any("restricted-stays-inside" in str(entry["reasons"]) for entry in world.denials(hostile.subject))


# --- described ---


def test_what_is_served_is_listed_in_the_form_of_mcp(world: World) -> None:
    offered = {offer.name: offer for offer in world.peer.tools_of("desk")}
    assert {name: offer.digest for name, offer in offered.items()} == {
        name: tool.digest
        for name, tool in world.desk.agent.tools.items()
        if name not in ("safe", "pay")  # one is forbidden, one not as approved
    }
    assert all(offer.permitted for offer in offered.values())
    assert [name for name, offer in offered.items() if offer.pinned] == ["look"]
    shown = offered["secrets"].description.to_mcp()
    assert shown["inputSchema"]["required"] == ["number", "pieces"]
    assert shown["outputSchema"]["properties"]["times"] == {"type": "integer"}
    assert shown["_meta"] == {"cloister/keyed": False, "cloister/needs": ["desk/declared"], "cloister/streams": False}
    assert offered["count"].description.output_schema["required"] == ["items"]
    assert offered["look"].description.idempotent


def test_more_tools_than_one_question_holds_are_all_listed(world: World) -> None:
    agent = Agent("many")

    async def act() -> None:
        """Act."""

    for number in range(MAX_ASKED + 2):
        agent.tool(name=f"act-{number}")(act)
    world.agents.start(agent)
    assert len(world.peer.tools_of("many")) == MAX_ASKED + 2
    too_many = tuple(f"t{number}" for number in range(MAX_ASKED + 1))
    asked = world.peer.agent.callable_tools("many", too_many)
    assert code_of(lambda: world.agents.run(asked)) == "body.field_invalid"
    assert world.agents.run(world.peer.agent.tools_of("lab/mail/peer")) == []
