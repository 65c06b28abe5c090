"""The numbers of messages, and the replay window of one sender: which of its messages were received already.

Decides by sequence number, which the sender's signature covers. A number is in one of three states: never seen, being
handled, done. The window remembers the last 1,024 numbers, and older ones that were given back; other old ones are
refused without being looked up, so a receiver that has moved on cannot be wound back. The window belongs to one mailbox
key: it ends with the key, after which nothing sealed to it can be opened at all. It lives in memory; that of a durable
mailbox also in checkpoints. Where there are many senders, the last eighth of the windows is for senders of platforms
that have few: whoever is admitted under thousands of identities, but from few machines, shuts the mailbox to his own
alone. Nobody who was heard is ever forgotten for somebody else: what is not remembered could come again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Self, final

from enclave.errors import Code, EnvelopeRefused

SIZE: Final = 1024
RESERVE: Final = 8  # an eighth
FEW: Final = 64  # a sixty-fourth: what one platform may have and still be heard in the last eighth
MAX_COUNTED: Final = 4096  # mailboxes and topics, of a sender


@final
class Numbers:
    """What a sender's key numbers its messages by: for each mailbox up from one, and none twice, though only so many
    mailboxes are remembered. One that comes back begins above everything that was ever forgotten."""

    __slots__ = ("_floor", "_last")

    def __init__(self) -> None:
        self._last: dict[str, int] = {}  # who was written to longest ago first
        self._floor = 0

    def next(self, mailbox: str) -> int:
        number = self._last.pop(mailbox, self._floor) + 1
        self._last[mailbox] = number
        if len(self._last) > MAX_COUNTED:
            self._floor = max(self._floor, self._last.pop(next(iter(self._last))))
        return number


@final
class Window:
    """Not thread-safe. `check`, then `begin`, then `finish` or `abandon`."""

    __slots__ = ("_back", "_done", "_floor", "_highest", "_ids", "_open")

    def __init__(self) -> None:
        self._highest = 0
        self._floor = 0  # what is done is remembered above this
        self._done: set[int] = set()
        self._open: set[int] = set()
        self._back: set[int] = set()  # begun and not handled: these may come however late
        self._ids: dict[bytes, int] = {}  # message id → the number under which it came

    @classmethod
    def of(cls, highest: int, done: set[int]) -> Self:
        """As it was: what was being handled then is open again."""
        made = cls()
        made._highest, made._done, made._floor = highest, set(done), max(highest - SIZE, 0)
        return made

    def state(self) -> tuple[int, frozenset[int]]:
        """A highest number, and all that are done, as far back from there as is remembered.

        It is the highest that is done, unless less is remembered than that: what was handled and forgotten since must
        be below what comes out.
        """
        highest = max(self._done, default=0)
        if self._floor > max(highest - SIZE, 0):
            highest = self._floor + SIZE
        return highest, frozenset(number for number in self._done if number > highest - SIZE)

    def check(self, seq: int, msg_id: bytes) -> None:
        """Raises EnvelopeRefused: envelope.replayed; envelope.number_forgotten for what may have been handled;
        envelope.in_progress while a first delivery is being handled."""
        if seq in self._open:
            raise EnvelopeRefused(Code.ENVELOPE_IN_PROGRESS, f"number {seq} is being handled")
        if seq in self._done:
            raise EnvelopeRefused(Code.ENVELOPE_REPLAYED, f"number {seq}, highest {self._highest}")
        if seq <= self._highest - SIZE and seq not in self._back:
            raise EnvelopeRefused(Code.ENVELOPE_FORGOTTEN, f"number {seq}, highest {self._highest}")
        if self._ids.get(msg_id, seq) != seq:
            raise EnvelopeRefused(Code.ENVELOPE_REPLAYED, f"message id {msg_id.hex()} came under another number")

    def begin(self, seq: int, msg_id: bytes) -> None:
        """Handling starts: no second delivery of the same passes until `abandon`."""
        self._open.add(seq)
        self._back.discard(seq)
        self._ids[msg_id] = seq
        self._highest = max(self._highest, seq)
        if len(self._done) > 2 * SIZE or len(self._ids) > 2 * SIZE:
            self._floor = floor = max(self._highest - SIZE, self._floor)
            self._done = {number for number in self._done if number > floor}
            self._ids = {name: number for name, number in self._ids.items() if number > floor}

    def finish(self, seq: int) -> None:
        """Handled: never again."""
        self._open.discard(seq)
        self._done.add(seq)

    def abandon(self, seq: int) -> None:
        """`begin` is taken back; a redelivery is welcome."""
        if seq in self._open:
            self._open.remove(seq)
            self._back.add(seq)
            if len(self._back) > SIZE:
                self._back.remove(min(self._back))


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
