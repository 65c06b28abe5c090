"""Tokens of verdicts: every fact, claim, header and spelling that is another is refused, signed or not."""

import dataclasses
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation import es256, tokens, verdict_claims, verdict_facts
from attestation.ear import Appraisal, Executables
from attestation.encoding import b64url, from_b64url
from attestation.errors import Code, TokenRefused
from attestation.pki import TrustRoots
from attestation.quote import Tee
from attestation.tcb import TcbStatus
from attestation.verdict import (
    ADMISSION_TYPE,
    RESULT_TYPE,
    open_token,
)
from tests.admitted import AGENT, AT, verdict
from tests.verdict_world import (
    BROKER,
    KEY,
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


def raw_token(header: bytes | dict[str, Any], payload: bytes, key: ec.EllipticCurvePrivateKey = KEY) -> str:
    """A properly signed token with any header and payload bytes."""
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    signed = f"{b64url(head)}.{b64url(payload)}"
    return f"{signed}.{b64url(es256.sign(key, signed.encode()))}"


texts = st.text(alphabet="abz/-_. é", max_size=8)
hexes = st.binary(max_size=6).map(bytes.hex)
times = st.integers(0, 4 * 10**15).map(lambda micros: datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=micros))
states = st.sampled_from(TcbStatus)
flags = st.none() | st.booleans()
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "tee": st.sampled_from(Tee),
    **dict.fromkeys(("tcb_status", "platform_tcb_status", "qe_tcb_status"), states),
    "module_tcb_status": st.none() | states,
    **dict.fromkeys(("advisory_ids", "allowances"), st.lists(texts, max_size=3).map(tuple)),
    **dict.fromkeys(("tcb_date", "verified_at", "valid_until"), times),
    **dict.fromkeys(("tcb_evaluation_number", "qe_evaluation_number"), st.integers(0, (1 << 32) - 1)),
    "piid": st.none() | hexes,
    **dict.fromkeys(("dynamic_platform", "cached_keys", "smt_enabled"), flags),
    **dict.fromkeys(("event_log_present", "simulated", "compared", "admission"), st.booleans()),
    "rtmrs": st.lists(hexes, max_size=4).map(tuple),
    "event_digests": st.lists(st.lists(st.binary(min_size=48, max_size=48).map(bytes.hex), max_size=2).map(tuple)).map(
        tuple
    ),
    **dict.fromkeys(("identity_key", "sealing_key"), st.binary(max_size=9)),
    **dict.fromkeys(("subject", "tenant", "role", "jkt", "suite"), texts),
}


@given(data=st.data())
@settings(max_examples=40)
def test_every_codec_is_exact_in_both_directions(data: st.DataObject) -> None:
    for name, codec in verdict_claims.CODECS.items():
        if name == "launches":
            continue
        value = data.draw(FIELDS.get(name, hexes), label=name)
        assert codec.read(json.loads(json.dumps(codec.write(value)))) == value


WRONG: list[Any] = [None, True, 7, "Zz", "", [], {}, ["Zz"], [[1]], {"a": 1}]


@pytest.mark.parametrize("name", verdict_claims.CODECS)
def test_every_fact_of_another_form_is_refused_even_when_signed(name: str) -> None:
    good = claims_of(admission())
    for value in WRONG:
        if value == good["cloister_verdict"][name] and type(value) is type(good["cloister_verdict"][name]):
            continue
        changed = good | {"cloister_verdict": good["cloister_verdict"] | {name: value}}
        outcome = code_of(lambda changed=changed: opened(resigned(changed)))  # type: ignore[misc]
        allowed = {"ok"} if _plausible(name, value) else set()
        assert outcome in {Code.TOKEN_CLAIMS, Code.TOKEN_EXPIRED} | allowed, (name, value)


def _plausible(name: str, value: Any) -> bool:
    """Values of the field's own type that contradict nothing else: our own signature is what vouches for them."""
    codec = verdict_claims.CODECS[name]
    try:
        codec.read(value)
    except ValueError:
        return False
    crossed = {*verdict_facts.BOUND, "report_data", "compared", "event_digests", "tee", "allowances", "simulated"}
    return name not in crossed


