"""What a durable mailbox's reader has received, in a form that it can find again after a restart.

Decides the form and the seal: AES-256-GCM under a key that comes with the mailbox's keys, with mailbox and number as
associated data, so that no checkpoint can stand for another. Whether it is the newest one is proved by the number that
the broker signs. For each mailbox key and sender it holds the highest number and which of the last 1,024 are done; for
each channel how far it has come, and what of it is still to be done:

    u8 keys, then for each       thumbprint of the mailbox key (32)
    then entries, each of them   u8 which key ‖ thumbprint of the sender (32) ‖ u64 number ‖ u8 form
    form 0, a window             up to the highest number all are done
    form 1, a window             128 bytes, in which bit i, lowest first, is highest - i
    form 2, a channel            its highest number; name (16) ‖ first half of its opening's digest (16) ‖ chain (32) ‖
                                 u64 end in ms ‖ u16 runs, and for each, from the highest number down, two numbers of 7
                                 bits a byte: how far below the one before it ends; its length less one, doubled, and
                                 one more where it was passed over
    form 3, once                 what was sent before that many ms since 1970 is refused; neither key nor sender

Windows must all fit. Where they do not, the next reader takes what senders left out below their highest numbers for
done. A channel that does not fit is left out, the shortest and newest are kept: the next reader then refuses its
opening as one that it had before. What waits so becomes dead letters, and nothing is handled twice.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from typing import Final, final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from broker.wire.channel import CHANNEL_LEN, HASH_LEN, MAX_OUTSTANDING, MAX_SEQ
from broker.wire.jose import b64u, unb64u
from broker.wire.state import MAX_STATE
from broker.wire.tags import Tag, tagged, u64
from enclave.errors import Code, EnvelopeRefused, StateLost
from enclave.passage import MAX_AGAIN, OPENING_LEN, Passage, Runs
from enclave.replay import SIZE, Window

Windows = Mapping[tuple[bytes, str], Window]
"""By mailbox key and sender."""
_NONCE: Final = 12
_ENTRY: Final = struct.Struct(">B32sQB")
_CHANNEL: Final = struct.Struct(f">{CHANNEL_LEN}s{OPENING_LEN}s{HASH_LEN}sQH")
_WHOLE, _BITS, _PASSAGE, _BOOT = range(4)
_MAP: Final = SIZE // 8
_NOBODY: Final = bytes(32)
MAX_HOLES: Final = 2 * MAX_OUTSTANDING + MAX_AGAIN  # messages of one channel that are still to be done
MAX_PLAIN: Final = MAX_STATE - _NONCE - 16
MAX_KEYS: Final = 255


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What was received: single envelopes, channels, and since when it is remembered at all."""

    windows: Windows = field(default_factory=dict)
    passages: tuple[Passage, ...] = ()
    refuse_before_ms: int = 0


def encode(memory: Memory) -> bytes:
    """Raises EnvelopeRefused envelope.too_many_senders for more than can be remembered."""
    keys = sorted({key for key, _ in memory.windows} | {passage.mailbox_key for passage in memory.passages})
    parts = [bytes([len(keys[:MAX_KEYS])]), *keys]
    if memory.refuse_before_ms:
        parts.append(_ENTRY.pack(0, _NOBODY, memory.refuse_before_ms, _BOOT))
    room = MAX_PLAIN - sum(map(len, parts)) - _ENTRY.size * len(memory.windows)  # beside the shortest form of each
    if room < 0 or len(keys) > MAX_KEYS:
        raise EnvelopeRefused(Code.ENVELOPE_SENDERS, f"{len(memory.windows)} windows are more than a checkpoint holds")
    for (key, jkt), window in sorted(memory.windows.items(), key=lambda item: item[0]):
        part = _window(keys.index(key), jkt, window)
        room -= len(part) - _ENTRY.size
        parts.append(part if room >= 0 else part[: _ENTRY.size - 1] + bytes([_WHOLE]))
    size = sum(map(len, parts))
    for part in sorted((_passage(keys.index(one.mailbox_key), one) for one in reversed(memory.passages)), key=len):
        if (size := size + len(part)) > MAX_PLAIN:
            break
        parts.append(part)
    return b"".join(parts)


def _window(which: int, jkt: str, window: Window) -> bytes:
    highest, done = window.state()
    bits = sum(1 << (highest - number) for number in done if 0 <= highest - number < SIZE)
    whole = bits == _ones(highest)
    head = _ENTRY.pack(which, unb64u(jkt), highest, _WHOLE if whole else _BITS)
    return head if whole else head + bits.to_bytes(_MAP, "little")


def _ones(highest: int) -> int:
    """The bits of a window in which everything up to the highest number is done."""
    return (1 << min(highest, SIZE)) - 1


