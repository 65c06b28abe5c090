"""What the broker does by itself: collateral asked for again, agents judged again, keys drawn, refusals summed up.

Decides how often. A task that fails is logged and has its next turn; what each one does is decided elsewhere.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, Self, final

from broker.audit import Entry, Kind
from broker.service import Broker
from broker.witness import Witness

SWEEP_S: Final = 30
COUNT_S: Final = 60
WITNESS_S: Final = 30
CUT_S: Final = 6 * 3600
ROTATE_S: Final = 3600  # how often the age of the token keys is looked at
logger = logging.getLogger("cloister.broker")


@final
class Background:
    """The broker's tasks. `async with Background(broker):` runs them."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._broker.generation.on_change(self._changed.set)
        works = (self._refresh(), self._cut(), self._sweep(), self._rotate(), self._count(), self._show())
        self._tasks = [asyncio.create_task(work) for work in works]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _refresh(self) -> None:
        while True:
            await asyncio.sleep(self._broker.settings.refresh_s)
            await _carefully("collateral.refresh", self._broker.collateral.refresh)
            await _carefully("collateral.early", self._broker.upkeep.judge_early)

    async def _cut(self) -> None:
        while True:
            await _carefully("archive.cut", self._broker.upkeep.cut_archive)
            await _carefully("keys.purge", self._broker.keys.purge)
            await _carefully("agents.retire", self._broker.retirement.sweep)
            await asyncio.sleep(CUT_S)

    async def _sweep(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SWEEP_S):
                    await self._changed.wait()
            self._changed.clear()
            await _carefully("sessions.sweep", self._broker.sessions.sweep)
            await _carefully("leases.sweep", self._broker.leasing.sweep)

    async def _rotate(self) -> None:
        while True:
            await _carefully("keys.rotate", self._broker.rotation.rotate_if_due)
            await asyncio.sleep(ROTATE_S)

    async def _count(self) -> None:
        while True:
            await asyncio.sleep(COUNT_S)
            await _carefully("refusals.count", self.write_refusals)
            await _carefully("platforms.save", self._broker.upkeep.save_sightings)
            await _carefully("mail.expire", self._broker.dead.sweep)
            await _carefully("topics.expire", self._broker.topics.expire)
            await _carefully("svids.maintain", self._broker.svids.maintain)

    async def _show(self) -> None:
        """What a disk that is set back can bring back is what no witness has seen."""
        witness = Witness.of_settings(self._broker.settings)
        while witness is not None:
            await asyncio.sleep(WITNESS_S)
            await _carefully("witness.show", partial(witness.confirm, self._broker.audit, self._broker.clock))

    async def write_refusals(self) -> bool:
        """One entry for all the refusals since the last one; False when there were none."""
        found = self._broker.metrics.take_refusals()
        if not found:
            return False
        counted = [f"{code} {number}" for code, number in sorted(found.items())]
        entry = Entry(kind=Kind.REFUSALS_COUNTED, at=self._broker.clock(), more={"counted": counted})
        await self._broker.audit.record(entry, lambda _: None)
        return True


async def _carefully(name: str, work: Callable[[], Awaitable[object]]) -> None:
    """A background task that fails is logged, and tried again at its next turn."""
    try:
        await work()
    except Exception as error:  # noqa: BLE001  # the task must outlive whatever one turn ran into
        logger.error("background.failed", extra={"task": name, "error": type(error).__name__})
