"""Leases, keys derived for workloads, and the question that follows every incident: who got what."""

import asyncio
import contextlib
import itertools
import json
import secrets
import sqlite3
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import pytest_asyncio

from attestation.evidence import proof_message, sign_proof
from broker.derivation import OPERATION, _key, derive_permitted
from broker.errors import BrokerCode
from broker.ports import Store, Transaction
from broker.ports.releases import FactKind, Lease, Released, ground_of, rests_on
from broker.rootkey.root import RootKey
from broker.store.memory import MemoryStore
from broker.store.sql import SqlStore
from broker.store.sql_releases import SHARED_FACTS
from broker.store.sql_schema import MIGRATIONS
from broker.wire.bodies import AttestationRequest, PutSecretRequest
from broker.wire.derive import DERIVED_VERSION, DeriveRequest
from broker.wire.errors import WireCode, WireError
from broker.wire.release import ReleaseResponse
from broker.wire.tags import sealing_thumbprint
from broker.wire.terms import LeaseEnd, SecretTerms
from policies.engine import decide
from policies.model import Administer, Context, ReleaseSecret
from tests.broker_world import FILES, Agent, World, outcome, write_bundle

KEYS = """
@id("keys")
permit (principal, action == Action::"Administer", resource in Path::"acme/keys")
when { context.operation == "derive_key" && principal.simulated };
"""
SECRET = "acme/open/a"
LEASE_S = 300


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    bundle = write_bundle(tmp_path / "b", (FILES["policy.cedar"], FILES["policy.cedar"] + KEYS))
    made = await World.make(tmp_path, database=True, bundles=(bundle,))
    yield made
    await made.broker.close()


async def put(world: World, *, draw: bool = False, lease_s: int | None = LEASE_S, name: str = SECRET) -> None:
    terms = SecretTerms(lease_s=lease_s, draw=draw, meta={"owner": "team a"})
    request = PutSecretRequest(value=b"v1", terms=terms)
    await world.broker.administration.put_secret(world.settings.admins[0], name, request)


# ── leases ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_a_lease_is_not_stretched_by_asking_again_and_its_end_stops_release(world: World) -> None:
    await put(world)
    agent = await world.admitted()
    assert (await agent.release(SECRET))[1] == b"v1"
    world.machine.clock.advance(LEASE_S - 100)
    await agent.attest()
    assert (await agent.release(SECRET))[1] == b"v1"
    world.machine.clock.advance(101)
    assert await outcome(agent.release(SECRET)) == BrokerCode.SECRET_LEASE
    other = await world.admitted("other")
    assert (await other.release(SECRET))[1] == b"v1"


@pytest.mark.asyncio
async def test_a_leases_end_draws_a_new_value_where_the_terms_say_so(world: World) -> None:
    await put(world, draw=True)
    agent = await world.admitted()
    await agent.release(SECRET)
    assert await world.broker.leasing.sweep() == 0
    world.machine.clock.advance(LEASE_S)
    assert await world.broker.leasing.sweep() == 1
    assert await world.broker.leasing.sweep() == 0
    await agent.attest()
    permit, value = await agent.release(SECRET)
    assert (permit.version, len(value)) == (2, 32)
    assert await outcome(agent.release(SECRET, 1)) == BrokerCode.SECRET_LEASE
    entry = json.loads(world.broker.audit.newest(kind="lease.ended", limit=1)[0].entry)
    assert (entry["why"], entry["rotation"], entry["subject"]) == ("time", "rotated", agent.subject)


@pytest.mark.asyncio
async def test_without_drawing_the_operator_is_told_that_a_rotation_is_due(world: World) -> None:
    await put(world)
    agent = await world.admitted()
    await agent.release(SECRET)
    world.machine.clock.advance(LEASE_S)
    await world.broker.leasing.sweep()
    entry = json.loads(world.broker.audit.newest(kind="lease.ended", limit=1)[0].entry)
    assert entry["rotation"] == "due"
    await world.put(SECRET, b"v2")
    await agent.attest()
    assert (await agent.release(SECRET))[1] == b"v2"


@pytest.mark.asyncio
async def test_the_leases_of_an_agent_that_fell_end_with_it(world: World) -> None:
    await put(world, draw=True)
    agent, other = await world.admitted(), await world.admitted("other")
    await agent.release(SECRET)
    await world.broker.administration.revoke(world.settings.admins[0], agent.subject, "lost")
    assert await world.broker.leasing.sweep() == 1
    assert (await other.release(SECRET))[0].version == 2


