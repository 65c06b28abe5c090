"""MRTD from an image: the section walk is strict, the hash is TDX's, and any bytes are answered with a code."""

from __future__ import annotations

import hashlib
import json
import struct
import uuid
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.errors import MalformedEvidence
from attestation.eventlog import LogBuilder
from attestation.measure import (
    MAX_IMAGE,
    MAX_MEMORY,
    SectionType,
    Variant,
    configuration_digest,
    mrtd,
    registers,
    sections,
)
from attestation.measure_cli import measure

PAGE = 4096
FOOTER = uuid.UUID("96b582de-1fb2-45f7-baea-a366c55a082d")
TDVF = uuid.UUID("e47a6535-984a-4798-865e-4685a7bf8ec2")
OTHER = uuid.UUID("00f771de-1a7e-4fcb-890e-68c77e2fb44e")
OVMF = Path("/usr/share/ovmf/OVMF.fd")  # Debian's package `ovmf`


@dataclass(frozen=True)
class Row:
    """One section as it stands in the metadata."""

    data_offset: int
    raw_size: int
    address: int
    memory_size: int
    kind: int
    attributes: int = 0

    def pack(self) -> bytes:
        return struct.pack(
            "<IIQQII",
            self.data_offset,
            self.raw_size,
            self.address,
            self.memory_size,
            self.kind,
            self.attributes,
        )


CFV = Row(0, PAGE, 0xFFE00000, PAGE, 1)
BFV = Row(PAGE, 2 * PAGE, 0xFFE01000, 2 * PAGE, 0, 1)
HOB = Row(0, 0, 0x809000, 2 * PAGE, 2)
TEMP = Row(0, 0, 0x810000, PAGE, 3)
GOOD = (BFV, CFV, HOB, TEMP)
BODY = bytes(i * 7 % 256 for i in range(3 * PAGE))


def entry(guid: uuid.UUID, data: bytes) -> bytes:
    return data + struct.pack("<H", len(data) + 18) + guid.bytes_le


def descriptor(
    rows: tuple[Row, ...], *, signature: bytes = b"TDVF", version: int = 1, extra: int = 0, count: int | None = None
) -> bytes:
    packed = b"".join(row.pack() for row in rows)
    size = 16 + 32 * (len(rows) if count is None else count) + extra
    return struct.pack("<4sIII", signature, size, version, len(rows) if count is None else count) + packed


def firmware(
    rows: tuple[Row, ...] = GOOD,
    *,
    body: bytes = BODY,
    described: bytes | None = None,
    table: bytes | None = None,
    before: bytes = b"",
) -> bytes:
    """A tiny firmware file of the size of `body`: descriptor, then the GUID table, then 32 bytes of reset vector."""
    described = descriptor(rows) if described is None else described
    if table is None:
        distance = 32 + 18 + 22 + len(before) + len(described)
        table = before + entry(TDVF, struct.pack("<I", distance))
        table += struct.pack("<H", len(table) + 18) + FOOTER.bytes_le
    tail = described + table + bytes(range(32))
    return body[: len(body) - len(tail)] + tail


def shim(rows: tuple[Row, ...], *, offset: int = 0x100) -> bytes:
    """A td-shim image: no table, the descriptor's offset 32 bytes before the end."""
    raw = bytearray(BODY)
    described = descriptor(rows)
    raw[offset : offset + len(described)] = described
    raw[-32:-28] = struct.pack("<I", offset)
    return bytes(raw)


