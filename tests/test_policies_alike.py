"""Agents who are alike in all that the rules read share one answer of Cedar's, and nobody gets another's."""

from __future__ import annotations

from typing import Any

import pytest

from attestation.verdict import Verdict
from policies.authorisation import ask
from policies.bundle import Bundle
from policies.engine import decide
from policies.errors import Refused
from policies.model import ReleaseSecret
from tests.policy_world import NOW, bundle, verdict, with_rules

KEY = ReleaseSecret("dev/secrets/key")
HEAD = 'permit (principal, action == Action::"ReleaseSecret", resource in Path::"dev/secrets")'


@pytest.fixture
def asking(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What Cedar was asked, one item for each question."""
    asked_for: list[object] = []

    def counted(*arguments: Any) -> Any:
        asked_for.append(arguments)
        return ask(*arguments)

    monkeypatch.setattr("policies.engine.ask", counted)
    return asked_for


def permitted(policy: Bundle, who: Verdict) -> bool:
    try:
        return decide(policy, who, KEY, context=NOW).subject == who.subject
    except Refused:
        return False


def test_cedar_is_asked_once_for_agents_that_the_rules_cannot_tell_apart(asking: list[object]) -> None:
    policy = with_rules(f'@id("all") {HEAD} when {{ principal.simulated }};')
    agents = [verdict() for _ in range(5)]
    assert len({agent.subject for agent in agents}) == 5
    assert all(permitted(policy, agent) for agent in agents)
    assert len(asking) == 1


@pytest.mark.parametrize(
    "condition",
    ['principal.jkt == "JKT"', 'principal has jkt && principal.jkt == "JKT"', 'principal == Agent::"agent/dev/JKT"'],
)
def test_a_rule_that_asks_for_one_agent_is_answered_for_each(condition: str, asking: list[object]) -> None:
    one, other = verdict(), verdict()
    policy = with_rules(f'@id("one") {HEAD} when {{ {condition.replace("JKT", one.jkt)} }};')
    assert [permitted(policy, who) for who in (one, other, one, other)] == [True, False, True, False]
    assert len(asking) >= 2


def test_a_head_that_names_one_agent_is_answered_for_each() -> None:
    one, other = verdict(), verdict()
    head = HEAD.replace("(principal,", f'(principal == Agent::"{one.subject}",')
    policy = with_rules(f'@id("one") {head} when {{ principal.simulated }};')
    assert [permitted(policy, who) for who in (one, other, one, other)] == [True, False, True, False]


def test_agents_with_other_launches_are_told_apart_where_a_rule_counts_them(asking: list[object]) -> None:
    policy = with_rules(f'@id("none") {HEAD} when {{ principal.launch_count == 0 }};')
    assert permitted(policy, verdict())
    seen = len(asking)
    assert permitted(policy, verdict())
    assert len(asking) == seen


def test_an_answer_is_not_carried_to_another_bundle() -> None:
    who = verdict()
    assert permitted(bundle(), who)
    assert not permitted(with_rules(f'@id("never") {HEAD} when {{ principal.jkt == "nobody" }};'), who)
