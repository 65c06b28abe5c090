"""A broker's own evidence: made again in time, and no challenge answered without it."""

import asyncio
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from attestation.collateral import Collateral
from attestation.errors import Code as AttestationCode
from attestation.errors import CollateralUnavailable
from attestation.quote import Quote
from broker.errors import BrokerCode
from broker.rpc.members import fill, members_of, parse
from broker.wire import api_pb2 as pb
from broker.wire.attested import MAX_AGE_S, RENEW_S
from broker.wire.challenge import ChallengeRequest, ChallengeResponse
from broker.wire.errors import WireCode, WireError
from broker.wire.evidence import BrokerEvidence
from enclave.session import State
from simulator.domain import SimulatedTd
from simulator.machine import Machine
from tests.attested_world import Attested, challenged, reference_of, session_of
from tests.attested_world import attested as attested
from tests.broker_world import World, outcome

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
