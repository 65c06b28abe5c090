"""A hostile caller at every door: what strangers can fill, replay and outlast, and what a role cannot do alone."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attestation.errors import Code
from broker.app import create_app, listen, serve
from broker.calls import Shown, administrator, agent_token
from broker.domains import trust_file_digest
from broker.errors import BrokerCode, BrokerError
from broker.limits import Rates, Room
from broker.rest import http_api
from broker.svids import MAX_LIVING
from broker.wire import dpop
from broker.wire.bodies import AttestationRequest, VerificationRequest
from broker.wire.jose import b64u
from broker.wire.relying import VerificationBatch
from broker.wire.revocations import RevocationsRequest
from broker.wire.svid import request_for
from policies.bundle import load_bundle
from policies.errors import BundleError
from policies.signing import Signers, key_id, render, sign
from tests.broker_world import URL, Agent, World, outcome, write_bundle


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = await World.make(tmp_path)
    yield made
    await made.broker.close()


# ── what strangers can fill ────────────────────────────────────────────────────────────────────────────────────────


def borrowed(agent: Agent, *, forged: bool) -> AttestationRequest:
    """Evidence made of a quote that anybody can have: of another domain, or with its body changed to fit."""
    client_nonce, answer = agent.challenge()
    binding = agent.binding(answer.nonce)
    if forged:
        quote = bytearray(agent.td.quote(binding.report_data))
        quote[48 + 136] ^= 1  # MRTD: no platform has signed this
    else:
        quote = bytearray(agent.world.agent("public").td.quote(b"published long ago".ljust(64, b".")))
    evidence = agent.evidence(binding, client_nonce, quote=bytes(quote))
    return AttestationRequest(evidence=evidence.to_dict(), client_nonce=client_nonce)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("forged", "code"), [(True, Code.QUOTE_SIGNATURE), (False, Code.BINDING_REPORT_DATA)], ids=["forged", "replayed"]
)
async def test_t32_a_certificate_chain_that_anybody_can_copy_fills_neither_log_nor_archive(
    world: World, forged: bool, code: Code
) -> None:
    agent = world.agent()
    before = world.kinds()
    request = borrowed(agent, forged=forged)
    assert await outcome(agent.attest(request)) == code
    assert world.kinds() == before


@pytest.mark.asyncio
async def test_t32_a_forged_quote_that_a_relying_service_brings_earns_no_entry(world: World) -> None:
    quote = bytearray(world.machine.launch("td").quote(b"q" * 64))
    quote[48 + 136] ^= 1
    before = world.kinds()
    answer = await world.broker.verification.verify(VerificationRequest(quote=bytes(quote)))
    assert (answer.ok, answer.code) == (False, Code.QUOTE_SIGNATURE)
    assert world.kinds() == before


def scope_of(path: str, address: str) -> dict[str, Any]:
    """A POST from there, as ASGI has it."""
    return {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"cookie", b"kbs-session-id=" + b"0" * 32)],
        "client": (address, 1),
        "server": ("broker.test", 80),
        "scheme": "http",
        "http_version": "1.1",
    }


def shown(**headers: str) -> Shown:
    named = {name.replace("_", "-"): [value] for name, value in headers.items()}
    return Shown(method="GET", path="/v1/labels", body=b"", header=lambda name: named.get(name, ()))


@pytest.mark.asyncio
async def test_t33_proofs_by_keys_that_nobody_knows_are_not_remembered(world: World) -> None:
    stranger, agent = world.agent(), await world.admitted()
    broker = world.broker
    for _ in range(5):
        nonce, at_s = broker.gate.nonce(broker.clock()), int(broker.clock().timestamp())
        how: dict[str, Any] = {"method": "GET", "url": f"{URL}/v1/labels", "body": b"", "nonce": nonce, "at_s": at_s}
        with pytest.raises(BrokerError) as caught:
            administrator(broker, shown(cloister_admin=dpop.build(stranger.key, **how)))
        assert caught.value.code is BrokerCode.ADMIN_KEY_UNKNOWN
        proof = dpop.build(stranger.key, **how, token=agent.token)
        with pytest.raises(BrokerError) as caught:
            agent_token(broker, shown(authorization=f"DPoP {agent.token}", dpop=proof))
        assert caught.value.code is BrokerCode.DPOP_KEY
    assert broker.gate.remembered == 0
    good = shown(authorization=f"DPoP {agent.token}", dpop=dpop.build(agent.key, **how, token=agent.token))
    agent_token(broker, good)
    assert broker.gate.remembered == 1
    with pytest.raises(BrokerError) as caught:
        agent_token(broker, good)
    assert caught.value.code is BrokerCode.DPOP_REPLAYED


@pytest.mark.asyncio
@pytest.mark.parametrize("path", ["/kbs/v0/auth", "/kbs/v0/attest", "/v1/attestations"])
async def test_t32_a_body_that_trickles_in_is_not_waited_for(
    world: World, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_api, "DEADLINE_S", 0)
    app, sent = create_app(world.broker, background=False), []

    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Any) -> None:
        sent.append(message)

    async with asyncio.timeout(10):
        await app(scope_of(path, "192.0.2.1"), receive, send)
    assert sent[0]["status"] == 503


@pytest.mark.asyncio
async def test_t32_each_quote_of_a_batch_counts(tmp_path: Path) -> None:
    world = await World.make(tmp_path, rates=Rates(source_per_s=1, source_burst=4))
    quote = world.machine.launch("td").quote(b"q" * 64)
    three = VerificationBatch(verifications=(VerificationRequest(quote=quote),) * 3).to_dict()
    transport = httpx2.ASGITransport(app=create_app(world.broker, background=False))
    async with httpx2.AsyncClient(transport=transport, base_url=URL) as http:
        answers = [await http.post("/v1/verifications:batch", json=three) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 429]
    await world.broker.close()


@pytest.mark.asyncio
async def test_t32_no_header_says_where_a_request_comes_from(tmp_path: Path) -> None:
    world = await World.make(tmp_path, rates=Rates(source_per_s=1, source_burst=2))
    ready, stop = asyncio.Event(), asyncio.Event()
    with listen("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
        serving = asyncio.create_task(serve(world.broker, sock=sock, ready=ready.set, stop=stop))
        await ready.wait()
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
            told = [
                (await http.get("/v1/svids/bundle", headers={"x-forwarded-for": f"192.0.2.{n}"})).status_code
                for n in range(4)
            ]
        stop.set()
        await serving
    assert told[:2] == [200, 200]
    assert 429 in told


@pytest.mark.asyncio
async def test_one_agent_cannot_fill_the_revocation_list_of_everybody(world: World) -> None:
    agent, other = await world.admitted("rogue"), await world.admitted("other")

    async def ask(by: Agent) -> str:
        wanted = request_for(ec.generate_private_key(ec.SECP256R1()))
        return await outcome(by.acting(lambda session: world.broker.svids.issue(session, wanted)))

    told = [await ask(agent) for _ in range(MAX_LIVING + 1)]
    assert told == ["ok"] * MAX_LIVING + [BrokerCode.SVID_TOO_MANY]
    assert await ask(other) == "ok"
    world.machine.clock.advance(world.settings.token_ttl_s + 1)
    await agent.attest()
    assert await ask(agent) == "ok", "what has ended counts no more"


@pytest.mark.asyncio
async def test_t32_a_look_at_the_metrics_costs_no_row_of_any_agent(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has to prove anything for it, and no limit holds for probes."""
    await world.admitted()
    monkeypatch.setattr(type(world.broker.administration), "agents", None)
    assert b'cloister_agents{of="admitted"} 1.0' in world.broker.metrics.render()


