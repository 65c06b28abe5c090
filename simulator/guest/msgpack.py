"""The few MessagePack forms that dstack's versioned attestation is made of; writing only.

Source: the MessagePack specification (maps, arrays, str, bin, unsigned integers, nil and booleans).
"""

from __future__ import annotations

from typing import Any


def pack(value: Any) -> bytes:
    """Dictionaries keep their order. Raises TypeError for what has no form here."""
    match value:
        case None:
            return b"\xc0"
        case bool():
            return b"\xc3" if value else b"\xc2"
        case int() if 0 <= value < 1 << 64:
            return _integer(value)
        case str():
            return _header(len(text := value.encode()), fixed=(0xA0, 32), sized=(0xD9, 0xDA, 0xDB)) + text
        case bytes():
            return _header(len(value), fixed=None, sized=(0xC4, 0xC5, 0xC6)) + value
        case list() | tuple():
            return _header(len(value), fixed=(0x90, 16), sized=(None, 0xDC, 0xDD)) + b"".join(map(pack, value))
        case dict():
            head = _header(len(value), fixed=(0x80, 16), sized=(None, 0xDE, 0xDF))
            return head + b"".join(pack(key) + pack(item) for key, item in value.items())
        case _:
            raise TypeError(f"no form for {type(value).__name__}")


def _integer(value: int) -> bytes:
    if value < 0x80:
        return bytes((value,))
    size = next(power for power in range(4) if value < 1 << (8 << power))
    return bytes((0xCC + size,)) + value.to_bytes(1 << size, "big")


def _header(length: int, *, fixed: tuple[int, int] | None, sized: tuple[int | None, int, int]) -> bytes:
    """`fixed` is the first byte and the limit of the short form; `sized` those with a length of 1, 2 and 4 bytes."""
    if fixed is not None and length < fixed[1]:
        return bytes((fixed[0] + length,))
    for power, first in enumerate(sized):
        if first is not None and length < 1 << (8 << power):
            return bytes((first,)) + length.to_bytes(1 << power, "big")
    raise TypeError(f"{length} is too long")
