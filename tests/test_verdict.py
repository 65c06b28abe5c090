"""Verdicts: two doors, exact round trips, and tokens that serve for one thing each."""

import copy
import dataclasses
import json
import pickle
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation import ear, es256, tokens, verdict_claims, verdict_facts
from attestation.checks import Check
from attestation.ear import Appraisal, Executables, Tier
from attestation.encoding import b64url, compact_json, from_b64url
from attestation.errors import AttestationError, Code, TokenRefused, VerificationFailed
from attestation.eventlog import EV_EVENT_TAG, EventLog, launch_event
from attestation.evidence import Role
from attestation.pki import TrustRoots
from attestation.quote import Quote, Tee
from attestation.tcb import ANY_TCB, TcbStatus
from attestation.verdict import (
    ADMISSION_TYPE,
    RESULT_TYPE,
    Verdict,
    open_admission,
    open_result,
    open_token,
    sign_admission,
    sign_refusal,
    sign_result,
)
from attestation.verdict_facts import quote_digest
from attestation.verifier import Allowance, VerifiedQuote, verify_quote
from tests import vectors_real
from tests.admitted import AGENT, AT, CODE, bound, machine, verdict, verified

KEY = ec.derive_private_key(11, ec.SECP256R1())
STRANGER = ec.derive_private_key(12, ec.SECP256R1())
KEYS = {"k1": KEY.public_key(), "k2": STRANGER.public_key()}
BROKER, RESULTS, LEDGER = "https://broker.example", "https://broker.example/results", "https://ledger.example"
POLICY = "9f" * 32


def admission(**changes: Any) -> str:
    arguments: dict[str, Any] = {
        "key": KEY,
        "kid": "k1",
        "issuer": BROKER,
        "audience": LEDGER,
        "at": AT,
        "ttl_s": 300,
        "policy_digest": POLICY,
        "jti": "01JD6Z",
    }
    return sign_admission(changes.pop("verdict", None) or verdict(), **(arguments | changes))


def result(**changes: Any) -> str:
    arguments: dict[str, Any] = {
        "key": KEY,
        "kid": "k1",
        "issuer": RESULTS,
        "audience": LEDGER,
        "at": AT,
        "ttl_s": 300,
        "jti": "01JD70",
    }
    return sign_result(changes.pop("verdict", None) or verdict("bytes"), **(arguments | changes))


def opened(token: str, *, issuer: str = BROKER, audience: str = LEDGER, at: datetime = AT, **more: Any) -> Verdict:
    return open_token(token, keys=KEYS, issuer=issuer, audience=audience, at=at, **more)


def code_of(act: Callable[[], object]) -> str:
    try:
        act()
    except AttestationError as error:
        return error.code
    return "ok"


def claims_of(token: str) -> dict[str, Any]:
    claims: dict[str, Any] = json.loads(from_b64url(token.split(".")[1]))
    return claims


def resigned(claims: dict[str, Any], typ: str = ADMISSION_TYPE) -> str:
    return tokens.write(claims, typ=typ, key=KEY, kid="k1")


def raw_token(header: bytes | dict[str, Any], payload: bytes, key: ec.EllipticCurvePrivateKey = KEY) -> str:
    """A properly signed token with any header and payload bytes."""
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    signed = f"{b64url(head)}.{b64url(payload)}"
    return f"{signed}.{b64url(es256.sign(key, signed.encode()))}"


# The first door


def test_a_verdict_carries_what_was_verified() -> None:
    quote, log = verified()
    made = verdict()
    assert made.subject == f"agent/acme/{bound().jkt}"
    assert made.admission
    assert made.compared
    assert made.simulated
    assert made.tcb_status == quote.tcb_status
    assert made.fmspc == quote.fmspc.hex()
    assert made.mr_td == quote.quote.td.mr_td.hex()
    assert made.rtmrs == tuple(value.hex() for value in quote.quote.td.rtmrs)
    assert made.sealing_key == b"s" * 32
    assert [launch.name for launch in made.launches] == ["agent.py"]
    assert made.only_launches
    assert made.event_digests[3] == tuple(digest.hex() for digest in log.digests(3))


def test_a_verdict_without_a_binding_names_nobody_and_is_no_admission() -> None:
    for compared in ("bytes", "nothing"):
        made = verdict(compared)
        assert (made.subject, made.identity_key, made.sealing_key, made.admission) == ("", b"", b"", False)
        assert code_of(lambda made=made: admission(verdict=made)) == Code.TOKEN_NOT_ADMISSIBLE  # type: ignore[misc]


def test_a_broker_or_peer_is_never_admitted_as_an_agent() -> None:
    for role in (Role.BROKER, Role.PEER):
        made = verdict("binding", role)
        assert made.subject.startswith(f"{role}/acme/")
        assert code_of(lambda made=made: admission(verdict=made)) == Code.TOKEN_NOT_ADMISSIBLE  # type: ignore[misc]


def test_a_verdict_comes_through_its_doors_only() -> None:
    made = verdict()
    values = {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}
    for forge in (
        lambda: Verdict(**values, seal=object()),
        lambda: Verdict(**values),
        lambda: dataclasses.replace(made, tenant="other"),  # type: ignore[call-arg]  # that it lacks the seal is the point
        lambda: copy.copy(made),
        lambda: copy.deepcopy(made),
        lambda: pickle.dumps(made),
        lambda: Verdict.of(verified()[0], binding=bound(Role.PEER)),
        lambda: Verdict.of(verified("bytes")[0], binding=bound()),
    ):
        with pytest.raises((TypeError, ValueError)):
            forge()
    assert Verdict.of(verified()[0], binding=bound()).admission


