"""Issued certificates in memory, for the store that forgets with its process."""

from collections.abc import Callable, Sequence
from typing import final

from broker.ports import AgentRecord, AgentState
from broker.ports.svids import MAX_FALLEN, FallenSvid, SvidRecord
from broker.store.undo import Table, Undo


@final
class MemorySvids:
    def __init__(self, undo: Undo, agent: Callable[[str], AgentRecord | None]) -> None:
        self._rows: Table[str, SvidRecord] = Table(undo)
        self._agent = agent

    def add(self, record: SvidRecord, *, now_s: int) -> None:
        for serial in [row.serial for row in self._rows.rows.values() if row.expires_at_s < now_s]:
            self._rows.drop(serial)
        self._rows.put(record.serial, record)

    def fallen(self, *, now_s: int) -> Sequence[FallenSvid]:
        found: list[FallenSvid] = []
        for serial, row in sorted(self._rows.rows.items()):
            agent = self._agent(row.subject)
            if agent is None or agent.state is AgentState.ADMITTED or row.expires_at_s < now_s:
                continue
            found.append(
                FallenSvid(
                    serial=serial, authority=row.authority, state=str(agent.state), judged_at_s=agent.judged_at_s
                )
            )
        return found[:MAX_FALLEN]

    def of(self, subject: str, *, now_s: int) -> Sequence[SvidRecord]:
        rows = sorted(self._rows.rows.items())
        return [row for _, row in rows if row.subject == subject and row.expires_at_s >= now_s]
