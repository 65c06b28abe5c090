"""Channels of the store in memory; the same contract as sql_channels.py."""

from collections.abc import Sequence
from dataclasses import replace
from typing import final

from broker.ports.channels import ChannelRecord
from broker.store.undo import Table, Undo


@final
class MemoryChannels:
    """`broker.ports.channels.ChannelRows` in a dict."""

    def __init__(self, undo: Undo) -> None:
        self._rows: Table[bytes, ChannelRecord] = Table(undo)

    def get(self, channel: bytes) -> ChannelRecord | None:
        found = self._rows.get(channel)
        return None if found is None else replace(found, opening=b"")

    def of(self, sender: str, mailbox: str) -> Sequence[bytes]:
        return [row.channel for row in self._rows.rows.values() if (row.sender, row.mailbox) == (sender, mailbox)]

    def last(self, sender: str) -> int:
        return max((row.until_ms for row in self._rows.rows.values() if row.sender == sender), default=0)

    def drop(self, channel: bytes) -> None:
        self._rows.drop(channel)

    def open(self, record: ChannelRecord) -> None:
        for old in [row.channel for row in self._rows.rows.values() if row.until_ms < record.accepted_at_ms]:
            self._rows.drop(old)
        self._rows.put(record.channel, record)

    def advance(self, record: ChannelRecord) -> None:
        found = self._rows.get(record.channel)
        if found is not None:
            self._rows.put(record.channel, replace(record, opening=found.opening))

    def opening(self, channel: bytes) -> tuple[bytes, int] | None:
        found = self._rows.get(channel)
        return None if found is None else (found.opening, found.accepted_at_ms)