@pytest.mark.asyncio
async def test_t32_large_bodies_of_one_address_take_bounded_memory_and_nobody_elses_room(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world.broker.limits, "room", Room(most=8 << 20, each=3 << 20))
    app, chunk, begun = create_app(world.broker, background=False), b" " * (1 << 20), asyncio.Event()

    async def post(address: str, *, parts: int, ends: bool) -> int:
        left, sent = [chunk] * parts, []

        async def receive() -> dict[str, Any]:
            if left:
                return {"type": "http.request", "body": left.pop(), "more_body": bool(left) or not ends}
            begun.set()
            await asyncio.Event().wait()
            raise AssertionError

        async def send(message: Any) -> None:
            sent.append(message)

        await app(scope_of("/v1/attestations", address), receive, send)
        return int(sent[0]["status"])

    slow = asyncio.create_task(post("192.0.2.1", parts=3, ends=False))
    await begun.wait()
    assert world.broker.limits.room.held == 3 << 20
    assert await post("192.0.2.1", parts=2, ends=True) == 503
    assert await post("192.0.2.2", parts=2, ends=True) == 400, "read, and not JSON"
    slow.cancel()
    await asyncio.gather(slow, return_exceptions=True)
    assert world.broker.limits.room.held == 0


# ── other tenants ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_an_agent_learns_nothing_of_another_tenants_agents_and_mailboxes(tmp_path: Path) -> None:
    other = write_bundle(tmp_path / "other", ('tenant = "acme"', 'tenant = "other"'), ("acme", "other"))
    world = await World.make(tmp_path, bundles=(write_bundle(tmp_path / "acme"), other))
    victim, fallen, spy = await world.admitted("victim"), await world.admitted("fallen"), world.agent("spy")
    await victim.open("acme/mail/b")
    await world.broker.administration.revoke(world.settings.admins[0], fallen.subject, "lost")
    await spy.attest(spy.request(tenant="other"))
    transport = httpx2.ASGITransport(app=create_app(world.broker, background=False))
    async with httpx2.AsyncClient(transport=transport, base_url=URL) as http:

        async def ask(by: Agent, method: str, path: str, body: bytes = b"") -> httpx2.Response:
            headers = by.headers(method, path, body, nonce=world.broker.gate.nonce(world.broker.clock()))
            return await http.request(method, path, content=body, headers=headers)

        for path, code in (
            ("/v1/mailboxes/acme/mail/b", BrokerCode.MAILBOX_UNKNOWN),
            (f"/v1/agents/{victim.subject}", BrokerCode.AGENT_UNKNOWN),
            (f"/v1/agents/{victim.subject}:collateral", BrokerCode.AGENT_UNKNOWN),
            ("/v1/agents/nobody", BrokerCode.AGENT_UNKNOWN),
        ):
            assert (await ask(spy, "GET", path)).json()["code"] == code
        nonce = json.dumps({"nonce": b64u(b"n" * 32)}).encode()
        assert (await ask(spy, "POST", "/v1/revocations", nonce)).json()["fallen"] == []
        assert (await ask(victim, "POST", "/v1/revocations", nonce)).json()["fallen"] == [fallen.subject]
        assert (await ask(victim, "GET", f"/v1/agents/{victim.subject}")).status_code == 200
    await world.broker.close()


