"""Rows of mail that are not what was taken in: somebody has been at the database.

Decides that such a row stops nobody from reading the others: of a topic it is dropped, and counted as missed by whoever
has not read it; log, log file and metrics hear of it. What of it would still open, its reader's own checks refuse.
"""

import hmac
import logging
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any, Final, final

from broker.audit import Audit, Entry, Kind
from broker.errors import BrokerCode
from broker.mail.labels import labels_in
from broker.mail.sparing import Sparing
from broker.ports import Store, Transaction
from broker.ports.topics import TopicMessage
from broker.wire.channel import ChannelBatch
from broker.wire.envelope import Envelope
from broker.wire.errors import WireError
from broker.wire.fields import MAX_INT
from broker.wire.names import tenant_of

MAX_LISTED: Final = 64  # entries about one topic that the log gets at once
logger = logging.getLogger("cloister.broker.forged")


@final
class Forged:
    """Finds them, drops them, and counts them."""

    def __init__(self, *, store: Store, audit: Audit) -> None:
        self._store = store
        self._audit = audit
        self._listed = Sparing(MAX_LISTED)
        self.count = 0  # since the broker started

    def among(self, messages: Iterable[TopicMessage]) -> Iterator[TopicMessage]:
        """Those that cannot have been taken in as they are."""
        return (message for message in messages if not _sound(message))

    async def drop(self, topic: str, broken: Iterable[TopicMessage], at: datetime) -> None:
        """Nobody is shown them any more."""
        numbers = [message.number for message in broken]

        def work(tx: Transaction) -> int:
            dropped = sum(tx.topics.drop(topic, number) for number in numbers)
            unlisted = self._listed.left_out(topic, at) if dropped else None
            if unlisted is not None:
                self._audit.append(tx, _entry(topic, numbers, unlisted, at))
            return dropped

        self.noticed(topic, await self._store.transact(work))

    def noticed(self, name: str, rows: int) -> None:
        """So many rows of that mailbox or topic are forged."""
        if rows:
            self.count += rows
            logger.error(BrokerCode.STORE_ROW_FORGED, extra={"resource": name, "rows": rows})


def _entry(topic: str, numbers: list[int], unlisted: int, at: datetime) -> Entry:
    return Entry(
        kind=Kind.MAIL_DROPPED,
        at=at,
        tenant=tenant_of(topic),
        resource=topic,
        codes=(BrokerCode.STORE_ROW_FORGED,),
        more={
            "parcels": len(numbers),
            "numbers": [str(number) for number in numbers],
            **({"unlisted": unlisted} if unlisted else {}),
        },
    )


def _sound(message: TopicMessage) -> bool:
    """Whether it has the form of what was taken in, and the digest for which the broker signs."""
    columns: tuple[Any, Any, Any] = message.accepted_at_ms, message.digest, message.sender  # of any type, in SQLite
    if not (isinstance(columns[0], int) and 0 <= columns[0] <= MAX_INT and isinstance(columns[1], bytes)):
        return False
    if not isinstance(columns[2], str):
        return False
    try:
        labels_in(message.kind, message.envelope)
        read = ChannelBatch if message.kind == "batch" else Envelope
        digest = read.from_bytes(message.envelope).digest
    except WireError:
        return False
    return hmac.compare_digest(digest, message.digest)
