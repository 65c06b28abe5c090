"""Agents for the topics benchmark: one publishes, four read, in two processes beside the broker.

Counted from the first message until every reader has handled the last. On a channel many messages are under way at
once; envelope by envelope there are so many publishers' requests at once as a busy agent would have.
"""

import asyncio
import gc
import multiprocessing
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.harness import Row
from enclave.runtime import Runtime
from enclave.topics.reader import TopicReader
from enclave.trustfile import TrustFile
from simulator.machine import Machine

READERS = 4
CHANNEL, ENVELOPES = 20_000, 400
AHEAD = 2048  # messages that the broker has not answered
AT_ONCE = 8  # requests
TEXT = bytes(1024)


@dataclass
class Order:
    """So many messages to one topic; on a channel, or envelope by envelope."""

    told: dict[str, str]
    topic: str
    count: int
    channel: bool


async def _agent(order: Order, name: str) -> Runtime:
    runtime = Runtime(
        domain=Machine.open(order.told["machine"]).launch(name),
        trust=TrustFile.load(Path(order.told["trust_file"])),
        broker_url=order.told["broker_url"],
        mailbox=f"lab/mail/{name}",
    )
    await runtime.attest()
    await runtime.publish()
    await runtime.connect()
    return runtime


async def _publish(runtime: Runtime, order: Order) -> None:
    """A channel begins with an agent's second message."""
    if not order.channel:
        assert runtime._stream is not None
        await runtime._stream.close()
        runtime._stream = None
    ahead = asyncio.Semaphore(AHEAD if order.channel else AT_ONCE)

    async def one() -> None:
        async with ahead:
            await runtime.publish_to(order.topic, kind="item", plaintext=TEXT)

    await asyncio.gather(*[one() for _ in range(order.count)])


async def _read(reader: TopicReader, count: int) -> None:
    while count > 0:
        for received in await reader.receive(64):
            reader.done(received)
            count -= 1


async def _work(pipe: Connection, runtimes: Sequence[Runtime], act: Callable[[], Awaitable[Any]]) -> None:
    gc.collect()
    gc.freeze()
    pipe.send("ready")
    await asyncio.to_thread(pipe.recv)
    begun, busy = time.monotonic(), time.process_time()
    await act()
    pipe.send({"begun": begun, "ended": time.monotonic(), "busy": time.process_time() - busy})
    await asyncio.to_thread(pipe.recv)
    for runtime in runtimes:
        await runtime.close()


def publisher(order: Order, pipe: Connection) -> None:
    async def run() -> None:
        runtime = await _agent(order, f"publisher-{order.topic.rpartition('/')[2]}")
        await _work(pipe, [runtime], lambda: _publish(runtime, order))

    asyncio.run(run())


def readers(order: Order, pipe: Connection) -> None:
    async def run() -> None:
        names = [f"reader-{order.topic.rpartition('/')[2]}-{number}" for number in range(READERS)]
        runtimes = [await _agent(order, name) for name in names]
        found = [runtime.topic(order.topic) for runtime in runtimes]
        for reader in found:
            await reader.join()
        await _work(pipe, runtimes, lambda: asyncio.gather(*(_read(reader, order.count) for reader in found)))

    asyncio.run(run())


def measure(order: Order) -> dict[str, float]:
    spawn = multiprocessing.get_context("spawn")
    workers = []
    for act in (readers, publisher):
        ours, theirs = spawn.Pipe()
        process = spawn.Process(target=act, args=(order, theirs))
        process.start()
        theirs.close()  # so that its death is heard of
        if ours.recv() != "ready":
            raise RuntimeError("a worker did not get ready")
        workers.append((process, ours))
    for _, pipe in workers:
        pipe.send("go")
    read, said = (pipe.recv() for _, pipe in workers)
    for process, pipe in workers:
        pipe.send("stop")
        process.join(30)
    each = 1e6 / order.count
    return {
        "per_s": order.count / (read["ended"] - said["begun"]),
        "publisher_us": said["busy"] * each,
        "reader_us": read["busy"] * each / READERS,
    }


def rows(told: dict[str, str]) -> Iterator[Row]:
    """Both ways, of one lab."""
    on_channel = measure(Order(told=told, topic="lab/mail/channel", count=CHANNEL, channel=True))
    alone = measure(Order(told=told, topic="lab/mail/envelopes", count=ENVELOPES, channel=False))
    for found, way in ((on_channel, "on a channel"), (alone, "envelope by envelope")):
        more = f", {on_channel['per_s'] / alone['per_s']:.0f} × as many as envelope by envelope"
        yield Row(
            name=f"topic messages, 1 KiB, 1 publisher and {READERS} readers, {way}",
            figure=f"{found['per_s']:,.0f}/s published and {READERS * found['per_s']:,.0f}/s read"
            f"{more if found is on_channel else ''}; processor µs each: publisher {found['publisher_us']:.1f}, "
            f"reader {found['reader_us']:.1f}",
            values=found,
        )
