"""Staying connected: a mail stream is opened, and opened again whenever it ends, for as long as the agent runs.

Decides how long to wait before each trial, what an ending means for what was under way, and what is done meanwhile:
after some seconds without a stream what waits is sent by requests (`detour`). What is said on a connection is
`stream`'s.
"""

from __future__ import annotations

import asyncio
import logging
import random
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError

from attestation.errors import CloisterError
from broker.wire import api_pb2, channel
from broker.wire.errors import WireError
from enclave.detour import Detour
from enclave.errors import BrokerRefused, Code, TransportFailed
from enclave.keeping import Keeping
from enclave.lanes import Carried, Lanes
from enclave.ledger import Ledger
from enclave.session import Admission
from enclave.telling import Trouble

log: Final = logging.getLogger("cloister.agent")
LEASE_S: Final = 30
MAX_MESSAGE: Final = 16 << 20  # that the broker may send
SEND_OCTETS: Final = 1 << 18  # of batches in a message to it, which reads one while the next is made
FIRST_PAUSE_S: Final = 0.1
MAX_PAUSE_S: Final = 10.0
WELCOME_S: Final = 15.0  # for the broker's first word
IDLE_S: Final = LEASE_S / 4
NONCE: Final = "dpop.nonce_required"  # the first connection learns the nonce so
OPTIONS: Final = (
    ("grpc.http2.lookahead_bytes", 1 << 19),  # two messages of batches, so that neither end waits for leave to send
    ("grpc.http2.max_frame_size", 1 << 19),
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_send_message_length", MAX_MESSAGE),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 5_000),  # two minutes otherwise, in which every trial fails unseen
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.enable_http_proxy", 0),  # the environment is the host's
    ("grpc.enable_retries", 0),
)
Admit = Callable[[Admission | None], Awaitable[Admission]]
Find = Callable[[], Awaitable[str]]


