"""Bundles from people in a hurry and from people with intent: nothing empty passes for absent, nothing odd crashes."""

from __future__ import annotations

import re

import pytest

from policies.bundle import bundle_of
from tests.policy_world import Files, files, mistakes


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
