"""Proof of a peer's state on demand: its own quote over this agent's nonce, judged here and by nobody else.

Decides what convinces an agent that does not want to take the broker's word for who a peer is. A token says what the
broker saw; a broker that lies can issue one for keys of its own. So the asker sends a nonce, the peer quotes a Binding
in the role `peer` over that nonce, over who asks, and over the peer's keys, and signs the exchange; the asker verifies
quote, collateral and event log under the roots of its own trust file, and compares the quoted identity key with the one
that signs the peer's messages. Collateral may come from anybody: Intel signed it. What an untrusted broker can still do
is not to deliver, and to hand out collateral that is older than the newest, as long as it is in force.

Which measurements are good is the asker's to say (`judge`): a genuine quote alone says only that there is some domain.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, final

from attestation.collateral import Collateral
from attestation.eventlog import EventLog
from attestation.evidence import Binding, Evidence, Role, proof_message, verify_proof
from attestation.ports import TrustDomain
from attestation.quote import Quote
from attestation.tcb import UP_TO_DATE, TcbStates
from attestation.verdict import Verdict
from attestation.verifier import NONE, Allowance, Verifier
from broker.wire.tags import Tag, tagged
from enclave.clock import BrokerTime
from enclave.errors import Code, EnvelopeRefused
from enclave.keys import AgentKeys
from enclave.mailbox import Judge
from enclave.messages import MessageType
from enclave.trustfile import TrustFile

NONCE_LEN: Final = 32
PAUSE_S: Final = 1.0  # between two quotes for the same asker: a quote costs the platform time


@dataclass(frozen=True, kw_only=True)
class ProofAsked:
    """Prove what you are, over this nonce."""

    nonce: bytes


@dataclass(frozen=True, kw_only=True)
class ProofGiven:
    """The evidence, as `Evidence.to_dict()` in JSON."""

    evidence: str = field(repr=False)


ASKED: Final = MessageType(ProofAsked, "cloister.proof.ask")
GIVEN: Final = MessageType(ProofGiven, "cloister.proof.give")
TYPES: Final[dict[type, MessageType]] = {ProofAsked: ASKED, ProofGiven: GIVEN}


def bound_nonce(nonce: bytes, asker_jkt: str) -> bytes:
    """What stands in the Binding: a proof for one asker is none for another, whoever passes it on."""
    return hashlib.sha256(tagged(Tag.PEER_PROOF, nonce, asker_jkt.encode("ascii"))).digest()


@final
class Prover:
    """The peer's half: quotes for whoever asks, one after the other, and no asker too often."""

    def __init__(self, domain: TrustDomain, keys: AgentKeys, trust: TrustFile, time: BrokerTime) -> None:
        self._domain = domain
        self.keys: Final = keys
        self._trust = trust
        self._time = time
        self._quoting = asyncio.Lock()
        self._last: dict[str, float] = {}

    async def prove(self, asked: ProofAsked, asker: Verdict) -> ProofGiven:
        """Raises EnvelopeRefused peer.proof_refused for an asker that comes too often or sends no nonce."""
        now_s = self._time.now_s()
        if len(asked.nonce) != NONCE_LEN or now_s - self._last.get(asker.jkt, -PAUSE_S) < PAUSE_S:
            raise EnvelopeRefused(Code.PEER_PROOF, f"{asker.subject} asks too often, or with {len(asked.nonce)} bytes")
        self._last = {jkt: at_s for jkt, at_s in self._last.items() if now_s - at_s < PAUSE_S}
        self._last[asker.jkt] = now_s
        binding = Binding(
            role=Role.PEER,
            tenant=self._trust.tenant,
            broker_id=self._trust.broker_id,
            nonce=bound_nonce(asked.nonce, asker.jkt),
            identity_key=self.keys.identity_key,
            suite=self.keys.suite,
            sealing_key=self.keys.sealing_key,
            trust_file_digest=self._trust.digest,
        )
        async with self._quoting:
            quote = await asyncio.to_thread(self._domain.quote, binding.report_data)
            log = await asyncio.to_thread(self._domain.event_log) or None
        message = proof_message(binding.broker_id, asked.nonce, binding.nonce, quote, log)
        evidence = Evidence(quote=quote, event_log=log, binding=binding, proof=self.keys.sign(message))
        return ProofGiven(evidence=json.dumps(evidence.to_dict(), separators=(",", ":")))


