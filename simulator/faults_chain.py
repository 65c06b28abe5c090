"""Faults in certificate chains and revocation lists: of the quote, and of those who sign collateral."""

from __future__ import annotations

from dataclasses import replace

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from attestation.errors import Code
from simulator.collateral import Documents
from simulator.pki import Identity, issue, profile, sign_crl
from simulator.registry import COLLATERAL, QUOTE, Exhibit, fault
from simulator.scene import Scene
from simulator.sgx_extension import OID, SgxExtension

# --- the PCK chain inside the quote ---


@fault("chain-rubbish", Code.CHAIN_MALFORMED, "what stands in place of the PCK chain is not PEM")
def _rubbish(scene: Scene) -> Exhibit:
    return scene.exhibit(scene.recertified(chain=scene.platform.pck_chain.replace(b"CERTIFICATE", b"CERTIFIED__")))


@fault("chain-without-root", Code.CHAIN_LENGTH, "the PCK chain ends at the CA")
def _without_root(scene: Scene) -> Exhibit:
    return scene.exhibit(scene.recertified(chain=scene.platform.pck.pem + _ca(scene).pem))


@fault("chain-with-a-fourth", Code.CHAIN_LENGTH, "a fourth certificate stands in the PCK chain")
def _fourth(scene: Scene) -> Exhibit:
    chain = scene.platform.pck_chain.rstrip(b"\0") + scene.machine.pki.processor.pem
    return scene.exhibit(scene.recertified(chain=chain))


@fault("tcb-signer-as-pck", Code.CHAIN_NAMES, "the TCB signing certificate stands in place of the PCK certificate")
def _signer_as_pck(scene: Scene) -> Exhibit:
    pki = scene.machine.pki
    chain = pki.tcb_signing.pem + _ca(scene).pem + pki.root.pem
    return scene.exhibit(scene.recertified(pck=pki.tcb_signing.key, chain=chain))


@fault("foreign-root", Code.CHAIN_ROOT, "a perfect quote of another machine, whose root nobody here trusts")
def _foreign_root(scene: Scene) -> Exhibit:
    td = scene.stranger.launch("fault")
    return scene.exhibit(td.quote(scene.report_data, version=scene.version, body=scene.body))


@fault("appended-root", Code.CHAIN_SIGNATURE, "another machine's chain with the trusted root put in place of its own")
def _appended_root(scene: Scene) -> Exhibit:
    stranger = scene.stranger
    chain = stranger.platform(0).pck.pem + stranger.pki.platform.pem + scene.machine.pki.root.pem
    return scene.exhibit(scene.recertified(pck=stranger.platform(0).pck.key, chain=chain))


@fault("ca-without-authority", Code.CHAIN_PROFILE, "the PCK CA's certificate does not say that it is a CA")
def _not_a_ca(scene: Scene) -> Exhibit:
    shape = replace(profile("platform"), path_length=None)
    ca = issue(scene.machine.seed, "fault/ca", shape, scene.machine.pki.root)
    return scene.exhibit(scene.with_leaf(scene.leaf(issuer=ca), ca))


@fault("forged-pck", Code.CHAIN_SIGNATURE, "a PCK certificate that names the CA as its issuer but is signed by another")
def _forged_pck(scene: Scene) -> Exhibit:
    forger = Identity(scene.key("ca"), _ca(scene).certificate)
    return scene.exhibit(scene.with_leaf(scene.leaf(issuer=forger)))


@fault("pck-without-extension", Code.CHAIN_PCK_EXTENSION, "the PCK certificate says nothing about its platform")
def _bare(scene: Scene) -> Exhibit:
    return scene.exhibit(scene.with_leaf(scene.leaf(bare=True)))


@fault("pck-extension-cut", Code.CHAIN_PCK_EXTENSION, "the SGX extension of the PCK certificate is cut off")
def _cut(scene: Scene) -> Exhibit:
    value = scene.platform.extension().encode().value
    return scene.exhibit(scene.with_leaf(scene.leaf(extension=x509.UnrecognizedExtension(OID, value[:-7]))))


