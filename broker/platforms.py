"""From how many addresses each platform was seen lately: what a copied attestation key looks like from here.

Decides what counts as lately (an hour) and as a sighting: evidence that verified, from an address. What to make of it
is the policy's decision (`platforms.max_addresses`); that it is told to the operator is decided here. Sightings are
written down once a minute and at the end, as security rows, so that a restart does not make a copy the only one.
"""

import json
import logging
from collections import OrderedDict
from collections.abc import Mapping
from datetime import datetime
from functools import partial
from typing import Final, final

from broker.ports import Store, Transaction

WINDOW_S: Final = 3600
MAX_PLATFORMS: Final = 8192
MAX_ADDRESSES: Final = 64  # of one platform; more are not told apart
SAVE_S: Final = 600  # a sighting that is repeated is written down again after so long
SAVED_AT_ONCE: Final = 256  # platforms in one transaction
_MARK: Final = "sightings/"
logger = logging.getLogger("cloister.broker.platforms")


@final
class Platforms:
    """Sightings by platform id."""

    def __init__(self) -> None:
        self._seen: OrderedDict[str, dict[str, float]] = OrderedDict()
        self._saved: dict[str, dict[str, float]] = {}

    def restore(self, tx: Transaction) -> None:
        """What was written down before."""
        for platform, told in tx.marks.under(_MARK).items():
            self._seen[platform] = dict(json.loads(told))
            self._saved[platform] = dict(self._seen[platform])

    async def save(self, store: Store, at: datetime) -> int:
        """Write down what is new, and forget what is over; how many platforms that were."""
        names = list({**self._saved, **self._seen})
        lately = {name: self._recent(name, at) for name in names}
        changed = [name for name in names if _is_news(self._saved.get(name, {}), lately[name])]
        for start in range(0, len(changed), SAVED_AT_ONCE):
            part = {name: lately[name] for name in changed[start : start + SAVED_AT_ONCE]}
            await store.transact(partial(_write, part=part))
            for name, known in part.items():
                if known:
                    self._saved[name] = known
                else:
                    self._saved.pop(name, None)
                    if not self._recent(name, at):  # nobody came meanwhile
                        self._seen.pop(name, None)
        return len(changed)

    def see(self, platform: str, address: str | None, at: datetime) -> int:
        """Note a sighting; at how many addresses the platform was seen within the window, this one included."""
        known = self._recent(platform, at)
        if address is None or not platform:
            return max(1, len(known))
        fresh = address not in known
        if fresh and len(known) >= MAX_ADDRESSES:
            return len(known)
        known[address] = at.timestamp()
        self._seen[platform] = known
        self._seen.move_to_end(platform)
        if len(self._seen) > MAX_PLATFORMS:
            self._seen.popitem(last=False)
        if fresh and len(known) > 1:
            logger.warning("platform.seen_elsewhere", extra={"platform": platform, "addresses": sorted(known)})
        return len(known)

    def elsewhere(self, at: datetime) -> dict[str, list[str]]:
        """Platforms that were seen at more than one address within the window, with those addresses."""
        found = {platform: self._recent(platform, at) for platform in self._seen}
        return {platform: sorted(known) for platform, known in found.items() if len(known) > 1}

    def _recent(self, platform: str, at: datetime) -> dict[str, float]:
        now_s = at.timestamp()
        return {ip: seen_s for ip, seen_s in self._seen.get(platform, {}).items() if now_s - seen_s <= WINDOW_S}


def _is_news(saved: Mapping[str, float], known: Mapping[str, float]) -> bool:
    """Whether other addresses are known now, or one of them was seen again long after it was written down."""
    return saved.keys() != known.keys() or any(seen_s - saved[ip] >= SAVE_S for ip, seen_s in known.items())


def _write(tx: Transaction, *, part: Mapping[str, Mapping[str, float]]) -> None:
    for platform, known in part.items():
        if known:
            tx.marks.put(_MARK + platform, json.dumps(known))
        else:
            tx.marks.drop(_MARK + platform)
