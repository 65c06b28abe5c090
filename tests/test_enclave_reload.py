"""Working on an agent: a lab is found by itself, an edit is launched anew, and what changed in RTMR3 is said."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from attestation.quote import Quote
from enclave import cli, labs, launch
from enclave.errors import AgentError, Code
from enclave.reload import MAX_TOLD, Launch, Watch
from simulator.lab import Lab
from simulator.machine import Machine

ROOT = Path(__file__).resolve().parent.parent
AGENT = """\
from dataclasses import dataclass

from enclave import Agent, Context

agent = Agent("edited")


@dataclass
class Greet:
    name: str


@agent.on_message(Greet)
async def greet(ctx: Context, message: Greet) -> Greet:
    return Greet(name="VERSION")


agent.run()
"""


@pytest.fixture
def agent(tmp_path: Path) -> Path:
    path = tmp_path / "agent" / "__main__.py"
    path.parent.mkdir()
    path.write_text(AGENT)
    return path.parent


def staged(agent: Path) -> Launch:
    with launch.stage(agent, with_packages=False) as copy:
        return Launch.of(copy, "edited")


def test_differences_name_files_code_and_register(agent: Path) -> None:
    (agent / "old.py").write_text("")
    before = staged(agent)
    assert before.differences(before) == []
    (agent / "old.py").unlink()
    (agent / "new.py").write_text("")
    (agent / "__main__.py").write_text(AGENT.replace("VERSION", "2"))
    after = staged(agent)
    told = after.differences(before)
    assert {"  ~ agent/__main__.py", "  + agent/new.py", "  - agent/old.py"} <= set(told)
    assert any(before.rtmr3.hex()[:16] in line and after.rtmr3.hex()[:16] in line for line in told)
    assert after.code.hex() in told[-1]


def test_the_register_told_is_the_one_that_a_quote_shows(agent: Path) -> None:
    domain = Machine.create(seed="reload").launch("edited")
    with launch.stage(agent, with_packages=False) as copy:
        launch.extend(domain, copy.digest, "edited")
    assert Quote.parse(domain.quote(bytes(range(64)))).td.rtmrs[3] == staged(agent).rtmr3


def test_a_long_list_of_files_is_cut(agent: Path) -> None:
    before = staged(agent)
    for number in range(MAX_TOLD + 3):
        (agent / f"f{number}.py").write_text("")
    assert "    and 3 more" in staged(agent).differences(before)


def test_a_watch_sees_an_edit_and_an_end(agent: Path) -> None:
    watch = Watch(agent)
    assert not watch.wait(lambda: True)
    (agent / "new.py").write_text("x = 1")
    assert watch.wait(lambda: False)


# --- labs ---


def test_the_lab_that_started_last_and_still_runs_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert labs.newest() == {}
    with labs.noted({"broker_url": "http://one", "grpc_address": None}):
        other = labs.folder() / "1.json"  # always alive, and not ours
        other.write_text('{"broker_url": "http://older"}')
        os.utime(other, ns=(0, 0))
        ended = subprocess.Popen([sys.executable, "-c", ""])
        ended.wait()
        dead = labs.folder() / f"{ended.pid}.json"
        dead.write_text('{"broker_url": "http://dead"}')
        (labs.folder() / "nonsense.json").write_text("{")
        assert labs.newest() == {"broker_url": "http://one"}
        assert not dead.exists()
    assert labs.newest() == {"broker_url": "http://older"}


def test_a_home_that_cannot_be_written_to_stops_no_lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    with labs.noted({}):
        assert labs.newest() == {}


# --- the commands ---


@contextmanager
def command(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "cloister", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)


def until(process: subprocess.Popen[str], what: str) -> str:
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if re.search(what, line):
            return "".join(said)
    pytest.fail("".join(said))


def test_an_edit_is_launched_anew_and_the_difference_is_told(agent: Path, tmp_path: Path) -> None:
    with Lab(tmp_path / "lab") as lab:
        around = ["--machine", str(lab.machine_folder), "--broker", lab.broker_url, "--trust", str(lab.trust_file)]
        with command("run", str(agent), "--simulated", "--reload", *around) as process:
            until(process, " runs as agent/lab/")
            (agent / "__main__.py").write_text(AGENT.replace("VERSION", "2"))
            said = until(process, " runs as agent/lab/")
            assert "~ agent/__main__.py" in said
            assert re.search(r"RTMR3 +[0-9a-f]{16}… -> [0-9a-f]{16}…", said)
            (agent / "__main__.py").write_text("raise SystemExit(3)\n")
            until(process, "ended with status 3; waiting for a change")
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=30)
            assert process.returncode == 128 + signal.SIGTERM


def test_a_lab_runs_agents_and_one_started_for_programs_is_found_too(agent: Path, tmp_path: Path) -> None:
    state = {"XDG_STATE_HOME": str(tmp_path / "state")}
    with command("lab", "--json", "--dir", str(tmp_path / "lab"), str(agent), **state) as lab:
        until(lab, "agent runs|edited runs as agent/lab/")
        with command("run", "examples/hello.py", "--simulated", **state) as other:
            until(other, "hello runs as agent/lab/")
        lab.send_signal(signal.SIGTERM)
        stdout, _ = lab.communicate(timeout=30)
    assert stdout.count("\n") == 1
    assert lab.returncode == 0


def test_a_machine_that_went_with_its_lab_is_not_made_anew(tmp_path: Path) -> None:
    folder = tmp_path / "machine"
    boot = cli._booting(str(folder), "agent")
    assert boot().simulated  # one that was never there is made
    boot = cli._booting(str(folder), "agent")
    folder.rename(tmp_path / "away")
    with pytest.raises(AgentError) as caught:
        boot()
    assert caught.value.code == Code.AGENT_UNCONFIGURED
    assert not folder.exists()


# --- real hardware ---


class RealDomain:
    """As far as the launcher looks at it."""

    name = "tdx"
    simulated = False

    def __init__(self) -> None:
        self.extended = 0

    def quote(self, report_data: bytes) -> bytes:
        return b""

    def event_log(self) -> bytes:
        return b""

    def extend(self, register: int, digest: bytes, *, event_type: int, data: bytes) -> None:
        self.extended += 1


@pytest.mark.parametrize(
    ("options", "code"), [((), Code.LAUNCH_SAME_USER), (("--reload",), Code.LAUNCH_RELOAD)], ids=["user", "reload"]
)
def test_on_tdx_an_agent_needs_a_user_of_its_own_and_one_launch(
    agent: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    code: Code,
) -> None:
    domain = RealDomain()
    monkeypatch.setattr(cli, "_real", lambda: domain)
    monkeypatch.setattr("enclave.supervise.separate_uid", lambda: None)
    with Lab(tmp_path / "lab") as lab:
        status = cli.run([str(agent), "--broker", lab.broker_url, "--trust", str(lab.trust_file), *options])
    assert (status, domain.extended) == (2, 0)
    assert f"cloister run: {code}" in capsys.readouterr().err
