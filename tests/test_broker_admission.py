"""Who gets in, who does not, and who has to leave again. Refusals by code; what is refused changes nothing."""

import asyncio
import logging
import secrets
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from attestation.errors import Code, CollateralUnavailable
from attestation.evidence import Evidence, Role
from attestation.quote import Quote
from broker.background import Background
from broker.bundles import Bundles
from broker.config import Admin
from broker.errors import BrokerCode, BrokerError
from broker.ports import AgentState
from broker.rootkey.root import RootKey
from broker.service import build
from broker.wire.bodies import AttestationRequest
from broker.wire.challenge import ChallengeRequest
from policies.bundle import load_bundle
from tests.admission_world import world as world
from tests.broker_world import Agent, World, outcome, write_bundle


def state_of(world: World, agent: Agent) -> AgentState:
    return world.broker.administration.agent(agent.subject).state


async def attested(agent: Agent, **changes: Any) -> str:
    return await outcome(agent.attest(agent.request(**changes)))


def changed(request: AttestationRequest, **members: Any) -> AttestationRequest:
    return AttestationRequest(evidence=request.evidence | members, client_nonce=request.client_nonce)


# ── the way in ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_a_genuine_agent_is_admitted_with_a_token_for_its_key_and_a_receipt(world: World) -> None:
    agent = world.agent()
    answer = await agent.attest()
    identity = world.broker.identity
    keys = {key.kid: key for key in identity.keys(world.broker.clock()).token_keys}
    assert answer.subject == agent.subject
    assert answer.receipt.verify(identity.log_key).origin == "broker.test/log"
    assert agent.jkt.encode() in answer.receipt.entry
    admission = identity.open(answer.token, world.broker.clock())
    assert (admission.verdict.subject, admission.verdict.jkt) == (agent.subject, agent.jkt)
    assert len(keys) == 1


@pytest.mark.asyncio
async def test_the_brokers_answer_proves_the_broker(world: World) -> None:
    client_nonce, answer = world.agent().challenge()
    key = answer.verify(world.broker.identity.broker_id, client_nonce=client_nonce)
    assert key.public_numbers() == world.broker.identity.key.public_key().public_numbers()


@pytest.mark.asyncio
async def test_t3_evidence_serves_once(world: World) -> None:
    agent = world.agent()
    request = agent.request()
    assert await outcome(agent.attest(request)) == "ok"
    before = world.kinds()
    assert await outcome(agent.attest(request)) == BrokerCode.CHALLENGE_USED
    assert world.kinds() == before


@pytest.mark.asyncio
async def test_t3_an_old_nonce_is_refused(world: World) -> None:
    agent = world.agent()
    request = agent.request()
    world.machine.clock.advance(61)
    assert await outcome(agent.attest(request)) == BrokerCode.CHALLENGE_EXPIRED
    assert await attested(agent) == "ok"


@pytest.mark.asyncio
async def test_t3_a_nonce_of_ones_own_making_is_refused(world: World) -> None:
    agent = world.agent()
    client_nonce = secrets.token_bytes(32)
    evidence = agent.evidence(agent.binding(secrets.token_bytes(32)), client_nonce)
    request = AttestationRequest(evidence=evidence.to_dict(), client_nonce=client_nonce)
    assert await outcome(agent.attest(request)) == BrokerCode.CHALLENGE_FORGED


@pytest.mark.asyncio
async def test_t3_a_nonce_given_to_another_caller_is_refused(world: World) -> None:
    agent = world.agent()
    request = agent.request()
    stolen = AttestationRequest(evidence=request.evidence, client_nonce=secrets.token_bytes(32))
    assert await outcome(agent.attest(stolen)) == BrokerCode.CHALLENGE_FORGED


@pytest.mark.asyncio
async def test_t3_the_quote_of_another_domain_admits_nobody(world: World) -> None:
    thief, victim = world.agent("thief"), world.agent("victim")
    client_nonce, answer = thief.challenge()
    quote = victim.td.quote(victim.binding(answer.nonce).report_data)
    evidence = thief.evidence(thief.binding(answer.nonce), client_nonce, quote=quote)
    request = AttestationRequest(evidence=evidence.to_dict(), client_nonce=client_nonce)
    assert await outcome(thief.attest(request)) == Code.BINDING_REPORT_DATA


