"""Leases: parcels handed to the owner of a mailbox for a while, and what he says about them.

Decides what a receiver is handed: only what the policy lets it read, of senders who may still act or as the mailbox's
rule says of fallen ones, to whose labels it is held before it sees anything. At least once, in order for each sender; a
lease that ended is lost, not late success. What is tried too often, rejected, or of labels that the receiver may not
see becomes a dead letter.
"""

import secrets
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, final

from attestation.encoding import b64url
from broker.audit import Audit
from broker.errors import BrokerCode, BrokerError
from broker.generation import Generation
from broker.mail.bell import Bell
from broker.mail.deadletters import DeadLetters
from broker.mail.edges import Edges
from broker.mail.forged import Forged
from broker.mail.labels import Labels, Ratchets, fits, labels_in
from broker.ports import Clock, Store, Transaction
from broker.ports.mail import MAX_OCTETS, NO_LIMIT, EndedParcel, Leased, LeasedMessage, MailboxRecord
from broker.sessions import Session, Sessions
from broker.wire.errors import WireError
from broker.wire.leases import DEFAULT_LEASE_S, MAX_LEASE_S, AckRequest, AckResponse
from policies.errors import Refused
from policies.model import Receive

MAX_ATTEMPTS: Final = 5
LEFT_MS: Final = -1  # in place of a moment: the owner has closed the mailbox
HOLD_MS: Final = 30_000  # an owner that was not heard of for so long may be succeeded
MAX_BEGUN: Final = 65_536  # mailboxes; of one that is forgotten what is out comes again, and nothing is lost
RENEW_MS: Final = 20_000  # what is left of a hold when it is renewed


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """How much a receiver takes at once; the first parcel may have more messages and bytes than that."""

    parcels: int = 16
    messages: int = NO_LIMIT
    octets: int = MAX_OCTETS
    lease_s: int = DEFAULT_LEASE_S


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """Parcels under leases, with the verdicts of their senders as peer tokens.

    `tokens` are of senders who may still act, by subject; `past` of fallen ones, by lease, as they were when the parcel
    was taken in. `cut` says that a bound ended it, so that there may be more at once.
    """

    messages: tuple[LeasedMessage, ...] = ()
    tokens: dict[str, str] = field(default_factory=dict, repr=False)
    past: dict[str, str] = field(default_factory=dict, repr=False)
    cut: bool = False


NOTHING: Final = Taken()


