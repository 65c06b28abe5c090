"""Keccak with its original padding, as Ethereum and dstack hash: `hashlib` has only the SHA-3 that NIST made of it.

Decides nothing but a digest. Slow (milliseconds), which is fine for the few signatures of a simulated guest agent.
Source: the Keccak reference, version 3.0; FIPS 202 for the permutation.
"""

from __future__ import annotations

from typing import Final

_MASK: Final = (1 << 64) - 1
_ROUNDS: Final = 24


def keccak(data: bytes, size: int = 32, *, suffix: int = 0x01) -> bytes:
    """The digest of `size` bytes: 28, 32, 48 or 64. Suffix 0x06 makes it SHA-3, for comparing."""
    rate = 200 - 2 * size
    padded = data + bytes((suffix,)) + bytes(-(len(data) + 1) % rate)
    padded = padded[:-1] + bytes((padded[-1] | 0x80,))
    lanes = [0] * 25  # x + 5y
    for start in range(0, len(padded), rate):
        for index in range(rate // 8):
            lanes[index] ^= int.from_bytes(padded[start + 8 * index : start + 8 * index + 8], "little")
        lanes = _permute(lanes)
    return b"".join(lane.to_bytes(8, "little") for lane in lanes)[:size]


def _permute(a: list[int]) -> list[int]:
    """Keccak-f[1600]: theta, rho and pi, chi, iota, 24 times."""
    register = 1
    for _ in range(_ROUNDS):
        columns = [a[x] ^ a[x + 5] ^ a[x + 10] ^ a[x + 15] ^ a[x + 20] for x in range(5)]
        mixed = [columns[x - 1] ^ _rotate(columns[(x + 1) % 5], 1) for x in range(5)]
        a = [lane ^ mixed[index % 5] for index, lane in enumerate(a)]
        x, y, current = 1, 0, a[1]
        for step in range(_ROUNDS):
            x, y = y, (2 * x + 3 * y) % 5
            current, a[x + 5 * y] = a[x + 5 * y], _rotate(current, (step + 1) * (step + 2) // 2 % 64)
        a = [a[i] ^ (~a[i - i % 5 + (i + 1) % 5] & a[i - i % 5 + (i + 2) % 5]) for i in range(25)]
        for power in range(7):
            if register & 1:
                a[0] ^= 1 << ((1 << power) - 1)
            register = register << 1 ^ (0x171 if register & 0x80 else 0)
    return a


def _rotate(lane: int, by: int) -> int:
    return (lane << by | lane >> (64 - by)) & _MASK
