"""Endpoints for relying services: tokens for them, questions about tokens, verifications by the batch.

Each handler is a translation of a few lines; what it calls decides everything else.
"""

import time
from typing import Final

from broker.calls import Answer, Call, Door, Endpoint, row
from broker.rights import Act
from broker.wire.bodies import MAX_EVIDENCE_BODY
from broker.wire.relying import (
    IntrospectionRequest,
    IntrospectionResponse,
    TokenRequest,
    TokenResponse,
    VerificationBatch,
    VerificationResults,
)


async def issue_token(call: Call) -> Answer:
    """A token for another service, where the policy permits it."""
    wanted = call.read(TokenRequest.from_dict)
    return await call.broker.acting(
        call.token,
        lambda session: call.broker.tokens.issue(
            session, wanted, source_ip=call.source_ip, correlation_id=call.correlation_id
        ),
    )


async def introspect(call: Call) -> Answer:
    """Whether a token counts now."""
    return await call.broker.tokens.introspect(call.read(IntrospectionRequest.from_dict))


async def verify_batch(call: Call) -> Answer:
    """Verify several quotes for a relying service."""
    batch = call.read(VerificationBatch.from_dict)
    for _ in batch.verifications[1:]:  # each costs what it would alone
        call.broker.limits.enter(call.source_ip, time.monotonic())
    return await call.broker.verification.verify_batch(batch.verifications, correlation_id=call.correlation_id)


async def rotate_keys(call: Call) -> Answer:
    """Draw the next token keys; they are published now and sign an hour later."""
    admin, by = call.administrator, call.correlation_id
    second = await call.broker.administration.agree(admin, Act.KEY_ROTATE, "", b"tokens", correlation_id=by)
    kids = await call.broker.rotation.rotate(admin, second=second, correlation_id=by)
    return {"kids": list(kids)}


RELYING_ENDPOINTS: Final[tuple[Endpoint, ...]] = (
    row("POST /v1/tokens", issue_token, Door.AGENT, TokenRequest, TokenResponse),
    row("POST /v1/introspections", introspect, Door.OPEN, IntrospectionRequest, IntrospectionResponse),
    row(
        "POST /v1/verifications:batch",
        verify_batch,
        Door.OPEN,
        VerificationBatch,
        VerificationResults,
        most=MAX_EVIDENCE_BODY,
    ),
    row("POST /v1/keys:rotate", rotate_keys, Door.ADMIN, changes=True, act=Act.KEY_ROTATE),
)