def expected_mrtd(image: bytes, rows: tuple[Row, ...], *, two_passes: bool = False) -> bytes:
    """MRTD written down a second time, as plainly as possible: a list of all that is hashed."""
    stream: list[bytes] = []

    def add(address: int) -> None:
        stream.append(b"MEM.PAGE.ADD\0\0\0\0" + struct.pack("<Q", address) + b"\0" * 104)

    def extend(address: int, data: bytes) -> None:
        stream.append(b"MR.EXTEND\0\0\0\0\0\0\0" + struct.pack("<Q", address) + b"\0" * 104)
        stream.append(data)

    for row in rows:
        memory = image[row.data_offset : row.data_offset + row.raw_size] + b"\0" * (row.memory_size - row.raw_size)
        pages = [(row.address + at, memory[at : at + PAGE]) for at in range(0, row.memory_size, PAGE)]
        extends = row.attributes & 1
        if row.attributes & 2:
            continue
        if two_passes:
            for address, _ in pages:
                add(address)
        for address, page in pages:
            if not two_passes:
                add(address)
            for at in range(0, PAGE if extends else 0, 256):
                extend(address + at, page[at : at + 256])
    return hashlib.sha384(b"".join(stream)).digest()


def code_of(image: bytes) -> str:
    with pytest.raises(MalformedEvidence) as caught:
        sections(image)
    return caught.value.code


def outcome(image: bytes) -> str:
    """The family of what `mrtd` says: "ok", or "image"; anything else escapes and fails the test."""
    try:
        assert len(mrtd(image)) == 48
    except MalformedEvidence as error:
        return error.code.partition(".")[0]
    return "ok"


def test_the_sections_are_those_of_the_metadata_in_its_order() -> None:
    found = sections(firmware())
    assert [(s.type, s.data_offset, s.raw_size, s.address, s.memory_size, s.attributes) for s in found] == [
        (SectionType(row.kind), row.data_offset, row.raw_size, row.address, row.memory_size, row.attributes)
        for row in GOOD
    ]
    assert [s.measured for s in found] == [True, False, False, False]


@pytest.mark.parametrize(
    "rows",
    [
        GOOD,
        (HOB, CFV, BFV),
        (*GOOD, Row(0, 0, 0x900000, 3 * PAGE, 4, 2)),
        (*GOOD, Row(0, 0, 0x900000, 3 * PAGE, 3, 1)),
    ],
    ids=["usual", "another order", "memory added later", "measured zeros"],
)
def test_mrtd_is_what_a_plain_second_implementation_says(rows: tuple[Row, ...]) -> None:
    image = firmware(rows)
    assert mrtd(image) == mrtd(image, "single-pass") == expected_mrtd(image, rows)
    assert mrtd(image, "two-pass") == expected_mrtd(image, rows, two_passes=True)
    assert mrtd(image) != mrtd(image, "two-pass")


def test_a_volume_shorter_than_its_memory_is_measured_with_zeros_after_it() -> None:
    rows = (replace(BFV, raw_size=PAGE + 300), Row(3 * PAGE, 10, 0xA00000, PAGE, 5, 1), CFV, HOB)
    image = shim(rows[:1] + rows[2:])
    assert mrtd(image) == expected_mrtd(image, rows[:1] + rows[2:])


def test_mrtd_covers_the_boot_volume_and_not_the_configuration_volume() -> None:
    before = firmware()
    code = before[: PAGE + 5] + b"\xee" + before[PAGE + 6 :]
    variables = b"\xee" + before[1:]
    assert mrtd(code) != mrtd(before) == mrtd(variables)
    assert configuration_digest(variables) != configuration_digest(before) == hashlib.sha384(before[:PAGE]).digest()


def test_an_image_without_a_configuration_volume_has_no_digest_of_one() -> None:
    assert configuration_digest(shim((BFV, HOB))) is None


def test_other_entries_of_the_table_are_stepped_over() -> None:
    assert mrtd(firmware(before=entry(OTHER, b"\x01\x02\x03"))) is not None
    between = entry(TDVF, struct.pack("<I", 32 + 18 + 26 + 22 + len(descriptor(GOOD)))) + entry(OTHER, bytes(8))
    table = between + struct.pack("<H", len(between) + 18) + FOOTER.bytes_le
    assert len(sections(firmware(table=table))) == 4


def test_a_td_shim_image_is_found_by_the_offset_at_its_end() -> None:
    rows = (BFV, CFV, HOB, TEMP)
    assert mrtd(shim(rows)) == expected_mrtd(shim(rows), rows)


