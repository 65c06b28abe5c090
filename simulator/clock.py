"""A clock in your hand: the wall clock until somebody moves it.

Decides what time the pretend Intel and its platforms think it is. `advance` shifts a running clock, which keeps
running; `set` stops it at a moment, until `advance` or `set` move it again or `run` lets it go on from there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Self, final

FIRST_S: Final = 946_684_800
"""2000-01-01: before it no certificate is valid."""
LAST_S: Final = 4_102_444_799
"""2099-12-31: far beyond every certificate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockState:
    """`stopped_at_s` is a Unix time, or None while the clock runs `shift_s` seconds ahead of the wall clock."""

    shift_s: float = 0.0
    stopped_at_s: float | None = None

    def read(self) -> float:
        return time.time() + self.shift_s if self.stopped_at_s is None else self.stopped_at_s

    def to_dict(self) -> dict[str, float | None]:
        return {"shift_s": self.shift_s, "stopped_at_s": self.stopped_at_s}

    @classmethod
    def from_dict(cls, values: dict[str, float | None]) -> Self:
        """Raises KeyError, TypeError, ValueError when this is no clock."""
        shift, stopped = values["shift_s"], values["stopped_at_s"]
        if not isinstance(shift, int | float) or not isinstance(stopped, int | float | None):
            raise ValueError("a clock has two numbers")
        return cls(shift_s=float(shift), stopped_at_s=None if stopped is None else float(stopped))


@final
class Clock:
    """The clock of one machine, shared by all who opened its folder."""

    def __init__(self, load: Callable[[], ClockState], change: Callable[[Callable[[ClockState], ClockState]], None]):
        self._load = load
        self._change = change

    def now(self) -> datetime:
        """Aware, UTC."""
        return datetime.fromtimestamp(self.time(), UTC)

    def time(self) -> float:
        """Unix seconds."""
        return self._load().read()

    @property
    def moved(self) -> bool:
        """False: this is the wall clock."""
        return self._load() != ClockState()

    def set(self, at: datetime | float) -> None:
        """Stop the clock at a moment: an aware datetime or Unix seconds. Raises TypeError, ValueError."""
        moment = _bounded(seconds(at))
        self._change(lambda _: ClockState(stopped_at_s=moment))

    def advance(self, by: timedelta | float) -> None:
        """Move the clock, back when `by` is negative; a running clock keeps running. Seconds or a timedelta."""
        step = by.total_seconds() if isinstance(by, timedelta) else float(by)

        def moved(state: ClockState) -> ClockState:
            _bounded(state.read() + step)
            if state.stopped_at_s is None:
                return ClockState(shift_s=state.shift_s + step)
            return ClockState(stopped_at_s=state.stopped_at_s + step)

        self._change(moved)

    def run(self) -> None:
        """Let a stopped clock go on from where it stands."""
        self._change(lambda state: ClockState(shift_s=state.read() - time.time()))

    def reset(self) -> None:
        """Be the wall clock again."""
        self._change(lambda _: ClockState())


def seconds(at: datetime | float) -> float:
    """Unix seconds. Raises TypeError for a datetime without a time zone."""
    if isinstance(at, datetime):
        if at.tzinfo is None:
            raise TypeError("a time needs a time zone")
        return at.timestamp()
    return float(at)


def _bounded(moment: float) -> float:
    if not FIRST_S <= moment <= LAST_S:
        raise ValueError(f"the clock goes from {FIRST_S} (2000) to {LAST_S} (2099), not to {moment:.0f}")
    return moment
