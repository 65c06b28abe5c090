"""The store in SQLite: WAL, synchronous=FULL, one writer thread that commits whatever has gathered as one group.

Decides how units of work become durable; the queries stand in sql_tables.py. A unit that fails takes nothing of the
others with it: the group starts over, each unit in a savepoint of its own, and the next groups begin like that, so that
whoever makes units fail costs others no second run. Nobody hears of success before the group's fsync. Queries run on a
second connection, which sees only what is committed.
"""

import asyncio
import contextlib
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeVar, final

from broker.errors import BrokerCode, BrokerError
from broker.points import reached
from broker.ports import Transaction
from broker.store.fence import Fence
from broker.store.sql_schema import MIGRATIONS
from broker.store.sql_tables import SqlTransaction

T = TypeVar("T")
MAX_GROUP: Final = 256  # no more units are added to a commit that has as many
WARY: Final = 256  # groups after a failed unit in which each unit has a savepoint from the start
BUSY_MS: Final = 5000
logger = logging.getLogger("cloister.broker.store")

Work = Callable[[Transaction], Any]


class _Unit:
    """One unit of work and where its outcome is wanted."""

    __slots__ = ("error", "future", "loop", "result", "work")

    def __init__(self, work: Work, loop: asyncio.AbstractEventLoop, future: asyncio.Future[Any]) -> None:
        self.work, self.loop, self.future = work, loop, future
        self.result: Any = None
        self.error: BaseException | None = None

    def settle(self) -> None:
        """Called in the loop that waits."""
        if self.future.done():
            return
        if self.error is None:
            self.future.set_result(self.result)
        else:
            self.future.set_exception(self.error)


@final
class SqlStore:
    """A `Store` in one SQLite file. `mac_key` protects the marks; it comes from the root key."""

    def __init__(self, path: Path, *, mac_key: bytes) -> None:
        self._path = path
        self._fence = Fence(path)
        try:
            self._open(path, mac_key)
        except BaseException:
            self._fence.release()
            raise

    def _open(self, path: Path, mac_key: bytes) -> None:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # SQLite gives its other files the same mode
        with _telling_damage(path):
            self._writer = self._connect()
            check_pages(self._writer)
            migrate(self._writer)
            self._reader = self._connect()
        self._reader.execute("PRAGMA query_only = ON")
        self._reading = threading.Lock()
        self._write = SqlTransaction(self._writer, mac_key, remember=True)
        self._view = SqlTransaction(self._reader, mac_key, remember_secrets=True)
        self._hooks: list[Callable[[Transaction], None]] = []
        self._after: list[Callable[[], None]] = []
        self._queue: SimpleQueue[list[_Unit] | None] = SimpleQueue()
        self._gathering: dict[asyncio.AbstractEventLoop, list[_Unit]] = {}
        self._total: int | None = None  # of the marks, as last committed
        self._closed = False
        self._wary = 0  # groups
        self._thread = threading.Thread(target=self._run, name="cloister-store", daemon=True)
        self._thread.start()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path, isolation_level=None, check_same_thread=False, cached_statements=256, timeout=BUSY_MS / 1000
        )
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        # Mail is written, read and gone again within the same few thousand pages: they are carried over into the file
        # seldom, and remembered meanwhile.
        connection.execute("PRAGMA wal_autocheckpoint = 4000")
        connection.execute("PRAGMA cache_size = -16384")
        connection.execute("PRAGMA foreign_keys = ON")
        # Overwritten is what costs no page of its own; whole pages only for secrets, since mail is sealed and passes
        # in great quantity: see Secrets.destroy.
        connection.execute("PRAGMA secure_delete = FAST")
        return connection

    def before_commit(self, hook: Callable[[Transaction], None]) -> None:
        self._hooks.append(hook)

    def after_commit(self, hook: Callable[[], None]) -> None:
        self._after.append(hook)

    async def transact(self, work: Callable[[Transaction], T]) -> T:
        if self._closed:
            raise BrokerError(BrokerCode.STORE_UNAVAILABLE, "the store is closed")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._gather(_Unit(work, loop, future))
        return await future

    def _gather(self, unit: _Unit) -> None:
        """What one turn of a loop asks for goes to the writer together, so that it can share a commit."""
        waiting = self._gathering.get(unit.loop)
        if waiting is None:
            waiting = self._gathering[unit.loop] = []
            unit.loop.call_soon(self._hand_over, unit.loop)
        waiting.append(unit)

    def _hand_over(self, loop: asyncio.AbstractEventLoop) -> None:
        """At the end of the loop's turn, unless `close` was faster."""
        units = self._gathering.pop(loop, None)
        if units:
            self._queue.put(units)

    def read(self, query: Callable[[Transaction], T]) -> T:
        with self._reading:
            try:
                return query(self._view)
            except (sqlite3.Error, ValueError) as error:
                raise _damaged(self._path, error) from error

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for loop in list(self._gathering):
            self._hand_over(loop)
        self._queue.put(None)
        self._thread.join()
        with self._reading:
            self._reader.close()
        self._writer.close()
        self._fence.release()

    # ── the writer thread ──────────────────────────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        going = True
        while going:
            group, going = self._next_group()
            if group:
                self._carry_out(group)
                _announce(group)

    def _next_group(self) -> tuple[list[_Unit], bool]:
        """Wait for some units, then take what else is there. False when the store is closing."""
        first = self._queue.get()
        if first is None:
            return [], False
        group = first
        with contextlib.suppress(Empty):
            while len(group) < MAX_GROUP:
                units = self._queue.get_nowait()
                if units is None:
                    return group, False
                group += units
        return group, True

    def _carry_out(self, group: Sequence[_Unit]) -> None:
        """Units rarely fail, so they run bare; when one does, all start over, each in a savepoint of its own."""
        careful, self._wary = self._wary > 0, max(0, self._wary - 1)
        try:
            if not self._attempt(group, careful=careful):
                self._attempt(group, careful=True)
        except Exception as error:  # noqa: BLE001  # whatever happened, nothing of the group may count as done
            logger.error("store.unavailable", extra={"error": type(error).__name__, "why": str(error)})
            self._roll_back()
            for unit in group:
                if unit.error is None:
                    unit.error = BrokerError(BrokerCode.STORE_UNAVAILABLE, type(error).__name__)
        else:
            for after in self._after:
                try:
                    after()
                except Exception as error:  # noqa: BLE001  # it is durable, and the thread serves everybody
                    logger.error("store.after_commit", extra={"error": type(error).__name__})

    def _attempt(self, group: Sequence[_Unit], *, careful: bool) -> bool:
        """Commit the group; False, and nothing done, when a unit failed that had no savepoint."""
        self._writer.execute("BEGIN IMMEDIATE")
        reached("store.begun")
        for unit in group:
            if careful:
                self._guarded(unit)
                continue
            try:
                unit.result = unit.work(self._write)
            except sqlite3.Error:
                raise
            except Exception:  # noqa: BLE001  # it will happen again in a savepoint, and go to the caller from there
                self._wary = WARY
                self._roll_back()
                return False
        reached("store.worked")
        for hook in self._hooks:
            hook(self._write)
        reached("store.signed")
        self._writer.execute("COMMIT")
        self._total = self._write.marks.total
        if self._write.secrets.changed:
            with self._reading:  # nobody keeps what he read before
                self._view.secrets.forget()
            self._write.secrets.changed = False
        reached("store.committed")
        return True

    def _guarded(self, unit: _Unit) -> None:
        self._writer.execute("SAVEPOINT unit")
        total = self._write.marks.total
        try:
            unit.result = unit.work(self._write)
        except sqlite3.Error:
            raise
        except Exception as error:  # noqa: BLE001  # handed to the caller, who asked for this work
            unit.error = error
            self._wary = WARY
            self._writer.execute("ROLLBACK TO unit")
            self._write.forget(total)
        self._writer.execute("RELEASE unit")

    def _roll_back(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self._writer.execute("ROLLBACK")
        self._write.forget(self._total)


def _announce(group: Sequence[_Unit]) -> None:
    """Wake each waiting loop once. A loop that has gone meanwhile waits for nothing."""
    waiting: dict[asyncio.AbstractEventLoop, list[_Unit]] = {}
    for unit in group:
        waiting.setdefault(unit.loop, []).append(unit)
    for loop, units in waiting.items():
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_settle, units)


