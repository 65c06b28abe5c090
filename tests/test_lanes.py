"""What is on its way: the same bytes until they are answered, in order, and anew only what was not taken."""

import asyncio
from dataclasses import replace

import pytest

from broker.wire import stream_pb2 as pb
from broker.wire.channel import ChannelBatch
from enclave import lanes
from enclave.channel import Outgoing, SendingChannel
from enclave.errors import BrokerRefused
from enclave.lanes import MAX_FULL, Item, Lane, Lanes
from tests.channel_pair import Pair
from tests.test_channel import BOX


class Way:
    """A lane with a broker at its end that answers as a test wants."""

    def __init__(self) -> None:
        self.pair = Pair()
        self.lane = Lane(BOX, iter(range(1, 1000)))
        self.now_s = 100.0
        self.sent: list[asyncio.Future[bytes]] = []
        self.announced: list[tuple[bytes, str]] = []

    def post(self, *texts: bytes, kind: str = "note") -> None:
        for text in texts:
            future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
            self.sent.append(future)
            note = Outgoing(kind=kind, plaintext=text)
            self.lane.post(Item(message=note, accepted=future, announce=lambda *told: self.announced.append(told)))

    def key(self) -> None:
        assert self.lane.wants_key(self.now_s)
        self.lane.found(self.pair.b.info(), lambda: self.pair.opened(self.pair.a), self.now_s)

    def sends(self) -> list[pb.StreamSend]:
        return list(self.lane.sends(self.now_s))

    def answer(self, send: pb.StreamSend, status: str = "queued", code: str = "", retry_after_s: int = 0) -> None:
        result = pb.StreamResult(id=send.id, status=status, code=code, retry_after_s=retry_after_s)
        self.lane.answered(result, self.now_s)

    def outcomes(self) -> list[str]:
        return ["waits" if not one.done() else "failed" if one.exception() else "taken" for one in self.sent]


@pytest.fixture
def way() -> Way:
    return Way()


def firsts(sends: list[pb.StreamSend]) -> list[int]:
    return [ChannelBatch.from_bytes(send.batch).first_seq for send in sends]


@pytest.mark.asyncio
async def test_what_gathered_goes_as_one_batch_with_the_opening_until_one_was_taken(way: Way) -> None:
    way.post(b"1", b"2")
    assert way.sends() == []
    way.key()
    (first,) = way.sends()
    way.post(b"3")
    (second,) = way.sends()
    assert firsts([first, second]) == [1, 3]
    assert first.opening == second.opening != b""
    way.answer(first)
    way.post(b"4")
    (third,) = way.sends()
    assert third.opening == b""
    way.answer(second)
    way.answer(third, status="duplicate")
    assert way.outcomes() == ["taken"] * 4
    assert [told[0] for told in way.announced] == [one.result() for one in way.sent]
    assert way.lane.idle


@pytest.mark.asyncio
async def test_after_a_lost_connection_the_same_bytes_go_again_in_order(way: Way) -> None:
    way.post(b"1")
    way.key()
    before = way.sends()
    way.post(b"2")
    before += way.sends()
    way.lane.disconnected()
    assert [send.batch for send in way.sends()] == [send.batch for send in before]
    assert way.sends() == []


@pytest.mark.asyncio
async def test_what_is_refused_for_the_moment_goes_again_when_all_was_answered(way: Way) -> None:
    way.post(b"1")
    way.key()
    (first,) = way.sends()
    way.post(b"2")
    (second,) = way.sends()
    way.answer(first, "refused", "generation.moved", 1)
    assert way.sends() == []
    way.now_s += 2
    assert way.sends() == []  # the second is not answered yet
    way.answer(second, "refused", "channel.gap", 1)
    way.now_s += 0.1
    assert [send.batch for send in way.sends()] == [first.batch, second.batch]
    assert way.lane.wakes_at_s() is not None