def looking_like(made: object) -> SimpleNamespace:
    """An object with the same attributes."""
    return SimpleNamespace(**{name: getattr(made, name) for name in dir(made) if not name.startswith("__")})


def test_what_only_looks_like_a_proof_opens_no_door() -> None:
    quote, log = verified()
    double, shadow = looking_like(quote), looking_like(verdict())
    for forge in (
        lambda: Verdict.of(double),  # type: ignore[arg-type]  # wrong on purpose
        lambda: Verdict.of(quote, event_log=looking_like(log)),  # type: ignore[arg-type]  # wrong on purpose
        lambda: admission(verdict=shadow),
        lambda: result(verdict=shadow),
        lambda: type("Sub", (Verdict,), {"__post_init__": lambda self, seal: None}),
    ):
        with pytest.raises(TypeError):
            forge()


def test_an_event_log_that_does_not_explain_the_quote_makes_no_verdict() -> None:
    quote, log = verified()
    shorter = EventLog(log.entries[:-1])
    assert code_of(lambda: Verdict.of(quote, event_log=shorter)) == Code.EVENTLOG_REPLAY
    without = Verdict.of(quote)
    assert (without.event_log_present, without.event_digests, without.launches) == (False, (), ())
    assert not without.only_launches


def test_a_further_extension_of_rtmr3_shows() -> None:
    td = machine().launch()
    digest, data = launch_event(CODE, "agent.py")
    td.extend(3, digest, event_type=EV_EVENT_TAG, data=data)
    td.extend(3, b"x" * 48, event_type=1, data=b"")
    quote = Quote.parse(td.quote(b"r" * 64))
    made = verify_quote(
        quote, machine().as_source().fetch(quote), report_data=b"r" * 64, roots=machine().roots, at=AT, accept=ANY_TCB
    )
    both = Verdict.of(made, event_log=EventLog.parse(td.event_log()))
    assert len(both.launches) == 1
    assert not both.only_launches


def test_a_log_beside_an_sgx_quote_is_refused(sgx: VerifiedQuote) -> None:
    assert code_of(lambda: Verdict.of(sgx, event_log=EventLog(()))) == Code.EVENTLOG_NOT_A_TD
    made = Verdict.of(sgx)
    assert (made.tee, made.mr_td, made.rtmrs) == (Tee.SGX, "", ())
    assert len(made.mr_enclave) == 64


@pytest.fixture(scope="module")
def sgx() -> VerifiedQuote:
    vector = next(
        (
            vector
            for vector in vectors_real.quotes()
            if vector.raw["kind"].startswith("sgx") and vector.raw["class"] == "verified"
        ),
        None,
    )
    if vector is None:
        pytest.skip("no real SGX quotes at hand")
    return vector.verified()


def test_the_digest_of_a_quote_is_over_its_own_bytes() -> None:
    import hashlib

    raw = machine().launch().quote(b"r" * 64)
    quote = Quote.parse(raw + bytes(70))
    assert quote_digest(quote) == hashlib.sha256(raw[: quote.size]).digest()


# The second door


def test_the_whole_verdict_survives_its_token() -> None:
    again = opened(admission())
    assert again == verdict()
    for name in verdict_claims.CODECS:
        assert getattr(again, name) == getattr(verdict(), name)
        assert type(getattr(again, name)) is type(getattr(verdict(), name))


def test_a_verdict_is_written_into_its_token_as_its_claims_would_be() -> None:
    """What is remembered of one is never told of another."""
    plain, launched, long = machine().launch("a"), machine().launch("b"), machine().launch("c")
    digest, data = launch_event(CODE, 'of "Zoë"')
    launched.extend(3, digest, event_type=EV_EVENT_TAG, data=data)
    for _ in range(300):
        long.extend(3, b"x" * 48, event_type=1, data=b"")
    for td in (plain, launched, long, plain, launched):
        for tenant, log in (("acme", True), ("other", True), ("acme", False), ("acme", True)):
            wanted = dataclasses.replace(bound(), tenant=tenant)
            quote = Quote.parse(td.quote(wanted.report_data))
            collateral = machine().as_source().fetch(quote)
            made = verify_quote(quote, collateral, report_data=wanted, roots=machine().roots, at=AT, accept=ANY_TCB)
            verdict = Verdict.of(made, event_log=EventLog.parse(td.event_log()) if log else None)
            told = verdict_claims.to_json(verdict, verdict.event_digests)
            assert told.encode() == compact_json(verdict.to_claims())


def test_every_field_has_a_codec_in_the_order_of_the_class() -> None:
    assert list(verdict_claims.CODECS) == [field.name for field in dataclasses.fields(Verdict)]


texts = st.text(alphabet="abz/-_. é", max_size=8)
hexes = st.binary(max_size=6).map(bytes.hex)
digests = st.binary(min_size=48, max_size=48).map(bytes.hex)
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


def read_result(token: str, nonce: str = "") -> dict[str, Any]:
    return open_result(token, keys=KEYS, issuer=RESULTS, audience=LEDGER, at=AT, nonce=nonce)


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
