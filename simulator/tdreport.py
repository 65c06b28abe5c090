"""TDREPORT: what the CPU tells a trust domain about itself, and what the quoting enclave checks before it signs.

Decides the 1024-byte layout, its two SHA-384 relations and its MAC. The real MAC algorithm is known to the CPU alone;
here it is HMAC-SHA-256 under a key of the platform. Source: Intel TDX Module ABI, TDREPORT_STRUCT; `sgx_report2.h`.
All integers are little-endian.
"""

from __future__ import annotations

import hmac
import struct
from dataclasses import dataclass
from typing import Final

from simulator.errors import SimulatorCode, SimulatorError
from simulator.seed import sha384

SIZE: Final = 1024
REPORT_TYPE_TDX: Final = 0x81
VALID_1_0: Final = 0x1FF
"""TEE_TCB_INFO.VALID without TEE_TCB_SVN_2."""
VALID_1_5: Final = 0x301FF
"""The same with TEE_TCB_SVN_2."""
PLAIN, SERVICE_TD, EXTENDED = 0, 1, 3
"""REPORTTYPE.version: no service TD, service TD bound, extended TDINFO."""
TD_ID_VALID, VM_ID_VALID = 1 << 8, 1 << 9
"""Bits of TDINFO.VALID in the extended form."""

_MAC_STRUCT: Final = struct.Struct("<BBB13x16s48s48s64s32x")  # 224 bytes, then 32 of MAC
_TCB_INFO: Final = struct.Struct("<Q16s48s48s8s16s95x")  # 239 bytes at 256
_TD_INFO: Final = struct.Struct("<8s8s48s48s48s48s192s48s")  # 448 bytes at 512, then 64 of reserved or extended form
_EXTENDED: Final = struct.Struct("<32s24xB3xI")  # those 64 bytes: TD_ID, VM id, VALID


@dataclass(frozen=True, slots=True, kw_only=True)
class TcbInfo:
    """TEE_TCB_INFO: which TDX module this is. `svn_2` is the module that runs now, where the CPU tells."""

    svn: bytes
    mr_seam: bytes
    svn_2: bytes | None
    mr_signer_seam: bytes = bytes(48)
    seam_attributes: bytes = bytes(8)

    def encode(self) -> bytes:
        """239 bytes."""
        valid = VALID_1_0 if self.svn_2 is None else VALID_1_5
        return _TCB_INFO.pack(
            valid, self.svn, self.mr_seam, self.mr_signer_seam, self.seam_attributes, self.svn_2 or bytes(16)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TdInfo:
    """TDINFO: the trust domain itself."""

    attributes: bytes
    xfam: bytes
    mr_td: bytes
    mr_config_id: bytes
    mr_owner: bytes
    mr_owner_config: bytes
    rtmrs: bytes
    """192 bytes, RTMR0 to RTMR3"""
    service_td_hash: bytes = bytes(48)
    td_id: bytes | None = None
    """32 bytes, extended form only"""
    vm_id: int | None = None

    def encode(self) -> bytes:
        """512 bytes."""
        head = _TD_INFO.pack(
            self.attributes,
            self.xfam,
            self.mr_td,
            self.mr_config_id,
            self.mr_owner,
            self.mr_owner_config,
            self.rtmrs,
            self.service_td_hash,
        )
        if self.td_id is None and self.vm_id is None:
            return head + bytes(64)
        valid = (self.td_id is not None) * TD_ID_VALID | (self.vm_id is not None) * VM_ID_VALID | 1
        return head + _EXTENDED.pack(self.td_id or bytes(32), self.vm_id or 0, valid)


@dataclass(frozen=True, slots=True, kw_only=True)
class TdReport:
    """A TDREPORT whose MAC and hashes were checked. Bytes of TDINFO keep their offsets: 16 MRTD, 208 RTMR0, …"""

    version: int
    report_data: bytes
    valid: int
    svn: bytes
    mr_seam: bytes
    svn_2: bytes
    td_info: bytes
    """512 bytes"""
    cpu_svn: bytes


def build(*, version: int, cpu_svn: bytes, tcb: TcbInfo, td: TdInfo, report_data: bytes, mac_key: bytes) -> bytes:
    """TDG.MR.REPORT: 1024 bytes."""
    tcb_raw = tcb.encode()
    td_raw = td.encode()
    head = _MAC_STRUCT.pack(REPORT_TYPE_TDX, 0, version, cpu_svn, sha384(tcb_raw), sha384(td_raw), report_data)
    return head + hmac.digest(mac_key, head, "sha256") + tcb_raw + bytes(17) + td_raw


def check(raw: bytes, mac_key: bytes) -> TdReport:
    """What a quoting enclave does first. Raises SimulatorError report.refused: not this CPU's report, or not whole."""
    if len(raw) != SIZE:
        raise _refused(f"a TDREPORT has {SIZE} bytes, not {len(raw)}")
    if not hmac.compare_digest(hmac.digest(mac_key, raw[:224], "sha256"), raw[224:256]):
        raise _refused("the MAC is not of this platform")
    kind, subtype, version, cpu_svn, tcb_hash, td_hash, report_data = _MAC_STRUCT.unpack_from(raw)
    if (kind, subtype) != (REPORT_TYPE_TDX, 0):
        raise _refused(f"report type {kind:#x}, subtype {subtype}, know 0x81, 0")
    tcb_raw, td_raw = raw[256:495], raw[512:]
    if not (hmac.compare_digest(sha384(tcb_raw), tcb_hash) and hmac.compare_digest(sha384(td_raw), td_hash)):
        raise _refused("TEE_TCB_INFO or TDINFO is not what the report hashed")
    valid, svn, mr_seam, _, _, svn_2 = _TCB_INFO.unpack(tcb_raw)
    return TdReport(
        version=version,
        report_data=report_data,
        valid=valid,
        svn=svn,
        mr_seam=mr_seam,
        svn_2=svn_2,
        td_info=td_raw,
        cpu_svn=cpu_svn,
    )


def extended_form(td_info: bytes) -> tuple[bytes, int, int]:
    """TD_ID, VM id and TDINFO.VALID of an extended TDINFO (512 bytes)."""
    td_id, vm_id, valid = _EXTENDED.unpack(td_info[448:])
    return td_id, vm_id, valid


def _refused(detail: str) -> SimulatorError:
    return SimulatorError(SimulatorCode.REPORT_REFUSED, detail)
