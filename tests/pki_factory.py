"""A small Intel-shaped world in which every part can be wrong, made byte by byte.

Test input only: it signs whatever it is told to, with keys that everybody can derive. It builds DER itself, so that
certificates can break rules that no library would let it break. Fields are changed on a `World`, then `input()` puts
quote, collateral and root together.
"""

import base64
import json
import struct
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

AT = int(datetime(2026, 6, 15, 12, tzinfo=UTC).timestamp())
DAY = 86_400
REPORT_DATA = bytes(range(1, 65))
NAMES = ("root", "other_root", "ca", "other_ca", "signer", "leaf", "attestation", "rogue")
KEYS = {name: ec.derive_private_key(1000 + number, ec.SECP256R1()) for number, name in enumerate(NAMES)}

ALGORITHM = bytes.fromhex("300a06082a8648ce3d040302")
AKI, SKI, USAGE, BASIC, DISTRIBUTION = (bytes.fromhex("0603551d" + last) for last in ("23", "0e", "0f", "13", "1f"))
SGX = bytes.fromhex("06092a864886f84d010d01")
CRL_NUMBER, DELTA, IDP = (bytes.fromhex("0603551d" + last) for last in ("14", "1b", "1c"))
UNKNOWN = bytes.fromhex("0603551d7f")
TRUE = b"\x01\x01\xff"

Extension = tuple[bytes, bool, bytes]


def tlv(tag: int, *parts: bytes) -> bytes:
    content = b"".join(parts)
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(octets))) + octets + content


def seq(*parts: bytes) -> bytes:
    return tlv(0x30, *parts)


def integer(value: int) -> bytes:
    return tlv(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))


def octets(value: bytes) -> bytes:
    return tlv(0x04, value)


def name(common_name: str) -> bytes:
    rest = ((b"\x0a", "Intel Corporation", 0x0C), (b"\x07", "Santa Clara", 0x0C), (b"\x08", "CA", 0x0C))
    parts = [((b"\x03"), common_name, 0x0C), *rest, (b"\x06", "US", 0x13)]
    return seq(*(tlv(0x31, seq(b"\x06\x03\x55\x04" + last, tlv(tag, text.encode()))) for last, text, tag in parts))


def time(moment: int) -> bytes:
    at = datetime.fromtimestamp(moment, UTC)
    return (
        tlv(0x17, at.strftime("%y%m%d%H%M%SZ").encode())
        if at.year < 2050
        else tlv(0x18, at.strftime("%Y%m%d%H%M%SZ").encode())
    )


def point(key: str) -> bytes:
    """x ‖ y"""
    return KEYS[key].public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)[1:]


def spki(key: str) -> bytes:
    return bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d030107034200") + b"\x04" + point(key)


def sign(key: str, message: bytes) -> bytes:
    """DER."""
    return KEYS[key].sign(message, ec.ECDSA(SHA256(), deterministic_signing=True))


def sign_raw(key: str, message: bytes) -> bytes:
    """r ‖ s"""
    r, s = decode_dss_signature(sign(key, message))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def signed(tbs: bytes, key: str) -> bytes:
    return seq(tbs, ALGORITHM, tlv(0x03, b"\0", sign(key, tbs)))


def extensions(tag: int, found: list[Extension]) -> bytes:
    return tlv(tag, seq(*(seq(oid, TRUE if critical else b"", octets(value)) for oid, critical, value in found)))


def key_id(key: str) -> bytes:
    return sha256(point(key)).digest()[:20]


