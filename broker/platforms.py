"""From how many addresses each platform was seen lately: what a copied attestation key looks like from here.

Decides what counts as lately (an hour) and as a sighting: evidence that verified, from an address. What to make of it
is the policy's decision (`platforms.max_addresses`); that it is told to the operator is decided here.
"""

import logging
from collections import OrderedDict
from datetime import datetime
from typing import Final, final

WINDOW_S: Final = 3600
MAX_PLATFORMS: Final = 8192
MAX_ADDRESSES: Final = 64  # of one platform; more are not told apart
logger = logging.getLogger("cloister.broker.platforms")


@final
class Platforms:
    """Sightings by platform id, in memory: a restart forgets them, the log does not."""

    def __init__(self) -> None:
        self._seen: OrderedDict[str, dict[str, float]] = OrderedDict()

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
