"""What honest agents notice of ten times their load in garbage: the latency of their handshakes, alone and beside it.

The garbage comes from ten addresses, each of them below the limit of one address, so that none of it is turned away
unread: bodies that are no JSON, evidence under nonces that the broker never gave, and evidence that is well made, by
keys that are proved, on a platform under a root that nobody trusts. Both phases take turns; the honest agents keep
their own pace, whatever the broker does.
"""

import asyncio
import itertools
import json
import secrets
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import quantiles
from urllib.parse import urlsplit

from benchmarks.bench_broker import Connection, Guest, running_lab
from benchmarks.harness import Row
from enclave.client import BrokerCalls, Request
from enclave.trustfile import TrustFile
from simulator.machine import Machine

HONEST_PER_S = 20  # handshakes, of two requests each
TIMES = 10
PHASE_S = 5.0
ROUNDS = 3
SOURCES = [f"127.0.0.{number}" for number in range(2, 12)]
STRANGERS = 0.1  # of the garbage is evidence that has to be looked at
BAR = 2.0


def rows() -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as name, running_lab(Path(name)) as told:
        yield asyncio.run(_measured(told))


async def _measured(told: dict[str, str]) -> Row:
    machine, trust = Machine.open(told["machine"]), TrustFile.load(Path(told["trust_file"]))
    stranger = Machine.create(seed="a stranger")
    url = told["broker_url"]
    numbers = itertools.count()
    await _phase(url, machine, trust, numbers, 1.0)  # warm up
    alone: list[float] = []
    beside: list[float] = []
    sent = 0
    for _ in range(ROUNDS):
        alone += await _phase(url, machine, trust, numbers, PHASE_S)
        made = await _garbage(url, stranger, trust)
        async with _blasting(url, made) as count:
            beside += await _phase(url, machine, trust, numbers, PHASE_S)
        sent += count[0]
    before, after = _p99(alone), _p99(beside)
    return Row(
        name=f"honest handshakes beside {TIMES} × their requests in garbage, p99",
        figure=f"{after / before:.2f} × ({after * 1e3:.1f} ms against {before * 1e3:.1f} ms; {sent} pieces of garbage)",
        bar=f"≤ {BAR:g} × alone",
        met=after <= BAR * before,
        values={"ratio": after / before, "alone_s": before, "beside_s": after, "garbage": float(sent)},
    )


def _p99(found: list[float]) -> float:
    return quantiles(found, n=100)[98]


async def _phase(url: str, machine: Machine, trust: TrustFile, numbers: Iterator[int], seconds: float) -> list[float]:
    """Seconds that each honest handshake waited for the broker."""
    idle: asyncio.Queue[Connection] = asyncio.Queue()
    taken: list[float] = []

    async def handshake(guest: Guest) -> None:
        connection = await Connection.open(url) if idle.empty() else idle.get_nowait()
        calls = BrokerCalls(url, guest.keys, guest.clock, lambda: "")
        begun = time.perf_counter()
        answer = await connection.carry(calls.challenge(guest.session.ask(guest.client_nonce)))
        first = time.perf_counter() - begun
        request = guest.quoted(answer)
        begun = time.perf_counter()
        guest.admitted(await connection.carry(calls.attest(request)))
        taken.append(first + time.perf_counter() - begun)
        idle.put_nowait(connection)

    begun = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(int(seconds * HONEST_PER_S)):
            guest = Guest.make(machine, trust, next(numbers))
            await asyncio.sleep(max(0.0, begun + number / HONEST_PER_S - time.perf_counter()))
            group.create_task(handshake(guest))
    while not idle.empty():
        idle.get_nowait().close()
    return taken


async def _garbage(url: str, stranger: Machine, trust: TrustFile) -> list[bytes]:
    """As many bodies as one phase sends. Those of strangers answer real challenges, whose nonces live for a minute."""
    number = int(PHASE_S * HONEST_PER_S * 2 * TIMES)
    connection = await Connection.open(url)
    strangers: list[bytes] = []
    for index in range(int(number * STRANGERS)):
        guest = Guest.make(stranger, trust, index)
        calls = BrokerCalls(url, guest.keys, guest.clock, lambda: "")
        answer = await connection.carry(calls.challenge(guest.session.ask(guest.client_nonce)))
        strangers.append(json.dumps(guest.quoted(answer).to_dict()).encode())
    connection.close()
    worn = json.loads(strangers[0]) | {"client_nonce": secrets.token_urlsafe(32)}
    cheap = itertools.cycle([b"{" + secrets.token_bytes(4000), json.dumps(worn).encode()])
    every = round(1 / STRANGERS)
    waiting = iter(strangers)
    return [next(waiting) if index % every == 0 else next(cheap) for index in range(number)]


@asynccontextmanager
async def _blasting(url: str, bodies: list[bytes]) -> AsyncIterator[list[int]]:
    """Send them all at an even pace while the block runs, over a connection for each source; how many were sent."""
    parts = urlsplit(url)
    count = [0]
    pace_s = PHASE_S / len(bodies) * len(SOURCES)

    async def send(source: str, mine: list[bytes]) -> None:
        opened = await asyncio.open_connection(parts.hostname, parts.port, local_addr=(source, 0))
        connection = Connection(*opened)
        begun = time.perf_counter()
        for index, body in enumerate(mine):
            await asyncio.sleep(max(0.0, begun + index * pace_s - time.perf_counter()))
            request = Request(method="POST", url=f"{url}/v1/attestations", headers={}, body=body, timeout_s=30.0)
            await connection.exchange(request)
            count[0] += 1
        connection.close()

    tasks = [asyncio.create_task(send(source, bodies[index :: len(SOURCES)])) for index, source in enumerate(SOURCES)]
    try:
        yield count
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
