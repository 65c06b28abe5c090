"""Checkpoints of a durable reader: sealed, bounded, and read back as they were."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.wire.jose import b64u
from enclave.checkpoint import Memory, decode, encode, seal, unseal
from enclave.errors import Code, EnvelopeRefused, StateLost
from enclave.replay import Window

BOX = "lab/mail/jobs"

# ── checkpoints ────────────────────────────────────────────────────────────────────────────────────────────────────

KEY, JKT = bytes(range(32)), b64u(bytes(32))


def test_a_checkpoint_says_what_the_window_said() -> None:
    window = Window()
    for seq in [*range(1, 1500), 1502, 1504]:
        window.check(seq, seq.to_bytes(16, "big"))
        window.begin(seq, seq.to_bytes(16, "big"))
        if seq != 1499:
            window.finish(seq)
    restored = decode(encode(Memory(windows={(KEY, JKT): window}))).windows[KEY, JKT]
    for seq in (1, 400):
        assert _code(restored, seq) == Code.ENVELOPE_FORGOTTEN
    for seq in (482, 1498, 1502, 1504):
        assert _code(restored, seq) == Code.ENVELOPE_REPLAYED
    for seq in (1499, 1503, 1505):  # in the middle of being handled, never seen, new
        assert _code(restored, seq) == "ok"


def _code(window: Window, seq: int) -> str:
    try:
        window.check(seq, bytes(16))
    except EnvelopeRefused as error:
        return str(error.code)
    return "ok"


def test_a_checkpoint_opens_for_its_mailbox_number_and_key_alone() -> None:
    sealed = seal(KEY, BOX, 7, Memory(windows={(KEY, JKT): Window.of(5, {5})}))
    assert unseal(KEY, BOX, 7, sealed).windows[KEY, JKT].state() == (5, frozenset({5}))
    for key, box, number, blob in (
        (bytes(32), BOX, 7, sealed),
        (KEY, "lab/mail/other", 7, sealed),
        (KEY, BOX, 8, sealed),
        (KEY, BOX, 7, sealed[:-1]),
        (KEY, BOX, 7, b""),
    ):
        with pytest.raises(StateLost):
            unseal(key, box, number, blob)


def test_a_checkpoint_has_room_for_some_thousand_senders_and_no_more() -> None:
    def windows(count: int) -> Memory:
        found = {(KEY, b64u(number.to_bytes(32, "big"))): Window.of(5, {1, 2, 3, 4, 5}) for number in range(count)}
        return Memory(windows=found)

    assert len(decode(encode(windows(3_000))).windows) == 3_000
    assert decode(encode(Memory())) == Memory()
    with pytest.raises(EnvelopeRefused):
        encode(windows(5_000))


@given(raw=st.binary(max_size=400))
def test_any_bytes_are_a_checkpoint_or_lost_state(raw: bytes) -> None:
    with suppress(StateLost):
        assert isinstance(decode(raw), Memory)


@given(
    seqs=st.lists(st.integers(1, 3000), max_size=60, unique=True),
    whole=st.integers(0, 2500),
)
def test_a_checkpoint_brings_back_what_is_remembered(seqs: list[int], whole: int) -> None:
    done = {*seqs, *range(1, whole + 1)}
    window = Window.of(max(done, default=0), done)
    assert decode(encode(Memory(windows={(KEY, JKT): window}))).windows[KEY, JKT].state() == window.state()
