"""A message that was proved and opened, whichever way it came: what `handling` and handlers look at.

Decides nothing. It came for a mailbox or from a topic, on a channel or as an envelope of its own; from here on they are
alike.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Self, final

from attestation.verdict import Verdict
from enclave.ledger import Incoming


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """An opened message. `sender` is the subject in the verdict `peer`; `reply_to` the mailbox where it waits for an
    answer, or nothing; `lease` names this delivery; `origin` is for whoever must settle it, if anybody must."""

    type: str
    sender: str
    peer: Verdict = field(repr=False)
    msg_id: bytes
    in_reply_to: bytes
    reply_to: str
    labels: frozenset[str]
    plaintext: bytes = field(repr=False)
    attempt: int
    lease: str
    origin: Incoming | None = field(default=None, repr=False)
    blob: str = ""  # the name of the large payload that came with it

    @property
    def settled_as(self) -> Incoming:
        """What the ledger calls it."""
        if self.origin is None:
            raise TypeError("a message of a topic is not settled")
        return self.origin

    @classmethod
    def streamed(cls, incoming: Incoming) -> Self:
        return cls(
            type=incoming.type,
            sender=incoming.sender,
            peer=incoming.verdict,
            msg_id=incoming.msg_id,
            in_reply_to=incoming.in_reply_to,
            reply_to=incoming.reply_to,
            labels=incoming.labels,
            plaintext=incoming.plaintext,
            attempt=incoming.attempt,
            lease=f"{incoming.key[0].hex()}.{incoming.key[1]}.{incoming.seq}",
            origin=incoming,
        )

    @classmethod
    def published(cls, incoming: Incoming, *, attempt: int) -> Self:
        """It came from a topic, where nobody waits to hear what became of it."""
        return replace(cls.streamed(incoming), lease="", attempt=attempt, origin=None)
