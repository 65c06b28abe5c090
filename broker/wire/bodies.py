"""The other bodies of the REST API: attestation, verification, secrets, agents, and problems.

Requests refuse members that they do not know; answers skip them. Evidence and verdicts stay the plain objects that
`attestation` reads and writes: their grammar is decided there.
"""

from dataclasses import dataclass, field
from typing import Any, Final, Self, final

from broker.wire.fields import MAX_TOKEN, NONCE_LEN, Reader
from broker.wire.jose import b64u
from broker.wire.log import Receipt
from broker.wire.names import MAX_RESOURCE, MAX_SUBJECT, RESOURCE, SUBJECT
from broker.wire.release import MAX_LABEL, MAX_LABELS, MAX_SECRET, MAX_VERSION
from broker.wire.terms import SecretTerms

MAX_QUOTE: Final = 1 << 20
MAX_EVENT_LOG: Final = 4 << 20
MAX_AUDIENCE: Final = 1024
MAX_EVIDENCE_BODY: Final = 8 << 20  # bytes of an attestation or verification request
MAX_SMALL_BODY: Final = 256 * 1024
PROBLEM_TYPE: Final = "application/problem+json"


def peer_audience(issuer: str) -> str:
    """`aud` of the tokens that a broker hands to an agent's peers: good for judging the agent, not for entering."""
    return f"{issuer}/peers"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class AttestationRequest:
    """POST /v1/attestations. `evidence` is `attestation.Evidence.to_dict()`."""

    evidence: dict[str, Any]
    client_nonce: bytes

    def to_dict(self) -> dict[str, Any]:
        return {"evidence": self.evidence, "client_nonce": b64u(self.client_nonce)}

    @classmethod
    def from_dict(cls, value: object) -> Self:
        read = Reader(value, "attestation")
        made = cls(evidence=read.mapping("evidence"), client_nonce=read.raw("client_nonce", size=NONCE_LEN))
        read.end()
        return made


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class AttestationResponse:
    """The admission token (EAR, DPoP-bound), its subject and end, and the log's receipt for the admission."""

    token: str = field(repr=False)
    subject: str
    expires_at_s: int
    receipt: Receipt

    def to_dict(self) -> dict[str, Any]:
        return {
            "token": self.token,
            "token_type": "DPoP",
            "subject": self.subject,
            "expires_at_s": self.expires_at_s,
            "receipt": self.receipt.to_dict(),
        }

    @classmethod
    def from_dict(cls, value: object) -> Self:
        read = Reader(value, "attestation")
        return cls(
            token=read.text("token", max_len=MAX_TOKEN),
            subject=read.text("subject", max_len=MAX_SUBJECT, pattern=SUBJECT),
            expires_at_s=read.number("expires_at_s"),
            receipt=Receipt.from_dict(read.mapping("receipt")),
        )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class VerificationRequest:
    """POST /v1/verifications: a relying service asks about a quote.

    `report_data` (64 bytes) is compared when given; `accept` and `allow` are the caller's own policy. Without the one,
    or with the other, the result is never `affirming`. `policy` names a tenant whose policy, as the broker has it, the
    quote is appraised by instead. `audience` and `nonce` go into the signed result.
    """

    quote: bytes
    event_log: bytes | None = None
    report_data: bytes | None = None
    accept: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    audience: str | None = None
    nonce: str | None = None
    policy: str | None = None

    def to_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = {"quote": b64u(self.quote)}
        if self.event_log is not None:
            found["event_log"] = b64u(self.event_log)
        if self.report_data is not None:
            found["report_data"] = b64u(self.report_data)
        if self.accept:
            found["accept"] = list(self.accept)
        if self.allow:
            found["allow"] = list(self.allow)
        if self.audience is not None:
            found["audience"] = self.audience
        if self.nonce is not None:
            found["nonce"] = self.nonce
        if self.policy is not None:
            found["policy"] = self.policy
        return found

    @classmethod
    def from_dict(cls, value: object) -> Self:
        read = Reader(value, "verification")
        made = cls(
            quote=read.raw("quote", max_len=MAX_QUOTE),
            event_log=read.raw_or_none("event_log", max_len=MAX_EVENT_LOG),
            report_data=read.raw_or_none("report_data", size=64),
            accept=read.texts("accept", max_items=16, max_len=64),
            allow=read.texts("allow", max_items=16, max_len=64),
            audience=read.text_or_none("audience", max_len=MAX_AUDIENCE),
            nonce=read.text_or_none("nonce", max_len=88),
            policy=read.text_or_none("policy", max_len=64),
        )
        read.end()
        return made


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class VerificationResponse:
    """The answer to a relying service. `result` is a signed EAR result, which no broker takes for an admission."""

    ok: bool
    code: str  # "ok", or why not
    affirming: bool
    verdict: dict[str, Any] | None
    checks: tuple[dict[str, Any], ...]
    result: str | None

    def to_dict(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "code": self.code,
            "affirming": self.affirming,
            "verdict": self.verdict,
            "checks": list(self.checks),
            "result": self.result,
        }

    @classmethod
    def from_dict(cls, value: object) -> Self:
        read = Reader(value, "verification")
        members = dict(value) if isinstance(value, dict) else {}
        return cls(
            ok=read.flag("ok"),
            code=read.text("code", max_len=64),
            affirming=read.flag("affirming"),
            verdict=read.mapping("verdict") if members.get("verdict") is not None else None,
            checks=read.items("checks", lambda item: Reader(item, "checks").rest(), max_items=256),
            result=read.text_or_none("result", max_len=MAX_TOKEN),
        )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PutSecretRequest:
    """PUT /v1/secrets/{name}: a new version. Without a value the broker draws 32 random bytes (`:rotate`)."""

    value: bytes | None = field(repr=False, default=None)
    labels: tuple[str, ...] = ()
    terms: SecretTerms | None = None  # none: those that the secret has

    def to_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = {"labels": list(self.labels)}
        if self.value is not None:
            found["value"] = b64u(self.value)
        if self.terms is not None:
            found["terms"] = self.terms.to_dict()
        return found

    @classmethod
    def from_dict(cls, value: object) -> Self:
        read = Reader(value, "secret")
        made = cls(
            value=read.raw_or_none("value", max_len=MAX_SECRET),
            labels=read.texts("labels", max_items=MAX_LABELS, max_len=MAX_LABEL),
            terms=_terms(value, read),
        )
        read.end()
        return made


