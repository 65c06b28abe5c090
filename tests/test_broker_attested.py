"""A broker in a trust domain: agents judge its quote before they send anything. Threats T3, T12 and T38."""

import asyncio
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from attestation.errors import AttestationError
from broker.attested import Attestor
from broker.wire.attested import MAX_AGE_S, RENEW_S, judge
from broker.wire.challenge import BrokerKeys, ChallengeRequest, ChallengeResponse
from broker.wire.errors import WireCode, WireError
from broker.wire.evidence import BrokerEvidence
from enclave.errors import Code
from enclave.session import Session, State
from enclave.trustfile import TrustFile, render
from simulator.domain import SimulatedTd
from tests.attested_world import KEYS, Attested, challenged, session_of
from tests.attested_world import attested as attested
from tests.broker_world import World


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
