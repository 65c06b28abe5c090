"""A bounded little-endian reader over bytes.

Decides one thing: a read that would pass the end is refused with the code its caller named. What the bytes mean is left
to the callers (event logs, TDVF images, the SGX extension); quotes use precompiled `struct` layouts instead, for speed.
"""

from __future__ import annotations

from typing import final

from attestation.errors import Code, MalformedEvidence


@final
class Cursor:
    """Reads `data` front to back. Every method raises MalformedEvidence with `code` when bytes are missing.

    `what` names the thing being read, for the error's detail.
    """

    __slots__ = ("_code", "_data", "_end", "_what", "offset")

    def __init__(self, data: bytes, *, code: Code, what: str, offset: int = 0) -> None:
        self._data = data
        self._code = code
        self._what = what
        self._end = len(data)
        self.offset = offset

    @property
    def remaining(self) -> int:
        return self._end - self.offset

    def take(self, size: int) -> bytes:
        """The next `size` bytes."""
        end = self.offset + size
        if size < 0 or end > self._end:
            detail = f"{self._what}: need {size} bytes at offset {self.offset}, {self.remaining} left"
            raise MalformedEvidence(self._code, detail)
        taken = self._data[self.offset : end]
        self.offset = end
        return taken

    def u16(self) -> int:
        return int.from_bytes(self.take(2), "little")

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def u64(self) -> int:
        return int.from_bytes(self.take(8), "little")
