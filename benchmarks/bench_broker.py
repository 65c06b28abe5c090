"""From nonce to secret: what the broker does for one agent, in process and over loopback HTTP.

Counted is processor time of the broker, all threads, so that a busy machine does not blur it. The agents' half (keys,
quote, proofs, opening) is done between the counted phases, since it runs on other machines. Everything is as in
production: every check, the database with synchronous=FULL, the audit entry durable before the answer. Over HTTP the
server is `cloister lab` on a processor of its own.
"""

import asyncio
import contextlib
import gc
import json
import logging
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from attestation.quote import Quote
from benchmarks.harness import PartMissing, Row
from broker.app import settle
from broker.config import Admin, Settings
from broker.rootkey import keyfile
from broker.service import Broker, build
from broker.wire.bodies import AttestationRequest, AttestationResponse, PutSecretRequest
from broker.wire.challenge import ChallengeResponse
from broker.wire.release import ReleaseRequest, ReleaseResponse
from enclave.client import Answer, BrokerCalls, Pause, Request
from enclave.clock import BrokerTime
from enclave.keys import AgentKeys
from enclave.release import open_release
from enclave.session import Admission, Session
from enclave.trustfile import TrustFile, render
from policies.scaffold import starter, write
from simulator.domain import SimulatedTd
from simulator.machine import Machine

AGENTS = 400
AT_ONCE = 32
SECRET = "lab/bench/key"
ADMIN = Admin(name="bench", jkt="A" * 43)
T = TypeVar("T")
R = TypeVar("R")


@dataclass
class Guest:
    """One agent's half of the exchange."""

    domain: SimulatedTd
    keys: AgentKeys
    session: Session
    clock: BrokerTime
    client_nonce: bytes
    request: AttestationRequest | None = None
    admission: Admission | None = None

    @classmethod
    def make(cls, machine: Machine, trust: TrustFile, number: int) -> "Guest":
        keys, clock = AgentKeys.generate(), BrokerTime()
        return cls(
            domain=machine.launch(f"bench{number}"),
            keys=keys,
            session=Session(keys, trust, clock),
            clock=clock,
            client_nonce=secrets.token_bytes(32),
        )

    def quoted(self, answer: ChallengeResponse) -> AttestationRequest:
        quote = self.domain.quote(self.session.challenged(answer))
        self.request = self.session.quoted(quote, self.domain.event_log())
        return self.request

    def admitted(self, answer: AttestationResponse) -> Admission:
        self.admission = self.session.admitted(answer)
        return self.admission

    def opened(self, answer: ReleaseResponse, nonce: bytes) -> bytes:
        assert self.admission is not None
        secret = open_release(
            answer, admission=self.admission, keys=self.keys, name=SECRET, nonce=nonce, now_s=self.clock.now_s()
        )
        return secret.value


async def timed(
    items: list[T], act: Callable[[T], Awaitable[R]], clock: Callable[[], float] = time.process_time
) -> tuple[list[R], float]:
    """Do it to all, some at once; the answers in order, and the seconds that `clock` counted."""
    answers: list[Any] = [None] * len(items)
    waiting = iter(range(len(items)))

    async def work() -> None:
        for index in waiting:
            answers[index] = await act(items[index])

    start = clock()
    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(work())
    return answers, clock() - start


def rows() -> Iterator[Row]:
    logging.getLogger("cloister.broker").setLevel(logging.ERROR)  # it says at start that it trusts another root
    with tempfile.TemporaryDirectory() as name:
        yield from asyncio.run(_in_process(Path(name)))
    with tempfile.TemporaryDirectory() as name, running_lab(Path(name)) as told:
        yield from asyncio.run(_over_http(told))


