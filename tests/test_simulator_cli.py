"""`cloister sim` as a user types it: files written, exit statuses, JSON, and `cloister verify` on what comes out."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pytest

import simulator.guest.cli
from attestation.quote import Quote
from cloister import main
from simulator import cli
from simulator.faults import FAULTS
from simulator.machine import Machine
from simulator.registry import COLLATERAL, EVENT_LOG, QUOTE

ROOT: Final = Path(__file__).parent.parent
REPORT_DATA: Final = bytes(range(64)).hex()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A machine that others of this test share."""
    Machine.create(tmp_path / "m", seed="cli tests")
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    status = main([str(argument) for argument in arguments])
    output = capsys.readouterr()
    return status, output.out, output.err


def quote_arguments(folder: Path, *more: str | Path) -> Sequence[str | Path]:
    files = ("--out", folder / "q", "--collateral-out", folder / "c", "--root-out", folder / "r")
    return ("sim", "quote", "--machine", folder / "m", "--report-data", REPORT_DATA, *files, *more)


def verify_arguments(folder: Path, *more: str | Path) -> Sequence[str | Path]:
    files = ("--collateral", folder / "c", "--root", folder / "r", "--report-data", REPORT_DATA)
    return ("verify", folder / "q", *files, "--json", *more)


def judged(capsys: pytest.CaptureFixture[str], folder: Path, *more: str | Path) -> tuple[int, Any]:
    status, out, _ = run(capsys, *verify_arguments(folder, *more))
    return status, json.loads(out)


def test_up_makes_a_machine_with_defaults_and_shows_it_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = run(capsys, "sim", "up", "--machine", tmp_path / "m", "--json")
    first = json.loads(out)
    assert status == 0
    assert first["simulated"] is True
    assert len(first["platforms"]) == 3
    assert Path(first["root_pem"]).is_file()
    _, again, _ = run(capsys, "sim", "up", "--machine", tmp_path / "m", "--json")
    assert json.loads(again)["root_sha256"] == first["root_sha256"]
    _, text, _ = run(capsys, "sim", "up", "--machine", tmp_path / "m")
    assert first["root_sha256"] in text


def test_up_with_a_seed_makes_that_machine_and_no_second_one_over_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, _ = run(capsys, "sim", "up", "--machine", tmp_path / "m", "--seed", "x", "--json")
    assert json.loads(out)["root_sha256"] == Machine.create(seed="x").root_sha256
    status, _, err = run(capsys, "sim", "up", "--machine", tmp_path / "m", "--seed", "y")
    assert (status, "machine.exists" in err) == (2, True)


@pytest.mark.parametrize("form", [(), ("--version", "4"), ("--version", "5"), ("--body", "4"), ("--pad-to", "9000")])
def test_a_quote_and_its_collateral_verify_on_the_command_line(
    folder: Path, capsys: pytest.CaptureFixture[str], form: tuple[str, ...]
) -> None:
    status, out, _ = run(capsys, *quote_arguments(folder, "--event-log-out", folder / "e", "--json", *form))
    assert status == 0
    assert json.loads(out)["simulated"] is True
    status, result = judged(capsys, folder, "--event-log", folder / "e")
    assert (status, result["ok"], result["tcb_status"]) == (0, True, "UpToDate")


def test_a_machine_that_is_missing_is_made_by_the_first_quote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, *quote_arguments(tmp_path))[0] == 0
    assert Machine.open(tmp_path / "m").root_pem == (tmp_path / "r").read_bytes()


def test_a_quote_of_another_time_is_good_at_that_time_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, *quote_arguments(folder, "--at", "2031-01-31T12:00:00Z"))[0] == 0
    assert judged(capsys, folder, "--at", "2031-01-31T12:00:00Z")[0] == 0
    assert judged(capsys, folder, "--at", "1900000000")[0] == 1


