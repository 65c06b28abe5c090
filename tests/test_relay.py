"""Threat T12: somebody who owns the whole network between an agent and its broker, with genuine domains of his own.

The agent is the real one (runtime, client, session), the broker is the real one behind its REST interface, and the
attacker is a transport that sees and may change every request and every answer.
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric import ec

from broker.app import create_app
from broker.attested import Attestor
from broker.wire import dpop
from broker.wire.errors import WireCode, WireError
from broker.wire.jose import b64u
from enclave.agent import Agent
from enclave.runtime import Runtime
from enclave.trustfile import TrustFile, render
from simulator.domain import SimulatedTd
from simulator.residence import Residence, reference_of
from tests.broker_world import URL, World

Members = dict[str, Any]


class Between(httpx2.AsyncBaseTransport):
    """Passes everything on to `broker`, as it is unless a change is set for the path; remembers what it saw."""

    def __init__(self, world: World) -> None:
        self.forward(world)
        self.seen: list[tuple[str, bytes]] = []
        self.asked: dict[str, Callable[[Members], Members]] = {}
        self.answered: dict[str, Callable[[Members], Members]] = {}
        self.tokens: list[str] = []

    def forward(self, world: World) -> None:
        self.inner = httpx2.ASGITransport(create_app(world.broker, background=False))

    @property
    def paths(self) -> list[str]:
        return [path for path, _ in self.seen]

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        path, body = request.url.path, await request.aread()
        self.seen.append((path, body))
        if path in self.asked:
            body = json.dumps(self.asked[path](json.loads(body))).encode()
        headers = {name: value for name, value in request.headers.items() if name != "content-length"}
        passed = httpx2.Request(request.method, request.url, headers=headers, content=body)
        answer = await self.inner.handle_async_request(passed)
        found = await answer.aread()
        if path in self.answered and answer.status_code == 200:
            found = json.dumps(self.answered[path](json.loads(found))).encode()
        if path == "/v1/attestations" and answer.status_code == 200:
            self.tokens.append(json.loads(found)["token"])
        return httpx2.Response(answer.status_code, headers={"content-type": "application/json"}, content=found)


class Scene:
    def __init__(self, world: World) -> None:
        self.world = world
        self.domain = Residence(world.machine).launch()
        trust = render(
            tenant="acme",
            log_key=world.broker.identity.log_key,
            broker_url=URL,
            roots_pem=(world.machine.root_pem,),
            reference=reference_of(self.domain),
        )
        self.trust = TrustFile.parse(trust)
        self.between = Between(world)
        self.runtimes: list[Runtime] = []

    def agent(self, label: str = "agent", *, domain: SimulatedTd | None = None) -> Runtime:
        runtime = Runtime(
            domain=domain or self.world.machine.launch(label),
            trust=self.trust,
            broker_url=URL,
            mailbox="acme/mail/x",
            transport=self.between,
        )
        self.runtimes.append(runtime)
        return runtime

    async def outcome(self, runtime: Runtime) -> str:
        try:
            await runtime.attest()
        except Exception as error:  # noqa: BLE001  # whatever it is, it must have a code
            return str(error.code)  # type: ignore[attr-defined]
        return "ok"


@pytest_asyncio.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    world = await World.make(tmp_path)
    found = Scene(world)
    await world.broker.attestor.begin(found.domain, found.trust.digest)
    yield found
    for runtime in found.runtimes:
        await runtime.close()
    await world.broker.close()


@pytest.mark.asyncio
async def test_t12_a_network_that_only_passes_on_is_no_attack(scene: Scene) -> None:
    assert await scene.outcome(scene.agent()) == "ok"
    assert scene.between.paths == ["/v1/challenges", "/v1/attestations"]


@pytest.mark.asyncio
async def test_t12_an_agent_led_to_another_genuine_broker_sends_it_nothing(scene: Scene, tmp_path: Path) -> None:
    """Diversion: same software, same machine's root, same image, attested; another broker."""
    other = await World.make(tmp_path / "other")
    other.machine = scene.world.machine
    try:
        await other.broker.attestor.begin(Residence(scene.world.machine).launch(), scene.trust.digest)
        scene.between.forward(other)
        assert await scene.outcome(scene.agent()) == "challenge.wrong_broker"
        assert set(scene.between.paths) == {"/v1/challenges"}
    finally:
        await other.broker.close()


@pytest.mark.asyncio
async def test_t12_an_agent_sends_nothing_to_a_broker_whose_keys_run_outside_its_domain(scene: Scene) -> None:
    """The keys were taken from the disk; the thief has genuine domains on a genuine platform, and quotes them there."""
    broker = scene.world.broker
    thief = Attestor(identity=broker.identity, collateral=broker.collateral, clock=broker.clock)
    await thief.begin(scene.world.machine.launch("thief", image="broker"), scene.trust.digest)
    object.__setattr__(broker, "attestor", thief)
    assert await scene.outcome(scene.agent()) == "challenge.not_expected"
    object.__setattr__(
        broker, "attestor", Attestor(identity=broker.identity, collateral=broker.collateral, clock=broker.clock)
    )
    assert await scene.outcome(scene.agent()) == "session.broker_not_attested"
    assert set(scene.between.paths) == {"/v1/challenges"}


