"""The decision: facts, an action and the circumstances against a bundle, and the only maker of Permits.

`judge` is the pure whole of it and serves tests, replay and explanations; `decide` takes a Verdict and turns a clean
judgement into a Permit. Default deny, a forbid wins, an error denies. What was computed is remembered in the bundle
only as long as no input can have changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING

from attestation.names import name_problem
from policies import permit as permits
from policies.appraisal import (
    Appraised,
    appraise_age,
    appraise_ageless,
    end_moments,
    fresh_until,
)
from policies.authorisation import Answer, Slice, ask, entities, next_time_change, principal_json, request
from policies.baseline import floor, kbs_unnamed
from policies.bundle import LAST, Bundle, Clean, Kept
from policies.codes import PolicyCode
from policies.errors import Reason, Refused
from policies.explain import explain, log_missing, rule_error
from policies.model import NEVER, Action, Asked, Context, Facts, asked
from policies.permit import Permit
from policies.requirements import platform_addresses
from policies.tables import nearest

if TYPE_CHECKING:
    import cedarpy

    from attestation.verdict import Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """The whole answer for one action, without the authority of a Permit."""

    permitted: bool
    reasons: tuple[Reason, ...] = ()
    not_after: datetime = NEVER
    rules: tuple[str, ...] = ()
    standing: str = "stale"
    workloads: tuple[str, ...] = ()
    cacheable: bool = True


def decide(bundle: Bundle, verdict: Verdict, action: Action, *, context: Context) -> Permit:
    """Return a Permit, or raise Refused with every objection. Raises TypeError for anything but a Verdict."""
    facts = _facts_of(bundle, verdict)
    question = asked(action, bundle.tenant)
    judgement = _judge(bundle, facts, question, context, shared=True)
    if not judgement.permitted:
        raise Refused(judgement.reasons, not_after=judgement.not_after)
    return Permit(
        policy=bundle.digest,
        policy_version=bundle.version,
        subject=facts.subject,
        tenant=bundle.tenant,
        action=question.action,
        resource=question.name,
        version=question.version,
        at=context.at,
        not_after=judgement.not_after,
        cacheable=judgement.cacheable,
        rules=judgement.rules,
        standing=judgement.standing,
        workloads=judgement.workloads,
        via=context.via,
        seal=permits._SEAL,
    )


def judge(bundle: Bundle, facts: Facts, action: Action, *, context: Context) -> Judgement:
    """The whole answer without the authority: permitted or not, every reason, and until when it stays so."""
    return _judge(bundle, facts, asked(action, bundle.tenant), context)


def appraise_verdict(bundle: Bundle, verdict: Verdict, *, context: Context) -> tuple[Reason, ...]:
    """Every objection of floor and appraisal to a verdict, without asking who may do what. Empty means acceptable.

    For relying services that judge a quote and grant nothing. REPORT_DATA that was not compared is not objected to
    here, since the caller knows that it did not compare; a Permit can never come of it.
    """
    facts = _facts_of(bundle, verdict)
    base = [
        reason
        for reason in floor(facts, "Admit", context, unbound=True)
        if reason.code is not PolicyCode.FLOOR_NOT_COMPARED
    ]
    return (
        *base,
        *_appraised(bundle, facts, context.at, shared=True).reasons,
        *platform_addresses(bundle.settings, context),
    )


def _facts_of(bundle: Bundle, verdict: Verdict) -> Facts:
    known = bundle.memory.facts.get(id(verdict))
    if known is None or known[0] is not verdict:
        if not isinstance(verdict, _verdict_type()):
            raise TypeError("decide() wants a Verdict; judge() takes plain facts and gives no Permit")
        known = bundle.memory.facts.put(id(verdict), (verdict, Facts.of(verdict)))
    return known[1]


@cache
def _verdict_type() -> type[Verdict]:
    """The sealed type. Imported when first needed: a program that only judges need not load what tokens take."""
    from attestation.verdict import Verdict as Sealed

    return Sealed


def _judge(bundle: Bundle, facts: Facts, question: Asked, context: Context, *, shared: bool = False) -> Judgement:
    """`shared`: these facts come from a verdict, so that they fit the schema, and agents who are alike in all that the
    rules read may have one answer."""
    if shared and (known := _known(bundle, facts, question, context)):
        return known
    appraised = _appraised(bundle, facts, context.at, shared=shared)
    outside = (*_tenancy(bundle, facts, question), *_labels(bundle, question))
    reasons = (
        *floor(facts, question.action, context, unbound=bundle.settings.unbound),
        *outside,
        *appraised.reasons,
        *platform_addresses(bundle.settings, context),
    )
    if outside:
        return _refused(reasons, appraised, None)
    part = bundle.rules.slice(question, appraised.workloads)
    answer = _answer(bundle, facts, question, part, appraised, context, shared=shared)
    by_time = next_time_change(part.rules, facts, context.at) if part.reads_time else None
    unseen = () if facts.event_log_present else log_missing(part, answer)
    reasons += unseen
    if answer.allowed:
        reasons += kbs_unnamed(part.rules, answer.reasons, question, context)
    else:
        reasons += _why(bundle, facts, question, part, appraised, context, answer)
    if reasons or not answer.allowed:
        return _refused(reasons, appraised, by_time)
    if shared and part.common and not part.reads_time:
        _remember(bundle, facts, question, context, answer)
    return Judgement(
        permitted=True,
        not_after=_not_after(appraised, by_time),
        rules=answer.reasons,
        standing=appraised.standing,
        workloads=appraised.workloads,
        cacheable=not part.reads_time,
    )


def _known(bundle: Bundle, facts: Facts, question: Asked, context: Context) -> Judgement | None:
    """What was permitted to an agent who is alike, at this agent's own age, while nothing in the bundle has ended."""
    clean = bundle.memory.clean.get(_kind(facts, question, context))
    if clean is None or not clean.kept.since <= context.at < clean.kept.until:
        return None
    found = clean.kept.found
    changes = fresh_until(bundle.settings, facts, context.at, found)
    if changes is None:
        return None
    return Judgement(
        permitted=True, not_after=changes, rules=clean.rules, standing=found.standing, workloads=found.workloads
    )


