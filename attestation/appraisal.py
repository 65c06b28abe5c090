"""What a quote's body claims, held against proved collateral.

Decides whether DEBUG is off, whether the TD's ATTRIBUTES need an allowance, whether the TDX module is one that Intel
published, and which TCB state follows. Depends on `Claims` and on what `quoting` proved, so that equal claims need not
be judged twice. The quote's own signature, REPORT_DATA and time are `verifier`'s.

Sources: Intel's quote verification library, `QuoteVerifier.cpp` (4.1.2.5) and `EvaluateTcb.cpp`; TD ATTRIBUTES:
`td_param_attributes` of Intel's TDX module and `sgx_quote_5.h`.
"""

from __future__ import annotations

import re
from datetime import datetime
from enum import StrEnum
from typing import Final, NamedTuple, final

from attestation import checks as step
from attestation.checks import Check, Ledger, Unmet
from attestation.documents import ModuleIdentity, TcbInfo
from attestation.pck import PckFacts
from attestation.quote import Quote, TdReport, Tee
from attestation.quoting import Platform
from attestation.tcb import (
    IsvLevel,
    PlatformSvns,
    Shortfall,
    TcbLevel,
    TcbStates,
    TcbStatus,
    converge,
    match_isv,
    match_platform,
    nearest,
    relaunch,
)

Shortfalls = tuple[Shortfall, ...]

INTEL_QE_VENDOR: Final = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")

_MODULE_NAME: Final = re.compile("TDX_[0-9A-F]{2}")  # others can't be asked for, and needn't be told
_SGX_DEBUG: Final = 0x02  # byte 0 of ATTRIBUTES.FLAGS
_TD_DEBUG: Final = 1 << 0
_SEPT_VE_DISABLE: Final = 1 << 28
_MIGRATABLE: Final = 1 << 29
_SERVTD_EXT: Final = 1 << 17
_KNOWN_ATTRIBUTES: Final = (
    _TD_DEBUG  # judged by a step of its own
    | 1 << 16  # ICSSD
    | _SERVTD_EXT
    | 1 << 27  # LASS
    | _SEPT_VE_DISABLE
    | _MIGRATABLE
    | 1 << 30  # PKS
    | 1 << 31  # KL
    | 1 << 62  # TPA
    | 1 << 63  # PERFMON
)
"""All else is reserved, or (bit 6, PMT_PROF) lets the host profile the TD: the TUD byte must be zero."""


class Allowance(StrEnum):
    """A loosening that the caller names, so that review stops at it."""

    SEPT_VE_DISABLE_CLEAR = "sept_ve_disable_clear"
    """The TD runs below a paravisor that handles #VE (Azure)."""
    MIGRATABLE = "migratable"
    """A migration TD may move it."""
    SERVICE_TD = "service_td"
    """Service TDs are bound to it: MRSERVICETD says which, and somebody must judge that."""
    NESTED_VM = "nested_vm"
    """A VM inside the TD asked (TD partitioning): MRTD and RTMRs are the TD's own, and do not measure it."""
    UNKNOWN_ATTRIBUTES = "unknown_attributes"
    """Reserved or unknown ATTRIBUTES bits are set."""


@final
class Claims(NamedTuple):
    """The parts of a quote that decide its appraisal; quotes with equal claims are appraised equally."""

    tee: Tee
    qe_vendor_id: bytes
    attributes: bytes  # of the TD (8) or the enclave (16)
    tee_tcb_svn: bytes = b""
    tee_tcb_svn_2: bytes | None = None  # of the module that runs now
    mr_signer_seam: bytes = b""
    seam_attributes: bytes = b""
    service_tds: tuple[bytes, ...] = ()  # MRSERVICETD and, in body type 4, what else names service TDs
    vm_id: int = 0  # body type 4: 0 the TD itself, 1 to 3 a VM inside it

    @classmethod
    def of(cls, quote: Quote) -> Claims:
        body = quote.body
        if not isinstance(body, TdReport):
            return cls(Tee.SGX, quote.header.qe_vendor_id, body.attributes)
        services: tuple[bytes, ...] = () if body.mr_service_td is None else (body.mr_service_td,)
        if body.extended is not None:
            services += (body.extended.service_td_hash, body.extended.initial_service_td_hash)
            services += (body.extended.service_td_attributes, body.extended.initial_service_td_attributes)
        return cls(
            Tee.TDX,
            quote.header.qe_vendor_id,
            body.td_attributes,
            body.tee_tcb_svn,
            body.tee_tcb_svn_2,
            body.mr_signer_seam,
            body.seam_attributes,
            services,
            0 if body.extended is None else body.extended.vm_id,
        )


