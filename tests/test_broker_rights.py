"""Administrators: what each role may do, for which tenants, what takes two of them, and that none reads a secret."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric import ec

from broker.app import create_app
from broker.audit import Entry, Kind
from broker.calls import Door
from broker.config import Admin
from broker.errors import BrokerCode
from broker.ports import Transaction
from broker.rest.routes import ENDPOINTS
from broker.rights import MARKABLE, MAY, ROLES, Act
from broker.second import LIFE_S
from broker.wire import dpop
from broker.wire.bodies import PutSecretRequest
from broker.wire.jose import b64u, thumbprint
from broker.wire.svid import MAX_AUTHORITIES
from tests.broker_world import URL, World, outcome, write_bundle

VALUE = b"the plaintext that no administrator gets"


@dataclass
class Office:
    """A broker with several administrators, over HTTP."""

    world: World
    http: httpx2.AsyncClient
    keys: dict[str, ec.EllipticCurvePrivateKey]
    nonces: dict[str, str | None] = field(default_factory=dict)

    async def ask(self, name: str, method: str, path: str, body: Any = None, query: str = "") -> httpx2.Response:
        raw = b"" if body is None else json.dumps(body).encode()
        for _ in range(2):
            at_s = int(self.world.broker.clock().timestamp())
            how: dict[str, Any] = {"method": method, "url": URL + path, "body": raw, "nonce": self.nonces.get(name)}
            proof = dpop.build(self.keys[name], at_s=at_s, **how)
            answer = await self.http.request(method, path + query, content=raw, headers={"cloister-admin": proof})
            self.nonces[name] = answer.headers.get("dpop-nonce", self.nonces.get(name))
            if answer.status_code != 401:
                break
        return answer

    async def code(self, name: str, method: str, path: str, body: Any = None, query: str = "") -> str:
        answer = await self.ask(name, method, path, body, query)
        return "ok" if answer.status_code < 300 else str(answer.json()["code"])


PEOPLE: dict[str, dict[str, Any]] = {
    "ann": {"role": "security"},
    "ben": {"role": "security"},
    "oli": {"role": "operator"},
    "ida": {"role": "auditor"},
    "tom": {"role": "security", "tenants": ("acme",)},
    "eve": {"role": "security", "tenants": ("other",)},
}


@pytest_asyncio.fixture
async def office(tmp_path: Path) -> AsyncIterator[Office]:
    keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in PEOPLE}
    admins = tuple(
        Admin(name=name, jkt=thumbprint(keys[name].public_key()), **members) for name, members in PEOPLE.items()
    )
    two = ("secret.destroy", "agent.revoke", "secret.put", "policy.reload")
    other = write_bundle(tmp_path / "other", ('tenant = "acme"', 'tenant = "other"'), ("acme", "other"))
    bundles = (write_bundle(tmp_path / "acme"), other)
    world = await World.make(tmp_path, admins=admins, bundles=bundles, two_person=two)
    async with httpx2.AsyncClient(
        transport=httpx2.ASGITransport(app=create_app(world.broker, background=False)), base_url=URL
    ) as http:
        yield Office(world=world, http=http, keys=keys)
    await world.broker.close()


PUT = {"value": b64u(VALUE), "labels": []}
SECRET = "/v1/secrets/acme/open/a"


async def put(office: Office, path: str = SECRET) -> None:
    assert await office.code("ann", "PUT", path, PUT) == BrokerCode.ADMIN_SECOND
    assert await office.code("ben", "PUT", path, PUT) == "ok"


# ── roles ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_role_has_its_acts_and_an_auditor_changes_nothing() -> None:
    assert set(MAY) == set(ROLES)
    assert MAY["auditor"] < MAY["operator"] < MAY["security"] == set(Act)
    assert not MAY["auditor"] & MARKABLE


def test_there_is_no_act_of_reading_a_secret() -> None:
    assert not [act for act in Act if act.startswith("secret.") and act.rpartition(".")[2] in ("get", "read", "show")]


@pytest.mark.asyncio
async def test_roles_decide_who_may_do_what(office: Office) -> None:
    rotate, reload = f"{SECRET}:rotate", "/v1/policies:reload"
    await put(office)
    assert await office.code("oli", "POST", rotate, {}) == "ok"
    assert await office.code("oli", "POST", "/v1/collateral:refresh", {}) == "ok"
    for name in ("oli", "ida"):
        assert await office.code(name, "POST", f"{SECRET}:destroy", {}) == BrokerCode.ADMIN_ROLE
        assert await office.code(name, "POST", reload, {}) == BrokerCode.ADMIN_ROLE
        assert await office.code(name, "POST", "/v1/agents/agent/acme/x:revoke", {}) == BrokerCode.ADMIN_ROLE
        for path in ("/v1/secrets", "/v1/agents", "/v1/log/entries", "/v1/status", "/v1/releases", "/v1/leases"):
            assert await office.code(name, "GET", path) == "ok"
    assert await office.code("ida", "POST", rotate, {}) == BrokerCode.ADMIN_ROLE
    assert await office.code("ida", "PUT", SECRET, PUT) == BrokerCode.ADMIN_ROLE


@pytest.mark.asyncio
async def test_t26_no_role_gets_a_plaintext_from_any_endpoint(office: Office) -> None:
    """Every route with every administrator; the value stands in no answer."""
    await put(office)
    agent = await office.world.admitted()
    names = {"name:path": "acme/open/a", "tile:path": "0/000", "index:int": "0"}
    asked = 0
    for endpoint in ENDPOINTS:
        path = endpoint.path
        for variable, value in names.items():
            path = path.replace("{" + variable + "}", agent.subject if "agents" in path else value)
        for name in PEOPLE:
            answer = await office.ask(name, endpoint.method, path, None if endpoint.method == "GET" else {})
            asked += 1
            for form in (VALUE, b64u(VALUE).encode(), VALUE.hex().encode()):
                assert form not in answer.content, path
    assert asked > 200
    assert all(endpoint.door is Door.AGENT for endpoint in ENDPOINTS if endpoint.path.endswith((":release", ":derive")))


# ── tenants ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_rights_end_at_the_tenant(office: Office) -> None:
    await put(office)
    await put(office, "/v1/secrets/other/open/b")
    agent = await office.world.admitted()
    assert await office.code("tom", "POST", f"{SECRET}:rotate", {}) == "ok"
    assert await office.code("eve", "POST", f"{SECRET}:rotate", {}) == BrokerCode.ADMIN_TENANT
    assert await office.code("eve", "PUT", SECRET, PUT) == BrokerCode.ADMIN_TENANT
    assert await office.code("eve", "POST", f"{SECRET}:destroy", {}) == BrokerCode.ADMIN_TENANT
    assert await office.code("eve", "GET", f"/v1/agents/{agent.subject}") == BrokerCode.ADMIN_TENANT
    assert await office.code("eve", "POST", f"/v1/agents/{agent.subject}:revoke", {}) == BrokerCode.ADMIN_TENANT
    found = (await office.ask("tom", "GET", "/v1/secrets")).json()["secrets"]
    assert {item["name"] for item in found} == {"acme/open/a"}
    assert (await office.ask("eve", "GET", "/v1/agents")).json()["agents"] == []
    assert await office.code("eve", "GET", "/v1/agents", query="?tenant=acme") == BrokerCode.ADMIN_TENANT
    for path in ("/v1/status", "/v1/proposals"):
        assert await office.code("tom", "GET", path) == BrokerCode.ADMIN_TENANT
    assert await office.code("tom", "POST", "/v1/policies:reload", {}) == BrokerCode.ADMIN_TENANT
    assert await office.code("tom", "POST", "/v1/collateral:refresh", {}) == BrokerCode.ADMIN_TENANT


@pytest.mark.asyncio
async def test_the_log_shows_each_tenant_its_own(office: Office) -> None:
    await put(office)
    entries = (await office.ask("eve", "GET", "/v1/log/entries")).json()["entries"]
    assert entries == []
    own = (await office.ask("tom", "GET", "/v1/log/entries")).json()["entries"]
    assert {item["entry"]["kind"] for item in own} == {"admin.proposed", "secret.put"}
    index = own[-1]["index"]
    assert await office.code("tom", "GET", f"/v1/log/entries/{index}") == "ok"
    assert await office.code("eve", "GET", f"/v1/log/entries/{index}") == BrokerCode.ADMIN_TENANT


@pytest.mark.asyncio
async def test_a_page_of_the_log_is_full_or_says_from_where_to_go_on(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.audit.STEP", 8)
    monkeypatch.setattr("broker.audit.MAX_SEARCHED", 32)

    def work(tx: Transaction) -> None:
        for number in range(100):
            tenant = "other" if number in (70, 71, 99) else "acme"
            entry = Entry(kind=Kind.ADMIN_PROPOSED, at=office.world.broker.clock(), tenant=tenant, resource=str(number))
            office.world.broker.audit.append(tx, entry)

    await office.world.broker.store.transact(work)
    found: list[str] = []
    asked = 0
    at: int | None = 0
    while asked < 9 and at is not None:
        page = (await office.ask("eve", "GET", "/v1/log/entries", query=f"?start={at}&limit=2")).json()
        found += [item["entry"]["resource"] for item in page["entries"]]
        assert len(page["entries"]) == 2 or "next" not in page or page["next"] - at == 32
        asked, at = asked + 1, page.get("next")
    assert found == ["70", "71", "99"]
    assert asked <= 5
    few = (await office.ask("tom", "GET", "/v1/log/entries", query="?limit=5")).json()
    assert (len(few["entries"]), few["next"]) == (5, few["entries"][-1]["index"] + 1)
    proposed = (await office.ask("tom", "GET", "/v1/log/entries", query="?limit=3&kind=admin.proposed")).json()
    assert len(proposed["entries"]) == 3


# ── two people ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_a_marked_act_is_done_when_a_second_person_asks_for_the_same(office: Office) -> None:
    assert await office.code("ann", "PUT", SECRET, PUT) == BrokerCode.ADMIN_SECOND
    assert await office.code("ann", "PUT", SECRET, PUT) == BrokerCode.ADMIN_SECOND
    waiting = (await office.ask("ben", "GET", "/v1/proposals")).json()["proposals"]
    assert [(item["act"], item["resource"], item["name"]) for item in waiting] == [("secret.put", "acme/open/a", "ann")]
    assert await office.code("ben", "PUT", SECRET, PUT | {"labels": ["other"]}) == BrokerCode.ADMIN_SECOND
    assert (await office.ask("ann", "GET", "/v1/secrets")).json()["secrets"] == []
    answer = await office.ask("ben", "PUT", SECRET, PUT)
    assert answer.json()["version"] == 1
    entry = json.loads(office.world.broker.audit.newest(kind="secret.put", limit=1)[0].entry)
    jkts = {name: thumbprint(key.public_key()) for name, key in office.keys.items()}
    assert (entry["by"], entry["second"]) == (jkts["ben"], jkts["ann"])
    assert await office.code("ben", "PUT", SECRET, PUT) == BrokerCode.ADMIN_SECOND


@pytest.mark.asyncio
async def test_a_first_request_ends_after_an_hour(office: Office) -> None:
    await office.code("ann", "PUT", SECRET, PUT)
    office.world.machine.clock.advance(LIFE_S + 1)
    assert await office.code("ben", "PUT", SECRET, PUT) == BrokerCode.ADMIN_SECOND
    assert await office.code("ann", "PUT", SECRET, PUT) == "ok"


@pytest.mark.asyncio
async def test_revoking_destroying_and_reloading_take_two_where_it_is_said(office: Office) -> None:
    await put(office)
    agent = await office.world.admitted()
    for path, body in ((f"{SECRET}:destroy", {}), (f"/v1/agents/{agent.subject}:revoke", {"why": "lost"})):
        assert await office.code("ann", "POST", path, body) == BrokerCode.ADMIN_SECOND
        assert await office.code("eve", "POST", path, body) == BrokerCode.ADMIN_TENANT
        assert await office.code("tom", "POST", path, body) == "ok"
    write_bundle(office.world.settings.bundles[0], ("freshness", "freshness"), version=2)
    assert await office.code("ann", "POST", "/v1/policies:reload", {}) == BrokerCode.ADMIN_SECOND
    write_bundle(office.world.settings.bundles[0], ("max_age_s = 600", "max_age_s = 601"), version=3)
    assert await office.code("ben", "POST", "/v1/policies:reload", {}) == BrokerCode.ADMIN_SECOND
    assert await office.code("ann", "POST", "/v1/policies:reload", {}) == "ok"


@pytest.mark.asyncio
async def test_a_note_that_waits_survives_a_restart_and_keeps_no_content(tmp_path: Path) -> None:
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    admins = tuple(Admin(name=f"a{n}", jkt=thumbprint(key.public_key())) for n, key in enumerate(keys))
    world = await World.make(tmp_path, database=True, admins=admins, two_person=("secret.put",))
    request = PutSecretRequest(value=VALUE)
    first = world.broker.administration.put_secret(admins[0], "acme/open/a", request)
    assert await outcome(first) == BrokerCode.ADMIN_SECOND
    await world.restart()
    database = tmp_path / "broker.db"
    assert not any(VALUE in path.read_bytes() for path in tmp_path.glob("broker.db*"))
    assert database.exists()
    second = world.broker.administration.put_secret(admins[1], "acme/open/a", request)
    assert await outcome(second) == "ok"
    await world.broker.close()


# ── releases and leases over HTTP ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_releases_and_leases_are_seen_and_ended_over_http(office: Office) -> None:
    lent = PUT | {"terms": {"lease_s": 60, "draw": True, "meta": {"owner": "a"}}}
    assert await office.code("ann", "PUT", SECRET, lent) == BrokerCode.ADMIN_SECOND
    assert (await office.ask("ben", "PUT", SECRET, lent)).json()["terms"]["lease_s"] == 60
    agent = await office.world.admitted()
    await agent.release("acme/open/a")
    for query in ("?secret=acme/open/a", "?workload=anything", f"?subject={agent.subject}", "?tenant=acme&after=0"):
        told = (await office.ask("ida", "GET", "/v1/releases", query=query)).json()["releases"]
        assert [(item["name"], item["workloads"], item["subject"]) for item in told] == [
            ("acme/open/a", ["anything"], agent.subject)
        ]
    assert (await office.ask("eve", "GET", "/v1/releases")).json()["releases"] == []
    both = "?workload=a&platform=b"
    assert await office.code("ida", "GET", "/v1/releases", query=both) == BrokerCode.RELEASE_QUERY
    leases = (await office.ask("oli", "GET", "/v1/leases")).json()["leases"]
    wanted = {name: leases[0][name] for name in ("name", "version", "subject")}
    assert await office.code("ida", "POST", "/v1/leases:end", wanted) == BrokerCode.ADMIN_ROLE
    assert await office.code("eve", "POST", "/v1/leases:end", wanted) == BrokerCode.ADMIN_TENANT
    assert (await office.ask("oli", "POST", "/v1/leases:end", wanted)).json()["closed"]
    assert (await agent.release("acme/open/a"))[0].version == 2


@pytest.mark.asyncio
async def test_what_a_release_rested_on_is_not_shown_when_it_was_changed(office: Office) -> None:
    await put(office)
    agent = await office.world.admitted()
    await agent.release("acme/open/a")
    row = office.world.broker.store.read(lambda tx: tx.releases.page())[0]
    forged = replace(row, entry=row.entry + 1, ground=row.ground.replace(row.ground[-8:], "00000000"))
    await office.world.broker.store.transact(lambda tx: tx.releases.record(forged, [("workload", "another")]))
    assert await office.code("ida", "GET", "/v1/releases") == BrokerCode.STORE_ROW_FORGED
    assert await office.code("ida", "GET", "/v1/releases", query="?limit=1") == "ok"


# ── what takes two takes two by every way ──────────────────────────────────────────────────────────────────────────


@pytest_asyncio.fixture
async def strict(tmp_path: Path) -> AsyncIterator[Office]:
    """Every act that can be marked is."""
    keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("ann", "ben")}
    admins = tuple(Admin(name=name, jkt=thumbprint(key.public_key())) for name, key in keys.items())
    world = await World.make(tmp_path, admins=admins, two_person=tuple(map(str, MARKABLE)))
    async with httpx2.AsyncClient(
        transport=httpx2.ASGITransport(app=create_app(world.broker, background=False)), base_url=URL
    ) as http:
        yield Office(world=world, http=http, keys=keys)
    await world.broker.close()


@pytest.mark.asyncio
async def test_every_act_that_can_be_marked_then_takes_two(strict: Office) -> None:
    lent = PUT | {"terms": {"lease_s": 600, "draw": True, "meta": {}}}
    await strict.code("ann", "PUT", SECRET, lent)
    assert await strict.code("ben", "PUT", SECRET, lent) == "ok"
    agent = await strict.world.admitted()
    await agent.release("acme/open/a")
    write_bundle(strict.world.settings.bundles[0], version=2)
    lease = {"name": "acme/open/a", "version": 1, "subject": agent.subject}
    acts: dict[Act, tuple[str, str, Any]] = {
        Act.SECRET_PUT: ("PUT", SECRET, PUT),
        Act.SECRET_ROTATE: ("POST", f"{SECRET}:rotate", PUT),
        Act.LEASE_END: ("POST", "/v1/leases:end", lease),
        Act.KEY_ROTATE: ("POST", "/v1/keys:rotate", None),
        Act.COLLATERAL_REFRESH: ("POST", "/v1/collateral:refresh", None),
        Act.MAIL_REDRIVE: ("POST", "/v1/mailboxes/acme/mail/b:redrive", {"numbers": [1]}),
        Act.POLICY_RELOAD: ("POST", "/v1/policies:reload", None),
        Act.SECRET_DESTROY: ("POST", f"{SECRET}:destroy", {}),
        Act.AGENT_REVOKE: ("POST", f"/v1/agents/{agent.subject}:revoke", {"why": "lost"}),
    }
    assert acts.keys() == MARKABLE
    ways = [*acts.values(), ("POST", "/v1/spiffe/authorities:rotate", None)]
    for method, path, body in ways:
        for name, code in (("ann", BrokerCode.ADMIN_SECOND), ("ann", BrokerCode.ADMIN_SECOND), ("ben", "ok")):
            assert await strict.code(name, method, path, body) == code, path
    assert not (await strict.ask("ann", "GET", "/v1/proposals")).json()["proposals"], "each note is used up"


@pytest.mark.asyncio
@pytest.mark.parametrize("marked", ["secret.put", "secret.rotate"])
async def test_one_way_of_writing_a_secret_is_no_way_around_the_other(tmp_path: Path, marked: str) -> None:
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    admins = tuple(Admin(name=f"a{n}", jkt=thumbprint(key.public_key())) for n, key in enumerate(keys))
    world = await World.make(tmp_path, admins=admins, two_person=(marked,))
    write = world.broker.administration.put_secret
    for admin in admins:
        await outcome(write(admin, "acme/open/a", PutSecretRequest(value=b"first")))
    alone = PutSecretRequest(value=b"mine alone")
    for rotate in (False, True):
        assert await outcome(write(admins[0], "acme/open/a", alone, rotate=rotate)) == BrokerCode.ADMIN_SECOND
        other = write(admins[1], "acme/open/a", alone, rotate=not rotate)
        assert await outcome(other) == BrokerCode.ADMIN_SECOND, "another request"
        assert await outcome(write(admins[1], "acme/open/a", alone, rotate=rotate)) == "ok"
        assert await outcome(write(admins[0], "acme/open/a", alone, rotate=not rotate)) == "ok", "two had asked for it"
    await world.broker.close()


@pytest.mark.asyncio
async def test_an_operator_cannot_draw_so_many_authorities_that_nobody_reads_the_bundle(office: Office) -> None:
    for _ in range(MAX_AUTHORITIES + 2):
        assert await office.code("oli", "POST", "/v1/spiffe/authorities:rotate") == "ok"
    assert len(office.world.broker.svids.bundle().authorities) == 2