@pytest.mark.asyncio
async def test_an_administrator_ends_a_lease_and_sees_those_that_run(world: World) -> None:
    await put(world)
    agent, admin = await world.admitted(), world.settings.admins[0]
    await agent.release(SECRET)
    running = world.broker.leasing.page(tenant="acme", after="", limit=10)
    assert [(lease.name, lease.subject) for lease in running] == [(SECRET, agent.subject)]
    wanted = LeaseEnd(name=SECRET, version=1, subject=agent.subject)
    assert (await world.broker.leasing.end(admin, wanted)).closed
    assert await outcome(agent.release(SECRET)) == BrokerCode.SECRET_LEASE
    assert await outcome(world.broker.leasing.end(admin, wanted)) == "ok"
    unknown = LeaseEnd(name=SECRET, version=9, subject=agent.subject)
    assert await outcome(world.broker.leasing.end(admin, unknown)) == BrokerCode.SECRET_UNKNOWN
    assert world.broker.leasing.page(tenant="acme", after="", limit=10) == []


@pytest.mark.asyncio
async def test_terms_and_what_people_wrote_stay_until_they_are_changed(world: World) -> None:
    await put(world)
    await world.put(SECRET, b"v2")
    shown = world.broker.administration.secrets(tenant="acme", after="", limit=10)
    assert all(item.terms == SecretTerms(lease_s=LEASE_S, meta={"owner": "team a"}) for item in shown)
    await put(world, lease_s=None)
    agent = await world.admitted()
    await agent.release(SECRET)
    assert world.broker.leasing.page(tenant=None, after="", limit=10) == []


@pytest.mark.parametrize(
    "members",
    [
        {"lease_s": 0, "draw": False, "meta": {}},
        {"lease_s": 10**9, "draw": False, "meta": {}},
        {"lease_s": 1, "draw": "yes", "meta": {}},
        {"lease_s": 1, "draw": False, "meta": {"a b": "c"}},
        {"lease_s": 1, "draw": False, "meta": {"a": 7}},
        {"lease_s": 1, "draw": False, "meta": {str(n): "" for n in range(17)}},
        {"lease_s": 1, "draw": False, "meta": {}, "more": 1},
    ],
)
def test_terms_that_are_none_are_refused(members: dict[str, Any]) -> None:
    with pytest.raises(WireError) as caught:
        SecretTerms.from_dict(members)
    assert caught.value.code in (WireCode.BODY_FIELD_INVALID, WireCode.BODY_FIELD_UNKNOWN)


# ── derived keys ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_no_key_is_derived_without_a_bound_permit_about_it(world: World) -> None:
    agent = await world.admitted()
    session = await world.broker.sessions.of_token(agent.token, world.broker.clock())
    root, context = RootKey(b"R" * 32), Context(at=world.broker.clock())
    unbound = decide(session.bundle, session.verdict, Administer("acme/keys/a", OPERATION), context=context)
    another = decide(session.bundle, session.verdict, ReleaseSecret(SECRET), context=context)
    to_whom: dict[str, Any] = {"broker_id": "b", "jkt": "j", "sealing_thumbprint": "s", "suite": "x", "nonce": "n"}
    for permit in (unbound, another.bind(**to_whom)):
        with pytest.raises(TypeError):
            derive_permitted(root, permit, ("workload", "w"))
    assert derive_permitted(root, unbound.bind(**to_whom), ("workload", "w")) == _key(
        root, "acme/keys/a", ("workload", "w")
    )


async def derived(agent: Agent, name: str, workload: str | None = None) -> bytes:
    request = DeriveRequest(nonce=secrets.token_bytes(32), workload=workload)
    answer: ReleaseResponse = await agent.acting(
        lambda session: agent.world.broker.derivation.derive(session, name, request)
    )
    identity = agent.world.broker.identity
    permit = answer.verify(
        identity.key.public_key(),
        broker_id=identity.broker_id,
        jkt=agent.jkt,
        sealing_key=sealing_thumbprint(agent.sealing.suite, agent.sealing.public),
        name=name,
        nonce=request.nonce,
    )
    assert permit.version == DERIVED_VERSION
    answer.receipt.verify(identity.log_key)
    return agent.sealing.open(answer.sealed, answer.context)


@pytest.mark.asyncio
async def test_a_workload_gets_its_key_again_whoever_it_is_and_after_any_restart(world: World) -> None:
    one, two = await world.admitted("same"), await world.admitted("other")
    first = await derived(one, "acme/keys/disk", "anything")
    assert len(first) == 32
    assert await derived(two, "acme/keys/disk", "anything") == first
    assert await derived(one, "acme/keys/backup", "anything") != first
    await world.restart()
    assert await derived(one, "acme/keys/disk", "anything") == first


