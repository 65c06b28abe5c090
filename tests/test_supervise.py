"""The launcher hears every signal, passes it on, and ends an agent that does not end."""

import io
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from enclave import cli, supervise

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = 60

# The launcher's signal is taken by a thread that is not the main one, which waits for the agent meanwhile.
ELSEWHERE = """
import signal, subprocess, sys, threading
from enclave.supervise import Signals
with Signals() as signals:
    def other():
        threading.Event().wait(0.2)
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
    child = signals.start(lambda: subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]))
    threading.Thread(target=other, daemon=True).start()
    assert signals.wait(child) == -signal.SIGTERM
"""
DEAF = (
    "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); signal.sigwait([signal.SIGUSR1])"
)


def test_a_signal_that_another_thread_takes_goes_on_to_the_agent() -> None:
    subprocess.run([sys.executable, "-c", ELSEWHERE], cwd=ROOT, check=True, timeout=LIMIT_S)


class Saying(io.StringIO):
    """Where the launcher's sentence goes; whoever reads it asks again."""

    def write(self, text: str) -> int:
        if "asked once more" in text:
            signal.raise_signal(signal.SIGTERM)
        return super().write(text)


def test_an_agent_that_does_not_end_is_told_of_and_killed_by_the_next_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Saying())
    with supervise.Signals() as signals:
        child = signals.start(lambda: subprocess.Popen([sys.executable, "-c", DEAF], stdout=subprocess.PIPE))
        assert child.stdout is not None
        child.stdout.readline()
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # so soon it is only passed on
        assert child.poll() is None
        monkeypatch.setattr(supervise, "PATIENCE_S", 0.0)
        assert signals.wait(child) == -signal.SIGKILL
        child.stdout.close()
    assert signals.asked


def test_the_agents_user_is_in_the_groups_that_were_named_and_no_others() -> None:
    assert supervise._as_user(61184, (7, 8)) == {"user": 61184, "group": 61184, "extra_groups": [7, 8]}
    assert supervise._as_user(None, (7,)) == {}  # the caller's own, who is in his groups already


def test_nothing_is_launched_with_a_group_that_there_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "_booting", lambda machine, name: pytest.fail)
    monkeypatch.setattr(supervise, "separate_uid", lambda: None)
    around = cli.Surroundings(machine=str(tmp_path), broker_url="http://127.0.0.1:9", trust=b"")
    monkeypatch.setattr(cli, "_surroundings", lambda _: around)
    agent = tmp_path / "agent.py"
    agent.touch()
    assert cli.run([str(agent), "--simulated", "--group", "no-such-group"]) == 2
    assert "agent.group_unusable" in capsys.readouterr().err


@pytest.mark.parametrize("url", ["not a url", "ftp://broker", "https://", "http://broker:http", "127.0.0.1:8080"])
def test_what_is_no_address_is_not_asked_again_and_again(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    around = cli.Surroundings(machine=str(tmp_path), broker_url=url, trust=b"")
    monkeypatch.setattr(cli, "_surroundings", lambda _: around)
    agent = tmp_path / "agent.py"
    agent.touch()
    assert cli.run([str(agent), "--simulated"]) == 2
    said = capsys.readouterr().err
    assert "agent.unconfigured" in said
    assert "public_url" in said


def test_a_machine_that_cannot_be_used_is_told_without_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = tmp_path / "agent.py"
    agent.touch()
    around = cli.Surroundings(machine=str(agent), broker_url="http://127.0.0.1:9", trust=b"")
    monkeypatch.setattr(cli, "_surroundings", lambda _: around)
    assert cli.run([str(agent), "--simulated"]) == 2
    assert "machine.read_only" in capsys.readouterr().err


def test_an_agent_that_is_not_there_is_told_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([str(tmp_path / "gone.py")]) == 2
    assert "launch.nothing_to_run" in capsys.readouterr().err
