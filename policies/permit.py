"""Permit: the proof, as a type, that a policy allowed one thing to one agent at one moment.

Decides what a Permit says and how it is hashed. Only `engine.decide` makes one, from a Verdict; whoever releases or
routes takes a Permit and not a name, so a check cannot be forgotten. The seal guards against mistakes, not against
hostile code in the same process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field
from datetime import datetime
from typing import Final, NoReturn, final

_SEAL: Final = object()
TAG: Final = b"cloister/permit/v1\0"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Permit:
    """One allowed action. Holding one means that decide() allowed it at `at`, and that this holds before `not_after`.

    policy               hex digest of the bundle
    resource, version    the very name that was decided, and the secret's version (0: none in particular)
    not_after            the first moment at which an input of the decision changes; use the permit before it
    cacheable            False when a rule read the time: decide again for every use
    rules                ids of the permits that allowed it
    broker_id … nonce    what `bind` adds for a release; empty until then
    """

    policy: str
    policy_version: int
    subject: str
    tenant: str
    action: str
    resource: str
    version: int
    at: datetime
    not_after: datetime
    cacheable: bool
    rules: tuple[str, ...]
    standing: str
    workloads: tuple[str, ...]
    via: str
    broker_id: str = ""
    jkt: str = ""
    sealing_thumbprint: str = ""
    suite: str = ""
    nonce: str = ""
    _digest: bytes | None = field(default=None, init=False, repr=False, compare=False)
    seal: InitVar[object]

    def __post_init__(self, seal: object) -> None:
        if seal is not _SEAL:
            raise TypeError("a Permit comes from decide() only")

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Permit cannot be copied or pickled; decide again")

    def bind(
        self, *, broker_id: str, jkt: str, sealing_thumbprint: str, suite: str, nonce: str, version: int = 0
    ) -> Permit:
        """The same permit, for one broker, key pair, suite and request. These go into the digest.

        `version` names the version that is released, where the request left it open; it cannot change one that was
        decided. Raises ValueError when it would, or when the permit is bound already.
        """
        if self.nonce:
            raise ValueError("this permit is bound already")
        if self.version and version and version != self.version:
            raise ValueError(f"the permit is for version {self.version}, not {version}")
        return Permit(
            policy=self.policy,
            policy_version=self.policy_version,
            subject=self.subject,
            tenant=self.tenant,
            action=self.action,
            resource=self.resource,
            version=version or self.version,
            at=self.at,
            not_after=self.not_after,
            cacheable=self.cacheable,
            rules=self.rules,
            standing=self.standing,
            workloads=self.workloads,
            via=self.via,
            broker_id=broker_id,
            jkt=jkt,
            sealing_thumbprint=sealing_thumbprint,
            suite=suite,
            nonce=nonce,
            seal=_SEAL,
        )

    def claims(self) -> dict[str, str | int]:
        """What is hashed, as JSON-able values, in hashing order. Times are whole seconds, rounded down."""
        return {
            "policy": self.policy,
            "policy_version": self.policy_version,
            "subject": self.subject,
            "tenant": self.tenant,
            "action": self.action,
            "resource": self.resource,
            "version": self.version,
            "at": int(self.at.timestamp()),
            "not_after": int(self.not_after.timestamp()),
            "via": self.via,
            "broker_id": self.broker_id,
            "jkt": self.jkt,
            "sealing_thumbprint": self.sealing_thumbprint,
            "suite": self.suite,
            "nonce": self.nonce,
        }

    @property
    def digest(self) -> bytes:
        """32 bytes; see `permit_digest`."""
        if self._digest is None:
            object.__setattr__(self, "_digest", permit_digest(self.claims()))
        assert self._digest is not None
        return self._digest


CLAIMS: Final = (
    "policy",
    "policy_version",
    "subject",
    "tenant",
    "action",
    "resource",
    "version",
    "at",
    "not_after",
    "via",
    "broker_id",
    "jkt",
    "sealing_thumbprint",
    "suite",
    "nonce",
)


def permit_digest(claims: Mapping[str, str | int]) -> bytes:
    """SHA-256 over the tag and each claim of CLAIMS in order, as `length:text,` in UTF-8.

    The length counts characters, in decimal; numbers are decimal texts. The receiver of a release computes it from the
    claims that came along. Raises KeyError when one is missing.
    """
    values = [str(claims[name]) for name in CLAIMS]
    return hashlib.sha256(TAG + "".join([f"{len(value)}:{value}," for value in values]).encode()).digest()
