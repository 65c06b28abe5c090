"""The command line as a person and a script use it: what it prints, and with which status it ends."""

import io
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import cloister
from attestation import terminal
from attestation.inspect import fields
from attestation.quote import MAX_QUOTE
from simulator.machine import Machine
from simulator.pcs_server import PcsServer
from tests.pki_factory import World

AT = datetime(2026, 7, 1, 12, tzinfo=UTC)
WHEN = "2026-07-01T12:00:00Z"
BOUND = bytes(range(64))
ROOT = Path(__file__).resolve().parent.parent
MEMBERS = {
    "ok", "genuine", "code", "tee", "version", "tcb_status", "platform_tcb_status", "module_tcb_status",
    "qe_tcb_status", "advisory_ids", "tcb_date", "fmspc", "ppid", "report", "checks", "at",
}  # fmt: skip


@dataclass
class Files:
    folder: Path
    machine: Machine
    raw: bytes

    def write(self, name: str, content: bytes | str) -> str:
        path = self.folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    def path(self, name: str) -> str:
        return str(self.folder / name)

    @property
    def judged(self) -> list[str]:
        """The options that a good quote passes with."""
        return ["--collateral", self.path("collateral.json"), "--root", self.path("root.pem"), "--at", WHEN]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    machine = Machine.create(seed=21)
    machine.clock.set(AT)
    td = machine.launch()
    made = Files(tmp_path_factory.mktemp("cli"), machine, td.quote(BOUND))
    made.write("quote.bin", made.raw)
    made.write("quote.hex", made.raw.hex() + "\n")
    made.write("collateral.json", machine.collateral("tdx", "90C06F000000", at=AT).to_json())
    made.write("root.pem", machine.root_pem)
    made.write("log.bin", td.event_log())
    return made


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = cloister.main(arguments)
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def judge(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    status, out, _ = run(capsys, "verify", *arguments, "--json")
    members: dict[str, Any] = json.loads(out)
    assert members.keys() >= MEMBERS
    assert members["ok"] == (status == 0)
    return status, members


# verify


def test_a_good_quote_ends_with_zero_and_tells_everything(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--report-data", BOUND.hex(), "--event-log", files.path("log.bin")]
    status, found = judge(capsys, files.path("quote.bin"), *files.judged, *options)
    assert status == 0
    assert (found["genuine"], found["code"], found["tee"], found["version"]) == (True, None, "tdx", 4)
    assert (found["tcb_status"], found["qe_tcb_status"], found["fmspc"]) == ("UpToDate", "UpToDate", "90c06f000000")
    assert found["report"]["report_data"] == BOUND.hex()
    assert found["at"] == WHEN
    assert found["simulated"] is True
    assert all(check["ok"] for check in found["checks"])
    assert {"report_data", "event_log"} <= {check["name"] for check in found["checks"]}


def test_hex_and_standard_input_are_read_too(
    files: Files, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert judge(capsys, files.path("quote.hex"), *files.judged)[0] == 0
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(files.raw)))
    assert judge(capsys, "-", *files.judged)[0] == 0


def test_report_data_that_is_not_compared_is_said(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    status, found = judge(capsys, files.path("quote.bin"), *files.judged)
    assert status == 0
    warnings = [check for check in found["checks"] if check["warning"]]
    assert [check["code"] for check in warnings] == ["binding.not_compared"]


def test_another_report_data_is_refused_and_still_genuine(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    status, found = judge(capsys, files.path("quote.bin"), *files.judged, "--report-data", "ab" * 64)
    assert status == 1
    assert (found["code"], found["genuine"]) == ("binding.report_data_mismatch", True)
    assert found["tcb_status"] == "UpToDate"


def test_a_forged_quote_is_refused_and_not_genuine(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    forged = bytearray(files.raw)
    forged[200] ^= 1
    status, found = judge(capsys, files.write("forged.bin", bytes(forged)), *files.judged)
    assert status == 1
    assert (found["code"], found["genuine"], found["tcb_status"]) == ("quote.signature_invalid", False, None)
    assert found["fmspc"] == "90c06f000000"


def test_without_another_root_the_simulator_is_refused(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--collateral", files.path("collateral.json"), "--at", WHEN]
    status, found = judge(capsys, files.path("quote.bin"), *options)
    assert (status, found["code"], found["genuine"]) == (1, "chain.root_not_trusted", False)


def test_an_event_log_that_does_not_fit_is_refused(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    other = files.machine.launch("other", image="another image").event_log()
    options = [*files.judged, "--event-log", files.write("other.bin", other)]
    status, found = judge(capsys, files.path("quote.bin"), *options)
    assert (status, found["code"], found["genuine"]) == (1, "eventlog.replay_mismatch", True)
    status, found = judge(capsys, files.path("quote.bin"), *files.judged, "--event-log", files.write("junk", b"junk"))
    assert (status, found["code"]) == (3, "eventlog.malformed")


@pytest.fixture(scope="module")
def out_of_date(tmp_path_factory: pytest.TempPathFactory) -> Files:
    machine = Machine.create(seed=22)
    machine.clock.set(AT)
    made = Files(tmp_path_factory.mktemp("old"), machine, machine.launch().quote(BOUND))
    machine.recover("publish", at=AT, standard=True)
    made.write("quote.bin", made.raw)
    made.write("collateral.json", machine.collateral("tdx", "90C06F000000", at=AT).to_json())
    made.write("root.pem", machine.root_pem)
    return made


def test_out_of_date_is_refused_unless_it_is_accepted(out_of_date: Files, capsys: pytest.CaptureFixture[str]) -> None:
    quote = out_of_date.path("quote.bin")
    status, found = judge(capsys, quote, *out_of_date.judged)
    assert (status, found["code"], found["genuine"]) == (1, "tcb.not_accepted", True)
    assert found["tcb_status"] == "OutOfDate"
    for accept in ("any", "OutOfDate", "UpToDate,OutOfDate"):
        status, found = judge(capsys, quote, *out_of_date.judged, "--accept", accept)
        assert (status, found["ok"], found["genuine"]) == (0, True, True)
    assert judge(capsys, quote, *out_of_date.judged, "--accept", "SWHardeningNeeded")[0] == 1


def test_a_migratable_domain_is_refused_unless_that_is_allowed(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = files.machine.launch("m", attributes=1 << 28 | 1 << 29).quote(BOUND)
    path = files.write("migratable.bin", raw)
    status, found = judge(capsys, path, *files.judged)
    assert (status, found["code"], found["genuine"]) == (1, "quote.migratable", True)
    status, found = judge(capsys, path, *files.judged, "--allow", "migratable", "--allow", "service_td")
    assert (status, found["allowances_used"]) == (0, ["migratable"])


def test_what_is_malformed_ends_with_three(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    cases = {
        "quote.empty": b"",
        "quote.too_large": bytes(MAX_QUOTE + 1),
        "quote.truncated": files.raw[:500],
        "quote.version_unsupported": b"#!/bin/sh" * 100,
        "quote.trailing_bytes": files.raw + b"x",
    }
    for code, content in cases.items():
        status, found = judge(capsys, files.write("bad.bin", content), "--at", WHEN)
        assert (status, found["code"], found["genuine"], found["tee"]) == (3, code, None, None)
    status, found = judge(capsys, files.path("quote.bin"), "--collateral", files.write("c.json", "{}"), "--at", WHEN)
    assert (status, found["code"], found["tee"]) == (3, "collateral.malformed", "tdx")


def test_the_quote_is_parsed_before_anything_is_fetched(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    bad = files.write("bad.bin", b"junk" * 100)
    options = ["--pcs", "http://127.0.0.1:9", "--cache", files.path("cache")]
    assert judge(capsys, bad, *options)[0] == 3


def test_without_collateral_it_could_not_be_judged(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--pcs", "http://127.0.0.1:9", "--cache", files.path("cache"), "--root", files.path("root.pem")]
    started = time.monotonic()
    status, found = judge(capsys, files.path("quote.bin"), *options)
    assert (status, found["code"], found["genuine"], found["tee"]) == (4, "collateral.unavailable", None, "tdx")
    assert time.monotonic() - started < 30


def test_a_pcs_is_asked_and_its_answers_kept(files: Files, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with PcsServer(files.machine) as server:
        options = ["--pcs", server.url, "--cache", str(tmp_path), "--root", files.path("root.pem"), "--at", WHEN]
        assert judge(capsys, files.path("quote.bin"), *options)[0] == 0
    assert judge(capsys, files.path("quote.bin"), *options)[0] == 0


@pytest.mark.parametrize(
    "options",
    [
        ["--at", "yesterday"],
        ["--at", "2026-07-01T12:00:00"],
        ["--at", "9" * 30],
        ["--at", "0001-01-01T00:00:00+14:00"],
        ["--at", "9999-12-31T23:59:59-14:00"],
        ["--at", "-1"],
        ["--report-data", "00"],
        ["--report-data", "zz" * 64],
        ["--report-data", "ab " * 64],
        ["--report-data", "00" * 64],
        ["--accept", "Fine"],
        ["--accept", ""],
        ["--accept", "Revoked"],
        ["--allow", "debug"],
        ["--root", "missing.pem"],
        ["--collateral", "missing.json"],
        ["--event-log", "missing.bin"],
        ["--bundle", "missing"],
        ["--pcs", "http://pcs.example"],
        ["--collateral", "a", "--pcs", "https://pcs.example"],
        ["--acc", "any"],
        ["more"],
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_ends_with_two_and_one_sentence(
    options: list[str], files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run(capsys, "verify", files.path("quote.bin"), *options)
    assert status == 2
    assert out == ""
    assert "cloister verify: " in err
    assert "Traceback" not in err


def test_files_that_cannot_be_read_end_with_two(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (files.path("nothing"), str(files.folder)):
        assert run(capsys, "verify", path)[0] == 2
        assert run(capsys, "quote", "inspect", path)[0] == 2
        assert run(capsys, "quote", "diff", path, path)[0] == 2
    assert run(capsys, "verify", files.path("quote.bin"), "--root", files.write("r.pem", "no"))[0] == 2


def test_times_are_rfc_3339_or_unix_seconds() -> None:
    for text in (WHEN, "2026-07-01T14:00:00+02:00", str(int(AT.timestamp()))):
        assert terminal.read_time(text) == AT


def test_people_get_the_verdict_first_and_what_would_make_it_pass(
    files: Files, out_of_date: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, _ = run(capsys, "verify", files.path("quote.bin"), *files.judged)
    assert out.startswith("✓ TRUSTED")
    assert "NOT UNDER INTEL'S ROOT" in out
    assert "\x1b" not in out
    _, out, _ = run(capsys, "verify", out_of_date.path("quote.bin"), *out_of_date.judged)
    assert out.startswith("✗ REFUSED")
    assert "[tcb.not_accepted]" in out
    assert "→" in out.splitlines()[2]
    listed = [line for line in out.splitlines() if line.startswith(("  ✓", "  ✗", "  !"))]
    assert [line[2] for line in listed] == sorted((line[2] for line in listed), key="✗!✓".index)
    _, out, _ = run(capsys, "verify", files.write("bad.bin", b""))
    assert out.startswith("✗ MALFORMED")
    _, out, _ = run(
        capsys, "verify", files.path("quote.bin"), "--pcs", "http://127.0.0.1:9", "--cache", files.path("c")
    )
    assert out.startswith("? NOT JUDGED")


def test_foreign_text_cannot_drive_the_terminal() -> None:
    assert terminal.plain("a\x1b[31mb\nc\u202e") == "a�[31mb�c�"


def test_colours_are_for_terminals_that_want_them(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b" in terminal.paint("x", "good")
    monkeypatch.setenv("NO_COLOR", "1")
    assert terminal.paint("x", "good") == "x"


# quote inspect, quote diff


def test_inspect_explains_every_byte(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    padded = files.raw + bytes(100)
    status, out, _ = run(capsys, "quote", "inspect", files.write("padded.bin", padded), "--json")
    found = json.loads(out)
    assert status == 0
    at = 0
    for field in fields(padded):
        assert field.offset >= at
        assert field.value in ("", padded[field.offset : field.offset + field.length].hex())
        at = field.offset + field.length
    assert at == len(padded)
    by_name = {f"{field['section']}.{field['name']}": field for field in found["fields"]}
    assert by_name["body.report_data"]["value"] == BOUND.hex()
    assert (by_name["header.version"]["offset"], by_name["body.mr_td"]["offset"]) == (0, 184)
    assert [certificate["subject"] for certificate in found["certificates"]] == [
        "Intel SGX PCK Certificate",
        "Intel SGX PCK Platform CA",
        "Intel SGX Root CA",
    ]
    assert found["certificates"][0]["platform"]["fmspc"] == "90c06f000000"
    status, out, _ = run(capsys, "quote", "inspect", files.path("quote.bin"))
    assert status == 0
    assert "SEPT_VE_DISABLE" in out
    assert "nothing here is verified" in out


@pytest.mark.parametrize(("version", "body"), [(4, 2), (5, 2), (5, 3), (5, 4)])
def test_inspect_knows_every_form(version: int, body: int, files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    td = files.machine.launch("forms", partitioned=body == 4)
    raw = td.quote(BOUND, version=version, body=body)
    shown = fields(raw)
    assert shown[-1].offset + shown[-1].length == len(raw)
    assert run(capsys, "quote", "inspect", files.write("form.bin", raw))[0] == 0


def test_diff_shows_what_differs_and_nothing_else(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    other = files.write("other.bin", files.machine.launch(image="another").quote(BOUND))
    status, out, _ = run(capsys, "quote", "diff", files.path("quote.bin"), other, "--json")
    found = json.loads(out)
    names = {item["name"] for item in found["differences"]}
    assert (status, found["same"]) == (0, False)
    assert "body.mr_td" in names
    assert "body.report_data" not in names
    status, out, _ = run(capsys, "quote", "diff", files.path("quote.bin"), files.path("quote.hex"))
    assert (status, out) == (0, "Every field is the same.\n")
    status, out, _ = run(capsys, "quote", "diff", files.path("quote.bin"), other)
    assert "body.mr_td" in out


def test_standard_input_can_be_one_file_alone(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    for line in (
        ["verify", "-", "--collateral", "-"],
        ["verify", files.path("quote.bin"), "--collateral", "-", "--event-log", "-"],
        ["quote", "diff", "-", "-"],
    ):
        status, _, error = run(capsys, *line)
        assert (status, "standard input" in error) == (2, True)


def test_inspect_and_diff_refuse_what_is_no_quote(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    bad = files.write("bad.bin", b"junk")
    assert run(capsys, "quote", "inspect", bad)[0] == 3
    status, out, _ = run(capsys, "quote", "inspect", bad, "--json")
    assert (status, json.loads(out)["code"]) == (3, "quote.truncated")
    assert run(capsys, "quote", "diff", files.path("quote.bin"), bad)[0] == 3
    assert run(capsys, "quote", "diff", bad, files.path("quote.bin"))[0] == 3


# The command itself


def test_help_lists_every_command_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for flag in ("--help", "-h", "help"):
        status, out, _ = run(capsys, flag)
        assert status == 0
        for name in [*cloister.COMMANDS, *cloister.SIMULATED]:
            assert f"\n  {name}" in out


def test_version_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "--version")
    assert status == 0
    assert out.startswith("cloister ")
    assert out.count("\n") == 1


@pytest.mark.parametrize("line", [[], ["verfy"], ["--verbose"], ["verify"], ["quote"], ["quote", "show"]])
def test_a_command_that_is_not_there_ends_with_two(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, *line)
    assert (status, out) == (2, "")
    assert err
    if line == ["verfy"]:
        assert "did you mean 'verify'" in err


def test_help_of_one_command_ends_with_zero(capsys: pytest.CaptureFixture[str]) -> None:
    for line in (["verify", "--help"], ["quote", "--help"], ["quote", "diff", "--help"], ["measure", "--help"]):
        assert run(capsys, *line)[0] == 0


def test_a_missing_package_names_the_extra(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cloister.COMMANDS, "broker", ("no_such_package.cli:broker", "broker", ""))
    status, _, err = run(capsys, "broker")
    assert status == 2
    assert "cloister[broker]" in err
    monkeypatch.setattr(cloister, "_entry_points", dict)
    status, _, err = run(capsys, "lab")
    assert status == 2
    assert "cloister[simulator]" in err


def test_verify_loads_nothing_that_it_does_not_need(files: Files) -> None:
    line = ["verify", files.path("quote.bin"), *files.judged]
    program = (
        "import sys, cloister; status = cloister.main(sys.argv[1:]);"
        "heavy = {'typer', 'rich', 'pydantic', 'jwt', 'cedarpy', 'fastapi', 'grpc', 'httpx2', 'policies', 'broker',"
        " 'enclave', 'simulator'} & set(sys.modules); sys.exit(status or repr(heavy) if heavy else status)"
    )
    made = subprocess.run(
        [sys.executable, "-c", program, *line], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (made.returncode, made.stderr) == (0, "")


def test_a_reader_that_leaves_early_is_no_error(files: Files) -> None:
    line = [sys.executable, str(ROOT / "cloister.py"), "quote", "inspect", files.path("quote.bin")]
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as gone:
        made = subprocess.run(line, cwd=ROOT, stdout=gone, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert "Traceback" not in made.stderr


# With a policy bundle

STARTERS = ROOT / "policies" / "starters"


@pytest.mark.parametrize("closed", [[], ["--json"]])
def test_a_script_that_closed_the_output_gets_the_status(files: Files, closed: list[str]) -> None:
    line = [sys.executable, "-m", "cloister", "verify", files.path("quote.bin"), *files.judged, *closed]
    ended = subprocess.run(["sh", "-c", '"$@" >&-', "sh", *line], cwd=ROOT, stderr=subprocess.PIPE, check=False)
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_standard_input_that_is_closed_cannot_be_read(files: Files) -> None:
    line = [sys.executable, "-m", "cloister", "verify", "-", *files.judged]
    ended = subprocess.run(["sh", "-c", '"$@" <&-', "sh", *line], cwd=ROOT, capture_output=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.count(b"\n") == 1


def test_a_revoked_platform_is_called_so(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    world = World()
    world.tcb_info["tcbLevels"][0] |= {"tcbStatus": "Revoked", "advisoryIDs": ["INTEL-SA-00007"]}
    given = world.input()
    line = [files.write("revoked.bin", given.raw), "--at", str(int(given.at))]
    line += ["--collateral", files.write("revoked.json", given.collateral_text)]
    line += ["--root", files.write("world.pem", given.root_pem)]
    status, found = judge(capsys, *line, "--accept", "any")
    assert (status, found["code"], found["genuine"]) == (1, "tcb.revoked", False)
    assert (found["tcb_status"], found["platform_tcb_status"]) == ("Revoked", "Revoked")
    assert (found["module_tcb_status"], found["qe_tcb_status"]) == ("UpToDate", "UpToDate")
    assert (found["advisory_ids"], found["tcb_date"]) == (["INTEL-SA-00007"], "2025-05-14T00:00:00Z")
    _, found = judge(capsys, *line[:1], "--at", str(int(given.at) + 26 * 86_400), *line[3:])
    assert found["tcb_status"] is None  # by collateral that has ended nothing is known


def test_a_bundle_decides_what_is_accepted(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    status, found = judge(capsys, files.path("quote.bin"), *files.judged, "--bundle", str(STARTERS / "lab"))
    assert (status, found["code"]) == (0, None)
    assert len(found["policy"]) == 64
    status, found = judge(capsys, files.path("quote.bin"), *files.judged, "--bundle", str(STARTERS / "relying"))
    assert (status, found["genuine"]) == (1, True)
    refused = [check for check in found["checks"] if not check["ok"]]
    assert refused
    assert all(check["name"] == "policy" and check["remedy"] for check in refused)
    assert found["code"] == refused[0]["code"]


def test_a_bundle_and_acceptance_by_hand_exclude_each_other(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    for more in (["--accept", "any"], ["--allow", "migratable"]):
        options = [*files.judged, "--bundle", str(STARTERS / "lab"), *more]
        status, _, err = run(capsys, "verify", files.path("quote.bin"), *options)
        assert status == 2
        assert "--bundle" in err


def test_a_bundle_with_a_mistake_ends_with_two(
    files: Files, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "bundle.toml").write_text("version = ")
    status, _, err = run(capsys, "verify", files.path("quote.bin"), *files.judged, "--bundle", str(tmp_path))
    assert status == 2
    assert "cloister policy check" in err
