"""`cloister sim run`: programs that know nothing of a simulator find the kernel's files, and leave nothing behind."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from attestation.eventlog import EventLog
from attestation.quote import Quote
from attestation.verifier import verify_quote
from simulator.guest import sandbox
from simulator.machine import Machine

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(__file__).resolve().parent / "data"
SHELL_CLIENT = """
set -eu
entry=/sys/kernel/config/tsm/report/shell-client
mkdir "$entry"
head -c 64 /dev/zero | tr '\\0' 'Z' > "$entry/inblob"
cat "$entry/outblob"
rmdir "$entry"
"""
lacking = sandbox.missing()
if lacking is None and os.geteuid() != 0:
    lacking = "needs root here"
pytestmark = [
    pytest.mark.skipif(lacking is not None, reason=f"cloister sim run {lacking}"),
    pytest.mark.timeout(60),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sandbox") / "machine"
    Machine.create(path, seed="sandbox tests")
    return path


def command(folder: Path, *program: str, options: tuple[str, ...] = ()) -> list[str]:
    line = [sys.executable, str(ROOT / "cloister.py"), "sim", "run", "--machine", str(folder), *options]
    return [*line, "--", *program]


def run(
    folder: Path, *program: str, options: tuple[str, ...] = (), stdin: bytes = b"", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, **(env or {})}
    line = command(folder, *program, options=options)
    return subprocess.run(line, input=stdin, capture_output=True, check=False, env=environment, timeout=50)


def shell(folder: Path, script: str, *options: str) -> list[str]:
    done = run(folder, "sh", "-c", script, options=options)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().splitlines()


@pytest.fixture
def waiting(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A program in a sandbox that says when it is there, answers SIGUSR1 and SIGINT, and waits."""
    script = "trap 'echo usr1' USR1; trap 'echo int; exit 5' INT; sleep 1000 & echo ready; while :; do wait; done"
    process = subprocess.Popen(command(folder, "sh", "-c", script), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    yield process
    if process.poll() is None:
        process.kill()
    process.communicate()


def no_mounts() -> bool:
    return "cloister-sim" not in Path("/proc/self/mounts").read_text()


# --- programs get quotes ---


def test_an_unmodified_shell_script_gets_a_quote_that_verifies(folder: Path) -> None:
    done = run(folder, "sh", "-c", SHELL_CLIENT)
    assert done.returncode == 0
    quote = Quote.parse(done.stdout)
    machine = Machine.open(folder)
    verified = verify_quote(
        quote,
        machine.collateral(),
        report_data=b"Z" * 64,
        roots=machine.roots,
        at=machine.clock.now(),
    )
    assert verified.tcb_status == "UpToDate"


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc to compile the client: apt install gcc libc6-dev")
def test_an_unmodified_c_program_gets_a_quote(folder: Path, tmp_path: Path) -> None:
    client = tmp_path / "client"
    subprocess.run(["gcc", "-Wall", "-Werror", "-o", str(client), str(DATA / "quote_client.c")], check=True)
    done = run(folder, str(client))
    assert done.returncode == 0, done.stderr
    assert Quote.parse(done.stdout).report_data == b"\x5a" * 64


def test_the_real_tdx_code_runs_unchanged(folder: Path) -> None:
    program = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from attestation.eventlog import EventLog, launch_event
from attestation.quote import Quote
from enclave.tdx import TdxTrustDomain

domain = TdxTrustDomain()
for name in ("first", "second"):
    digest, data = launch_event(bytes(48), name)
    domain.extend(3, digest, event_type=6, data=data)
quote = domain.quote(b"R" * 64)
log = EventLog.parse(domain.event_log())
log.check(Quote.parse(quote).td)
print(domain.name, domain.simulated, *(launch.name for launch in log.launches()))
"""
    done = run(folder, sys.executable, "-c", program, options=("--busy", "1", "--interfere", "1"))
    assert done.stdout.decode().split() == ["tdx", "False", "first", "second"], done.stderr.decode()


def test_errors_arrive_with_their_numbers(folder: Path) -> None:
    script = """
    import errno, os
    base = "/sys/kernel/config/tsm/report/"
    registers = "/sys/class/misc/tdx_guest/measurements/"
    def attempt(what, *arguments):
        try:
            print(what(*arguments))
        except OSError as error:
            print(errno.errorcode[error.errno])
    def write(path, data):
        fd = os.open(path, os.O_WRONLY)
        try:
            return os.write(fd, data)
        finally:
            os.close(fd)
    def read(path):
        with open(path, "rb") as file:
            return len(file.read()) > 0
    attempt(os.mkdir, base + "r")
    attempt(os.mkdir, base + "r")
    attempt(read, base + "r/outblob")
    attempt(write, base + "r/inblob", bytes(63))
    attempt(read, base + "r/outblob")
    attempt(write, base + "r/inblob", bytes(65))
    attempt(read, base + "r/inblob")
    attempt(read, base + "r/privlevel")
    attempt(os.mkdir, base + "r/inner")
    attempt(os.unlink, base + "r/inblob")
    attempt(write, registers + "rtmr3:sha384", bytes(47))
    attempt(write, registers + "rtmr3:sha384", bytes(49))
    attempt(write, registers + "rtmr3:sha384", bytes(48))
    attempt(write, registers + "mrtd:sha384", bytes(48))
    attempt(os.rmdir, base + "r")
    attempt(os.rmdir, base + "r")
    """
    done = run(folder, sys.executable, "-c", "\n".join(line[4:] for line in script.splitlines()))
    assert done.stdout.decode().split() == [
        *("None", "EEXIST", "EINVAL", "63", "EINVAL", "EFBIG", "EACCES", "ENOENT", "EPERM", "EPERM"),
        *("EINVAL", "EINVAL", "48", "EACCES", "None", "ENOENT"),
    ], done.stderr.decode()


def test_the_unmodified_dstack_sdk_finds_its_socket(folder: Path) -> None:
    program = """
from dstack_sdk import DstackClient
client = DstackClient()
client.emit_event("deployed", "v1")
answer = client.get_quote("nonce")
print(answer.quote, answer.replay_rtmrs()[3], client.info().tcb_info.rtmr3, client.get_key("a", "b").key)
"""
    quote, replayed, told, key = run(folder, sys.executable, "-c", program).stdout.decode().split()
    assert Quote.parse(bytes.fromhex(quote)).td.rtmrs[3].hex() == replayed == told
    assert len(key) == 64


def test_a_dstack_image_has_extended_rtmr3_at_boot(folder: Path) -> None:
    script = "od -An -v -tx1 -w48 /sys/class/misc/tdx_guest/measurements/rtmr3:sha384"
    assert set("".join(shell(folder, script))) == {"0", " "}
    assert set("".join(shell(folder, script, "--dstack"))) > {"0", " "}


def test_the_quote_service_answers_in_the_sandbox(folder: Path) -> None:
    program = """
import socket, struct, sys
host, port = sys.argv[1].split(":") if len(sys.argv) > 1 else ("", 0)
request = struct.pack("<HHIII", 1, 1, 4, 16, 0)
for family, address in ((socket.AF_UNIX, "/run/tdx-qgs/qgs.socket"), (socket.AF_INET, ("127.0.0.1", int(port)))):
    with socket.socket(family) as connection:
        connection.connect(address)
        connection.sendall(struct.pack(">I", len(request)) + request)
        print(len(connection.recv(4096)))
"""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    done = run(folder, sys.executable, "-c", program, f"x:{port}", options=("--qgs-port", str(port)))
    assert done.stdout.split() == [b"64", b"64"], done.stderr.decode()
    assert f"127.0.0.1:{port}" in done.stderr.decode()


def test_registers_and_event_log_are_where_linux_has_them(folder: Path) -> None:
    done = run(folder, "cat", "/sys/firmware/acpi/tables/data/CCEL")
    log = EventLog.parse_ccel(done.stdout)
    assert len(done.stdout) == sandbox.CCEL_AREA
    lines = shell(
        folder,
        "cd /sys/devices/virtual/misc/tdx_guest/measurements;"
        "for i in 0 1 2 3; do od -An -v -tx1 -w48 rtmr$i:sha384; done;"
        "head -c 4 /sys/firmware/acpi/tables/CCEL; echo; stat -c %a /sys/firmware/acpi/tables/data/CCEL",
    )
    assert [bytes.fromhex(line) for line in lines[:4]] == list(log.replay())
    assert lines[4:] == ["CCEL", "400"]


def test_the_rest_of_the_system_is_as_before(folder: Path, tmp_path: Path) -> None:
    lines = shell(
        folder, f"pwd; ls -d /sys/class/net /sys/kernel/mm /sys/devices/system/cpu; echo kept > {tmp_path}/file"
    )
    assert lines == [str(Path.cwd()), "/sys/class/net", "/sys/devices/system/cpu", "/sys/kernel/mm"]
    assert (tmp_path / "file").read_text() == "kept\n"


def test_each_run_is_a_fresh_domain_of_the_same_image(folder: Path) -> None:
    script = (
        "cd /sys/class/misc/tdx_guest/measurements; od -An -v -tx1 -w48 mrtd:sha384 rtmr3:sha384;"
        "head -c 48 /dev/urandom > rtmr3:sha384; ls -A /run/cloister"
    )
    assert shell(folder, script) == shell(folder, script)


# --- streams, status, signals ---


def test_streams_and_status_are_the_program_s(folder: Path) -> None:
    done = run(folder, "sh", "-c", "cat; echo error >&2; exit 41", stdin=b"through\n", options=("--quiet",))
    assert (done.stdout, done.stderr, done.returncode) == (b"through\n", b"error\n", 41)


def test_cloister_says_that_it_is_a_simulation_and_says_so_on_standard_error(folder: Path) -> None:
    done = run(folder, "true", options=("--name", "my-td"))
    assert done.stdout == b""
    assert sandbox.MARK in done.stderr.decode()
    assert "SIMULATED" in done.stderr.decode()
    assert "my-td" in done.stderr.decode()


def test_a_program_that_dies_of_a_signal_takes_its_runner_along(folder: Path) -> None:
    assert run(folder, "sh", "-c", "kill -USR2 $$").returncode == -signal.SIGUSR2


def test_a_program_has_default_signals_and_nothing_blocked(folder: Path) -> None:
    lines = run(folder, "cat", "/proc/self/status").stdout.decode().splitlines()
    masks = {line.split()[0]: int(line.split()[1], 16) for line in lines if line.startswith("Sig") and "/" not in line}
    of_glibc = 1 << 31 | 1 << 32  # signals 32 and 33: ignored in what posix_spawn starts, and nobody can change it
    assert (masks["SigBlk:"], masks["SigIgn:"] & ~of_glibc, masks["SigCgt:"]) == (0, 0, 0)


def test_signals_are_passed_on(waiting: subprocess.Popen[bytes]) -> None:
    assert waiting.stdout is not None
    waiting.send_signal(signal.SIGUSR1)
    assert waiting.stdout.readline() == b"usr1\n"
    waiting.send_signal(signal.SIGINT)
    assert waiting.stdout.readline() == b"int\n"
    assert waiting.wait(30) == 5


def test_an_interrupt_of_the_terminal_arrives_once(folder: Path) -> None:
    program = """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
print("ready", flush=True)
signal.sigwait([signal.SIGINT])
again = signal.sigtimedwait([signal.SIGINT], 0.5)
print("once" if again is None else "twice", flush=True)
"""
    leader, follower = os.openpty()
    process = subprocess.Popen(
        command(folder, sys.executable, "-c", program, options=("--quiet",)),
        stdin=follower,
        stdout=subprocess.PIPE,
        preexec_fn=lambda: _become_foreground(follower),
    )
    os.close(follower)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"ready\n"
        os.write(leader, b"\x03")
        assert process.communicate(timeout=30)[0] == b"once\n"
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate()
        os.close(leader)


def _become_foreground(terminal: int) -> None:
    """What a shell with job control does for a command: a session and group that own the terminal."""
    os.setsid()
    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
    os.tcsetpgrp(terminal, os.getpid())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_the_runner(waiting: subprocess.Popen[bytes], number: signal.Signals) -> None:
    assert waiting.stdout is not None
    waiting.send_signal(number)
    assert waiting.wait(30) == -number
    assert waiting.stdout.read() == b""  # the end of the file: no process that could write is left
    assert no_mounts()


def test_children_that_a_program_leaves_behind_end_with_it(folder: Path) -> None:
    done = run(folder, "sh", "-c", "sleep 1000 & setsid sleep 1000 & exit 3")
    assert done.returncode == 3
    assert no_mounts()


def test_several_domains_run_at_once(folder: Path) -> None:
    line = command(folder, "sh", "-c", SHELL_CLIENT, options=("--quiet",))
    processes = [subprocess.Popen(line, stdout=subprocess.PIPE) for _ in range(3)]
    outputs = [process.communicate(timeout=50)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert {Quote.parse(output).report_data for output in outputs} == {b"Z" * 64}


# --- what cannot be run ---


@pytest.mark.parametrize(("program", "status"), [("no-such-program", 127), (str(ROOT / "README.md"), 126)])
def test_a_program_that_cannot_be_started_has_the_status_of_a_shell(folder: Path, program: str, status: int) -> None:
    done = run(folder, program)
    assert done.returncode == status
    assert program in done.stderr.decode()


def test_no_program_and_no_such_platform_are_wrong_usage(folder: Path) -> None:
    assert run(folder).returncode == 2
    assert run(folder, "true", options=("--platform", "77")).returncode == 2
    assert run(folder, "true", options=("--platform", "2")).returncode == 2


def test_a_missing_tool_is_named_with_its_package(folder: Path, tmp_path: Path) -> None:
    done = run(folder, "true", env={"PATH": str(tmp_path)})
    assert done.returncode == 2
    assert "apt install bubblewrap" in done.stderr.decode()
