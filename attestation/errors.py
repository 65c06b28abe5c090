"""What can go wrong, as stable codes, and the exceptions that carry them.

Decides the names: a `Code` is public and stable (add, never rename or reuse) and each has a row in `MEANING` that says
what happened and what to do. Which check raises which code is decided where the check is.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from attestation.checks import Check


class Code(StrEnum):
    """`family.what`. The family says which part of the evidence or of its proof is wrong."""

    # the quote's bytes
    QUOTE_EMPTY = "quote.empty"
    QUOTE_TOO_LARGE = "quote.too_large"
    QUOTE_TRUNCATED = "quote.truncated"
    QUOTE_VERSION = "quote.version_unsupported"
    QUOTE_KEY_TYPE = "quote.key_type_unsupported"
    QUOTE_TEE = "quote.tee_unsupported"
    QUOTE_RESERVED = "quote.reserved_not_zero"
    QUOTE_BODY_TYPE = "quote.body_type_unsupported"
    QUOTE_BODY_SIZE = "quote.body_size_mismatch"
    QUOTE_LENGTH = "quote.length_mismatch"
    QUOTE_CERTIFICATION_TYPE = "quote.certification_type_unsupported"
    QUOTE_CERTIFICATION_SIZE = "quote.certification_size_mismatch"
    QUOTE_TRAILING = "quote.trailing_bytes"
    # the quote's claims and signature
    QUOTE_DEBUG = "quote.debug"
    QUOTE_SEPT_VE_DISABLE = "quote.sept_ve_disable_clear"
    QUOTE_MIGRATABLE = "quote.migratable"
    QUOTE_SERVICE_TD = "quote.service_td"
    QUOTE_ATTRIBUTES = "quote.attributes_unknown"
    QUOTE_KEY_INVALID = "quote.key_invalid"
    QUOTE_SIGNATURE = "quote.signature_invalid"
    # event logs
    EVENTLOG_DIGEST = "eventlog.digest_mismatch"
    EVENTLOG_LAUNCH = "eventlog.launch_invalid"
    EVENTLOG_MALFORMED = "eventlog.malformed"
    EVENTLOG_NOT_A_TD = "eventlog.not_a_td"
    EVENTLOG_REPLAY = "eventlog.replay_mismatch"
    EVENTLOG_TOO_LARGE = "eventlog.too_large"
    # what an agent sends beside its quote
    EVIDENCE_FIELD = "evidence.field_invalid"
    EVIDENCE_KEY = "evidence.key_invalid"
    EVIDENCE_MALFORMED = "evidence.malformed"
    EVIDENCE_PROOF = "evidence.proof_invalid"
    EVIDENCE_SUITE = "evidence.suite_unknown"
    EVIDENCE_TOO_LARGE = "evidence.too_large"
    # sealing
    SEALING_KEY = "sealing.key_invalid"
    SEALING_NOT_BOUND = "sealing.not_bound"
    SEALING_OPEN = "sealing.open_failed"
    SEALING_SUITE = "sealing.suite_unknown"
    SEALING_TOO_LARGE = "sealing.too_large"
    SEALING_UNAVAILABLE = "sealing.suite_unavailable"
    # tokens and results
    TOKEN_ALGORITHM = "token.algorithm"
    TOKEN_AUDIENCE = "token.audience"
    TOKEN_CLAIMS = "token.claims_invalid"
    TOKEN_CRITICAL = "token.header_not_allowed"
    TOKEN_EXPIRED = "token.expired"
    TOKEN_ISSUER = "token.issuer"
    TOKEN_KEY = "token.key_unknown"
    TOKEN_LIFETIME = "token.lifetime"
    TOKEN_MALFORMED = "token.malformed"
    TOKEN_NOT_ADMISSIBLE = "token.not_admissible"
    TOKEN_NOT_YET = "token.not_yet_valid"
    TOKEN_SIGNATURE = "token.signature_invalid"
    TOKEN_TOO_LARGE = "token.too_large"
    TOKEN_TYPE = "token.type"
    # collateral that could not be had
    COLLATERAL_ANSWER = "collateral.answer_invalid"
    COLLATERAL_NOT_FOUND = "collateral.not_found"
    COLLATERAL_PLATFORM = "collateral.platform_unknown"
    COLLATERAL_ROLLBACK = "collateral.rollback"
    COLLATERAL_STALE = "collateral.stale"
    COLLATERAL_UNREACHABLE = "collateral.unreachable"


class AttestationError(Exception):
    """`code` is for machines, `detail` for the operator's log; neither ever holds a secret."""

    def __init__(self, code: Code, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail


class MalformedEvidence(AttestationError):
    """Not well formed. The sender's fault; do not retry."""


class VerificationFailed(AttestationError):
    """Well formed, not trustworthy. Refuse. `checks` holds every check that ran, passed or failed, in step order."""

    def __init__(self, code: Code, detail: str, checks: tuple[Check, ...] = ()) -> None:
        super().__init__(code, detail)
        self.checks = checks


class CollateralUnavailable(AttestationError):
    """We could not judge. Refuse now, retry later; never a pass."""


class TokenRefused(AttestationError):
    """A token or result that is not what the reader demands. Ask for a new one."""


class SealingFailed(AttestationError):
    """Sealing or opening did not work. One code for every cause of a failed opening, on purpose."""


# code → (what happened, what to do)
MEANING: Final[dict[Code, tuple[str, str]]] = {
    Code.QUOTE_EMPTY: ("There is no quote: zero bytes were given.", "Send the quote that the trust domain produced."),
    Code.QUOTE_TOO_LARGE: ("The quote is larger than 1 MiB.", "Send the quote alone; real ones have 4 to 16 KiB."),
    Code.QUOTE_TRUNCATED: ("The bytes end inside a field.", "Send the whole quote; check how it was read and encoded."),
    Code.QUOTE_VERSION: ("The version is not 3, 4 or 5.", "Send an SGX v3 or a TDX v4 or v5 quote in raw bytes."),
    Code.QUOTE_KEY_TYPE: (
        "The attestation key is not ECDSA P-256 (type 2).",
        "Use Intel's ECDSA P-256 quoting enclave.",
    ),
    Code.QUOTE_TEE: (
        "The TEE type is not SGX (v3, v5) or TDX (v4, v5).",
        "Check that these are the raw bytes of an Intel quote.",
    ),
    Code.QUOTE_RESERVED: (
        "A reserved field that Intel defines as zero is not.",
        "Get a fresh quote from the platform.",
    ),
    Code.QUOTE_BODY_TYPE: (
        "The v5 body type is unknown.",
        "Known are 1 (SGX) and 2, 3, 4 (TD report 1.0, 1.5, 1.5Ex).",
    ),
    Code.QUOTE_BODY_SIZE: ("The v5 body size is not the size of its type.", "Get a fresh quote from the platform."),
    Code.QUOTE_LENGTH: (
        "The parts of the signature data do not fill its declared length exactly.",
        "Get a fresh quote; these bytes were altered or cut.",
    ),
    Code.QUOTE_CERTIFICATION_TYPE: (
        "The certification data type is not one that this quote version carries.",
        "v3 carries 1 to 5; v4 and v5 carry 6 with 1 to 5 inside.",
    ),
    Code.QUOTE_CERTIFICATION_SIZE: (
        "The certification data has not the size of its type.",
        "Get a fresh quote; these bytes were altered or cut.",
    ),
    Code.QUOTE_TRAILING: (
        "Bytes other than zeros follow the quote.",
        "Send the quote alone; zero padding is dropped, anything else is refused.",
    ),
    Code.QUOTE_DEBUG: (
        "The trust domain or enclave runs in debug mode: its host can read its memory.",
        "Launch it without the DEBUG attribute. Nothing can allow this.",
    ),
    Code.QUOTE_SEPT_VE_DISABLE: (
        "SEPT_VE_DISABLE is clear: the host may inject #VE by removing pages.",
        "Launch with SEPT_VE_DISABLE, or name the allowance sept_ve_disable_clear (paravisor clouds need it).",
    ),
    Code.QUOTE_MIGRATABLE: (
        "The trust domain may be migrated by a migration TD.",
        "Launch it without MIGRATABLE, or name the allowance migratable and pin MRSERVICETD.",
    ),
    Code.QUOTE_SERVICE_TD: (
        "A service TD is bound to the trust domain (MRSERVICETD is not zero).",
        "Launch it without service TDs, or name the allowance service_td and pin MRSERVICETD.",
    ),
    Code.QUOTE_ATTRIBUTES: (
        "Reserved or unknown ATTRIBUTES bits are set.",
        "Clear them, or name the allowance unknown_attributes once you know what they mean.",
    ),
    Code.QUOTE_KEY_INVALID: ("The attestation key is not a point on P-256.", "Get a fresh quote from the platform."),
    Code.QUOTE_SIGNATURE: (
        "The attestation key did not sign this header and body.",
        "The quote was altered after it was made; get a fresh one.",
    ),
    Code.EVENTLOG_DIGEST: (
        "An event's data does not hash to the digest that was measured: its text cannot be believed.",
        "Send the log as the trust domain recorded it; data and digest belong together.",
    ),
    Code.EVENTLOG_LAUNCH: (
        "A launch event's data is not tag, 48-byte code digest and UTF-8 name of at most 255 bytes.",
        "Launch through `cloister run`, which writes the event.",
    ),
    Code.EVENTLOG_MALFORMED: (
        "The event log is neither a TCG2 crypto-agile log (CCEL) nor the dstack JSON form.",
        "Send the raw bytes of the CCEL data table, or the guest agent's event_log text.",
    ),
    Code.EVENTLOG_NOT_A_TD: (
        "An event log came with the quote of an SGX enclave, which has no run-time registers.",
        "Leave the event log out.",
    ),
    Code.EVENTLOG_REPLAY: (
        "Replaying the event log does not give the RTMRs of the quote.",
        "Send the whole log, taken after the last extension that the quote covers and before the next.",
    ),
    Code.EVENTLOG_TOO_LARGE: (
        "The event log, one of its events, or their number exceeds its bound.",
        "Send at most 1 MiB and 4,096 events.",
    ),
    Code.EVIDENCE_FIELD: (
        "A field of the binding has the wrong length or form.",
        "Compare with the table of the Binding; nonces, ids and file digests have 32 bytes.",
    ),
    Code.EVIDENCE_KEY: (
        "The identity key is not the SPKI of a P-256 point, or the sealing key has not its suite's length.",
        "Make the keys as the suite asks, inside the trust domain.",
    ),
    Code.EVIDENCE_MALFORMED: (
        "The evidence is not a JSON object with exactly the members it should have.",
        "Send quote, event_log, binding and proof; binary members in base64url without padding.",
    ),
    Code.EVIDENCE_PROOF: (
        "The proof of possession does not verify under the identity key.",
        "Sign this exchange's nonces, quote and log with the identity key that the quote binds.",
    ),
    Code.EVIDENCE_SUITE: ("The sealing suite is unknown.", "Known are mlkem768-x25519 and x25519."),
    Code.EVIDENCE_TOO_LARGE: ("A member of the evidence exceeds its bound.", "Quote and event log have 1 MiB each."),
    Code.SEALING_KEY: ("The bytes are not a key of the suite.", "Take the public key out of a verified verdict."),
    Code.SEALING_NOT_BOUND: (
        "The verdict carries no sealing key, so there is nothing to seal to.",
        "Seal only to a verdict that was admitted with a binding.",
    ),
    Code.SEALING_OPEN: (
        "The sealed bytes do not open: another key, context or suite, or altered bytes.",
        "Ask for a new one; the cause is not told apart on purpose.",
    ),
    Code.SEALING_SUITE: ("The sealing suite is unknown.", "Known are mlkem768-x25519 and x25519."),
    Code.SEALING_TOO_LARGE: ("The plaintext or sealed message exceeds 16 MiB.", "Seal a key, and the data under it."),
    Code.SEALING_UNAVAILABLE: (
        "This build of the cryptography library cannot do ML-KEM-768.",
        "Install the official wheel of cryptography; the suite is never replaced silently.",
    ),
    Code.TOKEN_ALGORITHM: ("The token is not signed with ES256.", "Only ES256 is read here, whatever the header asks."),
    Code.TOKEN_AUDIENCE: (
        "The token is for another audience.",
        "Ask for a token whose aud is this service's own string.",
    ),
    Code.TOKEN_CLAIMS: (
        "A claim is missing, of the wrong type, or contradicts another.",
        "Ask for a new token; if it repeats, issuer and reader differ in version.",
    ),
    Code.TOKEN_CRITICAL: (
        "The header holds a member that may not be there (crit, jku, jwk, x5u, x5c, …).",
        "Keys come from configuration, never from the token.",
    ),
    Code.TOKEN_EXPIRED: ("The token, or the verdict in it, has ended.", "Attest again."),
    Code.TOKEN_ISSUER: (
        "The token is from another issuer.",
        "Configure the issuer string exactly as the token has it.",
    ),
    Code.TOKEN_KEY: ("The token names a key that is not among the issuer's.", "Refresh the issuer's key set once."),
    Code.TOKEN_LIFETIME: ("The token lives longer than five minutes.", "Ask for a token of at most 300 s."),
    Code.TOKEN_MALFORMED: (
        "The bytes are not a compact JWS with canonical base64url and unambiguous JSON.",
        "Send the token exactly as it was issued.",
    ),
    Code.TOKEN_NOT_ADMISSIBLE: (
        "The verdict was not made from a Binding, so it can't become an admission.",
        "Verify the quote against the Binding of the exchange.",
    ),
    Code.TOKEN_NOT_YET: ("The token is from the future.", "Check the clocks of issuer and reader."),
    Code.TOKEN_SIGNATURE: ("The signature does not verify.", "Ask for a new token."),
    Code.TOKEN_TOO_LARGE: ("The token exceeds 64 KiB, or its header 8 KiB.", "Attest with a shorter event log."),
    Code.TOKEN_TYPE: (
        "The token is of another kind: a verification result is no admission, and the other way round.",
        "Send the kind of token that this door reads.",
    ),
    Code.COLLATERAL_ANSWER: (
        "The collateral service answered something that is not collateral, or too much of it.",
        "Check the address; it must speak the v4 interface of Intel's PCS.",
    ),
    Code.COLLATERAL_NOT_FOUND: (
        "The collateral service knows no collateral for this platform.",
        "Check the FMSPC; the platform may be too new or out of service.",
    ),
    Code.COLLATERAL_PLATFORM: (
        "The quote does not carry its PCK chain, so its platform is unknown.",
        "Use certification data of type 5, or give the collateral as a file.",
    ),
    Code.COLLATERAL_ROLLBACK: (
        "The collateral is older than collateral that was seen before.",
        "Find out who served the old set; remove the marks file only if its history is wrong.",
    ),
    Code.COLLATERAL_STALE: (
        "The only collateral at hand is not in force at this time.",
        "Check the clock and the collateral service.",
    ),
    Code.COLLATERAL_UNREACHABLE: (
        "The collateral service could not be reached, or did not answer in time.",
        "Try again later, or give the collateral as a file.",
    ),
}
