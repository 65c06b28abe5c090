"""POST /v1/keys/{name}:derive: a key of the workload's own, derived by the broker. The answer is that of a release."""

from dataclasses import dataclass
from typing import Any, Final, Self, final

from broker.wire.fields import NONCE_LEN, Reader
from broker.wire.jose import b64u
from broker.wire.release import MAX_VERSION

DERIVED_VERSION: Final = MAX_VERSION
"""Stands in the permit of a derived key, where no version of a secret can reach: neither passes for the other."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class DeriveRequest:
    """With `workload` the key is that workload's, whatever its code becomes; without, that of these measurements."""

    nonce: bytes
    workload: str | None = None

    def to_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = {"nonce": b64u(self.nonce)}
        if self.workload is not None:
            found["workload"] = self.workload
        return found

    @classmethod
    def from_dict(cls, value: object) -> Self:
        read = Reader(value, "derive")
        made = cls(nonce=read.raw("nonce", size=NONCE_LEN), workload=read.text_or_none("workload", max_len=64))
        read.end()
        return made