@pytest.mark.asyncio
async def test_a_key_of_the_measurements_is_another_for_another_image(world: World) -> None:
    one = await world.admitted("one", image="image one")
    twin = await world.admitted("twin", image="image one")
    other = await world.admitted("other", image="image two")
    key = await derived(one, "acme/keys/disk")
    assert await derived(twin, "acme/keys/disk") == key
    assert await derived(other, "acme/keys/disk") != key
    assert await derived(one, "acme/keys/disk", "anything") != key


@pytest.mark.asyncio
@pytest.mark.parametrize("shows_log", [True, False])
async def test_whatever_else_ran_in_a_domain_gives_it_another_key(world: World, shows_log: bool) -> None:
    clean, other = await world.admitted("clean", image="image one"), world.agent("other", image="image one")
    other.td.extend(3, b"\x0d" * 48, data=b"another program")
    client_nonce, answer = other.challenge()
    binding = other.binding(answer.nonce)
    evidence = other.evidence(binding, client_nonce)
    if not shows_log:
        message = proof_message(binding.broker_id, client_nonce, binding.nonce, evidence.quote, None)
        evidence = replace(evidence, event_log=None, proof=sign_proof(other.key, message))
    await other.attest(AttestationRequest(evidence=evidence.to_dict(), client_nonce=client_nonce))
    assert await derived(other, "acme/keys/disk") != await derived(clean, "acme/keys/disk")


@pytest.mark.asyncio
async def test_a_key_is_refused_to_whom_the_policy_or_the_measurements_do_not_fit(world: World) -> None:
    agent = await world.admitted()
    assert await outcome(derived(agent, "acme/open/disk")) == "refused: policy.no_rule"
    assert await outcome(derived(agent, "acme/keys/disk", "somebody else")) == BrokerCode.KEY_WORKLOAD
    assert await outcome(derived(agent, "keys")) == BrokerCode.SECRET_NAME
    assert world.kinds()[-1] == "key.refused"


def test_other_roots_tenants_names_and_grounds_give_other_keys() -> None:
    root = RootKey(b"R" * 32)
    found = {
        _key(root, "acme/keys/a", ("workload", "w")),
        _key(root, "acme/keys/b", ("workload", "w")),
        _key(root, "acme/keys/a", ("workload", "v")),
        _key(root, "acme/keys/a", ("measurement", "w")),
        _key(RootKey(b"S" * 32), "acme/keys/a", ("workload", "w")),
        root.derive("id"),
    }
    assert len(found) == 6


# ── who got what ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_who_got_what_is_found_by_secret_agent_workload_measurement_and_platform(world: World) -> None:
    await world.put("acme/open/a", b"a")
    await world.put("acme/open/b", b"b")
    one, two = await world.admitted("one", image="image one"), await world.admitted("two", image="image two")
    await one.release("acme/open/a")
    await two.release("acme/open/a")
    await two.release("acme/open/b")
    session = await world.broker.sessions.of_subject(two.subject, world.broker.clock())

    def found(**asked: Any) -> list[tuple[str, str]]:
        rows = world.broker.store.read(lambda tx: tx.releases.page(**asked))
        return [(row.name[-1], row.subject) for row in rows]

    assert found(name="acme/open/a") == [("a", one.subject), ("a", two.subject)]
    assert found(subject=two.subject) == [("a", two.subject), ("b", two.subject)]
    assert found(fact=("measurement", session.verdict.mr_td)) == [("a", two.subject), ("b", two.subject)]
    assert len(found(fact=("workload", "anything"))) == 3
    assert len(found(fact=("platform", session.verdict.ppid))) == 3
    assert found(fact=("platform", session.verdict.ppid), name="acme/open/b") == [("b", two.subject)]
    assert found(tenant="other") == []
    rows = world.broker.store.read(lambda tx: tx.releases.page())
    for row in rows:
        entry = json.loads(world.broker.audit.entry(row.entry).entry)
        assert (entry["kind"], entry["resource"], entry["subject"]) == ("secret.released", row.name, row.subject)


