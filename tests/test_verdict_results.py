"""Results of verifications: what may be affirmed, and what a relying service can check by itself."""

import dataclasses
import json
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation import ear
from attestation.checks import Check
from attestation.ear import Appraisal, Executables, Tier
from attestation.encoding import b64url
from attestation.errors import Code, VerificationFailed
from attestation.quote import Tee
from attestation.tcb import TcbStatus
from attestation.verdict import (
    RESULT_TYPE,
    open_admission,
    open_result,
    sign_refusal,
)
from attestation.verifier import Allowance
from tests.admitted import AGENT, AT, verdict, verified
from tests.verdict_world import (
    BROKER,
    KEY,
    KEYS,
    LEDGER,
    POLICY,
    RESULTS,
    admission,
    claims_of,
    code_of,
    opened,
    read_result,
    resigned,
    result,
)

# Admissions and results


def test_an_admission_tells_what_the_token_itself_says() -> None:
    made = open_admission(admission(), keys=KEYS, issuer=BROKER, audience=LEDGER, at=AT)
    assert made.verdict == verdict()
    assert made.token_id == "01JD6Z"
    assert made.policy_digest == POLICY
    assert made.expires_at - made.issued_at == timedelta(seconds=300)


def test_a_result_is_never_an_admission_nor_an_admission_a_result() -> None:
    for token in (result(), result(verdict=verdict())):
        assert code_of(lambda t=token: opened(t)) == Code.TOKEN_TYPE  # type: ignore[misc]
        assert code_of(lambda t=token: opened(t, issuer=RESULTS)) == Code.TOKEN_TYPE  # type: ignore[misc]
    # even with typ, issuer and key changed to those of the other kind, what is inside gives it away
    assert code_of(lambda: opened(resigned(claims_of(result()) | {"iss": BROKER}))) == Code.TOKEN_CLAIMS
    turned = resigned(claims_of(admission()) | {"iss": RESULTS}, RESULT_TYPE)
    for token, code in ((admission(), Code.TOKEN_TYPE), (turned, Code.TOKEN_CLAIMS)):
        assert code_of(lambda t=token: read_result(t)) == code  # type: ignore[misc]


def test_a_result_names_no_subject_and_confirms_no_key() -> None:
    claims = read_result(result(verdict=verdict(), nonce="asked-by-ledger"), "asked-by-ledger")
    assert "sub" not in claims
    assert "cnf" not in claims
    facts = claims["cloister_verification"]["facts"]
    assert facts["mr_td"] == verdict().mr_td
    for name in ("identity_key", "sealing_key", "jkt", "subject", "nonce", "admission"):
        assert name not in facts
    assert b64url(AGENT) not in json.dumps(claims)


def test_a_result_answers_the_nonce_it_was_asked_with() -> None:
    assert code_of(lambda: read_result(result(nonce="first-nonce"), "other-nonce")) == Code.TOKEN_CLAIMS
    assert code_of(lambda: read_result(result(), "other-nonce")) == Code.TOKEN_CLAIMS
    assert code_of(lambda: result(nonce="short")) == Code.TOKEN_CLAIMS
    assert code_of(lambda: result(nonce="a" * 89)) == Code.TOKEN_CLAIMS
    for wrong in ({"sub": "agent/acme/x"}, {"cnf": {"jkt": "x"}}, {"cloister_verification": None}):
        changed = resigned(claims_of(result()) | wrong, RESULT_TYPE)
        assert code_of(lambda c=changed: read_result(c)) == Code.TOKEN_CLAIMS  # type: ignore[misc]


def test_a_result_that_is_not_text_throughout_is_not_signed() -> None:
    check = Check(name="\ud800", code=Code.QUOTE_DEBUG, ok=True, detail="")
    assert code_of(lambda: result(checks=[check])) == Code.TOKEN_CLAIMS


@pytest.mark.parametrize(
    "change",
    [
        {"ok": 1},
        {"ok": False},
        {"ok": False, "code": "quote.debug"},
        {"ok": False, "code": "quote.debug", "facts": None},
        {"code": "quote.debug"},
        {"facts": None},
        {"facts": {}},
    ],
    ids=repr,
)
def test_a_result_that_contradicts_itself_is_refused_even_when_signed(change: dict[str, Any]) -> None:
    claims = claims_of(result())
    claims["cloister_verification"] |= change
    assert code_of(lambda: read_result(resigned(claims, RESULT_TYPE))) == Code.TOKEN_CLAIMS


def test_the_facts_of_a_result_agree_with_its_status() -> None:
    for change in (
        {"tcb_status": "Revoked"},
        {"qe_tcb_status": "Revoked"},
        {"tcb_status": "OutOfDate"},
        {"tee": "sgx"},
    ):
        claims = claims_of(result())
        claims["cloister_verification"]["facts"] |= change
        assert code_of(lambda c=claims: read_result(resigned(c, RESULT_TYPE))) == Code.TOKEN_CLAIMS  # type: ignore[misc]


