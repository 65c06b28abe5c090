"""What is kept about released secrets: who got what, on which ground, and until when.

Decides the records and questions, as a Protocol. The log is the record of these events; what is kept here finds them by
secret, workload, measurement or platform, and counts leases.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, final

FactKind = Literal["workload", "measurement", "platform"]
FACTS: tuple[FactKind, ...] = ("workload", "measurement", "platform")


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
    told = "\n".join(f"{kind} {value}" for kind, value in sorted(set(facts)))
    return f"{evidence}/{policy}/{hashlib.sha256(told.encode()).hexdigest()[:32]}"


class Releases(Protocol):
    def record(self, released: Released, facts: Sequence[tuple[FactKind, str]]) -> None:
        """The facts of a ground are kept once."""

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

    def ended(self, *, now_s: int, limit: int) -> Sequence[Lease]:
        """Leases to be closed: past their end, or of agents that are not admitted any more."""
