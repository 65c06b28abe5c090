"""Deadlines that cost nothing where nobody waits.

Decides how a coroutine is held to its time: most requests are answered without waiting for anything, and for them no
timer is made. How long something may take is decided by whoever asks.
"""

import asyncio
import types
from collections.abc import Coroutine, Generator
from typing import Any, TypeVar

T = TypeVar("T")


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
