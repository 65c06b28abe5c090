"""End to end, over HTTP: agents attest, get secrets and talk; whoever stands between them gets nothing."""

import asyncio
import hashlib
import json
import os
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

from attestation.errors import AttestationError
from attestation.evidence import Evidence, proof_message
from broker.telemetry import log_to
from broker.wire.bodies import AttestationRequest
from broker.wire.envelope import Header
from broker.wire.errors import WireCode, WireError
from broker.wire.jose import b64u
from broker.wire.mailbox import MailboxInfo, ReceiveResponse
from enclave import Agent, BrokerRefused, EnclaveError
from enclave import agent as agent_module
from enclave import launch as measured
from enclave.context import BlockingContext, Context
from enclave.errors import Code
from enclave.keys import AgentKeys
from enclave.trustfile import TrustFile
from simulator.demo import policy
from simulator.demo.operator import Operator
from simulator.domain import SimulatedTd
from simulator.lab import Lab
from simulator.machine import Machine

CODE = {name: hashlib.sha384(name.encode()).hexdigest() for name in ("researcher", "analyst")}
SECRET = "demo/research/report-key"
CANARY = b"canary-" + os.urandom(16).hex().encode()
Tamper = Callable[[httpx2.Request, httpx2.Response], httpx2.Response]


@dataclass
class Question:
    text: str


@dataclass
class Answer:
    text: str


@dataclass
class Unheard:
    text: str


class Wire(httpx2.AsyncBaseTransport):
    """The network between an agent and the broker, in somebody's hands: sees everything, may change answers."""

    def __init__(self, tamper: Tamper | None = None, forward: Callable[[httpx2.Request], bytes] | None = None) -> None:
        self._inner = httpx2.AsyncHTTPTransport()
        self.tamper = tamper
        self.forward = forward
        self.seen: list[httpx2.Request] = []

    @property
    def paths(self) -> list[str]:
        return [request.url.path for request in self.seen]

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self.seen.append(request)
        if self.forward is not None:
            body = self.forward(request)
            headers = {name: value for name, value in request.headers.items() if name != "content-length"}
            request = httpx2.Request(request.method, request.url, headers=headers, content=body)
        response = await self._inner.handle_async_request(request)
        await response.aread()
        return self.tamper(request, response) if self.tamper else response

    async def aclose(self) -> None:
        await self._inner.aclose()


def answered(response: httpx2.Response, members: dict[str, Any]) -> httpx2.Response:
    headers = {name: value for name, value in response.headers.items() if name not in ("content-length",)}
    return httpx2.Response(response.status_code, headers=headers, content=json.dumps(members).encode())


def make_lab(folder: Path) -> Lab:
    machine = Machine.create(folder / "machine")
    image = machine.launch("image")
    measurements = {"mr_td": image.mr_td.hex(), "rtmr1": image.rtmrs[1].hex(), "rtmr2": image.rtmrs[2].hex()}
    files = policy.bundle(ppid=machine.platform(0).ppid.hex(), measurements=measurements, code=CODE)
    return Lab(folder, bundle=files, tenant=policy.TENANT)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("spine")
    with (folder / "broker.log").open("w", encoding="utf-8") as log:
        log_to(log, "DEBUG")
        with make_lab(folder) as lab:
            Operator(lab.broker_url, lab.admin_key_file).put_secret(SECRET, CANARY, labels=("research",))
            yield lab


@pytest.fixture
def own_lab(tmp_path: Path) -> Iterator[Lab]:
    """One whose clock a test may move."""
    with make_lab(tmp_path) as lab:
        Operator(lab.broker_url, lab.admin_key_file).put_secret(SECRET, CANARY)
        yield lab


def domain(lab: Lab, name: str, code: str = "") -> SimulatedTd:
    """A trust domain in which a program of that name was launched."""
    td = lab.machine.launch(name)
    measured.extend(td, bytes.fromhex(code or CODE[name]), name)
    return td


@asynccontextmanager
async def running(lab: Lab, agent: Agent, *, code: str = "", wire: Wire | None = None) -> AsyncIterator[Agent]:
    try:
        await agent.start(
            domain=domain(lab, agent.name, code),
            trust=TrustFile.load(lab.trust_file),
            broker_url=lab.broker_url,
            transport=wire,
        )
        yield agent
    finally:
        await agent.stop()