@pytest.mark.asyncio
async def test_t12_who_passes_a_genuine_quote_on_without_its_key_is_refused(world: World) -> None:
    honest, middle = world.agent("honest"), world.agent("middle")
    client_nonce, answer = middle.challenge()
    binding = honest.binding(answer.nonce)
    evidence = replace(middle.evidence(binding, client_nonce, quote=honest.td.quote(binding.report_data)))
    request = AttestationRequest(evidence=evidence.to_dict(), client_nonce=client_nonce)
    assert await outcome(middle.attest(request)) == Code.EVIDENCE_PROOF


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"broker_id": bytes(32)}, BrokerCode.ATTESTATION_WRONG_BROKER),
        ({"role": Role.PEER}, BrokerCode.ATTESTATION_ROLE),
        ({"role": Role.BROKER}, BrokerCode.ATTESTATION_ROLE),
        ({"tenant": "other"}, BrokerCode.ATTESTATION_TENANT),
    ],
    ids=str,
)
async def test_evidence_for_something_else_is_refused(world: World, changes: dict[str, Any], code: BrokerCode) -> None:
    before = world.kinds()
    assert await attested(world.agent(), **changes) == code
    assert world.kinds() == before


@pytest.mark.asyncio
async def test_a_debug_domain_is_refused_and_the_log_says_so(world: World) -> None:
    agent = world.agent(attributes=1)
    assert await attested(agent) == Code.QUOTE_DEBUG
    assert world.kinds()[-1] == "agent.refused"
    assert await outcome(world.broker.sessions.of_subject(agent.subject, world.broker.clock())) == "agent.unknown"


@pytest.mark.asyncio
async def test_t38_a_quote_under_another_root_is_refused_and_earns_no_entry(tmp_path: Path) -> None:
    from attestation.pki import TrustRoots
    from broker.config import Settings
    from simulator.machine import Machine

    machine = Machine.create(seed="other")
    settings = Settings(public_url="http://broker.test", bundles=(write_bundle(tmp_path / "b"),))
    broker = await build(settings, clock=machine.clock.now, collateral=machine.as_source(), roots=TrustRoots.intel())
    world = World(
        machine=machine,
        settings=settings,
        root_key=RootKey.generate(),
        broker=broker,
        admin_key=ec.generate_private_key(ec.SECP256R1()),
    )
    before = world.kinds()
    assert await attested(world.agent()) == Code.CHAIN_ROOT
    assert world.kinds() == before
    assert broker.collateral.families == {}
    await broker.close()


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("members", "code"),
    [
        ({"quote": ""}, Code.EVIDENCE_FIELD),
        ({"quote": "AAAA"}, Code.QUOTE_TRUNCATED),
        ({"quote": 7}, Code.EVIDENCE_FIELD),
        ({"proof": "A" * 86}, Code.EVIDENCE_PROOF),
        ({"binding": {}}, Code.EVIDENCE_MALFORMED),
        ({"more": 1}, Code.EVIDENCE_MALFORMED),
        ({"event_log": "AAAA"}, Code.EVIDENCE_PROOF),
    ],
    ids=str,
)
async def test_malformed_evidence_has_its_own_code_and_changes_nothing(
    world: World, members: dict[str, Any], code: Code
) -> None:
    agent = world.agent()
    before = world.kinds()
    assert await outcome(agent.attest(changed(agent.request(), **members))) == code
    assert world.kinds() == before


@pytest.mark.asyncio
async def test_an_event_log_that_does_not_lead_to_the_registers_is_refused(world: World) -> None:
    agent, other = world.agent(), world.agent(image="other")
    client_nonce, answer = agent.challenge()
    binding = agent.binding(answer.nonce)
    agent.td, quoted = other.td, agent.td.quote(binding.report_data)  # the log of another image beside its own quote
    evidence = agent.evidence(binding, client_nonce, quote=quoted)
    request = AttestationRequest(evidence=evidence.to_dict(), client_nonce=client_nonce)
    assert await outcome(agent.attest(request)) == Code.EVENTLOG_REPLAY
    assert world.kinds()[-1] == "agent.refused"


@pytest.mark.asyncio
async def test_one_nonce_admits_once_however_many_try_at_the_same_time(world: World) -> None:
    agent = world.agent()
    request = agent.request()
    outcomes = await asyncio.gather(*(outcome(agent.attest(request)) for _ in range(8)))
    assert sorted(outcomes) == [BrokerCode.CHALLENGE_USED] * 7 + ["ok"]


