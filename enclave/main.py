"""`agent.run()`: one agent in one process, from the environment that `cloister run` prepared, until a signal.

Decides where the trust domain, the broker's address and the trust file come from, and how the process ends: 0 after a
signal, 1 when the broker refuses, 2 when something is not set up, 4 when nobody could judge.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Final, Protocol

import httpx2

from attestation.errors import CloisterError
from attestation.ports import TrustDomain
from attestation.verdict import Verdict
from enclave.domain import RemoteDomain
from enclave.errors import AgentError, BrokerRefused, Code, EnclaveError, TransportFailed
from enclave.trustfile import TrustFile

BROKER_VARIABLE: Final = "CLOISTER_BROKER"
TRUST_VARIABLE: Final = "CLOISTER_TRUST_FILE"
log: Final = logging.getLogger("cloister.agent")


class Runnable(Protocol):
    """What this file needs of an `enclave.agent.Agent`."""

    name: str

    async def start(
        self,
        *,
        domain: TrustDomain,
        trust: TrustFile,
        broker_url: str,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> Verdict: ...

    async def wait(self) -> None: ...

    async def stop(self) -> None: ...


def run_agent(agent: Runnable) -> None:
    """Does not return on failure."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="cloister: %(message)s")
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    try:
        domain, trust, broker_url = _surroundings()
        asyncio.run(_run(agent, domain, trust, broker_url))
    except BrokerRefused as refusal:
        _end(1, refusal)
    except TransportFailed as error:
        _end(4, error)
    except EnclaveError as error:
        _end(2, error)
    except CloisterError as error:  # evidence, or something received, that is wrong
        _end(1, error)


def _surroundings() -> tuple[TrustDomain, TrustFile, str]:
    domain = RemoteDomain.inherited()
    if domain is None:
        raise AgentError(Code.AGENT_UNCONFIGURED, "no launcher left a trust domain for this process")
    trust = TrustFile.load(Path(os.environ.get(TRUST_VARIABLE, "")))
    broker_url = os.environ.get(BROKER_VARIABLE) or trust.broker_url
    if not broker_url:
        raise AgentError(Code.AGENT_UNCONFIGURED, f"no broker: neither {BROKER_VARIABLE} nor the trust file names one")
    return domain, trust, broker_url


async def _run(agent: Runnable, domain: TrustDomain, trust: TrustFile, broker_url: str) -> None:
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    stopping = asyncio.create_task(stopped.wait())
    starting = asyncio.create_task(agent.start(domain=domain, trust=trust, broker_url=broker_url))
    await asyncio.wait({stopping, starting}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        return
    try:
        verdict = starting.result()
        kind = "SIMULATED, protects nothing" if domain.simulated else "Intel TDX"
        log.info("%s runs as %s (%s, TCB %s)", agent.name, verdict.subject, kind, verdict.tcb_status)
        running = asyncio.create_task(agent.wait())
        await asyncio.wait({stopping, running}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
    finally:
        stopping.cancel()
        await agent.stop()


def _end(status: int, error: CloisterError) -> None:
    said = str(error)
    if error.remedy and error.remedy not in said:
        said += f"\n  what to do: {error.remedy}"
    print(f"cloister: {said}", file=sys.stderr)
    raise SystemExit(status)
