"""A fleet of ten thousand: what the broker needs for it, and how fast a change of policy reaches all of it.

The broker runs in a process of its own, so that its memory is its own; the agents' half is done here and comes to it
through a pipe. Then agents go on using a secret, some at once, while an administrator replaces the policy by one that
refuses everybody and back. Counted is the time from the administrator's call to the end of the last use that still
succeeded: what was decided before the change may finish, and nothing that is decided after it.
"""

import asyncio
import itertools
import logging
import multiprocessing
import random
import re
import secrets
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from attestation.errors import AttestationError
from attestation.quote import Quote
from benchmarks.bench_broker import ADMIN, AT_ONCE, SECRET, Guest, make_broker
from benchmarks.harness import Row, memory_mib
from broker.app import create_app
from broker.background import Background
from broker.errors import BrokerError
from broker.service import Broker
from broker.wire.bodies import AttestationRequest, PutSecretRequest
from broker.wire.challenge import ChallengeRequest
from broker.wire.release import ReleaseRequest
from enclave.trustfile import TrustFile, render
from policies.errors import Refused
from simulator.machine import Machine

FLEET = 10_000
FLIPS = 20
LATEST_S = 20.0  # after so long without a refusal of everybody the measurement is given up
IDLE_MIB, FLEET_MIB = 120, 300


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What the broker's process measured of itself."""

    idle_mib: float
    fleet_mib: float
    lags_s: list[float]


def rows() -> Iterator[Row]:
    here, there = multiprocessing.Pipe()
    with tempfile.TemporaryDirectory() as name:
        child = multiprocessing.get_context("spawn").Process(target=_serve, args=(there, name), daemon=True)
        child.start()
        there.close()
        try:
            yield from _show(_enrol(here))
        finally:
            here.close()
            child.join(30)