class Staying(ABC):
    """What keeps one mail stream open. `admit` and `find` are as `Stream` has them."""

    def __init__(
        self,
        target: str,
        *,
        admit: Admit,
        ledger: Ledger,
        keeping: Keeping | None,
        detour: Detour | None,
        find: Find | None,
        carried: Carried | None,
        credentials: grpc.ChannelCredentials | None,
    ) -> None:
        self._target = target
        self._admit = admit
        self._ledger = ledger
        self._keeping = keeping
        self._find_target = find
        self._credentials = credentials
        self.detour: Final = detour or Detour()
        self._lanes = Lanes()
        self._trouble = Trouble(expected=NONCE)
        self._admission: Admission | None = None
        self._connected = asyncio.Event()
        self._arrived = asyncio.Event()
        self._news = asyncio.Event()
        self._carried = carried or Carried()
        self._carried.tell = self._news.set
        self._room = asyncio.Event()

    @property
    def connected(self) -> bool:
        return self._connected.is_set()

    async def wait_connected(self) -> None:
        await self._connected.wait()

    @abstractmethod
    async def _connection(self, dialled: grpc.aio.Channel) -> None:
        """One connection, until it ends; it always ends with an error."""

    @abstractmethod
    def _look_up(self, at_s: float) -> None:
        """Ask for the keys of mailboxes that are wanted."""

    async def _run(self) -> None:
        while True:
            async with self._dial() as dialled:
                await self._stay(dialled)

    async def _stay(self, dialled: grpc.aio.Channel) -> None:
        """Connect again and again, until the broker has its streams elsewhere."""
        pause = FIRST_PAUSE_S
        while True:
            try:
                await self._attempt(dialled)
            except CloisterError as error:
                pause = FIRST_PAUSE_S if self._ended() else pause
                self._trouble.tell(error)
                self._give_up_on(error)
                if await self._admitted_anew(error):
                    continue
                where = await self._where() if self.detour.due(error, now_s()) else ""
                if where not in ("", self._target):
                    self._target = where
                    return
                if where:
                    await self.by_requests()
                elif error.code != NONCE or pause != FIRST_PAUSE_S:
                    await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311  jitter, not a secret
                pause = min(2 * pause, MAX_PAUSE_S)
            finally:
                self._ended()

    def _ended(self) -> bool:
        """Nobody knows what arrived. Whether there had been a connection."""
        connected = self.connected
        self._connected.clear()
        self._lanes.disconnected()
        if connected:
            self._ledger.disconnected()
            self._carried.disconnected()
            if self._keeping is not None:
                self._keeping.disconnected()
        return connected

    async def _attempt(self, dialled: grpc.aio.Channel) -> None:
        """One connection, until it ends; it always ends with an error. Its beginning is not waited for for ever."""
        async with self.detour.trial():
            connection = asyncio.create_task(self._connection(dialled))
            welcome = asyncio.create_task(self._connected.wait())
            try:
                await asyncio.wait((connection, welcome), timeout=WELCOME_S, return_when=asyncio.FIRST_COMPLETED)
            finally:
                if not self.connected:
                    connection.cancel()
                welcome.cancel()
        try:
            await asyncio.wait((connection,))
        finally:
            connection.cancel()
            await asyncio.gather(connection, return_exceptions=True)
        if connection.cancelled():
            raise TransportFailed(Code.CLIENT_TIMEOUT, f"{self._target}: no welcome in {WELCOME_S:g} s")
        connection.result()

    async def by_requests(self) -> None:
        """Send what waits by requests, until it is time to try a stream again."""
        if not self.detour.active:
            self._ledger.disconnected()
            self.detour.begin()
            self._arrived.set()  # whoever waits for mail asks for it
        until_s = now_s() + self.detour.pause_s()
        try:
            while (at_s := now_s()) < until_s:
                self._look_up(at_s)
                sends = self._lanes.sends(at_s, SEND_OCTETS)
                for send in sends:
                    self._lanes.answered(await self.detour.carry(send), now_s())
                    self._room.set()
                if not sends:
                    await self._told_something(min(self._idle_s(at_s), until_s - at_s))
        except CloisterError as error:
            self._trouble.tell(error)
            await self._told_something(FIRST_PAUSE_S)
        finally:
            self._lanes.disconnected()

    async def _where(self) -> str:
        """Where the broker has its streams now, which after a restart may be elsewhere; empty when it does not answer
        requests either: then it is the broker that is away, and not the stream."""
        if self._find_target is None:
            return self._target
        try:
            return await self._find_target() or self._target
        except CloisterError:
            self.detour.rest()
            return ""

    def _dial(self) -> grpc.aio.Channel:
        if self._credentials is None:
            return grpc.aio.insecure_channel(self._target, options=OPTIONS)
        return grpc.aio.secure_channel(self._target, self._credentials, options=OPTIONS)

    async def _admitted_anew(self, error: CloisterError) -> bool:
        """Whether the broker no longer took the token, and there is a new one now."""
        if not (isinstance(error, BrokerRefused) and error.status == 401 and not str(error.code).startswith("dpop.")):
            return False
        try:
            await self._admit(self._admission)
        except CloisterError as refused:
            log.error("not admitted any more: %s", refused.code)
            self._give_up_on(refused)
            return False
        return True

    def _give_up_on(self, error: CloisterError) -> None:
        """An agent that the broker forbids to be here can send nothing: who waits for that is told so. Whether what
        was under way had arrived, nobody knows."""
        if isinstance(error, BrokerRefused) and error.status == 403:
            for lane in self._lanes:
                lane.give_up(error)

    async def _told_something(self, most_s: float) -> None:
        """Until there is news, or that long."""
        self._news.clear()
        with suppress(TimeoutError):
            # Not wait_for: before Python 3.12 it swallows a cancellation that comes together with the news.
            async with asyncio.timeout(most_s):
                await self._news.wait()

    def _idle_s(self, from_s: float) -> float:
        """Until a pause is over, or leases want looking after."""
        pauses = [at_s - from_s for lane in self._lanes if (at_s := lane.wakes_at_s()) is not None and at_s > from_s]
        return min([IDLE_S, *pauses])


def now_s() -> float:
    """For pauses and leases; nothing that is proved depends on it."""
    return asyncio.get_running_loop().time()


async def why(call: grpc.aio.StreamStreamCall[Any, Any], target: str) -> tuple[CloisterError, str | None]:
    """What ended a call over gRPC, as the broker explains it or the connection; and the nonce for the next proof.

    Nobody signs these words: no more than a reason and that nonce is taken from them.
    """
    code = await call.code()
    found = {str(name): value for name, value in (await call.trailing_metadata()) or ()}
    nonce, told = found.get("dpop-nonce"), found.get("grpc-status-details-bin")
    said = nonce if isinstance(nonce, str) else None
    problem = _problem(told) if isinstance(told, bytes) else None
    if problem is None:
        return TransportFailed(Code.CLIENT_UNREACHABLE, f"{target}: {code.name}"), said
    refused = BrokerRefused(
        status=problem.status,
        code=problem.code,
        detail=problem.title,
        remedy=problem.remedy,
        correlation_id=problem.correlation_id,
        reasons=tuple(problem.codes),
    )
    return refused, said


def _problem(raw: bytes) -> api_pb2.Problem | None:
    """The problem in a call's status details; none where they cannot be read."""
    try:
        for detail in channel.parsed(api_pb2.Status, raw, MAX_MESSAGE).details:
            return api_pb2.Problem.FromString(detail.value)
    except (WireError, DecodeError):
        return None
    return None
