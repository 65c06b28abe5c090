"""Endpoints of workload identity: certificates for agents, the trust bundle and CRLs for everybody.

Each handler is a translation of a few lines; what it calls decides everything else.
"""

from typing import Final

from starlette.responses import Response

from broker.calls import Answer, Call, Door, Endpoint, row
from broker.rights import Act
from broker.wire.svid import SvidRequest, SvidResponse, TrustBundle

CRL_TYPE: Final = "application/pkix-crl"


async def issue_svid(call: Call) -> Answer:
    """A certificate for the agent's TLS key."""
    wanted = call.read(SvidRequest.from_dict)
    return await call.broker.acting(
        call.token,
        lambda session: call.broker.svids.issue(session, wanted, correlation_id=call.correlation_id),
    )


async def trust_bundle(call: Call) -> Answer:
    """Authorities and CRLs, signed by the broker's identity key."""
    return call.broker.svids.bundle()


async def spiffe_bundle(call: Call) -> Answer:
    """The trust domain's bundle in SPIFFE's own form."""
    return call.broker.svids.document()


async def authority_crl(call: Call) -> Answer:
    """The CRL of one authority."""
    return Response(call.broker.svids.crl(call.name), media_type=CRL_TYPE)


async def rotate_authority(call: Call) -> Answer:
    """Draw the next certificate authority; it signs an hour later."""
    admin, by = call.administrator, call.correlation_id
    await call.broker.administration.agree(admin, Act.KEY_ROTATE, "", b"authorities", correlation_id=by)
    return await call.broker.svids.rotate(admin.jkt, correlation_id=by)


SVID_ENDPOINTS: Final[tuple[Endpoint, ...]] = (
    row("POST /v1/svids", issue_svid, Door.AGENT, SvidRequest, SvidResponse),
    row("GET /v1/svids/bundle", trust_bundle, Door.OPEN, None, TrustBundle),
    row("GET /v1/spiffe/bundle", spiffe_bundle, Door.OPEN),
    row("GET /v1/spiffe/crls/{name}", authority_crl, Door.OPEN, content=CRL_TYPE),
    row("POST /v1/spiffe/authorities:rotate", rotate_authority, Door.ADMIN, changes=True, act=Act.KEY_ROTATE),
)