@dataclass
class Cert:
    """One certificate, field by field; `extra` is appended to the extensions, `drop` leaves some out."""

    subject: str
    issuer: str
    key: str
    signer: str
    ca: bool
    path_length: int | None = None
    usage: bytes | None = None
    serial: int = 0
    not_before: int = AT - 2000 * DAY
    not_after: int = AT + 2000 * DAY
    sgx: bytes | None = None
    extra: list[Extension] = field(default_factory=list)
    drop: tuple[bytes, ...] = ()
    version: bytes = bytes.fromhex("a003020102")
    tweak: Callable[[bytes], bytes] | None = None  # applied to the finished DER
    spki: bytes | None = None
    tbs_algorithm: bytes = ALGORITHM
    subject_der: bytes | None = None
    basic: bytes | None = None
    times: bytes | None = None

    def der(self) -> bytes:
        usage = self.usage or (bytes.fromhex("03020106") if self.ca else bytes.fromhex("030206c0"))
        length = b"" if self.path_length is None else integer(self.path_length)
        found: list[Extension] = [
            (AKI, False, seq(tlv(0x80, key_id(self.signer)))),
            (DISTRIBUTION, False, seq()),
            (SKI, False, octets(key_id(self.key))),
            (USAGE, True, usage),
            (BASIC, True, self.basic or seq(TRUE + length if self.ca else b"")),
        ]
        if self.sgx is not None:
            found.append((SGX, False, self.sgx))
        found = [item for item in found if item[0] not in self.drop] + self.extra
        serial = self.serial or 1000 + NAMES.index(self.key)
        tbs = seq(
            self.version,
            integer(serial),
            self.tbs_algorithm,
            name(self.issuer),
            self.times or seq(time(self.not_before), time(self.not_after)),
            self.subject_der or name(self.subject),
            self.spki or spki(self.key),
            extensions(0xA3, found),
        )
        raw = signed(tbs, self.signer)
        return self.tweak(raw) if self.tweak else raw


@dataclass
class CrlParts:
    issuer: str
    signer: str
    this_update: int = AT - 10 * DAY
    next_update: int | None = AT + 20 * DAY
    revoked: list[int] = field(default_factory=list)
    number: bytes | None = field(default_factory=lambda: integer(7))
    extra: list[Extension] = field(default_factory=list)
    drop: tuple[bytes, ...] = ()
    version: bytes = b"\x02\x01\x01"
    entries: list[bytes] | None = None  # instead of those that `revoked` makes

    def der(self) -> bytes:
        found: list[Extension] = [(AKI, False, seq(tlv(0x80, key_id(self.signer))))]
        if self.number is not None:
            found.append((CRL_NUMBER, False, self.number))
        found = [item for item in found if item[0] not in self.drop] + self.extra
        entries = self.entries or [seq(integer(serial), time(AT - 30 * DAY)) for serial in self.revoked]
        tbs = seq(
            self.version,
            ALGORITHM,
            name(self.issuer),
            time(self.this_update),
            b"" if self.next_update is None else time(self.next_update),
            seq(*entries) if entries else b"",
            extensions(0xA0, found) if found else b"",
        )
        return signed(tbs, self.signer)


def sgx_items(prefix: str, values: list[bytes]) -> bytes:
    """SEQUENCE of { 1.2.840.113741.1.13.1.prefix.n, value }."""
    content = bytes.fromhex("2a864886f84d010d01" + prefix)
    return seq(*(seq(tlv(0x06, content, bytes((number,))), value) for number, value in enumerate(values, 1)))


@dataclass
class SgxParts:
    ppid: bytes = b"P" * 16
    svns: list[int] = field(default_factory=lambda: [3, 3, 2, 2, 4, 1, 0, 5, 0, 200, 0, 0, 0, 0, 0, 0])
    pcesvn: int = 13
    cpusvn: bytes | None = None
    pceid: bytes = bytes(2)
    fmspc: bytes = bytes.fromhex("90c06f000000")
    sgx_type: bytes = tlv(0x0A, b"\x01")
    piid: bytes = b"I" * 16
    flags: list[bytes] = field(default_factory=lambda: [TRUE, tlv(0x01, b"\0"), TRUE])
    platform: bool = True
    svn_items: list[bytes] | None = None
    append: list[bytes] = field(default_factory=list)

    def der(self) -> bytes:
        cpusvn = bytes(self.svns) if self.cpusvn is None else self.cpusvn
        svns = self.svn_items or [integer(svn) for svn in self.svns]
        items = [
            octets(self.ppid),
            sgx_items("02", [*svns, integer(self.pcesvn), octets(cpusvn)]),
            octets(self.pceid),
            octets(self.fmspc),
            self.sgx_type,
        ]
        if self.platform:
            items += [octets(self.piid), sgx_items("07", self.flags)]
        return sgx_items("", items + self.append)


