"""The doors of a sealed broker, and the server behind them until it is open.

Decides what a sealed broker answers: that it is alive, that it is not ready, what it lacks, and those who bring it.
Everything else is refused with `root.sealed`, and an address that asks too often with `limit.source`. The listening
socket stays bound across the change, so that whoever connects in between waits and is not turned away.
"""

import asyncio
import contextlib
import logging
import secrets
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, TypeVar

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from broker.calls import REFUSALS, SMALL, Shown
from broker.config import Admin, Settings
from broker.dpop import Gate
from broker.errors import BrokerCode, BrokerError
from broker.limits import Limits
from broker.ports import Clock
from broker.reasons import told
from broker.rest.connections import guarded
from broker.rest.http_api import json_response, read_body, within
from broker.sealed import Unsealing
from broker.status import headers_of, problem_of
from broker.tls import Tls
from broker.wire.bodies import PROBLEM_TYPE
from broker.wire.challenge import ChallengeRequest
from broker.wire.errors import WireCode, WireError
from broker.wire.fields import parse_object
from broker.wire.jose import b64u
from broker.wire.unseal import Confirmation, ShareOffer

T = TypeVar("T")
MAX_DIGITS: Final = 15
logger = logging.getLogger("cloister.broker.sealed")
_Handler = Callable[[Request], Awaitable[dict[str, Any]]]


class SealedDoors:
    """The endpoints over one `Unsealing`."""

    def __init__(self, desk: Unsealing, settings: Settings, clock: Clock) -> None:
        self._desk, self.settings, self._clock = desk, settings, clock
        self._gate = Gate(settings.public_url)
        self._limits = Limits(settings.rates)

    def app(self) -> Starlette:
        table: tuple[tuple[str, str, _Handler], ...] = (
            ("GET", "/healthz", self._alive),
            ("GET", "/v1/unseal", self._status),
            ("POST", "/v1/unseal", self._offer),
            ("POST", "/v1/unseal:challenge", self._challenge),
            ("POST", "/v1/unseal:confirm", self._confirm),
            ("GET", "/v1/log/consistency", self._consistency),
        )
        routes = [Route(path, self._answering(handler), methods=[method]) for method, path, handler in table]
        every = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
        return Starlette(routes=[*routes, Route("/{path:path}", self._answering(self._closed), methods=every)])

    def _answering(self, handler: _Handler) -> Callable[[Request], Awaitable[Response]]:
        async def serve(request: Request) -> Response:
            correlation_id = secrets.token_hex(8)
            try:
                self._enter(request)
                response = json_response(await handler(request))
            except REFUSALS as error:
                problem = problem_of(error, correlation_id)
                extra = {"code": problem.code, "why": told(error), "correlation_id": correlation_id}
                logger.info("refused", extra=extra)
                response = json_response(problem.to_dict(), status=problem.status, media_type=PROBLEM_TYPE)
                response.headers.update(headers_of(error, problem.status))
            with contextlib.suppress(BrokerError):  # a clock that is behind hands out nothing
                response.headers["dpop-nonce"] = self._gate.nonce(self._clock())
            response.headers["x-correlation-id"] = correlation_id
            return response

        return serve

    def _enter(self, request: Request) -> None:
        """Probes are not counted, as in an open broker. Raises BrokerError limit.source."""
        if request.scope["path"].startswith("/v1/"):
            self._limits.enter(_source(request), time.monotonic())

    async def _alive(self, _: Request) -> dict[str, Any]:
        return {"ok": True}

    async def _closed(self, _: Request) -> dict[str, Any]:
        raise BrokerError(BrokerCode.ROOT_SEALED, self._desk.status().state, retry_after_s=5)

    async def _status(self, _: Request) -> dict[str, Any]:
        return (await self._desk.settled()).to_dict()

    async def _offer(self, request: Request) -> dict[str, Any]:
        taken = self._desk.offer(await _read(request, ShareOffer.from_dict)).to_dict()
        self._limits.honest(_source(request), time.monotonic())
        return taken

    async def _challenge(self, request: Request) -> dict[str, Any]:
        return (await self._desk.challenge(await _read(request, ChallengeRequest.from_dict))).to_dict()

    async def _confirm(self, request: Request) -> dict[str, Any]:
        body = await within(read_body(request, SMALL))
        shown = Shown(method="POST", path=request.scope["path"], body=body, header=request.headers.getlist)
        admin = self._administrator(shown)
        self._limits.honest(_source(request), time.monotonic())
        return self._desk.confirm(admin, Confirmation.from_dict(parse_object(body, max_len=SMALL))).to_dict()

    def _administrator(self, shown: Shown) -> Admin:
        text = shown.one("cloister-admin")
        if text is None:
            raise BrokerError(BrokerCode.ADMIN_PROOF_MISSING, "no Cloister-Admin header, or several")
        proof = self._gate.check(
            text, method=shown.method, path=shown.path, body=shown.body, at=self._clock(), known=self._known
        )
        return self._known(proof.jkt)

    def _known(self, jkt: str) -> Admin:
        for admin in self.settings.admins:
            if admin.jkt == jkt:
                return admin
        raise BrokerError(BrokerCode.ADMIN_KEY_UNKNOWN, f"key {jkt}")

    async def _consistency(self, request: Request) -> dict[str, Any]:
        old = request.query_params.get("old", "")
        if not old.isdecimal() or len(old) > MAX_DIGITS:
            raise WireError(WireCode.BODY_FIELD_INVALID, "query old must be a whole number")
        return {"proof": [b64u(sibling) for sibling in self._desk.consistency(int(old))]}


def _source(request: Request) -> str | None:
    return request.client.host if request.client else None


async def _read(request: Request, make: Callable[[object], T]) -> T:
    return make(parse_object(await within(read_body(request, SMALL)), max_len=SMALL))


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()


@contextlib.asynccontextmanager
async def serving_sealed(
    doors: SealedDoors, bound: socket.socket, ready: Callable[[], None]
) -> AsyncIterator["asyncio.Task[None]"]:
    """Serve the sealed doors on a copy of the socket while the block runs. The task ends early on a signal."""
    options: dict[str, Any] = {"log_config": None, "access_log": False, "server_header": False, "date_header": False}
    options["http"] = guarded()
    options["proxy_headers"] = False  # who asks is whose connection it is; no header says so
    if (tls := Tls.of(doors.settings)) is not None:
        context = tls.context
        options["ssl_context_factory"] = lambda *_: context
    config = uvicorn.Config(doors.app(), lifespan="off", timeout_graceful_shutdown=2, **options)
    server = _Server(config, ready)
    running = asyncio.create_task(server.serve(sockets=[bound.dup()]))
    try:
        yield running
    finally:
        server.should_exit = True
        await running
