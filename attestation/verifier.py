"""`verify_quote` and `Verifier`: from claims to a `VerifiedQuote`, or a refusal that lists every check.

Decides nothing by itself but the order and the verdict: it runs the stages (`endorsements`, `chains`, `quoting`,
`appraisal`), adds time, the quote's signature and REPORT_DATA, and makes a VerifiedQuote when nothing failed. What a
verified quote is good for is left to `verdict` and to policies.

    1. `endorse`          collateral signed under the roots, CRLs complete       signer.*, crl.*, collateral.*
    2. `judge_pck_chain`  the chain in the quote ends in the roots               chain.*
    3. `judge_platform`   nothing revoked, PCK → QE → attestation key            chain.revoked, qe.*, collateral.*
    4. `appraise`         DEBUG, ATTRIBUTES, TDX module, TCB state               quote.*, module.*, tcb.*
    5. here               every window open at `at`                              *.expired, *.not_yet_valid
    6. here               attestation key → header and body                      quote.signature_invalid
    7. here               REPORT_DATA                                            binding.*

`Verifier` remembers 1 to 4 under digests of exactly what they depend on, and only when they passed; 5 to 7 happen on
every call. So it answers as `verify_quote` does, faster.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Final, NoReturn, final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from attestation import checks as step
from attestation.appraisal import Allowance, Claims, Findings, TcbState, appraise
from attestation.arguments import (
    NOT_COMPARED,
    NotCompared,
    demand_known,
    demand_quote,
    demand_roots,
    expected_of,
    unix_seconds,
)
from attestation.certificates import ECDSA_SHA256
from attestation.chains import PckChain, judge_pck_chain
from attestation.checks import Check, Ledger, Unmet, in_order
from attestation.collateral import Collateral
from attestation.endorsements import Endorsements, endorse
from attestation.errors import VerificationFailed
from attestation.pck import PckFacts
from attestation.pki import TrustRoots
from attestation.quote import Quote, Tee
from attestation.quoting import Platform, judge_platform
from attestation.recent import Recent
from attestation.tcb import UP_TO_DATE, TcbStates, TcbStatus
from attestation.validity import Window, judge_time

if TYPE_CHECKING:
    from attestation.evidence import Binding

__all__ = ["NOT_COMPARED", "Allowance", "Check", "NotCompared", "VerifiedQuote", "Verifier", "verify_quote"]

NONE: Final[frozenset[Allowance]] = frozenset()
_STATE_ALONE: Final = (step.TCB_REVOKED.name, step.TCB_ACCEPTED.name)


@final
class _Case:
    """All that was found out about one quote's claims, before time, signature and REPORT_DATA."""

    __slots__ = ("_report", "begin", "chain", "end", "endorsements", "findings", "ok", "platform", "windows")

    def __init__(self, endorsements: Endorsements, chain: PckChain, platform: Platform, findings: Findings) -> None:
        self.endorsements = endorsements
        self.chain = chain
        self.platform = platform
        self.findings = findings
        self.windows: tuple[Window, ...] = chain.windows + endorsements.windows
        self.begin = max([window.begin for window in self.windows], default=0)
        self.end = min([window.end for window in self.windows], default=-1)
        self._report: dict[bool, tuple[Check, ...]] = {}
        self.ok = endorsements.ok and chain.ok and platform.ok and findings.ok  # last: here all signatures are checked

    @property
    def evaluation_numbers(self) -> tuple[int, int]:
        """Of TCB info and QE identity. Zero stands for a document that could not be read."""
        tcb_info, identity = self.endorsements.tcb_info, self.endorsements.qe_identity
        return (tcb_info.evaluation_number if tcb_info else 0, identity.evaluation_number if identity else 0)

    @property
    def root_sha256(self) -> str:
        trusted = self.chain.trusted
        return sha256(trusted.der).hexdigest() if trusted else ""

    def stage_checks(self) -> list[Check]:
        stages = (self.chain, self.endorsements, self.platform, self.findings)
        return [check for stage in stages for check in stage.checks]

    def report(self, compared: bool) -> tuple[Check, ...]:
        """Every check of a verified quote, made when somebody asks; the same for all quotes of this case."""
        found = self._report.get(compared)
        if found is None:
            ledger = Ledger()
            judge_time(ledger, self.windows, self.begin)
            ledger.passed(step.QUOTE_SIGNATURE)
            _judge_report_data(ledger, compared, True)
            found = self._report[compared] = in_order([*self.stage_checks(), *ledger.checks])
        return found