@final
class TcbState(NamedTuple):
    """Levels of the three parts at launch, and the one state that follows."""

    status: TcbStatus
    platform: TcbLevel
    module: IsvLevel | None
    qe: IsvLevel
    date: datetime
    """The earliest of the parts' dates: a chain of trust is as old as its oldest link."""
    advisory_ids: tuple[str, ...]
    """Platform's, quoting enclave's, module's, each once."""

    @classmethod
    def of(cls, status: TcbStatus, platform: TcbLevel, module: IsvLevel | None, qe: IsvLevel) -> TcbState:
        parts = [part for part in (platform, qe, module) if part is not None]
        return cls(
            status=status,
            platform=platform,
            module=module,
            qe=qe,
            date=datetime.fromisoformat(min(part.date for part in parts)),
            advisory_ids=tuple(dict.fromkeys(advisory for part in parts for advisory in part.advisories)),
        )

    def __str__(self) -> str:
        module = f", TDX module {self.module.status} ({self.module.date[:10]})" if self.module else ""
        return (
            f"{self.status}: platform {self.platform.status} ({self.platform.date[:10]}){module}, "
            f"quoting enclave {self.qe.status} ({self.qe.date[:10]})"
        )


@final
class Findings(NamedTuple):
    """What the claims are worth. Only `ok` means that nothing was refused."""

    ledger: Ledger
    state: TcbState | None
    allowances_used: frozenset[Allowance]

    @property
    def ok(self) -> bool:
        return self.ledger.ok

    @property
    def checks(self) -> list[Check]:
        return self.ledger.checks


def appraise(
    claims: Claims,
    platform: Platform,
    facts: PckFacts | None,
    tcb_info: TcbInfo | None,
    accept: TcbStates,
    allow: frozenset[Allowance],
) -> Findings:
    """Judge what a quote claims, and which TCB state follows. Never raises: what is wrong is in `checks`."""
    ledger = Ledger()
    ledger.run(step.DEBUG, _not_debug, claims)
    ledger.run(step.QE_VENDOR, _vendor, claims)
    used = _judge_attributes(ledger, claims, allow) if claims.tee is Tee.TDX else frozenset[Allowance]()
    state = None
    if tcb_info is not None and facts is not None and platform.comparable:
        if claims.tee is Tee.TDX:
            _judge_module(ledger, claims, tcb_info)
        state = _judge_tcb(ledger, claims, platform, facts, tcb_info, accept)
    return Findings(ledger, state=state, allowances_used=used)


def _not_debug(claims: Claims) -> None:
    debug = _TD_DEBUG if claims.tee is Tee.TDX else _SGX_DEBUG
    if claims.attributes[0] & debug:
        raise Unmet(
            f"DEBUG is set in ATTRIBUTES {claims.attributes.hex()}: the host can read the memory",
            "Launch it without DEBUG. Nothing can allow this.",
        )


def _vendor(claims: Claims) -> None:
    if claims.qe_vendor_id != INTEL_QE_VENDOR:
        raise Unmet(f"QE vendor id {claims.qe_vendor_id.hex()}, Intel's is {INTEL_QE_VENDOR.hex()}")


