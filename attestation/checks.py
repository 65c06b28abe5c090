"""What a check is: a step of the verification with a name, a code and its outcome.

Decides the list of steps and their order, which is also the order in which a refusal is reported: the first failing
check names the refusal. What each step demands is decided where it runs (`endorsements`, `chains`, `quoting`,
`appraisal`, `verifier`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple, TypeVar, TypeVarTuple, Unpack, final

from attestation.errors import Code
from attestation.tcb import Shortfall

S = TypeVar("S")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")


@final
class Check(NamedTuple):
    """One step's outcome. `code` is what a failure of this step is called, whether it failed or not."""

    name: str
    code: Code
    ok: bool
    detail: str
    remedy: str = ""
    warning: bool = False
    """True where nothing is refused, but the caller should know."""
    short: tuple[Shortfall, ...] = ()
    """The SVNs that are too low, each with what it has and needs."""


@final
class Step:
    """A row of the list below: what is demanded, and what a failure is called."""

    __slots__ = ("code", "name", "passed", "position")

    def __init__(self, name: str, code: Code, passes: str, position: int) -> None:
        self.name = name
        self.code = code
        self.position = position
        self.passed = Check(name, code, True, passes)


class Unmet(Exception):
    """A demand is not met. Never leaves this package: the step that was running turns it into a failed Check."""

    def __init__(self, detail: str, remedy: str = "", short: tuple[Shortfall, ...] = ()) -> None:
        super().__init__(detail)
        self.detail = detail
        self.remedy = remedy
        self.short = short


STEPS: Final[dict[str, Step]] = {}
"""Every step by name, in the order in which they are reported."""


def _step(name: str, code: Code, passes: str) -> Step:
    step = STEPS[name] = Step(name, code, passes, len(STEPS))
    return step


