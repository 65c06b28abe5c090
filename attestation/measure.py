"""A firmware image → the MRTD of a trust domain started from it; an event log → the RTMRs it leads to.

Decides which sections an image asks the host to load, whether that request is sound, and what the TDX module will have
hashed after it. It does not say whether the firmware is any good, nor what RTMR0 will be: the host feeds that register
tables of its own making, so only a recorded event log can tell (`registers`).

The walk: the last 48 bytes of the file hold the footer GUID of a table of (data, u16 length, GUID) entries that is read
backwards; one entry says how far before the end of the file the TDVF descriptor lies; the descriptor lists sections of
32 bytes. td-shim images have no table, but the descriptor's offset from the start of the file in a u32, 32 bytes before
the end. Every byte string is answered with a value or MalformedEvidence, `image.*`; work is bounded by `MAX_IMAGE` and
`MAX_MEMORY`.

Sources: Intel "TDX Virtual Firmware Design Guide", chapter 11 (metadata); Intel TDX Module ABI, TDH.MEM.PAGE.ADD and
TDH.MR.EXTEND; edk2 `OvmfPkg/ResetVector/X64/OvmfSevMetadata.asm` and `IntelTdxMetadata.asm`.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from itertools import pairwise
from typing import Final, final

from attestation.binary import Cursor
from attestation.errors import Code, MalformedEvidence
from attestation.eventlog import EventLog

MAX_IMAGE: Final = 64 << 20
"""Bytes. Firmware has 2 to 16 MiB; td-shim images with a payload inside stay well below this."""
MAX_MEMORY: Final = 256 << 20
"""Bytes of memory that all sections together may ask for; it bounds the hashing."""
MAX_SECTIONS: Final = 64

PAGE: Final = 4096
_CHUNK: Final = 256  # bytes that one TDH.MR.EXTEND measures
_FOOTER: Final = bytes.fromhex("de82b596b21ff745baeaa366c55a082d")  # 96b582de-1fb2-45f7-baea-a366c55a082d
_TDVF_ENTRY: Final = bytes.fromhex("35657ae44a989847865e4685a7bf8ec2")  # e47a6535-984a-4798-865e-4685a7bf8ec2
_AFTER_FOOTER: Final = 32  # bytes between the footer GUID and the end of the file: the reset vector
_ENTRY_TAIL: Final = 18  # u16 length and GUID
_SECTION: Final = struct.Struct("<IIQQII")  # 32 bytes
_ADDRESS_SPACE: Final = 1 << 52


class Variant(StrEnum):
    """The order in which the host's VMM adds and measures pages. One firmware, two MRTDs."""

    SINGLE_PASS = "single-pass"
    """Each page is added, then measured: Linux KVM since 6.16, QEMU 9 and later, Google."""
    TWO_PASS = "two-pass"
    """All pages of a section are added, then all are measured: Intel's QEMU 8 fork."""


class SectionType(IntEnum):
    """What a section is for (TDVF Design Guide, table 11-3; 7 and 8 are td-shim's)."""

    BFV = 0
    CFV = 1
    TD_HOB = 2
    TEMP_MEM = 3
    PERM_MEM = 4
    PAYLOAD = 5
    PAYLOAD_PARAM = 6
    TD_INFO = 7
    TD_PARAMS = 8