def _judge_attributes(ledger: Ledger, claims: Claims, allow: frozenset[Allowance]) -> frozenset[Allowance]:
    """The allowances that were needed and given."""
    attributes = int.from_bytes(claims.attributes, "little")
    unknown = attributes & ~_KNOWN_ATTRIBUTES
    used = set()
    for demand, allowance, needed, detail in (
        (
            step.SEPT_VE_DISABLE,
            Allowance.SEPT_VE_DISABLE_CLEAR,
            not attributes & _SEPT_VE_DISABLE,
            "SEPT_VE_DISABLE (bit 28) is clear: the host may provoke #VE inside the TD",
        ),
        (
            step.MIGRATABLE,
            Allowance.MIGRATABLE,
            attributes & _MIGRATABLE,
            "MIGRATABLE (bit 29) is set: a migration TD may export this TD",
        ),
        (
            step.SERVICE_TD,
            Allowance.SERVICE_TD,
            attributes & _SERVTD_EXT or any(map(any, claims.service_tds)),
            "MRSERVICETD is not zero, or SERVTD_EXT (bit 17) is set: service TDs are bound to this TD, or may be",
        ),
        (
            step.NESTED_VM,
            Allowance.NESTED_VM,
            claims.vm_id,
            f"VM {claims.vm_id} inside the TD asked for this quote",
        ),
        (
            step.UNKNOWN_ATTRIBUTES,
            Allowance.UNKNOWN_ATTRIBUTES,
            unknown,
            "ATTRIBUTES bits that must be clear, or that nobody knows, are set",
        ),
    ):
        if not needed:
            ledger.passed(demand)
        elif allowance in allow:
            used.add(allowance)
            ledger.warn(demand, f"{detail}; allowed by {allowance}")
        else:
            found = f"{detail} (ATTRIBUTES {claims.attributes.hex()})"
            ledger.failed(demand, Unmet(found, f"Launch it otherwise, or name the allowance {allowance}."))
    return frozenset(used)


def _judge_module(ledger: Ledger, claims: Claims, tcb_info: TcbInfo) -> None:
    identity = ledger.run(step.MODULE_IDENTITY, _module_identity, tcb_info, claims.tee_tcb_svn)
    if identity is not None:
        ledger.run(step.MODULE_SIGNER, _module_signer, claims, identity)
        ledger.run(step.MODULE_ATTRIBUTES, _module_attributes, claims, identity)


def _module_identity(tcb_info: TcbInfo, tee_tcb_svn: bytes) -> ModuleIdentity:
    """The identity of the module's version; a TDX 1.0 module has its own place in TCB info."""
    version = tee_tcb_svn[1]
    identity = tcb_info.modules.get(f"TDX_{version:02X}") if version else tcb_info.module
    if identity is None:
        known = ", ".join(sorted(name for name in tcb_info.modules if _MODULE_NAME.fullmatch(name))) or "none"
        raise Unmet(f"no identity for TDX module version {version}, TCB info has {known}", "Fetch newer TCB info.")
    return identity


def _module_signer(claims: Claims, identity: ModuleIdentity) -> None:
    if claims.mr_signer_seam != identity.mr_signer:
        raise Unmet(f"MRSIGNERSEAM is {claims.mr_signer_seam.hex()}, published is {identity.mr_signer.hex()}")


def _module_attributes(claims: Claims, identity: ModuleIdentity) -> None:
    """Zero, whatever mask is published, and as published."""
    if any(claims.seam_attributes) or claims.seam_attributes != identity.attributes:
        found, published = claims.seam_attributes.hex(), identity.attributes.hex()
        raise Unmet(f"SEAMATTRIBUTES are {found}, published are {published}; only zero is known")


_RELAUNCH: Final = (TcbStatus.TD_RELAUNCH_ADVISED, TcbStatus.TD_RELAUNCH_ADVISED_CONFIGURATION_NEEDED)
_LAUNCH: Final = "at launch"
_NOW: Final = "now"


def _judge_tcb(
    ledger: Ledger, claims: Claims, platform: Platform, facts: PckFacts, tcb_info: TcbInfo, accept: TcbStates
) -> TcbState | None:
    """Levels at launch, and for TD reports 1.5 with the module that runs now; then the state, accepted or not."""
    runs = {_LAUNCH: PlatformSvns(facts.cpu_svn, facts.pce_svn, claims.tee_tcb_svn)}
    if claims.tee_tcb_svn_2 is not None:
        runs[_NOW] = PlatformSvns(facts.cpu_svn, facts.pce_svn, claims.tee_tcb_svn_2)
    versioned = {label: svns for label, svns in runs.items() if svns.module_version}
    levels = ledger.each(step.TCB_PLATFORM, runs, lambda svns: _platform_level(tcb_info, svns))
    modules = ledger.each(step.TCB_MODULE, versioned, lambda svns: _module_level(tcb_info, svns))
    qe = platform.qe_level
    if qe is None or len(levels) < len(runs) or len(modules) < len(versioned):
        return None
    states = {label: converge(levels[label].status, _status(modules.get(label)), qe.status) for label in runs}
    status = relaunch(states[_LAUNCH], states[_NOW]) if _NOW in states else states[_LAUNCH]
    state = TcbState.of(status, levels[_LAUNCH], modules.get(_LAUNCH), qe)
    ledger.run(step.TCB_REVOKED, _not_revoked, state)
    if status in accept:
        ledger.passed(step.TCB_ACCEPTED, str(state))
    else:
        short = _short(state, runs[_LAUNCH], platform, tcb_info, accept)
        detail = "; ".join([str(state), *map(str, short)])
        ledger.failed(step.TCB_ACCEPTED, Unmet(detail, _remedy(state, short, accept), short))
    return state