def researcher() -> Agent:
    agent = Agent("researcher")

    @agent.on_message(Question)
    async def answer(ctx: Context, question: Question) -> Answer:
        secret = await ctx.secrets.get(SECRET)
        return Answer(text=f"{question.text} {secret.text()}")

    return agent


async def code_of(work: Any) -> str:
    """The code with which the awaited thing is refused."""
    try:
        await work
    except (EnclaveError, WireError, AttestationError, BrokerRefused) as error:
        return str(error.code)
    return "ok"


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


# --- somebody stands between agent and broker ---


def test_another_broker_is_recognised_before_anything_is_sent_to_it(lab: Lab, own_lab: Lab) -> None:
    wire = Wire()

    async def story() -> str:
        agent = researcher()
        trust = TrustFile.load(lab.trust_file)
        try:
            start = agent.start(
                domain=domain(lab, "researcher"), trust=trust, broker_url=own_lab.broker_url, transport=wire
            )
            return await code_of(start)
        finally:
            await agent.stop()

    assert asyncio.run(story()) == WireCode.CHALLENGE_WRONG_BROKER
    assert wire.paths == ["/v1/challenges"]


def refused_at_start(lab: Lab, wire: Wire) -> str:
    async def story() -> str:
        agent = researcher()
        try:
            start = agent.start(
                domain=domain(lab, "researcher"),
                trust=TrustFile.load(lab.trust_file),
                broker_url=lab.broker_url,
                transport=wire,
            )
            return await code_of(start)
        finally:
            await agent.stop()

    return asyncio.run(story())


def test_an_answer_to_somebody_elses_challenge_is_refused(lab: Lab) -> None:
    """The man in the middle asks the broker with a nonce of his own and hands the answer on."""
    own = json.dumps({"client_nonce": b64u(os.urandom(32))}).encode()
    wire = Wire(forward=lambda request: own if request.url.path == "/v1/challenges" else request.content)
    assert refused_at_start(lab, wire) == WireCode.CHALLENGE_SIGNATURE
    assert wire.paths == ["/v1/challenges"]


def with_evidence(change: Callable[[Evidence, bytes], tuple[Evidence, bytes]]) -> Wire:
    """A man in the middle who changes the evidence on its way."""

    def forward(request: httpx2.Request) -> bytes:
        if request.url.path != "/v1/attestations":
            return request.content
        sent = AttestationRequest.from_dict(json.loads(request.content))
        evidence, nonce = change(Evidence.from_dict(sent.evidence), sent.client_nonce)
        return json.dumps(AttestationRequest(evidence=evidence.to_dict(), client_nonce=nonce).to_dict()).encode()

    return Wire(forward=forward)


def relayed(evidence: Evidence, nonce: bytes) -> tuple[Evidence, bytes]:
    """A genuine quote, with the attacker's keys in place of those that it binds, and a valid proof by them."""
    from dataclasses import replace

    keys = AgentKeys.generate()
    binding = replace(evidence.binding, identity_key=keys.identity_key, sealing_key=keys.sealing_key)
    message = proof_message(binding.broker_id, nonce, binding.nonce, evidence.quote, evidence.event_log)
    return replace(evidence, binding=binding, proof=keys.sign(message)), nonce


def proved_by_another(evidence: Evidence, nonce: bytes) -> tuple[Evidence, bytes]:
    """Evidence untouched, the proof of possession by a key that it does not bind."""
    from dataclasses import replace

    binding = evidence.binding
    message = proof_message(binding.broker_id, nonce, binding.nonce, evidence.quote, evidence.event_log)
    return replace(evidence, proof=AgentKeys.generate().sign(message)), nonce


def with_another_nonce(evidence: Evidence, nonce: bytes) -> tuple[Evidence, bytes]:
    return evidence, os.urandom(32)


def without_its_log(evidence: Evidence, nonce: bytes) -> tuple[Evidence, bytes]:
    from dataclasses import replace

    return replace(evidence, event_log=None), nonce


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (relayed, "binding.report_data_mismatch"),
        (proved_by_another, "evidence.proof_invalid"),
        (with_another_nonce, "challenge.forged"),
        (without_its_log, "evidence.proof_invalid"),
    ],
)
def test_evidence_that_somebody_else_presents_is_refused(
    lab: Lab, change: Callable[[Evidence, bytes], tuple[Evidence, bytes]], code: str
) -> None:
    assert refused_at_start(lab, with_evidence(change)) == code


