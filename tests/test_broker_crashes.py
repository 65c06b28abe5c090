"""Every named point × every operation: after the restart what was acknowledged is there, nothing lacks its entry."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from broker.points import POINTS
from tests.crash_child import KILLED, OPERATIONS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
ROOT = Path(__file__).resolve().parent.parent
Case = dict[str, Any]
BEFORE_COMMIT = ("store.begun", "store.worked", "store.signed", "release.permitted")


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    folder = tmp_path_factory.mktemp("crashes")
    (folder / "template").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "tests.crash_child", str(folder)],
        cwd=ROOT,
        env=os.environ,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return [json.loads(line) for line in done.stdout.splitlines()]


def done(case: Case) -> bool:
    """Whether the operation's effect is in the database, by what the operation changes."""
    seen = case["found"]
    agents = len(seen["admitted"])
    effect = {
        "attest": agents == 2,
        "put": seen["version"] == 2,
        "destroy": seen["destroyed"],
        "release": len(seen["released"]) == 1,
        "lend": len(seen["released"]) == 1 and seen["lent"],
        "revoke": seen["revoked"] and seen["state"] == "revoked",
        "reload": seen["policy"] == 2,
        "send": seen["waiting"] == 2,
        "receive": seen["waiting"] == 1,
    }
    return bool(effect[case["operation"]])


ENTRY = {
    "attest": "agent.admitted",
    "put": "secret.put",
    "destroy": "secret.destroyed",
    "release": "secret.released",
    "lend": "secret.released",
    "revoke": "agent.revoked",
}
EARLIER = {"attest": 1, "put": 2}  # entries of that kind in the prepared database


def test_every_operation_is_killed_at_every_point_that_it_passes(cases: list[Case]) -> None:
    killed = {(case["operation"], case["point"]) for case in cases if case["status"] == KILLED}
    assert {operation for operation, _ in killed} == set(OPERATIONS)
    assert {point for _, point in killed} == set(POINTS)
    whole = [case for case in cases if not case["point"]]
    assert all(case["status"] == 0 for case in whole)
    assert len(cases) - len(whole) == sum(sum(case["told"]["passed"].values()) for case in whole) >= 40


def test_nothing_that_was_acknowledged_is_lost(cases: list[Case]) -> None:
    acknowledged = [case for case in cases if case["told"] is not None]
    assert len(acknowledged) == len(OPERATIONS)
    assert [case for case in acknowledged if not done(case)] == []


def test_an_effect_and_its_entry_are_both_there_or_neither(cases: list[Case]) -> None:
    for case in cases:
        kind = ENTRY.get(case["operation"])
        if kind is not None:
            entries = case["found"]["kinds"].count(kind) - EARLIER.get(case["operation"], 0)
            assert entries == int(done(case)), case


def test_nothing_is_released_without_an_entry(cases: list[Case]) -> None:
    """Whoever died after the release was recorded left an entry; whoever died before gave nothing away."""
    releases = [case for case in cases if case["operation"] in ("release", "lend")]
    for case in releases:
        recorded = "secret.released" in case["found"]["kinds"]
        assert recorded == (case["point"] not in BEFORE_COMMIT), case
        assert case["told"] is None or recorded
    assert {case["point"] for case in releases} >= {"release.permitted", "release.recorded", "release.sealed"}


def test_half_of_an_operation_is_never_there(cases: list[Case]) -> None:
    for case in cases:
        seen = case["found"]
        assert seen["revoked"] == (seen["state"] == "revoked"), case
        assert seen["revoked"] == ("agent.revoked" in seen["kinds"]), case
        assert len(seen["released"]) == seen["kinds"].count("secret.released"), case
        assert seen["version"] == seen["kinds"].count("secret.put") - 1, case
        if case["operation"] == "lend":
            assert seen["lent"] == bool(seen["released"]), case


def test_before_the_commit_there_is_nothing_and_after_it_everything(cases: list[Case]) -> None:
    """For operations of one transaction."""
    for case in cases:
        if case["status"] == KILLED and case["operation"] in ENTRY:
            assert done(case) == (case["point"] not in BEFORE_COMMIT), case
