"""What is left of mail, and large payloads, over HTTP and gRPC: who may look, who may try again."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric import ec

from broker.config import Admin
from broker.errors import BrokerCode
from broker.wire import api_pb2 as pb
from broker.wire.blob import BLOB_TYPE, BlobRef
from broker.wire.deadletters import DeadResponse, RedriveResponse, TombstoneResponse
from broker.wire.envelope import batch_to_bytes
from broker.wire.errors import WireCode
from broker.wire.jose import thumbprint
from broker.wire.mailbox import MailboxInfo, ReceiveResponse
from enclave.mailbox import pad
from tests.broker_world import Agent, World
from tests.grpc_client import dialled
from tests.mail_world import BOX, REDRIVE, change, make
from tests.test_broker_http import Client, serving, told

PATH = f"/v1/mailboxes/{BOX}"


@pytest_asyncio.fixture
async def door(tmp_path: Path) -> AsyncIterator[Client]:
    world = await make(tmp_path, database=False)
    async with serving(world) as made:
        yield made
    await world.broker.close()


async def rejected(door: Client) -> tuple[Agent, Agent]:
    """A sender and a receiver who has just made a dead letter of the sender's message."""
    a, b = await door.world.admitted("a"), await door.world.admitted("b")
    await door.call("PUT", PATH, b.mailbox_key(BOX).to_dict(), by=b)
    found = MailboxInfo.from_dict((await door.call("GET", PATH, by=a)).json())
    await door.call("POST", f"{PATH}:send", batch_to_bytes([a.envelope(found.key)]), by=a)
    got = ReceiveResponse.from_dict((await door.call("POST", f"{PATH}:receive", {}, by=b)).json())
    verdict = {"reject": [{"lease": got.deliveries[0].lease, "code": "message.malformed"}]}
    assert (await door.call("POST", f"{PATH}:ack", verdict, by=b)).json() == {"done": 1, "lost": []}
    return a, b


@pytest.mark.asyncio
async def test_sender_and_owner_read_the_tombstone_and_a_stranger_reads_nothing(door: Client) -> None:
    a, b = await rejected(door)
    c = await door.world.admitted("c")
    seen = [
        TombstoneResponse.from_dict((await door.call("POST", f"{PATH}:tombstones", {}, by=who)).json()).tombstones
        for who in (a, b, c)
    ]
    assert [len(stones) for stones in seen] == [1, 1, 0]
    assert seen[0][0].valid(door.world.broker.identity.key.public_key())
    assert seen[0][0].code == "message.malformed"
    after = await door.call("POST", f"{PATH}:tombstones", {"after": seen[0][0].number}, by=a)
    assert after.json() == {"tombstones": []}
    assert told(await door.call("POST", f"{PATH}:tombstones", {"before": 1}, by=a)) == (
        400,
        WireCode.BODY_FIELD_UNKNOWN,
    )


@pytest.mark.asyncio
async def test_dead_letters_are_shown_to_owner_and_administrators_and_go_again_by_permit_or_role(door: Client) -> None:
    a, b = await rejected(door)
    assert told(await door.call("POST", f"{PATH}:dead", {}, by=a)) == (403, BrokerCode.MAILBOX_NOT_OWNER)
    (letter,) = DeadResponse.from_dict((await door.call("POST", f"{PATH}:dead", {}, by=b)).json()).dead
    assert letter.sender == a.subject
    assert DeadResponse.from_dict((await door.call("POST", f"{PATH}:dead", {}, by="admin")).json()).dead == (letter,)
    wanted = {"numbers": [letter.number]}
    assert told(await door.call("POST", f"{PATH}:redrive", wanted, by=b)) == (403, BrokerCode.POLICY_REFUSED)
    answer = await door.call("POST", f"{PATH}:redrive", wanted, by="admin")
    assert RedriveResponse.from_dict(answer.json()).redriven == (letter.number,)
    got = ReceiveResponse.from_dict((await door.call("POST", f"{PATH}:receive", {}, by=b)).json())
    assert got.deliveries[0].attempt == 1
    again = {"reject": [{"lease": got.deliveries[0].lease, "code": "message.malformed"}]}
    await door.call("POST", f"{PATH}:ack", again, by=b)
    await change(door.world, ('@id("mail")', REDRIVE))
    answer = await door.call("POST", f"{PATH}:redrive", wanted, by=b)
    assert RedriveResponse.from_dict(answer.json()).redriven == (letter.number,)


