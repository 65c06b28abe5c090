"""Admitted agents: who holds a token now, and whether they would still be admitted.

Decides when somebody is judged again: at the next use after the generation rose, and when what the verdict rests on has
ended. Judging again takes the archived evidence and today's policy and collateral. Who no longer passes is quarantined,
by a log entry that says why: tokens are refused, queued mail is held, releases are refused. Who passes under a later
generation is let in again; a revoked key never is.
"""

import asyncio
import hashlib
import json
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final, final

import orjson

from attestation.errors import AttestationError, CollateralUnavailable
from attestation.quote import Quote
from attestation.verdict import Verdict
from broker.archive import unpack
from broker.audit import Audit, Entry, Kind
from broker.errors import BrokerCode, BrokerError
from broker.generation import Generation, again_while_moving
from broker.identity import Identity, Issued
from broker.judging import Judge, Judged, appraisal_of
from broker.ports import AgentRecord, AgentState, Clock, Store, Transaction
from broker.reasons import codes_of, told
from policies.bundle import Bundle
from policies.errors import Refused

MAX_LIVE: Final = 16_384
MAX_TOKENS: Final = 16_384
SWEEP_AT_ONCE: Final = 32
SWEEP_MOST: Final = 10_000
PEER_TOKEN_RENEW_S: Final = 120
REVOKED_MARK: Final = "revoked/"
logger = logging.getLogger("cloister.broker.sessions")


@final
@dataclass(slots=True, kw_only=True)
class Session:
    """An agent that may act now. `generation` is the one in which it was last judged."""

    verdict: Verdict
    record: AgentRecord
    bundle: Bundle
    peer_token: Issued | None = field(default=None, repr=False)

    @property
    def subject(self) -> str:
        return self.record.subject

    @property
    def generation(self) -> int:
        return self.record.generation


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Token:
    """What an admission token that was proved to be ours says, and when it stops saying it."""

    subject: str
    jkt: str
    end: datetime


@lru_cache(maxsize=64)
def _name(token: str) -> bytes:
    """Each request asks for it several times."""
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()


def record_of(
    judged: Judged, *, evidence: bytes, generation: int, at: datetime, admitted_at_s: int, expires_at_s: int
) -> AgentRecord:
    """How an admitted agent is remembered."""
    verdict = judged.verdict
    facts = {
        "fmspc": verdict.fmspc,
        "ppid": verdict.ppid,
        "mr_td": verdict.mr_td,
        "launches": [{"digest": launch.digest, "name": launch.name} for launch in verdict.launches],
        "workloads": list(judged.permit.workloads),
        "policy": judged.bundle.digest,
        "valid_until": verdict.valid_until.isoformat(),
    }
    return AgentRecord(
        subject=verdict.subject,
        tenant=verdict.tenant,
        jkt=verdict.jkt,
        state=AgentState.ADMITTED,
        codes=(),
        evidence=evidence,
        collateral=verdict.collateral_digest,
        generation=generation,
        admitted_at_s=admitted_at_s,
        judged_at_s=int(at.timestamp()),
        expires_at_s=expires_at_s,
        simulated=verdict.simulated,
        tcb_status=str(verdict.tcb_status),
        facts=orjson.dumps(facts).decode("utf-8"),
    )


