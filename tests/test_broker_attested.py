"""A broker in a trust domain: agents judge its quote before they send anything. Threats T3, T12 and T38."""

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import httpx2
import pytest
import pytest_asyncio

from attestation.collateral import Collateral
from attestation.errors import AttestationError, CollateralUnavailable
from attestation.errors import Code as AttestationCode
from attestation.quote import Quote
from broker.attested import Attestor
from broker.commands.setup import initialise
from broker.config import Settings, load
from broker.domains import open_domain
from broker.errors import BrokerCode, BrokerError
from broker.rpc.members import fill, members_of, parse
from broker.service import build
from broker.wire import api_pb2 as pb
from broker.wire.attested import MAX_AGE_S, RENEW_S, BrokerReference, judge
from broker.wire.challenge import BrokerKeys, ChallengeRequest, ChallengeResponse
from broker.wire.errors import WireCode, WireError
from broker.wire.evidence import BrokerEvidence
from enclave.clock import BrokerTime
from enclave.errors import Code, EnclaveError
from enclave.keys import AgentKeys
from enclave.session import Session, State
from enclave.trustfile import TrustFile, render
from simulator.domain import SimulatedTd
from simulator.machine import Machine
from simulator.pcs_server import PcsServer
from tests.broker_world import URL, World, outcome

ROOT = Path(__file__).resolve().parent.parent
KEYS = AgentKeys.generate()


def reference_of(td: SimulatedTd, **changes: Any) -> BrokerReference:
    quote = Quote.parse(td.quote(b"r" * 64)).td
    members = {
        "mr_td": quote.mr_td.hex(),
        "rtmr1": quote.rtmrs[1].hex(),
        "rtmr2": quote.rtmrs[2].hex(),
        "launches": [],
        "platforms": [td.platform.ppid.hex()],
    }
    found = members | changes
    return BrokerReference.from_dict({name: value for name, value in found.items() if value is not None})


