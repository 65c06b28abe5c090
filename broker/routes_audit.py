"""Endpoints for whoever checks on the broker: decisions to be taken again, the CA behind KBS tokens.

Each handler is a translation of a few lines; what it calls decides everything else.
"""

from typing import Final

from starlette.responses import Response

from broker.calls import Answer, Call, Door, Endpoint, row
from broker.decisions import decision_file
from broker.wire.jose import b64u


async def kbs_ca(call: Call) -> Answer:
    """The CA of KBS tokens, for servers that are to trust them."""
    return Response(call.broker.kbs.ca_pem, media_type="application/x-pem-file")


async def decision(call: Call) -> Answer:
    """A decision with all that it rests on, as one file to be checked offline."""
    store, log_key = call.broker.store, call.broker.identity.log_key
    return {"decision": b64u(decision_file(store, int(call.path["index"]), log_key))}


AUDIT_ENDPOINTS: Final[tuple[Endpoint, ...]] = (
    row("GET /v1/log/decisions/{index:int}", decision, Door.ADMIN),
    row("GET /v1/kbs/ca", kbs_ca, Door.OPEN, content="application/x-pem-file"),
)
