"""Attestation results in the words of the RATS drafts: tiers, the trustworthiness vector, the frame of an EAR.

Decides what a verified quote is worth in each category, worst first, and how that is written. A category that nobody
looked at is absent, never affirming. That a policy was satisfied is the caller's statement (`Appraisal`); whether it
was is decided where policies are.

Sources: draft-ietf-rats-ear (member names, `ear_status`), draft-ietf-rats-ar4si (categories, values, tiers).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final, final

from attestation.errors import AttestationError, Code, TokenRefused
from attestation.tcb import TcbStatus

PROFILE: Final = "tag:ietf.org,2026:rats/ear#03"
CATEGORIES: Final = (
    "instance-identity",
    "configuration",
    "executables",
    "file-system",
    "hardware",
    "runtime-opaque",
    "storage-opaque",
    "sourced-data",
)


class Tier(StrEnum):
    """What a value of the vector, or a whole result, says."""

    NONE = "none"
    AFFIRMING = "affirming"
    WARNING = "warning"
    CONTRAINDICATED = "contraindicated"


# From good to bad. `none` is no praise: a category in which the verifier failed must not hide behind good ones.
_WORSE: Final = (Tier.AFFIRMING, Tier.NONE, Tier.WARNING, Tier.CONTRAINDICATED)


class Executables(IntEnum):
    """How far the software was compared with reference values; the number is the vector's."""

    RUNTIME = 2  # MRTD, RTMR0 to 2, and what was launched since
    BOOT = 3  # MRTD and RTMR0 to 2
    UNKNOWN = 33  # there is no reference value for it


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Appraisal:
    """What a policy said, for the record. None: nobody asked."""

    policy_digest: str | None = None
    """SHA-256 of the policy, hex."""
    brought_by_caller: bool = False
    """The policy is the requester's own; then nothing is affirmed."""
    platform_listed: bool | None = None
    """Whether the platform is on the policy's list. A dated `any` is no list."""
    executables: Executables | None = None


NOT_APPRAISED: Final = Appraisal()


def tier(value: int) -> Tier:
    """The tier of one value of a vector, −128 to 127. ValueError outside."""
    if not -128 <= value <= 127:
        raise ValueError("a trustworthiness value has 8 bits")
    if -1 <= value <= 1:
        return Tier.NONE
    if -32 <= value < 32:
        return Tier.AFFIRMING
    return Tier.WARNING if -96 <= value < 96 else Tier.CONTRAINDICATED


def worst(tiers: Iterable[Tier]) -> Tier:
    """The worst of them; `none` when there is none."""
    return max(tiers, key=_WORSE.index, default=Tier.NONE)


def vector(*, tcb_status: TcbStatus, allowances: Iterable[str], appraisal: Appraisal) -> dict[str, int]:
    """The trustworthiness vector of a quote that verified (so DEBUG is off and nothing is revoked)."""
    hardware = _HARDWARE.get(tcb_status, 32)
    values = {
        "configuration": 32 if tuple(allowances) else 2,
        "hardware": hardware,
        "runtime-opaque": 2 if hardware < 32 else hardware,
    }
    if appraisal.platform_listed is not None:
        values["instance-identity"] = 2 if appraisal.platform_listed else 97
    if appraisal.executables is not None:
        values["executables"] = int(appraisal.executables)
    return {name: values[name] for name in CATEGORIES if name in values}


_HARDWARE: Final = {TcbStatus.UP_TO_DATE: 2, TcbStatus.REVOKED: 96}  # every other state: genuine, weakness known


@lru_cache(maxsize=256)
def judged(
    tcb_status: TcbStatus, allowances: tuple[str, ...], appraisal: Appraisal, *, compared: bool
) -> tuple[Mapping[str, int], Tier]:
    """`vector` and `status` of a quote that verified, the same for all that are alike in this."""
    values = vector(tcb_status=tcb_status, allowances=allowances, appraisal=appraisal)
    return MappingProxyType(values), status(values, compared=compared, appraisal=appraisal)


def vector_of_refusal(failure: AttestationError) -> dict[str, int]:
    """The vector of evidence that did not verify."""
    code = failure.code
    if code.startswith("tcb."):
        return {"hardware": 96}
    if code.startswith("policy."):
        return {"configuration": 96}  # genuine, and not what the policy allows
    return {"hardware": 99 if code.endswith("signature_invalid") else 97}


def status(values: Mapping[str, int], *, compared: bool, appraisal: Appraisal) -> Tier:
    """The overall tier: the worst of the vector, and never `affirming` when REPORT_DATA was compared with nothing or
    the policy came from whoever asked.
    """
    found = worst(map(tier, values.values()))
    return found if compared and not appraisal.brought_by_caller else worst((found, Tier.WARNING))


def frame(
    *, label: str, values: Mapping[str, int], overall: Tier, appraisal: Appraisal, build: str, evidence_nonce: str = ""
) -> dict[str, Any]:
    """The EAR members of a payload, for one submodule."""
    module: dict[str, Any] = {"ear_status": str(overall), "ear_trustworthiness_vector": dict(values)}
    if appraisal.policy_digest:
        module["ear_appraisal_policy_ids"] = [f"sha256:{appraisal.policy_digest}"]
    if evidence_nonce:
        module["eat_nonce"] = evidence_nonce
    return {
        "eat_profile": PROFILE,
        "ear_verifier_id": {"developer": "cloister", "build": build},
        "ear_status": str(overall),
        "submods": {label: module},
    }


def check(claims: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The one submodule (label, members) of an EAR in this dialect, its status recomputed, never taken on trust.

    Raises TokenRefused token.claims_invalid.
    """
    if claims.get("eat_profile") != PROFILE:
        raise _refused(f"eat_profile is not {PROFILE}")
    if any(name.startswith("ear.") for name in claims):
        raise _refused("names of another dialect")
    modules = claims.get("submods")
    if not isinstance(modules, dict) or len(modules) != 1:
        raise _refused("need exactly one submodule")
    ((label, module),) = modules.items()
    if not isinstance(module, dict):
        raise _refused("the submodule is not an object")
    least = worst(map(tier, _values(module.get("ear_trustworthiness_vector"))))
    for told in (module.get("ear_status"), claims.get("ear_status")):
        if told not in tuple(Tier) or worst((Tier(told), least)) is not Tier(told):
            raise _refused("ear_status is missing, unknown, or better than the vector")
    return label, module


def _values(found: object) -> list[int]:
    if not isinstance(found, dict) or not found or not found.keys() <= set(CATEGORIES):
        raise _refused("no trustworthiness vector, or unknown categories in it")
    values = list(found.values())
    if any(type(value) is not int or not -128 <= value <= 127 for value in values):
        raise _refused("a trustworthiness value is not an integer of 8 bits")
    return values


def _refused(detail: str) -> TokenRefused:
    return TokenRefused(Code.TOKEN_CLAIMS, detail)
