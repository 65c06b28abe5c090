"""The SGX extension of a PCK certificate, as DER.

Decides the encoding only. Source: Intel SGX PCK Certificate and CRL Profile Specification, section 1.3.5
(OID 1.2.840.113741.1.13.1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cryptography import x509

OID: Final = x509.ObjectIdentifier("1.2.840.113741.1.13.1")
_OID_BYTES: Final = bytes.fromhex("2a864886f84d010d01")
_BOOLEAN, _INTEGER, _OCTETS, _OBJECT, _ENUMERATED, _SEQUENCE = 0x01, 0x02, 0x04, 0x06, 0x0A, 0x30


@dataclass(frozen=True, slots=True, kw_only=True)
class SgxExtension:
    """The facts that Intel certifies about a platform. Suffixes are those below the extension's OID."""

    ppid: bytes
    """.1, 16 bytes: names the platform in all its certificates."""
    components: bytes
    """.2.1 to .2.16 and .2.18: sixteen SVNs."""
    pcesvn: int
    """.2.17"""
    pceid: bytes
    """.3, 2 bytes"""
    fmspc: bytes
    """.4, 6 bytes"""
    sgx_type: int
    """.5: 0 standard, 1 scalable, 2 scalable with integrity"""
    instance_id: bytes | None
    """.6, 16 bytes: certificates of the Platform CA only"""
    configuration: tuple[bool, bool, bool] | None
    """.7, of the Platform CA only: dynamic platform, cached keys, SMT"""

    def encode(self) -> x509.UnrecognizedExtension:
        """The extension, as certificates carry it: five items, or seven under the Platform CA."""
        components = [_item((2, i), _tlv(_INTEGER, _unsigned(svn))) for i, svn in enumerate(self.components, start=1)]
        tcb = b"".join(components)
        tcb += _item((2, 17), _tlv(_INTEGER, _unsigned(self.pcesvn))) + _item((2, 18), _tlv(_OCTETS, self.components))
        items = _item((1,), _tlv(_OCTETS, self.ppid)) + _item((2,), _tlv(_SEQUENCE, tcb))
        items += _item((3,), _tlv(_OCTETS, self.pceid)) + _item((4,), _tlv(_OCTETS, self.fmspc))
        items += _item((5,), _tlv(_ENUMERATED, _unsigned(self.sgx_type)))
        if self.instance_id is not None:
            items += _item((6,), _tlv(_OCTETS, self.instance_id))
        if self.configuration is not None:
            flags = [
                _item((7, i), _tlv(_BOOLEAN, b"\xff" if flag else b"\0"))
                for i, flag in enumerate(self.configuration, start=1)
            ]
            items += _item((7,), _tlv(_SEQUENCE, b"".join(flags)))
        return x509.UnrecognizedExtension(OID, _tlv(_SEQUENCE, items))


def _item(suffix: tuple[int, ...], value: bytes) -> bytes:
    return _tlv(_SEQUENCE, _tlv(_OBJECT, _OID_BYTES + bytes(suffix)) + value)


def _unsigned(value: int) -> bytes:
    """A DER INTEGER is signed: values from 128 on need a leading zero."""
    return value.to_bytes(value.bit_length() // 8 + 1, "big")


def _tlv(tag: int, value: bytes) -> bytes:
    size = len(value)
    if size < 0x80:
        return bytes((tag, size)) + value
    width = (size.bit_length() + 7) // 8
    return bytes((tag, 0x80 | width)) + size.to_bytes(width, "big") + value


def fmspc_of(leaf: x509.Certificate) -> bytes:
    """The FMSPC of a PCK certificate that `encode` wrote. Raises ValueError when there is none."""
    marker = _tlv(_OBJECT, _OID_BYTES + bytes((4,))) + bytes((_OCTETS, 6))
    for extension in leaf.extensions:
        if extension.oid == OID and isinstance(extension.value, x509.UnrecognizedExtension):
            _, found, rest = extension.value.value.partition(marker)
            if found and len(rest) >= 6:
                return rest[:6]
    raise ValueError("the certificate names no FMSPC")
