"""Checkpoints beside a stream: what was handled is called done once one says so, and many messages share one.

Decides when the next is made: as soon as something waits for it and the one before is kept. One that cannot be kept is
tried again, less and less often; meanwhile nothing is called done, and what comes again is recognised.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Final, final

from attestation.errors import CloisterError
from enclave.ledger import Ledger

log: Final = logging.getLogger("cloister.agent")
Keep = Callable[[], Awaitable[None]]
FIRST_PAUSE_S: Final = 0.1
MAX_PAUSE_S: Final = 10.0
CLOSE_PATIENCE_S: Final = 2.0


@final
class Keeping:
    """See the module. `keep` returns when a checkpoint of this moment is kept; `told` hears that there is news."""

    def __init__(self, ledger: Ledger, keep: Keep, told: Callable[[], None]) -> None:
        self._ledger = ledger
        self._keep = keep
        self._told = told
        self._wanted = asyncio.Event()
        self._closing = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="cloister-checkpoints")

    def look(self) -> None:
        """Something may have been handled."""
        if self._ledger.unkept:
            self._wanted.set()

    async def _run(self) -> None:
        pause = FIRST_PAUSE_S
        while not self._closing:
            await self._wanted.wait()
            self._wanted.clear()
            if not (upto := self._ledger.unkept):
                continue
            try:
                await self._keep()
            except CloisterError as error:
                log.warning("no checkpoint: %s", error.code)
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311  jitter, not a secret
                pause = min(2 * pause, MAX_PAUSE_S)
            else:
                pause = FIRST_PAUSE_S
                self._ledger.kept(upto)
                self._told()
            self.look()

    async def close(self) -> None:
        """Make a last one, so that whoever comes after knows; the one that is being made is not broken off."""
        self._closing = True
        self._wanted.set()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=CLOSE_PATIENCE_S)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
