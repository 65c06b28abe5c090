"""Mail that ended other than by being handled: tombstones for all of it, dead letters for what might be tried again.

Decides that nothing which was taken in ends in silence: the broker signs how, in the transaction in which it ends, and
the sender and the owner can both read it. What was tried too often or rejected stays, sealed, until somebody whom the
policy permits sends it on its way again or its time is over. The log hears of dead letters and of dropped mail in one
entry for each transaction, and of what a mailbox has too much of sparingly; of expired mail nothing, since a sender
could fill the log with it.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import datetime
from typing import Final, final

from broker.audit import Audit, Entry, Kind
from broker.errors import BrokerCode, BrokerError
from broker.generation import Generation
from broker.identity import Identity
from broker.mail.bell import Bell
from broker.mail.labels import held
from broker.mail.sparing import Sparing
from broker.ports import Clock, Store, Transaction
from broker.ports.mail import DEAD_LETTERS, MAX_ENDED, End, EndedParcel, NewMessage, Queued, Quota, TombstoneRecord
from broker.reasons import codes_of, told
from broker.rights import Admin
from broker.sessions import Session
from broker.wire.deadletters import (
    DeadInfo,
    DeadResponse,
    PageRequest,
    RedriveRequest,
    RedriveResponse,
    Tombstone,
    TombstoneResponse,
)
from broker.wire.names import tenant_of
from policies.engine import decide
from policies.errors import Refused
from policies.model import Administer, Context

RETENTION_MS: Final = 4 * 24 * 3600 * 1000  # of dead letters and tombstones
REDRIVE: Final = "redrive"  # the operation of `Administer` that a policy permits
_OWN_CODES: Final = frozenset(map(str, BrokerCode))
MAX_NAMED: Final = 16  # message ids in one entry of the log
MAX_LISTED: Final = 256  # entries about one mailbox that the log gets at once


@final
class DeadLetters:
    """Buries parcels, shows what is left of them, and sends them on their way again."""

    def __init__(
        self,
        *,
        store: Store,
        audit: Audit,
        generation: Generation,
        identity: Identity,
        bell: Bell,
        clock: Clock,
        quota: Quota,
    ) -> None:
        self._store = store
        self._audit = audit
        self._generation = generation
        self._identity = identity
        self._bell = bell
        self._clock = clock
        self._quota = quota
        self._listed = Sparing(MAX_LISTED)

    def queue(self, tx: Transaction, message: NewMessage, at: datetime) -> Queued:
        """Take a parcel in; what has expired in a full mailbox is buried to make room."""
        done = tx.mail.queue(message, self._quota)
        if done is Queued.FULL:
            now_ms = int(at.timestamp() * 1000)
            ended = tx.mail.expire(now_ms=now_ms, dead_before_ms=now_ms - RETENTION_MS, mailbox=message.mailbox)
            self.bury(tx, ended, at)
            done = tx.mail.queue(message, self._quota) if ended else done
        return done

    def bury(self, tx: Transaction, ended: Sequence[EndedParcel], at: datetime) -> None:
        """Tombstones for parcels that ended, inside the transaction in which they did."""
        if not ended:
            return
        tx.mail.bury(*(self._stone(parcel, _tellable(tx, parcel), at) for parcel in ended))
        for mailbox in {parcel.mailbox for parcel in ended if parcel.end in DEAD_LETTERS}:
            tx.mail.trim(mailbox, dead=self._quota.dead, octets=self._quota.octets)
        for kind, ends in ((Kind.MAIL_DIED, DEAD_LETTERS), (Kind.MAIL_DROPPED, {End.SENDER_FALLEN})):
            found = [parcel for parcel in ended if parcel.end in ends]
            unlisted = self._listed.left_out(found[0].mailbox, at) if found else None
            if unlisted is not None:
                self._audit.append(tx, self._entry(kind, found, at, unlisted))

    def _stone(self, parcel: EndedParcel, code: str, at: datetime) -> TombstoneRecord:
        at_ms = int(at.timestamp() * 1000)
        stone = Tombstone.sign(
            self._identity.key,
            mailbox=parcel.mailbox,
            sender=parcel.sender,
            msg_id=parcel.msg_id,
            digest=parcel.digest,
            end=parcel.end,
            code=code,
            at_ms=at_ms,
        )
        return TombstoneRecord(
            mailbox=parcel.mailbox, sender=parcel.sender, at_ms=at_ms, statement=json.dumps(stone.to_dict())
        )

    def _entry(self, kind: Kind, ended: Sequence[EndedParcel], at: datetime, unlisted: int) -> Entry:
        first = ended[0]
        return Entry(
            kind=kind,
            at=at,
            tenant=tenant_of(first.mailbox),
            resource=first.mailbox,
            codes=tuple(sorted({parcel.code for parcel in ended if parcel.code})),
            generation=self._generation.current,
            more={
                "parcels": len(ended),
                "messages": [parcel.msg_id.hex() for parcel in ended[:MAX_NAMED]],
                "senders": sorted({parcel.sender for parcel in ended})[:MAX_NAMED],
                "ends": sorted({str(parcel.end) for parcel in ended}),
                **({"unlisted": unlisted} if unlisted else {}),
            },
        )

    async def sweep(self) -> int:
        """Bury what has expired in mailboxes that nobody empties; how many parcels that were.

        Mailboxes that nobody has held for as long go, too, when nothing is left in them.
        """
        buried, found = 0, MAX_ENDED
        while found == MAX_ENDED:
            found = await self._store.transact(self._expire)
            buried += found
        return buried

    def _expire(self, tx: Transaction) -> int:
        at = self._clock()
        now_ms = int(at.timestamp() * 1000)
        ended = tx.mail.expire(now_ms=now_ms, dead_before_ms=now_ms - RETENTION_MS)
        self.bury(tx, ended, at)
        tx.mail.forget(before_ms=now_ms - RETENTION_MS)
        tx.blobs.expire(now_ms=now_ms)
        return len(ended)

    # ── looking, and trying again ──────────────────────────────────────────────────────────────────────────────────

    def tombstones(self, session: Session, name: str, page: PageRequest) -> TombstoneResponse:
        """To the owner those of the whole mailbox, to anybody else those of what he sent there."""

        def query(tx: Transaction) -> tuple[Sequence[TombstoneRecord], int]:
            box = tx.mail.find(name)
            sender = None if box is not None and box.owner == session.subject else session.subject
            stones = tx.mail.tombstones(name, sender=sender, after=page.after, limit=page.limit)
            return stones, tx.mail.forgotten(name, sender=sender)

        found, forgotten = self._store.read(query)
        return TombstoneResponse(
            tombstones=tuple(
                Tombstone.from_dict(json.loads(record.statement) | {"number": record.number}) for record in found
            ),
            forgotten=forgotten,
        )

    def owned(self, session: Session, name: str) -> None:
        """Raises BrokerError mailbox.unknown, mailbox.not_owner."""
        box = self._store.read(lambda tx: tx.mail.find(name))
        if box is None:
            raise BrokerError(BrokerCode.MAILBOX_UNKNOWN, f"{name[:80]!a}")
        if box.owner != session.subject:
            raise BrokerError(BrokerCode.MAILBOX_NOT_OWNER, f"{name} belongs to {box.owner}")

    def dead(self, name: str, page: PageRequest) -> DeadResponse:
        """Dead letters of a mailbox, for its owner and for administrators."""
        found = self._store.read(lambda tx: tx.mail.dead(name, after=page.after, limit=page.limit))
        return DeadResponse(dead=tuple(DeadInfo(**asdict(letter)) for letter in found))

    async def redrive(
        self, session: Session, name: str, request: RedriveRequest, *, correlation_id: str = ""
    ) -> RedriveResponse:
        """By the owner, if the policy permits `Administer` of the mailbox with the operation `redrive`.

        Raises BrokerError mailbox.unknown, mailbox.not_owner, generation.moved; Refused.
        """
        self.owned(session, name)
        at = self._clock()
        entry = Entry(
            kind=Kind.MAIL_REDRIVEN,
            at=at,
            subject=session.subject,
            tenant=session.record.tenant,
            resource=name,
            policy=session.bundle.digest,
            evidence=session.record.evidence.hex(),
            generation=session.generation,
            correlation_id=correlation_id,
        )
        try:
            permit = decide(session.bundle, session.verdict, Administer(name, REDRIVE), context=Context(at=at))
        except Refused as error:
            refused = replace(
                entry,
                kind=Kind.MAILBOX_REFUSED,
                codes=codes_of(error),
                more={"action": REDRIVE, "reasons": told(error)},
            )
            await self._store.transact(lambda tx: self._audit.append(tx, refused))
            raise
        entry = replace(entry, permit=permit.digest.hex())
        return await self._redrive(name, request, entry, generation=session.generation)

    async def redrive_for(
        self, admin: Admin, name: str, request: RedriveRequest, *, second: str = "", correlation_id: str = ""
    ) -> RedriveResponse:
        """By an administrator, whose role was looked at."""
        entry = Entry(
            kind=Kind.MAIL_REDRIVEN,
            at=self._clock(),
            subject=f"admin/{admin.name}",
            tenant=tenant_of(name),
            resource=name,
            generation=self._generation.current,
            correlation_id=correlation_id,
            more={"by": admin.jkt, "second": second},
        )
        return await self._redrive(name, request, entry, generation=None)

    async def _redrive(
        self, name: str, request: RedriveRequest, entry: Entry, *, generation: int | None
    ) -> RedriveResponse:
        def work(tx: Transaction) -> list[int]:
            if generation is not None:
                self._generation.expect(tx, generation)
            done = [number for number in request.numbers if tx.mail.redrive(name, number, now_ms=entry.at_ms)]
            if done:
                more = {**entry.more, "parcels": len(done)}
                self._audit.append(tx, replace(entry, more=more))
            return done

        done = await self._store.transact(work)
        if done:
            self._bell.ring(name)
        return RedriveResponse(redriven=tuple(done), gone=tuple(n for n in request.numbers if n not in done))


def _tellable(tx: Transaction, parcel: EndedParcel) -> str:
    """Why it ended, as far as its sender may hear it: a reason that the reader chose can say what the reader has read.

    The broker's own codes say nothing; others go to those who are held to everything that the reader is held to.
    """
    if not parcel.code or parcel.code in _OWN_CODES:
        return parcel.code
    box = tx.mail.find(parcel.mailbox)
    return parcel.code if box is not None and held(tx, box.owner) <= held(tx, parcel.sender) else ""
