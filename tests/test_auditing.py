"""What an auditor finds: a replica that says yes, a row without a story, a token without evidence, a forked log."""

import json
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from broker.audit import Entry, Kind, verify_store
from broker.auditing import GIVING, Flag, Flaw, review, token_flags
from broker.errors import BrokerCode, BrokerError
from broker.generation import Generation
from broker.platforms import MAX_ADDRESSES, MAX_PLATFORMS, WINDOW_S, Platforms
from broker.store.sql import SqlFile
from broker.wire.jose import split_compact
from broker.wire.log import Receipt, verifier_key
from policies import permit as permits
from policies.bundle import load_bundle
from policies.permit import Permit
from tests.broker_world import World, outcome, write_bundle

ROOT = Path(__file__).resolve().parent.parent


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = await World.make(tmp_path, database=True, archive_days=30)
    await made.put("acme/open/a", b"value")
    yield made
    await made.broker.close()


def flags(world: World, *, repeat: bool = True) -> list[Flag]:
    store, log_key = world.broker.store, world.broker.identity.log_key
    return list(review(store, log_key, roots=world.machine.roots if repeat else None))


def flaws(world: World, *, repeat: bool = True) -> set[Flaw]:
    return {flag.flaw for flag in flags(world, repeat=repeat)}


@pytest.mark.asyncio
async def test_an_honest_broker_is_not_flagged(world: World) -> None:
    agent = await world.admitted()
    await agent.release("acme/open/a")
    await outcome(agent.release("acme/shut/a"))
    await outcome(world.agent(attributes=0x1000_0001).attest())
    world.machine.recover("revoke-pck", platform=0)
    await world.broker.administration.refresh_collateral()
    await world.broker.sessions.sweep()
    assert await outcome(agent.release("acme/open/a")) == "agent.quarantined"
    assert flags(world) == []
    verify_store(world.broker.store, world.broker.identity.log_key)


# ── T21: a replica that releases without being entitled to ─────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_t21_a_replica_that_says_yes_to_everything_is_flagged(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Patched to permit what its policy forbids: the release is in the log, and taking it again shows it."""
    agent = await world.admitted()

    def yes(bundle: Any, verdict: Any, action: Any, *, context: Any) -> Permit:
        return Permit(
            policy=bundle.digest,
            policy_version=bundle.version,
            subject=verdict.subject,
            tenant=bundle.tenant,
            action=action.action,
            resource=action.name,
            version=action.version,
            at=context.at,
            not_after=context.at + timedelta(seconds=60),
            cacheable=False,
            rules=("anything-goes",),
            standing="current",
            workloads=(),
            via=context.via,
            seal=permits._SEAL,
        )

    await world.put("acme/shut/a", b"value")
    monkeypatch.setattr("broker.release.decide", yes)
    await agent.release("acme/shut/a")
    (flag,) = flags(world)
    assert flag.flaw is Flaw.DECISION_DIFFERS
    assert "policy.no_rule" in flag.detail
    assert flag.subject == agent.subject


@pytest.mark.asyncio
@pytest.mark.parametrize("kind", GIVING)
async def test_t21_what_goes_to_somebody_who_was_never_admitted_is_flagged(world: World, kind: Kind) -> None:
    entry = Entry(kind=kind, at=world.broker.clock(), subject="agent/acme/nobody", resource="acme/a/b")
    await world.broker.audit.record(entry, lambda _: None)
    assert Flaw.RELEASE_WITHOUT_ADMISSION in flaws(world)