@final
class Leases:
    """Hands out and takes back."""

    def __init__(
        self,
        *,
        store: Store,
        audit: Audit,
        edges: Edges,
        generation: Generation,
        sessions: Sessions,
        labels: Ratchets,
        dead: DeadLetters,
        forged: Forged,
        bell: Bell,
        clock: Clock,
    ) -> None:
        self._store = store
        self._audit = audit
        self._edges = edges
        self._generation = generation
        self._sessions = sessions
        self._labels = labels
        self._dead = dead
        self._forged = forged
        self._bell = bell
        self._clock = clock
        self._begun: OrderedDict[str, str] = OrderedDict()  # mailbox → who has been handed mail from it by this process

    # ── handing out ────────────────────────────────────────────────────────────────────────────────────────────────

    async def take(self, session: Session, name: str, wanted: Wanted, *, correlation_id: str = "") -> Taken:
        """What is there now, leased; senders take turns.

        Raises BrokerError mailbox.unknown, mailbox.not_owner, generation.moved; Refused.
        """
        at = self._clock()
        known = self._begun.get(name) == session.subject  # else what is out comes first: see _lease
        now_ms = int(at.timestamp() * 1000) if known else NO_LIMIT

        def query(tx: Transaction) -> tuple[MailboxRecord | None, Sequence[str]]:
            return tx.mail.find(name), tx.mail.senders(name, now_ms=now_ms, max_messages=wanted.messages)

        record, subjects = self._store.read(query)
        held_until_ms = self._own(record, session, name)
        await self.permit(session, Receive(name), at, correlation_id)
        await self._renew(session, name, held_until_ms, at)
        if not subjects:
            return NOTHING
        senders = await self._sessions.settle(tuple(subjects), at)
        found = await self._lease(session, name, wanted, frozenset(senders), at)
        leased = await self._readable(session, name, found.messages, at, correlation_id)
        named = {message.sender for message in leased}
        present = {subject: sender for subject, sender in senders.items() if subject in named}
        tokens = {subject: self._sessions.peer_token(sender, at) for subject, sender in present.items()}
        past, unproved = self._past([message for message in leased if message.sender not in tokens])
        if unproved:
            await self._reject(name, unproved, at, code=BrokerCode.AGENT_QUARANTINED)
        lost = {message.lease for message in unproved}
        proved = tuple(message for message in leased if message.lease not in lost)
        return Taken(messages=proved, tokens=tokens, past=past, cut=found.cut)

    def forget(self, name: str, owner: str) -> None:
        """What is out of the owner's mailbox comes first, and again, when he next takes something."""
        if self._begun.get(name) == owner:
            del self._begun[name]

    async def hold(self, session: Session, name: str, at: datetime) -> None:
        """The mailbox is the session's own, and its owner is there.

        Raises BrokerError mailbox.unknown, mailbox.not_owner.
        """
        held_until_ms = self._own(self._store.read(lambda tx: tx.mail.find(name)), session, name)
        await self._renew(session, name, held_until_ms, at)

    async def _renew(self, session: Session, name: str, held_until_ms: int, at: datetime) -> None:
        now_ms = int(at.timestamp() * 1000)
        if held_until_ms - now_ms < RENEW_MS:
            until_ms = now_ms + HOLD_MS

            def work(tx: Transaction) -> None:
                self._own(tx.mail.find(name), session, name)
                tx.mail.hold(name, owner=session.subject, until_ms=until_ms)

            await self._store.transact(work)

    @staticmethod
    def _own(record: MailboxRecord | None, session: Session, name: str) -> int:
        """Until when it is held. Raises BrokerError mailbox.unknown, mailbox.not_owner."""
        if record is None:
            raise BrokerError(BrokerCode.MAILBOX_UNKNOWN, f"{name[:80]!a}")
        if record.owner != session.subject:
            raise BrokerError(BrokerCode.MAILBOX_NOT_OWNER, f"{name} belongs to {record.owner}")
        if record.held_until_ms == LEFT_MS:  # a request that was still waiting takes nothing for who has gone
            raise BrokerError(BrokerCode.MAILBOX_NOT_OWNER, f"{record.owner} has left {name}")
        return record.held_until_ms

    async def permit(self, session: Session, action: Receive, at: datetime, correlation_id: str) -> None:
        """Raises Refused."""
        if refusal := await self._ask(session, action, at, correlation_id):
            raise refusal

    async def _ask(self, session: Session, action: Receive, at: datetime, correlation_id: str) -> Refused | None:
        answer = self._edges.ask(session, action, at, correlation_id=correlation_id)
        if (entry := answer.entry) is not None:
            await self._store.transact(lambda tx: entry.pay(tx, self._audit))
        return answer.refusal

    async def _lease(self, session: Session, name: str, wanted: Wanted, ready: frozenset[str], at: datetime) -> Leased:
        now_ms = int(at.timestamp() * 1000)
        tokens = [b64url(secrets.token_bytes(16)) for _ in range(wanted.parcels)]
        rule = session.bundle.settings.mail.of(name)
        anew = self._begin(name, session.subject)

        def work(tx: Transaction) -> Leased:
            self._generation.expect(tx, session.generation)
            self._own(tx.mail.find(name), session, name)
            if anew:  # what was out went to an owner, or through a broker, that is no more: it comes first, in order
                tx.mail.recall(name, (), now_ms=now_ms)
            leased = tx.mail.lease(
                name,
                now_ms=now_ms,
                until_ms=now_ms + wanted.lease_s * 1000,
                leases=tokens,
                max_attempts=MAX_ATTEMPTS,
                max_messages=wanted.messages,
                max_octets=wanted.octets,
                fallen=rule.fallen_sender,
                ready=ready,
            )
            self._dead.bury(tx, leased.ended, at)
            return leased

        try:
            return await self._store.transact(work)
        except BaseException:
            if anew:
                self._begun.pop(name, None)
            raise

    def _begin(self, name: str, owner: str) -> bool:
        """Whether this is the first mail that the owner is handed from it; noted at once, since others may ask too."""
        if self._begun.get(name) == owner:
            return False
        self._begun[name] = owner
        self._begun.move_to_end(name)
        if len(self._begun) > MAX_BEGUN:
            self._begun.popitem(last=False)
        return True

    async def _readable(
        self, session: Session, name: str, leased: Sequence[LeasedMessage], at: datetime, correlation_id: str
    ) -> Sequence[LeasedMessage]:
        """Those whose labels the policy lets the receiver see, to which it is held from now on; the others die here,
        and so do those with more labels than it could ever put on a message."""
        labels: Labels = frozenset()
        readable: list[LeasedMessage] = []
        denied: list[LeasedMessage] = []
        laden: list[LeasedMessage] = []
        broken: list[LeasedMessage] = []
        held = self._labels.of(session.subject)
        for message in leased:
            try:
                found = labels_in(message.kind, message.envelope)
            except WireError:  # it was well formed when it was taken in: somebody has been at the database
                broken.append(message)
                continue
            if await self._ask(session, Receive(name, found), at, correlation_id):
                denied.append(message)
                continue
            if not fits(held | labels, found):
                laden.append(message)
                continue
            readable.append(message)
            labels |= found
        for code, refused in (
            (BrokerCode.POLICY_REFUSED, denied),
            (BrokerCode.MESSAGE_LADEN, laden),
            (BrokerCode.STORE_ROW_FORGED, broken),
        ):
            if refused:
                await self._reject(name, refused, at, code=code)
        self._forged.noticed(name, len(broken))
        await self._labels.delivered(session, labels, why=name, at=at)
        return readable

    def _past(self, fallen: Sequence[LeasedMessage]) -> tuple[dict[str, str], list[LeasedMessage]]:
        """For mail of fallen senders, what proved them when it was taken in; and the mail for which nothing does."""
        found: dict[str, str] = {}
        unproved: list[LeasedMessage] = []
        then = [(message.sender, message.accepted_at_ms // 1000) for message in fallen]
        tokens = self._store.read(lambda tx: [tx.mail.token_at(sender, at_s) for sender, at_s in then])
        for message, token in zip(fallen, tokens, strict=True):
            if token is None:
                unproved.append(message)
            else:
                found[message.lease] = token
        return found, unproved

    async def _reject(self, name: str, leased: Sequence[LeasedMessage], at: datetime, *, code: str) -> None:
        now_ms = int(at.timestamp() * 1000)

        def work(tx: Transaction) -> None:
            ended = [tx.mail.reject(name, message.lease, now_ms=now_ms, code=code) for message in leased]
            self._dead.bury(tx, [parcel for parcel in ended if parcel is not None], at)

        await self._store.transact(work)

    # ── taking back ────────────────────────────────────────────────────────────────────────────────────────────────

    async def answer(
        self, session: Session, name: str, request: AckRequest, *, first: Callable[[Transaction], None] | None = None
    ) -> AckResponse:
        """Do what the receiver says about its leases, all in one transaction; those that had ended are named. `first`
        happens before, in the same one.

        Raises BrokerError mailbox.unknown, mailbox.not_owner; lease.lost when every lease had ended; and as `first`.
        """
        at = self._clock()
        await self.hold(session, name, at)

        def work(tx: Transaction) -> Sequence[str]:
            if first is not None:
                first(tx)
            return self._answered(tx, session, name, request, at)

        lost = await self._store.transact(work)
        if request.nak or request.partly:
            self._bell.ring(name)
        if lost and len(lost) == request.size:
            raise BrokerError(BrokerCode.LEASE_LOST, f"{len(lost)} leases of {name}")
        return AckResponse(done=request.size - len(lost), lost=tuple(lost))

    def _answered(
        self, tx: Transaction, session: Session, name: str, request: AckRequest, at: datetime
    ) -> Sequence[str]:
        self._own(tx.mail.find(name), session, name)
        mail, now_ms = tx.mail, int(at.timestamp() * 1000)
        lost = [lease for lease in request.ack if not mail.acknowledge(name, lease, now_ms=now_ms)]
        for nak in request.nak:
            visible_at_ms = now_ms + nak.delay_s * 1000
            if not mail.give_back(name, nak.lease, now_ms=now_ms, visible_at_ms=visible_at_ms, code=nak.code):
                lost.append(nak.lease)
        for part in request.partly:
            visible_at_ms = now_ms + part.delay_s * 1000
            if not mail.give_back(
                name, part.lease, now_ms=now_ms, visible_at_ms=visible_at_ms, remaining=part.but, code=part.code
            ):
                lost.append(part.lease)
        for longer in request.extend:
            until_ms = now_ms + longer.lease_s * 1000
            if not mail.extend(name, longer.lease, now_ms=now_ms, until_ms=until_ms, max_ms=MAX_LEASE_S * 1000):
                lost.append(longer.lease)
        ended: list[EndedParcel] = []
        for rejected in request.reject:
            parcel = mail.reject(name, rejected.lease, now_ms=now_ms, code=rejected.code)
            if parcel is None:
                lost.append(rejected.lease)
            else:
                ended.append(parcel)
        self._dead.bury(tx, ended, at)
        return lost
