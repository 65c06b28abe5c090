"""Verification for relying services: a quote in, the verdict, every check and a signed result out.

Decides what may be called affirming: never without REPORT_DATA compared, never by the caller's own policy. A result has
its own issuer, key and type, so that nobody can turn it into an admission. Nothing is granted here; the log notes what
was judged of quotes that a certified platform signed, and nothing of the rest, so that garbage can fill nothing.
"""

import asyncio
import hashlib
import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple, final

from attestation.checks import Check
from attestation.ear import Appraisal, Tier
from attestation.encoding import from_b64url
from attestation.errors import AttestationError, VerificationFailed
from attestation.eventlog import EventLog
from attestation.quote import Quote
from attestation.tcb import ANY_TCB, UP_TO_DATE, TcbStatus
from attestation.verdict import Verdict
from attestation.verifier import NOT_COMPARED, Allowance, VerifiedQuote
from broker.audit import Audit, Entry, Kind
from broker.errors import BrokerCode, BrokerError
from broker.identity import Identity
from broker.judging import OUTDATED, Judge, appraisal_of, platform_signed
from broker.pool import Pool
from broker.ports import Clock
from broker.status import problem_of
from broker.wire.bodies import VerificationRequest, VerificationResponse
from broker.wire.errors import WireError
from broker.wire.relying import VerificationOutcome, VerificationResults
from policies.bundle import Bundle
from policies.engine import appraise_verdict
from policies.errors import Reason
from policies.model import Context

OK: Final = "ok"
MIN_NONCE: Final = 8


class RefusedByPolicy(VerificationFailed):
    """A genuine quote that the broker's policy for its tenant objects to, told like any other refusal of a quote."""

    def __init__(self, reasons: Sequence[Reason], checks: tuple[Check, ...]) -> None:
        Exception.__init__(self, f"{len(reasons)} objections")
        self.code: Any = BrokerCode.POLICY_REFUSED
        self.detail = f"{len(reasons)} objections"
        self.checks = (*checks, *(_objection(reason) for reason in reasons))


def _objection(reason: Reason) -> Check:
    """The code alone: what would pass is told to the policy's owner, not to strangers."""
    code: Any = reason.code
    return Check("policy", code, False, "the policy objects")


class _Demands(NamedTuple):
    """What the quote is held to, by the caller or by a bundle of the broker's."""

    accept: frozenset[TcbStatus]
    allow: frozenset[Allowance]
    bundle: Bundle | None
    brought: bool