def _passage(which: int, one: Passage) -> bytes:
    runs = sorted([(*run, 0) for run in one.holes] + [(*run, 1) for run in one.skipped], reverse=True)
    parts = [
        _ENTRY.pack(which, unb64u(one.jkt), one.highest, _PASSAGE),
        _CHANNEL.pack(one.channel, one.opening, one.chain, one.ends_at_ms, len(runs)),
    ]
    below = one.highest
    for first, last, passed in runs:
        parts += [_seven(below - last), _seven((last - first) * 2 + passed)]
        below = first - 1
    return b"".join(parts)


def _seven(number: int) -> bytes:
    """A number as 7 bits a byte, lowest first, the highest bit set on all but the last."""
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


def decode(raw: bytes) -> Memory:
    """Raises StateLost state.unreadable."""
    windows: dict[tuple[bytes, str], Window] = {}
    passages: list[Passage] = []
    refuse_before_ms = 0
    source = BytesIO(raw)
    keys = [_take(source, 32) for _ in range(_take(source, 1)[0])]
    while source.tell() < len(raw):
        which, jkt, number, form = _ENTRY.unpack(_take(source, _ENTRY.size))
        if form == _BOOT:
            refuse_before_ms = number
            continue
        if which >= len(keys):
            raise StateLost(Code.STATE_UNREADABLE, f"no key {which}")
        if form == _PASSAGE:
            passages.append(_passage_from(source, keys[which], b64u(jkt), number))
            continue
        mask = int.from_bytes(_take(source, _MAP), "little") if form else _ones(number)
        windows[keys[which], b64u(jkt)] = Window.of(number, {number - i for i in range(SIZE) if mask >> i & 1})
    return Memory(windows=windows, passages=tuple(passages), refuse_before_ms=refuse_before_ms)


def _passage_from(source: BytesIO, key: bytes, jkt: str, highest: int) -> Passage:
    channel, opening, chain, ends_at_ms, count = _CHANNEL.unpack(_take(source, _CHANNEL.size))
    if highest > MAX_SEQ:
        raise StateLost(Code.STATE_UNREADABLE, f"number {highest} of a channel")
    holes, skipped = list[tuple[int, int]](), list[tuple[int, int]]()
    below = highest
    for _ in range(count):
        last = below - _number(source)
        length, passed = divmod(_number(source), 2)
        first = last - length
        if first < 1:
            raise StateLost(Code.STATE_UNREADABLE, f"{first} to {last} of a channel")
        (skipped if passed else holes).append((first, last))
        below = first - 1
    if sum(last - first + 1 for first, last in holes) > MAX_HOLES:
        raise StateLost(Code.STATE_UNREADABLE, "more messages of a channel to be done than can be in hand")
    return Passage(
        channel=channel,
        mailbox_key=key,
        jkt=jkt,
        opening=opening,
        ends_at_ms=ends_at_ms,
        highest=highest,
        chain=chain,
        holes=_upwards(holes),
        skipped=_upwards(skipped),
    )


def _upwards(runs: Iterable[tuple[int, int]]) -> Runs:
    return tuple(sorted(runs))


def _number(source: BytesIO) -> int:
    return sum((byte & 0x7F) << (7 * place) for place, byte in enumerate(_sevens(source)))


def _sevens(source: BytesIO) -> Iterator[int]:
    for _ in range(5):  # enough for 2^33
        (byte,) = _take(source, 1)
        yield byte
        if byte < 0x80:
            return
    raise StateLost(Code.STATE_UNREADABLE, "a number without an end")


def _take(source: BytesIO, size: int) -> bytes:
    taken = source.read(size)
    if len(taken) != size:
        raise StateLost(Code.STATE_UNREADABLE, f"{size} bytes wanted, {len(taken)} left")
    return taken


def seal(state_key: bytes, mailbox: str, number: int, memory: Memory) -> bytes:
    """Raises as `encode` does."""
    nonce = os.urandom(_NONCE)
    return nonce + AESGCM(state_key).encrypt(nonce, encode(memory), _aad(mailbox, number))


def unseal(state_key: bytes, mailbox: str, number: int, sealed: bytes) -> Memory:
    """Raises StateLost state.unreadable."""
    try:
        plain = AESGCM(state_key).decrypt(sealed[:_NONCE], sealed[_NONCE:], _aad(mailbox, number))
    except (InvalidTag, ValueError):
        raise StateLost(Code.STATE_UNREADABLE, f"not sealed for {mailbox} and number {number}") from None
    return decode(plain)


def _aad(mailbox: str, number: int) -> bytes:
    return tagged(Tag.STATE_SEAL, mailbox.encode(), u64(number))