async def _in_process(folder: Path) -> list[Row]:
    machine = Machine.create(seed="bench")
    async with make_broker(machine, folder) as broker:
        trust = TrustFile.parse(render(tenant="lab", log_key=broker.identity.log_key, roots_pem=(machine.root_pem,)))
        await broker.administration.put_secret(ADMIN, SECRET, PutSecretRequest(value=bytes(32)))
        await broker.collateral.prefetch(Quote.parse(machine.launch("first").quote(bytes(range(64)))))
        await _exchange(broker, [Guest.make(machine, trust, number) for number in range(AT_ONCE)])  # warm up
        guests = [Guest.make(machine, trust, number) for number in range(AGENTS)]
        usual = gc.get_threshold()
        settle()  # as the server does when it begins to serve
        seconds, release = await _exchange(broker, guests)
        gc.unfreeze()
        gc.set_threshold(*usual)
    attested = Row(
        name=f"attest to token and secret, in process, durable, {AT_ONCE} at once",
        figure=f"{seconds * 1e3:.2f} ms each",
        bar="≤ 0.9 ms",
        met=seconds <= 0.0009,
        values={"seconds": seconds},
    )
    released = Row(
        name=f"releases, in process, durable, {AT_ONCE} at once, per core",
        figure=f"{1 / release:,.0f}/s",
        values={"per_s": 1 / release},
    )
    return [attested, released]


@contextlib.asynccontextmanager
async def make_broker(machine: Machine, folder: Path) -> AsyncIterator[Broker]:
    write(starter("lab", at=machine.clock.now()), folder / "policy")
    keyfile.create(folder / "root.json")
    settings = Settings(
        public_url="http://127.0.0.1:1",
        bundles=(folder / "policy",),
        database=folder / "broker.sqlite",
        root_key_file=folder / "root.json",
        admins=(ADMIN,),
    )
    broker = await build(settings, clock=machine.clock.now, collateral=machine.as_source(), roots=machine.roots)
    try:
        yield broker
    finally:
        await broker.close()


async def _exchange(broker: Broker, guests: list[Guest]) -> tuple[float, float]:
    """Seconds of the broker's part for one agent: challenge, attestation and release, and the release alone."""

    async def challenge(guest: Guest) -> ChallengeResponse:
        return broker.admission.challenge(guest.session.ask(guest.client_nonce))

    async def release(guest: Guest) -> tuple[bytes, ReleaseResponse]:
        assert guest.admission is not None
        nonce = secrets.token_bytes(32)
        request = ReleaseRequest(nonce=nonce)
        return nonce, await broker.acting(
            guest.admission.token, lambda session: broker.releases.release(session, SECRET, request)
        )

    challenges, first = await timed(guests, challenge)
    requests = [guest.quoted(answer) for guest, answer in zip(guests, challenges, strict=True)]
    admissions, second = await timed(requests, broker.admission.attest)
    for guest, admission in zip(guests, admissions, strict=True):
        guest.admitted(admission)
    released, third = await timed(guests, release)
    for guest, (nonce, answer) in zip(guests, released, strict=True):
        assert guest.opened(answer, nonce) == bytes(32)
    return (first + second + third) / len(guests), third / len(guests)


@contextlib.contextmanager
def running_lab(folder: Path, *program: str) -> Iterator[dict[str, str]]:
    """A running lab, on a processor of its own where there are two; `program` in place of `cloister lab`."""
    lab_itself = (str(Path(sys.executable).with_name("cloister")), "lab")
    command = [*(program or lab_itself), "--json", "--dir", str(folder / "lab")]
    if not Path(command[0]).exists():
        raise PartMissing("`cloister` beside the interpreter: install the project (make setup)")
    ours = os.sched_getaffinity(0)
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as lab:
        assert lab.stdout is not None
        line = lab.stdout.readline()
        if not line:
            raise PartMissing("`cloister lab --json`, which did not start")
        if len(ours) > 1:
            first = min(ours)
            for task in Path(f"/proc/{lab.pid}/task").iterdir():
                os.sched_setaffinity(int(task.name), {first})
            os.sched_setaffinity(0, ours - {first})
        try:
            yield {**json.loads(line), "pid": str(lab.pid)}
        finally:
            os.sched_setaffinity(0, ours)
            lab.send_signal(signal.SIGTERM)
            lab.wait(30)


