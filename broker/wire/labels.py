"""What an agent is held to: the labels of all that was released and delivered to it.

Decides the form of the answer. The account is the broker's; the framework asks for it when it has fallen behind.
"""

from dataclasses import dataclass
from typing import Any, Final, Self, final

from broker.wire.fields import Reader
from broker.wire.release import MAX_LABEL

MAX_HELD: Final = 1024


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class HeldLabels:
    """GET /v1/labels: what every message of the asking agent must carry."""

    labels: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return {"labels": list(self.labels)}

    @classmethod
    def from_dict(cls, value: object) -> Self:
        return cls(labels=Reader(value, "labels").texts("labels", max_items=MAX_HELD, max_len=MAX_LABEL))
