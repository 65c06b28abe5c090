"""Who calls over gRPC, and how a refusal looks there.

Decides how long a call may go on without saying anything, and nothing else of its own: proofs are the DPoP proofs of
REST with `htm` POST, `htu` the public URL and the full method, `bh` the hash of the serialised request; they come as
metadata `authorization`, `dpop` and `cloister-admin`. A refusal has the same members as REST's problem document, in
`grpc-status-details-bin`.
"""

import secrets
import time
from collections.abc import Iterable
from typing import Any, Final, NoReturn
from urllib.parse import unquote

import grpc

from broker.calls import Door, Shown, agent_token, prove
from broker.config import Admin
from broker.deadlines import Overdue, within
from broker.errors import BrokerCode, BrokerError
from broker.reasons import Refusal
from broker.rest.refusals import note
from broker.service import Broker
from broker.sessions import Session
from broker.status import GRPC_STATUS, headers_of
from broker.wire import api_pb2 as pb
from broker.wire.errors import WireCode, WireError

Metadata = Iterable[tuple[str, str | bytes]] | None
PROBLEM_URL: Final = "type.googleapis.com/cloister.v1.Problem"
CODES: Final = {int(code.value[0]): code for code in grpc.StatusCode}
FIRST_S: Final = 10.0  # for a call's first message, before which nobody knows who is there
MAX_CODES: Final = 32  # of one refusal: clients take 8 KiB of metadata unless told otherwise


def shown(metadata: Metadata, full_method: str, body: bytes) -> Shown:
    """What came with a call, as calls.py wants it. `full_method` is `/package.Service/Method`."""
    found: dict[str, list[str]] = {}
    for name, value in metadata or ():
        if isinstance(value, str):
            found.setdefault(name, []).append(value)
    return Shown(method="POST", path=full_method, body=body, header=lambda name: found.get(name, ()))


def token(broker: Broker, metadata: Metadata, full_method: str, body: bytes = b"") -> str:
    """The caller's admission token, proved to be in the hands of its key; `broker.acting(token, …)` lets him act.

    Raises BrokerError session.token_missing, dpop.*; WireError dpop.*; TokenRefused token.*
    """
    return agent_token(broker, shown(metadata, full_method, body))


async def authenticate(broker: Broker, metadata: Metadata, full_method: str, body: bytes = b"") -> Session | Admin:
    """An agent, judged in the present generation, or an administrator. Raises what proving and judging do."""
    found, admin = prove(broker, shown(metadata, full_method, body), Door.EITHER, changes=False)
    return admin or await broker.sessions.of_token(found, broker.clock())


def correlation_id() -> str:
    """A new id for a call: the refused one reads it, and so does the log."""
    return secrets.token_hex(8)


def greeting(broker: Broker, call_id: str) -> tuple[tuple[str, str], ...]:
    """What every answer carries: the id, and the nonce for the next proof."""
    try:
        return ("x-correlation-id", call_id), ("dpop-nonce", broker.gate.nonce(broker.clock()))
    except BrokerError:
        return (("x-correlation-id", call_id),)  # the clock is behind: no proof would be accepted anyway


async def first(broker: Broker, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
    """The first message of a call, or the only one. An address holds few calls on which it has not come.

    Raises BrokerError broker.busy, broker.deadline; WireError body.field_missing.
    """
    with broker.limits.silent.entered(address_of(context.peer())) as take:
        take(1)
        try:
            raw = await within(FIRST_S, context.read())
        except Overdue:
            raise BrokerError(BrokerCode.BROKER_DEADLINE, "the first message did not come") from None
    if not isinstance(raw, bytes):
        raise WireError(WireCode.BODY_FIELD_MISSING, "the first message")
    return raw


async def refuse(
    context: grpc.aio.ServicerContext[Any, Any],
    broker: Broker,
    error: Refusal,
    call_id: str,
    *,
    route: str = "",
    started: float = 0.0,
) -> NoReturn:
    """End the call with the refusal's status, its problem and, where it is a 401, what to prove.

    With `route`, the full method, and `started`, what `time.perf_counter` said when the call came, it is measured too.
    """
    problem = note(broker, error, call_id)
    if route:
        broker.metrics.answered(route, problem.status, time.perf_counter() - started)
    code = CODES[GRPC_STATUS[problem.status]]
    members = problem.to_dict() | {"codes": problem.codes[:MAX_CODES]}
    members["kind"] = members.pop("type")
    told = pb.Problem(**members)
    headers = headers_of(error, problem.status)
    if "retry-after" in headers:
        told.retry_after_s = int(headers["retry-after"])
    status = pb.Status(code=code.value[0], message=problem.code)
    status.details.add(type_url=PROBLEM_URL, value=told.SerializeToString())
    details: tuple[str, str | bytes] = ("grpc-status-details-bin", status.SerializeToString())
    await context.abort(code, problem.code, (*greeting(broker, call_id), *headers.items(), details))


def address_of(peer: str) -> str | None:
    """The caller's address from what gRPC says of it: `ipv4:192.0.2.1:50000`, `ipv6:%5B2001:db8::1%5D:50000`."""
    kind, _, rest = unquote(peer).partition(":")
    host, _, port = rest.rpartition(":")
    if kind not in ("ipv4", "ipv6") or not port.isdecimal():
        return None
    return host.strip("[]").removeprefix("::ffff:") or None
