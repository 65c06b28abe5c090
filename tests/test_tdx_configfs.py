"""The real trust domain's code against a directory tree that misbehaves the way kernels and hosts do.

That it works is shown where the kernel's files are, in `test_guest_sandbox`; here every way to fail has its code, no
request directory is left behind, and a register that was not extended is not in the log.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path, PosixPath
from typing import Any, ClassVar

import pytest

import enclave.tdx
from attestation.errors import MalformedEvidence
from attestation.eventlog import MAX_LOG, EventLog, LogBuilder
from enclave.errors import TdxError
from enclave.tdx import MAX_QUOTE, TdxTrustDomain
from simulator.machine import Machine

DATA = bytes(range(64))
DIGEST = hashlib.sha384(b"event").digest()
MACHINE = Machine.create(seed="configfs")
QUOTE = MACHINE.launch().quote(DATA)


class ConfigFs(PosixPath):
    """A directory in which mkdir makes a request's files and rmdir takes them away, as configfs does."""

    files: ClassVar[dict[str, bytes]] = {}
    failures: ClassVar[list[int]] = []
    made: ClassVar[list[str]] = []

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        ConfigFs.made.append(self.name)
        if ConfigFs.failures:
            number = ConfigFs.failures.pop(0)
            raise OSError(number, os.strerror(number), str(self))
        super().mkdir(mode, parents, exist_ok)
        for name, content in ConfigFs.files.items():
            (self / name).write_bytes(content)

    def rmdir(self) -> None:
        for path in self.iterdir():
            path.unlink()
        super().rmdir()


@pytest.fixture
def reports(tmp_path: Path) -> ConfigFs:
    ConfigFs.files = {"provider": b"tdx_guest\n", "inblob": b"", "outblob": QUOTE, "generation": b"1\n"}
    ConfigFs.failures = []
    ConfigFs.made = []
    (tmp_path / "report").mkdir()
    return ConfigFs(tmp_path / "report")


@pytest.fixture
def pauses() -> list[float]:
    return []


@pytest.fixture
def domain(reports: ConfigFs, tmp_path: Path, pauses: list[float]) -> TdxTrustDomain:
    return TdxTrustDomain(
        reports=reports,
        measurements=tmp_path / "measurements",
        ccel=tmp_path / "CCEL",
        runtime_log=tmp_path / "private" / "events",
        pause=pauses.append,
    )


def code_of(action: Callable[[], Any]) -> str:
    with pytest.raises(TdxError) as caught:
        action()
    return caught.value.code


# --- what is there at all ---


def test_a_machine_without_tdx_is_told_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(TdxError) as caught:
        TdxTrustDomain(reports=tmp_path / "config" / "tsm" / "report")
    assert caught.value.code == "tdx.missing"
    assert str(tmp_path / "config") in caught.value.detail
    assert "--simulated" in caught.value.remedy


def test_tests_can_forbid_hardware(monkeypatch: pytest.MonkeyPatch, reports: ConfigFs) -> None:
    monkeypatch.setattr(enclave.tdx, "ALLOW_REAL_TDX", False)
    assert code_of(TdxTrustDomain) == "tdx.forbidden"
    assert TdxTrustDomain(reports=reports).name == "tdx"


# --- quotes ---


def test_a_quote_over_the_data_is_returned_and_the_request_removed(domain: TdxTrustDomain, reports: ConfigFs) -> None:
    assert domain.quote(DATA) == QUOTE
    assert list(reports.iterdir()) == []
    assert (domain.name, domain.simulated) == ("tdx", False)


def test_padding_of_the_host_is_kept(domain: TdxTrustDomain) -> None:
    ConfigFs.files["outblob"] = QUOTE.ljust(8000, b"\0")
    assert len(domain.quote(DATA)) == 8000


def test_report_data_of_another_length_is_a_mistake_of_the_caller(domain: TdxTrustDomain) -> None:
    with pytest.raises(ValueError, match="64"):
        domain.quote(DATA[:63])
    assert ConfigFs.made == []