def test_a_result_never_outlives_its_verdict() -> None:
    end = verdict("bytes").valid_until
    token = result(at=end - timedelta(seconds=10))
    moments = {-1: "ok", 0: Code.TOKEN_EXPIRED, 59: Code.TOKEN_EXPIRED}
    told = {
        s: code_of(
            lambda s=s: open_result(token, keys=KEYS, issuer=RESULTS, audience=LEDGER, at=end + timedelta(seconds=s))  # type: ignore[misc]
        )
        for s in moments
    }
    assert told == moments


def test_a_result_lists_the_checks_of_the_verification() -> None:
    quote, _ = verified("bytes")
    checks = read_result(result(checks=quote.checks))["cloister_verification"]["checks"]
    assert [check["code"] for check in checks] == [str(check.code) for check in quote.checks]


def test_a_refusal_is_contraindicated_and_carries_its_code() -> None:
    failures = {
        VerificationFailed(Code.QUOTE_SIGNATURE, "no"): 99,
        VerificationFailed(Code.QUOTE_DEBUG, "no"): 97,
    }
    for failure, value in failures.items():
        token = sign_refusal(
            failure, tee=Tee.TDX, key=KEY, kid="k1", issuer=RESULTS, audience=LEDGER, at=AT, ttl_s=60, jti="j", nonce=""
        )
        claims = read_result(token)
        assert claims["ear_status"] == "contraindicated"
        assert claims["submods"]["tdx0"]["ear_trustworthiness_vector"] == {"hardware": value}
        assert claims["cloister_verification"]["code"] == failure.code
        assert code_of(lambda t=token: opened(t, issuer=RESULTS)) == Code.TOKEN_TYPE  # type: ignore[misc]


# What a result is worth

GOOD = Appraisal(policy_digest=POLICY, platform_listed=True, executables=Executables.RUNTIME)


@pytest.mark.parametrize(
    ("compared", "appraisal", "expected"),
    [
        ("bytes", GOOD, "affirming"),
        ("binding", GOOD, "affirming"),
        ("nothing", GOOD, "warning"),
        ("bytes", dataclasses.replace(GOOD, brought_by_caller=True), "warning"),
        ("bytes", dataclasses.replace(GOOD, executables=Executables.UNKNOWN), "warning"),
        ("bytes", dataclasses.replace(GOOD, executables=Executables.BOOT), "affirming"),
        ("bytes", dataclasses.replace(GOOD, platform_listed=False), "contraindicated"),
        ("bytes", Appraisal(), "affirming"),
        ("nothing", Appraisal(), "warning"),
    ],
    ids=repr,
)
def test_nothing_is_affirmed_that_was_not_compared(compared: str, appraisal: Appraisal, expected: str) -> None:
    assert verdict(compared).tcb_status == TcbStatus.UP_TO_DATE
    claims = read_result(result(verdict=verdict(compared), appraisal=appraisal))
    assert claims["ear_status"] == expected
    assert claims["submods"]["tdx0"]["ear_status"] == expected


@pytest.mark.parametrize("status", TcbStatus)
def test_hardware_and_isolation_follow_the_tcb_state(status: TcbStatus) -> None:
    values = ear.vector(tcb_status=status, allowances=(), appraisal=Appraisal())
    worth = {TcbStatus.UP_TO_DATE: 2, TcbStatus.REVOKED: 96}.get(status, 32)
    assert values == {"configuration": 2, "hardware": worth, "runtime-opaque": worth}


def test_an_allowance_that_was_needed_is_a_warning() -> None:
    values = ear.vector(tcb_status=TcbStatus.UP_TO_DATE, allowances=(Allowance.MIGRATABLE,), appraisal=GOOD)
    assert values["configuration"] == 32
    assert ear.status(values, compared=True, appraisal=GOOD) is Tier.WARNING


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (-128, "contraindicated"),
        (-97, "contraindicated"),
        (-96, "warning"),
        (-33, "warning"),
        (-32, "affirming"),
        (-2, "affirming"),
        (-1, "none"),
        (0, "none"),
        (1, "none"),
        (2, "affirming"),
        (31, "affirming"),
        (32, "warning"),
        (95, "warning"),
        (96, "contraindicated"),
        (127, "contraindicated"),
    ],
)
def test_the_edges_of_the_tiers(value: int, expected: str) -> None:
    assert ear.tier(value) == expected


def test_values_beyond_eight_bits_have_no_tier() -> None:
    for value in (-129, 128):
        with pytest.raises(ValueError):
            ear.tier(value)


@given(tiers=st.lists(st.sampled_from(Tier), max_size=6))
def test_the_whole_is_never_better_than_its_parts(tiers: list[Tier]) -> None:
    worst = ear.worst(tiers)
    assert worst in tiers or not tiers
    for part in (Tier.CONTRAINDICATED, Tier.WARNING, Tier.NONE):
        if part in tiers:
            assert worst is not Tier.AFFIRMING
    assert not tiers or (worst is Tier.CONTRAINDICATED) == (Tier.CONTRAINDICATED in tiers)


def test_a_tcb_refusal_speaks_of_hardware_that_must_not_be_used() -> None:
    assert ear.vector_of_refusal(VerificationFailed(Code.TCB_NOT_ACCEPTED, "")) == {"hardware": 96}
