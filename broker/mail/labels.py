"""Labels: what an agent has read marks what it says, by the broker's own account of what it was given.

Decides how the account, the ratchet of an agent's identity, moves: a release or delivery raises it in the store before
the agent sees anything, and nothing lowers it. A message whose header lacks a label of the ratchet is refused
(`message.labels_lowered`), unless the policy permits `Declassify` for exactly the labels that were left off, and then
that message alone goes, with an entry of its own. The agent's process is not asked what it has read. Labels are names
of restrictions, so joining is union; the name of a restriction on trust (`untrusted`) travels like any other.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final, final

from broker.audit import Audit, Entry, Kind
from broker.errors import BrokerCode, BrokerError
from broker.mail.edges import Edges, Owed
from broker.ports import Store, Transaction
from broker.reasons import codes_of
from broker.sessions import Session
from broker.wire.channel import labels_of
from broker.wire.envelope import Envelope, Header
from broker.wire.errors import WireCode, WireError
from broker.wire.names import LABEL
from policies.model import Declassify, Receive, Send

Labels = frozenset[str]
NOTHING: Final[Labels] = frozenset()
MAX_GIVEN: Final = 24  # labels to which mail may hold an agent: a header takes 32, and what is released needs room too
_MARK: Final = "labels/"


def held(tx: Transaction, subject: str) -> Labels:
    """The labels that everything this agent says must carry."""
    found = tx.marks.get(_MARK + subject)
    return frozenset(json.loads(found)) if found else NOTHING


def forget_labels(tx: Transaction, subject: str) -> None:
    """The account of a key that is never admitted again."""
    tx.marks.drop(_MARK + subject)


def labels_in(kind: str, raw: bytes) -> Labels:
    """Of an envelope, or of all messages of a channel's batch, as they lie in a queue."""
    if kind == "batch":
        return labels_of(raw)
    return frozenset(Header.from_bytes(Envelope.from_bytes(raw).header).labels)


def checked_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """Sorted, each once, if every one can stand in a message's header. Raises WireError body.field_invalid."""
    for label in labels:
        if not LABEL.fullmatch(label):
            raise WireError(WireCode.BODY_FIELD_INVALID, f"label {label[:64]!a} must match {LABEL.pattern}")
    return tuple(sorted(set(labels)))


def fits(before: Labels, labels: Labels) -> bool:
    """Whether who is held to labels `before` may be held to these too by something that others have said.

    Labels are the words of whoever says it, so they must not use up what a header can hold.
    """
    return labels <= before or len(before | labels) <= MAX_GIVEN


def require(tx: Transaction, subject: str, labels: Labels, waived: Labels = NOTHING) -> None:
    """What is said with these labels may be taken in from this agent. For the transaction that takes it in.

    Raises BrokerError message.labels_lowered.
    """
    if missing := held(tx, subject) - labels - waived:
        raise BrokerError(BrokerCode.MESSAGE_LABELS, f"{subject} left off {', '.join(sorted(missing))}")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Cleared:
    """What the policy says about labels that a message leaves off. `waived` may be missing from it and no others.

    `asked` is for the log at once, `lowered` when the message is taken in.
    """

    waived: Labels = NOTHING
    refusal: BrokerError | None = None
    asked: Owed | None = None
    lowered: Entry | None = None


CLEARED: Final = Cleared()


@final
class Ratchets:
    """The account of every agent's labels."""

    def __init__(self, *, store: Store, audit: Audit, edges: Edges) -> None:
        self._store = store
        self._audit = audit
        self._edges = edges

    def of(self, subject: str) -> Labels:
        """As committed now."""
        return self._store.read(lambda tx: held(tx, subject))

    def raise_in(self, tx: Transaction, session: Session, labels: Iterable[str], *, why: str, at: datetime) -> None:
        """Add labels, inside the transaction that gives the agent what bears them; an entry says so when it is news."""
        before = held(tx, session.subject)
        after = before.union(labels)
        if after == before:
            return
        tx.marks.put(_MARK + session.subject, json.dumps(sorted(after)))
        entry = Entry(
            kind=Kind.LABELS_RAISED,
            at=at,
            subject=session.subject,
            tenant=session.record.tenant,
            resource=why,
            generation=session.generation,
            more={"labels": sorted(after - before)},
        )
        self._audit.append(tx, entry)

    async def delivered(self, session: Session, labels: Iterable[str], *, why: str, at: datetime) -> None:
        """Raise before anything that bears these labels is handed to the agent; costs nothing when it is no news."""
        wanted = frozenset(labels)
        if wanted and not wanted <= self.of(session.subject):
            await self._store.transact(lambda tx: self.raise_in(tx, session, wanted, why=why, at=at))

    async def hear_of(self, session: Session, mailbox: str, senders: Iterable[str], at: datetime) -> frozenset[str]:
        """Of these senders, those of whose ended mail the agent may hear; it is held to their labels from then on.

        The id of a message is its sender's choice and can say anything, and what is left of a parcel does not tell its
        labels any more: those of its sender stand for them.
        """
        known = {sender: self.of(sender) for sender in set(senders) - {session.subject}}
        allowed, heard = {session.subject}, self.of(session.subject)
        for sender, labels in sorted(known.items()):
            read = not labels or self._edges.permits(session, Receive(mailbox, labels), at)
            if read and fits(heard, labels):
                allowed.add(sender)
                heard |= labels
        await self.delivered(session, heard, why=mailbox, at=at)
        return frozenset(allowed)

    def clear(
        self,
        session: Session,
        action: Send,
        holding: Labels,
        at: datetime,
        *,
        msg_id: bytes = b"",
        correlation_id: str = "",
    ) -> Cleared:
        """Ask the policy about the labels of `holding` that a message leaves off. `require` has the last word."""
        missing = holding - action.labels
        if not missing:
            return CLEARED
        asked = Declassify(action.mailbox, action.message_type, missing, action.kind)
        answer = self._edges.ask(session, asked, at, correlation_id=correlation_id)
        if answer.permit is None:
            codes = codes_of(answer.refusal) if answer.refusal else ()
            detail = f"{session.subject} left off {', '.join(sorted(missing))} for {action.mailbox}"
            refusal = BrokerError(BrokerCode.MESSAGE_LABELS, detail, codes=tuple(codes))
            return Cleared(refusal=refusal, asked=answer.entry)
        lowered = Entry(
            kind=Kind.LABELS_LOWERED,
            at=at,
            subject=session.subject,
            tenant=session.record.tenant,
            resource=action.mailbox,
            policy=session.bundle.digest,
            evidence=session.record.evidence.hex(),
            permit=answer.permit.digest.hex(),
            generation=session.generation,
            correlation_id=correlation_id,
            more={"labels": sorted(missing), "msg_id": msg_id.hex(), "type": action.message_type},
        )
        return Cleared(waived=missing, asked=answer.entry, lowered=lowered)
