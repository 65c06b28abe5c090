"""The demo's operator: what an administrator does at the broker over HTTP, and what an auditor does without it.

Decides nothing about rights: the broker knows the administrator's key from its settings, and each request proves that
its sender holds it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import httpx2

from broker.audit import recompute
from broker.commands.admin_client import AdminClient, load_key
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
    """An administrator with the key in `key_file`. Raises AdminError when the broker says no."""

    def __init__(self, broker_url: str, key_file: Path) -> None:
        self._broker = AdminClient(broker_url, load_key(key_file))
        self._url = broker_url

    def put_secret(self, name: str, value: bytes, *, labels: Sequence[str] = ()) -> None:
        body = PutSecretRequest(value=value, labels=tuple(labels))
        self._broker.send("PUT", f"/v1/secrets/{name}", body.to_dict())

    def refresh_collateral(self) -> bool:
        """Have the broker ask its collateral source now; whether anything was new."""
        return bool(self._broker.send("POST", "/v1/collateral:refresh", {})["changed"])

    def entries(self, *kinds: str) -> list[dict[str, Any]]:
        """The log's entries of these kinds, or all, oldest first."""
        found = [row["entry"] for row in self._rows()]
        return [entry for entry in found if not kinds or entry["kind"] in kinds]

    def wait_for_entries(self, subjects: set[str], code: str, *kinds: str) -> list[dict[str, Any]]:
        """Entries of these kinds with that code, once each of the subjects has one. Raises DemoFailed."""
        give_up = time.monotonic() + PATIENCE_S
        while True:
            told = [entry for entry in self.entries(*kinds) if entry.get("subject") in subjects]
            found = [entry for entry in told if code in entry["codes"]]
            if {entry["subject"] for entry in found} == subjects:
                return found
            if time.monotonic() > give_up:
                raise DemoFailed(f"no {code} about each of {', '.join(sorted(subjects))}")
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
        while page := self._broker.get("/v1/log/entries", start=len(rows), limit=PAGE)["entries"]:
            rows += page
        return rows
