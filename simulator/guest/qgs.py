"""The host's quote generation service: TDREPORT in, quote out, over Unix sockets and TCP.

Decides framing, messages and error codes as Intel's QGS has them; the quoting itself is the platform's. One connection,
one request, one answer, then it is closed. Two forms of request:

    framed   u32 big-endian length, then the message; all of its integers are little-endian:
             u16 major = 1, u16 minor, u32 type, u32 size of the message, u32 error code, then the body
    raw      a bare TDREPORT of 1024 bytes; the answer is a bare quote. What is not framed well is read as this.

Whatever is wrong with a framed request is answered with QGS_MSG_ERROR_UNEXPECTED, as Intel's daemon does; what is no
request at all gets the connection closed.

Source: Intel DCAP, `QuoteGeneration/quote_wrapper/qgs` and `qgs_msg_lib`.
"""

from __future__ import annotations

import contextlib
import socket
import socketserver
import struct
import threading
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self, final

from simulator.errors import SimulatorError
from simulator.tdreport import SIZE as TDREPORT_LEN

if TYPE_CHECKING:
    from simulator.machine import Machine
    from simulator.platform import Platform

MAX_MESSAGE: Final = 1 << 20
TIMEOUT_S: Final = 30.0
UNEXPECTED: Final = 0x00012001
GET_QUOTE, GET_COLLATERAL, GET_PLATFORM_INFO = 0, 2, 4
"""Types of requests; the answer's type is one more."""

_HEADER: Final = struct.Struct("<HHIII")  # major, minor, type, size, error code
_TWO_SIZES: Final = struct.Struct("<II")
_COLLATERAL: Final = struct.Struct("<HH7I")
_PLATFORM_INFO: Final = struct.Struct("<HHII")
_FRAME: Final = struct.Struct(">I")
_MAJOR, _MINOR = 1, 1
_CRLS_AS_DER: Final = (3, 1)
"""Version of the collateral structure: revocation lists as raw DER, texts end with a NUL."""


def answer(machine: Machine, platform: int, message: bytes) -> bytes:
    """The answer to one message, both without frames. `platform` is the index of the one that this QGS runs on."""
    *_, kind, size, error = _HEADER.unpack_from(message)
    try:
        if size != len(message) or error:
            raise ValueError("header")
        body = message[_HEADER.size :]
        match kind:
            case 0:
                content = _quote(machine.platform(platform), body)
            case 2:
                content = _collateral(machine, body)
            case _:
                content = _platform_info(machine.platform(platform), body)
    except (SimulatorError, ValueError, struct.error):
        return _HEADER.pack(_MAJOR, _MINOR, kind + 1, _HEADER.size, UNEXPECTED)
    return _HEADER.pack(_MAJOR, _MINOR, kind + 1, _HEADER.size + len(content), 0) + content


def _quote(platform: Platform, body: bytes) -> bytes:
    """u32 report size, u32 id list size, report, ids → u32 size of the selected id (0), u32 quote size, quote."""
    report_size, ids_size = _TWO_SIZES.unpack_from(body)
    if report_size != TDREPORT_LEN or len(body) != _TWO_SIZES.size + report_size + ids_size:
        raise ValueError("sizes")
    quote = platform.quote_report(body[_TWO_SIZES.size : _TWO_SIZES.size + report_size])
    return _TWO_SIZES.pack(0, len(quote)) + quote


def _collateral(machine: Machine, body: bytes) -> bytes:
    """u32 FMSPC size, u32 CA size, FMSPC, CA ("platform" or "processor", NUL or not) → versions, sizes, seven blobs."""
    fmspc_size, ca_size = _TWO_SIZES.unpack_from(body)
    if len(body) != _TWO_SIZES.size + fmspc_size + ca_size:
        raise ValueError("sizes")
    fmspc = body[_TWO_SIZES.size : _TWO_SIZES.size + fmspc_size]
    ca = body[_TWO_SIZES.size + fmspc_size :].rstrip(b"\0").decode("ascii")
    if ca not in ("platform", "processor"):
        raise ValueError("CA")
    found = machine.documents("tdx", fmspc.hex(), ca=ca)
    blobs = (
        _text(found.pck_crl_issuer_chain),
        found.root_ca_crl,
        found.pck_crl,
        _text(found.tcb_info_issuer_chain),
        _text(f'{{"tcbInfo":{found.tcb_info},"signature":"{found.tcb_info_signature.hex()}"}}'),
        _text(found.qe_identity_issuer_chain),
        _text(f'{{"enclaveIdentity":{found.qe_identity},"signature":"{found.qe_identity_signature.hex()}"}}'),
    )
    return _COLLATERAL.pack(*_CRLS_AS_DER, *map(len, blobs)) + b"".join(blobs)


