"""One table: what a refusal is called → which HTTP status and which problem document it becomes.

Decides what the remote side gets to read: code, the public meaning of the code, and the id under which the operator's
log has the rest. Never a detail, a value or a rule (RFC 9457 without `detail`).
"""

from collections.abc import Mapping
from typing import Final

from attestation.errors import (
    MEANING as ATTESTATION_MEANING,
)
from attestation.errors import (
    AttestationError,
    CollateralUnavailable,
    MalformedEvidence,
    SealingFailed,
    TokenRefused,
    VerificationFailed,
)
from broker.errors import MEANING as BROKER_MEANING
from broker.errors import BrokerCode, BrokerError
from broker.reasons import Refusal, codes_of
from broker.wire.bodies import Problem
from broker.wire.errors import MEANING as WIRE_MEANING
from broker.wire.errors import WireCode, WireError
from policies.errors import Refused

MAX_SHOWN: Final = 2000
BODY: Final = "body."  # codes about the request's own body
BAD_REQUEST, UNAUTHORIZED, FORBIDDEN, NOT_FOUND, NOT_ALLOWED, CONFLICT, GONE, TOO_LARGE, TOO_MANY = (
    *(400, 401, 403, 404, 405, 409, 410, 413, 429),
)
INTERNAL, UNAVAILABLE = 500, 503

