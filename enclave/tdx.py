"""The trust domain of a Linux guest: quotes from configfs-tsm, registers from sysfs, the log from ACPI and a file.

Decides how the kernel is asked and what of its answers is believed: a quote only if it parses and carries the
REPORTDATA that was asked for, a register only after it has been read back. Whether a quote is genuine is for its
receiver to find out.

    quote      mkdir /sys/kernel/config/tsm/report/<random>, write 64 bytes to inblob, read outblob, check provider and
               generation, rmdir. EBUSY and ETIMEDOUT mean that the host has not finished an earlier request: wait, and
               ask again in a new directory, for a bounded time.
    register   /sys/devices/virtual/misc/tdx_guest/measurements/rtmr<n>:sha384, 48 bytes to read or to extend with
    event log  /sys/firmware/acpi/tables/data/CCEL is what firmware and boot loader wrote. The kernel appends nothing to
               it, so what is extended here goes to a file of our own, in the same form; both together are the log.

All paths are arguments, so that tests and unusual images can name others.

Sources: Linux Documentation/ABI/testing/configfs-tsm-report (6.7) and sysfs-devices-virtual-misc-tdx_guest (6.16);
Intel GHCI, TDG.VP.VMCALL<GetQuote>; ACPI 6.5, 5.2.34 (CCEL).
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import hmac
import os
import secrets
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, final

from attestation.errors import MalformedEvidence
from attestation.eventlog import MAX_LOG, Event, EventLog
from attestation.quote import Quote, Tee
from enclave.errors import Code, TdxError

ALLOW_REAL_TDX = os.environ.get("CLOISTER_ALLOW_REAL_TDX") != "0"
"""Set to False in tests: then no `TdxTrustDomain` over the kernel's own paths can be made in this process."""

REPORTS: Final = Path("/sys/kernel/config/tsm/report")
MEASUREMENTS: Final = Path("/sys/devices/virtual/misc/tdx_guest/measurements")
CCEL: Final = Path("/sys/firmware/acpi/tables/data/CCEL")
RUNTIME_LOG: Final = Path("/run/cloister/rtmr-events")

REPORT_DATA_LEN: Final = 64
DIGEST_LEN: Final = 48
MAX_QUOTE: Final = 128 << 10
"""Bytes: the size of the buffer in the newest kernels. Real quotes have 4 to 16 KiB."""
PATIENCE_S: Final = 75.0
"""For one quote, retries included. The kernel itself gives the host 30 s for each."""
_PROVIDER: Final = "tdx_guest"
_FIRST_PAUSE_S: Final = 0.25
_LONGEST_PAUSE_S: Final = 10.0
_BUSY: Final = frozenset((errno.EBUSY, errno.ETIMEDOUT))
_RETRIED: Final = frozenset((Code.TDX_BUSY, Code.TDX_CLASH))
_LOG_HEADER: Final = EventLog(()).to_ccel()


