"""What an agent needs to verify a peer's quote itself: collateral for the peer's platform.

It may come from anybody, since Intel signed it; the agent judges it under the roots of its own trust file.
"""

from dataclasses import dataclass, field
from typing import Any, Self, final

from attestation.collateral import MAX_COLLATERAL
from broker.wire.fields import Reader
from broker.wire.names import MAX_SUBJECT, SUBJECT


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PeerCollateral:
    """GET /v1/agents/{subject}:collateral: the JSON text by which that agent was last judged."""

    subject: str
    collateral: str = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        return {"subject": self.subject, "collateral": self.collateral}

    @classmethod
    def from_dict(cls, value: object) -> Self:
        read = Reader(value, "collateral")
        return cls(
            subject=read.text("subject", max_len=MAX_SUBJECT, pattern=SUBJECT),
            collateral=read.text("collateral", max_len=MAX_COLLATERAL),
        )
