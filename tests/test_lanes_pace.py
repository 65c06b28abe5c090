"""How batches grow with the load: the first few set out as they are, then only full ones, until an answer comes."""

import pytest

from broker.wire import stream_pb2 as pb
from broker.wire.channel import MAX_OUTSTANDING, ChannelBatch
from enclave.lanes import BATCH_MESSAGES, EAGER
from tests.test_lanes import Way


class Pace(Way):
    """A lane, and what is under way."""

    def __init__(self) -> None:
        super().__init__()
        self.under_way: list[pb.StreamSend] = []

    def sizes(self) -> list[int]:
        """Messages of each batch that may go now."""
        sends = self.sends()
        self.under_way += sends
        return [len(ChannelBatch.from_bytes(send.batch)) for send in sends]


@pytest.fixture
def way() -> Pace:
    return Pace()


async def _begun(way: Pace) -> None:
    """EAGER batches of one message are under way."""
    way.post(b"0")
    way.key()
    assert way.sizes() == [1]
    for _ in range(EAGER - 1):
        way.post(b"1")
        assert way.sizes() == [1], "a lone message waits for nobody"


@pytest.mark.asyncio
async def test_while_some_are_under_way_only_full_batches_set_out(way: Pace) -> None:
    await _begun(way)
    way.post(*[b"2"] * (BATCH_MESSAGES - 1))
    assert way.sizes() == []
    way.post(b"3")
    assert way.sizes() == [BATCH_MESSAGES]


@pytest.mark.asyncio
async def test_with_an_answer_goes_what_has_gathered(way: Pace) -> None:
    await _begun(way)
    way.post(b"2", b"3")
    assert way.sizes() == []
    way.answer(way.under_way[0])
    assert way.sizes() == [2]


@pytest.mark.asyncio
async def test_what_was_not_taken_keeps_nothing_waiting_for_ever(way: Pace) -> None:
    await _begun(way)
    way.post(b"2")
    for send in way.under_way:
        way.answer(send, "refused", "policy.refused")
    way.key()
    assert way.sizes() == [EAGER], "all but the one that failed, together"


@pytest.mark.asyncio
async def test_no_more_than_the_window_is_under_way_and_no_crumb_fills_it(way: Pace) -> None:
    await _begun(way)
    way.post(*[b"2"] * 2 * MAX_OUTSTANDING)
    found = way.sizes()
    assert set(found) == {BATCH_MESSAGES}
    assert MAX_OUTSTANDING - BATCH_MESSAGES < EAGER + sum(found) <= MAX_OUTSTANDING