@pytest.mark.parametrize(
    "change",
    [
        *[{name: "Revoked"} for name in ("tcb_status", "platform_tcb_status", "module_tcb_status", "qe_tcb_status")],
        {"tcb_status": "OutOfDate"},
        {"allowances": ["migratable"]},
        {"suite": "mlkem768-x25519"},
        {"suite": "x448"},
        {"sealing_key": "AAAA"},
        {"sealing_key": b64url(b"e" * 32)},
        {"tenant": ".."},
        {"nonce": "00"},
        {"broker_id": "00" * 32},
        {"trust_file_digest": "00" * 32},
        {"init_data_digest": "00" * 32},
        {"report_data": "00" * 64},
        {"compared": False},
        {"simulated": False},
        {"root_sha256": TrustRoots.intel().sha256[0]},
        {"tcb_evaluation_number": -1},
        {"tcb_evaluation_number": 1 << 32},
        {"verified_at": "0001-01-01T00:00:00+14:00"},
        {"valid_until": "9999-12-31T23:59:59-14:00"},
        {"valid_until": "2026-08-01T00:00:00+01:00"},
    ],
    ids=repr,
)
def test_a_fact_that_contradicts_another_is_refused_even_when_signed(change: dict[str, Any]) -> None:
    claims = claims_of(admission())
    claims["cloister_verdict"] |= change
    assert code_of(lambda: opened(resigned(claims))) == Code.TOKEN_CLAIMS


def test_a_missing_or_additional_fact_is_refused() -> None:
    good = claims_of(admission())
    facts = good["cloister_verdict"]
    for name in facts:
        less = {key: value for key, value in facts.items() if key != name}
        assert code_of(lambda less=less: opened(resigned(good | {"cloister_verdict": less}))) == Code.TOKEN_CLAIMS  # type: ignore[misc]
    assert code_of(lambda: opened(resigned(good | {"cloister_verdict": facts | {"x": 1}}))) == Code.TOKEN_CLAIMS
    assert code_of(lambda: opened(resigned(good | {"cloister_verdict": []}))) == Code.TOKEN_CLAIMS


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"sub": "agent/acme/other"}, Code.TOKEN_CLAIMS),
        ({"cnf": {"jkt": "other"}}, Code.TOKEN_CLAIMS),
        ({"cnf": {}}, Code.TOKEN_CLAIMS),
        ({"jti": ""}, Code.TOKEN_CLAIMS),
        ({"jti": "a" * 65}, Code.TOKEN_CLAIMS),
        ({"jti": 1}, Code.TOKEN_CLAIMS),
        ({"iss": "https://broker.example/"}, Code.TOKEN_ISSUER),
        ({"iss": RESULTS}, Code.TOKEN_ISSUER),
        ({"aud": [LEDGER]}, Code.TOKEN_AUDIENCE),
        ({"aud": LEDGER + "/"}, Code.TOKEN_AUDIENCE),
        ({"aud": None}, Code.TOKEN_AUDIENCE),
        ({"iat": AT.timestamp()}, Code.TOKEN_MALFORMED),
        ({"exp": str(int(AT.timestamp()) + 300)}, Code.TOKEN_CLAIMS),
        ({"exp": True}, Code.TOKEN_CLAIMS),
        ({"exp": int(AT.timestamp()) + 301}, Code.TOKEN_LIFETIME),
        ({"exp": int(AT.timestamp())}, Code.TOKEN_LIFETIME),
        ({"exp": 1 << 62}, Code.TOKEN_LIFETIME),
        ({"iat": 10**400, "exp": 10**400 + 5}, Code.TOKEN_MALFORMED),
        ({"iat": -(10**400), "exp": -(10**400) + 5}, Code.TOKEN_MALFORMED),
        ({"iat": 10**19, "exp": 10**19 + 5}, Code.TOKEN_CLAIMS),
        ({"iat": -5, "exp": 5}, Code.TOKEN_CLAIMS),
        ({"nbf": int(AT.timestamp()) + 61}, Code.TOKEN_NOT_YET),
        ({"nbf": int(AT.timestamp())}, "ok"),
        ({"nbf": 10**19}, Code.TOKEN_CLAIMS),
        ({"nbf": None}, Code.TOKEN_CLAIMS),
        ({"nbf": True}, Code.TOKEN_CLAIMS),
        ({"eat_profile": "tag:github.com,2023:veraison/ear"}, Code.TOKEN_CLAIMS),
        ({"ear.status": "affirming"}, Code.TOKEN_CLAIMS),
        ({"ear_status": "none"}, Code.TOKEN_CLAIMS),
        ({"ear_status": "excellent"}, Code.TOKEN_CLAIMS),
        ({"ear_status": []}, Code.TOKEN_CLAIMS),
        ({"submods": {}}, Code.TOKEN_CLAIMS),
        ({"submods": []}, Code.TOKEN_CLAIMS),
        ({"submods": {"tdx0": 1}}, Code.TOKEN_CLAIMS),
        ({"cloister_verdict": None}, Code.TOKEN_CLAIMS),
    ],
    ids=repr,
)
def test_a_claim_that_is_wrong_is_refused_even_when_signed(change: dict[str, Any], code: str) -> None:
    weak = dataclasses.asdict(Appraisal(policy_digest=POLICY, executables=Executables.UNKNOWN))
    claims = claims_of(admission(appraisal=Appraisal(**weak))) | change
    assert code_of(lambda: opened(resigned(claims))) == code


