"""Proof of a peer's state: what convinces an agent is the peer's own quote, and no broker can make one."""

import asyncio
import json
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from attestation.collateral import Collateral
from attestation.errors import CloisterError
from attestation.evidence import Evidence, Role
from attestation.tcb import UP_TO_DATE
from attestation.verdict import Verdict
from attestation.verifier import Verifier
from broker.wire.bodies import peer_audience
from broker.wire.mailbox import MailboxInfo
from enclave.agent import Agent
from enclave.clock import BrokerTime
from enclave.errors import Code
from enclave.keys import AgentKeys
from enclave.mailbox import Outbox
from enclave.peers import NONCE_LEN, ProofAsked, ProofGiven, Prover, judge_proof, prove_peer
from enclave.trustfile import TrustFile, render
from simulator.broker_fixture import BrokerUnderTest
from simulator.domain import DEBUG, SEPT_VE_DISABLE
from simulator.machine import Machine
from tests.test_enclave_mailbox import MACHINE, NOW_S, Party, Router, Ticks, party

LOG_KEY = bytes(range(32))
TRUST = TrustFile.parse(render(tenant="lab", log_key=LOG_KEY, roots_pem=(MACHINE.root_pem,)))
OTHER_MACHINE = Machine.create(seed="another root")


def clock() -> BrokerTime:
    made = BrokerTime(Ticks())
    made.learn(NOW_S)
    return made


class Peer:
    """A peer with its prover. Its domain is genuine unless a test says otherwise."""

    def __init__(self, machine: Machine = MACHINE, trust: TrustFile = TRUST, **launch: Any) -> None:
        self.keys = AgentKeys.generate()
        self.domain = machine.launch("peer", **launch)
        self.prover = Prover(self.domain, self.keys, trust, clock())
        self.asker = party(Router(), "asker")

    def give(self, nonce: bytes, asker: Party | None = None) -> ProofGiven:
        verdict = (asker or self.asker).verdict
        return asyncio.run(self.prover.prove(ProofAsked(nonce=nonce), verdict))

    def judged(self, given: ProofGiven, over: bytes, **changes: Any) -> str:
        """The outcome for the asker of this peer, with one thing changed."""
        how: dict[str, Any] = {
            "nonce": over,
            "asker_jkt": self.asker.keys.jkt,
            "identity_key": self.keys.identity_key,
            "trust": TRUST,
            "verifier": Verifier(TRUST.roots),
            "time": clock(),
            "judge": lambda verdict: True,
        }
        collateral = changes.pop("collateral", MACHINE.collateral())
        return code(lambda: judge_proof(given, collateral, **(how | changes)))


def code(work: Callable[[], object]) -> str:
    try:
        work()
    except CloisterError as error:
        return str(error.code)
    return "ok"


def changed(given: ProofGiven, **members: Any) -> ProofGiven:
    """The same evidence with members of its JSON replaced."""
    found = json.loads(given.evidence)
    return ProofGiven(evidence=json.dumps({**found, **members}))


# ── what passes and what does not ──────────────────────────────────────────────────────────────────────────────────


def test_a_peer_proves_its_keys_over_a_nonce_of_now() -> None:
    peer, nonce = Peer(), os.urandom(NONCE_LEN)
    given = peer.give(nonce)
    assert peer.judged(given, nonce) == "ok"
    evidence = Evidence.from_dict(json.loads(given.evidence))
    assert evidence.binding.role is Role.PEER


def test_a_proof_serves_one_nonce_one_asker_and_one_key() -> None:
    peer, nonce = Peer(), os.urandom(NONCE_LEN)
    given = peer.give(nonce)
    other = party(Router(), "other")
    edits: tuple[dict[str, Any], ...] = (
        {"nonce": os.urandom(NONCE_LEN)},
        {"asker_jkt": other.keys.jkt},  # passed on to somebody else
        {"identity_key": other.keys.identity_key},  # brought by somebody who speaks with another key
        {"trust": replace(TRUST, tenant="other")},
        {"trust": replace(TRUST, broker_id=bytes(32))},
    )
    for changes in edits:
        assert peer.judged(given, nonce, **changes) == Code.PEER_PROOF_MISMATCH


