"""Verification against the floor (one signature check) and against an independent verifier, on the same quotes."""

from collections.abc import Callable, Iterator
from statistics import median

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from attestation.collateral import Collateral
from attestation.quote import Quote
from attestation.tcb import ANY_TCB
from attestation.verifier import Allowance, Verifier, verify_quote
from benchmarks import corpus
from benchmarks.corpus import Sample
from benchmarks.harness import PartMissing, Row, faster_row, ratio_row, take_turns

ROUNDS = 15
BURST = 30
ALL = frozenset(Allowance)


def one_signature(sample: Sample) -> Callable[[], object]:
    """One ECDSA P-256 verification of the quote's own signature, with the key already loaded."""
    point = b"\x04" + sample.quote.attestation_key
    key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
    raw, signed = sample.quote.signature, sample.quote.signed
    signature = encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))
    algorithm = ec.ECDSA(hashes.SHA256())
    return lambda: key.verify(signature, signed, algorithm)


def known(sample: Sample) -> Callable[[], object]:
    """A verifier that has seen this platform and key before; parsing the quote is part of it."""
    collateral, verifier, expected = (
        Collateral.from_json(sample.collateral_json),
        Verifier(sample.roots),
        sample.report_data,
    )

    def call() -> object:
        quote = Quote.parse(sample.raw)
        return verifier.verify(quote, collateral, report_data=expected, at=sample.at, accept=ANY_TCB, allow=ALL)

    return call


def cold(sample: Sample) -> Callable[[], object]:
    """Nothing remembered: quote and collateral text parsed, every signature checked."""
    return lambda: _verify(sample, Collateral.from_json(sample.collateral_json))


def cold_but_loaded(sample: Sample) -> Callable[[], object]:
    """Nothing remembered, but the nine members of the collateral are there already; what they say is not read yet."""
    collateral = Collateral.from_json(sample.collateral_json)
    return lambda: _verify(sample, collateral)


def _verify(sample: Sample, collateral: Collateral) -> object:
    return verify_quote(
        Quote.parse(sample.raw),
        collateral,
        report_data=sample.report_data,
        roots=sample.roots,
        at=sample.at,
        accept=ANY_TCB,
        allow=ALL,
    )


def rows() -> Iterator[Row]:
    origin, samples = corpus.load()
    yield from _known(origin, samples)
    yield from _new_platform(origin, samples)
    yield from _cold(origin, samples)


def _known(origin: str, samples: list[Sample]) -> Iterator[Row]:
    """Two comparisons, each by turns: with the slow one in between, caches would be cold for the short ones."""
    beside_floor, beside_theirs = [], []
    for sample in samples:
        ours = known(sample)
        beside_floor.append(take_turns({"ours": ours, "floor": one_signature(sample)}, rounds=ROUNDS, burst=BURST))
        beside_theirs.append(take_turns({"ours": ours, "theirs": sample.yardstick()}, rounds=ROUNDS, burst=BURST))
    name = f"known platform and key, {len(samples)} {origin}"
    yield ratio_row(name, *_medians(beside_floor, "floor"), 1.25, against="one ECDSA P-256 verification")
    yield faster_row(name, *_medians(beside_theirs, "theirs"), 8, than="dcap_qvl.verify")


def _medians(taken: list[dict[str, float]], other: str) -> tuple[float, float]:
    return median(one["ours"] for one in taken), median(one[other] for one in taken)


def _new_platform(origin: str, samples: list[Sample]) -> Iterator[Row]:
    """A fresh verifier is shown another platform under the same collateral before each measured call."""
    chosen = corpus.pairs(samples)
    if not chosen:
        raise PartMissing("new platform, known collateral: two platforms under one collateral set")
    ours, theirs = [], []
    for seen, new in chosen:
        taken = take_turns({"theirs": new.yardstick()}, rounds=ROUNDS)
        theirs.append(taken["theirs"])
        ours.append(_after(seen, new))
    name = f"new platform, known collateral, {len(chosen)} pairs of {origin}"
    yield faster_row(name, median(ours), median(theirs), 1, than="dcap_qvl.verify")


def _after(seen: Sample, new: Sample) -> float:
    """Median seconds of verifying `new` with a verifier that has just proved `seen` and nothing else."""
    collateral = Collateral.from_json(new.collateral_json)
    pending: list[Callable[[], object]] = []

    def prepare() -> None:
        verifier = Verifier(seen.roots)
        quote = Quote.parse(seen.raw)
        verifier.verify(quote, collateral, report_data=seen.report_data, at=seen.at, accept=ANY_TCB, allow=ALL)
        pending.append(
            lambda: verifier.verify(
                Quote.parse(new.raw), collateral, report_data=new.report_data, at=new.at, accept=ANY_TCB, allow=ALL
            )
        )

    for _ in range(ROUNDS + 1):
        prepare()
    return take_turns({"ours": lambda: pending.pop()()}, rounds=ROUNDS)["ours"]


def _cold(origin: str, samples: list[Sample]) -> Iterator[Row]:
    """Both from a loaded file, both from its text, and ours from its text against theirs from a loaded one."""
    pairs = {
        "collateral loaded": (cold_but_loaded, Sample.yardstick),
        "collateral as text": (cold, Sample.yardstick_from_text),
        "collateral as text for us alone": (cold, Sample.yardstick),
    }
    for what, (make_ours, make_theirs) in pairs.items():
        ours, theirs = [], []
        for sample in samples:
            both = {"ours": make_ours(sample), "theirs": make_theirs(sample)}
            taken = take_turns(both, rounds=ROUNDS, burst=2)
            ours.append(taken["ours"])
            theirs.append(taken["theirs"])
        name = f"everything cold, {what}, {len(samples)} {origin}"
        yield ratio_row(name, median(ours), median(theirs), 1.6, against="dcap_qvl.verify (stretch 1.3)")
