"""`cloister lab` as its users start it: one command, one line, one process tree that ends with it."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from attestation.pki import TrustRoots
from broker.wire.jose import b64u
from enclave.trustfile import TrustFile
from simulator.lab import Lab
from simulator.machine import Machine

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = 20.0  # for a loaded machine; the target is 2


def children(pid: int) -> set[int]:
    """Every process below this one."""
    found: set[int] = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found |= {int(path.parent.name)} | children(int(path.parent.name))
    return found


LOOPBACK_IN_IPV6 = "0000000000000000FFFF00000100007F"  # ::ffff:127.0.0.1, as gRPC opens its socket


def listeners(pid: int) -> set[str]:
    """Addresses (hex, as /proc/net/tcp has them) on which the process listens."""
    inodes = {os.readlink(link)[8:-1] for link in Path(f"/proc/{pid}/fd").iterdir() if _is_socket(link)}
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                found.add(fields[1].partition(":")[0])
    return found


def _is_socket(link: Path) -> bool:
    try:
        return os.readlink(link).startswith("socket:")
    except OSError:
        return False


@contextmanager
def lab_process(*arguments: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The running command and its first line."""
    process = subprocess.Popen(
        [sys.executable, "-m", "cloister", "lab", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield process, process.stdout.readline()
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=LIMIT_S)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("lab")
    with lab_process("--json", "--dir", str(folder)) as (process, line):
        yield {**json.loads(line), "pid": process.pid, "folder": folder}


def test_the_line_says_where_everything_is(lab: dict[str, Any]) -> None:
    promised = {"broker_url", "grpc_address", "pcs_url", "machine", "admin_key_file", "root_pem", "console_url"}
    assert promised <= set(lab)
    assert httpx2.get(f"{lab['broker_url']}/readyz", trust_env=False).json()["ok"] is True
    assert httpx2.get(lab["console_url"], trust_env=False).status_code == 200
    assert Machine.open(lab["machine"]).root_pem == Path(lab["root_pem"]).read_bytes()
    assert Path(lab["admin_key_file"]).stat().st_mode & 0o077 == 0


def test_it_listens_on_loopback_only(lab: dict[str, Any]) -> None:
    assert listeners(lab["pid"]) == {"0100007F", LOOPBACK_IN_IPV6}


def test_it_trusts_its_own_machine_and_nobody_else(lab: dict[str, Any]) -> None:
    trust = TrustFile.load(Path(lab["trust_file"]))
    assert trust.roots.sha256 == Machine.open(lab["machine"]).roots.sha256
    assert trust.roots.sha256 != TrustRoots.intel().sha256
    own = Machine.open(lab["machine"]).launch("own").quote(bytes(range(64)))
    other = Machine.create(seed="another machine").launch("other").quote(bytes(range(64)))
    assert verified(lab, own) == "ok"
    assert verified(lab, other).startswith("chain.")


def verified(lab: dict[str, Any], quote: bytes) -> str:
    response = httpx2.post(f"{lab['broker_url']}/v1/verifications", json={"quote": b64u(quote)}, trust_env=False)
    return str(response.json()["code"])


def test_its_collateral_is_at_hand_before_the_line_appears(lab: dict[str, Any]) -> None:
    for platform in range(2):
        quote = Machine.open(lab["machine"]).launch("first", platform=platform).quote(bytes(range(64)))
        assert verified(lab, quote) == "ok"  # and not 503 collateral.pending


def test_fifty_requests_a_second_pass(lab: dict[str, Any]) -> None:
    def ask(_: int) -> int:
        body = {"client_nonce": b64u(os.urandom(32))}
        return httpx2.post(f"{lab['broker_url']}/v1/challenges", json=body, trust_env=False).status_code

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(ask, range(100))) == {200}


def test_sim_commands_beside_it_see_the_same_machine(lab: dict[str, Any], tmp_path: Path) -> None:
    quote = tmp_path / "quote.bin"
    arguments = ["--machine", lab["machine"], "--report-data", "ab" * 64, "--out", str(quote)]
    subprocess.run([sys.executable, "-m", "cloister", "sim", "quote", *arguments], cwd=ROOT, check=True)
    assert verified(lab, quote.read_bytes()) == "ok"


def test_one_line_on_stdout_then_sigterm_stops_all_of_it(tmp_path: Path) -> None:
    with lab_process("--json", "--dir", str(tmp_path)) as (process, line):
        assert process.stdin is not None
        process.stdin.write("quit\n")  # ignored
        process.stdin.flush()
        tree = children(process.pid)
        port = int(json.loads(line)["broker_url"].rpartition(":")[2])
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=LIMIT_S)
        assert (process.returncode, rest) == (0, "")
        assert not any(Path(f"/proc/{pid}").exists() for pid in tree)
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_without_a_folder_nothing_is_kept(tmp_path: Path) -> None:
    with lab_process("--json", TMPDIR=str(tmp_path)) as (process, line):
        assert Path(json.loads(line)["machine"]).is_relative_to(tmp_path)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=LIMIT_S)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_keeps_machine_broker_and_ports(tmp_path: Path) -> None:
    with Lab(tmp_path) as first:
        described, broker = first.describe(), TrustFile.load(first.trust_file)
    with Lab(tmp_path) as second:
        assert second.describe() == described
        assert TrustFile.load(second.trust_file).digest == broker.digest


def test_a_folder_is_used_again_when_its_port_is_taken(tmp_path: Path) -> None:
    with Lab(tmp_path) as first:
        port = int(first.broker_url.rpartition(":")[2])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        with Lab(tmp_path) as second:
            assert second.broker_url != first.broker_url
            assert httpx2.get(f"{second.broker_url}/readyz", trust_env=False).json()["ok"] is True


def test_its_log_is_verified_offline(tmp_path: Path) -> None:
    with Lab(tmp_path) as lab:
        pass
    command = ["audit", "verify", str(lab.database), "--log-key", str(lab.broker_folder / "log.vkey")]
    subprocess.run([sys.executable, "-m", "cloister", *command], cwd=ROOT, check=True, capture_output=True)


def test_people_are_told_what_it_is_and_what_to_try(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with lab_process("--dir", str(tmp_path / "lab"), XDG_STATE_HOME=str(state)) as (process, line):
        assert "SIMULATED" in line
        assert process.stdout is not None
        words = [line]
        while "Ctrl-C" not in words[-1]:
            words.append(process.stdout.readline())
        assert any("cloister run" in word for word in words)
        note = json.loads((state / "cloister" / "labs" / f"{process.pid}.json").read_text())
        assert note["broker_url"] in "".join(words)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=LIMIT_S)
    assert list((state / "cloister" / "labs").iterdir()) == []


def test_an_agent_finds_a_running_lab_by_itself(tmp_path: Path) -> None:
    """Hello world in two commands: `cloister lab`, and `cloister run examples/hello.py --simulated`."""
    state = {"XDG_STATE_HOME": str(tmp_path / "state")}
    with lab_process("--dir", str(tmp_path / "lab"), **state) as (_, first):
        assert "simulated machine" in first
        agent = subprocess.Popen(
            [sys.executable, "-m", "cloister", "run", "examples/hello.py", "--simulated"],
            cwd=ROOT,
            env={**os.environ, **state},
            stderr=subprocess.PIPE,
            text=True,
        )
        assert agent.stderr is not None
        words = []
        for word in agent.stderr:
            words.append(word)
            if "hello runs as agent/lab/" in word:
                break
        agent.send_signal(signal.SIGTERM)
        agent.communicate(timeout=LIMIT_S)
    assert "SIMULATED" in words[-1]
    assert agent.returncode == 0