# ── collateral ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def fetched(world: World) -> None:
    """What is being fetched in the background has come, or has failed."""
    while fetching := list(world.broker.collateral._fetching.values()):
        await asyncio.wait(fetching)
        await asyncio.sleep(0)  # a task's callbacks run after whoever waits for it


@pytest.mark.asyncio
async def test_an_unknown_platform_is_fetched_in_the_background_and_then_admitted(tmp_path: Path) -> None:
    world = await World.make(tmp_path, prefetch=False)
    agent = world.agent()
    assert await attested(agent) == BrokerCode.COLLATERAL_PENDING
    await fetched(world)
    assert await attested(agent) == "ok"
    await world.broker.close()


class Counting:
    """A source that counts, waits, or fails."""

    def __init__(self, world: World, *, fails: bool = False) -> None:
        self.asked = 0
        self._source = world.machine.as_source()
        self._fails = fails

    def fetch(self, quote: Quote) -> Any:
        self.asked += 1
        if self._fails:
            raise CollateralUnavailable(Code.COLLATERAL_UNREACHABLE, "nobody there")
        return self._source.fetch(quote)


@pytest.mark.asyncio
async def test_t35_many_newcomers_ask_the_source_once(tmp_path: Path) -> None:
    world = await World.make(tmp_path, prefetch=False)
    source = Counting(world)
    world.broker.collateral._source = source
    codes = await asyncio.gather(*(attested(world.agent()) for _ in range(10)))
    assert set(codes) == {BrokerCode.COLLATERAL_PENDING}
    await fetched(world)
    assert source.asked == 1
    await world.broker.close()


@pytest.mark.asyncio
async def test_a_source_that_fails_is_told_and_never_a_pass(tmp_path: Path) -> None:
    world = await World.make(tmp_path, prefetch=False)
    source = Counting(world, fails=True)
    world.broker.collateral._source = source
    assert await attested(world.agent()) == BrokerCode.COLLATERAL_PENDING
    await fetched(world)
    assert await attested(world.agent()) == Code.COLLATERAL_UNREACHABLE
    assert source.asked == 1
    await world.broker.close()


@pytest.mark.asyncio
async def test_collateral_survives_a_restart_without_a_fetch(tmp_path: Path) -> None:
    world = await World.make(tmp_path, database=True)
    families = world.broker.collateral.families
    await world.restart()
    assert world.broker.collateral.families == families
    assert await attested(world.agent()) == "ok"
    await world.broker.close()


@pytest.mark.asyncio
async def test_older_collateral_is_not_taken(world: World) -> None:
    before = world.broker.collateral.families
    old = world.machine.fork(world.machine.clock.now() - timedelta(days=60))
    world.broker.collateral._source = old.as_source()
    assert not await world.broker.collateral.refresh()
    assert world.broker.collateral.families == before


# ── rights that end ────────────────────────────────────────────────────────────────────────────────────────────────


async def fall_out_of_date(world: World) -> None:
    world.machine.recover("publish", standard=True)
    world.machine.clock.advance(1)
    assert await world.broker.collateral.refresh()


def mend(world: World, agent: Agent) -> None:
    """The platform is updated and the domain launched anew, with the same keys."""
    world.machine.patch_platform(microcode=9)
    agent.td = world.machine.launch("again")


@pytest.mark.asyncio
async def test_t31_a_platform_that_falls_out_of_date_takes_rights_away_mid_run(world: World) -> None:
    agent = await world.admitted()
    await world.put("acme/open/key", b"value")
    await agent.release("acme/open/key")
    generation = world.broker.generation.current
    await fall_out_of_date(world)
    assert world.broker.generation.current > generation
    assert await outcome(agent.release("acme/open/key")) == BrokerCode.AGENT_QUARANTINED
    assert state_of(world, agent) is AgentState.QUARANTINED
    assert (await attested(agent)).startswith("refused: ")
    kinds = world.kinds()
    assert kinds.index("generation.changed", 1) < kinds.index("agent.quarantined")
    record = world.broker.administration.agent(agent.subject)
    assert record.codes


