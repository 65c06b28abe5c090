"""The root key cut into n shares, any k of which give it back, and k − 1 of which tell nothing.

Decides the arithmetic (Shamir over GF(2^8), byte by byte, Rijndael's polynomial; A. Shamir, "How to share a secret",
1979), what a share says of itself, and that a wrong one is named: beside the set stands a commitment to each share, so
whoever holds a bad one is known before anything is put together. Who brings the shares is sealed.py's business.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self, final

from attestation.encoding import b64url, framed, from_b64url
from broker.errors import BrokerCode, BrokerError
from broker.rootkey.root import ROOT_LEN, RootKey

MAX_SHARES: Final = 32
MIN_THRESHOLD: Final = 2
SET_LEN: Final = 16
_POLYNOMIAL: Final = 0x1B  # x^8 is x^4 + x^3 + x + 1
_TAG: Final = b"cloister/root-share/v1"
_SPELLED: Final = re.compile(r"([1-9][0-9]?)/([1-9][0-9]?)")


def multiply(a: int, b: int) -> int:
    """a · b in GF(2^8). No table and no branch depends on a value."""
    found = 0
    for bit in range(8):
        found ^= a & -(b >> bit & 1)
        a = (a << 1 & 0xFF) ^ (_POLYNOMIAL & -(a >> 7))
    return found


def invert(a: int) -> int:
    """a^254, which is 1/a; 0 for 0."""
    found, power = 1, a
    for _ in range(7):
        power = multiply(power, power)
        found = multiply(found, power)
    return found


def interpolate(points: Sequence[tuple[int, bytes]], x: int) -> bytes:
    """The value at `x` of the polynomials of least degree through these points (Lagrange)."""
    size = len(points[0][1])
    found = bytearray(size)
    for at, value in points:
        weight = 1
        for other, _ in points:
            if other != at:
                weight = multiply(weight, multiply(x ^ other, invert(at ^ other)))
        for index in range(size):
            found[index] ^= multiply(weight, value[index])
    return bytes(found)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """One point of the polynomial; `index` is its place, 1 to n."""

    set_id: str
    index: int
    value: bytes = field(repr=False)

    def commitment(self, threshold: int, count: int) -> str:
        """Hex. A share is as random as the root key, so its hash tells nothing about it."""
        numbers = bytes((threshold, count, self.index))
        return hashlib.sha256(framed(_TAG, bytes.fromhex(self.set_id), numbers, self.value)).hexdigest()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ShareSet:
    """What may be known about a set of shares: how many, how many are needed, and a commitment to each."""

    set_id: str
    threshold: int
    count: int
    root_id: str
    commitments: tuple[str, ...]

    def check(self, share: Share) -> None:
        """Raises BrokerError root.share_wrong, which names the share."""
        if share.set_id != self.set_id:
            raise BrokerError(BrokerCode.ROOT_SHARE, f"share of set {share.set_id}, this is set {self.set_id}")
        if not 1 <= share.index <= self.count:
            raise BrokerError(BrokerCode.ROOT_SHARE, f"share {share.index} of {self.count}")
        found = share.commitment(self.threshold, self.count)
        if not hmac.compare_digest(found, self.commitments[share.index - 1]):
            raise BrokerError(BrokerCode.ROOT_SHARE, f"share {share.index} is not the one that was given out")

    def combine(self, shares: Sequence[Share]) -> bytes:
        """The root key's bytes. Raises BrokerError root.share_wrong, root.sealed, root.wrong_key."""
        for share in shares:
            self.check(share)
        distinct = {share.index: share.value for share in shares}
        if len(distinct) < self.threshold:
            raise BrokerError(BrokerCode.ROOT_SEALED, f"{len(distinct)} of {self.threshold} shares")
        raw = interpolate(list(distinct.items())[: self.threshold], 0)
        if RootKey(raw).id != self.root_id:
            raise BrokerError(BrokerCode.ROOT_WRONG, f"the shares do not give root {self.root_id}")
        return raw

    def to_dict(self) -> dict[str, Any]:
        return {
            "set": self.set_id,
            "threshold": self.threshold,
            "count": self.count,
            "root": self.root_id,
            "commitments": list(self.commitments),
        }

    @classmethod
    def from_dict(cls, members: dict[str, Any]) -> Self:
        """Raises ValueError, KeyError, TypeError."""
        made = cls(
            set_id=str(members["set"]),
            threshold=int(members["threshold"]),
            count=int(members["count"]),
            root_id=str(members["root"]),
            commitments=tuple(str(item) for item in members["commitments"]),
        )
        good = MIN_THRESHOLD <= made.threshold <= made.count <= MAX_SHARES and len(made.commitments) == made.count
        if not good or len(bytes.fromhex(made.set_id)) != SET_LEN:
            raise ValueError("a share set that cannot be")
        return made


def split(raw: bytes, threshold: int, count: int) -> tuple[ShareSet, tuple[Share, ...]]:
    """Cut a root key. Raises BrokerError config.invalid."""
    if not MIN_THRESHOLD <= threshold <= count <= MAX_SHARES:
        detail = f"{threshold}/{count}: at least {MIN_THRESHOLD} are needed of at most {MAX_SHARES}"
        raise BrokerError(BrokerCode.CONFIG_INVALID, f"shares {detail}")
    set_id = secrets.token_hex(SET_LEN)
    drawn = [(index, secrets.token_bytes(ROOT_LEN)) for index in range(1, threshold)]
    points = [(0, raw), *drawn]
    values = dict(drawn) | {index: interpolate(points, index) for index in range(threshold, count + 1)}
    shares = tuple(Share(set_id=set_id, index=index, value=values[index]) for index in range(1, count + 1))
    commitments = tuple(share.commitment(threshold, count) for share in shares)
    root_id = RootKey(raw).id
    return ShareSet(set_id=set_id, threshold=threshold, count=count, root_id=root_id, commitments=commitments), shares


def parse_spelled(text: str) -> tuple[int, int]:
    """`3/5` as threshold and count. Raises BrokerError config.invalid."""
    found = _SPELLED.fullmatch(text)
    if found is None:
        raise BrokerError(BrokerCode.CONFIG_INVALID, f"{text!a}: say how many of how many, like 3/5")
    return int(found[1]), int(found[2])


def share_dict(share: Share, kept: ShareSet) -> dict[str, Any]:
    """A share as its holder keeps it, in the clear."""
    return {
        "cloister_share": 1,
        "set": share.set_id,
        "index": share.index,
        "threshold": kept.threshold,
        "count": kept.count,
        "root": kept.root_id,
        "value": b64url(share.value),
    }


def share_of(members: dict[str, Any]) -> Share:
    """Raises BrokerError root.share_wrong for what is no share."""
    try:
        if members.get("cloister_share") != 1:
            raise ValueError("no share")
        value = from_b64url(members["value"])
        share = Share(set_id=str(members["set"]), index=int(members["index"]), value=value)
        if len(value) != ROOT_LEN or len(bytes.fromhex(share.set_id)) != SET_LEN or not 1 <= share.index <= MAX_SHARES:
            raise ValueError("length or index")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BrokerError(BrokerCode.ROOT_SHARE, f"not a share: {type(error).__name__}") from None
    return share