@pytest.mark.asyncio
async def test_a_list_of_the_fallen_that_is_not_whole_is_not_given_out(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.standing.MAX_FALLEN", 1)
    ask = RevocationsRequest(nonce=b"n" * 32)
    for expected in (True, False):
        agent = await world.admitted()
        await world.broker.administration.revoke(world.settings.admins[0], agent.subject, "lost")
        if expected:
            assert world.broker.standing.answer(ask).fallen == (agent.subject,)
    with pytest.raises(BrokerError) as caught:
        world.broker.standing.answer(ask)
    assert caught.value.code is BrokerCode.BROKER_BUSY


# ── policies ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_t25_a_policy_without_enough_signatures_neither_starts_nor_comes_into_force(tmp_path: Path) -> None:
    keys = [Ed25519PrivateKey.generate() for _ in range(2)]
    signers = tuple(tmp_path / f"{number}.pub" for number in range(2))
    for path, key in zip(signers, keys, strict=True):
        path.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    folder = write_bundle(tmp_path / "signed")

    def signed(*by: Ed25519PrivateKey) -> None:
        digest = bytes.fromhex(load_bundle(folder).digest)
        (folder / "signatures.toml").write_text(render((key_id(key.public_key()), sign(key, digest)) for key in by))

    how: dict[str, Any] = {"bundles": (folder,), "signers": signers, "signers_needed": 2}
    signed(keys[0])
    with pytest.raises(BundleError) as caught:
        await World.make(tmp_path, **how)
    assert caught.value.code == "bundle.unsigned"
    signed(*keys)
    world = await World.make(tmp_path, **how)
    write_bundle(folder, ("max_age_s = 600", "max_age_s = 601"), version=2)
    reload = world.broker.administration.reload_policies
    for by in ((), (keys[0],), (keys[0], Ed25519PrivateKey.generate())):
        signed(*by)
        with pytest.raises(BrokerError) as unsigned:
            await reload(world.settings.admins[0])
        assert unsigned.value.codes == ("bundle.unsigned",)
    signed(*keys)
    await reload(world.settings.admins[0])
    await world.broker.close()
    with pytest.raises(BrokerError) as refused:
        await World.make(tmp_path, **how | {"signers": (folder / "bundle.toml", *signers)})
    assert refused.value.code is BrokerCode.CONFIG_INVALID


@pytest.mark.asyncio
async def test_t25_an_attested_broker_demands_the_signers_that_its_trust_file_names(
    world: World, tmp_path: Path
) -> None:
    keys = [Ed25519PrivateKey.generate().public_key() for _ in range(2)]
    told = [key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo).hex() for key in keys]
    roots = {"pem": [world.machine.root_pem.decode()]}
    path, identity = tmp_path / "trust.json", world.broker.identity
    broker = {"id": identity.broker_id.hex()}
    file = {"version": 1, "tenant": "acme", "broker": broker, "roots": roots, "policies": {"signers": told[:1]}}
    path.write_text(json.dumps(file))
    for signers in (None, Signers((keys[1],)), Signers(tuple(keys))):
        with pytest.raises(BrokerError, match="policy signers") as caught:
            trust_file_digest(path, identity, world.machine.roots.sha256, (), signers)
        assert caught.value.code is BrokerCode.CONFIG_INVALID
    assert trust_file_digest(path, identity, world.machine.roots.sha256, (), Signers((keys[0],)))
