"""Bundles from people in a hurry and from people with intent: nothing empty passes for absent, nothing odd crashes."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from cloister import main
from policies.bundle import bundle_of, load_bundle
from policies.cases import read_cases
from policies.errors import BundleError
from policies.model import parse_action
from policies.recording import Recording
from policies.scaffold import write
from tests.policy_world import Files, files, mistakes, recording


def emptied(name: str, key: str) -> Files:
    """The starter with the first value of that key written as an empty text."""
    made = files()
    text, count = re.subn(rf'^({key} = )"(?:[^"\\\n]|\\.)*"', r'\1""', made[name].decode(), count=1, flags=re.M)
    assert count == 1
    return {**made, name: text.encode()}


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("bundle.toml", "tenant"),
        ("bundle.toml", "platforms"),
        ("bundle.toml", "platforms_until"),
        ("reference-values.toml", "name"),
        ("reference-values.toml", "source"),
        ("reference-values.toml", "mr_td"),
        ("reference-values.toml", "rtmr1"),
        ("reference-values.toml", "rtmr2"),
    ],
)
def test_an_empty_text_is_a_mistake_and_not_an_absent_one(name: str, key: str) -> None:
    found = mistakes(emptied(name, key))
    assert any(key in problem.detail and problem.code == "bundle.value" for problem in found)


def test_remarks_may_be_empty() -> None:
    made = files(bundle=("version = 1", 'description = ""\nversion = 1'))
    assert bundle_of(made).tenant == "dev"


@pytest.mark.parametrize(
    ("name", "addition", "word"),
    [
        pytest.param("bundle.toml", b"\nx = " + b"[" * 9_000, "nested", id="nested arrays"),
        pytest.param("bundle.toml", b"\nx = " + b"1" * 9_000, "digits", id="a long number"),
        pytest.param("bundle.toml", b"\n# \xff", "UTF-8", id="another encoding"),
        pytest.param("reference-values.toml", "\n# \u202e".encode(), "U+202E", id="text turned round"),
        pytest.param("policy.cedar", "\n// \u2066".encode(), "U+2066", id="a rule turned round"),
        pytest.param("policy.cedar", b"\n// \xff", "UTF-8", id="rules in another encoding"),
        pytest.param("bundle.toml", b"\nx = [", "", id="a table that does not end"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_mistake_and_takes_no_other_with_it(
    name: str, addition: bytes, word: str
) -> None:
    made = files()
    (problem,) = mistakes({**made, name: made[name] + addition})
    assert (problem.code, problem.file, word in problem.detail) == ("bundle.syntax", name, True)


def rule(condition: str, name: str = '@id("odd")') -> str:
    return f'{name} permit (principal in Workload::"agent", action, resource) when {{ {condition} }};'


@pytest.mark.parametrize(
    "condition",
    [
        pytest.param("(" * 1_500 + "true" + ")" * 1_500, id="parentheses"),
        pytest.param("[" * 1_500 + "]" * 1_500 + " == 1", id="sets"),
        pytest.param("{a:" * 1_500 + "1" + "}" * 1_500 + " == 1", id="records"),
        pytest.param("if true then " * 1_500 + "true" + " else false" * 1_500, id="conditions"),
        pytest.param("true" + " && true" * 3_000, id="conjunctions"),
        pytest.param("true" + " && true" * 600, id="conjunctions that are short enough for Cedar"),
        pytest.param("principal" + ".tenant" * 3_000 + " == 1", id="attributes"),
        pytest.param("1" + " + 1" * 3_000 + " == 1", id="sums"),
        pytest.param("principal has " + "a." * 3_000 + "a", id="has"),
    ],
)
def test_a_rule_that_would_break_cedars_parser_never_reaches_it(condition: str) -> None:
    """Cedar's parser ends the whole process when its stack ends; no exception tells of it."""
    made = files()
    found = mistakes({**made, "policy.cedar": made["policy.cedar"] + f"\n{rule(condition)}".encode()})
    assert {problem.code for problem in found} == {"bundle.rule_invalid"}
    assert found[0].line == made["policy.cedar"].count(b"\n") + 2


def test_a_long_list_of_values_is_no_long_rule() -> None:
    digests = ", ".join(f'"{number:096x}"' for number in range(900))
    made = files()
    added = f"\n{rule(f'[{digests}].contains(principal.rtmr0)')}"
    assert mistakes({**made, "policy.cedar": made["policy.cedar"] + added.encode()}) == ()


