"""`agent.run()`: one agent in one process, from the environment that `cloister run` prepared, until a signal.

Decides where the trust domain, the broker's address and the trust file come from, and how the process ends: 0 after a
signal or `agent.end()`, 1 when the broker refuses or the author's own code fails, 2 when something is not set up, 4
when nobody could judge. `made` and `started` name this process's agents: a file that forgets `agent.run()` is told so.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import urlsplit

import httpx2

from attestation.errors import CloisterError
from attestation.ports import TrustDomain
from attestation.verdict import Verdict
from broker.wire.heap import keep_freed
from enclave.domain import RemoteDomain
from enclave.errors import AgentError, BrokerRefused, Code, EnclaveError, TransportFailed
from enclave.telling import follow_up, full, place, show_everything, told
from enclave.tools import ToolDescription
from enclave.trustfile import TrustFile

BROKER_VARIABLE: Final = "CLOISTER_BROKER"
TRUST_VARIABLE: Final = "CLOISTER_TRUST_FILE"
DESCRIBE_VARIABLE: Final = "CLOISTER_DESCRIBE"
log: Final = logging.getLogger("cloister.agent")
made: Final[set[str]] = set()
started: Final[set[str]] = set()


class Runnable(Protocol):
    """What this file needs of an `enclave.agent.Agent`."""

    name: str

    @property
    def tools(self) -> Mapping[str, ToolDescription]: ...

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
    """Does not return on failure. Where only the tools are to be described, it says what they are and runs nothing."""
    if os.environ.get(DESCRIBE_VARIABLE):
        started.add(agent.name)
        print(described(agent.tools))
        return
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="cloister: %(message)s")
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    started.add(agent.name)
    keep_freed()
    try:
        domain, trust, broker_url = _surroundings()
        asyncio.run(_run(agent, domain, trust, broker_url))
    except BrokerRefused as refusal:
        _end(1, refusal)
    except TransportFailed as error:
        _end(4, error)
    except EnclaveError as error:
        _end(1 if error.code is Code.AGENT_HOOK else 2, error)
    except CloisterError as error:  # evidence, or something received, that is wrong
        _end(1, error)
    except Exception as error:  # noqa: BLE001  an author's on_start may raise anything; its text may quote what it read
        print(f"cloister: {agent.name} ends: {told(error)}", file=sys.stderr)
        follow_up(error)
        raise SystemExit(1) from None


def described(tools: Mapping[str, ToolDescription]) -> str:
    """Tools as MCP lists them, and the digests that callers pin."""
    ordered = sorted(tools.items())
    members = {
        "tools": [tool.to_mcp() for _, tool in ordered],
        "digests": {name: tool.digest for name, tool in ordered},
    }
    return json.dumps(members, indent=2, ensure_ascii=False)


def failed(error: Exception) -> int:
    """The agent's file itself failed, before any agent of it ran; its exit status."""
    if isinstance(error, CloisterError):
        print(f"cloister: {error}{_where(error)}", file=sys.stderr)
        return 2
    print(full(error), file=sys.stderr)
    if isinstance(error, ModuleNotFoundError):
        print(
            f"cloister: the copy that runs has no {error.name}: an agent brings its own files, and the packages that "
            'its first lines name (# /// script, # dependencies = ["…"], # ///)',
            file=sys.stderr,
        )
    return 1


def ended() -> int:
    """The agent's file came to its end; its exit status."""
    if not made or started:
        return 0
    print(
        f"cloister: {', '.join(sorted(made))} was made and never ran: end the file with `agent.run()`", file=sys.stderr
    )
    return 2


def _surroundings() -> tuple[TrustDomain, TrustFile, str]:
    domain = RemoteDomain.inherited()
    if domain is None:
        raise AgentError(Code.AGENT_UNCONFIGURED, "no launcher left a trust domain for this process")
    trust = TrustFile.load(Path(os.environ.get(TRUST_VARIABLE, "")))
    broker_url = os.environ.get(BROKER_VARIABLE) or trust.broker_url
    if not broker_url:
        raise AgentError(Code.AGENT_UNCONFIGURED, f"no broker: neither {BROKER_VARIABLE} nor the trust file names one")
    return domain, trust, address(broker_url)


def address(url: str) -> str:
    """It, if a broker can be at it: nothing is asked for again and again that can't be asked for once.

    Raises AgentError agent.unconfigured.
    """
    with suppress(ValueError):
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return url
    remedy = "Write http://HOST:PORT or https://HOST, as in the broker's public_url."
    raise AgentError(Code.AGENT_UNCONFIGURED, f"{url[:200]!a} is not the address of a broker", remedy)


async def _run(agent: Runnable, domain: TrustDomain, trust: TrustFile, broker_url: str) -> None:
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    if domain.simulated:
        show_everything()
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
        else:
            log.info("%s stops: what it is doing may end, for some seconds", agent.name)
    finally:
        stopping.cancel()
        await agent.stop()


def _end(status: int, error: CloisterError) -> None:
    said = str(error)
    if error.remedy and error.remedy not in said:
        said += f"\n  what to do: {error.remedy}"
    print(f"cloister: {said}{_where(error)}", file=sys.stderr)
    raise SystemExit(status)


def _where(error: CloisterError) -> str:
    """The line of the author's that led to it, where there is one."""
    found = place(error)
    return f"\n {found}" if found else ""
