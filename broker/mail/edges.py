"""Who may send to and read from which mailbox: the policy's answers, kept as long as nothing can have changed.

Decides how long an answer lasts: within one generation, until the permit's end, or a refusal's, and a permit not at all
when a rule read the time. An answer that is new is written to the log in the transaction of the first act that rests on
it; if that fails, in that of the next one. The same answer again is not. Types and labels are words of the sender's
choice, so of one who asks about more and more of them not every answer is written (sparing.py).

A message that calls a tool is both: sent to a mailbox, and a call. Whoever sends it needs a permit for each.
"""

import logging
from collections import OrderedDict
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final, final

from broker.audit import Audit, Entry, Kind
from broker.mail.sparing import Sparing
from broker.ports import Store, Transaction
from broker.reasons import codes_of, told
from broker.sessions import Session
from broker.wire.tools import tool_called
from policies.engine import decide
from policies.errors import Refused
from policies.model import CallTool, Context, Declassify, Receive, Send
from policies.permit import Permit

logger = logging.getLogger("cloister.broker.edges")
MAX_EDGES: Final = 16_384
MAX_LISTED: Final = 1024  # answers about one agent that the log hears of at once; later ones at leisure
AT_ONCE: Final = datetime.min.replace(tzinfo=UTC)
Asked = Send | Receive | Declassify
Judged = Asked | CallTool
_Key = tuple[int, str, str, Asked]


@final
class Owed:
    """An entry that everybody who acts on an answer has to see in the log, and whoever comes first writes."""

    __slots__ = ("_entry", "_index", "_raw")

    def __init__(self, entry: Entry) -> None:
        self._entry = entry
        self._index, self._raw = -1, b""

    def pay(self, tx: Transaction, audit: Audit) -> None:
        """Inside the transaction of the act: what was written before counts as far as it has not been undone."""
        if not self.stands(tx):
            self._index, self._raw = audit.append(tx, self._entry)

    def stands(self, tx: Transaction) -> bool:
        """Whether it is in the log, as far as that transaction sees it."""
        if self._index < 0:
            return False
        row = tx.log.entry(self._index)
        return row is not None and row.entry == self._raw


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The policy's answer for one edge, to be asked for again from `until` on. `entry` is for the log, if it is new.

    `about` is what was refused, or else what was asked; `call` the second permit that a call of a tool takes.
    """

    permit: Permit | None
    refusal: Refused | None
    entry: Owed | None
    about: Judged
    until: datetime = AT_ONCE
    owed: bool = False  # it was looked at, and nobody has written it to the log
    call: Permit | None = None

    @property
    def says(self) -> tuple[str, ...]:
        """What two answers that are the same have in common."""
        if self.refusal:
            return codes_of(self.refusal)
        return ("", *(rule for permit in (self.permit, self.call) if permit for rule in permit.rules))

    def given(self) -> "Answer":
        """For one who asks: with a refusal of his own to raise. One that is raised holds the frames of its way, with
        all that is in them, and one that is raised again and again holds more and more."""
        if self.refusal is None:
            return self
        return replace(self, refusal=Refused(self.refusal.reasons, not_after=self.refusal.not_after))


@final
class Edges:
    """Remembers answers by generation, evidence, subject and action."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: OrderedDict[_Key, Answer] = OrderedDict()
        self._listed = Sparing(MAX_LISTED)

    def ask(self, session: Session, action: Asked, at: datetime, *, correlation_id: str = "") -> Answer:
        """Permit or refusal; ask again for every message."""
        key = (session.generation, session.record.evidence.hex(), session.subject, action)
        known = self._known.get(key)
        if known is not None and known.entry is not None:
            known = self._paid(key, known)
        if known is not None and at < known.until and not known.owed:
            self._known.move_to_end(key)
            return known.given()
        fresh = _decide(session, action, at)
        if known is not None and known.says == fresh.says and not known.owed:
            fresh = replace(fresh, entry=known.entry)
        elif (unlisted := self._listed.left_out(session.subject, at)) is not None:
            fresh = replace(fresh, entry=Owed(_entry(session, action, at, correlation_id, fresh, unlisted)))
            _tell(session, fresh, correlation_id)
        self._keep(key, fresh)
        return fresh.given()

    def _paid(self, key: _Key, known: Answer) -> Answer:
        """The answer without its entry, once that is durable."""
        owed = known.entry
        if owed is not None and self._store.read(owed.stands):
            known = self._known[key] = replace(known, entry=None)
        return known

    def permits(self, session: Session, action: Asked, at: datetime) -> bool:
        """The answer alone, for a look at what somebody may do: the log hears of it when he asks."""
        key = (session.generation, session.record.evidence.hex(), session.subject, action)
        known = self._known.get(key)
        if known is None or at >= known.until:
            fresh = _decide(session, action, at)
            owed = known is None or known.owed or known.says != fresh.says
            kept = None if owed or known is None else known.entry
            self._keep(key, known := replace(fresh, owed=owed, entry=kept))
        return known.permit is not None

    def _keep(self, key: _Key, answer: Answer) -> None:
        self._known[key] = answer
        self._known.move_to_end(key)
        if len(self._known) > MAX_EDGES:
            self._known.popitem(last=False)

    def forget(self) -> None:
        """After the generation rose: none of the answers will be asked for again."""
        self._known.clear()


