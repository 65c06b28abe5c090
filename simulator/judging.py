"""What our own verifier says of an exhibit.

Decides nothing itself: parse, verify, read the log, exactly as a relying service would, UpToDate alone accepted.
"""

from __future__ import annotations

from datetime import UTC, datetime

from attestation.collateral import Collateral
from attestation.errors import AttestationError
from attestation.eventlog import EventLog
from attestation.evidence import Binding, Evidence, verify_proof
from attestation.pki import TrustRoots
from attestation.quote import Quote
from attestation.tcb import UP_TO_DATE, TcbStatus
from attestation.verdict import Verdict
from attestation.verifier import verify_quote
from simulator.registry import Exhibit


def judge(shown: Exhibit, *, accept: frozenset[TcbStatus] = UP_TO_DATE) -> Verdict:
    """Judge all parts of an exhibit. Raises AttestationError."""
    expected: bytes | Binding = shown.report_data
    raw, log = shown.quote, shown.event_log
    if shown.evidence is not None:
        evidence = Evidence.from_dict(shown.evidence)
        verify_proof(evidence, client_nonce=shown.client_nonce)
        expected, raw, log = evidence.binding, evidence.quote, evidence.event_log or b""
    verified = verify_quote(
        Quote.parse(raw),
        Collateral.from_json(shown.collateral),
        report_data=expected,
        roots=TrustRoots.from_pem(shown.root_pem),
        at=datetime.fromtimestamp(shown.at, UTC),
        accept=accept,
    )
    return Verdict.of(verified, event_log=EventLog.parse(log) if log else None)


def outcome(shown: Exhibit) -> str:
    """`ok`, or the code of the refusal."""
    try:
        judge(shown)
    except AttestationError as error:
        return str(error.code)
    return "ok"