@pytest.mark.parametrize(
    ("file", "content", "code"),
    [
        ("provider", b"sev_guest\n", "tdx.provider_mismatch"),
        ("provider", b"\xff\xfe", "tdx.failed"),
        ("outblob", MACHINE.launch().quote(bytes(64)), "tdx.quote_mismatch"),
        ("outblob", MACHINE.platform().sgx_quote(DATA), "tdx.quote_mismatch"),
        ("outblob", bytes(MAX_QUOTE + 1), "tdx.quote_too_large"),
    ],
    ids=["another machine", "no text", "other data", "sgx", "too large"],
)
def test_an_answer_that_cannot_be_used_has_a_code(
    domain: TdxTrustDomain, reports: ConfigFs, file: str, content: bytes, code: str
) -> None:
    ConfigFs.files[file] = content
    assert code_of(lambda: domain.quote(DATA)) == code
    assert list(reports.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"garbage", QUOTE[:-1]])
def test_bytes_that_are_no_quote_keep_their_own_code(domain: TdxTrustDomain, content: bytes) -> None:
    ConfigFs.files["outblob"] = content
    with pytest.raises(MalformedEvidence) as caught:
        domain.quote(DATA)
    assert caught.value.code.startswith("quote.")


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.EACCES, "tdx.permission_denied"),
        (errno.EPERM, "tdx.permission_denied"),
        (errno.ENXIO, "tdx.provider_mismatch"),
        (errno.EIO, "tdx.failed"),
        (errno.EFBIG, "tdx.failed"),
        (errno.ENOENT, "tdx.missing"),
    ],
)
def test_each_error_of_the_kernel_has_a_code(domain: TdxTrustDomain, number: int, code: str) -> None:
    ConfigFs.failures = [number]
    assert code_of(lambda: domain.quote(DATA)) == code
    assert len(ConfigFs.made) == 1


def test_an_interface_without_the_files_is_missing_something(domain: TdxTrustDomain, reports: ConfigFs) -> None:
    ConfigFs.files.pop("provider")
    assert code_of(lambda: domain.quote(DATA)) == "tdx.missing"
    assert list(reports.iterdir()) == []


@pytest.mark.parametrize("number", [errno.EBUSY, errno.ETIMEDOUT])
def test_a_busy_host_is_asked_again_in_a_new_directory(
    domain: TdxTrustDomain, pauses: list[float], number: int
) -> None:
    ConfigFs.failures = [number, number]
    assert domain.quote(DATA) == QUOTE
    assert pauses == [0.25, 0.5]
    assert len(set(ConfigFs.made)) == 3


def test_a_host_that_stays_busy_is_given_up(reports: ConfigFs, pauses: list[float]) -> None:
    domain = TdxTrustDomain(reports=reports, patience_s=0, pause=pauses.append)
    ConfigFs.failures = [errno.EBUSY]
    assert code_of(lambda: domain.quote(DATA)) == "tdx.busy"
    assert pauses == []


def test_interference_is_noticed_by_the_generation(reports: ConfigFs) -> None:
    domain = TdxTrustDomain(reports=reports, patience_s=0)
    ConfigFs.files["generation"] = b"2\n"
    assert code_of(lambda: domain.quote(DATA)) == "tdx.clash"
    assert list(reports.iterdir()) == []


# --- registers ---


@pytest.fixture
def register(tmp_path: Path) -> Path:
    """A file that keeps what is written instead of hashing it."""
    (tmp_path / "measurements").mkdir()
    path = tmp_path / "measurements" / "rtmr3:sha384"
    path.write_bytes(bytes(48))
    return path


def extend(domain: TdxTrustDomain, *, register: int = 3, digest: bytes = DIGEST, data: bytes = b"event") -> None:
    domain.extend(register, digest, event_type=6, data=data)


