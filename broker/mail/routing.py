"""Routing: an envelope from a judged sender into the queue of a mailbox, its body opaque.

Decides, before anything is queued: that the header names the very agent that sends, that this agent signed header and
body, that the mailbox is open under the key and incarnation it is sealed to, that it has not expired, that its labels
are no fewer than the sender is held to, and that the policy lets this sender send this type with these labels there.
One transaction takes a whole batch.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Final, Literal, final

from broker.audit import Audit
from broker.errors import BrokerCode, BrokerError
from broker.generation import Generation
from broker.mail.bell import Bell
from broker.mail.deadletters import DeadLetters
from broker.mail.edges import Edges, Owed
from broker.mail.labels import CLEARED, Cleared, Labels, Ratchets, require
from broker.mail.vouchers import Vouchers
from broker.ports import AgentState, Clock, Store, Transaction
from broker.ports.mail import MailboxRecord, NewMessage, Queued
from broker.reasons import Refusal
from broker.sessions import Session
from broker.wire.envelope import MAX_LIFE_MS, Envelope, Header
from broker.wire.errors import WireError
from broker.wire.jose import p256_from_spki
from broker.wire.mailbox import SendResponse, SendResult, SendStatus
from broker.wire.names import is_resource
from broker.wire.tools import ToolsAllowed, call_type, tool_name
from policies.errors import Refused
from policies.model import Send

SKEW_MS: Final = 60_000  # how far a sender's clock may be ahead
FULL_RETRY_S: Final = 1
identity_of = lru_cache(4096)(p256_from_spki)  # public keys of senders, read once


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """An envelope that may be queued, or why not. `entries` are what the log has to hear about it."""

    msg_id: bytes
    message: NewMessage | None
    incarnation: bytes = b""
    refusal: Refusal | None = None
    labels: Labels = frozenset()
    cleared: Cleared = CLEARED
    entries: tuple[Owed, ...] = ()


@final
class Router:
    """Takes envelopes in."""

    def __init__(
        self,
        *,
        store: Store,
        audit: Audit,
        edges: Edges,
        generation: Generation,
        labels: Ratchets,
        vouchers: Vouchers,
        dead: DeadLetters,
        bell: Bell,
        clock: Clock,
    ) -> None:
        self._store = store
        self._audit = audit
        self._edges = edges
        self._generation = generation
        self._labels = labels
        self._vouchers = vouchers
        self._dead = dead
        self._bell = bell
        self._clock = clock

    async def send(
        self, session: Session, mailbox: str, envelopes: tuple[Envelope, ...], *, correlation_id: str = ""
    ) -> SendResponse:
        """One result for each envelope, in order. When none was taken, the first refusal is raised.

        Raises BrokerError mailbox.*, message.*, generation.moved; WireError envelope.*; Refused.
        """
        at = self._clock()
        voucher = self._vouchers.needed(session, mailbox, at)
        held = self._labels.of(session.subject)
        checked = [self.check(session, mailbox, envelope, held, at, correlation_id) for envelope in envelopes]
        entries = [entry for item in checked for entry in item.entries]

        def work(tx: Transaction) -> list[Refusal | SendStatus]:
            self._generation.expect(tx, session.generation)
            for entry in entries:
                entry.pay(tx, self._audit)
            self._vouchers.keep(tx, session, voucher, at)
            box = open_box(tx, mailbox)
            return [item.refusal or self._queue(tx, box, item, at) for item in checked]

        outcomes = await self._store.transact(work)
        self._vouchers.kept(session, voucher)
        refused = [outcome for outcome in outcomes if not isinstance(outcome, SendStatus)]
        if len(refused) == len(outcomes):
            raise refused[0]
        if SendStatus.QUEUED in outcomes:
            self._bell.ring(mailbox)
        return SendResponse(
            results=tuple(result_of(item.msg_id, outcome) for item, outcome in zip(checked, outcomes, strict=True))
        )

    def callable_tools(self, session: Session, mailbox: str, tools: Iterable[str], at: datetime) -> ToolsAllowed:
        """Those that it may call there with all that it is held to. The log hears of it when it calls.

        Raises BrokerError mailbox.name_invalid: what is asked is remembered, and a path may be long.
        """
        if not is_resource(mailbox):
            raise BrokerError(BrokerCode.MAILBOX_NAME, f"{mailbox[:80]!a}")
        held, pins = self._labels.of(session.subject), dict(session.bundle.settings.tools)
        allowed = [tool for tool in tools if self._edges.permits(session, Send(mailbox, call_type(tool), held), at)]
        approved = {tool: pins.get(tool_name(mailbox, tool) or "", "") for tool in allowed}
        return ToolsAllowed(tools=tuple(allowed), pins={tool: pin for tool, pin in approved.items() if pin})

    def check(
        self,
        session: Session,
        mailbox: str,
        envelope: Envelope,
        held: Labels,
        at: datetime,
        correlation_id: str,
        *,
        kind: Literal["mailbox", "topic"] = "mailbox",
    ) -> Checked:
        """Everything that needs no transaction. What it refuses is in the result."""
        msg_id = b""
        try:
            header = Header.from_bytes(envelope.header)
            msg_id = header.msg_id
            belongs(header, session, mailbox, at)
            envelope.verify(identity_of(session.verdict.identity_key))
        except (BrokerError, WireError) as error:
            return Checked(msg_id=msg_id, message=None, refusal=error)
        action = Send(mailbox, header.type, frozenset(header.labels), kind)
        answer = self._edges.ask(session, action, at, correlation_id=correlation_id)
        cleared = CLEARED
        if answer.permit is not None:
            cleared = self._labels.clear(session, action, held, at, msg_id=msg_id, correlation_id=correlation_id)
        message = NewMessage(
            mailbox=mailbox,
            sender=session.subject,
            msg_id=msg_id,
            digest=envelope.digest,
            envelope=envelope.to_bytes(),
            key=header.mailbox_key,
            accepted_at_ms=int(at.timestamp() * 1000),
            expires_at_ms=header.expires_at_ms,
        )
        return Checked(
            msg_id=msg_id,
            message=message,
            incarnation=header.incarnation,
            refusal=answer.refusal or cleared.refusal,
            labels=action.labels,
            cleared=cleared,
            entries=tuple(entry for entry in (answer.entry, cleared.asked) if entry is not None),
        )

    def _queue(
        self, tx: Transaction, box: MailboxRecord | BrokerError, item: Checked, at: datetime
    ) -> Refusal | SendStatus:
        assert item.message is not None
        message = item.message
        if isinstance(box, BrokerError):
            return box
        if not tx.mail.accepts(box.name, message.key, item.incarnation):
            return BrokerError(BrokerCode.MAILBOX_KEY_STALE, message.mailbox)
        try:
            require(tx, message.sender, item.labels, item.cleared.waived)
        except BrokerError as error:
            return error
        match self._dead.queue(tx, message, at):
            case Queued.QUEUED:
                if item.cleared.lowered is not None:
                    self._audit.append(tx, item.cleared.lowered)
                return SendStatus.QUEUED
            case Queued.DUPLICATE:
                return SendStatus.DUPLICATE
            case Queued.ID_REUSED:
                return BrokerError(BrokerCode.MESSAGE_ID_REUSED, message.msg_id.hex())
            case Queued.FULL:
                return BrokerError(BrokerCode.MAILBOX_FULL, message.mailbox, retry_after_s=FULL_RETRY_S)


def open_box(tx: Transaction, mailbox: str) -> MailboxRecord | BrokerError:
    """The mailbox, or why nothing can be sent there: it was never opened, or nobody will ever read it."""
    box = tx.mail.find(mailbox)
    if box is None:
        return BrokerError(BrokerCode.MAILBOX_UNKNOWN, mailbox)
    if box.kind != "durable":
        owner = tx.agents.get(box.owner)
        if owner is not None and owner.state is AgentState.REVOKED:
            return BrokerError(BrokerCode.MAILBOX_OWNER_GONE, mailbox)
    return box


def belongs(header: Header, session: Session, mailbox: str, at: datetime) -> None:
    """Raises BrokerError message.sender_mismatch, message.mailbox_mismatch, message.expired."""
    verdict = session.verdict
    if (header.sender, header.sender_jkt, header.tenant) != (verdict.subject, verdict.jkt, verdict.tenant):
        raise BrokerError(BrokerCode.MESSAGE_SENDER, f"{session.subject} sends as {header.sender}")
    if header.mailbox != mailbox:
        raise BrokerError(BrokerCode.MESSAGE_MAILBOX, f"{header.mailbox} at {mailbox}")
    now_ms = int(at.timestamp() * 1000)
    if not now_ms < header.expires_at_ms <= now_ms + MAX_LIFE_MS or header.sent_at_ms > now_ms + SKEW_MS:
        raise BrokerError(BrokerCode.MESSAGE_EXPIRED, f"sent {header.sent_at_ms}, ends {header.expires_at_ms}")


def result_of(msg_id: bytes, outcome: Refusal | SendStatus) -> SendResult:
    """What the sender is told of one envelope."""
    if isinstance(outcome, SendStatus):
        return SendResult(msg_id=msg_id, status=outcome)
    code = BrokerCode.POLICY_REFUSED if isinstance(outcome, Refused) else outcome.code
    return SendResult(msg_id=msg_id or bytes(16), status=SendStatus.REFUSED, code=str(code))
