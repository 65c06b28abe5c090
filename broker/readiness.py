"""Whether the store still takes what it is given: tried at most once a second, whoever asks how often.

Decides how old an answer about readiness may be. Who asks without credentials must not be able to make the broker
write: those who come while the store is being tried wait for that trial, and what it said stands for a moment, good or
bad.
"""

import asyncio
import time
from typing import Final, final

from broker.errors import BrokerError
from broker.ports import Store

STANDS_S: Final = 1.0


@final
class Readiness:
    """What was seen last."""

    def __init__(self, *, stands_s: float = STANDS_S) -> None:
        self._stands_s = stands_s
        self._trial: asyncio.Task[BrokerError | None] | None = None
        self._ended_s = 0.0

    async def writes(self, store: Store) -> None:
        """Raises BrokerError store.unavailable."""
        trial = self._trial
        if trial is None or (trial.done() and time.monotonic() - self._ended_s > self._stands_s):
            trial = self._trial = asyncio.create_task(self._try(store))
        if (error := await asyncio.shield(trial)) is not None:
            raise BrokerError(error.code, error.detail)  # each his own: one that is raised again grows

    async def _try(self, store: Store) -> BrokerError | None:
        try:
            await store.transact(lambda tx: tx.log.size())
        except BrokerError as error:
            return error
        finally:
            self._ended_s = time.monotonic()
        return None
