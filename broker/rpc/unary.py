"""The unary calls: each is the twin of a REST endpoint and runs the same handler.

Decides which method is which endpoint's twin, and nothing else: reading, doors, use-case and refusals are the
endpoint's. What a request's fields are (path, query or body) follows from the endpoint's own path and method.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, final

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from starlette.responses import Response

from broker import tracing
from broker.calls import Call, Door, Endpoint, Handler, answer, enter, prove
from broker.errors import BrokerCode, BrokerError
from broker.rest import routes, routes_audit, routes_keys, routes_mail, routes_relying, routes_secrets, routes_svids
from broker.rest.refusals import as_refusal
from broker.rpc.doors import address_of, correlation_id, first, greeting, refuse, shown
from broker.rpc.members import fill, members_of, parse
from broker.service import Broker
from broker.status import status_of
from broker.wire import api_pb2 as pb
from broker.wire.errors import WireCode, WireError

PACKAGE: Final = "cloister.v1"
MIN_REQUEST: Final = 64 * 1024  # bytes, for endpoints whose REST form has no body
Context = grpc.aio.ServicerContext[Any, Any]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Twin:
    """A method and the endpoint whose twin it is. `body` names the field that holds what REST has as its body."""

    service: str
    method: str
    endpoint: Endpoint
    door: Door
    body: str
    request: type[Message]
    answer: type[Message]

    @property
    def full_method(self) -> str:
        return f"/{PACKAGE}.{self.service}/{self.method}"

    @property
    def most(self) -> int:
        return max(self.endpoint.max_body, MIN_REQUEST)


def _endpoint(handler: Handler) -> Endpoint:
    return next(endpoint for endpoint in routes.ENDPOINTS if endpoint.handler is handler)


def _twin(name: str, handler: Handler, *, body: str = "", door: Door | None = None) -> Twin:
    service, _, method = name.partition(".")
    described = pb.DESCRIPTOR.services_by_name[service].methods_by_name[method]
    endpoint = _endpoint(handler)
    return Twin(
        service=service,
        method=method,
        endpoint=endpoint,
        door=door or endpoint.door,
        body=body,
        request=GetMessageClass(described.input_type),
        answer=GetMessageClass(described.output_type),
    )


TWINS: Final[tuple[Twin, ...]] = (
    _twin("Broker.Challenge", routes.challenge),
    _twin("Broker.Attest", routes.attest),
    _twin("Broker.Verify", routes.verify),
    _twin("Broker.VerifyBatch", routes_relying.verify_batch),
    _twin("Broker.Introspect", routes_relying.introspect),
    _twin("Broker.IssueToken", routes_relying.issue_token),
    _twin("Broker.ReleaseSecret", routes.release),
    _twin("Broker.FindAgent", routes.agent, door=Door.AGENT),
    _twin("Broker.OpenMailbox", routes.open_mailbox, body="key"),
    _twin("Broker.FindMailbox", routes.find_mailbox),
    _twin("Broker.Send", routes.send, body="batch"),
    _twin("Broker.Receive", routes.receive),
    _twin("Broker.Acknowledge", routes.acknowledge),
    _twin("Broker.CloseMailbox", routes_mail.close_mailbox),
    _twin("Broker.ListTools", routes_mail.callable_tools),
    _twin("Broker.ListTombstones", routes_mail.tombstones),
    _twin("Broker.ListDeadLetters", routes_mail.dead_letters, door=Door.AGENT),
    _twin("Broker.Redrive", routes_mail.redrive, door=Door.AGENT),
    _twin("Broker.GetMailboxKeys", routes_keys.mailbox_keys),
    _twin("Broker.GetMailboxState", routes_keys.mailbox_state),
    _twin("Broker.SaveMailboxState", routes_keys.save_state),
    _twin("Broker.GetLabels", routes_keys.held_labels),
    _twin("Broker.GetPeerCollateral", routes_keys.peer_collateral),
    _twin("Broker.ListRevocations", routes_keys.revocations),
    _twin("Broker.DeriveKey", routes_secrets.derive_key),
    _twin("Broker.FindTopic", routes_keys.find_topic),
    _twin("Broker.GetTopicKeys", routes_keys.topic_keys),
    _twin("Broker.Publish", routes_keys.publish, body="batch"),
    _twin("Broker.ReadTopic", routes_keys.read_topic),
    _twin("Broker.LeaveTopic", routes_keys.leave_topic),
    _twin("Broker.IssueSvid", routes_svids.issue_svid),
    _twin("Broker.GetTrustBundle", routes_svids.trust_bundle),
    _twin("Broker.GetCheckpoint", routes.checkpoint),
    _twin("Broker.GetTile", routes.tile),
    _twin("Broker.GetConsistency", routes.consistency),
    _twin("Admin.PutSecret", routes.put_secret),
    _twin("Admin.RotateSecret", routes.rotate_secret),
    _twin("Admin.DestroySecret", routes.destroy_secret),
    _twin("Admin.ListSecrets", routes.list_secrets),
    _twin("Admin.GetAgent", routes.agent, door=Door.ADMIN),
    _twin("Admin.ListAgents", routes.list_agents),
    _twin("Admin.RevokeAgent", routes.revoke_agent),
    _twin("Admin.ListEntries", routes.log_entries),
    _twin("Admin.ProveEntry", routes.log_receipt),
    _twin("Admin.GetStatus", routes.status),
    _twin("Admin.ListDeadLetters", routes_mail.dead_letters, door=Door.ADMIN),
    _twin("Admin.Redrive", routes_mail.redrive, door=Door.ADMIN),
    _twin("Admin.ListReleases", routes_secrets.list_releases),
    _twin("Admin.ListLeases", routes_secrets.list_leases),
    _twin("Admin.EndLease", routes_secrets.end_lease),
    _twin("Admin.GetDecision", routes_audit.decision),
    _twin("Admin.ListProposals", routes.proposals),
    _twin("Admin.RotateKeys", routes_relying.rotate_keys),
    _twin("Admin.RotateAuthority", routes_svids.rotate_authority),
    _twin("Admin.ReloadPolicies", routes.reload_policies),
    _twin("Admin.RefreshCollateral", routes.refresh_collateral),
)


def services(broker: Broker) -> tuple[grpc.GenericRpcHandler, ...]:
    """The handlers of every unary method. Requests arrive as bytes: their hash is in the proof.

    To gRPC each takes a stream, which on the wire is the same: so a handler begins with the call, and it is for us to
    say who may send how much, and by when. A unary handler begins with the request, and until then a call counts.
    """
    found: dict[str, dict[str, Any]] = {}
    for twin in TWINS:
        handler: Any = grpc.stream_unary_rpc_method_handler(_serving(broker, twin))
        found.setdefault(f"{PACKAGE}.{twin.service}", {})[twin.method] = handler
    return tuple(grpc.method_handlers_generic_handler(name, methods) for name, methods in found.items())


def _serving(broker: Broker, twin: Twin) -> Any:
    async def serve(_: object, context: Context) -> bytes:
        started = time.perf_counter()
        call_id = correlation_id()
        parent = next(
            (str(value) for name, value in context.invocation_metadata() or () if name == "traceparent"), None
        )
        with tracing.call(twin.full_method, call_id, parent) as span:
            try:
                found = await _answer(broker, twin, context, call_id)
            except Exception as error:  # noqa: BLE001  # each becomes a refusal; what nobody foresaw is logged
                failure = as_refusal(error, call_id)
                span.say(code=str(failure.code), status=status_of(failure))
            else:
                span.say(status=200)
                context.set_trailing_metadata(greeting(broker, call_id))
                broker.metrics.answered(twin.full_method, 200, time.perf_counter() - started)
                return found
        return await refuse(context, broker, failure, call_id, route=twin.full_method, started=started)

    return serve


async def _answer(broker: Broker, twin: Twin, context: Context, call_id: str) -> bytes:
    source_ip = address_of(context.peer())
    enter(broker, twin.endpoint, source_ip)
    raw = await first(broker, context)
    if len(raw) > twin.most:
        raise WireError(WireCode.BODY_TOO_LARGE, f"{len(raw)} bytes, at most {twin.most}")
    what = shown(context.invocation_metadata(), twin.full_method, raw)
    token, admin = prove(broker, what, twin.door, changes=twin.endpoint.changes, act=twin.endpoint.act)
    asked = _read(twin, parse(twin.request, raw))
    call = Call(
        broker=broker,
        body=asked.body,
        correlation_id=call_id,
        source_ip=source_ip,
        path=asked.path,
        query=asked.query,
        members=asked.members,
        token=token,
        admin=admin,
    )
    found = await answer(call, twin.endpoint)
    message = twin.answer()
    _write(message, found)
    return message.SerializeToString()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    path: Mapping[str, Any]
    query: Mapping[str, str]
    members: Mapping[str, Any]
    body: bytes = b""


def _read(twin: Twin, message: Message) -> _Asked:
    """Sort a request's fields into what REST has in the path, in the query and in the body."""
    if isinstance(message, pb.Asked):
        path = _converted(twin, dict(message.path))
        return _Asked(path=path, query=dict(message.query), members=members_of(message.body))
    members = members_of(message)
    path = _converted(twin, {name: members.pop(name, "") for name in _parameters(twin)})
    if twin.endpoint.method == "GET":
        return _Asked(path=path, query={name: str(value) for name, value in members.items()}, members={})
    if not twin.body:
        return _Asked(path=path, query={}, members=members)
    part: Message = getattr(message, twin.body)
    body = part.SerializeToString(deterministic=True)
    return _Asked(path=path, query={}, members=members.get(twin.body, {}), body=body)


