"""Threads for verification: every core, and a bounded queue.

Decides that evidence of strangers is proved beside the event loop, and how much of it may wait: what is more is refused
at once and told to come back, so that garbage takes neither memory nor the turn of agents whose platform is known. The
signatures release the interpreter's lock, which is why threads are enough.
"""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, ParamSpec, TypeVar, final

from broker import tracing
from broker.errors import BrokerCode, BrokerError

P = ParamSpec("P")
T = TypeVar("T")
MAX_WAITING: Final = 256  # of 8 MiB at most each, and of a few KiB as a rule
RETRY_S: Final = 1


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@final
class Pool:
    """Runs what takes long, some at a time, the rest in order."""

    def __init__(self, *, threads: int | None = None, most: int = MAX_WAITING) -> None:
        self.threads: Final = threads or cores()
        self._most = most
        self._executor = ThreadPoolExecutor(self.threads, thread_name_prefix="verify")
        self._inside = 0

    @property
    def inside(self) -> int:
        """What runs or waits now."""
        return self._inside

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `work` returns or raises. Raises BrokerError broker.busy when too much waits already."""
        if self._inside >= self._most:
            raise BrokerError(BrokerCode.BROKER_BUSY, f"{self._inside} wait", retry_after_s=RETRY_S)
        self._inside += 1
        loop = asyncio.get_running_loop()
        future = self._executor.submit(work, *args, **kwargs)
        future.add_done_callback(lambda _: self._done(loop))
        with tracing.part("prove") as span:
            span.say(waiting=self._inside)
            return await asyncio.wrap_future(future)

    def _done(self, loop: asyncio.AbstractEventLoop) -> None:
        """Counted where it ended, not where it was awaited: a caller who has gone frees no thread."""
        try:
            loop.call_soon_threadsafe(self._leave)
        except RuntimeError:  # the loop is closed: nobody counts any more
            self._inside = 0

    def _leave(self) -> None:
        self._inside -= 1

    def close(self) -> None:
        """Forget what waits; what runs ends by itself."""
        self._executor.shutdown(wait=False, cancel_futures=True)