def judge_proof(
    given: ProofGiven,
    collateral: Collateral,
    *,
    nonce: bytes,
    asker_jkt: str,
    identity_key: bytes,
    trust: TrustFile,
    verifier: Verifier,
    time: BrokerTime,
    judge: Judge,
    accept: TcbStates = UP_TO_DATE,
    allow: frozenset[Allowance] = NONE,
) -> Verdict:
    """The peer's verdict, by nothing but its quote, Intel's signatures and this agent's own rule.

    `identity_key` is the key that signs what the peer says. `verifier` has the roots of the trust file.
    1. the binding is for this nonce, asker, tenant and broker, and for that key     peer.proof_mismatch
    2. that key signed the exchange                                                 evidence.proof_invalid
    3. quote and collateral verify, REPORT_DATA is the binding's                    as verify_quote
    4. the event log replays                                                        eventlog.*
    5. the asker's own rule accepts what it sees                                    peer.not_accepted

    Raises EnvelopeRefused, MalformedEvidence, VerificationFailed, CollateralUnavailable.
    """
    evidence = Evidence.from_dict(_members(given.evidence))
    binding = evidence.binding
    same = (
        binding.role is Role.PEER
        and (binding.tenant, binding.broker_id) == (trust.tenant, trust.broker_id)
        and hmac.compare_digest(binding.nonce, bound_nonce(nonce, asker_jkt))
        and hmac.compare_digest(binding.identity_key, identity_key)
    )
    if not same:
        raise EnvelopeRefused(Code.PEER_PROOF_MISMATCH, f"a proof of {binding.role} {binding.jkt} of {binding.tenant}")
    verify_proof(evidence, client_nonce=nonce)
    quote = Quote.parse(evidence.quote)
    verified = verifier.verify(quote, collateral, report_data=binding, at=time.now(), accept=accept, allow=allow)
    log = None if evidence.event_log is None else EventLog.parse(evidence.event_log)
    verdict = Verdict.of(verified, event_log=log)
    if not judge(verdict):
        raise EnvelopeRefused(Code.PEER_REFUSED, f"its quote shows {verdict.mr_td[:16]}…")
    return verdict


def _members(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise EnvelopeRefused(Code.PEER_PROOF_MISMATCH, "the evidence is not JSON") from None


class Asker(Protocol):
    """What asking takes of the agent that asks."""

    trust: TrustFile
    time: BrokerTime
    keys: AgentKeys

    async def owner_of(self, mailbox: str) -> Verdict: ...

    async def collateral_for(self, subject: str) -> Collateral: ...


async def prove_peer(
    asker: Asker,
    mailbox: str,
    ask: Callable[[ProofAsked], Awaitable[ProofGiven]],
    *,
    judge: Judge,
    accept: TcbStates = UP_TO_DATE,
    allow: frozenset[Allowance] = NONE,
) -> Verdict:
    """The verdict on whoever reads in that mailbox, by its own quote over a nonce of now. `ask` sends and waits.

    The key that is compared is the one that signed the mailbox's key, and that signs the owner's messages. Raises as
    `judge_proof` does, and what sending and waiting raise.
    """
    owner, nonce = await asker.owner_of(mailbox), os.urandom(NONCE_LEN)
    given = await ask(ProofAsked(nonce=nonce))
    return judge_proof(
        given,
        await asker.collateral_for(owner.subject),
        nonce=nonce,
        asker_jkt=asker.keys.jkt,
        identity_key=owner.identity_key,
        trust=asker.trust,
        verifier=Verifier(asker.trust.roots),
        time=asker.time,
        judge=judge,
        accept=accept,
        allow=allow,
    )