def _decide(session: Session, action: Asked, at: datetime) -> Answer:
    sent = _judge(session, action, at)
    tool = tool_called(action.mailbox, action.message_type) if isinstance(action, Send) else None
    if tool is None or action.kind != "mailbox":
        return sent
    called = _judge(session, CallTool(tool, action.labels), at)
    until = min(sent.until, called.until)
    if sent.permit is not None and called.permit is not None:
        return replace(sent, call=called.permit, until=until)
    objections = dict.fromkeys(reason for one in (sent, called) if one.refusal for reason in one.refusal.reasons)
    refusal = Refused(tuple(objections), not_after=until if until > AT_ONCE else None)
    return replace(sent if sent.refusal else called, permit=None, refusal=refusal, until=until)


def _judge(session: Session, action: Judged, at: datetime) -> Answer:
    try:
        permit = decide(session.bundle, session.verdict, action, context=Context(at=at))
    except Refused as error:
        until = error.not_after or AT_ONCE
        return Answer(permit=None, refusal=error.with_traceback(None), entry=None, about=action, until=until)
    until = permit.not_after if permit.cacheable else AT_ONCE
    return Answer(permit=permit, refusal=None, entry=None, about=action, until=until)


def _tell(session: Session, answer: Answer, correlation_id: str) -> None:
    """Of a refusal, the operator who is looking on."""
    if answer.refusal is not None:
        about = {
            "subject": session.subject,
            "resource": _resource(answer.about),
            "action": answer.about.action,
            "reasons": told(answer.refusal),
            "correlation_id": correlation_id,
        }
        logger.warning("edge.refused", extra=about)


def _resource(about: Judged) -> str:
    return about.tool if isinstance(about, CallTool) else about.mailbox


def _entry(session: Session, action: Asked, at: datetime, correlation_id: str, answer: Answer, unlisted: int) -> Entry:
    permit, error, about = answer.permit, answer.refusal, answer.about
    return Entry(
        kind=Kind.EDGE_REFUSED if error else Kind.EDGE_PERMITTED,
        at=at,
        subject=session.subject,
        tenant=session.record.tenant,
        resource=_resource(about),
        codes=codes_of(error) if error else (),
        policy=session.bundle.digest,
        evidence=session.record.evidence.hex(),
        permit=permit.digest.hex() if permit else "",
        generation=session.generation,
        correlation_id=correlation_id,
        more={
            "action": about.action,
            "type": "" if isinstance(action, Receive) else action.message_type,
            "labels": sorted(action.labels),
            "reasons": told(error) if error else [],
            **({"tool": answer.call.resource, "call_permit": answer.call.digest.hex()} if answer.call else {}),
            **({"unlisted": unlisted} if unlisted else {}),
        },
    )
