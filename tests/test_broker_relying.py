"""What relying services get: tokens they can check with what any library knows, answers about tokens, verifications by
the batch and by a tenant's policy, and keys that change under them without a restart.
"""

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import jwt
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric import ec

from attestation.errors import Code
from attestation.verdict import open_result
from broker.audit import Kind
from broker.errors import BrokerCode
from broker.keyring import KEEP_AFTER_S, PUBLISH_BEFORE_S
from broker.pool import Pool
from broker.ports import DAY_S
from broker.rootkey.root import RootKey
from broker.wire.bodies import VerificationRequest
from broker.wire.relying import (
    IntrospectionRequest,
    IntrospectionResponse,
    TokenKind,
    TokenRequest,
    TokenResponse,
    VerificationResults,
)
from simulator.broker_fixture import BrokerUnderTest
from simulator.machine import Machine
from tests.broker_world import FILES, URL, Agent, World, outcome, write_bundle

LEDGER = "https://ledger.example"
PERMIT = """
@id("tokens")
permit (principal, action == Action::"IssueToken", resource == Tenant::"acme")
when { context.audience == "https://ledger.example" };
"""
ADMITS = FILES["policy.cedar"].split("\n\n")[0]


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    bundle = write_bundle(tmp_path / "tokens", (ADMITS, ADMITS + PERMIT))
    made = await World.make(tmp_path, bundles=(bundle,))
    yield made
    await made.broker.close()


async def issue(agent: Agent, audience: str = LEDGER, kind: TokenKind = TokenKind.EAR) -> TokenResponse:
    request = TokenRequest(audience=audience, kind=kind)
    found: TokenResponse = await agent.acting(lambda s: agent.world.broker.tokens.issue(s, request))
    return found


def published(world: World) -> jwt.PyJWKSet:
    return jwt.PyJWKSet.from_dict(world.broker.identity.jwks(world.broker.clock()))


def decoded(world: World, token: str, audience: str = LEDGER) -> dict[str, Any]:
    key = published(world)[jwt.get_unverified_header(token)["kid"]]
    claims: dict[str, Any] = jwt.decode(token, key, algorithms=["ES256"], audience=audience, issuer=URL)
    return claims


# ── tokens for others ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_a_token_for_another_service_is_bound_to_the_agents_key_and_stands_in_the_log(world: World) -> None:
    agent = await world.admitted()
    issued = await issue(agent)
    claims = decoded(world, issued.token)
    assert (claims["sub"], claims["aud"], claims["cnf"]) == (agent.subject, LEDGER, {"jkt": agent.jkt})
    assert claims["exp"] - claims["iat"] <= 300
    issued.receipt.verify(world.broker.identity.log_key)
    entry = json.loads(issued.receipt.entry)
    assert (entry["kind"], entry["resource"], entry["token_id"]) == (Kind.TOKEN_ISSUED, LEDGER, claims["jti"])


@pytest.mark.asyncio
async def test_t10_a_token_for_another_service_opens_no_door_here(world: World) -> None:
    agent = await world.admitted()
    for kind in TokenKind:
        issued = await issue(agent, kind=kind)
        told = await outcome(world.broker.sessions.of_token(issued.token, world.broker.clock()))
        assert told.startswith("token."), kind


@pytest.mark.asyncio
async def test_a_token_without_a_permit_is_refused_and_the_log_says_so(world: World) -> None:
    agent = await world.admitted()
    told = await outcome(issue(agent, "https://other.example"))
    assert told.startswith("refused: policy.")
    assert world.kinds()[-1] == Kind.TOKEN_REFUSED


@pytest.mark.asyncio
@pytest.mark.parametrize("audience", [URL, f"{URL}/", f"{URL}/peers", f"{URL}/results", f"{URL}/kbs"])
async def test_nobody_is_given_a_second_token_for_the_brokers_own_doors(world: World, audience: str) -> None:
    agent = await world.admitted()
    assert await outcome(issue(agent, audience)) == BrokerCode.AUDIENCE_RESERVED


@pytest.mark.asyncio
async def test_a_jwt_svid_names_the_agent_as_its_certificate_does(world: World) -> None:
    agent = await world.admitted()
    issued = await issue(agent, kind=TokenKind.SVID)
    claims = decoded(world, issued.token)
    assert claims["sub"] == f"spiffe://{world.broker.svids.trust_domain}/{agent.subject}"
    assert claims["aud"] == [LEDGER]
    assert jwt.get_unverified_header(issued.token)["typ"] == "JWT"


