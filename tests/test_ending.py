"""A command that serves ends at the first signal, in whichever moment and thread it comes."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from broker.app import STOP_S
from simulator import ending
from simulator.ending import Ending, end

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = 60
TIMES = int(os.environ.get("CLOISTER_SIGNALS", "2"))  # of each command; some hundred find what is rare

# The signal is taken by a thread that is not the main one, while that waits.
ELSEWHERE = """
import signal, threading
from broker.app import STOP_S
from simulator import ending
from simulator.ending import Ending, end
with Ending() as ending:
    def other():
        waiting.wait(0.2)
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
    waiting = threading.Event()
    threading.Thread(target=other, daemon=True).start()
    ending.wait()
"""


def test_a_signal_that_another_thread_takes_is_heard() -> None:
    subprocess.run([sys.executable, "-c", ELSEWHERE], cwd=ROOT, check=True, timeout=LIMIT_S)


def test_a_signal_that_came_before_the_wait_ends_it_at_once() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Ending() as ending:
        os.kill(os.getpid(), signal.SIGTERM)
        ending.wait()
    assert signal.getsignal(signal.SIGTERM) is before


def test_other_signals_end_no_wait() -> None:
    heard = threading.Event()
    before = signal.signal(signal.SIGUSR1, lambda *_: heard.set())

    def send() -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        heard.wait(LIMIT_S)
        os.kill(os.getpid(), signal.SIGTERM)

    sender = threading.Thread(target=send)
    try:
        with Ending() as ending:
            sender.start()
            ending.wait()
            sender.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert heard.is_set()


def test_a_launcher_that_does_not_end_is_asked_twice_and_then_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    deaf = "import os, signal; signal.signal(signal.SIGTERM, lambda *_: os.write(1, b'\\n')); os.write(1, b'\\n')"
    command = [sys.executable, "-c", f"{deaf}\nwhile True: signal.pause()"]
    monkeypatch.setattr(ending, "PATIENCE_S", (2, 0.5))
    with subprocess.Popen(command, stdout=subprocess.PIPE) as launcher:
        assert launcher.stdout is not None
        launcher.stdout.readline()
        end([launcher])
        assert launcher.returncode == -signal.SIGKILL
        assert launcher.stdout.read() == b"\n\n"


@pytest.mark.slow
@pytest.mark.parametrize("command", [("lab", "--json"), ("sim", "pcs", "--json")], ids=["lab", "pcs"])
def test_it_ends_whenever_it_is_asked(command: tuple[str, ...], tmp_path: Path) -> None:
    """As soon as it serves, and at any moment before."""
    machine = () if command[0] == "lab" else ("--machine", str(tmp_path / "machine"))
    chance, scratch = random.Random(15), tmp_path / "scratch"
    scratch.mkdir()
    for number in range(TIMES):
        process = subprocess.Popen(
            [sys.executable, "-m", "cloister", *command, *machine],
            cwd=ROOT,
            env={**os.environ, "TMPDIR": str(scratch), "XDG_STATE_HOME": str(tmp_path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert process.stdout is not None
        try:
            if number % 2:
                process.wait(chance.uniform(0, 2))
        except subprocess.TimeoutExpired:
            pass
        else:
            process.stdout.readline()
        try:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=LIMIT_S)
        finally:
            process.kill()
        assert process.returncode in (0, -signal.SIGTERM)  # before it has begun to serve, nothing has to be put away
    assert list(scratch.iterdir()) == []


@pytest.mark.slow
def test_callers_who_never_finish_hold_a_lab_up_once_and_for_little(tmp_path: Path) -> None:
    """One who does not send the rest of a request, one who does not even begin: both doors wait at the same time."""
    command = [sys.executable, "-m", "cloister", "lab", "--json", "--dir", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        facts = json.loads(process.stdout.readline())
        host, _, rest = facts["broker_url"].removeprefix("http://").partition(":")
        with (
            socket.create_connection((host, int(rest))) as half,
            socket.create_connection((host, int(facts["grpc_address"].rpartition(":")[2]))),
        ):
            half.sendall(b"POST /v1/challenges HTTP/1.1\r\nhost: lab\r\ncontent-length: 100\r\n\r\n{")
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(2 * STOP_S - 4)
            finally:
                process.kill()
    assert process.returncode == 0