@pytest.mark.asyncio
async def test_what_is_refused_for_good_fails_alone_and_the_rest_is_sealed_anew(way: Way) -> None:
    way.post(b"1")
    way.key()
    (first,) = way.sends()
    way.post(b"2")
    (second,) = way.sends()
    way.answer(first, "refused", "policy.refused")
    way.post(b"3")
    assert way.sends() == []
    way.answer(second, "refused", "channel.gap")
    assert way.outcomes() == ["failed", "waits", "waits"]
    error = way.sent[0].exception()
    assert isinstance(error, BrokerRefused)
    assert error.code == "policy.refused"
    way.key()
    (anew,) = way.sends()
    assert firsts([anew]) == [1]
    assert ChannelBatch.from_bytes(anew.batch).channel != ChannelBatch.from_bytes(first.batch).channel
    way.answer(anew)
    assert way.outcomes() == ["failed", "taken", "taken"]


@pytest.mark.asyncio
async def test_kinds_in_one_batch_are_told_apart_before_any_fails(way: Way) -> None:
    way.post(b"1")
    way.post(b"2", kind="leak")
    way.key()
    (both,) = way.sends()
    way.answer(both, "refused", "policy.refused")
    way.key()
    first, second = way.sends()
    way.answer(first)
    way.answer(second, "refused", "policy.refused")
    assert way.outcomes() == ["taken", "failed"]


@pytest.mark.asyncio
async def test_a_stale_key_is_asked_for_anew_but_not_for_ever(way: Way) -> None:
    way.post(b"1")
    for _ in range(3):
        way.key()
        (send,) = way.sends()
        way.answer(send, "refused", "mailbox.key_stale")
    assert way.outcomes() == ["failed"]


@pytest.mark.asyncio
async def test_another_key_of_the_mailbox_ends_the_channel_when_nothing_is_flying(way: Way) -> None:
    way.post(b"1")
    way.key()
    (first,) = way.sends()
    way.now_s += 100  # what was found out is old
    way.post(b"2")
    way.pair.b.key = way.pair.b.inbox.new_epoch(way.pair.b.verdict.subject)
    way.key()
    assert way.sends() == []
    way.answer(first)
    way.key()
    (second,) = way.sends()
    assert firsts([second]) == [1]


@pytest.mark.asyncio
async def test_another_owner_under_the_same_key_is_written_to_on_another_channel(way: Way) -> None:
    """Of a durable mailbox: the next owner has not been proved to this channel, and its answers are another's."""
    way.post(b"1")
    way.key()
    (first,) = way.sends()
    way.answer(first)
    way.now_s += 100
    way.post(b"2")
    heir = replace(way.pair.b.info(), key=replace(way.pair.b.key, owner="another"))
    opened: list[SendingChannel] = []

    def anew() -> SendingChannel:
        opened.append(way.pair.opened(way.pair.a))
        return opened[0]

    way.lane.found(heir, anew, way.now_s)
    (second,) = way.sends()
    assert [one.opening for one in opened] == [second.opening]


@pytest.mark.asyncio
async def test_a_batch_that_never_fits_is_tried_in_parts(way: Way) -> None:
    way.post(b"1", b"2", b"3", b"4")
    way.key()
    for _ in range(MAX_FULL):
        (send,) = way.sends()
        way.answer(send, "refused", "mailbox.full", 1)
        way.now_s += 2
    way.key()
    assert [len(ChannelBatch.from_bytes(send.batch)) for send in way.sends()] == [2, 2]


@pytest.mark.asyncio
async def test_one_that_cannot_be_sealed_fails_and_the_others_go(way: Way) -> None:
    way.post(b"1", bytes(1 << 20), b"3")
    way.key()
    for send in way.sends():
        way.answer(send)
    assert way.outcomes() == ["taken", "failed", "taken"]


@pytest.mark.asyncio
async def test_lanes_with_nothing_on_them_are_forgotten_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "MAX_LANES", 4)
    made = Lanes()

    def post(name: str) -> asyncio.Future[bytes]:
        accepted: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        made.post(name, Item(Outgoing("note", b"x"), accepted))
        return accepted

    waiting = post("busy")
    for number in range(20):
        post(f"idle-{number}")
        for lane in made:
            if lane.mailbox != "busy":
                lane.fail(BrokerRefused(status=404, code="mailbox.unknown", detail=""))
    assert len(list(made)) <= 4
    assert made.outstanding("busy") == 1
    assert not waiting.done()
