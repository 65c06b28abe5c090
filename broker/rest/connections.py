"""Connections that say nothing, or never come to the end of what they begin: few, short, and of bounded size.

Decides how long the head of a request may take and how large it may be, and how many connections may be without one:
of an address with too many, and of all when there are too many, the oldest is cut, so that whoever comes new finds a
place and has the time that a request takes. A handshake of TLS that has not ended is such a connection, too: it is done
here, before the server hears of it. What comes behind the head is bounded where bodies are read (http_api.py).
"""

import asyncio
import contextlib
import logging
import resource
import socket
import ssl
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final, Protocol, final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from broker.limits import source_of

HEAD_S: Final = 10.0  # from the connection, or from its first byte, to the end of a request's headers
MAX_HEAD: Final = 64 * 1024
MAX_SILENT_OF_ONE: Final = 64
ACCEPT_AGAIN_S: Final = 1.0  # when there are no descriptors left
logger = logging.getLogger("cloister.broker.connections")


class Stranger(Protocol):
    """Somebody of whom nobody knows yet what he wants."""

    def cut(self) -> None: ...


@final
class Silent:
    """The connections of which nobody knows yet what they want, the oldest first."""

    def __init__(self, *, most: int | None = None, each: int = MAX_SILENT_OF_ONE) -> None:
        self._most = most or max(MAX_SILENT_OF_ONE, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
        self._each = each
        self._all: OrderedDict[Stranger, str] = OrderedDict()
        self._of: dict[str, OrderedDict[Stranger, None]] = {}

    def __len__(self) -> int:
        return len(self._all)

    def add(self, connection: Stranger, source: str) -> None:
        own = self._of.setdefault(source, OrderedDict())
        own[connection] = None
        self._all[connection] = source
        if len(own) > self._each:
            next(iter(own)).cut()
        elif len(self._all) > self._most:
            next(iter(self._all)).cut()

    def remove(self, connection: Stranger) -> None:
        source = self._all.pop(connection, None)
        if source is not None:
            own = self._of[source]
            del own[connection]
            if not own:
                del self._of[source]


class Guarded(HttpToolsProtocol):
    """One connection. `silent` is set for each server by `guarded`."""

    silent: Silent
    _timer: asyncio.TimerHandle | None = None
    _head = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._wait()
        self.silent.add(self, source_of(self.client[0] if self.client else None))

    def connection_lost(self, exc: Exception | None) -> None:
        self._heard()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        super().data_received(data)
        scope: Any = self.scope  # None before the first request
        if not scope or "method" not in scope:  # the head of a request has not ended
            self._head += len(data)
            if self._head > MAX_HEAD:
                self.cut()
            elif self._timer is None:
                self._wait()
        elif self.cycle is before and before.response_complete:  # something behind the last request, or before the next
            if self._timer is None:
                self._wait()
        elif self._timer is not None:
            self._heard()

    def _wait(self) -> None:
        self._timer = self.loop.call_later(HEAD_S, self.cut)

    def _heard(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._head = None, 0
        self.silent.remove(self)

    def cut(self) -> None:
        """Without a word: there is no request that one could answer."""
        self._heard()
        self.transport.abort()


def guarded() -> Any:
    """The class of a server's connections."""
    return type("Connection", (Guarded,), {"silent": Silent()})


@final
class _Handshake:
    """One that has not ended."""

    def __init__(self, taken: socket.socket, silent: Silent) -> None:
        self._taken, self._silent = taken, silent

    def cut(self) -> None:
        self._silent.remove(self)
        with contextlib.suppress(OSError):
            self._taken.shutdown(socket.SHUT_RDWR)  # which ends it for whoever waits


@final
class Entrance:
    """Takes connections and secures them; `make` is for those that got so far."""

    def __init__(self, silent: Silent, context: ssl.SSLContext, make: Callable[[], asyncio.Protocol]) -> None:
        self._silent, self._context, self._make = silent, context, make
        self._tasks: set[asyncio.Task[None]] = set()

    async def take_in(self, listening: socket.socket) -> None:
        """Until it is closed."""
        loop = asyncio.get_running_loop()
        listening.setblocking(False)
        while listening.fileno() >= 0:
            try:
                taken, address = await loop.sock_accept(listening)
            except OSError as error:
                logger.error("connections.accept_failed", extra={"error": error.strerror})
                await asyncio.sleep(ACCEPT_AGAIN_S)
                continue
            task = loop.create_task(self._secure(taken, str(address[0])))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _secure(self, taken: socket.socket, address: str) -> None:
        shaking = _Handshake(taken, self._silent)
        self._silent.add(shaking, source_of(address))
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._make, taken, ssl=self._context, ssl_handshake_timeout=HEAD_S
            )
        except OSError:  # ssl.SSLError and TimeoutError, too: whoever it was, there is nobody to tell
            taken.close()
        finally:
            self._silent.remove(shaking)
