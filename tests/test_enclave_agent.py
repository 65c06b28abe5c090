"""What authors declare about handlers, and what becomes of it: retries, deadlines, keys, streams, an orderly end."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest

from attestation.errors import CloisterError
from enclave import Agent, Context, Durable, Reject, Retry
from enclave.context import BlockingContext
from enclave.declared import MAX_REMEMBERED, Remembered, declare
from enclave.errors import Code
from enclave.messages import MessageType
from enclave.replies import WINDOW, Inflow, StreamEnd
from simulator.broker_fixture import BrokerUnderTest
from simulator.machine import Machine
from tests.agent_world import PATIENCE_S, Ask, Reply

QUICK = Retry(attempts=3, first_s=0, most_s=0)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerUnderTest]:
    with BrokerUnderTest(Machine.create(seed="agents"), tmp_path_factory.mktemp("agents")) as running:
        yield running


@asynccontextmanager
async def started(world: BrokerUnderTest, *agents: Agent) -> AsyncIterator[Context]:
    """Those agents and one more, whose context this is."""
    caller = Agent("caller")
    try:
        for agent in (*agents, caller):
            domain = world.machine.launch(agent.name)
            await agent.start(domain=domain, trust=world.trust, broker_url=world.url)
        yield caller.context()
    finally:
        for agent in (caller, *agents):
            await agent.stop()


def run(story: Awaitable[Any]) -> Any:
    return asyncio.run(asyncio.wait_for(story, PATIENCE_S))


async def said(work: Awaitable[Any]) -> str:
    try:
        await work
    except CloisterError as error:
        return f"{error.code} {error.detail}"
    return "ok"


# --- what may be declared ---


def test_declarations_that_cannot_work_are_refused_at_once_and_say_what_would() -> None:
    agent = Agent("x")

    async def plain(ctx: Context, message: Ask) -> None: ...

    async def stream(ctx: Context, message: Ask) -> AsyncIterator[Reply]:
        yield Reply(number=0)

    wrong: list[tuple[Code, Callable[[], object]]] = [
        (Code.AGENT_HANDLER, lambda: Retry(attempts=0)),
        (Code.AGENT_HANDLER, lambda: Retry(attempts=6)),
        (Code.AGENT_HANDLER, lambda: Retry(first_s=3, most_s=2)),
        (Code.AGENT_HANDLER, lambda: agent.on_message(Ask, deadline_s=0)(plain)),
        (Code.AGENT_HANDLER, lambda: agent.on_message(Ask, idempotent=lambda one: "k")(stream)),
        (Code.AGENT_NOT_IDEMPOTENT, lambda: agent.on_message(Ask, retry=QUICK)(stream)),
        (
            Code.AGENT_NOT_IDEMPOTENT,
            lambda: declare(MessageType(Ask), plain, retry=None, deadline_s=None, idempotent=False, durable=True),
        ),
    ]
    for code, action in wrong:
        with pytest.raises(CloisterError) as caught:
            action()
        assert caught.value.code == code
        assert caught.value.remedy in str(caught.value)
    assert "Ask" not in agent._handlers


def test_pauses_double_up_to_a_limit() -> None:
    retry = Retry(first_s=10, most_s=35)
    for attempt, pause in enumerate((10, 20, 35, 35), 1):
        assert 0.8 * pause - 1 <= retry.pause_s(attempt) <= 1.2 * pause + 1


# --- what becomes of it ---


def test_a_handler_is_tried_as_often_as_it_declares(world: BrokerUnderTest) -> None:
    attempts: list[int] = []
    agent = Agent("tried")

    @agent.on_message(Ask, retry=QUICK)
    async def fail(ctx: Context, message: Ask) -> Reply:
        attempts.append(ctx.attempt)
        raise RuntimeError("never")

    async def story() -> str:
        async with started(world, agent) as ctx:
            return await said(ctx.ask("tried", Ask(number=1), Reply))

    assert run(story()) == f"{Code.MESSAGE_PEER_FAILED} {Code.MESSAGE_HANDLER}"
    assert attempts == [1, 2, 3]


@pytest.mark.parametrize("blocking", [False, True])
def test_a_handling_that_takes_too_long_is_broken_off(world: BrokerUnderTest, blocking: bool) -> None:
    agent = Agent("slow")
    late: list[str] = []
    over = threading.Event()

    if blocking:

        @agent.on_message(Ask, deadline_s=0.2, retry=Retry(attempts=1))
        def handle(ctx: BlockingContext, message: Ask) -> None:
            over.wait(PATIENCE_S)
            try:
                ctx.reply(Reply(number=1))
            except CloisterError as error:
                late.append(str(error.code))

    else:

        @agent.on_message(Ask, deadline_s=0.2, retry=Retry(attempts=1))
        async def wait(ctx: Context, message: Ask) -> None:
            await asyncio.Event().wait()

    async def story() -> str:
        async with started(world, agent) as ctx:
            answer = await said(ctx.ask("slow", Ask(number=1), Reply))
            over.set()
            while blocking and not late:
                await asyncio.sleep(0.01)
            return answer

    assert run(story()) == f"{Code.MESSAGE_PEER_FAILED} {Code.MESSAGE_DEADLINE}"
    assert late == ([Code.AGENT_HANDLER_OVER] if blocking else [])


def test_a_rejected_message_is_not_tried_again_and_the_asker_reads_the_reason(world: BrokerUnderTest) -> None:
    attempts: list[int] = []
    agent = Agent("picky")

    @agent.on_message(Ask)
    async def handle(ctx: Context, message: Ask) -> None:
        attempts.append(ctx.attempt)
        raise Reject("order.unknown")

    async def story() -> str:
        async with started(world, agent) as ctx:
            return await said(ctx.ask("picky", Ask(number=1), Reply))

    assert run(story()) == f"{Code.MESSAGE_PEER_FAILED} order.unknown"
    assert attempts == [1]
    with pytest.raises(ValueError, match="not a code"):
        Reject("a sentence that might quote the message")


def test_leaving_a_label_off_takes_the_policys_permit(world: BrokerUnderTest) -> None:
    world.put_secret("lab/plans/labelled", b"v", labels=("secret",))
    agent, heard = Agent("curious"), []

    @agent.on_message(Ask)
    async def handle(ctx: Context, message: Ask) -> Reply:
        heard.append(ctx.labels)
        return Reply(number=message.number)

    async def story() -> list[str]:
        async with started(world, agent) as ctx:
            await ctx.secrets.get("lab/plans/labelled")
            with_all = await said(ctx.ask("curious", Ask(number=1), Reply))
            return [with_all, await said(ctx.send("curious", Ask(number=2), without={"secret"}))]

    with_all, without = run(story())
    assert with_all == "ok"
    assert without.startswith("message.labels_lowered ")
    assert heard == [frozenset({"secret"})]


def test_asking_ends_in_time_though_nothing_can_be_sent(world: BrokerUnderTest) -> None:
    async def story() -> str:
        caller, sent = Agent("stuck"), asyncio.Event()
        await caller.start(domain=world.machine.launch("stuck"), trust=world.trust, broker_url=world.url)

        async def never(*_: Any, **__: Any) -> bytes:
            sent.set()
            await asyncio.Event().wait()
            raise AssertionError

        try:
            caller.running.send = never  # type: ignore[method-assign]
            return await said(caller.context().ask("nobody", Ask(number=1), Reply, timeout_s=0.2))
        finally:
            assert sent.is_set()
            await caller.stop()

    assert run(story()).startswith(Code.MESSAGE_NO_ANSWER)


def test_a_repeated_key_is_answered_from_memory(world: BrokerUnderTest) -> None:
    handled: list[int] = []
    agent = Agent("ledger")

    @agent.on_message(Ask, idempotent=lambda message: str(message.number))
    async def book(ctx: Context, message: Ask) -> Reply:
        handled.append(message.number)
        return Reply(number=len(handled))

    async def story() -> list[int]:
        async with started(world, agent) as ctx:
            return [(await ctx.ask("ledger", Ask(number=number), Reply)).number for number in (7, 7, 8, 7)]

    assert run(story()) == [1, 1, 2, 1]
    assert handled == [7, 8]


def test_what_is_remembered_is_bounded_and_keys_are_texts() -> None:
    async def handle(ctx: Context, message: Ask) -> None: ...

    declared = declare(
        MessageType(Ask), handle, retry=None, deadline_s=None, idempotent=lambda one: one.number, durable=False
    )
    remembered = Remembered()
    with pytest.raises(CloisterError) as caught:
        remembered.name(declared, "agent/a", Ask(number=1))
    assert caught.value.code == Code.AGENT_HANDLER
    for number in range(MAX_REMEMBERED + 1):
        remembered.keep(("a", "Ask", str(number)), ())
    assert remembered.find(("a", "Ask", "0")) is None
    assert remembered.find(("a", "Ask", "1")) == ()
    assert remembered.find(("b", "Ask", "1")) is None  # another sender's key is another key


# --- streams ---


def counter(name: str, closed: list[int]) -> Agent:
    agent = Agent(name)

    @agent.on_message(Ask)
    async def count(ctx: Context, message: Ask) -> AsyncIterator[Reply]:
        number = 0
        try:
            while number < message.number:
                yield Reply(number=number)
                number += 1
        finally:
            closed.append(number)

    return agent


@pytest.mark.parametrize("many", [0, 3, 2 * WINDOW + 5])
def test_a_stream_comes_whole_and_in_order(world: BrokerUnderTest, many: int) -> None:
    closed: list[int] = []

    async def story() -> list[int]:
        async with started(world, counter("counter", closed)) as ctx:
            return [part.number async for part in ctx.stream("counter", Ask(number=many), Reply)]

    assert run(story()) == list(range(many))
    assert closed == [many]


def test_leaving_the_loop_stops_the_handler(world: BrokerUnderTest) -> None:
    closed: list[int] = []

    async def story() -> list[int]:
        taken = []
        async with started(world, counter("counter", closed)) as ctx:
            async with aclosing(ctx.stream("counter", Ask(number=10**9), Reply)) as parts:
                async for part in parts:
                    taken.append(part.number)
                    if len(taken) == 5:
                        break
            while not closed:
                await asyncio.sleep(0.01)
        return taken

    assert run(story()) == [0, 1, 2, 3, 4]
    assert closed[0] <= WINDOW + 5  # flow control: no more than a window ahead of what was taken


def test_plain_generators_stream_too_and_so_does_the_blocking_context(world: BrokerUnderTest) -> None:
    agent, reader = Agent("plain"), Agent("reader")

    @agent.on_message(Ask)
    def count(ctx: BlockingContext, message: Ask) -> Iterator[Reply]:
        for number in range(message.number):
            yield Reply(number=number)

    @reader.on_message(Ask)
    def total(ctx: BlockingContext, message: Ask) -> Reply:
        return Reply(number=sum(part.number for part in ctx.stream("plain", message, Reply)))

    async def story() -> int:
        async with started(world, agent, reader) as ctx:
            return int((await ctx.ask("reader", Ask(number=5), Reply)).number)

    assert run(story()) == 10


def test_a_stream_that_fails_ends_with_a_code(world: BrokerUnderTest) -> None:
    agent = Agent("breaks")

    @agent.on_message(Ask)
    async def count(ctx: Context, message: Ask) -> AsyncIterator[Reply]:
        yield Reply(number=0)
        raise RuntimeError("broken")

    async def story() -> tuple[list[int], str]:
        taken: list[int] = []

        async def read(ctx: Context) -> None:
            async for part in ctx.stream("breaks", Ask(number=2), Reply):
                taken.append(part.number)  # noqa: PERF401  what was taken before the failure counts

        async with started(world, agent) as ctx:
            return taken, await said(read(ctx))

    assert run(story()) == ([0], f"{Code.MESSAGE_PEER_FAILED} {Code.MESSAGE_HANDLER}")


def test_a_stream_declared_idempotent_is_taken_up_where_it_broke(world: BrokerUnderTest) -> None:
    agent = Agent("resumes")

    @agent.on_message(Ask, retry=QUICK, idempotent=True)
    async def count(ctx: Context, message: Ask) -> AsyncIterator[Reply]:
        for number in range(6):
            if number == 2 * ctx.attempt:
                raise RuntimeError("broken")
            yield Reply(number=number)

    async def story() -> list[int]:
        async with started(world, agent) as ctx:
            return [part.number async for part in ctx.stream("resumes", Ask(number=0), Reply)]

    assert run(story()) == [0, 1, 2, 3, 4, 5]


def test_one_answer_and_a_stream_are_not_mistaken_for_each_other(world: BrokerUnderTest) -> None:
    agent = counter("counter", [])

    @agent.on_message(Reply)
    async def echo(ctx: Context, message: Reply) -> Reply:
        return message

    async def story() -> tuple[str, str, list[int]]:
        async with started(world, agent) as ctx:
            return (
                (await said(ctx.ask("counter", Ask(number=3), Reply))).split()[0],
                (await said(ctx.ask("counter", Ask(number=0), Reply))).split()[0],
                [part.number async for part in ctx.stream("counter", Reply(number=4), Reply)],
            )

    assert run(story()) == (Code.MESSAGE_STREAM, Code.MESSAGE_STREAM, [4])


class Said:
    """A message of a stream, as far as `Inflow` looks at it."""

    sender, in_reply_to, labels = "agent/x", b"", frozenset[str]()

    def __init__(self, type_: MessageType, message: object, item: int | None = None) -> None:
        self.type, self.plaintext = type_.name, type_.encode(message, item=item)


def test_items_are_put_into_order_repetitions_dropped_and_a_flood_ends_the_stream() -> None:
    kind, end = MessageType(Reply), MessageType(StreamEnd, "cloister.stream.end")

    async def story() -> tuple[list[int], str]:
        flow = Inflow(kind)
        for number in (1, 0, 1, 2):
            flow.put(Said(kind, Reply(number=number), number))
        flow.put(Said(end, StreamEnd(items=3)))
        found = []
        while (answer := await flow.take(1)) is not None:
            found.append(answer.message.number)
        flooded = Inflow(kind)
        flooded.put(Said(kind, Reply(number=0), 2 * WINDOW))
        return found, await said(flooded.take(1))

    found, flood = run(story())
    assert found == [0, 1, 2]
    assert flood.startswith(Code.MESSAGE_STREAM)


# --- topics, durable mailboxes, channels ---


def test_what_is_published_reaches_every_reader_again_after_a_failure(world: BrokerUnderTest) -> None:
    heard: list[tuple[str, int]] = []

    def reader(name: str, failures: int) -> Agent:
        agent, failed = Agent(name), list[int]()

        @agent.on_topic("news", Ask, retry=QUICK)
        async def hear(ctx: Context, message: Ask) -> None:
            if len(failed) < failures:
                failed.append(1)
                raise RuntimeError("not yet")
            heard.append((name, message.number))

        return agent

    async def story() -> None:
        async with started(world, reader("one", 0), reader("two", 2)) as ctx:
            number = 0
            while {name for name, _ in heard} < {"one", "two"}:  # until both have joined
                number += 1
                await ctx.publish("news", Ask(number=number))
                await asyncio.sleep(0.05)
            while {name for name, last in heard if last == number} < {"one", "two"}:
                await asyncio.sleep(0.01)

    run(story())
    for name in ("one", "two"):
        numbers = [number for who, number in heard if who == name]
        assert numbers == list(range(numbers[0], numbers[-1] + 1))


def test_a_topic_has_one_handler_for_a_type_and_none_that_yields() -> None:
    agent = Agent("x")

    async def plain(ctx: Context, message: Ask) -> None: ...

    async def stream(ctx: Context, message: Ask) -> AsyncIterator[Reply]:
        yield Reply(number=0)

    agent.on_topic("a", Ask)(plain)
    agent.on_topic("b", Ask)(plain)
    for topic, handler in (("a", plain), ("c", stream)):
        with pytest.raises(CloisterError) as caught:
            agent.on_topic(topic, Ask)(handler)
        assert caught.value.code == Code.AGENT_HANDLER


def test_a_durable_mailbox_keeps_what_came_while_its_agent_was_away(world: BrokerUnderTest) -> None:
    heard: list[int] = []

    def worker() -> Agent:
        agent = Agent("jobs", durable=Durable(on_state_loss="redeliver"))

        @agent.on_message(Ask, idempotent=True)
        async def work(ctx: Context, message: Ask) -> None:
            heard.append(message.number)

        return agent

    async def story() -> None:
        async with started(world) as ctx:
            first = worker()
            await first.start(domain=world.machine.launch("jobs"), trust=world.trust, broker_url=world.url)
            await ctx.send("jobs", Ask(number=1))
            while not heard:
                await asyncio.sleep(0.01)
            await first.stop()
            await ctx.send("jobs", Ask(number=2))
            second = worker()
            await second.start(domain=world.machine.launch("jobs"), trust=world.trust, broker_url=world.url)
            while len(heard) < 2:
                await asyncio.sleep(0.01)
            await second.stop()

    run(story())
    assert heard == [1, 2]
    with pytest.raises(CloisterError) as caught:
        Agent("x", durable=Durable()).on_message(Ask)(lambda ctx, message: None)
    assert caught.value.code == Code.AGENT_NOT_IDEMPOTENT


def test_who_writes_often_does_so_on_a_channel_and_order_is_kept(world: BrokerUnderTest) -> None:
    heard: list[int] = []
    kinds: list[str] = []
    agent = Agent("often")

    @agent.on_message(Ask)
    async def hear(ctx: Context, message: Ask) -> None:
        assert ctx._received is not None
        kinds.append(type(ctx._received.origin).__name__)
        heard.append(message.number)

    async def story() -> list[bool]:
        async with started(world, agent) as ctx:
            for number in range(50):
                await ctx.send("often", Ask(number=number))
            while len(heard) < 50:
                await asyncio.sleep(0.01)
            stream = ctx._host.running._stream  # type: ignore[attr-defined]  # the caller's own connection
            return [lane.mailbox.endswith("/often") for lane in stream._lanes]

    lanes = run(story())
    assert heard == list(range(50))
    assert True in lanes
    assert set(kinds) == {"Incoming"}


# --- the end ---


def test_a_handler_that_runs_when_the_agent_stops_may_finish_and_hear_its_answers(world: BrokerUnderTest) -> None:
    agent, other = Agent("stopping"), Agent("other")
    begun, go = asyncio.Event(), asyncio.Event()
    done: list[int] = []

    @agent.on_message(Ask)
    async def handle(ctx: Context, message: Ask) -> None:
        begun.set()
        await go.wait()
        done.append((await ctx.ask("other", message, Reply)).number)

    @other.on_message(Ask)
    async def answer(ctx: Context, message: Ask) -> Reply:
        return Reply(number=message.number + 1)

    async def story() -> str:
        async with started(world, agent, other) as ctx:
            await ctx.send("stopping", Ask(number=1))
            await ctx.send("stopping", Ask(number=100))  # in the queue behind it: not begun any more
            await begun.wait()
            stopping = asyncio.create_task(agent.stop())
            go.set()
            await stopping
            return await said(agent.context().send("other", Ask(number=1)))

    assert run(story()).startswith(Code.AGENT_NOT_RUNNING)
    assert done == [2]


def test_an_agent_may_be_started_again_after_it_was_stopped(world: BrokerUnderTest) -> None:
    agent = counter("again", [])

    async def story() -> list[str]:
        subjects = []
        for _ in range(2):
            async with started(world, agent) as ctx:
                assert [part.number async for part in ctx.stream("again", Ask(number=2), Reply)] == [0, 1]
                subjects.append(agent.verdict.subject)
        return subjects

    first, second = run(story())
    assert first != second  # keys never outlive a stop


def test_plain_handlers_that_never_end_hold_up_neither_others_nor_the_end(
    world: BrokerUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("enclave.handling.STOP_PATIENCE_S", 0.1)
    agent = Agent("stuck")
    stuck = threading.Event()

    @agent.on_message(Ask)
    def handle(ctx: BlockingContext, message: Ask) -> Reply:
        if message.number == 0:
            stuck.wait(PATIENCE_S)
        return Reply(number=message.number)

    second = Agent("second")

    async def story() -> int:
        async with started(world, agent, second) as ctx:
            await ctx.send("stuck", Ask(number=0))
            return int((await second.context().ask("stuck", Ask(number=5), Reply)).number)

    assert run(story()) == 5
    stuck.set()
