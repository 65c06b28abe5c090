"""The trust domain as the running agent sees it: a socket to its launcher, which alone can reach the registers.

Decides what passes: quotes and the event log, never an extension of a register. The agent's uid needs no access to
configfs or to the RTMR files, and a compromised agent cannot add a launch that did not happen. Frames:

    request     1 byte operation (N name, Q quote, L event log, X extend) ‖ u32 length ‖ payload
    answer      1 byte status (0 done, 1 refused, 2 failed) ‖ u32 length ‖ payload (for 1 and 2 a text)
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import threading
from typing import Final, NoReturn, final

from attestation.errors import AttestationError
from attestation.ports import TrustDomain
from enclave.errors import Code, EnclaveError, LaunchFailed

FD_VARIABLE: Final = "CLOISTER_DOMAIN_FD"
REPORT_DATA_LEN: Final = 64
MAX_REQUEST: Final = 1024
MAX_ANSWER: Final = 8 << 20
_FRAME: Final = struct.Struct(">cI")
_DONE, _REFUSED, _FAILED = b"\0", b"\1", b"\2"


@final
class DomainServer:
    """Answers one child's requests from a thread, until the child closes its end."""

    def __init__(self, domain: TrustDomain) -> None:
        self._domain = domain
        self._ours, self.theirs = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, name="cloister-domain", daemon=True)

    def start(self) -> None:
        """Call once the child has its end: ours of theirs is closed here, so that the child's death is seen."""
        self.theirs.close()
        self._thread.start()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # the child has closed it already
            self._ours.shutdown(socket.SHUT_RDWR)
        if self._thread.is_alive():
            self._thread.join()
        self._ours.close()

    def _serve(self) -> None:
        try:
            while True:
                operation, payload = _receive(self._ours, MAX_REQUEST)
                status, answer = self._answer(operation, payload)
                self._ours.sendall(_FRAME.pack(status, len(answer)) + answer)
        except (OSError, EOFError, ValueError):
            return  # the child is gone, or sent what no child of ours sends: it gets no more answers

    def _answer(self, operation: bytes, payload: bytes) -> tuple[bytes, bytes]:
        try:
            if operation == b"Q" and len(payload) == REPORT_DATA_LEN:
                return _DONE, self._domain.quote(payload)
            if operation == b"L" and not payload:
                return _DONE, self._domain.event_log()
            if operation == b"N" and not payload:
                facts = {"name": self._domain.name, "simulated": self._domain.simulated}
                return _DONE, json.dumps(facts).encode()
        except (AttestationError, EnclaveError, OSError, ValueError) as error:
            return _FAILED, str(error).encode()[:4096]
        return _REFUSED, f"operation {operation!r} with {len(payload)} bytes".encode()


@final
class RemoteDomain:
    """The child's end, a TrustDomain. Raises LaunchFailed: launch.domain_gone, launch.domain_forbidden."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        facts = json.loads(self._ask(b"N"))
        self.name: str = facts["name"]
        self.simulated: bool = facts["simulated"]

    @classmethod
    def inherited(cls) -> RemoteDomain | None:
        """The domain that `cloister run` left for this process, or None when nobody did."""
        number = os.environ.get(FD_VARIABLE, "")
        if not number.isdecimal():
            return None
        try:
            return cls(socket.socket(fileno=int(number)))
        except OSError as error:
            raise LaunchFailed(Code.LAUNCH_DOMAIN_GONE, f"descriptor {number}: {error.strerror}") from None

    def quote(self, report_data: bytes) -> bytes:
        return self._ask(b"Q", report_data)

    def event_log(self) -> bytes:
        return self._ask(b"L")

    def extend(self, register: int, digest: bytes, *, event_type: int, data: bytes) -> NoReturn:
        raise LaunchFailed(Code.LAUNCH_DOMAIN_FORBIDDEN, f"RTMR{register} can be extended by the launcher only")

    def _ask(self, operation: bytes, payload: bytes = b"") -> bytes:
        try:
            with self._lock:
                self._connection.sendall(_FRAME.pack(operation, len(payload)) + payload)
                status, answer = _receive(self._connection, MAX_ANSWER)
        except (OSError, EOFError, ValueError) as error:
            raise LaunchFailed(Code.LAUNCH_DOMAIN_GONE, f"{type(error).__name__}") from None
        if status == _DONE:
            return answer
        code = Code.LAUNCH_DOMAIN_FORBIDDEN if status == _REFUSED else Code.LAUNCH_DOMAIN_FAILED
        raise LaunchFailed(code, answer.decode("utf-8", "replace"))


def _receive(connection: socket.socket, most: int) -> tuple[bytes, bytes]:
    kind, length = _FRAME.unpack(_exactly(connection, _FRAME.size))
    if length > most:
        raise ValueError(f"a frame of {length} bytes")
    return kind, _exactly(connection, length)


def _exactly(connection: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        chunk = connection.recv(size - len(parts))
        if not chunk:
            raise EOFError
        parts += chunk
    return bytes(parts)
