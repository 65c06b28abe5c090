"""One call of a use-case, whichever protocol brought it: what was asked, who asks, and how that was proved.

Decides what must be shown at which door. REST (http_api.py) and gRPC (rpc/) are adapters around this: both hand a
`Call` to the same handlers, so a decision, a code or an entry of the log cannot depend on the protocol.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, Protocol, TypeVar, final

from starlette.responses import Response

from attestation.errors import AttestationError
from broker.config import Admin
from broker.errors import BrokerCode, BrokerError
from broker.service import Broker
from broker.wire.bodies import MAX_SMALL_BODY
from broker.wire.errors import WireCode, WireError
from broker.wire.fields import parse_object
from policies.errors import Refused

T = TypeVar("T")
JSON_TYPE: Final = "application/json"
SMALL: Final = MAX_SMALL_BODY
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
    )


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


def prove(broker: Broker, shown: Shown, door: Door, *, changes: bool) -> tuple[str, Admin | None]:
    """Who is there: an agent's token, or an administrator. An agent's proof is compared with its token's key here, its
    rights later. Raises BrokerError admin.*, session.token_missing, dpop.*, policy.refused; WireError dpop.*;
    TokenRefused token.*
    """
    if door is Door.OPEN:
        return "", None
    if door is Door.ADMIN or (door is Door.EITHER and shown.header("cloister-admin")):
        admin = administrator(broker, shown)
        if changes and not admin.may_change:
            raise BrokerError(BrokerCode.POLICY_REFUSED, f"role {admin.role} may not change anything")
        return "", admin
    return agent_token(broker, shown), None


def administrator(broker: Broker, shown: Shown) -> Admin:
    """The administrator whose key made the proof."""
    text = shown.one("cloister-admin")
    if text is None:
        raise BrokerError(BrokerCode.ADMIN_PROOF_MISSING, "no Cloister-Admin header, or several")
    proof = broker.gate.check(text, method=shown.method, path=shown.path, body=shown.body, at=broker.clock())
    return broker.admin(proof.jkt)


def agent_token(broker: Broker, shown: Shown) -> str:
    """The admission token, proved to be in the hands of its key."""
    scheme, _, token = (shown.one("authorization") or "").partition(" ")
    if scheme.lower() != "dpop" or not token:
        raise BrokerError(BrokerCode.SESSION_TOKEN_MISSING, "no `Authorization: DPoP` header, or several")
    at = broker.clock()
    proof = broker.gate.check(
        shown.one("dpop"), method=shown.method, path=shown.path, body=shown.body, at=at, token=token
    )
    if proof.jkt != broker.sessions.key_of(token, at):
        raise BrokerError(BrokerCode.DPOP_KEY, "the token is bound to another key")
    return token
