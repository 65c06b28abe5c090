"""What tests of whole agents share: a question and its answer, agents on a machine, and an end to their patience."""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from enclave import Agent
from simulator.broker_fixture import BrokerUnderTest

T = TypeVar("T")
PATIENCE_S = 30.0


@dataclass
class Ask:
    number: int


@dataclass
class Reply:
    number: int


async def start(world: BrokerUnderTest, *agents: Agent) -> None:
    """Each in a trust domain of its own on the broker's machine."""
    for agent in agents:
        await agent.start(domain=world.machine.launch(agent.name), trust=world.trust, broker_url=world.url)


def run(story: Coroutine[Any, Any, T]) -> T:
    """A story to its end, or TimeoutError."""
    return asyncio.run(asyncio.wait_for(story, PATIENCE_S))
