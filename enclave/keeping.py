"""Checkpoints on a stream: what was handled is called done with one that says so, and many messages share one.

Decides when the next is made: as soon as something waits for it and the one before is kept. What it covers goes in the
same message, and the broker takes both or neither. One that cannot be kept is tried again, less and less often;
meanwhile nothing is called done, and what comes again is recognised.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, final

from attestation.errors import CloisterError
from broker.wire import stream_pb2 as pb
from broker.wire.state import SaveRequest, StateResponse
from enclave.errors import BrokerRefused, Code, TransportFailed
from enclave.ledger import Ledger

log: Final = logging.getLogger("cloister.agent")
Save = Callable[[SaveRequest], Awaitable[StateResponse]]
Keep = Callable[[Save], Awaitable[None]]
FIRST_PAUSE_S: Final = 0.1
MAX_PAUSE_S: Final = 10.0
CLOSE_PATIENCE_S: Final = 2.0


@final
class Keeping:
    """See the module. `keep` returns when a checkpoint of this moment is kept, which it shows to the broker by way of
    what it is given; `told` hears that there is news."""

    def __init__(self, ledger: Ledger, keep: Keep, told: Callable[[], None]) -> None:
        self._ledger = ledger
        self._keep = keep
        self._told = told
        self._wanted = asyncio.Event()
        self._saving: tuple[pb.Save, asyncio.Future[StateResponse]] | None = None
        self._sent = False
        self._open = False  # there is a connection
        self._closing = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="cloister-checkpoints")

    def look(self) -> None:
        """Something may have been handled."""
        if self._open and self._ledger.unkept:
            self._wanted.set()

    async def _run(self) -> None:
        pause = FIRST_PAUSE_S
        while not self._closing:
            await self._wanted.wait()
            self._wanted.clear()
            if not self._open or not (upto := self._ledger.unkept):
                continue
            try:
                await self._keep(partial(self._save, upto))
            except CloisterError as error:  # the broker did not keep it, or the state file's disk did not
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

    async def _save(self, upto: int, request: SaveRequest) -> StateResponse:
        """Show one to the broker, with what it covers. Raises BrokerRefused, TransportFailed."""
        if not self._open:
            raise TransportFailed(Code.CLIENT_UNREACHABLE, "the mail stream broke")
        save = pb.Save(number=request.number, sealed=request.sealed, nonce=request.nonce)
        self._ledger.cover(upto, save)
        answered: asyncio.Future[StateResponse] = asyncio.get_running_loop().create_future()
        self._saving, self._sent = (save, answered), False
        self._told()
        try:
            return await answered
        except BrokerRefused:
            self._ledger.uncover(upto, save)
            raise
        finally:
            self._saving = None

    def take(self, message: pb.ToBroker) -> None:
        """Put into the next message what is to be said; each once, until the connection is lost."""
        if self._saving is not None and not self._sent:
            message.save.CopyFrom(self._saving[0])
            self._sent = True

    def saved(self, told: pb.Saved) -> None:
        """The broker's answer."""
        if self._saving is None or self._saving[1].done() or told.number != self._saving[0].number:
            return
        answered = self._saving[1]
        if told.code:
            answered.set_exception(BrokerRefused(status=told.status, code=told.code, detail="checkpoint"))
        else:
            answered.set_result(
                StateResponse(number=told.number, digest=told.digest, sealed=b"", signature=told.signature)
            )

    def connected(self) -> None:
        """From now on checkpoints go by a stream; without one they go with the requests that call something done."""
        self._open = True
        self.look()

    def disconnected(self) -> None:
        """Nobody knows whether it was kept; what it covers comes again."""
        self._open = False
        if self._saving is not None and not self._saving[1].done():
            self._saving[1].set_exception(TransportFailed(Code.CLIENT_UNREACHABLE, "the mail stream broke"))
