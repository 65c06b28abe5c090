"""Endpoints for agents about what the broker keeps for them: labels, keys of durable mailboxes, checkpoints.

Each handler is a translation of a few lines; what it calls decides everything else.
"""

from typing import Final

from broker.calls import Answer, Call, Door, Endpoint, row
from broker.errors import BrokerCode, BrokerError
from broker.wire.keys import KeysRequest, KeysResponse, Place
from broker.wire.labels import HeldLabels
from broker.wire.peers import PeerCollateral
from broker.wire.revocations import Revocations, RevocationsRequest
from broker.wire.state import SaveRequest, StateRequest, StateResponse


async def held_labels(call: Call) -> Answer:
    """The labels that every message of the asking agent must carry."""
    session = await call.broker.sessions.of_token(call.token, call.broker.clock())
    return HeldLabels(labels=tuple(sorted(call.broker.labels.of(session.subject))))


async def mailbox_keys(call: Call) -> Answer:
    """The kept keys of a durable mailbox, sealed to the agent that asks."""
    wanted = call.read(KeysRequest.from_dict)
    return await call.broker.acting(
        call.token,
        lambda session: call.broker.keys.grant(
            session, Place.MAILBOX, call.name, wanted, correlation_id=call.correlation_id
        ),
    )


async def mailbox_state(call: Call) -> Answer:
    """The newest checkpoint of a durable mailbox's reader, its number signed."""
    wanted = call.read(StateRequest.from_dict)
    return await call.broker.acting(
        call.token,
        lambda session: call.broker.states.newest(session, call.name, wanted, correlation_id=call.correlation_id),
    )


async def save_state(call: Call) -> Answer:
    """Keep the next checkpoint of a durable mailbox's reader."""
    wanted = call.read(SaveRequest.from_dict)
    return await call.broker.acting(
        call.token,
        lambda session: call.broker.states.save(session, call.name, wanted, correlation_id=call.correlation_id),
    )


async def revocations(call: Call) -> Answer:
    """Who may no longer speak, signed over the asking agent's nonce."""
    wanted = call.read(RevocationsRequest.from_dict)
    await call.broker.sessions.of_token(call.token, call.broker.clock())
    return call.broker.standing.answer(wanted)


async def peer_collateral(call: Call) -> Answer:
    """Collateral for a peer's platform, for an agent that verifies the peer's quote itself."""
    at = call.broker.clock()
    await call.broker.sessions.of_token(call.token, at)
    peer = await call.broker.sessions.peer(call.name, at)
    found = call.broker.store.read(lambda tx: tx.archive.get(bytes.fromhex(peer.record.collateral)))
    if found is None:
        raise BrokerError(BrokerCode.STORE_ROW_FORGED, f"the collateral of {call.name} is gone")
    return PeerCollateral(subject=peer.subject, collateral=found.decode("utf-8"))


_AGENT: Final = Door.AGENT
_MAILBOX: Final = "/v1/mailboxes/{name:path}"

KEY_ENDPOINTS: Final[tuple[Endpoint, ...]] = (
    row("GET /v1/labels", held_labels, _AGENT, None, HeldLabels),
    row("POST /v1/revocations", revocations, _AGENT, RevocationsRequest, Revocations),
    row("GET /v1/agents/{name:path}:collateral", peer_collateral, _AGENT, None, PeerCollateral),
    row(f"POST {_MAILBOX}:keys", mailbox_keys, _AGENT, KeysRequest, KeysResponse),
    row(f"POST {_MAILBOX}:state", mailbox_state, _AGENT, StateRequest, StateResponse),
    row(f"POST {_MAILBOX}:checkpoint", save_state, _AGENT, SaveRequest, StateResponse),
)
