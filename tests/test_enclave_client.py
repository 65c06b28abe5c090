"""The client: when it tries again, what it proves, and how a refusal reads. The broker here is a list of answers."""

import asyncio
import json
from collections.abc import Callable, Generator
from typing import Any

import httpx2
import pytest

from broker.wire import dpop
from broker.wire.bodies import Problem
from broker.wire.challenge import ChallengeRequest
from broker.wire.leases import AckRequest
from broker.wire.release import ReleaseRequest
from enclave import client as client_module
from enclave.client import AsyncClient, BrokerCalls, Call, Pause
from enclave.clock import BrokerTime
from enclave.errors import BrokerRefused, Code, TransportFailed
from enclave.keys import AgentKeys

URL = "http://127.0.0.1:8470"
Answers = Callable[[httpx2.Request], httpx2.Response]


def problem(status: int, code: str, **more: Any) -> httpx2.Response:
    body = Problem(status=status, code=code, title="no", correlation_id="c", **more).to_dict()
    return httpx2.Response(status, json=body, headers={"content-type": "application/problem+json"})


class Broker:
    """Gives the answers in order and keeps what it was asked."""

    def __init__(self, *answers: httpx2.Response | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[httpx2.Request] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.asked.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return httpx2.Response(answer.status_code, headers=answer.headers, content=answer.content)


@pytest.fixture
def calls() -> BrokerCalls:
    clock = BrokerTime()
    clock.learn(1_800_000_000)
    return BrokerCalls(URL + "/", AgentKeys.generate(), clock, lambda: "token")


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "FIRST_PAUSE_S", 0.0)


def do(broker: Broker, call: Call[Any]) -> Any:
    """Carry out a call against a broker."""

    async def run() -> Any:
        async with AsyncClient(httpx2.MockTransport(broker)) as client:
            return await client.do(call)

    return asyncio.run(run())


ACK = httpx2.Response(200, json={"done": 1, "lost": []})


def test_a_request_proves_possession_of_the_key_for_exactly_itself(calls: BrokerCalls) -> None:
    broker = Broker(ACK)
    do(broker, calls.ack("lab/mail/a", AckRequest(ack=("l",))))
    request = broker.asked[0]
    proof = dpop.parse(request.headers["dpop"])
    assert request.headers["authorization"] == "DPoP token"
    assert (proof.htm, proof.htu) == ("POST", f"{URL}/v1/mailboxes/lab/mail/a:ack")
    assert (proof.bh, proof.ath) == (dpop.body_hash(request.content), dpop.token_hash("token"))


def test_a_challenge_needs_no_proof(calls: BrokerCalls) -> None:
    broker = Broker(problem(400, "x.y"))
    with pytest.raises(BrokerRefused):
        do(broker, calls.challenge(ChallengeRequest(client_nonce=bytes(32))))
    assert "dpop" not in broker.asked[0].headers


def test_a_stale_nonce_is_replaced_once_by_the_one_that_came_with_the_refusal(calls: BrokerCalls) -> None:
    stale = problem(401, "dpop.nonce_required")
    stale.headers["DPoP-Nonce"] = "fresh"
    broker = Broker(stale, ACK)
    do(broker, calls.ack("lab/mail/a", AckRequest()))
    assert [dpop.parse(request.headers["dpop"]).nonce for request in broker.asked] == [None, "fresh"]
    endless = [problem(401, "dpop.nonce_required") for _ in range(3)]
    for number, answer in enumerate(endless):
        answer.headers["DPoP-Nonce"] = str(number)
    broker = Broker(*endless)
    with pytest.raises(BrokerRefused):
        do(broker, calls.ack("lab/mail/a", AckRequest()))
    assert len(broker.asked) == 2


@pytest.mark.parametrize(
    "trouble",
    [
        lambda: problem(503, "collateral.pending"),
        lambda: problem(429, "broker.busy"),
        lambda: httpx2.ConnectError("no"),
        lambda: httpx2.ReadTimeout("slow"),
        lambda: httpx2.RemoteProtocolError("cut"),
    ],
    ids=["pending", "busy", "no connection", "slow", "cut off"],
)
def test_trouble_that_passes_is_waited_for(calls: BrokerCalls, trouble: Callable[[], Any]) -> None:
    broker = Broker(trouble(), trouble(), ACK)
    do(broker, calls.ack("lab/mail/a", AckRequest()))
    assert len(broker.asked) == 3


