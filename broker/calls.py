"""One call of a use-case, whichever protocol brought it: what was asked, who asks, and how that was proved.

Decides what must be shown at which door, and for how long a handler may work. REST (http_api.py) and gRPC (rpc/) are
adapters around this: both hand a `Call` to the same handlers, so a decision, a code or an entry of the log cannot
depend on the protocol.
"""

import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, Protocol, TypeVar, final

from starlette.responses import Response

from attestation.errors import AttestationError
from broker.config import Admin
from broker.deadlines import Overdue, to_its_end, within
from broker.errors import BrokerCode, BrokerError
from broker.rights import Act
from broker.service import Broker
from broker.wire.bodies import MAX_SMALL_BODY
from broker.wire.errors import WireCode, WireError
from broker.wire.fields import parse_object
from policies.errors import Refused

T = TypeVar("T")
JSON_TYPE: Final = "application/json"
SMALL: Final = MAX_SMALL_BODY
DEADLINE_S: Final = 30  # of a handler; the longest wait that a request can ask for is 20
REFUSALS: Final = (AttestationError, BrokerError, WireError, Refused)
_NOTHING: Final[Mapping[str, Any]] = {}


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
    """One request, read and proved. `members` is the body where the protocol has read it already."""

    broker: Broker
    body: bytes
    correlation_id: str
    source_ip: str | None = None
    path: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)
    query: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    members: Mapping[str, Any] | None = None
    token: str = field(default="", repr=False)
    admin: Admin | None = None

    @property
    def name(self) -> str:
        """The resource that is asked for, decoded once."""
        return str(self.path["name"])

    def read(self, make: Callable[[object], T]) -> T:
        """The body as one of `broker.wire`'s. Raises WireError body.*"""
        found = self.members
        return make(parse_object(self.body, max_len=len(self.body)) if found is None else found)

    def text(self, name: str) -> str | None:
        """A text from the query."""
        return self.query.get(name)

    def number(self, name: str, default: int) -> int:
        """A whole number from the query. Raises WireError body.field_invalid."""
        text = self.query.get(name, str(default))
        if not text.isdecimal() or len(text) > 15:
            raise WireError(WireCode.BODY_FIELD_INVALID, f"query {name} must be a whole number")
        return int(text)

    @property
    def administrator(self) -> Admin:
        if self.admin is None:
            raise BrokerError(BrokerCode.ADMIN_PROOF_MISSING, "no administrator")
        return self.admin


Answer = Body | dict[str, Any] | Response | None
Handler = Callable[[Call], Coroutine[Any, Any, Answer]]


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
    act: Act | None = None  # what an administrator does here; without one, it concerns the whole broker
    query: tuple[str, ...] = ()  # what may stand behind the `?`; `name:int` for whole numbers
    redeems: int = 0  # so many requests of strangers are given back when it goes well

    @property
    def name(self) -> str:
        return str(getattr(self.handler, "__name__", ""))

    @property
    def says(self) -> str:
        """The handler's own first line."""
        return (self.handler.__doc__ or "").strip().split("\n")[0].rstrip(".")

    @property
    def limited(self) -> bool:
        """Probes are not: whoever floods the broker must not make it look dead."""
        return self.path.startswith(("/v1/", "/.well-known/", "/results/", "/console"))


def row(
    where: str,
    handler: Handler,
    door: Door,
    sends: type | None = None,
    answers: type | None = None,
    *,
    most: int | None = None,
    changes: bool = False,
    content: str = JSON_TYPE,
    act: Act | None = None,
    redeems: int = 0,
    query: str = "",
) -> Endpoint:
    """A line of the table: `row("POST /v1/challenges", challenge, Door.OPEN, ChallengeRequest, ChallengeResponse)`."""
    method, path = where.split(" ")
    return Endpoint(
        method=method,
        path=path,
        handler=handler,
        door=door,
        sends=sends,
        answers=answers,
        max_body=(0 if method == "GET" else SMALL) if most is None else most,
        changes=changes,
        content=content,
        act=act,
        redeems=redeems,
        query=tuple(query.split()),
    )


