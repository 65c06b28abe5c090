"""What Intel certifies about a platform: the SGX extension of its PCK certificate, 1.2.840.113741.1.13.1.

Decides how the extension is read: Intel's layout, in Intel's order, each item once and nothing else. Who must have
signed the certificate around it is decided in `chains`.

Nearly every extension has the same layout to the byte, since most SVNs are small. So it is first laid over a drawing of
that layout, in which the values are blank; whatever does not fit is read item by item, which gives the same facts.

Source: Intel SGX PCK Certificate and CRL Profile Specification, section 1.3.5 (layout, sizes, meaning of the items).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple, Self, final

from attestation import der
from attestation.certificates import Certificate
from attestation.checks import Unmet
from attestation.pki import PLATFORM_CA_NAME

_ID: Final = 16  # bytes of PPID, PIID and CPUSVN
_FMSPC: Final = 6
_PCEID: Final = 2
_COMPONENTS: Final = 16
_MAX_SVN: Final = 0xFF
_MAX_PCE_SVN: Final = 0xFFFF
_SMALL: Final = 0x80  # the first number that DER writes with more than one octet
_SGX_TYPES: Final = 3
_BOOLEANS: Final = b"\x00\xff"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PckFacts:
    """What Intel certifies about a platform in the SGX extension of its PCK certificate (1.2.840.113741.1.13.1)."""

    ppid: bytes  # 16: the platform, stable across certificates
    piid: bytes | None  # 16: this registration of the platform; Platform CA only
    fmspc: bytes  # 6: family, model, stepping, platform, custom SKU
    pceid: bytes  # 2
    cpu_svn: bytes  # 16 component SVNs
    pce_svn: int
    sgx_type: int  # 0 standard, 1 scalable, 2 scalable with integrity
    dynamic_platform: bool | None  # the next three: Platform CA only
    cached_keys: bool | None
    smt_enabled: bool | None
    ca: str  # "platform" or "processor": which CA issued it, as the PCS names them

    @classmethod
    def of(cls, certificate: Certificate, ca_name: str) -> Self:
        """Reads the extension. Raises Unmet when it is not exactly Intel's layout, in Intel's order."""
        raw = certificate.sgx_extension
        if raw is None:
            raise Unmet("the PCK certificate has no SGX extension")
        platform = ca_name == PLATFORM_CA_NAME
        found = _DRAWINGS[platform].read(raw) or _read(raw, platform)
        if found.svns != found.cpu_svn:
            raise Unmet(f"CPUSVN {found.cpu_svn.hex()} is not the 16 component SVNs {found.svns.hex()}")
        if found.sgx_type >= _SGX_TYPES:
            raise Unmet(f"SGX type {found.sgx_type} in the SGX extension, know 0, 1 and 2")
        dynamic, cached, smt = map(bool, found.flags) if platform else (None, None, None)
        return cls(
            ppid=found.ppid,
            piid=found.piid,
            fmspc=found.fmspc,
            pceid=found.pceid,
            cpu_svn=found.svns,
            pce_svn=found.pce_svn,
            sgx_type=found.sgx_type,
            dynamic_platform=dynamic,
            cached_keys=cached,
            smt_enabled=smt,
            ca="platform" if platform else "processor",
        )


@final
class _Values(NamedTuple):
    """The values of one extension."""

    ppid: bytes
    svns: bytes  # one octet each
    pce_svn: int
    cpu_svn: bytes
    pceid: bytes
    fmspc: bytes
    sgx_type: int
    piid: bytes | None
    flags: bytes  # 00 or FF each: dynamic platform, cached keys, SMT; empty under the Processor CA


def _oids(prefix: str, count: int) -> tuple[bytes, ...]:
    """The OIDs prefix.1, prefix.2 … as whole DER records; 1.2.840.113741.1.13.1 is 2a864886f84d010d01."""
    content = bytes.fromhex("2a864886f84d010d01" + prefix)
    return tuple(bytes((der.OID, len(content) + 1)) + content + bytes((last,)) for last in range(1, count + 1))


_SGX_OIDS: Final = _oids("", 7)  # PPID, TCB, PCEID, FMSPC, SGX type, PIID, configuration
_TCB_OIDS: Final = _oids("02", 18)  # 16 component SVNs, PCESVN, CPUSVN
_CONFIGURATION_OIDS: Final = _oids("07", 3)


# -- item by item


def _read(raw: bytes, platform: bool) -> _Values:
    """Raises Unmet when the layout is not Intel's."""
    items = _items(raw, der.whole(raw, der.SEQUENCE), _SGX_OIDS[: 7 if platform else 5])
    svns, pce_svn, cpu_svn = _tcb(raw, items[1])
    return _Values(
        ppid=_octets(raw, items[0], _ID),
        svns=svns,
        pce_svn=pce_svn,
        cpu_svn=cpu_svn,
        pceid=_octets(raw, items[2], _PCEID),
        fmspc=_octets(raw, items[3], _FMSPC),
        sgx_type=der.integer(raw, _value_of(raw, items[4], der.ENUMERATED)),
        piid=_octets(raw, items[5], _ID) if platform else None,
        flags=_configuration(raw, items[6]) if platform else b"",
    )