def test_a_quote_made_in_another_role_proves_nothing() -> None:
    """The same peer's evidence for its admission, which the broker has: it was made as an agent, not as a peer."""
    peer, nonce = Peer(), os.urandom(NONCE_LEN)
    evidence = Evidence.from_dict(json.loads(peer.give(nonce).evidence))
    as_agent = replace(evidence.binding, role=Role.AGENT)
    quote = peer.domain.quote(as_agent.report_data)
    given = ProofGiven(evidence=json.dumps(replace(evidence, quote=quote, binding=as_agent).to_dict()))
    assert peer.judged(given, nonce) == Code.PEER_PROOF_MISMATCH


def test_keys_that_the_quote_does_not_carry_are_refused() -> None:
    """Whoever has a genuine quote of another's and writes its own key into the binding."""
    peer, thief, nonce = Peer(), Peer(), os.urandom(NONCE_LEN)
    genuine = Evidence.from_dict(json.loads(peer.give(nonce).evidence))
    forged = replace(genuine, binding=replace(genuine.binding, identity_key=thief.keys.identity_key))
    given = ProofGiven(evidence=json.dumps(forged.to_dict()))
    assert peer.judged(given, nonce, identity_key=thief.keys.identity_key) == "evidence.proof_invalid"


def test_a_domain_under_another_root_in_debug_or_not_wanted_is_refused() -> None:
    nonce = os.urandom(NONCE_LEN)
    foreign, debug, fine = Peer(OTHER_MACHINE), Peer(attributes=SEPT_VE_DISABLE | DEBUG), Peer()
    theirs = OTHER_MACHINE.collateral()
    assert foreign.judged(foreign.give(nonce), nonce, collateral=theirs).startswith(("chain.", "collateral."))
    assert debug.judged(debug.give(nonce), nonce) == "quote.debug"
    assert fine.judged(fine.give(nonce), nonce, judge=lambda verdict: False) == Code.PEER_REFUSED


def test_an_edited_log_and_malformed_evidence_are_refused() -> None:
    peer, nonce = Peer(), os.urandom(NONCE_LEN)
    given = peer.give(nonce)
    assert peer.judged(changed(given, event_log="AAAA"), nonce) == "evidence.proof_invalid"
    for text in ("", "[]", "{", '{"quote": 1}', "[" * 100_000):
        assert peer.judged(ProofGiven(evidence=text), nonce) in (Code.PEER_PROOF_MISMATCH, "evidence.malformed")


def test_nobody_has_a_peer_quote_all_day() -> None:
    peer = Peer()
    assert code(lambda: peer.give(b"short")) == Code.PEER_PROOF
    peer.give(os.urandom(NONCE_LEN))
    assert code(lambda: peer.give(os.urandom(NONCE_LEN))) == Code.PEER_PROOF
    assert code(lambda: peer.give(os.urandom(NONCE_LEN), party(Router(), "another"))) == "ok"


# ── a broker that forges ───────────────────────────────────────────────────────────────────────────────────────────


