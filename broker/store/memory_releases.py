"""Who got what, and leases, in memory: the twin of sql_releases.py."""

from collections.abc import Callable, Sequence
from typing import final

from broker.ports import AgentRecord, AgentState
from broker.ports.releases import FactKind, Lease, Released, key_of
from broker.store.undo import Table, Undo


@final
class MemoryReleases:
    def __init__(self, undo: Undo, agent: Callable[[str], AgentRecord | None]) -> None:
        self._agent = agent
        self._rows: Table[int, Released] = Table(undo)
        self._facts: Table[str, frozenset[tuple[FactKind, str]]] = Table(undo)
        self._leases: Table[tuple[str, int, str], Lease] = Table(undo)

    def record(self, released: Released, facts: Sequence[tuple[FactKind, str]]) -> None:
        if self._facts.get(key_of(released.ground)) is None:
            self._facts.put(key_of(released.ground), frozenset(facts))
        self._rows.put(released.entry, released)

    def page(
        self,
        *,
        tenant: str | None = None,
        name: str | None = None,
        subject: str | None = None,
        fact: tuple[FactKind, str] | None = None,
        after: int = -1,
        limit: int = 100,
    ) -> Sequence[Released]:
        found = [
            row
            for entry, row in sorted(self._rows.rows.items())
            if entry > after
            and name in (None, row.name)
            and subject in (None, row.subject)
            and (tenant is None or row.name.startswith(f"{tenant}/"))
            and (fact is None or fact in (self._facts.get(key_of(row.ground)) or ()))
        ]
        return found[:limit]

    def facts(self, ground: str) -> Sequence[tuple[FactKind, str]]:
        return sorted(self._facts.get(key_of(ground)) or ())

    def lease(self, name: str, version: int, subject: str) -> Lease | None:
        return self._leases.get((name, version, subject))

    def put_lease(self, lease: Lease) -> None:
        self._leases.put((lease.name, lease.version, lease.subject), lease)

    def _open(self) -> list[Lease]:
        return [lease for _, lease in sorted(self._leases.rows.items()) if not lease.closed]

    def leases(self, *, tenant: str | None = None, after: str = "", limit: int = 100) -> Sequence[Lease]:
        found = [x for x in self._open() if x.name > after and (tenant is None or x.name.startswith(f"{tenant}/"))]
        names = sorted({lease.name for lease in found})[:limit]
        return [lease for lease in found if lease.name in names]

    def lent(self, subject: str) -> bool:
        return any(lease.subject == subject for lease in self._open())

    def forget(self, subject: str) -> None:
        for key, lease in list(self._leases.rows.items()):
            if lease.subject == subject and lease.closed:
                self._leases.drop(key)

    def ended(self, *, now_s: int, limit: int) -> Sequence[Lease]:
        return [lease for lease in self._open() if lease.ends_at_s <= now_s or not self._admitted(lease)][:limit]

    def _admitted(self, lease: Lease) -> bool:
        agent = self._agent(lease.subject)
        return agent is None or agent.state is AgentState.ADMITTED  # guests over KBS are no agents