@final
class TdxTrustDomain:
    """The trust domain of this machine; a `TrustDomain`. Safe to use from several threads and processes.

    Making one checks that the kernel offers reports, and nothing more; raises TdxError tdx.missing, tdx.forbidden.
    """

    name: Final = "tdx"
    simulated: Final = False

    def __init__(
        self,
        *,
        reports: Path = REPORTS,
        measurements: Path = MEASUREMENTS,
        ccel: Path = CCEL,
        runtime_log: Path = RUNTIME_LOG,
        patience_s: float = PATIENCE_S,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        if not ALLOW_REAL_TDX and reports == REPORTS:
            raise TdxError(Code.TDX_FORBIDDEN, f"{reports} is the kernel's own path")
        self._reports = reports
        self._measurements = measurements
        self._ccel = ccel
        self._runtime_log = runtime_log
        self._patience_s = patience_s
        self._pause = pause
        self._lock = threading.Lock()
        if not reports.is_dir():
            raise TdxError(Code.TDX_MISSING, _first_missing(reports))

    def quote(self, report_data: bytes) -> bytes:
        """A quote over exactly 64 bytes, as the host returned it (zero padding included), at most 128 KiB.

        Takes up to `patience_s`, and longer only where the kernel does not return from the last try. Raises ValueError
        for another length, MalformedEvidence (quote.*) for a quote that does not parse, TdxError: tdx.busy, tdx.clash,
        tdx.failed, tdx.missing, tdx.permission_denied, tdx.provider_mismatch, tdx.quote_mismatch, tdx.quote_too_large.
        """
        if len(report_data) != REPORT_DATA_LEN:
            raise ValueError(f"report_data has {REPORT_DATA_LEN} bytes, not {len(report_data)}")
        deadline = time.monotonic() + self._patience_s
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                raw = self._request(report_data)
                break
            except TdxError as error:
                if error.code not in _RETRIED:
                    raise
                if time.monotonic() + pause_s > deadline:
                    raise TdxError(error.code, f"{error.detail}; gave up after {self._patience_s:g} s") from None
            self._pause(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        quote = Quote.parse(raw)
        if quote.tee is not Tee.TDX or not hmac.compare_digest(quote.report_data, report_data):
            raise TdxError(Code.TDX_QUOTE, f"a {quote.tee} quote over {quote.report_data.hex()}")
        return raw

    def read_register(self, register: int) -> bytes:
        """RTMR 0 to 3 as it is now, 48 bytes. Raises TdxError: tdx.register_invalid, tdx.missing, …"""
        path = self._register_path(register)
        with _translated(path):
            value = path.read_bytes()
        if len(value) != DIGEST_LEN:
            raise TdxError(Code.TDX_FAILED, f"{path} has {len(value)} bytes, not {DIGEST_LEN}")
        return value

    def extend(self, register: int, digest: bytes, *, event_type: int, data: bytes) -> None:
        """RTMR := SHA-384(RTMR ‖ digest), and a line in the run-time log.

        The line is written first and taken back if the kernel refuses, so that a crash never leaves an extension that
        nothing explains. Raises TdxError: tdx.register_invalid, tdx.missing, tdx.permission_denied, tdx.failed,
        tdx.log_unusable, and tdx.clash (done, but something else extended the same register at the same moment).
        """
        path = self._register_path(register)
        if len(digest) != DIGEST_LEN:
            raise TdxError(Code.TDX_REGISTER, f"a digest has {DIGEST_LEN} bytes, not {len(digest)}")
        record = EventLog((Event(register, event_type, digest, data),)).to_ccel()[len(_LOG_HEADER) :]
        with self._lock, self._open_log() as log:
            before = self.read_register(register)
            _parse_log(log, self._runtime_log)
            end = os.fstat(log).st_size
            if len(_LOG_HEADER) + end + len(record) > MAX_LOG:
                raise TdxError(Code.TDX_LOG, f"{self._runtime_log} is full")
            try:
                with _translated(self._runtime_log):
                    _append(log, record if end else _LOG_HEADER + record)
                with _translated(path):
                    _write_once(path, digest)
            except TdxError:
                os.ftruncate(log, end)
                raise
            after = self.read_register(register)
        if after != hashlib.sha384(before + digest).digest():
            raise TdxError(Code.TDX_CLASH, f"RTMR{register} does not hold what extending it once leads to")

    def event_log(self) -> bytes:
        """The boot log and everything extended since by way of `extend`, as CCEL data.

        Raises TdxError: tdx.missing, tdx.permission_denied, tdx.log_unusable; MalformedEvidence (eventlog.*) when the
        boot log makes no sense.
        """
        with _translated(self._ccel), self._ccel.open("rb") as file:
            boot = EventLog.parse_ccel(file.read(MAX_LOG + 1))
        with self._lock:
            with _translated(self._runtime_log):
                nothing_extended = not self._runtime_log.exists()
            if nothing_extended:
                return boot.to_ccel()
            with self._open_log() as log:
                later = _parse_log(log, self._runtime_log)
        return EventLog((*boot.entries, *later)).to_ccel()

    def _request(self, report_data: bytes) -> bytes:
        """One request in a directory of its own."""
        directory = self._reports / f"cloister-{secrets.token_hex(16)}"
        with _translated(self._reports):
            directory.mkdir(mode=0o700)
        try:
            with _translated(directory):
                provider = (directory / "provider").read_text("ascii").strip()
                if provider != _PROVIDER:
                    raise TdxError(Code.TDX_PROVIDER, f"the provider is {provider!r}, not {_PROVIDER!r}")
                _write_once(directory / "inblob", report_data)
                raw = _read_at_once(directory / "outblob", MAX_QUOTE + 1)
                generation = (directory / "generation").read_text("ascii").strip()
        finally:
            with suppress(OSError):  # configfs wants a plain rmdir; what fails here failed above and is reported there
                directory.rmdir()
        if generation != "1":
            raise TdxError(Code.TDX_CLASH, f"generation {generation} after one write")
        if len(raw) > MAX_QUOTE:
            raise TdxError(Code.TDX_TOO_LARGE, f"more than {MAX_QUOTE} bytes")
        return raw

    def _register_path(self, register: int) -> Path:
        if register not in range(4):
            raise TdxError(Code.TDX_REGISTER, f"there is no RTMR{register}")
        return self._measurements / f"rtmr{register}:sha384"

    @contextmanager
    def _open_log(self) -> Iterator[int]:
        """The run-time log, locked against other processes. It must be a plain file that only this user can write."""
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._runtime_log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            log = os.open(self._runtime_log, flags, 0o600)
        except OSError as error:
            raise TdxError(Code.TDX_LOG, f"{self._runtime_log}: {error.strerror}") from None
        try:
            status = os.fstat(log)
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
                detail = f"{self._runtime_log} has mode {status.st_mode:o} and owner {status.st_uid}"
                raise TdxError(Code.TDX_LOG, detail)
            fcntl.flock(log, fcntl.LOCK_EX)
            yield log
        finally:
            os.close(log)


def _parse_log(log: int, path: Path) -> tuple[Event, ...]:
    raw = os.pread(log, MAX_LOG + 1, 0)
    try:
        return EventLog.parse_ccel(raw).entries if raw else ()
    except MalformedEvidence as error:
        raise TdxError(Code.TDX_LOG, f"{path}: {error.detail}") from error


def _append(log: int, record: bytes) -> None:
    written = os.write(log, record)
    if written != len(record):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _write_once(path: Path, content: bytes) -> None:
    """The kernel takes each of these files in one write, or not at all."""
    file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        written = os.write(file, content)
    finally:
        os.close(file)
    if written != len(content):
        raise OSError(errno.EIO, f"took {written} of {len(content)} bytes")


def _read_at_once(path: Path, size: int) -> bytes:
    """The quote is made at the first read and belongs to this opening; the file cannot seek."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = [os.read(file, size)]
        while parts[-1] and sum(map(len, parts)) < size:
            parts.append(os.read(file, size))
    finally:
        os.close(file)
    return b"".join(parts)


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """What the kernel's error numbers mean here."""
    try:
        yield
    except OSError as error:
        where = error.filename or path
        detail = f"{where}: {error.strerror} ({errno.errorcode.get(error.errno or 0, error.errno)})"
        if error.errno in _BUSY:
            raise TdxError(Code.TDX_BUSY, detail) from None
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise TdxError(Code.TDX_MISSING, _first_missing(Path(where))) from None
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise TdxError(Code.TDX_PERMISSION, detail) from None
        if error.errno == errno.ENXIO:
            raise TdxError(Code.TDX_PROVIDER, f"{detail}: no driver provides reports") from None
        raise TdxError(Code.TDX_FAILED, detail) from None
    except UnicodeDecodeError:
        raise TdxError(Code.TDX_FAILED, f"{path}: not text") from None


def _first_missing(path: Path) -> str:
    """Which part of a path is not there, which says more than the whole of it."""
    missing = path
    while not missing.parent.exists():
        missing = missing.parent
    return f"{missing} does not exist" if missing == path else f"{missing} does not exist, so neither does {path}"