# ── introspection ──────────────────────────────────────────────────────────────────────────────────────────────────


async def ask(world: World, token: str, audience: str = LEDGER) -> IntrospectionResponse:
    return await world.broker.tokens.introspect(IntrospectionRequest(token=token, audience=audience))


@pytest.mark.asyncio
async def test_a_token_counts_until_its_agent_is_revoked_whatever_its_signature_says(world: World) -> None:
    agent = await world.admitted()
    token = (await issue(agent)).token
    told = await ask(world, token)
    assert (told.active, told.code, told.subject, told.jkt) == (True, "ok", agent.subject, agent.jkt)
    await world.broker.administration.revoke(world.settings.admins[0], agent.subject, "test")
    assert decoded(world, token)["sub"] == agent.subject
    told = await ask(world, token)
    assert (told.active, told.code, told.subject) == (False, BrokerCode.AGENT_REVOKED, "")


@pytest.mark.asyncio
async def test_a_token_of_a_quarantined_agent_counts_no_more(world: World, tmp_path: Path) -> None:
    agent = await world.admitted()
    token = (await issue(agent)).token
    stricter = (ADMITS, ADMITS.replace("principal.simulated", "!principal.simulated"))
    write_bundle(world.settings.bundles[0], stricter, version=2)
    await world.broker.administration.reload_policies(world.settings.admins[0])
    assert (await ask(world, token)).code == BrokerCode.AGENT_QUARANTINED


@pytest.mark.asyncio
async def test_a_token_for_somebody_else_or_of_another_time_or_maker_is_not_active(world: World) -> None:
    agent = await world.admitted()
    token = (await issue(agent)).token
    assert (await ask(world, token, "https://other.example")).code == Code.TOKEN_AUDIENCE
    assert (await ask(world, token[:-8] + "AAAAAAAA")).code == Code.TOKEN_SIGNATURE
    assert (await ask(world, "no token")).code == Code.TOKEN_MALFORMED
    world.machine.clock.advance(301)
    assert (await ask(world, token)).code == Code.TOKEN_EXPIRED


# ── verifications ──────────────────────────────────────────────────────────────────────────────────────────────────


def question(world: World, **changes: Any) -> VerificationRequest:
    quote = world.machine.launch("asked").quote(b"\1" * 64)
    return VerificationRequest(**({"quote": quote, "report_data": b"\1" * 64} | changes))


@pytest.mark.asyncio
async def test_the_brokers_policy_for_a_tenant_can_appraise_a_quote(world: World) -> None:
    verification = world.broker.verification
    found = await verification.verify(question(world, policy="acme"))
    assert (found.ok, found.affirming) == (True, True)
    digest = world.broker.administration.overview()["policies"]["acme"]
    assert digest in json.dumps(jwt.decode(found.result or "", options={"verify_signature": False}))
    write_bundle(world.settings.bundles[0], ('mr_td = "any"', f'mr_td = "{"ab" * 48}"'), version=2)
    await world.broker.administration.reload_policies(world.settings.admins[0])
    found = await verification.verify(question(world, policy="acme", audience=LEDGER))
    assert (found.ok, found.code, found.affirming, found.verdict) == (False, BrokerCode.POLICY_REFUSED, False, None)
    objections = [check for check in found.checks if not check["ok"]]
    assert {check["name"] for check in objections} == {"policy"}
    assert "abab" not in json.dumps(found.to_dict()["checks"])
    identity = world.broker.identity
    keys = {item["kid"]: jwt.PyJWK(item).key for item in identity.jwks(world.broker.clock(), results=True)["keys"]}
    claims = open_result(
        found.result or "", keys=keys, issuer=identity.results_issuer, audience=LEDGER, at=world.broker.clock()
    )
    assert claims["ear_status"] == "contraindicated"


@pytest.mark.asyncio
async def test_a_policy_of_the_brokers_cannot_be_loosened_by_whoever_asks(world: World) -> None:
    wider = question(world, policy="acme", accept=("OutOfDate",))
    assert await outcome(world.broker.verification.verify(wider)) == BrokerCode.VERIFICATION_POLICY
    unknown = question(world, policy="nobody")
    assert await outcome(world.broker.verification.verify(unknown)) == BrokerCode.ATTESTATION_TENANT


