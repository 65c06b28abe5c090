"""What may be asked how often, and what garbage costs those who are honest: nothing that they would notice."""

import asyncio
import secrets
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from attestation.encoding import from_b64url
from broker import calls
from broker.errors import BrokerCode, BrokerError
from broker.limits import Buckets, Limits, Rates, source_of
from broker.wire.bodies import VerificationRequest
from broker.wire.challenge import ChallengeRequest
from broker.wire.errors import WireCode
from broker.wire.jose import b64u
from simulator.machine import Machine
from tests.broker_world import World, outcome
from tests.grpc_client import dialled
from tests.test_broker_http import RELEASE, VALUE, Client, ask, serving, told

STRICT = Rates(source_per_s=1, source_burst=5, tenant_per_s=1, tenant_burst=8)


@pytest_asyncio.fixture
async def door(tmp_path: Path) -> AsyncIterator[Client]:
    world = await World.make(tmp_path, rates=STRICT)
    await world.put("acme/open/a", VALUE)
    async with serving(world) as made:
        yield made
    await world.broker.close()


# ── buckets ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_bucket_passes_its_burst_and_then_its_rate() -> None:
    buckets = Buckets(2, 3)
    assert [buckets.take("a", 0.0) for _ in range(3)] == [0.0, 0.0, 0.0]
    assert buckets.take("a", 0.0) == 0.5
    assert buckets.take("b", 0.0) == 0.0
    assert buckets.take("a", 0.5) == 0.0
    assert buckets.take("a", 0.5) == 0.5


def test_what_was_given_back_counts_as_never_taken_and_no_more() -> None:
    buckets = Buckets(1, 2)
    buckets.take("a", 0.0)
    buckets.give_back("a", 0.0, number=5)
    assert len(buckets) == 0
    assert [bool(buckets.take("a", 0.0)) for _ in range(3)] == [False, False, True]


def test_buckets_of_many_addresses_take_bounded_memory() -> None:
    buckets = Buckets(1, 10, most=100)
    for number in range(10_000):
        buckets.take(str(number), 0.0)
    assert len(buckets) == 100


def test_no_rate_is_no_limit() -> None:
    buckets = Buckets(0, 1)
    assert not any(buckets.take("a", 0.0) for _ in range(100))
    assert len(buckets) == 0


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        (None, "", True),
    ],
)
def test_an_address_is_one_source_however_it_is_written(one: str | None, other: str, same: bool) -> None:
    assert (source_of(one) == source_of(other)) is same


# ── over HTTP and gRPC ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_t32_an_address_that_sends_garbage_runs_dry_before_its_bodies_are_read(door: Client) -> None:
    answers = [await door.call("POST", "/v1/attestations", b"garbage") for _ in range(7)]
    assert [told(answer)[1] for answer in answers[:5]] == [WireCode.BODY_NOT_JSON] * 5
    assert told(answers[6]) == (429, BrokerCode.LIMIT_SOURCE)
    assert int(answers[6].headers["retry-after"]) >= 1
    assert (await door.call("GET", "/healthz")).status_code == 200
    assert (await door.call("GET", "/metrics")).status_code == 200


@pytest.mark.asyncio
async def test_t32_a_crowd_of_honest_agents_behind_one_address_is_not_held_up(door: Client) -> None:
    for _ in range(20):
        agent, client_nonce = door.world.agent(), secrets.token_bytes(32)
        first = await door.call("POST", "/v1/challenges", ChallengeRequest(client_nonce=client_nonce).to_dict())
        assert first.status_code == 200
        evidence = agent.evidence(agent.binding(from_b64url(first.json()["nonce"])), client_nonce)
        body = {"evidence": evidence.to_dict(), "client_nonce": b64u(client_nonce)}
        assert (await door.call("POST", "/v1/attestations", body)).status_code == 200


@pytest.mark.asyncio
async def test_the_agents_of_a_tenant_share_what_the_tenant_may_ask(door: Client) -> None:
    a, b = await door.world.admitted("a"), await door.world.admitted("b")
    answers = [await door.call("POST", RELEASE, ask(), by=(a, b)[number % 2]) for number in range(10)]
    assert [answer.status_code for answer in answers[:8]] == [200] * 8
    assert told(answers[9]) == (429, BrokerCode.LIMIT_TENANT)


