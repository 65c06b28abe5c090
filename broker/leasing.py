"""Leases on secrets: how long a version is released again to one agent, and what happens when that ends.

Decides when a lease begins (with the first release of a version to a subject), that it cannot be stretched by asking
again, and that its end, by time, by an administrator or because its agent fell, brings a rotation: a new value is drawn
where the terms say so, else the log and the listing say that one is due. A lease's end takes nothing back: whoever was
given a value may have kept it.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final, final

from broker.audit import Audit, Entry, Kind
from broker.errors import BrokerCode, BrokerError
from broker.ports import AgentState, Clock, Store, Transaction
from broker.ports.releases import Lease
from broker.rights import Act, Admin
from broker.vault import Vault
from broker.wire.names import tenant_of
from broker.wire.terms import LeaseEnd, SecretTerms

TERMS: Final = "terms/"
SWEEP_MOST: Final = 1000
logger = logging.getLogger("cloister.broker.leases")


def terms_of(tx: Transaction, name: str) -> SecretTerms | None:
    """The terms of a secret; None where nobody set any."""
    text = tx.marks.get(TERMS + name)
    return None if text is None else SecretTerms.from_text(text)


def take(tx: Transaction, name: str, version: int, subject: str, now_s: int) -> int:
    """The end of the lease under which this release happens, begun now if it is the first; 0 without a lease.

    Raises BrokerError secret.lease_ended.
    """
    known = tx.releases.lease(name, version, subject)
    if known is not None:
        if known.closed or known.ends_at_s <= now_s:
            raise BrokerError(BrokerCode.SECRET_LEASE, f"{name} version {version} to {subject}")
        return known.ends_at_s
    terms = terms_of(tx, name)
    if terms is None or terms.lease_s is None:
        return 0
    ends_at_s = now_s + terms.lease_s
    lease = Lease(name=name, version=version, subject=subject, begun_at_s=now_s, ends_at_s=ends_at_s)
    tx.releases.put_lease(lease)
    return ends_at_s


@final
class Leasing:
    """Ends leases, and rotates what was lent."""

    def __init__(self, *, store: Store, vault: Vault, audit: Audit, clock: Clock) -> None:
        self._store = store
        self._vault = vault
        self._audit = audit
        self._clock = clock

    def page(self, *, tenant: str | None, after: str, limit: int) -> Sequence[Lease]:
        return self._store.read(lambda tx: tx.releases.leases(tenant=tenant, after=after, limit=limit))

    async def sweep(self) -> int:
        """Close every lease that has ended; how many there were."""
        now_s = int(self._clock().timestamp())
        ended = self._store.read(lambda tx: tx.releases.ended(now_s=now_s, limit=SWEEP_MOST))
        closed = 0
        for lease in ended:
            why = "time" if lease.ends_at_s <= now_s else "agent"
            closed += await self._close(lease, why, by="", correlation_id="")
        return closed

    async def end(self, admin: Admin, wanted: LeaseEnd, *, second: str = "", correlation_id: str = "") -> Lease:
        """Raises BrokerError admin.*, secret.unknown."""
        admin.require(Act.LEASE_END, tenant_of(wanted.name))
        lease = self._store.read(lambda tx: tx.releases.lease(wanted.name, wanted.version, wanted.subject))
        if lease is None:
            detail = f"no lease of {wanted.name[:80]!a} to {wanted.subject[:80]!a}"
            raise BrokerError(BrokerCode.SECRET_UNKNOWN, detail)
        if not lease.closed:
            await self._close(lease, "administrator", by=admin.jkt, second=second, correlation_id=correlation_id)
        return replace(lease, closed=True)

    async def _close(self, lease: Lease, why: str, *, by: str, correlation_id: str, second: str = "") -> bool:
        """Close it, and rotate the secret if this is still its newest version: all or nothing, with the entry.

        False, and nothing happens, when it does not have to be closed any more.
        """
        at = self._clock()

        def work(tx: Transaction) -> str:
            if not _still(tx, lease, why):
                return ""
            tx.releases.put_lease(replace(lease, closed=True))
            outcome = self._rotated(tx, lease, at)
            entry = Entry(
                kind=Kind.LEASE_ENDED,
                at=at,
                subject=lease.subject,
                tenant=tenant_of(lease.name),
                resource=lease.name,
                codes=(BrokerCode.SECRET_LEASE,),
                correlation_id=correlation_id,
                more={"version": lease.version, "why": why, "by": by, "second": second, "rotation": outcome},
            )
            self._audit.append(tx, entry)
            return outcome

        outcome = await self._store.transact(work)
        if outcome == "due":
            logger.warning("secret.rotation_due", extra={"resource": lease.name, "version": lease.version})
        return bool(outcome)

    def _rotated(self, tx: Transaction, lease: Lease, at: datetime) -> str:
        """What becomes of the secret whose lease has just been closed, as the log says it."""
        newest, terms = tx.secrets.get(lease.name), terms_of(tx, lease.name)
        if newest is None or newest.version != lease.version or newest.destroyed:
            return "replaced before"
        if terms is None or not terms.draw:
            return "due"
        self._vault.put(tx, lease.name, None, labels=None, at_s=int(at.timestamp()))
        return "rotated"


def _still(tx: Transaction, lease: Lease, why: str) -> bool:
    """Whether it is open, and the agent for whose fall it is to be closed has not risen meanwhile."""
    if tx.releases.lease(lease.name, lease.version, lease.subject) != lease:
        return False
    agent = tx.agents.get(lease.subject) if why == "agent" else None
    return agent is None or agent.state is not AgentState.ADMITTED
