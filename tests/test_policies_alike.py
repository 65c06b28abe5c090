"""Agents who are alike in all that the rules read share one answer of Cedar's, and nobody gets another's."""

from __future__ import annotations

from dataclasses import fields, replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from attestation.verdict import Verdict
from policies.appraisal import appraise_ageless, end_moments
from policies.authorisation import ask
from policies.bundle import Bundle, Memory
from policies.engine import _judge, decide, judge
from policies.errors import Refused
from policies.model import Facts, ReleaseSecret, asked
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


def test_facts_are_a_verdicts_own_values_field_by_field() -> None:
    who = verdict()
    found = Facts.of(who)
    assert vars(found).keys() == {item.name for item in fields(Facts)}
    assert found == Facts(**vars(found))
    assert all(type(value) is str for name, value in vars(found).items() if isinstance(getattr(Facts, name, None), str))
    assert (found.tee, found.piid, found.module_tcb_status) == ("tdx", str(who.piid or ""), who.module_tcb_status)


def test_agents_who_are_alike_are_appraised_once_and_each_at_its_own_age(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, seen = with_rules(f'@id("all") {HEAD} when {{ principal.simulated }};'), []

    def counted(settings: Any, facts: Facts, at: datetime) -> Any:
        seen.append(facts)
        return appraise_ageless(settings, facts, at)

    monkeypatch.setattr("policies.engine.appraise_ageless", counted)
    early, late = verdict(), verdict()
    assert permitted(policy, early)
    assert permitted(policy, late)
    assert len(seen) == 1
    old = replace(NOW, at=NOW.at + timedelta(seconds=policy.settings.max_age_s + policy.settings.age_grace_s + 1))
    with pytest.raises(Refused) as caught:
        decide(policy, late, KEY, context=old)
    assert "policy.verdict_stale" in {reason.code for reason in caught.value.reasons}


def test_what_was_appraised_once_is_not_believed_after_something_in_the_bundle_has_ended() -> None:
    policy = bundle()
    ends = min(moment for moment in end_moments(policy.settings) if moment > NOW.at)
    facts = [Facts.of(verdict()) for _ in range(3)]
    before, at = replace(NOW, at=ends - timedelta(microseconds=1)), replace(NOW, at=ends)
    question = asked(KEY, policy.tenant)
    for moment in (before, at, before):
        for one in facts:
            shared = _judge(policy, one, question, moment, shared=True)
            assert shared == judge(replace(policy, memory=Memory()), one, KEY, context=moment)


def test_an_agent_that_is_refused_is_appraised_for_itself() -> None:
    policy = bundle()
    good = Facts.of(verdict())
    for known in (good, replace(good, fmspc="00" * 6, tcb_status="OutOfDate"), good):
        shared = _judge(policy, known, asked(KEY, policy.tenant), NOW, shared=True)
        assert shared == judge(replace(policy, memory=Memory()), known, KEY, context=NOW)