@pytest.mark.parametrize("name", "iss aud iat exp jti sub cnf eat_profile ear_status submods".split())
def test_a_claim_that_is_missing_is_refused_even_when_signed(name: str) -> None:
    claims = claims_of(admission())
    del claims[name]
    assert code_of(lambda: opened(resigned(claims))).startswith("token.")
    assert code_of(lambda: opened(resigned(claims))) != "ok"


@pytest.mark.parametrize(
    "change",
    [
        {"ear_status": None},
        {"ear_trustworthiness_vector": {}},
        {"ear_trustworthiness_vector": {"hardware": 128}},
        {"ear_trustworthiness_vector": {"hardware": True}},
        {"ear_trustworthiness_vector": {"hardware": 96}},
        {"ear_trustworthiness_vector": {"hardware": 0}},
        {"ear_trustworthiness_vector": {"magic": 2}},
        {"ear_appraisal_policy_ids": []},
        {"ear_appraisal_policy_ids": ["md5:00"]},
        {"ear_appraisal_policy_ids": ["sha256:00"]},
        {"ear_appraisal_policy_ids": ["sha256:" + "AB" * 32]},
        {"ear_trustworthiness_vector": {"configuration": 2, "hardware": 32, "runtime-opaque": 2}},
        {"ear_trustworthiness_vector": {"configuration": 2, "runtime-opaque": 2}},
        {"ear_appraisal_policy_ids": None},
        {"eat_nonce": b64url(b"m" * 32)},
        {"eat_nonce": None},
    ],
    ids=repr,
)
def test_a_submodule_that_is_wrong_is_refused_even_when_signed(change: dict[str, Any]) -> None:
    claims = claims_of(admission())
    claims["submods"]["tdx0"] |= change
    assert code_of(lambda: opened(resigned(claims))) == Code.TOKEN_CLAIMS


def test_the_submodule_of_another_tee_is_refused() -> None:
    claims = claims_of(admission())
    claims["submods"] = {"sgx0": claims["submods"]["tdx0"]}
    assert code_of(lambda: opened(resigned(claims))) == Code.TOKEN_CLAIMS


# Reading tokens strictly


def header(**changes: Any) -> dict[str, Any]:
    return {"alg": "ES256", "kid": "k1", "typ": ADMISSION_TYPE} | changes


