"""Keys that outlive the agents who read with them: those of durable mailboxes and of topics.

Decides when an epoch begins (at half of the last one's life, or when somebody must not read on), how long its private
half is kept, and that it is released to nobody but an agent that the policy lets `Receive` there, sealed to the key in
its verdict, after the entry is durable. Private halves rest in the vault under names that no secret can have, so no
administrator's request can spell them. Senders do not take the broker's word for a mailbox's key: its owner signs it.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Final, final

from attestation.evidence import MLKEM768_X25519
from attestation.sealing import SealingKey, seal
from broker.audit import Audit, Entry, Kind
from broker.deadlines import to_its_end
from broker.errors import BrokerCode, BrokerError
from broker.generation import Generation
from broker.identity import Identity
from broker.mail.edges import Edges
from broker.ports import Clock, SecretRecord, Store, Transaction
from broker.ports.mail import Quota
from broker.sessions import Session
from broker.vault import Vault, find, forget
from broker.wire.jose import b64u
from broker.wire.keys import (
    MAX_EPOCHS,
    NO_INCARNATION,
    EpochSeed,
    KeyGrant,
    KeySet,
    KeysRequest,
    KeysResponse,
    Place,
    grant_digest,
)
from broker.wire.mailbox import MailboxKey
from broker.wire.names import is_resource, tenant_of
from broker.wire.tags import sealing_thumbprint
from policies.model import Receive
from policies.permit import Permit

EPOCH_S: Final = 24 * 3600
KEEP_S: Final = 4 * 24 * 3600 + 3600  # the longest life of a message, and some
GRANT_LIFE_S: Final = 60
STATE_NUMBER: Final = "state/"  # marks beside the checkpoint of a durable mailbox's reader (states.py)
STATE_LABELS: Final = "state-labels/"
_MARK: Final = "keys/"
_STATE: Final = "~state"  # no segment of a name begins like this
_FIRST: Final = "~"  # before all such names, behind all others
PURGE_NAMES: Final = 256


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """The public side of one kept key."""

    number: int
    suite: str
    public: str  # base64url
    thumbprint: str  # hex
    not_before_s: int
    not_after_s: int
    generation: int
    by: str = ""  # the agent for whom the first one of the ring was made

    @property
    def keep_until_s(self) -> int:
        return self.not_after_s + KEEP_S


Ring = tuple[Epoch, ...]  # oldest first


def ring_of(tx: Transaction, of: Place, name: str) -> Ring:
    """Every epoch that is kept."""
    found = tx.marks.get(f"{_MARK}{of}/{name}")
    return tuple(Epoch(**members) for members in json.loads(found)) if found else ()


def require_kept(tx: Transaction, key: MailboxKey) -> None:
    """Whether a mailbox may be opened under this key: a durable one under a kept key alone, and for good.

    Raises BrokerError mailbox.key_not_kept, mailbox.kind_mismatch.
    """
    ring = ring_of(tx, Place.MAILBOX, key.mailbox)
    if key.kind != "durable":
        if ring:
            raise BrokerError(BrokerCode.MAILBOX_KIND, f"{key.mailbox} is durable")
        return
    kept = next((epoch for epoch in ring if epoch.thumbprint == key.thumbprint.hex()), None)
    if kept is None or key.incarnation != NO_INCARNATION or key.not_after_s > kept.not_after_s:
        raise BrokerError(BrokerCode.MAILBOX_KEY_NOT_KEPT, f"{key.mailbox}: key {key.thumbprint.hex()[:16]}")


@final
class KeyDesk:
    """Makes, releases and destroys kept keys."""

    def __init__(
        self,
        *,
        store: Store,
        vault: Vault,
        audit: Audit,
        edges: Edges,
        generation: Generation,
        identity: Identity,
        clock: Clock,
        quota: Quota,
    ) -> None:
        self._quota = quota
        self._purged = _FIRST
        self._makers: dict[str, str] | None = None  # place/name of every ring → the agent for whom it was made
        self._store = store
        self._vault = vault
        self._audit = audit
        self._edges = edges
        self._generation = generation
        self._identity = identity
        self._clock = clock

    async def grant(
        self,
        session: Session,
        of: Place,
        name: str,
        request: KeysRequest,
        *,
        since: int = 0,
        correlation_id: str = "",
    ) -> KeysResponse:
        """The keys of a mailbox or topic from epoch `since` on, sealed to the agent that asks.

        Raises BrokerError mailbox.name_invalid, mailbox.too_many, generation.moved; Refused.
        """
        at = self._clock()
        permit = await self._permit(session, of, name, at, correlation_id)
        self._not_anothers(session, of, name, at)
        ring = [epoch for epoch in await self.current(of, name, at, by=session.subject) if epoch.number >= since]
        bound = permit.bind(
            broker_id=self._identity.broker_id.hex(),
            jkt=session.verdict.jkt,
            sealing_thumbprint=_thumbprint(session).hex(),
            suite=session.verdict.suite,
            nonce=request.nonce.hex(),
            version=ring[-1].number,
        )
        grant = self._grant(session, of, name, request, bound, at).to_bytes()

        def still(tx: Transaction) -> tuple[list[SecretRecord], SecretRecord]:
            self._generation.expect(tx, session.generation)
            seeds = [find(tx, _resting(of, name), epoch.number) for epoch in ring]
            return seeds, find(tx, f"{_STATE}/{of}/{name}", 1)

        entry = self._entry(Kind.KEYS_RELEASED, session, of, name, at, ring, bound, correlation_id)
        (seeds, state), receipt = await self._audit.record(entry, still)
        keys = self._opened(bound, ring, seeds, state).to_bytes()
        sealed = seal(session.verdict, keys, context=grant_digest(grant))
        return KeysResponse.sign(
            self._identity.key, sealed=sealed.blob, suite=sealed.suite, grant=grant, receipt=receipt
        )

    def _opened(
        self, bound: Permit, ring: Sequence[Epoch], seeds: Sequence[SecretRecord], state: SecretRecord
    ) -> KeySet:
        epochs = tuple(
            EpochSeed(
                epoch=epoch.number,
                suite=epoch.suite,
                seed=self._vault.open_kept(bound, record),
                not_before_s=epoch.not_before_s,
                not_after_s=epoch.not_after_s,
                keep_until_s=epoch.keep_until_s,
            )
            for epoch, record in zip(ring, seeds, strict=True)
        )
        return KeySet(epochs=epochs, state_key=self._vault.open_kept(bound, state))

    async def _permit(self, session: Session, of: Place, name: str, at: datetime, correlation_id: str) -> Permit:
        if not is_resource(name):
            raise BrokerError(BrokerCode.MAILBOX_NAME, f"{name[:80]!a}")
        action = Receive(name, kind="topic" if of is Place.TOPIC else "mailbox")
        answer = self._edges.ask(session, action, at, correlation_id=correlation_id)
        if (entry := answer.entry) is not None:
            await self._store.transact(lambda tx: entry.pay(tx, self._audit))
        if answer.permit is None:
            assert answer.refusal is not None
            raise answer.refusal
        return answer.permit

    def _not_anothers(self, session: Session, of: Place, name: str, at: datetime) -> None:
        """No keys are made for the ephemeral mailbox of an owner who is there: he could not go on with it.

        Raises BrokerError mailbox.kind_mismatch.
        """
        box = self._store.read(lambda tx: tx.mail.find(name)) if of is Place.MAILBOX else None
        if box is None or box.kind == "durable" or box.owner == session.subject:
            return
        if box.held_until_ms > at.timestamp() * 1000:
            raise BrokerError(BrokerCode.MAILBOX_KIND, f"{name} is {box.owner}'s, and {box.kind}")

    async def current(self, of: Place, name: str, at: datetime, *, by: str = "") -> Ring:
        """The ring with an epoch that may be sealed to; a new one is made when it is due.

        Raises BrokerError mailbox.too_many where there is none yet, and whoever asks, or its tenant, has enough.
        """
        now_s = int(at.timestamp())
        ring = self._store.read(lambda tx: ring_of(tx, of, name))
        if ring and now_s <= ring[-1].not_after_s - EPOCH_S // 2:
            return ring
        if ring:
            return await self._store.transact(lambda tx: self.roll(tx, of, name, at, unless=ring))
        self._may_make(name, by)
        made, place_and_name = self._made(), f"{of}/{name}"
        made.setdefault(place_and_name, by)  # whoever asks for many at once is counted at once
        try:
            fresh = await to_its_end(self._store.transact(lambda tx: self.roll(tx, of, name, at, unless=ring, by=by)))
        except BrokerError:
            made.pop(place_and_name, None)
            raise
        made[place_and_name] = fresh[-1].by
        return fresh

    def _made(self) -> dict[str, str]:
        """Read once; this is the one place where rings begin and end."""
        if self._makers is None:
            rings = self._store.read(lambda tx: tx.marks.under(_MARK))
            self._makers = {place_and_name: _maker(found) for place_and_name, found in rings.items()}
        return self._makers

    def _may_make(self, name: str, by: str) -> None:
        tenant = tenant_of(name)
        makers = [maker for made, maker in self._made().items() if made.split("/")[1] == tenant]
        if len(makers) >= self._quota.tenant_keys:
            raise BrokerError(BrokerCode.MAILBOX_TOO_MANY, f"{tenant} has {len(makers)} names with kept keys")
        if by and makers.count(by) >= self._quota.mailboxes:
            raise BrokerError(BrokerCode.MAILBOX_TOO_MANY, f"{by} has made {self._quota.mailboxes}")

    def roll(
        self,
        tx: Transaction,
        of: Place,
        name: str,
        at: datetime,
        *,
        unless: Ring | None = None,
        drop: Sequence[int] = (),
        by: str = "",
    ) -> Ring:
        """Begin an epoch, inside a transaction; epochs past their time, and those in `drop`, are destroyed.

        With `unless`, nothing happens when the ring is no longer that one: somebody else was faster.
        """
        ring = ring_of(tx, of, name)
        if unless is not None and ring != unless:
            return ring
        now_s = int(at.timestamp())
        if tx.secrets.get(f"{_STATE}/{of}/{name}") is None:
            self._vault.put(tx, f"{_STATE}/{of}/{name}", None, labels=(), at_s=now_s)
        seed = self._vault.put_drawn(tx, _resting(of, name), at_s=now_s)
        key = SealingKey.from_seed(seed.value, MLKEM768_X25519)
        fresh = Epoch(
            number=seed.version,
            suite=key.suite,
            public=b64u(key.public),
            thumbprint=sealing_thumbprint(key.suite, key.public).hex(),
            not_before_s=now_s,
            not_after_s=now_s + EPOCH_S,
            generation=self._generation.current,
            by=ring[-1].by if ring else by,
        )
        self._audit.append(tx, self._begun(of, name, fresh, at))
        return self._keep(tx, of, name, (*ring, fresh), now_s, drop)

    def _keep(self, tx: Transaction, of: Place, name: str, ring: Ring, now_s: int, drop: Sequence[int] = ()) -> Ring:
        """Write the ring without what has ended, which is destroyed; with the last one the name is free again."""
        alive = tuple(epoch for epoch in ring if epoch.keep_until_s >= now_s and epoch.number not in drop)
        kept = alive[-MAX_EPOCHS:]
        for epoch in ring:
            if epoch not in kept:
                tx.secrets.destroy(_resting(of, name), epoch.number)
        newest = tx.secrets.get(_resting(of, name))
        tx.secrets.discard(_resting(of, name), before=newest.version if newest else None)
        if kept:
            tx.marks.put(f"{_MARK}{of}/{name}", json.dumps([asdict(epoch) for epoch in kept]))
            return kept
        tx.marks.drop(f"{_MARK}{of}/{name}")
        if of is Place.MAILBOX:
            tx.mail.lapse(name)
            tx.states.drop(name)  # whatever it says was sealed to keys that are no more
            for mark in (STATE_NUMBER, STATE_LABELS):
                tx.marks.drop(mark + name)
        _forget(tx, of, name)
        return kept

    async def purge(self) -> None:
        """Destroy every key that is past its time, whether or not anybody still asks for its mailbox."""
        now_s = int(self._clock().timestamp())
        rings = self._store.read(lambda tx: tx.marks.under(_MARK))
        for place_and_name, found in rings.items():
            epochs = json.loads(found)
            if epochs and all(Epoch(**members).keep_until_s >= now_s for members in epochs):
                continue
            of, _, name = place_and_name.partition("/")
            if not await self._store.transact(partial(self._purge_one, of=Place(of), name=name, now_s=now_s)):
                self._made().pop(place_and_name, None)
        await self._purge_left()

    async def _purge_left(self) -> None:
        """Some of what is left under names without keys: of topics whose last reader went after the last key."""
        after = self._purged
        rows = self._store.read(lambda tx: tx.secrets.page(after=after, limit=PURGE_NAMES))
        names = sorted({row.name for row in rows})
        self._purged = names[-1] if len(names) == PURGE_NAMES else _FIRST

        def work(tx: Transaction) -> None:
            for of, name in filter(None, map(_kept_for, names)):
                if not ring_of(tx, of, name):
                    _forget(tx, of, name)

        if names:
            await self._store.transact(work)

    def _purge_one(self, tx: Transaction, *, of: Place, name: str, now_s: int) -> Ring:
        return self._keep(tx, of, name, ring_of(tx, of, name), now_s)

    def _grant(
        self, session: Session, of: Place, name: str, request: KeysRequest, bound: Permit, at: datetime
    ) -> KeyGrant:
        end = min(bound.not_after, at + timedelta(seconds=GRANT_LIFE_S))
        return KeyGrant(
            broker_id=self._identity.broker_id,
            subject=session.subject,
            jkt=session.verdict.jkt,
            sealing_key=_thumbprint(session),
            suite=session.verdict.suite,
            of=of,
            name=name,
            policy=bound.policy,
            decision=bound.digest,
            nonce=request.nonce,
            issued_at_s=int(at.timestamp()),
            not_after_s=int(end.timestamp()),
        )

    def _begun(self, of: Place, name: str, epoch: Epoch, at: datetime) -> Entry:
        return Entry(
            kind=Kind.KEYS_MADE,
            at=at,
            tenant=name.partition("/")[0],
            resource=name,
            generation=epoch.generation,
            more={"of": of.value, "epoch": epoch.number, "key": epoch.thumbprint},
        )

    def _entry(
        self,
        kind: Kind,
        session: Session,
        of: Place,
        name: str,
        at: datetime,
        ring: Sequence[Epoch],
        bound: Permit,
        correlation_id: str,
    ) -> Entry:
        return Entry(
            kind=kind,
            at=at,
            subject=session.subject,
            tenant=session.record.tenant,
            resource=name,
            policy=session.bundle.digest,
            evidence=session.record.evidence.hex(),
            collateral=session.record.collateral,
            permit=bound.digest.hex(),
            generation=session.generation,
            correlation_id=correlation_id,
            more={"of": of.value, "keys": [epoch.thumbprint for epoch in ring]},
        )


def _maker(ring: str) -> str:
    epochs = json.loads(ring)
    return str(epochs[-1].get("by", "")) if epochs else ""


def _resting(of: Place, name: str) -> str:
    return f"~{of}/{name}"


def _kept_for(resting: str) -> tuple[Place, str] | None:
    """Whose key rests under that name."""
    of, _, name = resting.removeprefix(f"{_STATE}/").removeprefix("~").partition("/")
    return (Place(of), name) if of in set(Place) else None


def _forget(tx: Transaction, of: Place, name: str) -> None:
    """Nothing is left of a name without keys; but who still reads a topic will count its epochs on."""
    if of is Place.MAILBOX or not tx.topics.readers(name):
        forget(tx, _resting(of, name))
        forget(tx, f"{_STATE}/{of}/{name}")


def _thumbprint(session: Session) -> bytes:
    return sealing_thumbprint(session.verdict.suite, session.verdict.sealing_key)
