"""verify_quote and Verifier: attacks refused by name, refusals that explain themselves, caches that change nothing."""

import copy
import importlib
import pickle
from datetime import timedelta, timezone
from operator import attrgetter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.chains import judge_pck_chain, root_checks
from attestation.checks import CHAIN_SIGNATURES, STEPS
from attestation.collateral import Collateral
from attestation.errors import Code, MalformedEvidence, VerificationFailed
from attestation.pki import TrustRoots
from attestation.quote import Quote
from attestation.tcb import ANY_TCB, UP_TO_DATE, TcbStatus
from attestation.verifier import NOT_COMPARED, Allowance, VerifiedQuote, Verifier, verify_quote
from tests.attack_table import TDX5, Attack, bits
from tests.attacks import ATTACKS
from tests.judging import judge, moment, outcome
from tests.mutants import MODULES
from tests.pki_factory import AT, DAY, OLD_SVNS, REPORT_DATA, Input, World, isv_level
from tests.probes import PROBES, answer

BY_NAME = {attack.name: attack for attack in ATTACKS}


def refusal(world: World) -> VerificationFailed:
    with pytest.raises(VerificationFailed) as caught:
        judge(world.input())
    return caught.value


# -- attacks


@pytest.mark.parametrize("attack", ATTACKS, ids=attrgetter("name"))
def test_every_attack_ends_as_it_says(attack: Attack) -> None:
    given = attack.world().input()
    assert outcome(lambda: judge(given)) == attack.code
    if attack.code != "ok" and attack.code != "quote.debug":
        with pytest.raises(VerificationFailed) as caught:
            judge(given)
        failed = [check for check in caught.value.checks if not check.ok]
        assert failed[0].code == caught.value.code
        assert list(caught.value.checks) == sorted(caught.value.checks, key=lambda check: STEPS[check.name].position)


@pytest.mark.parametrize("title", PROBES)
def test_every_probe_is_answered_rightly(title: str) -> None:
    ask, right = PROBES[title]
    assert answer(ask, {name: importlib.import_module(f"attestation.{name}") for name in MODULES}) == right


def test_every_code_of_the_verifier_has_an_attack() -> None:
    named = {attack.code for attack in ATTACKS} | {right for _, right in PROBES.values()}
    silent = {Code.BINDING_NOT_COMPARED, Code.COLLATERAL_EVALUATION}  # warnings, tested below
    assert {step.code for step in STEPS.values()} - silent <= named


# -- what a refusal says


def test_a_refusal_lists_every_check_that_could_run() -> None:
    world = World()
    world.report_data = b"\x09" * 64
    world.at = AT + 26 * DAY
    world.qe["isv_prod_id"] = 1
    world.td["td_attributes"] = bits(29)
    failed = {str(check.code) for check in refusal(world).checks if not check.ok}
    assert failed == {
        "crl.expired",
        "collateral.expired",
        "binding.report_data_mismatch",
        "qe.product_mismatch",
        "quote.sept_ve_disable_clear",
        "quote.migratable",
    }


def test_a_refusal_says_which_svn_is_short_by_how_much_and_who_can_help() -> None:
    world = World()
    world.sgx.svns = OLD_SVNS
    world.td["tee_tcb_svn"] = bytes([4, 1, 3]) + bytes(13)
    world.qe["isv_svn"] = 3
    check = next(check for check in refusal(world).checks if check.code is Code.TCB_NOT_ACCEPTED)
    assert {(item.component, item.label, item.category, item.have, item.need) for item in check.short} == {
        ("sgxtcbcomponents[0]", "Early Microcode Update", "BIOS", 2, 3),
        ("sgxtcbcomponents[7]", "SEAMLDR ACM", "OS/VMM", 3, 5),
        ("tdx_module.isvsvn", "TDX Module", "OS/VMM", 4, 5),
        ("qe.isvsvn", "Quoting Enclave", "OS/VMM", 3, 4),
    }
    assert "SEAMLDR ACM, OS/VMM) has 3, needs 5" in check.detail
    assert "BIOS (Early Microcode Update)" in check.remedy
    assert "INTEL-SA-00001" in check.remedy


def test_below_every_level_the_nearest_one_is_named() -> None:
    world = World()
    world.sgx.pcesvn = 10
    check = next(check for check in refusal(world).checks if check.code is Code.TCB_NO_MATCH)
    assert [(item.component, item.have, item.need) for item in check.short] == [("pcesvn", 10, 11)]


