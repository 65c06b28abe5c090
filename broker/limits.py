"""Who may ask how often: token buckets for addresses, for agents and for tenants, in bounded memory.

Decides before a body is read whether a request may cost anything at all. An address pays for every request and gets it
back when the request turns out honest (an agent's or administrator's proof held, an agent was admitted): so garbage
runs dry, and a crowd of agents behind one address does not. What proved itself is counted against its tenant, and
before that against itself, so that no agent uses up what all of its tenant may ask.

An address that has paid nothing for a while has a full bucket, which is what an unknown one has: it can be forgotten.
When there is no room for another, the one that was seen longest ago is.
"""

from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import Final, Self, final

from broker.errors import BrokerCode, BrokerError

MAX_KEYS: Final = 8192
MAX_BODIES: Final = 512 << 20
MAX_BODIES_OF_ONE: Final = 128 << 20
MAX_SILENT: Final = 1024  # streams on which nobody has said yet who he is
MAX_SILENT_OF_ONE: Final = 64
_PREFIX_V6: Final = 64  # what one customer has: addresses below it cost nothing


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Requests per second, and how many at once after a pause. 0 per second: no limit."""

    source_per_s: int = 100
    source_burst: int = 1000
    agent_per_s: int = 1000
    agent_burst: int = 10_000
    tenant_per_s: int = 5000
    tenant_burst: int = 20_000


@final
class Buckets:
    """One bucket for each key, full at first. `at_s` is a monotonic time."""

    def __init__(self, per_s: int, burst: int, *, most: int = MAX_KEYS) -> None:
        self._per_s = per_s
        self._burst = float(burst)
        self._most = most
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._levels)

    def take(self, key: str, at_s: float) -> float:
        """Seconds to wait before the next, 0 when this one may pass."""
        if not self._per_s:
            return 0.0
        level = self._level(key, at_s)
        passes = level >= 1.0
        self._keep(key, level - 1.0 if passes else level, at_s)
        return 0.0 if passes else (1.0 - level) / self._per_s

    def give_back(self, key: str, at_s: float, *, number: int = 1) -> None:
        """It was honest."""
        if self._per_s and key in self._levels:
            self._keep(key, min(self._burst, self._level(key, at_s) + number), at_s)

    def _level(self, key: str, at_s: float) -> float:
        level, then_s = self._levels.get(key, (self._burst, at_s))
        return min(self._burst, level + max(0.0, at_s - then_s) * self._per_s)

    def _keep(self, key: str, level: float, at_s: float) -> None:
        if level >= self._burst:
            self._levels.pop(key, None)
            return
        self._levels[key] = (level, at_s)
        self._levels.move_to_end(key)
        if len(self._levels) > self._most:
            self._levels.popitem(last=False)


@final
class Room:
    """What callers who have proved nothing yet may hold: so much all of them, and less one address.

    Of bodies, the small ones of honest callers are not counted (http_api.py): who fills the room keeps nobody else out.
    """

    def __init__(self, *, most: int = MAX_BODIES, each: int = MAX_BODIES_OF_ONE) -> None:
        self._most = most
        self._each = each
        self._held: dict[str, int] = {}
        self.held = 0

    def entered(self, source_ip: str | None) -> "Place":
        """Call what a `with` gives for every part, before it is kept; all is given back at the end."""
        return Place(self, source_of(source_ip))

    def take(self, source: str, more: int) -> None:
        """Raises BrokerError broker.busy."""
        if self.held + more > self._most or self._held.get(source, 0) + more > self._each:
            raise BrokerError(BrokerCode.BROKER_BUSY, f"strangers hold {self.held}", retry_after_s=1)
        self.held += more
        self._held[source] = self._held.get(source, 0) + more

    def give_back(self, source: str, less: int) -> None:
        self.held -= less
        left = self._held.get(source, 0) - less
        if left > 0:
            self._held[source] = left
        else:
            self._held.pop(source, None)


@final
class Place:
    """What one caller holds of a room."""

    __slots__ = ("_mine", "_room", "_source")

    def __init__(self, room: Room, source: str) -> None:
        self._room, self._source, self._mine = room, source, 0

    def __call__(self, more: int) -> None:
        """Raises BrokerError broker.busy."""
        self._room.take(self._source, more)
        self._mine += more

    def close(self) -> None:
        """Give all of it back."""
        if self._mine:
            self._room.give_back(self._source, self._mine)
            self._mine = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@final
class Limits:
    """The limits of one broker."""

    def __init__(self, rates: Rates) -> None:
        self.room: Final = Room()
        self.silent: Final = Room(most=MAX_SILENT, each=MAX_SILENT_OF_ONE)
        self._sources = Buckets(rates.source_per_s, rates.source_burst)
        self._agents = Buckets(rates.agent_per_s, rates.agent_burst)
        self._tenants = Buckets(rates.tenant_per_s, rates.tenant_burst)

    def enter(self, source_ip: str | None, at_s: float) -> None:
        """Raises BrokerError limit.source."""
        wait_s = self._sources.take(source_of(source_ip), at_s)
        if wait_s:
            raise BrokerError(BrokerCode.LIMIT_SOURCE, f"from {source_ip}", retry_after_s=int(wait_s) + 1)

    def honest(self, source_ip: str | None, at_s: float, *, number: int = 1) -> None:
        """That many requests from there were what they should be."""
        self._sources.give_back(source_of(source_ip), at_s, number=number)

    def act(self, tenant: str, at_s: float, *, agent: str = "") -> None:
        """An agent of that tenant asks; `agent` is the thumbprint of its key.

        Raises BrokerError limit.agent, limit.tenant.
        """
        wait_s = self._agents.take(agent, at_s) if agent else 0.0
        if wait_s:
            raise BrokerError(BrokerCode.LIMIT_AGENT, f"agent {agent}", retry_after_s=int(wait_s) + 1)
        wait_s = self._tenants.take(tenant, at_s)
        if wait_s:
            raise BrokerError(BrokerCode.LIMIT_TENANT, f"tenant {tenant}", retry_after_s=int(wait_s) + 1)


@lru_cache(maxsize=4096)
def source_of(address: str | None) -> str:
    """What counts as one source: an IPv4 address, the /64 of an IPv6 address, everybody on a Unix socket."""
    try:
        found = ip_address(address or "")
    except ValueError:
        return address or ""
    if isinstance(found, IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(IPv6Address(int(found) >> (128 - _PREFIX_V6) << (128 - _PREFIX_V6)))
    return str(found)
