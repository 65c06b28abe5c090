"""Quotes as bytes ↔ fields: SGX version 3, TDX version 4, and version 5 with each of its bodies.

Decides what is well formed, and nothing else: whoever holds a `Quote` knows what its sender *claims*. Whether any of it
is true is `verifier`'s business. Every byte string is answered with a `Quote` or `MalformedEvidence`, in time linear in
its length. Zero bytes after the quote (platforms pad it to a fixed buffer) are dropped and never kept; others
are refused.

Sources: Intel SGX ECDSA QuoteLib Reference (v3); Intel TDX DCAP Quoting Library API, appendix A.3 (v4, v5);
`sgx_quote_3.h`, `sgx_quote_4.h` and `sgx_quote_5.h` of Intel's DCAP for the layouts. All integers are little-endian,
ECDSA numbers big-endian.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple, NoReturn, Self, final

from attestation.errors import Code, MalformedEvidence

MAX_QUOTE: Final = 1 << 20
"""Bytes. Real quotes have 4 to 16 KiB; the Linux buffer ends at 128 KiB."""

_HEADER: Final = struct.Struct("<HHIHH16s20s")  # 48 bytes
_DESCRIPTOR: Final = struct.Struct("<HI")  # v5 only: body type, body size
_ENCLAVE_REPORT: Final = struct.Struct("<16sI12s16s16s32s32s32s32s64sHHH42s16s64s")  # 384 bytes
_TD_REPORT: Final = struct.Struct("<16s48s48s8s8s8s48s48s48s48s48s48s48s48s64s")  # 584 bytes
_TD_REPORT_15: Final = struct.Struct("<16s48s")  # 64 more bytes at 584
_TD_REPORT_15EX: Final = struct.Struct("<B32s48s48s8s16s16s12s48s8s")  # 237 more bytes at 648
_U16: Final = struct.Struct("<H")
_U32: Final = struct.Struct("<I")
_CERTIFICATION: Final = struct.Struct("<HI")

_KEY_TYPE_P256: Final = 2
_TEE_SGX: Final = 0x00
_TEE_TDX: Final = 0x81
BODY_SIZES: Final = {1: 384, 2: 584, 3: 648, 4: 885}
"""Body type → bytes: 1 SGX enclave report, 2 TD report 1.0, 3 TD report 1.5, 4 TD report 1.5 extended."""

_QE_CERTIFICATION: Final = 6  # the outer type of v4 and v5
_PLATFORM_ID_SIZES: Final = {2: 276, 3: 404}  # PPID under RSA-2048 or RSA-3072, then CPUSVN 16, PCESVN 2, PCEID 2
_CERTIFICATION_TYPES: Final = frozenset((1, 2, 3, 4, 5))


class Tee(StrEnum):
    """The kind of trusted execution environment a quote speaks of."""

    SGX = "sgx"
    TDX = "tdx"


@final
class Header(NamedTuple):
    """The first 48 bytes. Offsets in bytes:

    0   2  version          3, 4, 5
    2   2  key_type         2 = ECDSA P-256
    4   4  tee_type         0 SGX, 0x81 TDX (v3: reserved, 0)
    8   2  qe_svn           v3; reserved and zero in v4 and v5
    10  2  pce_svn          v3; reserved and zero in v4 and v5
    12  16 qe_vendor_id
    28  20 user_data        16-byte QE id, then zeros
    """

    version: int
    key_type: int
    tee_type: int
    qe_svn: int
    pce_svn: int
    qe_vendor_id: bytes
    user_data: bytes


@final
class EnclaveReport(NamedTuple):
    """An SGX report body, 384 bytes: the body of an SGX quote, and what the quoting enclave says of itself.

    Offsets in bytes:
        0    16  cpu_svn
        16    4  misc_select          u32
        32   16  isv_ext_prod_id
        48   16  attributes           8 FLAGS (bit 1 DEBUG), 8 XFRM
        64   32  mr_enclave
        128  32  mr_signer
        192  64  config_id
        256   2  isv_prod_id          u16
        258   2  isv_svn              u16
        260   2  config_svn           u16
        304  16  isv_family_id
        320  64  report_data
    Source: Intel SDM vol. 3D, table 38-21 (REPORT); `sgx_report.h`.
    """

    cpu_svn: bytes
    misc_select: int
    isv_ext_prod_id: bytes
    attributes: bytes
    mr_enclave: bytes
    mr_signer: bytes
    config_id: bytes
    isv_prod_id: int
    isv_svn: int
    config_svn: int
    isv_family_id: bytes
    report_data: bytes

    @classmethod
    def parse(cls, raw: bytes) -> EnclaveReport:
        """Raises MalformedEvidence: quote.truncated when `raw` has not exactly 384 bytes."""
        if len(raw) != _ENCLAVE_REPORT.size:
            detail = f"an enclave report has {_ENCLAVE_REPORT.size} bytes, not {len(raw)}"
            raise MalformedEvidence(Code.QUOTE_TRUNCATED, detail)
        return _enclave_report(raw, 0)


@final
class ExtendedTdInfo(NamedTuple):
    """What body type 4 (TD report 1.5Ex, 885 bytes) adds. Offsets inside the body:

    648   1  vm_id                0 the L1 TD, 1 to 3 nested
    649  32  td_id
    681  48  device_info_hash
    729  48  initial_service_td_hash
    777   8  initial_service_td_attributes
    785  16  initial_cpu_svn
    801  16  initial_tee_tcb_svn
    817  12  initial_fmspc
    829  48  service_td_hash
    877   8  service_td_attributes
    """

    vm_id: int
    td_id: bytes
    device_info_hash: bytes
    initial_service_td_hash: bytes
    initial_service_td_attributes: bytes
    initial_cpu_svn: bytes
    initial_tee_tcb_svn: bytes
    initial_fmspc: bytes
    service_td_hash: bytes
    service_td_attributes: bytes


@final
class TdReport(NamedTuple):
    """A TD report body: 584 bytes (1.0), 648 (1.5) or 885 (1.5Ex). Offsets inside the body:

    0    16    tee_tcb_svn        byte 0 module minor SVN, 1 module version, 2 late microcode
    16   48    mr_seam            SHA-384 of the TDX module
    64   48    mr_signer_seam     zero for a module that Intel signed
    112   8    seam_attributes
    120   8    td_attributes      bit 0 DEBUG, 28 SEPT_VE_DISABLE, 29 MIGRATABLE (little-endian u64)
    128   8    xfam
    136  48    mr_td              SHA-384 over the initial memory
    184  48    mr_config_id       chosen by the host at launch
    232  48    mr_owner
    280  48    mr_owner_config
    328  4×48  rtmrs              run-time registers 0 to 3
    520  64    report_data        chosen by the guest
    584  16    tee_tcb_svn_2      1.5: the module that runs now (the first one ran at launch)
    600  48    mr_service_td      1.5: hash over the bound service TDs, zero when there is none
    Source: Intel TDX DCAP Quoting Library API, A.3.2; `sgx_quote_4.h`, `sgx_quote_5.h`.
    """

    tee_tcb_svn: bytes
    mr_seam: bytes
    mr_signer_seam: bytes
    seam_attributes: bytes
    td_attributes: bytes
    xfam: bytes
    mr_td: bytes
    mr_config_id: bytes
    mr_owner: bytes
    mr_owner_config: bytes
    rtmrs: tuple[bytes, bytes, bytes, bytes]
    report_data: bytes
    tee_tcb_svn_2: bytes | None = None
    mr_service_td: bytes | None = None
    extended: ExtendedTdInfo | None = None


@final
@dataclass(frozen=True, slots=True, init=False)
class Quote:
    """A quote as its sender *claims* it. Nothing in it may be believed yet.

    Offsets from the start, in bytes (b = body size; the length fields themselves are never signed):
        0    48   header
        48    6   v5: body type u16, body size u32
        48/54 b   body
        …     4   length of the signature data
        …    64   signature               r ‖ s over everything before that length: `signed`
        …    64   attestation_key         x ‖ y
    and then, inside a certification-data record of type 6 for v4 and v5, bare for v3:
        384  qe_report, 64 qe_report_signature, u16 + auth_data, u16 certification_type, u32 + certification_data

    Fields are kept as few slices; the parts of `certified` are cut out when they are asked for.
    """

    header: Header
    tee: Tee
    body_type: int
    body: TdReport | EnclaveReport
    signed: bytes = field(repr=False)
    signature: bytes = field(repr=False)
    certified: bytes = field(repr=False)
    """Attestation key to the end: all that vouches for the key. Equal bytes were vouched for equally."""
    size: int
    """Bytes of the quote itself, padding excluded."""

    def __init__(self, **fields: object) -> None:
        """What is signed and what is read are cut from the same bytes: only `parse` sees to that."""
        raise TypeError("a Quote comes from Quote.parse() only")

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Quote cannot be copied or pickled; keep its bytes and parse them again")

    @property
    def version(self) -> int:
        return self.header.version

    @property
    def attestation_key(self) -> bytes:
        """64 bytes: x ‖ y on P-256, big-endian. Not yet known to be on the curve."""
        return self.certified[:64]

    @property
    def _qe_offset(self) -> int:
        return 64 if self.header.version == 3 else 70  # v4 and v5 wrap it in a type 6 record

    @property
    def qe_report_raw(self) -> bytes:
        """384 bytes, as the PCK key signed them."""
        at = self._qe_offset
        return self.certified[at : at + 384]

    @property
    def qe_report_signature(self) -> bytes:
        """64 bytes: r ‖ s."""
        at = self._qe_offset + 384
        return self.certified[at : at + 64]

    @property
    def auth_data(self) -> bytes:
        """What the quoting enclave hashed beside the attestation key; 32 bytes in all real quotes."""
        at = self._qe_offset + 450
        return self.certified[at : at + _U16.unpack_from(self.certified, at - 2)[0]]

    @property
    def certification_type(self) -> int:
        """1 to 5; 5 is a PCK chain in PEM, the only one that can be verified without asking Intel."""
        return int(_U16.unpack_from(self.certified, self._certification_offset)[0])

    @property
    def certification_data(self) -> bytes:
        return self.certified[self._certification_offset + 6 :]

    @property
    def _certification_offset(self) -> int:
        at = self._qe_offset + 450
        return at + int(_U16.unpack_from(self.certified, at - 2)[0])

    @property
    def report_data(self) -> bytes:
        """64 bytes that the guest chose."""
        return self.body.report_data

    @property
    def qe_report(self) -> EnclaveReport:
        """What the quoting enclave reports of itself; parsed when asked for, since a known key needs it no more."""
        return _enclave_report(self.qe_report_raw, 0)

    @property
    def td(self) -> TdReport:
        """The TD report. Raises TypeError for an SGX quote."""
        if not isinstance(self.body, TdReport):
            raise TypeError("an SGX quote has no TD report")
        return self.body

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Raises MalformedEvidence: any of the `quote.*` codes of its first section; TypeError for other than bytes."""
        if type(raw) is not bytes:
            raise TypeError(f"a quote is bytes, not {type(raw).__name__}")
        size = len(raw)
        if not 0 < size <= MAX_QUOTE:
            code = Code.QUOTE_TOO_LARGE if size else Code.QUOTE_EMPTY
            raise MalformedEvidence(code, f"{size} bytes, need 1 to {MAX_QUOTE}")
        if size < _HEADER.size:
            raise _truncated("header", _HEADER.size, size)
        header = Header._make(_HEADER.unpack_from(raw))
        version, key_type, tee_type, qe_svn, pce_svn, _, _ = header
        if not 3 <= version <= 5:
            raise MalformedEvidence(Code.QUOTE_VERSION, f"version {version}, know 3, 4 and 5")
        if key_type != _KEY_TYPE_P256:
            raise MalformedEvidence(Code.QUOTE_KEY_TYPE, f"attestation key type {key_type}, know 2 (ECDSA P-256)")
        if version > 3 and (qe_svn or pce_svn):
            raise MalformedEvidence(Code.QUOTE_RESERVED, "bytes 8 to 12 of the header are reserved and not zero")
        tee, body_type, start = _body(raw, version, tee_type)
        at = start + BODY_SIZES[body_type]
        if size < at + 4:
            raise _truncated("body and signature length", at + 4, size)
        body = _enclave_report(raw, start) if body_type == 1 else _td_report(raw, start, body_type)
        (signature_size,) = _U32.unpack_from(raw, at)
        end = at + 4 + signature_size
        if end > size:
            raise _truncated("signature data", end, size)
        if raw.count(0, end) != size - end:
            raise MalformedEvidence(Code.QUOTE_TRAILING, f"{size - end} bytes after the quote, not all zero")
        _check_signature_data(raw, at + 4, end, version)
        quote = object.__new__(cls)
        put = object.__setattr__  # a constructor would cost as much as all the parsing
        put(quote, "header", header)
        put(quote, "tee", tee)
        put(quote, "body_type", body_type)
        put(quote, "body", body)
        put(quote, "signed", raw[:at])
        put(quote, "signature", raw[at + 4 : at + 68])
        put(quote, "certified", raw[at + 68 : end])
        put(quote, "size", end)
        return quote


