"""The starter bundles: their tests pass, and none of their conditions can go without a test that notices."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from policies.bundle import bundle_of
from policies.cases import coverage, read_cases, run_cases
from policies.cedartext import split_rules
from policies.errors import BundleError
from policies.scaffold import KINDS, starter
from tests.policy_world import Files, files

LATER = datetime(2031, 5, 6, tzinfo=UTC)


def failing(made: Files) -> list[str]:
    """Names of the cases that fail, or the codes of the mistakes when the bundle does not even load."""
    try:
        loaded = bundle_of(made)
        return [outcome.case.name for outcome in run_cases(loaded, read_cases(loaded)) if not outcome.passed]
    except BundleError as error:
        return [problem.code for problem in error.all]


@pytest.mark.parametrize("kind", KINDS)
def test_a_starter_passes_its_own_tests_and_leaves_no_rule_untested(kind: str) -> None:
    loaded = bundle_of(starter(kind))
    outcomes = run_cases(loaded, read_cases(loaded))
    assert [outcome.case.name for outcome in outcomes if not outcome.passed] == []
    assert coverage(loaded, outcomes).complete


@pytest.mark.parametrize("kind", KINDS)
def test_a_starter_for_another_tenant_and_day_passes_too(kind: str) -> None:
    made = starter(kind, tenant="globex", at=LATER, measurements={"mr_td": "e" * 96, "rtmr1": "d" * 96})
    assert failing(made) == []
    assert bundle_of(made, at=LATER).tenant == "globex"


@pytest.mark.parametrize("kind", KINDS)
def test_a_starter_has_a_forbid_conditions_everywhere_and_a_whole_version(kind: str) -> None:
    rules = split_rules(starter(kind)["policy.cedar"].decode())
    assert all(any(clause.kind == "when" for clause in rule.clauses) for rule in rules)
    assert any("forbid (" in rule.text for rule in rules)
    assert re.search(rb"^version = \d+\b", starter(kind)["bundle.toml"], re.M)


def dropped_conditions(source: str) -> Iterator[tuple[str, str]]:
    """Every text with one condition, one scope or one forbid less."""
    for rule in split_rules(source):
        for clause in rule.clauses:
            for spelling in (f"{clause.text} && ", f" && {clause.text}"):
                if spelling in rule.text:
                    yield (
                        f"{rule.id} without {clause.text}",
                        source.replace(rule.text, rule.text.replace(spelling, "", 1)),
                    )
                    break
            else:
                alone = re.sub(rf"\s*{clause.kind} \{{ {re.escape(clause.text)} \}}", "", rule.text)
                assert alone != rule.text, clause
                yield f"{rule.id} without {clause.kind} {clause.text}", source.replace(rule.text, alone)
        for scope in ('principal in Workload::"[^"]*"', 'resource in Path::"[^"]*"'):
            wide = re.sub(scope, scope.split()[0], rule.text)
            if wide != rule.text:
                yield f"{rule.id} for any {scope.split()[0]}", source.replace(rule.text, wide)
        if "forbid (" in rule.text:
            yield f"without the forbid {rule.id}", source.replace(rule.text, "")


@pytest.mark.parametrize("kind", KINDS)
def test_dropping_any_condition_of_a_rule_fails_a_test(kind: str) -> None:
    source = starter(kind)["policy.cedar"].decode()
    edits = list(dropped_conditions(source))
    assert len(edits) >= 4
    unnoticed = [what for what, text in edits if not failing({**starter(kind), "policy.cedar": text.encode()})]
    # Path::"lab" is all that the lab's tenant has: without it the rule means the same.
    assert unnoticed == (["release-lab-secrets for any resource"] if kind == "lab" else [])


LOOSER = [
    (r'accept = \["UpToDate"', 'accept = ["OutOfDate", "UpToDate"'),
    (r"min_evaluation_number = \d+", "min_evaluation_number = 0"),
    (r"min_tcb_date = .*", ""),
    (r"allow = \[.*\]", 'allow = "any"'),
    (r"deny = \[.*\]", "deny = []"),
    (r'platforms_until = "[^"]*"', 'platforms_until = "2099-01-01"'),
    (r'until = "2027-03-31"', 'until = "2099-01-01"'),
    (r"max_age_s = \d+", "max_age_s = 86400"),
    (r"grace_s = \d+", "grace_s = 86400"),
    (r'fmspc = \["90c06f000000", "b0c06f000000"\]', 'fmspc = ["90c06f000000", "00806f050000"]'),
    (r"\[freshness\]", 'suites = ["x25519", "mlkem768-x25519"]\n[freshness]'),
    (r"^version = 1", 'suites = ["x25519", "mlkem768-x25519"]\nversion = 1'),
    (r"^version = 1", 'roles = ["agent", "broker", "peer"]\nversion = 1'),
    (r"\Z", '\n[[allowance]]\nname = "migratable"\nuntil = "2099-01-01"\n'),
    (r"\Z", '\n[[allowance]]\nname = "sept_ve_disable_clear"\nuntil = "2099-01-01"\n'),
    (r"^version = 1", 'binding = "optional"\nversion = 1'),
]
# What a starter's tests cannot notice, with the reason.
EXEMPT = {
    ("dev", 12): "roles: the development bundle tells agents apart by workload alone",
    ("dev", 14): "sept_ve_disable_clear: paravisors are the tenant starter's matter",
    ("relying", 11): "suites: evidence without a binding has none",
    ("relying", 12): "roles: the same",
    ("relying", 14): "sept_ve_disable_clear: paravisors are the tenant starter's matter",
    ("lab", 11): "the lab admits every domain of its machine",
    ("lab", 12): "the same",
    ("lab", 13): "the same",
    ("lab", 14): "the same",
}


@pytest.mark.parametrize("kind", KINDS)
def test_loosening_any_setting_fails_a_test(kind: str) -> None:
    made = starter(kind)
    source = made["bundle.toml"].decode()
    unnoticed = []
    for index, (pattern, replacement) in enumerate(LOOSER):
        text, count = re.subn(pattern, replacement, source, count=1, flags=re.M)
        changed = count and text.split() != source.split() and (kind, index) not in EXEMPT
        if changed and not failing({**made, "bundle.toml": text.encode()}):
            unnoticed.append(replacement)
    assert unnoticed == []


@pytest.mark.parametrize("kind", ["dev", "tenant", "relying"])
def test_changing_or_dropping_any_measurement_fails_a_test(kind: str) -> None:
    made = starter(kind)
    lines = made["reference-values.toml"].decode().splitlines()
    pinned = [i for i, line in enumerate(lines) if re.match(r"(mr_td|rtmr\d|launches|until) = ", line)]
    assert pinned
    for index in pinned:
        kept = lines[:index] + lines[index + 1 :]
        changed = [*lines]
        changed[index] = re.sub(r"[0-9a-f]{96}", "5" * 96, re.sub(r'"20\d\d-', '"2099-', lines[index]))
        for edit in (kept, changed):
            assert failing({**made, "reference-values.toml": "\n".join(edit).encode()}), lines[index]


def test_the_tenant_starter_shows_the_switch_for_paravisor_clouds() -> None:
    made = files("tenant")
    text = made["bundle.toml"].decode()
    switch = '# [[allowance]]\n# name = "sept_ve_disable_clear"\n'
    assert switch in text
    turned = re.sub(r"# (\[\[allowance\]\])\n# (name.*)\n# (until.*)\n# (reason.*)\n", r"\1\n\2\n\3\n\4\n", text)
    broken = failing({**made, "bundle.toml": turned.encode()})
    assert broken == ["a paravisor's domain is refused until the switch is turned"]
