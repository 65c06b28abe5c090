"""Openings that cannot be judged yet: a few of each sender, tried again at leisure and not with every delivery."""

import os
from itertools import pairwise

import pytest

from broker.wire import stream_pb2 as pb
from broker.wire.envelope import Envelope, Header
from enclave.openings import MAX_OF_SENDER, MAX_OPENINGS, MAX_PAUSE_S, Openings


def opening(name: str = "a") -> pb.StreamOpening:
    jkt = name.ljust(43, "A")
    header = Header(
        suite="x",
        tenant="acme",
        msg_id=os.urandom(16),
        sender=f"agent/acme/{jkt}",
        sender_jkt=jkt,
        mailbox="acme/mail/b",
        mailbox_key=bytes(32),
        incarnation=bytes(32),
        seq=1,
        sent_at_ms=1,
        expires_at_ms=2,
        type="cloister.channel.open",
    )
    return pb.StreamOpening(envelope=Envelope(header=header.to_bytes(), body=b"x", signature=bytes(64)).to_bytes())


class Trials:
    """Counts them, and says whether the thing is settled."""

    def __init__(self, *, settled: bool = False) -> None:
        self.seen: list[pb.StreamOpening] = []
        self.settled = settled

    def __call__(self, one: pb.StreamOpening) -> bool:
        self.seen.append(one)
        return self.settled


def test_an_opening_is_tried_soon_at_first_and_then_further_and_further_apart() -> None:
    openings, trials, moments = Openings(), Trials(), []
    openings.keep(opening(), 0.0)
    for tick in range(10 * 300):  # ten deliveries a second, for five minutes
        before = len(trials.seen)
        openings.retry(trials, tick / 10)
        if len(trials.seen) > before:
            moments.append(tick / 10)
    assert moments[:4] == [1.0, 2.0, 3.0, 4.0]
    assert [later - earlier for earlier, later in pairwise(moments)][-3:] == [MAX_PAUSE_S] * 3
    assert len(moments) < 20


def test_one_that_is_judged_is_not_tried_again() -> None:
    openings, trials = Openings(), Trials(settled=True)
    openings.keep(opening(), 0.0)
    openings.retry(trials, 0.5)
    assert trials.seen == []
    openings.retry(trials, 5.0)
    openings.retry(trials, 50.0)
    assert len(trials.seen) == 1
    assert len(openings) == 0


def test_no_sender_takes_the_places_of_others() -> None:
    openings, quiet = Openings(), opening("quiet")
    openings.keep(quiet, 0.0)
    for _ in range(1000):
        openings.keep(opening("noisy"), 0.0)
    assert len(openings) == 1 + MAX_OF_SENDER
    trials = Trials()
    openings.retry(trials, 1.0)
    assert quiet in trials.seen


def test_so_many_senders_are_remembered_and_no_more() -> None:
    openings, quiet = Openings(), opening("quiet")
    openings.keep(quiet, 0.0)
    for number in range(MAX_OPENINGS):
        openings.keep(opening(str(number // 8)), 0.0)
    assert len(openings) == MAX_OPENINGS
    trials = Trials()
    openings.retry(trials, 1.0)
    assert quiet in trials.seen


@pytest.mark.parametrize("raw", [b"", b"\xff" * 40])
def test_what_cannot_be_read_is_kept_as_nobodys(raw: bytes) -> None:
    openings = Openings()
    openings.keep(pb.StreamOpening(envelope=raw), 0.0)
    assert len(openings) == 1
