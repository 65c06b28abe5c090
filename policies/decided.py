"""Take a recorded decision again, and compare: was it logged, does it rest on these parts, would it be the same?

Decides what "the same" means: of a yes, the permit's digest; of a no, its codes. Pure: the roots and the log's key are
arguments, the time is the entry's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, final

from attestation.encoding import b64url
from attestation.errors import AttestationError, VerificationFailed
from attestation.evidence import sealing_thumbprint, verify_proof
from attestation.guest import GuestEvidence, jwk_thumbprint
from attestation.pki import TrustRoots
from attestation.quote import Quote
from attestation.records import AgentEvidence, checked, unpack
from attestation.tcb import ANY_TCB
from attestation.transparency import LogError, broker_id, leaf_hash, open_note, verify_inclusion
from attestation.verdict import Verdict
from attestation.verifier import Verifier
from policies.bundle import Bundle, bundle_of
from policies.codes import DecisionCode
from policies.decision import Decision
from policies.engine import decide
from policies.errors import BundleError, Refused
from policies.model import Action, Admit, Context, ReleaseSecret
from policies.permit import Permit

ADMISSIONS: Final = ("agent.admitted", "agent.refused", "agent.quarantined", "guest.admitted", "guest.refused")
RELEASES: Final = ("secret.released", "secret.refused")
YES: Final = ("agent.admitted", "guest.admitted", "secret.released")
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One comparison. `ok` None: it could not be made, because an earlier one failed or the reader gave no key."""

    name: str
    code: DecisionCode
    ok: bool | None
    detail: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What taking the decision again showed."""

    steps: tuple[Step, ...]
    kind: str
    at: datetime
    permitted: bool
    subject: str = ""
    resource: str = ""
    codes: tuple[str, ...] = ()
    verdict: Verdict | None = None

    @property
    def stands(self) -> bool:
        """Whether the decision is what the log says, and would be taken again."""
        return all(step.ok is not False for step in self.steps)

    @property
    def failed(self) -> Step | None:
        return next((step for step in self.steps if step.ok is False), None)


class _Differs(Exception):
    """A step failed; those after it are not made."""

    def __init__(self, name: str, code: DecisionCode, detail: str) -> None:
        super().__init__(detail)
        self.step = Step(name=name, code=code, ok=False, detail=detail)


def check(decision: Decision, *, roots: TrustRoots, log_key: bytes | None = None) -> Finding:
    """Every step in order, up to the first that fails. `log_key` is the log's, as the reader knows it.

    1. the entry stands in the log, under the log key            decision.log_proof
    2. that key is the reader's, or the broker's in the quote     decision.log_key
    3. evidence, collateral and policy are those of the entry     decision.part_mismatch
    4. evidence is whole, and its sender holds the identity key   decision.evidence_invalid
    5. verified and judged again, the answer is the same          decision.differs
    """
    facts = decision.facts
    taken = _Taken()
    return Finding(
        steps=tuple(_until_one_fails(_steps(decision, facts, roots, log_key, taken))),
        kind=facts["kind"],
        at=moment(facts["at_ms"]),
        permitted=facts["kind"] in YES,
        subject=str(facts.get("subject", "")),
        resource=str(facts.get("resource", "")),
        codes=tuple(map(str, facts.get("codes", ()))),
        verdict=taken.verdict,
    )


def moment(at_ms: int) -> datetime:
    return EPOCH + timedelta(milliseconds=at_ms)


@final
@dataclass(slots=True)
class _Taken:
    """The verdict, once there is one."""

    verdict: Verdict | None = None


def _until_one_fails(steps: Iterator[Step]) -> Iterator[Step]:
    try:
        yield from steps
    except _Differs as failure:
        yield failure.step


def _steps(
    decision: Decision, facts: dict[str, Any], roots: TrustRoots, log_key: bytes | None, taken: _Taken
) -> Iterator[Step]:
    yield _logged(decision)
    bundle = _parts(decision, facts)
    told = f"policy {bundle.tenant} version {bundle.version}, {bundle.digest[:16]}…"
    yield Step(name="parts", code=DecisionCode.PART, ok=True, detail=f"evidence and collateral of the entry; {told}")
    evidence = _evidence(decision, facts)
    yield _key(decision, evidence, log_key)
    yield Step(name="evidence", code=DecisionCode.EVIDENCE, ok=True, detail="whole, and sent by whoever holds the key")
    yield _again(decision, facts, evidence, bundle, roots, taken)


def _logged(decision: Decision) -> Step:
    try:
        note = open_note(decision.checkpoint, decision.raw_log_key)
        verify_inclusion(leaf_hash(decision.entry), decision.index, note.size, decision.proof, note.root)
    except LogError as error:
        raise _Differs("log", DecisionCode.LOG_PROOF, error.detail) from error
    detail = f"entry {decision.index} of {note.size} in {note.origin}"
    return Step(name="log", code=DecisionCode.LOG_PROOF, ok=True, detail=detail)


def _parts(decision: Decision, facts: dict[str, Any]) -> Bundle:
    found = {"collateral": decision.collateral.digest.hex(), "policy": decision.policy_digest}
    for name, digest in found.items():
        if facts.get(name) != digest:
            raise _Differs("parts", DecisionCode.PART, f"{name} {digest[:16]}…, the entry names {facts.get(name)}")
    try:
        return bundle_of(decision.policy)
    except BundleError as error:
        raise _Differs("parts", DecisionCode.PART, f"the policy does not load: {error}") from error


def _evidence(decision: Decision, facts: dict[str, Any]) -> AgentEvidence | GuestEvidence:
    try:
        digest = bytes.fromhex(str(facts.get("evidence", "")))
        found = unpack(digest, decision.evidence.__getitem__)
        checked(digest, decision.evidence.__getitem__)
        if isinstance(found, GuestEvidence):
            found.key()
        else:
            verify_proof(found.evidence, client_nonce=found.client_nonce)
    except (LookupError, ValueError, VerificationFailed) as error:
        raise _Differs("evidence", DecisionCode.EVIDENCE, str(error)) from error
    subject = _subject(found)
    if facts.get("subject") != subject:
        detail = f"the evidence is that of {subject}, the entry speaks of {facts.get('subject')}"
        raise _Differs("evidence", DecisionCode.EVIDENCE, detail)
    return found


def _subject(evidence: AgentEvidence | GuestEvidence) -> str:
    """Whose evidence it is, as log entries name him."""
    if isinstance(evidence, GuestEvidence):
        return f"kbs/{b64url(jwk_thumbprint(evidence.key()))}"
    binding = evidence.evidence.binding
    return f"{binding.role}/{binding.tenant}/{binding.jkt}"


def _key(decision: Decision, evidence: AgentEvidence | GuestEvidence, log_key: bytes | None) -> Step:
    name, code, key = "log_key", DecisionCode.LOG_KEY, decision.raw_log_key
    if log_key is not None and log_key != key:
        raise _Differs(name, code, "the file's log key is not the one that was given")
    if isinstance(evidence, AgentEvidence) and evidence.evidence.binding.broker_id != broker_id(key):
        raise _Differs(name, code, "the agent's quote names another broker than this log's")
    if log_key is not None:
        return Step(name=name, code=code, ok=True, detail="the one that was given")
    if isinstance(evidence, AgentEvidence):
        return Step(name=name, code=code, ok=True, detail="of the broker that the agent's quote names")
    return Step(name=name, code=code, ok=None, detail="not compared: give the log's key to know whose log this is")


def _again(
    decision: Decision,
    facts: dict[str, Any],
    evidence: AgentEvidence | GuestEvidence,
    bundle: Bundle,
    roots: TrustRoots,
    taken: _Taken,
) -> Step:
    name, code = "decision", DecisionCode.DIFFERS
    if facts["kind"] not in (*ADMISSIONS, *RELEASES):
        raise _Differs(name, DecisionCode.KIND, f"an entry of kind {facts['kind']} records no such decision")
    try:
        permit = _decide(decision, facts, evidence, bundle, roots, taken)
    except (AttestationError, Refused, ValueError) as error:
        codes = refusal_codes(error)
        if facts["kind"] in YES or list(codes) != list(facts.get("codes", ())):
            raise _Differs(name, code, f"refused now: {', '.join(codes)}") from error
        return Step(name=name, code=code, ok=True, detail=f"refused again: {', '.join(codes)}")
    if facts["kind"] not in YES or permit.digest.hex() != facts.get("permit"):
        raise _Differs(name, code, f"permitted now, by a permit of digest {permit.digest.hex()[:16]}…")
    return Step(name=name, code=code, ok=True, detail=f"permitted again by {', '.join(permit.rules)}")


def _decide(
    decision: Decision,
    facts: dict[str, Any],
    evidence: AgentEvidence | GuestEvidence,
    bundle: Bundle,
    roots: TrustRoots,
    taken: _Taken,
) -> Permit:
    at = moment(facts["at_ms"])
    judged_at = moment(int(facts.get("judged_at_ms", facts["at_ms"])))
    guest = isinstance(evidence, GuestEvidence)
    quote = Quote.parse(evidence.quote if isinstance(evidence, GuestEvidence) else evidence.evidence.quote)
    verdict = taken.verdict = _verdict(decision, evidence, quote, bundle, roots, judged_at)
    context = Context(
        at=at,
        via="kbs" if guest else "cloister",
        source_ip=facts.get("source_ip"),
        platform_addresses=int(facts.get("platform_addresses", 1)),
    )
    action: Action = Admit()
    if facts["kind"] in RELEASES:
        labels = frozenset(map(str, facts.get("labels", ())))
        action = ReleaseSecret(str(facts.get("resource", "")), int(facts.get("version", 0)), labels)
    permit = decide(bundle, verdict, action, context=context)
    return _bound(permit, decision, facts, evidence, verdict) if facts["kind"] in RELEASES else permit


def _verdict(
    decision: Decision,
    evidence: AgentEvidence | GuestEvidence,
    quote: Quote,
    bundle: Bundle,
    roots: TrustRoots,
    at: datetime,
) -> Verdict:
    guest = evidence if isinstance(evidence, GuestEvidence) else None
    agent = evidence.evidence if isinstance(evidence, AgentEvidence) else None
    expected = agent.binding if agent else evidence.report_data if isinstance(evidence, GuestEvidence) else b""
    verified = Verifier(roots).verify(
        quote, decision.collateral, report_data=expected, at=at, accept=ANY_TCB, allow=bundle.allowances(at)
    )
    log = agent.log() if agent else guest.log() if guest else None
    if guest and not guest.init_data_hold(quote):
        raise ValueError("init data are not those of MRCONFIGID")
    return Verdict.of(verified, event_log=log)


def _bound(
    permit: Permit,
    decision: Decision,
    facts: dict[str, Any],
    evidence: AgentEvidence | GuestEvidence,
    verdict: Verdict,
) -> Permit:
    """As the broker binds a permit for a release: to itself, the receiver's keys, and the request."""
    if isinstance(evidence, GuestEvidence):
        key = evidence.key()
        thumbprint = jwk_thumbprint(key)
        jkt, suite = b64url(thumbprint), key["alg"]
    else:
        thumbprint = sealing_thumbprint(verdict.suite, verdict.sealing_key)
        jkt, suite = verdict.jkt, verdict.suite
    return permit.bind(
        broker_id=broker_id(decision.raw_log_key).hex(),
        jkt=jkt,
        sealing_thumbprint=thumbprint.hex(),
        suite=suite,
        nonce=str(facts.get("nonce", "")),
        version=int(facts.get("version", 0)),
    )


def refusal_codes(error: AttestationError | Refused | ValueError) -> tuple[str, ...]:
    """Every reason's code, each once, the first reason first."""
    if isinstance(error, Refused):
        return error.redacted().codes
    if isinstance(error, VerificationFailed) and error.checks:
        failed = (str(check.code) for check in error.checks if not check.ok)
        return tuple(dict.fromkeys((str(error.code), *failed)))
    return (str(error.code),) if isinstance(error, AttestationError) else (str(DecisionCode.EVIDENCE),)
