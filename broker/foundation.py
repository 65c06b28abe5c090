"""What every desk of the broker stands on: its records, and whom it believes.

Decides the order in which these come up: no time before the log's newest entry is read, nothing logged before
somebody stood for the newest checkpoint, nobody judged before the policies are the ones in force. What is built on it
is the desks' business (desks.py, mail/desks.py).
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import final

from attestation.pki import TrustRoots
from attestation.ports import CollateralSource
from broker.audit import Audit
from broker.bundles import Bundles
from broker.clock import SteadyClock
from broker.collateral import CollateralCache
from broker.config import Settings
from broker.generation import Generation
from broker.identity import Identity
from broker.judging import Judge
from broker.keyring import Keyring
from broker.pool import Pool
from broker.ports import Clock, Store, Transaction
from broker.rootkey.root import RootKey
from broker.sessions import Sessions

Confirm = Callable[[Audit], Awaitable[str]]
"""Waits until somebody stands for the newest checkpoint, and says who it was."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """What is kept and logged, by which clock, and under whose signature."""

    store: Store
    clock: Clock
    keyring: Keyring
    identity: Identity
    audit: Audit
    generation: Generation
    witness: str  # who stood for the newest checkpoint


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """By what agents are judged, and those that passed."""

    roots: TrustRoots
    bundles: Bundles
    collateral: CollateralCache
    judge: Judge
    pool: Pool
    sessions: Sessions


async def open_records(settings: Settings, raw_clock: Clock, root: RootKey, store: Store, confirm: Confirm) -> Records:
    """The log as it was left, confirmed. Raises BrokerError clock.behind, root.*, checkpoint.*, log.tampered."""
    clock = SteadyClock(raw_clock, store.read(_newest))
    keyring = await Keyring.open(store, root, at=clock())
    audit = Audit(store, key=keyring.log, origin=settings.log_name)
    audit.check_head()
    return Records(
        store=store,
        clock=clock,
        keyring=keyring,
        identity=Identity(keyring, issuer=settings.public_url, log_name=settings.log_name, ttl_s=settings.token_ttl_s),
        audit=audit,
        witness=await confirm(audit),
        generation=Generation(store, audit),
    )


async def open_trust(records: Records, source: CollateralSource, roots: TrustRoots, bundles: Bundles) -> Trust:
    """With the policies in force: the generation rises when they are new. Raises BrokerError config.invalid."""
    await records.generation.follow_policies(bundles, at=records.clock())
    collateral = CollateralCache(source, records.store, records.generation, records.clock)
    judge = Judge(roots, bundles, collateral)
    records.store.read(judge.platforms.restore)
    return Trust(
        roots=roots,
        bundles=bundles,
        collateral=collateral,
        judge=judge,
        pool=Pool(),
        sessions=Sessions(
            store=records.store,
            audit=records.audit,
            generation=records.generation,
            judge=judge,
            identity=records.identity,
            clock=records.clock,
        ),
    )


def _newest(tx: Transaction) -> datetime | None:
    """The time of the newest entry: no clock of this broker may be behind it."""
    row = tx.log.entry(tx.log.size() - 1) if tx.log.size() else None
    return datetime.fromtimestamp(row.at_ms / 1000, UTC) if row else None
