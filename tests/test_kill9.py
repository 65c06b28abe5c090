"""Broker and agents are killed again and again while mail flows: nothing acknowledged is lost, nothing is handled
twice, and what one life of a sender sent is handled in the order in which it was sent."""

import json
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from policies.scaffold import starter, write
from simulator.machine import Machine
from tests.kill9 import acknowledged, handled

ROOT = Path(__file__).resolve().parent.parent
SENDERS = ("sender-1", "sender-2", "sender-3", "sender-4")
TOTAL = int(os.environ.get("CLOISTER_KILL9_MESSAGES", "2000"))  # 10,000 take some minutes
MESSAGES = TOTAL // len(SENDERS)  # of each sender
KILLS = 20
PATIENCE_S = 120.0  # without anything that is handled: a machine that has much else to do is slow, and gets on
LOOK_S = 0.2
PORTS = range(20_000, 32_000)  # none that somebody who asks for any port is given while a killed broker is away


class Tree:
    """The processes of the story, each of which may be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> None:
        if name == "lab":
            command = ["-m", "cloister", "lab", "--json", "--dir", str(self.folder / "lab")]
        else:
            command = ["-m", "tests.kill9", name, str(self.folder), str(MESSAGES)]
        with (self.folder / f"{name}.err").open("ab") as said:
            self.running[name] = subprocess.Popen(
                [sys.executable, *command], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said
            )
        if name == "lab":
            out = self.running[name].stdout
            assert out is not None
            draft = self.folder / "lab.new"
            draft.write_bytes(out.readline())
            assert draft.stat().st_size, self.last_words(name)
            draft.replace(self.folder / "lab.json")

    def look(self) -> None:
        """Nobody may end who was not killed, unless its work is done."""
        for name, process in self.running.items():
            assert process.poll() is None or _ready(self.folder, name), self.last_words(name)

    def last_words(self, name: str) -> str:
        return f"{name} has ended: " + (self.folder / f"{name}.err").read_text(errors="replace")[-4000:]

    def kill(self, name: str) -> None:
        process = self.running.pop(name)
        process.send_signal(signal.SIGKILL)
        process.communicate()

    def kill_all(self) -> None:
        for name in list(self.running):
            self.kill(name)


@contextmanager
def tree(folder: Path) -> Iterator[Tree]:
    made = Tree(folder)
    with ExitStack() as stack:
        stack.callback(made.kill_all)
        made.start("lab")
        for name in ("sink", *SENDERS):
            made.start(name)
        yield made


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_nothing_acknowledged_is_lost_doubled_or_reordered_by_kill_9(tmp_path: Path) -> None:
    machine = Machine.create(tmp_path / "lab" / "machine")
    files = starter("lab", at=machine.clock.now())
    files["bundle.toml"] += b'\n[mail]\ntakeover = "permitted"\n'  # a killed receiver's successor waits for nobody
    write(files, tmp_path / "lab" / "policy")
    (tmp_path / "lab" / "ports.json").write_text(
        json.dumps(dict(zip(("broker", "grpc", "pcs"), _ports(), strict=False)))
    )
    chance, killed, before = random.Random(9), 0, 0
    with tree(tmp_path) as processes:
        done, end = handled(tmp_path), time.monotonic() + PATIENCE_S
        while (count := _count(done)) < MESSAGES * len(SENDERS):
            processes.look()
            if count > before:
                before, end = count, time.monotonic() + PATIENCE_S
            assert time.monotonic() < end, f"the mail does not get through: {count}"
            if count < killed * TOTAL // KILLS:  # something has been handled since the last death
                time.sleep(LOOK_S)
                continue
            victim = chance.choice([name for name in processes.running if not _ready(tmp_path, name)])
            processes.kill(victim)
            processes.start(victim)
            killed += 1
        rows = done.execute("SELECT sender, number, life, attempt FROM handled ORDER BY place").fetchall()
        repeated = done.execute("SELECT count(*) FROM repeated").fetchone()[0]
    again = sum(attempt > 1 for *_, attempt in rows)
    print(json.dumps({"handled": len(rows), "killed": killed, "repeated": repeated, "delivered_again": again}))
    assert killed >= KILLS // 2
    for sender in SENDERS:
        assert sorted(number for who, number, *_ in rows if who == sender) == list(range(1, MESSAGES + 1))
    for life in {life for _, _, life, _ in rows}:
        numbers = [number for _, number, whose, _ in rows if whose == life]
        assert numbers == sorted(numbers)


def _ports() -> Iterator[int]:
    """Free ones, in another order each time."""
    for port in random.Random(os.getpid()).sample(PORTS, len(PORTS)):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            yield port


def _count(done: sqlite3.Connection) -> int:
    return int(done.execute("SELECT count(*) FROM handled").fetchone()[0])


def _ready(folder: Path, name: str) -> bool:
    """A sender that has nothing more to send."""
    return name in SENDERS and acknowledged(folder, name) >= MESSAGES