@pytest.mark.asyncio
async def test_t21_a_release_after_a_revocation_is_flagged(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sequencer and the sessions are both patched: the revoked agent's next release goes through."""
    agent = await world.admitted()
    session = await world.broker.sessions.of_subject(agent.subject, world.broker.clock())
    await world.broker.administration.revoke(world.settings.admins[0], agent.subject, "gone")
    assert flaws(world) == set()
    monkeypatch.setattr(Generation, "expect", lambda *_: None)
    world.broker.sessions.admit(session)
    monkeypatch.setattr(type(world.broker.sessions), "_current", lambda *_: True)
    await agent.release("acme/open/a")
    assert flaws(world) == {Flaw.RELEASE_AFTER_REVOCATION}


@pytest.mark.asyncio
async def test_t21_a_retired_key_that_is_admitted_with_a_clean_account_is_flagged(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = await world.admitted()
    await agent.release("acme/open/a")
    world.machine.clock.advance(timedelta(days=91))
    await world.broker.collateral.refresh()
    assert await world.broker.retirement.sweep() == 1
    assert flaws(world) == set()
    monkeypatch.setattr("broker.admission.require_current", lambda *_: None)
    await agent.attest()
    (flag,) = flags(world)
    assert (flag.flaw, flag.subject) == (Flaw.RELEASE_AFTER_REVOCATION, agent.subject)


@pytest.mark.asyncio
async def test_t21_decisions_under_a_policy_that_was_never_in_force_are_flagged(world: World, tmp_path: Path) -> None:
    agent = world.agent()
    other = load_bundle(write_bundle(tmp_path / "slipped", ("acme/open", "acme"), version=7))
    world.broker.admission._judge.bundles.replace(other)  # behind the sequencer's back
    await agent.attest()
    assert {Flaw.POLICY_NOT_IN_FORCE, Flaw.EVIDENCE_MISSING} <= flaws(world)


# ── T24: tokens and records without evidence ───────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_t24_an_admission_under_somebody_elses_evidence_is_flagged(world: World) -> None:
    """A replica admits a key under somebody else's evidence: taken again, it is another agent's."""
    nobody = world.agent()
    await world.admitted()
    entry = json.loads(world.broker.audit.newest(kind="agent.admitted", limit=1)[0].entry)
    forged = Entry(
        kind=Kind.AGENT_ADMITTED,
        at=world.broker.clock(),
        subject=nobody.subject,
        tenant="acme",
        policy=entry["policy"],
        evidence=entry["evidence"],
        collateral=entry["collateral"],
        permit=entry["permit"],
    )
    await world.broker.audit.record(forged, lambda _: None)
    assert flaws(world) == {Flaw.DECISION_DIFFERS}


@pytest.mark.asyncio
async def test_t24_a_token_without_evidence_is_flagged(world: World) -> None:
    """A replica signs a token for a key that never attested: nothing in log and archive stands behind it."""
    agent = await world.admitted()
    _, claims, _, _ = split_compact(agent.token, max_len=1 << 20)
    store = world.broker.store
    assert list(token_flags(store, claims["cloister_verdict"])) == []
    for changes in ({"nonce": "00" * 32}, {"subject": "agent/acme/" + "A" * 43}):
        (flag,) = token_flags(store, claims["cloister_verdict"] | changes)
        assert flag.flaw is Flaw.TOKEN_WITHOUT_EVIDENCE


@pytest.mark.asyncio
async def test_t24_an_agent_that_a_row_calls_admitted_is_flagged(world: World) -> None:
    agent = await world.admitted()
    record = world.broker.administration.agent(agent.subject)
    ghost = replace(record, subject="agent/acme/" + "G" * 43)
    await world.broker.store.transact(lambda tx: tx.agents.put(ghost))
    (flag,) = flags(world)
    assert (flag.flaw, flag.subject, flag.index) == (Flaw.AGENT_WITHOUT_ADMISSION, ghost.subject, None)


@pytest.mark.asyncio
async def test_t24_evidence_that_somebody_removed_is_missed(world: World) -> None:
    await world.admitted()
    record = world.broker.audit.newest(kind="agent.admitted", limit=1)[0]
    evidence = json.loads(record.entry)["evidence"]
    with sqlite3.connect(world.settings.database or "") as database:
        database.execute("DELETE FROM archive WHERE digest = ?", (bytes.fromhex(evidence),))
    assert flaws(world, repeat=False) == {Flaw.EVIDENCE_MISSING}


# ── T22, T27: two histories, deleted rows ──────────────────────────────────────────────────────────────────────────


def command(*arguments: str | Path) -> tuple[int, dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "cloister", "audit", *map(str, arguments), "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, json.loads(done.stdout) if done.stdout else {}


def kept(folder: Path, name: str, receipt: Receipt) -> Path:
    path = folder / name
    path.write_text(json.dumps(receipt.to_dict()))
    return path


@pytest.mark.asyncio
async def test_t22_two_receipt_holders_find_a_fork_by_comparing(world: World, tmp_path: Path) -> None:
    """The same broker, its disk copied: two lives go on from one state, each with its own history under one key."""
    vkey = tmp_path / "log.vkey"
    vkey.write_text(verifier_key(world.broker.identity.log_name, world.broker.identity.log_key))
    first = await world.agent().attest()
    one = kept(tmp_path, "one", first.receipt)
    path = world.settings.database
    assert path is not None
    await world.broker.close()
    copy = tmp_path / "copy.db"
    copy.write_bytes(path.read_bytes())
    await world.restart()
    two = kept(tmp_path, "two", (await world.agent().attest()).receipt)
    await world.restart(database=copy)
    three = kept(tmp_path, "three", (await world.agent().attest()).receipt)
    status, told = command("compare", two, three, "--log-key", vkey)
    assert (status, told["code"]) == (1, "audit.fork")
    status, told = command("compare", one, two, "--log-key", vkey, "--database", path)
    assert (status, told["ok"]) == (0, True)
    assert command("compare", one, two, "--log-key", vkey)[0] == 4  # nobody gave a proof
    status, told = command("compare", one, two, "--log-key", vkey, "--database", copy)
    assert status == 1  # this history does not contain the second receipt
    checkpoint = tmp_path / "checkpoint"
    checkpoint.write_text(Receipt.from_dict(json.loads(one.read_text())).checkpoint)
    assert command("compare", checkpoint, one, "--log-key", vkey)[0] == 0


@pytest.mark.asyncio
async def test_t27_deleted_rows_break_the_log(world: World, tmp_path: Path) -> None:
    await world.admitted()
    log_key, path = world.broker.identity.log_key, world.settings.database
    assert path is not None
    await world.broker.close()
    for statement in (
        "DELETE FROM log_entry WHERE idx = 2",
        "DELETE FROM log_entry WHERE idx = (SELECT max(idx) FROM log_entry)",
        "UPDATE log_entry SET entry = replace(entry, 'agent.admitted', 'agent.refused')",
    ):
        copy = tmp_path / "cut.db"
        copy.write_bytes(path.read_bytes())
        with sqlite3.connect(copy) as database:
            database.execute(statement)
        with pytest.raises(BrokerError, match=r"log\.tampered"):
            verify_store(SqlFile(copy), log_key)
    await world.restart()


@pytest.mark.asyncio
async def test_the_commands_verify_bundle_and_token_work_on_a_copy(world: World, tmp_path: Path) -> None:
    agent = await world.admitted()
    path, identity = world.settings.database, world.broker.identity
    vkey, root, jwks, token = (tmp_path / name for name in ("log.vkey", "root.pem", "jwks.json", "token"))
    vkey.write_text(verifier_key(identity.log_name, identity.log_key))
    root.write_bytes(world.machine.root_pem)
    jwks.write_text(json.dumps(identity.jwks(world.broker.clock())))
    token.write_text(agent.token)
    assert path is not None
    status, told = command("verify", path, "--log-key", vkey, "--root", root)
    assert (status, told["ok"], told["flags"], told["repeated"]) == (0, True, [], True)
    index = world.broker.audit.newest(kind="agent.admitted", limit=1)[0].index
    out = tmp_path / "decision"
    status, told = command("bundle", str(index), "--out", out, "--database", path, "--log-key", vkey)
    assert (status, told["bytes"]) == (0, out.stat().st_size)
    status, told = command("bundle", str(10**30), "--out", out, "--database", path, "--log-key", vkey)
    assert (status, told["code"]) == (1, BrokerCode.LOG_ENTRY_UNKNOWN)
    assert command("token", path, "--token", token, "--jwks", jwks)[0] == 0
    entry = Entry(kind=Kind.SECRET_RELEASED, at=world.broker.clock(), subject="agent/acme/nobody", resource="acme/a/b")
    await world.broker.audit.record(entry, lambda _: None)
    status, told = command("verify", path, "--log-key", vkey)
    assert status == 1
    assert {flag["code"] for flag in told["flags"]} == {Flaw.RELEASE_WITHOUT_ADMISSION, Flaw.EVIDENCE_MISSING}
    token.write_text(agent.token[:-4] + "AAAA")
    assert command("token", path, "--token", token, "--jwks", jwks)[0] == 1


# ── retention ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_the_archive_keeps_what_is_young_or_still_needed(world: World) -> None:
    """Evidence of an agent that has gone is dropped after the retention; a live agent's, policies, collateral stay."""
    broker = world.broker
    gone = await world.admitted()
    before = json.loads(broker.audit.newest(kind="agent.admitted", limit=1)[0].entry)["evidence"]
    day_s = 86_400

    async def cut() -> int:
        return await broker.upkeep.cut_archive()

    assert await cut() == 0
    world.machine.clock.advance(33 * day_s)
    await broker.administration.refresh_collateral()
    live = await world.admitted()
    assert await cut() > 0
    assert broker.store.read(lambda tx: tx.archive.get(bytes.fromhex(before))) is None
    assert world.kinds().count("archive.pruned") == 1
    await live.release("acme/open/a")
    assert flags(world) == []  # what the log says was dropped is not missed
    record = broker.administration.agent(live.subject)
    assert broker.store.read(lambda tx: tx.archive.get(record.evidence))
    assert broker.administration.agent(gone.subject).evidence.hex() == before
    await world.restart()  # policies and collateral are read back
    assert world.broker.collateral.families


@pytest.mark.asyncio
async def test_what_several_decisions_rest_on_is_kept_as_long_as_the_last_of_them(world: World) -> None:
    """When a blob was last used is written down by the day; nothing is dropped before its time for that."""
    broker, hour_s = world.broker, 3600
    await world.admitted()
    world.machine.clock.advance(23 * hour_s)
    await world.admitted()  # on the same platform: what vouches for the quote is there already
    world.machine.clock.advance((30 * 24 - 22) * hour_s)
    await broker.administration.refresh_collateral()
    await broker.upkeep.cut_archive()
    assert flags(world) == []
    world.machine.clock.advance(3 * 24 * hour_s)
    assert await broker.upkeep.cut_archive() > 0


# ── T29: one platform at two addresses ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_t29_a_cloned_platform_key_shows_as_one_platform_at_two_addresses(tmp_path: Path) -> None:
    """Without a list of platforms: refused where the policy bounds addresses, raised and shown in any case."""
    world = await World.make(tmp_path)
    clone = world.machine.clone_platform(0)
    first, twin = world.agent(), world.agent(platform=clone)
    admit = world.broker.admission.attest
    await admit(first.request(), source_ip="192.0.2.1")
    await admit(world.agent().request(), source_ip="192.0.2.1")
    assert world.broker.upkeep.elsewhere() == {}
    told = await outcome(admit(twin.request(), source_ip="198.51.100.7"))
    assert told == "refused: policy.platform_seen_elsewhere"
    (addresses,) = world.broker.upkeep.elsewhere().values()
    assert addresses == ["192.0.2.1", "198.51.100.7"]
    entry = json.loads(world.broker.audit.newest(kind="agent.refused", limit=1)[0].entry)
    assert (entry["platform_addresses"], entry["source_ip"]) == (2, "198.51.100.7")
    assert await outcome(admit(first.request(), source_ip="192.0.2.1")) == told  # the original is as suspect
    world.machine.clock.advance(WINDOW_S + 1)
    assert await outcome(admit(first.request(), source_ip="192.0.2.1")) == "ok"
    await world.broker.close()


def test_sightings_are_bounded() -> None:
    at, seen = datetime(2026, 1, 1, tzinfo=UTC), Platforms()
    for number in range(MAX_ADDRESSES + 5):
        seen.see("p", f"10.0.0.{number}", at)
    assert seen.see("p", None, at) == MAX_ADDRESSES
    for number in range(MAX_PLATFORMS + 5):
        seen.see(f"p{number}", "10.0.0.1", at)
    assert len(seen._seen) == MAX_PLATFORMS
    assert seen.see("", "10.0.0.1", at) == 1
