"""The terms of a secret: how long it is lent, what happens when that ends, and what people wrote about it.

The terms belong to the name and hold for versions that are released from now on. They say nothing about a value.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self, final

from broker.wire.errors import WireCode, WireError
from broker.wire.fields import Reader, parse_object

MAX_LEASE_S: Final = 366 * 24 * 3600
MIN_LEASE_S: Final = 1
MAX_META: Final = 16
MAX_META_VALUE: Final = 256
MAX_TEXT: Final = 8192
_META_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SecretTerms:
    """`lease_s` None: released again for as long as the policy permits. `draw`: a new value is drawn when a lease ends;
    without it the operator is told that one is due. `meta` is for people: owner, purpose, ticket.
    """

    lease_s: int | None = None
    draw: bool = False
    meta: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {"lease_s": self.lease_s, "draw": self.draw, "meta": dict(self.meta)}

    def to_text(self) -> str:
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_dict(cls, value: object) -> Self:
        """Raises WireError body.*"""
        read = Reader(value, "terms")
        made = cls(
            lease_s=read.number_or_none("lease_s", low=MIN_LEASE_S, high=MAX_LEASE_S),
            draw=read.flag("draw"),
            meta=_meta(read.mapping("meta")),
        )
        read.end()
        return made

    @classmethod
    def from_text(cls, text: str) -> Self:
        return cls.from_dict(parse_object(text.encode(), max_len=MAX_TEXT))


def _meta(members: dict[str, Any]) -> dict[str, str]:
    good = len(members) <= MAX_META and all(
        _META_NAME.fullmatch(name) and isinstance(value, str) and len(value) <= MAX_META_VALUE
        for name, value in members.items()
    )
    if not good:
        detail = f"terms.meta: at most {MAX_META} names of A-Z a-z 0-9 _ . -, each with a text of {MAX_META_VALUE}"
        raise WireError(WireCode.BODY_FIELD_INVALID, detail)
    return members


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseEnd:
    """POST /v1/leases:end: no release again of that version to that agent, and a rotation."""

    name: str
    version: int
    subject: str

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "version": self.version, "subject": self.subject}

    @classmethod
    def from_dict(cls, value: object) -> Self:
        read = Reader(value, "lease")
        made = cls(
            name=read.text("name", max_len=1024),
            version=read.number("version", low=1, high=2**31 - 1),
            subject=read.text("subject", max_len=256),
        )
        read.end()
        return made
