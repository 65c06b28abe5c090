"""A bounded memory for what was proved.

Decides what is forgotten when it is full: what was used longest ago. What may be remembered, its owner decides.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from threading import Lock
from typing import Generic, TypeVar, final

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

    def put(self, key: Hashable, value: T) -> None:
        with self._lock:
            self._found[key] = value
            if len(self._found) > self._most:
                self._found.popitem(last=False)

    def __len__(self) -> int:
        return len(self._found)