@final
class VerificationDesk:
    """Answers relying services."""

    def __init__(self, *, judge: Judge, identity: Identity, audit: Audit, pool: Pool, clock: Clock) -> None:
        self._judge = judge
        self._identity = identity
        self._audit = audit
        self._pool = pool
        self._clock = clock

    async def verify(self, request: VerificationRequest, *, correlation_id: str = "") -> VerificationResponse:
        """Raises MalformedEvidence quote.*, eventlog.*; BrokerError collateral.pending, verification.policy_invalid,
        attestation.tenant_unknown, broker.busy; CollateralUnavailable. A quote that is refused is an answer, not an
        error.
        """
        at = self._clock()
        demands = self._demands(request, at)
        quote = Quote.parse(request.quote)
        log = EventLog.parse(request.event_log) if request.event_log is not None else None
        audience = request.audience or self._identity.results_issuer
        try:
            verified = await self._verified(quote, request, demands, at)
            verdict = Verdict.of(verified, event_log=log)
            self._appraise(demands, verdict, verified, at)
        except VerificationFailed as error:
            if error.code in OUTDATED:
                self._judge.collateral.outdated(quote)
            if isinstance(error, RefusedByPolicy) or platform_signed(error):
                await self._note(request, demands, str(error.code), False, at, correlation_id)
            result = self._identity.refusal(error, tee=quote.tee, audience=audience, nonce=request.nonce or "", at=at)
            return VerificationResponse(
                ok=False, code=str(error.code), affirming=False, verdict=None, checks=_told(error.checks), result=result
            )
        result = self._identity.result(
            verdict,
            audience=audience,
            nonce=request.nonce or "",
            at=at,
            checks=verified.checks,
            appraisal=_appraisal(demands, verdict),
        )
        affirming = _status(result) == Tier.AFFIRMING and not demands.brought and verdict.compared
        await self._note(request, demands, OK, affirming, at, correlation_id)
        return VerificationResponse(
            ok=True,
            code=OK,
            affirming=affirming,
            verdict=verdict.to_claims(),
            checks=_told(verified.checks),
            result=result,
        )

    async def verify_batch(
        self, requests: tuple[VerificationRequest, ...], *, correlation_id: str = ""
    ) -> VerificationResults:
        """Each for itself, in order; one that cannot be judged says so and keeps nobody else from an answer."""
        outcomes = await asyncio.gather(*(self._outcome(request, correlation_id) for request in requests))
        return VerificationResults(results=tuple(outcomes))

    async def _outcome(self, request: VerificationRequest, correlation_id: str) -> VerificationOutcome:
        try:
            return VerificationOutcome(response=await self.verify(request, correlation_id=correlation_id))
        except (AttestationError, BrokerError, WireError) as error:
            return VerificationOutcome(problem=problem_of(error, correlation_id))

    def _demands(self, request: VerificationRequest, at: datetime) -> _Demands:
        accept, allow = _policy(request)
        brought = bool(request.accept or request.allow)
        if request.policy is None:
            return _Demands(accept, allow, None, brought)
        if brought:
            detail = "`policy` names a policy of the broker's; `accept` and `allow` would loosen it"
            raise BrokerError(BrokerCode.VERIFICATION_POLICY, detail)
        bundle = self._judge.bundles.of(request.policy)
        return _Demands(ANY_TCB, bundle.allowances(at), bundle, False)

    def _appraise(self, demands: _Demands, verdict: Verdict, verified: VerifiedQuote, at: datetime) -> None:
        if demands.bundle is None:
            return
        if reasons := appraise_verdict(demands.bundle, verdict, context=Context(at=at)):
            raise RefusedByPolicy(reasons, verified.checks)

    async def _verified(
        self, quote: Quote, request: VerificationRequest, demands: _Demands, at: datetime
    ) -> VerifiedQuote:
        collateral = self._judge.collateral.find(quote)
        if collateral is None:
            await self._pool.run(self._judge.require_chain, quote)
            raise self._judge.collateral.wanted(quote)
        expected = NOT_COMPARED if request.report_data is None else request.report_data
        return await self._pool.run(
            self._judge.verifier.verify,
            quote,
            collateral,
            report_data=expected,
            at=at,
            accept=demands.accept,
            allow=demands.allow,
        )

    async def _note(
        self,
        request: VerificationRequest,
        demands: _Demands,
        code: str,
        affirming: bool,
        at: datetime,
        correlation_id: str,
    ) -> None:
        entry = Entry(
            kind=Kind.VERIFICATION_DONE,
            at=at,
            tenant=demands.bundle.tenant if demands.bundle else "",
            resource=request.audience or "",
            codes=() if code == OK else (code,),
            policy=demands.bundle.digest if demands.bundle else "",
            evidence=hashlib.sha256(request.quote).hexdigest(),
            correlation_id=correlation_id,
            more={"affirming": int(affirming)},
        )
        await self._audit.record(entry, lambda _: None)


def _appraisal(demands: _Demands, verdict: Verdict) -> Appraisal:
    if demands.bundle is None:
        return Appraisal(brought_by_caller=demands.brought)
    return appraisal_of(demands.bundle, verdict)


def _policy(request: VerificationRequest) -> tuple[frozenset[TcbStatus], frozenset[Allowance]]:
    if request.report_data is not None and not any(request.report_data):
        raise BrokerError(BrokerCode.VERIFICATION_POLICY, "an all-zero report_data compares nothing")
    if request.nonce is not None and len(request.nonce) < MIN_NONCE:
        raise BrokerError(BrokerCode.VERIFICATION_POLICY, f"a nonce has at least {MIN_NONCE} characters")
    try:
        accept = frozenset(TcbStatus(state) for state in request.accept) or UP_TO_DATE
        return accept, frozenset(Allowance(name) for name in request.allow)
    except ValueError as error:
        raise BrokerError(BrokerCode.VERIFICATION_POLICY, str(error)[:200]) from None


def _told(checks: tuple[Check, ...]) -> tuple[dict[str, Any], ...]:
    return tuple(
        {
            "name": check.name,
            "code": str(check.code),
            "ok": check.ok,
            "warning": check.warning,
            "detail": check.detail,
            "remedy": check.remedy,
        }
        for check in checks
    )


def _status(result: str) -> str:
    """`ear_status` of the result that was just signed."""
    return str(json.loads(from_b64url(result.split(".")[1]))["ear_status"])
