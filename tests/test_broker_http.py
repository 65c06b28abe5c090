"""The REST interface: who may come through which door, what refusals look like, and what nobody may do."""

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric import ec

from attestation.errors import MEANING as ATTESTATION_MEANING
from broker.app import create_app
from broker.calls import Door
from broker.errors import MEANING, BrokerCode, BrokerError
from broker.rest.routes import ENDPOINTS
from broker.status import STATUS, problem_of, status_of
from broker.wire.bodies import AttestationResponse, Problem, PutSecretRequest
from broker.wire.challenge import ChallengeRequest, ChallengeResponse
from broker.wire.envelope import batch_to_bytes
from broker.wire.errors import WireCode
from broker.wire.jose import b64u
from broker.wire.log import Checkpoint, Receipt, leaf_hash
from broker.wire.mailbox import MailboxInfo, ReceiveResponse, SendResponse
from broker.wire.release import ReleaseRequest, ReleaseResponse
from tests.broker_world import URL, Agent, World

RELEASE = "/v1/secrets/acme/open/a:release"
VALUE = b"the value that nobody reads back"


@dataclass
class Client:
    """The application under a client, with proofs added."""

    world: World
    http: httpx2.AsyncClient
    nonce: str | None = None

    async def call(
        self,
        method: str,
        path: str,
        body: Any = b"",
        *,
        by: Agent | str = "",
        headers: dict[str, str] | None = None,
        query: str = "",
    ) -> httpx2.Response:
        """A request; `by` an agent or "admin". A missing nonce is fetched the way clients do it."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        for _ in range(2):
            given = headers if headers is not None else self._proofs(method, path, raw, by)
            answer = await self.http.request(method, path + query, content=raw, headers=given)
            fresh = answer.headers.get("dpop-nonce")
            if answer.status_code != 401 or fresh is None or fresh == self.nonce or headers is not None:
                break
            self.nonce = fresh
        self.nonce = answer.headers.get("dpop-nonce", self.nonce)
        return answer

    def _proofs(self, method: str, path: str, body: bytes, by: Agent | str) -> dict[str, str]:
        if isinstance(by, Agent):
            return by.headers(method, path, body, nonce=self.nonce)
        return self.world.admin_headers(method, path, body, nonce=self.nonce) if by else {}


@asynccontextmanager
async def serving(world: World) -> AsyncIterator[Client]:
    app = create_app(world.broker, background=False)
    transport = httpx2.ASGITransport(app=app, raise_app_exceptions=True)
    async with httpx2.AsyncClient(transport=transport, base_url=URL) as http:
        yield Client(world=world, http=http)


@pytest_asyncio.fixture
async def door(tmp_path: Path) -> AsyncIterator[Client]:
    world = await World.make(tmp_path)
    await world.put("acme/open/a", VALUE)
    await world.put("acme/open/top", VALUE, "top")
    async with serving(world) as made:
        yield made
    await world.broker.close()


def problem(answer: httpx2.Response) -> Problem:
    assert answer.headers["content-type"] == "application/problem+json"
    found = Problem.from_dict(answer.json())
    assert found.status == answer.status_code
    return found


def told(answer: httpx2.Response) -> tuple[int, str]:
    return answer.status_code, problem(answer).code


def ask() -> dict[str, Any]:
    return ReleaseRequest(nonce=bytes(32)).to_dict()


# ── the whole way over HTTP ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_an_agent_attests_and_gets_a_secret_over_http(door: Client) -> None:
    agent = door.world.agent()
    client_nonce = bytes(range(32))
    first = await door.call("POST", "/v1/challenges", ChallengeRequest(client_nonce=client_nonce).to_dict())
    challenge = ChallengeResponse.from_dict(first.json())
    challenge.verify(door.world.broker.identity.broker_id, client_nonce=client_nonce)
    evidence = agent.evidence(agent.binding(challenge.nonce), client_nonce)
    body = {"evidence": evidence.to_dict(), "client_nonce": b64u(client_nonce)}
    admitted = AttestationResponse.from_dict((await door.call("POST", "/v1/attestations", body)).json())
    agent.token = admitted.token
    answer = await door.call("POST", RELEASE, ask(), by=agent)
    released = ReleaseResponse.from_dict(answer.json())
    assert answer.status_code == 200
    assert agent.sealing.open(released.sealed, released.context) == VALUE
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.asyncio
async def test_two_agents_exchange_mail_over_http(door: Client) -> None:
    a, b = await door.world.admitted("a"), await door.world.admitted("b")
    box = "/v1/mailboxes/acme/mail/b"
    assert (await door.call("PUT", box, b.mailbox_key("acme/mail/b").to_dict(), by=b)).json() == {}
    found = MailboxInfo.from_dict((await door.call("GET", box, by=a)).json())
    sent = await door.call("POST", f"{box}:send", batch_to_bytes([a.envelope(found.key, b"hello")]), by=a)
    assert SendResponse.from_dict(sent.json()).results[0].status == "queued"
    got = ReceiveResponse.from_dict((await door.call("POST", f"{box}:receive", {}, by=b)).json())
    assert b.read(got.deliveries[0].envelope) == b"hello"
    done = await door.call("POST", f"{box}:ack", {"ack": [got.deliveries[0].lease]}, by=b)
    assert done.json() == {"done": 1, "lost": []}
    peer = await door.call("GET", f"/v1/agents/{b.subject}", by=a)
    assert peer.json()["subject"] == b.subject


# ── bad input ──────────────────────────────────────────────────────────────────────────────────────────────────────

POSTS = [item for item in ENDPOINTS if item.max_body and item.door is Door.OPEN]


@pytest.mark.asyncio
@pytest.mark.parametrize("body", [b"", b"not json", b"[]", b"\xff", b'{"a":1,"a":1}'], ids=str)
@pytest.mark.parametrize("path", [item.path for item in POSTS])
async def test_a_body_that_is_not_json_is_400_with_its_own_code(door: Client, path: str, body: bytes) -> None:
    before = door.world.kinds()
    assert told(await door.call("POST", path, body)) == (400, WireCode.BODY_NOT_JSON)
    assert door.world.kinds() == before


@pytest.mark.asyncio
async def test_a_body_that_is_not_json_is_400_for_agents_and_administrators_too(door: Client) -> None:
    agent = await door.world.admitted()
    assert told(await door.call("POST", RELEASE, b"{", by=agent)) == (400, WireCode.BODY_NOT_JSON)
    assert told(await door.call("PUT", "/v1/secrets/acme/a", b"{", by="admin")) == (400, WireCode.BODY_NOT_JSON)
    assert told(await door.call("POST", "/v1/mailboxes/acme/mail/b:send", b"{", by=agent)) == (
        400,
        WireCode.ENVELOPE_MALFORMED,
    )


@pytest.mark.asyncio
async def test_a_body_over_the_limit_is_413(door: Client) -> None:
    assert told(await door.call("POST", "/v1/challenges", b" " * 300_000)) == (413, WireCode.BODY_TOO_LARGE)

    async def stream() -> AsyncIterator[bytes]:
        for _ in range(400):
            yield b" " * 1000

    streamed = await door.http.post("/v1/challenges", content=stream())
    assert told(streamed) == (413, WireCode.BODY_TOO_LARGE)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, WireCode.BODY_FIELD_MISSING),
        ({"client_nonce": "AAAA"}, WireCode.BODY_FIELD_INVALID),
        ({"client_nonce": b64u(bytes(32)), "x": 1}, WireCode.BODY_FIELD_UNKNOWN),
    ],
    ids=str,
)
async def test_each_mistake_in_a_body_is_named(door: Client, body: dict[str, Any], code: WireCode) -> None:
    assert told(await door.call("POST", "/v1/challenges", body)) == (400, code)


@pytest.mark.asyncio
async def test_a_nonce_used_twice_is_409_and_a_forged_or_expired_one_403(door: Client) -> None:
    agent = door.world.agent()
    used, old = agent.request().to_dict(), agent.request().to_dict()
    assert (await door.call("POST", "/v1/attestations", used)).status_code == 200
    assert told(await door.call("POST", "/v1/attestations", used)) == (409, BrokerCode.CHALLENGE_USED)
    forged = agent.request().to_dict() | {"client_nonce": b64u(bytes(32))}
    assert told(await door.call("POST", "/v1/attestations", forged)) == (403, BrokerCode.CHALLENGE_FORGED)
    door.world.machine.clock.advance(61)
    assert told(await door.call("POST", "/v1/attestations", old)) == (403, BrokerCode.CHALLENGE_EXPIRED)


@pytest.mark.asyncio
async def test_a_secret_that_does_not_exist_is_404(door: Client) -> None:
    agent = await door.world.admitted()
    unknown = await door.call("POST", "/v1/secrets/acme/open/none:release", ask(), by=agent)
    assert told(unknown) == (404, BrokerCode.SECRET_UNKNOWN)
    odd = await door.call("POST", "/v1/secrets/acme//x:release", ask(), by=agent)
    assert told(odd) == (400, BrokerCode.SECRET_NAME)


@pytest.mark.asyncio
async def test_a_message_to_nobody_is_404(door: Client) -> None:
    agent = await door.world.admitted()
    envelope = agent.envelope(agent.mailbox_key("acme/mail/x"))
    sent = await door.call("POST", "/v1/mailboxes/acme/mail/x:send", batch_to_bytes([envelope]), by=agent)
    assert told(sent) == (404, BrokerCode.MAILBOX_UNKNOWN)


@pytest.mark.asyncio
async def test_a_refusal_tells_codes_and_an_id_and_nothing_else(door: Client) -> None:
    agent = await door.world.admitted()
    refused = await door.call("POST", "/v1/secrets/acme/open/top:release", ask(), by=agent)
    found = problem(refused)
    assert (found.status, found.code, found.detail) == (403, BrokerCode.POLICY_REFUSED, "")
    assert found.codes
    assert found.correlation_id == refused.headers["x-correlation-id"]
    assert "never-top" not in refused.text
    entry = json.loads(door.world.broker.audit.newest(kind="secret.refused", limit=1)[0].entry)
    assert entry["correlation_id"] == found.correlation_id
    assert any("never-top" in reason for reason in entry["reasons"])


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, BrokerCode.ROUTE_UNKNOWN),
        ("GET", "/v1/challenges", 405, BrokerCode.ROUTE_METHOD),
        ("POST", "/v1/secrets/acme/a:steal", 405, BrokerCode.ROUTE_METHOD),
        ("GET", "/v1/log/tile/9/000", 404, BrokerCode.LOG_ENTRY_UNKNOWN),
        ("GET", "/v1/log/consistency?old=5&size=1", 404, BrokerCode.LOG_ENTRY_UNKNOWN),
        ("GET", "/v1/log/consistency?old=x&size=1", 400, WireCode.BODY_FIELD_INVALID),
    ],
)
async def test_what_is_not_there_is_a_problem_too(door: Client, method: str, path: str, status: int, code: str) -> None:
    assert told(await door.call(method, path)) == (status, code)


# ── proofs ─────────────────────────────────────────────────────────────────────────────────────────────────────────

AGENTS_ONLY = [item for item in ENDPOINTS if item.door is Door.AGENT]
ADMINS_ONLY = [item for item in ENDPOINTS if item.door is Door.ADMIN]


def real(path: str) -> str:
    return re.sub(r"\{index:int\}", "0", re.sub(r"\{\w+:path\}", "acme/open/a", path))


@pytest.mark.asyncio
@pytest.mark.parametrize("endpoint", AGENTS_ONLY, ids=lambda item: item.name)
async def test_nobody_enters_an_agents_door_without_a_token(door: Client, endpoint: Any) -> None:
    answer = await door.call(endpoint.method, real(endpoint.path))
    assert told(answer) == (401, BrokerCode.SESSION_TOKEN_MISSING)
    assert answer.headers["www-authenticate"].startswith("DPoP ")
    assert answer.headers["dpop-nonce"]


@pytest.mark.asyncio
@pytest.mark.parametrize("endpoint", ADMINS_ONLY, ids=lambda item: item.name)
async def test_nobody_enters_an_administrators_door_without_his_key(door: Client, endpoint: Any) -> None:
    path = real(endpoint.path)
    assert told(await door.call(endpoint.method, path)) == (401, BrokerCode.ADMIN_PROOF_MISSING)
    agent = await door.world.admitted()
    assert told(await door.call(endpoint.method, path, by=agent)) == (401, BrokerCode.ADMIN_PROOF_MISSING)
    door.world.admin_key = ec.generate_private_key(ec.SECP256R1())
    assert told(await door.call(endpoint.method, path, by="admin")) == (403, BrokerCode.ADMIN_KEY_UNKNOWN)


@pytest.mark.asyncio
async def test_t10_a_stolen_token_opens_nothing(door: Client) -> None:
    victim, thief = await door.world.admitted("victim"), await door.world.admitted("thief")
    thief.token = victim.token
    assert told(await door.call("POST", RELEASE, ask(), by=thief)) == (401, BrokerCode.DPOP_KEY)
    bearer = {"authorization": f"Bearer {victim.token}"}
    assert told(await door.call("POST", RELEASE, ask(), headers=bearer)) == (401, BrokerCode.SESSION_TOKEN_MISSING)
    bare = {"authorization": f"DPoP {victim.token}"}
    assert told(await door.call("POST", RELEASE, ask(), headers=bare)) == (401, BrokerCode.DPOP_MISSING)


@pytest.mark.asyncio
async def test_t10_a_proof_serves_one_request_at_one_server(door: Client) -> None:
    agent = await door.world.admitted()
    await door.call("POST", RELEASE, ask(), by=agent)
    raw = json.dumps(ask()).encode()
    headers = agent.headers("POST", RELEASE, raw, nonce=door.nonce)
    assert (await door.call("POST", RELEASE, raw, headers=headers)).status_code == 200
    assert told(await door.call("POST", RELEASE, raw, headers=headers)) == (401, BrokerCode.DPOP_REPLAYED)
    elsewhere = agent.headers("POST", RELEASE, raw, nonce=door.nonce, url=f"https://other.example{RELEASE}")
    assert told(await door.call("POST", RELEASE, raw, headers=elsewhere)) == (401, BrokerCode.DPOP_URL)
    changed = agent.headers("POST", RELEASE, raw, nonce=door.nonce)
    assert told(await door.call("POST", RELEASE, raw + b" ", headers=changed)) == (401, BrokerCode.DPOP_BODY)


@pytest.mark.asyncio
async def test_a_forwarded_host_changes_nothing(door: Client) -> None:
    agent = await door.world.admitted()
    await door.call("POST", RELEASE, ask(), by=agent)
    raw = json.dumps(ask()).encode()
    forged = agent.headers("POST", RELEASE, raw, nonce=door.nonce, url=f"https://evil.example{RELEASE}")
    forged |= {"x-forwarded-host": "evil.example", "x-forwarded-proto": "https", "host": "evil.example"}
    assert told(await door.call("POST", RELEASE, raw, headers=forged)) == (401, BrokerCode.DPOP_URL)


@pytest.mark.asyncio
async def test_a_client_without_a_nonce_is_given_one(door: Client) -> None:
    agent = await door.world.admitted()
    raw = json.dumps(ask()).encode()
    answer = await door.call("POST", RELEASE, raw, headers=agent.headers("POST", RELEASE, raw, nonce=None))
    assert told(answer) == (401, BrokerCode.DPOP_NONCE)
    assert 'error="use_dpop_nonce"' in answer.headers["www-authenticate"]
    again = agent.headers("POST", RELEASE, raw, nonce=answer.headers["dpop-nonce"])
    assert (await door.call("POST", RELEASE, raw, headers=again)).status_code == 200


@pytest.mark.asyncio
async def test_two_proofs_are_none(door: Client) -> None:
    agent = await door.world.admitted()
    await door.call("POST", RELEASE, ask(), by=agent)
    raw = json.dumps(ask()).encode()
    pair = [agent.headers("POST", RELEASE, raw, nonce=door.nonce) for _ in range(2)]
    headers = [("authorization", pair[0]["authorization"]), ("dpop", pair[0]["dpop"]), ("dpop", pair[1]["dpop"])]
    answer = await door.http.post(RELEASE, content=raw, headers=headers)
    assert told(answer) == (401, BrokerCode.DPOP_MISSING)


@pytest.mark.asyncio
async def test_an_auditor_looks_and_changes_nothing(tmp_path: Path) -> None:
    world = await World.make(tmp_path)
    await world.restart(admins=(replace(world.settings.admins[0], role="auditor"),))
    async with serving(world) as door:
        assert (await door.call("GET", "/v1/status", by="admin")).status_code == 200
        put = await door.call("PUT", "/v1/secrets/acme/open/a", {"value": "AAAA"}, by="admin")
        assert put.status_code == 403
    await world.broker.close()


# ── T26: no way back for a secret ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_t26_no_endpoint_gives_an_administrator_a_plaintext(door: Client) -> None:
    agent = await door.world.admitted()
    await agent.release("acme/open/a")
    spellings = (VALUE, b64u(VALUE).encode(), VALUE.hex().encode())
    walked = 0
    for endpoint in ENDPOINTS:
        for path in {real(endpoint.path), real(endpoint.path).replace("acme/open/a", agent.subject)}:
            if "destroy" in path:
                continue
            for body in ({}, ask(), PutSecretRequest(labels=("x",)).to_dict()):
                raw = b"" if endpoint.method == "GET" else json.dumps(body).encode()
                answer = await door.call(endpoint.method, path, raw, by="admin")
                assert not any(spelling in answer.content for spelling in spellings), path
                walked += 1
    assert walked > 50


# ── what is public ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_a_stock_oidc_reader_finds_the_keys(door: Client) -> None:
    import jwt

    agent = await door.world.admitted()
    discovered = (await door.call("GET", "/.well-known/openid-configuration")).json()
    assert discovered["issuer"] == URL
    keys = (await door.call("GET", discovered["jwks_uri"].removeprefix(URL))).json()
    key = jwt.PyJWKSet.from_dict(keys)[jwt.get_unverified_header(agent.token)["kid"]]
    claims = jwt.decode(agent.token, key, algorithms=["ES256"], audience=URL, issuer=URL)
    assert claims["cnf"] == {"jkt": agent.jkt}
    results = (await door.call("GET", "/results/.well-known/openid-configuration")).json()
    assert results["issuer"] == f"{URL}/results"
    other = (await door.call("GET", "/results/.well-known/jwks.json")).json()
    assert {item["kid"] for item in other["keys"]}.isdisjoint(item["kid"] for item in keys["keys"])


@pytest.mark.asyncio
async def test_the_log_can_be_followed_from_outside(door: Client) -> None:
    note = (await door.call("GET", "/v1/log/checkpoint")).text
    head = Checkpoint.open(note, door.world.broker.identity.log_key)
    assert (await door.call("GET", "/v1/log/tile/0/000")).status_code == 404  # not full yet
    tile = (await door.call("GET", f"/v1/log/tile/0/000.p/{head.size}")).content
    assert len(tile) == 32 * head.size
    shown = await door.call("GET", "/v1/log/entries/0", by="admin")
    receipt = Receipt.from_dict(shown.json())
    receipt.verify(door.world.broker.identity.log_key)
    assert tile[:32] == leaf_hash(receipt.entry)
    proof = await door.call("GET", "/v1/log/consistency?old=1&size=2")
    assert proof.status_code == 200
    page = await door.call("GET", "/v1/log/entries", by="admin", query="?kind=secret.put&limit=1")
    assert [item["entry"]["kind"] for item in page.json()["entries"]] == ["secret.put"]


@pytest.mark.asyncio
async def test_health_readiness_metrics_and_openapi_need_no_credentials(door: Client) -> None:
    assert (await door.call("GET", "/healthz")).json() == {"ok": True}
    assert (await door.call("GET", "/readyz")).json()["ok"] is True
    await door.call("GET", "/v1/log/tile/9/000")
    text = (await door.call("GET", "/metrics")).text
    assert 'cloister_refusals_total{code="log.entry_unknown"} 1.0' in text
    document = (await door.call("GET", "/openapi.json")).json()
    paths = {re.sub(r":(path|int)", "", item.path) for item in ENDPOINTS}
    assert set(document["paths"]) == paths
    assert all(operation["summary"] for item in document["paths"].values() for operation in item.values())


@pytest.mark.asyncio
async def test_readiness_tells_the_truth(door: Client) -> None:
    door.world.machine.clock.advance(-86_400)
    assert told(await door.call("GET", "/readyz")) == (503, BrokerCode.CLOCK_BEHIND)
    assert (await door.call("GET", "/healthz")).status_code == 200
    assert told(await door.call("POST", RELEASE, ask(), headers={"authorization": "DPoP x", "dpop": "x"})) == (
        503,
        BrokerCode.CLOCK_BEHIND,
    )


@pytest.mark.asyncio
async def test_labels_of_metrics_do_not_grow_with_what_strangers_send(door: Client) -> None:
    async def lines(numbers: range) -> int:
        for number in numbers:
            await door.call("POST", f"/v1/secrets/acme/x{number}:release", b"")
            await door.call("GET", f"/v1/nothing{number}")
        return (await door.call("GET", "/metrics")).text.count("\n")

    await lines(range(2))
    assert await lines(range(2, 4)) == await lines(range(4, 50))


@pytest.mark.asyncio
async def test_the_console_shows_simulated_agents_hatched_and_stands_alone(door: Client) -> None:
    agent = await door.world.admitted()
    await door.call("POST", "/v1/secrets/acme/open/top:release", ask(), by=agent)
    page = await door.call("GET", "/console")
    assert "<tr class=simulated>" in page.text
    assert agent.subject in page.text
    assert "secret.refused" in page.text
    assert "<li>policy." in page.text  # what would make it pass, in the development profile
    assert "<p class=simulated" in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert not re.search(r"<script|<link|<img|src=|url\(", page.text)


@pytest.mark.asyncio
async def test_the_console_can_be_switched_off(tmp_path: Path) -> None:
    world = await World.make(tmp_path, console=False)
    async with serving(world) as door:
        assert told(await door.call("GET", "/console")) == (404, BrokerCode.ROUTE_UNKNOWN)
    await world.broker.close()


@pytest.mark.asyncio
async def test_administrators_see_agents_and_revoke_them(door: Client) -> None:
    agent = await door.world.admitted()
    listed = (await door.call("GET", "/v1/agents", by="admin")).json()["agents"]
    assert [(item["subject"], item["state"], item["simulated"]) for item in listed] == [
        (agent.subject, "admitted", True)
    ]
    shown = (await door.call("GET", f"/v1/agents/{agent.subject}", by="admin")).json()
    assert shown["facts"]["fmspc"]
    revoked = await door.call("POST", f"/v1/agents/{agent.subject}:revoke", {"why": "test"}, by="admin")
    assert revoked.status_code == 200
    assert told(await door.call("POST", RELEASE, ask(), by=agent)) == (403, BrokerCode.AGENT_REVOKED)
    nobody = await door.call("POST", "/v1/agents/agent/acme/x:revoke", {}, by="admin")
    assert told(nobody) == (404, BrokerCode.AGENT_UNKNOWN)


@pytest.mark.asyncio
async def test_a_broken_bundle_is_not_taken_and_changes_nothing(door: Client) -> None:
    (door.world.settings.bundles[0] / "policy.cedar").write_text("permit everything")
    generation = door.world.broker.generation.current
    answer = await door.call("POST", "/v1/policies:reload", {}, by="admin")
    assert told(answer) == (400, BrokerCode.CONFIG_INVALID)
    assert answer.json()["codes"] == ["bundle.syntax"]
    assert answer.json()["detail"].startswith("policy.cedar:1: bundle.syntax: ")  # who may reload it may read it
    assert door.world.broker.generation.current == generation


# ── tables ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_code_has_a_status_and_a_meaning() -> None:
    assert set(STATUS) == {*BrokerCode, *WireCode}
    assert set(MEANING) == set(BrokerCode)
    assert all(what and do for what, do in MEANING.values())
    assert not {str(code) for code in BrokerCode} & {str(code) for code in WireCode}
    assert not {str(code) for code in BrokerCode} & {str(code) for code in ATTESTATION_MEANING}


@pytest.mark.parametrize("code", BrokerCode)
def test_a_problem_never_carries_the_detail(code: BrokerCode) -> None:
    error = BrokerError(code, "the detail for the operator")
    found = problem_of(error, "id")
    assert found.status == status_of(error) == STATUS[code]
    assert "detail for the operator" not in json.dumps(found.to_dict())
