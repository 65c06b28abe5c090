"""The pytest plugin: a simulated machine, a trust domain, collateral, a clock and a broker as fixtures.

Decides what a test of an agent gets without hardware. Loaded in every pytest run where Cloister is installed, so it
imports nothing before a fixture is asked for, and no fixture is automatic. Every test has a machine of its own, made
from the same seed: the same keys and measurements each time, and nothing left over from the test before.

    tdx_machine    a simulated machine in memory, `simulator.machine.Machine`
    trust_domain   a fresh trust domain on it, what `Agent.start` and sessions want
    collateral     what its quotes are verified with now
    clock          the machine's clock: the wall clock until it is moved; the broker follows it
    broker         a broker in this process that trusts this machine alone, `simulator.broker_fixture.BrokerUnderTest`
    agent          starts agents of yours: `agent(mine)`, `simulator.agent_fixture.AgentUnderTest`
    peer           an agent that does what the test says, `simulator.agent_fixture.Peer`
    hostile_agent  one that also does what no agent should, `simulator.hostile.HostileAgent`

Real TDX hardware can be ruled out: `cloister_allow_real_tdx = false` in pytest's configuration, or in a conftest
`enclave.tdx.ALLOW_REAL_TDX = False`. Strategies for hypothesis are in `simulator.strategies`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from attestation.collateral import Collateral
    from enclave.agent import Agent
    from simulator.agent_fixture import Agents, AgentUnderTest, Peer
    from simulator.broker_fixture import BrokerUnderTest
    from simulator.clock import Clock
    from simulator.domain import SimulatedTd
    from simulator.hostile import HostileAgent
    from simulator.machine import Machine

SEED: Final = "cloister pytest plugin"
REAL_TDX_OPTION: Final = "cloister_allow_real_tdx"
REAL_TDX_VARIABLE: Final = "CLOISTER_ALLOW_REAL_TDX"


def pytest_addoption(parser: pytest.Parser) -> None:
    text = "Whether code under test may use the TDX hardware of this machine (default: true)."
    parser.addini(REAL_TDX_OPTION, text, type="bool", default=True)


def pytest_configure(config: pytest.Config) -> None:
    """Forbid hardware where the configuration says so, in this process and in those that tests start."""
    if not config.getini(REAL_TDX_OPTION):
        os.environ[REAL_TDX_VARIABLE] = "0"
        loaded = sys.modules.get("enclave.tdx")
        if loaded is not None:
            loaded.ALLOW_REAL_TDX = False  # type: ignore[attr-defined]  # a module seen as a bare ModuleType


@pytest.fixture
def tdx_machine() -> Machine:
    """A simulated machine in memory: two platforms with TDX, one without, its own root."""
    from simulator.machine import Machine

    return Machine.create(seed=SEED)


@pytest.fixture
def clock(tdx_machine: Machine) -> Clock:
    """`now()`, `set(at)`, `advance(by)`, `run()`, `reset()`."""
    return tdx_machine.clock


@pytest.fixture
def trust_domain(tdx_machine: Machine) -> SimulatedTd:
    """A trust domain that has just booted: RTMR3 is zero."""
    return tdx_machine.launch("pytest")


@pytest.fixture
def collateral(tdx_machine: Machine) -> Collateral:
    """For the quotes of `trust_domain`, as of now. After moving the clock ask `tdx_machine.collateral()` again."""
    return tdx_machine.collateral()


@pytest.fixture
def broker(tdx_machine: Machine, tmp_path: Path) -> Iterator[BrokerUnderTest]:
    """A real broker on the loopback interface that trusts `tdx_machine` alone, with the lab's policy.

    Needs the extras `broker` and `enclave`. For another policy make a `BrokerUnderTest` with `bundle=` yourself.
    """
    from simulator.broker_fixture import BrokerUnderTest

    with BrokerUnderTest(tdx_machine, tmp_path / "broker") as running:
        yield running


@pytest.fixture
def _agents(broker: BrokerUnderTest) -> Iterator[Agents]:
    """The thread in which the agents of this test live."""
    from simulator.agent_fixture import Agents

    with Agents(broker) as running:
        yield running


@pytest.fixture
def agent(_agents: Agents) -> Callable[..., AgentUnderTest]:
    """Start an agent of yours: `agent(mine)`, or `agent(mine, domain=…)` in a trust domain that you made.

    It attests to `broker` and runs until the test is over. Raises BrokerRefused when it is not admitted.
    """

    def start(mine: Agent, *, domain: SimulatedTd | None = None) -> AgentUnderTest:
        return _agents.start(mine, domain=domain)

    return start


@pytest.fixture
def peer(_agents: Agents, tdx_machine: Machine) -> Peer:
    """An attested agent that does what the test says: `ask`, `send`, `stream`, `tool`, `secret`, `listen`."""
    from enclave.agent import Agent
    from simulator.agent_fixture import Peer

    return _agents.add(Peer(_agents, Agent("peer"), tdx_machine.launch("peer")))


@pytest.fixture
def hostile_agent(_agents: Agents, tdx_machine: Machine) -> HostileAgent:
    """A peer that forges, replays, misdelivers and steals: `attack(victim)`, or one attempt at a time."""
    from enclave.agent import Agent
    from simulator.hostile import HostileAgent

    return _agents.add(HostileAgent(_agents, Agent("hostile"), tdx_machine.launch("hostile")))