def logged(tmp_path: Path) -> int:
    raw = (tmp_path / "private" / "events").read_bytes()
    return len(EventLog.parse_ccel(raw).entries) if raw else 0


def test_only_the_four_registers_take_only_digests(domain: TdxTrustDomain) -> None:
    assert code_of(lambda: extend(domain, register=4)) == "tdx.register_invalid"
    assert code_of(lambda: extend(domain, register=-1)) == "tdx.register_invalid"
    assert code_of(lambda: extend(domain, digest=DIGEST[:20])) == "tdx.register_invalid"


def test_an_older_kernel_has_no_registers_and_nothing_is_logged(domain: TdxTrustDomain, tmp_path: Path) -> None:
    assert code_of(lambda: extend(domain)) == "tdx.missing"
    assert logged(tmp_path) == 0


def test_a_register_that_refuses_leaves_no_line_in_the_log(
    domain: TdxTrustDomain, register: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, content: bytes) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), str(path))

    monkeypatch.setattr(enclave.tdx, "_write_once", refuse)
    assert code_of(lambda: extend(domain)) == "tdx.failed"
    assert logged(tmp_path) == 0


def test_a_register_that_somebody_else_extended_too_is_a_clash_and_stays_logged(
    domain: TdxTrustDomain, register: Path, tmp_path: Path
) -> None:
    assert code_of(lambda: extend(domain)) == "tdx.clash"
    assert register.read_bytes() == DIGEST
    assert logged(tmp_path) == 1


def test_a_register_of_another_size_is_not_believed(domain: TdxTrustDomain, register: Path) -> None:
    register.write_bytes(bytes(47))
    assert code_of(lambda: domain.read_register(3)) == "tdx.failed"


# --- the log ---


def test_the_log_is_a_private_file(domain: TdxTrustDomain, register: Path, tmp_path: Path) -> None:
    code_of(lambda: extend(domain))
    log = tmp_path / "private" / "events"
    assert log.stat().st_mode & 0o777 == 0o600
    assert log.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("kind", ["writable by others", "a link", "a directory", "damaged", "full"])
def test_a_log_that_cannot_be_relied_on_stops_every_extension(
    domain: TdxTrustDomain, register: Path, tmp_path: Path, kind: str
) -> None:
    log = tmp_path / "private" / "events"
    log.parent.mkdir()
    if kind == "a directory":
        log.mkdir()
    elif kind == "a link":
        log.symlink_to(tmp_path / "elsewhere")
    elif kind == "damaged":
        log.write_bytes(b"garbage")
    elif kind == "full":
        builder = LogBuilder()
        builder.append(3, DIGEST, event_type=6, data=bytes(MAX_LOG - 1000))
        log.write_bytes(builder.encode())
    else:
        log.touch()
        log.chmod(0o622)
    assert code_of(lambda: extend(domain, data=bytes(900))) == "tdx.log_unusable"
    assert register.read_bytes() == bytes(48)


def test_boot_log_and_run_time_log_are_one(domain: TdxTrustDomain, register: Path, tmp_path: Path) -> None:
    boot = LogBuilder()
    boot.append(0, DIGEST, event_type=4, data=b"boot")
    (tmp_path / "CCEL").write_bytes(boot.encode().ljust(4096, b"\xff"))
    assert EventLog.parse(domain.event_log()).entries == boot.log.entries
    for _ in range(2):
        code_of(lambda: extend(domain))
    entries = EventLog.parse(domain.event_log()).entries
    assert [(entry.register, entry.data) for entry in entries] == [(0, b"boot"), (3, b"event"), (3, b"event")]


def test_a_boot_log_that_is_missing_or_damaged_is_told_apart(domain: TdxTrustDomain, tmp_path: Path) -> None:
    assert code_of(domain.event_log) == "tdx.missing"
    (tmp_path / "CCEL").write_bytes(b"garbage")
    with pytest.raises(MalformedEvidence) as caught:
        domain.event_log()
    assert caught.value.code == "eventlog.malformed"