def _remember(bundle: Bundle, facts: Facts, question: Asked, context: Context, answer: Answer) -> None:
    """For `_known`, unless it was the age that decided how the evidence stands."""
    kept = _ageless(bundle, facts, context.at)
    if fresh_until(bundle.settings, facts, context.at, kept.found):
        bundle.memory.clean.put(_kind(facts, question, context), Clean(rules=answer.reasons, kept=kept))


def _kind(facts: Facts, question: Asked, context: Context) -> tuple[object, ...]:
    """All that a permitted judgement was made of, but for times."""
    return facts.alike, question, context.via, context.source_ip, context.platform_addresses


def _answer(
    bundle: Bundle,
    facts: Facts,
    question: Asked,
    part: Slice,
    appraised: Appraised,
    context: Context,
    *,
    shared: bool,
) -> Answer:
    """Cedar's answer. One that no rule's reading of the time went into is remembered with all that did go into it."""
    if part.policies is None:
        return Answer(allowed=False)
    seen = part.seen_of(facts) if shared and not part.reads_time else None
    owner = facts if seen is None else None
    key = (
        id(facts) if seen is None else seen,
        question,
        appraised.workloads,
        appraised.standing,
        context.via,
        context.source_ip,
        context.platform_addresses,
    )
    if not part.reads_time:
        known = bundle.memory.answers.get(key)
        if known and known[0] is owner:
            return known[1]
    subject = _subject(bundle, facts)
    try:
        answer = ask(
            request(subject, question, facts, appraised.standing, context),
            part.policies,
            _entities(bundle, facts, subject, question, appraised.workloads),
        )
    except ValueError as error:  # facts that the schema does not take: nobody can judge them, so they are refused
        return Answer(allowed=False, errors=(str(error),))
    if not part.reads_time:
        bundle.memory.answers.put(key, (owner, answer))
    return answer


def _subject(bundle: Bundle, facts: Facts) -> str:
    return facts.subject or f"agent/{bundle.tenant}/-"


def _why(
    bundle: Bundle,
    facts: Facts,
    question: Asked,
    part: Slice,
    appraised: Appraised,
    context: Context,
    answer: Answer,
) -> tuple[Reason, ...]:
    """The explanation of a refusal by the rules; where not even the entities can be made, the error alone."""
    subject = _subject(bundle, facts)
    try:
        known = _entities(bundle, facts, subject, question, appraised.workloads)
    except ValueError as error:
        return (rule_error(part, str(error)),)
    asking = request(subject, question, facts, appraised.standing, context)
    return explain(bundle.rules, part, answer, question, asking, known, facts, appraised.workloads)


