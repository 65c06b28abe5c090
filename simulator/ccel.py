"""Event logs as firmware, boot loader and guest write them: TCG2 records in a CCEL area.

Decides the bytes of a record and which records a simulated boot leaves. Whether a log explains the registers of a quote
is decided by `attestation`, whose reader this writer shares nothing with.

Sources: TCG PC Client Platform Firmware Profile (TCG_PCR_EVENT2); UEFI 2.11, chapter 38 (CC measurement);
ACPI 6.5, 5.2.34 (CCEL). All integers are little-endian.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from simulator.seed import sha384

EV_NO_ACTION, EV_SEPARATOR, EV_EVENT_TAG, EV_PLATFORM_CONFIG_FLAGS = 0x3, 0x4, 0x6, 0xA
EV_EFI_VARIABLE_DRIVER_CONFIG, EV_EFI_VARIABLE_BOOT = 0x80000001, 0x80000002
EV_EFI_BOOT_SERVICES_APPLICATION, EV_EFI_ACTION = 0x80000003, 0x80000007
EV_EFI_PLATFORM_FIRMWARE_BLOB2, EV_EFI_HANDOFF_TABLES2 = 0x8000000A, 0x8000000B

_SHA384: Final = 0x000C
_RECORD: Final = struct.Struct("<IIIH48sI")  # index, type, digest count, algorithm, digest, event size
_SPEC_ID: Final = b"Spec ID Event03\0" + struct.pack("<IBBBBIHHB", 0, 0, 2, 0, 2, 1, _SHA384, 48, 0)
HEADER: Final = struct.pack("<II20sI", 1, EV_NO_ACTION, bytes(20), len(_SPEC_ID)) + _SPEC_ID
"""The first record, in the old format: which digests follow."""

_GLOBAL_VARIABLE: Final = uuid.UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
_IMAGE_SECURITY: Final = uuid.UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
_FIRMWARE_VOLUME: Final = b"\x29Fv(XXXXXXXX-XXXX-XXXX-XXXX-XXXXXXXXXXXX)\0" + bytes(16)
"""The label that TDVF writes: a name, base 0, length 0."""


@dataclass(frozen=True, slots=True)
class Record:
    """One event of RTMR `register` (0 to 3)."""

    register: int
    event_type: int
    digest: bytes
    data: bytes

    def encode(self) -> bytes:
        """Registers are counted from one in a log; index 0 is MRTD."""
        return _RECORD.pack(self.register + 1, self.event_type, 1, _SHA384, self.digest, len(self.data)) + self.data


def encode(records: Iterable[Record]) -> bytes:
    """A whole log, without the padding of its area."""
    return HEADER + b"".join(record.encode() for record in records)


def extend(rtmr: bytes, digest: bytes) -> bytes:
    """TDG.MR.RTMR.EXTEND"""
    return sha384(rtmr, digest)


def table(log_length: int, log_address: int = 0x7F000000) -> bytes:
    """The ACPI table that points to the log: 56 bytes, checksum included."""
    head = struct.pack("<4sIBB6s8sI4sI", b"CCEL", 56, 1, 0, b"CLOIST", b"SIMULATE", 1, b"CLSM", 1)
    raw = bytearray(head + struct.pack("<BBHQQ", 2, 0, 0, log_length, log_address))
    raw[9] = -sum(raw) & 0xFF
    return bytes(raw)


def boot_records(image: str, command_line: str) -> tuple[Record, ...]:
    """What a direct boot leaves: firmware in RTMR0, kernel in RTMR1, command line and initial RAM disk in RTMR2."""

    def stand_in(what: str) -> bytes:
        return f"cloister-sim/image/{image}/{what}".encode()

    separator = bytes(4)
    firmware = [
        _labelled(0, EV_EFI_HANDOFF_TABLES2, stand_in("td-hob"), b"\x09TdxTable\0" + bytes(22)),
        _labelled(0, EV_EFI_PLATFORM_FIRMWARE_BLOB2, stand_in("cfv"), _FIRMWARE_VOLUME),
        *(_variable(_GLOBAL_VARIABLE, name) for name in ("SecureBoot", "PK", "KEK")),
        *(_variable(_IMAGE_SECURITY, name) for name in ("db", "dbx")),
        Record(0, EV_SEPARATOR, sha384(separator), separator),
        *(
            _labelled(0, EV_PLATFORM_CONFIG_FLAGS, stand_in(blob), b"ACPI DATA\0")
            for blob in ("table-loader", "rsdp", "tables")
        ),
        _boot_variable("BootOrder", bytes(2)),
        _boot_variable("Boot0000", stand_in("UiApp")),
    ]
    kernel = [
        _labelled(1, EV_EFI_BOOT_SERVICES_APPLICATION, stand_in("kernel"), bytes(36)),
        _text(1, "Calling EFI Application from Boot Option"),
        Record(1, EV_SEPARATOR, sha384(separator), separator),
        _text(1, "Exit Boot Services Invocation"),
        _text(1, "Exit Boot Services Returned with Success"),
    ]
    options = command_line.encode("utf-16-le") + b"\0\0"
    system = [
        _labelled(2, EV_EVENT_TAG, options, _tag(0x8F3B22ED, b"LOADED_IMAGE::LoadOptions\0")),
        _labelled(2, EV_EVENT_TAG, stand_in("initrd"), _tag(0x8F3B22EC, b"Linux initrd\0")),
    ]
    return (*firmware, *kernel, *system)


def _labelled(register: int, event_type: int, measured: bytes, label: bytes) -> Record:
    return Record(register, event_type, sha384(measured), label)


def _text(register: int, text: str) -> Record:
    return Record(register, EV_EFI_ACTION, sha384(text.encode()), text.encode())


def _tag(tag: int, text: bytes) -> bytes:
    return struct.pack("<II", tag, len(text)) + text


def _variable(vendor: uuid.UUID, name: str) -> Record:
    """An unset variable: the digest is over the whole structure."""
    data = vendor.bytes_le + struct.pack("<QQ", len(name), 0) + name.encode("utf-16-le")
    return Record(0, EV_EFI_VARIABLE_DRIVER_CONFIG, sha384(data), data)


def _boot_variable(name: str, value: bytes) -> Record:
    """The digest is over the variable's value alone."""
    data = _GLOBAL_VARIABLE.bytes_le + struct.pack("<QQ", len(name), len(value)) + name.encode("utf-16-le") + value
    return Record(0, EV_EFI_VARIABLE_BOOT, sha384(value), data)