class Attested:
    """A broker in a simulated domain, and what agents are told about it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.td = world.machine.launch("broker", image="broker")

    def trust(self, *, roots: bytes | None = None, **changes: Any) -> TrustFile:
        return TrustFile.parse(
            render(
                tenant="acme",
                log_key=self.world.broker.identity.log_key,
                broker_url=URL,
                roots_pem=(roots or self.world.machine.root_pem,),
                reference=reference_of(self.td, **changes),
            )
        )

    async def begin(self, trust: TrustFile) -> None:
        await self.world.broker.attestor.begin(self.td, trust.digest)

    async def answer(self, request: ChallengeRequest) -> ChallengeResponse:
        """Over the wire and back."""
        broker = self.world.broker
        answer = broker.admission.challenge(
            ChallengeRequest.from_dict(request.to_dict()), await broker.attestor.proof()
        )
        return ChallengeResponse.from_dict(json.loads(json.dumps(answer.to_dict())))


@pytest_asyncio.fixture
async def attested(tmp_path: Path) -> AsyncIterator[Attested]:
    world = await World.make(tmp_path, prefetch=False)
    yield Attested(world)
    await world.broker.close()


def session_of(trust: TrustFile) -> Session:
    return Session(KEYS, trust, BrokerTime())


async def challenged(
    attested: Attested, session: Session, change: Callable[[ChallengeResponse], ChallengeResponse] = lambda a: a
) -> str:
    """ "ok", or the code with which the agent turns away."""
    answer = change(await attested.answer(session.ask(os.urandom(32))))
    try:
        session.challenged(answer)
    except (EnclaveError, WireError, AttestationError) as error:
        assert session.state is State.FAILED
        return str(error.code)
    return "ok"


@pytest.mark.asyncio
async def test_an_agent_judges_the_brokers_quote_and_then_attests(attested: Attested) -> None:
    trust = attested.trust()
    await attested.begin(trust)
    session = session_of(trust)
    report_data = session.challenged(await attested.answer(session.ask(os.urandom(32))))
    agent = attested.world.machine.launch("agent")
    request = session.quoted(agent.quote(report_data), agent.event_log())
    admission = session.admitted(await attested.world.broker.admission.attest(request))
    assert admission.subject == f"agent/acme/{KEYS.jkt}"


@pytest.mark.asyncio
async def test_the_operator_sees_where_the_broker_runs(attested: Attested) -> None:
    attestor, trust = attested.world.broker.attestor, attested.trust()
    before = attestor.summary
    await attested.begin(trust)
    after = attestor.summary or {}
    told = [after.get(name) for name in ("domain", "simulated", "trust_file")]
    assert (before, told) == (None, ["cloister-sim", True, trust.digest.hex()])


@pytest.mark.asyncio
async def test_evidence_is_sent_once_and_a_digest_afterwards(attested: Attested) -> None:
    trust = attested.trust()
    await attested.begin(trust)
    session = session_of(trust)
    first = await attested.answer(session.ask(os.urandom(32)))
    session.challenged(first)
    question = session.ask(os.urandom(32))
    second = await attested.answer(question)
    assert (question.known, second.evidence, second.evidence_digest) == (first.evidence_digest, None, question.known)
    session.challenged(second)
    assert session.state is State.CHALLENGED


@pytest.mark.asyncio
async def test_an_agent_without_reference_values_is_not_sent_the_same_evidence_twice(attested: Attested) -> None:
    await attested.begin(attested.trust())
    identity = attested.world.broker.identity
    plain = TrustFile.parse(render(tenant="acme", log_key=identity.log_key, intel=True))
    session = session_of(plain)
    first = await attested.answer(session.ask(os.urandom(32)))
    session.challenged(first)
    second = await attested.answer(session.ask(os.urandom(32)))
    assert (first.evidence is None, second.evidence is None) == (False, True)


@pytest.mark.asyncio
async def test_the_keys_are_quoted_every_ten_minutes_and_not_for_each_challenge(attested: Attested) -> None:
    trust = attested.trust()
    await attested.begin(trust)
    quotes = {(await attested.answer(ChallengeRequest(client_nonce=os.urandom(32)))).evidence for _ in range(5)}
    assert len(quotes) == 1
    attested.world.machine.clock.advance(RENEW_S)
    session = session_of(trust)
    for _ in range(3):  # the older quote still serves while the next is being made
        assert await challenged(attested, session) == "ok"
    await asyncio.sleep(0)
    attested.world.machine.clock.advance(MAX_AGE_S)
    assert await challenged(attested, session) == "ok"
    assert session.ask(os.urandom(32)).known not in {quote.digest for quote in quotes if quote}


@pytest.mark.asyncio
async def test_a_broker_that_is_not_attested_is_refused_where_reference_values_are_named(attested: Attested) -> None:
    assert await challenged(attested, session_of(attested.trust())) == Code.SESSION_UNATTESTED


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "changes",
    [
        {"mr_td": "11" * 48},
        {"rtmr0": "11" * 48},
        {"rtmr1": "11" * 48},
        {"rtmr2": "11" * 48},
        {"launches": None, "rtmr3": "11" * 48},
        {"launches": ["11" * 48]},
        {"platforms": ["11" * 16]},
        {"platforms": None, "any_platform_until": "2001-01-01T00:00:00+00:00"},
        {"tcb_evaluation": 9999},
    ],
    ids=lambda changes: "+".join(changes),
)
async def test_whatever_differs_from_the_reference_values_is_refused(attested: Attested, changes: Any) -> None:
    trust = attested.trust(**changes)
    await attested.begin(trust)
    assert await challenged(attested, session_of(trust)) == WireCode.CHALLENGE_NOT_EXPECTED


@pytest.mark.asyncio
async def test_a_launch_in_the_brokers_domain_shows(attested: Attested) -> None:
    trust = attested.trust()
    attested.td.extend(3, bytes(48), data=b"somebody else's program")
    await attested.begin(trust)
    assert await challenged(attested, session_of(trust)) == WireCode.CHALLENGE_NOT_EXPECTED


@pytest.mark.asyncio
async def test_t38_a_simulated_broker_is_refused_under_intels_root(attested: Attested) -> None:
    trust = attested.trust()
    await attested.begin(trust)
    members = json.loads(
        render(tenant="acme", log_key=attested.world.broker.identity.log_key, reference=trust.broker_reference)
    )
    members["roots"] = {"intel": True}
    members["broker"]["reference"]["trust_files"] = [trust.digest.hex()]
    intel = TrustFile.parse(json.dumps(members).encode())
    assert await challenged(attested, session_of(intel)) == "chain.root_not_trusted"


@pytest.mark.asyncio
async def test_a_broker_on_an_outdated_platform_is_refused_unless_the_trust_file_accepts_it(
    attested: Attested,
) -> None:
    attested.world.machine.recover("publish", what="platform", standard=True)
    attested.world.machine.clock.advance(1)
    strict, lenient = attested.trust(), attested.trust(tcb=["UpToDate", "OutOfDate"])
    await attested.begin(strict)
    assert await challenged(attested, session_of(strict)) == "tcb.not_accepted"
    await attested.begin(lenient)
    assert await challenged(attested, session_of(lenient)) == "ok"


@pytest.mark.asyncio
async def test_a_debug_domain_is_no_place_for_a_broker(attested: Attested) -> None:
    attested.td = attested.world.machine.launch("broker", image="broker", attributes=1 << 28 | 1)
    trust = attested.trust()
    await attested.begin(trust)
    assert await challenged(attested, session_of(trust)) == "quote.debug"


@pytest.mark.asyncio
async def test_a_broker_under_another_trust_file_is_refused_unless_it_is_named(attested: Attested) -> None:
    trust, other = attested.trust(), attested.trust(tcb_evaluation=1)
    await attested.begin(other)
    assert await challenged(attested, session_of(trust)) == WireCode.CHALLENGE_EVIDENCE
    named = attested.trust(trust_files=[other.digest.hex()])
    assert await challenged(attested, session_of(named)) == "ok"


# ── somebody between them ──────────────────────────────────────────────────────────────────────────────────────────


def stripped(answer: ChallengeResponse) -> ChallengeResponse:
    return replace(answer, evidence=None)


def silenced(answer: ChallengeResponse) -> ChallengeResponse:
    return replace(answer, evidence=None, evidence_digest=b"")


def changed(**members: Any) -> Callable[[ChallengeResponse], ChallengeResponse]:
    def change(answer: ChallengeResponse) -> ChallengeResponse:
        assert answer.evidence is not None
        evidence = replace(answer.evidence, **members)
        return replace(answer, evidence=evidence)

    return change


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("change", "code"),
    [
        (stripped, Code.SESSION_UNATTESTED),
        (silenced, WireCode.CHALLENGE_SIGNATURE),
        (changed(sealing_key=bytes(1216)), WireCode.CHALLENGE_EVIDENCE),
        (changed(suite="x25519"), WireCode.CHALLENGE_EVIDENCE),
        (changed(trust_file_digest=bytes(32)), WireCode.CHALLENGE_EVIDENCE),
        (changed(collateral="{}"), WireCode.CHALLENGE_EVIDENCE),
        (changed(event_log=b""), WireCode.CHALLENGE_EVIDENCE),
        (changed(quote=b"q"), WireCode.CHALLENGE_EVIDENCE),
    ],
    ids=["stripped", "silenced", "sealing key", "suite", "trust file", "collateral", "event log", "quote"],
)
async def test_t12_nothing_of_the_brokers_proof_can_be_changed_on_the_way(
    attested: Attested, change: Callable[[ChallengeResponse], ChallengeResponse], code: str
) -> None:
    trust = attested.trust()
    await attested.begin(trust)
    assert await challenged(attested, session_of(trust), change) == code


@pytest.mark.asyncio
async def test_t3_an_answer_to_another_agents_nonce_is_refused(attested: Attested) -> None:
    trust = attested.trust()
    await attested.begin(trust)
    old = await attested.answer(ChallengeRequest(client_nonce=os.urandom(32)))
    assert await challenged(attested, session_of(trust), lambda _: old) == WireCode.CHALLENGE_SIGNATURE


class Impostor:
    """Has the broker's own keys, taken from a disk, but is not in the broker's trust domain."""

    def __init__(self, attested: Attested, td: SimulatedTd) -> None:
        broker = attested.world.broker
        self.attestor = Attestor(identity=broker.identity, collateral=broker.collateral, clock=broker.clock)
        self.td = td


@pytest.mark.asyncio
async def test_t12_keys_stolen_from_the_broker_serve_nobody_outside_its_domain(attested: Attested) -> None:
    trust = attested.trust()
    elsewhere = Impostor(attested, attested.world.machine.launch("impostor", image="impostor"))
    await elsewhere.attestor.begin(elsewhere.td, trust.digest)
    session = session_of(trust)
    answer = attested.world.broker.admission.challenge(session.ask(os.urandom(32)), await elsewhere.attestor.proof())
    with pytest.raises(WireError) as refused:
        session.challenged(answer)
    assert refused.value.code is WireCode.CHALLENGE_NOT_EXPECTED


@pytest.mark.asyncio
async def test_t12_the_genuine_brokers_quote_does_not_cover_an_impostors_keys(
    attested: Attested, tmp_path: Path
) -> None:
    """The relay: honest evidence of the real broker, passed on by one with keys of its own."""
    trust = attested.trust()
    await attested.begin(trust)
    genuine = (await attested.answer(ChallengeRequest(client_nonce=os.urandom(32)))).evidence
    assert genuine is not None
    other = await World.make(tmp_path / "other")
    try:
        identity = other.broker.identity
        members = json.loads(render(tenant="acme", log_key=identity.log_key, reference=trust.broker_reference))
        members["roots"] = {"pem": [attested.world.machine.root_pem.decode()]}
        members["broker"]["reference"]["trust_files"] = [trust.digest.hex()]
        pinned_to_impostor = TrustFile.parse(json.dumps(members).encode())
        session = session_of(pinned_to_impostor)
        question = session.ask(os.urandom(32))
        answer = ChallengeResponse.sign(
            identity.key,
            keys=identity.keys(other.broker.clock()),
            broker_id=identity.broker_id,
            client_nonce=question.client_nonce,
            nonce=os.urandom(32),
            at_s=int(other.broker.clock().timestamp()),
            expires_s=60,
            evidence_digest=genuine.digest,
            evidence=genuine,
        )
        with pytest.raises(AttestationError) as refused:
            session.challenged(answer)
        assert refused.value.code == "binding.report_data_mismatch"
    finally:
        await other.broker.close()


@pytest.mark.asyncio
async def test_t12_an_agents_own_quote_cannot_be_reflected_as_the_brokers(attested: Attested) -> None:
    """Same image and machine, a quote that an agent made: its Binding has another role, nonce and keys."""
    trust = attested.trust()
    await attested.begin(trust)
    agent = attested.world.agent("agent", image="broker")
    keys = attested.world.broker.identity.keys(attested.world.broker.clock())
    answer = await attested.answer(ChallengeRequest(client_nonce=os.urandom(32)))
    assert answer.evidence is not None
    quote = agent.td.quote(agent.binding(answer.nonce).report_data)
    reflected = replace(answer.evidence, quote=quote, event_log=agent.td.event_log())
    assert trust.broker_reference is not None
    session = session_of(trust)
    with pytest.raises(AttestationError) as refused:
        judge(
            reflected,
            keys,
            reference=trust.broker_reference,
            verifier=session._verifier,
            trust_file_digest=trust.digest,
            at=attested.world.broker.clock(),
        )
    assert refused.value.code == "binding.report_data_mismatch"


@pytest.mark.asyncio
async def test_evidence_from_long_ago_is_refused_even_with_a_fresh_signature(attested: Attested) -> None:
    trust = attested.trust()
    await attested.begin(trust)
    proof = await attested.world.broker.attestor.proof()
    attested.world.machine.clock.advance(MAX_AGE_S + 1)
    session = session_of(trust)
    answer = attested.world.broker.admission.challenge(session.ask(os.urandom(32)), proof)
    with pytest.raises(WireError) as refused:
        session.challenged(answer)
    assert refused.value.code is WireCode.CHALLENGE_STALE


@pytest.mark.asyncio
async def test_t20_whatever_a_broker_sends_as_evidence_only_typed_refusals_come_of_it(attested: Attested) -> None:
    """A broker with the right keys may sign anything. Of an event log only the digests are measured, and hexadecimal
    digits have two cases; so one bit there may pass, and then it changes nothing that is judged."""
    trust = attested.trust()
    await attested.begin(trust)
    proof = await attested.world.broker.attestor.proof()
    assert proof is not None
    good, random, session = proof.evidence, Random(7), session_of(trust)
    assert good.event_log is not None
    for _ in range(60):
        for changed in (
            replace(good, quote=_flipped(good.quote, random)),
            replace(good, event_log=_flipped(good.event_log, random)),
            replace(good, collateral=_flipped(good.collateral.encode(), random).decode("ascii", "replace")),
        ):
            outcome = judged(attested, changed, proof.keys, session, trust)
            assert outcome == "refused" or changed.quote == good.quote


def _flipped(raw: bytes, random: Random) -> bytes:
    changed = bytearray(raw)
    changed[random.randrange(len(raw))] ^= 1 << random.randrange(7)
    return bytes(changed)


def judged(attested: Attested, evidence: BrokerEvidence, keys: BrokerKeys, session: Session, trust: TrustFile) -> str:
    assert trust.broker_reference is not None
    try:
        judge(
            evidence,
            keys,
            reference=trust.broker_reference,
            verifier=session._verifier,
            trust_file_digest=trust.digest,
            at=attested.world.broker.clock(),
        )
    except (AttestationError, WireError):
        return "refused"
    return "ok"


# ── when something is missing ──────────────────────────────────────────────────────────────────────────────────────


class Broken:
    """A trust domain whose quoting service is down after the first quote."""

    name, simulated = "broken", True

    def __init__(self, td: SimulatedTd) -> None:
        self.td, self.quotes = td, 0

    def quote(self, report_data: bytes) -> bytes:
        self.quotes += 1
        if self.quotes > 1:
            raise OSError("no quoting service")
        return self.td.quote(report_data)

    def event_log(self) -> bytes:
        return self.td.event_log()

    def extend(self, register: int, digest: bytes, *, event_type: int, data: bytes) -> None:
        raise NotImplementedError


class Nowhere:
    """A collateral service that is down."""

    def fetch(self, quote: Quote) -> Collateral:
        raise CollateralUnavailable(AttestationCode.COLLATERAL_UNREACHABLE, "down")


@pytest.mark.asyncio
async def test_without_a_quote_in_time_no_challenge_is_answered(attested: Attested) -> None:
    attestor = attested.world.broker.attestor
    await attestor.begin(Broken(attested.td), bytes(32))
    attested.world.machine.clock.advance(RENEW_S)
    assert await outcome(attestor.proof()) == "ok"
    attested.world.machine.clock.advance(MAX_AGE_S)
    assert await outcome(attestor.proof()) == BrokerCode.BROKER_EVIDENCE


@pytest.mark.asyncio
async def test_without_collateral_of_its_own_platform_no_challenge_is_answered(tmp_path: Path) -> None:
    world = await World.make(tmp_path, prefetch=False)
    world.broker.collateral._source = Nowhere()
    try:
        await world.broker.attestor.begin(world.machine.launch("broker"), bytes(32))
        assert await outcome(world.broker.attestor.proof()) == BrokerCode.BROKER_EVIDENCE
    finally:
        await world.broker.close()


@pytest.mark.asyncio
async def test_collateral_that_has_ended_is_renewed_before_anybody_is_shown_it(attested: Attested) -> None:
    trust = attested.trust()
    await attested.begin(trust)
    assert await challenged(attested, session_of(trust)) == "ok"
    attested.world.machine.clock.advance(40 * 86_400)
    attestor = attested.world.broker.attestor
    assert await outcome(attestor.proof()) == BrokerCode.BROKER_EVIDENCE
    await asyncio.gather(*attested.world.broker.collateral._fetching.values())
    assert await challenged(attested, session_of(trust)) == "ok"


@pytest.mark.asyncio
async def test_the_evidence_is_the_same_over_grpc(attested: Attested) -> None:
    trust = attested.trust()
    await attested.begin(trust)
    session = session_of(trust)
    question = session.ask(os.urandom(32))
    asked, told = pb.ChallengeRequest(), pb.ChallengeResponse()
    fill(asked, question.to_dict())
    proof = await attested.world.broker.attestor.proof()
    answer = attested.world.broker.admission.challenge(ChallengeRequest.from_dict(members_of(asked)), proof)
    fill(told, answer.to_dict())
    carried = parse(pb.ChallengeResponse, told.SerializeToString())
    session.challenged(ChallengeResponse.from_dict(members_of(carried)))
    assert session.state is State.CHALLENGED


@pytest.mark.asyncio
async def test_fresh_collateral_makes_fresh_evidence_of_the_same_quote(attested: Attested) -> None:
    trust = attested.trust()
    await attested.begin(trust)
    before = await attested.world.broker.attestor.proof()
    attested.world.machine.recover("publish", what="qe", standard=False)
    attested.world.machine.clock.advance(60)
    assert await attested.world.broker.collateral.refresh()
    after = await attested.world.broker.attestor.proof()
    assert before is not None
    assert after is not None
    assert before.evidence.quote == after.evidence.quote
    assert before.digest != after.digest


def test_the_evidence_digest_covers_every_member() -> None:
    evidence = BrokerEvidence(
        quote=b"q", event_log=b"l", suite="s", sealing_key=b"k", trust_file_digest=bytes(32), collateral="{}"
    )
    others = [
        replace(evidence, **change)
        for change in (
            {"quote": b"r"},
            {"event_log": b"m"},
            {"event_log": None},
            {"suite": "t"},
            {"sealing_key": b"j"},
            {"trust_file_digest": b"1" * 32},
            {"collateral": "[]"},
        )
    ]
    assert len({one.digest for one in (evidence, *others)}) == len(others) + 1
    assert BrokerEvidence.from_dict(evidence.to_dict()) == evidence


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"rtmr1": None}, "rtmr1"),
        ({"rtmr3": "00" * 48}, "not both"),
        ({"launches": None}, "rtmr3 or launches"),
        ({"platforms": None}, "platforms"),
        ({"any_platform_until": "2099-01-01T00:00:00+00:00"}, "not both"),
        ({"platforms": None, "any_platform_until": "2099-01-01"}, "offset"),
        ({"platforms": ["00"]}, "hex digits"),
        ({"mr_td": "AA" * 48}, "hex digits"),
        ({"tcb": ["Revoked"]}, "tcb"),
        ({"mr_signer": "00" * 48}, "mr_signer"),
    ],
    ids=str,
)
def test_half_a_reference_is_none(change: dict[str, Any], word: str) -> None:
    with pytest.raises(WireError) as refused:
        reference_of(Machine.create(seed="reference").launch("broker"), **change)
    assert refused.value.code is WireCode.REFERENCE_MALFORMED
    assert word in refused.value.detail


# ── the commands ───────────────────────────────────────────────────────────────────────────────────────────────────


def cloister(*arguments: str, status: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "cloister", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == status, done.stderr
    return done.stdout


def test_a_broker_is_set_up_measured_pinned_and_served_in_a_domain_by_commands_alone(tmp_path: Path) -> None:
    machine, folder = tmp_path / "machine", tmp_path / "broker"
    root = tmp_path / "root.pem"
    root.write_bytes(Machine.create(machine).root_pem)
    with socket.socket() as probe, PcsServer(Machine.open(machine)) as pcs:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
        cloister("broker", "init", str(folder), "--root", str(root), "--port", port, "--pcs-url", pcs.url)
        values = cloister("broker", "reference", "--trust-domain", "simulated", "--machine", str(machine))
        trust = json.loads((folder / "trust.json").read_text())
        trust["broker"]["reference"] = json.loads(values)
        (folder / "trust.json").write_text(json.dumps(trust))
        probe.close()
        serve = ["broker", "serve", str(folder), "--json", "--trust-domain", "simulated", "--machine", str(machine)]
        line = [sys.executable, "-m", "cloister", *serve]
        with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                url = json.loads(process.stdout.readline())["broker_url"]
                session = session_of(TrustFile.load(folder / "trust.json"))
                question = session.ask(os.urandom(32)).to_dict()
                answer = httpx2.post(f"{url}/v1/challenges", json=question, trust_env=False).json()
                session.challenged(ChallengeResponse.from_dict(answer))
            finally:
                process.terminate()
        assert session.state is State.CHALLENGED


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda members: members["broker"].update(id="00" * 32), "another broker"),
        (lambda members: members.update(roots={"intel": True}), "other roots"),
        (lambda members: members["administrators"].update(keys=[]), "administrators"),
        (lambda members: members.pop("roots"), "cannot be read"),
    ],
    ids=["broker", "roots", "administrators", "malformed"],
)
def test_a_trust_file_that_contradicts_the_broker_stops_its_start(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], word: str
) -> None:
    machine = Machine.create(seed="contradiction")
    root = tmp_path / "root.pem"
    root.write_bytes(machine.root_pem)
    made = initialise(
        tmp_path / "broker",
        public_url=URL,
        host="127.0.0.1",
        port=8443,
        tenant="dev",
        kind="dev",
        profile="development",
        pcs_url="http://127.0.0.1:1",
        roots_file=root,
        at=machine.clock.now(),
    )
    members = json.loads(made.trust_file.read_text())
    change(members)
    made.trust_file.write_text(json.dumps(members))
    settings = load(made.folder / "broker.toml", {"CLOISTER_BROKER_SERVER_TRUST_DOMAIN": "simulated"})
    assert settings.trust_domain == "simulated"
    with pytest.raises(BrokerError) as refused:
        asyncio.run(build(settings, collateral=machine.as_source(), domain=machine.launch("broker")))
    assert refused.value.code is BrokerCode.CONFIG_INVALID
    assert word in refused.value.detail


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"trust_domain": "cloud"}, "server.trust_domain"),
        ({"trust_domain": "tdx"}, "trust.file"),
        ({"spiffe_trust_domain": "Upper.Case"}, "identity.trust_domain"),
    ],
    ids=str,
)
def test_settings_about_domains_are_checked(change: dict[str, Any], word: str) -> None:
    with pytest.raises(BrokerError) as refused:
        Settings(public_url=URL, bundles=(ROOT,), **change)
    assert word in refused.value.detail


@pytest.mark.parametrize(
    ("arguments", "word"),
    [(("cloud",), "one of"), (("simulated",), "--machine"), (("tdx",), "tdx")],
    ids=["unknown", "no machine", "no hardware"],
)
def test_a_trust_domain_that_is_not_there_is_named(arguments: tuple[str, ...], word: str) -> None:
    with pytest.raises(BrokerError) as refused:
        open_domain(*arguments)
    assert refused.value.code is BrokerCode.CONFIG_INVALID
    assert word in refused.value.detail
