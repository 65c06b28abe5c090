"""The agent's time: what the broker signed together with the agent's own nonce, carried on by the monotonic clock.

The host owns a trust domain's wall clock and can set it to anything; it is never asked. Before the first statement
there is no time, and `now_s` says so by raising. Time never runs backwards: an older statement is ignored.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import final

from enclave.errors import AgentError, Code


@final
class BrokerTime:
    """Seconds since 1970 by the broker's statements. `monotonic` is a parameter so that tests can let time pass."""

    __slots__ = ("_at_s", "_monotonic", "_since_s")

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._at_s: float | None = None
        self._since_s = 0.0

    def learn(self, at_s: int) -> None:
        """Take over a signed statement that answers this agent's nonce."""
        now = self._monotonic()
        if self._at_s is None or at_s > self._at_s + now - self._since_s:
            self._at_s, self._since_s = float(at_s), now

    @property
    def known(self) -> bool:
        """Whether a broker has told the time."""
        return self._at_s is not None

    def now_s(self) -> float:
        if self._at_s is None:
            raise AgentError(Code.AGENT_NOT_RUNNING, "no broker has told the time yet")
        return self._at_s + self._monotonic() - self._since_s

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.now_s(), UTC)

    def now_ms(self) -> int:
        return int(self.now_s() * 1000)


def uuid7(now_ms: int) -> bytes:
    """RFC 9562 §5.7: 48 bits of milliseconds, then random bits."""
    number = (now_ms & (2**48 - 1)) << 80 | int.from_bytes(os.urandom(10), "big")
    number = number & ~(0xF << 76) | 0x7 << 76
    number = number & ~(0x3 << 62) | 0x2 << 62
    return uuid.UUID(int=number).bytes
