"""`cloister policy` as a person or a script meets it: what is printed, and with which exit status."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from cloister import main
from policies.scaffold import write
from tests.policy_world import Files, files, machine, recording

AT = "2026-12-01T12:00:00Z"


class Ran:
    """One command line: exit status and what was printed."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *words: str | Path) -> tuple[int, str]:
        status = main(["policy", *map(str, words)])
        told = self._capsys.readouterr()
        return status, told.out + told.err

    def json(self, *words: str | Path) -> tuple[int, Any]:
        status = main(["policy", *map(str, words), "--json"])
        return status, json.loads(self._capsys.readouterr().out)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Ran:
    return Ran(capsys)


@pytest.fixture
def dev(tmp_path: Path) -> Path:
    write(files(), tmp_path / "dev")
    return tmp_path / "dev"


def changed(tmp_path: Path, made: Files, name: str = "other") -> Path:
    write(made, tmp_path / name)
    return tmp_path / name


@pytest.mark.parametrize("kind", ["dev", "tenant", "relying"])
def test_init_writes_a_bundle_that_checks_and_tests(run: Ran, tmp_path: Path, kind: str) -> None:
    target = tmp_path / "b"
    status, told = run("init", target, "--kind", kind, "--tenant", "globex")
    assert status == 0
    assert "next: cloister policy check" in told
    assert run("check", target)[0] == 0
    status, told = run("test", target, "--strict")
    assert status == 0
    assert re.search(r"(\d+) of \1 cases pass", told)


def test_init_is_for_development_unless_told(run: Ran, tmp_path: Path) -> None:
    assert run.json("init", tmp_path / "b") == (0, {"ok": True, "kind": "dev", "files": json_files(tmp_path / "b")})


def json_files(root: Path) -> list[str]:
    return sorted(str(path) for path in root.rglob("*") if path.is_file())


def test_init_takes_measurements_from_a_quote_and_overwrites_nothing(run: Ran, tmp_path: Path) -> None:
    quote = tmp_path / "quote.bin"
    quote.write_bytes(machine().launch("td", image="mine").quote(bytes(range(64))))
    assert run("init", tmp_path / "b", "--quote", quote)[0] == 0
    assert run("test", tmp_path / "b")[0] == 0
    assert machine().launch("td", image="mine").mr_td.hex() in (tmp_path / "b" / "reference-values.toml").read_text()
    status, told = run("init", tmp_path / "b")
    assert status == 1
    assert "nothing was written" in told
    assert run("init", tmp_path / "c", "--quote", tmp_path / "b" / "bundle.toml")[0] == 3
    assert run("init", tmp_path / "d", "--kind", "prod")[0] == 2


def test_check_lists_every_mistake_with_its_place(run: Ran, tmp_path: Path) -> None:
    bad = files("dev", bundle=("max_age_s", "max_ages"), rules=('Workload::"agent"', 'Workload::"agents"'))
    path = changed(tmp_path, bad)
    status, told = run("check", path)
    assert status == 1
    assert re.search(r"^bundle\.toml:\d+: unknown key 'freshness\.max_ages' \(did you mean 'max_age_s'\?\)", told, re.M)
    assert re.search(r"^policy\.cedar:\d+: admit-agents: no workload 'agents'", told, re.M)
    status, found = run.json("check", path)
    assert (status, found["ok"]) == (1, False)
    assert {"code", "file", "line", "detail", "hint"} == set(found["mistakes"][0])


def test_check_tells_of_a_directory_that_is_not_there(run: Ran, tmp_path: Path) -> None:
    assert run("check", tmp_path / "none")[0] == 2


def test_check_refuses_what_has_ended(run: Ran, dev: Path) -> None:
    assert run("check", dev, "--at", AT)[0] == 0
    status, told = run("check", dev, "--at", "2028-01-01T00:00:00Z")
    assert status == 1
    assert "bundle.ended" in told
    assert run("check", dev, "--at", "1796126400")[0] == 0
    assert run("check", dev, "--at", "soon")[0] == 2


def test_check_refuses_an_older_version(run: Ran, dev: Path, tmp_path: Path) -> None:
    newer = changed(tmp_path, files("dev", bundle=("version = 1 ", "version = 2 ")))
    assert run("check", newer, "--newer-than", dev)[0] == 0
    status, told = run("check", dev, "--newer-than", newer)
    assert status == 1
    assert "bundle.older" in told


def test_a_failing_case_shows_what_was_expected_what_came_and_why(run: Ran, tmp_path: Path) -> None:
    path = changed(tmp_path, files("dev", bundle=('"SWHardeningNeeded"', '"ConfigurationNeeded"')))
    status, told = run("test", path)
    assert status == 1
    assert "FAILED tests/starter.toml:" in told
    assert "expected permit" in told
    assert "passes if the platform's TCB becomes" in told
    status, found = run.json("test", path)
    failed = [case for case in found["cases"] if not case["passed"]]
    assert failed[0]["got"]["codes"] == ["policy.tcb_not_accepted"]