@pytest.mark.parametrize(
    ("status", "word"),
    [
        ("SWHardeningNeeded", "hardened"),
        ("ConfigurationNeeded", "settings"),
        ("OutOfDateConfigurationNeeded", "settings"),
    ],
)
def test_where_no_svn_is_short_the_remedy_says_so(status: str, word: str) -> None:
    world = World()
    world.tcb_info["tcbLevels"][0]["tcbStatus"] = status
    check = next(check for check in refusal(world).checks if check.code is Code.TCB_NOT_ACCEPTED)
    assert check.short == ()
    assert word in check.remedy
    assert status in check.remedy


def test_a_td_that_only_has_to_be_restarted_is_told_so() -> None:
    world = BY_NAME["a td that should be started again"].world()
    check = next(check for check in refusal(world).checks if check.code is Code.TCB_NOT_ACCEPTED)
    assert "Restart the trust domain" in check.remedy


def test_a_chain_of_another_root_shows_both_fingerprints() -> None:
    error = refusal(BY_NAME["another root of the same name"].world())
    given = World().input()
    assert TrustRoots.from_pem(given.root_pem).sha256[0] in error.detail


def test_the_cheap_question_about_a_chain_refuses_what_the_whole_judgement_refuses_and_nothing_else() -> None:
    refused = set()
    for attack in [attack for attack in ATTACKS if attack.code.startswith("chain.")]:
        given = attack.world().input()
        quote, roots = Quote.parse(given.raw), TrustRoots.from_pem(given.root_pem)
        cheap, whole = root_checks(quote, roots), judge_pck_chain(quote, roots).checks
        assert set(cheap) <= set(whole)
        assert CHAIN_SIGNATURES.code not in {check.code for check in cheap}
        refused |= {str(check.code) for check in cheap if not check.ok}
    assert "chain.root_not_trusted" in refused
    good = World().input()
    assert all(check.ok for check in root_checks(Quote.parse(good.raw), TrustRoots.from_pem(good.root_pem)))


def test_a_good_answer_has_no_failed_check_and_every_warning() -> None:
    world = World()
    world.report_data = None
    world.qe_identity["tcbEvaluationDataNumber"] = 18
    world.td["td_attributes"] = bits()
    world.allow = ("sept_ve_disable_clear", "migratable")
    verified = judge(world.input())
    assert all(check.ok for check in verified.checks)
    assert {str(check.code) for check in verified.checks if check.warning} == {
        "binding.not_compared",
        "collateral.evaluation_numbers_differ",
        "quote.sept_ve_disable_clear",
    }
    assert verified.allowances_used == {Allowance.SEPT_VE_DISABLE_CLEAR}


# -- what is verified


def test_a_verified_quote_says_what_it_rests_on() -> None:
    given = World().input()
    verified = judge(given)
    assert verified.genuine
    assert verified.quote.report_data == REPORT_DATA == verified.compared
    assert verified.tcb_status is TcbStatus.UP_TO_DATE is verified.qe_tcb_status is verified.module_tcb_status
    assert (verified.tcb_evaluation_number, verified.qe_evaluation_number) == (19, 19)
    assert verified.fmspc.hex() == "90c06f000000"
    assert (verified.ppid, verified.pck.piid, verified.pck.ca) == (b"P" * 16, b"I" * 16, "platform")
    assert (verified.pck.dynamic_platform, verified.pck.cached_keys, verified.pck.smt_enabled) == (True, False, True)
    assert verified.valid_until == moment(AT + 20 * DAY)
    assert verified.verified_at == moment(AT)
    assert verified.root_sha256 == TrustRoots.from_pem(given.root_pem).sha256[0]
    assert verified.collateral_digest == Collateral.from_json(given.collateral_text).digest
    assert verified.tcb_date == moment(1747180800)


def test_advisories_come_from_platform_quoting_enclave_and_module_each_once() -> None:
    world = World()
    world.accept = "any"
    world.sgx.svns = OLD_SVNS
    world.qe["isv_svn"] = 3
    world.td["tee_tcb_svn"] = bytes([4, 1, 3]) + bytes(13)
    verified = judge(world.input())
    assert verified.advisory_ids == ("INTEL-SA-00001", "INTEL-SA-00002", "INTEL-SA-00009")
    assert verified.tcb_status is TcbStatus.OUT_OF_DATE
    assert verified.tcb_date == moment(1691539200)


