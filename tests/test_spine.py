"""End to end, over HTTP: agents attest, get secrets and talk, and go on doing so."""

import asyncio
import json
from base64 import b64encode
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import httpx2
import pytest

from broker.wire.envelope import Header, batch_from_bytes
from broker.wire.jose import b64u
from broker.wire.mailbox import ReceiveResponse
from enclave import Agent, BrokerRefused, EnclaveError, Retry
from enclave.context import BlockingContext, Context
from enclave.errors import Code
from enclave.trustfile import TrustFile
from simulator.demo.operator import Operator
from simulator.lab import Lab
from tests.spine import (
    CANARY,
    CODE,
    SECRET,
    Answer,
    Question,
    Unheard,
    Wire,
    code_of,
    domain,
    lab_with_log,
    lab_with_secret,
    researcher,
    running,
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with lab_with_log(tmp_path_factory.mktemp("spine")) as lab:
        yield lab


@pytest.fixture
def own_lab(tmp_path: Path) -> Iterator[Lab]:
    """One whose clock a test may move."""
    with lab_with_secret(tmp_path) as lab:
        yield lab


def test_agents_attest_get_a_secret_and_talk_and_the_broker_sees_none_of_it(lab: Lab) -> None:
    async def story() -> tuple[str, frozenset[str]]:
        async with running(lab, researcher()), running(lab, Agent("analyst")) as analyst:
            ctx = analyst.context()
            answer = await ctx.ask("researcher", Question(text=f"word-{CANARY.decode()}"), Answer)
            return answer.text, ctx.labels

    text, labels = asyncio.run(story())
    assert text == f"word-{CANARY.decode()} {CANARY.decode()}"
    assert labels == {"research"}  # what the researcher read marks what it said, and whoever heard it
    written = [path for path in (*lab.broker_folder.rglob("*"), lab.folder / "broker.log") if path.is_file()]
    content = b"".join(path.read_bytes() for path in written)
    assert b"agent.admitted" in content
    for form in (CANARY, CANARY.hex().encode(), b64encode(CANARY).rstrip(b"="), b64u(CANARY).encode()):
        assert form not in content


def test_a_secret_goes_to_one_workload_only(lab: Lab) -> None:
    async def story() -> BrokerRefused:
        async with running(lab, Agent("analyst")) as analyst:
            with pytest.raises(BrokerRefused) as refused:
                await analyst.context().secrets.get(SECRET)
            return refused.value

    refused = asyncio.run(story())
    assert refused.code == "policy.refused"
    assert CANARY.decode() not in str(refused)


def test_an_agent_with_other_code_is_refused_and_the_operator_reads_why(lab: Lab) -> None:
    async def story() -> BrokerRefused:
        with pytest.raises(BrokerRefused) as refused:
            async with running(lab, researcher(), code="ab" * 48):
                pass
        return refused.value

    refused = asyncio.run(story())
    assert refused.code == "policy.refused"
    assert "policy.launches_mismatch" in refused.reasons
    assert CODE["researcher"] not in str(refused)  # what would pass is not for the one who was refused
    entry = Operator(lab.broker_url, lab.admin_key_file).entries("agent.refused")[-1]
    assert any(CODE["researcher"] in reason for reason in entry["reasons"])


# --- life goes on ---


def test_mail_from_before_a_restart_does_not_come_back(lab: Lab) -> None:
    heard: list[str] = []

    def listener() -> Agent:
        agent = Agent("researcher")

        @agent.on_message(Question)
        async def hear(ctx: Context, question: Question) -> None:
            heard.append(question.text)

        return agent

    kept: list[ReceiveResponse] = []

    def keep(request: httpx2.Request, response: httpx2.Response) -> httpx2.Response:
        if request.url.path.endswith(":receive") and response.status_code == 200:
            found = ReceiveResponse.from_dict(json.loads(response.content))
            if found.deliveries:
                kept.append(found)
        return response

    async def story() -> str:
        async with running(lab, Agent("analyst")) as analyst:
            async with running(lab, listener(), wire=Wire(tamper=keep)):
                await analyst.context().send("researcher", Question(text="before"))
                while not heard:
                    await asyncio.sleep(0.01)
            async with running(lab, listener()) as restarted:
                old = kept[0]
                inbox, admission = restarted.running.inbox, restarted.running.admission
                try:
                    inbox.open(old.deliveries[0], old.senders, admission.broker)
                except EnclaveError as error:
                    refused = str(error.code)
                await analyst.context().send("researcher", Question(text="after"))  # sealed anew, to the new key
                while len(heard) < 2:
                    await asyncio.sleep(0.01)
                return refused

    assert asyncio.run(asyncio.wait_for(story(), 20)) == Code.ENVELOPE_INCARNATION
    assert heard == ["before", "after"]


def test_an_agent_renews_an_admission_that_has_ended(own_lab: Lab) -> None:
    async def story() -> str:
        async with running(own_lab, Agent("researcher")) as agent:
            before = agent.running.admission
            own_lab.machine.clock.advance(timedelta(minutes=6))
            secret = await agent.context().secrets.get(SECRET)
            assert agent.running.admission is not before
            return secret.text()

    assert asyncio.run(story()) == CANARY.decode()


def test_a_platform_that_fell_out_of_date_loses_its_rights(own_lab: Lab) -> None:
    operator = Operator(own_lab.broker_url, own_lab.admin_key_file)

    async def story() -> tuple[str, str]:
        async with running(own_lab, Agent("researcher")) as agent:
            await agent.context().secrets.get(SECRET)
            own_lab.machine.recover("publish", what="platform", standard=True)
            assert await asyncio.to_thread(operator.refresh_collateral)
            held = await code_of(agent.context().secrets.get(SECRET))  # its token still lives
            own_lab.machine.clock.advance(timedelta(minutes=6))
            return held, await code_of(agent.context().secrets.get(SECRET))

    assert asyncio.run(story()) == ("agent.quarantined", "policy.refused")
    assert "policy.tcb_not_accepted" in operator.entries("agent.quarantined")[-1]["codes"]


def test_who_has_sent_before_is_told_of_the_refusal_too(own_lab: Lab) -> None:
    """A mailbox key at hand must not hide that the sender is not admitted any more."""
    operator = Operator(own_lab.broker_url, own_lab.admin_key_file)

    async def story() -> list[str]:
        async with running(own_lab, researcher()), running(own_lab, Agent("analyst")) as analyst:
            ctx = analyst.context()
            await ctx.send("researcher", Question(text="before"))
            own_lab.machine.recover("publish", what="platform", standard=True)
            own_lab.machine.clock.advance(timedelta(days=40))
            await asyncio.to_thread(operator.refresh_collateral)
            before = analyst.running.admission if analyst.running.admitted else None
            await code_of(analyst.running.attest(instead_of=before))  # as its other tasks would
            return [await code_of(ctx.send("researcher", Question(text="after"))) for _ in range(3)]

    assert asyncio.run(asyncio.wait_for(story(), 30)) == ["policy.refused"] * 3


def test_a_mailbox_key_at_hand_is_fetched_again_when_its_owners_token_has_ended(own_lab: Lab) -> None:
    async def story() -> str:
        async with running(own_lab, researcher()) as owner, running(own_lab, Agent("analyst")) as analyst:
            ctx = analyst.context()
            await ctx.send("researcher", Question(text="before"))
            own_lab.machine.clock.advance(timedelta(minutes=6))
            await owner.running.attest(instead_of=owner.running.admission)
            await analyst.running.attest(instead_of=analyst.running.admission)
            return await code_of(ctx.send("researcher", Question(text="after")))

    assert asyncio.run(asyncio.wait_for(story(), 30)) == "ok"


def test_a_handler_that_fails_gets_the_message_again(lab: Lab) -> None:
    attempts: list[int] = []

    async def story() -> str:
        agent = Agent("researcher")

        @agent.on_message(Question)
        async def answer(ctx: Context, question: Question) -> Answer:
            attempts.append(1)
            if len(attempts) == 1:
                raise RuntimeError("not yet")
            return Answer(text="now")

        async with running(lab, agent), running(lab, Agent("analyst")) as analyst:
            return (await analyst.context().ask("researcher", Question(text="?"), Answer)).text

    assert asyncio.run(asyncio.wait_for(story(), 20)) == "now"
    assert len(attempts) == 2


def test_handlers_may_be_plain_functions(lab: Lab) -> None:
    async def story() -> str:
        agent = Agent("researcher")

        @agent.on_message(Question)
        def answer(ctx: BlockingContext, question: Question) -> None:
            secret = ctx.secrets.get(SECRET)
            ctx.reply(Answer(text=f"{ctx.tenant} {sorted(ctx.labels)} {len(secret.value)}"))

        async with running(lab, agent), running(lab, Agent("analyst")) as analyst:
            return (await analyst.context().ask("researcher", Question(text="?"), Answer)).text

    assert asyncio.run(asyncio.wait_for(story(), 20)) == f"demo ['research'] {len(CANARY)}"


def test_a_handler_that_always_fails_ends_with_a_code_for_the_asker(lab: Lab) -> None:
    async def story() -> str:
        agent = Agent("researcher")

        @agent.on_message(Question, retry=Retry(attempts=1))
        async def answer(ctx: Context, question: Question) -> Answer:
            raise RuntimeError(CANARY.decode())

        async with running(lab, agent), running(lab, Agent("analyst")) as analyst:
            try:
                await analyst.context().ask("researcher", Question(text="?"), Answer)
            except EnclaveError as error:
                return str(error)
            return "ok"

    said = asyncio.run(asyncio.wait_for(story(), 20))
    assert said.startswith(f"{Code.MESSAGE_PEER_FAILED}: {Code.MESSAGE_HANDLER}\n")
    assert CANARY.decode() not in said


def test_who_waits_in_vain_or_replies_to_nobody_is_told(lab: Lab) -> None:
    async def story() -> tuple[str, str]:
        silent = Agent("researcher")

        @silent.on_message(Question)
        async def hear(ctx: Context, question: Question) -> None:
            return None

        async with running(lab, silent), running(lab, Agent("analyst")) as analyst:
            ctx = analyst.context()
            waited = await code_of(ctx.ask("researcher", Question(text="?"), Answer, timeout_s=0.3))
            return waited, await code_of(ctx.reply(Answer(text="!")))

    assert asyncio.run(asyncio.wait_for(story(), 20)) == (Code.MESSAGE_NO_ANSWER, Code.AGENT_NO_REPLY)


def test_a_message_that_nobody_handles_is_answered_with_a_code(lab: Lab) -> None:
    async def story() -> str:
        async with running(lab, researcher()), running(lab, Agent("analyst")) as analyst:
            try:
                await analyst.context().ask("researcher", Unheard(text="?"), Answer)
            except EnclaveError as error:
                return f"{error.code} {error.detail}"
            return "ok"

    assert asyncio.run(asyncio.wait_for(story(), 20)) == f"{Code.MESSAGE_PEER_FAILED} {Code.MESSAGE_TYPE}"


def test_mail_to_nobody_and_over_the_edge_of_policy_is_refused(lab: Lab) -> None:
    async def story() -> tuple[str, str, str]:
        async with running(lab, Agent("analyst")) as analyst:
            ctx = analyst.context()
            return (
                await code_of(ctx.send("nobody", Question(text="?"))),
                await code_of(ctx.send("demo/elsewhere/box", Question(text="?"))),
                await code_of(ctx.secrets.get("demo/research/none")),
            )

    assert asyncio.run(story()) == ("mailbox.unknown", "mailbox.unknown", "policy.refused")


def test_before_start_and_after_stop_an_agent_says_that_it_does_not_run(lab: Lab) -> None:
    async def story() -> list[str]:
        agent = Agent("analyst")
        before = await code_of(agent.context().secrets.get(SECRET))
        async with running(lab, agent):
            twice = await code_of(
                agent.start(domain=domain(lab, "analyst"), trust=TrustFile.load(lab.trust_file), broker_url="")
            )
        return [before, twice, await code_of(agent.context().send("researcher", Question(text="?")))]

    assert asyncio.run(story()) == [Code.AGENT_NOT_RUNNING, Code.AGENT_RUNNING, Code.AGENT_NOT_RUNNING]


def test_order_is_kept_per_sender_and_nothing_is_lost(lab: Lab) -> None:
    heard: list[str] = []

    async def story() -> None:
        agent = Agent("researcher")

        @agent.on_message(Question)
        async def hear(ctx: Context, question: Question) -> None:
            await asyncio.sleep(0)
            heard.append(question.text)

        async with running(lab, agent), running(lab, Agent("analyst")) as analyst:
            ctx = analyst.context()
            for number in range(100):
                await ctx.send("researcher", Question(text=str(number)))
            while len(heard) < 100:
                await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(story(), 30))
    assert heard == [str(number) for number in range(100)]


def test_headers_say_who_and_when_and_no_more(lab: Lab) -> None:
    wire = Wire()

    async def story() -> None:
        async with running(lab, researcher()), running(lab, Agent("analyst"), wire=wire) as analyst:
            await analyst.context().send("researcher", Question(text=CANARY.decode()))

    asyncio.run(story())
    sent = next(request for request in wire.seen if request.url.path.endswith(":send"))
    envelope = batch_from_bytes(sent.content)[0]
    assert CANARY not in sent.content
    assert Header.from_bytes(envelope.header).type == "Question"
