"""A gRPC client for the broker's tests: messages from plain members, proofs in the metadata, refusals as problems."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import Message

from broker.rpc.server import start
from broker.rpc.unary import TWINS, Twin
from broker.wire import api_pb2 as pb
from tests.broker_world import Agent, World

BY_NAME = {f"{twin.service}.{twin.method}": twin for twin in TWINS}


@dataclass
class Outcome:
    """What came back: an answer, or a problem; and the metadata."""

    answer: Message | None
    problem: pb.Problem
    metadata: dict[str, str | bytes]
    status: grpc.StatusCode = grpc.StatusCode.OK

    @property
    def told(self) -> tuple[int, str]:
        return (200, "") if self.answer is not None else (self.problem.status, self.problem.code)


@dataclass
class GrpcClient:
    """A channel, and the nonce for the next proof."""

    world: World
    channel: grpc.aio.Channel
    nonce: str | None = None

    async def call(
        self,
        name: str,
        message: Message | bytes,
        *,
        by: Agent | str = "",
        metadata: tuple[tuple[str, str], ...] | None = None,
    ) -> Outcome:
        """`name` is `Broker.Challenge`; `by` an agent or "admin". A missing nonce is fetched the way clients do it."""
        twin = BY_NAME[name]
        raw = message if isinstance(message, bytes) else message.SerializeToString()
        for _ in range(2):
            given = metadata if metadata is not None else self.proofs(twin, raw, by)
            found = await self._once(twin, raw, given)
            fresh = found.metadata.get("dpop-nonce")
            if found.status is not grpc.StatusCode.UNAUTHENTICATED or fresh in (None, self.nonce) or metadata:
                break
            self.nonce = str(fresh)
        self.nonce = str(found.metadata.get("dpop-nonce", self.nonce))
        return found

    def proofs(self, twin: Twin, raw: bytes, by: Agent | str, **changes: Any) -> tuple[tuple[str, str], ...]:
        if isinstance(by, Agent):
            return tuple(by.headers("POST", twin.full_method, raw, nonce=self.nonce, **changes).items())
        if by:
            return tuple(self.world.admin_headers("POST", twin.full_method, raw, nonce=self.nonce).items())
        return ()

    async def _once(self, twin: Twin, raw: bytes, metadata: tuple[tuple[str, str], ...]) -> Outcome:
        method: Any = self.channel.unary_unary(twin.full_method)
        calling = method(raw, metadata=metadata, timeout=30)
        try:
            answer = await calling
        except grpc.aio.AioRpcError as error:
            found = {str(key): value for key, value in error.trailing_metadata()}
            return Outcome(None, problem_in(found), found, error.code())
        trailing = {str(key): value for key, value in await calling.trailing_metadata()}
        return Outcome(twin.answer.FromString(answer), pb.Problem(), trailing)


def problem_in(metadata: dict[str, str | bytes]) -> pb.Problem:
    """The problem in the details of a status, as any client with google.rpc finds it."""
    raw = metadata.get("grpc-status-details-bin", b"")
    assert isinstance(raw, bytes)
    status = pb.Status.FromString(raw)
    problem = pb.Problem()
    for detail in status.details:
        assert detail.Unpack(problem)
    return problem


@asynccontextmanager
async def dialled(world: World) -> AsyncIterator[GrpcClient]:
    """The world's broker behind a gRPC port, and a client of it."""
    server = await start(world.broker, "127.0.0.1", 0)
    try:
        async with grpc.aio.insecure_channel(server.address) as channel:
            yield GrpcClient(world=world, channel=channel)
    finally:
        await server.stop(None)