def _platform_info(platform: Platform, body: bytes) -> bytes:
    """Nothing → u16 ISVSVN of the TDQE, u16 of the PCE, u32 and u32 sizes, platform instance id, CPUSVN."""
    if body:
        raise ValueError("body")
    identity, cpu_svn = platform.instance_id or b"", platform.spec.components
    sizes = (len(identity), len(cpu_svn))
    return _PLATFORM_INFO.pack(platform.spec.qe_svn, platform.spec.pcesvn, *sizes) + identity + cpu_svn


def _text(content: str) -> bytes:
    return content.encode() + b"\0"


@final
class QgsServer:
    """A QGS of one platform on a Unix socket, on TCP (loopback), or both. A context manager."""

    def __init__(
        self,
        machine: Machine,
        platform: int = 0,
        *,
        unix: Path | None = None,
        port: int | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        """`port` 0 lets the kernel choose. Raises OSError when an address is taken."""
        self._unix = unix
        self._servers: list[socketserver.BaseServer] = []
        self._threads: list[threading.Thread] = []
        if unix is not None:
            self._servers.append(_UnixServer(str(unix), _handler(machine, platform)))
        if port is not None:
            try:
                self._servers.append(_TcpServer((host, port), _handler(machine, platform)))
            except OSError:
                self._close()
                raise

    @property
    def address(self) -> str:
        """`host:port` of the TCP socket, or nothing."""
        for server in self._servers:
            if isinstance(server, _TcpServer):
                host, port = server.server_address[:2]
                return f"{host!s}:{port}"
        return ""

    def __enter__(self) -> Self:
        for server in self._servers:
            thread = threading.Thread(target=server.serve_forever, args=(0.1,), name="cloister-qgs", daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for server in self._servers:
            server.shutdown()
        for thread in self._threads:
            thread.join()
        self._close()

    def _close(self) -> None:
        for server in self._servers:
            server.server_close()
        if self._unix is not None:
            self._unix.unlink(missing_ok=True)


class _TcpServer(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


class _UnixServer(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True


def _handler(machine: Machine, platform: int) -> type[socketserver.BaseRequestHandler]:
    class Handler(socketserver.BaseRequestHandler):
        """One connection. A peer that goes away or stays silent loses its answer and nothing else."""

        def handle(self) -> None:
            connection: socket.socket = self.request
            connection.settimeout(TIMEOUT_S)
            with contextlib.suppress(OSError, EOFError):
                reply = _exchange(machine, platform, connection)
                if reply:
                    connection.sendall(reply)

    return Handler


def _exchange(machine: Machine, platform: int, connection: socket.socket) -> bytes:
    """Read one request, framed or raw, and answer it; nothing for what is neither."""
    start = _exactly(connection, _FRAME.size + _HEADER.size)
    (length,) = _FRAME.unpack_from(start)
    major, _, kind, size, _ = _HEADER.unpack_from(start, _FRAME.size)
    framed = length == size and _HEADER.size <= length and major == _MAJOR
    if framed and kind in (GET_QUOTE, GET_COLLATERAL, GET_PLATFORM_INFO):
        if length > MAX_MESSAGE:
            return b""
        message = start[_FRAME.size :] + _exactly(connection, length - _HEADER.size)
        reply = answer(machine, platform, message)
        return _FRAME.pack(len(reply)) + reply
    report = start + _exactly(connection, TDREPORT_LEN - len(start))
    try:
        return machine.platform(platform).quote_report(report)
    except SimulatorError:
        return b""


def _exactly(connection: socket.socket, size: int) -> bytes:
    """Raises EOFError when the peer closes before."""
    parts = bytearray()
    while len(parts) < size:
        chunk = connection.recv(size - len(parts))
        if not chunk:
            raise EOFError
        parts += chunk
    return bytes(parts)
