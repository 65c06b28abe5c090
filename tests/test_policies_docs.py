"""What docs/policies.md shows is a bundle that loads, passes its tests and decides."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from policies.bundle import Bundle, bundle_of
from policies.cases import read_cases, run_cases
from policies.scaffold import write
from policies.vocabulary import SCHEMA_TEXT
from tests.policy_world import AT, Files, files, verdict

PAGE = (Path(__file__).parent.parent / "docs" / "policies.md").read_text("utf-8")


def example(name: str) -> str:
    found = re.search(rf"<!-- example: {name} -->\n```\w+\n(.*?)```", PAGE, re.DOTALL)
    assert found, name
    return found[1]


def documented() -> Files:
    return {
        "bundle.toml": example("bundle").encode(),
        "reference-values.toml": example("values").encode(),
        "policy.cedar": example("rules").encode(),
        "schema.cedarschema": SCHEMA_TEXT.encode(),
        "tests/cases.toml": example("case").encode(),
    }


def test_the_documented_bundle_loads_and_passes_its_documented_cases() -> None:
    loaded = bundle_of(documented())
    outcomes = run_cases(loaded, read_cases(loaded))
    assert [(outcome.case.name, outcome.codes) for outcome in outcomes if not outcome.passed] == []
    assert len(outcomes) == 2


def test_the_library_example_decides_and_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = files("dev")
    write({**made}, tmp_path / "my-policy")
    monkeypatch.chdir(tmp_path)
    source = example("decide").replace("acme/models/weights", "dev/secrets/key")
    given: dict[str, Any] = {"verdict": verdict(), "now": AT}
    exec(source, given)
    assert given["permit"].resource == "dev/secrets/key"
    assert isinstance(given["bundle"], Bundle)
    refused: dict[str, Any] = {"verdict": verdict(image="another"), "now": AT}
    exec(source, refused)
    assert refused["answer"]["codes"] == ["policy.measurement_mismatch", "policy.condition_not_met"]


def test_every_key_of_the_settings_is_documented() -> None:
    from policies.reference import ATTRIBUTES, REGISTERS

    for word in ("any_until", "platforms_until", "grace_s", "more_launches", "other_events", "binding", *ATTRIBUTES):
        assert word in PAGE
    assert all(register in PAGE for register in REGISTERS if not register.startswith("rtmr"))
