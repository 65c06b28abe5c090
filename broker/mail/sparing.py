"""Which of many like entries the log gets, where whoever is written about can make as many as he likes.

Decides that each key has the first so many entries in full, and then one a minute, which says how many were left out
before it: the log is kept for ever, and must not grow with traffic.
"""

from collections import OrderedDict
from datetime import datetime
from typing import Final, final

MINUTE_S: Final = 60.0
MAX_KEYS: Final = 16_384


@final
class Sparing:
    """The books on every key; who has not been heard of for longest is forgotten first, and begins anew."""

    def __init__(self, first: int, *, keys: int = MAX_KEYS) -> None:
        self._first = float(first)
        self._keys = keys
        self._books: OrderedDict[str, tuple[float, float, int]] = OrderedDict()  # what is left, when, and left out

    def __len__(self) -> int:
        return len(self._books)

    def left_out(self, key: str, at: datetime) -> int | None:
        """None: leave this entry out. Else how many were left out since the last one, to be said in it."""
        now_s = at.timestamp()
        left, then_s, unlisted = self._books.get(key, (self._first, now_s, 0))
        left = min(self._first, left + max(0.0, now_s - then_s) / MINUTE_S)
        listed = left >= 1.0
        self._books[key] = (left - 1.0, now_s, 0) if listed else (left, now_s, unlisted + 1)
        self._books.move_to_end(key)
        if len(self._books) > self._keys:
            self._books.popitem(last=False)
        return unlisted if listed else None
