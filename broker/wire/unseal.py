"""A sealed broker and those who open it: what it lacks, a share on its way, a checkpoint that somebody confirms.

A share is sealed by HPKE to a key of this very process; where the broker is attested, that key is bound in its quote.
What a share is worth, and who may confirm, is decided by the broker.
"""

from dataclasses import dataclass, field
from typing import Any, Final, Self, final

from broker.wire.fields import Reader
from broker.wire.jose import b64u
from broker.wire.log import MAX_CHECKPOINT
from broker.wire.tags import Tag, tagged

MAX_KEY: Final = 2048
MAX_SEALED: Final = 4096
MAX_SHARES: Final = 32


def share_info(key: bytes) -> bytes:
    """HPKE `info` of a share that is brought: for this key of this process, and for nothing else."""
    return tagged(Tag.UNSEAL, key)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class UnsealStatus:
    """GET /v1/unseal: `state` says what is missing: shares, somebody's word for the newest checkpoint, or nothing."""

    state: str
    root: str = ""  # id of the root key that the shares give
    threshold: int = 0
    count: int = 0
    given: tuple[int, ...] = ()  # places of the shares that were brought
    suite: str = ""
    key: bytes = b""  # to which shares are sealed
    attested: bool = False  # POST /v1/unseal:challenge proves where that key is
    checkpoint: str = ""  # the newest one that this broker knows

    def to_dict(self) -> dict[str, Any]:
        return {
            "state": self.state,
            "root": self.root,
            "threshold": self.threshold,
            "count": self.count,
            "given": list(self.given),
            "suite": self.suite,
            "key": b64u(self.key),
            "attested": self.attested,
            "checkpoint": self.checkpoint,
        }

    @classmethod
    def from_dict(cls, value: object) -> Self:
        read = Reader(value, "unseal")
        return cls(
            state=read.text("state", max_len=16),
            root=read.text("root", max_len=64),
            threshold=read.number("threshold", high=MAX_SHARES),
            count=read.number("count", high=MAX_SHARES),
            given=read.items("given", _place, max_items=MAX_SHARES),
            suite=read.text("suite", max_len=64),
            key=read.raw("key", max_len=MAX_KEY),
            attested=read.flag("attested"),
            checkpoint=read.text("checkpoint", max_len=MAX_CHECKPOINT),
        )


def _place(value: object) -> int:
    return Reader({"index": value}, "unseal.given").number("index", low=1, high=MAX_SHARES)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ShareOffer:
    """POST /v1/unseal: one share, sealed to the key of the status."""

    sealed: bytes = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        return {"sealed": b64u(self.sealed)}

    @classmethod
    def from_dict(cls, value: object) -> Self:
        read = Reader(value, "share")
        made = cls(sealed=read.raw("sealed", max_len=MAX_SEALED))
        read.end()
        return made


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Confirmation:
    """POST /v1/unseal:confirm: "I have seen no newer checkpoint than this one"."""

    checkpoint: str

    def to_dict(self) -> dict[str, Any]:
        return {"checkpoint": self.checkpoint}

    @classmethod
    def from_dict(cls, value: object) -> Self:
        read = Reader(value, "confirmation")
        made = cls(checkpoint=read.text("checkpoint", max_len=MAX_CHECKPOINT))
        read.end()
        return made
