"""Every field of a quote, with offset, length, value and meaning; and what differs between two quotes.

Decides how a quote is explained to a person. Nothing here is verified: whatever it shows is what the sender claims.

Sources: as in `quote`; ATTRIBUTES and XFAM bits from Intel's TDX module (`td_param_attributes`) and the SDM (XCR0,
IA32_XSS).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from attestation.certificates import Certificate
from attestation.checks import Unmet
from attestation.errors import AttestationError
from attestation.pck import PckFacts
from attestation.pem import pem_blocks, pem_decode
from attestation.quote import BODY_SIZES, Quote, Tee

_ZERO_NOTE: Final = "all zero"
_TD_ATTRIBUTES: Final = {
    0: "DEBUG: the host can read the TD's memory",
    6: "PMT_PROF",
    16: "ICSSD",
    17: "SERVTD_EXT",
    27: "LASS",
    28: "SEPT_VE_DISABLE",
    29: "MIGRATABLE: a migration TD can move this TD",
    30: "PKS",
    31: "KL",
    62: "TPA",
    63: "PERFMON",
}
_SGX_FLAGS: Final = {0: "INIT", 1: "DEBUG", 2: "MODE64", 4: "PROVISION_KEY", 5: "EINITTOKEN_KEY", 7: "KSS"}
_XFAM: Final = {
    0: "x87",
    1: "SSE",
    2: "AVX",
    5: "AVX-512 opmask",
    6: "AVX-512 ZMM_Hi256",
    7: "AVX-512 Hi16_ZMM",
    8: "PT",
    9: "PKRU",
    11: "CET user",
    12: "CET supervisor",
    14: "UINTR",
    15: "LBR",
    17: "AMX tile configuration",
    18: "AMX tile data",
}
_CERTIFICATION: Final = {
    1: "PPID in clear",
    2: "PPID encrypted, RSA-2048",
    3: "PPID encrypted, RSA-3072",
    4: "PCK leaf certificate",
    5: "PCK certificate chain, PEM",
    6: "QE report and what certifies the QE",
}
_BODIES: Final = {1: "SGX enclave report", 2: "TD report 1.0", 3: "TD report 1.5", 4: "TD report 1.5 extended"}
_VENDORS: Final = {"939a7233f79c4ca9940a0db3957f0607": "Intel"}


class Field(NamedTuple):
    """One field where it stands. `value` is hex, in the order of the bytes."""

    section: str
    name: str
    offset: int
    length: int
    value: str
    meaning: str


class Row(NamedTuple):
    """A line of a layout table: name, length in bytes, how its bytes read."""

    name: str
    length: int
    meaning: Callable[[bytes], str]


def fields(raw: bytes) -> tuple[Field, ...]:
    """Every field of the quote, front to back. Raises MalformedEvidence as `Quote.parse` does."""
    quote = Quote.parse(raw)
    return tuple(_walk(raw, quote))


def certificates(quote: Quote) -> tuple[dict[str, Any], ...]:
    """What the certificates in the quote say, in their order; a damaged chain gives one entry, `problem`."""
    if quote.certification_type not in (4, 5):
        return ()
    try:
        parsed = [Certificate.parse(pem_decode(body)) for body in pem_blocks(quote.certification_data, in_quote=True)]
    except Unmet as unmet:
        return ({"problem": unmet.detail},)
    issuer = parsed[1].common_name if len(parsed) > 1 else ""
    return tuple(_certificate(certificate, issuer if index == 0 else "") for index, certificate in enumerate(parsed))


class Difference(NamedTuple):
    """A field that is not the same in two quotes; None where one of them has no such field."""

    name: str
    first: Field | None
    second: Field | None


def differences(first: bytes, second: bytes) -> tuple[Difference, ...]:
    """The fields that differ, in the order of the first quote. Raises MalformedEvidence."""
    one, two = ({f"{field.section}.{field.name}": field for field in fields(raw)} for raw in (first, second))
    names = [*one, *(name for name in two if name not in one)]
    return tuple(
        Difference(name, one.get(name), two.get(name))
        for name in names
        if (one[name].value if name in one else None) != (two[name].value if name in two else None)
    )


def _walk(raw: bytes, quote: Quote) -> Iterator[Field]:
    at = 0
    body_rows = _BODY_ROWS[quote.body_type]
    sections: list[tuple[str, Iterable[Row]]] = [("header", _HEADER)]
    if quote.version == 5:
        sections.append(("body descriptor", _DESCRIPTOR))
    sections += [("body", body_rows), ("signature data", _SIGNATURE)]
    if quote.version > 3:
        sections.append(("signature data", _OUTER))
    sections += [("QE report", _ENCLAVE), ("certification", _certification_rows(quote))]
    for section, rows in sections:
        for row in rows:
            value = raw[at : at + row.length]
            if not row.name.startswith("reserved") or any(value):
                yield Field(section, row.name, at, row.length, value.hex(), row.meaning(value))
            at += row.length
    if len(raw) > at:
        yield Field("padding", "zeros", at, len(raw) - at, "", "after the quote; dropped, and part of nothing")


def _certification_rows(quote: Quote) -> list[Row]:
    auth, data = len(quote.auth_data), len(quote.certification_data)
    kind = quote.certification_type
    return [
        Row("qe_report_signature", 64, lambda _: "r ‖ s by the PCK key over the QE report"),
        Row("auth_data_size", 2, _number),
        Row("auth_data", auth, lambda _: "hashed by the QE together with the attestation key"),
        Row("certification_type", 2, lambda _: f"{kind}: {_CERTIFICATION[kind]}"),
        Row("certification_size", 4, _number),
        Row("certification_data", data, lambda _: _CERTIFICATION[kind]),
    ]


def _certificate(certificate: Certificate, pck_issuer: str) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "subject": certificate.common_name,
        "serial": f"{certificate.serial:x}",
        "not_before": _moment(certificate.not_before),
        "not_after": _moment(certificate.not_after),
        "public_key": certificate.point.hex(),
        "is_ca": certificate.is_ca,
    }
    if certificate.sgx_extension is not None:
        try:
            facts["platform"] = _platform(PckFacts.of(certificate, pck_issuer))
        except (Unmet, AttestationError) as error:
            facts["problem"] = str(error)
    return facts


def _platform(facts: PckFacts) -> dict[str, Any]:
    return {
        "ppid": facts.ppid.hex(),
        "piid": None if facts.piid is None else facts.piid.hex(),
        "fmspc": facts.fmspc.hex(),
        "pceid": facts.pceid.hex(),
        "cpu_svn": facts.cpu_svn.hex(),
        "pce_svn": facts.pce_svn,
        "sgx_type": facts.sgx_type,
        "dynamic_platform": facts.dynamic_platform,
        "cached_keys": facts.cached_keys,
        "smt_enabled": facts.smt_enabled,
        "ca": facts.ca,
    }


def _moment(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


# How bytes read.


def _number(value: bytes) -> str:
    return str(int.from_bytes(value, "little"))


def _bits(names: dict[int, str]) -> Callable[[bytes], str]:
    def read(value: bytes) -> str:
        number = int.from_bytes(value, "little")
        found = [names.get(bit, f"reserved bit {bit}") for bit in range(64) if number >> bit & 1]
        return ", ".join(found) or "no bit set"

    return read


def _says(text: str, *, zero: str = _ZERO_NOTE) -> Callable[[bytes], str]:
    return lambda value: text if any(value) else f"{text} ({zero})"


def _nothing(_: bytes) -> str:
    return "reserved, should be zero"


def _svn(value: bytes) -> str:
    return f"TDX module version {value[1]}, SVN {value[0]}; late microcode {value[2]}"


def _report_data(value: bytes) -> str:
    text = value.rstrip(b"\0")
    if not text:
        return "chosen by the guest (all zero: bound to nothing)"
    printable = text.isascii() and text.decode("ascii").isprintable()
    return f"chosen by the guest: {text.decode('ascii')!r}" if printable else "chosen by the guest; see Binding"


def _tee(value: bytes) -> str:
    return {0: "SGX", 0x81: "TDX"}.get(int.from_bytes(value, "little"), "unknown")


_HEADER: Final = (
    Row("version", 2, lambda value: f"quote format {_number(value)}"),
    Row("key_type", 2, lambda value: "ECDSA P-256" if _number(value) == "2" else "unknown"),
    Row("tee", 4, _tee),
    Row("qe_svn", 2, lambda value: f"{_number(value)} (version 3 only)"),
    Row("pce_svn", 2, lambda value: f"{_number(value)} (version 3 only)"),
    Row("qe_vendor_id", 16, lambda value: _VENDORS.get(value.hex(), "unknown vendor")),
    Row("user_data", 20, _says("16-byte QE id of the platform, then zeros")),
)
_DESCRIPTOR: Final = (
    Row("body_type", 2, lambda value: _BODIES.get(int(_number(value)), "unknown")),
    Row("body_size", 4, lambda value: f"{_number(value)} bytes"),
)
_TD_10: Final = (
    Row("tee_tcb_svn", 16, _svn),
    Row("mr_seam", 48, _says("SHA-384 of the TDX module")),
    Row("mr_signer_seam", 48, _says("signer of the TDX module", zero="all zero: Intel")),
    Row("seam_attributes", 8, _says("attributes of the TDX module")),
    Row("td_attributes", 8, _bits(_TD_ATTRIBUTES)),
    Row("xfam", 8, _bits(_XFAM)),
    Row("mr_td", 48, _says("SHA-384 over the TD's initial memory: the firmware")),
    Row("mr_config_id", 48, _says("chosen by the host at launch; init data where that is used")),
    Row("mr_owner", 48, _says("chosen by the host at launch")),
    Row("mr_owner_config", 48, _says("chosen by the host at launch")),
    Row("rtmr0", 48, _says("firmware configuration, ACPI, boot variables")),
    Row("rtmr1", 48, _says("boot loader and kernel")),
    Row("rtmr2", 48, _says("kernel command line, initrd, operating system")),
    Row("rtmr3", 48, _says("what was extended at run time; cloister's launches", zero="all zero: never extended")),
    Row("report_data", 64, _report_data),
)
_TD_15: Final = (
    Row("tee_tcb_svn_2", 16, _svn),
    Row("mr_service_td", 48, _says("hash over the bound service TDs", zero="all zero: none is bound")),
)
_TD_15EX: Final = (
    Row("vm_id", 1, lambda value: "the L1 TD" if value == b"\0" else f"nested TD {value[0]}"),
    Row("td_id", 32, _says("id of the TD")),
    Row("device_info_hash", 48, _says("hash over the bound devices")),
    Row("initial_service_td_hash", 48, _says("service TDs at launch")),
    Row("initial_service_td_attributes", 8, _says("their attributes at launch")),
    Row("initial_cpu_svn", 16, _says("CPUSVN at launch")),
    Row("initial_tee_tcb_svn", 16, _svn),
    Row("initial_fmspc", 12, _says("platform family at launch")),
    Row("service_td_hash", 48, _says("service TDs now")),
    Row("service_td_attributes", 8, _says("their attributes now")),
)
_ENCLAVE: Final = (
    Row("cpu_svn", 16, _says("raw CPUSVN")),
    Row("misc_select", 4, _says("MISCSELECT")),
    Row("reserved", 12, _nothing),
    Row("isv_ext_prod_id", 16, _says("extended product id")),
    Row("attributes_flags", 8, _bits(_SGX_FLAGS)),
    Row("attributes_xfrm", 8, _bits(_XFAM)),
    Row("mr_enclave", 32, _says("SHA-256 over the enclave's initial memory")),
    Row("reserved_2", 32, _nothing),
    Row("mr_signer", 32, _says("SHA-256 of the enclave signer's key")),
    Row("reserved_3", 32, _nothing),
    Row("config_id", 64, _says("chosen at launch")),
    Row("isv_prod_id", 2, _number),
    Row("isv_svn", 2, _number),
    Row("config_svn", 2, _number),
    Row("reserved_4", 42, _nothing),
    Row("isv_family_id", 16, _says("product family id")),
    Row("report_data", 64, _report_data),
)
_SIGNATURE: Final = (
    Row("signature_size", 4, _number),
    Row("signature", 64, lambda _: "r ‖ s by the attestation key over everything before the size"),
    Row("attestation_key", 64, lambda _: "x ‖ y on P-256"),
)
_OUTER: Final = (
    Row("outer_type", 2, lambda value: _CERTIFICATION.get(int(_number(value)), "unknown")),
    Row("outer_size", 4, _number),
)
_BODY_ROWS: Final[dict[int, tuple[Row, ...]]] = {
    1: _ENCLAVE,
    2: _TD_10,
    3: _TD_10 + _TD_15,
    4: _TD_10 + _TD_15 + _TD_15EX,
}
assert all(sum(row.length for row in rows) == BODY_SIZES[kind] for kind, rows in _BODY_ROWS.items())


def report(quote: Quote) -> dict[str, str | int]:
    """The body's fields by name: bytes in hex, integers as they are; registers as rtmr0 to rtmr3."""
    found: dict[str, str | int] = {}
    for name, value in quote.body._asdict().items():
        if isinstance(value, bytes):
            found[name] = value.hex()
        elif isinstance(value, int):
            found[name] = value
        elif name == "rtmrs":
            found |= {f"rtmr{index}": register.hex() for index, register in enumerate(value)}
        elif value is not None:
            found |= {part: item.hex() if isinstance(item, bytes) else item for part, item in value._asdict().items()}
    return found


def title(quote: Quote) -> str:
    """ "TDX v4, TD report 1.0"."""
    return f"{'TDX' if quote.tee is Tee.TDX else 'SGX'} v{quote.version}, {_BODIES[quote.body_type]}"
