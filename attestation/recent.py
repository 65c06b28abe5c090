"""A bounded memory for what was proved.

Decides what is forgotten when it is full: what was used longest ago. What may be remembered, its owner decides.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Any, Generic, TypeVar, final

T = TypeVar("T")


@final
class Recent(Generic[T]):
    """At most `most` values by key. Safe to share by threads."""

    __slots__ = ("_found", "_lock", "_most")

    def __init__(self, most: int) -> None:
        self._found: OrderedDict[Hashable, T] = OrderedDict()
        self._lock = Lock()
        self._most = most

    def get(self, key: Hashable) -> T | None:
        with self._lock:
            value = self._found.get(key)
            if value is not None:
                self._found.move_to_end(key)
            return value

    def put(self, key: Hashable, value: T) -> Hashable:
        """The key of what had to be forgotten for it, or None."""
        with self._lock:
            self._found[key] = value
            return self._found.popitem(last=False)[0] if len(self._found) > self._most else None

    def drop(self, unwanted: Callable[[Any], bool]) -> None:
        """Forget every key of which this is true."""
        with self._lock:
            for key in [key for key in self._found if unwanted(key)]:
                del self._found[key]

    def __len__(self) -> int:
        return len(self._found)
