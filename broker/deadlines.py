"""Deadlines that cost nothing where nobody waits, and acts that go on when nobody waits any more.

Decides how a coroutine is held to its time: most requests are answered without waiting for anything, and for them no
timer is made. How long something may take, and what must not be left half done, is decided by whoever asks.
"""

import asyncio
import types
from collections.abc import Coroutine, Generator
from typing import Any, Final, TypeVar

T = TypeVar("T")
_finishing: Final[set[asyncio.Task[Any]]] = set()  # a loop alone does not keep its tasks


class Overdue(Exception):
    """It took longer than it may, and was cancelled. A TimeoutError of its own making is something else."""


async def within(seconds: float, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns or raises. Raises Overdue when it waits for longer than that."""
    try:
        first = work.send(None)
    except StopIteration as done:
        found: T = done.value
        return found
    try:
        async with asyncio.timeout(seconds) as deadline:
            return await _rest(work, first)
    except TimeoutError:
        if deadline.expired():
            raise Overdue from None
        raise


async def to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns or raises. Whoever waits may be cancelled; the work is not: what it has begun it finishes."""
    task = asyncio.get_running_loop().create_task(work)
    _finishing.add(task)
    task.add_done_callback(_finishing.discard)
    return await asyncio.shield(task)


@types.coroutine
def _rest(work: Coroutine[Any, Any, T], first: Any) -> Generator[Any, Any, T]:
    """The rest of a coroutine that already waits for `first`."""
    awaited = first
    try:
        while True:
            try:
                given = yield awaited
            except GeneratorExit:
                work.close()
                raise
            except BaseException as error:  # noqa: BLE001  # cancellation above all: it is for the work to see
                awaited = work.throw(error)
            else:
                awaited = work.send(given)
    except StopIteration as done:
        found: T = done.value
        return found