def _settle(units: Sequence[_Unit]) -> None:
    for unit in units:
        unit.settle()


@contextlib.contextmanager
def _telling_damage(path: Path) -> Iterator[None]:
    """What SQLite or a record's own form refuses is damage of the file, under a code of its own.

    Raises BrokerError store.damaged.
    """
    try:
        yield
    except (sqlite3.Error, ValueError) as error:  # ValueError: a row that cannot have been written so
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> BrokerError:
    return BrokerError(BrokerCode.STORE_DAMAGED, f"{path}: {type(error).__name__}: {error}")


def check_pages(connection: sqlite3.Connection) -> None:
    """The file hangs together: every page is where its tree wants it, every row has its form.

    Raises sqlite3.DatabaseError.
    """
    found = [row[0] for row in connection.execute("PRAGMA quick_check(1)")]
    if found != ["ok"]:
        raise sqlite3.DatabaseError(str(found[0])[:200])


@final
class SqlFile:
    """A database to look into, read-only and without the root key: for checking a log offline."""

    def __init__(self, path: Path) -> None:
        """Raises FileNotFoundError; BrokerError store.unavailable for a file that is no database of ours."""
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        try:
            self._db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
            self._db.execute("SELECT 1 FROM log_head").fetchone()
        except sqlite3.Error as error:
            raise BrokerError(BrokerCode.STORE_UNAVAILABLE, f"{path}: {error}") from None
        self._view = SqlTransaction(self._db, b"")

    def read(self, query: Callable[[Transaction], T]) -> T:
        """Raises BrokerError store.unavailable when the file is damaged."""
        try:
            return query(self._view)
        except sqlite3.Error as error:
            raise BrokerError(BrokerCode.STORE_UNAVAILABLE, str(error)) from None


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the file to the newest version, one numbered step after the other, each in a transaction of its own.

    Raises BrokerError store.version_unknown for a file from the future.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(MIGRATIONS):
        raise BrokerError(BrokerCode.STORE_VERSION, f"version {version}, know {len(MIGRATIONS)}")
    for number, statements in enumerate(MIGRATIONS[version:], start=version + 1):
        connection.execute("BEGIN IMMEDIATE")
        for statement in statements:
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {number}")
        connection.execute("COMMIT")
