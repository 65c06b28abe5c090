"""Padding of messages on channels, so that a length shows no more than its highest bits, at a cost of at most 12 %.

Decides how long a padded plaintext is: as Padmé says (Nikitin et al., "Reducing Metadata Leakage from Encrypted Files
and Communication with PURBs", 2019, §4.3), and no less than 256 bytes.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Final

from broker.wire.errors import WireCode, WireError
from enclave.errors import Code, EnvelopeRefused
from enclave.mailbox import MAX_PLAINTEXT

MIN_SIZE: Final = 256
_LENGTH: Final = struct.Struct(">I")


@lru_cache(4096)
def _padded_size(size: int) -> int:
    """Padmé (Nikitin et al., 2019, §4.3): only the highest bits of a length are told."""
    if size <= MIN_SIZE:
        return MIN_SIZE
    exponent = size.bit_length() - 1
    low = (1 << (exponent - exponent.bit_length())) - 1
    return (size + low) & ~low


def pad(plaintext: bytes) -> bytes:
    """Its length and itself, padded. Raises EnvelopeRefused envelope.too_large."""
    size = len(plaintext)
    if size > MAX_PLAINTEXT:
        raise EnvelopeRefused(Code.ENVELOPE_TOO_LARGE, f"{size} bytes, at most {MAX_PLAINTEXT}")
    return (_LENGTH.pack(size) + plaintext).ljust(_padded_size(size + 4), b"\0")


def unpad(framed: bytes) -> bytes:
    """The plaintext of `pad`. Raises WireError channel.malformed."""
    size = int.from_bytes(framed[:4], "big")
    if len(framed) != _padded_size(size + 4) or framed.count(0, 4 + size) != len(framed) - 4 - size:
        raise WireError(WireCode.CHANNEL_MALFORMED, "the padding of a body")
    return framed[4 : 4 + size]
