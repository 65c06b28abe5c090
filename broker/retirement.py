"""Agents of whom nothing has been heard for long: their rows and accounts go, and their keys with them.

Decides who may go: whose last token ended so long ago, who owns no mailbox, of whom no mail and no channel is left, who
reads no topic that has keys, to whom nothing is lent, and whom nobody has revoked: what an administrator said stays.
The key is retired in the same transaction, with an entry that names it (retired.py). So an account of labels that goes
is never the account of anybody who could act again.
"""

import asyncio
from dataclasses import dataclass
from datetime import datetime
from typing import Final, final

from broker.audit import Audit, Entry, Kind
from broker.mail.labels import forget_labels
from broker.mail.mailkeys import ring_of
from broker.ports import DAY_S, AgentRecord, AgentState, Clock, Store, Transaction
from broker.retired import retire
from broker.sessions import Sessions
from broker.wire.keys import Place

AT_ONCE: Final = 64  # looked at in one transaction
MOST: Final = 4096  # looked at in one turn; the next one goes on from there
MIN_DAYS: Final = 10  # longer than anything of an agent's can live: mail, dead letters, tokens, certificates
_GONE: Final = (AgentState.ADMITTED, AgentState.QUARANTINED)
_FIRST: Final = (0, "")


@final
@dataclass(slots=True)
class _Turn:
    """Where the last turn ended, in each state: whoever has to stay is passed over until all were looked at."""

    after: tuple[int, str] = _FIRST


@final
class Retirement:
    """Lets agents go."""

    def __init__(self, *, store: Store, audit: Audit, sessions: Sessions, clock: Clock, after_s: int) -> None:
        self._store = store
        self._audit = audit
        self._sessions = sessions
        self._clock = clock
        self._after_s = max(after_s, MIN_DAYS * DAY_S)
        self._turns = {state: _Turn() for state in _GONE}

    async def sweep(self) -> int:
        """Look at some of those who may go; how many went."""
        return sum([await self._state(state, turn) for state, turn in self._turns.items()])

    async def _state(self, state: AgentState, turn: _Turn) -> int:
        at = self._clock()
        before_s, went = int(at.timestamp()) - self._after_s, 0
        for _ in range(MOST // AT_ONCE):
            found = self._candidates(state, before_s, turn.after)
            if found:
                went += await self._let_go(found, before_s, at)
            turn.after = (found[-1].expires_at_s, found[-1].subject) if len(found) == AT_ONCE else _FIRST
            if turn.after == _FIRST:
                break
            await asyncio.sleep(0)
        return went

    def _candidates(self, state: AgentState, before_s: int, after: tuple[int, str]) -> list[AgentRecord]:
        return list(
            self._store.read(lambda tx: tx.agents.silent(state=state, before_s=before_s, after=after, limit=AT_ONCE))
        )

    async def _let_go(self, found: list[AgentRecord], before_s: int, at: datetime) -> int:
        def work(tx: Transaction) -> list[str]:
            going = [record.subject for record in found if self._may_go(tx, record.subject, before_s, at)]
            if going:
                retire(tx, going)
                for subject in going:
                    _clear(tx, subject)
                self._audit.append(tx, self._entry(going, at))
            return going

        gone = await self._store.transact(work)
        self._sessions.forget(gone)
        return len(gone)

    def _may_go(self, tx: Transaction, subject: str, before_s: int, at: datetime) -> bool:
        record = tx.agents.get(subject)
        if record is None or record.state is AgentState.REVOKED or record.expires_at_s >= before_s:
            return False
        now_s = int(at.timestamp())
        return not (
            tx.mail.concerns(subject)
            or tx.channels.last(subject) >= now_s * 1000
            or tx.releases.lent(subject)
            or tx.svids.of(subject, now_s=now_s)
            or any(ring_of(tx, Place.TOPIC, topic) for topic in tx.topics.of(subject))
        )

    def _entry(self, going: list[str], at: datetime) -> Entry:
        days = self._after_s // DAY_S
        return Entry(
            kind=Kind.AGENTS_RETIRED, at=at, more={"agents": len(going), "subjects": going, "silent_days": days}
        )


def _clear(tx: Transaction, subject: str) -> None:
    """What is kept of an agent: the log alone goes on to name it, and who was given what."""
    for topic in tx.topics.of(subject):
        tx.topics.leave(topic, subject)
    tx.mail.leave(subject)
    tx.releases.forget(subject)
    forget_labels(tx, subject)
    tx.agents.drop(subject)
