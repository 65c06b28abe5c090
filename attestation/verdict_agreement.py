"""Whether what a signed token says of a verdict agrees with itself.

Decides which members of a token follow from others, and refuses where they don't: a derived field, a status, a suite
or a key is never believed by itself. A signature that verifies is not asked about here; forms are read in
`verdict_claims`. Errors are TokenRefused token.claims_invalid.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from attestation import ear, verdict_facts
from attestation.ear import NOT_APPRAISED
from attestation.errors import Code, MalformedEvidence, TokenRefused
from attestation.evidence import Binding, Role
from attestation.quote import Tee
from attestation.tcb import TcbStatus

LABELS: Final = {Tee.TDX: "tdx0", Tee.SGX: "sgx0"}
"""The name of a verdict's one submodule."""
_STATES: Final = ("tcb_status", "platform_tcb_status", "module_tcb_status", "qe_tcb_status")


def demand_admission(values: Mapping[str, Any]) -> None:
    """What an admission says of its agent is one Binding, and the one that REPORT_DATA commits to."""
    try:
        binding = _binding(values)
    except (MalformedEvidence, ValueError) as error:
        raise _refused(f"no binding: {error}") from error
    if any(values[name] != value for name, value in verdict_facts.bound(binding).items()):
        raise _refused("subject, jkt or admission is not what the binding gives")
    if values["report_data"] != binding.report_data.hex() or not values["compared"]:
        raise _refused("REPORT_DATA does not commit to the binding")
    if len(values["event_digests"]) != (4 if values["event_log_present"] else 0):
        raise _refused("event digests without an event log, or the other way round")


def demand_facts(values: Mapping[str, Any], label: str, module: Mapping[str, Any]) -> None:
    """Nothing revoked is ever verified, the root says what is simulated, and the submodule is that of the facts.

    What the vector says of hardware, configuration and isolation follows from the facts alone; `ear.check` has seen to
    it that no status is better than the vector.
    """
    if label != LABELS[values["tee"]]:
        raise _refused("the submodule is that of another TEE")
    if values["simulated"] is not verdict_facts.simulated(values["root_sha256"]):
        raise _refused("simulated is not what the root gives")
    if TcbStatus.REVOKED in [values[name] for name in _STATES]:
        raise _refused("nothing revoked is ever verified")
    _demand_vector(module["ear_trustworthiness_vector"], values["tcb_status"], values["allowances"])


def demand_result(found: Mapping[str, Any], status: str) -> bool:
    """Whether a result says "verified", with facts and no code; else it is refused, with a code and no facts."""
    told = found.get("ok"), found.get("code", ""), found.get("facts", "")
    if told[0] is True and told[1] is None and isinstance(told[2], dict):
        return True
    if told[0] is not False or not isinstance(told[1], str) or not told[1] or told[2] is not None:
        raise _refused("neither verified, with facts, nor refused, with a code")
    if status != ear.Tier.CONTRAINDICATED:
        raise _refused("refused evidence is contraindicated")
    return False


def _demand_vector(told: Mapping[str, int], status: TcbStatus, allowances: Iterable[str]) -> None:
    stated = ear.vector(tcb_status=status, allowances=allowances, appraisal=NOT_APPRAISED)
    if not stated.items() <= told.items():
        raise _refused("the trustworthiness vector contradicts the facts inside")


def _binding(values: Mapping[str, Any]) -> Binding:
    return Binding(
        role=Role(values["role"]),
        tenant=values["tenant"],
        broker_id=bytes.fromhex(values["broker_id"]),
        nonce=bytes.fromhex(values["nonce"]),
        identity_key=values["identity_key"],
        suite=values["suite"],
        sealing_key=values["sealing_key"],
        init_data_digest=bytes.fromhex(values["init_data_digest"]),
        trust_file_digest=bytes.fromhex(values["trust_file_digest"]),
    )


def _refused(detail: str) -> TokenRefused:
    return TokenRefused(Code.TOKEN_CLAIMS, detail)
