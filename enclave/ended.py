"""What ended a call over gRPC: as the broker explains it, or as the connection does.

Decides nothing. Nobody signs these words, so no more than a nonce for the next proof and a reason for the log is taken
from them.
"""

from __future__ import annotations

from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError

from attestation.errors import CloisterError
from broker.wire import api_pb2, channel
from broker.wire.errors import WireError
from enclave.errors import BrokerRefused, Code, TransportFailed

MAX_TOLD: Final = 16 << 20


async def why(call: grpc.aio.StreamStreamCall[Any, Any], target: str) -> tuple[CloisterError, str | None]:
    """The error, and the nonce for the next proof if there is one."""
    code = await call.code()
    found = {str(name): value for name, value in (await call.trailing_metadata()) or ()}
    nonce, told = found.get("dpop-nonce"), found.get("grpc-status-details-bin")
    said = nonce if isinstance(nonce, str) else None
    problem = _problem(told) if isinstance(told, bytes) else None
    if problem is None:
        return TransportFailed(Code.CLIENT_UNREACHABLE, f"{target}: {code.name}"), said
    refused = BrokerRefused(
        status=problem.status,
        code=problem.code,
        detail=problem.title,
        remedy=problem.remedy,
        correlation_id=problem.correlation_id,
        reasons=tuple(problem.codes),
    )
    return refused, said


def _problem(raw: bytes) -> api_pb2.Problem | None:
    """The problem in a call's status details; none where they cannot be read."""
    try:
        for detail in channel.parsed(api_pb2.Status, raw, MAX_TOLD).details:
            return api_pb2.Problem.FromString(detail.value)
    except (WireError, DecodeError):
        return None
    return None
