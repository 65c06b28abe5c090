"""`cloister demo` as a newcomer starts it: it tells all of it, ends well, and leaves nothing behind."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from simulator.demo import vectors
from tests.test_lab import children

ROOT = Path(__file__).resolve().parent.parent
STEPS = ["real_quote", "set_up", "attest", "release", "messages", "changed_agent", "out_of_date", "audit"]


def demo(tmp_path: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cloister", "demo", *arguments],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )


def launches() -> set[str]:
    memory = Path("/dev/shm")
    return {path.name for path in memory.glob("cloister-launch-*")} if memory.is_dir() else set()


def left_of(before: set[str]) -> set[str]:
    """Launches that came and stay. Other tests launch at the same time in the same place; theirs go again."""
    left, deadline = launches() - before, time.monotonic() + 60
    while left and time.monotonic() < deadline:
        time.sleep(0.1)
        left &= launches()
    return left


def test_the_whole_story_is_told_and_nothing_is_left(tmp_path: Path) -> None:
    before = launches()
    done = demo(tmp_path)
    assert done.returncode == 0, done.stderr
    assert [int(number) for number in re.findall(r"(?m)^(\d+)\. ", done.stdout)] == list(range(1, 9))
    for sentence in ("policy.launches_mismatch", "policy.tcb_not_accepted", "passes if", "does not protect against"):
        assert sentence.split()[-1] in done.stdout
    assert "\033" not in done.stdout  # no colours in a pipe
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []
    assert left_of(before) == set()


def test_json_says_the_same_and_nothing_else(tmp_path: Path) -> None:
    done = demo(tmp_path, "--json", CLOISTER_VECTORS=str(tmp_path))
    assert (done.returncode, done.stderr.startswith("cloister demo: ")) == (1, True)  # what is named must be there
    (tmp_path / "index.json").write_text('{"vectors": []}')
    done = demo(tmp_path, "--json", CLOISTER_VECTORS=str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [step["name"] for step in found["steps"]] == STEPS
    assert [step["ok"] for step in found["steps"]] == [None, *[True] * 7]  # None: no recorded quotes, skipped
    facts = {step["name"]: step["facts"] for step in found["steps"]}
    assert "policy.launches_mismatch" in facts["changed_agent"]["codes"]
    assert "policy.tcb_not_accepted" in facts["out_of_date"]["codes"]
    assert facts["audit"]["entries"] > 5


def test_a_real_quote_is_verified_where_there_are_any() -> None:
    found = vectors.find()
    if found is None:
        pytest.skip("no recorded Intel quotes here")
    assert found.verify().tcb_status == "UpToDate"


def test_interrupted_it_cleans_up_too(tmp_path: Path) -> None:
    before = launches()
    process = subprocess.Popen(
        [sys.executable, "-m", "cloister", "demo"],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("3. "):
            break
    tree = children(process.pid)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode not in (0, None)
    left = {pid: Path(f"/proc/{pid}/stat").read_text() for pid in tree if Path(f"/proc/{pid}").exists()}
    assert left == {}
    assert list(tmp_path.iterdir()) == []
    assert left_of(before) == set()
