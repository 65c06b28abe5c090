"""What is kept of channels, as a Protocol: who opened which, to whom, and how far each has come.

Decides what survives a restart: the opening, until the last message that came on the channel has ended, and the place
in the hash chain after the newest batches, by which a resend is told from a forgery.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, final


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelRecord:
    """A channel. `ends`: newest batches' last numbers and the chain after each, packed by `broker.mail.channels`."""

    channel: bytes
    sender: str
    mailbox: str
    key: bytes  # thumbprint of the mailbox key to which the opening is sealed
    incarnation: bytes
    highest: int
    chain: bytes
    ends: bytes
    accepted_at_ms: int
    until_ms: int  # when the opening and every message taken in so far have ended
    opening: bytes = field(repr=False, default=b"")  # the envelope; empty where it was not asked for


class ChannelRows(Protocol):
    def get(self, channel: bytes) -> ChannelRecord | None:
        """Without the opening."""

    def of(self, sender: str, mailbox: str) -> Sequence[bytes]:
        """The names of the sender's channels to that mailbox, oldest first."""

    def last(self, sender: str) -> int:
        """When the last of the sender's channels ends that are kept (ms); 0 when there is none."""

    def drop(self, channel: bytes) -> None:
        """Forget it and its opening."""

    def open(self, record: ChannelRecord) -> None:
        """Keep a new one; forget some of those that ended before this one came."""

    def advance(self, record: ChannelRecord) -> None:
        """Keep its new `highest`, `chain`, `ends` and `until_ms`."""

    def opening(self, channel: bytes) -> tuple[bytes, int] | None:
        """The envelope, and when it was taken in (ms)."""
