"""A strict reader of DER: the tag-length-value records that certificates and CRLs are made of.

Decides what a record is: one-byte tags, definite lengths in their shortest form, contents inside their container. What
the records mean is decided by the callers.

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

_LEAST: Final = (0, 0x80, 0x100, 0x10000)  # what needs so many octets of length

Range = tuple[int, int]
"""Where a record's content starts and ends."""


def record(data: bytes, at: int, end: int, tag: int) -> Range:
    """The content of the record at `at`, which must have `tag` and fit before `end`. Raises Unmet."""
    start = at + 2
    if start > end:
        raise Unmet(f"DER: a record is cut off at offset {at}")
    if data[at] != tag:
        raise Unmet(f"DER: tag {data[at]:#04x} at offset {at}, expected {tag:#04x}")
    length = data[at + 1]
    if length >= 0x80:
        length, start = _long_length(data, at, end)
    stop = start + length
    if stop > end:
        raise Unmet(f"DER: a record at offset {at} passes the end of its container")
    return start, stop


def _long_length(data: bytes, at: int, end: int) -> tuple[int, int]:
    """A length of more than seven bits, and where the content starts."""
    size = data[at + 1] - 0x80
    start = at + 2 + size
    if not 1 <= size <= 3 or start > end:
        raise Unmet(f"DER: bad length at offset {at}")
    length = data[at + 2] << 8 | data[at + 3] if size == 2 else int.from_bytes(data[at + 2 : start], "big")
    if length < _LEAST[size]:
        raise Unmet(f"DER: a length is not in its shortest form at offset {at}")
    return length, start


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
    start, stop = span
    if not 1 <= stop - start <= 5:
        raise Unmet(f"DER: an integer of {stop - start} bytes")
    first = data[start]
    if first >= 0x80:
        raise Unmet("DER: a negative integer")
    if stop - start == 1:
        return first
    if first == 0 and data[start + 1] < 0x80:
        raise Unmet("DER: an integer is not in its shortest form")
    return int.from_bytes(data[start:stop], "big")


def boolean(data: bytes, span: Range) -> bool:
    """A BOOLEAN: 00 or FF. Raises Unmet."""
    content = data[span[0] : span[1]]
    if content not in (b"\x00", b"\xff"):
        raise Unmet("DER: a boolean is neither 00 nor FF")
    return content == b"\xff"
