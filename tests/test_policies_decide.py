"""Decisions: what is permitted, until when, and what a refusal tells to whom."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from hashlib import sha384
from typing import Any

import pytest

from attestation.eventlog import EventLog, launch_event
from attestation.quote import Quote
from attestation.verdict import Verdict
from attestation.verifier import Allowance, verify_quote
from policies import permit as permits
from policies.bundle import bundle_of
from policies.codes import PolicyCode
from policies.engine import appraise_verdict, decide, judge
from policies.errors import Reason, Refused
from policies.model import Action, Admit, CallTool, Context, Facts, Receive, ReleaseSecret, Send
from policies.permit import Permit, permit_digest
from simulator.domain import ServiceTd
from tests.policy_world import AT, NOW, binding, bundle, codes, files, good_facts, machine, verdict, with_rules

KEY = ReleaseSecret("dev/secrets/key")
MODEL = ReleaseSecret("acme/models/weights")


def reasons(facts: Facts, action: Action = KEY, kind: str = "dev", context: Context = NOW) -> tuple[Reason, ...]:
    return judge(bundle(kind), facts, action, context=context).reasons


def the(found: tuple[Reason, ...], code: str) -> Reason:
    return next(reason for reason in found if reason.code == code)


# The door


def test_a_verdict_on_a_simulated_domain_gets_a_permit() -> None:
    permit = decide(bundle(), verdict(), KEY, context=NOW)
    assert (permit.action, permit.resource, permit.tenant) == ("ReleaseSecret", "dev/secrets/key", "dev")
    assert permit.rules == ("release-dev-secrets",)
    assert permit.workloads == ("agent",)
    assert permit.subject.startswith("agent/dev/")


def test_plain_facts_never_get_a_permit() -> None:
    with pytest.raises(TypeError):
        decide(bundle(), good_facts(), KEY, context=NOW)  # type: ignore[arg-type]


def test_a_permit_is_made_by_decide_alone() -> None:
    permit = decide(bundle(), verdict(), KEY, context=NOW)
    with pytest.raises(TypeError):
        replace(permit, resource="dev/secrets/other", seal=object())
    with pytest.raises(TypeError):
        pickle.dumps(permit)
    with pytest.raises(TypeError):
        Permit(**permit_values(permit), seal=object())


def permit_values(permit: Permit) -> dict[str, Any]:
    return {name: getattr(permit, name) for name in permits.CLAIMS} | {
        "cacheable": True,
        "rules": (),
        "standing": "current",
        "workloads": (),
    }


def test_the_digest_of_a_permit_covers_every_claim() -> None:
    claims = decide(bundle(), verdict(), KEY, context=NOW).claims()
    seen = {permit_digest(claims)}
    for name, value in claims.items():
        seen.add(permit_digest({**claims, name: value + 1 if isinstance(value, int) else f"{value}x"}))
    assert len(seen) == 1 + len(claims)


def test_moving_a_letter_between_claims_changes_the_digest() -> None:
    claims = decide(bundle(), verdict(), KEY, context=NOW).claims()
    one = permit_digest({**claims, "subject": "ab", "tenant": "c"})
    assert one != permit_digest({**claims, "subject": "a", "tenant": "bc"})


def test_binding_a_permit_changes_its_digest_and_happens_once() -> None:
    permit = decide(bundle(), verdict(), KEY, context=NOW)
    names: dict[str, Any] = {"broker_id": "b", "jkt": "j", "sealing_thumbprint": "s", "suite": "x", "nonce": "n"}
    bound = permit.bind(**names, version=3)
    assert bound.digest != permit.digest
    assert (bound.version, bound.jkt) == (3, "j")
    with pytest.raises(ValueError, match="already"):
        bound.bind(**names)


def test_binding_cannot_change_the_version_that_was_decided() -> None:
    permit = decide(bundle(), verdict(), ReleaseSecret("dev/secrets/key", version=2), context=NOW)
    with pytest.raises(ValueError, match="version 2"):
        permit.bind(broker_id="b", jkt="j", sealing_thumbprint="s", suite="x", nonce="n", version=3)


def test_an_unbound_verdict_is_appraised_and_gets_nothing() -> None:
    bare = verdict(report_data=bytes(range(64)))
    assert appraise_verdict(bundle(), bare, context=NOW) == ()
    with pytest.raises(Refused) as refusal:
        decide(bundle(), bare, KEY, context=NOW)
    assert codes(refusal.value.reasons) == {"policy.floor_not_admitted"}


def test_a_naive_time_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(TypeError):
        Context(at=datetime(2026, 12, 1))  # noqa: DTZ001  (the point of the test)


# Default deny, forbid wins, an error denies


def test_without_a_rule_everything_is_refused() -> None:
    nothing = with_rules('@id("x") permit (principal in Workload::"agent", action == Action::"Receive", resource);')
    for action in (Admit(), KEY, Send("dev/mail/a"), CallTool("dev/tools/t")):
        assert codes(judge(nothing, good_facts(), action, context=NOW).reasons) == {"policy.no_rule"}


PERMIT = '@id("p") permit (principal in Workload::"agent", action == Action::"ReleaseSecret", resource);\n'


def test_a_forbid_wins_over_a_permit() -> None:
    both = with_rules(PERMIT + '@id("f") forbid (principal, action, resource) when { context.via == "cloister" };')
    found = judge(both, good_facts(), KEY, context=NOW)
    assert codes(found.reasons) == {"policy.forbidden"}
    assert found.reasons[0].rule == "f"


OVERFLOW = "principal.launch_count + 9223372036854775807 > 0"


def test_a_forbid_that_errors_denies_although_cedar_alone_would_allow() -> None:
    import cedarpy

    from policies.authorisation import entities, principal_json, request
    from policies.model import LaunchFact, asked
    from policies.vocabulary import schema

    rules = PERMIT + f'@id("f") forbid (principal, action, resource) when {{ {OVERFLOW} }};'
    facts = replace(good_facts(), launches=(LaunchFact(digest="1" * 96),), event_log_present=True)
    loaded = with_rules(rules)
    found = judge(loaded, facts, KEY, context=NOW)
    assert not found.permitted
    assert codes(found.reasons) == {"policy.rule_error"}
    assert (found.reasons[0].rule, found.reasons[0].line) == ("f", 2)
    # The trap itself: the engine skips the forbid and lets the permit win.
    question = asked(KEY, "dev")
    known = entities(principal_json(facts, "dev", "agent/dev/-", ("agent",)), question)
    asking = request("agent/dev/-", question, facts, "current", NOW)
    assert cedarpy.is_authorized(asking, rules, known, schema()).allowed


def test_a_permit_that_errors_denies_too() -> None:
    from policies.model import LaunchFact

    erring = with_rules(
        PERMIT + f'@id("e") permit (principal in Workload::"agent", action, resource) when {{ {OVERFLOW} }};'
    )
    facts = replace(good_facts(), launches=(LaunchFact(digest="1" * 96),), event_log_present=True)
    assert codes(judge(erring, facts, KEY, context=NOW).reasons) == {"policy.rule_error"}


@pytest.mark.parametrize("odd", [{"source_ip": "not an address"}, {"platform_addresses": 2**70}])
def test_a_request_that_does_not_fit_the_schema_is_refused(odd: dict[str, Any]) -> None:
    found = judge(bundle(), good_facts(), KEY, context=Context(at=AT, **odd))
    assert "policy.rule_error" in codes(found.reasons)


def test_facts_that_the_schema_does_not_take_are_refused() -> None:
    found = judge(bundle(), replace(good_facts(), tcb_evaluation_number=2**70), KEY, context=NOW)
    assert "policy.rule_error" in codes(found.reasons)


# The floor


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"td_attributes": "0100001000000000"}, PolicyCode.FLOOR_DEBUG),
        ({"td_attributes": ""}, PolicyCode.FLOOR_DEBUG),
        ({"compared": "nothing"}, PolicyCode.FLOOR_NOT_COMPARED),
        ({"compared": "bytes"}, PolicyCode.FLOOR_NOT_ADMITTED),
        ({"tcb_status": "Revoked"}, PolicyCode.FLOOR_REVOKED),
        ({"qe_tcb_status": "Revoked"}, PolicyCode.FLOOR_REVOKED),
        ({"tcb_status": ""}, PolicyCode.FLOOR_REVOKED),
        ({"tee": "sgx"}, PolicyCode.FLOOR_TEE),
        ({"valid_until": "2026-12-01T11:59:59Z"}, PolicyCode.FLOOR_TIME),
        ({"verified_at": "2026-12-01T12:00:01Z"}, PolicyCode.FLOOR_TIME),
    ],
)
def test_no_bundle_lowers_the_floor(change: dict[str, Any], code: PolicyCode) -> None:
    for kind, action in (("dev", KEY), ("tenant", MODEL)):
        assert code in codes(reasons(good_facts(kind, **change), action, kind))


# Tenants


def test_no_rule_reaches_another_tenant() -> None:
    everything = with_rules('@id("all") permit (principal, action, resource) when { context.via == "cloister" };')
    for action in (ReleaseSecret("prod/a"), Send("prod/a"), Receive("prod/a"), CallTool("prod/a")):
        found = judge(everything, good_facts(), action, context=NOW)
        assert codes(found.reasons) == {"policy.resource_of_another_tenant"}
        assert found.reasons[0].nearest == "dev/a"
    stranger = judge(everything, good_facts(tenant="prod"), KEY, context=NOW)
    assert codes(stranger.reasons) == {"policy.tenant_mismatch"}


@pytest.mark.parametrize(
    "name", ["dev", "dev/", "dev//x", "dev/../prod/x", "dev/.x", "/dev/x", "dev/a b", "dev/x/" + "y/" * 8]
)
def test_a_name_that_the_store_would_not_take_is_refused(name: str) -> None:
    assert "policy.resource_name_invalid" in codes(reasons(good_facts(), ReleaseSecret(name)))


def test_a_kbs_guest_belongs_to_the_bundle_that_admitted_it() -> None:
    guest = good_facts("lab", compared="bytes", tenant="", role="", suite="")
    kbs = Context(at=AT, via="kbs")
    assert judge(bundle("lab"), guest, ReleaseSecret("lab/x/y"), context=kbs).permitted
    assert not judge(bundle("lab"), guest, ReleaseSecret("lab/x/y"), context=NOW).permitted


# How long


def test_a_permit_ends_with_the_first_input_that_changes() -> None:
    facts = good_facts("tenant")
    ends = judge(bundle("tenant"), facts, MODEL, context=NOW).not_after
    assert ends == facts.verified_at + timedelta(seconds=120)  # context.age_s <= 120 holds through that second
    admitted = judge(bundle("tenant"), facts, Admit(), context=NOW).not_after
    assert admitted == facts.verified_at + timedelta(seconds=300)  # max_age_s: from then on it stands at grace
    short = good_facts("tenant", valid_until="2026-12-01T12:00:30Z")
    assert judge(bundle("tenant"), short, Admit(), context=NOW).not_after == AT + timedelta(seconds=30)
    late = datetime.fromisoformat("2027-12-30T23:59:30+00:00")
    ending = judge(bundle("dev"), good_facts("dev", late), Admit(), context=Context(at=late))
    assert ending.not_after == datetime.fromisoformat("2027-12-31T00:00:00+00:00")


def test_a_rule_that_reads_the_time_is_decided_each_time() -> None:
    dated = with_rules(
        '@id("p") permit (principal in Workload::"agent", action == Action::"ReleaseSecret", resource)\n'
        'when { context.now < datetime("2026-12-01T12:01:00Z") };'
    )
    facts = good_facts()
    first = judge(dated, facts, KEY, context=NOW)
    assert (first.permitted, first.cacheable) == (True, False)
    assert first.not_after == AT + timedelta(minutes=1)
    assert not judge(dated, facts, KEY, context=Context(at=AT + timedelta(minutes=1))).permitted
    assert judge(bundle(), facts, KEY, context=NOW).cacheable


def test_a_refusal_ends_with_the_first_input_that_changes() -> None:
    dated = with_rules(
        '@id("p") permit (principal in Workload::"agent", action == Action::"ReleaseSecret", resource)\n'
        'when { context.now >= datetime("2026-12-01T12:01:00Z") };'
    )
    facts = good_facts()
    refused = judge(dated, facts, KEY, context=NOW)
    assert (refused.permitted, refused.not_after) == (False, AT + timedelta(minutes=1))
    assert judge(dated, facts, KEY, context=Context(at=AT + timedelta(minutes=1))).permitted


def test_a_rule_that_computes_with_the_time_lasts_a_second() -> None:
    hours = with_rules(
        '@id("p") permit (principal in Workload::"agent", action == Action::"ReleaseSecret", resource)\n'
        'when { context.now.toTime() < duration("18h") };'
    )
    assert judge(hours, good_facts(), KEY, context=NOW).not_after == AT + timedelta(seconds=1)


def test_what_is_remembered_never_outlives_its_moment() -> None:
    loaded, facts = bundle("tenant"), good_facts("tenant")
    assert judge(loaded, facts, Admit(), context=NOW).standing == "current"
    at = facts.verified_at + timedelta(seconds=301)
    assert judge(loaded, facts, Admit(), context=Context(at=at)).standing == "grace"
    assert not judge(loaded, facts, Admit(), context=Context(at=facts.verified_at + timedelta(seconds=361))).permitted
    assert judge(loaded, facts, Admit(), context=NOW).standing == "current"


# What a refusal says


def test_a_refusal_carries_every_failed_check() -> None:
    bad = good_facts(
        td_attributes="0000003000000000", tcb_status="OutOfDate", advisory_ids=["INTEL-SA-99999"], mr_td="0" * 96
    )
    assert codes(reasons(bad)) == {
        "policy.tcb_not_accepted",
        "policy.advisory_not_allowed",
        "policy.allowance_not_granted",
        "policy.measurement_mismatch",
        "policy.condition_not_met",
    }


def test_a_reason_names_rule_line_expected_found_and_what_would_pass() -> None:
    found = the(reasons(good_facts(tcb_status="OutOfDate", module_tcb_status="UpToDate")), "policy.tcb_not_accepted")
    line = bundle().files["bundle.toml"].decode().splitlines()[found.line - 1]
    assert (found.rule, found.file) == ("tcb.accept", "bundle.toml")
    assert line.startswith("accept =")
    assert found.expected == "SWHardeningNeeded, UpToDate"
    assert found.found.startswith("OutOfDate")
    assert "tcb.accept lists OutOfDate" in found.passes_if


def test_the_nearest_reference_value_is_the_one_that_differs_in_least() -> None:
    found = the(reasons(good_facts(rtmr1="0" * 96)), "policy.measurement_mismatch")
    assert found.rule == "workload.agent.rtmr1"
    assert found.nearest.startswith("agent (simulator image")
    assert found.passes_if == f"rtmr1 is {found.expected}"
    assert bundle().files["reference-values.toml"].decode().splitlines()[found.line - 1].startswith("rtmr1 =")


def test_a_default_deny_names_the_condition_of_the_permit_that_did_not_hold() -> None:
    found = the(reasons(good_facts(tcb_status="SWHardeningNeeded")), "policy.condition_not_met")
    assert (found.rule, found.expected) == ("release-dev-secrets", 'principal.tcb_status == "UpToDate"')
    assert found.found == 'principal.tcb_status = "SWHardeningNeeded"'
    assert found.passes_if == 'principal.tcb_status is "UpToDate"'
    assert (
        bundle().files["policy.cedar"].decode().splitlines()[found.line - 1].startswith("when { principal.tcb_status")
    )


def test_each_condition_that_fails_is_a_reason_of_its_own() -> None:
    old = good_facts(verified_at=AT - timedelta(seconds=660))
    found = reasons(old, Send("dev/mail/alice"), context=Context(at=AT, via="kbs"))
    assert [reason.expected for reason in found if reason.code == "policy.condition_not_met"] == [
        'context.standing == "current"',
        'context.via == "cloister"',
    ]


def test_a_thing_that_no_permit_is_about_names_the_nearest_permit() -> None:
    found = the(reasons(good_facts(), ReleaseSecret("dev/secret/key")), "policy.no_rule")
    assert found.rule == "release-dev-secrets"
    assert "dev/secrets" in found.nearest


def test_mending_what_passes_if_says_makes_the_decision_pass() -> None:
    facts = good_facts(tcb_status="SWHardeningNeeded")
    assert the(reasons(facts), "policy.condition_not_met").passes_if == 'principal.tcb_status is "UpToDate"'
    assert judge(bundle(), replace(facts, tcb_status="UpToDate"), KEY, context=NOW).permitted


def test_a_forbid_says_what_must_stop() -> None:
    found = the(
        reasons(good_facts(), ReleaseSecret("dev/secrets/key", labels=frozenset({"production"}))), "policy.forbidden"
    )
    assert found.rule == "never-production"
    assert 'resource.labels = ["production"]' in found.found
    assert found.passes_if == 'one of these stops holding: resource.labels.contains("production")'


def test_the_other_side_learns_codes_and_nothing_else() -> None:
    with pytest.raises(Refused) as refusal:
        decide(bundle(), verdict(image="another"), KEY, context=NOW)
    told = refusal.value.redacted().to_dict()
    assert told == {"codes": ["policy.measurement_mismatch", "policy.condition_not_met"]}


def test_the_message_of_a_refusal_holds_codes_alone() -> None:
    with pytest.raises(Refused) as refusal:
        decide(bundle(), verdict(image="another"), KEY, context=NOW)
    assert str(refusal.value) == "policy.measurement_mismatch; policy.condition_not_met"


# Workloads and launches


LAUNCHED = "11" * 48
WITH_LAUNCHES = ("# To say which code", f'launches = ["{LAUNCHED}"]\n# To say which code')


def launched(*digests: str, also: bool = False) -> Facts:
    """The facts of a simulated domain in which these programs were launched, in this order."""
    domain = machine().launch("launched")
    for digest in digests:
        event_digest, data = launch_event(bytes.fromhex(digest), "agent.py")
        domain.extend(3, event_digest, event_type=6, data=data)
    if also:
        domain.extend(3, b"\x99" * 48, event_type=6, data=b"something else")
    bound = binding()
    verified = verify_quote(
        Quote.parse(domain.quote(bound.report_data)),
        machine().collateral(),
        report_data=bound,
        roots=machine().roots,
        at=AT,
    )
    return Facts.of(Verdict.of(verified, event_log=EventLog.parse(domain.event_log())))


def test_the_listed_launch_in_a_real_event_log_makes_the_workload() -> None:
    assert judge(bundle("dev", values=WITH_LAUNCHES), launched(LAUNCHED), KEY, context=NOW).permitted


@pytest.mark.parametrize(
    "facts",
    [
        pytest.param(lambda: launched(), id="no launch"),
        pytest.param(lambda: launched("22" * 48), id="another program"),
        pytest.param(lambda: launched(LAUNCHED, "22" * 48), id="a second launch"),
        pytest.param(lambda: launched("22" * 48, LAUNCHED), id="an earlier launch"),
        pytest.param(lambda: launched(LAUNCHED, also=True), id="something else in RTMR3"),
    ],
)
def test_any_other_history_of_rtmr3_is_refused(facts: Callable[[], Facts]) -> None:
    found = judge(bundle("dev", values=WITH_LAUNCHES), facts(), KEY, context=NOW)
    assert "policy.launches_mismatch" in codes(found.reasons)


def test_later_launches_pass_only_where_the_value_says_so() -> None:
    edit = (WITH_LAUNCHES[0], f'launches = ["{LAUNCHED}"]\nmore_launches = true\n# To say which code')
    assert judge(bundle("dev", values=edit), launched(LAUNCHED, "22" * 48), KEY, context=NOW).permitted


def test_an_event_that_a_value_wants_must_be_in_the_log() -> None:
    facts = launched(LAUNCHED)
    present = facts.event_digests[1][0]
    wanted = [("# To say which code", f'events = ["{digest}"]\n# To say which code') for digest in (present, "0" * 96)]
    there, absent = (judge(bundle("dev", values=edit), facts, KEY, context=NOW) for edit in wanted)
    assert there.permitted
    assert "policy.event_missing" in codes(absent.reasons)


# Platforms


def platforms(text: str) -> dict[str, tuple[str, str]]:
    source = bundle().files["bundle.toml"].decode()
    old = source[source.index('platforms = "any"') : source.index("[tcb]")]
    return {"bundle": (old, f"[platforms]\n{text}\n\n")}


PPID, PIID, FMSPC = "0" * 31 + "1", "0" * 31 + "2", "00906ed50000"


@pytest.mark.parametrize("line", [f'ppid = ["{PPID}"]', f'piid = ["{PIID}"]', f'fmspc = ["{FMSPC}"]'])
def test_a_listed_platform_is_enough_by_any_of_its_ids(line: str) -> None:
    listed = bundle("dev", **platforms(line))
    assert judge(listed, good_facts(ppid=PPID, piid=PIID, fmspc=FMSPC), KEY, context=NOW).permitted
    found = judge(listed, good_facts(), KEY, context=NOW)
    assert codes(found.reasons) == {"policy.platform_not_allowed"}


def test_a_platform_without_an_id_matches_no_list() -> None:
    assert not judge(bundle("dev", **platforms(f'piid = ["{PIID}"]')), good_facts(piid=""), KEY, context=NOW).permitted


def test_a_flag_that_the_certificate_does_not_state_is_not_met() -> None:
    wanted = bundle("dev", **platforms(f'fmspc = ["{FMSPC}"]\nsmt_enabled = false'))
    for stated, fine in ((False, True), (True, False), (None, False)):
        facts = replace(good_facts(fmspc=FMSPC), smt_enabled=stated)
        found = judge(wanted, facts, KEY, context=NOW)
        assert found.permitted is fine
        assert fine or codes(found.reasons) == {"policy.platform_configuration"}


def test_the_same_platform_at_two_addresses_is_refused() -> None:
    found = reasons(good_facts(), context=Context(at=AT, platform_addresses=2))
    assert codes(found) == {"policy.platform_seen_elsewhere"}


def test_an_allowance_that_has_ended_is_refused() -> None:
    granted = '[[allowance]]\nname = "migratable"\nuntil = "2026-12-01"\n'
    ended = bundle("dev", bundle=("[tcb]\n", f"{granted}\n[tcb]\n"))
    facts = good_facts(td_attributes="0000003000000000", allowances=["migratable"])
    assert codes(judge(ended, facts, KEY, context=NOW).reasons) == {"policy.allowance_ended"}
    before = Context(at=datetime.fromisoformat("2026-11-30T23:59:59+00:00"))
    assert judge(ended, good_facts(at=before.at, td_attributes="0000003000000000"), KEY, context=before).permitted
    assert ended.allowances(AT) == frozenset()
    assert {item.value for item in ended.allowances(before.at)} == {"migratable"}


# Service TDs


def bound_to_a_service(label: bytes) -> Verdict:
    """A verdict on a domain with one service TD, let pass by its allowance."""
    service = ServiceTd(td_info_hash=sha384(label).digest())
    domain, bound = machine().launch("td", service_tds=(service,)), binding()
    verified = verify_quote(
        Quote.parse(domain.quote(bound.report_data)),
        machine().collateral(),
        report_data=bound,
        roots=machine().roots,
        at=AT,
        allow=frozenset({Allowance.SERVICE_TD}),
    )
    return Verdict.of(verified, event_log=EventLog.parse(domain.event_log()))


def test_an_allowance_for_service_tds_can_be_held_to_one_of_them() -> None:
    right, wrong = bound_to_a_service(b"right"), bound_to_a_service(b"wrong")
    assert len(right.mr_service_td) == 96
    assert verdict().mr_service_td in ("", "00" * 48)
    allowance = '\n[[allowance]]\nname = "service_td"\nuntil = "2027-12-31"\n'
    made = files("dev", values=("source =", f'mr_service_td = "{right.mr_service_td}"\nsource ='))
    made["bundle.toml"] += allowance.encode()
    policy = bundle_of({name: content for name, content in made.items() if not name.startswith("tests/")})
    assert decide(policy, right, KEY, context=NOW).action == "ReleaseSecret"
    with pytest.raises(Refused) as refused:
        decide(policy, wrong, KEY, context=NOW)
    assert "policy.measurement_mismatch" in codes(refused.value.reasons)