def table_of(*entries: bytes, size: int | None = None) -> bytes:
    joined = b"".join(entries)
    return joined + struct.pack("<H", len(joined) + 18 if size is None else size) + FOOTER.bytes_le


BAD = {
    "empty": (b"", "image.not_tdvf"),
    "short": (bytes(40), "image.not_tdvf"),
    "no footer, no offset": (bytes(8192), "image.not_tdvf"),
    "a table without a TDVF entry": (firmware(table=table_of(entry(OTHER, b"abcd"))), "image.not_tdvf"),
    "a table shorter than its footer": (firmware(table=table_of(size=17)), "image.table_malformed"),
    "a table longer than the file": (firmware(table=table_of(size=0xFFFF)), "image.table_malformed"),
    "an entry longer than the table": (
        firmware(table=table_of(struct.pack("<H", 500) + OTHER.bytes_le)),
        "image.table_malformed",
    ),
    "an entry of length zero": (
        firmware(table=table_of(struct.pack("<H", 0) + OTHER.bytes_le)),
        "image.table_malformed",
    ),
    "a rest too short for an entry": (firmware(table=table_of(b"abc", entry(OTHER, b""))), "image.table_malformed"),
    "a TDVF entry of another size": (firmware(table=table_of(entry(TDVF, b"ab"))), "image.table_malformed"),
    "a descriptor before the file": (
        firmware(table=table_of(entry(TDVF, struct.pack("<I", 1 << 30)))),
        "image.table_malformed",
    ),
    "a descriptor that runs out of the file": (
        firmware(table=table_of(entry(TDVF, struct.pack("<I", 8)))),
        "image.descriptor_malformed",
    ),
    "another signature": (firmware(described=descriptor(GOOD, signature=b"TDVG")), "image.descriptor_malformed"),
    "another version": (firmware(described=descriptor(GOOD, version=2)), "image.descriptor_malformed"),
    "an inexact length": (firmware(described=descriptor(GOOD, extra=4)), "image.descriptor_malformed"),
    "no section": (firmware(()), "image.descriptor_malformed"),
    "too many sections": (firmware(described=descriptor(GOOD, count=65)), "image.descriptor_malformed"),
    "an unknown type": (firmware((*GOOD[:3], replace(TEMP, kind=9))), "image.section_invalid"),
    "unknown attributes": (firmware((*GOOD[:3], replace(TEMP, attributes=4))), "image.section_invalid"),
    "measured and added later": (firmware((*GOOD[:3], replace(TEMP, attributes=3))), "image.section_invalid"),
    "an unaligned address": (firmware((*GOOD[:3], replace(TEMP, address=0x810001))), "image.section_invalid"),
    "an unaligned size": (firmware((*GOOD[:3], replace(TEMP, memory_size=100))), "image.section_invalid"),
    "no memory": (firmware((*GOOD[:3], replace(TEMP, memory_size=0))), "image.section_invalid"),
    "beyond the address space": (firmware((*GOOD[:3], replace(TEMP, address=1 << 52))), "image.section_invalid"),
    "more bytes than memory": (firmware((replace(BFV, memory_size=PAGE), CFV, HOB)), "image.section_invalid"),
    "bytes that are not in the file": (
        firmware((replace(BFV, data_offset=2 * PAGE), CFV, HOB)),
        "image.section_invalid",
    ),
    "overlap in memory": (firmware((*GOOD, replace(TEMP, address=0x80A000))), "image.sections_overlap"),
    "overlap in the file": (firmware((replace(BFV, data_offset=100), CFV, HOB)), "image.sections_overlap"),
    "no TD_HOB": (firmware((BFV, CFV, TEMP)), "image.sections_incomplete"),
    "two TD_HOBs": (firmware((*GOOD, replace(HOB, address=0x900000))), "image.sections_incomplete"),
    "no BFV": (firmware((CFV, HOB)), "image.sections_incomplete"),
    "volumes that do not fill the file": (firmware((BFV, HOB)), "image.sections_incomplete"),
    "too much memory": (firmware((*GOOD[:3], replace(TEMP, memory_size=MAX_MEMORY))), "image.too_large"),
    "too many bytes": (bytes(MAX_IMAGE + 1), "image.too_large"),
}


