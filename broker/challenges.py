"""Nonces: issue for nothing, consume once, expire by themselves.

A nonce is 32 bytes: milliseconds since 1970 (6) ‖ random (10) ‖ HMAC-SHA256 (first 16) over purpose, time, random and
the caller's own nonce. So issuing remembers nothing (a million unused nonces cost no memory), a nonce for one purpose
or caller is none for another, and only used ones are kept until they expire.

Decides whether a nonce may be used now. `claim` is the gate in this process; `Claim.settle` runs inside the
transaction whose effect rests on the nonce, and there decides for all processes on one store.
"""

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from datetime import datetime
from typing import Final, final

from attestation.encoding import framed
from broker.errors import BrokerCode, BrokerError
from broker.ports import Transaction

NONCE_LEN: Final = 32
LIFE_S: Final = 60
_TIME_LEN: Final = 6
_RANDOM_LEN: Final = 10
_MAC_LEN: Final = 16
_TAG: Final = b"cloister/nonce/v1"


@final
class Once:
    """Remembers values until they expire, in two generations, so that forgetting costs nothing."""

    def __init__(self, life_s: int) -> None:
        self._life_s = life_s
        self._turn_s = 0.0
        self._young: set[bytes] = set()
        self._old: set[bytes] = set()

    def first(self, value: bytes, now_s: float) -> bool:
        """True when the value was not seen within its life. It is seen now."""
        if now_s - self._turn_s > self._life_s:
            self._old = self._young if now_s - self._turn_s <= 2 * self._life_s else set()
            self._young, self._turn_s = set(), now_s
        if value in self._young or value in self._old:
            return False
        self._young.add(value)
        return True

    def __len__(self) -> int:
        return len(self._young) + len(self._old)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A nonce that this process took first. What it permits happens in a transaction that settles it."""

    nonce: bytes
    expires_at_s: int
    now_s: int

    def settle(self, tx: Transaction) -> None:
        """Raises BrokerError challenge.used, when another process or an earlier life of this one was first."""
        if not tx.nonces.consume(self.nonce, expires_at_s=self.expires_at_s, now_s=self.now_s):
            raise BrokerError(BrokerCode.CHALLENGE_USED, "recorded in the store")


@final
class Challenges:
    """Issues and takes nonces of one purpose under one MAC key."""

    def __init__(self, key: bytes, purpose: str, *, life_s: int = LIFE_S) -> None:
        self._keyed = hmac.new(key, digestmod=hashlib.sha256)  # a copy costs less than to begin again
        self._purpose = purpose.encode("ascii")
        self.life_s: Final[int] = life_s
        self._taken = Once(life_s)

    def issue(self, caller: bytes, at: datetime) -> bytes:
        """A nonce for the caller who sent its own."""
        head = int(at.timestamp() * 1000).to_bytes(_TIME_LEN, "big") + secrets.token_bytes(_RANDOM_LEN)
        return head + self._mac(head, caller)

    def check(self, nonce: bytes, caller: bytes, at: datetime) -> int:
        """When the nonce ends, in Unix seconds rounded up. Raises BrokerError challenge.forged, challenge.expired."""
        head = nonce[: _TIME_LEN + _RANDOM_LEN]
        if len(nonce) != NONCE_LEN or not hmac.compare_digest(nonce[len(head) :], self._mac(head, caller)):
            raise BrokerError(BrokerCode.CHALLENGE_FORGED, "the MAC does not fit purpose, caller and key")
        age_ms = int(at.timestamp() * 1000) - int.from_bytes(head[:_TIME_LEN], "big")
        if not 0 <= age_ms <= self.life_s * 1000:
            raise BrokerError(BrokerCode.CHALLENGE_EXPIRED, f"{age_ms / 1000:.1f} s old, lives {self.life_s} s")
        return (int.from_bytes(head[:_TIME_LEN], "big") + 999) // 1000 + self.life_s

    def claim(self, nonce: bytes, caller: bytes, at: datetime) -> Claim:
        """Take the nonce. Raises BrokerError challenge.forged, challenge.expired, challenge.used."""
        expires_at_s = self.check(nonce, caller, at)
        if not self._taken.first(nonce, at.timestamp()):
            raise BrokerError(BrokerCode.CHALLENGE_USED, "claimed before in this process")
        return Claim(nonce=nonce, expires_at_s=expires_at_s, now_s=int(at.timestamp()))

    @property
    def remembered(self) -> int:
        return len(self._taken)

    def _mac(self, head: bytes, caller: bytes) -> bytes:
        mac = self._keyed.copy()
        mac.update(framed(_TAG, self._purpose, head, caller))
        return mac.digest()[:_MAC_LEN]