class Forger:
    """A broker that lies as well as it can: it has every key of a broker, and brings whatever it likes.

    It says that `bob` is a key of its own, with a verdict that shows whatever the asker wants to see.
    """

    def __init__(self) -> None:
        self.router = Router()
        self.bob = party(self.router, "bob")
        self.puppet = party(self.router, "bob")  # another key of the same look: what it wants to pass for bob
        self.alice = party(self.router, "alice")
        self.trust, self.time, self.keys = TRUST, clock(), self.alice.keys
        self.claimed = self.puppet

    async def owner_of(self, mailbox: str) -> Verdict:
        """What the asker's own check of the mailbox's key makes of what this broker says."""
        token = self.router.token_for(self.claimed.verdict, audience=peer_audience("http://127.0.0.1:1"))
        found = MailboxInfo(key=self.claimed.key, owner_token=token, next_seq=1)
        return Outbox(self.keys, self.time).verify_key(found, mailbox, self.alice.admission)

    async def collateral_for(self, subject: str) -> Collateral:
        return MACHINE.collateral()

    def proves(self, answer: Callable[[ProofAsked], ProofGiven], judge: Callable[[Verdict], bool] | None = None) -> str:
        async def ask(asked: ProofAsked) -> ProofGiven:
            return await asyncio.to_thread(answer, asked)

        rule = judge or (lambda verdict: verdict.mr_td == self.bob.verdict.mr_td)
        return code(lambda: asyncio.run(prove_peer(self, "lab/inbox/bob", ask, judge=rule)))


def test_a_forging_broker_passes_a_key_of_its_own_for_bob_until_bob_is_asked_for_proof() -> None:
    forger = Forger()
    assert asyncio.run(forger.owner_of("lab/inbox/bob")).subject == forger.puppet.verdict.subject
    real = Prover(MACHINE.launch("mail"), forger.bob.keys, TRUST, clock())

    def passed_on(asked: ProofAsked) -> ProofGiven:
        """It takes the nonce to the real bob, and brings his genuine quote."""
        return asyncio.run(real.prove(asked, forger.alice.verdict))

    assert forger.proves(passed_on) == Code.PEER_PROOF_MISMATCH


def test_a_forging_broker_with_a_domain_of_its_own_has_the_wrong_measurements() -> None:
    forger = Forger()
    own = Prover(MACHINE.launch("evil", image="its own"), forger.puppet.keys, TRUST, clock())
    assert forger.proves(lambda asked: asyncio.run(own.prove(asked, forger.alice.verdict))) == Code.PEER_REFUSED


def test_a_forging_broker_with_a_machine_of_its_own_has_the_wrong_root() -> None:
    forger = Forger()
    own = Prover(OTHER_MACHINE.launch("mail"), forger.puppet.keys, TRUST, clock())
    outcome = forger.proves(lambda asked: asyncio.run(own.prove(asked, forger.alice.verdict)))
    assert outcome.startswith(("chain.", "collateral."))


def test_a_forging_broker_that_replays_an_older_proof_is_refused() -> None:
    forger = Forger()
    forger.claimed = forger.bob
    real = Prover(MACHINE.launch("mail"), forger.bob.keys, TRUST, clock())
    recorded = asyncio.run(real.prove(ProofAsked(nonce=os.urandom(NONCE_LEN)), forger.alice.verdict))
    assert forger.proves(lambda _: recorded) == Code.PEER_PROOF_MISMATCH


def test_the_same_asker_accepts_the_real_bob() -> None:
    forger = Forger()
    forger.claimed = forger.bob
    real = Prover(MACHINE.launch("mail"), forger.bob.keys, TRUST, clock())
    assert forger.proves(lambda asked: asyncio.run(real.prove(asked, forger.alice.verdict))) == "ok"


# ── by way of a broker that does its work ──────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_an_agent_has_its_peer_prove_itself(broker: BrokerUnderTest) -> None:
    alice, bob = Agent("alice"), Agent("bob")
    try:
        for agent in (alice, bob):
            domain = broker.machine.launch(agent.name)
            await agent.start(domain=domain, trust=broker.trust, broker_url=broker.url)
        proved = await alice.context().prove("bob", judge=lambda verdict: verdict.simulated, accept=UP_TO_DATE)
        assert proved.identity_key == bob.verdict.identity_key
        assert (proved.role, proved.mr_td) == ("peer", bob.verdict.mr_td)
    finally:
        await alice.stop()
        await bob.stop()