STATUS: Final[Mapping[str, int]] = {
    BrokerCode.ADMIN_KEY_UNKNOWN: FORBIDDEN,
    BrokerCode.ADMIN_PROOF_MISSING: UNAUTHORIZED,
    BrokerCode.ADMIN_ROLE: FORBIDDEN,
    BrokerCode.ADMIN_SECOND: CONFLICT,
    BrokerCode.ADMIN_TENANT: FORBIDDEN,
    BrokerCode.AGENT_EXPIRED: NOT_FOUND,
    BrokerCode.AGENT_QUARANTINED: FORBIDDEN,
    BrokerCode.AGENT_RETIRED: FORBIDDEN,
    BrokerCode.AGENT_REVOKED: FORBIDDEN,
    BrokerCode.AGENT_UNKNOWN: NOT_FOUND,
    BrokerCode.ATTESTATION_ROLE: FORBIDDEN,
    BrokerCode.ATTESTATION_TENANT: FORBIDDEN,
    BrokerCode.ATTESTATION_WRONG_BROKER: FORBIDDEN,
    BrokerCode.BROKER_EVIDENCE: UNAVAILABLE,
    BrokerCode.BLOB_DIGEST: BAD_REQUEST,
    BrokerCode.BLOB_UNKNOWN: NOT_FOUND,
    BrokerCode.AUDIENCE_RESERVED: BAD_REQUEST,
    BrokerCode.BROKER_BUSY: UNAVAILABLE,
    BrokerCode.BROKER_DEADLINE: UNAVAILABLE,
    BrokerCode.BROKER_INTERNAL: INTERNAL,
    BrokerCode.BROKER_STOPPING: UNAVAILABLE,
    BrokerCode.CHALLENGE_EXPIRED: FORBIDDEN,
    BrokerCode.CHALLENGE_FORGED: FORBIDDEN,
    BrokerCode.CHALLENGE_USED: CONFLICT,
    BrokerCode.CHECKPOINT_CONFLICT: CONFLICT,
    BrokerCode.CHECKPOINT_ROLLED_BACK: INTERNAL,
    BrokerCode.CHANNEL_FORKED: CONFLICT,
    BrokerCode.CHANNEL_GAP: CONFLICT,
    BrokerCode.CHANNEL_OWNER: FORBIDDEN,
    BrokerCode.CHANNEL_UNKNOWN: NOT_FOUND,
    BrokerCode.CLOCK_BEHIND: UNAVAILABLE,
    BrokerCode.COLLATERAL_PENDING: UNAVAILABLE,
    BrokerCode.CONFIG_INVALID: BAD_REQUEST,
    BrokerCode.DECISION_UNAVAILABLE: NOT_FOUND,
    BrokerCode.DPOP_BODY: UNAUTHORIZED,
    BrokerCode.DPOP_KEY: UNAUTHORIZED,
    BrokerCode.DPOP_METHOD: UNAUTHORIZED,
    BrokerCode.DPOP_MISSING: UNAUTHORIZED,
    BrokerCode.DPOP_NONCE: UNAUTHORIZED,
    BrokerCode.DPOP_REPLAYED: UNAUTHORIZED,
    BrokerCode.DPOP_TOKEN: UNAUTHORIZED,
    BrokerCode.DPOP_URL: UNAUTHORIZED,
    BrokerCode.GENERATION_MOVED: UNAVAILABLE,
    BrokerCode.KBS_INIT_DATA: FORBIDDEN,
    BrokerCode.KBS_KEY: BAD_REQUEST,
    BrokerCode.KBS_SESSION: UNAUTHORIZED,
    BrokerCode.KBS_TEE: BAD_REQUEST,
    BrokerCode.KBS_TOKEN: UNAUTHORIZED,
    BrokerCode.KBS_TOKEN_EXPIRED: UNAUTHORIZED,
    BrokerCode.KBS_TOKEN_MISSING: UNAUTHORIZED,
    BrokerCode.KBS_VERSION: BAD_REQUEST,
    BrokerCode.KEY_WORKLOAD: FORBIDDEN,
    BrokerCode.LEASE_LOST: CONFLICT,
    BrokerCode.LIMIT_AGENT: TOO_MANY,
    BrokerCode.LIMIT_SOURCE: TOO_MANY,
    BrokerCode.LIMIT_TENANT: TOO_MANY,
    BrokerCode.LOG_ENTRY_UNKNOWN: NOT_FOUND,
    BrokerCode.LOG_TAMPERED: INTERNAL,
    BrokerCode.MAILBOX_FULL: TOO_MANY,
    BrokerCode.MAILBOX_CHECKPOINT: CONFLICT,
    BrokerCode.MAILBOX_KEY_NOT_KEPT: CONFLICT,
    BrokerCode.MAILBOX_KEY_STALE: CONFLICT,
    BrokerCode.MAILBOX_KIND: CONFLICT,
    BrokerCode.MAILBOX_NAME: BAD_REQUEST,
    BrokerCode.MAILBOX_NOT_OWNER: FORBIDDEN,
    BrokerCode.MAILBOX_OWNER_GONE: GONE,
    BrokerCode.MAILBOX_TAKEN: CONFLICT,
    BrokerCode.MAILBOX_TOO_MANY: TOO_MANY,
    BrokerCode.MAILBOX_UNKNOWN: NOT_FOUND,
    BrokerCode.MESSAGE_EXPIRED: BAD_REQUEST,
    BrokerCode.MESSAGE_ID_REUSED: CONFLICT,
    BrokerCode.MESSAGE_LABELS: FORBIDDEN,
    BrokerCode.MESSAGE_LADEN: FORBIDDEN,
    BrokerCode.MESSAGE_MAILBOX: BAD_REQUEST,
    BrokerCode.MESSAGE_SENDER: FORBIDDEN,
    BrokerCode.POLICY_REFUSED: FORBIDDEN,
    BrokerCode.RELEASE_QUERY: BAD_REQUEST,
    BrokerCode.ROOT_FILE: INTERNAL,
    BrokerCode.ROOT_PASSPHRASE: INTERNAL,
    BrokerCode.ROOT_SEALED: UNAVAILABLE,
    BrokerCode.ROOT_SHARE: FORBIDDEN,
    BrokerCode.ROOT_TPM: INTERNAL,
    BrokerCode.ROOT_TPM_UNAVAILABLE: INTERNAL,
    BrokerCode.ROOT_WRONG: INTERNAL,
    BrokerCode.ROUTE_METHOD: NOT_ALLOWED,
    BrokerCode.ROUTE_UNKNOWN: NOT_FOUND,
    BrokerCode.SECRET_DESTROYED: GONE,
    BrokerCode.SECRET_LEASE: FORBIDDEN,
    BrokerCode.SECRET_NAME: BAD_REQUEST,
    BrokerCode.SECRET_UNKNOWN: NOT_FOUND,
    BrokerCode.SVID_AUTHORITY: NOT_FOUND,
    BrokerCode.SVID_TOO_MANY: TOO_MANY,
    BrokerCode.SESSION_TOKEN_MISSING: UNAUTHORIZED,
    BrokerCode.STORE_DAMAGED: INTERNAL,
    BrokerCode.STORE_IN_USE: UNAVAILABLE,
    BrokerCode.STORE_ROW_FORGED: INTERNAL,
    BrokerCode.STORE_ROWS: INTERNAL,
    BrokerCode.STORE_UNAVAILABLE: UNAVAILABLE,
    BrokerCode.STORE_VERSION: INTERNAL,
    BrokerCode.STREAM_SUPERSEDED: CONFLICT,
    BrokerCode.TOPIC_NOT_READER: FORBIDDEN,
    BrokerCode.VERIFICATION_POLICY: BAD_REQUEST,
    WireCode.BODY_FIELD_INVALID: BAD_REQUEST,
    WireCode.BODY_FIELD_MISSING: BAD_REQUEST,
    WireCode.BODY_FIELD_UNKNOWN: BAD_REQUEST,
    WireCode.BODY_NOT_JSON: BAD_REQUEST,
    WireCode.BODY_NOT_PROTOBUF: BAD_REQUEST,
    WireCode.BODY_TOO_LARGE: TOO_LARGE,
    WireCode.CHALLENGE_EVIDENCE: INTERNAL,
    WireCode.CHALLENGE_NOT_EXPECTED: INTERNAL,
    WireCode.CHALLENGE_SIGNATURE: INTERNAL,
    WireCode.CHALLENGE_STALE: INTERNAL,
    WireCode.CHALLENGE_WRONG_BROKER: INTERNAL,
    WireCode.CHANNEL_MALFORMED: BAD_REQUEST,
    WireCode.CHANNEL_SIGNATURE: FORBIDDEN,
    WireCode.DPOP_MALFORMED: UNAUTHORIZED,
    WireCode.DPOP_SIGNATURE: UNAUTHORIZED,
    WireCode.ENVELOPE_MALFORMED: BAD_REQUEST,
    WireCode.ENVELOPE_SIGNATURE: FORBIDDEN,
    WireCode.LOG_MALFORMED: INTERNAL,
    WireCode.LOG_PROOF: INTERNAL,
    WireCode.LOG_SIGNATURE: INTERNAL,
    WireCode.MAILBOX_KEY_SIGNATURE: FORBIDDEN,
    WireCode.REFERENCE_MALFORMED: BAD_REQUEST,
    WireCode.RELEASE_MISMATCH: INTERNAL,
    WireCode.RELEASE_SIGNATURE: INTERNAL,
    WireCode.SVID_BUNDLE: INTERNAL,
    WireCode.SVID_CRL_STALE: INTERNAL,
    WireCode.SVID_DOMAIN: FORBIDDEN,
    WireCode.SVID_EXPIRED: FORBIDDEN,
    WireCode.SVID_MALFORMED: BAD_REQUEST,
    WireCode.SVID_NOT_ISSUED: FORBIDDEN,
    WireCode.SVID_REQUEST: BAD_REQUEST,
    WireCode.SVID_REVOKED: FORBIDDEN,
    WireCode.REVOCATIONS_SIGNATURE: INTERNAL,
    WireCode.STATE_SIGNATURE: INTERNAL,
}
GRPC_STATUS: Final[Mapping[int, int]] = {
    BAD_REQUEST: 3,  # INVALID_ARGUMENT
    UNAUTHORIZED: 16,  # UNAUTHENTICATED
    FORBIDDEN: 7,  # PERMISSION_DENIED
    NOT_FOUND: 5,
    NOT_ALLOWED: 12,  # UNIMPLEMENTED
    CONFLICT: 10,  # ABORTED: begin again, with a new challenge or a new key
    GONE: 9,  # FAILED_PRECONDITION
    TOO_LARGE: 8,  # RESOURCE_EXHAUSTED, as gRPC itself says
    TOO_MANY: 8,
    INTERNAL: 13,
    UNAVAILABLE: 14,
}
"""HTTP status → gRPC status."""
# Errors about evidence: the class says what to do, and so does its status.
_BY_CLASS: Final[tuple[tuple[type[AttestationError], int], ...]] = (
    (MalformedEvidence, BAD_REQUEST),
    (VerificationFailed, FORBIDDEN),
    (CollateralUnavailable, UNAVAILABLE),
    (TokenRefused, UNAUTHORIZED),
    (SealingFailed, BAD_REQUEST),
)
# RFC 9449 §7.1 and §8: what a 401 says beside the problem document.
_CHALLENGE_WORDS: Final[Mapping[str, str]] = {
    BrokerCode.DPOP_NONCE: "use_dpop_nonce",
    BrokerCode.SESSION_TOKEN_MISSING: "invalid_token",
}


