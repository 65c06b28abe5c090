"""Agents on their way into a broker, with evidence that is good or changed."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from tests.broker_world import World


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = await World.make(tmp_path)
    yield made
    await made.broker.close()
