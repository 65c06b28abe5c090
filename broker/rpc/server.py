"""The gRPC server: which services it has, its bounds, its beginning and its end.

Decides limits that hold before any handler runs: size of a message and of metadata, calls at once. A port that another
process listens on is refused, not shared.
"""

from collections.abc import Callable
from typing import Final, final

import grpc

from broker.rpc import stream, unary
from broker.service import Broker
from broker.wire.bodies import MAX_EVIDENCE_BODY

SERVICES: Final[tuple[Callable[[Broker], tuple[grpc.GenericRpcHandler, ...]], ...]] = (
    unary.services,
    stream.services,
)
"""Each makes its handlers for a broker."""

MAX_CALLS: Final = 4096  # at once, streams included
MAX_METADATA: Final = 64 * 1024  # an admission token is a few KiB
OPTIONS: Final = (
    ("grpc.http2.lookahead_bytes", 1 << 19),  # of a stream, unread: less than one message may have
    ("grpc.http2.max_frame_size", 1 << 19),
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MAX_EVIDENCE_BODY),
    ("grpc.max_metadata_size", MAX_METADATA),
    ("grpc.absolute_max_metadata_size", MAX_METADATA),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.max_concurrent_streams", 1024),
    ("grpc.server_handshake_timeout_ms", 10_000),  # to the first settings of HTTP/2
    ("grpc.max_connection_idle_ms", 300_000),  # without a call; clients connect again by themselves
)


@final
class GrpcServer:
    """A server that takes calls."""

    def __init__(self, server: grpc.aio.Server, host: str, port: int) -> None:
        self._server = server
        self.host: Final = host
        self.port: Final = port

    @property
    def address(self) -> str:
        """What clients dial."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    async def stop(self, grace_s: float | None) -> None:
        """Take no new calls; those under way have so long to finish, or none at all."""
        await self._server.stop(grace_s)


async def start(
    broker: Broker, host: str, port: int, *, credentials: grpc.ServerCredentials | None = None
) -> GrpcServer:
    """A server on that address; port 0 takes a free one. Without credentials it speaks plain HTTP/2.

    Raises OSError when the address cannot be bound.
    """
    server = grpc.aio.server(options=OPTIONS, maximum_concurrent_rpcs=MAX_CALLS)
    server.add_generic_rpc_handlers(tuple(handler for make in SERVICES for handler in make(broker)))
    wanted = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        bound = server.add_insecure_port(wanted) if credentials is None else server.add_secure_port(wanted, credentials)
    except RuntimeError as error:
        await server.stop(None)
        raise OSError(f"gRPC cannot listen on {wanted}: {error}") from None
    await server.start()
    return GrpcServer(server, host, bound)
