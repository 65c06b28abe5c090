"""The kernel's files of a TDX guest, as objects: the order of operations and the error numbers that Linux documents."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attestation.quote import Quote
from simulator.domain import SimulatedTd
from simulator.guest.fusefs import GuestFiles
from simulator.guest.mounts import Graft, plan
from simulator.guest.tsm import Measurements, Mischief, Reports
from simulator.machine import Machine

DATA = bytes(range(64))


@pytest.fixture(scope="module")
def machine() -> Machine:
    return Machine.create(seed="guest files")


@pytest.fixture
def td(machine: Machine) -> SimulatedTd:
    return machine.launch()


@pytest.fixture
def reports(td: SimulatedTd) -> Reports:
    found = Reports(td)
    found.make("r")
    return found


def number_of(action: Callable[[], Any]) -> str:
    with pytest.raises(OSError) as caught:
        action()
    return errno.errorcode[caught.value.errno or 0]


def write(reports: Reports, data: bytes, *, attribute: str = "inblob", name: str = "r") -> None:
    handle = reports.open(name, attribute, os.O_WRONLY)
    try:
        reports.write(handle, data, 0)
    finally:
        reports.flush(handle)
        reports.release(handle)


def read(reports: Reports, attribute: str, *, name: str = "r") -> bytes:
    handle = reports.open(name, attribute, os.O_RDONLY)
    try:
        return reports.read(handle, 1 << 20, 0)
    finally:
        reports.release(handle)


def test_a_request_is_made_written_read_and_removed(reports: Reports) -> None:
    assert read(reports, "provider") == b"tdx_guest\n"
    assert read(reports, "generation") == b"0\n"
    write(reports, DATA)
    assert read(reports, "generation") == b"1\n"
    assert Quote.parse(read(reports, "outblob")).report_data == DATA
    reports.remove("r")
    assert reports.names() == []


def test_the_quote_is_cached_until_something_is_written(reports: Reports, td: SimulatedTd) -> None:
    write(reports, DATA)
    first = read(reports, "outblob")
    td.extend_unlogged(3, bytes(48))
    assert read(reports, "outblob") == first
    write(reports, DATA)
    assert Quote.parse(read(reports, "outblob")).td.rtmrs[3] == td.rtmrs[3] != Quote.parse(first).td.rtmrs[3]
    assert read(reports, "generation") == b"2\n"


@pytest.mark.parametrize("size", [1, 63])
def test_a_short_inblob_is_refused_when_outblob_is_read(reports: Reports, size: int) -> None:
    write(reports, bytes(size))
    assert number_of(lambda: read(reports, "outblob")) == "EINVAL"


def test_a_long_inblob_is_refused_when_it_is_written(reports: Reports) -> None:
    assert number_of(lambda: write(reports, bytes(65))) == "EFBIG"
    assert read(reports, "generation") == b"0\n"


def test_outblob_before_inblob_is_refused(reports: Reports) -> None:
    assert number_of(lambda: read(reports, "outblob")) == "EINVAL"


def test_a_name_can_be_taken_once(reports: Reports) -> None:
    assert number_of(lambda: reports.make("r")) == "EEXIST"
    assert number_of(lambda: reports.make("n" * 256)) == "ENAMETOOLONG"
    assert number_of(lambda: reports.remove("other")) == "ENOENT"


@pytest.mark.parametrize(
    ("attribute", "flags"),
    [("inblob", os.O_RDONLY), ("outblob", os.O_WRONLY), ("provider", os.O_RDWR), ("generation", os.O_WRONLY)],
)
def test_a_direction_that_an_attribute_has_not_is_refused_even_to_root(
    reports: Reports, attribute: str, flags: int
) -> None:
    assert number_of(lambda: reports.open("r", attribute, flags)) == "EACCES"


def test_what_is_written_counts_when_the_opening_is_closed(reports: Reports) -> None:
    handle = reports.open("r", "inblob", os.O_WRONLY)
    reports.write(handle, DATA[:32], 0)
    assert read(reports, "generation") == b"0\n"
    reports.write(handle, DATA[32:], 32)
    reports.flush(handle)
    assert read(reports, "generation") == b"1\n"
    reports.release(handle)
    assert read(reports, "generation") == b"1\n"
    assert Quote.parse(read(reports, "outblob")).report_data == DATA


def test_a_copy_of_the_descriptor_that_is_closed_early_changes_nothing_unless_somebody_looks(reports: Reports) -> None:
    handle = reports.open("r", "inblob", os.O_WRONLY)
    reports.write(handle, DATA[:32], 0)
    reports.flush(handle)
    reports.write(handle, DATA[32:], 32)
    reports.flush(handle)
    reports.release(handle)
    assert read(reports, "generation") == b"1\n"


def test_an_attribute_is_read_as_it_was_at_the_first_read(reports: Reports) -> None:
    handle = reports.open("r", "generation", os.O_RDONLY)
    assert reports.read(handle, 10, 0) == b"0\n"
    write(reports, DATA)
    assert reports.read(handle, 10, 0) == b"0\n"
    assert reports.read(handle, 10, 2) == b""


def test_files_of_a_removed_request_are_gone(reports: Reports) -> None:
    reading, writing = reports.open("r", "generation", os.O_RDONLY), reports.open("r", "inblob", os.O_WRONLY)
    reports.remove("r")
    assert number_of(lambda: reports.read(reading, 10, 0)) == "ENOENT"
    assert number_of(lambda: reports.write(writing, DATA, 0)) == "ENOENT"
    reports.release(reading)
    reports.release(writing)
    assert number_of(lambda: reports.open("r", "generation", os.O_RDONLY)) == "ENOENT"


def test_a_busy_host_answers_later(td: SimulatedTd) -> None:
    reports = Reports(td, mischief=Mischief(busy=2))
    reports.make("r")
    write(reports, DATA)
    assert [number_of(lambda: read(reports, "outblob")) for _ in range(2)] == ["EBUSY", "EBUSY"]
    assert Quote.parse(read(reports, "outblob")).report_data == DATA


def test_another_process_that_writes_shows_in_the_generation(td: SimulatedTd) -> None:
    reports = Reports(td, mischief=Mischief(interfere=1))
    for name in ("r", "s"):
        reports.make(name)
        write(reports, DATA, name=name)
    assert read(reports, "generation", name="r") == b"2\n"
    assert Quote.parse(read(reports, "outblob", name="r")).report_data != DATA
    assert read(reports, "generation", name="s") == b"1\n"


def test_tdx_has_neither_auxblob_nor_privilege_levels(reports: Reports) -> None:
    assert number_of(lambda: reports.open("r", "auxblob", os.O_RDONLY)) == "ENOENT"
    assert number_of(lambda: reports.open("r", "privlevel", os.O_WRONLY)) == "ENOENT"


def test_other_attributes_can_be_shown_and_behave_as_documented(td: SimulatedTd) -> None:
    reports = Reports(td, other_attributes=True)
    reports.make("r")
    assert number_of(lambda: read(reports, "auxblob")) == "EINVAL"
    write(reports, DATA)
    assert read(reports, "auxblob") == b""
    assert read(reports, "privlevel_floor") == b"0\n"
    write(reports, b"3\n", attribute="privlevel")
    assert read(reports, "generation") == b"2\n"
    for bad in (b"4", b"-1", b"high", b""):
        assert number_of(lambda bad=bad: write(reports, bad, attribute="privlevel")) == "EINVAL"  # type: ignore[misc]
    assert number_of(lambda: reports.open("r", "privlevel", os.O_RDONLY)) == "EACCES"


# --- registers ---


def test_a_register_is_extended_by_48_bytes_and_by_nothing_else(td: SimulatedTd) -> None:
    files = Measurements(td)
    digest = hashlib.sha384(b"event").digest()
    assert files.write("rtmr3:sha384", digest, 0) == 48
    assert files.read("rtmr3:sha384", 100, 0) == hashlib.sha384(bytes(48) + digest).digest() == td.rtmrs[3]
    for data, offset in ((digest[:47], 0), (digest + b"\0", 0), (digest, 1), (b"", 0)):
        assert number_of(lambda data=data, offset=offset: files.write("rtmr3:sha384", data, offset)) == "EINVAL"  # type: ignore[misc]
    assert files.read("rtmr3:sha384", 4, 46) == td.rtmrs[3][46:]


def test_what_the_host_chose_can_be_read_only(machine: Machine) -> None:
    td = machine.launch(mr_config_id=b"\x01" * 48, mr_owner=b"\x02" * 48, mr_owner_config=b"\x03" * 48)
    files = Measurements(td)
    assert files.read("mrtd:sha384", 48, 0) == td.mr_td
    assert [files.read(name, 1, 0) for name in ("mrconfigid", "mrowner", "mrownerconfig")] == [b"\1", b"\2", b"\3"]
    assert number_of(lambda: files.open("mrtd:sha384", os.O_WRONLY)) == "EACCES"
    assert number_of(lambda: files.open("rtmr4:sha384", os.O_RDONLY)) == "ENOENT"
    files.open("rtmr3:sha384", os.O_RDWR)


# --- paths ---


def test_the_tree_has_only_what_the_kernel_has(td: SimulatedTd) -> None:
    files = GuestFiles(Reports(td), Measurements(td))
    assert number_of(lambda: files.mkdir("/measurements/x", 0o755)) == "EPERM"
    assert number_of(lambda: files.mkdir("/x", 0o755)) == "EPERM"
    files.mkdir("/report/r", 0o755)
    assert sorted(files.readdir("/report/r", 0)) == [".", "..", "generation", "inblob", "outblob", "provider"]
    for path in ("/report/q", "/report/r/auxblob", "/measurements/rtmr9", "/else", "/report/r/inblob/x", "/a/b/c/d"):
        assert number_of(lambda path=path: files.getattr(path)) == "ENOENT"  # type: ignore[misc]
    assert number_of(lambda: files.mkdir("/report/r/x", 0o755)) == "EPERM"
    assert number_of(lambda: files.rmdir("/report")) == "EPERM"
    assert number_of(lambda: files.rmdir("/measurements")) == "EPERM"
    assert number_of(lambda: files.unlink("/report/r/inblob")) == "EPERM"
    assert number_of(lambda: files.create("/report/r/new", 0o644)) == "EACCES"
    assert number_of(lambda: files.rename("/report/r", "/report/s")) == "EPERM"
    assert files.getattr("/measurements/rtmr3:sha384")["st_size"] == 48


def test_a_path_is_grafted_into_the_deepest_directory_that_exists(tmp_path: Path) -> None:
    (tmp_path / "sys/kernel/mm").mkdir(parents=True)
    (tmp_path / "sys/kernel/notes").touch()
    (tmp_path / "sys/kernel/link").symlink_to("mm")
    source = Path("/somewhere")
    assert plan({Path("/sys/kernel/config/tsm/report"): Graft(source=source)}, tmp_path) == [
        *("--tmpfs", "/sys/kernel"),
        *("--symlink", "mm", "/sys/kernel/link"),
        *("--dev-bind-try", "/sys/kernel/mm", "/sys/kernel/mm"),
        *("--dev-bind-try", "/sys/kernel/notes", "/sys/kernel/notes"),
        *("--dir", "/sys/kernel/config", "--dir", "/sys/kernel/config/tsm"),
        *("--dev-bind", "/somewhere", "/sys/kernel/config/tsm/report"),
    ]


def test_a_directory_that_exists_is_covered_last(tmp_path: Path) -> None:
    (tmp_path / "run/cloister").mkdir(parents=True)
    grafts = {
        Path("/run/cloister"): Graft(),
        Path("/run/a.sock"): Graft(source=Path("/s")),
        Path("/run/l"): Graft(target="a"),
    }
    assert plan(grafts, tmp_path) == [
        *("--tmpfs", "/run", "--dev-bind-try", "/run/cloister", "/run/cloister"),
        *("--dev-bind", "/s", "/run/a.sock", "--symlink", "a", "/run/l"),
        *("--perms", "0700", "--tmpfs", "/run/cloister"),
    ]