def enter(broker: Broker, endpoint: Endpoint, source_ip: str | None) -> None:
    """Before anything is read. Raises BrokerError limit.source."""
    if endpoint.limited:
        broker.limits.enter(source_ip, time.monotonic())


async def answer(call: Call, endpoint: Endpoint) -> Answer:
    """What the handler answers, within its time; who has proved himself is counted with his tenant, not his address.

    An administrator's change that takes longer, or that nobody waits for any more, goes on: half of one is none.

    Raises BrokerError limit.agent, limit.tenant, broker.deadline; what the handler raises.
    """
    at_s = time.monotonic()
    if call.token or call.admin is not None:
        call.broker.limits.honest(call.source_ip, at_s)
    if call.token:
        sessions, at = call.broker.sessions, call.broker.clock()
        call.broker.limits.act(sessions.tenant_of(call.token, at), at_s, agent=sessions.key_of(call.token, at))
    try:
        work = endpoint.handler(call)
        found = await within(DEADLINE_S, to_its_end(work) if endpoint.changes else work)
    except Overdue:
        raise BrokerError(BrokerCode.BROKER_DEADLINE, f"{endpoint.name} took {DEADLINE_S} s", retry_after_s=1) from None
    if endpoint.redeems:
        call.broker.limits.honest(call.source_ip, at_s, number=endpoint.redeems)
    return found


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What came with a request: its method and path as proofs must name them, its exact bytes, its headers by name."""

    method: str
    path: str
    body: bytes
    header: Callable[[str], Sequence[str]]

    def one(self, name: str) -> str | None:
        """The header, when it was sent exactly once."""
        found = self.header(name)
        return found[0] if len(found) == 1 else None


def prove(
    broker: Broker, shown: Shown, door: Door, *, changes: bool, act: Act | None = None
) -> tuple[str, Admin | None]:
    """Who is there: an agent's token, or an administrator. An agent's proof is compared with its token's key here, its
    rights later. Raises BrokerError admin.*, session.token_missing, dpop.*, policy.refused; WireError dpop.*;
    TokenRefused token.*
    """
    if door is Door.OPEN:
        return "", None
    if door is Door.ADMIN or (door is Door.EITHER and shown.header("cloister-admin")):
        admin = administrator(broker, shown)
        _demand(admin, changes=changes, act=act)
        return "", admin
    return agent_token(broker, shown), None


def _demand(admin: Admin, *, changes: bool, act: Act | None) -> None:
    """The role here; the tenant where it is known. Acts without a name are not for those who have one tenant alone.

    Raises BrokerError admin.role, admin.tenant.
    """
    if act is not None:
        admin.require_role(act)
    elif changes and not admin.may_change:
        raise BrokerError(BrokerCode.ADMIN_ROLE, f"{admin.name} is {admin.role}, and changes nothing")
    elif admin.tenants:
        raise BrokerError(BrokerCode.ADMIN_TENANT, f"{admin.name} is for {', '.join(admin.tenants)}")


def administrator(broker: Broker, shown: Shown) -> Admin:
    """The administrator whose key made the proof."""
    text = shown.one("cloister-admin")
    if text is None:
        raise BrokerError(BrokerCode.ADMIN_PROOF_MISSING, "no Cloister-Admin header, or several")
    proof = broker.gate.check(
        text, method=shown.method, path=shown.path, body=shown.body, at=broker.clock(), known=broker.admin
    )
    return broker.admin(proof.jkt)


def agent_token(broker: Broker, shown: Shown) -> str:
    """The admission token, proved to be in the hands of its key."""
    scheme, _, token = (shown.one("authorization") or "").partition(" ")
    if scheme.lower() != "dpop" or not token:
        raise BrokerError(BrokerCode.SESSION_TOKEN_MISSING, "no `Authorization: DPoP` header, or several")
    at = broker.clock()

    def holds(jkt: str) -> None:
        if jkt != broker.sessions.key_of(token, at):
            raise BrokerError(BrokerCode.DPOP_KEY, "the token is bound to another key")

    broker.gate.check(
        shown.one("dpop"), method=shown.method, path=shown.path, body=shown.body, at=at, token=token, known=holds
    )
    return token