def test_faults_are_listed_with_their_codes(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "sim", "fault", "--list", "--json")
    listed = json.loads(out)
    assert status == 0
    assert len(listed) == len(FAULTS) >= 40
    assert all({"name", "code", "what"} <= set(one) for one in listed)
    _, text, _ = run(capsys, "sim", "fault", "--list")
    assert all(name in text for name in FAULTS)


@pytest.mark.parametrize("name", [f.name for f in FAULTS.values() if f.forms & {QUOTE, COLLATERAL}])
def test_a_fault_on_disk_is_refused_with_its_code(folder: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert run(capsys, *quote_arguments(folder, "--fault", name))[0] == 0
    status, result = judged(capsys, folder)
    assert (result["ok"], result["code"]) == (False, str(FAULTS[name].code))
    assert status in (1, 3)


@pytest.mark.parametrize("name", [f.name for f in FAULTS.values() if not f.forms & {QUOTE, COLLATERAL}])
def test_a_fault_without_quote_or_collateral_form_is_wrong_usage(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    status, _, err = run(capsys, *quote_arguments(folder, "--fault", name))
    assert (status, "fault.form_missing" in err) == (2, True)
    assert not (folder / "q").exists()
    if EVENT_LOG in FAULTS[name].forms:
        assert run(capsys, *quote_arguments(folder, "--fault", name, "--event-log-out", folder / "e"))[0] == 0
        assert judged(capsys, folder, "--event-log", folder / "e")[1]["code"] == FAULTS[name].code


@pytest.mark.parametrize(
    "arguments",
    [
        ("sim",),
        ("sim", "quote"),
        ("sim", "explode"),
        ("sim", "quote", "--machine", "m", "--report-data", "00", "--out", "q"),
        ("sim", "quote", "--machine", "m", "--report-data", "zz", "--out", "q"),
        ("sim", "quote", "--machine", "m", "--report-data", REPORT_DATA),
        ("sim", "quote", "--machine", "m", "--report-data", REPORT_DATA, "--out", "q", "--version", "3"),
        ("sim", "quote", "--machine", "m", "--report-data", REPORT_DATA, "--out", "q", "--version", "4", "--body", "3"),
        ("sim", "quote", "--machine", "m", "--report-data", REPORT_DATA, "--out", "q", "--fault", "no-such-fault"),
        ("sim", "quote", "--machine", "m", "--report-data", REPORT_DATA, "--out", "q", "--at", "yesterday"),
        ("sim", "quote", "--machine", "m", "--report-data", REPORT_DATA, "--out", "q", "--platform", "7"),
        ("sim", "quote", "--machine", "m", "--report-data", REPORT_DATA, "--out", "nowhere/q"),
        ("sim", "fault"),
        ("sim", "recover", "--machine", "m", "explode"),
        ("sim", "recover", "--machine", "m", "status", "--svn", "99", "--status", "OutOfDate"),
        ("sim", "recover", "--machine", "m", "patch"),
        ("sim", "recover", "--machine", "m", "patch", "--set", "ppid=1"),
        ("sim", "recover", "--machine", "m", "patch", "--set", "microcode=256"),
        ("sim", "recover", "--machine", "m", "clock"),
        ("sim", "recover", "--machine", "m", "clock", "--advance", "soon"),
        ("sim", "recover", "--machine", "m", "clock", "--to", "1"),
        ("sim", "recover", "--machine", "m", "publish", "--advisory", "; rm"),
    ],
)
def test_wrong_usage_is_2_with_a_message_and_nothing_written(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(folder)
    before = (folder / "m" / "machine.json").read_bytes()
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert err
    assert (folder / "m" / "machine.json").read_bytes() == before
    assert not (folder / "q").exists()


def test_a_damaged_machine_is_said_to_be_damaged(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "m" / "machine.json").write_text("{}")
    status, _, err = run(capsys, *quote_arguments(folder))
    assert (status, "machine.damaged" in err) == (2, True)


def test_help_is_0(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (("sim", "--help"), ("sim", "recover", "--help"), ("sim", "quote", "--help")):
        status, out, _ = run(capsys, *arguments)
        assert (status, out.startswith("usage: cloister sim")) == (0, True)


# --- recoveries and the clock ---


def recovered(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: str) -> Any:
    status, out, err = run(capsys, "sim", "recover", "--machine", folder / "m", "--json", *arguments)
    assert status == 0, err
    return json.loads(out)


def test_a_recovery_changes_what_verify_says(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = recovered(capsys, folder, "publish", "--advisory", "INTEL-SA-01313")
    assert shown["evaluation_sets"] == {"early": 21, "standard": 20}
    recovered(capsys, folder, "promote")
    run(capsys, *quote_arguments(folder))
    status, result = judged(capsys, folder)
    assert (status, result["code"], result["tcb_status"]) == (1, "tcb.not_accepted", "OutOfDate")
    assert result["advisory_ids"] == ["INTEL-SA-01313"]
    recovered(capsys, folder, "patch", "--platform", "0", "--set", "microcode=9")
    run(capsys, *quote_arguments(folder))
    assert judged(capsys, folder)[0] == 0


def test_a_revocation_a_clone_and_a_level_from_the_command_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recovered(capsys, folder, "status", "--what", "qe", "--tee", "tdx", "--svn", "4", "--status", "OutOfDate")
    run(capsys, *quote_arguments(folder))
    assert judged(capsys, folder)[1]["qe_tcb_status"] == "OutOfDate"
    assert len(recovered(capsys, folder, "clone", "--platform", "0")["platforms"]) == 4
    recovered(capsys, folder, "revoke-pck", "--platform", "0")
    run(capsys, *quote_arguments(folder, "--platform", "3"))
    assert judged(capsys, folder)[1]["code"] == "chain.revoked"


def test_the_clock_moves_from_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert recovered(capsys, folder, "clock", "--to", "2030-01-01T00:00:00Z")["clock"] == "2030-01-01T00:00:00+00:00"
    assert recovered(capsys, folder, "clock", "--advance", "31d")["clock"] == "2030-02-01T00:00:00+00:00"
    assert recovered(capsys, folder, "clock", "--reset")["clock_moved"] is False


# --- the PCS, as a process of its own ---


def test_the_pcs_serves_until_it_is_told_to_stop(folder: Path) -> None:
    command = [sys.executable, "cloister.py", "sim", "pcs", "--machine", str(folder / "m"), "--json"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["pcs_url"]
        with urllib.request.urlopen(f"{url}/tdx/certification/v4/qe/identity", timeout=10) as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_the_command_starts_fast_and_imports_no_server(folder: Path) -> None:
    program = (
        "import sys, cloister; status = cloister.main(sys.argv[1:]);"
        "print(sorted(set(sys.modules) & {'typer', 'fastapi', 'starlette', 'grpc', 'uvicorn', 'broker', 'enclave'}),"
        " file=sys.stderr); sys.exit(status)"
    )
    arguments = [str(argument) for argument in quote_arguments(folder)]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert (done.returncode, done.stderr.strip()) == (0, "[]")
    assert Quote.parse((folder / "q").read_bytes()).version == 4


def test_run_is_handed_on_with_all_that_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def record(line: Sequence[str]) -> int:
        seen.append(list(line))
        return 7

    monkeypatch.setattr(simulator.guest.cli, "run", record)
    assert cli.sim(["run", "--machine", "m", "--", "true"]) == 7
    assert seen == [["--machine", "m", "--", "true"]]


def test_a_lab_without_its_packages_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("simulator.lab", "simulator.demo"):
        monkeypatch.setitem(sys.modules, name, None)
    assert (cli.lab([]), cli.demo([])) == (2, 2)
    assert capsys.readouterr().err.count("cloister[all]") == 2
