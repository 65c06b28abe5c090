"""From a folder to an open broker by command: shares and their holders, checkpoints that somebody remembers, rewrap."""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from broker import cli
from broker.errors import BrokerCode
from broker.rootkey import keyfile
from broker.rootkey.methods import Method, method_of

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent
PASSPHRASE = "correct horse battery"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Place:
    """A broker's folder and its address."""

    folder: Path
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def run(self, *arguments: str, status: int = 0, passphrase: str | None = None) -> Any:
        """A `cloister` command with --json, in this process; its object."""
        given = {"CLOISTER_BROKER": self.url, "CLOISTER_KEY_FILE": str(self.folder / "admin.pem")}
        given |= {"CLOISTER_ROOT_PASSPHRASE": passphrase} if passphrase else {}
        command, *rest = arguments
        done = CliRunner().invoke(getattr(cli, command), [*rest, "--json"], env=given)
        assert done.exit_code == status, done.output
        return json.loads(done.stdout) if done.stdout else done.stderr

    @contextmanager
    def serving(self) -> Iterator["subprocess.Popen[bytes]"]:
        with subprocess.Popen(
            [sys.executable, "-m", "cloister", "broker", "serve", str(self.folder), "--json"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            try:
                yield process
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(20)


def wait_sealed(process: "subprocess.Popen[bytes]") -> None:
    """Until the doors of the sealed broker are open."""
    assert process.stderr is not None
    for line in process.stderr:
        if not line.startswith(b"{"):
            break
        if json.loads(line)["event"] == "broker.sealed":
            return
    raise AssertionError(process.stderr.read().decode())


def wait_open(process: "subprocess.Popen[bytes]") -> None:
    """Until it serves."""
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline(), process.stderr.read().decode()


def made(folder: Path, *options: str) -> tuple[Place, Any]:
    place = Place(folder=folder / "broker", port=free_port())
    told = place.run(
        *("broker", "init", str(place.folder), "--tenant", "acme", "--kind", "lab", "--port", str(place.port)),
        *options,
    )
    return place, told


def test_holders_open_a_broker_and_an_operator_stands_for_its_checkpoint(tmp_path: Path) -> None:
    holders = []
    for name in ("ann", "ben", "cat"):
        assert CliRunner().invoke(cli.broker, ["holder-key", str(tmp_path / name)]).exit_code == 0
        holders += ["--holder", str(tmp_path / f"{name}.pub")]
    place, told = made(tmp_path, "--shares", "2/3", *holders)
    ann, ben, _ = told["shares"]
    settings = place.folder / "broker.toml"
    settings.write_text(settings.read_text().replace("[root]\n", '[root]\nconfirm = "operator"\n'))
    memory = ("--log-key", str(place.folder / "log.vkey"), "--remember", str(tmp_path / "seen"))
    with place.serving() as process:
        wait_sealed(process)
        assert place.run("broker", "unseal", ann, status=1)["code"] == BrokerCode.ROOT_SHARE
        held = ("--holder-key", str(tmp_path / "ann"))
        assert place.run("broker", "unseal", ann, *held, status=2)["code"] == "root.unattested"
        (tmp_path / "trust.json").write_text("{}")
        untrue = place.run("broker", "unseal", ann, *held, "--trust", str(tmp_path / "trust.json"), status=2)
        assert untrue["code"] == "trust.malformed"
        assert place.run("broker", "unseal", ann, *held, "--without-evidence")["given"] == [1]
        assert place.run("broker", "confirm", *memory, "--first", status=1)["code"] == BrokerCode.ROOT_SEALED
        held = ("--holder-key", str(tmp_path / "ben"))
        assert place.run("broker", "unseal", ben, *held, "--without-evidence")["state"] == "checkpoint"
        assert place.run("broker", "confirm", *memory, status=2)["code"] == "checkpoint.file"
        assert place.run("broker", "confirm", *memory, "--first")["size"] == 0
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["broker_url"] == place.url
        assert place.run("broker", "confirm", *memory)["size"] > 0
        assert place.run("broker", "status")["agents"]
        assert place.run("broker", "unseal", ann, "--holder-key", str(tmp_path / "ann"))["state"] == "open"


def test_t04_a_disk_that_was_set_back_is_not_confirmed(tmp_path: Path) -> None:
    place, _ = made(tmp_path)
    memory = ("--log-key", str(place.folder / "log.vkey"), "--remember", str(tmp_path / "seen"))
    snapshot = (place.folder / "broker.sqlite").read_bytes()
    with place.serving() as process:
        wait_open(process)
        place.run("broker", "confirm", *memory, "--first")
    settings = place.folder / "broker.toml"
    settings.write_text(settings.read_text().replace("[root]\n", '[root]\nconfirm = "operator"\n'))
    for file in place.folder.glob("broker.sqlite*"):
        file.unlink()
    (place.folder / "broker.sqlite").write_bytes(snapshot)
    with place.serving() as process:
        wait_sealed(process)
        assert place.run("broker", "confirm", *memory, status=1)["code"] == BrokerCode.CHECKPOINT_ROLLED_BACK
        assert place.run("broker", "status", status=4)["code"] == BrokerCode.ROOT_SEALED


def test_a_root_key_is_moved_by_command_and_the_log_says_so(tmp_path: Path) -> None:
    place, _ = made(tmp_path)
    root = place.folder / "root.json"
    before = keyfile.load(root).id
    told = place.run("broker", "rewrap", str(place.folder), "--shares", "2/2")
    assert (told["from"], told["to"], len(told["shares"])) == ("key-file", "shares", 2)
    assert place.run("broker", "rewrap", str(place.folder), status=1)["code"] == BrokerCode.ROOT_SEALED
    shares = [option for path in told["shares"] for option in ("--share", path)]
    place.run("broker", "rewrap", str(place.folder), *shares, "--passphrase", passphrase=PASSPHRASE)
    assert method_of(root) is Method.PASSPHRASE
    place.run("broker", "rewrap", str(place.folder), passphrase=PASSPHRASE)
    assert keyfile.load(root).id == before
    with place.serving() as process:
        wait_open(process)
        assert place.run("broker", "rewrap", str(place.folder), status=2)["code"] == BrokerCode.CONFIG_INVALID
        found = place.run("audit", "show", "--kind", "root.rewrapped")["entries"]
        assert [item["entry"]["to"] for item in found] == ["shares", "passphrase", "key-file"]


@pytest.mark.parametrize("options", [("--shares", "5/3"), ("--shares", "x"), ("--tpm", "--shares", "2/3")])
def test_a_way_to_keep_the_root_key_that_makes_no_sense_is_refused(tmp_path: Path, options: tuple[str, ...]) -> None:
    place = Place(folder=tmp_path / "broker", port=1)
    told = place.run("broker", "init", str(place.folder), *options, status=2)
    assert told["code"] == BrokerCode.CONFIG_INVALID


def test_a_broker_that_serves_leaves_no_core_and_shows_its_memory_to_nobody(tmp_path: Path) -> None:
    """T1: without these, a crash would write every key that it holds to the disk."""
    place, _ = made(tmp_path)
    with place.serving() as process:
        wait_open(process)
        limits = Path(f"/proc/{process.pid}/limits").read_text()
        line = next(line for line in limits.splitlines() if line.startswith("Max core file size"))
        assert line.split()[4:6] == ["0", "0"]
        assert Path(f"/proc/{process.pid}/mem").stat().st_uid == 0
        assert not list(place.folder.glob("core*"))