_EXTEND: Final = 1
_AUG: Final = 2


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One row of the TDVF metadata. Offsets in bytes:

    0   4  data_offset    in the file
    4   4  raw_size       bytes in the file, 0 for memory alone
    8   8  address        guest physical, 4 KiB aligned
    16  8  memory_size    bytes, a multiple of 4 KiB, at least raw_size; the rest is zero
    24  4  type
    28  4  attributes     bit 0 MR.EXTEND (contents are measured), bit 1 PAGE.AUG (added later, not measured at all)
    """

    type: SectionType
    data_offset: int
    raw_size: int
    address: int
    memory_size: int
    attributes: int

    @property
    def measured(self) -> bool:
        """Do the contents enter MRTD?"""
        return bool(self.attributes & _EXTEND)

    @property
    def added_later(self) -> bool:
        """Is the memory left out of the initial image?"""
        return bool(self.attributes & _AUG)


def sections(image: bytes) -> tuple[Section, ...]:
    """The sections of a TDVF or td-shim image, in metadata order.

    Raises MalformedEvidence:
        image.too_large             more than MAX_IMAGE bytes, or more than MAX_MEMORY of memory
        image.not_tdvf              neither a table with a TDVF entry nor a td-shim offset
        image.table_malformed       a length in the table leads outside of it
        image.descriptor_malformed  signature, version, length or count of the descriptor is wrong
        image.section_invalid       a section's type, attributes, alignment or extent is wrong
        image.sections_overlap      two sections share memory or bytes of the file
        image.sections_incomplete   not exactly one TD_HOB, no BFV, or firmware volumes that do not fill the file
    """
    if len(image) > MAX_IMAGE:
        raise MalformedEvidence(Code.IMAGE_TOO_LARGE, f"{len(image)} bytes, at most {MAX_IMAGE}")
    from_table = _table_entry(image)
    found = _descriptor(image, from_table if from_table is not None else _shim_offset(image))
    _expect_disjoint(found)
    _expect_complete(found, len(image), whole_file=from_table is not None)
    return found


def mrtd(image: bytes, variant: str = Variant.SINGLE_PASS) -> bytes:
    """The 48-byte MRTD of a trust domain started from `image`.

    MRTD is one SHA-384 over 128-byte blocks: "MEM.PAGE.ADD" and the address for each page, "MR.EXTEND" and the address
    for each 256 bytes that are measured, followed by those bytes. Raises what `sections` raises, and ValueError for an
    unknown variant.
    """
    order = _OPERATIONS[Variant(variant)]
    digest = hashlib.sha384()
    for section in sections(image):
        if not section.added_later:
            for block in order(image, section):
                digest.update(block)
    return digest.digest()


def configuration_digest(image: bytes) -> bytes | None:
    """SHA-384 of the configuration volume (CFV), which the firmware measures into RTMR0; None where there is none."""
    for section in sections(image):
        if section.type is SectionType.CFV:
            return hashlib.sha384(image[section.data_offset : section.data_offset + section.raw_size]).digest()
    return None


def registers(event_log: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    """RTMR0 to RTMR3 after every event of the log (CCEL or dstack's JSON). Raises MalformedEvidence, `eventlog.*`.

    A prediction, not a proof: whoever wrote the log chose its digests. Record it at a boot you trust.
    """
    return EventLog.parse(event_log).replay()


def _table_entry(image: bytes) -> int | None:
    """Offset of the descriptor according to the GUID table; None when there is no table."""
    end = len(image) - _AFTER_FOOTER
    if end < _ENTRY_TAIL or image[end - 16 : end] != _FOOTER:
        return None
    size = int.from_bytes(image[end - _ENTRY_TAIL : end - 16], "little")
    start = end - size
    if size < _ENTRY_TAIL or start < 0:
        raise MalformedEvidence(Code.IMAGE_TABLE, f"a table of {size} bytes does not fit before the footer")
    at = end - _ENTRY_TAIL
    while at > start:
        length = int.from_bytes(image[max(at - _ENTRY_TAIL, start) : at - 16], "little")
        if at - start < _ENTRY_TAIL or not _ENTRY_TAIL <= length <= at - start:
            raise MalformedEvidence(Code.IMAGE_TABLE, f"the entry that ends at {at} claims {length} bytes")
        if image[at - 16 : at] == _TDVF_ENTRY:
            if length != _ENTRY_TAIL + 4:
                raise MalformedEvidence(Code.IMAGE_TABLE, f"the TDVF entry has {length} bytes, not {_ENTRY_TAIL + 4}")
            distance = int.from_bytes(image[at - _ENTRY_TAIL - 4 : at - _ENTRY_TAIL], "little")
            if distance > len(image):
                raise MalformedEvidence(Code.IMAGE_TABLE, f"the descriptor would start {distance} bytes before the end")
            return len(image) - distance
        at -= length
    raise MalformedEvidence(Code.IMAGE_NOT_TDVF, "the firmware's table has no TDVF entry: not built for TDX")


def _shim_offset(image: bytes) -> int:
    """Offset of the descriptor of a td-shim image."""
    if len(image) >= _AFTER_FOOTER:
        offset = int.from_bytes(image[-_AFTER_FOOTER : 4 - _AFTER_FOOTER], "little")
        if image[offset : offset + 4] == b"TDVF":
            return offset
    raise MalformedEvidence(Code.IMAGE_NOT_TDVF, "neither a firmware table nor a td-shim descriptor at its end")


def _descriptor(image: bytes, offset: int) -> tuple[Section, ...]:
    """Signature "TDVF", u32 length, u32 version 1, u32 count, then `count` sections."""
    reader = Cursor(image, code=Code.IMAGE_DESCRIPTOR, what="TDVF descriptor", offset=offset)
    signature, length, version, count = reader.take(4), reader.u32(), reader.u32(), reader.u32()
    if signature != b"TDVF" or version != 1:
        detail = f"signature {signature.hex()}, version {version}; need 'TDVF' and 1"
        raise MalformedEvidence(Code.IMAGE_DESCRIPTOR, detail)
    if not 1 <= count <= MAX_SECTIONS or length != 16 + _SECTION.size * count:
        raise MalformedEvidence(Code.IMAGE_DESCRIPTOR, f"{count} sections in {length} bytes")
    found = tuple(_section(reader.take(_SECTION.size), index, len(image)) for index in range(count))
    memory = sum(section.memory_size for section in found)
    if memory > MAX_MEMORY:
        raise MalformedEvidence(Code.IMAGE_TOO_LARGE, f"{memory} bytes of memory, at most {MAX_MEMORY}")
    return found


def _section(raw: bytes, index: int, file_size: int) -> Section:
    data_offset, raw_size, address, memory_size, kind, attributes = _SECTION.unpack(raw)
    problem = ""
    if kind > max(SectionType):
        problem = f"type {kind} is unknown"
    elif attributes & ~(_EXTEND | _AUG) or attributes == _EXTEND | _AUG:
        problem = f"attributes {attributes:#x} are unknown or contradict each other"
    elif address % PAGE or memory_size % PAGE or not memory_size:
        problem = f"address {address:#x} and size {memory_size:#x} are not whole pages"
    elif address + memory_size > _ADDRESS_SPACE:
        problem = f"address {address:#x} and size {memory_size:#x} leave the address space"
    elif raw_size > memory_size:
        problem = f"{raw_size:#x} bytes do not fit {memory_size:#x} bytes of memory"
    elif raw_size and data_offset + raw_size > file_size:
        problem = f"bytes {data_offset:#x} to {data_offset + raw_size:#x} are not in the file"
    if problem:
        raise MalformedEvidence(Code.IMAGE_SECTION, f"section {index}: {problem}")
    return Section(
        type=SectionType(kind),
        data_offset=data_offset,
        raw_size=raw_size,
        address=address,
        memory_size=memory_size,
        attributes=attributes,
    )


def _expect_disjoint(found: tuple[Section, ...]) -> None:
    """No two sections share memory or bytes of the file."""
    in_memory = sorted((s.address, s.address + s.memory_size) for s in found)
    in_file = sorted((s.data_offset, s.data_offset + s.raw_size) for s in found if s.raw_size)
    for where, extents in (("memory", in_memory), ("the file", in_file)):
        for (_, end), (start, _) in pairwise(extents):
            if start < end:
                raise MalformedEvidence(Code.IMAGE_OVERLAP, f"two sections overlap in {where} at {start:#x}")


def _expect_complete(found: tuple[Section, ...], file_size: int, *, whole_file: bool) -> None:
    """Exactly one TD_HOB and a BFV; in firmware with a table (not in td-shim) BFV and CFV make up the whole file."""
    kinds = [section.type for section in found]
    if kinds.count(SectionType.TD_HOB) != 1 or SectionType.BFV not in kinds:
        hobs, boot = kinds.count(SectionType.TD_HOB), kinds.count(SectionType.BFV)
        raise MalformedEvidence(Code.IMAGE_INCOMPLETE, f"{hobs} TD_HOB and {boot} BFV, need 1 and at least 1")
    volumes = sum(s.raw_size for s in found if s.type in (SectionType.BFV, SectionType.CFV))
    if whole_file and volumes != file_size:
        detail = f"the volumes have {volumes} bytes, the file {file_size}; give code and variables as one image"
        raise MalformedEvidence(Code.IMAGE_INCOMPLETE, detail)


def _single_pass(image: bytes, section: Section) -> Iterator[bytes]:
    for page in range(0, section.memory_size, PAGE):
        yield _block(b"MEM.PAGE.ADD", section.address + page)
        if section.measured:
            yield from _extends(image, section, page)


def _two_pass(image: bytes, section: Section) -> Iterator[bytes]:
    for page in range(0, section.memory_size, PAGE):
        yield _block(b"MEM.PAGE.ADD", section.address + page)
    if section.measured:
        for page in range(0, section.memory_size, PAGE):
            yield from _extends(image, section, page)


_OPERATIONS: Final = {Variant.SINGLE_PASS: _single_pass, Variant.TWO_PASS: _two_pass}


def _extends(image: bytes, section: Section, page: int) -> Iterator[bytes]:
    """The 16 TDH.MR.EXTEND of one page."""
    stop = section.data_offset + section.raw_size
    start = section.data_offset + page
    content = image[start : min(start + PAGE, stop)].ljust(PAGE, b"\0") if start < stop else bytes(PAGE)
    for chunk in range(0, PAGE, _CHUNK):
        yield _block(b"MR.EXTEND", section.address + page + chunk)
        yield content[chunk : chunk + _CHUNK]


def _block(operation: bytes, address: int) -> bytes:
    """128 bytes: the operation's name in the first 16, the address in the next 8."""
    return (operation.ljust(16, b"\0") + address.to_bytes(8, "little")).ljust(128, b"\0")
