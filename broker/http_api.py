"""The REST adapter: bytes and headers in, a use-case called, JSON out.

Decides how requests are read (bounded, JSON without surprises), who must prove what at which door, and how answers and
refusals look. No decision about agents, secrets or mail is taken here. Endpoints are Starlette routes over the
dataclasses of `broker.wire`; no model library stands in the hot path.
"""

import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, Protocol, TypeVar, final

import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from attestation.errors import AttestationError
from broker.config import Admin
from broker.errors import BrokerCode, BrokerError
from broker.reasons import Refusal, codes_of, told
from broker.service import Broker
from broker.status import headers_of, problem_of
from broker.wire.bodies import MAX_SMALL_BODY, PROBLEM_TYPE
from broker.wire.errors import WireCode, WireError
from broker.wire.fields import parse_object
from policies.errors import BundleError, Refused

T = TypeVar("T")
JSON_TYPE: Final = "application/json"
REFUSALS: Final = (AttestationError, BrokerError, WireError, Refused)
logger = logging.getLogger("cloister.broker.http")


class Door(Enum):
    """What a caller must show."""

    OPEN = "nothing"
    AGENT = "an admission token and a DPoP proof"
    ADMIN = "a Cloister-Admin proof by an administrator's key"
    EITHER = "one or the other"


class Body(Protocol):
    """What every body of `broker.wire` can do."""

    def to_dict(self) -> dict[str, Any]: ...


@final
@dataclass(slots=True, kw_only=True)
class Call:
    """One request, read and proved."""

    broker: Broker
    request: Request
    body: bytes
    correlation_id: str
    token: str = field(default="", repr=False)
    admin: Admin | None = None

    @property
    def source_ip(self) -> str | None:
        return self.request.client.host if self.request.client else None

    @property
    def name(self) -> str:
        """The resource in the path, decoded once by the server."""
        return str(self.request.path_params["name"])

    def read(self, make: Callable[[object], T]) -> T:
        """The JSON body as one of `broker.wire`'s. Raises WireError body.*"""
        return make(parse_object(self.body, max_len=len(self.body)))

    def number(self, name: str, default: int) -> int:
        """A whole number from the query. Raises WireError body.field_invalid."""
        text = self.request.query_params.get(name, str(default))
        if not text.isdecimal() or len(text) > 15:
            raise WireError(WireCode.BODY_FIELD_INVALID, f"query {name} must be a whole number")
        return int(text)

    @property
    def administrator(self) -> Admin:
        if self.admin is None:
            raise BrokerError(BrokerCode.ADMIN_PROOF_MISSING, "no administrator")
        return self.admin


Answer = Body | dict[str, Any] | Response | None
Handler = Callable[[Call], Awaitable[Answer]]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One line of the table of routes. `sends`, `answers` and `content` are for the OpenAPI document."""

    method: str
    path: str
    handler: Handler
    door: Door
    sends: type | None
    answers: type | None
    max_body: int
    changes: bool  # an administrator who may only look may not
    content: str

    @property
    def name(self) -> str:
        return str(getattr(self.handler, "__name__", ""))

    @property
    def says(self) -> str:
        """The handler's own first line."""
        return (self.handler.__doc__ or "").strip().split("\n")[0].rstrip(".")


