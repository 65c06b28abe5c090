"""Streams of those who say nothing, or say what they have no business to: each ends with its code, at nobody's cost."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from broker import limits
from broker.errors import BrokerCode, BrokerError
from broker.limits import Rates, Room
from broker.rpc import doors, server
from broker.rpc.stream import METHOD
from broker.wire import api_pb2
from broker.wire import stream_pb2 as pb
from broker.wire.errors import WireCode
from enclave import staying
from tests.grpc_client import dialled
from tests.stream_world import PATIENCE_S, Mail, Member, mail
from tests.test_stream import ended, raw

SETTLE = pb.ToBroker(settles=[pb.Settle(lease="made-up")]).SerializeToString()


async def code_of(call: Any) -> str:
    return await asyncio.wait_for(ended(call), PATIENCE_S)


# ── settling what nobody was given ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_settling_without_a_mailbox_is_refused_with_a_code(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with mail(tmp_path) as net:
        sender = await net.world.admitted("sender")
        async with raw(net, sender) as call:
            await call.write(SETTLE)
            assert await code_of(call) == WireCode.BODY_FIELD_INVALID
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.asyncio
async def test_settling_after_the_mailbox_was_given_up_ends_the_stream_with_the_refusals_code(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with mail(tmp_path) as net:
        owner = await net.world.admitted("owner")
        await owner.open("acme/mail/owner")
        async with raw(net, owner, mailbox="acme/mail/owner") as call:
            await owner.acting(lambda s: net.world.broker.mailboxes.close(s, "acme/mail/owner"))
            await call.write(SETTLE)
            assert await code_of(call) == BrokerCode.MAILBOX_NOT_OWNER
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


# ── saying nothing ─────────────────────────────────────────────────────────────────────────────────────────────────


async def silent(net: Mail, keep: AsyncExitStack) -> Any:
    """A call that never says who it is."""
    channel = await keep.enter_async_context(grpc.aio.insecure_channel(net.server.address))
    call: Any = channel.stream_stream(METHOD)()
    keep.callback(call.cancel)
    return call


@pytest.mark.asyncio
async def test_an_address_holds_few_streams_open_without_saying_who_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_SILENT_OF_ONE", 3)
    async with mail(tmp_path) as net, AsyncExitStack() as keep:
        agent = await net.world.admitted("agent")
        async with raw(net, agent):  # who has proved itself is not counted
            first, *_ = [await silent(net, keep) for _ in range(3)]
            await net.until(lambda: net.world.broker.limits.silent.held == 3)
            assert await code_of(await silent(net, keep)) == BrokerCode.BROKER_BUSY
            first.cancel()
            await net.until(lambda: net.world.broker.limits.silent.held == 2)
            async with raw(net, agent):
                pass


def test_no_address_takes_the_places_of_others() -> None:
    room = Room(most=4, each=2)
    with room.entered("192.0.2.1") as take, room.entered("192.0.2.2") as other:
        take(2)
        with pytest.raises(BrokerError):
            take(1)
        other(1)


# ── unary calls ────────────────────────────────────────────────────────────────────────────────────────────────────

CHALLENGE = "/cloister.v1.Broker/Challenge"


async def unsaid(net: Mail, keep: AsyncExitStack) -> Any:
    """A call of a unary method whose request never comes."""
    channel = await keep.enter_async_context(grpc.aio.insecure_channel(net.server.address))
    call: Any = channel.stream_stream(CHALLENGE)()
    keep.callback(call.cancel)
    return call


@pytest.mark.asyncio
async def test_calls_whose_request_never_comes_end_and_take_no_places_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_SILENT_OF_ONE", 3)
    monkeypatch.setattr(doors, "FIRST_S", 0.5)
    async with mail(tmp_path) as net, AsyncExitStack() as keep:
        calls = [await unsaid(net, keep) for _ in range(6)]
        codes = sorted([await code_of(call) for call in calls])
        assert codes == [BrokerCode.BROKER_BUSY] * 3 + [BrokerCode.BROKER_DEADLINE] * 3
        async with dialled(net.world) as honest:
            answer = await honest.call("Broker.Challenge", api_pb2.ChallengeRequest(client_nonce=bytes(32)))
        assert answer.told == (200, "")


@pytest.mark.asyncio
async def test_an_address_that_has_run_dry_is_refused_before_its_request_is_read(tmp_path: Path) -> None:
    async with mail(tmp_path, rates=Rates(source_per_s=1, source_burst=2)) as net, AsyncExitStack() as keep:
        for _ in range(2):
            await unsaid(net, keep)
        await net.until(lambda: net.world.broker.limits.silent.held == 2)
        assert await code_of(await unsaid(net, keep)) == BrokerCode.LIMIT_SOURCE


@pytest.mark.asyncio
async def test_a_call_without_a_request_is_refused(tmp_path: Path) -> None:
    async with mail(tmp_path) as net, AsyncExitStack() as keep:
        call = await unsaid(net, keep)
        await call.done_writing()
        assert await code_of(call) == WireCode.BODY_FIELD_MISSING


@pytest.mark.asyncio
async def test_a_connection_that_does_not_speak_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = dict(server.OPTIONS) | {"grpc.server_handshake_timeout_ms": 300}
    monkeypatch.setattr(server, "OPTIONS", tuple(options.items()))
    async with mail(tmp_path) as net:
        reader, writer = await asyncio.open_connection("127.0.0.1", net.server.port)
        async with asyncio.timeout(PATIENCE_S):
            while await reader.read(1024):
                pass
        writer.close()


# ── what stands between an agent and its broker ────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def garbling(details: bytes) -> AsyncIterator[tuple[str, asyncio.Event]]:
    """Something that ends each stream with those details; its address, and when it was called a second time."""
    calls: list[object] = []
    called_again = asyncio.Event()

    async def end(_: object, context: Any) -> None:
        calls.append(context)
        if len(calls) > 1:
            called_again.set()
        await context.abort(grpc.StatusCode.UNAVAILABLE, "", (("grpc-status-details-bin", details),))

    service, _, name = METHOD.removeprefix("/").partition("/")
    handlers: dict[str, Any] = {name: grpc.stream_stream_rpc_method_handler(end)}
    middle = grpc.aio.server(handlers=(grpc.method_handlers_generic_handler(service, handlers),))
    port = middle.add_insecure_port("127.0.0.1:0")
    await middle.start()
    try:
        yield f"127.0.0.1:{port}", called_again
    finally:
        await middle.stop(None)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "details",
    [b"\xff", api_pb2.Status(details=[{"type_url": "x", "value": b"\xff"}]).SerializeToString()],
    ids=["status", "problem"],
)
async def test_an_agent_goes_on_when_what_ended_its_stream_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, details: bytes
) -> None:
    monkeypatch.setattr(staying, "FIRST_PAUSE_S", 0.01)
    async with mail(tmp_path) as net, garbling(details) as (target, called_again):
        agent = await net.world.admitted("agent")
        connecting = Member(net.world, agent, target, "acme/mail/agent").made()
        await connecting.start()
        try:
            await asyncio.wait_for(called_again.wait(), PATIENCE_S)
        finally:
            await connecting.close()