def test_a_comment_ends_where_cedar_ends_it() -> None:
    """A lone carriage return: the rule behind it counts for Cedar, and so it does here."""
    made = files()
    hidden = b'\n// only a remark\r@id("hidden") forbid (principal, action, resource) when { context.age_s > 3 };\n'
    loaded = bundle_of({**made, "policy.cedar": made["policy.cedar"] + hidden})
    (found,) = [item for item in loaded.rules.rules if item.id == "hidden"]
    assert (found.effect, found.time.ages_s) == ("forbid", (3,))


@pytest.mark.parametrize("behind", [b'"', b"'", b"@", b"// \r;"], ids=["quote", "apostrophe", "at", "semicolon"])
def test_what_cedar_cannot_read_behind_the_last_rule_is_a_mistake(behind: bytes) -> None:
    made = files()
    found = mistakes({**made, "policy.cedar": made["policy.cedar"] + behind})
    assert {problem.code for problem in found} == {"bundle.syntax"}


@pytest.mark.parametrize(
    "text",
    [
        pytest.param('// @id("a remark")\n', id="a remark"),
        pytest.param('@note("@id(1)")', id="another annotation"),
        pytest.param('@id("")', id="empty"),
        pytest.param('@id("a\\nb")', id="two lines"),
        pytest.param('@id("\\u{1b}[2J")', id="a control character"),
        pytest.param(f'@id("{"x" * 200}")', id="long"),
    ],
)
def test_a_rule_has_the_name_that_cedar_knows_and_a_terminal_can_show(text: str) -> None:
    made = files()
    added = rule('// @id("inside")\n principal.tcb_status == "UpToDate"', text)
    found = mistakes({**made, "policy.cedar": made["policy.cedar"] + b"\n" + added.encode()})
    assert [problem.code for problem in found] == ["bundle.rule_id"]


def test_a_pipe_in_a_bundle_is_not_waited_for(tmp_path: Path) -> None:
    write(files(), tmp_path / "b")
    os.mkfifo(tmp_path / "b" / "more.cedar")
    with pytest.raises(BundleError) as error:
        load_bundle(tmp_path / "b")
    assert error.value.code == "bundle.file_unknown"


@pytest.mark.parametrize(
    "words",
    [
        ("check", "b", "--threshold", "2"),
        ("explain", "b", "--action", "Foo"),
        ("explain", "b", "--at", "2026-12-01"),
        ("explain", "b", "--via", "kbs"),
        ("replay", "b", "b", "--via", "smoke"),
    ],
    ids=" ".join,
)
def test_an_option_that_would_do_nothing_is_a_usage_error(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(files(), tmp_path / "b")
    monkeypatch.chdir(tmp_path)
    assert main(["policy", *words]) == 2
    assert "cloister policy: --" in capsys.readouterr().err


FAR = ["9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00"]


@pytest.mark.parametrize("moment", FAR)
def test_a_date_at_the_ends_of_time_is_a_mistake_and_no_crash(moment: str) -> None:
    made = emptied("bundle.toml", "platforms_until")
    made["bundle.toml"] = made["bundle.toml"].replace(b'platforms_until = ""', f"platforms_until = {moment}".encode())
    assert [problem.code for problem in mistakes(made)] == ["bundle.value"]
    case = f'[[case]]\nname = "x"\nfacts = "a"\naction = "Admit"\nexpect = "permit"\nat = "{moment}"\n[facts.a]\n'
    with pytest.raises(BundleError) as error:
        read_cases(bundle_of({**files(), "tests/starter.toml": case.encode()}))
    assert error.value.code == "bundle.value"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ReleaseSecret", "ReleaseSecret takes name, version, labels; write ReleaseSecret:name"),
        ("Administer:a", "Administer takes target, operation, labels; write Administer:target:operation"),
        ("Admit:a", "Admit takes nothing"),
    ],
)
def test_an_action_that_lacks_something_says_what(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        parse_action(text)


@pytest.mark.parametrize(
    "member",
    [
        {"at": 10**20},
        {"at": -(10**13)},
        {"at": 1.5},
        {"at": True},
        {"at": "9999-12-31T00:00:00-12:00"},
        {"root": "\ud800"},
        {"root": "x"},
        {"quote": "\ud800"},
        {"event_log": "[\ud800"},
        {"report_data": "zz"},
        {"binding": [1]},
    ],
    ids=str,
)
def test_a_recording_with_an_odd_member_is_malformed(member: dict[str, Any]) -> None:
    with pytest.raises(BundleError) as error:
        Recording.from_json("x", json.dumps({**recording(), **member}).encode())
    assert error.value.code == "bundle.recording"


def test_the_name_of_a_recording_moves_no_cursor() -> None:
    made = Recording.from_json("x", json.dumps({**recording(), "name": "\x1b[2Jgood\n"}).encode())
    assert made.name.isprintable()
