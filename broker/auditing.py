"""What an auditor finds in log and archive: releases nobody was entitled to, agents without evidence, new answers.

Decides which entries contradict each other or their evidence. Everything is read from a database or a copy of it, with
the log's public key and the trust roots; the broker that wrote it is asked nothing. That the log is whole and signed is
checked before (`audit.verify_store`).
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, final

from attestation.pki import TrustRoots
from broker.archive import unpack
from broker.audit import Kind, rows
from broker.decisions import gather
from broker.errors import BrokerError
from broker.ports import DAY_S, AgentRecord, AgentState, Readable
from policies.decided import ADMISSIONS, RELEASES, check
from policies.decision import Decision, DecisionError

PAGE: Final = 1000
GIVING: Final = (Kind.SECRET_RELEASED, Kind.KEY_DERIVED, Kind.KEYS_RELEASED, Kind.TOKEN_ISSUED, Kind.SVID_ISSUED)
"""What only somebody gets who was admitted and has not fallen since."""
FOR_GOOD: Final = (Kind.AGENT_REVOKED, Kind.AGENTS_RETIRED)
"""After which a key is never admitted again."""


class Flaw(StrEnum):
    """What is wrong. Public and stable: add, never rename or reuse."""

    RELEASE_WITHOUT_ADMISSION = "audit.release_without_admission"
    RELEASE_AFTER_REVOCATION = "audit.release_after_revocation"
    RELEASE_TO_OTHER_EVIDENCE = "audit.release_to_other_evidence"
    POLICY_NOT_IN_FORCE = "audit.policy_not_in_force"
    AGENT_WITHOUT_ADMISSION = "audit.agent_without_admission"
    TOKEN_WITHOUT_EVIDENCE = "audit.token_without_evidence"
    EVIDENCE_MISSING = "audit.evidence_missing"
    DECISION_DIFFERS = "audit.decision_differs"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """One finding. `index` is the entry's, or None where the log has none and should."""

    flaw: Flaw
    index: int | None
    subject: str
    detail: str

    def to_dict(self) -> dict[str, str | int | None]:
        return {"code": str(self.flaw), "index": self.index, "subject": self.subject, "detail": self.detail}


@final
@dataclass(slots=True)
class _Story:
    """What the log has said so far."""

    evidence: dict[str, set[str]] = field(default_factory=dict)  # subject → evidence it was admitted by
    out: dict[str, str] = field(default_factory=dict)  # subject → why it may do nothing
    policies: set[str] = field(default_factory=set)


def review(store: Readable, log_key: bytes, *, roots: TrustRoots | None) -> Iterator[Flag]:
    """Every flaw, in the order of the log. Without roots decisions are not taken again."""
    story, cut_ms = _Story(), _cut(store)
    for row in rows(store):
        facts = json.loads(row.entry)
        yield from _told(story, row.index, facts)
        if facts["kind"] in (*ADMISSIONS, *RELEASES):
            yield from (
                flag
                for flag in _repeated(store, row.index, facts, log_key, roots)
                if flag.flaw is not Flaw.EVIDENCE_MISSING or row.at_ms >= cut_ms
            )
    yield from _records(store, story)


def _cut(store: Readable) -> int:
    """Before when the archive may have been cut, by what the log says of it; its evidence is not missed."""
    cut_ms = 0
    for row in store.read(lambda tx: tx.log.newest(kind=Kind.ARCHIVE_PRUNED, limit=PAGE)):
        days = json.loads(row.entry).get("retention_days", 0)
        cut_ms = max(cut_ms, row.at_ms - int(days) * DAY_S * 1000)
    return cut_ms


def _told(story: _Story, index: int, facts: dict[str, Any]) -> Iterator[Flag]:
    """What one entry says against those before it."""
    kind, subject, evidence = facts["kind"], facts.get("subject", ""), facts.get("evidence", "")
    match kind:
        case Kind.BROKER_STARTED | Kind.GENERATION_CHANGED:
            told = [*facts.get("policies", ()), *facts.get("bundles", ())]
            story.policies |= {text.rpartition(" ")[2] for text in told}
        case Kind.AGENT_ADMITTED | Kind.GUEST_ADMITTED:
            story.evidence.setdefault(subject, set()).add(evidence)
            if story.out.get(subject) in FOR_GOOD:
                yield Flag(flaw=Flaw.RELEASE_AFTER_REVOCATION, index=index, subject=subject, detail="admitted again")
            story.out.pop(subject, None)
        case Kind.AGENT_RESTORED:
            story.out.pop(subject, None)
        case Kind.AGENT_QUARANTINED | Kind.AGENT_REVOKED:
            story.out[subject] = kind
        case Kind.AGENTS_RETIRED:
            story.out |= dict.fromkeys(facts.get("subjects", ()), kind)
        case _ if kind in GIVING:
            yield from _given(story, index, kind, subject, evidence)
    policy = facts.get("policy", "")
    if policy and story.policies and policy not in story.policies:
        yield Flag(flaw=Flaw.POLICY_NOT_IN_FORCE, index=index, subject=subject, detail=f"{kind} by policy {policy}")


