"""The gRPC interface: the whole way over it, its doors, its refusals, and how it begins and ends."""

import dataclasses
import socket
import typing
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.errors import BrokerCode
from broker.rest.routes import ENDPOINTS
from broker.rpc import doors, stream
from broker.rpc.doors import address_of
from broker.rpc.members import fill, members_of, parse
from broker.rpc.server import start
from broker.rpc.unary import TWINS, Twin
from broker.wire import api_pb2 as pb
from broker.wire.bodies import AttestationResponse
from broker.wire.challenge import ChallengeResponse
from broker.wire.envelope import batch_to_bytes
from broker.wire.envelope_pb2 import Batch
from broker.wire.errors import WireCode, WireError
from broker.wire.mailbox import MailboxInfo, ReceiveResponse
from broker.wire.release import ReleaseResponse
from tests.broker_world import World
from tests.grpc_client import BY_NAME, GrpcClient, dialled

VALUE = b"the value that nobody reads back"
# Endpoints that only REST has, each with its reason.
REST_ONLY = {
    "jwks": "libraries for JWT read it over HTTP",
    "results_jwks": "the same",
    "configuration": "libraries for OpenID Connect read it over HTTP",
    "results_configuration": "the same",
    "healthz": "probes speak HTTP",
    "readyz": "the same",
    "metrics": "Prometheus speaks HTTP",
    "console_page": "it is a page",
    "unseal": "a sealed broker has no other interface",
    "unseal_status": "the same",
    "unseal_challenge": "the same",
    "unseal_confirm": "the same",
    "kbs_ca": "servers that trust KBS tokens read it over HTTP",
    "spiffe_bundle": "SPIFFE federation reads it over HTTP",
    "authority_crl": "verifiers of certificates read it over HTTP",
    "put_blob": "megabytes in one unary message would block the connection",
    "get_blob": "the same",
    "drop_blob": "the same",
}


@pytest_asyncio.fixture
async def door(tmp_path: Path) -> AsyncIterator[GrpcClient]:
    world = await World.make(tmp_path)
    await world.put("acme/open/a", VALUE)
    async with dialled(world) as made:
        yield made
    await world.broker.close()


# ── the whole way over gRPC ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_an_agent_attests_and_gets_a_secret_over_grpc(door: GrpcClient) -> None:
    agent = door.world.agent()
    client_nonce = bytes(range(32))
    first = await door.call("Broker.Challenge", pb.ChallengeRequest(client_nonce=client_nonce))
    assert first.answer is not None
    challenge = ChallengeResponse.from_dict(members_of(first.answer))
    challenge.verify(door.world.broker.identity.broker_id, client_nonce=client_nonce)
    request = pb.AttestationRequest(client_nonce=client_nonce)
    fill(request.evidence, agent.evidence(agent.binding(challenge.nonce), client_nonce).to_dict())
    second = await door.call("Broker.Attest", request)
    assert second.answer is not None
    agent.token = AttestationResponse.from_dict(members_of(second.answer)).token
    asked = pb.ReleaseRequest(name="acme/open/a", nonce=bytes(32))
    third = await door.call("Broker.ReleaseSecret", asked, by=agent)
    assert third.answer is not None
    released = ReleaseResponse.from_dict(members_of(third.answer))
    assert agent.sealing.open(released.sealed, released.context) == VALUE


@pytest.mark.asyncio
async def test_two_agents_exchange_mail_over_grpc(door: GrpcClient) -> None:
    a, b = await door.world.admitted("a"), await door.world.admitted("b")
    box = "acme/mail/b"
    opening = pb.OpenMailboxRequest(name=box)
    fill(opening.key, b.mailbox_key(box).to_dict())
    assert (await door.call("Broker.OpenMailbox", opening, by=b)).told == (200, "")
    told = (await door.call("Broker.FindMailbox", pb.NameRequest(name=box), by=a)).answer
    assert told is not None
    found = MailboxInfo.from_dict(members_of(told))
    batch = Batch.FromString(batch_to_bytes([a.envelope(found.key, b"hello")]))
    sent = (await door.call("Broker.Send", pb.SendRequest(name=box, batch=batch), by=a)).answer
    assert isinstance(sent, pb.SendResponse)
    assert [result.status for result in sent.results] == ["queued"]
    got = (await door.call("Broker.Receive", pb.ReceiveRequest(name=box, max_messages=1), by=b)).answer
    assert got is not None
    delivery = ReceiveResponse.from_dict(members_of(got)).deliveries[0]
    assert b.read(delivery.envelope) == b"hello"
    done = (await door.call("Broker.Acknowledge", pb.AckRequest(name=box, ack=[delivery.lease]), by=b)).answer
    assert isinstance(done, pb.AckResponse)
    assert done.done == 1