def test_a_verified_quote_can_be_neither_copied_nor_pickled() -> None:
    verified = judge(World().input())
    for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError):
            attempt(verified)


def test_a_time_in_another_zone_is_the_same_time() -> None:
    given = World().input()
    zone = timezone(timedelta(hours=9))
    quote, collateral = Quote.parse(given.raw), Collateral.from_json(given.collateral_text)
    roots = TrustRoots.from_pem(given.root_pem)
    verified = verify_quote(quote, collateral, report_data=REPORT_DATA, roots=roots, at=moment(AT).astimezone(zone))
    assert verified.verified_at == moment(AT)
    assert verified.verified_at.utcoffset() == timedelta(0)


def test_a_tampered_signature_that_is_only_mirrored_still_verifies() -> None:
    """ECDSA signatures have a twin (n − s). Nothing may therefore take a quote's hash for its identity."""
    given = World().input()
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    at = 632 + 4 + 32
    s = int.from_bytes(given.raw[at : at + 32], "big")
    raw = given.raw[:at] + (order - s).to_bytes(32, "big") + given.raw[at + 32 :]
    assert raw != given.raw
    given.raw = raw
    assert judge(given).genuine


# -- every bit

SIGNED_BITS = 632 * 8


@given(bit=st.integers(0, SIGNED_BITS - 1))
@settings(max_examples=150)
def test_flipping_any_signed_bit_is_refused(bit: int) -> None:
    assert _flipped(World().input(), bit) != "ok"