def _terms(value: object, read: Reader) -> SecretTerms | None:
    given = isinstance(value, dict) and value.get("terms") is not None
    return SecretTerms.from_dict(read.mapping("terms")) if given else None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SecretInfo:
    """What may be known about a secret: everything but its value."""

    name: str
    version: int
    labels: tuple[str, ...]
    created_at_s: int
    destroyed: bool
    terms: SecretTerms | None = None

    def to_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "name": self.name,
            "version": self.version,
            "labels": list(self.labels),
            "created_at_s": self.created_at_s,
            "destroyed": self.destroyed,
        }
        return found if self.terms is None else found | {"terms": self.terms.to_dict()}

    @classmethod
    def from_dict(cls, value: object) -> Self:
        read = Reader(value, "secret")
        return cls(
            name=read.text("name", max_len=MAX_RESOURCE, pattern=RESOURCE),
            version=read.number("version", low=1, high=MAX_VERSION),
            labels=read.texts("labels", max_items=MAX_LABELS, max_len=MAX_LABEL),
            created_at_s=read.number("created_at_s"),
            destroyed=read.flag("destroyed"),
            terms=_terms(value, read),
        )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PeerInfo:
    """GET /v1/agents/{subject}: a peer's verdict as a token for peers (see `peer_audience`)."""

    subject: str
    token: str = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        return {"subject": self.subject, "token": self.token}

    @classmethod
    def from_dict(cls, value: object) -> Self:
        read = Reader(value, "peer")
        return cls(
            subject=read.text("subject", max_len=MAX_SUBJECT, pattern=SUBJECT),
            token=read.text("token", max_len=MAX_TOKEN),
        )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """application/problem+json (RFC 9457) with our `code` and the id under which the operator's log has the rest."""

    status: int
    code: str
    title: str
    correlation_id: str
    detail: str = ""
    remedy: str = ""
    codes: tuple[str, ...] = ()  # every reason's code, when there are several

    def to_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "type": f"urn:cloister:problem:{self.code}",
            "title": self.title,
            "status": self.status,
            "code": self.code,
            "correlation_id": self.correlation_id,
        }
        if self.detail:
            found["detail"] = self.detail
        if self.remedy:
            found["remedy"] = self.remedy
        if self.codes:
            found["codes"] = list(self.codes)
        return found

    @classmethod
    def from_dict(cls, value: object) -> Self:
        read = Reader(value, "problem")
        return cls(
            status=read.number("status", low=100, high=599),
            code=read.text("code", max_len=64),
            title=read.text("title", max_len=512),
            correlation_id=read.text("correlation_id", max_len=64),
            detail=read.text_or_none("detail", max_len=2048) or "",
            remedy=read.text_or_none("remedy", max_len=2048) or "",
            codes=read.texts("codes", max_items=256, max_len=64),
        )