@pytest.mark.parametrize(("image", "code"), BAD.values(), ids=BAD.keys())
def test_an_image_that_makes_no_sense_is_refused_with_its_code(image: bytes, code: str) -> None:
    assert code_of(image) == code


@given(st.binary(max_size=300))
def test_any_bytes_are_an_image_or_malformed(raw: bytes) -> None:
    assert outcome(raw) == "image"


@given(at=st.integers(0, 399), value=st.integers(0, 255))
def test_any_change_of_the_metadata_is_measured_or_refused(at: int, value: int) -> None:
    image = bytearray(firmware())
    image[len(image) - 1 - at] = value
    assert outcome(bytes(image)) in ("ok", "image")


def test_an_unknown_variant_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="three-pass"):
        mrtd(firmware(), "three-pass")


def recorded_log() -> bytes:
    log = LogBuilder()
    log.append(0, hashlib.sha384(b"a").digest(), event_type=4, data=b"a")
    log.append(2, hashlib.sha384(b"b").digest(), event_type=13, data=b"b")
    return log.encode()


def test_registers_are_those_the_log_leads_to() -> None:
    predicted = registers(recorded_log())
    assert predicted[0] == hashlib.sha384(bytes(48) + hashlib.sha384(b"a").digest()).digest()
    assert predicted[1] == predicted[3] == bytes(48)


@pytest.mark.skipif(not OVMF.exists(), reason="needs Debian's package ovmf")
def test_the_firmware_of_debian_can_be_measured() -> None:
    image = OVMF.read_bytes()
    kinds = [section.type for section in sections(image)]
    assert kinds.count(SectionType.BFV) == kinds.count(SectionType.CFV) == kinds.count(SectionType.TD_HOB) == 1
    rows = tuple(
        Row(s.data_offset, s.raw_size, s.address, s.memory_size, s.type, s.attributes) for s in sections(image)
    )
    assert mrtd(image) == expected_mrtd(image, rows)
    assert mrtd(image, Variant.TWO_PASS) == expected_mrtd(image, rows, two_passes=True)


@pytest.mark.skipif(not OVMF.exists(), reason="needs Debian's package ovmf")
def test_the_code_part_of_the_firmware_alone_is_refused_with_a_hint() -> None:
    assert code_of(OVMF.read_bytes()[0x20000:]) == "image.section_invalid"


def test_the_command_prints_both_variants_and_the_registers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, log = tmp_path / "fw.fd", tmp_path / "ccel"
    image.write_bytes(firmware())
    log.write_bytes(recorded_log())
    assert measure(image, event_log=log, as_json=True) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"]
    assert found["mrtd"] == found["variants"]["single-pass"] == mrtd(firmware()).hex()
    assert found["variants"]["two-pass"] == mrtd(firmware(), "two-pass").hex()
    assert found["rtmrs"] == [value.hex() for value in registers(recorded_log())]
    assert [row["type"] for row in found["sections"]] == ["BFV", "CFV", "TD_HOB", "TEMP_MEM"]

    assert measure(image, variant="two-pass") == 0
    text = capsys.readouterr().out
    assert text.splitlines()[0].split()[:3] == ["MRTD", "two-pass", mrtd(firmware(), "two-pass").hex()]


def test_the_command_tells_malformed_from_unreadable_from_unknown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(5000))
    assert measure(disk, as_json=True) == 3
    assert json.loads(capsys.readouterr().out)["code"] == "image.not_tdvf"
    assert measure(disk) == 3
    assert "image.not_tdvf" in capsys.readouterr().err
    assert measure(tmp_path / "missing") == 2
    assert measure(tmp_path) == 2
    assert measure(disk, variant="sideways") == 2
    assert capsys.readouterr().out == ""
