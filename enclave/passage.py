"""How far a receiver has come on a channel, and what of that outlives it.

Decides what is remembered of the numbers that came: up to the highest one each is being handled, to be tried again,
passed over, or else over for good. A `Passage` is the same for a checkpoint, together with what names the channel
beyond doubt: the digest of the opening that was proved, and the hash chain after the highest number, on which the next
batch must go on. The key is in neither; it comes with the opening again, to whoever has the mailbox's key.

What was given back is remembered within bounds: who lets messages fail without end loses the oldest of them.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Final, final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from attestation.verdict import Verdict
from broker.wire.channel import ChannelBatch, Opening, chain_start
from broker.wire.envelope import Envelope, Header
from broker.wire.jose import p256_from_spki

MAX_CHANNELS: Final = 4096  # that one mailbox receives on
MAX_OF_SENDER: Final = 64  # of them; the oldest makes room, and does not come back
MAX_COMPLETE: Final = 3  # channels of one sender to a durable mailbox that are remembered though nothing is left to do
MAX_SKIPPED: Final = 256  # gaps that are remembered, so that what comes late is told from what was handled
OPENING_LEN: Final = 16  # bytes of an opening's digest by which it is known again
MAX_AGAIN: Final = 1024  # messages of one channel that were given back
Runs = tuple[tuple[int, int], ...]
"""Numbers as first and last of each unbroken run, in order."""


def runs_of(numbers: Iterable[int]) -> Runs:
    found: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if found and found[-1][1] == number - 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return tuple(found)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """What a checkpoint holds of one channel. Numbers up to `highest` that are in neither `holes` nor `skipped` are
    over; `skipped` were passed over and do not come back."""

    channel: bytes
    mailbox_key: bytes
    jkt: str  # thumbprint of the sender's identity key
    opening: bytes  # the first half of the envelope's digest
    ends_at_ms: int
    highest: int
    chain: bytes  # after the highest number
    holes: Runs = ()
    skipped: Runs = ()


@final
class Receiving:
    """What a receiver remembers of one channel. Every number up to `highest` is open, to be tried again, or over."""

    __slots__ = (
        *("again", "chain", "channel", "cipher", "digest", "ends_at_ms", "highest", "identity", "mailbox_key", "open"),
        *("opened_at_ms", "sender", "skipped", "token", "token_end_ms"),
    )

    def __init__(
        self, opening: Envelope, header: Header, inside: Opening, sender: Verdict, before: Passage | None = None
    ) -> None:
        self.channel = inside.channel
        self.cipher = AESGCM(inside.key)
        self.digest = opening.digest[:OPENING_LEN]
        self.mailbox_key = header.mailbox_key
        self.opened_at_ms = header.sent_at_ms
        self.ends_at_ms = header.expires_at_ms
        self.chain = chain_start(opening) if before is None else before.chain
        self.highest = 0 if before is None else before.highest
        self.open: set[int] = set()
        self.again: set[int] = set()
        self.skipped: deque[tuple[int, int]] = deque(maxlen=MAX_SKIPPED)
        if before is not None:
            self.again.update(number for first, last in before.holes for number in range(first, last + 1))
            self.skipped.extend(before.skipped)
        self.sender = sender
        self.identity: ec.EllipticCurvePublicKey = p256_from_spki(sender.identity_key)
        self.token = ""
        self.token_end_ms = 0

    def advance(self, batch: ChannelBatch, *, since_ms: int) -> tuple[int, int] | None:
        """From now on the channel goes on after this batch; the numbers that were passed over, if any.

        Nothing is missing to a reader that came after `since_ms`, when the channel had begun: it comes in here.
        """
        skipped = None
        if batch.first_seq > self.highest + 1:
            skipped = (self.highest + 1, batch.first_seq - 1)
            self.skipped.append(skipped)
        joined = self.highest == 0 and self.opened_at_ms < since_ms
        self.highest, self.chain = batch.last_seq, batch.chain
        return None if joined else skipped

    @property
    def complete(self) -> bool:
        """Whether everything that came is over."""
        return not self.open and not self.again

    def give_back(self, seq: int) -> None:
        """It was being handled, and may be handed out again."""
        if seq in self.open:
            self.open.remove(seq)
            self.again.add(seq)
            if len(self.again) > MAX_AGAIN:
                self.again.remove(min(self.again))

    def passage(self) -> Passage:
        """What was being handled is open again to whoever comes after."""
        return Passage(
            channel=self.channel,
            mailbox_key=self.mailbox_key,
            jkt=self.sender.jkt,
            opening=self.digest,
            ends_at_ms=self.ends_at_ms,
            highest=self.highest,
            chain=self.chain,
            holes=runs_of(self.open | self.again),
            skipped=tuple(self.skipped),
        )


@final
class Table:
    """The channels into one mailbox: those whose opening was proved, and those that a checkpoint speaks of."""

    def __init__(self, *, durable: bool) -> None:
        self._durable = durable
        self.known: Final[dict[bytes, Receiving]] = {}
        self.before: Final[dict[bytes, Passage]] = {}  # by opening, until that comes again

    def opened_by(self, digest: bytes) -> Receiving | None:
        return next((known for known in self.known.values() if known.digest == digest), None)

    def add(self, known: Receiving) -> None:
        self.before.pop(known.digest, None)
        self.known[known.channel] = known

    def passages(self) -> list[Passage]:
        return [*self.before.values(), *(known.passage() for known in self.known.values())]

    def restore(self, passages: Iterable[Passage]) -> None:
        self.before.update((passage.opening, passage) for passage in passages)

    def make_room(self, jkt: str, now_ms: int) -> bool:
        """Whether there is room for another channel of that sender.

        What has ended goes: nothing under it can be opened again, and its opening is refused as expired. Of a durable
        mailbox a sender's older channels go, but for a few, as soon as nothing of them is left to do, so that
        checkpoints stay small: who begins another one has nothing under way on them. Where all the room is taken,
        whoever has the most gives some up. What was forgotten does not come back: its opening is refused as replayed.
        """
        for name in [name for name, one in self.known.items() if one.ends_at_ms <= now_ms]:
            del self.known[name]
        for name in [name for name, old in self.before.items() if old.ends_at_ms <= now_ms]:
            del self.before[name]
        if self._durable:
            self._forget_complete(jkt)
        older = [name for name, old in self.before.items() if old.jkt == jkt]
        own = [name for name, one in self.known.items() if one.sender.jkt == jkt]
        if len(older) + len(own) >= MAX_OF_SENDER:
            if older:
                del self.before[older[0]]
            else:
                del self.known[own[0]]
            return True
        return len(self.before) + len(self.known) < MAX_CHANNELS or self._cede()

    def _cede(self) -> bool:
        """Make room among all senders: of whoever has the most a channel on which nothing is left to do, or if there is
        none the oldest. One that is the only one of its sender goes in the first case alone."""
        found: list[tuple[str, bool, Callable[[], object]]] = []
        found += [(old.jkt, not old.holes, partial(self.before.pop, name)) for name, old in self.before.items()]
        found += [(one.sender.jkt, one.complete, partial(self.known.pop, name)) for name, one in self.known.items()]
        counts = Counter(jkt for jkt, *_ in found)
        most = max(counts.values())
        largest = [entry for entry in found if counts[entry[0]] == most]
        idle = [entry for entry in largest if entry[1]]
        if most == 1 and not idle:
            return False
        (idle or largest)[0][2]()
        return True

    def _forget_complete(self, jkt: str) -> None:
        """A sender's channels on which nothing is left to do, but for the newest."""
        idle: list[Callable[[], object]] = []
        idle += [
            partial(self.before.pop, name) for name, old in self.before.items() if old.jkt == jkt and not old.holes
        ]
        mine = [name for name, one in self.known.items() if one.sender.jkt == jkt and one.complete]
        idle += [partial(self.known.pop, name) for name in mine]
        for forget in idle[:-MAX_COMPLETE]:
            forget()
