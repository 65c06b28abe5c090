"""The socket of dstack's guest agent: HTTP/1.1 over a Unix socket, JSON in and out.

Decides paths, sizes and status codes: `POST /<Method>`, `POST /prpc/<Method>`, `POST /prpc/Tappd.<Method>`, or GET with
the fields as a query; 200 with the answer, 400 with `{"error": text}` for every failure. What the methods do is
`dstack`'s business. dstack also speaks protobuf; its Python client does not, and neither does this.
"""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

from simulator.guest.dstack import AgentError, GuestAgent

MAX_BODY: Final = 10 << 20
SOCKET_MODE: Final = 0o666
"""Any process may call, as in dstack; unlike there, nobody may do anything else with the socket."""
_IDLE_S: Final = 60.0
_SERVICES: Final = ("Tappd.", "DstackGuest.")


@contextmanager
def serving(agent: GuestAgent, path: Path) -> Iterator[None]:
    """The agent at a Unix socket, until the end of the block. Raises OSError when the path is taken."""
    server = _Server(str(path), agent)
    path.chmod(SOCKET_MODE)
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), name="cloister-dstack", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        path.unlink(missing_ok=True)


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, path: str, agent: GuestAgent) -> None:
        self.agent = agent
        super().__init__(path, _Handler)


class _Handler(BaseHTTPRequestHandler):
    """One connection, kept alive."""

    protocol_version = "HTTP/1.1"
    server_version = "cloister-sim"
    sys_version = ""
    timeout = _IDLE_S
    server: _Server

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *args: Any) -> None:
        """Standard error belongs to the program in the sandbox."""

    def do_POST(self) -> None:
        size = self.headers.get("Content-Length") or "0"
        if not size.isdecimal() or int(size) > MAX_BODY:
            self.close_connection = True  # what follows is not read
            self._answer(400, {"error": f"a body has at most {MAX_BODY} bytes"})
            return
        body = self.rfile.read(int(size))
        try:
            request = json.loads(body) if body.strip() else {}
        except (ValueError, RecursionError):
            self._answer(400, {"error": "the body is not JSON"})
            return
        if not isinstance(request, dict):
            self._answer(400, {"error": "the body is not a JSON object"})
            return
        self._call(urlsplit(self.path).path, request)

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        self._call(parts.path, dict(parse_qsl(parts.query, keep_blank_values=True)))

    def _call(self, path: str, request: Mapping[str, Any]) -> None:
        try:
            self._answer(200, self.server.agent.call(_method(path), request))
        except AgentError as error:
            self._answer(400, {"error": str(error)})

    def _answer(self, status: int, content: Mapping[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def handle(self) -> None:
        try:
            super().handle()
        except (TimeoutError, BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client has gone


def _method(path: str) -> str:
    name = path.removeprefix("/").removeprefix("prpc/")
    for service in _SERVICES:
        name = name.removeprefix(service)
    return name