@pytest.mark.asyncio
@pytest.mark.parametrize(("role", "tenants", "code"), [("auditor", (), 403), ("operator", ("other",), 403)])
async def test_an_auditor_or_another_tenants_operator_sends_nothing_on_its_way(
    tmp_path: Path, role: str, tenants: tuple[str, ...], code: int
) -> None:
    world = await World.make(tmp_path)
    key = ec.generate_private_key(ec.SECP256R1())
    admins = (Admin(name="other", jkt=thumbprint(key.public_key()), role=role, tenants=tenants),)
    await world.restart(admins=admins)
    world.admin_key = key
    async with serving(world) as door:
        answer = await door.call("POST", f"{PATH}:redrive", {"numbers": [1]}, by="admin")
    assert answer.status_code == code
    await world.broker.close()


@pytest.mark.asyncio
async def test_a_mailbox_is_left_by_its_owner_alone(door: Client) -> None:
    a, b = await rejected(door)
    assert told(await door.call("POST", f"{PATH}:close", by=a)) == (403, BrokerCode.MAILBOX_NOT_OWNER)
    taken = await door.call("PUT", PATH, a.mailbox_key(BOX).to_dict(), by=a)
    assert told(taken) == (409, BrokerCode.MAILBOX_TAKEN)
    assert 0 < int(taken.headers["retry-after"]) <= 30
    assert (await door.call("POST", f"{PATH}:close", by=b)).json() == {}
    assert (await door.call("PUT", PATH, a.mailbox_key(BOX).to_dict(), by=a)).status_code == 200


@pytest.mark.asyncio
async def test_a_large_payload_travels_by_its_digest(door: Client) -> None:
    a, b = await rejected(door)
    found = MailboxInfo.from_dict((await door.call("GET", PATH, by=a)).json())
    raw = a.envelope(found.key, pad(bytes(600_000), 1 << 20), type=BLOB_TYPE).to_bytes()
    path = f"/v1/blobs/{BlobRef.of(raw).sha256}"
    assert told(await door.call("GET", path, by=b)) == (404, BrokerCode.BLOB_UNKNOWN)
    assert told(await door.call("PUT", f"/v1/blobs/{'0' * 64}", raw, by=a)) == (400, BrokerCode.BLOB_DIGEST)
    assert BlobRef.from_dict((await door.call("PUT", path, raw, by=a)).json()) == BlobRef.of(raw)
    fetched = await door.call("GET", path, by=b)
    assert (fetched.content, fetched.headers["cache-control"]) == (raw, "no-store")
    assert told(await door.call("GET", path, by=a)) == (404, BrokerCode.BLOB_UNKNOWN)
    assert told(await door.call("DELETE", path, by=a)) == (404, BrokerCode.BLOB_UNKNOWN)
    assert (await door.call("DELETE", path, by=b)).json() == {}
    assert told(await door.call("GET", path, by=b)) == (404, BrokerCode.BLOB_UNKNOWN)
    assert told(await door.call("PUT", path, bytes(17 << 20), by=a)) == (413, WireCode.BODY_TOO_LARGE)


@pytest.mark.asyncio
async def test_grpc_says_the_same_of_tombstones_and_dead_letters(door: Client) -> None:
    a, b = await rejected(door)
    async with dialled(door.world) as grpc:
        stones = await grpc.call("Broker.ListTombstones", pb.PageRequest(name=BOX), by=a)
        assert isinstance(stones.answer, pb.TombstoneResponse)
        assert [stone.end for stone in stones.answer.tombstones] == ["rejected"]
        dead = await grpc.call("Broker.ListDeadLetters", pb.PageRequest(name=BOX), by=b)
        assert isinstance(dead.answer, pb.DeadResponse)
        number = dead.answer.dead[0].number
        refused = await grpc.call("Broker.Redrive", pb.RedriveRequest(name=BOX, numbers=[number]), by=b)
        assert refused.told == (403, BrokerCode.POLICY_REFUSED)
        assert (await grpc.call("Broker.CloseMailbox", pb.NameRequest(name=BOX), by=b)).told == (200, "")