def _refused(reasons: tuple[Reason, ...], appraised: Appraised, by_time: datetime | None) -> Judgement:
    """A refusal always has a reason; one without would be a mistake of ours, and still a refusal."""
    fallback = Reason(code=PolicyCode.NO_RULE, rule="default deny", passes_if="a permit applies")
    return Judgement(
        permitted=False,
        reasons=reasons or (fallback,),
        not_after=_not_after(appraised, by_time),
        standing=appraised.standing,
        workloads=appraised.workloads,
    )


def _not_after(appraised: Appraised, by_time: datetime | None) -> datetime:
    return min(appraised.changes, by_time) if by_time else appraised.changes


def _tenancy(bundle: Bundle, facts: Facts, question: Asked) -> tuple[Reason, ...]:
    """Nothing of another tenant is ever put to the rules. Evidence that names no tenant belongs to the bundle's."""
    reasons: list[Reason] = []
    unbound = not facts.tenant and facts.compared != "binding"
    if facts.tenant != bundle.tenant and not unbound:
        reasons.append(
            Reason(
                code=PolicyCode.TENANT,
                rule="tenant",
                file="bundle.toml",
                line=bundle.settings.place("tenant").line,
                expected=bundle.tenant,
                found=facts.tenant or "none",
                nearest=bundle.tenant,
                passes_if=f"the agent is bound to tenant {bundle.tenant}",
            )
        )
    wrong = "" if question.kind == "Tenant" else name_problem(question.name)
    if wrong:
        passes = "the name is tenant/path/name"
        reasons.append(
            Reason(code=PolicyCode.RESOURCE_NAME, rule="names", expected=passes, found=wrong, passes_if=passes)
        )
    elif question.name.split("/")[0] != bundle.tenant:
        fixed = "/".join([bundle.tenant, *question.name.split("/")[1:]])
        reasons.append(
            Reason(
                code=PolicyCode.RESOURCE_TENANT,
                rule="tenant",
                file="bundle.toml",
                line=bundle.settings.place("tenant").line,
                expected=f"a name under {bundle.tenant}/",
                found=question.name,
                nearest=fixed,
                passes_if=f"the thing belongs to {bundle.tenant} (its name starts with {bundle.tenant}/)",
            )
        )
    return tuple(reasons)


def _labels(bundle: Bundle, question: Asked) -> tuple[Reason, ...]:
    """Labels are the sender's words: only those that the bundle lists for the place, where it lists any."""
    rule = bundle.settings.mail.of(question.name) if question.action == "Send" and question.labels else None
    strange = () if rule is None or rule.labels is None else sorted(question.labels - rule.labels)
    if rule is None or not strange:
        return ()
    return (
        bundle.settings.reason(
            PolicyCode.LABEL,
            "mail.mailbox.labels" if rule.path else "mail.labels",
            expected=", ".join(sorted(rule.labels or ())) or "no labels",
            found=", ".join(strange),
            nearest=nearest(strange[0], rule.labels or ()),
            passes_if=f"the message goes without {', '.join(strange)}, or the bundle lists it",
        ),
    )


def _appraised(bundle: Bundle, facts: Facts, at: datetime, *, shared: bool) -> Appraised:
    """The appraisal of these facts now; a remembered one only between the moments at which it changes."""
    known = bundle.memory.appraised.get(id(facts))
    if known and known[0] is facts and known[1].since <= at < known[1].changes:
        return known[1]
    rest = _ageless(bundle, facts, at).found if shared else appraise_ageless(bundle.settings, facts, at)
    fresh = appraise_age(bundle.settings, facts, at, rest)
    bundle.memory.appraised.put(id(facts), (facts, fresh))
    return fresh


def _ageless(bundle: Bundle, facts: Facts, at: datetime) -> Kept:
    """Judged once for all agents that are alike, while nothing in the bundle ends; objections for each agent anew."""
    known = bundle.memory.ageless.get(facts.alike)
    if known and known.since <= at < known.until:
        return known
    found = appraise_ageless(bundle.settings, facts, at)
    until = min((moment for moment in end_moments(bundle.settings) if moment > at), default=LAST)
    fresh = Kept(since=at, until=until, found=found)
    if not found.before and not found.after:
        bundle.memory.ageless.put(facts.alike, fresh)
    return fresh


def _entities(
    bundle: Bundle, facts: Facts, subject: str, question: Asked, workloads: tuple[str, ...]
) -> cedarpy.Entities:
    key = (id(facts), workloads, question.kind, question.name, question.labels, question.version)
    known = bundle.memory.entities.get(key)
    if known and known[0] is facts:
        return known[1]
    principal = principal_json(facts, facts.tenant or bundle.tenant, subject, workloads)
    made = entities(principal, question)
    bundle.memory.entities.put(key, (facts, made))
    return made
