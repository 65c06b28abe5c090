"""Mailboxes in memory and in SQLite, and what goes through them."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.broker_world import World
from tests.mail_world import BOX, Receiver, Sender, make

Maker = Callable[..., Awaitable[World]]


@pytest_asyncio.fixture(params=["memory", "sqlite"])
async def maker(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Maker]:
    made: list[World] = []

    async def build(**how: Any) -> World:
        made.append(await make(tmp_path, database=request.param == "sqlite", **how))
        return made[-1]

    yield build
    for world in made:
        await world.broker.close()


async def pair(world: World) -> tuple[Sender, Receiver]:
    a, b = await world.admitted("a"), Receiver(await world.admitted("b"))
    await b.publish()
    return await Sender.to(a), b


def waiting(world: World) -> int:
    return world.broker.store.read(lambda tx: tx.mail.waiting(BOX))