@pytest.mark.asyncio
async def test_an_agent_that_passes_again_is_let_in_again(world: World) -> None:
    agent = await world.admitted()
    await world.put("acme/open/key", b"value")
    await fall_out_of_date(world)
    assert await outcome(agent.release("acme/open/key")) == BrokerCode.AGENT_QUARANTINED
    write_bundle(world.settings.bundles[0], ('["UpToDate"]', '["UpToDate", "OutOfDate"]'), version=2)
    await world.broker.administration.reload_policies(world.settings.admins[0])
    assert await outcome(agent.release("acme/open/key")) == "ok"
    assert state_of(world, agent) is AgentState.ADMITTED
    assert "agent.restored" in world.kinds()


@pytest.mark.asyncio
async def test_a_stricter_policy_takes_rights_away_at_the_next_use(world: World) -> None:
    agent = await world.admitted()
    await world.put("acme/open/key", b"value")
    await agent.release("acme/open/key")
    write_bundle(world.settings.bundles[0], ("principal.simulated", "!principal.simulated"), version=2)
    await world.broker.administration.reload_policies(world.settings.admins[0])
    assert await outcome(agent.release("acme/open/key")) == BrokerCode.AGENT_QUARANTINED


@pytest.mark.asyncio
async def test_t25_an_older_policy_is_refused(world: World) -> None:
    folder = world.settings.bundles[0]
    write_bundle(folder, version=3)
    await world.broker.administration.reload_policies(world.settings.admins[0])
    write_bundle(folder, version=2)
    again = world.broker.administration.reload_policies(world.settings.admins[0])
    assert await outcome(again) == BrokerCode.CONFIG_INVALID


@pytest.mark.asyncio
async def test_t25_an_older_policy_does_not_come_back_with_a_restart(tmp_path: Path) -> None:
    world = await World.make(tmp_path, database=True)
    write_bundle(world.settings.bundles[0], version=2)
    await world.restart()
    write_bundle(world.settings.bundles[0])
    assert await outcome(world.restart()) == BrokerCode.CONFIG_INVALID


@pytest.mark.asyncio
async def test_a_policy_that_changed_while_the_broker_was_off_voids_what_was_decided(tmp_path: Path) -> None:
    world = await World.make(tmp_path, database=True)
    agent = await world.admitted()
    generation = world.broker.generation.current
    await world.restart()
    assert world.broker.generation.current == generation
    write_bundle(world.settings.bundles[0], version=2)
    await world.restart()
    assert world.broker.generation.current == generation + 1
    assert state_of(world, agent) is AgentState.ADMITTED
    await world.broker.close()


@pytest.mark.asyncio
async def test_a_revoked_agent_is_out_for_good(world: World) -> None:
    agent = await world.admitted()
    await world.put("acme/open/key", b"value")
    await world.broker.administration.revoke(world.settings.admins[0], agent.subject, "lost laptop")
    assert await outcome(agent.release("acme/open/key")) == BrokerCode.AGENT_REVOKED
    assert await attested(agent) == BrokerCode.AGENT_REVOKED
    assert await attested(world.agent()) == "ok"


@pytest.mark.asyncio
async def test_a_revocation_survives_an_edited_agent_row(tmp_path: Path) -> None:
    world = await World.make(tmp_path, database=True)
    agent = await world.admitted()
    await world.broker.administration.revoke(world.settings.admins[0], agent.subject, "")
    await world.broker.store.transact(
        lambda tx: tx.agents.put(replace(world.broker.administration.agent(agent.subject), state=AgentState.ADMITTED))
    )
    assert await attested(agent) == BrokerCode.AGENT_REVOKED
    await world.broker.close()


@pytest.mark.asyncio
async def test_the_sweep_judges_everybody_without_waiting_for_a_use(world: World) -> None:
    agents = [await world.admitted() for _ in range(5)]
    await fall_out_of_date(world)
    assert await world.broker.sessions.sweep() == 5
    assert {state_of(world, agent) for agent in agents} == {AgentState.QUARANTINED}
    assert await world.broker.sessions.sweep() == 0