def test_who_waits_for_a_broker_says_so_once(calls: BrokerCalls, caplog: pytest.LogCaptureFixture) -> None:
    trouble = [httpx2.ConnectError("refused") for _ in range(6)]
    do(Broker(*trouble, httpx2.Response(200, json={})), calls.leave_topic("lab/topics/x"))
    told = [record.getMessage() for record in caplog.records if record.name == "cloister.agent"]
    assert len(told) == 1
    assert told[0].startswith(Code.CLIENT_UNREACHABLE)


def test_waiting_ends_at_the_deadline() -> None:
    now = iter(range(0, 10_000, 20))
    clock = BrokerTime()
    clock.learn(1)
    calls = BrokerCalls(URL, AgentKeys.generate(), clock, lambda: "token", monotonic=lambda: float(next(now)))
    broker = Broker(*[httpx2.ConnectError("no") for _ in range(100)])
    with pytest.raises(TransportFailed) as failed:
        do(broker, calls.ack("lab/mail/a", AckRequest()))
    assert failed.value.code is Code.CLIENT_UNREACHABLE
    assert len(broker.asked) < 5


def test_a_time_out_has_its_own_code(calls: BrokerCalls) -> None:
    from broker.wire.bodies import AttestationRequest

    broker = Broker(httpx2.ReadTimeout("slow"))
    with pytest.raises(TransportFailed) as failed:
        do(broker, calls.attest(AttestationRequest(evidence={}, client_nonce=bytes(32))))
    assert failed.value.code is Code.CLIENT_TIMEOUT
    assert len(broker.asked) == 1  # an attestation is not repeated: its nonce is gone


def test_what_the_broker_says_when_to_come_back_is_kept_to(calls: BrokerCalls) -> None:
    call = calls.ack("lab/mail/a", AckRequest())
    next(call)
    busy = client_module.Answer(status=503, headers={"retry-after": "3"}, body=b"{}")
    paused = call.send(busy)
    assert isinstance(paused, Pause)
    assert paused.seconds == 3.0


def test_a_refusal_says_code_reasons_and_what_to_do(calls: BrokerCalls) -> None:
    broker = Broker(problem(403, "policy.refused", remedy="ask the operator", codes=("policy.tcb_not_accepted",)))
    with pytest.raises(BrokerRefused) as refused:
        do(broker, calls.release("lab/a/b", ReleaseRequest(nonce=bytes(32))))
    error = refused.value
    assert (error.status, error.code, error.reasons) == (403, "policy.refused", ("policy.tcb_not_accepted",))
    assert all(part in str(error) for part in ("policy.tcb_not_accepted", "ask the operator", "correlation id c"))
    assert len(broker.asked) == 1


@pytest.mark.parametrize(
    "answer",
    [
        httpx2.Response(403, text="<html>log in</html>"),
        httpx2.Response(302, headers={"location": "http://127.0.0.1:1/"}),
        httpx2.Response(500, json=[1]),
    ],
    ids=["a proxy's page", "a redirect", "no problem"],
)
def test_an_answer_of_something_else_than_a_broker_has_its_own_code(
    calls: BrokerCalls, answer: httpx2.Response
) -> None:
    broker = Broker(answer)
    with pytest.raises(TransportFailed) as failed:
        do(broker, calls.ack("lab/mail/a", AckRequest()))
    assert failed.value.code is Code.CLIENT_ANSWER
    assert len(broker.asked) == 1


def test_calls_are_plain_generators_that_know_no_network(calls: BrokerCalls) -> None:
    call: Generator[Any, Any, Any] = calls.ack("lab/mail/a", AckRequest())
    request = next(call)
    assert json.loads(request.body) == {"ack": [], "nak": []}
    with pytest.raises(StopIteration) as end:
        call.send(client_module.Answer(status=200, headers={}, body=b'{"done":0,"lost":[]}'))
    assert end.value.value.done == 0
