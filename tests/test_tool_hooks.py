"""Hooks around calls of tools, and calls that are made again."""

import asyncio
import threading
from typing import Any

import pytest

from attestation.errors import CloisterError
from enclave import UNPINNED, Agent, Allow, Context, Deny, Durable, Retry, ToolUse
from enclave.context import BlockingContext
from enclave.errors import Code
from simulator.agent_fixture import Peer, code_of
from tests.agent_world import PATIENCE_S
from tests.tools_world import Booked, Order, World
from tests.tools_world import shared as shared
from tests.tools_world import world as world

# --- hooks ---


def test_nothing_but_allow_allows(world: World) -> None:
    assert world.call("book", Order("A", 1)) == Booked("A", 1)  # what the hook did to its arguments reached nobody
    for odd in (None, True, 1, "allow", Allow, object(), lambda use: Allow, RuntimeError("x"), TimeoutError()):
        world.desk.said = odd
        code, detail = world.refused(lambda: world.call("book", Order("B", 1)))
        assert code == Code.TOOL_HOOK, odd
        assert "asked" not in detail  # the name of the hook stays here
    world.desk.said = lambda use: Deny("not a code")
    assert code_of(lambda: world.call("book", Order("B", 1))) == Code.TOOL_HOOK
    assert world.desk.runs == ["A"]


def test_a_hook_sees_who_calls_what_and_its_reason_is_told(world: World) -> None:
    seen: list[ToolUse] = []

    def look(use: ToolUse) -> Allow | Deny:
        seen.append(use)
        return Deny("desk.closed")

    world.desk.said = look
    assert world.refused(lambda: world.call("book", Order("A", 1), key="k")) == (Code.TOOL_DENIED, "desk.closed")
    (use,) = seen
    assert (use.tool, use.digest, use.key) == ("book", world.desk.digest("book"), "k")
    assert use.caller is not None
    assert use.caller.subject == world.peer.subject
    assert "Order" not in repr(use)


def test_a_hook_that_takes_too_long_denies(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("enclave.guards.PATIENCE_S", 0.05)
    agent, ran = Agent("dawdler"), []

    @agent.tool
    async def act() -> None:
        """Act."""
        ran.append(1)

    @agent.before_tool
    async def dawdle(ctx: Context, use: ToolUse) -> Allow:
        await asyncio.Event().wait()
        return Allow()

    world.agents.start(agent)
    assert code_of(lambda: world.peer.tool("dawdler", "act", digest=UNPINNED)()) == Code.TOOL_HOOK
    assert ran == []


def test_a_caller_s_own_hook_keeps_a_call_from_being_sent(world: World) -> None:
    agent = Agent("cautious")
    caller = world.agents.add(Peer(world.agents, agent, world.broker.machine.launch("cautious")))
    tool = caller.tool("desk", "book", digest=world.desk.digest("book"))

    @agent.before_call
    def guard(ctx: BlockingContext, use: ToolUse) -> Allow | Deny:
        return Deny("too.many") if use.arguments.pieces > 5 else Allow()

    assert world.refused(lambda: tool(Order("A", 6), Booked)) == (Code.TOOL_DENIED, "too.many")
    assert world.desk.runs == []
    assert tool(Order("A", 5), Booked) == Booked("A", 1)


# --- repetition ---


def test_a_call_that_may_be_repeated_says_so_or_has_a_key(world: World) -> None:
    assert world.refused(lambda: world.call("book", Order("A", 1), attempts=2))[0] == Code.TOOL_KEY
    assert world.desk.runs == []
    assert world.call("look", Order("A", 1), attempts=2) == Booked("A", 1)
    assert world.call("book", Order("A", 1), attempts=2, key="one").number == "A"


def test_under_one_key_it_is_done_once(world: World) -> None:
    first = world.call("book", Order("A", 1), key="two")
    assert world.call("book", Order("A", 1), key="two") == first
    assert world.desk.runs == ["A"]
    assert world.refused(lambda: world.call("book", Order("B", 1), key="two"))[0] == Code.TOOL_KEY_REUSED
    digest = world.desk.digest("book")
    assert world.rest.tool("desk", "book", digest=digest)(Order("A", 1), Booked, key="two") != first  # another's key
    assert world.call("pay", Order("P", 1)) == world.call("pay", Order("P", 1))  # the author's key


def test_a_tool_that_wants_a_key_is_not_called_without(world: World) -> None:
    assert world.refused(lambda: world.call("once", Order("A", 1)))[0] == Code.TOOL_KEY
    assert world.desk.runs == []
    assert world.call("once", Order("A", 1), key="of A") == world.call("once", Order("A", 1), key="of A")


def test_a_call_that_never_ended_is_not_done_again_under_its_key(world: World) -> None:
    assert code_of(lambda: world.call("slow", Order("A", 1), key="three")) == Code.MESSAGE_PEER_FAILED
    assert world.refused(lambda: world.call("slow", Order("A", 1), key="three"))[0] == Code.TOOL_UNSURE
    assert world.desk.runs == ["A"]
    for _ in range(2):  # what the tool itself says no to, has ended
        rejected = world.refused(lambda: world.call("book", Order("rejected", 1), key="four"))
        assert rejected == (Code.MESSAGE_PEER_FAILED, "order.unknown")


def test_a_lost_answer_is_asked_for_again_and_the_tool_has_run_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, agent, runs = threading.Event(), Agent("late"), []
    ask = Context.ask

    async def asked_again(self: Context, *about: Any, **how: Any) -> Any:
        try:
            return await ask(self, *about, **how)
        except CloisterError:
            release.set()  # the first attempt is over, and the tool still runs
            raise

    @agent.tool
    def act(order: Order) -> Booked:
        """Act, and answer late."""
        runs.append(order.number)
        release.wait(PATIENCE_S)
        return Booked(order.number, len(runs))

    world.agents.start(agent)
    monkeypatch.setattr(Context, "ask", asked_again)
    tool = world.peer.tool("late", "act", digest=UNPINNED)
    assert tool(Order("A", 1), Booked, key="once", attempts=5, timeout_s=0.5) == Booked("A", 1)
    assert release.is_set()
    assert runs == ["A"]


def test_a_tool_is_tried_again_only_if_that_does_no_harm(world: World) -> None:
    assert world.call("look", Order("once more", 1)) == Booked("once more", 2)
    assert world.desk.runs == ["look 1", "look 2"]

    async def act(order: Order) -> None:
        """Act."""

    assert code_of(lambda: Agent("x").tool(retry=Retry(attempts=2))(act)) == Code.AGENT_NOT_IDEMPOTENT
    assert code_of(lambda: Agent("x", durable=Durable()).tool(act)) == Code.AGENT_NOT_IDEMPOTENT
