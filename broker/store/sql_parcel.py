"""A parcel as a row of the SQLite store, without its sealed bytes."""

import json
from typing import Final, NamedTuple

from broker.ports.mail import End, EndedParcel, LeasedMessage

COLUMNS: Final = (
    "id, mailbox, sender, kind, count, msg_id, digest, accepted_at_ms, expires_at_ms, visible_at_ms, attempt, lease, "
    "octets, remaining, dead_reason, last_code"
)


class ParcelRow(NamedTuple):
    """In the order of COLUMNS."""

    id: int
    mailbox: str
    sender: str
    kind: str
    size: int  # messages when it came
    msg_id: bytes
    digest: bytes
    accepted_at_ms: int
    expires_at_ms: int
    visible_at_ms: int
    attempt: int
    lease: str | None
    octets: int
    remaining: str
    dead_reason: str
    last_code: str

    @property
    def undone(self) -> tuple[int, ...]:
        return tuple(json.loads(self.remaining)) if self.remaining else ()

    @property
    def messages(self) -> int:
        return len(self.undone) or self.size

    def ended(self, end: End, code: str = "") -> EndedParcel:
        return EndedParcel(
            number=self.id,
            mailbox=self.mailbox,
            sender=self.sender,
            kind=self.kind,
            count=self.size,
            msg_id=self.msg_id,
            digest=self.digest,
            accepted_at_ms=self.accepted_at_ms,
            end=end,
            code=code or self.last_code,
        )

    def leased(self, lease: str, envelope: bytes) -> LeasedMessage:
        return LeasedMessage(
            sender=self.sender,
            envelope=envelope,
            accepted_at_ms=self.accepted_at_ms,
            attempt=self.attempt + 1,
            lease=lease,
            kind=self.kind,
            count=self.size,
            msg_id=self.msg_id,
            digest=self.digest,
            expires_at_ms=self.expires_at_ms,
            remaining=self.undone,
            dead_reason=self.dead_reason,
            number=self.id,
        )
