"""Endpoints for whoever checks on the broker: decisions to be taken again, the CA behind KBS tokens.

Each handler is a translation of a few lines; what it calls decides everything else.
"""

import json
from typing import Final

from starlette.responses import Response

from broker.calls import Answer, Call, Door, Endpoint, row
from broker.decisions import decision_file
from broker.errors import BrokerCode, BrokerError
from broker.rights import Act
from broker.wire.jose import b64u


async def kbs_ca(call: Call) -> Answer:
    """The CA of KBS tokens, for servers that are to trust them."""
    return Response(call.broker.kbs.ca_pem, media_type="application/x-pem-file")


async def decision(call: Call) -> Answer:
    """A decision with all that it rests on, as one file to be checked offline."""
    index, broker = int(call.path["index"]), call.broker
    entry = json.loads(broker.audit.entry(index).entry)
    if not call.administrator.sees(entry.get("tenant", ""), entry.get("subject", "")):
        raise BrokerError(BrokerCode.ADMIN_TENANT, "a decision about another tenant")
    return {"decision": b64u(decision_file(broker.store, index, broker.identity.log_key))}


AUDIT_ENDPOINTS: Final[tuple[Endpoint, ...]] = (
    row("GET /v1/log/decisions/{index:int}", decision, Door.ADMIN, act=Act.LOG_READ),
    row("GET /v1/kbs/ca", kbs_ca, Door.OPEN, content="application/x-pem-file"),
)