@final
@dataclass(frozen=True, slots=True, eq=False, init=False)
class VerifiedQuote:
    """Holding one means verify_quote() accepted it, at `verified_at`, for what REPORT_DATA was compared with.

    It has no constructor: `_Call.conclude` makes it. That guards against mistakes, not against hostile code.
    """

    quote: Quote
    compared: bytes | Binding | NotCompared
    """What REPORT_DATA was compared with. Only a Binding can lead to an admission."""
    verified_at: datetime
    """Aware, UTC."""
    pck: PckFacts
    """What Intel certifies about the platform."""
    _state: TcbState = field(repr=False)
    _case: _Case = field(repr=False)

    def __init__(self, *_: object, **__: object) -> None:
        raise TypeError("a VerifiedQuote comes from verify_quote() only")

    def __reduce__(self) -> NoReturn:
        raise TypeError("a VerifiedQuote cannot be copied or pickled; verify again")

    @property
    def genuine(self) -> bool:
        """Always True: what is not genuine is never a VerifiedQuote."""
        return True

    @property
    def tcb_state(self) -> TcbState:
        """The state with the levels that it comes from."""
        return self._state

    @property
    def tcb_status(self) -> TcbStatus:
        """The converged state, in the caller's `accept`; finer judgement is a policy's business."""
        return self._state.status

    @property
    def platform_tcb_status(self) -> TcbStatus:
        """At launch, where launch and now differ (TD report 1.5)."""
        return self._state.platform.status

    @property
    def module_tcb_status(self) -> TcbStatus | None:
        """None for SGX and for TDX modules of version 0, which are judged with the platform."""
        return self._state.module.status if self._state.module else None

    @property
    def qe_tcb_status(self) -> TcbStatus:
        return self._state.qe.status

    @property
    def advisory_ids(self) -> tuple[str, ...]:
        """Of platform, quoting enclave and TDX module, in that order, each once."""
        return self._state.advisory_ids

    @property
    def tcb_date(self) -> datetime:
        """The earliest date of the three levels, UTC."""
        return self._state.date

    @property
    def tcb_evaluation_number(self) -> int:
        return self._case.evaluation_numbers[0]

    @property
    def qe_evaluation_number(self) -> int:
        return self._case.evaluation_numbers[1]

    @property
    def fmspc(self) -> bytes:
        return self.pck.fmspc

    @property
    def ppid(self) -> bytes:
        return self.pck.ppid

    @property
    def root_sha256(self) -> str:
        """Lower-case hex SHA-256 of the trusted root's DER."""
        return self._case.root_sha256

    @property
    def collateral_digest(self) -> bytes:
        return self._case.endorsements.collateral.digest

    @property
    def allowances_used(self) -> frozenset[Allowance]:
        """Those that were needed; an allowance that was given and not needed is not here."""
        return self._case.findings.allowances_used

    @property
    def valid_until(self) -> datetime:
        """The last second in which everything this rests on is in force, UTC."""
        return datetime.fromtimestamp(self._case.end, UTC)

    @property
    def checks(self) -> tuple[Check, ...]:
        """Every check, in step order. All passed; some may carry a warning."""
        return self._case.report(self.compared is not NOT_COMPARED)


def verify_quote(
    quote: Quote,
    collateral: Collateral,
    *,
    report_data: bytes | Binding | NotCompared,
    roots: TrustRoots,
    at: datetime,
    accept: TcbStates = UP_TO_DATE,
    allow: frozenset[Allowance] = NONE,
) -> VerifiedQuote:
    """Verify as of `at`. No clock, network, randomness or global: same arguments, same answer.

    `report_data`: 64 bytes, a Binding, or NOT_COMPARED. `at`: an aware datetime; a thing is in force from its first to
    its last second, both included. `accept`: the TCB states that pass; Revoked never does.

    Raises VerificationFailed: the code of the first failing check, and in `checks` every check that could run. Raises
    TypeError or ValueError for arguments that no caller should pass: of another type, a naive `at`, a text in place of
    a set of states, an expected REPORT_DATA that is not 64 bytes or all zero.
    """
    call = _Call(quote, collateral, report_data, at)
    accept, allow = frozenset(accept), frozenset(allow)
    demand_known(accept, allow)
    demand_roots(roots)
    endorsements = endorse(collateral, roots)
    chain = judge_pck_chain(quote, roots, endorsements.known)
    platform = judge_platform(quote, chain, endorsements)
    findings = appraise(Claims.of(quote), platform, chain.facts, endorsements.tcb_info, accept, allow)
    return call.conclude(quote, _Case(endorsements, chain, platform, findings))


