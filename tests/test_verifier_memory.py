"""What a verifier remembers: only what it has proved, within bounds, and never another answer than without."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial

from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.collateral import Collateral
from attestation.errors import AttestationError, MalformedEvidence
from attestation.pki import TrustRoots
from attestation.quote import Quote
from attestation.tcb import TcbStates
from attestation.verifier import NOT_COMPARED, Allowance, NotCompared, VerifiedQuote, Verifier, verify_quote
from tests.attacks import ATTACKS
from tests.judging import ACCEPT, moment, outcome
from tests.pki_factory import AT, DAY, REPORT_DATA, Input, World

BY_NAME = {attack.name: attack for attack in ATTACKS}


# -- the verifier with a memory


def _worlds() -> list[Input]:
    """Inputs under one root that share and differ in every cached part."""
    chosen = [
        "nothing is wrong (tdx v4, body 2)",
        "nothing is wrong (tdx v5, body 3)",
        "nothing is wrong (sgx v3, body 1)",
        "nothing is wrong (sgx v5, body 1)",
        "evaluation numbers differ",
        "a debug td (tdx v4, body 2)",
        "a revoked pck",
        "a revoked tcb signer",
        "tcb info signed by somebody else",
        "a leaf signed by somebody else",
        "a qe report signed by somebody else",
        "another attestation key",
        "a quote signed by somebody else (tdx v4, body 2)",
        "microcode of an older level",
        "an older TDX module",
        "a migratable TD",
        "a td that should be started again",
        "the crl of another ca",
    ]
    return [BY_NAME[name].world().input() for name in chosen]


INPUTS = _worlds()
COLLATERALS = [Collateral.from_json(given.collateral_text) for given in INPUTS]
QUOTES = [Quote.parse(given.raw) for given in INPUTS]
ROOTS = TrustRoots.from_pem(INPUTS[0].root_pem)
SHARED = [Verifier(ROOTS), Verifier(ROOTS, max_sets=1, max_platforms=1, max_findings=1)]

_calls = st.lists(
    st.tuples(
        st.integers(0, len(INPUTS) - 1),  # quote
        st.integers(0, len(INPUTS) - 1),  # collateral
        st.sampled_from([AT, AT, AT - 5 * DAY, AT - 5 * DAY - 1, AT + 20 * DAY, AT + 20 * DAY + 1, 0]),
        st.sampled_from(["up_to_date", "any", "everything"]),
        st.sampled_from([(), ("migratable",)]),
        st.booleans(),  # compare REPORT_DATA
        st.none() | st.integers(0, 632 * 8 - 1),  # flip a bit
    ),
    min_size=1,
    max_size=8,
)


@given(calls=_calls)
@settings(max_examples=60)
def test_a_verifier_answers_as_if_it_remembered_nothing(
    calls: list[tuple[int, int, int, str, tuple[str, ...], bool, int | None]],
) -> None:
    for which, other, at, accept, allow, compare, bit in calls:
        raw = bytearray(INPUTS[which].raw)
        if bit is not None:
            raw[bit // 8] ^= 1 << bit % 8
        try:
            quote = Quote.parse(bytes(raw))
        except MalformedEvidence:
            continue
        question = partial(
            _ask,
            quote,
            COLLATERALS[other],
            REPORT_DATA if compare else NOT_COMPARED,
            moment(at),
            ACCEPT[accept],
            frozenset(Allowance(name) for name in allow),
        )
        expected = _answer(partial(question, None))
        for verifier in SHARED:
            assert _answer(partial(question, verifier)) == expected


def _ask(
    quote: Quote,
    collateral: Collateral,
    report_data: bytes | NotCompared,
    at: datetime,
    accept: TcbStates,
    allow: frozenset[Allowance],
    verifier: Verifier | None,
) -> VerifiedQuote:
    if verifier is None:
        return verify_quote(quote, collateral, report_data=report_data, roots=ROOTS, at=at, accept=accept, allow=allow)
    return verifier.verify(quote, collateral, report_data=report_data, at=at, accept=accept, allow=allow)


def _answer(ask: Callable[[], VerifiedQuote]) -> object:
    """Everything that an answer says."""
    try:
        verified = ask()
    except AttestationError as error:
        return error.code, error.detail, getattr(error, "checks", ())
    return (
        verified.checks,
        verified.tcb_status,
        verified.platform_tcb_status,
        verified.module_tcb_status,
        verified.advisory_ids,
        verified.tcb_date,
        verified.pck,
        verified.valid_until,
        verified.root_sha256,
        verified.collateral_digest,
        verified.allowances_used,
        verified.verified_at,
        verified.compared,
    )


def test_a_verifier_remembers_nothing_that_failed() -> None:
    verifier = Verifier(ROOTS)
    for quote, asked, collateral in zip(QUOTES, INPUTS, COLLATERALS, strict=True):

        def ask(quote: Quote = quote, at: float = asked.at, collateral: Collateral = collateral) -> VerifiedQuote:
            return verifier.verify(quote, collateral, report_data=REPORT_DATA, at=moment(at))

        first = outcome(ask)
        before = len(verifier._cases), len(verifier._platforms)
        assert outcome(ask) == first
        if first != "ok":
            assert (len(verifier._cases), len(verifier._platforms)) == before
    verifier = Verifier(ROOTS)
    forged = BY_NAME["a leaf signed by somebody else"].world().input()
    for _ in range(3):
        outcome(
            lambda: verifier.verify(
                Quote.parse(forged.raw),
                Collateral.from_json(forged.collateral_text),
                report_data=REPORT_DATA,
                at=moment(AT),
            )
        )
    assert len(verifier._chains) == len(verifier._platforms) == len(verifier._cases) == 0


def test_claims_that_nobody_signed_are_not_remembered() -> None:
    """Whoever has seen one quote can put any body before what vouches for its key: that must drive nothing out."""
    verifier = Verifier(ROOTS)
    given = World().input()
    collateral = Collateral.from_json(given.collateral_text)
    for svn in range(20):
        quote = Quote.parse(given.raw[:63] + bytes([svn]) + given.raw[64:])  # of TEE_TCB_SVN, and no level asks for it
        asked = partial(verifier.verify, quote, collateral, report_data=NOT_COMPARED, at=moment(AT))
        assert outcome(asked) == ("quote.signature_invalid" if svn else "ok")
    assert len(verifier._cases) == 1


def test_what_a_verifier_remembers_has_a_bound() -> None:
    verifier = Verifier(ROOTS, max_sets=2, max_platforms=3, max_findings=4)
    for at in range(6):
        world = World()
        world.auth_data = bytes([at]) * 32
        world.tcb_info["tcbEvaluationDataNumber"] = world.qe_identity["tcbEvaluationDataNumber"] = 20 + at
        given = world.input()
        quote, collateral = Quote.parse(given.raw), Collateral.from_json(given.collateral_text)
        assert (
            verifier.verify(quote, collateral, report_data=REPORT_DATA, at=moment(AT)).tcb_evaluation_number == 20 + at
        )
    assert (len(verifier._sets), len(verifier._platforms), len(verifier._cases)) == (2, 2, 2)


def test_what_rests_on_a_collateral_set_is_forgotten_with_it() -> None:
    """A set weighs as much as a hundred findings, and each day brings a new one: findings must not keep them all."""
    verifier = Verifier(ROOTS, max_sets=2, max_platforms=100, max_findings=100)
    for number in (1, 2, 1, 3):
        for svn in (3, 4):
            world = World()
            world.tcb_info["tcbEvaluationDataNumber"] = number
            world.td["tee_tcb_svn"] = bytes([5, 1, svn]) + bytes(13)
            given = world.input()
            quote, collateral = Quote.parse(given.raw), Collateral.from_json(given.collateral_text)
            verified = verifier.verify(quote, collateral, report_data=REPORT_DATA, at=moment(AT))
            assert verified.tcb_evaluation_number == number
    kept = {platform[0].collateral.digest for platform in verifier._platforms._found.values()}
    assert kept == set(verifier._sets._found)
    assert {case.endorsements.collateral.digest for case in verifier._cases._found.values()} == kept
    assert (len(kept), len(verifier._cases)) == (2, 4)


def test_one_set_has_many_findings_up_to_their_bound() -> None:
    verifier = Verifier(ROOTS, max_sets=1, max_platforms=1, max_findings=4)
    for svn in range(3, 10):
        world = World()
        world.td["tee_tcb_svn"] = bytes([5, 1, svn]) + bytes(13)
        given = world.input()
        quote, collateral = Quote.parse(given.raw), Collateral.from_json(given.collateral_text)
        verifier.verify(quote, collateral, report_data=REPORT_DATA, at=moment(AT))
    assert (len(verifier._sets), len(verifier._platforms), len(verifier._cases)) == (1, 1, 4)


def test_an_attestation_key_is_remembered_for_one_kind_of_tee() -> None:
    """The same key, chain and QE report under an SGX body: what TDX collateral proved of it is worth nothing there."""
    tdx, sgx = World("tdx", 5, 3).input(), World("sgx", 5, 1).input()
    assert Quote.parse(tdx.raw).certified == Quote.parse(sgx.raw).certified
    verifier, collateral = Verifier(ROOTS), Collateral.from_json(tdx.collateral_text)
    for asked, expected in ((tdx, "ok"), (sgx, "collateral.tee_mismatch"), (tdx, "ok")):

        def ask(raw: bytes = asked.raw) -> VerifiedQuote:
            return verifier.verify(Quote.parse(raw), collateral, report_data=REPORT_DATA, at=moment(AT))

        assert outcome(ask) == expected


def test_threads_may_share_a_verifier() -> None:
    verifier = Verifier(ROOTS, max_sets=2, max_platforms=2, max_findings=2)

    def ask(at: int) -> bool:
        which = at % len(INPUTS)
        given, quote, collateral = INPUTS[which], QUOTES[which], COLLATERALS[which]
        found = outcome(lambda: verifier.verify(quote, collateral, report_data=REPORT_DATA, at=moment(given.at)))
        return found == outcome(
            lambda: verify_quote(quote, collateral, report_data=REPORT_DATA, roots=ROOTS, at=moment(given.at))
        )

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(ask, range(120)))
