"""One number that voids every permit at once.

Decides when a decision has grown old: whenever policy, collateral, revocations or the rules of time change, the number
rises, in the same transaction as the change and its log entry. Whoever acts on an earlier decision finds out inside the
transaction of the act (`expect`), and decides again. What is judged again, and how, is sessions.py's business.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final, TypeVar, final

from broker.archive import keep_policies
from broker.audit import Audit, Entry, Kind
from broker.bundles import Bundles
from broker.deadlines import to_its_end
from broker.errors import BrokerCode, BrokerError
from broker.ports import Store, Transaction
from broker.wire.log import Receipt
from policies.bundle import Bundle

T = TypeVar("T")
MARK: Final = "generation"
MAX_RETRIES: Final = 3
_POLICY_MARK: Final = "policy/"


def stored(tx: Transaction) -> int:
    """The generation in force inside a transaction."""
    return int(tx.marks.get(MARK) or 1)


async def again_while_moving(act: Callable[[], Awaitable[T]]) -> T:
    """What `act` gives. From its beginning again, a few times, when it finds that the generation rose under way."""
    for _ in range(MAX_RETRIES):
        try:
            return await act()
        except BrokerError as error:
            if error.code is not BrokerCode.GENERATION_MOVED:
                raise
            await asyncio.sleep(0)
    return await act()


@final
class Generation:
    """The current generation, as this process knows it, and the only way to raise it."""

    def __init__(self, store: Store, audit: Audit) -> None:
        self._store = store
        self._audit = audit
        self.current: int = store.read(stored)
        self._listeners: list[Callable[[], None]] = []

    def on_change(self, listener: Callable[[], None]) -> None:
        """Called in the event loop after every rise."""
        self._listeners.append(listener)

    def expect(self, tx: Transaction, generation: int) -> None:
        """Raises BrokerError generation.moved, when what was decided in `generation` no longer counts."""
        found = stored(tx)
        if found != generation:
            raise BrokerError(BrokerCode.GENERATION_MOVED, f"decided in {generation}, now {found}", retry_after_s=1)

    async def rise(
        self,
        why: str,
        work: Callable[[Transaction], T],
        *,
        at: datetime,
        entry: Entry | None = None,
        then: Callable[[], object] = lambda: None,
    ) -> tuple[T, Receipt]:
        """Do `work` and raise the number, in one transaction with an entry that says why and to what.

        `then` is what changes in memory with it: nobody may judge by the new number and the old facts. Whoever asks may
        go meanwhile: a number that was raised is heard of here in any case.
        """
        told = entry or Entry(kind=Kind.GENERATION_CHANGED, at=at, more={"why": why})
        return await to_its_end(self._rise(told, work, then))

    async def _rise(
        self, told: Entry, work: Callable[[Transaction], T], then: Callable[[], object]
    ) -> tuple[T, Receipt]:

        def unit(tx: Transaction) -> tuple[T, int, int, bytes]:
            done = work(tx)
            following = stored(tx) + 1
            tx.marks.put(MARK, str(following))
            return done, following, *self._audit.append(tx, replace(told, generation=following))

        done, following, index, raw = await self._store.transact(unit)
        then()
        self.current = max(self.current, following)
        for listener in self._listeners:
            listener()
        return done, self._audit.receipt(index, raw)  # last: whatever becomes of the answer, it has happened

    async def follow_policies(self, bundles: Bundles, *, at: datetime) -> None:
        """At start: rise, if the policies are not those with which the store was last used.

        Raises BrokerError config.invalid for a bundle older than one that was in force here before.
        """
        known = self._store.read(lambda tx: tx.marks.under(_POLICY_MARK))
        for bundle in bundles.all:
            version = int(known.get(bundle.tenant, "0").partition(" ")[0])
            if bundle.version < version:
                detail = f"bundle {bundle.tenant} has version {bundle.version}, but {version} was in force before"
                raise BrokerError(BrokerCode.CONFIG_INVALID, detail)
        if known != _stated(bundles.all):
            await self.note_policies(bundles.all, at=at)
        else:
            await self._store.transact(lambda tx: keep_policies(tx, bundles.all, at))

    async def note_policies(
        self,
        bundles: Sequence[Bundle],
        *,
        at: datetime,
        entry: Entry | None = None,
        also: Callable[[Transaction], None] = lambda _: None,
        then: Callable[[], object] = lambda: None,
    ) -> None:
        """These policies are in force from now on; `then` as in `rise`."""

        def work(tx: Transaction) -> None:
            also(tx)
            for tenant, value in _stated(bundles).items():
                tx.marks.put(_POLICY_MARK + tenant, value)
            keep_policies(tx, bundles, at)

        await self.rise("policies", work, at=at, entry=entry, then=then)


def _stated(bundles: Sequence[Bundle]) -> dict[str, str]:
    return {bundle.tenant: f"{bundle.version} {bundle.digest}" for bundle in bundles}
