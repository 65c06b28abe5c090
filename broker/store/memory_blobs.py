"""Large sealed payloads of the store in memory; the same contract as sql_blobs.py."""

from typing import final

from broker.ports.mail import MAX_ENDED, BlobRecord, Queued, Quota
from broker.store.shares import blob_has_room, blob_octets
from broker.store.undo import Table, Undo


@final
class MemoryBlobs:
    """`broker.ports.mail.Blobs` in a dictionary."""

    def __init__(self, undo: Undo) -> None:
        self._rows: Table[bytes, BlobRecord] = Table(undo)

    def put(self, record: BlobRecord, quota: Quota) -> Queued:
        if self._rows.get(record.digest) is not None:
            return Queued.DUPLICATE
        beside = [
            row
            for row in self._rows.rows.values()
            if row.mailbox == record.mailbox and row.expires_at_ms > record.accepted_at_ms
        ]
        held = sum(blob_octets(row.octets) for row in beside)
        own = sum(blob_octets(row.octets) for row in beside if row.sender == record.sender)
        if not blob_has_room(quota, held=held, own=own, more=blob_octets(record.octets)):
            return Queued.FULL
        self._rows.put(record.digest, record)
        return Queued.QUEUED

    def get(self, digest: bytes) -> BlobRecord | None:
        return self._rows.get(digest)

    def drop(self, digest: bytes) -> bool:
        return self._rows.drop(digest)

    def expire(self, *, now_ms: int, most: int = MAX_ENDED) -> int:
        over = [row.digest for row in self._rows.rows.values() if row.expires_at_ms <= now_ms][:most]
        for digest in over:
            self._rows.drop(digest)
        return len(over)
