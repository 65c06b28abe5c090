"""What a broker in a trust domain sends about itself: quote, event log, collateral, and what the quote binds.

Decides the form and the digest of a broker's evidence. What it proves, and to whom, is decided in attested.py.
"""

import hashlib
from dataclasses import dataclass, field
from typing import Any, Final, Self, final

from attestation.collateral import MAX_COLLATERAL
from attestation.eventlog import MAX_LOG
from attestation.quote import MAX_QUOTE
from broker.wire.fields import Reader
from broker.wire.jose import b64u
from broker.wire.tags import Tag, tagged

MAX_SUITE: Final = 64
MAX_SEALING_KEY: Final = 2048


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerEvidence:
    """What a broker in a trust domain sends about itself, unverified. `collateral` is its JSON text."""

    quote: bytes = field(repr=False)
    event_log: bytes | None = field(repr=False)
    suite: str
    sealing_key: bytes = field(repr=False)
    trust_file_digest: bytes
    collateral: str = field(repr=False)

    @property
    def digest(self) -> bytes:
        """32 bytes that name the evidence, collateral included."""
        log = b"" if self.event_log is None else hashlib.sha256(self.event_log).digest()
        parts = (hashlib.sha256(part).digest() for part in (self.quote, self.collateral.encode()))
        fields = (*parts, log, self.suite.encode(), self.sealing_key, self.trust_file_digest)
        return hashlib.sha256(tagged(Tag.BROKER_EVIDENCE, *fields)).digest()

    def to_dict(self) -> dict[str, Any]:
        log = {} if self.event_log is None else {"event_log": b64u(self.event_log)}
        return {
            "quote": b64u(self.quote),
            **log,
            "suite": self.suite,
            "sealing_key": b64u(self.sealing_key),
            "trust_file_digest": b64u(self.trust_file_digest),
            "collateral": self.collateral,
        }

    @classmethod
    def from_dict(cls, value: object) -> Self:
        read = Reader(value, "evidence")
        return cls(
            quote=read.raw("quote", max_len=MAX_QUOTE),
            event_log=read.raw_or_none("event_log", max_len=MAX_LOG),
            suite=read.text("suite", max_len=MAX_SUITE),
            sealing_key=read.raw("sealing_key", max_len=MAX_SEALING_KEY),
            trust_file_digest=read.raw("trust_file_digest", size=32),
            collateral=read.text("collateral", max_len=MAX_COLLATERAL),
        )
