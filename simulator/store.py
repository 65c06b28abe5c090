"""Where a machine's state lives: in memory, or in a folder that several processes use at once.

Decides that a state is read whole or not at all, that it changes under a file lock by replacing one file atomically,
and that a file which is damaged or from a newer version is never touched. Layout of a folder: `machine.json` (0600,
it holds the seed of all keys), `lock`, and `root.pem`, the certificate to hand to verifiers.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Protocol, Self

from simulator.clock import ClockState
from simulator.errors import SimulatorCode, SimulatorError
from simulator.platform import PlatformSpec
from simulator.recovery import Event

FORMAT: Final = "cloister-sim-machine"
VERSION: Final = 1
_FILE: Final = "machine.json"
_LOCK: Final = "lock"
_ROOT: Final = "root.pem"
_LOCK_WAIT_S: Final = 10.0
_MAX_STATE: Final = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """All of a machine that has to be kept."""

    seed: bytes = field(repr=False)
    platforms: tuple[PlatformSpec, ...]
    events: tuple[Event, ...] = ()
    clock: ClockState = field(default_factory=ClockState)

    def to_json(self) -> str:
        body: dict[str, Any] = {
            "seed": self.seed.hex(),
            "platforms": [spec.to_dict() for spec in self.platforms],
            "events": [event.to_dict() for event in self.events],
            "clock": self.clock.to_dict(),
        }
        return json.dumps({"format": FORMAT, "version": VERSION, "sha256": _digest(body), **body}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: bytes, where: str) -> Self:
        """Raises SimulatorError machine.damaged, machine.newer_version."""
        try:
            body = json.loads(text)
            found, version = body.pop("format"), body.pop("version")
            if found != FORMAT or not isinstance(version, int):
                raise ValueError("not a machine")
            if version > VERSION:
                detail = f"{where} was written by a newer release (format {version}, know {VERSION}); use that release"
                raise SimulatorError(SimulatorCode.MACHINE_NEWER, detail)
            if body.pop("sha256") != _digest(body):
                raise ValueError("its digest does not match")
            return cls(
                seed=bytes.fromhex(body["seed"]),
                platforms=tuple(PlatformSpec.from_dict(values) for values in body["platforms"]),
                events=tuple(Event.from_dict(values) for values in body["events"]),
                clock=ClockState.from_dict(body["clock"]),
            )
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            detail = f"{where} is not a whole machine ({error}); nothing was changed: restore it, or use another folder"
            raise SimulatorError(SimulatorCode.MACHINE_DAMAGED, detail) from error


class Store(Protocol):
    """Keeps one state."""

    path: Path | None

    def read(self) -> State:
        """The newest state. Raises SimulatorError machine.*"""

    def update(self, change: Callable[[State], State]) -> State:
        """Apply `change` to the newest state, alone. Raises SimulatorError machine.*"""


class MemoryStore:
    """A machine that ends with its process."""

    def __init__(self, state: State) -> None:
        self.path: Path | None = None
        self._state = state
        self._lock = threading.Lock()

    def read(self) -> State:
        return self._state

    def update(self, change: Callable[[State], State]) -> State:
        with self._lock:
            self._state = change(self._state)
            return self._state


class FolderStore:
    """A machine that stays. Reading needs no lock, since the file is only ever replaced."""

    def __init__(self, path: Path) -> None:
        self.path: Path | None = path
        self._folder = path
        self._file = path / _FILE
        self._stamp: tuple[int, int, int] | None = None
        self._state: State | None = None
        self._thread_lock = threading.RLock()

    def exists(self) -> bool:
        return self._file.exists()

    def read(self) -> State:
        with self._thread_lock:
            try:
                found = self._file.stat()
            except FileNotFoundError as error:
                raise SimulatorError(SimulatorCode.MACHINE_MISSING, f"no machine in {self._folder}") from error
            except OSError as error:
                raise _unreadable(self._file, error) from error
            stamp = (found.st_mtime_ns, found.st_ino, found.st_size)
            if self._state is None or stamp != self._stamp:
                self._state = self._load(found.st_size)
                self._stamp = stamp
            return self._state

    def update(self, change: Callable[[State], State]) -> State:
        with self._thread_lock, self._locked():
            state = change(self.read())
            self._write(state)
            return state

    def create(self, state: State, root_pem: bytes) -> State:
        """Write the first state. Raises SimulatorError machine.exists when there is one already."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _read_only(self._folder, error) from error
        with self._thread_lock, self._locked():
            if self.exists():
                raise SimulatorError(SimulatorCode.MACHINE_EXISTS, f"there is a machine in {self._folder} already")
            try:
                (self._folder / _ROOT).write_bytes(root_pem)
            except OSError as error:
                raise _read_only(self._folder, error) from error
            self._write(state)
        return state

    def _load(self, size: int) -> State:
        if size > _MAX_STATE:
            raise SimulatorError(SimulatorCode.MACHINE_DAMAGED, f"{self._file} has {size} bytes: not a machine")
        try:
            text = self._file.read_bytes()
        except OSError as error:
            raise _unreadable(self._file, error) from error
        return State.from_json(text, str(self._file))

    def _write(self, state: State) -> None:
        """Beside the old file, synced, then renamed over it: a crash leaves the old state or the new one."""
        beside = self._folder / f"{_FILE}.{os.getpid()}.new"
        try:
            descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(state.to_json())
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, self._file)
        except OSError as error:
            beside.unlink(missing_ok=True)
            raise _read_only(self._folder, error) from error
        self._state = None

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            descriptor = os.open(self._folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        except FileNotFoundError as error:
            raise SimulatorError(SimulatorCode.MACHINE_MISSING, f"no machine in {self._folder}") from error
        except OSError as error:
            raise _read_only(self._folder, error) from error
        try:
            _wait_for(descriptor, self._folder)
            yield
        finally:
            os.close(descriptor)


def with_clock(state: State, change: Callable[[ClockState], ClockState]) -> State:
    return replace(state, clock=change(state.clock))


def _wait_for(descriptor: int, folder: Path) -> None:
    """The lock goes with the descriptor, so a killed process leaves none behind."""
    deadline = time.monotonic() + _LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() >= deadline:
                detail = f"{folder} is in use: another process has held its lock for {_LOCK_WAIT_S:.0f} s"
                raise SimulatorError(SimulatorCode.MACHINE_LOCKED, detail) from error
            time.sleep(0.005)
        else:
            return


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _unreadable(file: Path, error: OSError) -> SimulatorError:
    return SimulatorError(SimulatorCode.MACHINE_DAMAGED, f"{file} cannot be read: {error.strerror}")


def _read_only(folder: Path, error: OSError) -> SimulatorError:
    detail = f"{folder} cannot be written ({error.strerror}); nothing was changed"
    return SimulatorError(SimulatorCode.MACHINE_READ_ONLY, detail)
