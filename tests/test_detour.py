"""Mail goes on by requests when no stream can be opened, and on a stream again when one can: nothing is lost, nothing
is handled twice, each sender's order stays."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import AsyncMock, MagicMock

import pytest
import pytest_asyncio

from attestation.errors import CloisterError
from broker.wire.channel import ChannelBatch
from broker.wire.mailbox import ReceiveRequest, ReceiveResponse
from enclave import detour, staying
from enclave.client import BrokerCalls, Call
from enclave.durable import Durable
from enclave.errors import Code, TransportFailed
from enclave.fetching import Fetching
from enclave.runtime import Runtime
from tests.stream_world import PATIENCE_S, Member, mail
from tests.test_durable import BOX, KEEPING, Stage, emptied, place, tell
from tests.test_stream import numbered, post, raw

__all__ = ["place"]

# ── the broker's half ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_who_begins_anew_by_a_request_gets_what_is_out_on_a_stream_that_the_broker_still_has(
    tmp_path: Path,
) -> None:
    """As after a proxy has dropped a stream and told one end alone: what comes later must not come first."""
    async with mail(tmp_path) as net:
        a, b = await net.pair(credit=4)
        await asyncio.gather(*post(a, b.box, numbered(2)))
        async with asyncio.timeout(PATIENCE_S):
            while len(await b.stream.receive(1, PATIENCE_S)) < 1:
                pass
        plain, anew = ReceiveRequest(), ReceiveRequest(anew=True)
        receive = net.world.broker.mailboxes.receive
        before = await b.agent.acting(lambda session: receive(session, b.box, plain))
        after = await b.agent.acting(lambda session: receive(session, b.box, anew))
        numbers = [ChannelBatch.from_bytes(one.batch).first_seq for one in after.batches]
        assert not before.batches
        assert numbers == sorted(numbers)
        assert numbers[0] == 1
        assert {one.attempt for one in after.batches} == {1}


@pytest.mark.asyncio
async def test_what_comes_while_a_stream_takes_the_place_of_another_is_not_drawn_by_that_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its reader is gone, and the broker has not heard so: what it drew then came to the new one late, and was lost."""
    async with mail(tmp_path) as net:
        a = await net.member("a")
        b = Member(net.world, await net.world.admitted("b"), net.server.address, "acme/mail/b")
        await b.publish()
        drawing, recall = net.world.broker.drawing, net.world.broker.drawing.recall

        async def and_then_more(name: str, *leases: str) -> None:
            await recall(name, *leases)
            monkeypatch.setattr(drawing, "recall", recall)
            await asyncio.gather(*post(a, b.box, numbered(2)))
            await asyncio.gather(*post(a, b.box, numbered(2, start=2)))

        async with raw(net, b.agent, mailbox=b.box):
            monkeypatch.setattr(drawing, "recall", and_then_more)
            net.members.append(b)
            await b.join()
            assert await b.take(4) == numbered(4)
            assert not net.world.broker.store.read(lambda tx: tx.mail.dead(b.box))


# ── whole agents ───────────────────────────────────────────────────────────────────────────────────────────────────


class Gate:
    """What stands between an agent and the broker's gRPC port."""

    def __init__(self, port: int) -> None:
        self._behind = port
        self._server: asyncio.Server | None = None
        self._ours: list[asyncio.StreamWriter] = []
        self._theirs: list[asyncio.StreamWriter] = []
        self.port = 0

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._pass, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def shut(self, *, silently: bool = False) -> None:
        """Nothing passes any more; `silently` the broker does not learn that its callers have gone."""
        assert self._server is not None
        self._server.close()
        for writer in (*self._ours, *(() if silently else self._theirs)):
            writer.transport.abort()
        self._ours.clear()

    async def away(self) -> None:
        await self.shut()
        for writer in self._theirs:
            writer.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        theirs, onward = await asyncio.open_connection("127.0.0.1", self._behind)
        self._ours.append(writer)
        self._theirs.append(onward)
        await asyncio.gather(_copy(reader, onward), _copy(theirs, writer), return_exceptions=True)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(1 << 16):
        writer.write(chunk)
        await writer.drain()


