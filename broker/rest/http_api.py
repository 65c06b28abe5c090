"""The REST adapter: bytes and headers in, a use-case called, JSON out.

Decides how requests are read (bounded, JSON without surprises) and how answers and refusals look. No decision about
agents, secrets or mail is taken here; who must prove what stands in calls.py. Endpoints are Starlette routes over the
dataclasses of `broker.wire`; no model library stands in the hot path.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from broker import tracing
from broker.calls import DEADLINE_S, JSON_TYPE, SMALL, Call, Door, Endpoint, Shown, answer, enter, prove
from broker.errors import BrokerCode, BrokerError
from broker.reasons import Refusal
from broker.rest.refusals import as_refusal, note
from broker.service import Broker
from broker.status import headers_of
from broker.wire.bodies import PROBLEM_TYPE
from broker.wire.errors import WireCode, WireError


def asgi_endpoint(broker: Broker, endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
    """The function that Starlette calls: everything that surrounds a handler."""

    async def serve(request: Request) -> Response:
        started = time.perf_counter()
        correlation_id = secrets.token_hex(8)
        with tracing.call(endpoint.path, correlation_id, request.headers.get("traceparent")) as span:
            try:
                response = await _answer(broker, endpoint, request, correlation_id)
            except ClientDisconnect:
                response = Response(status_code=400)
            except Exception as error:  # noqa: BLE001  # each becomes a refusal; what nobody foresaw is logged
                failure = as_refusal(error, correlation_id)
                span.say(code=str(failure.code))
                response = refusal(broker, failure, correlation_id)
            span.say(status=response.status_code)
        if endpoint.door is not Door.OPEN and "dpop-nonce" not in response.headers:
            _hand_out_nonce(broker, response)
        response.headers["x-correlation-id"] = correlation_id
        broker.metrics.answered(endpoint.path, response.status_code, time.perf_counter() - started)
        return response

    return serve


async def _answer(broker: Broker, endpoint: Endpoint, request: Request, correlation_id: str) -> Response:
    source_ip = request.client.host if request.client else None
    enter(broker, endpoint, source_ip)
    with contextlib.ExitStack() as held:
        take = held.enter_context(broker.limits.room.entered(source_ip))
        return await _handled(broker, endpoint, request, correlation_id, source_ip, take, held)


async def _handled(
    broker: Broker,
    endpoint: Endpoint,
    request: Request,
    correlation_id: str,
    source_ip: str | None,
    take: Callable[[int], None],
    held: contextlib.ExitStack,
) -> Response:
    body = await within(read_body(request, endpoint.max_body, take)) if endpoint.max_body else b""
    shown = Shown(method=request.method, path=request.scope["path"], body=body, header=request.headers.getlist)
    token, admin = prove(broker, shown, endpoint.door, changes=endpoint.changes, act=endpoint.act)
    if endpoint.door is not Door.OPEN:
        held.close()  # somebody who is known has sent it
    call = Call(
        broker=broker,
        body=body,
        correlation_id=correlation_id,
        source_ip=source_ip,
        path=request.path_params,
        query=request.query_params,
        token=token,
        admin=admin,
    )
    found = await answer(call, endpoint)
    if isinstance(found, Response):
        return found
    members: dict[str, Any] = {} if found is None else found if isinstance(found, dict) else found.to_dict()
    return json_response(members)


async def within(reading: Awaitable[bytes]) -> bytes:
    """A body that trickles in is not waited for."""
    try:
        async with asyncio.timeout(DEADLINE_S):
            return await reading
    except TimeoutError:
        raise BrokerError(BrokerCode.BROKER_DEADLINE, "the body did not come") from None


async def read_body(request: Request, most: int, take: Callable[[int], None] = lambda _: None) -> bytes:
    """The whole body, never more than `most` bytes of it; `take` hears of every part beyond the first small ones.

    Raises WireError body.too_large; what `take` raises.
    """
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared[:12]) > most:
        raise WireError(WireCode.BODY_TOO_LARGE, f"{declared[:12]} bytes declared, at most {most}")
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise WireError(WireCode.BODY_TOO_LARGE, f"more than {most} bytes")
        if size > SMALL:
            take(len(part))
        parts.append(part)
    return b"".join(parts)


def refusal(broker: Broker, error: Refusal, correlation_id: str) -> Response:
    """The problem document for a refusal, which is counted and logged."""
    problem = note(broker, error, correlation_id)
    response = json_response(problem.to_dict(), status=problem.status, media_type=PROBLEM_TYPE)
    response.headers.update(headers_of(error, problem.status))
    return response


def json_response(members: dict[str, Any], *, status: int = 200, media_type: str = JSON_TYPE) -> Response:
    return Response(
        orjson.dumps(members), status_code=status, media_type=media_type, headers={"cache-control": "no-store"}
    )


def _hand_out_nonce(broker: Broker, response: Response) -> None:
    try:
        response.headers["dpop-nonce"] = broker.gate.nonce(broker.clock())
    except BrokerError:
        return  # the clock is behind: no proof would be accepted anyway, and the answer says why