# The floor, before anything else can be said
DEBUG = _step("debug", Code.QUOTE_DEBUG, "DEBUG is off")
QE_VENDOR = _step("qe_vendor", Code.QE_VENDOR, "the quoting enclave's vendor is Intel")
# The PCK chain in the quote
CHAIN_PRESENT = _step("chain_present", Code.CHAIN_NOT_IN_QUOTE, "the quote carries its PCK certificate chain")
CHAIN_FORM = _step("chain_form", Code.CHAIN_MALFORMED, "the certificates are well formed")
CHAIN_LENGTH = _step("chain_length", Code.CHAIN_LENGTH, "leaf, PCK CA and root, nothing else")
CHAIN_NAMES = _step("chain_names", Code.CHAIN_NAMES, "names are Intel's and link leaf to CA to root")
CHAIN_ROOT = _step("chain_root", Code.CHAIN_ROOT, "the chain ends in a trusted root")
CHAIN_PROFILE = _step("chain_profile", Code.CHAIN_PROFILE, "extensions, CA flags and key usages follow the profile")
CHAIN_SIGNATURES = _step("chain_signatures", Code.CHAIN_SIGNATURE, "each certificate is signed by the one above it")
CHAIN_PCK_EXTENSION = _step("chain_pck_extension", Code.CHAIN_PCK_EXTENSION, "the SGX extension is complete")
# Who signs the collateral
SIGNER_FORM = _step("signer_form", Code.SIGNER_MALFORMED, "the issuer chains are well formed")
SIGNER_LENGTH = _step("signer_length", Code.SIGNER_LENGTH, "each issuer chain is signer and root")
SIGNER_NAMES = _step("signer_names", Code.SIGNER_NAMES, "each signer has the name of its role")
SIGNER_ROOT = _step("signer_root", Code.SIGNER_ROOT, "each issuer chain ends in a trusted root")
SIGNER_PROFILE = _step("signer_profile", Code.SIGNER_PROFILE, "the signers' certificates follow the profile")
SIGNER_SIGNATURES = _step("signer_signatures", Code.SIGNER_SIGNATURE, "the root signed each signer's certificate")
# Revocation
CRL_FORM = _step("crl_form", Code.CRL_MALFORMED, "both CRLs are well formed")
CRL_PROFILE = _step("crl_profile", Code.CRL_PROFILE, "both CRLs are full lists with number, key id and end")
CRL_ISSUER = _step("crl_issuer", Code.CRL_ISSUER, "each CRL is issued by the CA that it speaks for")
CRL_SIGNATURES = _step("crl_signatures", Code.CRL_SIGNATURE, "each CRL is signed by its issuer")
CRL_COVERS = _step("crl_covers", Code.CRL_ISSUER, "the PCK CRL is issued by the CA of the quote's chain")
CHAIN_REVOKED = _step("chain_revoked", Code.CHAIN_REVOKED, "neither the PCK certificate nor its CA is revoked")
SIGNER_REVOKED = _step("signer_revoked", Code.SIGNER_REVOKED, "no signer of collateral is revoked")
# TCB info and QE identity
COLLATERAL_SIGNATURES = _step("collateral_signatures", Code.COLLATERAL_SIGNATURE, "the TCB signer signed both texts")
COLLATERAL_FORM = _step("collateral_form", Code.COLLATERAL_MALFORMED, "TCB info and QE identity are well formed")
COLLATERAL_VERSION = _step("collateral_version", Code.COLLATERAL_VERSION, "TCB info v3 and QE identity v2")
COLLATERAL_TEE = _step("collateral_tee", Code.COLLATERAL_TEE, "both are made for the quote's kind of TEE")
COLLATERAL_TCB_TYPE = _step("collateral_tcb_type", Code.COLLATERAL_TCB_TYPE, "tcbType is 0")
COLLATERAL_FMSPC = _step("collateral_fmspc", Code.COLLATERAL_FMSPC, "TCB info is for this platform family")
COLLATERAL_PCEID = _step("collateral_pceid", Code.COLLATERAL_PCEID, "TCB info is for this PCEID")
# Time
CHAIN_BEGUN = _step("chain_begun", Code.CHAIN_NOT_YET_VALID, "the PCK chain has begun")
CHAIN_LASTS = _step("chain_lasts", Code.CHAIN_EXPIRED, "the PCK chain has not expired")
SIGNER_BEGUN = _step("signer_begun", Code.SIGNER_NOT_YET_VALID, "the signers' certificates have begun")
SIGNER_LASTS = _step("signer_lasts", Code.SIGNER_EXPIRED, "the signers' certificates have not expired")
CRL_BEGUN = _step("crl_begun", Code.CRL_NOT_YET_VALID, "both CRLs are in force")
CRL_LASTS = _step("crl_lasts", Code.CRL_EXPIRED, "neither CRL has expired")
COLLATERAL_BEGUN = _step("collateral_begun", Code.COLLATERAL_NOT_YET_VALID, "TCB info and QE identity are in force")
COLLATERAL_LASTS = _step("collateral_lasts", Code.COLLATERAL_EXPIRED, "TCB info and QE identity have not expired")
# From the PCK key to the body
QE_SIGNATURE = _step("qe_signature", Code.QE_SIGNATURE, "the PCK key signed the QE report")
QE_KEY_BOUND = _step("qe_key_bound", Code.QE_KEY_NOT_BOUND, "the QE report commits to the attestation key")
QUOTE_KEY = _step("quote_key", Code.QUOTE_KEY_INVALID, "the attestation key is a point on P-256")
QUOTE_SIGNATURE = _step("quote_signature", Code.QUOTE_SIGNATURE, "the attestation key signed header and body")
REPORT_DATA = _step("report_data", Code.BINDING_REPORT_DATA, "REPORT_DATA is what was expected")
REPORT_DATA_LEFT = _step("report_data_left", Code.BINDING_NOT_COMPARED, "REPORT_DATA was not compared")
# Which quoting enclave
QE_DEBUG = _step("qe_debug", Code.QE_DEBUG, "the quoting enclave's DEBUG is off")
QE_MISCSELECT = _step("qe_miscselect", Code.QE_MISCSELECT, "the quoting enclave's MISCSELECT is as published")
QE_ATTRIBUTES = _step("qe_attributes", Code.QE_ATTRIBUTES, "the quoting enclave's ATTRIBUTES are as published")
QE_SIGNER = _step("qe_signer", Code.QE_SIGNER, "the quoting enclave is signed by Intel")
QE_PRODUCT = _step("qe_product", Code.QE_PRODUCT, "it is the quoting enclave for this kind of TEE")
# Which TDX module, and what the TD was launched with
MODULE_IDENTITY = _step("module_identity", Code.MODULE_IDENTITY, "TCB info knows the TDX module's version")
MODULE_SIGNER = _step("module_signer", Code.MODULE_SIGNER, "the TDX module's signer is as published")
MODULE_ATTRIBUTES = _step("module_attributes", Code.MODULE_ATTRIBUTES, "SEAMATTRIBUTES are zero, as published")
SEPT_VE_DISABLE = _step("sept_ve_disable", Code.QUOTE_SEPT_VE_DISABLE, "SEPT_VE_DISABLE is set")
MIGRATABLE = _step("migratable", Code.QUOTE_MIGRATABLE, "MIGRATABLE is off")
SERVICE_TD = _step("service_td", Code.QUOTE_SERVICE_TD, "no service TD is bound")
NESTED_VM = _step("nested_vm", Code.QUOTE_NESTED_VM, "the TD itself asked, not a VM inside it")
UNKNOWN_ATTRIBUTES = _step("unknown_attributes", Code.QUOTE_ATTRIBUTES, "no reserved or unknown ATTRIBUTES bit is set")
# How good the platform is
TCB_PLATFORM = _step("tcb_platform", Code.TCB_NO_MATCH, "the platform reaches a TCB level")
TCB_MODULE = _step("tcb_module", Code.TCB_MODULE_NO_MATCH, "the TDX module reaches a level")
TCB_QE = _step("tcb_qe", Code.TCB_QE_NO_MATCH, "the quoting enclave reaches a level")
TCB_REVOKED = _step("tcb_revoked", Code.TCB_REVOKED, "nothing is Revoked")
TCB_ACCEPTED = _step("tcb_accepted", Code.TCB_NOT_ACCEPTED, "the TCB state is accepted")
EVALUATION = _step(
    "evaluation_numbers", Code.COLLATERAL_EVALUATION, "TCB info and QE identity are of one evaluation set"
)