@pytest_asyncio.fixture
async def gate(place: Stage, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Gate]:
    """All agents of the test go through it; and what takes seconds takes moments."""
    port = place.broker.broker.ports.grpc
    assert port is not None
    made = Gate(port)
    await made.open()

    def target(_: BrokerCalls) -> Call[str]:
        yield from ()
        return f"127.0.0.1:{made.port}"

    monkeypatch.setattr(BrokerCalls, "grpc_target", target)
    monkeypatch.setattr(detour, "AFTER_S", 0.05)
    monkeypatch.setattr(detour, "FIRST_TRIAL_S", 0.1)
    monkeypatch.setattr(detour, "MAX_TRIAL_S", 0.2)
    monkeypatch.setattr(staying, "FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr("enclave.runtime.DETOUR_WAIT_S", 1)
    yield made
    await made.away()


class Reader:
    """Handles what comes."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.handled: list[int] = []
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        while True:
            with suppress(CloisterError):
                for received in await self.runtime.receive(16):
                    with suppress(CloisterError):
                        self.handled.append(int(received.plaintext))
                        await self.runtime.finish(received)

    async def has(self, count: int) -> None:
        async with asyncio.timeout(PATIENCE_S * 3):
            while len(self.handled) < count:
                await asyncio.sleep(0.01)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S * 3):
        while not true():
            await asyncio.sleep(0.01)


@pytest.mark.asyncio
@pytest.mark.parametrize("silently", [False, True], ids=["told", "silently"])
@pytest.mark.parametrize("kind", [None, KEEPING], ids=["ephemeral", "durable"])
async def test_mail_leaves_a_stream_that_cannot_be_opened_and_returns_to_one_in_order_and_once(
    place: Stage, gate: Gate, kind: Durable | None, silently: bool
) -> None:
    runtime = await place.start(durable=kind, stream=True)
    sender = await place.start("lab/mail/sender", durable=None, stream=True)
    streams = [one._stream for one in (runtime, sender) if one._stream is not None]
    reader, sent = Reader(runtime), list[asyncio.Task[None]]()

    async def send(upto: int) -> None:
        while len(sent) < upto:
            sent.append(asyncio.create_task(tell(sender, b"%d" % len(sent))))
            await asyncio.sleep(0)

    try:
        await send(20)
        await reader.has(10)
        await gate.shut(silently=silently)
        await send(60)  # some of it is on its way when everybody notices
        await until(lambda: all(stream.detour.active for stream in streams))
        await reader.has(60)
        await send(80)
        await reader.has(80)
        assert not any(stream.connected for stream in streams)
        await gate.open()
        await send(100)
        await until(lambda: all(stream.connected for stream in streams))
        await send(140)
        await reader.has(140)
        await asyncio.gather(*sent)
        await emptied(place)
    finally:
        reader.task.cancel()
    assert reader.handled == list(range(140))
    assert not await place.inside(lambda tx: tx.mail.dead(BOX, after=0, limit=10))


@pytest.mark.slow
@pytest.mark.asyncio
@pytest.mark.parametrize("kind", [None, KEEPING], ids=["ephemeral", "durable"])
async def test_however_often_it_leaves_and_returns(place: Stage, gate: Gate, kind: Durable | None) -> None:
    runtime = await place.start(durable=kind, stream=True)
    sender = await place.start("lab/mail/sender", durable=None, stream=True)
    reader, sent, chance = Reader(runtime), list[asyncio.Task[None]](), random.Random(3)
    try:
        for turn in range(12):
            for _ in range(40):
                sent.append(asyncio.create_task(tell(sender, b"%d" % len(sent))))
                await asyncio.sleep(chance.choice((0, 0, 0.005)))
            if turn % 2:
                await gate.open()
            else:
                await gate.shut(silently=chance.random() < 0.5)
        await asyncio.gather(*sent)
        await reader.has(len(sent))
        await emptied(place)
    finally:
        reader.task.cancel()
    assert reader.handled == list(range(len(sent)))


@pytest.mark.asyncio
async def test_after_a_request_that_nobody_answered_what_it_may_have_drawn_comes_again_first() -> None:
    """Else it came after what is newer, and was refused as late."""
    asked: list[bool] = []

    def receive(_: str, request: ReceiveRequest, *, repeat: bool) -> Call[ReceiveResponse]:
        asked.append(request.anew)
        assert not repeat
        yield from ()
        if len(asked) == 2:
            raise TransportFailed(Code.CLIENT_TIMEOUT, "nobody knows whether it arrived")
        return ReceiveResponse(deliveries=(), senders={})

    async def do(call: Callable[[], Call[Any]]) -> Any:
        try:
            next(call())
        except StopIteration as answer:
            return answer.value

    inbox, ledger = cast("Any", SimpleNamespace(name=BOX)), cast("Any", MagicMock())
    calls = cast("Any", SimpleNamespace(receive=receive))
    fetching = Fetching(inbox, ledger, calls=calls, do=do, broker=MagicMock(), prepare=AsyncMock())
    for anew in (True, False, False, False):
        with suppress(TransportFailed):
            await fetching.receive(16, 0, anew=anew, repeat=False)
    assert asked == [True, False, True, False]
