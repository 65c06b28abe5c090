"""Mailboxes: opened by their owner, found by senders, emptied under leases.

Decides who owns a mailbox (the agent whose signed key is newest, if the policy lets it receive there), what a sender is
told, and what a receiver is handed: only mail of senders who would still be admitted, each with the broker's signature
over the moment of acceptance. At least once, in order per sender; a lease that ended is `lease.lost`, not late success.
"""

import asyncio
import json
import secrets
from collections.abc import Sequence
from datetime import datetime
from typing import Final, final

from attestation.encoding import b64url
from attestation.evidence import SEALING_KEY_SIZES
from broker.audit import Audit, Entry, Kind
from broker.edges import Edges
from broker.errors import BrokerCode, BrokerError
from broker.generation import Generation
from broker.identity import Identity
from broker.labels import Labels, Ratchets, labels_in
from broker.ports import Clock, Store, Transaction
from broker.ports_mail import LeasedMessage, MailboxRecord
from broker.sessions import Session, Sessions
from broker.wire.envelope import Envelope
from broker.wire.errors import WireCode, WireError
from broker.wire.jose import es256_sign, p256_from_spki
from broker.wire.leases import AckRequest, AckResponse
from broker.wire.mailbox import (
    Delivery,
    MailboxInfo,
    MailboxKey,
    ReceiveRequest,
    ReceiveResponse,
)
from broker.wire.names import is_resource
from policies.errors import Refused
from policies.model import Receive

MAX_ATTEMPTS: Final = 5
LOOK_AGAIN_S: Final = 1.0  # a lease may end, or a delay, while a receiver waits


@final
class Bell:
    """Wakes receivers that wait for a mailbox, in this process."""

    def __init__(self) -> None:
        self._waiting: dict[str, asyncio.Event] = {}
        self.stopping = False

    def ring(self, mailbox: str) -> None:
        event = self._waiting.pop(mailbox, None)
        if event is not None:
            event.set()

    async def wait(self, mailbox: str, timeout_s: float) -> None:
        """Until somebody rings, or the time is over."""
        event = self._waiting.setdefault(mailbox, asyncio.Event())
        try:
            await asyncio.wait_for(event.wait(), timeout_s)
        except TimeoutError:
            if self._waiting.get(mailbox) is event:
                del self._waiting[mailbox]
                event.set()  # whoever else waits looks for himself

    def stop(self) -> None:
        """Send everybody home: the broker is stopping."""
        self.stopping = True
        for mailbox in list(self._waiting):
            self.ring(mailbox)


