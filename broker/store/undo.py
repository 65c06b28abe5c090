"""Tables in memory whose changes can be taken back.

Decides how the memory store undoes a unit of work that failed: every change leaves a step that reverts it, and the
steps are carried out in reverse order.
"""

from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")

Undo = list[Callable[[], object]]


class Table(Generic[K, V]):
    """A dict whose changes can be taken back."""

    def __init__(self, undo: Undo) -> None:
        self.rows: dict[K, V] = {}
        self._undo = undo

    def get(self, key: K) -> V | None:
        return self.rows.get(key)

    def put(self, key: K, value: V) -> None:
        old = self.rows.get(key)
        self._undo.append((lambda: self.rows.pop(key)) if old is None else (lambda: self.rows.__setitem__(key, old)))
        self.rows[key] = value

    def drop(self, key: K) -> bool:
        old = self.rows.pop(key, None)
        if old is not None:
            self._undo.append(lambda: self.rows.__setitem__(key, old))
        return old is not None
