"""Openings of channels that cannot be judged yet: tried again at leisure, a few of each sender.

Decides how long to wait. What keeps an opening from being judged (no list of the fallen, a token that has just ended)
passes or it does not; each trial costs as much as a message, so a sender whose openings never pass must not be able to
have thousands of them tried with every delivery. The first trials come a second apart, as redelivered batches do; later
ones further and further. What had to go is not opened any more: its batches become dead letters, which their sender
hears of.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, final

from attestation.errors import CloisterError
from broker.wire import stream_pb2 as pb
from broker.wire.envelope import Envelope, Header

MAX_OPENINGS: Final = 256
MAX_OF_SENDER: Final = 16
EARLY: Final = 4  # trials a second apart
MAX_PAUSE_S: Final = 32.0


@final
@dataclass(slots=True)
class _Pending:
    opening: pb.StreamOpening
    sender: str
    tries: int
    not_before_s: float


@final
class Openings:
    """Those of one connection. `admit` says whether an opening has been judged, for or against it."""

    def __init__(self) -> None:
        self._pending: list[_Pending] = []

    def __len__(self) -> int:
        return len(self._pending)

    def keep(self, opening: pb.StreamOpening, now_s: float) -> None:
        """It was tried once. Of a sender with too many, and of the one with the most, the oldest goes."""
        sender = _sender(opening)
        self._pending.append(_Pending(opening, sender, 0, now_s + _pause_s(0)))
        own = [one for one in self._pending if one.sender == sender]
        if len(own) > MAX_OF_SENDER:
            self._pending.remove(own[0])
        elif len(self._pending) > MAX_OPENINGS:
            counts: dict[str, int] = {}
            for one in self._pending:
                counts[one.sender] = counts.get(one.sender, 0) + 1
            most = max(counts, key=counts.__getitem__)
            self._pending.remove(next(one for one in self._pending if one.sender == most))

    def retry(self, admit: Callable[[pb.StreamOpening], bool], now_s: float) -> None:
        """Those whose time has come."""
        left: list[_Pending] = []
        for one in self._pending:
            if now_s >= one.not_before_s:
                if admit(one.opening):
                    continue
                one.tries += 1
                one.not_before_s = now_s + _pause_s(one.tries)
            left.append(one)
        self._pending = left


def _pause_s(tries: int) -> float:
    return min(2.0 ** max(0, tries - EARLY + 1), MAX_PAUSE_S)


def _sender(opening: pb.StreamOpening) -> str:
    """As the broker has compared it. An opening that cannot be read counts as nobody's."""
    try:
        return Header.from_bytes(Envelope.from_bytes(opening.envelope).header).sender
    except CloisterError:
        return ""
