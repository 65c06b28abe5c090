"""Time that does not run backwards.

Decides that the broker judges nothing while its clock is behind what its own log has recorded: a host that turns the
clock back could otherwise make expired evidence fresh again. Small steps back, as time services do them, are smoothed.
"""

from datetime import UTC, datetime, timedelta
from typing import Final, final

from broker.errors import BrokerCode, BrokerError
from broker.ports import Clock

MAX_STEP_BACK: Final = timedelta(seconds=30)


def wall_clock() -> datetime:
    """The machine's own time, aware, UTC."""
    return datetime.now(UTC)


@final
class SteadyClock:
    """A clock that never shows less than it has shown, nor than `floor`."""

    def __init__(self, clock: Clock, floor: datetime | None = None) -> None:
        self._clock = clock
        self._floor = floor or datetime.fromtimestamp(0, UTC)

    def __call__(self) -> datetime:
        """Raises BrokerError clock.behind."""
        found = self._clock()
        if found >= self._floor:
            self._floor = found
        elif self._floor - found > MAX_STEP_BACK:
            detail = f"the clock shows {found.isoformat()}, the log or an answer said {self._floor.isoformat()}"
            raise BrokerError(BrokerCode.CLOCK_BEHIND, detail)
        return self._floor
