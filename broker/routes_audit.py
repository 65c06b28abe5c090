"""Endpoints for whoever checks on the broker: the CA behind KBS tokens.

Each handler is a translation of a few lines; what it calls decides everything else.
"""

from typing import Final

from starlette.responses import Response

from broker.calls import Answer, Call, Door, Endpoint, row


async def kbs_ca(call: Call) -> Answer:
    """The CA of KBS tokens, for servers that are to trust them."""
    return Response(call.broker.kbs.ca_pem, media_type="application/x-pem-file")


AUDIT_ENDPOINTS: Final[tuple[Endpoint, ...]] = (
    row("GET /v1/kbs/ca", kbs_ca, Door.OPEN, content="application/x-pem-file"),
)