def in_order(checks: Iterable[Check]) -> tuple[Check, ...]:
    """The checks as they are reported."""
    return tuple(sorted(checks, key=_position))


def _position(check: Check) -> int:
    return STEPS[check.name].position


@final
class Ledger:
    """What a stage found out, one per stage; a stage's ledger is part of its result.

    Signatures cost most, and need the processor's caches that reading needs too. So a stage puts them off with
    `later`, and they are checked in one go when somebody first asks whether all is well: nobody can believe a stage
    whose signatures were not checked.
    """

    __slots__ = ("_checks", "_later", "_ok")

    def __init__(self) -> None:
        self._checks: list[Check] = []
        self._later: list[Callable[[], object]] = []
        self._ok = True

    @property
    def ok(self) -> bool:
        """Whether every demand was met, those that were put off too."""
        if self._later:
            self._settle()
        return self._ok

    @property
    def checks(self) -> list[Check]:
        """Every check, in the order in which they ran."""
        if self._later:
            self._settle()
        return self._checks

    def later(self, judge: Callable[[], object]) -> None:
        """Have `judge`, which writes to this ledger, called before anybody learns `ok` or `checks`."""
        self._later.append(judge)

    def _settle(self) -> None:
        while self._later:
            self._later[0]()
            del self._later[0]  # afterwards: what is broken off here is not taken for done

    def passed(self, step: Step, detail: str = "") -> None:
        self._checks.append(Check(step.name, step.code, True, detail) if detail else step.passed)

    def warn(self, step: Step, detail: str, remedy: str = "") -> None:
        self._checks.append(Check(step.name, step.code, True, detail, remedy, True))

    def failed(self, step: Step, unmet: Unmet) -> None:
        self._ok = False
        self._checks.append(Check(step.name, step.code, False, unmet.detail, unmet.remedy, False, unmet.short))

    def run(self, step: Step, demand: Callable[[Unpack[Ts]], T], *args: *Ts) -> T | None:
        """Run one demand and write down how it ended. None when it was not met (or when it answers nothing)."""
        try:
            value = demand(*args)
        except Unmet as unmet:
            self.failed(step, unmet)
            return None
        self._checks.append(step.passed)
        return value

    def each(self, step: Step, items: Mapping[str, S], demand: Callable[[S], T]) -> dict[str, T]:
        """Run one demand on several labelled things as one check. What met it comes back under its label."""
        met: dict[str, T] = {}
        try:
            for label, item in items.items():
                met[label] = demand(item)
        except Unmet:
            return self._each_apart(step, items, demand)
        if met:
            self._checks.append(step.passed)
        return met

    def _each_apart(self, step: Step, items: Mapping[str, S], demand: Callable[[S], T]) -> dict[str, T]:
        """The same where something does not meet it: all that do not are told."""
        met: dict[str, T] = {}
        unmet: dict[str, Unmet] = {}
        for label, item in items.items():
            try:
                met[label] = demand(item)
            except Unmet as error:
                unmet[label] = error
        details = "; ".join(f"{label}: {error.detail}" for label, error in unmet.items())
        short = tuple(item for error in unmet.values() for item in error.short)
        self.failed(step, Unmet(details, next(iter(unmet.values())).remedy, short))
        return met