@pytest.mark.asyncio
async def test_one_agent_does_not_use_up_what_its_tenant_may_ask(tmp_path: Path) -> None:
    world = await World.make(tmp_path, rates=Rates(agent_per_s=1, agent_burst=4, tenant_per_s=1, tenant_burst=20))
    await world.put("acme/open/a", VALUE)
    async with serving(world) as door:
        noisy, quiet = await world.admitted("noisy"), await world.admitted("quiet")
        answers = [await door.call("POST", RELEASE, ask(), by=noisy) for _ in range(8)]
        assert [answer.status_code for answer in answers[:4]] == [200] * 4
        assert told(answers[7]) == (429, BrokerCode.LIMIT_AGENT)
        assert int(answers[7].headers["retry-after"]) >= 1
        assert [(await door.call("POST", RELEASE, ask(), by=quiet)).status_code for _ in range(4)] == [200] * 4
    await world.broker.close()


@pytest.mark.asyncio
async def test_a_stolen_token_does_not_use_up_what_its_tenant_may_ask(door: Client) -> None:
    victim, thief = await door.world.admitted("victim"), await door.world.admitted("thief")
    own, thief.token = thief.token, victim.token
    refused = [await door.call("POST", RELEASE, ask(), by=thief) for _ in range(4)]
    assert told(refused[0]) == (401, BrokerCode.DPOP_KEY)
    thief.token = own
    limits = door.world.broker.limits
    limits.act("acme", 0.0)  # still a full bucket but for this one


@pytest.mark.asyncio
async def test_t32_the_limit_of_an_address_is_one_over_rest_and_grpc(door: Client) -> None:
    async with dialled(door.world) as grpc:
        for _ in range(5):
            assert (await grpc.call("Broker.Challenge", b"\xff")).told == (400, WireCode.BODY_NOT_PROTOBUF)
        refused = await grpc.call("Broker.Challenge", b"\xff")
        assert refused.told == (429, BrokerCode.LIMIT_SOURCE)
        assert refused.problem.retry_after_s >= 1
    with pytest.raises(BrokerError):
        door.world.broker.limits.enter("127.0.0.1", 0.0)


@pytest.mark.asyncio
async def test_t32_the_kbs_doors_have_the_same_limit(door: Client) -> None:
    answers = [await door.call("POST", "/kbs/v0/attest", b"garbage") for _ in range(7)]
    assert answers[0].status_code != 429
    assert answers[6].status_code == 429
    assert int(answers[6].headers["retry-after"]) >= 1


@pytest.mark.asyncio
async def test_a_handler_that_takes_too_long_is_cut_off_with_its_own_code(
    door: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, box = await door.world.admitted(), "/v1/mailboxes/acme/mail/b"
    await agent.open("acme/mail/b")
    monkeypatch.setattr(calls, "DEADLINE_S", 0)
    waiting = await door.call("POST", f"{box}:receive", {"wait_s": 20}, by=agent)
    assert told(waiting) == (503, BrokerCode.BROKER_DEADLINE)


# ── garbage that has to be verified ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_t32_what_cannot_be_known_waits_on_threads_and_known_platforms_pass_it(tmp_path: Path) -> None:
    """Every thread is busy with strangers and more of them wait; an agent of a known platform is admitted meanwhile."""
    world = await World.make(tmp_path)
    known = await world.admitted("known")
    pool = world.broker.pool
    gate = threading.Event()
    waiting = [asyncio.create_task(pool.run(gate.wait)) for _ in range(pool.threads + 10)]
    await asyncio.sleep(0)
    assert pool.inside == pool.threads + 10
    assert await outcome(known.attest()) == "ok"
    assert await outcome(world.agent("also known").attest()) == "ok"
    assert pool.inside == pool.threads + 10
    gate.set()
    await asyncio.gather(*waiting)
    await world.broker.close()


@pytest.mark.asyncio
async def test_t32_strangers_evidence_fills_neither_log_nor_memory(tmp_path: Path) -> None:
    world = await World.make(tmp_path)
    before = world.kinds()
    quote = Machine.create(seed="a stranger").launch("x").quote(b"\1" * 64)
    requests = [VerificationRequest(quote=quote, audience=str(number)) for number in range(40)]
    outcomes = await asyncio.gather(*(outcome(world.broker.verification.verify(one)) for one in requests))
    assert set(outcomes) <= {"ok", "chain.root_untrusted", "chain.untrusted_root", BrokerCode.BROKER_BUSY}
    assert world.kinds() == before
    await asyncio.sleep(0)
    assert world.broker.pool.inside == 0
    await world.broker.close()


def test_limits_of_a_broker_count_addresses_and_tenants_apart() -> None:
    limits = Limits(STRICT)
    told: list[Any] = []
    for _ in range(6):
        try:
            limits.enter("192.0.2.1", 0.0)
        except BrokerError as error:
            told.append(error.code)
    limits.act("192.0.2.1", 0.0)
    assert told == [BrokerCode.LIMIT_SOURCE]
