"""A small bounded map for results that can always be computed again. Thread-safe; forgets the oldest."""

from __future__ import annotations

from threading import Lock
from typing import Generic, TypeVar, final

K = TypeVar("K")
V = TypeVar("V")


@final
class Bounded(Generic[K, V]):
    """At most `size` entries. A miss costs a computation, never a wrong answer."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._entries: dict[K, V] = {}
        self._lock = Lock()

    def get(self, key: K) -> V | None:
        return self._entries.get(key)

    def put(self, key: K, value: V) -> V:
        with self._lock:
            if key not in self._entries and len(self._entries) >= self._size:
                del self._entries[next(iter(self._entries))]
            self._entries[key] = value
        return value

    def clear(self) -> None:
        with self._lock:
            self._entries = {}

    def __len__(self) -> int:
        return len(self._entries)