def _status(level: IsvLevel | None) -> TcbStatus | None:
    return None if level is None else level.status


def _platform_level(tcb_info: TcbInfo, svns: PlatformSvns) -> TcbLevel:
    level = match_platform(tcb_info.levels, svns)
    if level is None:
        found = nearest(tcb_info.levels, svns)
        short = found[1] if found else ()
        raise Unmet("below every level; to reach the nearest one: " + "; ".join(map(str, short)), _update(short), short)
    return level


def _module_level(tcb_info: TcbInfo, svns: PlatformSvns) -> IsvLevel:
    levels = _module_identity(tcb_info, svns.tdx).levels
    level = match_isv(levels, svns.tdx[0])
    if level is None:
        short = (Shortfall("tdx_module.isvsvn", "TDX Module", "OS/VMM", svns.tdx[0], levels[-1].isvsvn),)
        raise Unmet(str(short[0]), _update(short), short)
    return level


def _not_revoked(state: TcbState) -> None:
    if state.status is TcbStatus.REVOKED:
        raise Unmet(str(state), "Update what is Revoked, or use another platform. Nothing can accept this state.")


def _short(state: TcbState, svns: PlatformSvns, platform: Platform, tcb_info: TcbInfo, accept: TcbStates) -> Shortfalls:
    """Which SVNs keep the parts from a state that would be accepted; empty when SVNs are not the reason."""
    short: Shortfalls = ()
    if state.status in _RELAUNCH:  # what was short at launch is not short any more
        return short
    if state.platform.status not in accept:
        better = [level for level in tcb_info.levels if level.status in accept and level.order > state.platform.order]
        found = nearest(better, svns)
        short += found[1] if found else ()
    if state.module is not None:
        levels = _module_identity(tcb_info, svns.tdx).levels
        short += _short_isv(levels, Shortfall("tdx_module.isvsvn", "TDX Module", "OS/VMM", svns.tdx[0], 0))
    return short + _short_isv(
        platform.qe_levels, Shortfall("qe.isvsvn", "Quoting Enclave", "OS/VMM", platform.qe_svn, 0)
    )


def _short_isv(levels: tuple[IsvLevel, ...], have: Shortfall) -> Shortfalls:
    """What the lowest UpToDate level demands more than `have`."""
    need = min((level.isvsvn for level in levels if level.status is TcbStatus.UP_TO_DATE), default=0)
    return (have._replace(need=need),) if have.have < need else ()


def _remedy(state: TcbState, short: Shortfalls, accept: TcbStates) -> str:
    if short:
        advice = _update(short)
    elif state.status in _RELAUNCH:
        advice = "Restart the trust domain: the platform was updated after it started."
    elif state.status is TcbStatus.SW_HARDENING_NEEDED:
        advice = "No SVN is short: the software inside must be hardened as the advisories say."
    else:
        advice = "No SVN is short of a listed level that would do: see the advisories for settings and updates."
    advisories = f" Advisories: {', '.join(state.advisory_ids)}." if state.advisory_ids else ""
    return f"{advice}{advisories} Or accept {state.status} on purpose (accepted now: {', '.join(sorted(accept))})."


def _update(short: Shortfalls) -> str:
    """Who has to update what, by Intel's categories."""
    by_category: dict[str, list[str]] = {}
    for item in short:
        by_category.setdefault(item.category or "platform", []).append(item.label or item.component)
    parts = [f"{category} ({', '.join(dict.fromkeys(names))})" for category, names in by_category.items()]
    return f"Update {' and '.join(parts)}, then quote again."
