"""Peers and relying services: what they are told about somebody else's evidence."""

from typing import Any

import pytest

from attestation.errors import Code
from attestation.verdict import open_token
from broker.errors import BrokerCode
from broker.wire.bodies import VerificationRequest, peer_audience
from tests.admission_world import world as world
from tests.broker_world import World, outcome

# ── peers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_a_peer_token_judges_and_does_not_open(world: World) -> None:
    agent = await world.admitted()
    at = world.broker.clock()
    session = await world.broker.sessions.peer(agent.subject, at)
    token = world.broker.sessions.peer_token(session, at)
    keys = world.broker.identity._token_keys(at)
    url = "http://broker.test"
    verdict = open_token(token, keys=keys, issuer=url, audience=peer_audience(url), at=at)
    assert verdict.subject == agent.subject
    assert await outcome(world.broker.sessions.of_token(token, at)) == Code.TOKEN_AUDIENCE
    assert world.broker.sessions.peer_token(session, at) == token


@pytest.mark.asyncio
async def test_a_peer_that_is_gone_is_expired_and_one_that_never_was_unknown(world: World) -> None:
    agent = await world.admitted()
    world.machine.clock.advance(301)
    at = world.broker.clock()
    assert await outcome(world.broker.sessions.peer(agent.subject, at)) == BrokerCode.AGENT_EXPIRED
    assert await outcome(world.broker.sessions.peer("agent/acme/nobody", at)) == BrokerCode.AGENT_UNKNOWN


# ── relying services ───────────────────────────────────────────────────────────────────────────────────────────────


async def ask(world: World, **changes: Any) -> Any:
    quote = world.machine.launch("asked").quote(b"\1" * 64)
    return await world.broker.verification.verify(VerificationRequest(**({"quote": quote} | changes)))


@pytest.mark.asyncio
async def test_a_relying_service_gets_a_verdict_every_check_and_a_signed_result(world: World) -> None:
    found = await ask(world, report_data=b"\1" * 64, audience="https://ledger.example", nonce="n" * 16)
    assert (found.ok, found.code) == (True, "ok")
    assert found.verdict["tcb_status"] == "UpToDate"
    assert all(check["ok"] for check in found.checks)
    assert found.result.count(".") == 2


@pytest.mark.asyncio
async def test_t24_a_result_is_no_admission(world: World) -> None:
    found = await ask(world, report_data=b"\1" * 64)
    at = world.broker.clock()
    assert (await outcome(world.broker.sessions.of_token(found.result, at))).startswith("token.")


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "changes",
    [{}, {"report_data": b"\1" * 64, "accept": ("UpToDate",)}, {"report_data": b"\1" * 64, "allow": ("migratable",)}],
    ids=str,
)
async def test_nothing_is_affirmed_without_comparing_or_by_the_callers_own_policy(
    world: World, changes: dict[str, Any]
) -> None:
    found = await ask(world, **changes)
    assert found.ok
    assert not found.affirming


@pytest.mark.asyncio
async def test_a_refused_quote_is_an_answer_with_every_check(world: World) -> None:
    found = await ask(world, report_data=b"\2" * 64)
    assert (found.ok, found.code, found.affirming) == (False, Code.BINDING_REPORT_DATA, False)
    assert [check["code"] for check in found.checks if not check["ok"]] == [Code.BINDING_REPORT_DATA]
    assert found.result


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"quote": b""}, Code.QUOTE_EMPTY),
        ({"accept": ("Perfect",)}, BrokerCode.VERIFICATION_POLICY),
        ({"allow": ("everything",)}, BrokerCode.VERIFICATION_POLICY),
        ({"report_data": bytes(64)}, BrokerCode.VERIFICATION_POLICY),
        ({"nonce": "short"}, BrokerCode.VERIFICATION_POLICY),
        ({"event_log": b"?"}, Code.EVENTLOG_MALFORMED),
    ],
    ids=str,
)
async def test_a_wrong_question_has_its_own_code(world: World, changes: dict[str, Any], code: str) -> None:
    async def asked() -> None:
        await ask(world, **changes)

    assert await outcome(asked()) == code
