"""A strict reader of DER: the tag-length-value records that certificates and CRLs are made of.

Decides what a record is: one-byte tags, definite lengths in their shortest form, contents inside their container. What
the records mean is decided by the callers. `cryptography` parses each certificate and CRL as well; this reader only
takes out of them what that library hands over slowly or not at all: exact byte ranges, names, Intel's extension.

Source: ITU-T X.690, sections 8 and 10.
"""

from __future__ import annotations

from typing import Final

from attestation.checks import Unmet

BOOLEAN: Final = 0x01
INTEGER: Final = 0x02
BIT_STRING: Final = 0x03
OCTET_STRING: Final = 0x04
OID: Final = 0x06
ENUMERATED: Final = 0x0A
SEQUENCE: Final = 0x30
SET: Final = 0x31

Range = tuple[int, int]
"""Where a record's content starts and ends."""


def record(data: bytes, at: int, end: int, tag: int) -> Range:
    """The content of the record at `at`, which must have `tag` and fit before `end`. Raises Unmet."""
    if at + 2 > end:
        raise Unmet(f"DER: a record is cut off at offset {at}")
    if data[at] != tag:
        raise Unmet(f"DER: tag {data[at]:#04x} at offset {at}, expected {tag:#04x}")
    length = data[at + 1]
    start = at + 2
    if length >= 0x80:
        size = length & 0x7F
        if not 1 <= size <= 3 or start + size > end:
            raise Unmet(f"DER: bad length at offset {at}")
        length = int.from_bytes(data[start : start + size], "big")
        if length < (0x80 if size == 1 else 1 << (8 * (size - 1))):
            raise Unmet(f"DER: a length is not in its shortest form at offset {at}")
        start += size
    if start + length > end:
        raise Unmet(f"DER: a record at offset {at} passes the end of its container")
    return start, start + length


def skip(data: bytes, at: int, end: int) -> int:
    """Where the record after the one at `at` starts, whatever its tag. Raises Unmet."""
    if at >= end:
        raise Unmet(f"DER: a record is missing at offset {at}")
    return record(data, at, end, data[at])[1]


def whole(data: bytes, tag: int) -> Range:
    """The content of the one record that fills `data`. Raises Unmet."""
    start, end = record(data, 0, len(data), tag)
    if end != len(data):
        raise Unmet(f"DER: {len(data) - end} bytes after the end")
    return start, end


def integer(data: bytes, span: Range) -> int:
    """A non-negative INTEGER or ENUMERATED of at most 32 bits, in its shortest form. Raises Unmet."""
    content = data[span[0] : span[1]]
    if not 1 <= len(content) <= 5:
        raise Unmet(f"DER: an integer of {len(content)} bytes")
    if content[0] >= 0x80:
        raise Unmet("DER: a negative integer")
    if len(content) > 1 and content[0] == 0 and content[1] < 0x80:
        raise Unmet("DER: an integer is not in its shortest form")
    return int.from_bytes(content, "big")


def boolean(data: bytes, span: Range) -> bool:
    """A BOOLEAN: 00 or FF. Raises Unmet."""
    content = data[span[0] : span[1]]
    if content not in (b"\x00", b"\xff"):
        raise Unmet("DER: a boolean is neither 00 nor FF")
    return content == b"\xff"
