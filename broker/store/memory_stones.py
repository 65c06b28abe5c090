"""Tombstones of the store in memory; the same contract as sql_stones.py."""

from collections.abc import Sequence
from dataclasses import replace
from typing import final

from broker.ports.mail import MAX_STONES, NO_LIMIT, TombstoneRecord
from broker.store.turns import beyond
from broker.store.undo import Table, Undo


@final
class MemoryStones:
    """The part of `broker.ports.mail.Mail` that is about tombstones."""

    def __init__(self, undo: Undo) -> None:
        self._stones: Table[int, TombstoneRecord] = Table(undo)
        self._forgotten: Table[tuple[str, str], tuple[int, int]] = Table(undo)
        self._next = 0

    def bury(self, *tombstones: TombstoneRecord, most: int = MAX_STONES) -> None:
        for stone in tombstones:
            self._next += 1
            self._stones.put(self._next, replace(stone, number=self._next))
        for mailbox, at_ms in {stone.mailbox: stone.at_ms for stone in tombstones}.items():
            rows = sorted((n, 0, stone.sender) for n, stone in self._stones.rows.items() if stone.mailbox == mailbox)
            for number in beyond(rows, most - most // 16, NO_LIMIT) if len(rows) > most else ():
                lane = (mailbox, self._stones.rows[number].sender)
                self._forgotten.put(lane, ((self._forgotten.get(lane) or (0, 0))[0] + 1, at_ms))
                self._stones.drop(number)

    def tombstones(
        self, mailbox: str, *, sender: str | None = None, after: int = 0, limit: int = 100
    ) -> Sequence[TombstoneRecord]:
        found = [
            stone
            for number, stone in sorted(self._stones.rows.items())
            if stone.mailbox == mailbox and number > after and sender in (None, stone.sender)
        ]
        return found[:limit]

    def forgotten(self, mailbox: str, *, sender: str | None = None) -> int:
        rows = self._forgotten.rows.items()
        return sum(stones for (box, who), (stones, _) in rows if box == mailbox and sender in (None, who))

    def expire(self, before_ms: int) -> None:
        """Those from before that moment are of no interest to anybody."""
        for number, stone in list(self._stones.rows.items()):
            if stone.at_ms < before_ms:
                self._stones.drop(number)
        for lane, (_, at_ms) in list(self._forgotten.rows.items()):
            if at_ms < before_ms:
                self._forgotten.drop(lane)