@pytest.mark.asyncio
@pytest.mark.parametrize("which", [0, 1], ids=["the-one-being-judged", "one-whose-turn-comes"])
async def test_whoever_attests_again_while_the_sweep_runs_is_not_judged_by_the_older_evidence(
    which: int, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    agents = sorted([await world.admitted(), await world.admitted()], key=lambda agent: agent.subject)
    await fall_out_of_date(world)
    mend(world, agents[which])
    request, record = agents[which].request(), world.broker.audit.record
    renewed: list[int] = []

    async def overtaken(entry: Any, work: Any) -> Any:
        if entry.kind == "agent.quarantined":  # between the first judgement and its transaction
            monkeypatch.undo()
            renewed.append((await agents[which].attest(request)).expires_at_s)
        return await record(entry, work)

    monkeypatch.setattr("broker.sessions.SWEEP_AT_ONCE", 1)
    monkeypatch.setattr(world.broker.audit, "record", overtaken)
    assert await world.broker.sessions.sweep() == 2
    found = world.broker.administration.agent(agents[which].subject)
    assert (found.state, [found.expires_at_s]) == (AgentState.ADMITTED, renewed)
    assert state_of(world, agents[1 - which]) is AgentState.QUARANTINED


@pytest.mark.asyncio
async def test_the_background_judges_after_a_change_and_counts_refusals(world: World) -> None:
    agent = await world.admitted()
    background = Background(world.broker)
    judged = asyncio.Event()
    world.broker.store.after_commit(judged.set)
    async with background:
        await fall_out_of_date(world)
        async with asyncio.timeout(10):
            while state_of(world, agent) is not AgentState.QUARANTINED:
                await judged.wait()
                judged.clear()
        assert state_of(world, agent) is AgentState.QUARANTINED
        world.broker.metrics.refused("quote.truncated")
        assert await background.write_refusals()
        assert not await background.write_refusals()
    assert world.kinds()[-1] == "refusals.counted"


@pytest.mark.asyncio
async def test_a_token_ends_with_its_time_and_is_renewed_by_attesting(world: World) -> None:
    agent = await world.admitted()
    await world.put("acme/open/key", b"value")
    world.machine.clock.advance(301)
    assert await outcome(agent.release("acme/open/key")) == Code.TOKEN_EXPIRED
    assert await attested(agent) == "ok"
    await agent.release("acme/open/key")


@pytest.mark.asyncio
async def test_t5_a_clock_that_jumps_back_judges_nothing(world: World) -> None:
    agent = await world.admitted()
    world.machine.clock.advance(-20)
    assert await attested(agent) == "ok"
    world.machine.clock.advance(-86_400)
    assert await outcome(agent.attest(AttestationRequest(evidence={}, client_nonce=bytes(32)))) == "clock.behind"
    with pytest.raises(BrokerError):
        world.broker.admission.challenge(ChallengeRequest(client_nonce=bytes(32)))


@pytest.mark.asyncio
async def test_a_broker_whose_clock_is_behind_its_log_does_not_start(tmp_path: Path) -> None:
    world = await World.make(tmp_path, database=True)
    world.machine.clock.advance(-86_400)
    assert await outcome(world.restart()) == BrokerCode.CLOCK_BEHIND


# ── small things ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_two_bundles_for_one_tenant_are_a_mistake(tmp_path: Path) -> None:
    bundle = load_bundle(write_bundle(tmp_path / "b"))
    with pytest.raises(BrokerError) as caught:
        Bundles([bundle, bundle])
    assert caught.value.code is BrokerCode.CONFIG_INVALID


@pytest.mark.asyncio
async def test_the_roots_that_are_trusted_are_logged_at_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="cloister.broker"):
        world = await World.make(tmp_path, prefetch=False, admins=(Admin(name="a", jkt="A" * 43),))
    assert [vars(record).get("sha256") for record in caplog.records if record.msg == "trust.root"] == [
        *world.machine.roots.sha256
    ]
    assert world.machine.roots.sha256[0] in world.broker.audit.entry(1).entry.decode()
    await world.broker.close()


@pytest.mark.asyncio
async def test_archived_evidence_can_be_judged_again_by_anybody(world: World) -> None:
    from broker.archive import unpack

    agent = await world.admitted()
    record = world.broker.administration.agent(agent.subject)
    evidence, client_nonce = world.broker.store.read(lambda tx: unpack(tx, record.evidence))
    assert isinstance(evidence, Evidence)
    assert len(client_nonce) == 32
    collateral = world.broker.store.read(lambda tx: tx.archive.get(bytes.fromhex(record.collateral)))
    assert collateral
