"""Properties of every decision, on generated bundles and facts."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import timedelta
from typing import Any

from hypothesis import assume, event, given, settings
from hypothesis import strategies as st

from policies.bundle import Bundle, Memory, bundle_of
from policies.engine import _judge, judge
from policies.errors import BundleError
from policies.model import Action, Admit, Context, Facts, ReleaseSecret, asked
from tests.policy_reference import Generated, GeneratedRule, actions, bundles, contexts, facts, permitted, rules
from tests.policy_world import AT, bundle, good_facts

EXAMPLES = 60
questions = st.lists(st.tuples(facts(), actions, contexts), min_size=3, max_size=8)


def load(made: Generated) -> Bundle:
    """A bundle that the loader refuses because a rule of it can never fire says nothing here."""
    try:
        return bundle_of(made.files())
    except BundleError as error:
        assume({problem.code for problem in error.all} - {"bundle.rule_never_fires"})
        raise


@settings(max_examples=EXAMPLES)
@given(made=bundles(), asked=questions)
def test_a_decision_equals_that_of_the_brute_force_reference(made: Generated, asked: list[Any]) -> None:
    loaded = load(made)
    for known, action, context in asked:
        found = judge(loaded, known, action, context=context)
        assert found.permitted == permitted(made, known, action, context), (made, known, action, context, found)
        assert found.permitted or found.reasons
        event(f"permitted {found.permitted}")


@settings(max_examples=EXAMPLES)
@given(made=bundles(), more=rules("forbid"), asked=questions)
def test_adding_a_forbid_never_permits_more(made: Generated, more: GeneratedRule, asked: list[Any]) -> None:
    assume(more not in made.rules)
    before = load(made)
    after = load(replace(made, rules=(*made.rules, more)))
    for known, action, context in asked:
        if judge(after, known, action, context=context).permitted:
            assert judge(before, known, action, context=context).permitted


def without_log(known: Facts) -> Facts:
    return replace(known, launches=(), event_log_present=False, event_digests=())


def without_binding(known: Facts) -> Facts:
    return replace(known, compared="bytes", subject="", tenant="", role="", suite="", jkt="")


def without_comparison(known: Facts) -> Facts:
    return replace(without_binding(known), compared="nothing")


def without_measurement(known: Facts) -> Facts:
    return replace(known, mr_td="")


def without_platform(known: Facts) -> Facts:
    return replace(known, fmspc="", ppid="", piid="")


REMOVALS = (without_log, without_binding, without_comparison, without_measurement, without_platform)


@settings(max_examples=EXAMPLES)
@given(made=bundles(), asked=questions, removal=st.sampled_from(REMOVALS))
def test_removing_evidence_never_helps(made: Generated, asked: list[Any], removal: Any) -> None:
    loaded = load(made)
    for known, action, context in asked:
        # Over KBS there is no binding to remove: such guests are told apart by `via`.
        with_kbs = context.via == "kbs" and removal is without_binding
        if not with_kbs and judge(loaded, removal(known), action, context=context).permitted:
            assert judge(loaded, known, action, context=context).permitted


@settings(max_examples=EXAMPLES)
@given(made=bundles(), asked=questions, tenant=st.sampled_from(["globex", "acm", "acme2", "ACME", "acme.", ""]))
def test_a_permit_never_crosses_tenants(made: Generated, asked: list[Any], tenant: str) -> None:
    loaded = load(made)
    for known, action, context in asked:
        assert not judge(loaded, known, ReleaseSecret(f"{tenant}/keys/a"), context=context).permitted
        stranger = replace(known, tenant=tenant, compared="binding")
        assert not judge(loaded, stranger, action, context=context).permitted


@settings(max_examples=EXAMPLES)
@given(made=bundles(), asked=questions)
def test_what_is_remembered_answers_as_a_fresh_bundle_does(made: Generated, asked: list[Any]) -> None:
    warm = load(made)
    for known, action, context in asked * 2:
        cold = replace(warm, memory=Memory())
        assert judge(warm, known, action, context=context) == judge(cold, known, action, context=context)


@settings(max_examples=EXAMPLES)
@given(made=bundles(), asked=questions, later_s=st.integers(0, 500))
def test_a_decision_stays_the_same_until_not_after(made: Generated, asked: list[Any], later_s: int) -> None:
    loaded = load(made)
    for known, action, context in asked:
        first = judge(loaded, known, action, context=context)
        at = context.at + timedelta(seconds=later_s)
        if first.permitted and at < first.not_after:
            assert judge(loaded, known, action, context=replace(context, at=at)).permitted


def test_the_generated_questions_are_permitted_often_enough_to_mean_something() -> None:
    counted: Counter[bool] = Counter()

    @settings(max_examples=60, derandomize=True, database=None)
    @given(made=bundles(), asked=questions)
    def count(made: Generated, asked: list[Any]) -> None:
        for known, action, context in asked:
            counted[permitted(made, known, action, context)] += 1

    count()
    assert counted[True] * 6 > counted[False]


ODD: list[tuple[Action, Context]] = [(Admit(), Context(at=AT)), (ReleaseSecret("dev/secrets/k"), Context(at=AT))]


@given(st.sampled_from(ODD), st.text(max_size=20))
def test_no_text_from_outside_makes_a_decision_crash(question: tuple[Action, Context], text: str) -> None:
    action, context = question
    loaded = bundle("dev")
    assert not judge(loaded, good_facts(mr_td=text), action, context=context).permitted
    assert not judge(loaded, good_facts(), ReleaseSecret(text), context=context).permitted
    judge(loaded, good_facts(), action, context=replace(context, via=text, source_ip=text))
    judge(loaded, replace(good_facts(), subject=text, jkt=text), action, context=context)


@settings(max_examples=EXAMPLES)
@given(made=bundles(), questions=questions)
def test_agents_who_share_answers_get_the_ones_they_would_get_alone(made: Generated, questions: list[Any]) -> None:
    loaded = load(made)
    for known, action, context in questions:
        shared = _judge(loaded, known, asked(action, loaded.tenant), context, shared=True)
        assert shared == judge(replace(loaded, memory=Memory()), known, action, context=context)


@settings(max_examples=EXAMPLES)
@given(
    made=bundles(), question=st.tuples(facts(), actions, contexts), times=st.lists(st.integers(-4000, 4000), max_size=4)
)
def test_an_agent_who_is_alike_is_judged_as_it_would_be_alone(made: Generated, question: Any, times: list[int]) -> None:
    """Another subject and key, evidence of another moment, and asked at another moment."""
    loaded, (known, action, context) = load(made), question
    asking = asked(action, loaded.tenant)
    for number, seconds in enumerate([0, *times]):
        moved = timedelta(seconds=seconds)
        twins = [
            replace(known, subject=f"agent/{known.tenant}/{number}", jkt=f"key{number}"),
            replace(known, verified_at=known.verified_at + moved, quote_digest=f"{number:02x}"),
            replace(known, valid_until=known.valid_until + moved),
        ]
        for twin in twins:
            for at in (context.at, context.at + moved):
                now = replace(context, at=at)
                alone = judge(replace(loaded, memory=Memory()), twin, action, context=now)
                shared = _judge(loaded, twin, asking, now, shared=True)
                assert replace(shared, reasons=()) == replace(alone, reasons=())
                assert [reason.code for reason in shared.reasons] == [reason.code for reason in alone.reasons]
                if len(loaded.memory.clean):
                    event("something was remembered")
