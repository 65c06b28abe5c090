"""Admission: evidence → verdict → permit → token.

Decides the order, which keeps garbage cheap: form, broker, role and nonce first, then the proof of possession, then the
PCK chain; only what has passed these may cause a fetch or a log entry of its own. A nonce is claimed before anything is
computed and settled in the transaction that admits or refuses, so it serves once. Other refusals are only counted.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import final

from attestation.errors import VerificationFailed
from attestation.evidence import Evidence, Role, verify_proof
from attestation.quote import Quote
from attestation.records import Packed, pack_agent
from broker.abreast import abreast
from broker.archive import keep
from broker.audit import Audit, Entry, Kind
from broker.challenges import Challenges, Claim
from broker.errors import BrokerCode, BrokerError
from broker.generation import Generation, again_while_moving
from broker.identity import Identity, Issued, Proof
from broker.judging import Judge, Judged, circumstances_of, earns_entry
from broker.pool import Pool
from broker.ports import Clock, Transaction
from broker.reasons import codes_of, told
from broker.retired import require_current
from broker.sessions import Session, Sessions, record_of, require_unrevoked
from broker.wire.bodies import AttestationRequest, AttestationResponse
from broker.wire.challenge import ChallengeRequest, ChallengeResponse
from broker.wire.log import Receipt
from policies.errors import Refused

logger = logging.getLogger("cloister.broker.admission")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Attempt:
    """Evidence whose sender holds the identity key, under a nonce that nobody else can use any more."""

    evidence: Evidence
    quote: Quote
    packed: Packed
    claim: Claim
    source_ip: str | None
    correlation_id: str


@final
class AdmissionDesk:
    """Issues challenges and admits agents."""

    def __init__(
        self,
        *,
        challenges: Challenges,
        judge: Judge,
        identity: Identity,
        audit: Audit,
        generation: Generation,
        sessions: Sessions,
        pool: Pool,
        clock: Clock,
    ) -> None:
        self._challenges = challenges
        self._judge = judge
        self._identity = identity
        self._audit = audit
        self._generation = generation
        self._sessions = sessions
        self._pool = pool
        self._clock = clock

    def challenge(self, request: ChallengeRequest, proof: Proof | None = None) -> ChallengeResponse:
        """A nonce for this caller, and the broker's proof of being itself. Nothing is remembered."""
        at = self._clock()
        nonce = self._challenges.issue(request.client_nonce, at)
        return self._identity.answer(request, nonce=nonce, expires_s=self._challenges.life_s, at=at, proof=proof)

    async def attest(
        self, request: AttestationRequest, *, source_ip: str | None = None, correlation_id: str = ""
    ) -> AttestationResponse:
        """Raises MalformedEvidence evidence.*, quote.*; BrokerError attestation.*, challenge.*, agent.revoked,
        agent.retired, collateral.pending; VerificationFailed; Refused; CollateralUnavailable.
        """
        at = self._clock()
        attempt = await self._begin(request, at, source_ip, correlation_id)
        return await again_while_moving(lambda: self._decide(attempt, at))

    async def _begin(
        self, request: AttestationRequest, at: datetime, source_ip: str | None, correlation_id: str
    ) -> _Attempt:
        evidence = Evidence.from_dict(request.evidence)
        binding = evidence.binding
        if binding.broker_id != self._identity.broker_id:
            raise BrokerError(BrokerCode.ATTESTATION_WRONG_BROKER, f"made for broker {binding.broker_id.hex()}")
        if binding.role is not Role.AGENT:
            raise BrokerError(BrokerCode.ATTESTATION_ROLE, f"role {binding.role}")
        self._judge.bundles.of(binding.tenant)
        claim = self._challenges.claim(binding.nonce, request.client_nonce, at)
        quote = Quote.parse(evidence.quote)
        await abreast()
        verify_proof(evidence, client_nonce=request.client_nonce)
        return _Attempt(
            evidence=evidence,
            quote=quote,
            packed=pack_agent(evidence, request.client_nonce),
            claim=claim,
            source_ip=source_ip,
            correlation_id=correlation_id,
        )

    async def _decide(self, attempt: _Attempt, at: datetime) -> AttestationResponse:
        """Yes or no, by what is in force when it is written down. Raises BrokerError generation.moved as well."""
        generation = self._generation.current
        try:
            return await self._admit(attempt, generation, at)
        except (VerificationFailed, Refused) as error:
            if isinstance(error, Refused) or earns_entry(error):
                await self._record_refusal(attempt, error, generation, at)
            raise

    async def _admit(self, attempt: _Attempt, generation: int, at: datetime) -> AttestationResponse:
        judged = await self._judge.judge_on(
            self._pool, attempt.evidence, attempt.quote, at=at, source_ip=attempt.source_ip
        )
        await abreast()
        issued = self._identity.admission(
            judged.verdict, at=at, appraisal=judged.appraisal, policy=judged.bundle.digest
        )
        await abreast()
        session = self._session(attempt, judged, issued, generation, at)

        def work(tx: Transaction) -> None:
            attempt.claim.settle(tx)
            self._generation.expect(tx, generation)
            require_unrevoked(tx, session.subject)
            require_current(tx, session.subject)
            keep(tx, attempt.packed, at)
            tx.agents.put(session.record)

        receipt = await self._record(Kind.AGENT_ADMITTED, attempt, at, work, judged=judged, generation=generation)
        self._sessions.admit(session, issued)
        return AttestationResponse(
            token=issued.token, subject=session.subject, expires_at_s=issued.expires_at_s, receipt=receipt
        )

    def _session(self, attempt: _Attempt, judged: Judged, issued: Issued, generation: int, at: datetime) -> Session:
        record = record_of(
            judged,
            evidence=attempt.packed.digest,
            generation=generation,
            at=at,
            admitted_at_s=int(at.timestamp()),
            expires_at_s=issued.expires_at_s,
        )
        return Session(verdict=judged.verdict, record=record, bundle=judged.bundle)

    async def _record_refusal(
        self, attempt: _Attempt, error: VerificationFailed | Refused, generation: int, at: datetime
    ) -> None:
        def work(tx: Transaction) -> None:
            attempt.claim.settle(tx)
            self._generation.expect(tx, generation)
            keep(tx, attempt.packed, at)

        await self._record(Kind.AGENT_REFUSED, attempt, at, work, error=error, generation=generation)
        logger.warning(
            "agent.refused",
            extra={
                "tenant": attempt.evidence.binding.tenant,
                "codes": list(codes_of(error)),
                "reasons": told(error),
                "correlation_id": attempt.correlation_id,
            },
        )

    async def _record(
        self,
        kind: Kind,
        attempt: _Attempt,
        at: datetime,
        work: Callable[[Transaction], None],
        *,
        judged: Judged | None = None,
        error: VerificationFailed | Refused | None = None,
        generation: int,
    ) -> Receipt:
        binding = attempt.evidence.binding
        entry = Entry(
            kind=kind,
            at=at,
            subject=f"{binding.role}/{binding.tenant}/{binding.jkt}",
            tenant=binding.tenant,
            codes=codes_of(error) if error else (),
            policy=(judged.bundle if judged else self._judge.bundles.of(binding.tenant)).digest,
            evidence=attempt.packed.digest.hex(),
            collateral=judged.verdict.collateral_digest if judged else self._judge.collateral_digest(attempt.quote),
            permit=judged.permit.digest.hex() if judged else "",
            generation=generation,
            correlation_id=attempt.correlation_id,
            more=_platform(judged, attempt.source_ip) if judged else self._refusal(attempt, error, at),
        )
        _, receipt = await self._audit.record(entry, work)
        return receipt

    def _refusal(
        self, attempt: _Attempt, error: VerificationFailed | Refused | None, at: datetime
    ) -> dict[str, str | int | list[str]]:
        around = self._judge.circumstances(attempt.quote, attempt.source_ip, at)
        return {**({"reasons": told(error)} if error else {}), **around}


def _platform(judged: Judged, source_ip: str | None) -> dict[str, str | int | list[str]]:
    verdict = judged.verdict
    return {
        "ppid": verdict.ppid,
        "fmspc": verdict.fmspc,
        "mr_td": verdict.mr_td,
        "simulated": int(verdict.simulated),
        **circumstances_of(source_ip, judged.platform_addresses),
    }
