"""An administrator's side of the REST API, over the standard library, for the command line.

Decides how requests prove possession of the administrator's key and how refusals come back. Needs nothing that the base
install does not have. Redirects and proxies are not followed: a proof is for one address.
"""

import http.client
import json
import time
from pathlib import Path
from typing import Any, Final, final
from urllib.parse import urlencode, urlsplit

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from broker.wire import dpop
from broker.wire.bodies import Problem
from broker.wire.errors import WireError
from broker.wire.fields import parse_object

REFUSED, USAGE, UNJUDGED = 1, 2, 4  # exit statuses of every command; 0 is fine
TIMEOUT_S: Final = 30
MAX_PAGE: Final = 1000
MAX_ANSWER: Final = 64 << 20
MAX_KEY_FILE: Final = 64 << 10


# What this side finds out by itself, and what an administrator can do where the broker speaks to programs.
REMEDIES: Final = {
    "admin.key_file": "Name the file that `cloister broker init` wrote, DIR/admin.pem, or the lab's.",
    "admin.url": "Write http://HOST:PORT or https://HOST, as in the broker's public_url.",
    "broker.answer_invalid": "Check the address: it is somebody else's, or a proxy stands before the broker.",
    "broker.unreachable": "Check the address, and that the broker runs: `cloister broker serve DIR`.",
    "dpop.url_mismatch": "Name the broker as its own settings do (public_url), not by another name of the machine.",
    "checkpoint.file": "Keep the file from one confirmation to the next, where the broker's host cannot write.",
}


class AdminError(Exception):
    """It did not work. `status` is the exit status that says how: REFUSED, USAGE, UNJUDGED."""

    def __init__(self, code: str, detail: str, *, status: int, problem: Problem | None = None) -> None:
        super().__init__(f"{code}: {detail}")
        self.code, self.detail, self.status, self.problem = code, detail, status, problem


def load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Raises AdminError admin.key_file."""
    try:
        with path.open("rb") as file:
            key = load_pem_private_key(file.read(MAX_KEY_FILE), password=None)
    except OSError as error:
        raise AdminError("admin.key_file", f"{path}: {error.strerror}", status=USAGE) from None
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise AdminError("admin.key_file", f"{path} is not an unencrypted P-256 private key in PEM", status=USAGE)
    return key


@final
class AdminClient:
    """Calls to one broker under one administrator's key."""

    def __init__(self, url: str, key: ec.EllipticCurvePrivateKey) -> None:
        parts = urlsplit(url.rstrip("/"))
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise AdminError("admin.url", f"{url!a} is not the address of a broker", status=USAGE)
        self._url = url.rstrip("/")
        self._host = parts.hostname
        self._port = parts.port
        self._secure = parts.scheme == "https"
        self._prefix = parts.path
        self._key = key
        self._nonce: str | None = None

    def get(self, path: str, **query: str | int | None) -> dict[str, Any]:
        given = {name: value for name, value in query.items() if value is not None}
        return self._call("GET", path, b"", urlencode(given))

    def pages(self, path: str, member: str, mark: str, **query: str | int | None) -> list[dict[str, Any]]:
        """All of a listing, page after page; the next one begins behind the last item's `mark`. Raises AdminError."""
        found: list[dict[str, Any]] = []
        after: str | int | None = None
        while page := self.get(path, **query, after=after, limit=MAX_PAGE)[member]:
            found += page
            after = page[-1][mark]
        return found

    def send(self, method: str, path: str, members: dict[str, Any]) -> dict[str, Any]:
        return self._call(method, path, json.dumps(members).encode(), "")

    def _call(self, method: str, path: str, body: bytes, query: str) -> dict[str, Any]:
        """Raises AdminError. A stale nonce is replaced once, by the one that came with the refusal."""
        for last in (False, True):
            status, nonce, raw = self._once(method, path, body, query)
            fresh, self._nonce = nonce is not None and nonce != self._nonce, nonce or self._nonce
            if status == 401 and fresh and not last:
                continue
            return self._read(status, raw)
        raise AssertionError("unreachable")

    def _once(self, method: str, path: str, body: bytes, query: str) -> tuple[int, str | None, bytes]:
        proof = dpop.build(
            self._key, method=method, url=self._url + path, body=body, at_s=int(time.time()), nonce=self._nonce
        )
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=TIMEOUT_S)
        try:
            target = f"{self._prefix}{path}" + (f"?{query}" if query else "")
            headers = {"Cloister-Admin": proof, "Content-Type": "application/json"}
            connection.request(method, target, body=body, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.getheader("DPoP-Nonce"), answer.read(MAX_ANSWER + 1)
        except (OSError, http.client.HTTPException) as error:
            detail = f"{self._url} does not answer ({type(error).__name__})"
            raise AdminError("broker.unreachable", detail, status=UNJUDGED) from None
        finally:
            connection.close()

    def _read(self, status: int, raw: bytes) -> dict[str, Any]:
        try:
            if status < 300:
                return parse_object(raw, max_len=MAX_ANSWER)
            problem = Problem.from_dict(parse_object(raw, max_len=MAX_ANSWER))
        except WireError:
            detail = f"HTTP {status}, and not an answer of a broker"
            raise AdminError("broker.answer_invalid", detail, status=UNJUDGED) from None
        raise AdminError(problem.code, problem.title, status=UNJUDGED if status >= 500 else REFUSED, problem=problem)
