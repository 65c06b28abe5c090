"""Which new sender a mailbox still hears when many were heard already.

Decides that the last eighth of what can be remembered is for senders of platforms that have few: whoever is admitted
under thousands of identities, but from few machines, shuts the mailbox to his own alone. Nobody who was heard is ever
forgotten for somebody else: what is not remembered could come again.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, final

RESERVE: Final = 8  # an eighth
FEW: Final = 64  # a sixty-fourth: what one platform may have and still be heard in the last eighth


@final
class Crowd:
    """From which platform each sender came. Of those of before a restart nobody knows."""

    def __init__(self) -> None:
        self._platforms: dict[str, str] = {}  # sender's thumbprint → platform

    def hears(self, jkt: str, platform: str, heard: Sequence[Mapping[str, Any]], most: int) -> bool:
        """Whether a sender that is not among those `heard` may be remembered, too, as one of so many at most."""
        count = sum(map(len, heard))
        if count >= most:
            return False
        if count >= most - most // RESERVE and self._of(platform, heard) >= most // FEW:
            return False
        if len(self._platforms) >= 2 * most:  # some of them are heard no more
            self._platforms = {one: known for one, known in self._platforms.items() if any(one in of for of in heard)}
        self._platforms[jkt] = platform
        return True

    def _of(self, platform: str, heard: Sequence[Mapping[str, Any]]) -> int:
        return sum(self._platforms.get(jkt) == platform for of in heard for jkt in of)