def _items(raw: bytes, span: der.Range, oids: tuple[bytes, ...]) -> list[der.Range]:
    """Where the values of SEQUENCE { oids[0], value }, SEQUENCE { oids[1], value } … are: these and no others."""
    at, end = span
    values: list[der.Range] = []
    for oid in oids:
        start, at = der.record(raw, at, end, der.SEQUENCE)
        if not raw.startswith(oid, start, at):
            raise Unmet(f"item {len(values) + 1} in the SGX extension is not the one that belongs there")
        values.append((start + len(oid), at))
    if at != end:
        raise Unmet(f"more than {len(oids)} items in the SGX extension or in a part of it")
    return values


def _value_of(raw: bytes, item: der.Range, tag: int) -> der.Range:
    """The content of the one record that fills an item."""
    found = der.record(raw, item[0], item[1], tag)
    if found[1] != item[1]:
        raise Unmet("an item of the SGX extension holds more than one value")
    return found


def _tcb(raw: bytes, item: der.Range) -> tuple[bytes, int, bytes]:
    """16 component SVNs, PCESVN, CPUSVN."""
    items = _items(raw, _value_of(raw, item, der.SEQUENCE), _TCB_OIDS)
    svns = [der.integer(raw, _value_of(raw, svn, der.INTEGER)) for svn in items[:17]]
    if max(svns[:_COMPONENTS]) > _MAX_SVN or svns[16] > _MAX_PCE_SVN:
        raise Unmet("an SVN in the SGX extension is too large")
    return bytes(svns[:_COMPONENTS]), svns[16], _octets(raw, items[17], _ID)


def _configuration(raw: bytes, item: der.Range) -> bytes:
    items = _items(raw, _value_of(raw, item, der.SEQUENCE), _CONFIGURATION_OIDS)
    return bytes(_BOOLEANS[der.boolean(raw, _value_of(raw, flag, der.BOOLEAN))] for flag in items)


def _octets(raw: bytes, item: der.Range, size: int) -> bytes:
    start, stop = _value_of(raw, item, der.OCTET_STRING)
    if stop - start != size:
        raise Unmet(f"an octet string of {stop - start} bytes in the SGX extension, not {size}")
    return raw[start:stop]


# -- at one glance


@final
class _Drawing:
    """The layout in which every number takes one octet, with its values blank."""

    __slots__ = (
        "_blank",
        "_flags",
        "_inked",
        "_pce_svn",
        "_piid",
        "_platform",
        "_sgx_type",
        "_size",
        "_svns",
        "_texts",
    )

    def __init__(self, platform: bool) -> None:
        blank, full = _draw(platform, b"\x00", b"\x00"), _draw(platform, b"\x7f", b"\xff")
        self._size = len(blank)
        self._blank = int.from_bytes(blank, "big")
        self._inked = ~(self._blank ^ int.from_bytes(full, "big"))
        """The bits that are the same, whatever the values are."""

        def value(oid: bytes) -> int:
            return blank.index(oid) + len(oid) + 2  # behind the value's tag and its length of one octet

        def span(oid: bytes, size: int) -> slice:
            return slice(value(oid), value(oid) + size)

        def each(oids: tuple[bytes, ...]) -> slice:
            first, second, last = value(oids[0]), value(oids[1]), value(oids[-1])
            return slice(first, last + 1, second - first)

        ppid, _, pceid, fmspc, sgx_type, piid, _ = _SGX_OIDS
        self._texts = (span(ppid, _ID), span(_TCB_OIDS[17], _ID), span(pceid, _PCEID), span(fmspc, _FMSPC))
        self._svns, self._pce_svn = each(_TCB_OIDS[:_COMPONENTS]), value(_TCB_OIDS[16])
        self._sgx_type = value(sgx_type)
        self._piid = span(piid, _ID) if platform else None
        self._flags = each(_CONFIGURATION_OIDS) if platform else slice(0)

    def read(self, raw: bytes) -> _Values | None:
        """None where the drawing does not fit: then it must be read item by item."""
        if len(raw) != self._size or int.from_bytes(raw, "big") & self._inked != self._blank:
            return None
        flags = raw[self._flags]
        if flags.strip(_BOOLEANS):
            return None
        ppid, cpu_svn, pceid, fmspc = self._texts
        return _Values(
            raw[ppid],
            raw[self._svns],
            raw[self._pce_svn],
            raw[cpu_svn],
            raw[pceid],
            raw[fmspc],
            raw[self._sgx_type],
            None if self._piid is None else raw[self._piid],
            flags,
        )


def _draw(platform: bool, number: bytes, octet: bytes) -> bytes:
    """An extension in which each number is `number` and each other octet of a value `octet`."""

    def record(tag: int, content: bytes) -> bytes:
        size = len(content)
        length = bytes((size,)) if size < _SMALL else size.to_bytes(1 if size <= _MAX_SVN else 2, "big")
        return bytes((tag, *((0x80 + len(length),) if size >= _SMALL else ()))) + length + content

    def items(oids: tuple[bytes, ...], values: list[bytes]) -> bytes:
        pairs = zip(oids, values, strict=True)
        return record(der.SEQUENCE, b"".join(record(der.SEQUENCE, oid + value) for oid, value in pairs))

    def octets(size: int) -> bytes:
        return record(der.OCTET_STRING, octet * size)

    tcb = items(_TCB_OIDS, [record(der.INTEGER, number)] * 17 + [octets(_ID)])
    values = [octets(_ID), tcb, octets(_PCEID), octets(_FMSPC), record(der.ENUMERATED, number)]
    if platform:
        values += [octets(_ID), items(_CONFIGURATION_OIDS, [record(der.BOOLEAN, octet)] * 3)]
    return items(_SGX_OIDS[: len(values)], values)


_DRAWINGS: Final = {platform: _Drawing(platform) for platform in (True, False)}
