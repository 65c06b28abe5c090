"""Verification for relying services: a quote in, the verdict, every check and a signed result out.

Decides what may be called affirming: never without REPORT_DATA compared, never by the caller's own policy. A result has
its own issuer, key and type, so that nobody can turn it into an admission. Nothing is granted here and nothing kept.
"""

import json
from datetime import datetime
from typing import Any, Final, final

from attestation.checks import Check
from attestation.ear import Appraisal, Tier
from attestation.encoding import from_b64url
from attestation.errors import VerificationFailed
from attestation.eventlog import EventLog
from attestation.quote import Quote
from attestation.tcb import UP_TO_DATE, TcbStatus
from attestation.verdict import Verdict
from attestation.verifier import NOT_COMPARED, Allowance, VerifiedQuote
from broker.errors import BrokerCode, BrokerError
from broker.identity import Identity
from broker.judging import OUTDATED, Judge
from broker.ports import Clock
from broker.wire.bodies import VerificationRequest, VerificationResponse

OK: Final = "ok"
MIN_NONCE: Final = 8


@final
class VerificationDesk:
    """Answers relying services."""

    def __init__(self, *, judge: Judge, identity: Identity, clock: Clock) -> None:
        self._judge = judge
        self._identity = identity
        self._clock = clock

    def verify(self, request: VerificationRequest) -> VerificationResponse:
        """Raises MalformedEvidence quote.*, eventlog.*; BrokerError collateral.pending, verification.policy_invalid;
        CollateralUnavailable. A quote that is refused is an answer, not an error.
        """
        at = self._clock()
        accept, allow = _policy(request)
        quote = Quote.parse(request.quote)
        log = EventLog.parse(request.event_log) if request.event_log is not None else None
        audience = request.audience or self._identity.results_issuer
        try:
            verified = self._verified(quote, request, accept, allow, at)
            verdict = Verdict.of(verified, event_log=log)
        except VerificationFailed as error:
            if error.code in OUTDATED:
                self._judge.collateral.outdated(quote)
            result = self._identity.refusal(error, tee=quote.tee, audience=audience, nonce=request.nonce or "", at=at)
            return VerificationResponse(
                ok=False, code=error.code, affirming=False, verdict=None, checks=_told(error.checks), result=result
            )
        brought = bool(request.accept or request.allow)
        result = self._identity.result(
            verdict,
            audience=audience,
            nonce=request.nonce or "",
            at=at,
            checks=verified.checks,
            appraisal=Appraisal(brought_by_caller=brought),
        )
        return VerificationResponse(
            ok=True,
            code=OK,
            affirming=_status(result) == Tier.AFFIRMING and not brought and verdict.compared,
            verdict=verdict.to_claims(),
            checks=_told(verified.checks),
            result=result,
        )

    def _verified(
        self,
        quote: Quote,
        request: VerificationRequest,
        accept: frozenset[TcbStatus],
        allow: frozenset[Allowance],
        at: datetime,
    ) -> VerifiedQuote:
        collateral = self._judge.collateral.find(quote)
        if collateral is None:
            self._judge.require_chain(quote)
            raise self._judge.collateral.wanted(quote)
        expected = NOT_COMPARED if request.report_data is None else request.report_data
        return self._judge.verifier.verify(quote, collateral, report_data=expected, at=at, accept=accept, allow=allow)


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
