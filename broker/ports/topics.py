"""What is kept of topics and of readers' checkpoints, as Protocols.

Decides the shape of a topic: each parcel, a single envelope or a batch of a channel, lies there once, and every
reader has a place up to which it is done. Who may read or write, and under which keys, is decided by topics.py. Nothing
here is opened or verified.

Times are integers: `_s` seconds, `_ms` milliseconds since 1970.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, final

from broker.ports.mail import NO_LIMIT, Queued, Quota

MAX_PAGE: Final = 64
BEHIND_MS: Final = 60_000  # a reader that has not read what was taken in so long ago holds up nobody


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TopicMessage:
    """One envelope, or one batch of a channel, whose `count` messages come and go together.

    `number` counts upwards inside the store and is given by it.
    """

    topic: str
    sender: str
    msg_id: bytes
    digest: bytes
    key: bytes  # thumbprint of the topic's key that it is sealed to
    accepted_at_ms: int
    expires_at_ms: int
    envelope: bytes = field(repr=False)
    kind: str = "envelope"  # or "batch"
    count: int = 1
    number: int = 0


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TopicReader:
    """A reader: done with everything up to `place`, given the keys from `epoch` on.

    `missed` counts the messages that went, since it joined, before it had read them.
    """

    topic: str
    subject: str
    place: int
    epoch: int
    joined_at_ms: int
    missed: int = 0


class Topics(Protocol):
    def publish(self, message: TopicMessage, quota: Quota) -> Queued:
        """Keep it until it expires or every reader is done with it.

        When there is no room, what is wanted by nobody but readers who are more than BEHIND_MS behind makes some, the
        oldest of whoever has the most, and is counted as missed by them.
        """

    def join(self, reader: TopicReader) -> TopicReader:
        """The reader as it is known; a new one begins behind the newest message, whatever its `place` says."""

    def reader(self, topic: str, subject: str) -> TopicReader | None: ...
    def readers(self, topic: str) -> Sequence[TopicReader]: ...
    def of(self, subject: str) -> Sequence[str]:
        """The topics that it reads, in order."""

    def leave(self, topic: str, subject: str) -> bool: ...
    def page(
        self,
        topic: str,
        *,
        after: int,
        now_ms: int,
        limit: int = MAX_PAGE,
        messages: int = NO_LIMIT,
        octets: int = NO_LIMIT,
    ) -> Sequence[TopicMessage]:
        """In order, without what has expired: no more than that, but for the first one, however large it is."""

    def drop(self, topic: str, number: int) -> bool:
        """Take one out that is not to be read; whoever has not read it misses it."""

    def advance(self, topic: str, subject: str, place: int) -> bool:
        """Move a reader forwards, never back and never behind the newest message; False when it is none."""

    def keys(self, topic: str) -> frozenset[bytes]:
        """Thumbprints of the keys that waiting messages, or the openings of their channels, are sealed to."""

    def channels(self, topic: str, sender: str) -> frozenset[bytes]:
        """First halves of the names of the sender's channels of which a batch lies there."""

    def expire(self, *, now_ms: int) -> int:
        """Drop what has expired; how many there were."""


class States(Protocol):
    """The newest sealed checkpoint of each mailbox's reader."""

    def put(self, mailbox: str, sealed: bytes) -> None: ...
    def get(self, mailbox: str) -> bytes: ...
    def drop(self, mailbox: str) -> None: ...