@fault("pck-contradiction", Code.CHAIN_PCK_EXTENSION, "CPUSVN and TCB components of the PCK certificate differ")
def _contradiction(scene: Scene) -> Exhibit:
    facts: SgxExtension = scene.platform.extension()
    low = facts.encode().value
    high = bytes((facts.components[0] + 1,)) + facts.components[1:]
    value = low.replace(b"\x04\x10" + facts.components, b"\x04\x10" + high)
    return scene.exhibit(scene.with_leaf(scene.leaf(extension=x509.UnrecognizedExtension(OID, value))))


@fault("revoked-pck", Code.CHAIN_REVOKED, "Intel has revoked the platform's PCK certificate", QUOTE, COLLATERAL)
def _revoked_pck(scene: Scene) -> Exhibit:
    scene.machine.recover("revoke-pck", platform=scene.index)
    return scene.exhibit()


@fault("revoked-ca", Code.CHAIN_REVOKED, "Intel has revoked the PCK CA", QUOTE, COLLATERAL)
def _revoked_ca(scene: Scene) -> Exhibit:
    scene.machine.recover("revoke-ca", ca=scene.platform.spec.ca)
    return scene.exhibit()


@fault(
    "cloned-platform",
    Code.CHAIN_REVOKED,
    "a forged domain, signed with extracted keys of a genuine platform; seen only because Intel revoked them",
    QUOTE,
    COLLATERAL,
)
def _cloned(scene: Scene) -> Exhibit:
    clone = scene.machine.clone_platform(scene.index)
    scene.machine.recover("revoke-pck", platform=scene.index)
    return scene.exhibit(scene.quote(scene.td(platform=clone, label="forged")))


@fault("pck-not-yet-valid", Code.CHAIN_NOT_YET_VALID, "the PCK certificate begins tomorrow")
def _early_pck(scene: Scene) -> Exhibit:
    return scene.exhibit(scene.with_leaf(scene.leaf(replace(profile("pck"), not_before=scene.day(1)))))


@fault("pck-expired", Code.CHAIN_EXPIRED, "the PCK certificate ended yesterday")
def _late_pck(scene: Scene) -> Exhibit:
    return scene.exhibit(scene.with_leaf(scene.leaf(replace(profile("pck"), not_after=scene.day(-1)))))


# --- who signs collateral ---


@fault("signer-chain-rubbish", Code.SIGNER_MALFORMED, "the issuer chain of TCB info is not PEM", COLLATERAL)
def _signer_rubbish(scene: Scene) -> Exhibit:
    documents = scene.documents()
    chain = documents.tcb_info_issuer_chain.replace("CERTIFICATE", "CERTIFIED__")
    return scene.exhibit(collateral=replace(documents, tcb_info_issuer_chain=chain))


@fault("signer-without-root", Code.SIGNER_LENGTH, "the issuer chain of TCB info ends at the signer", COLLATERAL)
def _signer_without_root(scene: Scene) -> Exhibit:
    chain = scene.machine.pki.tcb_signing.pem.decode()
    return scene.exhibit(collateral=replace(scene.documents(), tcb_info_issuer_chain=chain))


@fault("pck-signs-tcb-info", Code.SIGNER_NAMES, "TCB info and QE identity are signed with a PCK key", COLLATERAL)
def _pck_signs(scene: Scene) -> Exhibit:
    return scene.exhibit(collateral=scene.signed_by(scene.platform.pck))


@fault("foreign-collateral", Code.SIGNER_ROOT, "perfect collateral of another machine", COLLATERAL)
def _foreign_collateral(scene: Scene) -> Exhibit:
    return scene.exhibit(collateral=scene.stranger.documents(fmspc=scene.platform.spec.fmspc))


@fault("signer-without-usage", Code.SIGNER_PROFILE, "the TCB signer's certificate is a CA's", COLLATERAL)
def _signer_is_ca(scene: Scene) -> Exhibit:
    signer = scene.signer(replace(profile("tcb-signing"), path_length=0))
    return scene.exhibit(collateral=scene.signed_by(signer))


@fault("forged-signer", Code.SIGNER_SIGNATURE, "the TCB signer's certificate is not signed by the root", COLLATERAL)
def _forged_signer(scene: Scene) -> Exhibit:
    forger = Identity(scene.key("root"), scene.machine.pki.root.certificate)
    return scene.exhibit(collateral=scene.signed_by(scene.signer(issuer=forger)))


@fault("revoked-signer", Code.SIGNER_REVOKED, "Intel has revoked the TCB signing certificate", COLLATERAL)
def _revoked_signer(scene: Scene) -> Exhibit:
    scene.machine.recover("revoke-tcb-signer")
    return scene.exhibit()