def asgi_endpoint(broker: Broker, endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
    """The function that Starlette calls: everything that surrounds a handler."""

    async def serve(request: Request) -> Response:
        started = time.perf_counter()
        correlation_id = secrets.token_hex(8)
        try:
            response = await _answer(broker, endpoint, request, correlation_id)
        except REFUSALS as error:
            response = refusal(broker, error, correlation_id)
        except BundleError as error:
            logger.error("policy.invalid", extra={"why": str(error), "correlation_id": correlation_id})
            wrong = BrokerError(BrokerCode.CONFIG_INVALID, str(error), codes=tuple(str(e.code) for e in error.all))
            response = refusal(broker, wrong, correlation_id)
        except ClientDisconnect:
            response = Response(status_code=400)
        except Exception as error:  # the caller gets one code; the operator the type, never the text
            logger.error("broker.internal", exc_info=error, extra={"correlation_id": correlation_id})
            response = refusal(broker, BrokerError(BrokerCode.BROKER_INTERNAL, type(error).__name__), correlation_id)
        if endpoint.door is not Door.OPEN and "dpop-nonce" not in response.headers:
            _hand_out_nonce(broker, response)
        response.headers["x-correlation-id"] = correlation_id
        broker.metrics.answered(endpoint.path, response.status_code, time.perf_counter() - started)
        return response

    return serve


async def _answer(broker: Broker, endpoint: Endpoint, request: Request, correlation_id: str) -> Response:
    body = await read_body(request, endpoint.max_body) if endpoint.max_body else b""
    call = Call(broker=broker, request=request, body=body, correlation_id=correlation_id)
    if endpoint.door is not Door.OPEN:
        _prove(call, endpoint)
    answer = await endpoint.handler(call)
    if isinstance(answer, Response):
        return answer
    members: dict[str, Any] = {} if answer is None else answer if isinstance(answer, dict) else answer.to_dict()
    return json_response(members)


async def read_body(request: Request, most: int) -> bytes:
    """The whole body, never more than `most` bytes of it. Raises WireError body.too_large."""
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared[:12]) > most:
        raise WireError(WireCode.BODY_TOO_LARGE, f"{declared[:12]} bytes declared, at most {most}")
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise WireError(WireCode.BODY_TOO_LARGE, f"more than {most} bytes")
        parts.append(part)
    return b"".join(parts)


def _prove(call: Call, endpoint: Endpoint) -> None:
    """Check who is there. An agent's proof is compared with its token's key here, its rights later."""
    wants_admin = endpoint.door is Door.ADMIN or (
        endpoint.door is Door.EITHER and "cloister-admin" in call.request.headers
    )
    if wants_admin:
        call.admin = _administrator(call)
        if endpoint.changes and not call.admin.may_change:
            raise BrokerError(BrokerCode.POLICY_REFUSED, f"role {call.admin.role} may not change anything")
    else:
        call.token = _agent(call)


def _one(request: Request, header: str) -> str | None:
    found = request.headers.getlist(header)
    return found[0] if len(found) == 1 else None


def _administrator(call: Call) -> Admin:
    text = _one(call.request, "cloister-admin")
    if text is None:
        raise BrokerError(BrokerCode.ADMIN_PROOF_MISSING, "no Cloister-Admin header, or several")
    proof = call.broker.gate.check(
        text,
        method=call.request.method,
        path=call.request.url.path,
        body=call.body,
        at=call.broker.clock(),
    )
    return call.broker.admin(proof.jkt)


def _agent(call: Call) -> str:
    """The admission token, proved to be in the hands of its key."""
    scheme, _, token = (_one(call.request, "authorization") or "").partition(" ")
    if scheme.lower() != "dpop" or not token:
        raise BrokerError(BrokerCode.SESSION_TOKEN_MISSING, "no `Authorization: DPoP` header, or several")
    at = call.broker.clock()
    proof = call.broker.gate.check(
        _one(call.request, "dpop"),
        method=call.request.method,
        path=call.request.url.path,
        body=call.body,
        at=at,
        token=token,
    )
    if proof.jkt != call.broker.sessions.key_of(token, at):
        raise BrokerError(BrokerCode.DPOP_KEY, "the token is bound to another key")
    return token


def refusal(broker: Broker, error: Refusal, correlation_id: str) -> Response:
    """The problem document for a refusal, and its line in the operator's log."""
    problem = problem_of(error, correlation_id)
    asked_for_nonce = problem.code == BrokerCode.DPOP_NONCE  # every client's first request: no refusal to speak of
    if not asked_for_nonce:
        broker.metrics.refused(problem.code)
    level = logging.ERROR if problem.status >= 500 and problem.status != 503 else logging.INFO
    level = logging.DEBUG if asked_for_nonce else level
    logger.log(
        level,
        "refused",
        extra={"codes": list(codes_of(error)), "why": told(error), "correlation_id": correlation_id},
    )
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


SMALL: Final = MAX_SMALL_BODY
