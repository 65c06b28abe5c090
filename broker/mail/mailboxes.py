"""Mailboxes: opened by their owner, found by senders, emptied under leases.

Decides who owns a mailbox: who opened it, as long as he is heard of; then, and before if the bundle says so, whoever
the policy lets receive there. A successor is named in the log beside the owner before him, whose leases end. Decides
what a sender is told, and how deliveries look: each with the broker's signature over the moment of acceptance.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import datetime
from typing import Final, final

from attestation.evidence import SEALING_KEY_SIZES
from broker.audit import Audit, Entry, Kind
from broker.errors import BrokerCode, BrokerError
from broker.generation import Generation
from broker.mail.acceptance import Acceptances
from broker.mail.bell import Bell
from broker.mail.deadletters import DeadLetters
from broker.mail.leases import HOLD_MS, LEFT_MS, Leases, Taken, Wanted
from broker.mail.mailkeys import require_kept
from broker.ports import AgentState, Clock, Store, Transaction
from broker.ports.mail import LeasedMessage, MailboxRecord, Quota
from broker.sessions import Session, Sessions
from broker.wire.channel import channel_of
from broker.wire.envelope import Envelope
from broker.wire.errors import WireCode, WireError
from broker.wire.jose import p256_from_spki
from broker.wire.leases import AckRequest, AckResponse
from broker.wire.mailbox import (
    BatchDelivery,
    Delivery,
    MailboxInfo,
    MailboxKey,
    OpeningDelivery,
    ReceiveRequest,
    ReceiveResponse,
)
from broker.wire.names import is_resource, tenant_of
from policies.model import Receive

LOOK_AGAIN_S: Final = 1.0  # a lease may end, or a delay, while a receiver waits
MAX_STREAMED: Final = 65_536  # mailboxes of which it is known that their owner has a stream


@final
class Mailboxes:
    """Opens, shows and empties mailboxes."""

    def __init__(
        self,
        *,
        store: Store,
        audit: Audit,
        generation: Generation,
        sessions: Sessions,
        accepted: Acceptances,
        leases: Leases,
        dead: DeadLetters,
        bell: Bell,
        clock: Clock,
        quota: Quota,
    ) -> None:
        self._store = store
        self._audit = audit
        self._generation = generation
        self._sessions = sessions
        self._accepted = accepted
        self._leases = leases
        self._dead = dead
        self._bell = bell
        self._clock = clock
        self._streamed: dict[str, str] = {}  # mailbox → the owner who was last seen on a stream
        self._quota = quota
        self._end_stream: Callable[[str], Awaitable[None]] = _no_stream

    async def open(self, session: Session, name: str, key: MailboxKey, *, correlation_id: str = "") -> None:
        """Publish an epoch's key, and own the mailbox from now on.

        Raises WireError mailbox.key_signature_invalid, body.field_invalid; BrokerError mailbox.name_invalid,
        mailbox.taken, mailbox.too_many, generation.moved; Refused.
        """
        at = self._clock()
        if not is_resource(name) or key.mailbox != name:
            raise BrokerError(BrokerCode.MAILBOX_NAME, f"{name[:80]!a}")
        identity = p256_from_spki(session.verdict.identity_key)
        key.verify(identity, mailbox=name, owner=session.subject, at_s=int(at.timestamp()))
        if len(key.key) != SEALING_KEY_SIZES.get(key.suite):
            raise WireError(WireCode.BODY_FIELD_INVALID, f"mailbox_key: no key of suite {key.suite!a}")
        await self._leases.permit(session, Receive(name), at, correlation_id)
        record = MailboxRecord(
            name=name,
            owner=session.subject,
            key=key.thumbprint,
            incarnation=key.incarnation,
            epoch=key.epoch,
            statement=json.dumps(key.to_dict(), separators=(",", ":")),
            kind=key.kind,
            held_until_ms=int(at.timestamp() * 1000) + HOLD_MS,
        )
        before = self._store.read(lambda tx: tx.mail.find(name))
        former = before.owner if before is not None and before.owner != session.subject else ""

        def work(tx: Transaction) -> None:
            self._generation.expect(tx, session.generation)
            require_kept(tx, key)
            self._may_open(tx, session, name, former, at)
            self._dead.bury(tx, tx.mail.open(record), at)

        await self._audit.record(self._opened(session, key, former, at, correlation_id), work)
        if former:
            self._bell.ring(name)

    def _may_open(self, tx: Transaction, session: Session, name: str, former: str, at: datetime) -> None:
        """Whether the mailbox is free for this agent: its own, nobody's, or its owner's who is gone.

        Raises BrokerError mailbox.taken, mailbox.too_many.
        """
        before, quota = tx.mail.find(name), self._quota
        if (before is None or before.owner != session.subject) and tx.mail.owned(session.subject) >= quota.mailboxes:
            raise BrokerError(BrokerCode.MAILBOX_TOO_MANY, f"{session.subject} owns {quota.mailboxes}")
        if before is None and tx.mail.of_tenant(tenant_of(name)) >= quota.tenant_mailboxes:
            raise BrokerError(BrokerCode.MAILBOX_TOO_MANY, f"{tenant_of(name)} has {quota.tenant_mailboxes}")
        owner = before.owner if before is not None and before.owner != session.subject else ""
        if owner != former:
            raise BrokerError(BrokerCode.MAILBOX_TAKEN, f"{name} has just gone to {owner}", retry_after_s=1)
        if before is None or not owner or session.bundle.settings.mail.of(name).takeover == "permitted":
            return
        agent = tx.agents.get(owner)
        held_s = (before.held_until_ms - int(at.timestamp() * 1000)) / 1000
        here = agent is not None and agent.state is AgentState.ADMITTED and agent.expires_at_s > at.timestamp()
        if here and held_s > 0:
            raise BrokerError(BrokerCode.MAILBOX_TAKEN, f"{name} is {owner}'s", retry_after_s=max(1, round(held_s)))

    async def close(self, session: Session, name: str) -> None:
        """Leave a mailbox: whoever may receive there can open it at once.

        Raises BrokerError mailbox.unknown, mailbox.not_owner.
        """
        self._dead.owned(session, name)
        await self._store.transact(lambda tx: tx.mail.hold(name, owner=session.subject, until_ms=LEFT_MS))

    def _opened(self, session: Session, key: MailboxKey, former: str, at: datetime, correlation_id: str) -> Entry:
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
            more={"key": key.thumbprint.hex(), "epoch": key.epoch, "mailbox_kind": key.kind, "taken_from": former},
        )

    async def info(self, session: Session, name: str) -> MailboxInfo:
        """Where to send, for an admitted agent.

        Raises BrokerError mailbox.unknown, agent.*: a mailbox whose owner may no longer act is nobody's. The owner of a
        durable one may be away, as long as he would still be admitted: his successor gets the key that he signed.
        """
        at = self._clock()
        record, next_seq = self._store.read(lambda tx: (tx.mail.find(name), tx.mail.next_seq(name, session.subject)))
        if record is None or tenant_of(name) != session.record.tenant:  # nor do other tenants learn what there is
            raise BrokerError(BrokerCode.MAILBOX_UNKNOWN, f"{name[:80]!a}")
        find = self._sessions.of_subject if record.kind == "durable" else self._sessions.peer
        owner = await find(record.owner, at)
        return MailboxInfo(
            key=MailboxKey.from_dict(json.loads(record.statement)),
            owner_token=self._sessions.peer_token(owner, at),
            next_seq=next_seq,
            streams=self._streamed.get(name) == record.owner,
        )

    def on_stream(self, session: Session, name: str) -> None:
        """The owner receives on a mail stream now: senders are told that he takes channels."""
        if len(self._streamed) >= MAX_STREAMED:
            self._streamed.clear()  # until they come again, their senders write envelopes
        self._streamed[name] = session.subject

    def streams_end_by(self, end: Callable[[str], Awaitable[None]]) -> None:
        """How the stream that empties a mailbox is ended, where there are streams."""
        self._end_stream = end

    async def receive(
        self, session: Session, name: str, request: ReceiveRequest, *, correlation_id: str = ""
    ) -> ReceiveResponse:
        """Mail that is there, leased; waits for a first message if told so. Raises as `Leases.take` does."""
        if request.anew:
            await self._leases.hold(session, name, self._clock())
            await self._end_stream(name)
            self._leases.forget(name, session.subject)
        loop = asyncio.get_running_loop()
        give_up = loop.time() + request.wait_s
        wanted = Wanted(parcels=request.max_messages, lease_s=request.lease_s)
        while True:
            taken = await self._leases.take(session, name, wanted, correlation_id=correlation_id)
            left = give_up - loop.time()
            if taken.messages or left <= 0 or self._bell.stopping:
                return self._deliveries(name, taken)
            await self._bell.wait(name, min(left, LOOK_AGAIN_S))

    def _deliveries(self, name: str, taken: Taken) -> ReceiveResponse:
        envelopes = [message for message in taken.messages if message.kind == "envelope"]
        batches = [message for message in taken.messages if message.kind == "batch"]
        return ReceiveResponse(
            deliveries=tuple(self._delivery(name, message, taken) for message in envelopes),
            senders=taken.tokens,
            batches=tuple(self._batch(name, message, taken) for message in batches),
            openings=tuple(self._openings(name, batches, taken)),
        )

    def _openings(self, name: str, batches: Sequence[LeasedMessage], taken: Taken) -> Iterator[OpeningDelivery]:
        fell = {channel_of(message.envelope): message.lease in taken.past for message in batches}
        return self._accepted.openings(name, fell)

    def _delivery(self, name: str, message: LeasedMessage, taken: Taken) -> Delivery:
        envelope = Envelope.from_bytes(message.envelope)
        digest = message.digest or envelope.digest  # mail of before digests were kept
        return Delivery(
            envelope=envelope,
            lease=message.lease,
            attempt=message.attempt,
            accepted_at_ms=message.accepted_at_ms,
            acceptance=self._accepted.of(name, digest, message.accepted_at_ms),
            sender_token=taken.past.get(message.lease, ""),
        )

    def _batch(self, name: str, message: LeasedMessage, taken: Taken) -> BatchDelivery:
        return BatchDelivery(
            batch=message.envelope,
            sender=message.sender,
            digest=message.digest,
            lease=message.lease,
            attempt=message.attempt,
            accepted_at_ms=message.accepted_at_ms,
            acceptance=self._accepted.of(name, message.digest, message.accepted_at_ms),
            remaining=message.remaining,
            sender_token=taken.past.get(message.lease, ""),
        )

    async def acknowledge(
        self, session: Session, name: str, request: AckRequest, *, first: Callable[[Transaction], None] | None = None
    ) -> AckResponse:
        """What became of deliveries. Raises as `Leases.answer` does."""
        return await self._leases.answer(session, name, request, first=first)


async def _no_stream(_: str) -> None:
    """Where there are no streams, none is in the way."""
