"""What the end-to-end tests share: a lab with two workloads, agents in it, and a wire that somebody may hold."""

import hashlib
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from attestation.errors import AttestationError
from broker.telemetry import log_to
from broker.wire.errors import WireError
from enclave import Agent, BrokerRefused, EnclaveError
from enclave import launch as measured
from enclave.context import Context
from enclave.trustfile import TrustFile
from simulator.demo import policy
from simulator.demo.operator import Operator
from simulator.domain import SimulatedTd
from simulator.lab import Lab
from simulator.machine import Machine

CODE = {name: hashlib.sha384(name.encode()).hexdigest() for name in ("researcher", "analyst")}
SECRET = "demo/research/report-key"
CANARY = b"canary-" + os.urandom(16).hex().encode()
Tamper = Callable[[httpx2.Request, httpx2.Response], httpx2.Response]


@dataclass
class Question:
    text: str


@dataclass
class Answer:
    text: str


@dataclass
class Unheard:
    text: str


class Wire(httpx2.AsyncBaseTransport):
    """The network between an agent and the broker, in somebody's hands: sees everything, may change answers."""

    def __init__(self, tamper: Tamper | None = None, forward: Callable[[httpx2.Request], bytes] | None = None) -> None:
        self._inner = httpx2.AsyncHTTPTransport()
        self.tamper = tamper
        self.forward = forward
        self.seen: list[httpx2.Request] = []

    @property
    def paths(self) -> list[str]:
        return [request.url.path for request in self.seen]

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self.seen.append(request)
        if self.forward is not None:
            body = self.forward(request)
            headers = {name: value for name, value in request.headers.items() if name != "content-length"}
            request = httpx2.Request(request.method, request.url, headers=headers, content=body)
        response = await self._inner.handle_async_request(request)
        await response.aread()
        return self.tamper(request, response) if self.tamper else response

    async def aclose(self) -> None:
        await self._inner.aclose()


def answered(response: httpx2.Response, members: dict[str, Any]) -> httpx2.Response:
    headers = {name: value for name, value in response.headers.items() if name not in ("content-length",)}
    return httpx2.Response(response.status_code, headers=headers, content=json.dumps(members).encode())


def make_lab(folder: Path) -> Lab:
    machine = Machine.create(folder / "machine")
    image = machine.launch("image")
    measurements = {"mr_td": image.mr_td.hex(), "rtmr1": image.rtmrs[1].hex(), "rtmr2": image.rtmrs[2].hex()}
    files = policy.bundle(ppid=machine.platform(0).ppid.hex(), measurements=measurements, code=CODE)
    return Lab(folder, bundle=files, tenant=policy.TENANT)


def domain(lab: Lab, name: str, code: str = "") -> SimulatedTd:
    """A trust domain in which a program of that name was launched."""
    td = lab.machine.launch(name)
    measured.extend(td, bytes.fromhex(code or CODE[name]), name)
    return td


@asynccontextmanager
async def running(lab: Lab, agent: Agent, *, code: str = "", wire: Wire | None = None) -> AsyncIterator[Agent]:
    try:
        await agent.start(
            domain=domain(lab, agent.name, code),
            trust=TrustFile.load(lab.trust_file),
            broker_url=lab.broker_url,
            transport=wire,
        )
        yield agent
    finally:
        await agent.stop()


def researcher() -> Agent:
    agent = Agent("researcher")

    @agent.on_message(Question)
    async def answer(ctx: Context, question: Question) -> Answer:
        secret = await ctx.secrets.get(SECRET)
        return Answer(text=f"{question.text} {secret.text()}")

    return agent


async def code_of(work: Any) -> str:
    """The code with which the awaited thing is refused."""
    try:
        await work
    except (EnclaveError, WireError, AttestationError, BrokerRefused) as error:
        return str(error.code)
    return "ok"


@contextmanager
def lab_with_log(folder: Path) -> Iterator[Lab]:
    """A lab whose broker writes down everything that it has to say."""
    with (folder / "broker.log").open("w", encoding="utf-8") as log:
        log_to(log, "DEBUG")
        with lab_with_secret(folder) as lab:
            yield lab


@contextmanager
def lab_with_secret(folder: Path) -> Iterator[Lab]:
    with make_lab(folder) as lab:
        Operator(lab.broker_url, lab.admin_key_file).put_secret(SECRET, CANARY, labels=("research",))
        yield lab
