"""Large payloads by handle: an envelope of its own, kept beside the mailbox, named by the SHA-256 of its bytes.

A blob is an `Envelope` of type `cloister.blob` with a body of up to MAX_BLOB bytes: signed by its sender and sealed to
a key of the mailbox, like every message, and held to the same policy and labels. The message that speaks of it carries
a `BlobRef`. Whoever fetches it compares the digest, and so knows that it is the very one that the message meant.
"""

import hashlib
import hmac
import re
from dataclasses import dataclass
from typing import Any, Final, Self, final

from broker.wire.envelope import MAX_HEADER, Envelope
from broker.wire.errors import WireCode, WireError
from broker.wire.fields import Reader

BLOB_TYPE: Final = "cloister.blob"
MAX_BLOB: Final = (16 << 20) + 2048  # 16 MiB of plaintext and what HPKE adds
MAX_BLOB_BYTES: Final = MAX_BLOB + MAX_HEADER + 128  # as it travels
DIGEST: Final = re.compile(r"[0-9a-f]{64}")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class BlobRef:
    """What a message says about a blob: its digest (hex) and its size in bytes, as it travels."""

    sha256: str
    octets: int

    @classmethod
    def of(cls, raw: bytes) -> Self:
        return cls(sha256=hashlib.sha256(raw).hexdigest(), octets=len(raw))

    def open(self, raw: bytes) -> Envelope:
        """The envelope, if these are the bytes that are meant. Raises WireError: envelope.malformed."""
        if not hmac.compare_digest(hashlib.sha256(raw).hexdigest(), self.sha256):
            raise WireError(WireCode.ENVELOPE_MALFORMED, f"blob {self.sha256[:16]}… came with other bytes")
        return Envelope.from_bytes(raw, max_body=MAX_BLOB)

    def to_dict(self) -> dict[str, Any]:
        return {"sha256": self.sha256, "octets": self.octets}

    @classmethod
    def from_dict(cls, value: object) -> Self:
        read = Reader(value, "blob")
        made = cls(
            sha256=read.text("sha256", max_len=64, pattern=DIGEST),
            octets=read.number("octets", low=1, high=MAX_BLOB_BYTES),
        )
        read.end()
        return made