def test_evidence_serves_once(lab: Lab) -> None:
    sent: list[httpx2.Request] = []

    def keep(request: httpx2.Request, response: httpx2.Response) -> httpx2.Response:
        if request.url.path == "/v1/attestations":
            sent.append(request)
        return response

    async def story() -> None:
        async with running(lab, researcher(), wire=Wire(tamper=keep)):
            pass

    asyncio.run(story())
    again = httpx2.post(str(sent[0].url), content=sent[0].content, trust_env=False)
    assert again.json()["code"] == "challenge.used"


def test_a_stolen_token_is_of_no_use_with_another_key(lab: Lab) -> None:
    async def story() -> tuple[str, str]:
        async with running(lab, Agent("analyst")) as analyst:
            return analyst.running.admission.token, analyst.running.inbox.name

    token, mailbox = asyncio.run(story())
    thief, url, nonce = AgentKeys.generate(), f"{lab.broker_url}/v1/mailboxes/{mailbox}", None
    for _ in range(2):
        at_s = int(lab.machine.clock.time())
        proof = thief.dpop(method="GET", url=url, body=b"", at_s=at_s, nonce=nonce, token=token)
        headers = {"authorization": f"DPoP {token}", "dpop": proof}
        response = httpx2.get(url, headers=headers, trust_env=False)
        nonce = response.headers.get("dpop-nonce")
    assert response.json()["code"] == "dpop.key_mismatch"
    assert httpx2.get(url, headers={"authorization": f"Bearer {token}"}, trust_env=False).status_code == 401


# --- a broker that plays false ---


def test_a_mailbox_key_that_the_broker_swaps_is_not_sealed_to(lab: Lab) -> None:
    """The answer about the researcher's mailbox carries the analyst's key, in every combination with the tokens."""
    found: dict[str, MailboxInfo] = {}

    def swap(request: httpx2.Request, response: httpx2.Response) -> httpx2.Response:
        path = request.url.path
        if request.method != "GET" or "/v1/mailboxes/" not in path or response.status_code != 200:
            return response
        found[path.rpartition("/")[2]] = honest = MailboxInfo.from_dict(json.loads(response.content))
        if not path.endswith("researcher"):
            return response
        own = found["analyst"]
        wrong = {
            "key": MailboxInfo(key=own.key, owner_token=honest.owner_token, next_seq=1),
            "both": MailboxInfo(key=own.key, owner_token=own.owner_token, next_seq=1),
            "token": MailboxInfo(key=honest.key, owner_token=own.owner_token, next_seq=1),
        }[mode]
        return answered(response, wrong.to_dict())

    async def story(wire: Wire) -> str:
        async with running(lab, researcher()), running(lab, Agent("analyst"), wire=wire) as analyst:
            await analyst.running._mailbox("demo/mail/analyst")
            return await code_of(analyst.context().send("researcher", Question(text="x")))

    codes = {}
    for mode in ("key", "token", "both"):
        wire = Wire(tamper=swap)
        codes[mode] = asyncio.run(story(wire))
        assert not any(path.endswith(":send") for path in wire.paths)
    expected = {"key": Code.EPOCH_OWNER, "token": Code.EPOCH_OWNER, "both": WireCode.MAILBOX_KEY_SIGNATURE}
    assert codes == {mode: str(code) for mode, code in expected.items()}


def test_a_delivery_that_the_broker_repeats_is_handled_once(lab: Lab) -> None:
    handled: list[str] = []
    kept: list[dict[str, Any]] = []

    def repeat(request: httpx2.Request, response: httpx2.Response) -> httpx2.Response:
        if not request.url.path.endswith(":receive") or response.status_code != 200:
            return response
        members = json.loads(response.content)
        if members["deliveries"]:
            kept.append(members)
        return answered(response, kept[0] if kept else members)

    async def story() -> None:
        agent = Agent("researcher")

        @agent.on_message(Question)
        async def answer(ctx: Context, question: Question) -> Answer:
            handled.append(question.text)
            return Answer(text="yes")

        async with running(lab, agent, wire=Wire(tamper=repeat)), running(lab, Agent("analyst")) as analyst:
            for number in range(3):
                await analyst.context().send("researcher", Question(text=str(number)))
            while len(handled) < 1 or len(kept) < 2:
                await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(story(), 20))
    assert len(handled) == len(set(handled))


