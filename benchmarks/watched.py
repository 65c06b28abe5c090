"""`cloister lab` with its store watched: rows written, commits, and where the writer's time goes.

    python -m benchmarks.watched COUNTERS [--unsynced] --json --dir …

Decides nothing about the broker, which is the lab's as it stands; with `--unsynced` alone its database is not synced
for each commit but only when the log of writes is carried over. No setting of a broker does that. The numbers stand in
a file that other processes look at while the broker runs.
"""

import mmap
import sqlite3
import struct
import sys
import time
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Final, Self

UNSYNCED: Final = "--unsynced"
_NUMBERS: Final = struct.Struct("<qqdd")


@dataclass(frozen=True, slots=True)
class Counters:
    """Since the broker began: commits, rows inserted, updated or deleted (triggers' too), seconds spent on statements
    and seconds spent on commits."""

    commits: int = 0
    rows: int = 0
    working: float = 0.0
    committing: float = 0.0

    @classmethod
    def read(cls, path: Path) -> Self:
        return cls(*_NUMBERS.unpack(path.read_bytes()))

    def since(self, before: "Counters") -> "Counters":
        return Counters(*(now - then for now, then in zip(astuple(self), astuple(before), strict=True)))


class _Watch:
    """What the writer's thread tells at its named points."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(_NUMBERS.size))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _NUMBERS.size)
        self.writer: sqlite3.Connection | None = None
        self._commits, self._working, self._committing = 0, 0.0, 0.0
        self._at = 0.0

    def __call__(self, point: str) -> None:
        now = time.perf_counter()
        if point == "store.signed":
            self._working += now - self._at
        elif point == "store.committed":
            self._commits += 1
            self._committing += now - self._at
            rows = self.writer.total_changes if self.writer is not None else 0
            _NUMBERS.pack_into(self._map, 0, self._commits, rows, self._working, self._committing)
        if point != "store.worked":
            self._at = now


def main(arguments: list[str]) -> int:
    """The lab's main, watched."""
    from broker.points import set_hook
    from broker.store.sql import SqlStore
    from simulator import lab

    watch = _Watch(Path(arguments.pop(0)))
    unsynced = UNSYNCED in arguments
    connect = SqlStore._connect

    def watched(store: SqlStore) -> sqlite3.Connection:
        connection = connect(store)
        if unsynced:
            connection.execute("PRAGMA synchronous = NORMAL")
        watch.writer = watch.writer or connection  # the first that a store opens
        return connection

    SqlStore._connect = watched  # type: ignore[method-assign, assignment]  # the benchmark alone looks in here
    set_hook(watch)
    return lab.main([argument for argument in arguments if argument != UNSYNCED])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
