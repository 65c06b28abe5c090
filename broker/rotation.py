"""Rotation of the keys that sign tokens and results: by an administrator, and by age.

Decides when. How a new key is published before it signs, and an old one kept until nothing of it can live, is
keyring.py's. Nothing is restarted, and no token is refused for it.
"""

from datetime import datetime
from typing import final

from broker.audit import Audit, Entry, Kind
from broker.config import Admin
from broker.keyring import Keyring
from broker.ports import DAY_S, Clock, Store
from broker.rootkey.root import RootKey


@final
class KeyRotation:
    """Draws the next keys. `every_days` 0 means by administrators alone."""

    def __init__(
        self, *, store: Store, root: RootKey, keyring: Keyring, audit: Audit, clock: Clock, every_days: int
    ) -> None:
        self._store = store
        self._root = root
        self._keyring = keyring
        self._audit = audit
        self._clock = clock
        self._every_s = every_days * DAY_S
        first = store.read(lambda tx: tx.log.entry(0))
        self._begun_s = first.at_ms // 1000 if first else int(clock().timestamp())

    async def rotate(self, by: Admin | None, *, second: str = "", correlation_id: str = "") -> tuple[str, ...]:
        """Names of the new keys: of tokens, of results. `by` is None when their age asked for it, `second` the key of
        whoever asked for it too.

        While earlier ones are published and do not sign yet, none are drawn: readers take only so many.
        """
        at = self._clock()
        waiting = self._keyring.tokens[-1], self._keyring.results[-1]
        if waiting[0].from_s > at.timestamp():
            return tuple(key.kid for key in waiting)
        entry = Entry(
            kind=Kind.KEYS_ROTATED,
            at=at,
            subject=f"admin/{by.name}" if by else "",
            correlation_id=correlation_id,
            more={"by": by.jkt if by else "age", "second": second},
        )
        drawn, _ = await self._audit.record(entry, lambda tx: self._keyring.draw_tokens(tx, self._root, at=at))
        self._keyring.tokens, self._keyring.results = drawn
        return tuple(keys[-1].kid for keys in drawn)

    async def rotate_if_due(self) -> bool:
        """Whether the newest keys were old enough, and have successors now."""
        if not self._every_s or not self._due(self._clock()):
            return False
        await self.rotate(None)
        return True

    def _due(self, at: datetime) -> bool:
        newest_s = max(key.from_s for key in self._keyring.tokens) or self._begun_s
        return at.timestamp() - newest_s >= self._every_s
