"""Who asked and wants no answer any more stops the work for it, wherever the question stands by then."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any

import pytest

from enclave import Agent, Context, handling, replies
from enclave.context import BlockingContext
from enclave.errors import Code, MessageError
from enclave.replies import MAX_OF_ASKER, STATE, StreamState, Waiting
from simulator.broker_fixture import BrokerUnderTest
from simulator.machine import Machine
from tests.agent_world import Ask, Reply, run, start


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerUnderTest]:
    with BrokerUnderTest(Machine.create(seed="cancel"), tmp_path_factory.mktemp("cancel")) as running:
        yield running


async def cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def test_a_cancelled_question_stops_its_handler_and_the_next_one_is_answered(world: BrokerUnderTest) -> None:
    agent, caller = Agent("worker"), Agent("caller")
    begun, stopped = asyncio.Event(), asyncio.Event()
    handled: list[int] = []

    @agent.on_message(Ask)
    async def handle(ctx: Context, message: Ask) -> Reply:
        handled.append(message.number)
        if message.number == 1:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                stopped.set()
        return Reply(number=message.number)

    async def story() -> int:
        await start(world, agent, caller)
        ctx = caller.context()
        first = asyncio.create_task(ctx.ask("worker", Ask(number=1), Reply))
        await begun.wait()
        await cancelled(first)
        await stopped.wait()
        answer = await ctx.ask("worker", Ask(number=2), Reply)  # the same sender's: in order, so behind the first
        await caller.stop()
        await agent.stop()
        return answer.number

    assert run(story()) == 2
    assert handled == [1, 2]  # called off is handled: it does not come again


def test_a_question_that_is_called_off_before_its_turn_is_never_handled(world: BrokerUnderTest) -> None:
    agent, caller = Agent("busy"), Agent("patient")
    begun, go, seen = asyncio.Event(), asyncio.Event(), asyncio.Event()
    handled: list[int] = []

    @agent.on_message(Ask)
    async def handle(ctx: Context, message: Ask) -> Reply:
        handled.append(message.number)
        begun.set()
        await go.wait()
        return Reply(number=message.number)

    async def story() -> int:
        await start(world, agent, caller)
        ctx, life = caller.context(), agent._living()
        assert life.handling is not None
        before = life.waiting.offer

        def offer(received: Any) -> bool:
            found = before(received)
            if received.type == STATE.name:
                seen.set()
            return found

        life.waiting.offer = offer  # type: ignore[method-assign]  # to know when it has arrived
        first = asyncio.create_task(ctx.ask("busy", Ask(number=1), Reply))
        await begun.wait()
        second = asyncio.create_task(ctx.ask("busy", Ask(number=2), Reply))
        while len(life.handling._held) < 2:
            await asyncio.sleep(0.01)
        await cancelled(second)
        await seen.wait()
        third = asyncio.create_task(ctx.ask("busy", Ask(number=3), Reply))
        go.set()
        total = (await first).number + (await third).number
        await caller.stop()
        await agent.stop()
        return total

    assert run(story()) == 4
    assert handled == [1, 3]


def test_a_handler_that_will_not_be_cancelled_ends_and_the_next_one_is_not_disturbed(world: BrokerUnderTest) -> None:
    agent, caller = Agent("stubborn"), Agent("insistent")
    begun, cancelled_once = asyncio.Event(), asyncio.Event()

    @agent.on_message(Ask, deadline_s=20)
    async def handle(ctx: Context, message: Ask) -> Reply:
        if message.number == 1:
            begun.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled_once.set()
        await asyncio.sleep(0)
        return Reply(number=message.number)

    async def story() -> int:
        await start(world, agent, caller)
        ctx = caller.context()
        first = asyncio.create_task(ctx.ask("stubborn", Ask(number=1), Reply))
        await begun.wait()
        await cancelled(first)
        await cancelled_once.wait()
        answers = [await ctx.ask("stubborn", Ask(number=number), Reply) for number in (2, 3)]
        await caller.stop()
        await agent.stop()
        return sum(answer.number for answer in answers)

    assert run(story()) == 5


def test_a_cancelled_reader_of_a_stream_stops_the_handler_that_yields(world: BrokerUnderTest) -> None:
    agent, caller = Agent("ticker"), Agent("reader")
    closed, first = asyncio.Event(), asyncio.Event()

    @agent.on_message(Ask)
    async def tick(ctx: Context, message: Ask) -> AsyncIterator[Reply]:
        try:
            yield Reply(number=0)
            await asyncio.Event().wait()
        finally:
            closed.set()

    async def story() -> None:
        await start(world, agent, caller)

        async def read() -> None:
            async for _ in caller.context().stream("ticker", Ask(number=1), Reply):
                first.set()

        reading = asyncio.create_task(read())
        await first.wait()
        await cancelled(reading)
        await closed.wait()
        await caller.stop()
        await agent.stop()

    run(story())


def test_a_question_that_times_out_is_not_called_off(world: BrokerUnderTest) -> None:
    agent, caller = Agent("late"), Agent("hasty")
    go, done = asyncio.Event(), asyncio.Event()

    @agent.on_message(Ask)
    async def handle(ctx: Context, message: Ask) -> Reply:
        await go.wait()
        done.set()
        return Reply(number=message.number)

    async def story() -> None:
        await start(world, agent, caller)
        with pytest.raises(Exception, match=r"message\.no_answer"):
            await caller.context().ask("late", Ask(number=1), Reply, timeout_s=0.3)
        go.set()
        await done.wait()
        await caller.stop()
        await agent.stop()

    run(story())


class Said:
    def __init__(self, msg_id: bytes, *, sender: str = "agent/x", closed: bool = True) -> None:
        self.type, self.sender, self.in_reply_to, self.labels = STATE.name, sender, msg_id, frozenset[str]()
        self.plaintext = STATE.encode(StreamState(taken=0, closed=closed))


def test_only_who_asked_calls_off_and_what_is_remembered_is_bounded() -> None:
    async def story() -> None:
        waiting = Waiting()
        waiting.offer(Said(b"1"))
        waiting.offer(Said(b"2", closed=False))
        assert waiting.called_off(b"1", "agent/x")
        assert not waiting.called_off(b"1", "agent/y")
        assert not waiting.called_off(b"2", "agent/x")
        for number in range(MAX_OF_ASKER):
            waiting.offer(Said(b"n%d" % number))
        assert not waiting.called_off(b"1", "agent/x")

    run(story())


def test_who_calls_off_without_end_makes_nobody_elses_be_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replies, "MAX_CALLED_OFF", 8)

    async def story() -> None:
        waiting = Waiting()
        waiting.offer(Said(b"mine", sender="agent/y"))
        for number in range(20):
            waiting.offer(Said(b"%d" % number))
        assert waiting.called_off(b"mine", "agent/y")
        assert [waiting.called_off(b"%d" % number, "agent/x") for number in (0, 19)] == [False, True]

    run(story())


def test_what_was_called_off_long_ago_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replies, "CALLED_OFF_S", 0.0)

    async def story() -> None:
        waiting = Waiting()
        waiting.offer(Said(b"1"))
        await asyncio.sleep(0.001)
        waiting.offer(Said(b"2", sender="agent/y"))
        assert not waiting.called_off(b"1", "agent/x")
        assert waiting.called_off(b"2", "agent/y")

    run(story())


def test_plain_functions_that_never_end_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handling, "MAX_THREADS", 2)
    stuck = threading.Event()

    async def story() -> None:
        left = [asyncio.create_task(handling.in_thread(lambda: stuck.wait(30))) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(MessageError) as refused:
            await handling.in_thread(lambda: None)
        assert refused.value.code is Code.MESSAGE_HANDLER
        stuck.set()
        await asyncio.gather(*left)
        assert await handling.in_thread(lambda: 7) == 7

    monkeypatch.setattr(handling, "_threads", set())
    run(story())


def test_a_plain_function_sees_that_nobody_waits_for_it_any_more() -> None:
    async def story() -> None:
        seen = threading.Event()

        def work(ctx: BlockingContext) -> None:
            while not ctx.over:
                asyncio.run_coroutine_threadsafe(asyncio.sleep(0.001), loop).result()
            seen.set()

        loop = asyncio.get_running_loop()
        task = asyncio.create_task(handling.call(work, Context(Agent("plain"))))
        await asyncio.sleep(0)
        await cancelled(task)
        assert await asyncio.to_thread(seen.wait, 30)

    run(story())
