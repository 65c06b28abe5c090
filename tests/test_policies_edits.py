"""Thirty bad edits of a policy, each caught before it bites, and by what: check, test, diff or replay.

`caught_by` is the first of these that notices, in that order. All four are asked about each edit.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from policies.bundle import Bundle, bundle_of
from policies.cases import read_cases, run_cases
from policies.diff import diff
from policies.errors import BundleError
from policies.model import Action, Admit, ReleaseSecret, Send
from policies.replay import replay
from tests.policy_world import AT, Files, bundle, files, recorded

MAIN, RULES, VALUES, CASES = "bundle.toml", "policy.cedar", "reference-values.toml", "tests/starter.toml"


@dataclass(frozen=True, slots=True)
class Edit:
    """One bad edit of the development starter: replace `old` by `new` in a file."""

    name: str
    file: str
    old: str
    new: str
    caught_by: str


MR_TD = "2f99d743798b86fa37fc219c4b281ca2096480a694eb5356e13e17ceb577b02de325f370d0ab5c3c91212074653b6c6c"
RTMR1 = "fc5847244db2d645a694b6fa4afa6cc53cadc36beff372dfed51c80c142cb9e722873db2ef5caf8942775fc22ff4859d"

EDITS = [
    # typing mistakes
    Edit("key misspelt", MAIN, "max_age_s", "max_age", "check"),
    Edit("table misspelt", MAIN, "[freshness]", "[freshnes]", "check"),
    Edit("TCB state misspelt", MAIN, '"UpToDate"', '"UptoDate"', "check"),
    Edit("TCB state misspelt in a rule", RULES, '"UpToDate"', '"UpTodate"', "check"),
    Edit("attribute misspelt", RULES, "principal.tcb_status", "principal.tcbstatus", "check"),
    Edit("action misspelt", RULES, 'Action::"ReleaseSecret"', 'Action::"RelaseSecret"', "check"),
    Edit("workload misspelt", RULES, 'Workload::"agent"', 'Workload::"agnet"', "check"),
    Edit("forbid misspelt", RULES, "\nforbid (", "\nforbit (", "check"),
    Edit("semicolon forgotten", RULES, '"cloister" };', '"cloister" }', "check"),
    Edit("digit of a measurement lost", VALUES, MR_TD, MR_TD[:-1], "check"),
    Edit("measurement in upper case", VALUES, MR_TD, MR_TD.upper(), "check"),
    Edit("number in quotes", MAIN, "version = 1", 'version = "1"', "check"),
    Edit("other tenant in a scope", RULES, 'Path::"dev/secrets"', 'Path::"prod/secrets"', "check"),
    # widened scopes
    Edit("any secret in place of one folder", RULES, 'resource in Path::"dev/secrets"', "resource", "test"),
    Edit("whole tenant in place of one folder", RULES, 'Path::"dev/secrets"', 'Path::"dev"', "test"),
    Edit(
        "any workload in place of one",
        RULES,
        'principal in Workload::"agent", action == Action::"R',
        'principal, action == Action::"R',
        "test",
    ),
    Edit("one more TCB state", MAIN, '"SWHardeningNeeded"', '"SWHardeningNeeded", "OutOfDate"', "test"),
    Edit("any advisory", MAIN, 'allow = ["INTEL-SA-00615"]', 'allow = "any"', "test"),
    Edit("platforms for one more year", MAIN, 'platforms_until = "2027', 'platforms_until = "2028', "test"),
    Edit("evidence may be a day old", MAIN, "max_age_s = 600", "max_age_s = 86400", "test"),
    Edit("any firmware", VALUES, f'mr_td = "{MR_TD}"', 'mr_td = "any"\nuntil = "2027-12-31"', "test"),
    Edit("forbid of less", RULES, 'Action::"CallTool"], resource)', 'Action::"Receive"], resource)', "test"),
    Edit(
        "one more action in a rule",
        RULES,
        'action == Action::"CallTool", resource in',
        'action in [Action::"CallTool", Action::"Administer"], resource in',
        "diff",
    ),
    # dropped conditions
    Edit("condition dropped", RULES, 'context.standing == "current" && ', "", "test"),
    Edit(
        "condition turned round",
        RULES,
        'when { resource.labels.contains("production") }',
        'unless { resource.labels.contains("production") }',
        "test",
    ),
    Edit("measurement dropped", VALUES, f'rtmr1 = "{RTMR1}"\n', "", "test"),
    # swapped measurements, downgrade, values that have ended
    Edit(
        "measurements swapped",
        VALUES,
        f'mr_td = "{MR_TD}"\nrtmr1 = "{RTMR1}"',
        f'mr_td = "{RTMR1}"\nrtmr1 = "{MR_TD}"',
        "test",
    ),
    Edit("end date in the past", MAIN, 'platforms_until = "2027', 'platforms_until = "2025', "check"),
    Edit(
        "condition and its test dropped together",
        RULES,
        ' && context.via == "cloister" };\n\n@id("call',
        ' };\n\n@id("call',
        "diff",
    ),
    Edit("one MRTD digit altered, in values and tests alike", VALUES, MR_TD, "3" + MR_TD[1:], "diff"),
]


def in_force() -> Files:
    return files("dev", bundle=("version = 1 ", "version = 2 "))


def edited(edit: Edit) -> Files:
    made = in_force()
    old = edit.old.replace("version = 1", "version = 2")
    assert old.encode() in made[edit.file], edit.name
    made[edit.file] = made[edit.file].replace(old.encode(), edit.new.replace("version = 1", "version = 2").encode(), 1)
    if "test dropped together" in edit.name:
        cases = made[CASES].decode().split("[[case]]")
        made[CASES] = "[[case]]".join(case for case in cases if "nobody sends mail over KBS" not in case).encode()
    if "tests alike" in edit.name:
        made[CASES] = made[CASES].replace(edit.old.encode(), edit.new.encode())
    return made


def load(made: Files) -> Bundle:
    """What `policy check --newer-than` does."""
    current = bundle_of(in_force())
    return bundle_of(made, newest_version=current.version, at=AT)


def fails_a_test(loaded: Bundle) -> bool:
    outcomes = run_cases(loaded, read_cases(loaded))
    return any(not outcome.passed for outcome in outcomes)


ACTIONS: list[tuple[str, Action]] = [
    ("Admit", Admit()),
    ("secret", ReleaseSecret("dev/secrets/k")),
    ("mail", Send("dev/mail/a")),
]


def replay_changes(loaded: Bundle) -> bool:
    recordings = [recorded("good"), recorded("other", image="another image")]
    return any(item.changed for item in replay(bundle_of(in_force()), loaded, recordings, ACTIONS))


def first_to_notice(made: Files) -> str:
    try:
        loaded = load(made)
        if fails_a_test(loaded):
            return "test"
    except BundleError:
        return "check"
    if diff(bundle_of(in_force()), loaded):
        return "diff"
    return "replay" if replay_changes(loaded) else "nobody"


def test_there_are_thirty_of_them() -> None:
    assert len(EDITS) == 30
    assert len({edit.name for edit in EDITS}) == 30


def test_the_bundle_in_force_is_caught_by_nobody() -> None:
    assert first_to_notice(in_force()) == "nobody"


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.name)
def test_a_bad_edit_is_caught_by(edit: Edit) -> None:
    assert first_to_notice(edited(edit)) == edit.caught_by


@pytest.mark.parametrize("edit", [edit for edit in EDITS if edit.caught_by != "check"], ids=lambda edit: edit.name)
def test_diff_names_every_bad_edit_that_loads(edit: Edit) -> None:
    assert diff(bundle_of(in_force()), load(edited(edit)))


def test_a_downgrade_is_caught_by_check() -> None:
    made = in_force()
    made[MAIN] = made[MAIN].replace(b"version = 2", b"version = 1")
    assert first_to_notice(made) == "check"
    assert [change.what for change in diff(bundle_of(in_force()), bundle_of(made))] == ["version"]


@pytest.mark.parametrize(
    "edit",
    [
        edit
        for edit in EDITS
        if edit.name in ("measurements swapped", "one MRTD digit altered, in values and tests alike")
    ],
    ids=lambda edit: edit.name,
)
def test_replay_shows_what_a_wrong_measurement_does_to_real_evidence(edit: Edit) -> None:
    assert replay_changes(load(edited(edit)))


def test_replay_alone_shows_a_firmware_that_nobody_pinned() -> None:
    assert replay_changes(load(edited(next(edit for edit in EDITS if edit.name == "any firmware")))) is False
    wider = bundle("dev", values=(f'mr_td = "{MR_TD}"', 'mr_td = "any"\nuntil = "2027-12-31"'))
    without = dict(wider.files)
    lines = [line for line in without[VALUES].decode().splitlines() if not line.startswith("rtmr")]
    assert replay_changes(bundle_of({**without, VALUES: "\n".join(lines).encode()}))