@final
class Verifier:
    """`verify_quote` with a memory: the same answers, without proving the same thing twice. Safe to share by threads.

    It remembers, each in a bounded cache that forgets what was used longest ago, and only what passed:
    collateral sets by their digest; PCK chains by the digest of their bytes; attestation keys by collateral digest, the
    digest of all that vouches for the key, version and TEE; findings by those and by what the body claims. What rests
    on a collateral set is forgotten with it: sets are large, and there is a new one every day. Times are compared, the
    quote's signature checked and REPORT_DATA compared on every call.
    """

    __slots__ = ("_cases", "_chains", "_platforms", "_roots", "_sets")

    def __init__(
        self, roots: TrustRoots, *, max_sets: int = 256, max_platforms: int = 4096, max_findings: int = 8192
    ) -> None:
        demand_roots(roots)
        self._roots = roots
        self._sets: Recent[Endorsements] = Recent(max_sets)
        self._chains: Recent[PckChain] = Recent(max_platforms)
        self._platforms: Recent[tuple[Endorsements, PckChain, Platform]] = Recent(max_platforms)
        self._cases: Recent[_Case] = Recent(max_findings)

    @property
    def roots(self) -> TrustRoots:
        """What everything here was proved under; other roots need another verifier."""
        return self._roots

    def verify(
        self,
        quote: Quote,
        collateral: Collateral,
        *,
        report_data: bytes | Binding | NotCompared,
        at: datetime,
        accept: TcbStates = UP_TO_DATE,
        allow: frozenset[Allowance] = NONE,
    ) -> VerifiedQuote:
        """What `verify_quote` answers under this verifier's roots, raised errors included."""
        call = _Call(quote, collateral, report_data, at)
        claims = Claims.of(quote)
        accept, allow = frozenset(accept), frozenset(allow)
        vouched = (collateral.digest, sha256(quote.certified).digest(), quote.header.version, quote.tee)
        key = (vouched, claims, accept, allow)
        case = self._cases.get(key)
        if case is None:
            demand_known(accept, allow)
            endorsements, chain, platform = self._platforms.get(vouched) or self._judge(quote, collateral)
            findings = appraise(claims, platform, chain.facts, endorsements.tcb_info, accept, allow)
            case = _Case(endorsements, chain, platform, findings)
            self._remember(quote, vouched, case)
            verified = call.conclude(quote, case)
            self._cases.put(key, case)  # what was claimed under a good signature: others can claim what they like
            return verified
        return call.conclude(quote, case)

    def check_chain(self, quote: Quote, *, at: datetime) -> PckFacts:
        """Whether the quote's PCK chain alone is good at `at`: a cheap first question, before collateral is fetched.

        CRLs, quoting enclave and quote are not looked at. Raises VerificationFailed: chain.*; TypeError for what is no
        Quote, or a naive `at`.
        """
        demand_quote(quote)
        moment = unix_seconds(at)
        chain = self._chains.get(_chain_key(quote)) or judge_pck_chain(quote, self._roots)
        if chain.ok:
            self._chains.put(_chain_key(quote), chain)
        ledger = Ledger()
        judge_time(ledger, chain.windows, moment)
        if not (chain.ok and ledger.ok):
            raise _refusal([*chain.checks, *ledger.checks])
        assert chain.facts is not None  # chain.ok says so
        return chain.facts

    def _judge(self, quote: Quote, collateral: Collateral) -> tuple[Endorsements, PckChain, Platform]:
        """With what is remembered. The signatures of what is not are still to be checked."""
        endorsements = self._sets.get(collateral.digest) or endorse(collateral, self._roots)
        chain = self._chains.get(_chain_key(quote)) or judge_pck_chain(quote, self._roots, endorsements.known)
        return endorsements, chain, judge_platform(quote, chain, endorsements)

    def _remember(self, quote: Quote, vouched: tuple[bytes, bytes, int, Tee], case: _Case) -> None:
        """Each part by itself, where it passed."""
        endorsements, chain, platform = case.endorsements, case.chain, case.platform
        if endorsements.ok:
            gone = self._sets.put(vouched[0], endorsements)
            if gone is not None:
                self._platforms.drop(lambda vouched: vouched[0] == gone)
                self._cases.drop(lambda key: key[0][0] == gone)
        if chain.ok:
            self._chains.put(_chain_key(quote), chain)
        if endorsements.ok and chain.ok and platform.ok:
            self._platforms.put(vouched, (endorsements, chain, platform))


