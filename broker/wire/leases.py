"""What a receiver says about its leases: done, done in part, give back, keep longer, refuse for good.

All of it about one delivery each, named by the lease's token; a lease that has ended is `lost`, whatever is said of it.
"""

import re
from dataclasses import dataclass
from typing import Any, Final, Self, final

from broker.wire.envelope import MAX_BATCH
from broker.wire.errors import WireCode, WireError
from broker.wire.fields import MAX_INT, Reader

DEFAULT_LEASE_S: Final = 30
MAX_LEASE_S: Final = 12 * 3600
MAX_LEASE_TOKEN: Final = 64
MAX_EXCEPT: Final = 1024  # messages of one batch
CODE: Final = re.compile(r"[a-z0-9_]{1,32}(\.[a-z0-9_]{1,32}){0,3}")


def _lease(read: Reader) -> str:
    return read.text("lease", max_len=MAX_LEASE_TOKEN)


def _code(read: Reader) -> str:
    """Why, as a code: free text could carry what was in the message."""
    return read.text_or_none("code", max_len=128, pattern=CODE) or ""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Nak:
    """Give a parcel back, to be delivered again after `delay_s`; `code` says why."""

    lease: str
    delay_s: int = 0
    code: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {"lease": self.lease, "delay_s": self.delay_s, **({"code": self.code} if self.code else {})}

    @classmethod
    def from_dict(cls, value: object) -> Self:
        read = Reader(value, "ack.nak")
        made = cls(lease=_lease(read), delay_s=read.number("delay_s", high=MAX_LEASE_S, default=0), code=_code(read))
        read.end()
        return made


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Partly:
    """All of a batch is done except these sequence numbers, which are to be delivered again after `delay_s`."""

    lease: str
    but: tuple[int, ...]
    delay_s: int = 0
    code: str = ""

    def to_dict(self) -> dict[str, Any]:
        told = {"lease": self.lease, "but": list(self.but), "delay_s": self.delay_s}
        return {**told, **({"code": self.code} if self.code else {})}

    @classmethod
    def from_dict(cls, value: object) -> Self:
        read = Reader(value, "ack.partly")
        made = cls(
            lease=_lease(read),
            but=read.items("but", _number, max_items=MAX_EXCEPT),
            delay_s=read.number("delay_s", high=MAX_LEASE_S, default=0),
            code=_code(read),
        )
        read.end()
        if not made.but or list(made.but) != sorted(set(made.but)):
            raise WireError(WireCode.BODY_FIELD_INVALID, "ack.partly.but must be sorted numbers, at least one")
        return made


def _number(item: object) -> int:
    if not isinstance(item, int) or isinstance(item, bool) or not 0 <= item <= MAX_INT:
        raise WireError(WireCode.BODY_FIELD_INVALID, "ack.partly.but must be whole numbers")
    return item


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Extension:
    """Keep a lease for `lease_s` from now, never longer than 12 hours after it was given."""

    lease: str
    lease_s: int = DEFAULT_LEASE_S

    def to_dict(self) -> dict[str, Any]:
        return {"lease": self.lease, "lease_s": self.lease_s}

    @classmethod
    def from_dict(cls, value: object) -> Self:
        read = Reader(value, "ack.extend")
        made = cls(lease=_lease(read), lease_s=read.number("lease_s", low=1, high=MAX_LEASE_S, default=DEFAULT_LEASE_S))
        read.end()
        return made


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """This will never be handled: make it a dead letter, for the reason that `code` names."""

    lease: str
    code: str

    def to_dict(self) -> dict[str, Any]:
        return {"lease": self.lease, "code": self.code}

    @classmethod
    def from_dict(cls, value: object) -> Self:
        read = Reader(value, "ack.reject")
        made = cls(lease=_lease(read), code=read.text("code", max_len=128, pattern=CODE))
        read.end()
        return made


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class AckRequest:
    """POST /v1/mailboxes/{name}:ack: what became of what was delivered, for any number of leases at once."""

    ack: tuple[str, ...] = ()
    nak: tuple[Nak, ...] = ()
    partly: tuple[Partly, ...] = ()
    extend: tuple[Extension, ...] = ()
    reject: tuple[Rejection, ...] = ()

    @property
    def size(self) -> int:
        return len(self.ack) + len(self.nak) + len(self.partly) + len(self.extend) + len(self.reject)

    def to_dict(self) -> dict[str, Any]:
        told: dict[str, Any] = {"ack": list(self.ack), "nak": [item.to_dict() for item in self.nak]}
        if self.partly:
            told["partly"] = [item.to_dict() for item in self.partly]
        if self.extend:
            told["extend"] = [item.to_dict() for item in self.extend]
        if self.reject:
            told["reject"] = [item.to_dict() for item in self.reject]
        return told

    @classmethod
    def from_dict(cls, value: object) -> Self:
        read = Reader(value, "ack")
        made = cls(
            ack=read.texts("ack", max_items=MAX_BATCH, max_len=MAX_LEASE_TOKEN),
            nak=read.items("nak", Nak.from_dict, max_items=MAX_BATCH, optional=True),
            partly=read.items("partly", Partly.from_dict, max_items=MAX_BATCH, optional=True),
            extend=read.items("extend", Extension.from_dict, max_items=MAX_BATCH, optional=True),
            reject=read.items("reject", Rejection.from_dict, max_items=MAX_BATCH, optional=True),
        )
        read.end()
        return made


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class AckResponse:
    """`lost` are leases that had already ended: those messages will be, or were, delivered again."""

    done: int
    lost: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return {"done": self.done, "lost": list(self.lost)}

    @classmethod
    def from_dict(cls, value: object) -> Self:
        read = Reader(value, "ack")
        return cls(done=read.number("done"), lost=read.texts("lost", max_items=5 * MAX_BATCH, max_len=MAX_LEASE_TOKEN))
