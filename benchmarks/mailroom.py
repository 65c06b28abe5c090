"""Agents for the messages benchmark: senders in one process, receivers in another, each with its stream to a broker."""

import asyncio
import gc
import struct
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from broker.wire.heap import keep_freed
from enclave.durable import Durable
from enclave.mailbox import Inbox
from enclave.runtime import Runtime
from enclave.session import Admission
from enclave.stream import Stream
from enclave.trustfile import TrustFile
from simulator.machine import Machine

SIZE = 1024
CREDIT = 1024
STAMP = struct.Struct(">Q")
FILLER = bytes(SIZE - STAMP.size)
AHEAD = 2048  # messages of one sender that the broker has not answered
ATTESTING = 8  # agents at once


@dataclass
class Order:
    """What a worker does: `count` messages for each pair, `per_s` of them each second, or as fast as it goes."""

    told: dict[str, str]
    pairs: int
    count: int
    per_s: float = 0.0
    name: str = "x"
    durable: bool = False


@dataclass
class Member:
    """An agent with its stream."""

    runtime: Runtime
    stream: Stream
    latencies: list[int] = field(default_factory=list)

    @classmethod
    async def join(cls, order: Order, machine: Machine, trust: TrustFile, name: str, *, receive: bool) -> "Member":
        runtime = Runtime(
            domain=machine.launch(name),
            trust=trust,
            broker_url=order.told["broker_url"],
            mailbox=f"lab/mail/{name}",
            durable=Durable() if order.durable and receive else None,
        )
        await runtime.attest()
        inbox: Inbox = runtime.inbox
        if receive:
            await runtime.publish()

        async def admit(instead_of: Admission | None) -> Admission:
            return runtime.admission if instead_of is None else await runtime.attest(instead_of=instead_of)

        async def prepare() -> None:
            if runtime.standing.due:
                await runtime.learn_standing()

        stream = Stream(
            order.told["grpc_address"],
            base_url=order.told["broker_url"],
            keys=runtime.keys,
            time=runtime.time,
            admit=admit,
            lookup=runtime._mailbox,
            inbox=inbox,
            outbox=runtime._outbox,
            channels=runtime._channels,
            prepare=prepare,
            keep=runtime._durable.save if runtime._durable else None,
            receive=receive,
            credit=CREDIT,
        )
        await stream.start()
        await stream.wait_connected()
        return cls(runtime=runtime, stream=stream)

    async def close(self) -> None:
        await self.stream.close()
        await self.runtime.close()


async def _members(order: Order, prefix: str, *, receive: bool) -> list[Member]:
    machine, trust = Machine.open(order.told["machine"]), TrustFile.load(Path(order.told["trust_file"]))
    members: list[Member] = []
    for start in range(0, order.pairs, ATTESTING):
        names = [f"{order.name}-{prefix}{number}" for number in range(start, min(start + ATTESTING, order.pairs))]
        joined = [Member.join(order, machine, trust, name, receive=receive) for name in names]
        members += await asyncio.gather(*joined)
    return members


async def _send(member: Member, box: str, order: Order) -> None:
    waiting: list[asyncio.Future[bytes]] = []
    begun = time.monotonic()
    for number in range(order.count):
        if order.per_s and (ahead := begun + number / order.per_s - time.monotonic()) > 0:
            await asyncio.sleep(ahead)
        elif len(waiting) >= AHEAD:
            for accepted in waiting[: AHEAD // 2]:
                await accepted
            del waiting[: AHEAD // 2]
        elif number % 64 == 63:
            await asyncio.sleep(0)  # as one who has other things to do between two messages
        text = STAMP.pack(time.monotonic_ns()) + FILLER
        waiting.append(member.stream.post(box, kind="note", plaintext=text))
    for accepted in waiting:
        await accepted


async def _receive(member: Member, order: Order) -> None:
    left = order.count
    while left:
        for incoming in await member.stream.receive(left, 30.0):
            (stamp,) = STAMP.unpack_from(incoming.plaintext)
            member.latencies.append(time.monotonic_ns() - stamp)
            member.stream.done(incoming)
            left -= 1


async def _work(order: Order, pipe: Connection, act: Callable[[Sequence[Member]], Awaitable[Any]], **how: Any) -> None:
    keep_freed()  # as an agent's process does
    members = await _members(order, **how)
    gc.collect()
    gc.freeze()
    pipe.send("ready")
    await asyncio.to_thread(pipe.recv)
    begun, busy = time.monotonic(), time.process_time()
    await act(members)
    told = {"begun": begun, "ended": time.monotonic(), "busy": time.process_time() - busy}
    pipe.send(told | {"latencies": [one for member in members for one in member.latencies]})
    await asyncio.to_thread(pipe.recv)
    for member in members:
        await member.close()


def sender(order: Order, pipe: Connection) -> None:
    async def act(members: Sequence[Member]) -> None:
        boxes = [f"lab/mail/{order.name}-b{number}" for number in range(order.pairs)]
        await asyncio.gather(*(_send(one, box, order) for one, box in zip(members, boxes, strict=True)))

    asyncio.run(_work(order, pipe, act, prefix="a", receive=False))


def receiver(order: Order, pipe: Connection) -> None:
    async def act(members: Sequence[Member]) -> None:
        await asyncio.gather(*(_receive(one, order) for one in members))

    asyncio.run(_work(order, pipe, act, prefix="b", receive=True))
