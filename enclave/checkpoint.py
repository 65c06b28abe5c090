"""What a durable mailbox's reader has received, in a form that it can find again after a restart.

Decides the form and the seal: AES-256-GCM under a key that comes with the mailbox's keys, with mailbox and number as
associated data, so that no checkpoint can stand for another. Whether it is the newest one is proved by the number that
the broker signs. For each mailbox key and sender it holds the highest number and which of the last 1,024 are done:

    u32 entries, then for each   thumbprint of the mailbox key (32) ‖ thumbprint of the sender (43) ‖ u64 highest ‖
                                 128 bytes, in which bit i, lowest first, is number highest - i
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from broker.wire.state import MAX_STATE
from broker.wire.tags import Tag, tagged, u64
from enclave.errors import Code, EnvelopeRefused, StateLost
from enclave.replay import SIZE, Window

Windows = Mapping[tuple[bytes, str], Window]
"""By mailbox key and sender."""
_NONCE: Final = 12
_ENTRY: Final = struct.Struct(">32s43sQ128s")
_COUNT: Final = struct.Struct(">I")
MAX_ENTRIES: Final = (MAX_STATE - _NONCE - 16 - _COUNT.size) // _ENTRY.size


def encode(windows: Windows) -> bytes:
    """Raises EnvelopeRefused envelope.replayed for more senders than can be remembered."""
    if len(windows) > MAX_ENTRIES:
        raise EnvelopeRefused(Code.ENVELOPE_REPLAYED, f"more than {MAX_ENTRIES} senders under living keys")
    parts = [_COUNT.pack(len(windows))]
    for (key, jkt), window in sorted(windows.items(), key=lambda item: item[0]):
        highest, done = window.state()
        bits = sum(1 << (highest - number) for number in done if 0 <= highest - number < SIZE)
        parts.append(_ENTRY.pack(key, jkt.encode("ascii"), highest, bits.to_bytes(SIZE // 8, "little")))
    return b"".join(parts)


def decode(raw: bytes) -> dict[tuple[bytes, str], Window]:
    """Raises StateLost state.unreadable."""
    found: dict[tuple[bytes, str], Window] = {}
    if len(raw) < _COUNT.size or len(raw) != _COUNT.size + _COUNT.unpack_from(raw)[0] * _ENTRY.size:
        raise StateLost(Code.STATE_UNREADABLE, f"{len(raw)} bytes")
    for key, jkt, highest, bits in _ENTRY.iter_unpack(raw[_COUNT.size :]):
        mask = int.from_bytes(bits, "little")
        done = {highest - i for i in range(SIZE) if mask >> i & 1}
        found[key, jkt.decode("ascii", "replace")] = Window.of(highest, done)
    return found


def seal(state_key: bytes, mailbox: str, number: int, windows: Windows) -> bytes:
    nonce = os.urandom(_NONCE)
    return nonce + AESGCM(state_key).encrypt(nonce, encode(windows), _aad(mailbox, number))


def unseal(state_key: bytes, mailbox: str, number: int, sealed: bytes) -> dict[tuple[bytes, str], Window]:
    """Raises StateLost state.unreadable."""
    try:
        plain = AESGCM(state_key).decrypt(sealed[:_NONCE], sealed[_NONCE:], _aad(mailbox, number))
    except (InvalidTag, ValueError):
        raise StateLost(Code.STATE_UNREADABLE, f"not sealed for {mailbox} and number {number}") from None
    return decode(plain)


def _aad(mailbox: str, number: int) -> bytes:
    return tagged(Tag.STATE_SEAL, mailbox.encode(), u64(number))
