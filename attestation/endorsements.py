"""What a collateral set is worth by itself, before any quote is looked at.

Decides whether the issuer chains end in a trusted root, whether both CRLs are theirs, whether nothing that signs is
revoked, and whether TCB info and QE identity are signed and well formed. Everything here depends on the collateral and
the roots alone, so it is proved once per set. Time is judged later, from `windows`.

Source: Intel's quote verification library, `TCBInfoVerifier.cpp`, `EnclaveIdentityVerifier.cpp`, `PckCrlVerifier.cpp`;
RFC 5280, 5 and 6.3.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple, TypeVar, final

from attestation import checks as step
from attestation.certificates import Certificate, Crl, signed_by, signed_raw
from attestation.chains import SIGNER_STEPS, Chain, judge_chains, prove_chains
from attestation.checks import Check, Ledger, Step, Unmet
from attestation.collateral import Collateral
from attestation.documents import QeIdentity, TcbInfo, WrongVersion, parse_qe_identity, parse_tcb_info
from attestation.pki import CRL_CHAIN, TCB_CHAIN, KnownCertificates, Role, TrustRoots
from attestation.validity import Window

T = TypeVar("T")

TCB_INFO: Final = "TCB info"
QE_IDENTITY: Final = "QE identity"
PCK_CRL: Final = "PCK CRL"
ROOT_CRL: Final = "root CRL"
_BOTH: Final = "TCB info and QE identity"


@final
class Endorsements(NamedTuple):
    """A collateral set, judged. Only `ok` means that it may be believed, and only while all of `windows` are open."""

    ledger: Ledger
    collateral: Collateral
    known: KnownCertificates
    trusted: Certificate | None  # the root that all of it ends in
    pck_ca: Certificate | None  # the issuer of the PCK CRL
    pck_crl: Crl | None
    root_crl: Crl | None
    tcb_info: TcbInfo | None
    qe_identity: QeIdentity | None
    windows: tuple[Window, ...]

    @property
    def ok(self) -> bool:
        return self.ledger.ok

    @property
    def checks(self) -> list[Check]:
        return self.ledger.checks


def endorse(collateral: Collateral, roots: TrustRoots) -> Endorsements:
    """Judge a collateral set under `roots`. Never raises: what is wrong is in `checks`."""
    ledger, known = Ledger(), KnownCertificates(roots)
    chains = judge_chains(ledger, SIGNER_STEPS, _issuer_chains(collateral), roots, known)
    signers = {label: chain.certificates[0] for label, chain in chains.items()}
    trusted = tuple({chain.trusted.point: chain.trusted for chain in chains.values() if chain.trusted}.values())
    crls = _crls(ledger, collateral)
    issued = _issuers(ledger, crls, signers.get(PCK_CRL), trusted)
    tcb_info, qe_identity = _documents(ledger, collateral)
    if (root_crl := crls.get(ROOT_CRL)) is not None and signers:
        ledger.each(step.SIGNER_REVOKED, _issued_by_root(chains), partial(not_revoked, root_crl))
    windows = _windows(chains, crls, tcb_info, qe_identity)
    ledger.later(lambda: prove_chains(ledger, SIGNER_STEPS, chains, known))
    ledger.later(lambda: ledger.each(step.CRL_SIGNATURES, issued, _signed_by))
    ledger.later(lambda: ledger.each(step.COLLATERAL_SIGNATURES, _signed_texts(collateral, signers), _signed_text))
    return Endorsements(
        ledger=ledger,
        collateral=collateral,
        known=known,
        trusted=trusted[0] if len(trusted) == 1 else None,
        pck_ca=signers.get(PCK_CRL),
        pck_crl=crls.get(PCK_CRL),
        root_crl=root_crl,
        tcb_info=tcb_info,
        qe_identity=qe_identity,
        windows=windows,
    )


def _issued_by_root(chains: dict[str, Chain]) -> dict[str, Certificate]:
    """Whom the root's list can name: every signer, and each edition of the root itself."""
    signers = {label: chain.certificates[0] for label, chain in chains.items()}
    editions = [root for chain in chains.values() for root in (chain.certificates[-1], chain.trusted) if root]
    return signers | {f"root with serial {root.serial:x}": root for root in editions}


def not_revoked(crl: Crl, certificate: Certificate) -> None:
    """Raises Unmet when `crl` lists the certificate."""
    if crl.revokes(certificate.serial):
        raise Unmet(
            f"{certificate.common_name} with serial {certificate.serial:x} is revoked (CRL number {crl.number})",
            "Nothing makes a revoked certificate good again: use another platform, or fetch newer collateral.",
        )


def _issuer_chains(collateral: Collateral) -> dict[str, tuple[bytes, tuple[Role, ...]]]:
    """The issuer chains by what they sign; TCB info and QE identity nearly always share one."""
    tcb, qe = collateral.tcb_info_issuer_chain, collateral.qe_identity_issuer_chain
    chains = {PCK_CRL: (collateral.pck_crl_issuer_chain.encode(), CRL_CHAIN)}
    if tcb == qe:
        return {_BOTH: (tcb.encode(), TCB_CHAIN)} | chains
    return {TCB_INFO: (tcb.encode(), TCB_CHAIN), QE_IDENTITY: (qe.encode(), TCB_CHAIN)} | chains