@pytest.mark.asyncio
@pytest.mark.parametrize("member", ["nonce", "broker_id", "at_s", "expires_s", "signature", "keys", "evidence"])
async def test_t12_an_answer_from_another_exchange_is_noticed_member_by_member(scene: Scene, member: str) -> None:
    earlier: list[Members] = []

    def keep(answer: Members) -> Members:
        earlier.append(answer)
        return answer

    scene.between.answered["/v1/challenges"] = keep
    assert await scene.outcome(scene.agent()) == "ok"
    scene.world.machine.clock.advance(1300)  # so that every member differs
    scene.between.answered["/v1/challenges"] = lambda answer: answer | {member: earlier[0][member]}
    before = len(scene.between.seen)
    if member == "expires_s":  # 60 s in each
        scene.between.answered["/v1/challenges"] = lambda answer: answer | {member: 61}
    # Keys that were quoted so long ago are refused before anybody looks whether this evidence binds them.
    refusals = {"challenge.signature_invalid", "challenge.evidence_mismatch", "challenge.evidence_stale"}
    code = await scene.outcome(scene.agent())
    if member == "broker_id":  # is always the same: nothing was changed
        assert code == "ok"
    else:
        assert code in refusals
        assert [path for path, _ in scene.between.seen[before:]] == ["/v1/challenges"]


@pytest.mark.asyncio
async def test_t12_keys_put_in_place_of_the_agents_are_refused(scene: Scene) -> None:
    stranger = scene.world.agent("stranger")

    def swap(request: Members) -> Members:
        binding = request["evidence"]["binding"]
        own = stranger.binding(os.urandom(32)).to_dict()
        binding |= {name: own[name] for name in ("identity_key", "sealing_key")}
        return request

    scene.between.asked["/v1/attestations"] = swap
    assert await scene.outcome(scene.agent()) == "evidence.proof_invalid"


@pytest.mark.asyncio
async def test_t12_a_sealing_key_put_in_place_of_the_agents_is_refused(scene: Scene) -> None:
    """The proof of possession does not cover it; the quote does."""
    stranger = scene.world.agent("stranger")

    def swap(request: Members) -> Members:
        request["evidence"]["binding"]["sealing_key"] = stranger.binding(os.urandom(32)).to_dict()["sealing_key"]
        return request

    scene.between.asked["/v1/attestations"] = swap
    assert await scene.outcome(scene.agent()) == "binding.report_data_mismatch"


@pytest.mark.asyncio
async def test_t12_an_admission_of_somebody_else_is_not_taken_for_ones_own(scene: Scene) -> None:
    answers: list[Members] = []

    def keep(answer: Members) -> Members:
        answers.append(answer)
        return answer

    scene.between.answered["/v1/attestations"] = keep
    assert await scene.outcome(scene.agent("first")) == "ok"
    scene.between.answered["/v1/attestations"] = lambda _: answers[0]
    assert await scene.outcome(scene.agent("second")) == "session.admission_mismatch"


@pytest.mark.asyncio
async def test_t10_t12_whoever_carried_the_token_cannot_use_it(scene: Scene) -> None:
    assert await scene.outcome(scene.agent()) == "ok"
    token, path = scene.between.tokens[0], "/v1/mailboxes/acme/mail/x"
    thief = ec.generate_private_key(ec.SECP256R1())
    async with httpx2.AsyncClient(transport=scene.between.inner, base_url=URL) as http:
        nonce = (await http.get(path)).headers["dpop-nonce"]
        at_s = int(scene.world.broker.clock().timestamp())
        proof = dpop.build(thief, method="GET", url=URL + path, body=b"", at_s=at_s, nonce=nonce, token=token)
        answer = await http.get(path, headers={"authorization": f"DPoP {token}", "dpop": proof})
    assert (answer.status_code, answer.json()["code"]) == (401, "dpop.key_mismatch")


@pytest.mark.asyncio
async def test_t12_the_attacker_learns_nothing_of_the_agent_before_the_broker_is_proved(scene: Scene) -> None:
    """All that leaves first: a random nonce, and later the digest of evidence that the broker itself has sent."""
    scene.between.answered["/v1/challenges"] = lambda answer: answer | {"signature": b64u(bytes(64))}
    runtime = scene.agent()
    assert await scene.outcome(runtime) == "challenge.signature_invalid"
    for _, body in scene.between.seen:
        assert json.loads(body).keys() == {"client_nonce"}
        assert runtime.keys.jkt.encode() not in body


class Unproved:
    """A runtime whose admission is due for renewal, and whose broker proves nothing."""

    admitted, admission = True, None

    def renewal_due_s(self) -> float:
        return 0.0

    async def attest(self, *, instead_of: object) -> None:
        raise WireError(WireCode.CHALLENGE_NOT_EXPECTED, "another broker")


@pytest.mark.asyncio
async def test_an_agent_whose_broker_proves_nothing_any_more_asks_less_and_less_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 5:
            raise asyncio.CancelledError

    monkeypatch.setattr("enclave.agent.asyncio.sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        await Agent("patient")._renew(Unproved())  # type: ignore[arg-type]  # as much of a runtime as is asked
    assert waited == [0.0, 2.0, 4.0, 8.0, 16.0]
