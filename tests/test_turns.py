"""Whose parcel comes next, and that a look which a bound cut short says so."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from broker.ports.mail import MAX_OUT
from broker.store.turns import Harvest, hungry


@dataclass
class Parcel:
    """One that waits."""

    sender: str
    messages: int
    octets: int = 100
    lease: str | None = None
    attempt: int = 0
    visible_at_ms: int = 0
    expires_at_ms: int = 10


def reaped(
    *waiting: Parcel,
    out: dict[str, int] | None = None,
    parcels: int = 16,
    messages: int = MAX_OUT,
    octets: int = 1 << 20,
) -> tuple[list[tuple[str, int]], bool]:
    """Sender and messages of what is handed out, and whether a bound ended it."""
    lanes: dict[str, list[Parcel]] = {}
    for one in waiting:
        lanes.setdefault(one.sender, []).append(one)
    harvest: Harvest[Parcel] = Harvest(
        now_ms=1, max_attempts=5, parcels=parcels, messages=messages, octets=octets, out=dict(out or {})
    )
    harvest.reap([(sender, True) for sender in lanes], lanes.__getitem__, fallen="hold")
    return [(one.sender, one.messages) for one in harvest.taken], harvest.cut


def test_senders_take_turns() -> None:
    taken, cut = reaped(*[Parcel("a", 10)] * 3, *[Parcel("b", 10)] * 2)
    assert ([sender for sender, _ in taken], cut) == (["a", "b", "a", "b", "a"], False)


@pytest.mark.parametrize(
    ("bound", "handed_out"),
    [({"parcels": 2}, 2), ({"messages": 25}, 2), ({"messages": 20}, 2), ({"octets": 250}, 2), ({"messages": 5}, 1)],
    ids=str,
)
def test_a_look_that_a_bound_cut_short_says_that_there_may_be_more(bound: dict[str, int], handed_out: int) -> None:
    waiting: Sequence[Parcel] = [Parcel("a", 10)] * 3
    taken, cut = reaped(*waiting, **bound)  # type: ignore[arg-type]
    assert (len(taken), cut) == (handed_out, True)


def test_a_look_that_could_hand_out_nothing_does_not_promise_more() -> None:
    assert reaped(Parcel("a", 10), messages=0) == ([], False)


def test_a_sender_who_has_his_share_is_not_looked_for_again_before_something_is_settled() -> None:
    taken, cut = reaped(*[Parcel("a", 256)] * 4)
    assert (len(taken), cut) == (2, False)


def test_who_may_be_handed_more_is_known_without_looking_at_what_waits() -> None:
    lanes = [("all is out", 256, 256), ("some is", 300, 256), ("nothing is", 1, 0)]
    assert hungry(lanes, MAX_OUT) == ["some is", "nothing is"]
    assert hungry([("has his share", 4096, 512), ("has nothing", 4096, 0)], MAX_OUT) == ["has nothing"]
    assert hungry([("a", 4096, 512), ("b", 4096, 512)], MAX_OUT) == [], "all that may be out is"
    assert hungry([("a", 1, 0)], 0) == []


@pytest.mark.parametrize("size", [1, 16, 100, 256])
@pytest.mark.parametrize("messages", [1, 100, MAX_OUT])
def test_a_look_finds_nothing_of_those_who_are_not_hungry(size: int, messages: int) -> None:
    out: dict[str, int] = {}
    for _ in range(MAX_OUT):
        lanes = [(sender, 4096, out.get(sender, 0)) for sender in "abc"]
        room = min(messages, MAX_OUT - sum(out.values()))
        taken, _ = reaped(*(Parcel(sender, size) for sender in "abc" for _ in range(2)), out=out, messages=room)
        assert {sender for sender, _ in taken} <= set(hungry(lanes, messages))
        if not taken:
            break
        for sender, count in taken:
            out[sender] = out.get(sender, 0) + count
    else:
        raise AssertionError("it never ended")