ROOT, CA, PCK, SIGNER = (
    "Intel SGX Root CA",
    "Intel SGX PCK Platform CA",
    "Intel SGX PCK Certificate",
    "Intel SGX TCB Signing",
)
ADVISORIES = {"OutOfDate": ["INTEL-SA-00001", "INTEL-SA-00002"], "SWHardeningNeeded": ["INTEL-SA-00003"]}
LABELS = {
    0: {"category": "BIOS", "type": "Early Microcode Update"},
    7: {"category": "OS/VMM", "type": "SEAMLDR ACM"},
}


def components(svns: list[int]) -> list[dict[str, Any]]:
    return [{"svn": svn, **LABELS.get(at, {})} for at, svn in enumerate(svns)]


def level(
    status: str, sgx: list[int], pcesvn: int, tdx: list[int] | None, date: str = "2025-05-14T00:00:00Z"
) -> dict[str, Any]:
    tcb: dict[str, Any] = {"sgxtcbcomponents": components(sgx), "pcesvn": pcesvn}
    if tdx is not None:
        tcb["tdxtcbcomponents"] = components(tdx)
    found: dict[str, Any] = {"tcb": tcb, "tcbDate": date, "tcbStatus": status}
    if status in ADVISORIES:
        found["advisoryIDs"] = ADVISORIES[status]
    return found


def isv_level(isvsvn: int, status: str, date: str = "2025-05-14T00:00:00Z") -> dict[str, Any]:
    found: dict[str, Any] = {"tcb": {"isvsvn": isvsvn}, "tcbDate": date, "tcbStatus": status}
    if status == "OutOfDate":
        found["advisoryIDs"] = ["INTEL-SA-00009"]
    return found


def stamp(moment: int) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def compact(document: Any) -> str:
    return json.dumps(document, separators=(",", ":"))


SVNS = [3, 3, 2, 2, 4, 1, 0, 5, 0, 200, 0, 0, 0, 0, 0, 0]
OLD_SVNS = [2, 3, 2, 2, 4, 1, 0, 3, 0, 200, 0, 0, 0, 0, 0, 0]
TDX_SVNS = [5, 0, 3, *[0] * 13]
OLD_TDX_SVNS = [3, 0, 1, *[0] * 13]


@dataclass
class Input:
    """What a verifier is given."""

    raw: bytes
    collateral: dict[str, str]
    root_pem: bytes
    at: float
    report_data: bytes | None
    accept: str = "up_to_date"
    allow: tuple[str, ...] = ()

    @property
    def collateral_text(self) -> str:
        return json.dumps(self.collateral)


