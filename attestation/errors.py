"""What can go wrong, as stable codes, and the exceptions that carry them.

Decides the names: a `Code` is public and stable (add, never rename or reuse) and each has a row in `MEANING` that says what
happened and what to do. Which check raises which code is decided where the check is.
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
        "Known are 1 (SGX), 2, 3 and 4 (TD report 1.0, 1.5, 1.5Ex).",
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
}
