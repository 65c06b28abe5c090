"""Attestation evidence and what can be proved from it. Pure: no clock, network, SQL or global state.

The names below are the public library; each is imported from its module when it is first asked for, so that a program
pays only for what it uses.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from attestation.collateral import Collateral as Collateral
    from attestation.errors import AttestationError as AttestationError
    from attestation.errors import Code as Code
    from attestation.errors import CollateralUnavailable as CollateralUnavailable
    from attestation.errors import MalformedEvidence as MalformedEvidence
    from attestation.errors import VerificationFailed as VerificationFailed
    from attestation.evidence import Binding as Binding
    from attestation.pki import TrustRoots as TrustRoots
    from attestation.quote import Quote as Quote
    from attestation.quote import Tee as Tee
    from attestation.tcb import ANY_TCB as ANY_TCB
    from attestation.tcb import UP_TO_DATE as UP_TO_DATE
    from attestation.tcb import TcbStatus as TcbStatus
    from attestation.verdict import Verdict as Verdict
    from attestation.verifier import NOT_COMPARED as NOT_COMPARED
    from attestation.verifier import Allowance as Allowance
    from attestation.verifier import VerifiedQuote as VerifiedQuote
    from attestation.verifier import Verifier as Verifier
    from attestation.verifier import verify_quote as verify_quote

_HOME: Final = {
    "ANY_TCB": "tcb",
    "Allowance": "verifier",
    "AttestationError": "errors",
    "Binding": "evidence",
    "Code": "errors",
    "Collateral": "collateral",
    "CollateralUnavailable": "errors",
    "MalformedEvidence": "errors",
    "NOT_COMPARED": "verifier",
    "Quote": "quote",
    "Tee": "quote",
    "TcbStatus": "tcb",
    "TrustRoots": "pki",
    "UP_TO_DATE": "tcb",
    "Verdict": "verdict",
    "VerificationFailed": "errors",
    "VerifiedQuote": "verifier",
    "Verifier": "verifier",
    "verify_quote": "verifier",
}


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'attestation' has no attribute {name!r}")
    value = getattr(import_module(f"attestation.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
