"""Endpoints for what is left of mail and for large payloads: tombstones, dead letters, blobs.

Each handler is a translation of a few lines; what it calls decides everything else.
"""

import json
from dataclasses import replace
from typing import Final

from starlette.responses import Response

from broker.calls import Answer, Call, Door, Endpoint, row
from broker.rights import Act
from broker.wire.blob import MAX_BLOB_BYTES, BlobRef
from broker.wire.deadletters import DeadResponse, PageRequest, RedriveRequest, RedriveResponse, TombstoneResponse
from broker.wire.names import tenant_of
from broker.wire.tools import ToolNames, ToolsAllowed

PROTOBUF: Final = "application/x-protobuf"


async def close_mailbox(call: Call) -> Answer:
    """Leave a mailbox to whoever may succeed."""
    await call.broker.acting(call.token, lambda session: call.broker.mailboxes.close(session, call.name))
    return None


async def callable_tools(call: Call) -> Answer:
    """Which of these tools of a mailbox's owner the asking agent may call now, and as what they are approved."""
    wanted = call.read(ToolNames.from_dict)
    at = call.broker.clock()
    session = await call.broker.sessions.of_token(call.token, at)
    return call.broker.router.callable_tools(session, call.name, wanted.tools, at)


async def tombstones(call: Call) -> Answer:
    """How mail ended that was not handled, signed."""
    page = call.read(PageRequest.from_dict)
    at = call.broker.clock()
    session = await call.broker.sessions.of_token(call.token, at)
    found = call.broker.dead.tombstones(session, call.name, page)
    senders = await call.broker.labels.hear_of(session, call.name, (stone.sender for stone in found.tombstones), at)
    return replace(found, tombstones=tuple(stone for stone in found.tombstones if stone.sender in senders))


async def dead_letters(call: Call) -> Answer:
    """What a mailbox holds of dead letters, still sealed."""
    page = call.read(PageRequest.from_dict)
    if call.admin is not None:
        call.admin.require(Act.MAIL_LIST, tenant_of(call.name))
        return call.broker.dead.dead(call.name, page)
    at = call.broker.clock()
    session = await call.broker.sessions.of_token(call.token, at)
    call.broker.dead.owned(session, call.name)
    found = call.broker.dead.dead(call.name, page)
    senders = await call.broker.labels.hear_of(session, call.name, (letter.sender for letter in found.dead), at)
    return replace(found, dead=tuple(letter for letter in found.dead if letter.sender in senders))


async def redrive(call: Call) -> Answer:
    """Send dead letters on their way again."""
    wanted = call.read(RedriveRequest.from_dict)
    if call.admin is not None:
        call.admin.require(Act.MAIL_REDRIVE, tenant_of(call.name))
        about, by = json.dumps(wanted.to_dict()).encode(), call.correlation_id
        second = await call.broker.administration.agree(
            call.admin, Act.MAIL_REDRIVE, call.name, about, correlation_id=by
        )
        return await call.broker.dead.redrive_for(call.admin, call.name, wanted, second=second, correlation_id=by)
    return await call.broker.acting(
        call.token,
        lambda session: call.broker.dead.redrive(session, call.name, wanted, correlation_id=call.correlation_id),
    )


async def put_blob(call: Call) -> Answer:
    """Keep a large sealed payload beside a mailbox."""
    return await call.broker.acting(
        call.token,
        lambda session: call.broker.blobs.put(session, call.name, call.body, correlation_id=call.correlation_id),
    )


async def get_blob(call: Call) -> Answer:
    """Hand a large payload to the owner of its mailbox."""
    found = await call.broker.acting(
        call.token, lambda session: call.broker.blobs.get(session, call.name, correlation_id=call.correlation_id)
    )
    return Response(found, media_type=PROTOBUF, headers={"cache-control": "no-store"})


async def drop_blob(call: Call) -> Answer:
    """Forget a large payload that is not needed any more."""
    await call.broker.acting(call.token, lambda session: call.broker.blobs.drop(session, call.name))
    return None


_AGENT, _EITHER = Door.AGENT, Door.EITHER
_MAILBOX, _BLOB = "/v1/mailboxes/{name:path}", "/v1/blobs/{name}"

MAIL_ENDPOINTS: Final[tuple[Endpoint, ...]] = (
    row(f"POST {_MAILBOX}:close", close_mailbox, _AGENT, most=0),
    row(f"POST {_MAILBOX}:tools", callable_tools, _AGENT, ToolNames, ToolsAllowed),
    row(f"POST {_MAILBOX}:tombstones", tombstones, _AGENT, PageRequest, TombstoneResponse),
    row(f"POST {_MAILBOX}:dead", dead_letters, _EITHER, PageRequest, DeadResponse),
    row(f"POST {_MAILBOX}:redrive", redrive, _EITHER, RedriveRequest, RedriveResponse, changes=True),
    row(f"PUT {_BLOB}", put_blob, _AGENT, None, BlobRef, most=MAX_BLOB_BYTES, content=PROTOBUF),
    row(f"GET {_BLOB}", get_blob, _AGENT, content=PROTOBUF),
    row(f"DELETE {_BLOB}", drop_blob, _AGENT, most=0),
)
