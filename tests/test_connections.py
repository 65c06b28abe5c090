"""Connections of strangers: who says nothing, or never ends what he begins, is cut, and keeps nobody else out."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest
import pytest_asyncio

from broker.app import listen, serve
from broker.rest import connections
from broker.rest.connections import MAX_HEAD, Guarded, Silent
from tests.broker_world import World

PATIENCE_S = 10.0
ALIVE = b"GET /healthz HTTP/1.1\r\nhost: broker\r\n\r\n"


class Caller:
    """One connection, spoken by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def says(self, *parts: bytes) -> "Caller":
        for part in parts:
            self.writer.write(part)
            await self.writer.drain()
        return self

    async def answer(self) -> bytes:
        """The status line of the next answer."""
        async with asyncio.timeout(PATIENCE_S):
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = next(int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"content-length:"))
            await self.reader.readexactly(length)
        return head.split(b"\r\n")[0]

    async def is_cut(self) -> bool:
        async with asyncio.timeout(PATIENCE_S):
            with suppress(ConnectionResetError, BrokenPipeError):
                while await self.reader.read(4096):
                    pass
        return True


class Doors:
    """A broker that serves."""

    def __init__(self, port: int, keep: AsyncExitStack) -> None:
        self.port, self._keep = port, keep

    async def call(self) -> Caller:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self._keep.callback(writer.close)
        return Caller(reader, writer)


@pytest_asyncio.fixture
async def doors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Doors]:
    monkeypatch.setattr(connections, "HEAD_S", 0.3)
    world, stop, ready = await World.make(tmp_path), asyncio.Event(), asyncio.Event()
    with listen("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
        serving = asyncio.create_task(serve(world.broker, sock=sock, ready=ready.set, stop=stop))
        async with AsyncExitStack() as keep:
            await asyncio.wait_for(ready.wait(), PATIENCE_S)
            yield Doors(port, keep)
        stop.set()
        await asyncio.wait_for(serving, PATIENCE_S)


@pytest.mark.asyncio
@pytest.mark.parametrize("parts", [(), (b"G",), (b"GET /healthz HTTP/1.1\r\n", b"a: b\r\n")])
async def test_a_request_that_never_comes_or_never_ends_is_not_waited_for(
    doors: Doors, parts: tuple[bytes, ...]
) -> None:
    assert await (await (await doors.call()).says(*parts)).is_cut()


@pytest.mark.asyncio
@pytest.mark.parametrize("after", [b"\r\n", b"GET /healthz", ALIVE + b"GET"])
async def test_nor_the_next_one_on_the_same_connection(doors: Doors, after: bytes) -> None:
    caller = await (await doors.call()).says(ALIVE)
    assert await caller.answer() == b"HTTP/1.1 200 OK"
    assert await (await caller.says(after)).is_cut()


@pytest.mark.asyncio
async def test_headers_without_end_take_no_memory(doors: Doors) -> None:
    caller = await doors.call()
    with suppress(ConnectionResetError, BrokenPipeError):
        await caller.says(b"GET /healthz HTTP/1.1\r\n", *[b"a: %s\r\n" % (b"b" * 4000)] * (2 * MAX_HEAD // 4000))
    assert await caller.is_cut()


@pytest.mark.asyncio
async def test_a_connection_between_two_requests_stays(doors: Doors) -> None:
    caller = await doors.call()
    for _ in range(3):
        await caller.says(ALIVE[:20])
        await caller.says(ALIVE[20:])
        assert await caller.answer() == b"HTTP/1.1 200 OK"
    with pytest.raises(TimeoutError):  # for longer than the head of a request may take
        await asyncio.wait_for(caller.reader.read(1), 0.5)


# ── how many ───────────────────────────────────────────────────────────────────────────────────────────────────────


class Cut(Guarded):
    """A connection that only knows whether it was cut."""

    def __init__(self, silent: Silent) -> None:
        self.silent = silent
        self.over = False

    def cut(self) -> None:
        self.over = True
        self.silent.remove(self)


def test_of_an_address_with_too_many_and_of_all_the_oldest_is_cut() -> None:
    silent = Silent(most=6, each=3)
    mine = [Cut(silent) for _ in range(5)]
    for one in mine:
        silent.add(one, "192.0.2.1")
    assert [one.over for one in mine] == [True, True, False, False, False]
    others = [Cut(silent) for _ in range(4)]
    for number, one in enumerate(others):
        silent.add(one, f"192.0.2.{number + 2}")
    assert [one.over for one in mine] == [True, True, True, False, False]
    assert not any(one.over for one in others)
    silent.remove(others[0])
    silent.remove(others[0])
    assert len(silent) == 5