def _chain_key(quote: Quote) -> tuple[bytes, int]:
    return sha256(quote.certification_data).digest(), quote.certification_type


@final
class _Call:
    """What is asked anew on every call: REPORT_DATA, time, and the quote's own signature."""

    __slots__ = ("at", "expected", "moment", "report_data")

    def __init__(
        self, quote: Quote, collateral: Collateral, report_data: bytes | Binding | NotCompared, at: datetime
    ) -> None:
        if type(quote) is not Quote or type(collateral) is not Collateral:  # type: ignore[redundant-expr]  # untyped callers
            raise TypeError("quote comes from Quote.parse(), collateral is a Collateral")
        self.moment = unix_seconds(at)
        self.at = at
        self.report_data = report_data
        self.expected = expected_of(report_data)

    def conclude(self, quote: Quote, case: _Case) -> VerifiedQuote:
        key, expected, state, facts = case.platform.key, self.expected, case.findings.state, case.chain.facts
        signed = key is not None and _signed(key, quote)
        same = expected is None or hmac.compare_digest(quote.body.report_data, expected)
        in_force = case.begin <= self.moment <= case.end
        if case.ok and signed and same and in_force:
            assert state is not None  # case.ok says so
            assert facts is not None
            verified = object.__new__(VerifiedQuote)
            put = object.__setattr__
            put(verified, "quote", quote)
            put(verified, "compared", self.report_data)
            put(verified, "verified_at", self.at if self.at.tzinfo is UTC else self.at.astimezone(UTC))
            put(verified, "pck", facts)
            put(verified, "_state", state)
            put(verified, "_case", case)
            return verified
        ledger = Ledger()
        judge_time(ledger, case.windows, self.moment)
        if key is not None:
            ledger.run(step.QUOTE_SIGNATURE, _demand_signature, signed)
        _judge_report_data(ledger, expected is not None, same)
        raise _refusal([*case.stage_checks(), *ledger.checks], state)


def _refusal(checks: list[Check], state: TcbState | None = None) -> VerificationFailed:
    """The first failing check names it; all of them go with it. A state is believed where nothing else failed."""
    ordered = in_order(checks)
    failed = [check for check in ordered if not check.ok]
    alone = all(check.name in _STATE_ALONE for check in failed)
    return VerificationFailed(failed[0].code, failed[0].detail, ordered, state if alone else None)


def _signed(key: EllipticCurvePublicKey, quote: Quote) -> bool:
    """The same as `signed_raw`, written out: this is the one signature that every call pays for."""
    signature = quote.signature
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    try:
        key.verify(encode_dss_signature(r, s), quote.signed, ECDSA_SHA256)
    except InvalidSignature:
        return False
    return True


def _demand_signature(signed: bool) -> None:
    if not signed:
        raise Unmet("header and body are not what the attestation key signed", "Get a fresh quote.")


def _judge_report_data(ledger: Ledger, compared: bool, same: bool) -> None:
    if not compared:
        ledger.warn(
            step.REPORT_DATA_LEFT,
            "REPORT_DATA was not compared, as the caller asked",
            "Compare it before anything is given to the sender.",
        )
    elif same:
        ledger.passed(step.REPORT_DATA)
    else:
        detail = "REPORT_DATA is not what was expected: the quote answers another question, or somebody else"
        ledger.failed(step.REPORT_DATA, Unmet(detail, "Ask for a new challenge and quote again."))
