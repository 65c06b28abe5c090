"""GET over HTTPS with every quantity bounded: time, size, attempts. No redirects, no cookies, no credentials.

Decides what is fetched, when an answer is whole, and how often it is tried again. Plain HTTP is for this machine's own
addresses alone. How an attempt is ended is decided in `connections`; what an answer means is left to the caller.

Sources: RFC 9110 (status codes, Retry-After).
"""

from __future__ import annotations

import ipaddress
import random
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from http.client import HTTPException
from typing import Final, NamedTuple, final
from urllib.parse import urlsplit

from attestation.errors import Code, CollateralUnavailable
from attestation.net.connections import Attempt, PlainHandler, Request, SecureHandler, within

MAX_BODY: Final = 4 << 20
"""Bytes. The largest real CRL has 7 KiB, TCB info 25 KiB."""
_CHUNK: Final = 64 << 10
_ATTEMPTS: Final = 4
_FIRST_PAUSE_S: Final = 0.5
_TRY_AGAIN: Final = frozenset((429, 500, 502, 503, 504))


class Answer(NamedTuple):
    """A response that arrived whole. Header names are lower-case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@final
class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is answered like any other status: collateral has one address, and ours is configured."""

    def redirect_request(self, *_: object) -> None:
        return None


@final
class Transport:
    """Fetches. Safe to share between threads."""

    def __init__(
        self, *, timeout_s: float = 10.0, sleep: Callable[[float], None] = time.sleep, attempts: int = _ATTEMPTS
    ) -> None:
        self._timeout_s = timeout_s
        self._sleep = sleep
        self._attempts = attempts
        self._remote = urllib.request.build_opener(_NoRedirect, PlainHandler, SecureHandler)
        self._local = urllib.request.build_opener(_NoRedirect, PlainHandler, urllib.request.ProxyHandler({}))

    def get(self, url: str, *, deadline: float) -> Answer:
        """The answer, whatever its status, once it isn't one that asks for patience or the patience has ended.

        `deadline` is a reading of `time.monotonic`; no attempt outlasts it, however slowly bytes come. Raises
        CollateralUnavailable: collateral.unavailable (no whole answer in time), collateral.answer_invalid (too large).
        ValueError for an address that `check_url` refuses.
        """
        check_url(url)
        trouble = "no time left"
        for attempt in range(self._attempts):
            if time.monotonic() >= deadline:
                break
            pause = _FIRST_PAUSE_S * 2**attempt * random.uniform(0.5, 1.5)  # noqa: S311  # jitter, not a secret
            try:
                answer = self._once(url, deadline)
            except (OSError, HTTPException) as error:
                trouble = f"{type(error).__name__}: {error}"
            else:
                if answer.status not in _TRY_AGAIN:
                    return answer
                trouble = f"HTTP status {answer.status}"
                pause = max(pause, _asked_pause(answer))
            if attempt + 1 == self._attempts or time.monotonic() + pause >= deadline:
                break
            self._sleep(pause)
        raise CollateralUnavailable(Code.COLLATERAL_UNREACHABLE, f"{url}: {trouble}")

    def _once(self, url: str, deadline: float) -> Answer:
        attempt = Attempt()
        left = max(0.1, deadline - time.monotonic())
        return within(left, attempt, lambda: self._fetch(Request(url, attempt), url, deadline))

    def _fetch(self, request: Request, url: str, deadline: float) -> Answer:
        opener = self._local if urlsplit(url).scheme == "http" else self._remote
        limit = max(0.1, min(self._timeout_s, deadline - time.monotonic()))
        try:
            response = opener.open(request, timeout=limit)
        except urllib.error.HTTPError as error:
            response = error  # a status beyond 299 is an answer too
        with response:
            body = _body(response, url, deadline)
            return Answer(response.status, {name.lower(): value for name, value in response.headers.items()}, body)


def check_url(url: str) -> None:
    """ValueError unless it is https, or http to a loopback address, with nothing but host, port, path and query."""
    if not all("!" <= char <= "~" for char in url):  # urlsplit would drop line ends without a word
        raise ValueError(f"an address has visible ASCII characters only: {url!r}")
    parts = urlsplit(url)
    if parts.port == 0:  # beyond 65535 urlsplit itself refuses
        raise ValueError(f"no port to connect to: {url!r}")
    if not parts.hostname or parts.username is not None or parts.password is not None or parts.fragment:
        raise ValueError(f"not the address of a collateral service: {url!r}")
    if parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(parts.hostname)):
        return
    raise ValueError(f"collateral comes over https (http only from this machine), not {url!r}")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _body(response: object, url: str, deadline: float) -> bytes:
    read: Callable[[int], bytes] = getattr(response, "read1")  # noqa: B009  # of HTTPResponse and of HTTPError's file
    parts: list[bytes] = []
    size = 0
    while part := read(_CHUNK):
        size += len(part)
        if size > MAX_BODY:
            raise CollateralUnavailable(Code.COLLATERAL_ANSWER, f"{url}: more than {MAX_BODY} bytes")
        if time.monotonic() >= deadline:
            raise TimeoutError("the answer dripped in too slowly")
        parts.append(part)
    if missing := getattr(response, "length", None):  # what Content-Length announced and never came
        raise ConnectionError(f"the answer ended {missing} bytes early")
    return b"".join(parts)


def _asked_pause(answer: Answer) -> float:
    """Seconds of a Retry-After header; 0 for none, and for the form with a date, which nobody here sends."""
    text = answer.headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdigit() and len(text) < 6 else 0.0
