"""What is kept about released secrets: who got what, on which ground, and until when.

Decides the records and questions, as a Protocol. The log is the record of these events; what is kept here finds them by
secret, workload, measurement or platform, and counts leases.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal, Protocol, final

FactKind = Literal["workload", "measurement", "platform"]
FACTS: tuple[FactKind, ...] = ("workload", "measurement", "platform")
_DIGEST_LEN: Final = 64  # hex digits


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """One release. `entry` is its index in the log; `ground` names evidence and policy that it rested on."""

    entry: int
    at_ms: int
    name: str
    version: int
    subject: str
    ground: str
    via: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """How long a version of a secret is released again to one subject. It takes nothing back when it ends."""

    name: str
    version: int
    subject: str
    begun_at_s: int
    ends_at_s: int
    closed: bool = False


def ground_of(evidence: str, policy: str, facts: Sequence[tuple[FactKind, str]]) -> str:
    """Names what a release rested on: digest of the evidence, digest of the policy, and digest of the facts."""
    return f"{evidence}/{policy}/{_digest(tuple(facts))}"


@lru_cache(maxsize=1024)
def _digest(facts: tuple[tuple[FactKind, str], ...]) -> str:
    """Agents of one image on one platform have the same."""
    told = "\n".join(f"{kind} {value}" for kind, value in sorted(set(facts)))
    return hashlib.sha256(told.encode()).hexdigest()


def key_of(ground: str) -> str:
    """Under what the facts of a ground are kept: their digest, or for grounds of earlier versions the ground itself."""
    digest = ground.rpartition("/")[2]
    return digest if len(digest) == _DIGEST_LEN else ground


def rests_on(ground: str, facts: Sequence[tuple[FactKind, str]]) -> bool:
    """Whether a ground names these facts. Earlier versions kept half of the digest."""
    digest, told = _digest(tuple(facts)), ground.rpartition("/")[2]
    return told in (digest, digest[: _DIGEST_LEN // 2])


class Releases(Protocol):
    def record(self, released: Released, facts: Sequence[tuple[FactKind, str]]) -> None:
        """The same facts are kept once, whatever grounds name them."""

    def page(
        self,
        *,
        tenant: str | None = None,
        name: str | None = None,
        subject: str | None = None,
        fact: tuple[FactKind, str] | None = None,
        after: int = -1,
        limit: int = 100,
    ) -> Sequence[Released]:
        """Those that fit everything that is named, in order of the log."""

    def facts(self, ground: str) -> Sequence[tuple[FactKind, str]]: ...
    def lease(self, name: str, version: int, subject: str) -> Lease | None: ...
    def put_lease(self, lease: Lease) -> None: ...
    def leases(self, *, tenant: str | None = None, after: str = "", limit: int = 100) -> Sequence[Lease]:
        """Those that are not closed, of names behind `after`; every lease of a name or none."""

    def lent(self, subject: str) -> bool:
        """Whether a lease of that subject is not closed."""

    def forget(self, subject: str) -> None:
        """Drop the closed leases of a subject that never comes again."""

    def ended(self, *, now_s: int, limit: int) -> Sequence[Lease]:
        """Leases to be closed: past their end, or of agents that are not admitted any more."""
