"""Nonces and proofs of possession: once, in time, for this purpose, this caller and this request."""

import secrets
import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from broker.challenges import Challenges, Once
from broker.dpop import NONCE_LIFE_S, Gate
from broker.errors import BrokerCode, BrokerError
from broker.store.memory import MemoryStore
from broker.wire import dpop
from broker.wire.errors import WireError

AT = datetime(2026, 7, 1, 12, tzinfo=UTC)
CALLER = b"c" * 32
KEY = ec.derive_private_key(7, ec.SECP256R1())
URL = "https://broker.example"


def outcome(action: Callable[..., object], *arguments: object) -> str:
    try:
        action(*arguments)
    except (BrokerError, WireError) as error:
        return str(error.code)
    return "ok"


def fresh(purpose: str = "attest") -> Challenges:
    return Challenges(b"k" * 32, purpose)


def later(seconds: float) -> datetime:
    return AT + timedelta(seconds=seconds)


# ── nonces ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_nonce_serves_once() -> None:
    challenges = fresh()
    nonce = challenges.issue(CALLER, AT)
    assert outcome(challenges.claim, nonce, CALLER, later(1)) == "ok"
    assert outcome(challenges.claim, nonce, CALLER, later(2)) == BrokerCode.CHALLENGE_USED


@pytest.mark.parametrize(
    ("age_s", "ends"), [(0, "ok"), (60, "ok"), (60.1, "challenge.expired"), (-1, "challenge.expired")]
)
def test_a_nonce_lives_for_sixty_seconds(age_s: float, ends: str) -> None:
    challenges = fresh()
    assert outcome(challenges.claim, challenges.issue(CALLER, AT), CALLER, later(age_s)) == ends


def test_a_nonce_for_another_purpose_caller_or_key_is_forged() -> None:
    challenges = fresh()
    nonce = challenges.issue(CALLER, AT)
    assert outcome(fresh("kbs").claim, nonce, CALLER, AT) == BrokerCode.CHALLENGE_FORGED
    assert outcome(challenges.claim, nonce, b"d" * 32, AT) == BrokerCode.CHALLENGE_FORGED
    assert outcome(Challenges(b"x" * 32, "attest").claim, nonce, CALLER, AT) == BrokerCode.CHALLENGE_FORGED


@given(nonce=st.binary(max_size=40))
def test_any_other_bytes_are_forged(nonce: bytes) -> None:
    assert outcome(fresh().claim, nonce, CALLER, AT) == BrokerCode.CHALLENGE_FORGED


@given(bit=st.integers(0, 255))
def test_a_nonce_with_one_bit_changed_is_forged(bit: int) -> None:
    challenges = fresh()
    nonce = bytearray(challenges.issue(CALLER, AT))
    nonce[bit // 8] ^= 1 << bit % 8
    assert outcome(challenges.claim, bytes(nonce), CALLER, AT) == BrokerCode.CHALLENGE_FORGED


def test_a_refused_nonce_is_not_remembered() -> None:
    challenges = fresh()
    for _ in range(100):
        outcome(challenges.claim, secrets.token_bytes(32), CALLER, AT)
    assert challenges.remembered == 0


def test_t33_a_hundred_thousand_unused_nonces_cost_no_memory() -> None:
    challenges = fresh()
    challenges.issue(CALLER, AT)
    tracemalloc.start()
    for _ in range(100_000):
        challenges.issue(CALLER, AT)
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert challenges.remembered == 0
    assert grown < 16_384


def test_t33_used_nonces_are_forgotten_after_their_life() -> None:
    challenges = fresh()
    for minute in range(10):
        for _ in range(50):
            at = later(minute * 61)
            challenges.claim(challenges.issue(CALLER, at), CALLER, at)
    assert challenges.remembered <= 100


async def _settled(store: MemoryStore, challenges: Challenges, nonce: bytes) -> str:
    claim = challenges.claim(nonce, CALLER, AT)
    try:
        await store.transact(claim.settle)
    except BrokerError as error:
        return str(error.code)
    return "ok"


@pytest.mark.asyncio
async def test_two_processes_on_one_store_settle_a_nonce_once() -> None:
    store, nonce = MemoryStore(), fresh().issue(CALLER, AT)
    assert await _settled(store, fresh(), nonce) == "ok"
    assert await _settled(store, fresh(), nonce) == BrokerCode.CHALLENGE_USED


@given(values=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 40)), max_size=40))
def test_nothing_is_first_twice_within_its_life(values: list[tuple[int, int]]) -> None:
    once, now_s, seen = Once(60), 0, dict[int, int]()
    for value, step in values:
        now_s += step
        first = once.first(b"%d" % value, now_s)
        if value in seen and now_s - seen[value] <= 60:
            assert not first
        if first:
            seen[value] = now_s


