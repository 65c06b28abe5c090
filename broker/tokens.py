"""Tokens for others, and what becomes of them: issued by permit, asked about by whoever reads one.

Decides which audiences are nobody's to ask for (the broker's own doors and whatever stands under its address) and that
a token counts only as long as its agent would be admitted. What a token says is identity.py's; who may have one for
whom is the policy's (`IssueToken`).
"""

import logging
from datetime import datetime
from typing import Final, final

from attestation.errors import AttestationError, CollateralUnavailable, TokenRefused
from attestation.verdict import Admission
from broker.audit import Audit, Entry, Kind
from broker.errors import BrokerCode, BrokerError
from broker.generation import Generation
from broker.identity import Identity, Issued
from broker.judging import appraisal_of
from broker.ports import Clock
from broker.reasons import codes_of, told
from broker.sessions import Session, Sessions
from broker.wire.relying import (
    IntrospectionRequest,
    IntrospectionResponse,
    TokenKind,
    TokenRequest,
    TokenResponse,
)
from broker.wire.svid import spiffe_id
from policies.engine import decide
from policies.errors import Refused
from policies.model import Context, IssueToken

OK: Final = "ok"
_FALLEN: Final = frozenset({BrokerCode.AGENT_UNKNOWN, BrokerCode.AGENT_REVOKED, BrokerCode.AGENT_QUARANTINED})
logger = logging.getLogger("cloister.broker.tokens")


@final
class TokenDesk:
    """Issues tokens for other audiences, and answers for them."""

    def __init__(
        self,
        *,
        audit: Audit,
        generation: Generation,
        identity: Identity,
        sessions: Sessions,
        clock: Clock,
        trust_domain: str,
    ) -> None:
        self._audit = audit
        self._generation = generation
        self._identity = identity
        self._sessions = sessions
        self._clock = clock
        self._trust_domain = trust_domain

    async def issue(
        self, session: Session, request: TokenRequest, *, source_ip: str | None = None, correlation_id: str = ""
    ) -> TokenResponse:
        """Raises BrokerError audience.reserved, generation.moved; Refused."""
        at = self._clock()
        if self._reserved(request.audience):
            raise BrokerError(BrokerCode.AUDIENCE_RESERVED, f"{request.audience[:120]!a} is the broker's own")
        try:
            context = Context(at=at, source_ip=source_ip)
            permit = decide(session.bundle, session.verdict, IssueToken(request.audience), context=context)
        except Refused as error:
            entry = self._entry(Kind.TOKEN_REFUSED, session, request, at, correlation_id, error=error)
            await self._audit.record(entry, lambda _: None)
            logger.warning("token.refused", extra={"subject": session.subject, "reasons": told(error)})
            raise
        issued = self._issued(session, request, at)
        entry = self._entry(
            Kind.TOKEN_ISSUED, session, request, at, correlation_id, permit=permit.digest.hex(), token=issued.token_id
        )
        _, receipt = await self._audit.record(entry, lambda tx: self._generation.expect(tx, session.generation))
        return TokenResponse(
            token=issued.token,
            audience=request.audience,
            kind=request.kind,
            expires_at_s=issued.expires_at_s,
            receipt=receipt,
        )

    def _reserved(self, audience: str) -> bool:
        """A token with such an audience could be shown at one of the broker's own doors."""
        own = self._identity.issuer
        return audience.rstrip("/") == own or audience.startswith(own + "/")

    def _issued(self, session: Session, request: TokenRequest, at: datetime) -> Issued:
        if request.kind is TokenKind.SVID:
            name = spiffe_id(self._trust_domain, session.subject)
            return self._identity.jwt_svid(session.verdict, spiffe_id=name, audience=request.audience, at=at)
        return self._identity.for_others(
            session.verdict,
            audience=request.audience,
            at=at,
            appraisal=appraisal_of(session.bundle, session.verdict),
            policy=session.bundle.digest,
        )

    def _entry(
        self,
        kind: Kind,
        session: Session,
        request: TokenRequest,
        at: datetime,
        correlation_id: str,
        *,
        permit: str = "",
        token: str = "",
        error: Refused | None = None,
    ) -> Entry:
        more: dict[str, str | int | list[str]] = {"token_kind": str(request.kind)}
        if token:
            more["token_id"] = token
        if error is not None:
            more["reasons"] = told(error)
        return Entry(
            kind=kind,
            at=at,
            subject=session.subject,
            tenant=session.record.tenant,
            resource=request.audience,
            codes=codes_of(error) if error else (),
            policy=session.bundle.digest,
            evidence=session.record.evidence.hex(),
            collateral=session.record.collateral,
            permit=permit,
            generation=session.generation,
            correlation_id=correlation_id,
            more=more,
        )

    # ── introspection ──────────────────────────────────────────────────────────────────────────────────────────────

    async def introspect(self, request: IntrospectionRequest) -> IntrospectionResponse:
        """Raises CollateralUnavailable, BrokerError store.*, clock.behind: then nobody knows, which is no *yes*."""
        at = self._clock()
        try:
            admission = self._identity.open_for(request.token, request.audience, at)
            await self._sessions.of_subject(admission.verdict.subject, at)
        except TokenRefused as error:
            return IntrospectionResponse(active=False, code=str(error.code))
        except BrokerError as error:
            if error.code not in _FALLEN:
                raise
            return IntrospectionResponse(active=False, code=str(error.code))
        except CollateralUnavailable:
            raise
        except AttestationError as error:
            return IntrospectionResponse(active=False, code=str(error.code))
        return _active(admission)


def _active(admission: Admission) -> IntrospectionResponse:
    return IntrospectionResponse(
        active=True,
        code=OK,
        subject=admission.verdict.subject,
        jkt=admission.verdict.jkt,
        token_id=admission.token_id,
        issued_at_s=int(admission.issued_at.timestamp()),
        expires_at_s=int(admission.expires_at.timestamp()),
        policy=admission.policy_digest,
        status=str(admission.status),
        simulated=admission.verdict.simulated,
    )
