"""Who may send to and read from which mailbox: the policy's answers, kept as long as nothing can have changed.

Decides how long an answer lasts: within one generation, until the permit's end, and never when a rule read the time. An
answer that is new is written to the log with the first message that rests on it; the same answer again is not.
"""

from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime
from typing import Final, final

from broker.audit import Entry, Kind
from broker.reasons import codes_of, told
from broker.sessions import Session
from policies.engine import decide
from policies.errors import Refused
from policies.model import Context, Declassify, Receive, Send
from policies.permit import Permit

MAX_EDGES: Final = 16_384
Asked = Send | Receive | Declassify
_Key = tuple[int, str, str, Asked]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The policy's answer for one edge. `entry` is set when the log has not heard of it."""

    permit: Permit | None
    refusal: Refused | None
    entry: Entry | None


@final
class Edges:
    """Remembers answers by generation, evidence, subject and action."""

    def __init__(self) -> None:
        self._known: OrderedDict[_Key, Answer] = OrderedDict()

    def ask(self, session: Session, action: Asked, at: datetime, *, correlation_id: str = "") -> Answer:
        """Permit or refusal; ask again for every message."""
        key = (session.generation, session.record.evidence.hex(), session.subject, action)
        known = self._known.get(key)
        if known is not None and (known.permit is None or (known.permit.cacheable and at < known.permit.not_after)):
            self._known.move_to_end(key)
            return Answer(permit=known.permit, refusal=known.refusal, entry=None)
        fresh = _decide(session, action, at, correlation_id)
        if fresh.permit is None or fresh.permit.cacheable:
            self._known[key] = fresh
            if len(self._known) > MAX_EDGES:
                self._known.popitem(last=False)
        return fresh

    def forget(self) -> None:
        """After the generation rose: none of the answers will be asked for again."""
        self._known.clear()


def _decide(session: Session, action: Asked, at: datetime, correlation_id: str) -> Answer:
    try:
        permit = decide(session.bundle, session.verdict, action, context=Context(at=at))
    except Refused as error:
        return Answer(permit=None, refusal=error, entry=_entry(session, action, at, correlation_id, error=error))
    return Answer(permit=permit, refusal=None, entry=_entry(session, action, at, correlation_id, permit=permit))


def _entry(
    session: Session,
    action: Asked,
    at: datetime,
    correlation_id: str,
    *,
    permit: Permit | None = None,
    error: Refused | None = None,
) -> Entry:
    return Entry(
        kind=Kind.EDGE_REFUSED if error else Kind.EDGE_PERMITTED,
        at=at,
        subject=session.subject,
        tenant=session.record.tenant,
        resource=action.mailbox,
        codes=codes_of(error) if error else (),
        policy=session.bundle.digest,
        evidence=session.record.evidence.hex(),
        permit=permit.digest.hex() if permit else "",
        generation=session.generation,
        correlation_id=correlation_id,
        more={
            "action": action.action,
            "type": "" if isinstance(action, Receive) else action.message_type,
            "labels": sorted(action.labels),
            "reasons": told(error) if error else [],
        },
    )
