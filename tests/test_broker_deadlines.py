"""Deadlines: what waits too long is cancelled, what does not wait never meets a timer, and nothing else changes."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from broker.deadlines import Overdue, within

pytestmark = pytest.mark.asyncio


async def test_what_never_waits_makes_no_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def answer() -> int:
        return 7

    def no_timer(_: float) -> None:
        raise AssertionError

    monkeypatch.setattr(asyncio, "timeout", no_timer)
    assert await within(0, answer()) == 7


async def test_what_waits_and_comes_in_time_gives_its_result() -> None:
    event = asyncio.Event()

    async def answer() -> str:
        await asyncio.sleep(0)
        await event.wait()
        return "late, but not too late"

    asyncio.get_running_loop().call_soon(event.set)
    assert await within(60, answer()) == "late, but not too late"


async def test_what_waits_too_long_is_cancelled_and_may_clean_up() -> None:
    cleaned: list[str] = []

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.append("up")

    with pytest.raises(Overdue):
        await within(0, forever())
    assert cleaned == ["up"]


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("error", [TimeoutError, ValueError, KeyboardInterrupt])
async def test_what_the_work_raises_comes_back_unchanged(error: type[BaseException], *, waits: bool) -> None:
    raised = error("its own")

    async def fail() -> None:
        if waits:
            await asyncio.sleep(0)
        raise raised

    with pytest.raises(error) as caught:
        await within(60, fail())
    assert caught.value is raised


async def test_who_cancels_the_caller_cancels_the_work() -> None:
    seen: list[BaseException] = []
    begun = asyncio.Event()

    async def work() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError as error:
            seen.append(error)
            raise

    task = asyncio.create_task(within(60, work()))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(seen) == 1


async def test_work_may_survive_a_cancellation_as_it_could_without_a_deadline() -> None:
    begun = asyncio.Event()

    async def stubborn() -> str:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
        return "done"

    async def plain(work: Callable[[], Awaitable[str]]) -> str:
        task = asyncio.ensure_future(work())
        await begun.wait()
        begun.clear()
        task.cancel()
        return await task

    assert await plain(stubborn) == await plain(lambda: within(60, stubborn())) == "done"
