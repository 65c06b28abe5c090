"""End to end, with somebody in the middle: relays, swapped answers, a broker that plays false. Nobody gets anything."""

import asyncio
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from attestation.evidence import Evidence, proof_message
from broker.wire.bodies import AttestationRequest
from broker.wire.errors import WireCode
from broker.wire.jose import b64u
from broker.wire.mailbox import MailboxInfo
from enclave import Agent
from enclave.context import Context
from enclave.errors import Code
from enclave.keys import AgentKeys
from enclave.trustfile import TrustFile
from simulator.lab import Lab
from tests.spine import (
    SECRET,
    Answer,
    Question,
    Wire,
    answered,
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
    keys = AgentKeys.generate()
    binding = replace(evidence.binding, identity_key=keys.identity_key, sealing_key=keys.sealing_key)
    message = proof_message(binding.broker_id, nonce, binding.nonce, evidence.quote, evidence.event_log)
    return replace(evidence, binding=binding, proof=keys.sign(message)), nonce


def proved_by_another(evidence: Evidence, nonce: bytes) -> tuple[Evidence, bytes]:
    """Evidence untouched, the proof of possession by a key that it does not bind."""
    binding = evidence.binding
    message = proof_message(binding.broker_id, nonce, binding.nonce, evidence.quote, evidence.event_log)
    return replace(evidence, proof=AgentKeys.generate().sign(message)), nonce


def with_another_nonce(evidence: Evidence, nonce: bytes) -> tuple[Evidence, bytes]:
    return evidence, os.urandom(32)


def without_its_log(evidence: Evidence, nonce: bytes) -> tuple[Evidence, bytes]:
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