def _body(raw: bytes, version: int, tee_type: int) -> tuple[Tee, int, int]:
    """Which body this is: TEE, body type, offset. SGX comes as v3 or v5, TDX as v4 or v5."""
    if version < 5:
        if tee_type != (_TEE_SGX if version == 3 else _TEE_TDX):
            raise MalformedEvidence(Code.QUOTE_TEE, f"TEE type {tee_type:#x} in a version {version} quote")
        return (Tee.SGX, 1, 48) if version == 3 else (Tee.TDX, 2, 48)
    if len(raw) < 54:
        raise _truncated("body descriptor", 54, len(raw))
    body_type, body_size = _DESCRIPTOR.unpack_from(raw, 48)
    expected = BODY_SIZES.get(body_type)
    if expected is None:
        raise MalformedEvidence(Code.QUOTE_BODY_TYPE, f"body type {body_type}, know 1 to 4")
    if body_size != expected:
        raise MalformedEvidence(Code.QUOTE_BODY_SIZE, f"body type {body_type} has {expected} bytes, not {body_size}")
    tee = Tee.SGX if body_type == 1 else Tee.TDX
    if tee_type != (_TEE_SGX if tee is Tee.SGX else _TEE_TDX):
        raise MalformedEvidence(Code.QUOTE_TEE, f"TEE type {tee_type:#x} with body type {body_type}")
    return tee, body_type, 54


