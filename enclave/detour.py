"""Mail by requests while no stream can be opened: where something between agent and broker lets gRPC pass no more.

Decides when mail leaves its stream (after some seconds in which none could be opened), how often one is tried again,
and that request and stream take turns: while a stream may be about to begin, which brings everything again that is out,
no request for mail is under way, whose answer could come late. What is sent goes as the same bytes by either way, and
what comes meets the same ledger, so nothing is lost or handled twice when mail leaves its stream or returns to it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final, final

from attestation.errors import CloisterError
from broker.wire import stream_pb2 as pb
from enclave.errors import TransportFailed

log: Final = logging.getLogger("cloister.agent")
AFTER_S: Final = 5.0
FIRST_TRIAL_S: Final = 1.0
MAX_TRIAL_S: Final = 30.0
WAIT_S: Final = 2  # for mail, in one request: a trial waits as long

Carry = Callable[[pb.StreamSend], Awaitable[pb.StreamResult]]
"""One batch to the broker by a request: what became of it. Raises CloisterError when nobody knows."""


@final
class Detour:
    """Of one stream. Without `carry` mail waits for the stream."""

    def __init__(self, carry: Carry | None = None) -> None:
        self._carry = carry
        self._speaking = asyncio.Lock()
        self._lost_s: float | None = None
        self._pause_s = FIRST_TRIAL_S
        self._anew = True
        self.active = False

    def due(self, error: CloisterError, now_s: float) -> bool:
        """There is no stream, because of that: whether mail goes by requests now. A broker that has said why it wants
        no stream would say the same to requests."""
        if self._carry is None or not isinstance(error, TransportFailed):
            return self.active
        self._lost_s = now_s if self._lost_s is None else self._lost_s
        return self.active or now_s >= self._lost_s + AFTER_S

    def begin(self) -> None:
        if self._carry is not None and not self.active:
            log.warning("no mail stream can be opened: mail goes over REST until one can")
            self.active = True

    def rest(self) -> None:
        """Requests get no answer either: everything waits for a stream."""
        self.active = False

    def over(self) -> None:
        """A stream has begun."""
        if self.active:
            log.info("there is a mail stream again")
        self.active, self._lost_s, self._pause_s = False, None, FIRST_TRIAL_S

    def pause_s(self) -> float:
        """Until the next trial."""
        pause_s, self._pause_s = self._pause_s, min(2 * self._pause_s, MAX_TRIAL_S)
        return pause_s

    async def carry(self, send: pb.StreamSend) -> pb.StreamResult:
        """Raises CloisterError when nobody knows what became of it."""
        assert self._carry is not None
        return await self._carry(send)

    @asynccontextmanager
    async def trial(self) -> AsyncIterator[None]:
        """Inside, a stream is tried. Wherever it ended, what the broker thinks that it gave is asked for again."""
        async with self._speaking:
            self._anew = True
            yield

    @asynccontextmanager
    async def request(self) -> AsyncIterator[bool]:
        """Inside, mail is asked for, if there still is no stream; whether what is out is to come again."""
        async with self._speaking:
            yield self._anew
            self._anew = False
