"""`cloister sim run`: runs any program inside a simulated trust domain, with everything where hardware would put it.

Decides what stands where in the sandbox, whose signals and exit status are whose, and that nothing outlives the
program. The parts (files, sockets, mounts) are made by their modules.

    this process ── serves FUSE, QGS and dstack's socket; in a mount namespace of its own
      └ bwrap     ── builds the sandbox, dies with this process
          └ init  ── process 1 of a PID namespace; passes signals on
              └ PROGRAM and its children; they die with process 1

Standard input, output and error, exit status and death by signal are PROGRAM's. This process says what it has to say on
standard error. When it is killed, bubblewrap takes process 1 along and the kernel the rest; the mounts go with the
namespace, so there is nothing to clean up at the next start.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from ctypes.util import find_library
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from simulator import ccel
from simulator.guest import init, mounts
from simulator.guest.mounts import Graft
from simulator.guest.tsm import Measurements, Mischief, Reports

if TYPE_CHECKING:
    from simulator.domain import SimulatedTd
    from simulator.machine import Machine

USAGE: Final = 2
MARK: Final = "▨▨"
"""In front of everything that is simulated, in every display."""
CCEL_AREA: Final = 64 << 10
"""Bytes of the log area that firmware reserves; the rest of it is 0xFF."""
QGS_SOCKET: Final = Path("/run/tdx-qgs/qgs.socket")
DSTACK_SOCKETS: Final = (
    Path("/run/dstack.sock"),
    Path("/run/dstack/dstack.sock"),
    Path("/run/tappd.sock"),
    Path("/run/dstack/tappd.sock"),
)
_SYS: Final = Path("/sys")
_TABLES: Final = _SYS / "firmware/acpi/tables"
_MISC: Final = _SYS / "devices/virtual/misc/tdx_guest"
_WATCHED: Final = init.PASSED_ON | {signal.SIGCHLD}


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """Which trust domain is launched for the program, and what the sandbox offers beside it."""

    label: str = "td"
    platform: int = 0
    """Index of the machine's platform"""
    launch: Mapping[str, Any] = field(default_factory=dict)
    """Further options of `Machine.launch`"""
    mischief: Mischief = field(default_factory=Mischief)
    other_attributes: bool = False
    """Show the report files that the driver of TDX hides (auxblob, privlevel, privlevel_floor)"""
    dstack: bool = False
    """Extend RTMR3 with what dstack's images measure at boot"""
    qgs_port: int | None = None
    """Answer QGS on this TCP port of the loopback interface too; 0 lets the kernel choose"""
    quiet: bool = False


class SandboxError(Exception):
    """The sandbox cannot be built here; the text says what to install or who to be."""


def missing() -> str | None:
    """What this machine lacks for a sandbox, in one line that names the package; None when it lacks nothing."""
    if not sys.platform.startswith("linux"):
        return "needs Linux"
    if find_spec("mfusepy") is None:
        return "needs the Python package mfusepy: pip install 'cloister[simulator]'"
    if find_library("fuse3") is None:
        return "needs libfuse 3: apt install fuse3"
    if shutil.which("bwrap") is None:
        return "needs bubblewrap: apt install bubblewrap"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "needs /dev/fuse: modprobe fuse, and in a container --device /dev/fuse"
    return None


def run(machine: Machine, program: Sequence[str], guest: Guest | None = None) -> int:
    """Run `program` in a fresh domain and return its exit status; a signal that killed it kills this process too.

    Call it from the main thread of a process that does nothing else: it moves itself to another mount namespace and
    blocks signals. Raises SandboxError when the sandbox cannot be built, SimulatorError when the domain cannot.
    """
    lacking = missing()
    if lacking:
        raise SandboxError(lacking)
    guest = guest or Guest()
    td = machine.launch(guest.label, platform=guest.platform, **guest.launch)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    work = _private_directory()
    with ExitStack() as stack:
        grafts = stack.enter_context(_served(machine, td, guest, work))
        status, killed_by = _supervise(work, grafts, program, before)
    if killed_by:
        _die_of(killed_by, before)
    return status


def _private_directory() -> Path:
    """A tmpfs in a mount namespace that only this process and its children have. Its mount point stays, empty."""
    parent = Path("/run") if os.access("/run", os.W_OK) else Path(tempfile.gettempdir())
    work = parent / f"cloister-sim-{os.geteuid()}"
    try:
        work.mkdir(mode=0o700, exist_ok=True)
        status = work.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            raise SandboxError(f"{work} is somebody else's; remove it")
        mounts.enter_private_namespace()
        mounts.mount_tmpfs(work)
    except OSError as error:
        raise SandboxError(f"needs root, or user namespaces open to everybody ({error.strerror})") from None
    return work


