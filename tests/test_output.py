"""Where a command's words cannot go: a full device, a reader who has left, a stream that the caller has closed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# One of each way in which the command line is read and written: our own, argparse's, typer's, and after some work.
COMMANDS = {
    "own": ["--version"],
    "argparse": ["run", "--help"],
    "typer": ["policy", "init", "--help"],
    "work": ["sim", "fault", "--list", "--json"],
    "agent": ["run", "--digest", "examples/hello.py"],
}
commands = pytest.mark.parametrize("line", COMMANDS.values(), ids=COMMANDS.keys())


def run(line: list[str], redirected: str) -> subprocess.CompletedProcess[str]:
    """The command, its output redirected by a shell, which alone can start something with a closed stream."""
    shell = ["sh", "-c", f'"$@" {redirected}', "sh", sys.executable, "-m", "cloister", *line]
    return subprocess.run(shell, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


@commands
def test_a_full_device_is_told_in_one_line_and_in_the_status(line: list[str]) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    ended = run(line, "> /dev/full")
    assert ended.returncode == 4
    assert ended.stderr.startswith("cloister: standard output cannot be written to: ")
    assert ended.stderr.count("\n") == 1


def test_a_reader_who_leaves_is_told_nothing() -> None:
    ended = run(COMMANDS["work"], "| head -c 1")
    assert (ended.stdout, ended.stderr) == ("[", "")


def test_with_its_output_closed_a_command_does_its_work() -> None:
    ended = run(COMMANDS["work"], ">&-")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_what_is_wrong_never_goes_to_the_output_instead() -> None:
    ended = run(["sim", "nothing"], "2>&-")
    assert (ended.returncode, ended.stdout) == (2, "")


def test_what_is_written_is_the_same_through_a_pipe() -> None:
    ended = run(COMMANDS["work"], "")
    assert len(json.loads(ended.stdout)) >= 40
