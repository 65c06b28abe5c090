"""Endpoints for agents: labels, kept keys, checkpoints, topics, who has fallen, and collateral for peers.

Each handler is a translation of a few lines; what it calls decides everything else.
"""

from typing import Final

from broker.calls import Answer, Call, Door, Endpoint, row
from broker.errors import BrokerCode, BrokerError
from broker.wire.channel import ChannelBatch, ChannelSend
from broker.wire.envelope import MAX_BATCH_BYTES, batch_from_bytes
from broker.wire.keys import KeysRequest, KeysResponse, Place
from broker.wire.labels import HeldLabels
from broker.wire.mailbox import SendResponse, SendResult
from broker.wire.peers import PeerCollateral
from broker.wire.revocations import Revocations, RevocationsRequest
from broker.wire.state import SaveRequest, StateRequest, StateResponse
from broker.wire.topic import TopicInfo, TopicPage, TopicRead


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
    session = await call.broker.sessions.of_token(call.token, call.broker.clock())
    return call.broker.standing.answer(wanted, tenant=session.record.tenant)


async def peer_collateral(call: Call) -> Answer:
    """Collateral for a peer's platform, for an agent that verifies the peer's quote itself."""
    at = call.broker.clock()
    asking = await call.broker.sessions.of_token(call.token, at)
    peer = await call.broker.sessions.peer(call.name, at, of=asking)
    found = call.broker.store.read(lambda tx: tx.archive.get(bytes.fromhex(peer.record.collateral)))
    if found is None:
        raise BrokerError(BrokerCode.STORE_ROW_FORGED, f"the collateral of {call.name} is gone")
    return PeerCollateral(subject=peer.subject, collateral=found.decode("utf-8"))


async def find_topic(call: Call) -> Answer:
    """A topic's key of now."""
    return await call.broker.acting(call.token, lambda session: call.broker.topics.info(session, call.name))


async def topic_keys(call: Call) -> Answer:
    """Become a reader of a topic: its keys from now on, sealed to the agent that asks."""
    wanted = call.read(KeysRequest.from_dict)
    return await call.broker.acting(
        call.token,
        lambda session: call.broker.topics.join(session, call.name, wanted, correlation_id=call.correlation_id),
    )


async def send_on_channel(call: Call, *, topic: bool = False) -> Answer:
    """Queue a batch of a channel to a mailbox, or put it before everybody who reads a topic."""
    sent = ChannelSend.from_bytes(call.body)
    channels, by = call.broker.channels, call.correlation_id
    status = await call.broker.acting(
        call.token, lambda session: channels.send(session, call.name, sent, topic=topic, correlation_id=by)
    )
    msg_id = ChannelBatch.from_bytes(sent.batch).msg_id
    return SendResponse(results=(SendResult(msg_id=msg_id, status=status),))


async def publish(call: Call) -> Answer:
    """Put a batch of envelopes, or one of a channel, before everybody who reads the topic."""
    if ChannelSend.looks(call.body):
        return await send_on_channel(call, topic=True)
    envelopes = batch_from_bytes(call.body)
    return await call.broker.acting(
        call.token,
        lambda session: call.broker.topics.publish(session, call.name, envelopes, correlation_id=call.correlation_id),
    )


async def read_topic(call: Call) -> Answer:
    """What a reader has not handled yet."""
    wanted = call.read(TopicRead.from_dict)
    return await call.broker.acting(
        call.token,
        lambda session: call.broker.topics.receive(session, call.name, wanted, correlation_id=call.correlation_id),
    )


async def leave_topic(call: Call) -> Answer:
    """Read a topic no more."""
    await call.broker.acting(call.token, lambda session: call.broker.topics.leave(session, call.name))
    return None


PROTOBUF: Final = "application/x-protobuf"
_AGENT: Final = Door.AGENT
_TOPIC: Final = "/v1/topics/{name:path}"
_MAILBOX: Final = "/v1/mailboxes/{name:path}"

KEY_ENDPOINTS: Final[tuple[Endpoint, ...]] = (
    row("GET /v1/labels", held_labels, _AGENT, None, HeldLabels),
    row("POST /v1/revocations", revocations, _AGENT, RevocationsRequest, Revocations),
    row("GET /v1/agents/{name:path}:collateral", peer_collateral, _AGENT, None, PeerCollateral),
    row(f"POST {_TOPIC}:keys", topic_keys, _AGENT, KeysRequest, KeysResponse),
    row(f"POST {_TOPIC}:publish", publish, _AGENT, None, SendResponse, most=MAX_BATCH_BYTES, content=PROTOBUF),
    row(f"POST {_TOPIC}:receive", read_topic, _AGENT, TopicRead, TopicPage),
    row(f"POST {_TOPIC}:leave", leave_topic, _AGENT, most=0),
    row(f"GET {_TOPIC}", find_topic, _AGENT, None, TopicInfo),
    row(f"POST {_MAILBOX}:keys", mailbox_keys, _AGENT, KeysRequest, KeysResponse),
    row(f"POST {_MAILBOX}:state", mailbox_state, _AGENT, StateRequest, StateResponse),
    row(f"POST {_MAILBOX}:checkpoint", save_state, _AGENT, SaveRequest, StateResponse),
)