@final
class Mailboxes:
    """Opens, shows and empties mailboxes."""

    def __init__(
        self,
        *,
        store: Store,
        audit: Audit,
        edges: Edges,
        generation: Generation,
        sessions: Sessions,
        identity: Identity,
        labels: Ratchets,
        bell: Bell,
        clock: Clock,
    ) -> None:
        self._store = store
        self._audit = audit
        self._edges = edges
        self._generation = generation
        self._sessions = sessions
        self._identity = identity
        self._labels = labels
        self._bell = bell
        self._clock = clock

    async def open(self, session: Session, name: str, key: MailboxKey, *, correlation_id: str = "") -> None:
        """Publish an epoch's key, and own the mailbox from now on.

        Raises WireError mailbox.key_signature_invalid, body.field_invalid; BrokerError mailbox.name_invalid,
        generation.moved; Refused.
        """
        at = self._clock()
        if not is_resource(name) or key.mailbox != name:
            raise BrokerError(BrokerCode.MAILBOX_NAME, f"{name[:80]!a}")
        identity = p256_from_spki(session.verdict.identity_key)
        key.verify(identity, mailbox=name, owner=session.subject, at_s=int(at.timestamp()))
        if len(key.key) != SEALING_KEY_SIZES.get(key.suite):
            raise WireError(WireCode.BODY_FIELD_INVALID, f"mailbox_key: no key of suite {key.suite!a}")
        await self._permit(session, name, at, correlation_id)
        record = MailboxRecord(
            name=name,
            owner=session.subject,
            key=key.thumbprint,
            incarnation=key.incarnation,
            epoch=key.epoch,
            statement=json.dumps(key.to_dict(), separators=(",", ":")),
        )

        def work(tx: Transaction) -> None:
            self._generation.expect(tx, session.generation)
            tx.mail.open(record)

        await self._audit.record(self._opened(session, key, at, correlation_id), work)

    def _opened(self, session: Session, key: MailboxKey, at: datetime, correlation_id: str) -> Entry:
        return Entry(
            kind=Kind.MAILBOX_OPENED,
            at=at,
            subject=session.subject,
            tenant=session.record.tenant,
            resource=key.mailbox,
            policy=session.bundle.digest,
            evidence=session.record.evidence.hex(),
            generation=session.generation,
            correlation_id=correlation_id,
            more={"key": key.thumbprint.hex(), "epoch": key.epoch, "mailbox_kind": key.kind},
        )

    async def _permit(self, session: Session, name: str, at: datetime, correlation_id: str) -> None:
        """Raises Refused."""
        if refusal := await self._ask(session, Receive(name), at, correlation_id):
            raise refusal

    async def _ask(self, session: Session, action: Receive, at: datetime, correlation_id: str) -> Refused | None:
        answer = self._edges.ask(session, action, at, correlation_id=correlation_id)
        if (entry := answer.entry) is not None:
            await self._store.transact(lambda tx: self._audit.append(tx, entry))
        return answer.refusal

    async def info(self, session: Session, name: str) -> MailboxInfo:
        """Where to send, for an admitted agent.

        Raises BrokerError mailbox.unknown, agent.*: a mailbox whose owner may no longer act is nobody's.
        """
        at = self._clock()
        record, next_seq = self._store.read(lambda tx: (tx.mail.find(name), tx.mail.next_seq(name, session.subject)))
        if record is None:
            raise BrokerError(BrokerCode.MAILBOX_UNKNOWN, f"{name[:80]!a}")
        owner = await self._sessions.peer(record.owner, at)
        return MailboxInfo(
            key=MailboxKey.from_dict(json.loads(record.statement)),
            owner_token=self._sessions.peer_token(owner, at),
            next_seq=next_seq,
        )

    async def receive(
        self, session: Session, name: str, request: ReceiveRequest, *, correlation_id: str = ""
    ) -> ReceiveResponse:
        """The oldest mail, leased; waits for a first message if told so.

        Raises BrokerError mailbox.unknown, mailbox.not_owner, generation.moved; Refused.
        """
        loop = asyncio.get_running_loop()
        give_up = loop.time() + request.wait_s
        while True:
            at = self._clock()
            self._owned(session, name)
            await self._permit(session, name, at, correlation_id)
            senders = await self._sessions.settle(tuple(self._store.read(lambda tx: tx.mail.senders(name))), at)
            leased = await self._lease(session, name, request, at)
            leased = await self._readable(session, name, leased, at, correlation_id)
            left = give_up - loop.time()
            if leased or left <= 0 or self._bell.stopping:
                return self._deliveries(name, leased, senders, at)
            await self._bell.wait(name, min(left, LOOK_AGAIN_S))

    def _owned(self, session: Session, name: str) -> None:
        record = self._store.read(lambda tx: tx.mail.find(name))
        if record is None:
            raise BrokerError(BrokerCode.MAILBOX_UNKNOWN, f"{name[:80]!a}")
        if record.owner != session.subject:
            raise BrokerError(BrokerCode.MAILBOX_NOT_OWNER, f"{name} belongs to {record.owner}")

    async def _lease(
        self, session: Session, name: str, request: ReceiveRequest, at: datetime
    ) -> Sequence[LeasedMessage]:
        now_ms = int(at.timestamp() * 1000)
        if not self._store.read(lambda tx: tx.mail.waiting(name)):
            return ()
        tokens = [b64url(secrets.token_bytes(16)) for _ in range(request.max_messages)]

        def work(tx: Transaction) -> Sequence[LeasedMessage]:
            self._generation.expect(tx, session.generation)
            leased = tx.mail.lease(
                name,
                now_ms=now_ms,
                until_ms=now_ms + request.lease_s * 1000,
                leases=tokens,
                max_attempts=MAX_ATTEMPTS,
            )
            return leased.messages

        return await self._store.transact(work)

    async def _readable(
        self, session: Session, name: str, leased: Sequence[LeasedMessage], at: datetime, correlation_id: str
    ) -> Sequence[LeasedMessage]:
        """Those whose labels the policy lets the receiver see, to which it is held from now on; the others die here."""
        labels: Labels = frozenset()
        readable: list[LeasedMessage] = []
        denied: list[LeasedMessage] = []
        for message in leased:
            found = labels_in(message.kind, message.envelope)
            if await self._ask(session, Receive(name, found), at, correlation_id):
                denied.append(message)
                continue
            readable.append(message)
            labels |= found
        if denied:
            await self._deny(name, denied, at)
        await self._labels.delivered(session, labels, why=name, at=at)
        return readable

    async def _deny(self, name: str, denied: Sequence[LeasedMessage], at: datetime) -> None:
        now_ms = int(at.timestamp() * 1000)

        def work(tx: Transaction) -> None:
            for message in denied:
                tx.mail.reject(name, message.lease, now_ms=now_ms, code=BrokerCode.POLICY_REFUSED)

        await self._store.transact(work)

    def _deliveries(
        self, name: str, leased: Sequence[LeasedMessage], senders: dict[str, Session], at: datetime
    ) -> ReceiveResponse:
        deliveries = tuple(self._delivery(name, message) for message in leased)
        named = {message.sender for message in leased}
        tokens = {
            subject: self._sessions.peer_token(sender, at) for subject, sender in senders.items() if subject in named
        }
        return ReceiveResponse(deliveries=deliveries, senders=tokens)

    def _delivery(self, name: str, message: LeasedMessage) -> Delivery:
        envelope = Envelope.from_bytes(message.envelope)
        stated = Delivery.message(name, envelope.digest, message.accepted_at_ms)
        return Delivery(
            envelope=envelope,
            lease=message.lease,
            attempt=message.attempt,
            accepted_at_ms=message.accepted_at_ms,
            acceptance=es256_sign(self._identity.key, stated),
        )

    async def acknowledge(self, session: Session, name: str, request: AckRequest) -> AckResponse:
        """Remove what is done, give back what is not; leases that had ended are named.

        Raises BrokerError mailbox.unknown, mailbox.not_owner; lease.lost when every lease had ended.
        """
        self._owned(session, name)
        now_ms = int(self._clock().timestamp() * 1000)

        def work(tx: Transaction) -> list[str]:
            lost = [lease for lease in request.ack if not tx.mail.acknowledge(name, lease, now_ms=now_ms)]
            for nak in request.nak:
                visible_at_ms = now_ms + nak.delay_s * 1000
                if not tx.mail.give_back(name, nak.lease, now_ms=now_ms, visible_at_ms=visible_at_ms):
                    lost.append(nak.lease)
            return lost

        lost = await self._store.transact(work)
        asked = len(request.ack) + len(request.nak)
        if request.nak:
            self._bell.ring(name)
        if lost and len(lost) == asked:
            raise BrokerError(BrokerCode.LEASE_LOST, f"{len(lost)} leases of {name}")
        return AckResponse(done=asked - len(lost), lost=tuple(lost))
