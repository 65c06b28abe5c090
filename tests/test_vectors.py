"""Truth: real Intel-signed quotes, and every attack, judged by us and by another verifier.

Each verdict is equal, or differs for a reason in docs/differences.md; and every reason there is really seen.
"""

import json
from collections.abc import Iterator
from functools import cache
from operator import attrgetter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.chains import claimed_platform
from attestation.collateral import Collateral
from attestation.errors import AttestationError
from attestation.pki import TrustRoots
from attestation.quote import Quote
from attestation.tcb import ANY_TCB, ISV_STATES, PLATFORM_STATES, TcbStatus
from attestation.verifier import NOT_COMPARED, Verifier, verify_quote
from tests import vectors_real
from tests.attacks import ATTACKS
from tests.differences import RULES, documented, explained_by
from tests.judging import moment
from tests.pki_factory import SVNS, TDX_SVNS, Input, World, isv_level, level

Answer = tuple[str, frozenset[str]]
"""Status and advisories; or a code, and nothing."""


def ours(raw: bytes, collateral: str, now: float, roots: TrustRoots, remembering: Verifier | None = None) -> Answer:
    try:
        quote, given, at = Quote.parse(raw), Collateral.from_json(collateral), moment(now)
        if remembering is None:
            found = verify_quote(quote, given, report_data=NOT_COMPARED, roots=roots, at=at, accept=ANY_TCB)
        else:
            found = remembering.verify(quote, given, report_data=NOT_COMPARED, at=at, accept=ANY_TCB)
    except AttestationError as error:
        return str(error.code), frozenset()
    return str(found.tcb_status), frozenset(found.advisory_ids)


def recorded(expected: dict[str, Any]) -> Answer | None:
    """What the other verifier said; None for a refusal."""
    if expected["verdict"] != "verified":
        return None
    return expected["status"], frozenset(expected["advisory_ids"])


def compare(question: str, mine: Answer, theirs: Answer | None) -> str | None:
    """None when both agree, else the id of the difference; fails when there is no name for it."""
    refused = "." in mine[0]
    if (theirs is None and refused) or theirs == mine:
        return None
    found = explained_by(question, mine[0] if refused else "ok")
    assert found is not None, f"{question}: we say {mine}, the other verifier says {theirs}"
    return found


# -- real quotes


@vectors_real.needed
def test_every_recorded_case_ends_as_recorded() -> None:
    cases = vectors_real.cases()
    verifier = Verifier(TrustRoots.intel())
    assert len(cases) >= 200
    for case in cases:
        text = vectors_real.read(case.collateral).decode()
        mine = ours(case.raw, text, case.now, TrustRoots.intel())
        assert ours(case.raw, text, case.now, TrustRoots.intel(), verifier) == mine
        assert compare(case.id, mine, case.verdict) is None


@vectors_real.needed
def test_real_platforms_say_what_the_index_says_of_them() -> None:
    seen = 0
    for vector in vectors_real.index():
        if vector["class"] != "verified":
            continue
        facts = claimed_platform(Quote.parse(vectors_real.read(vector["file"])))
        assert (facts.fmspc.hex(), facts.ca) == (vector["fmspc"], vector["ca"])
        seen += 1
    assert seen > 100