def _crls(ledger: Ledger, collateral: Collateral) -> dict[str, Crl]:
    crls = ledger.each(step.CRL_FORM, {ROOT_CRL: collateral.root_ca_crl, PCK_CRL: collateral.pck_crl}, Crl.parse)
    ledger.each(step.CRL_PROFILE, crls, _full)
    return crls


def _issuers(
    ledger: Ledger, crls: dict[str, Crl], pck_ca: Certificate | None, trusted: tuple[Certificate, ...]
) -> dict[str, tuple[Crl, tuple[Certificate, ...]]]:
    """Each CRL beside the CAs that it should come from, where those are known."""
    issuers: dict[str, tuple[Certificate, ...]] = {ROOT_CRL: trusted, PCK_CRL: (pck_ca,) if pck_ca else ()}
    pairs = {label: (crl, issuers[label]) for label, crl in crls.items() if issuers[label]}
    ledger.each(step.CRL_ISSUER, pairs, _issued_by)
    return pairs


def _full(crl: Crl) -> None:
    """Intel's profile: number, authority key id and an end; nothing that narrows the list. Raises Unmet."""
    if crl.next_update is None:
        raise Unmet("no nextUpdate: such a list would never end")
    if crl.number is None:
        raise Unmet("no CRL number: a rollback could not be seen")
    if not crl.has_authority_key_id:
        raise Unmet("no authority key identifier")
    if crl.partial:
        raise Unmet(f"extension {crl.partial} makes it a partial, delta or indirect list")


def _issued_by(pair: tuple[Crl, tuple[Certificate, ...]]) -> None:
    crl, issuers = pair
    for issuer in issuers:
        if crl.issuer != issuer.subject:
            raise Unmet(f"not issued by {issuer.common_name}")


def _signed_by(pair: tuple[Crl, tuple[Certificate, ...]]) -> None:
    """By every root that an issuer chain ends in: a set of two roots' making has no CRL that speaks for both."""
    crl, issuers = pair
    for issuer in issuers:
        if not signed_by(issuer.key, crl.signature, crl.tbs):
            raise Unmet(f"not signed by the key of {issuer.common_name}")


def _documents(ledger: Ledger, collateral: Collateral) -> tuple[TcbInfo | None, QeIdentity | None]:
    wrong: dict[Step, list[str]] = {step.COLLATERAL_FORM: [], step.COLLATERAL_VERSION: []}
    tcb_info = _read(parse_tcb_info, collateral.tcb_info, wrong)
    qe_identity = _read(parse_qe_identity, collateral.qe_identity, wrong)
    for demand, details in wrong.items():
        if details:
            ledger.failed(demand, Unmet("; ".join(details), "Fetch the collateral again, from version 4 of the API."))
        else:
            ledger.passed(demand)
    return tcb_info, qe_identity


def _read(parse: Callable[[str], T], text: str, wrong: dict[Step, list[str]]) -> T | None:
    try:
        return parse(text)
    except WrongVersion as unmet:
        wrong[step.COLLATERAL_VERSION].append(unmet.detail)
    except Unmet as unmet:
        wrong[step.COLLATERAL_FORM].append(unmet.detail)
    return None


def _signed_texts(collateral: Collateral, signers: dict[str, Certificate]) -> dict[str, tuple[Certificate, bytes, str]]:
    """Both documents with their signatures and signers, where those are known."""
    shared = signers.get(_BOTH)
    tcb_signer, qe_signer = signers.get(TCB_INFO, shared), signers.get(QE_IDENTITY, shared)
    signed: dict[str, tuple[Certificate, bytes, str]] = {}
    if tcb_signer is not None:
        signed[TCB_INFO] = (tcb_signer, collateral.tcb_info_signature, collateral.tcb_info)
    if qe_signer is not None:
        signed[QE_IDENTITY] = (qe_signer, collateral.qe_identity_signature, collateral.qe_identity)
    return signed


def _signed_text(item: tuple[Certificate, bytes, str]) -> None:
    signer, signature, text = item
    if not signed_raw(signer.key, signature, text.encode()):
        raise Unmet(
            f"not signed by {signer.common_name} over these exact bytes",
            "Fetch it again and keep the text byte for byte: no re-serialising, no re-ordering.",
        )


def _windows(
    chains: dict[str, Chain], crls: dict[str, Crl], tcb_info: TcbInfo | None, qe_identity: QeIdentity | None
) -> tuple[Window, ...]:
    """When each part is in force. What is missing here has failed a step already."""
    windows = [window for chain in chains.values() for window in chain.windows(step.SIGNER_BEGUN, step.SIGNER_LASTS)]
    for label, crl in crls.items():
        if crl.next_update is not None:
            windows.append(Window(step.CRL_BEGUN, step.CRL_LASTS, label, crl.this_update, crl.next_update))
    for label, document in ((TCB_INFO, tcb_info), (QE_IDENTITY, qe_identity)):
        if document is not None:
            begun, lasts = step.COLLATERAL_BEGUN, step.COLLATERAL_LASTS
            windows.append(Window(begun, lasts, label, document.issued, document.next_update))
    return tuple(windows)