# ── doors ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_t10_a_stolen_token_opens_nothing_over_grpc(door: GrpcClient) -> None:
    victim, thief = await door.world.admitted("victim"), await door.world.admitted("thief")
    thief.token = victim.token
    asked = pb.ReleaseRequest(name="acme/open/a", nonce=bytes(32))
    stolen = await door.call("Broker.ReleaseSecret", asked, by=thief)
    assert stolen.told == (401, BrokerCode.DPOP_KEY)
    assert stolen.status is grpc.StatusCode.UNAUTHENTICATED
    bearer = await door.call("Broker.ReleaseSecret", asked, metadata=(("authorization", f"Bearer {victim.token}"),))
    assert bearer.told == (401, BrokerCode.SESSION_TOKEN_MISSING)
    assert str(bearer.metadata["www-authenticate"]).startswith("DPoP ")


@pytest.mark.asyncio
async def test_t10_a_proof_serves_one_call_of_one_method_with_one_message(door: GrpcClient) -> None:
    agent = await door.world.admitted()
    asked = pb.ReleaseRequest(name="acme/open/a", nonce=bytes(32))
    await door.call("Broker.ReleaseSecret", asked, by=agent)
    release, find = BY_NAME["Broker.ReleaseSecret"], BY_NAME["Broker.FindMailbox"]
    raw = asked.SerializeToString()
    proofs = door.proofs(release, raw, agent)
    assert (await door.call("Broker.ReleaseSecret", raw, metadata=proofs)).told == (200, "")
    assert (await door.call("Broker.ReleaseSecret", raw, metadata=proofs)).told == (401, BrokerCode.DPOP_REPLAYED)
    other = pb.ReleaseRequest(name="acme/open/b", nonce=bytes(32)).SerializeToString()
    proofs = door.proofs(release, raw, agent)
    assert (await door.call("Broker.ReleaseSecret", other, metadata=proofs)).told == (401, BrokerCode.DPOP_BODY)
    proofs = door.proofs(find, raw, agent)
    assert (await door.call("Broker.ReleaseSecret", raw, metadata=proofs)).told == (401, BrokerCode.DPOP_URL)
    rest = tuple(agent.headers("POST", "/v1/secrets/acme/open/a:release", raw, nonce=door.nonce).items())
    assert (await door.call("Broker.ReleaseSecret", raw, metadata=rest)).told == (401, BrokerCode.DPOP_URL)


@pytest.mark.asyncio
@pytest.mark.parametrize("name", [name for name in BY_NAME if name.startswith("Admin.")])
async def test_nobody_enters_an_administrators_method_without_his_key(door: GrpcClient, name: str) -> None:
    empty = BY_NAME[name].request()
    assert (await door.call(name, empty)).told == (401, BrokerCode.ADMIN_PROOF_MISSING)
    agent = await door.world.admitted()
    assert (await door.call(name, empty, by=agent)).told == (401, BrokerCode.ADMIN_PROOF_MISSING)
    door.world.admin_key = ec.generate_private_key(ec.SECP256R1())
    assert (await door.call(name, empty, by="admin")).told == (403, BrokerCode.ADMIN_KEY_UNKNOWN)


# ── bad input ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
@pytest.mark.parametrize("name", [name for name, twin in BY_NAME.items() if twin.endpoint.door.name == "OPEN"])
async def test_what_is_no_message_is_refused_with_its_own_code(door: GrpcClient, name: str) -> None:
    assert (await door.call(name, b"\xff")).told == (400, WireCode.BODY_NOT_PROTOBUF)
    unknown = b"\xfa\xff\x7f\x01x"  # field 262143
    assert (await door.call(name, unknown)).told == (400, WireCode.BODY_FIELD_UNKNOWN)


@given(raw=st.binary(max_size=100), name=st.sampled_from(sorted(BY_NAME)))
@settings(max_examples=150, deadline=None)
def test_t20_any_bytes_are_a_message_or_a_refusal(raw: bytes, name: str) -> None:
    def read() -> str:
        try:
            members_of(parse(BY_NAME[name].request, raw))
        except WireError as error:
            return error.code
        return "ok"

    assert read() in ("ok", WireCode.BODY_NOT_PROTOBUF, WireCode.BODY_FIELD_UNKNOWN, WireCode.BODY_NOT_JSON)