def test_a_release_for_somebody_or_something_else_is_not_opened(lab: Lab) -> None:
    """The broker, or who stands before it, answers one request for a secret with the answer to another."""
    first: list[bytes] = []

    def swap(request: httpx2.Request, response: httpx2.Response) -> httpx2.Response:
        if not request.url.path.endswith(":release") or response.status_code != 200:
            return response
        first.append(response.content)
        return answered(response, json.loads(first[0]))

    async def story() -> str:
        async with running(lab, Agent("researcher"), wire=Wire(tamper=swap)) as agent:
            await agent.context().secrets.get(SECRET)
            return await code_of(agent.context().secrets.get(SECRET))

    assert asyncio.run(story()) == WireCode.RELEASE_MISMATCH


def test_a_release_that_somebody_altered_is_not_opened(lab: Lab) -> None:
    def flip(request: httpx2.Request, response: httpx2.Response) -> httpx2.Response:
        if not request.url.path.endswith(":release") or response.status_code != 200:
            return response
        members = json.loads(response.content)
        members["sealed"] = ("B" if members["sealed"][0] == "A" else "A") + members["sealed"][1:]
        return answered(response, members)

    async def story() -> str:
        async with running(lab, Agent("researcher"), wire=Wire(tamper=flip)) as agent:
            return await code_of(agent.context().secrets.get(SECRET))

    assert asyncio.run(story()) == WireCode.RELEASE_SIGNATURE


def test_an_admission_for_another_agent_is_not_taken(lab: Lab) -> None:
    answers: list[dict[str, Any]] = []

    def swap(request: httpx2.Request, response: httpx2.Response) -> httpx2.Response:
        if request.url.path != "/v1/attestations" or response.status_code != 200:
            return response
        answers.append(json.loads(response.content))
        return answered(response, answers[0])

    async def story() -> None:
        async with running(lab, researcher(), wire=Wire(tamper=swap)):
            pass

    asyncio.run(story())
    assert refused_at_start(lab, Wire(tamper=swap)) == Code.SESSION_ADMISSION


def test_a_release_whose_log_entry_is_about_something_else_is_not_opened(lab: Lab) -> None:
    receipts: list[dict[str, Any]] = []

    def swap(request: httpx2.Request, response: httpx2.Response) -> httpx2.Response:
        if response.status_code != 200 or not request.url.path.endswith((":release", "/attestations")):
            return response
        members = json.loads(response.content)
        receipts.append(members["receipt"])  # the first is genuine too: it is that of the admission
        return answered(response, {**members, "receipt": receipts[0]})

    async def story() -> str:
        async with running(lab, Agent("researcher"), wire=Wire(tamper=swap)) as agent:
            return await code_of(agent.context().secrets.get(SECRET))

    assert asyncio.run(story()) == Code.RELEASE_RECEIPT


def test_a_release_that_comes_too_late_is_not_opened(lab: Lab) -> None:
    async def story() -> str:
        agent = Agent("researcher")

        def later(request: httpx2.Request, response: httpx2.Response) -> httpx2.Response:
            if request.url.path.endswith(":release") and response.status_code == 200:
                agent.running.time.learn(int(agent.running.time.now_s()) + 120)
            return response

        async with running(lab, agent, wire=Wire(tamper=later)):
            return await code_of(agent.context().secrets.get(SECRET))

    assert asyncio.run(story()) == Code.RELEASE_EXPIRED


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


def test_a_handler_that_always_fails_ends_with_a_code_for_the_asker(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_module, "MAX_ATTEMPTS", 1)

    async def story() -> str:
        agent = Agent("researcher")

        @agent.on_message(Question)
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
    from broker.wire.envelope import batch_from_bytes

    sent = next(request for request in wire.seen if request.url.path.endswith(":send"))
    envelope = batch_from_bytes(sent.content)[0]
    assert CANARY not in sent.content
    assert Header.from_bytes(envelope.header).type == "Question"
