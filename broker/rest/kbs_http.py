"""The KBS protocol over HTTP: cookies, statuses and error bodies of that protocol around the desk's answers.

Decides the statuses: 401 where attesting again can help, 403 where policy or evidence says no, 404 where there is
nothing, so that guests stop instead of attesting in a storm. The remote side gets a code, its public meaning and an id.
"""

import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from email.utils import format_datetime
from typing import Final

import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from attestation.errors import VerificationFailed
from broker.calls import REFUSALS
from broker.errors import BrokerCode, BrokerError
from broker.kbs.guests import Caller
from broker.kbs.messages import COOKIE, MAX_BODY, session_of
from broker.reasons import Refusal, codes_of, told
from broker.rest.http_api import read_body, within
from broker.service import Broker
from broker.status import problem_of
from broker.wire.errors import WireCode, WireError
from policies.errors import Refused

BASE: Final = "/kbs/v0"
ERRORS: Final = "https://github.com/confidential-containers/kbs/errors/"
ALL_METHODS: Final = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"]
MAX_COOKIES: Final = 8192
_STATUS: Final[Mapping[str, int]] = {
    BrokerCode.CHALLENGE_EXPIRED: 401,
    BrokerCode.CHALLENGE_FORGED: 401,
    BrokerCode.CHALLENGE_USED: 401,
    BrokerCode.SECRET_DESTROYED: 404,
    BrokerCode.SECRET_NAME: 404,
    WireCode.BODY_TOO_LARGE: 413,
}
_NAMES: Final[Mapping[str, str]] = {
    BrokerCode.KBS_TOKEN: "TokenVerifierError",
    BrokerCode.KBS_TOKEN_EXPIRED: "TokenVerifierError",
    BrokerCode.KBS_TOKEN_MISSING: "TokenNotFound",
    BrokerCode.POLICY_REFUSED: "PolicyDeny",
    BrokerCode.ROUTE_UNKNOWN: "PluginNotFound",
    BrokerCode.SECRET_NAME: "InvalidRequestPath",
}
logger = logging.getLogger("cloister.broker.kbs")
Handler = Callable[[Broker, Request, Caller], Awaitable[Response]]


def routes(broker: Broker) -> list[Route]:
    """In order: the last one takes whatever else is asked under this prefix."""
    table: tuple[tuple[str, str, Handler, str], ...] = (
        ("POST", "/auth", _auth, "AttestationError"),
        ("POST", "/attest", _attest, "AttestationError"),
        ("GET", "/resource/{name:path}", _resource, "PluginInternalError"),
    )
    made = [Route(BASE + path, _around(broker, BASE + path, do, name), methods=[how]) for how, path, do, name in table]
    rest = _around(broker, f"{BASE}/*", _unknown, "PluginNotFound")
    return [*made, Route(f"{BASE}/{{rest:path}}", rest, methods=ALL_METHODS)]


async def _auth(broker: Broker, request: Request, caller: Caller) -> Response:
    with broker.limits.room.entered(caller.source_ip) as take:
        opened = broker.kbs.auth(await within(read_body(request, MAX_BODY, take)))
    response = _json({"nonce": opened.nonce, "extra-params": ""})
    _set_cookie(response, opened.session, format_datetime(opened.expires, usegmt=True))
    return response


async def _attest(broker: Broker, request: Request, caller: Caller) -> Response:
    session = session_of(_cookies(request))
    with broker.limits.room.entered(caller.source_ip) as take:
        raw = await within(read_body(request, MAX_BODY, take))
        token, expires = await broker.kbs.attest(session, raw, caller)
    response = _json({"token": token})
    _set_cookie(response, session or "", format_datetime(expires, usegmt=True))
    return response


async def _resource(broker: Broker, request: Request, caller: Caller) -> Response:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    bearer = (
        token.strip() if scheme.lower() == "bearer" and len(request.headers.getlist("authorization")) == 1 else None
    )
    name = str(request.path_params["name"])
    return _json(await broker.kbs.resource(name, caller, session=session_of(_cookies(request)), token=bearer or None))


async def _unknown(broker: Broker, request: Request, caller: Caller) -> Response:
    raise BrokerError(BrokerCode.ROUTE_UNKNOWN, f"{request.method} {request.url.path[:120]!a}")


# Requests that are given back to their address when one of these went well: itself, and with attesting the challenge.
_REDEEMS: Final[Mapping[Handler, int]] = {_attest: 2, _resource: 1}


def _around(broker: Broker, label: str, handler: Handler, name: str) -> Callable[[Request], Awaitable[Response]]:
    """Everything that surrounds a handler. `name` is what its errors are called unless the code says otherwise."""

    async def serve(request: Request) -> Response:
        started = time.monotonic()
        source = request.client.host if request.client else None
        caller = Caller(source_ip=source, correlation_id=secrets.token_hex(8))
        try:
            broker.limits.enter(source, started)
            response = await handler(broker, request, caller)
            broker.limits.honest(source, started, number=_REDEEMS.get(handler, 0))
        except REFUSALS as error:
            response = _refusal(broker, error, name, caller.correlation_id)
        except ClientDisconnect:
            response = Response(status_code=400)
        except Exception as error:  # the guest gets one code; the operator the type, never the text
            logger.error("broker.internal", exc_info=error, extra={"correlation_id": caller.correlation_id})
            failed = BrokerError(BrokerCode.BROKER_INTERNAL, type(error).__name__)
            response = _refusal(broker, failed, name, caller.correlation_id)
        response.headers["x-correlation-id"] = caller.correlation_id
        broker.metrics.answered(label, response.status_code, time.monotonic() - started)
        return response

    return serve


def _refusal(broker: Broker, error: Refusal, name: str, correlation_id: str) -> Response:
    problem = problem_of(error, correlation_id)
    broker.metrics.refused(problem.code)
    status = _STATUS.get(problem.code, problem.status)
    no = isinstance(error, Refused | VerificationFailed)  # of evidence, which is attested now or was before
    called = name if name == "AttestationError" else "PolicyDeny" if no else _NAMES.get(problem.code, name)
    codes = " ".join(codes_of(error))
    detail = f"{problem.title} {problem.remedy} [{codes}; {correlation_id}]"
    level = logging.ERROR if status >= 500 and status != 503 else logging.INFO
    logger.log(level, "refused", extra={"codes": codes, "why": told(error), "correlation_id": correlation_id})
    response = _json({"type": ERRORS + called, "detail": detail}, status)
    if status in (429, 503):
        retry_s = error.retry_after_s if isinstance(error, BrokerError) else None
        response.headers["retry-after"] = str(retry_s or 1)
    return response


def _json(members: Mapping[str, object], status: int = 200) -> Response:
    headers = {"cache-control": "no-store"}
    return Response(orjson.dumps(members), status_code=status, media_type="application/json", headers=headers)


def _set_cookie(response: Response, value: str, expires: str) -> None:
    """As that protocol has it: no Path, so that it goes to all of /kbs/v0 and nowhere else."""
    response.headers["set-cookie"] = f"{COOKIE}={value}; Expires={expires}"


def _cookies(request: Request) -> dict[str, list[str]]:
    """Every value of every cookie (RFC 6265 §4.2.1). Raises WireError body.too_large for headers beyond reason."""
    found: dict[str, list[str]] = {}
    header = "; ".join(request.headers.getlist("cookie"))
    if len(header) > MAX_COOKIES:
        raise WireError(WireCode.BODY_TOO_LARGE, f"{len(header)} characters of cookies")
    for pair in header.split(";"):
        name, _, value = pair.strip().partition("=")
        found.setdefault(name, []).append(value)
    return found
