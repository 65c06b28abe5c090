"""What is kept of issued certificates, as a Protocol: enough to put them on a CRL, no longer than they live."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, final

MAX_FALLEN = 65_536


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SvidRecord:
    """An issued certificate."""

    serial: str  # hex
    authority: str  # kid of the key that signed it
    subject: str
    issued_at_s: int
    expires_at_s: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class FallenSvid:
    """A certificate that lives on although its agent may not act: `state` and `judged_at_s` are the agent's."""

    serial: str
    authority: str
    state: str
    judged_at_s: int


class Svids(Protocol):
    def add(self, record: SvidRecord, *, now_s: int) -> None:
        """Keep it; drop what has expired."""

    def fallen(self, *, now_s: int) -> Sequence[FallenSvid]:
        """Unexpired certificates of agents that are not admitted, at most MAX_FALLEN, by serial."""

    def of(self, subject: str, *, now_s: int) -> Sequence[SvidRecord]:
        """An agent's unexpired certificates, by serial."""