def _mutated(vector: dict[str, Any]) -> Iterator[tuple[str, bytes, Answer | None]]:
    raw = vectors_real.read(vector["file"])
    cuts = {
        "empty": b"",
        "header_only": raw[:48],
        "truncated_to_half": raw[: len(raw) // 2],
        "truncated_by_one_from_quote_end": raw[: vector["quote_length"] - 1],
        "100_trailing_ff": raw + b"\xff" * 100,
    }
    for mutation in vector["mutations"]:
        changed = cuts.get(mutation["field"])
        if changed is None:
            flipped = bytearray(raw)
            flipped[mutation["offset"]] ^= mutation["xor"]
            changed = bytes(flipped)
        yield f"{vector['id']} {mutation['field']}", changed, recorded(mutation["expected"])


def _varied(members: dict[str, str], change: str) -> dict[str, str]:
    """The collateral of a variation, made from the words that describe it."""
    chain = members["tcb_info_issuer_chain"].split("-----END CERTIFICATE-----")
    flipped = {
        name: f"{int(members[name][:2], 16) ^ 1:02x}" + members[name][2:]
        for name in ("tcb_info_signature", "qe_identity_signature")
    }
    spaced = json.dumps(json.loads(members["tcb_info"]), separators=(",", ": "))
    changes = {
        "tcb_info_signature first byte flipped": {"tcb_info_signature": flipped["tcb_info_signature"]},
        "qe_identity_signature first byte flipped": {"qe_identity_signature": flipped["qe_identity_signature"]},
        "tcb_info text re-serialised with a space after each colon": {"tcb_info": spaced},
        "pck_crl replaced by root_ca_crl": {"pck_crl": members["root_ca_crl"]},
        "root_ca_crl replaced by pck_crl": {"root_ca_crl": members["pck_crl"]},
        "pck_crl empty": {"pck_crl": ""},
        "tcb_info_issuer_chain without the root certificate": {
            "tcb_info_issuer_chain": chain[0] + "-----END CERTIFICATE-----\n"
        },
        "tcb_info_issuer_chain is the root certificate only": {
            "tcb_info_issuer_chain": chain[1].lstrip() + "-----END CERTIFICATE-----\n"
        },
    }
    if change.startswith("now: "):
        return members
    if change.startswith("collateral of "):
        other: dict[str, str] = json.loads(vectors_real.read(change.rpartition(": ")[2]))
        return other
    return members | changes[change]


@cache
def seen_in_vectors() -> frozenset[str]:
    """The differences that mutations and variations of real quotes show."""
    roots, seen = TrustRoots.intel(), set()
    for vector in vectors_real.varied():
        raw, case = vectors_real.read(vector["file"]), vector["cases"][0]
        text = vectors_real.read(case["collateral"]).decode()
        for question, changed, theirs in _mutated(vector):
            seen.add(compare(question, ours(changed, text, case["now"], roots), theirs))
        for variation in vector["collateral_variations"]:
            given = json.dumps(_varied(json.loads(text), variation["change"]))
            mine = ours(raw, given, variation["now"], roots)
            seen.add(compare(f"{vector['id']} {variation['change']}", mine, recorded(variation["expected"])))
    return frozenset(found for found in seen if found)


@vectors_real.needed
def test_every_mutation_and_variation_ends_as_recorded_or_differs_for_a_documented_reason() -> None:
    vectors = vectors_real.varied()
    assert sum(len(vector["mutations"]) for vector in vectors) >= 90
    assert sum(len(vector["collateral_variations"]) for vector in vectors) >= 50
    assert seen_in_vectors() == {
        "trailing-bytes",
        "length-slack",
        "outer-type",
        "chain-length",
        "crl-last-second",
    }


# -- the same questions to the other verifier


def other(world: World, given: Input) -> Answer | None:
    """What `dcap-qvl` says under the world's own root."""
    dcap_qvl = pytest.importorskip("dcap_qvl")
    try:
        collateral = dcap_qvl.QuoteCollateralV3.from_json(given.collateral_text)
        found = dcap_qvl.verify_with_root_ca(given.raw, collateral, world.cert(world.trusted[0]), int(given.at))
    except (ValueError, OverflowError):
        return None
    return str(found.status), frozenset(found.advisory_ids)


def both(world: World, question: str) -> str | None:
    given = world.input()
    mine = ours(given.raw, given.collateral_text, given.at, TrustRoots.from_pem(given.root_pem))
    return compare(question, mine, other(world, given))


@cache
def seen_in_attacks() -> frozenset[str]:
    return frozenset(found for attack in ATTACKS if (found := both(attack.world(), attack.name)))


def test_every_attack_is_judged_alike_or_differs_for_a_documented_reason() -> None:
    assert seen_in_attacks()


@pytest.mark.parametrize("platform", sorted(PLATFORM_STATES), ids=attrgetter("value"))
def test_merged_states_are_those_of_the_other_verifier(platform: TcbStatus) -> None:
    for module in ISV_STATES:
        for qe in ISV_STATES:
            world = World()
            world.tcb_info["tcbLevels"][0]["tcbStatus"] = str(platform)
            world.tcb_info["tdxModuleIdentities"][0]["tcbLevels"][0]["tcbStatus"] = str(module)
            world.qe_identity["tcbLevels"][0]["tcbStatus"] = str(qe)
            assert both(world, f"{platform}, {module}, {qe}") is None


@pytest.mark.parametrize("launch", sorted(PLATFORM_STATES), ids=attrgetter("value"))
def test_relaunch_states_are_those_of_the_other_verifier(launch: TcbStatus) -> None:
    for now in PLATFORM_STATES:
        world = World("tdx", 5, 3)
        world.tcb_info["tcbLevels"] = [
            level(str(now), SVNS, 13, [0, 0, 3, *[0] * 13]),
            level(str(launch), SVNS, 13, [0, 0, 1, *[0] * 13]),
        ]
        world.td["tee_tcb_svn"] = bytes([5, 1, 1]) + bytes(13)
        question = f"{launch} at launch, {'revoked' if now is TcbStatus.REVOKED else now} now"
        assert both(world, question) in (None, "revoked-now")


_SELDOM_BAD = [TcbStatus.UP_TO_DATE, TcbStatus.UP_TO_DATE, TcbStatus.UP_TO_DATE, TcbStatus.OUT_OF_DATE]
_near = st.dictionaries(st.integers(0, 15), st.sampled_from([-1, 1]), max_size=1)


def _shifted(svns: list[int], by: dict[int, int]) -> list[int]:
    return [max(0, svn + by.get(at, 0)) for at, svn in enumerate(svns)]


@given(
    levels=st.lists(
        st.tuples(st.sampled_from(sorted(PLATFORM_STATES)), _near, st.integers(12, 14), _near), min_size=2, max_size=5
    ),
    modules=st.lists(st.tuples(st.integers(0, 5), st.sampled_from(_SELDOM_BAD)), min_size=1, max_size=4),
    qe=st.lists(st.tuples(st.integers(2, 5), st.sampled_from(_SELDOM_BAD)), min_size=1, max_size=3),
    svns=st.tuples(st.integers(3, 7), st.sampled_from([0, 1, 1]), st.integers(2, 4), st.integers(3, 7)),
    platform=_near,
)
@settings(max_examples=60)
def test_levels_drawn_at_random_are_judged_alike(
    levels: list[tuple[TcbStatus, dict[int, int], int, dict[int, int]]],
    modules: list[tuple[int, TcbStatus]],
    qe: list[tuple[int, TcbStatus]],
    svns: tuple[int, int, int, int],
    platform: dict[int, int],
) -> None:
    """Close to the platform's own SVNs, where it matters; in falling order, as the other verifier takes the first."""
    world = World("tdx", 5, 3)
    found = {
        (tuple(_shifted(SVNS, sgx)), pce, tuple(_shifted(TDX_SVNS, tdx))): status for status, sgx, pce, tdx in levels
    }
    found[(0,) * 16, 0, (0,) * 16] = TcbStatus.OUT_OF_DATE
    world.tcb_info["tcbLevels"] = [
        level(str(found[key]), list(key[0]), key[1], list(key[2])) for key in sorted(found, reverse=True)
    ]
    listed = [isv_level(svn, str(status)) for svn, status in sorted(dict(modules).items(), reverse=True)]
    world.tcb_info["tdxModuleIdentities"][0]["tcbLevels"] = listed
    world.qe_identity["tcbLevels"] = [
        isv_level(svn, str(state)) for svn, state in sorted(dict(qe).items(), reverse=True)
    ]
    world.sgx.svns = _shifted(SVNS, platform)
    world.td["tee_tcb_svn"] = bytes([svns[0], svns[1], svns[2]]) + bytes(13)
    world.td["tee_tcb_svn_2"] = bytes([svns[3], 1, 3]) + bytes(13)
    assert both(world, "levels at random, perhaps revoked now") in (None, "revoked-now")


# -- the document


def test_the_document_names_exactly_the_differences_that_the_tests_know() -> None:
    assert documented() == {rule.id for rule in RULES}


@vectors_real.needed
def test_every_documented_difference_is_really_seen() -> None:
    assert seen_in_vectors() | seen_in_attacks() == documented()