@pytest.mark.parametrize(
    ("head", "code"),
    [
        (header(alg="none"), Code.TOKEN_ALGORITHM),
        (header(alg="HS256"), Code.TOKEN_ALGORITHM),
        (header(alg="ES384"), Code.TOKEN_ALGORITHM),
        (header(alg=["ES256"]), Code.TOKEN_ALGORITHM),
        (header(typ="JWT"), Code.TOKEN_TYPE),
        (header(typ="application/eat+jwt"), Code.TOKEN_TYPE),
        (header(typ="EAT+JWT"), Code.TOKEN_TYPE),
        (header(typ=RESULT_TYPE), Code.TOKEN_TYPE),
        (header(kid="k3"), Code.TOKEN_KEY),
        (header(kid=1), Code.TOKEN_KEY),
        (header(kid="k2"), Code.TOKEN_SIGNATURE),
        (header(crit=["exp"]), Code.TOKEN_CRITICAL),
        (header(jku="https://evil.example"), Code.TOKEN_CRITICAL),
        (header(jwk=es256.jwk(AGENT)), Code.TOKEN_CRITICAL),
        (header(x5u="https://evil.example"), Code.TOKEN_CRITICAL),
        (header(x5c=[]), Code.TOKEN_CRITICAL),
        (header(b64=False), Code.TOKEN_CRITICAL),
        (b'{"alg":"ES256","alg":"ES256","kid":"k1","typ":"eat+jwt"}', Code.TOKEN_MALFORMED),
        (b'["ES256"]', Code.TOKEN_MALFORMED),
        (b"{" * 4000, Code.TOKEN_MALFORMED),
        (b'{"alg":"ES256","kid":"k1"}', Code.TOKEN_TYPE),
        (b'{"kid":"k1","typ":"eat+jwt"}', Code.TOKEN_ALGORITHM),
        (b'{"alg":"ES256","typ":"eat+jwt"}', Code.TOKEN_KEY),
        (b'{"alg":"ES256","kid":"k1","typ":"eat+jwt"}' + b" " * 8192, Code.TOKEN_TOO_LARGE),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_a_header_that_asks_for_anything_else_is_refused(head: bytes | dict[str, Any], code: Code) -> None:
    payload = json.dumps(claims_of(admission())).encode()
    assert code_of(lambda: opened(raw_token(head, payload))) == code


@pytest.mark.parametrize(
    "payload", [b"[]", b"null", b"\xff", b'{"iss":1,"iss":1}', b'{"exp":1.5}', b"[" * 9 + b"]" * 9, b"{}{}", b""]
)
def test_a_payload_with_two_meanings_or_none_is_refused(payload: bytes) -> None:
    assert code_of(lambda: opened(raw_token(header(), payload))) == Code.TOKEN_MALFORMED


def test_a_payload_nested_too_deeply_is_refused() -> None:
    claims = claims_of(admission()) | {"deep": [[[[[[[[1]]]]]]]]}
    assert code_of(lambda: opened(resigned(claims))) == Code.TOKEN_MALFORMED


def test_a_token_in_another_spelling_is_refused() -> None:
    token = admission()
    head, body, signature = token.split(".")
    spellings = {
        "": Code.TOKEN_MALFORMED,
        "a.b": Code.TOKEN_MALFORMED,
        token + ".": Code.TOKEN_MALFORMED,
        "." + token: Code.TOKEN_MALFORMED,
        token + "=": Code.TOKEN_MALFORMED,
        token + "\n": Code.TOKEN_MALFORMED,
        f"{head}=.{body}.{signature}": Code.TOKEN_MALFORMED,
        f"{head}.{body}.": Code.TOKEN_SIGNATURE,
        f"{head}.{body}.{signature[:-2]}": Code.TOKEN_MALFORMED,
        f"{head}.{body}.{b64url(from_b64url(signature)[:-1])}": Code.TOKEN_SIGNATURE,
        f"{head}.{body}.{signature[:-1]}é": Code.TOKEN_MALFORMED,
        "A" * ((64 << 10) + 1): Code.TOKEN_TOO_LARGE,
    }
    assert {spelling: code_of(lambda s=spelling: opened(s)) for spelling in spellings} == spellings  # type: ignore[misc]
    # the same signature with other unused low bits
    last = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    twin = signature[:-1] + last[last.index(signature[-1]) ^ 1]
    assert code_of(lambda: opened(f"{head}.{body}.{twin}")) in (Code.TOKEN_MALFORMED, Code.TOKEN_SIGNATURE)


@given(data=st.data())
@settings(max_examples=60)
def test_any_changed_character_is_refused(data: st.DataObject) -> None:
    token = admission()
    at = data.draw(st.integers(0, len(token) - 1))
    char = data.draw(st.sampled_from("AZaz09-_.=+/ ").filter(lambda other: other != token[at]))
    assert code_of(lambda: opened(token[:at] + char + token[at + 1 :])).startswith("token.")


def test_a_token_lives_for_its_time_and_the_skew() -> None:
    token = admission()
    moments = {-61: Code.TOKEN_NOT_YET, -60: "ok", 0: "ok", 300: "ok", 359: "ok", 360: Code.TOKEN_EXPIRED}
    assert {s: code_of(lambda s=s: opened(token, at=AT + timedelta(seconds=s))) for s in moments} == moments  # type: ignore[misc]
    exact = {-1: Code.TOKEN_NOT_YET, 0: "ok", 299: "ok", 300: Code.TOKEN_EXPIRED}
    assert {
        s: code_of(lambda s=s: opened(token, at=AT + timedelta(seconds=s), skew_s=0))  # type: ignore[misc]
        for s in exact
    } == exact


def test_what_is_no_text_is_a_malformed_token() -> None:
    for wrong in (admission().encode(), None, 7, ["a", "b", "c"]):
        assert code_of(lambda wrong=wrong: opened(wrong)) == Code.TOKEN_MALFORMED  # type: ignore[misc]
        assert code_of(lambda wrong=wrong: read_result(wrong)) == Code.TOKEN_MALFORMED  # type: ignore[misc]


def test_clocks_may_not_differ_by_more_than_a_token_lives() -> None:
    for skew_s in (-1, 301, 10**9):
        with pytest.raises(ValueError):
            opened(admission(), skew_s=skew_s)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"ttl_s": 1.5}, Code.TOKEN_LIFETIME),
        ({"ttl_s": True}, Code.TOKEN_LIFETIME),
        ({"ttl_s": "60"}, Code.TOKEN_LIFETIME),
        ({"jti": ""}, Code.TOKEN_CLAIMS),
        ({"jti": "a" * 65}, Code.TOKEN_CLAIMS),
        ({"issuer": ""}, Code.TOKEN_CLAIMS),
        ({"audience": ""}, Code.TOKEN_CLAIMS),
        ({"audience": "\ud800"}, Code.TOKEN_CLAIMS),
        ({"policy_digest": ""}, Code.TOKEN_CLAIMS),
        ({"policy_digest": "AB" * 32}, Code.TOKEN_CLAIMS),
    ],
    ids=repr,
)
def test_nothing_is_signed_that_no_door_would_open(change: dict[str, Any], code: Code) -> None:
    assert code_of(lambda: admission(**change)) == code
    if "policy_digest" not in change:
        assert code_of(lambda: result(**change)) == code


