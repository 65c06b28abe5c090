"""Simulated trust domains: their measurements, run-time registers, event log, reports and quotes.

Decides what a launch leaves in MRTD and the RTMRs and what restart, clone and migration change. Implements
`attestation.ports.TrustDomain`, so an agent uses one like a real domain; it says `simulated`, its name is
`cloister-sim`, and only a verifier that was given its machine's root believes it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, Final, Protocol, Self, final

from simulator import ccel, tdreport
from simulator.errors import SimulatorCode, SimulatorError
from simulator.platform import Platform
from simulator.quoting import ExtendedFacts
from simulator.seed import Seed, sha256, sha384

NAME: Final = "cloister-sim"

DEBUG, SEPT_VE_DISABLE, MIGRATABLE = 1 << 0, 1 << 28, 1 << 29
"""Bits of ATTRIBUTES."""
XFAM: Final = 0x0602E7
COMMAND_LINE: Final = "console=hvc0 root=/dev/vda1 ro"


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """What is booted: MRTD, and the events that firmware and kernel leave. Domains of one image share it."""

    name: str
    mr_td: bytes
    boot: tuple[ccel.Record, ...] = field(repr=False)
    rtmrs: bytes = field(repr=False)
    """192 bytes: the registers when the system is up"""
    log: bytes = field(repr=False)

    @classmethod
    def named(cls, name: str, command_line: str = COMMAND_LINE) -> Self:
        """An image made up from its name: the same on every machine, so reference values can be written down."""
        return cls._booted(name, sha384(f"cloister-sim/image/{name}/bfv".encode()), command_line)

    @classmethod
    def from_tdvf(cls, firmware: bytes, command_line: str = COMMAND_LINE) -> Self:
        """A TDVF image: MRTD as the hypervisor would measure it. Raises MalformedEvidence when it is none."""
        from attestation.measure import mrtd

        return cls._booted(sha256(firmware).hex(), mrtd(firmware), command_line)

    @classmethod
    def _booted(cls, name: str, mr_td: bytes, command_line: str) -> Self:
        boot = ccel.boot_records(name, command_line)
        rtmrs = [bytes(48)] * 4
        for record in boot:
            rtmrs[record.register] = ccel.extend(rtmrs[record.register], record.digest)
        return cls(name=name, mr_td=mr_td, boot=boot, rtmrs=b"".join(rtmrs), log=ccel.encode(boot))


@lru_cache(maxsize=64)
def _image(name: str, command_line: str) -> Image:
    return Image.named(name, command_line)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceTd:
    """A service TD bound to a domain: SHA-384 of its TDINFO, its type (0 = migration TD) and its attributes."""

    td_info_hash: bytes
    kind: int = 0
    attributes: int = 0


def service_td_hash(bound: tuple[ServiceTd, ...]) -> bytes:
    """SERVTD_HASH: SHA-384 over the records, 58 bytes each, by type and hash; zero when there is none."""
    if not bound:
        return bytes(48)
    records = sorted(bound, key=lambda service: (service.kind, service.td_info_hash))
    return sha384(*(struct.pack("<48sHQ", r.td_info_hash, r.kind, r.attributes) for r in records))


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """What the host chose at launch; nobody changes it later."""

    image: Image
    attributes: int = SEPT_VE_DISABLE
    xfam: int = XFAM
    mr_config_id: bytes = bytes(48)
    mr_owner: bytes = bytes(48)
    mr_owner_config: bytes = bytes(48)
    service_tds: tuple[ServiceTd, ...] = ()
    partitioned: bool = False
    """Reports carry TD_ID and VM id (TDINFO in its extended form, quote body 4)."""
    tells_current_svn: bool = True
    """The module reports TEE_TCB_SVN_2."""
    pad_to: int = 0
    """Quotes are padded with zeros to so many bytes, as hosts with a fixed buffer do."""

    def __post_init__(self) -> None:
        lengths = (self.mr_config_id, self.mr_owner, self.mr_owner_config)
        if any(len(value) != 48 for value in lengths):
            raise _invalid("MRCONFIGID, MROWNER and MROWNERCONFIG have 48 bytes")
        if not 0 <= self.attributes < 1 << 64 or not 0 <= self.xfam < 1 << 64:
            raise _invalid("ATTRIBUTES and XFAM have 64 bits")


class Host(Protocol):
    """Where domains run: a machine."""

    def platform(self, index: int = 0) -> Platform:
        """In its present state. Raises SimulatorError platform.unknown."""

    @property
    def seed(self) -> Seed:
        """What TD_IDs are made from."""


@final
class SimulatedTd:
    """A running trust domain. Threads may share it."""

    __slots__ = (
        "_lock",
        "_machine",
        "_measured",
        "_platform_index",
        "configuration",
        "initial_fmspc",
        "label",
        "launch_mr_seam",
        "launch_svn",
        "launches",
    )

    simulated: Final = True
    name: Final = NAME

    def __init__(self, machine: Host, platform: int, label: str, configuration: Configuration) -> None:
        self._machine = machine
        self._platform_index = platform
        self.label = label
        self.configuration = configuration
        self.launches = 0
        self._lock = Lock()
        self._start()

    @classmethod
    def launch(
        cls,
        machine: Host,
        label: str = "td",
        *,
        image: Image | bytes | Path | str = "default",
        platform: int = 0,
        command_line: str = COMMAND_LINE,
        **configuration: Any,
    ) -> Self:
        """Launch a domain: `image` is an `Image`, a name to make one up from, or a TDVF image as bytes or path.

        Other options are members of `Configuration`. Raises SimulatorError platform.unknown, td.invalid.
        """
        if isinstance(image, Path):
            image = image.read_bytes()
        if isinstance(image, bytes):
            image = Image.from_tdvf(image, command_line)
        elif isinstance(image, str):
            image = _image(image, command_line)
        return cls(machine, platform, label, Configuration(image=image, **configuration))

    def _start(self) -> None:
        platform = self.platform
        if platform.spec.ca != "platform":
            raise _invalid(f"platform {self._platform_index} has no TDX")
        self.launches += 1
        self.launch_svn = platform.spec.svn
        self.launch_mr_seam = platform.mr_seam()
        self.initial_fmspc = platform.fmspc
        self._measured: tuple[bytes, tuple[ccel.Record, ...]] = (self.configuration.image.rtmrs, ())

    @property
    def platform(self) -> Platform:
        """The platform it runs on now, in its present state."""
        return self._machine.platform(self._platform_index)

    @property
    def mr_td(self) -> bytes:
        return self.configuration.image.mr_td

    @property
    def rtmrs(self) -> tuple[bytes, bytes, bytes, bytes]:
        r = self._measured[0]
        return r[:48], r[48:96], r[96:144], r[144:]

    def extend(self, register: int, digest: bytes, *, event_type: int = ccel.EV_EVENT_TAG, data: bytes = b"") -> None:
        """RTMR[register] = SHA-384(RTMR ‖ digest), and a record of it in the log. Raises SimulatorError td.invalid."""
        self._extend(register, digest, (ccel.Record(register, event_type, digest, data),))

    def extend_unlogged(self, register: int, digest: bytes) -> None:
        """Extend without a record: what the kernel's sysfs files do. Raises SimulatorError td.invalid."""
        self._extend(register, digest, ())

    def _extend(self, register: int, digest: bytes, records: tuple[ccel.Record, ...]) -> None:
        if register not in range(4) or len(digest) != 48:
            raise _invalid(f"RTMR0 to RTMR3 take digests of 48 bytes; got register {register}, {len(digest)} bytes")
        start = register * 48
        with self._lock:
            rtmrs, appended = self._measured
            extended = ccel.extend(rtmrs[start : start + 48], digest)
            self._measured = rtmrs[:start] + extended + rtmrs[start + 48 :], appended + records

    def event_log(self) -> bytes:
        """The CCEL area without its padding: the boot's records, then the guest's."""
        return self.configuration.image.log + b"".join(record.encode() for record in self._measured[1])

    @property
    def records(self) -> tuple[ccel.Record, ...]:
        return (*self.configuration.image.boot, *self._measured[1])

    def report(self, report_data: bytes) -> bytes:
        """TDG.MR.REPORT: the 1024-byte TDREPORT. Raises SimulatorError td.invalid unless `report_data` has 64 bytes."""
        if len(report_data) != 64:
            raise _invalid(f"REPORTDATA has 64 bytes, not {len(report_data)}")
        chosen = self.configuration
        version = tdreport.SERVICE_TD if chosen.service_tds else tdreport.PLAIN
        td = tdreport.TdInfo(
            attributes=chosen.attributes.to_bytes(8, "little"),
            xfam=chosen.xfam.to_bytes(8, "little"),
            mr_td=chosen.image.mr_td,
            mr_config_id=chosen.mr_config_id,
            mr_owner=chosen.mr_owner,
            mr_owner_config=chosen.mr_owner_config,
            rtmrs=self._measured[0],
            service_td_hash=service_td_hash(chosen.service_tds),
            td_id=self.td_id if chosen.partitioned else None,
            vm_id=0 if chosen.partitioned else None,
        )
        return self.platform.td_report(
            version=tdreport.EXTENDED if chosen.partitioned else version,
            svn=self.launch_svn,
            mr_seam=self.launch_mr_seam,
            td=td,
            report_data=report_data,
            tell_current=chosen.tells_current_svn,
        )

    @property
    def td_id(self) -> bytes:
        """32 bytes that name this launch."""
        return self._machine.seed.derive(f"td/{self.label}/{self.launches}", 32)

    def quote(self, report_data: bytes, *, version: int | None = None, body: int | None = None) -> bytes:
        """A quote over `report_data` (64 bytes), in the version that Intel's TDQE would choose unless told otherwise.

        Raises SimulatorError td.invalid, report.refused.
        """
        platform = self.platform
        service_hash = service_td_hash(self.configuration.service_tds)
        attributes = self.configuration.service_tds[0].attributes if self.configuration.service_tds else 0
        facts = ExtendedFacts(
            initial_cpu_svn=platform.certified.qe_report[:16],
            initial_svn=self.launch_svn,
            initial_fmspc=self.initial_fmspc + bytes(6),
            initial_service_td_hash=service_hash,
            initial_service_td_attributes=attributes.to_bytes(8, "little"),
            service_td_attributes=attributes.to_bytes(8, "little"),
        )
        quote = platform.quote_report(self.report(report_data), version=version, body=body, extended=facts)
        return quote.ljust(self.configuration.pad_to, b"\0")

    def restart(self) -> None:
        """Shut down and launch again in place: same image and configuration, registers and log as after boot."""
        self._start()

    def clone(self, label: str | None = None, *, platform: int | None = None) -> SimulatedTd:
        """A second domain from the same image and configuration, here or on another platform."""
        index = self._platform_index if platform is None else platform
        return SimulatedTd(self._machine, index, label or f"{self.label}-clone", self.configuration)

    def migrate(self, platform: int) -> None:
        """Move to another platform with all state, as a migration TD does. Raises SimulatorError td.invalid."""
        if not self.configuration.attributes & MIGRATABLE:
            raise _invalid("only a domain with the MIGRATABLE attribute moves")
        if self._machine.platform(platform).spec.ca != "platform":
            raise _invalid(f"platform {platform} has no TDX")
        self._platform_index = platform


def _invalid(detail: str) -> SimulatorError:
    return SimulatorError(SimulatorCode.TD_INVALID, detail)
