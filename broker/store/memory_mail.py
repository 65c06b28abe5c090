"""Mail of the store in memory; the same contract as sql_mail.py, row by row."""

import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, final

from broker.ports.mail import (
    DEAD_LETTERS,
    MAX_ENDED,
    MAX_KEYS,
    MAX_OCTETS,
    MAX_OUT,
    MAX_SEEN,
    NO_LIMIT,
    DeadLetter,
    End,
    EndedParcel,
    Leased,
    LeasedMessage,
    MailboxRecord,
    NewMessage,
    Queued,
    Quota,
    TombstoneRecord,
    WhenFallen,
)
from broker.store.memory_stones import MemoryStones
from broker.store.shares import Load, has_room
from broker.store.turns import Harvest, beyond, hungry
from broker.store.undo import Table, Undo

REMEMBER_MS: Final = 24 * 3600 * 1000


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Parcel:
    number: int
    new: NewMessage
    visible_at_ms: int
    leased_at_ms: int = 0
    attempt: int = 0
    lease: str | None = None
    remaining: tuple[int, ...] = ()
    dead_at_ms: int = 0
    dead_reason: str = ""
    last_code: str = ""

    @property
    def octets(self) -> int:
        return len(self.new.envelope)

    @property
    def expires_at_ms(self) -> int:
        return self.new.expires_at_ms

    @property
    def messages(self) -> int:
        return len(self.remaining) or self.new.count

    def ended(self, end: End, code: str = "") -> EndedParcel:
        new = self.new
        return EndedParcel(
            number=self.number,
            mailbox=new.mailbox,
            sender=new.sender,
            kind=new.kind,
            count=new.count,
            msg_id=new.msg_id,
            digest=new.digest,
            accepted_at_ms=new.accepted_at_ms,
            end=end,
            code=code or self.last_code,
        )

    def leased(self) -> LeasedMessage:
        new = self.new
        return LeasedMessage(
            sender=new.sender,
            envelope=new.envelope,
            accepted_at_ms=new.accepted_at_ms,
            attempt=self.attempt,
            lease=self.lease or "",
            kind=new.kind,
            count=new.count,
            msg_id=new.msg_id,
            digest=new.digest,
            expires_at_ms=new.expires_at_ms,
            remaining=self.remaining,
            dead_reason=self.dead_reason,
            number=self.number,
        )

    def dead(self) -> DeadLetter:
        new = self.new
        return DeadLetter(
            number=self.number,
            sender=new.sender,
            kind=new.kind,
            count=self.messages,
            msg_id=new.msg_id,
            octets=len(new.envelope),
            attempt=self.attempt,
            accepted_at_ms=new.accepted_at_ms,
            expires_at_ms=new.expires_at_ms,
            dead_at_ms=self.dead_at_ms,
            reason=self.dead_reason,
            code=self.last_code,
        )


def _load(parcels: Sequence[_Parcel]) -> Load:
    return Load(sum(parcel.messages for parcel in parcels), sum(parcel.octets for parcel in parcels))


