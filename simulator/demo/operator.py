"""The demo's operator: what an administrator does at the broker over HTTP, and what an auditor does without it.

Decides nothing about rights: each request carries a proof by the administrator's key (DPoP form, header
`Cloister-Admin`), and the broker knows that key from its settings.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import httpx2
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from broker.audit import recompute
from broker.wire import dpop
from broker.wire.bodies import PutSecretRequest
from broker.wire.jose import unb64u
from broker.wire.log import Checkpoint
from simulator.demo.process import PATIENCE_S, DemoFailed

PAGE: Final = 1000


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LogExport:
    """The audit log as an auditor takes it home: every entry's exact bytes, and the signed head."""

    entries: tuple[bytes, ...]
    checkpoint: str

    def verify(self, log_key: bytes) -> int:
        """Number of entries, if they give the root hash that the log key signed. Raises WireError, DemoFailed."""
        head = Checkpoint.open(self.checkpoint, log_key)
        if recompute(enumerate(self.entries)) != (head.size, head.root):
            raise DemoFailed("the entries do not give the signed root hash")
        return head.size

    def with_changed_byte(self, index: int) -> LogExport:
        """The same, but one bit of one entry."""
        entry = self.entries[index]
        changed = bytes([*entry[:-2], entry[-2] ^ 1, entry[-1]])
        entries = (*self.entries[:index], changed, *self.entries[index + 1 :])
        return LogExport(entries=entries, checkpoint=self.checkpoint)


@final
class Operator:
    """Requests with an administrator's key. Raises DemoFailed for any answer but success."""

    def __init__(self, broker_url: str, key_file: Path) -> None:
        key = load_pem_private_key(key_file.read_bytes(), password=None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        self._key = key
        self._url = broker_url
        self._nonce: str | None = None

    def put_secret(self, name: str, value: bytes, *, labels: Sequence[str] = ()) -> None:
        self._ask("PUT", f"/v1/secrets/{name}", PutSecretRequest(value=value, labels=tuple(labels)).to_dict())

    def refresh_collateral(self) -> bool:
        """Have the broker ask its collateral source now; whether anything was new."""
        return bool(self._ask("POST", "/v1/collateral:refresh", {})["changed"])

    def entries(self, *kinds: str) -> list[dict[str, Any]]:
        """The log's entries of these kinds, or all, oldest first."""
        found = [row["entry"] for row in self._rows()]
        return [entry for entry in found if not kinds or entry["kind"] in kinds]

    def wait_for_entries(self, subjects: set[str], *kinds: str) -> list[dict[str, Any]]:
        """Such entries, once each of the subjects has one. Raises DemoFailed."""
        give_up = time.monotonic() + PATIENCE_S
        while True:
            found = [entry for entry in self.entries(*kinds) if entry.get("subject") in subjects]
            if {entry["subject"] for entry in found} == subjects:
                return found
            if time.monotonic() > give_up:
                raise DemoFailed(f"no {' or '.join(kinds)} about each of {', '.join(sorted(subjects))}")
            time.sleep(0.1)  # the log has no way to be told of what is new

    def export_log(self) -> LogExport:
        """Taken between two looks at the head, so that entries and head belong together."""
        while True:
            checkpoint = httpx2.get(f"{self._url}/v1/log/checkpoint", trust_env=False).text
            entries = tuple(unb64u(row["raw"]) for row in self._rows())
            if checkpoint == httpx2.get(f"{self._url}/v1/log/checkpoint", trust_env=False).text:
                return LogExport(entries=entries, checkpoint=checkpoint)

    def _rows(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        while page := self._ask("GET", "/v1/log/entries", None, {"start": str(len(rows)), "limit": str(PAGE)})[
            "entries"
        ]:
            rows += page
        return rows

    def _ask(
        self, method: str, path: str, members: Mapping[str, Any] | None, query: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        body = b"" if members is None else json.dumps(members).encode()
        response = self._send(method, path, body, query)
        if response.status_code == 401:  # the first proof has no nonce yet
            response = self._send(method, path, body, query)
        if response.status_code != 200:
            raise DemoFailed(f"{method} {path}: HTTP {response.status_code} {response.text}")
        found: dict[str, Any] = response.json()
        return found

    def _send(self, method: str, path: str, body: bytes, query: Mapping[str, str] | None) -> httpx2.Response:
        url = self._url + path
        proof = dpop.build(self._key, method=method, url=url, body=body, at_s=int(time.time()), nonce=self._nonce)
        headers = {"cloister-admin": proof, "content-type": "application/json"}
        response = httpx2.request(
            method, url, content=body, headers=headers, params=dict(query or {}), trust_env=False, timeout=30.0
        )
        self._nonce = response.headers.get("dpop-nonce", self._nonce)
        return response
