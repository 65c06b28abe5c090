"""What vouches for an attestation key: PCK chain, CRLs, quoting enclave.

Decides whether the key in a quote is certified by a genuine, unrevoked platform through the quoting enclave that Intel
publishes, and whether the collateral at hand speaks of that platform. All of it depends on `Quote.certified` and the
collateral, not on the quote's body, so it is proved once per key. What the body claims is judged in `appraisal`.

Source: Intel's quote verification library, `QuoteVerifier.cpp` (4.1.2.5) and `EnclaveReportVerifier.cpp`.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Final, NamedTuple, final

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

from attestation import checks as step
from attestation.certificates import p256_key, signed_raw
from attestation.chains import PckChain
from attestation.checks import Check, Ledger, Unmet
from attestation.documents import QeIdentity, TcbInfo
from attestation.endorsements import Endorsements, not_revoked
from attestation.pck import PckFacts
from attestation.quote import EnclaveReport, Quote, Tee
from attestation.tcb import IsvLevel, Shortfall, match_isv

_SGX_DEBUG: Final = 0x02  # byte 0 of ATTRIBUTES.FLAGS


@final
class Platform(NamedTuple):
    """An attestation key and the platform behind it, judged. Only `ok` means that it may be believed."""

    ledger: Ledger
    key: EllipticCurvePublicKey | None
    qe_svn: int
    qe_level: IsvLevel | None
    qe_levels: tuple[IsvLevel, ...]
    comparable: bool  # TCB info is made for this TEE and platform, so that levels mean something

    @property
    def ok(self) -> bool:
        return self.ledger.ok

    @property
    def checks(self) -> list[Check]:
        return self.ledger.checks


def judge_platform(quote: Quote, chain: PckChain, endorsements: Endorsements) -> Platform:
    """Judge all that vouches for the attestation key of `quote`. Never raises: what is wrong is in `checks`."""
    ledger = Ledger()
    _judge_revocation(ledger, chain, endorsements)
    comparable = _judge_documents(ledger, quote.tee, chain.facts, endorsements)
    report = quote.qe_report
    ledger.run(step.QE_KEY_BOUND, _key_bound, quote, report)
    key = ledger.run(step.QUOTE_KEY, p256_key, quote.attestation_key)
    ledger.run(step.QE_DEBUG, _qe_debug, report)
    level = None
    identity = endorsements.qe_identity
    if identity is not None and identity.tee is quote.tee:
        ledger.run(step.QE_MISCSELECT, _qe_misc_select, report, identity)
        ledger.run(step.QE_ATTRIBUTES, _qe_attributes, report, identity)
        ledger.run(step.QE_SIGNER, _qe_signer, report, identity)
        ledger.run(step.QE_PRODUCT, _qe_product, report, identity)
        level = ledger.run(step.TCB_QE, _qe_level, report, identity)
    if chain.chain is not None:
        pck_key = chain.chain.certificates[0].key
        ledger.later(lambda: ledger.run(step.QE_SIGNATURE, _qe_signature, quote, pck_key))
    return Platform(
        ledger=ledger,
        key=key,
        qe_svn=report.isv_svn,
        qe_level=level,
        qe_levels=identity.levels if identity is not None else (),
        comparable=comparable,
    )


def _judge_revocation(ledger: Ledger, chain: PckChain, endorsements: Endorsements) -> None:
    if chain.chain is None:
        return
    leaf, ca, root = chain.chain.certificates
    if endorsements.pck_ca is not None:
        ledger.run(step.CRL_COVERS, _crl_covers, chain, endorsements)
    lists = {}
    if endorsements.pck_crl is not None:
        lists["PCK certificate"] = (endorsements.pck_crl, leaf)
    if endorsements.root_crl is not None:
        lists["PCK CA"] = (endorsements.root_crl, ca)
        lists["root"] = (endorsements.root_crl, root)
    ledger.each(step.CHAIN_REVOKED, lists, lambda pair: not_revoked(*pair))


def _crl_covers(chain: PckChain, endorsements: Endorsements) -> None:
    """A list of another CA, or under another root, says nothing of this chain."""
    assert chain.chain is not None
    assert endorsements.pck_ca is not None
    ca = chain.chain.certificates[1]
    if (ca.subject, ca.point) != (endorsements.pck_ca.subject, endorsements.pck_ca.point):
        raise Unmet(
            f"the quote's CA is {ca.common_name}, the PCK CRL's issuer is {endorsements.pck_ca.common_name}"
            + (" with another key" if ca.subject == endorsements.pck_ca.subject else ""),
            f"Fetch the PCK CRL of {ca.common_name}.",
        )
    if chain.trusted is not endorsements.trusted:
        raise Unmet("quote and collateral end in different trusted roots")


def _judge_documents(ledger: Ledger, tee: Tee, facts: PckFacts | None, endorsements: Endorsements) -> bool:
    """Whether TCB info and QE identity speak of this kind of TEE and this platform."""
    tcb_info, identity = endorsements.tcb_info, endorsements.qe_identity
    tees = {"TCB info": tcb_info and tcb_info.tee, "QE identity": identity and identity.tee}
    ledger.each(step.COLLATERAL_TEE, {label: (found, tee) for label, found in tees.items() if found}, _same_tee)
    if tcb_info is None or facts is None:
        return False
    ledger.run(step.COLLATERAL_TCB_TYPE, _tcb_type, tcb_info)
    before = len(ledger.checks)
    ledger.run(step.COLLATERAL_FMSPC, _fmspc, tcb_info, facts)
    ledger.run(step.COLLATERAL_PCEID, _pceid, tcb_info, facts)
    if identity is not None:
        _judge_evaluation(ledger, tcb_info, identity)
    return tcb_info.tee is tee and all(check.ok for check in ledger.checks[before:])


def _same_tee(pair: tuple[Tee, Tee]) -> None:
    made_for, tee = pair
    if made_for is not tee:
        raise Unmet(f"made for {made_for}, the quote is {tee}", f"Fetch the collateral for {tee}.")


def _tcb_type(tcb_info: TcbInfo) -> None:
    if tcb_info.tcb_type != 0:
        raise Unmet(f"tcbType {tcb_info.tcb_type}, know 0")


def _fmspc(tcb_info: TcbInfo, facts: PckFacts) -> None:
    if tcb_info.fmspc != facts.fmspc:
        raise Unmet(
            f"TCB info is for FMSPC {tcb_info.fmspc.hex()}, the platform has {facts.fmspc.hex()}",
            f"Fetch TCB info for FMSPC {facts.fmspc.hex()}.",
        )


def _pceid(tcb_info: TcbInfo, facts: PckFacts) -> None:
    if tcb_info.pceid != facts.pceid:
        raise Unmet(
            f"TCB info is for PCEID {tcb_info.pceid.hex()}, the platform has {facts.pceid.hex()}",
            f"Fetch TCB info for PCEID {facts.pceid.hex()}.",
        )


def _judge_evaluation(ledger: Ledger, tcb_info: TcbInfo, identity: QeIdentity) -> None:
    """On promotion days the two differ for hours, so that this can only warn."""
    numbers = f"TCB info is of set {tcb_info.evaluation_number}, QE identity of set {identity.evaluation_number}"
    if tcb_info.evaluation_number != identity.evaluation_number:
        ledger.warn(step.EVALUATION, numbers, "Fetch both again later; set a floor by policy.")
    else:
        ledger.passed(step.EVALUATION, numbers)


def _qe_signature(quote: Quote, key: EllipticCurvePublicKey) -> None:
    if not signed_raw(key, quote.qe_report_signature, quote.qe_report_raw):
        raise Unmet("the PCK key in the quote's chain did not sign its QE report")


def _key_bound(quote: Quote, report: EnclaveReport) -> None:
    committed = sha256(quote.attestation_key + quote.auth_data).digest() + bytes(32)
    if report.report_data != committed:
        raise Unmet(
            "the QE report's REPORT_DATA is not SHA-256(attestation key ‖ auth data) and 32 zeros, "
            f"but {report.report_data.hex()}"
        )


def _qe_debug(report: EnclaveReport) -> None:
    if report.attributes[0] & _SGX_DEBUG:
        raise Unmet("DEBUG is set in the quoting enclave's ATTRIBUTES")


def _qe_misc_select(report: EnclaveReport, identity: QeIdentity) -> None:
    masked = report.misc_select & identity.misc_select_mask
    if masked != identity.misc_select:
        raise Unmet(f"MISCSELECT is {masked:08x} under the mask, published is {identity.misc_select:08x}")


def _qe_attributes(report: EnclaveReport, identity: QeIdentity) -> None:
    masked = int.from_bytes(report.attributes, "little") & identity.attributes_mask
    if masked != identity.attributes:
        found, published = masked.to_bytes(16, "little"), identity.attributes.to_bytes(16, "little")
        raise Unmet(f"ATTRIBUTES are {found.hex()} under the mask, published are {published.hex()}")


def _qe_signer(report: EnclaveReport, identity: QeIdentity) -> None:
    if report.mr_signer != identity.mr_signer:
        raise Unmet(f"MRSIGNER is {report.mr_signer.hex()}, published is {identity.mr_signer.hex()}")


def _qe_product(report: EnclaveReport, identity: QeIdentity) -> None:
    if report.isv_prod_id != identity.isv_prod_id:
        raise Unmet(f"ISVPRODID is {report.isv_prod_id}, published is {identity.isv_prod_id}")


def _qe_level(report: EnclaveReport, identity: QeIdentity) -> IsvLevel:
    level = match_isv(identity.levels, report.isv_svn)
    if level is None:
        short = Shortfall("qe.isvsvn", "Quoting Enclave", "OS/VMM", report.isv_svn, identity.levels[-1].isvsvn)
        raise Unmet(str(short), "Update the quoting enclave (DCAP packages of the host).", (short,))
    return level