@final
class MemoryMail:
    """`broker.ports.mail.Mail` in dictionaries. `admitted` tells whether a subject may act."""

    def __init__(self, undo: Undo, admitted: Callable[[str], bool]) -> None:
        self._boxes: Table[str, MailboxRecord] = Table(undo)
        self._keys: Table[str, tuple[tuple[bytes, bytes], ...]] = Table(undo)  # (key, incarnation), newest first
        self._parcels: Table[int, _Parcel] = Table(undo)
        self._seen: Table[tuple[str, str, bytes], tuple[bytes, int]] = Table(undo)
        self._taken: Table[tuple[str, str], int] = Table(undo)
        self._stones = MemoryStones(undo)
        self._tokens: Table[tuple[str, int], tuple[int, str]] = Table(undo)
        self._admitted = admitted
        self._turns: dict[str, str] = {}
        self._next = 0

    # ── mailboxes ──────────────────────────────────────────────────────────────────────────────────────────────────

    def open(self, record: MailboxRecord) -> Sequence[EndedParcel]:
        before = self._boxes.get(record.name)
        self._boxes.put(record.name, record)
        if before is not None and before.owner != record.owner:
            for parcel in self._of(record.name):
                if parcel.lease is not None:
                    self._put(replace(parcel, lease=None, visible_at_ms=0))
        pair = (record.key, record.incarnation)
        durable = record.kind == "durable"
        older = [old for old in self._keys.get(record.name) or () if old != pair]
        kept = [old for old in older if durable or old[1] == record.incarnation]
        self._keys.put(record.name, (pair, *kept)[:MAX_KEYS])
        if durable:
            return []
        known = {key for key, _ in self._keys.get(record.name) or ()}
        lost = [p for p in self._parcels.rows.values() if p.new.mailbox == record.name and p.new.key not in known]
        for parcel in lost:
            self._parcels.drop(parcel.number)
        return [parcel.ended(End.KEY_GONE) for parcel in lost if not parcel.dead_at_ms]

    def accepts(self, name: str, key: bytes, incarnation: bytes) -> bool:
        return (key, incarnation) in (self._keys.get(name) or ())

    def find(self, name: str) -> MailboxRecord | None:
        return self._boxes.get(name)

    def owned(self, owner: str) -> int:
        return sum(box.owner == owner for box in self._boxes.rows.values())

    def of_tenant(self, tenant: str) -> int:
        return sum(name.startswith(f"{tenant}/") for name in self._boxes.rows)

    def forget(self, *, before_ms: int, most: int = MAX_ENDED) -> int:
        keeping = {parcel.new.mailbox for parcel in self._parcels.rows.values()}
        boxes = [box for box in self._boxes.rows.values() if box.kind == "ephemeral" and box.name not in keeping]
        idle = [box.name for box in boxes if box.held_until_ms < before_ms][:most]
        for name in idle:
            self._boxes.drop(name)
            self._keys.drop(name)
        for lane in [lane for lane in self._taken.rows if lane[0] in idle]:
            self._taken.drop(lane)
        return len(idle)

    def lapse(self, name: str) -> None:
        if (box := self._boxes.get(name)) is not None:
            self._boxes.put(name, replace(box, kind="ephemeral"))

    def hold(self, name: str, *, owner: str, until_ms: int) -> bool:
        box = self._boxes.get(name)
        if box is None or box.owner != owner:
            return False
        self._boxes.put(name, replace(box, held_until_ms=until_ms))
        return True

    def concerns(self, subject: str) -> bool:
        return self.owned(subject) > 0 or any(p.new.sender == subject for p in self._parcels.rows.values())

    def leave(self, subject: str) -> None:
        for lane in [lane for lane in self._taken.rows if lane[1] == subject]:
            self._taken.drop(lane)
        for token in [token for token in self._tokens.rows if token[0] == subject]:
            self._tokens.drop(token)

    # ── the queue ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _put(self, parcel: _Parcel) -> None:
        self._parcels.put(parcel.number, parcel)

    def _of(self, mailbox: str) -> list[_Parcel]:
        """Living parcels, oldest first."""
        found = [p for p in self._parcels.rows.values() if p.new.mailbox == mailbox and not p.dead_at_ms]
        return sorted(found, key=lambda parcel: parcel.number)

    def queue(self, message: NewMessage, quota: Quota) -> Queued:
        key = (message.mailbox, message.sender, message.msg_id)
        if message.kind == "envelope":
            for old in [key for key, (_, until) in self._seen.rows.items() if until < message.accepted_at_ms]:
                self._seen.drop(old)
            if (seen := self._seen.get(key)) is not None:
                return Queued.DUPLICATE if hmac.compare_digest(seen[0], message.digest) else Queued.ID_REUSED
        if self._full(message, quota):
            return Queued.FULL
        if message.kind == "envelope":
            until = max(message.expires_at_ms, message.accepted_at_ms + REMEMBER_MS)
            self._seen.put(key, (message.digest, until))
            own = [seen for seen in self._seen.rows if seen[:2] == key[:2]]
            if len(own) > MAX_SEEN:
                self._seen.drop(min(own))
        self._next += 1
        self._put(_Parcel(number=self._next, new=message, visible_at_ms=message.accepted_at_ms))
        lane = (message.mailbox, message.sender)
        self._taken.put(lane, (self._taken.get(lane) or 0) + 1)
        return Queued.QUEUED

    def _full(self, message: NewMessage, quota: Quota) -> bool:
        waiting = self._of(message.mailbox)
        own = [parcel for parcel in waiting if parcel.new.sender == message.sender]
        return not has_room(quota, held=_load(waiting), own=_load(own), more=Load(message.count, len(message.envelope)))

    def channels(self, mailbox: str, sender: str) -> frozenset[bytes]:
        found = [parcel.new for parcel in self._parcels.rows.values()]
        own = [new for new in found if (new.mailbox, new.sender, new.kind) == (mailbox, sender, "batch")]
        return frozenset(new.msg_id[:8] for new in own)

    def senders(self, mailbox: str, *, now_ms: int, max_messages: int = NO_LIMIT) -> Sequence[str]:
        parcels = [(one, bool(one.lease) and one.visible_at_ms > now_ms) for one in self._of(mailbox)]
        return hungry([(one.new.sender, one.messages, out * one.messages) for one, out in parcels], max_messages)

    def lease(
        self,
        mailbox: str,
        *,
        now_ms: int,
        until_ms: int,
        leases: Sequence[str],
        max_attempts: int,
        max_messages: int = NO_LIMIT,
        max_octets: int = MAX_OCTETS,
        fallen: WhenFallen = "hold",
        ready: frozenset[str] | None = None,
    ) -> Leased:
        waiting = self._of(mailbox)
        out: dict[str, int] = {}
        for one in waiting:
            if one.lease is not None and one.visible_at_ms > now_ms:
                out[one.new.sender] = out.get(one.new.sender, 0) + one.messages
        harvest: Harvest[_Parcel] = Harvest(
            now_ms=now_ms,
            max_attempts=max_attempts,
            parcels=len(leases),
            messages=min(max_messages, MAX_OUT - sum(out.values())),
            octets=max_octets,
            out=out,
        )
        lanes: dict[str, list[_Parcel]] = {}
        for parcel in waiting:
            lanes.setdefault(parcel.new.sender, []).append(parcel)
        last = self._turns.get(mailbox, "")
        turns = sorted(lanes, key=lambda name: (name <= last, name))
        known = [(name, self._admitted(name)) for name in turns]
        told = [(name, may) for name, may in known if not may or ready is None or name in ready]
        harvest.reap(told, lanes.__getitem__, fallen=fallen)
        if harvest.last:
            self._turns[mailbox] = harvest.last
        ended = tuple(self._end(parcel, end, now_ms=now_ms) for parcel, end in harvest.ended)
        leased: list[LeasedMessage] = []
        for parcel, lease in zip(harvest.taken, leases, strict=False):
            given = replace(
                parcel, lease=lease, visible_at_ms=until_ms, leased_at_ms=now_ms, attempt=parcel.attempt + 1
            )
            self._put(given)
            leased.append(given.leased())
        return Leased(messages=tuple(leased), ended=ended, cut=harvest.cut)

    def _end(self, parcel: _Parcel, end: End, *, now_ms: int, code: str = "") -> EndedParcel:
        if end in DEAD_LETTERS:
            code = code or parcel.last_code
            self._put(replace(parcel, dead_at_ms=now_ms, dead_reason=end, last_code=code, lease=None, visible_at_ms=0))
        else:
            self._parcels.drop(parcel.number)
        return parcel.ended(end, code)

    # ── what a receiver says about a lease ─────────────────────────────────────────────────────────────────────────

    def _leased(self, mailbox: str, lease: str, now_ms: int) -> _Parcel | None:
        return next((p for p in self._of(mailbox) if p.lease == lease and p.visible_at_ms > now_ms), None)

    def acknowledge(self, mailbox: str, lease: str, *, now_ms: int) -> bool:
        found = self._leased(mailbox, lease, now_ms)
        return found is not None and self._parcels.drop(found.number)

    def give_back(
        self,
        mailbox: str,
        lease: str,
        *,
        now_ms: int,
        visible_at_ms: int,
        remaining: tuple[int, ...] = (),
        code: str = "",
    ) -> bool:
        found = self._leased(mailbox, lease, now_ms)
        if found is None or len(remaining) > found.messages:
            return False
        left, code = remaining or found.remaining, code or found.last_code
        self._put(replace(found, lease=None, visible_at_ms=visible_at_ms, remaining=left, last_code=code))
        return True

    def recall(self, mailbox: str, leases: Sequence[str], *, now_ms: int) -> int:
        out = [one.lease for one in self._of(mailbox) if one.lease is not None and one.visible_at_ms > now_ms]
        named = [lease for lease in out if not leases or lease in leases]
        for lease in named:
            if found := self._leased(mailbox, lease, now_ms):
                self._put(replace(found, lease=None, visible_at_ms=now_ms, attempt=max(found.attempt - 1, 0)))
        return len(named)

    def extend(self, mailbox: str, lease: str, *, now_ms: int, until_ms: int, max_ms: int) -> bool:
        found = self._leased(mailbox, lease, now_ms)
        if found is None:
            return False
        self._put(replace(found, visible_at_ms=min(until_ms, found.leased_at_ms + max_ms)))
        return True

    def reject(self, mailbox: str, lease: str, *, now_ms: int, code: str) -> EndedParcel | None:
        found = self._leased(mailbox, lease, now_ms)
        return None if found is None else self._end(found, End.REJECTED, now_ms=now_ms, code=code)

    def waiting(self, mailbox: str) -> int:
        return sum(parcel.messages for parcel in self._of(mailbox))

    def next_seq(self, mailbox: str, sender: str) -> int:
        return (self._taken.get((mailbox, sender)) or 0) + 1

    # ── what ended ─────────────────────────────────────────────────────────────────────────────────────────────────

    def expire(
        self, *, now_ms: int, dead_before_ms: int, most: int = MAX_ENDED, mailbox: str | None = None
    ) -> Sequence[EndedParcel]:
        rows = list(self._parcels.rows.values())
        over = [
            p
            for p in rows
            if not p.dead_at_ms
            and mailbox in (None, p.new.mailbox)
            and p.new.expires_at_ms <= now_ms
            and (p.lease is None or p.visible_at_ms <= now_ms)
        ]
        for parcel in rows:
            if 0 < parcel.dead_at_ms < dead_before_ms:
                self._parcels.drop(parcel.number)
        self._stones.expire(dead_before_ms)
        for seen, (_, until_ms) in list(self._seen.rows.items()):
            if until_ms < now_ms:
                self._seen.drop(seen)
        for key, (end_s, _) in list(self._tokens.rows.items()):
            if end_s < dead_before_ms // 1000:
                self._tokens.drop(key)
        over.sort(key=lambda parcel: (parcel.new.expires_at_ms, parcel.number))
        return [self._end(parcel, End.EXPIRED, now_ms=now_ms) for parcel in over[:most]]

    def dead(self, mailbox: str, *, after: int = 0, limit: int = 100) -> Sequence[DeadLetter]:
        found = [
            parcel
            for number, parcel in sorted(self._parcels.rows.items())
            if parcel.dead_at_ms and parcel.new.mailbox == mailbox and number > after
        ]
        return [parcel.dead() for parcel in found[:limit]]

    def redrive(self, mailbox: str, number: int, *, now_ms: int) -> bool:
        parcel = self._parcels.get(number)
        if parcel is None or parcel.new.mailbox != mailbox or not parcel.dead_at_ms:
            return False
        if parcel.new.expires_at_ms <= now_ms:
            return False
        self._put(replace(parcel, dead_at_ms=0, attempt=0, visible_at_ms=0))
        return True

    def trim(self, mailbox: str, *, dead: int, octets: int) -> int:
        found = [one for one in self._parcels.rows.items() if one[1].dead_at_ms and one[1].new.mailbox == mailbox]
        excess = beyond(sorted((n, p.octets, p.new.sender) for n, p in found), dead, octets)
        for number in excess:
            self._parcels.drop(number)
        return len(excess)

    def bury(self, *tombstones: TombstoneRecord) -> None:
        self._stones.bury(*tombstones)

    def tombstones(
        self, mailbox: str, *, sender: str | None = None, after: int = 0, limit: int = 100
    ) -> Sequence[TombstoneRecord]:
        return self._stones.tombstones(mailbox, sender=sender, after=after, limit=limit)

    def forgotten(self, mailbox: str, *, sender: str | None = None) -> int:
        return self._stones.forgotten(mailbox, sender=sender)

    # ── the senders' verdicts at the time ──────────────────────────────────────────────────────────────────────────

    def keep_token(self, sender: str, token: str, *, issued_at_s: int, expires_at_s: int) -> None:
        if self._tokens.get((sender, issued_at_s)) is None:
            self._tokens.put((sender, issued_at_s), (expires_at_s, token))

    def token_at(self, sender: str, at_s: int) -> str | None:
        found = [
            (issued_s, token)
            for (subject, issued_s), (end_s, token) in self._tokens.rows.items()
            if subject == sender and issued_s <= at_s < end_s
        ]
        return max(found)[1] if found else None