async def _over_http(told: dict[str, str]) -> list[Row]:
    machine, trust = Machine.open(told["machine"]), TrustFile.load(Path(told["trust_file"]))
    connections = [await Connection.open(told["broker_url"]) for _ in range(AT_ONCE)]
    idle: asyncio.Queue[Connection] = asyncio.Queue()
    for connection in connections:
        idle.put_nowait(connection)

    async def carry(call: Generator[Request | Pause, Answer | None, R]) -> R:
        connection = await idle.get()
        try:
            return await connection.carry(call)
        finally:
            idle.put_nowait(connection)

    served = partial(_processor_s, int(told["pid"]))
    first = [Guest.make(machine, trust, number) for number in range(AT_ONCE)]
    await _handshakes(carry, told["broker_url"], first, served)  # warm up
    guests = [Guest.make(machine, trust, number) for number in range(AGENTS)]
    begun = time.perf_counter()
    rate = await _handshakes(carry, told["broker_url"], guests, served)
    wall = AGENTS / (time.perf_counter() - begun)
    for connection in connections:
        connection.close()
    return [
        Row(
            name=f"two-leg handshakes over loopback HTTP per core, {AT_ONCE} connections",
            figure=f"{rate:,.0f}/s ({wall:,.0f}/s by the clock, agents' half included)",
            bar="≥ 700/s (stretch 1,000)",
            met=rate >= 700,
            values={"per_s": rate, "wall_per_s": wall},
        )
    ]


async def _handshakes(
    carry: Callable[[Any], Awaitable[Any]], url: str, guests: list[Guest], clock: Callable[[], float]
) -> float:
    """Handshakes for each second of the server's processor time: both legs, the agents' quotes made between them."""
    calls = {id(guest): BrokerCalls(url, guest.keys, guest.clock, lambda: "") for guest in guests}
    challenges, first = await timed(
        guests, lambda guest: carry(calls[id(guest)].challenge(guest.session.ask(guest.client_nonce))), clock
    )
    pairs = [(guest, guest.quoted(answer)) for guest, answer in zip(guests, challenges, strict=True)]
    admissions, second = await timed(pairs, lambda pair: carry(calls[id(pair[0])].attest(pair[1])), clock)
    for guest, admission in zip(guests, admissions, strict=True):
        guest.admitted(admission)
    return len(guests) / (first + second)


def _processor_s(pid: int) -> float:
    """Processor time that a process has used, all threads, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Connection:
    """One kept connection, with as little HTTP as the lab's server needs: the client must not be what is measured."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, url: str) -> "Connection":
        parts = urlsplit(url)
        return cls(*await asyncio.open_connection(parts.hostname, parts.port))

    def close(self) -> None:
        self._writer.close()

    async def carry(self, call: Generator[Request | Pause, Answer | None, R]) -> R:
        """Send what the call wants sent until it has its result."""
        answer: Answer | None = None
        while True:
            try:
                wanted = call.send(answer)
            except StopIteration as done:
                result: R = done.value
                return result
            if isinstance(wanted, Pause):
                await asyncio.sleep(wanted.seconds)
                answer = None
            else:
                answer = await self.exchange(wanted)

    async def exchange(self, request: Request) -> Answer:
        path, host = urlsplit(request.url).path, urlsplit(request.url).netloc
        lines = [f"{request.method} {path} HTTP/1.1", f"host: {host}", f"content-length: {len(request.body)}"]
        lines += [f"{name}: {value}" for name, value in request.headers.items()]
        self._writer.write("\r\n".join([*lines, "", ""]).encode() + request.body)
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        body = await self._reader.readexactly(int(headers.get("content-length", "0")))
        return Answer(status=int(head[0].split()[1]), headers=headers, body=body)