def _flipped(given: Input, bit: int) -> str:
    raw = bytearray(given.raw)
    raw[bit // 8] ^= 1 << bit % 8
    given.raw = bytes(raw)
    return outcome(lambda: judge(given))


def _walk(given: Input, first: int, last: int, stride: int) -> list[int]:
    """The flipped bits that were not refused, between two bytes."""
    verifier = Verifier(TrustRoots.from_pem(given.root_pem))
    collateral = Collateral.from_json(given.collateral_text)
    accepted = []
    for bit in range(first * 8, last * 8, stride):
        raw = bytearray(given.raw)
        raw[bit // 8] ^= 1 << bit % 8

        def ask(changed: bytes = bytes(raw)) -> VerifiedQuote:
            quote = Quote.parse(changed)
            return verifier.verify(quote, collateral, report_data=NOT_COMPARED, at=moment(given.at), accept=ANY_TCB)

        if outcome(ask) == "ok":
            accepted.append(bit)
    return accepted


@pytest.mark.parametrize("base", [("tdx", 4, 2), ("tdx", 5, 3), ("tdx", 5, 4), ("sgx", 3, 1)])
def test_one_bit_in_each_signed_byte_is_refused(base: tuple[str, int, int]) -> None:
    """Header, body, attestation key, QE report, its signature and auth data; the quote's own signature as well."""
    given = World(*base).input()
    size = len(Quote.parse(given.raw).signed)
    end = size + 4 + 64 + 64 + (6 if base[1] > 3 else 0) + 384 + 64 + 2 + 32
    assert _walk(given, 0, end, 9) == []


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("base", [("tdx", 4, 2), ("tdx", 5, 3)])
def test_every_single_bit_of_the_signed_regions_is_refused(base: tuple[str, int, int]) -> None:
    given = World(*base).input()
    size = len(Quote.parse(given.raw).signed)
    assert _walk(given, 0, size + 4 + 64 + 64 + 6 + 384 + 64 + 2 + 32, 1) == []


def test_no_byte_of_the_pck_chain_can_change() -> None:
    """Base64 letters, all of them, leaf and CA and root; line ends are not signed and may."""
    given = World().input()
    at = given.raw.index(b"-----BEGIN")
    verifier = Verifier(TrustRoots.from_pem(given.root_pem))
    collateral = Collateral.from_json(given.collateral_text)
    accepted = []
    for position in range(at, len(given.raw) - 1, 7):
        if given.raw[position] in b"\n=":
            continue
        raw = bytearray(given.raw)
        raw[position] = ord("B") if raw[position] == ord("A") else ord("A")

        def ask(changed: bytes = bytes(raw)) -> VerifiedQuote:
            return verifier.verify(Quote.parse(changed), collateral, report_data=NOT_COMPARED, at=moment(given.at))

        if outcome(ask) == "ok":
            accepted.append((position, given.raw[position - 3 : position + 3]))
    # the last letter before "=" has bits that stand for nothing
    assert [where for where in accepted if b"=" not in given.raw[where[0] : where[0] + 3]] == []


# -- properties


@given(text=st.one_of(st.text(max_size=300), st.binary(max_size=300)))
@settings(max_examples=200)
def test_any_text_as_collateral_is_a_value_or_a_coded_error(text: str | bytes) -> None:
    with pytest.raises(MalformedEvidence):
        Collateral.from_json(text)


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
_places = st.sampled_from(
    [
        ("tcb_info", "id"),
        ("tcb_info", "issueDate"),
        ("tcb_info", "fmspc"),
        ("tcb_info", "tdxModule"),
        ("tcb_info", "tdxModuleIdentities"),
        ("tcb_info", "tcbLevels"),
        ("tcb_info", "tcbLevels", 0),
        ("tcb_info", "tcbLevels", 0, "tcb"),
        ("tcb_info", "tcbLevels", 0, "tcb", "sgxtcbcomponents"),
        ("tcb_info", "tcbLevels", 0, "tcb", "sgxtcbcomponents", 3),
        ("tcb_info", "tcbLevels", 0, "tcb", "sgxtcbcomponents", 3, "svn"),
        ("tcb_info", "tcbLevels", 0, "tcb", "pcesvn"),
        ("tcb_info", "tcbLevels", 0, "tcbStatus"),
        ("tcb_info", "tcbLevels", 0, "advisoryIDs"),
        ("tcb_info", "tdxModuleIdentities", 0),
        ("tcb_info", "tdxModuleIdentities", 0, "id"),
        ("tcb_info", "tdxModuleIdentities", 0, "tcbLevels", 0, "tcb"),
        ("qe_identity", "id"),
        ("qe_identity", "mrsigner"),
        ("qe_identity", "attributes"),
        ("qe_identity", "tcbLevels", 0, "tcb", "isvsvn"),
        ("qe_identity", "tcbLevels"),
    ]
)


@given(place=_places, value=_json)
@settings(max_examples=250)
def test_any_value_anywhere_in_a_signed_document_is_judged_or_refused_with_a_code(
    place: tuple[str | int, ...], value: object
) -> None:
    """The worst case: it is even signed. Nothing without a code may escape."""
    world = World()
    document = getattr(world, str(place[0]))
    for step in place[1:-1]:
        document = document[step]
    document[place[-1]] = value
    try:
        given = world.input()
    except UnicodeEncodeError:
        return
    assert outcome(lambda: judge(given)) in {str(code) for code in Code} | {"ok"}


@given(data=st.data())
@settings(max_examples=150)
def test_any_change_of_the_certificates_is_refused_with_a_code(data: st.DataObject) -> None:
    world = World()
    which = data.draw(st.sampled_from(["leaf", "ca", "root", "signer"]))
    raw = bytearray(world.cert(which))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    changed = bytes(raw)
    good = world.cert(which)
    world.certs[which].tweak = lambda _: changed
    world.trusted = ["good root"]
    world.certs["good root"] = World().certs["root"]
    assert (outcome(lambda: judge(world.input())) == "ok") is (changed == good)


@given(data=st.data())
@settings(max_examples=100)
def test_any_change_of_a_crl_is_refused_with_a_code(data: st.DataObject) -> None:
    world = World()
    member = data.draw(st.sampled_from(["pck_crl", "root_ca_crl"]))
    world.pck_crl.revoked = [5, 6]
    good = bytes.fromhex(world.collateral()[member])
    raw = bytearray(good)
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    world.raw[member] = bytes(raw).hex()
    assert (outcome(lambda: judge(world.input())) == "ok") is (bytes(raw) == good)


def test_roots_are_compared_by_key() -> None:
    """Another edition of the root certificate is the same root; another key of the same name is not."""
    world = BY_NAME["another edition of the root"].world()
    world.trusted = ["edition"]
    verified = judge(world.input())
    assert verified.root_sha256 == TrustRoots.from_pem(world.input().root_pem).sha256[0]


def test_revoked_is_never_accepted_not_even_when_asked() -> None:
    world = World(*TDX5)
    world.accept = "everything"
    world.tcb_info["tdxModuleIdentities"][0]["tcbLevels"] = [isv_level(1, "Revoked")]
    error = refusal(world)
    assert error.code is Code.TCB_REVOKED
    assert TcbStatus.REVOKED not in ANY_TCB | UP_TO_DATE