@fault("signer-not-yet-valid", Code.SIGNER_NOT_YET_VALID, "the TCB signer's certificate begins tomorrow", COLLATERAL)
def _early_signer(scene: Scene) -> Exhibit:
    shape = replace(profile("tcb-signing"), not_before=scene.day(1))
    return scene.exhibit(collateral=scene.signed_by(scene.signer(shape)))


@fault("signer-expired", Code.SIGNER_EXPIRED, "the TCB signer's certificate ended yesterday", COLLATERAL)
def _late_signer(scene: Scene) -> Exhibit:
    shape = replace(profile("tcb-signing"), not_after=scene.day(-1))
    return scene.exhibit(collateral=scene.signed_by(scene.signer(shape)))


# --- revocation lists ---


@fault("crl-rubbish", Code.CRL_MALFORMED, "the PCK CRL is cut off", COLLATERAL)
def _crl_rubbish(scene: Scene) -> Exhibit:
    documents = scene.documents()
    return scene.exhibit(collateral=replace(documents, pck_crl=documents.pck_crl[:-9]))


@fault("crl-in-pem", Code.CRL_MALFORMED, "the root CRL is PEM where DER belongs", COLLATERAL)
def _crl_pem(scene: Scene) -> Exhibit:
    documents = scene.documents()
    pem = x509.load_der_x509_crl(documents.root_ca_crl).public_bytes(Encoding.PEM)
    return scene.exhibit(collateral=replace(documents, root_ca_crl=pem))


@fault(
    "crl-without-number", Code.CRL_PROFILE, "the PCK CRL has no number, so an older one could not be told", COLLATERAL
)
def _crl_number(scene: Scene) -> Exhibit:
    ca, content = _ca(scene), scene.crl()
    builder = x509.CertificateRevocationListBuilder().issuer_name(ca.certificate.subject)
    builder = builder.last_update(content.this_update).next_update(content.next_update)
    key_id = x509.AuthorityKeyIdentifier(ca.key_identifier, None, None)
    signed = builder.add_extension(key_id, critical=False).sign(ca.key, hashes.SHA256(), ecdsa_deterministic=True)
    return scene.exhibit(collateral=replace(scene.documents(), pck_crl=signed.public_bytes(Encoding.DER)))


@fault("crl-of-other-ca", Code.CRL_ISSUER, "the CRL of the Processor CA for a platform of the Platform CA", COLLATERAL)
def _crl_other(scene: Scene) -> Exhibit:
    other = "processor" if scene.platform.spec.ca == "platform" else "platform"
    return scene.exhibit(collateral=scene.documents(ca=other))


@fault("forged-crl", Code.CRL_SIGNATURE, "an empty PCK CRL that the CA did not sign", COLLATERAL)
def _forged_crl(scene: Scene) -> Exhibit:
    return scene.exhibit(collateral=_pck_crl(scene, sign_crl(_ca(scene), scene.crl(), signer=scene.key("ca"))))


@fault("crl-not-yet-valid", Code.CRL_NOT_YET_VALID, "the PCK CRL is of tomorrow", COLLATERAL)
def _early_crl(scene: Scene) -> Exhibit:
    return scene.exhibit(collateral=_pck_crl(scene, sign_crl(_ca(scene), scene.crl(begins=1))))


@fault("stale-crl", Code.CRL_EXPIRED, "an old PCK CRL, from before the platform was revoked", COLLATERAL)
def _stale_crl(scene: Scene) -> Exhibit:
    return scene.exhibit(collateral=_pck_crl(scene, sign_crl(_ca(scene), scene.crl(begins=-40, ends=-10))))


@fault("stale-root-crl", Code.CRL_EXPIRED, "an old root CRL, from before a CA was revoked", COLLATERAL)
def _stale_root_crl(scene: Scene) -> Exhibit:
    stale = sign_crl(scene.machine.pki.root, scene.crl(begins=-400, ends=-35))
    return scene.exhibit(collateral=replace(scene.documents(), root_ca_crl=stale))


def _ca(scene: Scene) -> Identity:
    return scene.machine.pki.ca(scene.platform.spec.ca)


def _pck_crl(scene: Scene, der: bytes) -> Documents:
    return replace(scene.documents(), pck_crl=der)