def _given(story: _Story, index: int, kind: str, subject: str, evidence: str) -> Iterator[Flag]:
    admitted = story.evidence.get(subject)
    if admitted is None:
        detail = f"{kind} to a subject that had never been admitted"
        yield Flag(flaw=Flaw.RELEASE_WITHOUT_ADMISSION, index=index, subject=subject, detail=detail)
    elif evidence and evidence not in admitted:
        detail = f"by evidence {evidence[:16]}…, of which no admission tells"
        yield Flag(flaw=Flaw.RELEASE_TO_OTHER_EVIDENCE, index=index, subject=subject, detail=detail)
    if subject in story.out:
        detail = f"{kind} after {story.out[subject]}"
        yield Flag(flaw=Flaw.RELEASE_AFTER_REVOCATION, index=index, subject=subject, detail=detail)


def _repeated(
    store: Readable, index: int, facts: dict[str, Any], log_key: bytes, roots: TrustRoots | None
) -> Iterator[Flag]:
    """Take the decision again from the archive."""
    subject = facts.get("subject", "")
    if not facts.get("policy") or not facts.get("collateral"):
        if facts["kind"] in (Kind.AGENT_ADMITTED, Kind.GUEST_ADMITTED, Kind.SECRET_RELEASED):
            detail = f"{facts['kind']} names no policy or collateral"
            yield Flag(flaw=Flaw.EVIDENCE_MISSING, index=index, subject=subject, detail=detail)
        return
    try:
        decision = store.read(lambda tx: gather(tx, index, log_key))
    except BrokerError as error:
        yield Flag(flaw=Flaw.EVIDENCE_MISSING, index=index, subject=subject, detail=error.detail)
        return
    if roots is not None:
        yield from _compared(decision, index, subject, roots, log_key)


def _compared(decision: Decision, index: int, subject: str, roots: TrustRoots, log_key: bytes) -> Iterator[Flag]:
    try:
        failed = check(decision, roots=roots, log_key=log_key).failed
    except DecisionError as error:
        yield Flag(flaw=Flaw.DECISION_DIFFERS, index=index, subject=subject, detail=error.detail)
        return
    if failed is not None:
        yield Flag(flaw=Flaw.DECISION_DIFFERS, index=index, subject=subject, detail=f"{failed.name}: {failed.detail}")


def _records(store: Readable, story: _Story) -> Iterator[Flag]:
    """Rows of agents of whom the log knows nothing."""
    after = ""
    while page := _page(store, after):
        for record in page:
            if record.state is AgentState.ADMITTED and record.subject not in story.evidence:
                detail = "the store calls it admitted; the log has no admission"
                yield Flag(flaw=Flaw.AGENT_WITHOUT_ADMISSION, index=None, subject=record.subject, detail=detail)
        after = page[-1].subject


def _page(store: Readable, after: str) -> Sequence[AgentRecord]:
    return store.read(lambda tx: tx.agents.page(after=after, limit=PAGE))


def token_flags(store: Readable, claims: dict[str, Any]) -> Iterator[Flag]:
    """What is wrong with an admission token whose signature was verified: does any admission stand behind it?

    `claims` are the verdict inside: its subject, and the nonce and quote that its evidence had.
    """
    subject, nonce = str(claims.get("subject", "")), str(claims.get("nonce", ""))
    for row in rows(store):
        if row.kind == Kind.AGENT_ADMITTED and row.subject == subject:
            facts = json.loads(row.entry)
            if _has_nonce(store, str(facts.get("evidence", "")), nonce):
                return
    detail = "no admission in the log, with archived evidence, has this subject and nonce"
    yield Flag(flaw=Flaw.TOKEN_WITHOUT_EVIDENCE, index=None, subject=subject, detail=detail)


def _has_nonce(store: Readable, evidence: str, nonce: str) -> bool:
    try:
        found, _ = store.read(lambda tx: unpack(tx, bytes.fromhex(evidence)))
    except (BrokerError, ValueError):
        return False
    return found.binding.nonce.hex() == nonce