def _show(found: Findings) -> Iterator[Row]:
    yield Row(
        name="broker memory, idle",
        figure=f"{found.idle_mib:.0f} MiB",
        bar=f"< {IDLE_MIB} MiB",
        met=found.idle_mib < IDLE_MIB,
        values={"mib": found.idle_mib},
    )
    yield Row(
        name=f"broker memory, {FLEET:,} agents",
        figure=f"{found.fleet_mib:.0f} MiB",
        bar=f"< {FLEET_MIB} MiB",
        met=found.fleet_mib < FLEET_MIB,
        values={"mib": found.fleet_mib},
    )
    lags = sorted(found.lags_s)
    half, most = lags[len(lags) // 2], lags[min(len(lags) - 1, int(len(lags) * 0.99))]
    yield Row(
        name=f"policy change to last refused use, {FLEET:,} agents, {FLIPS} changes under load",
        figure=f"p50 {half * 1e3:.0f} ms, p99 {most * 1e3:.0f} ms",
        bar="< 1 s",
        met=most < 1,
        values={"p50_s": half, "p99_s": most},
    )


def _enrol(pipe: Connection) -> Findings:
    """The agents' half of ten thousand admissions."""
    root_pem, log_key, path = pipe.recv()
    machine = Machine.open(path)
    trust = TrustFile.parse(render(tenant="lab", log_key=log_key, roots_pem=(root_pem,)))
    for start in range(0, FLEET, AT_ONCE):
        guests = [Guest.make(machine, trust, number) for number in range(start, min(start + AT_ONCE, FLEET))]
        pipe.send([guest.session.ask(guest.client_nonce) for guest in guests])
        pipe.send([guest.quoted(answer) for guest, answer in zip(guests, pipe.recv(), strict=True)])
        pipe.recv()
    pipe.send(None)
    found: Findings = pipe.recv()
    return found


def _serve(pipe: Connection, folder: str) -> None:
    """The broker's process."""
    logging.getLogger("cloister").setLevel(logging.CRITICAL)
    asyncio.run(_measure(pipe, Path(folder)))


async def _measure(pipe: Connection, folder: Path) -> None:
    machine = Machine.create(folder / "machine", seed="fleet")
    async with make_broker(machine, folder) as broker:
        create_app(broker)
        await broker.administration.put_secret(ADMIN, SECRET, PutSecretRequest(value=bytes(32)))
        await broker.collateral.prefetch(Quote.parse(machine.launch("first").quote(bytes(range(64)))))
        idle, _ = memory_mib()
        pipe.send((machine.root_pem, broker.identity.log_key, folder / "machine"))
        subjects = await _admit(pipe, broker)
        fleet, _ = memory_mib()
        async with Background(broker):
            lags = [await _flip(broker, folder / "policy", subjects, version) for version in range(2, 2 + 2 * FLIPS, 2)]
        pipe.send(Findings(idle_mib=idle, fleet_mib=fleet, lags_s=lags))


async def _admit(pipe: Connection, broker: Broker) -> list[str]:
    """Admit what comes through the pipe, until nothing comes any more; who was admitted."""
    subjects: list[str] = []
    while (asked := await asyncio.to_thread(pipe.recv)) is not None:
        wanted: Sequence[ChallengeRequest] = asked
        pipe.send([broker.admission.challenge(request) for request in wanted])
        evidence: Sequence[AttestationRequest] = await asyncio.to_thread(pipe.recv)
        answers = await asyncio.gather(*(broker.admission.attest(request) for request in evidence))
        subjects += [answer.subject for answer in answers]
        pipe.send(len(answers))
    return subjects


async def _flip(broker: Broker, policy: Path, subjects: list[str], version: int) -> float:
    """Refuse everybody, and let everybody in again; seconds from the change to the end of the last use."""
    users = Users(broker, subjects)
    async with users:
        await users.succeed()
        begun = time.perf_counter()
        _write(policy, version, refuse=True)
        await broker.administration.reload_policies(ADMIN)
        await users.fail()
    _write(policy, version + 1, refuse=False)
    await broker.administration.reload_policies(ADMIN)
    return max(users.last_success - begun, 0.0)


def _write(policy: Path, version: int, *, refuse: bool) -> None:
    """The next version; one that refuses accepts a TCB state in which no platform here is."""
    settings = policy / "bundle.toml"
    text = re.sub(r"(?m)^version = \d+", f"version = {version}", settings.read_text("utf-8"), count=1)
    state = "SWHardeningNeeded" if refuse else "UpToDate"
    settings.write_text(re.sub(r"(?m)^accept = .*", f'accept = ["{state}"]', text, count=1))


class Users:
    """Agents that keep using a secret, AT_ONCE of them at any moment."""

    def __init__(self, broker: Broker, subjects: list[str]) -> None:
        self._broker = broker
        self._subjects = subjects
        self._tasks: list[asyncio.Task[Any]] = []
        self._changed = asyncio.Event()
        self._successes = 0
        self._refused_in_a_row = 0
        self.last_success = 0.0

    async def __aenter__(self) -> "Users":
        self._tasks = [asyncio.create_task(self._use()) for _ in range(AT_ONCE)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def succeed(self) -> None:
        """Until each task has succeeded a few times, by the average."""
        await self._until(lambda: self._successes >= 4 * AT_ONCE)

    async def fail(self) -> None:
        """Until nobody has succeeded for as many uses as there are agents at work, ten times over."""
        await self._until(lambda: self._refused_in_a_row >= 10 * AT_ONCE)

    async def _until(self, done: Any) -> None:
        async with asyncio.timeout(LATEST_S):
            while not done():
                self._changed.clear()
                await self._changed.wait()

    async def _use(self) -> None:
        broker = self._broker
        for _ in itertools.count():
            subject = random.choice(self._subjects)
            try:
                session = await broker.sessions.of_subject(subject, broker.clock())
                await broker.releases.release(session, SECRET, ReleaseRequest(nonce=secrets.token_bytes(32)))
            except (BrokerError, Refused, AttestationError):
                self._refused_in_a_row += 1
            else:
                self._successes += 1
                self._refused_in_a_row = 0
                self.last_success = time.perf_counter()
            self._changed.set()
            await asyncio.sleep(0)
