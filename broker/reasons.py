"""Refusals of every kind, put into codes for the one who was refused and sentences for the operator.

Decides what each side may know: codes go out, values stay in the operator's log and the audit log.
"""

from typing import Final

from attestation.errors import AttestationError, VerificationFailed
from broker.errors import BrokerError
from broker.wire.errors import WireError
from policies.decided import refusal_codes
from policies.errors import Refused

MAX_REASONS: Final = 32
MAX_TEXT: Final = 400
Refusal = AttestationError | BrokerError | Refused | WireError


def codes_of(error: Refusal) -> tuple[str, ...]:
    """Every reason's code, each once, the first reason first."""
    if isinstance(error, Refused | AttestationError):
        return refusal_codes(error)
    if isinstance(error, BrokerError) and error.codes:
        return error.codes
    return (str(error.code),)


def told(error: Refusal) -> list[str]:
    """What the operator reads: one sentence for each reason, with what would make it pass."""
    if isinstance(error, Refused):
        lines = [
            f"{reason.code}: rule {reason.rule} expected {reason.expected}, found {reason.found}; "
            f"passes if {reason.passes_if}"
            for reason in error.reasons
        ]
    elif isinstance(error, VerificationFailed) and error.checks:
        lines = [
            f"{check.code}: {check.detail}" + (f"; {check.remedy}" if check.remedy else "")
            for check in error.checks
            if not check.ok
        ]
    else:
        lines = [f"{error.code}: {error.detail}"]
    return [line[:MAX_TEXT] for line in lines[:MAX_REASONS]]
