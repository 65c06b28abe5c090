"""HTTP connections that can be ended from outside, whatever they wait for.

Decides how an attempt is held to its time: whoever waits no longer shuts the socket down, so that a peer that drips
bytes of a handshake, a header or a body ends with it. Time limits of single reads, as sockets have them, start again
with every byte. What is sent and what an answer means is left to `transport`.
"""

from __future__ import annotations

import socket
import ssl
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection
from threading import Lock
from typing import Any, TypeVar, final

T = TypeVar("T")
_Sockets = Callable[..., socket.socket]


@final
class Attempt:
    """The sockets of one attempt to fetch something."""

    __slots__ = ("_ended", "_lock", "_sockets")

    def __init__(self) -> None:
        self._lock = Lock()
        self._sockets: list[socket.socket] = []
        self._ended = False

    def connect(self, *arguments: Any, **named: Any) -> socket.socket:
        """`socket.create_connection`, remembered. A twin is kept, because TLS takes the socket object itself away."""
        made = socket.create_connection(*arguments, **named)
        with self._lock:
            self._sockets.append(made.dup())
            ended = self._ended
        if ended:
            self.end()
        return made

    def end(self) -> None:
        """Nothing is sent or received any more; whoever waits for a byte wakes up with an error."""
        with self._lock:
            self._ended = True
            for twin in self._sockets:
                with suppress(OSError):  # the peer was first
                    twin.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with self._lock:
            for twin in self._sockets:
                twin.close()
            self._sockets.clear()


def within(limit_s: float, attempt: Attempt, work: Callable[[], T]) -> T:
    """What `work` returns or raises; TimeoutError after `limit_s` seconds of the clock on the wall.

    Then the attempt is ended. A look-up of a name can't be: its thread is left behind until the resolver gives up.
    """
    pool = ThreadPoolExecutor(1)
    try:
        done = pool.submit(_closing, attempt, work)
        try:
            return done.result(limit_s)
        except TimeoutError as error:  # of the wait, or of the work itself
            attempt.end()
            raise TimeoutError("no whole answer in time") from error
    finally:
        pool.shutdown(wait=False)


def _closing(attempt: Attempt, work: Callable[[], T]) -> T:
    try:
        return work()
    finally:
        attempt.close()


@final
class Request(urllib.request.Request):
    """A request that belongs to an attempt."""

    def __init__(self, url: str, attempt: Attempt) -> None:
        super().__init__(url, headers={"Accept": "*/*", "User-Agent": "cloister"})
        self.attempt = attempt


class _Plain(HTTPConnection):
    def __init__(self, *arguments: Any, attempt: Attempt, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._create_connection: _Sockets = attempt.connect


class _Secure(HTTPSConnection):
    def __init__(self, *arguments: Any, attempt: Attempt, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._create_connection: _Sockets = attempt.connect


@final
class PlainHandler(urllib.request.HTTPHandler):
    """http:// for a `Request`."""

    def http_open(self, req: urllib.request.Request) -> HTTPResponse:
        plain: Callable[..., HTTPConnection] = partial(_Plain, attempt=_attempt(req))
        return self.do_open(plain, req)


@final
class SecureHandler(urllib.request.HTTPSHandler):
    """https:// for a `Request`, with the system's certificate authorities."""

    _authorities: ssl.SSLContext | None = None

    def https_open(self, req: urllib.request.Request) -> HTTPResponse:
        if self._authorities is None:  # they take 20 ms to read, so not before somebody asks
            self._authorities = ssl.create_default_context()
        secure: Callable[..., HTTPConnection] = partial(_Secure, attempt=_attempt(req), context=self._authorities)
        return self.do_open(secure, req)


def _attempt(request: urllib.request.Request) -> Attempt:
    if type(request) is not Request:
        raise TypeError("every request belongs to an attempt")
    return request.attempt