@final
class Sessions:
    """Everybody who was admitted, by subject."""

    def __init__(
        self, *, store: Store, audit: Audit, generation: Generation, judge: Judge, identity: Identity, clock: Clock
    ) -> None:
        self._store = store
        self._audit = audit
        self._generation = generation
        self._judge = judge
        self._identity = identity
        self._clock = clock
        self._live: OrderedDict[str, Session] = OrderedDict()
        self._tokens: OrderedDict[bytes, _Token] = OrderedDict()
        self._judging: dict[str, asyncio.Task[Session]] = {}

    def admit(self, session: Session, issued: Issued | None = None) -> None:
        """Take in an agent that has just been judged, and the token that it was given, which need not be read again."""
        if issued is not None:
            self._remember(
                issued.token,
                _Token(
                    subject=session.subject,
                    jkt=session.verdict.jkt,
                    end=min(datetime.fromtimestamp(issued.expires_at_s, UTC), session.verdict.valid_until),
                ),
            )
        self._live[session.subject] = session
        self._live.move_to_end(session.subject)
        if len(self._live) > MAX_LIVE:
            self._live.popitem(last=False)

    def forget(self, subjects: Sequence[str]) -> None:
        """They are gone for good."""
        for subject in subjects:
            self._live.pop(subject, None)

    async def of_token(self, token: str, at: datetime) -> Session:
        """The session of whoever holds the token; that he holds its key is for the caller to check.

        Raises TokenRefused token.*; BrokerError agent.*; what judging raises.
        """
        return await self.of_subject(self._opened(token, at).subject, at)

    def key_of(self, token: str, at: datetime) -> str:
        """Thumbprint of the key that the token is bound to. Raises TokenRefused token.*"""
        return self._opened(token, at).jkt

    def tenant_of(self, token: str, at: datetime) -> str:
        """Tenant of the agent that the token is for. Raises TokenRefused token.*"""
        return self._opened(token, at).subject.split("/")[1]

    def _opened(self, token: str, at: datetime) -> _Token:
        """A token is verified once; its end is looked at every time."""
        known = self._tokens.get(_name(token))
        if known is None or at >= known.end:
            admission = self._identity.open(token, at)
            verdict = admission.verdict
            end = min(admission.expires_at, verdict.valid_until)
            known = _Token(subject=verdict.subject, jkt=verdict.jkt, end=end)
            self._remember(token, known)
        return known

    def _remember(self, token: str, known: _Token) -> None:
        self._tokens[_name(token)] = known
        if len(self._tokens) > MAX_TOKENS:
            self._tokens.popitem(last=False)

    async def of_subject(self, subject: str, at: datetime) -> Session:
        """The agent, judged in the present generation.

        Raises BrokerError agent.unknown, agent.quarantined, agent.revoked; what judging raises.
        """
        return self._present(subject, at) or await self._judge_again(self._judgeable(subject))

    def _present(self, subject: str, at: datetime) -> Session | None:
        """The session of an agent that was judged in the present generation, by what is still in force."""
        session = self._live.get(subject)
        here = session is not None and self._current(session.record) and at < session.verdict.valid_until
        return session if here else None

    def _judgeable(self, subject: str) -> AgentRecord:
        """The agent as last judged. Raises BrokerError agent.*, where another judgement could not help it."""
        record = self._store.read(lambda tx: tx.agents.get(subject))
        if record is None:
            raise BrokerError(BrokerCode.AGENT_UNKNOWN, subject)
        if record.state is AgentState.REVOKED:
            raise BrokerError(BrokerCode.AGENT_REVOKED, subject)
        if record.state is AgentState.QUARANTINED and self._current(record):
            raise BrokerError(BrokerCode.AGENT_QUARANTINED, subject, codes=record.codes)
        return record

    def _current(self, record: AgentRecord) -> bool:
        return record.generation == self._generation.current

    async def _judge_again(self, record: AgentRecord) -> Session:
        """Once at a time for each agent, whoever waits for it."""
        task = self._judging.get(record.subject)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._rejudge(record.subject), name=record.subject)
            self._judging[record.subject] = task
            task.add_done_callback(self._judged)
        return await asyncio.shield(task)

    def _judged(self, task: "asyncio.Task[Session]") -> None:
        """Whoever waited may have gone meanwhile: a refusal that nobody hears is no mistake of ours."""
        self._judging.pop(task.get_name(), None)
        if not task.cancelled():
            task.exception()

    async def _rejudge(self, subject: str) -> Session:
        """From the start again when the generation rises meanwhile, or the agent attests."""
        return await again_while_moving(lambda: self._rejudge_once(subject))

    async def _rejudge_once(self, subject: str) -> Session:
        at = self._clock()
        if (present := self._present(subject, at)) is not None:
            return present  # it has attested since somebody wanted it judged
        record = self._judgeable(subject)
        generation = self._generation.current
        evidence, _ = self._store.read(lambda tx: unpack(tx, record.evidence))
        quote = Quote.parse(evidence.quote)
        try:
            judged = self._judge.judge(evidence, quote, at=at)
        except CollateralUnavailable:
            raise
        except (AttestationError, Refused) as error:
            await self._quarantine(record, quote, generation, error, at)
            raise BrokerError(BrokerCode.AGENT_QUARANTINED, record.subject, codes=codes_of(error)) from error
        fresh = record_of(
            judged,
            evidence=record.evidence,
            generation=generation,
            at=at,
            admitted_at_s=record.admitted_at_s,
            expires_at_s=record.expires_at_s,
        )
        await self._keep(record, fresh, at)
        session = Session(verdict=judged.verdict, record=fresh, bundle=judged.bundle)
        self.admit(session)
        return session

    async def _keep(self, old: AgentRecord, fresh: AgentRecord, at: datetime) -> None:
        def work(tx: Transaction) -> None:
            self._generation.expect(tx, fresh.generation)
            require_unrevoked(tx, fresh.subject)
            _expect_unchanged(tx, old)
            tx.agents.put(fresh)

        if old.state is AgentState.ADMITTED:
            await self._store.transact(work)
            return
        entry = Entry(
            kind=Kind.AGENT_RESTORED,
            at=at,
            subject=fresh.subject,
            tenant=fresh.tenant,
            evidence=fresh.evidence.hex(),
            collateral=fresh.collateral,
            generation=fresh.generation,
        )
        await self._audit.record(entry, work)

    async def _quarantine(
        self, record: AgentRecord, quote: Quote, generation: int, error: AttestationError | Refused, at: datetime
    ) -> None:
        codes = codes_of(error)
        fallen = replace(
            record, state=AgentState.QUARANTINED, codes=codes, generation=generation, judged_at_s=int(at.timestamp())
        )
        entry = Entry(
            kind=Kind.AGENT_QUARANTINED,
            at=at,
            subject=record.subject,
            tenant=record.tenant,
            codes=codes,
            policy=self._judge.bundles.of(record.tenant).digest,
            evidence=record.evidence.hex(),
            collateral=self._judge.collateral_digest(quote),
            generation=generation,
            more={"reasons": told(error), **self._judge.circumstances(quote, None, at)},
        )

        def work(tx: Transaction) -> None:
            self._generation.expect(tx, generation)
            require_unrevoked(tx, record.subject)
            _expect_unchanged(tx, record)
            tx.agents.put(fallen)

        self._live.pop(record.subject, None)
        await self._audit.record(entry, work)
        logger.warning("agent.quarantined", extra={"subject": record.subject, "codes": list(codes)})

    async def sweep(self) -> int:
        """Judge everybody again who is admitted and was last judged earlier; how many were looked at."""
        at_s = int(self._clock().timestamp())
        generation = self._generation.current
        stale = self._store.read(lambda tx: tx.agents.stale(generation=generation, live_at_s=at_s, limit=SWEEP_MOST))
        for start in range(0, len(stale), SWEEP_AT_ONCE):
            waiting = [self._judge_again(record) for record in stale[start : start + SWEEP_AT_ONCE]]
            for outcome in await asyncio.gather(*waiting, return_exceptions=True):
                if isinstance(outcome, BaseException) and not isinstance(outcome, BrokerError | AttestationError):
                    raise outcome
        return len(stale)

    async def settle(self, subjects: tuple[str, ...], at: datetime) -> dict[str, Session]:
        """Bring each subject's judgement up to date; the sessions of those who may still act."""
        found: dict[str, Session] = {}
        for subject in subjects:
            try:
                found[subject] = await self.of_subject(subject, at)
            except (BrokerError, AttestationError) as error:
                logger.info("mail.held", extra={"subject": subject, "code": str(error.code)})
        return found

    def peer_token(self, session: Session, at: datetime) -> str:
        """The agent's verdict for its peers, made anew when less than half of it is left."""
        issued = session.peer_token
        if issued is None or issued.expires_at_s - at.timestamp() < PEER_TOKEN_RENEW_S:
            issued = self._identity.for_peers(
                session.verdict,
                at=at,
                appraisal=appraisal_of(session.bundle, session.verdict),
                policy=session.bundle.digest,
            )
            session.peer_token = issued
        return issued.token

    async def peer(self, subject: str, at: datetime, *, of: Session | None = None) -> Session:
        """An agent that is here now, for those who want to talk to it: another tenant's is nobody's peer.

        Raises BrokerError agent.*
        """
        if of is not None and subject.split("/")[1:2] != [of.record.tenant]:
            raise BrokerError(BrokerCode.AGENT_UNKNOWN, f"{subject[:128]!a} is not of {of.record.tenant}")
        session = await self.of_subject(subject, at)
        if session.record.expires_at_s <= at.timestamp():
            raise BrokerError(BrokerCode.AGENT_EXPIRED, subject)
        return session

    async def revoke(
        self,
        subject: str,
        *,
        why: str,
        by: str,
        at: datetime,
        also: Callable[[Transaction], None] = lambda _: None,
        second: str = "",
    ) -> None:
        """End an agent's rights for good: its key is never admitted again. Raises BrokerError agent.unknown."""

        def work(tx: Transaction) -> None:
            record = tx.agents.get(subject)
            if record is None:
                raise BrokerError(BrokerCode.AGENT_UNKNOWN, subject)
            also(tx)
            tx.marks.put(REVOKED_MARK + subject, json.dumps({"at_s": int(at.timestamp()), "by": by}))
            tx.agents.put(replace(record, state=AgentState.REVOKED, codes=(BrokerCode.AGENT_REVOKED.value,)))

        entry = Entry(
            kind=Kind.AGENT_REVOKED,
            at=at,
            subject=subject,
            codes=(BrokerCode.AGENT_REVOKED,),
            more={"why": why[:256], "by": by, "second": second},
        )
        await self._generation.rise("revocation", work, at=at, entry=entry, then=lambda: self._live.pop(subject, None))


def _expect_unchanged(tx: Transaction, record: AgentRecord) -> None:
    """Evidence that came later counts, whatever became of the older. Raises BrokerError generation.moved."""
    if tx.agents.get(record.subject) != record:
        raise BrokerError(BrokerCode.GENERATION_MOVED, f"{record.subject} attested meanwhile", retry_after_s=1)


def require_unrevoked(tx: Transaction, subject: str) -> None:
    """Raises BrokerError agent.revoked."""
    if tx.marks.get(REVOKED_MARK + subject) is not None:
        raise BrokerError(BrokerCode.AGENT_REVOKED, subject)