SCALARS = st.integers(-9, 9) | st.text(max_size=3) | st.none() | st.booleans()


@given(members=st.dictionaries(st.text(max_size=3), SCALARS | st.lists(SCALARS, max_size=2), max_size=3))
@settings(max_examples=30, deadline=None)
def test_a_document_comes_back_as_it_went_in(members: dict[str, Any]) -> None:
    document = pb.Document()
    fill(document.members, members)
    assert members_of(document.members) == members


@pytest.mark.asyncio
async def test_a_stream_without_a_first_message_is_not_waited_for(
    door: GrpcClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doors, "FIRST_S", 0.01)
    method: Any = door.channel.stream_stream(stream.METHOD)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in method():
            pass
    assert caught.value.details() == BrokerCode.BROKER_DEADLINE


@pytest.mark.asyncio
async def test_a_message_over_the_limit_is_refused(door: GrpcClient) -> None:
    found = await door.call("Broker.Challenge", pb.ChallengeRequest(client_nonce=bytes(300_000)))
    assert found.told == (413, WireCode.BODY_TOO_LARGE)
    assert found.status is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.asyncio
async def test_a_refusal_tells_codes_and_an_id_and_nothing_else(door: GrpcClient) -> None:
    await door.world.put("acme/open/top", VALUE, "top")
    agent = await door.world.admitted()
    refused = await door.call(
        "Broker.ReleaseSecret", pb.ReleaseRequest(name="acme/open/top", nonce=bytes(32)), by=agent
    )
    assert refused.told == (403, BrokerCode.POLICY_REFUSED)
    assert list(refused.problem.codes)
    assert refused.problem.correlation_id == refused.metadata["x-correlation-id"]
    assert "never-top" not in str(refused)


# ── tables, beginning and end ──────────────────────────────────────────────────────────────────────────────────────


def test_every_endpoint_has_a_twin_or_a_reason() -> None:
    twins = {twin.endpoint.name for twin in TWINS}
    assert {endpoint.name for endpoint in ENDPOINTS} - twins - set(REST_ONLY) == set()
    assert set(REST_ONLY) & twins == set()


def missing(kind: Any, message: Any, inside: str = "") -> list[str]:
    """Members of a wire dataclass that a message, or a message in it, has no field for."""
    found: list[str] = []
    if not dataclasses.is_dataclass(kind) or message is None or message.full_name == "google.protobuf.Struct":
        return found
    hints = typing.get_type_hints(kind)
    for member in dataclasses.fields(kind):
        place = f"{inside}{message.name}.{member.name}"
        if member.name not in message.fields_by_name:
            found.append(place)
            continue
        parts = [hints[member.name], *typing.get_args(hints[member.name])]
        for part in parts:
            found += missing(part, message.fields_by_name[member.name].message_type, f"{place} > ")
    return found


OTHERWISE = {"OpenMailboxRequest.": "the key, with all of its members, is one member here"}


@pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.full_method)
def test_messages_have_every_member_that_rest_has(twin: Twin) -> None:
    lacking: list[str] = []
    for kind, message in ((twin.endpoint.sends, twin.request), (twin.endpoint.answers, twin.answer)):
        if message not in (pb.Asked, pb.Document, pb.Nothing, pb.Octets):
            lacking += missing(kind, message.DESCRIPTOR)
    assert [place for place in lacking if not place.startswith(tuple(OTHERWISE))] == []


def test_every_method_of_the_description_is_served() -> None:
    described = {
        f"{service.name}.{method.name}"
        for service in pb.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    assert described == set(BY_NAME)


@pytest.mark.asyncio
async def test_a_port_in_use_is_not_shared(tmp_path: Path) -> None:
    world = await World.make(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError, match="cannot listen"):
            await start(world.broker, "127.0.0.1", taken.getsockname()[1])
    await world.broker.close()


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:192.0.2.1:50000", "192.0.2.1"),
        ("ipv6:%5B2001:db8::1%5D:50000", "2001:db8::1"),
        ("ipv6:%5B::ffff:192.0.2.1%5D:50000", "192.0.2.1"),
        ("unix:", None),
        ("unix:/run/x.sock", None),
    ],
)
def test_the_callers_address_is_read_from_what_grpc_says(peer: str, address: str | None) -> None:
    assert address_of(peer) == address
