"""Quoting enclaves: from a checked TDREPORT or an enclave report to a signed quote.

Decides which quote version and body the TD quoting enclave emits for which report, and how the parts of a quote are
laid out. Whose keys these are is decided by `platform`; how they can be wrong, by `faults`.

Sources: Intel TDX DCAP Quoting Library API, appendix A.3; `sgx_quote_3.h`, `sgx_quote_4.h`, `sgx_quote_5.h` and the
published TDQE of Intel's DCAP. All integers are little-endian, ECDSA numbers big-endian.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from simulator import tdreport
from simulator.errors import SimulatorCode, SimulatorError
from simulator.seed import SigningKey, public_point, sha256, sign

VENDOR_ID: Final = bytes.fromhex("939A7233F79C4CA9940A0DB3957F0607")
TDX, SGX = 0x81, 0x00
ENCLAVE_BODY, TD_BODY_10, TD_BODY_15, TD_BODY_15EX = 1, 2, 3, 4

_HEADER: Final = struct.Struct("<HHIHH16s20s")  # 48 bytes
_ENCLAVE_REPORT: Final = struct.Struct("<16sI12x16x16s32s32x32s32x64sHHH42x16x64s")  # 384 bytes
_EXTENDED_BODY: Final = struct.Struct("<B32s48s48s8s16s16s12s48s8s")  # 237 bytes at 648


@dataclass(frozen=True, slots=True, kw_only=True)
class QuoteHeader:
    """48 bytes. `qe_svn` and `pce_svn` are filled in version 3 alone; later ones leave them zero."""

    version: int
    tee: int
    user_data: bytes
    """20 bytes: the QE's id, then four zeros"""
    key_type: int = 2
    qe_svn: int = 0
    pce_svn: int = 0
    vendor_id: bytes = VENDOR_ID

    def encode(self) -> bytes:
        return _HEADER.pack(
            self.version, self.key_type, self.tee, self.qe_svn, self.pce_svn, self.vendor_id, self.user_data
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EnclaveFacts:
    """What an SGX report says of its enclave; 384 bytes encoded."""

    cpu_svn: bytes
    attributes: bytes
    mr_enclave: bytes
    mr_signer: bytes
    isv_prod_id: int
    isv_svn: int
    report_data: bytes
    misc_select: int = 0
    config_id: bytes = bytes(64)
    config_svn: int = 0

    def encode(self) -> bytes:
        return _ENCLAVE_REPORT.pack(
            self.cpu_svn,
            self.misc_select,
            self.attributes,
            self.mr_enclave,
            self.mr_signer,
            self.config_id,
            self.isv_prod_id,
            self.isv_svn,
            self.config_svn,
            self.report_data,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Certified:
    """All that vouches for an attestation key: what follows the quote's own signature."""

    attestation_key: bytes
    qe_report: bytes
    qe_report_signature: bytes
    auth_data: bytes
    data: bytes
    """The PCK chain: leaf, CA and root in PEM, then one NUL, as Intel's quoting enclaves write it."""
    data_type: int = 5
    outer_type: int = 6

    def encode(self, version: int) -> bytes:
        """From the attestation key to the end. Versions 4 and 5 wrap it in a record of type 6, version 3 does not."""
        inner = self.qe_report + self.qe_report_signature
        inner += struct.pack("<H", len(self.auth_data)) + self.auth_data
        inner += struct.pack("<HI", self.data_type, len(self.data)) + self.data
        if version == 3:
            return self.attestation_key + inner
        return self.attestation_key + struct.pack("<HI", self.outer_type, len(inner)) + inner


def certify(attestation: SigningKey, pck: SigningKey, qe: EnclaveFacts, chain: bytes, auth_data: bytes) -> Certified:
    """The QE reports SHA-256(attestation key ‖ auth data), 32 zeros after it; the PCK key signs that report."""
    point = public_point(attestation)
    bound = EnclaveFacts(
        cpu_svn=qe.cpu_svn,
        attributes=qe.attributes,
        mr_enclave=qe.mr_enclave,
        mr_signer=qe.mr_signer,
        isv_prod_id=qe.isv_prod_id,
        isv_svn=qe.isv_svn,
        misc_select=qe.misc_select,
        report_data=sha256(point, auth_data) + bytes(32),
    ).encode()
    return Certified(
        attestation_key=point,
        qe_report=bound,
        qe_report_signature=sign(pck, bound),
        auth_data=auth_data,
        data=chain,
    )


class QuotingEnclave:
    """One attestation key with all that vouches for it. Signing is all it does per quote."""

    __slots__ = ("_key", "_tails", "certified", "user_data")

    def __init__(self, key: SigningKey, certified: Certified, user_data: bytes) -> None:
        self._key = key
        self.certified = certified
        self.user_data = user_data
        self._tails: dict[int, bytes] = {}

    def quote(self, signed: bytes, version: int) -> bytes:
        """`signed` (header to the end of the body), the signature data's length, signature, certified key."""
        tail = self._tails.get(version)
        if tail is None:
            tail = self._tails[version] = self.certified.encode(version)
        signature = sign(self._key, signed)
        return b"".join((signed, struct.pack("<I", 64 + len(tail)), signature, tail))


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtendedFacts:
    """What a 1.5Ex body says beyond the TDREPORT: the domain's first hour, before it was ever moved."""

    device_info_hash: bytes = bytes(48)
    initial_service_td_hash: bytes = bytes(48)
    initial_service_td_attributes: bytes = bytes(8)
    initial_cpu_svn: bytes
    initial_svn: bytes
    initial_fmspc: bytes
    """12 bytes: FMSPC, then zeros"""
    service_td_attributes: bytes = bytes(8)


def emitted(report: tdreport.TdReport) -> tuple[int, int]:
    """(quote version, body type) that Intel's TDQE answers this report with. Raises SimulatorError report.refused."""
    if report.valid not in (tdreport.VALID_1_0, tdreport.VALID_1_5):
        raise _refused(f"TEE_TCB_INFO.VALID is {report.valid:#x}")
    if report.version == tdreport.PLAIN:
        if any(report.td_info[400:]):
            raise _refused("a plain report with a service TD or extended TDINFO")
        upgraded = report.valid == tdreport.VALID_1_5 and report.svn != report.svn_2
        return (5, TD_BODY_15) if upgraded else (4, TD_BODY_10)
    if report.version == tdreport.SERVICE_TD:
        return 5, TD_BODY_15
    if report.version == tdreport.EXTENDED:
        *_, valid = tdreport.extended_form(report.td_info)
        if valid & (tdreport.TD_ID_VALID | tdreport.VM_ID_VALID):
            return 5, TD_BODY_15EX
    raise _refused(f"report version {report.version}, or nothing valid in its extended form")


def td_body(report: tdreport.TdReport, body_type: int, extended: ExtendedFacts) -> bytes:
    """584, 648 or 885 bytes. MRSIGNERSEAM and SEAMATTRIBUTES stay zero, as Intel's TDQE leaves them.

    Intel's published TDQE forgets REPORTDATA in type 4; this one copies it (the fault `zero-report-data` does not).
    """
    current = report.svn_2 if report.valid == tdreport.VALID_1_5 else report.svn
    body = b"".join((report.svn, report.mr_seam, bytes(56), report.td_info[:400], report.report_data))
    if body_type == TD_BODY_10:
        return body
    service_td = report.td_info[400:448]
    body += current + service_td
    if body_type == TD_BODY_15:
        return body
    td_id, vm_id, _ = tdreport.extended_form(report.td_info)
    return body + _EXTENDED_BODY.pack(
        vm_id,
        td_id,
        extended.device_info_hash,
        extended.initial_service_td_hash,
        extended.initial_service_td_attributes,
        extended.initial_cpu_svn,
        extended.initial_svn,
        extended.initial_fmspc,
        service_td,
        extended.service_td_attributes,
    )


def to_sign(header: QuoteHeader, body: bytes, body_type: int) -> bytes:
    """Header and body as the attestation key signs them; version 5 puts the body's type and size between."""
    if header.version < 5:
        return header.encode() + body
    return header.encode() + struct.pack("<HI", body_type, len(body)) + body


def _refused(detail: str) -> SimulatorError:
    return SimulatorError(SimulatorCode.REPORT_REFUSED, detail)