class World:
    """A platform, its certificates, its collateral and one quote; all right until a test changes something."""

    def __init__(self, tee: str = "tdx", version: int = 4, body_type: int = 2) -> None:
        self.tee, self.version, self.body_type = tee, version, body_type
        tdx = tee == "tdx"
        self.at: float = AT
        self.report_data: bytes | None = REPORT_DATA
        self.accept = "up_to_date"
        self.allow: tuple[str, ...] = ()
        self.sgx = SgxParts()
        self.certs = {
            "root": Cert(ROOT, ROOT, "root", "root", True, 1),
            "ca": Cert(CA, ROOT, "ca", "root", True, 0),
            "signer": Cert(SIGNER, ROOT, "signer", "root", False),
            "leaf": Cert(PCK, CA, "leaf", "ca", False),
        }
        self.pck_chain = ["leaf", "ca", "root"]
        self.tcb_chain = ["signer", "root"]
        self.qe_chain: list[str] | None = None  # as tcb_chain
        self.crl_chain = ["ca", "root"]
        self.trusted = ["root"]
        self.root_crl = CrlParts(ROOT, "root")
        self.pck_crl = CrlParts(CA, "ca")
        self.tcb_info: dict[str, Any] = {
            "id": tee.upper(),
            "version": 3,
            "issueDate": stamp(AT - 5 * DAY),
            "nextUpdate": stamp(AT + 25 * DAY),
            "fmspc": "90C06F000000",
            "pceId": "0000",
            "tcbType": 0,
            "tcbEvaluationDataNumber": 19,
        }
        zero = {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "FF" * 8}
        if tdx:
            levels = [isv_level(5, "UpToDate"), isv_level(3, "OutOfDate")]
            self.tcb_info["tdxModule"] = dict(zero)
            self.tcb_info["tdxModuleIdentities"] = [
                {"id": "TDX_01", **zero, "tcbLevels": levels},
                {"id": "TDX_0A", **zero, "tcbLevels": deepcopy(levels)},
            ]
        self.tcb_info["tcbLevels"] = [
            level("UpToDate", SVNS, 13, TDX_SVNS if tdx else None),
            level("OutOfDate", OLD_SVNS, 11, OLD_TDX_SVNS if tdx else None, "2023-08-09T00:00:00Z"),
        ]
        self.qe_identity: dict[str, Any] = {
            "id": "TD_QE" if tdx else "QE",
            "version": 2,
            "issueDate": stamp(AT - 5 * DAY),
            "nextUpdate": stamp(AT + 25 * DAY),
            "tcbEvaluationDataNumber": 19,
            "miscselect": "00000000",
            "miscselectMask": "FFFFFFFF",
            "attributes": "11" + "00" * 15,
            "attributesMask": "FB" + "FF" * 7 + "00" * 8,
            "mrsigner": "AB" * 32,
            "isvprodid": 2,
            "tcbLevels": [isv_level(4, "UpToDate"), isv_level(2, "OutOfDate")],
        }
        self.tcb_text: str | None = None  # instead of the document above
        self.qe_text: str | None = None
        self.signed_by = {"tcb_info": "signer", "qe_identity": "signer", "qe_report": "leaf", "quote": "attestation"}
        self.signature_over: dict[str, bytes] = {}  # message that is signed instead
        self.vendor = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
        self.td: dict[str, bytes] = {
            "tee_tcb_svn": bytes([5, 1, 3] + [0] * 13),
            "mr_seam": b"\x5e" * 48,
            "mr_signer_seam": bytes(48),
            "seam_attributes": bytes(8),
            "td_attributes": (1 << 28).to_bytes(8, "little"),
            "xfam": bytes.fromhex("e702060000000000"),
            "mr_td": b"\x7d" * 48,
            "mr_config_id": bytes(48),
            "mr_owner": bytes(48),
            "mr_owner_config": bytes(48),
            "rtmrs": b"\x11" * 192,
            "report_data": REPORT_DATA,
            "tee_tcb_svn_2": bytes([5, 1, 3] + [0] * 13),
            "mr_service_td": bytes(48),
            "extended": bytes(237),
        }
        self.enclave = enclave_report(report_data=REPORT_DATA)
        self.qe: dict[str, Any] = {}
        self.auth_data = bytes(range(32))
        self.attestation_key = point("attestation")
        self.certification: tuple[int, bytes] | None = None  # type and data, instead of the chain
        self.pem_join = b""
        self.pem_end = b"\0"
        self.beside: dict[str, str] = {}  # members of the collateral that only others read
        self.raw: dict[str, Any] = {}  # finished members, by name, that replace what is made here

    # -- parts

    def pem(self, names: list[str], join: bytes = b"") -> bytes:
        blocks = []
        for which in names:
            body = base64.encodebytes(self.cert(which)).replace(b"\n", b"")
            lines = b"\n".join(body[at : at + 64] for at in range(0, len(body), 64))
            blocks.append(b"-----BEGIN CERTIFICATE-----\n" + lines + b"\n-----END CERTIFICATE-----\n")
        return join.join(blocks)

    def cert(self, which: str) -> bytes:
        found = self.certs[which]
        if found.subject == PCK and found.sgx is None and SGX not in found.drop:
            found.sgx = self.sgx.der()
        return found.der()

    def quote(self) -> bytes:
        header = (
            self.version.to_bytes(2, "little")
            + (2).to_bytes(2, "little")
            + (0x81 if self.tee == "tdx" else 0).to_bytes(4, "little")
            + bytes(4)
            + self.vendor
            + bytes(20)
        )
        body = self.enclave
        if self.tee == "tdx":
            fields = list(self.td.values())
            body = b"".join(fields[: {2: 12, 3: 14, 4: 15}[self.body_type]])
        if self.version == 5:
            header += self.body_type.to_bytes(2, "little") + len(body).to_bytes(4, "little")
        signed_part = header + body
        bound = sha256(self.attestation_key + self.auth_data).digest() + bytes(32)
        report = enclave_report(**{"report_data": bound, "isv_svn": 4, "isv_prod_id": 2, **self.qe})
        kind, data = self.certification or (5, self.pem(self.pck_chain, self.pem_join) + self.pem_end)
        inner = (
            report
            + self._sign("qe_report", report)
            + len(self.auth_data).to_bytes(2, "little")
            + self.auth_data
            + kind.to_bytes(2, "little")
            + len(data).to_bytes(4, "little")
            + data
        )
        if self.version > 3:
            inner = (6).to_bytes(2, "little") + len(inner).to_bytes(4, "little") + inner
        signature_data = self._sign("quote", signed_part) + self.attestation_key + inner
        return signed_part + len(signature_data).to_bytes(4, "little") + signature_data

    def _sign(self, what: str, message: bytes) -> bytes:
        if what in self.raw:
            return bytes(self.raw[what])
        return sign_raw(self.signed_by[what], self.signature_over.get(what, message))

    def collateral(self) -> dict[str, str]:
        tcb_info = self.tcb_text or compact(self.tcb_info)
        qe_identity = self.qe_text or compact(self.qe_identity)
        members = {
            "tcb_info": tcb_info,
            "tcb_info_signature": self._sign("tcb_info", tcb_info.encode()).hex(),
            "tcb_info_issuer_chain": self.pem(self.tcb_chain).decode(),
            "qe_identity": qe_identity,
            "qe_identity_signature": self._sign("qe_identity", qe_identity.encode()).hex(),
            "qe_identity_issuer_chain": self.pem(self.qe_chain or self.tcb_chain).decode(),
            "pck_crl": self.pck_crl.der().hex(),
            "pck_crl_issuer_chain": self.pem(self.crl_chain).decode(),
            "root_ca_crl": self.root_crl.der().hex(),
        }
        return (
            members
            | self.beside
            | {key: value for key, value in self.raw.items() if key in members and isinstance(value, str)}
        )

    def input(self) -> Input:
        return Input(
            self.quote(),
            self.collateral(),
            self.pem(self.trusted),
            self.at,
            self.report_data,
            self.accept,
            self.allow,
        )


def enclave_report(
    *,
    attributes: bytes = bytes.fromhex("1500000000000000e700000000000000"),
    misc_select: int = 0,
    mr_signer: bytes = b"\xab" * 32,
    isv_prod_id: int = 2,
    isv_svn: int = 4,
    report_data: bytes = bytes(64),
) -> bytes:
    """An SGX report body, 384 bytes."""
    layout = "<16sI12s16s16s32s32s32s32s64sHHH42s16s64s"
    empty, family = bytes(64), bytes(16)
    fields = (bytes(16), misc_select, empty, empty, attributes, b"\xee" * 32, empty, mr_signer, empty, empty)
    return struct.pack(layout, *fields, isv_prod_id, isv_svn, 0, empty, family, report_data)
