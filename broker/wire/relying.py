"""Bodies for those who rely on what the broker says: tokens for other services, questions about tokens, batches.

Requests refuse members that they do not know; answers skip them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Self, final

from broker.wire.bodies import MAX_AUDIENCE, Problem, VerificationRequest, VerificationResponse
from broker.wire.errors import WireCode, WireError
from broker.wire.fields import MAX_TOKEN, Reader, T
from broker.wire.log import Receipt

MAX_VERIFICATIONS: Final = 32  # in one batch


class TokenKind(StrEnum):
    """What a token for others looks like."""

    EAR = "ear"  # the attestation result itself, as peers get it
    SVID = "jwt-svid"  # SPIFFE's JWT-SVID: sub is the agent's SPIFFE ID


def _kind(text: str) -> TokenKind:
    if text not in tuple(TokenKind):
        raise WireError(WireCode.BODY_FIELD_INVALID, f"token.kind must be one of {', '.join(TokenKind)}")
    return TokenKind(text)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRequest:
    """POST /v1/tokens. `audience` is whoever will read the token; it is compared as a whole text."""

    audience: str
    kind: TokenKind = TokenKind.EAR

    def to_dict(self) -> dict[str, Any]:
        return {"audience": self.audience, "kind": str(self.kind)}

    @classmethod
    def from_dict(cls, value: object) -> Self:
        read = Reader(value, "token")
        audience = read.text("audience", max_len=MAX_AUDIENCE)
        kind = _kind(read.text_or_none("kind", max_len=16) or TokenKind.EAR)
        read.end()
        if not audience or not audience.isprintable():
            raise WireError(WireCode.BODY_FIELD_INVALID, "token.audience must be a printable text")
        return cls(audience=audience, kind=kind)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TokenResponse:
    """The token, its end, and the log's receipt. It names the agent's key in `cnf`: whoever ignores that has a bearer
    token."""

    token: str = field(repr=False)
    audience: str
    kind: TokenKind
    expires_at_s: int
    receipt: Receipt

    def to_dict(self) -> dict[str, Any]:
        return {
            "token": self.token,
            "audience": self.audience,
            "kind": str(self.kind),
            "expires_at_s": self.expires_at_s,
            "receipt": self.receipt.to_dict(),
        }

    @classmethod
    def from_dict(cls, value: object) -> Self:
        read = Reader(value, "token")
        return cls(
            token=read.text("token", max_len=MAX_TOKEN),
            audience=read.text("audience", max_len=MAX_AUDIENCE),
            kind=_kind(read.text("kind", max_len=16)),
            expires_at_s=read.number("expires_at_s"),
            receipt=Receipt.from_dict(read.mapping("receipt")),
        )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class IntrospectionRequest:
    """POST /v1/introspections: is this token of yours, for this audience, still good now?"""

    token: str = field(repr=False)
    audience: str

    def to_dict(self) -> dict[str, Any]:
        return {"token": self.token, "audience": self.audience}

    @classmethod
    def from_dict(cls, value: object) -> Self:
        read = Reader(value, "introspection")
        made = cls(token=read.text("token", max_len=MAX_TOKEN), audience=read.text("audience", max_len=MAX_AUDIENCE))
        read.end()
        return made


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class IntrospectionResponse:
    """Whether the token counts now. `code` is "ok", or why not; then nothing else is told.

    A token counts while it is in force *and* its agent would still be admitted: a signature alone cannot say that.
    """

    active: bool
    code: str
    subject: str = ""
    jkt: str = ""
    token_id: str = field(default="", repr=False)
    issued_at_s: int = 0
    expires_at_s: int = 0
    policy: str = ""
    status: str = ""  # ear_status
    simulated: bool = False

    def to_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = {"active": self.active, "code": self.code}
        if self.active:
            found |= {
                "subject": self.subject,
                "jkt": self.jkt,
                "token_id": self.token_id,
                "issued_at_s": self.issued_at_s,
                "expires_at_s": self.expires_at_s,
                "policy": self.policy,
                "status": self.status,
                "simulated": self.simulated,
            }
        return found

    @classmethod
    def from_dict(cls, value: object) -> Self:
        read = Reader(value, "introspection")
        active, code = read.flag("active"), read.text("code", max_len=64)
        if not active:
            return cls(active=False, code=code)
        return cls(
            active=True,
            code=code,
            subject=read.text("subject", max_len=256),
            jkt=read.text("jkt", max_len=43),
            token_id=read.text("token_id", max_len=64),
            issued_at_s=read.number("issued_at_s"),
            expires_at_s=read.number("expires_at_s"),
            policy=read.text("policy", max_len=64),
            status=read.text("status", max_len=32),
            simulated=read.flag("simulated"),
        )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class VerificationBatch:
    """POST /v1/verifications:batch: up to 32 verifications, answered in order, each for itself."""

    verifications: tuple[VerificationRequest, ...]

    def to_dict(self) -> dict[str, Any]:
        return {"verifications": [request.to_dict() for request in self.verifications]}

    @classmethod
    def from_dict(cls, value: object) -> Self:
        read = Reader(value, "batch")
        made = cls(
            verifications=read.items("verifications", VerificationRequest.from_dict, max_items=MAX_VERIFICATIONS)
        )
        read.end()
        return made


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class VerificationOutcome:
    """One of the answers: a response, or the problem that kept the quote from being judged."""

    response: VerificationResponse | None = None
    problem: Problem | None = None

    def to_dict(self) -> dict[str, Any]:
        if self.response is not None:
            return {"response": self.response.to_dict()}
        return {"problem": self.problem.to_dict() if self.problem else {}}

    @classmethod
    def from_dict(cls, value: object) -> Self:
        read = Reader(value, "batch.results")
        return cls(
            response=_if_there(read, "response", VerificationResponse.from_dict),
            problem=_if_there(read, "problem", Problem.from_dict),
        )


def _if_there(read: Reader, name: str, make: Callable[[object], T]) -> T | None:
    found = read.mapping_or_none(name)
    return None if found is None else make(found)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class VerificationResults:
    """The answers to a batch, in its order."""

    results: tuple[VerificationOutcome, ...]

    def to_dict(self) -> dict[str, Any]:
        return {"results": [result.to_dict() for result in self.results]}

    @classmethod
    def from_dict(cls, value: object) -> Self:
        read = Reader(value, "batch")
        return cls(results=read.items("results", VerificationOutcome.from_dict, max_items=MAX_VERIFICATIONS))
