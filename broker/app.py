"""The broker as a web application, and the server that runs it.

Decides the order of start and stop: everything is built and checked before the first connection is taken; on SIGTERM
waiting receivers are sent home, running requests finish, the store closes last. The endpoints stand in routes.py.
"""

import asyncio
import contextlib
import gc
import logging
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any, Final

import uvicorn
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from broker.background import Background
from broker.errors import BrokerCode, BrokerError
from broker.rest.connections import Entrance, guarded
from broker.rest.front import Front
from broker.rest.http_api import asgi_endpoint, json_response, refusal
from broker.rest.kbs_http import routes as kbs_routes
from broker.rest.openapi import document
from broker.rest.routes import ENDPOINTS
from broker.rpc.server import GrpcServer
from broker.rpc.server import start as start_grpc
from broker.service import Broker, build
from broker.tls import Tls
from broker.wire.heap import keep_freed

__all__ = ["Background", "Broker", "build", "create_app", "listen", "serve"]

TITLE: Final = "Cloister broker"
VERSION: Final = "1"
BACKLOG: Final = 2048
STOP_S: Final = 10
TLS_POLL_S: Final = 5
YOUNG: Final = 20_000  # new objects that can hold others, between two collections of the young
SWITCH_S: Final = 0.0005  # how long the store's thread waits for its turn behind a busy loop, at most
logger = logging.getLogger("cloister.broker")


class App(FastAPI):
    """FastAPI behind a front door: what the table of routes has goes straight to its endpoint."""

    front: Front = Front(())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not scope.get("root_path"):
            found = self.front.find(scope["method"], scope["path"])
            if found is not None:
                serve, scope["path_params"] = found
                response = await serve(Request(scope, receive, send))
                await response(scope, receive, send)
                return
        await super().__call__(scope, receive, send)


def create_app(broker: Broker, *, background: bool = True) -> FastAPI:
    """The ASGI application over a broker that was built before. It closes the broker when it stops."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        broker.metrics.started(broker.clock())
        try:
            if background:
                async with Background(broker):
                    yield
            else:
                yield
        finally:
            await broker.close()

    app = App(title=TITLE, version=VERSION, lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None)
    served = [(endpoint, asgi_endpoint(broker, endpoint)) for endpoint in ENDPOINTS]
    app.front = Front(served)
    for endpoint, serve_it in served:
        app.router.add_route(endpoint.path, serve_it, methods=[endpoint.method])
    app.router.routes += kbs_routes(broker)
    described = document(ENDPOINTS, title=TITLE, version=VERSION, server=broker.settings.public_url)

    async def openapi(_: Request) -> Response:
        return json_response(described)

    async def unknown(_: Request, error: Exception) -> Response:
        wrong_method = isinstance(error, HTTPException) and error.status_code == 405
        code = BrokerCode.ROUTE_METHOD if wrong_method else BrokerCode.ROUTE_UNKNOWN
        return refusal(broker, BrokerError(code, "no such endpoint"), "")

    app.router.add_route("/openapi.json", openapi, methods=["GET"])
    app.add_exception_handler(HTTPException, unknown)
    return app


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; port 0 takes a free one, which `socket.getsockname` tells. Raises OSError with the address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, asyncio switches Nagle off; else each answer waits 40 ms for a delayed acknowledgement.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        raise OSError(error.errno, error.strerror, f"{host}:{port}") from None  # which of the addresses it was
    return bound


def settle() -> None:
    """When serving begins, collections become rare and short. What is here now stays, so none has to look through it
    again, for tens of milliseconds; what a request makes has mostly gone by itself when the next one looks. Memory that
    is freed is kept for what comes next.
    """
    keep_freed()
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, *gc.get_threshold()[1:])


class Server(uvicorn.Server):
    """uvicorn, which sends waiting receivers home first when it is told to stop."""

    def __init__(
        self,
        config: uvicorn.Config,
        broker: Broker,
        ready: Callable[[], None],
        grpc: GrpcServer | None,
        tls: Tls | None,
        stop_s: int,
    ) -> None:
        super().__init__(config)
        self._tls = tls
        self._taking: list[asyncio.Task[None]] = []
        self._stop_s = stop_s
        self._broker = broker
        self._ready = ready
        self._grpc = grpc

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup([] if self._tls else sockets)
        if self.started:
            self._taking = [asyncio.create_task(self._take_in(one, self._tls)) for one in sockets or () if self._tls]
            settle()
            self._ready()

    async def _take_in(self, listening: socket.socket, tls: Tls) -> None:
        """Over TLS connections are taken in here: a handshake that does not end is one that says nothing."""
        connection: Any = self.config.http_protocol_class
        state = {"server_state": self.server_state, "app_state": self.lifespan.state}
        make = partial(connection, config=self.config, **state)
        await Entrance(connection.silent, tls.context, make).take_in(listening)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Callers of both kinds finish at the same time, within one bound: some never do."""
        end_s = time.monotonic() + self._stop_s
        for task in self._taking:
            task.cancel()
        self._broker.bell.stop()
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        if self._grpc is not None:
            await self._grpc.stop(self._stop_s)
        self.config.timeout_graceful_shutdown = max(1, round(end_s - time.monotonic()))
        await super().shutdown(sockets)


async def serve(
    broker: Broker,
    *,
    sock: socket.socket | None = None,
    ready: Callable[[], None] = lambda: None,
    stop: asyncio.Event | None = None,
    on_grpc: Callable[[str], None] = lambda _: None,
    tls: Tls | None = None,
    stop_s: int = STOP_S,
) -> None:
    """Serve until SIGTERM or SIGINT, or until `stop` is set; `ready` is called when connections are taken, before it
    `on_grpc` with the address of the gRPC server where the settings want one.

    Without a socket the settings' host and port are bound; without `tls`, what the settings name is read. Raises
    OSError when nothing can be bound; BrokerError config.invalid. Running requests have `stop_s` to finish.
    """
    sys.setswitchinterval(SWITCH_S)
    tls = tls or Tls.of(broker.settings)
    bound = sock or listen(broker.settings.host, broker.settings.port)
    options: dict[str, Any] = {"log_config": None, "access_log": False, "server_header": False, "date_header": False}
    options["proxy_headers"] = False  # limits and policies go by whose connection it is; no header says so
    options["http"] = guarded()
    config = uvicorn.Config(create_app(broker), timeout_keep_alive=75, lifespan="on", **options)
    grpc = await _grpc(broker, tls)
    if grpc is not None:
        broker.ports.grpc = grpc.port
        on_grpc(grpc.address)
    server = Server(config, broker, ready, grpc, tls, stop_s)
    watching = [asyncio.create_task(_watch(stop, server))] if stop else []
    watching += [asyncio.create_task(_follow(tls))] if tls else []
    try:
        await server.serve(sockets=[bound])
    finally:
        for task in watching:
            task.cancel()
        if grpc is not None:
            await grpc.stop(None)


async def _grpc(broker: Broker, tls: Tls | None) -> GrpcServer | None:
    settings = broker.settings
    if settings.grpc_port is None:
        return None
    credentials = tls.grpc() if tls else None
    return await start_grpc(broker, settings.grpc_host or settings.host, settings.grpc_port, credentials=credentials)


async def _follow(tls: Tls) -> None:
    """New files count within seconds; nobody has to say so."""
    while True:
        await asyncio.sleep(TLS_POLL_S)
        tls.refresh()


async def _watch(stop: asyncio.Event, server: Server) -> None:
    await stop.wait()
    server.should_exit = True