def test_rules_that_no_case_exercises_are_named(run: Ran, tmp_path: Path) -> None:
    made = files("dev")
    scope = 'principal in Workload::"agent", action == Action::"CallTool", resource == Tool::"dev/idle/x"'
    extra = f'\n@id("idle") permit ({scope});\n'.encode()
    path = changed(tmp_path, {**made, "policy.cedar": made["policy.cedar"] + extra})
    status, told = run("test", path)
    assert status == 0
    assert "never exercised: rule idle" in told
    assert run("test", path, "--strict")[0] == 1


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ('facts = "good"', 'facts = "god"', "did you mean 'good'"),
        ('expect = "permit"', 'expect = "permitt"', "did you mean 'permit'"),
        ('action = "Admit"', 'action = "Admits"', "did you mean 'Admit'"),
        ('codes = ["policy', 'cods = ["policy', "did you mean 'codes'"),
        ("tcb_status =", "tcb_state =", "did you mean 'tcb_status'"),
        ('context = { via', 'context = { vai', "did you mean 'via'"),
        ('rules = ["admit-agents"]', 'rules = ["admit-agent"]', "did you mean 'admit-agents'"),
        ('facts = "good"', 'evidence = "good.json"', "no file tests/good.json"),
        ("[facts.good]", '[facts.good]\nlike = "good"', "like leads back to [facts.good]"),
        ("[facts.good]", '[facts.other]\nlike = "good"\n[facts.good]\nlike = "other"', "leads back to"),
        ("[facts.good]", '[facts.good]\nlaunches = "ab"', "launches is a list"),
        ("[facts.good]", "[facts.good]\nlaunches = [7]", "launches is a list"),
        ("[facts.good]", '[facts.good]\nevent_digests = ["ab"]', "event_digests is a list"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_case_is_told_with_line_and_suggestion(
    run: Ran, tmp_path: Path, old: str, new: str, word: str
) -> None:
    path = changed(tmp_path, files("dev", cases=(old, new)))
    for command in ("check", "test"):
        status, told = run(command, path)
        assert status == 1
        assert re.search(r"^tests/starter\.toml:\d+: ", told, re.M)
        assert word in told


def test_a_case_may_carry_recorded_evidence(run: Ran, tmp_path: Path) -> None:
    case = (
        f'[[case]]\nname = "recorded"\nevidence = "td.json"\naction = "Admit"\nat = "{AT}"\nexpect = "permit"\n'
        f'[[case]]\nname = "later"\nevidence = "td.json"\naction = "Admit"\nat = "2027-03-01"\nexpect = "refuse"\n'
        'codes = ["crl.expired"]\n'
    )
    made = {**files("dev"), "tests/recorded.toml": case.encode(), "tests/td.json": json.dumps(recording()).encode()}
    status, told = run("test", changed(tmp_path, made))
    assert status == 0, told


def test_explain_tells_the_bundle_in_words(run: Ran, dev: Path) -> None:
    status, told = run("explain", dev)
    assert status == 0
    for word in (
        "any, before 2027-12-31",
        "forbid never-production",
        'principal in Workload::"agent"',
        "INTEL",
        "agent",
    ):
        assert word in told or word == "INTEL"


def test_explain_tells_why_evidence_is_refused(run: Ran, dev: Path, tmp_path: Path) -> None:
    path = tmp_path / "td.json"
    path.write_text(json.dumps(recording(image="another")))
    status, told = run("explain", dev, "--evidence", path, "--action", "Admit", "--action", "ReleaseSecret:dev/other/x")
    assert status == 1
    assert "workload.agent.mr_td  (reference-values.toml:" in told
    assert "nearest   agent (simulator image" in told
    assert "passes if mr_td is" in told
    assert "policy.no_rule" in told
    path.write_text(json.dumps(recording()))
    assert run("explain", dev, "--evidence", path)[0] == 0
    assert run("explain", dev, "--evidence", path, "--action", "Steal:x")[0] == 2
    assert run("explain", dev, "--evidence", tmp_path / "none.json")[0] == 2
    path.write_text("{}")
    assert run("explain", dev, "--evidence", path)[0] == 3


def test_diff_tells_meaning_and_effect(run: Ran, dev: Path, tmp_path: Path) -> None:
    reworded = changed(tmp_path, files("dev", bundle=("# Development", "# For development")), "reworded")
    status, told = run("diff", dev, reworded)
    assert (status, told.strip()) == (0, "nothing changes in meaning (the text differs)")
    wider = changed(tmp_path, files("dev", rules=('"current" && context.via == "cloister"', '"current"')), "wider")
    status, told = run("diff", dev, wider)
    assert status == 1
    assert "wider    talk-to-each-other: conditions  (policy.cedar:" in told
    assert "nobody sends mail over KBS (a case of the old bundle): refuse becomes permit" in told
    status, found = run.json("diff", wider, dev)
    assert (status, found["wider"], found["changes"][0]["effect"]) == (1, False, "narrower")


def test_replay_counts_and_lists_changes(run: Ran, dev: Path, tmp_path: Path) -> None:
    folder = tmp_path / "evidence"
    folder.mkdir()
    (folder / "a.json").write_text(json.dumps(recording()))
    (folder / "b.json").write_text(json.dumps(recording(image="another")))
    status, told = run("replay", dev, folder)
    assert status == 0
    assert "2 decisions, 1 permitted" in told
    assert run("replay", dev, folder, "--against", dev)[0] == 0
    edit = ("min_evaluation_number = 1 ", "min_evaluation_number = 99 ")
    stricter = changed(tmp_path, files("dev", bundle=edit), "stricter")
    status, told = run("replay", stricter, folder, "--against", dev)
    assert status == 1
    assert "a.json: Admit: permit becomes refuse, policy.evaluation_number_too_low" in told
    assert run("replay", dev, folder / "none")[0] == 2


def test_forecast_tells_dates_and_what_to_do(run: Ran, dev: Path, tmp_path: Path) -> None:
    path = tmp_path / "td.json"
    path.write_text(json.dumps(recording()))
    status, told = run("forecast", dev, path, "--at", AT)
    assert status == 0
    assert re.search(r"^\* 20\d\d-\d\d-\d\dT\S+  .* ends: refuse, \S+\.expired$", told, re.M)
    assert "by itself fetch it anew" in told
    status, found = run.json("forecast", dev, path, "--at", AT)
    assert found["forecasts"][0]["change"]["decision"] == "refuse"


def keys(tmp_path: Path, name: str) -> tuple[Path, Path]:
    key = Ed25519PrivateKey.generate()
    private, public = tmp_path / f"{name}.pem", tmp_path / f"{name}.pub"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


def test_two_people_sign_and_check_counts_them(run: Ran, dev: Path, tmp_path: Path) -> None:
    (ann, ann_public), (bob, bob_public) = keys(tmp_path, "ann"), keys(tmp_path, "bob")
    both = ("--signer", ann_public, "--signer", bob_public, "--threshold", "2")
    assert run("check", dev, *both)[0] == 1
    assert run("sign", dev, "--key", ann)[0] == 0
    status, told = run("check", dev, *both)
    assert status == 1
    assert "1 of 2 signatures needed" in told
    assert run("sign", dev, "--key", bob)[0] == 0
    assert run("check", dev, *both)[0] == 0
    (dev / "policy.cedar").write_text((dev / "policy.cedar").read_text() + "// later\n")
    status, told = run("check", dev, *both)
    assert status == 1
    assert "not over this content" in told
    assert run("check", dev, "--signer", ann_public, "--threshold", "2")[0] == 2


def test_what_does_not_load_is_not_signed(run: Ran, tmp_path: Path) -> None:
    private, public = keys(tmp_path, "ann")
    bad = changed(tmp_path, files("dev", bundle=("max_age_s", "max_ages")))
    assert run("sign", bad, "--key", private)[0] == 1
    assert not (bad / "signatures.toml").exists()
    good = changed(tmp_path, files("dev"), "good")
    assert run("sign", good, "--key", public)[0] == 1
    assert run("sign", good, "--key", tmp_path / "none.pem")[0] == 2


def test_a_corim_is_printed_as_reference_values(run: Ran, tmp_path: Path) -> None:
    pytest.importorskip("cbor2")
    from tests.corim_files import good, signed

    key = ec.derive_private_key(7, ec.SECP256R1())
    path, signer = tmp_path / "image.corim", tmp_path / "signer.pem"
    signer.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    path.write_bytes(signed(good(), key))
    environment = ("--environment", "vendor=acme", "--environment", "model=td-image")
    call = ("import-corim", path, "--workload", "agent", *environment)
    status, told = run(*call, "--signer", signer)
    assert status == 0
    assert f'mr_td = "{"01" * 48}"' in told
    status, told = run(*call, "--signer", signer, "--json")
    shown = json.loads(told)
    assert (status, shown["signature_verified"], shown["values"][0]["rtmr1"]) == (0, True, "02" * 48)
    assert run(*call, "--unsigned")[0] == 1
    path.write_bytes(good())
    assert run(*call, "--signer", signer)[0] == 1
    status, told = run(*call, "--unsigned")
    assert (status, "nobody signed this manifest" in told) == (0, True)
    assert run(*call)[0] == run(*call, "--unsigned", "--signer", signer)[0] == 2
    assert run(*call, "--unsigned", "--environment", "shape=round")[0] == 2
    assert run("import-corim", path, "--workload", "a b", "--unsigned")[0] == 2
    status, told = run("import-corim", path, "--workload", "agent", "--unsigned")
    assert (status, "--environment vendor=acme --environment model=td-image" in told) == (1, True)
    assert run("import-corim", tmp_path / "none", "--workload", "agent", "--unsigned")[0] == 2


def test_a_command_that_is_none_is_a_usage_error(run: Ran) -> None:
    assert run("chekc", ".")[0] == 2
    assert run()[0] in (0, 2)