def _enclave_report(raw: bytes, at: int) -> EnclaveReport:
    (
        cpu_svn,
        misc_select,
        _,
        ext_prod_id,
        attributes,
        mr_enclave,
        _,
        mr_signer,
        _,
        config_id,
        prod_id,
        svn,
        config_svn,
        _,
        family_id,
        report_data,
    ) = _ENCLAVE_REPORT.unpack_from(raw, at)
    return EnclaveReport(
        cpu_svn,
        misc_select,
        ext_prod_id,
        attributes,
        mr_enclave,
        mr_signer,
        config_id,
        prod_id,
        svn,
        config_svn,
        family_id,
        report_data,
    )


def _td_report(raw: bytes, at: int, body_type: int) -> TdReport:
    fields = _TD_REPORT.unpack_from(raw, at)
    if body_type == 2:
        return TdReport._make((*fields[:10], fields[10:14], fields[14], None, None, None))
    current, service_td = _TD_REPORT_15.unpack_from(raw, at + 584)
    extended = ExtendedTdInfo._make(_TD_REPORT_15EX.unpack_from(raw, at + 648)) if body_type == 4 else None
    return TdReport._make((*fields[:10], fields[10:14], fields[14], current, service_td, extended))


def _check_signature_data(raw: bytes, start: int, end: int, version: int) -> None:
    """The parts of the signature data fill `raw[start:end]` exactly, each with the size its type demands."""
    at = start + 128
    if version > 3:
        if at + 6 > end:
            raise _overrun("certification data header", at + 6, end)
        outer, outer_size = _CERTIFICATION.unpack_from(raw, at)
        if outer != _QE_CERTIFICATION:
            raise MalformedEvidence(Code.QUOTE_CERTIFICATION_TYPE, f"outer type {outer}, a v{version} quote has 6")
        at += 6
        if outer_size != end - at:
            detail = f"outer certification data claims {outer_size} bytes, {end - at} are there"
            raise MalformedEvidence(Code.QUOTE_LENGTH, detail)
    if at + 450 > end:
        raise _overrun("QE report, its signature and the auth data size", at + 450, end)
    (auth_size,) = _U16.unpack_from(raw, at + 448)
    tail = at + 450 + auth_size
    if tail + 6 > end:
        raise _overrun("auth data and certification header", tail + 6, end)
    kind, data_size = _CERTIFICATION.unpack_from(raw, tail)
    if tail + 6 + data_size != end:
        detail = f"certification data claims {data_size} bytes, {end - tail - 6} are there"
        raise MalformedEvidence(Code.QUOTE_LENGTH, detail)
    if kind not in _CERTIFICATION_TYPES:
        raise MalformedEvidence(Code.QUOTE_CERTIFICATION_TYPE, f"type {kind}, know 1 to 5 here")
    wanted = _PLATFORM_ID_SIZES.get(kind)
    if wanted is not None and data_size != wanted:
        raise MalformedEvidence(Code.QUOTE_CERTIFICATION_SIZE, f"type {kind} has {wanted} bytes, not {data_size}")


def _truncated(what: str, need: int, have: int) -> MalformedEvidence:
    return MalformedEvidence(Code.QUOTE_TRUNCATED, f"{what}: need {need} bytes, have {have}")


def _overrun(what: str, need: int, end: int) -> MalformedEvidence:
    return MalformedEvidence(Code.QUOTE_LENGTH, f"{what}: would end at {need}, the signature data ends at {end}")
