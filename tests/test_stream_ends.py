"""A stream that the broker refuses ends at its reader, whatever was being written at that moment."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from broker.rpc import stream as rpc_stream
from broker.wire import stream_pb2 as pb
from broker.wire.errors import WireCode
from tests.stream_world import PATIENCE_S, mail
from tests.test_stream import ended, raw


class Unheard:
    """A call whose first write reaches the reader while its writer has not heard so yet."""

    def __init__(self, context: Any) -> None:
        self._context = context

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def write(self, message: bytes) -> None:
        begun = self._context.write(message)
        begun.send(None)
        try:
            await asyncio.Event().wait()
        finally:
            begun.close()


@pytest.mark.asyncio
async def test_a_stream_ends_though_a_write_is_broken_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin: Callable[..., Any] = rpc_stream.Streams._begin
    monkeypatch.setattr(
        rpc_stream.Streams, "_begin", lambda streams, context, call_id: begin(streams, Unheard(context), call_id)
    )
    async with mail(tmp_path) as net:
        agent = await net.world.admitted("a")
        async with raw(net, agent) as call:
            await call.write(pb.ToBroker(settles=[pb.Settle()]).SerializeToString())
            assert await asyncio.wait_for(ended(call), PATIENCE_S) == WireCode.BODY_FIELD_INVALID