@contextmanager
def _served(machine: Machine, td: SimulatedTd, guest: Guest, work: Path) -> Iterator[dict[Path, Graft]]:
    """Everything that answers while the program runs, and where in the sandbox it shall stand."""
    from simulator.guest.dstack import GuestAgent
    from simulator.guest.dstack_http import serving
    from simulator.guest.fusefs import MEASUREMENTS, REPORT, GuestFiles, mounted
    from simulator.guest.qgs import QgsServer

    fuse, sockets = work / "fuse", work / "sockets"
    for folder in (fuse, sockets):
        folder.mkdir(mode=0o700)
    reports = Reports(td, mischief=guest.mischief, other_attributes=guest.other_attributes)
    with ExitStack() as stack:
        try:
            stack.enter_context(mounted(GuestFiles(reports, Measurements(td)), fuse))
        except OSError as error:
            raise SandboxError(str(error.strerror)) from None
        qgs = stack.enter_context(QgsServer(machine, guest.platform, unix=sockets / "qgs", port=guest.qgs_port))
        stack.enter_context(serving(GuestAgent(machine, td, booted=guest.dstack), sockets / "dstack"))
        if not guest.quiet:
            _announce(td, qgs.address)
        yield {
            _SYS / "kernel/config/tsm/report": Graft(source=fuse / REPORT),
            _MISC / "measurements": Graft(source=fuse / MEASUREMENTS),
            _SYS / "class/misc/tdx_guest": Graft(target="../../devices/virtual/misc/tdx_guest"),
            **_event_log(td, work),
            QGS_SOCKET: Graft(source=sockets / "qgs"),
            **{path: Graft(source=sockets / "dstack") for path in DSTACK_SOCKETS},
            Path("/run/cloister"): Graft(),
        }


def _event_log(td: SimulatedTd, work: Path) -> dict[Path, Graft]:
    """The CCEL table and its log as firmware left them. The kernel appends nothing, so these are plain files."""
    log, table = work / "ccel-data", work / "ccel-table"
    log.write_bytes(td.configuration.image.log.ljust(CCEL_AREA, b"\xff"))
    table.write_bytes(ccel.table(CCEL_AREA))
    for path in (log, table):
        path.chmod(0o400)
    return {_TABLES / "CCEL": Graft(source=table), _TABLES / "data/CCEL": Graft(source=log)}


def _announce(td: SimulatedTd, address: str) -> None:
    where = f", QGS at {address}" if address else ""
    print(
        f"cloister: {MARK} SIMULATED trust domain {td.label!r}: no hardware protects it{where} {MARK}", file=sys.stderr
    )


def _supervise(
    work: Path, grafts: dict[Path, Graft], program: Sequence[str], mask: set[signal.Signals | int]
) -> tuple[int, int]:
    """Start bubblewrap, pass signals on until it ends; exit status, and the signal that killed the program or 0."""
    info_read, info_write = os.pipe()
    status_read, status_write = os.pipe()
    command = [
        *("bwrap", "--die-with-parent", "--unshare-pid", "--as-pid-1", "--dev-bind", "/", "/", "--proc", "/proc"),
        *("--chdir", str(Path.cwd())),
        *mounts.plan(grafts),
        *("--info-fd", str(info_write), "--", sys.executable, "-I", "-S", init.__file__, str(status_write)),
        *(",".join(str(int(number)) for number in mask), *program),
    ]
    try:
        bwrap = subprocess.Popen(command, pass_fds=(info_write, status_write))
    finally:
        os.close(info_write)
        os.close(status_write)
    process_1 = _process_1(info_read)
    while bwrap.poll() is None:
        received = signal.sigwaitinfo(_WATCHED)
        if received.si_signo != signal.SIGCHLD and received.si_code <= 0 and process_1:
            _send(process_1, received.si_signo)
    with os.fdopen(status_read) as file:
        word, _, number = file.read().strip().partition(" ")
    if not word:
        raise SandboxError(f"bubblewrap ended with status {bwrap.returncode} before the program began")
    return bwrap.returncode, int(number) if word == "signal" else 0


def _process_1(info_read: int) -> int:
    """Its id as this process knows it; 0 when bubblewrap ended before it could tell."""
    with os.fdopen(info_read) as file:
        text = file.read()
    return int(json.loads(text)["child-pid"]) if text.strip() else 0


def _send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return  # it has just ended; SIGCHLD is on its way


def _die_of(number: int, mask: set[signal.Signals | int]) -> None:
    """End the way the program did, for whoever waits for this process. Leaves no core dump of it."""
    sys.stdout.flush()
    sys.stderr.flush()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask - {number})
    os.kill(os.getpid(), number)