def test_naive_times_are_type_errors() -> None:
    naive = AT.replace(tzinfo=None)
    with pytest.raises(TypeError):
        admission(at=naive)
    with pytest.raises(TypeError):
        opened(admission(), at=naive)


def test_a_token_never_outlives_its_verdict() -> None:
    end = verdict().valid_until
    token = admission(at=end - timedelta(seconds=100))
    assert claims_of(token)["exp"] == int(end.timestamp())
    assert code_of(lambda: admission(at=end)) == Code.TOKEN_EXPIRED
    assert code_of(lambda: opened(token, at=end + timedelta(seconds=30))) == Code.TOKEN_EXPIRED
    for ttl_s in (0, -1, 301):
        assert code_of(lambda ttl_s=ttl_s: admission(ttl_s=ttl_s)) == Code.TOKEN_LIFETIME  # type: ignore[misc]


def test_keys_of_other_curves_neither_sign_nor_verify() -> None:
    other = ec.derive_private_key(5, ec.SECP384R1())
    with pytest.raises(ValueError):
        admission(key=other)
    keys = {"k1": other.public_key()}
    assert code_of(lambda: open_token(admission(), keys=keys, issuer=BROKER, audience=LEDGER, at=AT)) == Code.TOKEN_KEY
    assert code_of(lambda: open_token(admission(), keys={}, issuer=BROKER, audience=LEDGER, at=AT)) == Code.TOKEN_KEY


def test_an_empty_issuer_or_audience_of_the_reader_matches_nothing() -> None:
    claims = claims_of(admission())
    assert code_of(lambda: opened(resigned(claims | {"iss": ""}), issuer="")) == Code.TOKEN_ISSUER
    assert code_of(lambda: opened(resigned(claims | {"aud": ""}), audience="")) == Code.TOKEN_AUDIENCE


def test_a_token_that_would_be_too_large_is_not_written() -> None:
    with pytest.raises(TokenRefused) as caught:
        tokens.write({"a": "a" * (64 << 10)}, typ="x", key=KEY, kid="k1")
    assert caught.value.code == Code.TOKEN_TOO_LARGE
