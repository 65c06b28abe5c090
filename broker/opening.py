"""How a broker comes up: its root key, its store, a confirmed checkpoint, and only then its doors.

Decides the order, and that a broker which lacks something serves the sealed doors meanwhile, on the same address. What
it lacks, and who may bring it, is decided in sealed.py.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import final

from attestation.pki import TrustRoots
from attestation.ports import CollateralSource, TrustDomain
from broker.app import listen, serve
from broker.clock import wall_clock
from broker.config import Settings
from broker.domains import trust_file
from broker.errors import BrokerCode, BrokerError
from broker.ports import Clock
from broker.rest.sealed_http import SealedDoors, serving_sealed
from broker.sealed import Unsealing
from broker.service import Broker, build
from broker.sources import collateral_source
from broker.witness import Witness


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """One start, from settings to an open broker."""

    settings: Settings
    clock: Clock = wall_clock
    domain: TrustDomain | None = None
    passphrase: bytes | None = field(repr=False, default=None)
    collateral: CollateralSource | None = None
    roots: TrustRoots | None = None

    async def run(
        self,
        *,
        sock: socket.socket | None = None,
        sealed: Callable[[], None] = lambda: None,
        serving: Callable[[Broker, socket.socket], Awaitable[None]] | None = None,
    ) -> None:
        """Serve until SIGTERM; `sealed` is called when there is something to wait for and the doors to it are open.

        `serving` takes over with the open broker and the bound socket. Raises what `build` and `serve` raise.
        """
        bound = sock or listen(self.settings.host, self.settings.port)
        try:
            broker = await self._opened(bound, sealed)
        except BaseException:
            bound.close()
            raise
        if serving is None:
            await serve(broker, sock=bound)
        else:
            await serving(broker, bound)

    async def _opened(self, bound: socket.socket, sealed: Callable[[], None]) -> Broker:
        desk = Unsealing(self.settings, clock=self.clock, witness=Witness.of_settings(self.settings))
        if not desk.waits:
            return await self._open(desk)
        try:
            await self._attest(desk)
            async with serving_sealed(SealedDoors(desk, self.settings, self.clock), bound, sealed) as server:
                return await _unless(server, self._open(desk))
        finally:
            desk.stop()

    async def _attest(self, desk: Unsealing) -> None:
        """Whoever brings a share can see where it goes."""
        if self.domain is None or self.settings.trust_file is None:
            return
        source = self.collateral or collateral_source(self.settings, self.clock)
        await desk.attest(self.domain, trust_file(self.settings.trust_file).digest, source)

    async def _open(self, desk: Unsealing) -> Broker:
        return await build(
            self.settings,
            clock=self.clock,
            collateral=self.collateral,
            domain=self.domain,
            roots=self.roots,
            root_key=await desk.root_key(self.passphrase),
            confirm=desk.confirmed,
        )


async def _unless(server: "asyncio.Task[None]", opening: Awaitable[Broker]) -> Broker:
    """The broker; BrokerError broker.stopping when the server is told to end before it is open."""
    task = asyncio.ensure_future(opening)
    try:
        await asyncio.wait({server, task}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
    finally:  # whoever is cancelled here leaves no half-open store behind
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    raise BrokerError(BrokerCode.BROKER_STOPPING, "told to stop while it was sealed")