@pytest.fixture(params=["memory", "sql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return MemoryStore() if request.param == "memory" else SqlStore(tmp_path / "a.db", mac_key=b"k")


def _put(tx: Transaction, lease: Lease) -> None:
    tx.releases.put_lease(lease)


def test_both_stores_answer_alike(store: Store) -> None:
    def run(work: Callable[[Any], Any]) -> Any:
        return asyncio.run(store.transact(work))

    def row(entry: int, name: str, ground: str) -> Released:
        return Released(entry=entry, at_ms=1, name=name, version=1, subject="s", ground=ground, via="cloister")

    run(lambda tx: tx.releases.record(row(0, "a/b", "g1"), [("workload", "w"), ("platform", "p")]))
    run(lambda tx: tx.releases.record(row(1, "a/b", "g1"), [("workload", "ignored")]))
    run(lambda tx: tx.releases.record(row(5, "ab/c", "g2"), [("workload", "w")]))

    def page(**asked: Any) -> list[int]:
        return [item.entry for item in store.read(lambda tx: tx.releases.page(**asked))]

    assert page() == [0, 1, 5]
    assert page(limit=1) == [0]
    assert page(after=0, limit=1) == [1]
    assert page(tenant="a") == [0, 1]
    assert page(fact=("workload", "w"), subject="s") == [0, 1, 5]
    assert page(fact=("platform", "p")) == [0, 1]
    assert page(fact=("workload", "ignored")) == []
    assert list(store.read(lambda tx: tx.releases.facts("g1"))) == [("platform", "p"), ("workload", "w")]
    for name in ("a/c", "a/b", "b/a"):
        lease = Lease(name=name, version=1, subject="s", begun_at_s=1, ends_at_s=5)
        run(partial(_put, lease=lease))

    def names(**asked: Any) -> list[str]:
        return [item.name for item in store.read(lambda tx: tx.releases.leases(**asked))]

    assert names() == ["a/b", "a/c", "b/a"]
    assert names(tenant="a", after="a/b") == ["a/c"]
    assert names(limit=1) == ["a/b"]
    assert len(store.read(lambda tx: tx.releases.ended(now_s=5, limit=2))) == 2
    assert store.read(lambda tx: tx.releases.ended(now_s=4, limit=9)) == []
    store.close()


def test_facts_are_kept_once_for_all_releases_that_rest_on_them(store: Store) -> None:
    facts: list[tuple[FactKind, str]] = [("workload", "w"), ("platform", "p")]
    grounds = [ground_of(evidence, policy, facts) for evidence, policy in (("e1", "a"), ("e2", "a"), ("e2", "b"))]
    other = ground_of("e1", "a", facts[:1])

    def work(tx: Transaction) -> None:
        for entry, ground in enumerate([*grounds, other]):
            told = facts if ground != other else facts[:1]
            row = Released(entry=entry, at_ms=1, name="a/b", version=1, subject="s", ground=ground, via="cloister")
            tx.releases.record(row, told)

    asyncio.run(store.transact(work))
    kept = [list(store.read(lambda tx, ground=ground: tx.releases.facts(ground))) for ground in grounds]  # type: ignore[misc]
    assert kept == [sorted(facts)] * 3
    assert all(rests_on(ground, facts) for ground in grounds)
    assert not rests_on(other, facts)
    found = store.read(lambda tx: tx.releases.page(fact=("platform", "p")))
    assert [row.entry for row in found] == [0, 1, 2]
    assert len(store.read(lambda tx: tx.releases.page(fact=("workload", "w")))) == 4
    store.close()


def test_releases_of_an_earlier_version_keep_their_facts(tmp_path: Path) -> None:
    path, facts = tmp_path / "a.db", [("platform", "p"), ("workload", "w")]
    ground = ground_of("e", "a", cast("list[tuple[FactKind, str]]", facts))[:-32]  # half of the digest, as it was
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as old:
        before = MIGRATIONS.index(SHARED_FACTS)
        for statement in itertools.chain(*MIGRATIONS[:before]):
            old.execute(statement)
        old.execute(f"PRAGMA user_version = {before}")
        old.execute("INSERT INTO release_row VALUES (4, 1, 'a/b', 1, 's', ?, 'cloister')", (ground,))
        old.executemany("INSERT INTO release_fact VALUES (?, ?, ?)", [(ground, kind, value) for kind, value in facts])
    store = SqlStore(path, mac_key=b"k")
    (row,) = store.read(lambda tx: tx.releases.page(fact=("workload", "w")))
    kept = store.read(lambda tx: tx.releases.facts(row.ground))
    assert (row.entry, row.ground, list(kept)) == (4, ground, facts)
    assert rests_on(row.ground, kept)
    assert not rests_on(row.ground, kept[:1])
    store.close()
