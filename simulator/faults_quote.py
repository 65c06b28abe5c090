"""Faults in the bytes of a quote, in what it claims, and in the quoting enclave behind it."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Final

from attestation.errors import Code
from simulator import quoting
from simulator.domain import DEBUG, MIGRATABLE, SEPT_VE_DISABLE, ServiceTd
from simulator.registry import Exhibit, fault
from simulator.scene import Parts, Scene
from simulator.seed import public_point, sha256, sha384, sign

_MIB: Final = 1 << 20
_PLATFORM_ID: Final = {2: 276, 3: 404}
_VM_ID: Final = 648  # offset in body type 4
"""Certification type → bytes: an encrypted PPID, CPUSVN, PCESVN, PCEID."""


@fault("empty-quote", Code.QUOTE_EMPTY, "there is no quote, zero bytes were sent")
def _empty(scene: Scene) -> Exhibit:
    return scene.exhibit(b"")


@fault("oversized-quote", Code.QUOTE_TOO_LARGE, "a good quote, padded with zeros beyond 1 MiB")
def _oversized(scene: Scene) -> Exhibit:
    return scene.exhibit(scene.quote().ljust(_MIB + 1, b"\0"))


@fault("truncated-quote", Code.QUOTE_TRUNCATED, "the second half of the quote is missing")
def _truncated(scene: Scene) -> Exhibit:
    quote = scene.quote()
    return scene.exhibit(quote[: len(quote) // 2])


@fault("unknown-version", Code.QUOTE_VERSION, "version 6, properly signed")
def _version(scene: Scene) -> Exhibit:
    parts = scene.parts()
    return scene.exhibit(parts.header(0, b"\6\0").build(version=parts.version))


@fault("p384-key-type", Code.QUOTE_KEY_TYPE, "the header says that the attestation key is ECDSA P-384")
def _key_type(scene: Scene) -> Exhibit:
    return scene.exhibit(scene.parts().header(2, b"\3\0"))


@fault("wrong-tee-type", Code.QUOTE_TEE, "the header of a TD's quote says SGX")
def _tee(scene: Scene) -> Exhibit:
    return scene.exhibit(scene.parts().header(4, bytes(4)))


@fault("reserved-header-bytes", Code.QUOTE_RESERVED, "reserved header bytes, zero in all real quotes, are not")
def _reserved(scene: Scene) -> Exhibit:
    return scene.exhibit(scene.parts().header(8, b"\1\0"))


@fault("unknown-body-type", Code.QUOTE_BODY_TYPE, "a version 5 quote with body type 9")
def _body_type(scene: Scene) -> Exhibit:
    return scene.exhibit(_version_5(scene).header(48, b"\x09\0"))


@fault("wrong-body-size", Code.QUOTE_BODY_SIZE, "a version 5 quote that gives its body another size than its type has")
def _body_size(scene: Scene) -> Exhibit:
    return scene.exhibit(_version_5(scene).header(50, struct.pack("<I", 584 + 8)))


@fault("hidden-bytes", Code.QUOTE_LENGTH, "bytes hidden inside the signature data, beside its parts")
def _hidden(scene: Scene) -> Exhibit:
    parts = scene.parts()
    tail = parts.certified.encode(parts.version) + b"hidden"
    quote = parts.signed + struct.pack("<I", 64 + len(tail)) + sign(parts.key, parts.signed) + tail
    return scene.exhibit(quote)


@fault("outer-certification-type", Code.QUOTE_CERTIFICATION_TYPE, "the outer certification data is not of type 6")
def _outer(scene: Scene) -> Exhibit:
    parts = scene.parts()
    return scene.exhibit(replace(parts, certified=replace(parts.certified, outer_type=5)))


@fault("platform-manifest", Code.QUOTE_CERTIFICATION_TYPE, "the inner certification data is of type 7, a manifest")
def _manifest(scene: Scene) -> Exhibit:
    parts = scene.parts()
    return scene.exhibit(replace(parts, certified=replace(parts.certified, data_type=7)))


@fault("short-platform-id", Code.QUOTE_CERTIFICATION_SIZE, "an encrypted platform id that is too short for its type")
def _short_id(scene: Scene) -> Exhibit:
    return scene.exhibit(_instead_of_chain(scene, 3, bytes(_PLATFORM_ID[3] - 1)))


@fault("trailing-bytes", Code.QUOTE_TRAILING, "39 bytes that are not zero follow the quote")
def _trailing(scene: Scene) -> Exhibit:
    return scene.exhibit(scene.quote() + scene.machine.seed.derive("fault/trailing", 39))


@fault("encrypted-platform-id", Code.CHAIN_NOT_IN_QUOTE, "an encrypted platform id in place of the PCK chain")
def _encrypted_id(scene: Scene) -> Exhibit:
    return scene.exhibit(_instead_of_chain(scene, 3, bytes(_PLATFORM_ID[3])))


@fault("leaf-only", Code.CHAIN_NOT_IN_QUOTE, "the PCK certificate alone, without its chain (certification type 4)")
def _leaf_only(scene: Scene) -> Exhibit:
    return scene.exhibit(_instead_of_chain(scene, 4, scene.platform.pck.pem))


@fault("debug-td", Code.QUOTE_DEBUG, "the domain runs with DEBUG: its host reads its memory")
def _debug_td(scene: Scene) -> Exhibit:
    return scene.exhibit(scene.quote(scene.td(attributes=SEPT_VE_DISABLE | DEBUG)))


@fault("debug-enclave", Code.QUOTE_DEBUG, "an SGX enclave in debug mode")
def _debug_enclave(scene: Scene) -> Exhibit:
    quote = scene.platform.sgx_quote(scene.report_data, attributes=bytes.fromhex("0700000000000000e700000000000000"))
    return scene.exhibit(quote, scene.documents("sgx"))


@fault("sept-ve-disable-clear", Code.QUOTE_SEPT_VE_DISABLE, "SEPT_VE_DISABLE is clear: the host may inject #VE")
def _sept_ve(scene: Scene) -> Exhibit:
    return scene.exhibit(scene.quote(scene.td(attributes=0)))


@fault("migratable-td", Code.QUOTE_MIGRATABLE, "a migration TD may move the domain to another platform")
def _migratable(scene: Scene) -> Exhibit:
    return scene.exhibit(scene.quote(scene.td(attributes=SEPT_VE_DISABLE | MIGRATABLE)))


@fault("service-td", Code.QUOTE_SERVICE_TD, "a service TD is bound to the domain")
def _service_td(scene: Scene) -> Exhibit:
    bound = ServiceTd(td_info_hash=sha384(b"cloister-sim/service-td"))
    return scene.exhibit(scene.td(service_tds=(bound,)).quote(scene.report_data))


@fault("nested-vm", Code.QUOTE_NESTED_VM, "a VM inside the domain asked; the measurements are the domain's")
def _nested_vm(scene: Scene) -> Exhibit:
    quote = scene.td(partitioned=True).quote(scene.report_data, version=5, body=4)
    return scene.exhibit(scene.parts(quote).body(_VM_ID, b"\x01"))


@fault("unknown-attributes", Code.QUOTE_ATTRIBUTES, "a reserved ATTRIBUTES bit is set")
def _attributes(scene: Scene) -> Exhibit:
    return scene.exhibit(scene.quote(scene.td(attributes=SEPT_VE_DISABLE | 1 << 40)))


@fault("swapped-report-data", Code.BINDING_REPORT_DATA, "a genuine quote over other REPORT_DATA: replayed or relayed")
def _swapped(scene: Scene) -> Exhibit:
    return scene.exhibit(scene.quote(report_data=sha256(b"another nonce") + sha256(b"another key")))


@fault("zero-report-data", Code.BINDING_REPORT_DATA, "REPORT_DATA is all zero, as Intel's published TDQE leaves body 4")
def _zero(scene: Scene) -> Exhibit:
    quote = scene.td(partitioned=True).quote(scene.report_data)
    return scene.exhibit(scene.parts(quote).body(520, bytes(64)))


@fault("changed-body", Code.QUOTE_SIGNATURE, "RTMR3 was overwritten after the quote was signed")
def _changed(scene: Scene) -> Exhibit:
    quote, parts = scene.quote(), scene.parts()
    at = parts.body_at + 472
    return scene.exhibit(quote[:at] + sha384(b"better") + quote[at + 48 :])


@fault("zero-signature", Code.QUOTE_SIGNATURE, "the quote's signature is r = s = 0")
def _zero_signature(scene: Scene) -> Exhibit:
    quote, at = scene.quote(), len(scene.parts().signed) + 4
    return scene.exhibit(quote[:at] + bytes(64) + quote[at + 64 :])


@fault("foreign-attestation-key", Code.QUOTE_SIGNATURE, "signed by another key than the one that the quote names")
def _foreign_key(scene: Scene) -> Exhibit:
    return scene.exhibit(replace(scene.parts(), key=scene.key("attestation")))


@fault("key-off-curve", Code.QUOTE_KEY_INVALID, "the attestation key, certified all the same, is no point on P-256")
def _off_curve(scene: Scene) -> Exhibit:
    parts, point = scene.parts(), b"\1" * 64
    certified = parts.certified
    report = certified.qe_report[:320] + sha256(point, certified.auth_data) + bytes(32)
    signature = sign(scene.platform.pck.key, report)
    changed = replace(certified, attestation_key=point, qe_report=report, qe_report_signature=signature)
    return scene.exhibit(replace(parts, certified=changed))


@fault("unknown-vendor", Code.QE_VENDOR, "the header names a quoting enclave vendor other than Intel")
def _vendor(scene: Scene) -> Exhibit:
    return scene.exhibit(scene.parts().header(12, b"\xaa" * 16))


@fault("unsigned-qe", Code.QE_SIGNATURE, "the PCK key did not sign the QE report")
def _unsigned_qe(scene: Scene) -> Exhibit:
    return scene.exhibit(scene.recertified(pck=scene.key("pck"), chain=scene.platform.pck_chain))


@fault("key-not-bound", Code.QE_KEY_NOT_BOUND, "a genuine QE report beside an attestation key of the attacker's own")
def _not_bound(scene: Scene) -> Exhibit:
    parts, key = scene.parts(), scene.key("attestation")
    certified = replace(parts.certified, attestation_key=public_point(key))
    return scene.exhibit(replace(parts, key=key, certified=certified))


@fault("changed-auth-data", Code.QE_KEY_NOT_BOUND, "the QE's auth data is not what its report committed to")
def _auth_data(scene: Scene) -> Exhibit:
    parts = scene.parts()
    return scene.exhibit(replace(parts, certified=replace(parts.certified, auth_data=bytes(32))))


@fault("debug-qe", Code.QE_DEBUG, "the quoting enclave runs in debug mode")
def _debug_qe(scene: Scene) -> Exhibit:
    return scene.exhibit(scene.recertified(attributes=bytes.fromhex("1700000000000000e700000000000000")))


@fault("qe-miscselect", Code.QE_MISCSELECT, "the quoting enclave's MISCSELECT is not as published")
def _miscselect(scene: Scene) -> Exhibit:
    return scene.exhibit(scene.recertified(misc_select=1))


@fault("qe-attributes", Code.QE_ATTRIBUTES, "the quoting enclave may use the launch key (EINITTOKEN_KEY)")
def _qe_attributes(scene: Scene) -> Exhibit:
    return scene.exhibit(scene.recertified(attributes=bytes.fromhex("3500000000000000e700000000000000")))


@fault("forged-qe", Code.QE_SIGNER, "another enclave of a genuine platform plays the quoting enclave (CVE-2026-22696)")
def _forged_qe(scene: Scene) -> Exhibit:
    key = scene.key("attestation")
    return scene.exhibit(scene.recertified(key=key, mr_signer=sha256(b"somebody else"), mr_enclave=sha256(b"forger")))


@fault("sgx-qe-for-td", Code.QE_SIGNER, "the SGX quoting enclave vouches for a TD")
def _sgx_qe(scene: Scene) -> Exhibit:
    facts = scene.platform.qe.certified.qe_report
    return scene.exhibit(scene.recertified(mr_signer=facts[128:160], mr_enclave=facts[64:96], isv_prod_id=1, isv_svn=8))


@fault("wrong-qe-product", Code.QE_PRODUCT, "another enclave of Intel's own, with the same signer, vouches for a TD")
def _product(scene: Scene) -> Exhibit:
    return scene.exhibit(scene.recertified(isv_prod_id=1))


def _version_5(scene: Scene) -> Parts:
    return scene.parts(scene.td().quote(scene.report_data, version=5, body=quoting.TD_BODY_15))


def _instead_of_chain(scene: Scene, data_type: int, data: bytes) -> Parts:
    parts = scene.parts()
    return replace(parts, certified=replace(parts.certified, data_type=data_type, data=data))
