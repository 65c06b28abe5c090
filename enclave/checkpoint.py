"""What a durable mailbox's reader has received, in a form that it can find again after a restart.

Decides the form and the seal: AES-256-GCM under a key that comes with the mailbox's keys, with mailbox and number as
associated data, so that no checkpoint can stand for another. Whether it is the newest one is proved by the number that
the broker signs. For each mailbox key and sender it holds the highest number and which of the last 1,024 are done:

    u8 keys, then for each       thumbprint of the mailbox key (32)
    then for each window         u8 which key ‖ thumbprint of the sender (32) ‖ u64 highest ‖ u8 form, and for form 1
                                 128 bytes, in which bit i, lowest first, is number highest - i; for form 0 all are done
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from io import BytesIO
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from broker.wire.jose import b64u, unb64u
from broker.wire.state import MAX_STATE
from broker.wire.tags import Tag, tagged, u64
from enclave.errors import Code, EnvelopeRefused, StateLost
from enclave.replay import SIZE, Window

Windows = Mapping[tuple[bytes, str], Window]
"""By mailbox key and sender."""
_NONCE: Final = 12
_ENTRY: Final = struct.Struct(">B32sQB")
_MAP: Final = SIZE // 8
MAX_PLAIN: Final = MAX_STATE - _NONCE - 16
MAX_KEYS: Final = 255


def encode(windows: Windows) -> bytes:
    """Raises EnvelopeRefused envelope.replayed for more senders than can be remembered."""
    keys = sorted({key for key, _ in windows})
    parts = [bytes([len(keys[:MAX_KEYS])]), *keys]
    for (key, jkt), window in sorted(windows.items(), key=lambda item: item[0]):
        highest, done = window.state()
        bits = sum(1 << (highest - number) for number in done if 0 <= highest - number < SIZE)
        whole = bits == _ones(highest)
        parts.append(_ENTRY.pack(keys.index(key), unb64u(jkt), highest, not whole))
        parts += [] if whole else [bits.to_bytes(_MAP, "little")]
    plain = b"".join(parts)
    if len(plain) > MAX_PLAIN or len(keys) > MAX_KEYS:
        raise EnvelopeRefused(Code.ENVELOPE_REPLAYED, f"{len(windows)} windows are more than a checkpoint holds")
    return plain


def _ones(highest: int) -> int:
    """The bits of a window in which everything up to the highest number is done."""
    return (1 << min(highest, SIZE)) - 1


def decode(raw: bytes) -> dict[tuple[bytes, str], Window]:
    """Raises StateLost state.unreadable."""
    found: dict[tuple[bytes, str], Window] = {}
    source = BytesIO(raw)
    keys = [_take(source, 32) for _ in range(_take(source, 1)[0])]
    while source.tell() < len(raw):
        which, jkt, highest, form = _ENTRY.unpack(_take(source, _ENTRY.size))
        if which >= len(keys):
            raise StateLost(Code.STATE_UNREADABLE, f"no key {which}")
        mask = int.from_bytes(_take(source, _MAP), "little") if form else _ones(highest)
        done = {highest - i for i in range(SIZE) if mask >> i & 1}
        found[keys[which], b64u(jkt)] = Window.of(highest, done)
    return found


def _take(source: BytesIO, size: int) -> bytes:
    taken = source.read(size)
    if len(taken) != size:
        raise StateLost(Code.STATE_UNREADABLE, f"{size} bytes wanted, {len(taken)} left")
    return taken


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