def status_of(error: Refusal) -> int:
    """The HTTP status of a refusal."""
    if isinstance(error, Refused):
        return FORBIDDEN
    if isinstance(error, BrokerError | WireError):
        return STATUS[error.code]
    return next((status for kind, status in _BY_CLASS if isinstance(error, kind)), INTERNAL)


def problem_of(error: Refusal, correlation_id: str) -> Problem:
    """The problem document: nothing in it comes from the error but its codes, and what may be shown."""
    codes = codes_of(error)
    code = str(BrokerCode.POLICY_REFUSED) if isinstance(error, Refused) else str(error.code)
    happened, remedy = _meaning(error)
    return Problem(
        status=status_of(error),
        code=code,
        title=happened,
        detail=_shown(error, code),
        remedy=remedy,
        correlation_id=correlation_id,
        codes=codes if codes != (code,) else (),
    )


def _shown(error: Refusal, code: str) -> str:
    """What a caller sent himself, and what he is meant to read; of all else the codes have to do."""
    if isinstance(error, BrokerError):
        return error.shown[:MAX_SHOWN]
    return error.detail[:MAX_SHOWN] if isinstance(error, WireError) and code.startswith(BODY) else ""


def _meaning(error: Refusal) -> tuple[str, str]:
    if isinstance(error, Refused):
        return BROKER_MEANING[BrokerCode.POLICY_REFUSED]
    if isinstance(error, BrokerError):
        return BROKER_MEANING[error.code]
    if isinstance(error, WireError):
        return WIRE_MEANING[error.code]
    return ATTESTATION_MEANING[error.code]


def headers_of(error: Refusal, status: int) -> dict[str, str]:
    """WWW-Authenticate for 401, Retry-After where trying again makes sense."""
    found: dict[str, str] = {}
    if status == UNAUTHORIZED:
        word = _CHALLENGE_WORDS.get(str(error.code))
        if word is None:
            word = "invalid_token" if isinstance(error, TokenRefused) else "invalid_dpop_proof"
        found["www-authenticate"] = f'DPoP error="{word}", algs="ES256"'
    retry = error.retry_after_s if isinstance(error, BrokerError) else None
    if retry is not None or status == UNAVAILABLE:
        found["retry-after"] = str(retry or 1)
    return found
