"""What an agent does when it begins and before it ends, and how failures in its author's code are told."""

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from attestation.errors import CloisterError
from enclave import Agent, Context, Durable, Retry, handling, main, telling
from enclave.context import BlockingContext
from enclave.errors import AgentError, Code, TransportFailed
from simulator.agent_fixture import Agents
from simulator.broker_fixture import BrokerUnderTest
from simulator.lab import Lab
from simulator.machine import Machine
from tests.agent_world import PATIENCE_S, Ask, Reply, run, start

ROOT = Path(__file__).resolve().parent.parent
CANARY = "canary-7d1f"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerUnderTest]:
    with BrokerUnderTest(Machine.create(seed="hooks"), tmp_path_factory.mktemp("hooks")) as running:
        yield running


def code_of(work: Callable[[], object]) -> tuple[str, str]:
    with pytest.raises(AgentError) as caught:
        work()
    return caught.value.code, caught.value.remedy


# --- declaring ---


def test_a_decorator_without_its_type_or_with_a_function_that_cannot_be_called_is_refused_at_once() -> None:
    agent = Agent("wrong")

    async def handler(ctx: Context, message: Ask) -> None: ...

    async def yields(ctx: Context) -> AsyncIterator[int]:
        yield 1

    def takes_nothing() -> None: ...

    wrong: list[Callable[[], object]] = [
        lambda: agent.on_message(handler),  # type: ignore[arg-type]  # the parentheses that everybody forgets once
        lambda: agent.on_topic("news", handler),  # type: ignore[arg-type]
        lambda: agent.on_start(takes_nothing),
        lambda: agent.on_stop(takes_nothing),
        lambda: agent.on_start(yields),
        lambda: agent.on_start(deadline_s=0)(handler),
        lambda: agent.on_stop(deadline_s=601)(handler),
    ]
    for mistake in wrong:
        code, remedy = code_of(mistake)
        assert code == Code.AGENT_HANDLER
        assert remedy


@pytest.mark.parametrize("name", ["", "two words", "a/../b", ".hidden", "x" * 65, "ünïcode", "/a", "a//b"])
def test_a_name_that_no_mailbox_can_have_is_refused_before_anything_starts(name: str) -> None:
    assert code_of(lambda: Agent(name))[0] == Code.AGENT_NAME
    assert code_of(lambda: Agent("x").on_topic(name, Ask))[0] == Code.AGENT_NAME


def test_a_name_may_be_that_of_a_mailbox_in_full() -> None:
    assert Agent("lab/mail/worker").name == "lab/mail/worker"


@pytest.mark.parametrize("where", ["state", "/nonexistent/folder/state", "/proc/1/state"])
def test_a_path_at_which_nothing_can_be_kept_is_refused_before_anything_is_sent(where: str) -> None:
    for agent in (Agent("x", durable=Durable(state_file=Path(where))), Agent("x", spiffe_socket=where)):
        with pytest.raises(AgentError) as caught:
            asyncio.run(agent.start(domain=None, trust=None, broker_url=""))  # type: ignore[arg-type]  # not reached
        assert caught.value.code == Code.AGENT_PATH


# --- beginning ---


def test_no_message_is_handled_before_what_has_a_deadline_has_ended_and_answers_come_all_the_same(
    world: BrokerUnderTest,
) -> None:
    order: list[str] = []
    agent, oracle = Agent("prepared"), Agent("oracle")
    begun = asyncio.Event()

    @oracle.on_message(Ask)
    async def answer(ctx: Context, message: Ask) -> Reply:
        await ctx.send("prepared", Ask(number=1))  # stands in the queue before preparing goes on
        return Reply(number=message.number)

    @agent.on_start(deadline_s=20)
    async def prepare(ctx: Context) -> None:
        await ctx.ask("oracle", Ask(number=0), Reply)
        order.append("prepared")

    @agent.on_start(deadline_s=20)
    def also(ctx: BlockingContext) -> None:
        order.append(f"also {threading.current_thread() is not threading.main_thread()}")

    @agent.on_start
    async def beside(ctx: Context) -> None:
        order.append("beside")
        begun.set()
        await asyncio.Event().wait()  # as long as it likes

    @agent.on_message(Ask)
    async def handle(ctx: Context, message: Ask) -> None:
        await begun.wait()
        order.append("message")
        agent.end()

    async def story() -> None:
        await start(world, oracle, agent)
        await agent.wait()
        await agent.stop()
        await oracle.stop()

    run(story())
    assert order == ["prepared", "also True", "beside", "message"]


def test_a_beginning_that_fails_or_takes_too_long_ends_the_agent(world: BrokerUnderTest) -> None:
    late, broken = Agent("late"), Agent("broken")

    @late.on_start(deadline_s=0.05)
    async def wait(ctx: Context) -> None:
        await asyncio.Event().wait()

    @broken.on_start
    async def fail(ctx: Context) -> None:
        raise RuntimeError("no")

    async def story() -> None:
        await start(world, late, broken)
        with pytest.raises(AgentError) as caught:
            await late.wait()
        assert caught.value.code == Code.AGENT_HOOK
        with pytest.raises(RuntimeError, match="no"):
            await broken.wait()
        await late.stop()
        await broken.stop()

    run(story())


