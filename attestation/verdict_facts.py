"""What goes into a verdict, by name: from a verified quote, its body, its event log, and what it was compared with.

Decides how each fact is spelled (lower-case hex, absent ones empty or None). What a Verdict is, and who may make one,
is decided in `verdict`.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any, Final

from attestation.errors import Code, VerificationFailed
from attestation.eventlog import EventLog
from attestation.evidence import Binding
from attestation.pki import TrustRoots
from attestation.quote import EnclaveReport, Quote, TdReport, Tee
from attestation.verifier import VerifiedQuote


def judged(verified: VerifiedQuote) -> dict[str, Any]:
    """What verification found out."""
    pck = verified.pck
    return {
        "tcb_status": verified.tcb_status,
        "platform_tcb_status": verified.platform_tcb_status,
        "module_tcb_status": verified.module_tcb_status,
        "qe_tcb_status": verified.qe_tcb_status,
        "advisory_ids": verified.advisory_ids,
        "tcb_date": verified.tcb_date,
        "tcb_evaluation_number": verified.tcb_evaluation_number,
        "qe_evaluation_number": verified.qe_evaluation_number,
        "fmspc": pck.fmspc.hex(),
        "ppid": pck.ppid.hex(),
        "piid": pck.piid.hex() if pck.piid is not None else None,
        "dynamic_platform": pck.dynamic_platform,
        "cached_keys": pck.cached_keys,
        "smt_enabled": pck.smt_enabled,
        "allowances": tuple(sorted(map(str, verified.allowances_used))),
        "collateral_digest": verified.collateral_digest.hex(),
        "root_sha256": verified.root_sha256,
        "simulated": simulated(verified.root_sha256),
        "verified_at": verified.verified_at,
        "valid_until": verified.valid_until,
    }


@lru_cache(maxsize=16)
def simulated(root_sha256: str) -> bool:
    """Whether the trust root is not Intel's."""
    return root_sha256 not in TrustRoots.intel().sha256


def measured(quote: Quote) -> dict[str, Any]:
    """What the body says; empty where this kind of TEE has no such thing."""
    body = quote.body
    td = body if isinstance(body, TdReport) else None
    enclave = body if isinstance(body, EnclaveReport) else None
    return {
        "tee": quote.tee,
        "mr_td": td.mr_td.hex() if td else "",
        "mr_seam": td.mr_seam.hex() if td else "",
        "rtmrs": tuple(rtmr.hex() for rtmr in td.rtmrs) if td else (),
        "mr_config_id": td.mr_config_id.hex() if td else "",
        "mr_owner": td.mr_owner.hex() if td else "",
        "mr_owner_config": td.mr_owner_config.hex() if td else "",
        "mr_service_td": td.mr_service_td.hex() if td and td.mr_service_td is not None else "",
        "td_attributes": td.td_attributes.hex() if td else "",
        "xfam": td.xfam.hex() if td else "",
        "mr_enclave": enclave.mr_enclave.hex() if enclave else "",
        "mr_signer": enclave.mr_signer.hex() if enclave else "",
        "report_data": quote.report_data.hex(),
        "quote_digest": quote_digest(quote).hex(),
    }


def quote_digest(quote: Quote) -> bytes:
    """SHA-256 over the quote's own bytes, padding excluded. For logs, never an identity: signatures are malleable."""
    size = len(quote.signature) + len(quote.certified)
    return hashlib.sha256(quote.signed + size.to_bytes(4, "little") + quote.signature + quote.certified).digest()


def logged(quote: Quote, log: EventLog | None) -> dict[str, Any]:
    """What the event log adds, once it has replayed. Raises VerificationFailed: eventlog.*"""
    if log is None:
        return {"launches": (), "event_log_present": False, "event_digests": ()}
    if quote.tee is not Tee.TDX:
        raise VerificationFailed(Code.EVENTLOG_NOT_A_TD, "an SGX enclave has no run-time registers")
    log.check(quote.td)
    return {"launches": log.launches(), "event_log_present": True, "event_digests": log.texts}


def bound(binding: Binding | None) -> dict[str, Any]:
    """Whose quote it is; empty without a Binding."""
    if binding is None:
        return {**dict.fromkeys(BOUND, ""), "identity_key": b"", "sealing_key": b"", "admission": False}
    role, jkt = str(binding.role), binding.jkt
    return {
        "subject": f"{role}/{binding.tenant}/{jkt}",
        "tenant": binding.tenant,
        "role": role,
        "identity_key": binding.identity_key,
        "jkt": jkt,
        "suite": binding.suite,
        "sealing_key": binding.sealing_key,
        "nonce": binding.nonce.hex(),
        "broker_id": binding.broker_id.hex(),
        "trust_file_digest": binding.trust_file_digest.hex(),
        "init_data_digest": binding.init_data_digest.hex(),
        "admission": True,
    }


BOUND: Final = (
    "subject",
    "tenant",
    "role",
    "identity_key",
    "jkt",
    "suite",
    "sealing_key",
    "nonce",
    "broker_id",
    "trust_file_digest",
    "init_data_digest",
    "admission",
)
