"""When a channel's key ends, and that every number is sealed once."""

import multiprocessing
from dataclasses import replace

import pytest

from broker.wire.channel import (
    MAX_SEQ,
    frame_id,
)
from enclave.channel import LIFE_S, Outgoing
from enclave.errors import Code
from tests.channel_pair import Pair, code_of
from tests.test_enclave_mailbox import NOW_S

# ── when a key ends ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("after_s", "life_s", "alive"),
    [
        (LIFE_S - 1, 10**6, True),
        (LIFE_S, 10**6, False),  # the hour
        (299, 300, True),
        (300, 300, False),  # the sender's admission
    ],
)
def test_a_channel_ends_with_its_hour_and_with_the_admission(after_s: int, life_s: int, alive: bool) -> None:
    pair = Pair(life_s)
    pair.a.ticks.now = float(after_s)
    assert code_of(lambda: pair.seal(b"x")) == ("ok" if alive else Code.CHANNEL_DEAD)


def test_a_renewed_admission_carries_the_channel_on_but_not_beyond_its_hour() -> None:
    pair = Pair(300)
    pair.a.ticks.now = 301.0
    pair.channel.renew(replace(pair.a.admission, expires_at_s=NOW_S + 600))
    assert code_of(lambda: pair.seal(b"x")) == "ok"
    pair.channel.renew(replace(pair.a.admission, expires_at_s=NOW_S + 10**6))
    pair.a.ticks.now = float(LIFE_S)
    assert code_of(lambda: pair.seal(b"x")) == Code.CHANNEL_DEAD


def test_a_channel_ends_with_the_mailboxs_key() -> None:
    pair = Pair()
    old = pair.b.key
    pair.b.key = pair.b.keys.sign_mailbox_key(
        mailbox=old.mailbox,
        owner=old.owner,
        epoch=old.epoch,
        suite=old.suite,
        key=old.key,
        incarnation=old.incarnation,
        not_before_s=old.not_before_s,
        not_after_s=NOW_S + 60,
    )
    brief = pair.opened(pair.a)
    pair.a.ticks.now = 59.0
    assert code_of(lambda: brief.seal([Outgoing(kind="note", plaintext=b"")])) == "ok"
    pair.a.ticks.now = 60.0
    assert code_of(lambda: brief.seal([Outgoing(kind="note", plaintext=b"")])) == Code.CHANNEL_DEAD


def test_a_channel_ends_with_its_last_number() -> None:
    pair = Pair()
    pair.channel._next = MAX_SEQ
    assert code_of(lambda: pair.seal(b"a", b"b")) == Code.CHANNEL_DEAD
    assert code_of(lambda: pair.seal(b"a")) == "ok"
    assert code_of(lambda: pair.seal(b"a")) == Code.CHANNEL_DEAD


def test_a_closed_channel_and_one_whose_keys_are_gone_seal_nothing() -> None:
    pair = Pair()
    other = pair.opened(pair.a)
    other.close()
    assert code_of(lambda: other.seal([Outgoing(kind="note", plaintext=b"")])) == Code.CHANNEL_DEAD
    pair.a.keys.destroy()
    assert code_of(lambda: pair.seal(b"x")) == Code.KEYS_DEAD
    with pytest.raises(TypeError):
        pair.channel.__reduce__()


def _seal_in_child(results: "multiprocessing.Queue[str]", pair: Pair) -> None:
    results.put(code_of(lambda: pair.seal(b"x")))


def test_a_channel_ends_at_a_fork() -> None:
    pair = Pair()
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    child = context.Process(target=_seal_in_child, args=(results, pair))
    child.start()
    assert results.get(timeout=20) == Code.CHANNEL_DEAD
    child.join()
    assert code_of(lambda: pair.seal(b"x")) == "ok"


def test_every_number_is_sealed_once_whoever_seals() -> None:
    from concurrent.futures import ThreadPoolExecutor

    pair = Pair()
    with ThreadPoolExecutor(4) as pool:
        sealed = list(pool.map(lambda n: pair.seal(*[b"x"] * (1 + n % 3)), range(40)))
    sealed.sort(key=lambda batch: batch.first_seq)
    assert [batch.first_seq for batch in sealed[1:]] == [batch.last_seq + 1 for batch in sealed[:-1]]
    for batch in sealed:
        for frame in pair.open(batch.raw).frames:
            pair.channels.done(batch.channel, frame.header.seq)
    assert len({frame_id(pair.channel.channel, seq) for seq in range(1, 100)}) == 99