def _parameters(twin: Twin) -> tuple[str, ...]:
    """Names in the endpoint's path: `/v1/secrets/{name:path}` has `name`."""
    return tuple(part.partition(":")[0].partition("}")[0] for part in twin.endpoint.path.split("{")[1:])


def _converted(twin: Twin, given: dict[str, str]) -> dict[str, Any]:
    """As the router converts them. Raises BrokerError route.unknown."""
    found: dict[str, Any] = {}
    for name in _parameters(twin):
        text = given.pop(name, "")
        if f"{{{name}:int}}" not in twin.endpoint.path:
            found[name] = text
        elif text.isdecimal() and len(text) <= 15:
            found[name] = int(text)
        else:
            raise BrokerError(BrokerCode.ROUTE_UNKNOWN, f"{name} must be a whole number")
    if given:
        raise BrokerError(BrokerCode.ROUTE_UNKNOWN, f"the path has no {min(given)[:64]!a}")
    return found


def _write(message: Message, found: Any) -> None:
    if isinstance(message, pb.Octets) and isinstance(found, Response):
        message.data = bytes(found.body)
        message.content_type = found.headers["content-type"]
        return
    members = {} if found is None else found if isinstance(found, dict) else found.to_dict()
    if isinstance(message, pb.Document):
        fill(message.members, members)
    else:
        fill(message, members)
