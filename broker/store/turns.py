"""Whose parcel is handed out next: senders take turns, each sender's own stay in order.

Decides the order for every store. A parcel that waits, because it was given back with a delay, keeps those behind it
waiting; one that is out under a lease does not. No sender has more than half of what may be out, but for the rest of a
batch, and less where others have something out; the last quarter is for small parcels of senders who have nothing out,
so that what they say is heard while others flood. What can no longer be handed out is noted with how it ended, and
nothing is changed before everything is found. Pure; whose mail is held or dropped is decided by the caller.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, Generic, Protocol, TypeVar, final

from broker.ports.mail import MAX_ENDED, MAX_OUT, MAX_OUT_OF_SENDER, End, WhenFallen

_SHARED: Final = MAX_OUT - MAX_OUT // 4
SMALL_OUT: Final = 16  # messages of a parcel that may be out of the last quarter
TOO_FEW: Final = 64  # who takes so few at a time has nothing to reserve


class Waiting(Protocol):
    """What is asked about a parcel here."""

    @property
    def lease(self) -> str | None: ...
    @property
    def attempt(self) -> int: ...
    @property
    def visible_at_ms(self) -> int: ...
    @property
    def expires_at_ms(self) -> int: ...
    @property
    def messages(self) -> int:
        """How many of its messages are not yet handled."""

    @property
    def octets(self) -> int: ...


P = TypeVar("P", bound=Waiting)


@final
@dataclass(slots=True, kw_only=True)
class Harvest(Generic[P]):
    """What one call may hand out, and what it has found so far."""

    now_ms: int
    max_attempts: int
    parcels: int
    messages: int
    octets: int
    out: dict[str, int] = field(default_factory=dict)  # messages of each sender that are out
    taken: list[P] = field(default_factory=list)
    ended: list[tuple[P, End]] = field(default_factory=list)
    last: str = ""  # who was served last
    cut: bool = False  # a bound of this call ended it: asked again, it may hand out more at once
    total: int = field(init=False)  # messages that are out
    reserve: int = field(init=False)

    def __post_init__(self) -> None:
        self.total = sum(self.out.values())
        most = min(self.total + self.messages, MAX_OUT)
        self.reserve = most // 4 if most >= TOO_FEW else 0

    def reap(
        self, lanes: Iterable[tuple[str, bool]], parcels_of: Callable[[str], Iterable[P]], *, fallen: WhenFallen
    ) -> None:
        """One parcel of each sender in turn, until a limit is reached or nobody has any left.

        `lanes` are senders in the order of their turns, and whether they are admitted.
        """
        waiting: list[tuple[str, Iterator[P]]] = []
        for sender, admitted in lanes:
            if self._over:
                break
            if admitted or fallen != "hold":
                lane = self._ready(parcels_of(sender), drop=not admitted and fallen == "drop")
                if self._take(sender, lane):
                    waiting.append((sender, lane))
        while waiting and not self._over:
            waiting = [(sender, lane) for sender, lane in waiting if self._take(sender, lane)]
        self.cut = bool(self.taken) and (self.cut or self._over)

    @property
    def _over(self) -> bool:
        return len(self.taken) >= self.parcels or self.messages <= 0 or len(self.ended) >= MAX_ENDED

    def _take(self, sender: str, lane: Iterator[P]) -> bool:
        """The lane's next parcel, if there is one and room for it; the first of all always has room."""
        own = self.out.get(sender, 0)
        short = self.messages <= self.reserve
        parcel = None if self._over or self._has_enough(own, short) else next(lane, None)
        if parcel is None:
            return False
        if self.taken and (parcel.messages > self.messages or parcel.octets > self.octets):
            self.cut = True
            return False
        if short and parcel.messages > SMALL_OUT:
            return False
        self.messages -= parcel.messages
        self.octets -= parcel.octets
        self.total += parcel.messages
        self.out[sender] = own + parcel.messages
        self.taken.append(parcel)
        self.last = sender
        return True

    def has_room(self, own: int) -> bool:
        """Whether a sender with so much out may be handed more before anything else changes."""
        return not self._over and not self._has_enough(own, self.messages <= self.reserve)

    def _has_enough(self, own: int, short: bool) -> bool:
        """Whether a sender with so much out must wait for some of that to be handled."""
        if own == 0:
            return False
        others = self.total - own
        return short or own >= MAX_OUT_OF_SENDER * max(0, _SHARED - others) // _SHARED

    def _ready(self, parcels: Iterable[P], *, drop: bool) -> Iterator[P]:
        """One sender's parcels that may be handed out now, oldest first."""
        for parcel in parcels:
            out = parcel.lease is not None and parcel.visible_at_ms > self.now_ms
            if out:
                continue
            if parcel.expires_at_ms <= self.now_ms:
                self.ended.append((parcel, End.EXPIRED))
            elif drop:
                self.ended.append((parcel, End.SENDER_FALLEN))
            elif parcel.visible_at_ms > self.now_ms:
                return
            elif parcel.attempt >= self.max_attempts:
                self.ended.append((parcel, End.ATTEMPTS))
            else:
                yield parcel
            if self._over:
                return


def hungry(waiting: Iterable[tuple[str, int, int]], most: int) -> list[str]:
    """Of senders, what waits of each and what of that is out, those who may be handed more when `most` is wanted."""
    left: dict[str, int] = {}
    out: dict[str, int] = {}
    for sender, messages, leased in waiting:
        left[sender] = left.get(sender, 0) + messages - leased
        out[sender] = out.get(sender, 0) + leased
    room = min(most, MAX_OUT - sum(out.values()))
    harvest: Harvest[Waiting] = Harvest(now_ms=0, max_attempts=0, parcels=1, messages=room, octets=0, out=out)
    return [sender for sender in left if left[sender] > 0 and harvest.has_room(out[sender])]


def beyond(rows: Iterable[tuple[int, int, str]], most: int, octets: int) -> list[int]:
    """Of numbers, sizes and senders, oldest first, the numbers for which there is no room: the oldest of whoever has
    the most, so that nobody's go because another has so many."""
    lanes: dict[str, deque[tuple[int, int]]] = {}
    sizes: dict[str, int] = {}
    for number, size, sender in rows:
        lanes.setdefault(sender, deque()).append((number, size))
        sizes[sender] = sizes.get(sender, 0) + size
    count, held = sum(map(len, lanes.values())), sum(sizes.values())
    excess: list[int] = []
    while count > most or held > octets:
        largest = max(lanes, key=(sizes.__getitem__ if held > octets else lambda sender: len(lanes[sender])))
        number, size = lanes[largest].popleft()
        count, held, sizes[largest] = count - 1, held - size, sizes[largest] - size
        excess.append(number)
        if not lanes[largest]:
            del lanes[largest], sizes[largest]
    return excess