# --- ending ---


def test_before_the_mailbox_closes_and_after_the_last_handler_the_agent_may_still_ask(world: BrokerUnderTest) -> None:
    order: list[str] = []
    agent, other = Agent("orderly"), Agent("other")
    begun, go = asyncio.Event(), asyncio.Event()

    @other.on_message(Ask)
    async def answer(ctx: Context, message: Ask) -> Reply:
        return Reply(number=message.number + 1)

    @agent.on_message(Ask)
    async def handle(ctx: Context, message: Ask) -> None:
        begun.set()
        await go.wait()
        order.append("handled")

    @agent.on_stop
    async def flush(ctx: Context) -> None:
        order.append(f"asked {(await ctx.ask('other', Ask(number=1), Reply)).number}")

    @agent.on_stop
    def plainly(ctx: BlockingContext) -> None:
        order.append(f"plainly {ctx.ask('other', Ask(number=2), Reply).number}")

    async def story() -> None:
        await start(world, agent, other)
        await other.context().send("orderly", Ask(number=0))
        await begun.wait()
        first, second = asyncio.create_task(agent.stop()), asyncio.create_task(agent.stop())
        go.set()
        await asyncio.gather(first, second)  # whoever comes second waits, and nothing is done twice
        await other.stop()

    run(story())
    assert order == ["handled", "asked 2", "plainly 3"]


def test_what_fails_or_hangs_at_the_end_is_told_without_its_text_and_keeps_nothing_open(
    world: BrokerUnderTest, caplog: pytest.LogCaptureFixture
) -> None:
    agent, done = Agent("failing"), list[str]()
    never = threading.Event()

    @agent.on_stop
    async def broken(ctx: Context) -> None:
        raise ValueError(CANARY)

    @agent.on_stop(deadline_s=0.05)
    def hangs(ctx: BlockingContext) -> None:
        never.wait(PATIENCE_S)

    @agent.on_stop
    async def last(ctx: Context) -> None:
        done.append("last")

    async def story() -> None:
        await start(world, agent)
        keys = agent.running.keys
        with pytest.raises(AgentError) as caught:
            await agent.stop()
        assert caught.value.code == Code.AGENT_HOOK
        assert "broken, hangs" in caught.value.detail
        with pytest.raises(CloisterError) as dead:
            keys.sign(b"anything")
        assert dead.value.code == Code.KEYS_DEAD

    with caplog.at_level(logging.INFO, logger="cloister.agent"):
        run(story())
    never.set()
    assert done == ["last"]
    assert f"ValueError at {__file__}:" in caplog.text
    assert CANARY not in caplog.text


def test_an_agent_that_was_never_admitted_has_nothing_to_end(world: BrokerUnderTest) -> None:
    agent, done = Agent("stranger"), list[str]()

    @agent.on_stop
    async def flush(ctx: Context) -> None:
        done.append("flushed")

    async def story() -> None:
        stranger = Machine.create(seed="another").launch("stranger")
        with pytest.raises(CloisterError):
            await agent.start(domain=stranger, trust=world.trust, broker_url=world.url)

    run(story())
    assert done == []


def test_an_agent_whose_key_was_revoked_ends_and_says_so(world: BrokerUnderTest) -> None:
    """It could do nothing any more; started anew, it has another key."""
    agent = Agent("revoked")

    async def story() -> None:
        await start(world, agent)
        world.revoke(agent.verdict.subject)
        waiting = asyncio.create_task(agent.wait())
        with suppress(CloisterError):
            await agent.context().secrets.get("lab/any/thing")
        with pytest.raises(CloisterError) as caught:
            await waiting
        assert caught.value.code == "agent.revoked"
        await agent.stop()

    run(story())


# --- telling ---


def test_a_handler_that_fails_is_told_with_its_line_and_what_happens_next(
    world: BrokerUnderTest, caplog: pytest.LogCaptureFixture
) -> None:
    agent, caller = Agent("handler"), Agent("asker")

    @agent.on_message(Ask, retry=Retry(attempts=2, first_s=0, most_s=0))
    async def divide(ctx: Context, message: Ask) -> Reply:
        raise ValueError(CANARY)

    async def story() -> None:
        await start(world, agent, caller)
        with suppress(CloisterError):
            await caller.context().ask("handler", Ask(number=0), Reply)
        await caller.stop()
        await agent.stop()

    with caplog.at_level(logging.DEBUG, logger="cloister.agent"):
        run(story())
    failures = [record.getMessage() for record in caplog.records if record.getMessage().startswith("divide failed")]
    assert len(failures) == 2
    assert all(f"ValueError at {__file__}:" in told and "in divide; " in told for told in failures)
    assert failures[-1].endswith(str(Code.MESSAGE_HANDLER))
    assert CANARY not in caplog.text  # though everything else is logged: a host reads what an agent logs


