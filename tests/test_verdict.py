"""Verdicts: two doors, exact round trips, and tokens that serve for one thing each."""

import copy
import dataclasses
import pickle
from types import SimpleNamespace

import pytest

from attestation import verdict_claims
from attestation.encoding import compact_json
from attestation.errors import Code
from attestation.eventlog import EV_EVENT_TAG, EventLog, launch_event
from attestation.evidence import Role
from attestation.quote import Quote, Tee
from attestation.tcb import ANY_TCB
from attestation.verdict import (
    Verdict,
)
from attestation.verdict_facts import quote_digest
from attestation.verifier import VerifiedQuote, verify_quote
from tests import vectors_real
from tests.admitted import AT, CODE, bound, machine, verdict, verified
from tests.verdict_world import admission, code_of, opened, result

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
