"""Endpoints for agents about what the broker keeps for them: the labels that they are held to.

Each handler is a translation of a few lines; what it calls decides everything else.
"""

from typing import Final

from broker.calls import Answer, Call, Door, Endpoint, row
from broker.wire.labels import HeldLabels


async def held_labels(call: Call) -> Answer:
    """The labels that every message of the asking agent must carry."""
    session = await call.broker.sessions.of_token(call.token, call.broker.clock())
    return HeldLabels(labels=tuple(sorted(call.broker.labels.of(session.subject))))


_AGENT: Final = Door.AGENT

KEY_ENDPOINTS: Final[tuple[Endpoint, ...]] = (row("GET /v1/labels", held_labels, _AGENT, None, HeldLabels),)
