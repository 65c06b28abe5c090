"""Direct channels between agents: TLS 1.3 with X.509-SVIDs on both sides, for traffic that needs no broker in between.

Decides who is at the other end. TLS proves that the peer holds the key of its certificate; which agent that is, whether
the certificate is in force and not revoked, is judged here, by the trust bundle and the broker's time: the wall clock
that a TLS library would ask belongs to the host. The judgement is repeated while the connection lives, so it ends with
the certificate, or when the peer falls. Policy about what a peer may ask is the caller's.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Final, final

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from broker.wire.errors import WireCode, WireError
from broker.wire.svid import Leaf, TrustBundle
from enclave.errors import AgentError, Code
from enclave.svid import Svid, SvidKeeper

PROTOCOL: Final = "cloister-direct/1"
HANDSHAKE_S: Final = 10.0
_NO_CHECK_TIME: Final = 0x200000  # X509_V_FLAG_NO_CHECK_TIME: the broker's time decides, after the handshake


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """The other end of a direct channel: an agent that was proved, and the two streams."""

    leaf: Leaf
    reader: asyncio.StreamReader = field(repr=False)
    writer: asyncio.StreamWriter = field(repr=False)

    @property
    def subject(self) -> str:
        return self.leaf.subject


Accepts = Callable[[Leaf], bool]
Handle = Callable[[Peer], Awaitable[None]]


@asynccontextmanager
async def connect(keeper: SvidKeeper, host: str, port: int, *, subject: str) -> AsyncIterator[Peer]:
    """A channel to the agent with this subject; nothing is sent before it is proved to be that one.

    Raises WireError svid.*; AgentError peer.not_accepted for another agent; OSError, ssl.SSLError.
    """
    keeper.start()
    svid = await keeper.current()
    context = _context(ssl.PROTOCOL_TLS_CLIENT, svid, await keeper.bundle())
    reader, writer = await asyncio.open_connection(
        host, port, ssl=context, server_hostname="", ssl_handshake_timeout=HANDSHAKE_S
    )
    try:
        leaf = _judge(keeper, writer)
        if leaf.subject != subject:
            raise AgentError(Code.PEER_REFUSED, f"{leaf.subject} answered, wanted {subject}")
        async with _watched(keeper, writer):
            yield Peer(leaf=leaf, reader=reader, writer=writer)
    finally:
        await _close(writer)


async def serve(keeper: SvidKeeper, handle: Handle, host: str, port: int, *, accepts: Accepts) -> asyncio.Server:
    """Take channels from agents that `accepts` names; everybody else's connection ends without a byte.

    Raises as `connect`.
    """
    keeper.start()
    context = _context(ssl.PROTOCOL_TLS_SERVER, await keeper.current(), await keeper.bundle())

    def newest(connection: ssl.SSLObject, _: str | None, __: ssl.SSLContext) -> None:
        """Each handshake shows the certificate of now."""
        if latest := keeper.latest:
            connection.context = _context(ssl.PROTOCOL_TLS_SERVER, *latest)

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            leaf = _judge(keeper, writer)
            if accepts(leaf):
                async with _watched(keeper, writer):
                    await handle(Peer(leaf=leaf, reader=reader, writer=writer))
        except (WireError, ConnectionError):
            writer.transport.abort()
        finally:
            await _close(writer)

    context.sni_callback = newest
    return await asyncio.start_server(accept, host, port, ssl=context, ssl_handshake_timeout=HANDSHAKE_S)


def _context(side: int, svid: Svid, bundle: TrustBundle) -> ssl.SSLContext:
    """Both sides show a certificate of the bundle's authorities. No session is resumed: each handshake proves anew."""
    context = ssl.SSLContext(side)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # agents have ids, not host names
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= _NO_CHECK_TIME
    context.set_alpn_protocols([PROTOCOL])
    if side == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0
    context.load_verify_locations(cadata="".join(ssl.DER_cert_to_PEM_cert(raw) for raw in bundle.authorities))
    key = svid.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    _load(context, ssl.DER_cert_to_PEM_cert(svid.certificate).encode() + key)
    return context


def _load(context: ssl.SSLContext, pem: bytes) -> None:
    """The standard library reads keys from files only: this one has no name and no disk."""
    descriptor = os.memfd_create("svid", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, pem)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def _judge(keeper: SvidKeeper, writer: asyncio.StreamWriter) -> Leaf:
    tls: ssl.SSLObject = writer.get_extra_info("ssl_object")
    certificate = tls.getpeercert(binary_form=True)
    if certificate is None or tls.selected_alpn_protocol() != PROTOCOL:
        raise WireError(WireCode.SVID_MALFORMED, "the peer showed no certificate, or speaks something else")
    return keeper.judge(certificate)


@asynccontextmanager
async def _watched(keeper: SvidKeeper, writer: asyncio.StreamWriter) -> AsyncIterator[None]:
    """Cut the connection when the peer's certificate no longer stands."""

    async def watch() -> None:
        while True:
            change = keeper.change
            leaf = _judge(keeper, writer)
            left_s = leaf.not_after.timestamp() - keeper.host.time.now_s()
            with suppress(TimeoutError):
                async with asyncio.timeout(max(left_s, 0) + 1):
                    await change.wait()

    task = asyncio.create_task(watch())
    task.add_done_callback(lambda done: None if done.cancelled() else writer.transport.abort())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(OSError, ssl.SSLError):  # it has been cut, or the peer went without a word
        await writer.wait_closed()
