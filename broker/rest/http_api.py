"""The REST adapter: bytes and headers in, a use-case called, JSON out.

Decides how requests are read (bounded, JSON without surprises) and how answers and refusals look. No decision about
agents, secrets or mail is taken here; who must prove what stands in calls.py. Endpoints are Starlette routes over the
dataclasses of `broker.wire`; no model library stands in the hot path.
"""

import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import lru_cache
from typing import Any, Final, final

import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from broker import tracing
from broker.abreast import abreast
from broker.calls import DEADLINE_S, JSON_TYPE, SMALL, Call, Door, Endpoint, Shown, answer, enter, prove
from broker.deadlines import Overdue
from broker.deadlines import within as held_to
from broker.errors import BrokerCode, BrokerError
from broker.reasons import Refusal
from broker.rest.refusals import as_refusal, note
from broker.service import Broker
from broker.status import headers_of
from broker.wire.bodies import PROBLEM_TYPE
from broker.wire.challenge import ChallengeResponse
from broker.wire.errors import WireCode, WireError
from broker.wire.evidence import BrokerEvidence

_NO_QUERY: Final[Mapping[str, str]] = {}


def asgi_endpoint(broker: Broker, endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
    """The function that Starlette calls: everything that surrounds a handler."""

    async def serve(request: Request) -> Response:
        started = time.perf_counter()
        correlation_id = secrets.token_hex(8)
        header = header_of(request)
        with tracing.call(endpoint.path, correlation_id, next(iter(header("traceparent")), None)) as span:
            try:
                response = await _answer(broker, endpoint, request, header, correlation_id)
            except ClientDisconnect:
                response = Response(status_code=400)
            except Exception as error:  # noqa: BLE001  # each becomes a refusal; what nobody foresaw is logged
                failure = as_refusal(error, correlation_id)
                span.say(code=str(failure.code))
                response = refusal(broker, failure, correlation_id)
            span.say(status=response.status_code)
        if endpoint.door is not Door.OPEN:
            _hand_out_nonce(broker, response)
        response.raw_headers.append((b"x-correlation-id", correlation_id.encode("ascii")))
        broker.metrics.answered(endpoint.path, response.status_code, time.perf_counter() - started)
        return response

    return serve


def header_of(request: Request) -> Callable[[str], list[str]]:
    """Every value of a header, by its name in lower case, as it was sent."""
    found: list[tuple[bytes, bytes]] = request.scope["headers"]

    def header(name: str) -> list[str]:
        wanted = name.encode("latin-1")
        return [value.decode("latin-1") for key, value in found if key == wanted]

    return header


async def _answer(
    broker: Broker, endpoint: Endpoint, request: Request, header: Callable[[str], list[str]], correlation_id: str
) -> Response:
    scope = request.scope
    source_ip = scope["client"][0] if scope.get("client") else None
    enter(broker, endpoint, source_ip)
    with broker.limits.room.entered(source_ip) as held:
        body = await within(read_body(request, endpoint.max_body, held)) if endpoint.max_body else b""
        shown = Shown(method=scope["method"], path=scope["path"], body=body, header=header)
        token, admin = prove(broker, shown, endpoint.door, changes=endpoint.changes, act=endpoint.act)
        if endpoint.door is not Door.OPEN:
            held.close()  # somebody who is known has sent it
        call = Call(
            broker=broker,
            body=body,
            correlation_id=correlation_id,
            source_ip=source_ip,
            path=request.path_params,
            query=request.query_params if scope.get("query_string") else _NO_QUERY,
            token=token,
            admin=admin,
        )
        await abreast()
        found = await answer(call, endpoint)
    await abreast()
    if isinstance(found, Response):
        return found
    if isinstance(found, ChallengeResponse) and found.evidence is not None:
        return json_response(found.brief() | {"evidence": _written(found.evidence)})
    members: dict[str, Any] = {} if found is None else found if isinstance(found, dict) else found.to_dict()
    return json_response(members)


@lru_cache(maxsize=4)
def _written(evidence: BrokerEvidence) -> orjson.Fragment:
    """The broker shows the same evidence for minutes."""
    return orjson.Fragment(orjson.dumps(evidence.to_dict()))


async def within(reading: Coroutine[Any, Any, bytes]) -> bytes:
    """A body that trickles in is not waited for."""
    try:
        return await held_to(DEADLINE_S, reading)
    except Overdue:
        raise BrokerError(BrokerCode.BROKER_DEADLINE, "the body did not come") from None


async def read_body(request: Request, most: int, take: Callable[[int], None] = lambda _: None) -> bytes:
    """The whole body, never more than `most` bytes of it; `take` hears of every part beyond the first small ones.

    Raises WireError body.too_large; ClientDisconnect; what `take` raises.
    """
    declared = next(iter(header_of(request)("content-length")), "0")
    if declared.isdecimal() and int(declared[:12]) > most:
        raise WireError(WireCode.BODY_TOO_LARGE, f"{declared[:12]} bytes declared, at most {most}")
    parts: list[bytes] = []
    size, more = 0, True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        part, more = message.get("body", b""), message.get("more_body", False)
        size += len(part)
        if size > most:
            raise WireError(WireCode.BODY_TOO_LARGE, f"more than {most} bytes")
        if size > SMALL:
            take(len(part))
        parts.append(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def refusal(broker: Broker, error: Refusal, correlation_id: str) -> Response:
    """The problem document for a refusal, which is counted and logged."""
    problem = note(broker, error, correlation_id)
    response = json_response(problem.to_dict(), status=problem.status, media_type=PROBLEM_TYPE)
    response.headers.update(headers_of(error, problem.status))
    return response


@final
class JsonResponse(Response):
    """JSON that nobody keeps. Its few headers are written out at once."""

    def __init__(self, body: bytes, status: int, media_type: str) -> None:
        self.status_code = status
        self.media_type = media_type
        self.background = None
        self.body = body
        self.raw_headers = [
            (b"content-length", str(len(body)).encode("ascii")),
            (b"content-type", media_type.encode("latin-1")),
            (b"cache-control", b"no-store"),
        ]


def json_response(members: dict[str, Any], *, status: int = 200, media_type: str = JSON_TYPE) -> Response:
    return JsonResponse(orjson.dumps(members), status, media_type)


def _hand_out_nonce(broker: Broker, response: Response) -> None:
    """Unless the response has one, as a refusal that asks for one."""
    if any(name == b"dpop-nonce" for name, _ in response.raw_headers):
        return
    try:
        response.raw_headers.append((b"dpop-nonce", broker.gate.nonce(broker.clock()).encode("ascii")))
    except BrokerError:
        return  # the clock is behind: no proof would be accepted anyway, and the answer says why
