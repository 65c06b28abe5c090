"""The broker's word about mail that it took in: when that was, and on which channel.

Decides what a receiver is shown beside a parcel: a signature over mailbox or topic, digest and time, by which it judges
the sender as of then; and for a batch the envelope that opened its channel, for as long as that is kept.
"""

from collections.abc import Iterator, Mapping
from typing import final

from broker.identity import Identity
from broker.ports import Store, Transaction
from broker.wire.envelope import Envelope
from broker.wire.errors import WireError
from broker.wire.jose import es256_sign
from broker.wire.mailbox import Delivery, OpeningDelivery


@final
class Acceptances:
    """Signs for what was taken in."""

    def __init__(self, *, store: Store, identity: Identity) -> None:
        self._store = store
        self._identity = identity

    def of(self, name: str, digest: bytes, accepted_at_ms: int) -> bytes:
        """That this parcel was taken in for that mailbox or topic at that time."""
        return es256_sign(self._identity.key, Delivery.message(name, digest, accepted_at_ms))

    def openings(self, name: str, channels: Mapping[bytes, bool]) -> Iterator[OpeningDelivery]:
        """Of channels whose batches were taken, and whether their senders have fallen: then with what proved them.

        One that is lost, or is no envelope any more, is left out: what came on its channel cannot be opened, and the
        receiver says so.
        """

        def query(tx: Transaction) -> list[tuple[bytes, int, str]]:
            found = [
                (tx.channels.opening(one), tx.channels.get(one) if fell else None) for one, fell in channels.items()
            ]
            return [
                (opening[0], opening[1], (record and tx.mail.token_at(record.sender, opening[1] // 1000)) or "")
                for opening, record in found
                if opening is not None
            ]

        for raw, accepted_at_ms, token in self._store.read(query):
            try:
                envelope = Envelope.from_bytes(raw)
            except WireError:  # somebody has been at the database
                continue
            yield OpeningDelivery(
                envelope=envelope,
                accepted_at_ms=accepted_at_ms,
                acceptance=self.of(name, envelope.digest, accepted_at_ms),
                sender_token=token,
            )