@pytest.mark.asyncio
async def test_a_verification_stands_in_the_log_and_garbage_does_not(world: World) -> None:
    before = world.kinds()
    await world.broker.verification.verify(question(world, audience=LEDGER))
    await world.broker.verification.verify(question(world, report_data=b"\2" * 64))
    assert world.kinds()[len(before) :] == [Kind.VERIFICATION_DONE] * 2
    stranger = Machine.create(seed="a stranger").launch("x").quote(b"\1" * 64)
    for garbage in (stranger, stranger[:700], question(world).quote[:700]):
        await outcome(world.broker.verification.verify(question(world, quote=garbage)))
    assert len(world.kinds()) == len(before) + 2


@pytest.mark.asyncio
async def test_a_batch_is_answered_in_order_each_for_itself(world: World) -> None:
    requests = (question(world), question(world, quote=b"no quote"), question(world, report_data=b"\3" * 64))
    found = await world.broker.verification.verify_batch(requests)
    assert VerificationResults.from_dict(found.to_dict()) == found
    first, second, third = found.results
    assert first.response is not None
    assert first.response.ok
    assert second.problem is not None
    assert second.problem.code.startswith("quote.")
    assert third.response is not None
    assert third.response.code == Code.BINDING_REPORT_DATA


@pytest.mark.asyncio
async def test_evidence_beyond_what_may_wait_is_refused_at_once() -> None:
    pool, gate = Pool(threads=1, most=2), threading.Event()
    waiting = [asyncio.create_task(pool.run(gate.wait)) for _ in range(2)]
    await asyncio.sleep(0)
    assert await outcome(pool.run(gate.wait)) == BrokerCode.BROKER_BUSY
    gate.set()
    assert await asyncio.gather(*waiting) == [True, True]
    await asyncio.sleep(0)
    assert await pool.run(lambda: "again") == "again"
    pool.close()


# ── keys ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_keys_change_without_a_restart_and_no_token_is_refused_for_it(world: World) -> None:
    agent = await world.admitted()
    old = jwt.get_unverified_header(agent.token)["kid"]
    fresh = await world.broker.rotation.rotate(world.settings.admins[0])
    assert world.kinds()[-1] == Kind.KEYS_ROTATED
    assert await world.broker.rotation.rotate(world.settings.admins[0]) == fresh, "one successor at a time"
    assert {old, fresh[0]} <= {key.key_id for key in published(world).keys}
    assert await outcome(world.broker.sessions.of_token(agent.token, world.broker.clock())) == "ok"
    world.machine.clock.advance(PUBLISH_BEFORE_S - 60)
    await agent.attest()
    last_of_old = agent.token
    assert jwt.get_unverified_header(last_of_old)["kid"] == old
    world.machine.clock.advance(61)
    await agent.attest()
    assert jwt.get_unverified_header(agent.token)["kid"] == fresh[0]
    assert await outcome(world.broker.sessions.of_token(last_of_old, world.broker.clock())) == "ok"
    world.machine.clock.advance(KEEP_AFTER_S)
    assert old not in {key.key_id for key in published(world).keys}


@pytest.mark.asyncio
async def test_keys_get_successors_at_the_age_that_the_settings_name(world: World) -> None:
    assert not await world.broker.rotation.rotate_if_due()
    world.machine.clock.advance(world.settings.rotate_days * DAY_S)
    assert await world.broker.rotation.rotate_if_due()
    assert not await world.broker.rotation.rotate_if_due()


# ── a stock library, over HTTP ─────────────────────────────────────────────────────────────────────────────────────


def test_a_stock_library_verifies_a_token_from_the_issuers_address_alone(
    broker: BrokerUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    key = ec.generate_private_key(ec.SECP256R1())
    world = World(broker.machine, broker.broker.settings, RootKey.generate(), broker.broker, key)
    agent = world.agent()
    broker.run(agent.attest(agent.request(tenant=broker.tenant)))
    with urlopen(f"{broker.url}/.well-known/openid-configuration", timeout=10) as answer:
        discovered = json.load(answer)
    assert discovered["issuer"] == broker.url
    signer = jwt.PyJWKClient(discovered["jwks_uri"]).get_signing_key_from_jwt(agent.token)
    algorithms = discovered["id_token_signing_alg_values_supported"]
    claims = jwt.decode(
        agent.token,
        signer,
        algorithms=algorithms,
        audience=broker.url,
        issuer=discovered["issuer"],
        options={"require": ["exp", "iat", "iss", "aud", "sub"]},
    )
    assert claims["sub"] == f"agent/{broker.tenant}/{agent.jkt}"
