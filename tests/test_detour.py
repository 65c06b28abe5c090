"""Mail goes on by requests when no stream can be opened, and on a stream again when one can: nothing is lost, nothing
is handled twice, each sender's order stays."""

import asyncio
from pathlib import Path

import pytest

from broker.wire.channel import ChannelBatch
from broker.wire.mailbox import ReceiveRequest
from tests.stream_world import PATIENCE_S, mail
from tests.test_stream import numbered, post

# ── the broker's half ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_who_begins_anew_by_a_request_gets_what_is_out_on_a_stream_that_the_broker_still_has(
    tmp_path: Path,
) -> None:
    """As after a proxy has dropped a stream and told one end alone: what comes later must not come first."""
    async with mail(tmp_path) as net:
        a, b = await net.pair(credit=4)
        await asyncio.gather(*post(a, b.box, numbered(2)))
        async with asyncio.timeout(PATIENCE_S):
            while len(await b.stream.receive(1, PATIENCE_S)) < 1:
                pass
        plain, anew = ReceiveRequest(), ReceiveRequest(anew=True)
        receive = net.world.broker.mailboxes.receive
        before = await b.agent.acting(lambda session: receive(session, b.box, plain))
        after = await b.agent.acting(lambda session: receive(session, b.box, anew))
        numbers = [ChannelBatch.from_bytes(one.batch).first_seq for one in after.batches]
        assert not before.batches
        assert numbers == sorted(numbers)
        assert numbers[0] == 1
        assert {one.attempt for one in after.batches} == {1}