# ── DPoP at the door ───────────────────────────────────────────────────────────────────────────────────────────────


def check(gate: Gate, proof: str | None, *, at: datetime = AT, token: str | None = "t", **changes: Any) -> str:
    how: dict[str, Any] = {"method": "POST", "path": "/v1/x", "body": b"{}"}
    return outcome(lambda: gate.check(proof, at=at, token=token, **(how | changes)))


def proof(gate: Gate, *, at: datetime = AT, **changes: Any) -> str:
    how: dict[str, Any] = {
        "method": "POST",
        "url": f"{URL}/v1/x",
        "body": b"{}",
        "nonce": gate.nonce(at),
        "token": "t",
        "at_s": int(at.timestamp()),
    }
    return dpop.build(KEY, **(how | changes))


def test_a_proof_for_this_request_is_accepted_once() -> None:
    gate = Gate(URL)
    text = proof(gate)
    assert check(gate, text) == "ok"
    assert check(gate, text) == BrokerCode.DPOP_REPLAYED


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"method": "GET"}, BrokerCode.DPOP_METHOD),
        ({"url": f"{URL}/v1/y"}, BrokerCode.DPOP_URL),
        ({"url": "https://elsewhere.example/v1/x"}, BrokerCode.DPOP_URL),
        ({"url": f"{URL}/v1/x?a=b"}, BrokerCode.DPOP_URL),
        ({"body": b"[]"}, BrokerCode.DPOP_BODY),
        ({"token": "other"}, BrokerCode.DPOP_TOKEN),
        ({"token": None}, BrokerCode.DPOP_TOKEN),
        ({"nonce": None}, BrokerCode.DPOP_NONCE),
        ({"nonce": "A" * 43}, BrokerCode.DPOP_NONCE),
        ({"nonce": "?"}, BrokerCode.DPOP_NONCE),
    ],
    ids=str,
)
def test_t10_a_proof_for_another_request_is_refused(changes: dict[str, Any], code: BrokerCode) -> None:
    gate = Gate(URL)
    assert check(gate, proof(gate, **changes)) == code


def test_a_proof_without_a_token_does_not_fit_a_request_with_one_nor_the_reverse() -> None:
    gate = Gate(URL)
    assert check(gate, proof(gate), token=None) == BrokerCode.DPOP_TOKEN
    assert check(gate, proof(gate, token=None), token=None) == "ok"


def test_no_proof_is_missing_and_garbage_is_malformed() -> None:
    gate = Gate(URL)
    assert check(gate, None) == BrokerCode.DPOP_MISSING
    assert check(gate, "x.y.z") == "dpop.malformed"


def test_a_nonce_lives_as_long_as_its_proofs_are_remembered() -> None:
    gate = Gate(URL)
    text = proof(gate)
    assert check(gate, text, at=later(NONCE_LIFE_S)) == "ok"
    assert check(gate, text, at=later(NONCE_LIFE_S + 1)) == BrokerCode.DPOP_NONCE


def test_nonces_of_another_broker_or_an_earlier_life_are_refused() -> None:
    gate, other = Gate(URL), Gate(URL)
    assert check(gate, proof(other)) == BrokerCode.DPOP_NONCE


def test_a_nonce_is_handed_out_for_a_minute() -> None:
    gate = Gate(URL)
    first = gate.nonce(AT)
    assert gate.nonce(later(59)) == first
    assert gate.nonce(later(61)) != first
