"""The mail stream: in order, no more than asked for, nothing lost with the connection, nothing left to the fallen."""

import asyncio
from pathlib import Path

import pytest

from tests.stream_world import mail


@pytest.mark.asyncio
async def test_messages_arrive_in_order_and_settled_ones_are_gone(tmp_path: Path) -> None:
    async with mail(tmp_path) as net:
        a, b = await net.pair()
        texts = [b"%d" % number for number in range(300)]
        sent = [a.stream.post(b.box, kind="note", plaintext=text) for text in texts]
        assert await b.take(300) == texts
        assert len(set(await asyncio.gather(*sent))) == 300
        await net.until(lambda: net.waiting() == 0)
