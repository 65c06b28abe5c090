"""Large payloads beside mailboxes: taken in like a message, handed to the mailbox's owner, gone when they expire.

Decides that a blob is no way around the rules for mail: it is an envelope of the sending agent for one mailbox, held to
the policy, the labels, the keys and the quota there, and only the owner of that mailbox is told that it exists. Between
two agents who may not write to each other, one could otherwise ask whether the other has stored a thing.
"""

from datetime import datetime
from typing import final

from broker.audit import Audit
from broker.errors import BrokerCode, BrokerError
from broker.generation import Generation
from broker.mail.labels import Ratchets, fits, require
from broker.mail.leases import Leases
from broker.mail.routing import FULL_RETRY_S, Checked, Router, open_box
from broker.ports import Clock, Store, Transaction
from broker.ports.mail import BlobRecord, Queued, Quota
from broker.reasons import Refusal
from broker.sessions import Session
from broker.wire.blob import BLOB_TYPE, DIGEST, BlobRef
from broker.wire.envelope import Header
from broker.wire.errors import WireCode, WireError
from policies.model import Receive


@final
class Blobs:
    """Keeps and hands out."""

    def __init__(
        self,
        *,
        store: Store,
        audit: Audit,
        generation: Generation,
        labels: Ratchets,
        router: Router,
        leases: Leases,
        clock: Clock,
        quota: Quota,
    ) -> None:
        self._store = store
        self._audit = audit
        self._generation = generation
        self._labels = labels
        self._router = router
        self._leases = leases
        self._clock = clock
        self._quota = quota

    async def put(self, session: Session, name: str, raw: bytes, *, correlation_id: str = "") -> BlobRef:
        """Keep it until it expires; the same again changes nothing.

        Raises WireError envelope.*; BrokerError blob.digest_mismatch, mailbox.*, message.*, generation.moved; Refused.
        """
        at = self._clock()
        ref = BlobRef.of(raw)
        if name != ref.sha256:
            raise BrokerError(BrokerCode.BLOB_DIGEST, f"{name[:64]!a} names other bytes")
        envelope = ref.open(raw)
        header = Header.from_bytes(envelope.header)
        if header.type != BLOB_TYPE:
            raise WireError(WireCode.ENVELOPE_MALFORMED, f"type {header.type}, a blob has {BLOB_TYPE}")
        held = self._labels.of(session.subject)
        checked = self._router.check(session, header.mailbox, envelope, held, at, correlation_id)
        record = BlobRecord(
            digest=bytes.fromhex(ref.sha256),
            mailbox=header.mailbox,
            sender=session.subject,
            octets=len(raw),
            accepted_at_ms=int(at.timestamp() * 1000),
            expires_at_ms=header.expires_at_ms,
            body=raw,
        )

        def work(tx: Transaction) -> Refusal | None:
            self._generation.expect(tx, session.generation)
            for entry in checked.entries:
                entry.pay(tx, self._audit)
            return checked.refusal or self._keep(tx, record, header, checked)

        if refusal := await self._store.transact(work):
            raise refusal
        return ref

    def _keep(self, tx: Transaction, record: BlobRecord, header: Header, checked: Checked) -> Refusal | None:
        box = open_box(tx, record.mailbox)
        if isinstance(box, BrokerError):
            return box
        if not tx.mail.accepts(box.name, header.mailbox_key, header.incarnation):
            return BrokerError(BrokerCode.MAILBOX_KEY_STALE, record.mailbox)
        try:
            require(tx, record.sender, checked.labels, checked.cleared.waived)
        except BrokerError as error:
            return error
        if tx.blobs.put(record, self._quota) is Queued.FULL:
            return BrokerError(BrokerCode.MAILBOX_FULL, f"blobs of {record.mailbox}", retry_after_s=FULL_RETRY_S)
        if checked.cleared.lowered is not None:
            self._audit.append(tx, checked.cleared.lowered)
        return None

    async def get(self, session: Session, name: str, *, correlation_id: str = "") -> bytes:
        """To the owner of the mailbox beside which it lies, if the policy lets him read what bears its labels.

        Raises BrokerError blob.unknown; Refused.
        """
        at = self._clock()
        record = self._own(session, name, at)
        labels = frozenset(Header.from_bytes(BlobRef.of(record.body).open(record.body).header).labels)
        await self._leases.permit(session, Receive(record.mailbox, labels), at, correlation_id)
        if not fits(self._labels.of(session.subject), labels):
            raise BrokerError(BrokerCode.BLOB_UNKNOWN, f"{name}: more labels than a message holds")
        await self._labels.delivered(session, labels, why=record.mailbox, at=at)
        return record.body

    async def drop(self, session: Session, name: str) -> None:
        """By the owner of the mailbox: it is not needed any more. Raises BrokerError blob.unknown."""
        record = self._own(session, name, self._clock())
        await self._store.transact(lambda tx: tx.blobs.drop(record.digest))

    def _own(self, session: Session, name: str, at: datetime) -> BlobRecord:
        record = None
        if DIGEST.fullmatch(name):
            digest = bytes.fromhex(name)
            record = self._store.read(lambda tx: tx.blobs.get(digest))
        now_ms = int(at.timestamp() * 1000)
        if record is not None and record.expires_at_ms > now_ms:
            mailbox = record.mailbox
            box = self._store.read(lambda tx: tx.mail.find(mailbox))
            if box is not None and box.owner == session.subject:
                return record
        raise BrokerError(BrokerCode.BLOB_UNKNOWN, f"{name[:64]!a}")
