"""Wakes whoever waits for mail, in this process."""

import asyncio
import contextlib
from typing import final


@final
class Bell:
    """One bell for each mailbox that somebody waits at."""

    def __init__(self) -> None:
        self._waiting: dict[str, asyncio.Event] = {}
        self.stopping = False

    def ring(self, mailbox: str) -> None:
        event = self._waiting.pop(mailbox, None)
        if event is not None:
            event.set()

    def listen(self, mailbox: str) -> asyncio.Event:
        """Set when somebody rings from now on: listen, look, then wait with `rings`, and no ring is missed."""
        return self._waiting.setdefault(mailbox, asyncio.Event())

    @staticmethod
    async def rings(event: asyncio.Event, timeout_s: float) -> None:
        """Until it is set, or the time is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await event.wait()

    async def wait(self, mailbox: str, timeout_s: float) -> None:
        """Until somebody rings, or the time is over."""
        event = self._waiting.setdefault(mailbox, asyncio.Event())
        try:
            async with asyncio.timeout(timeout_s):
                await event.wait()
        except TimeoutError:
            if self._waiting.get(mailbox) is event:
                del self._waiting[mailbox]
                event.set()  # whoever else waits looks for himself

    def stop(self) -> None:
        """Send everybody home: the broker is stopping."""
        self.stopping = True
        for mailbox in list(self._waiting):
            self.ring(mailbox)