def test_a_handler_that_hangs_is_told_of_once(
    world: BrokerUnderTest, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handling, "LEASE_S", 0.03)
    monkeypatch.setattr(handling, "STOP_PATIENCE_S", 0.01)
    agent, caller = Agent("hanging"), Agent("waiting")

    @agent.on_message(Ask)
    async def hang(ctx: Context, message: Ask) -> None:
        await asyncio.Event().wait()

    def told() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.getMessage().startswith("hang has not ")]

    async def story() -> None:
        await start(world, agent, caller)
        await caller.context().send("hanging", Ask(number=0))
        life = agent._living()
        assert life.handling is not None
        while max(life.handling._slow.values(), default=0) < 3 * handling.SLOW_AFTER:
            await asyncio.sleep(0.01)
        await caller.stop()
        await agent.stop()

    with caplog.at_level(logging.WARNING, logger="cloister.agent"):
        run(story())
    assert len(told()) == 1


def test_the_whole_traceback_is_the_authors_own_lines() -> None:
    async def outer() -> None:
        await asyncio.wait_for(inner(), 1)

    async def inner() -> None:
        Agent("x").message_type(str)

    with pytest.raises(AgentError) as caught:
        asyncio.run(outer())
    shown = telling.full(caught.value)
    assert f'"{__file__}"' in shown
    assert "asyncio/" not in shown
    assert "enclave/agent.py" not in shown
    assert " in inner" in telling.told(caught.value)
    assert telling.place(ValueError("never raised")) == ""


def test_a_broker_that_is_away_is_told_once_and_again_when_it_is_back(caplog: pytest.LogCaptureFixture) -> None:
    trouble = telling.Trouble(expected="dpop.nonce_required")
    away, other = TransportFailed(Code.CLIENT_UNREACHABLE, "x"), TransportFailed(Code.CLIENT_TIMEOUT, "x")
    with caplog.at_level(logging.INFO, logger="cloister.agent"):
        trouble.over()
        for error in (away, away, other, away, away):
            trouble.tell(error)
        trouble.over()
        trouble.over()
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING", "WARNING", "INFO"]


def test_a_wrapper_that_returns_a_coroutine_is_noticed(
    world: BrokerUnderTest, caplog: pytest.LogCaptureFixture
) -> None:
    agent = Agent("wrapped")

    async def work(ctx: Context) -> None: ...

    agent.on_start(lambda ctx: work(ctx))

    async def story() -> None:
        await start(world, agent)
        with pytest.raises(AgentError) as caught:
            await agent.wait()
        assert caught.value.code == Code.AGENT_HANDLER
        await agent.stop()

    run(story())


def test_a_file_that_forgets_to_run_its_agent_is_told_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main, "made", set[str]())
    monkeypatch.setattr(main, "started", set[str]())
    assert main.ended() == 0
    agent = Agent("forgotten")
    assert main.ended() == 2
    assert "forgotten" in capsys.readouterr().err
    main.started.add(agent.name)
    assert main.ended() == 0


def test_a_file_that_fails_before_its_agent_runs_is_told_by_its_own_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AgentError) as caught:
        Agent("two words")
    assert main.failed(caught.value) == 2
    assert Path(__file__).name in capsys.readouterr().err
    assert main.failed(ModuleNotFoundError("No module named 'x'", name="x")) == 1
    assert "# /// script" in capsys.readouterr().err


def test_a_test_of_an_agent_sees_tracebacks_and_what_fails_at_the_end(
    world: BrokerUnderTest, caplog: pytest.LogCaptureFixture
) -> None:
    agent, other = Agent("tested"), Agent("beside")
    stopped: list[str] = []

    @agent.on_stop
    async def fail(ctx: Context) -> None:
        raise ValueError(CANARY)

    @other.on_stop
    async def note(ctx: Context) -> None:
        stopped.append("beside")

    def test() -> None:
        with Agents(world) as agents:  # as the fixture `agent` does
            agents.start(other)
            agents.start(agent)

    with pytest.raises(AgentError) as caught:
        test()
    assert caught.value.code == Code.AGENT_HOOK
    assert stopped == ["beside"]
    assert CANARY in caplog.text
    assert telling.trace.level == logging.INFO


# --- as a program ---

PROGRAM = """\
from enclave import Agent

agent = Agent("program")


@agent.on_start
async def begin(ctx):
    print("begun", flush=True)


@agent.on_stop
async def end(ctx):
    print("ended as", ctx.verdict.subject.split("/")[0], flush=True)


agent.run()
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab(tmp_path_factory.mktemp("hooks-lab")) as lab:
        yield lab


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_launcher_ends_the_agent_in_order(lab: Lab, tmp_path: Path, number: int) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    around = ["--machine", str(lab.machine_folder), "--broker", lab.broker_url, "--trust", str(lab.trust_file)]
    process = subprocess.Popen(
        [sys.executable, "-m", "cloister", "run", str(tmp_path / "program.py"), "--simulated", *around],
        cwd=ROOT,
        env={**os.environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert out == "ended as agent\n", err
    assert process.returncode == 0, err
