"""Collateral on disk, and the marks that older collateral is measured against.

Decides how files are written (whole or not at all, mode 0600, with a digest inside) and when a document counts as
older than one that was seen before. A damaged collateral file is as good as none. A damaged marks file is not:
forgetting what was seen is what an attacker with an old set would want, so that one refuses until somebody has
looked.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple, final

from attestation.collateral import MAX_COLLATERAL, Collateral
from attestation.errors import Code, CollateralUnavailable, MalformedEvidence

_MAX_FILE: Final = 2 * MAX_COLLATERAL + 4096
_MAX_MARKS: Final = 16 << 20


class Mark(NamedTuple):
    """How new a document is: evaluation number (of a CRL: CRL number) and issue date in Unix seconds, each alone."""

    number: int
    issued: int

    def older_than(self, seen: Mark) -> bool:
        return self.number < seen.number or self.issued < seen.issued

    def newest(self, other: Mark) -> Mark:
        return Mark(max(self.number, other.number), max(self.issued, other.issued))


class Kept(NamedTuple):
    """Collateral from disk, unverified, and when it was fetched."""

    collateral: Collateral
    fetched_at: float


@final
class CollateralFiles:
    """One file per key in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, key: str) -> Kept | None:
        """None when there is none, or it is damaged."""
        found = _read(self._folder / f"{key}.json", _MAX_FILE)
        try:
            return (
                None if found is None else Kept(Collateral.from_json(found["collateral"]), float(found["fetched_at"]))
            )
        except (MalformedEvidence, KeyError, TypeError, ValueError):
            return None

    def save(self, key: str, collateral: Collateral, fetched_at: datetime) -> None:
        """Raises OSError."""
        members = {"collateral": collateral.to_json(), "fetched_at": fetched_at.timestamp()}
        _write(self._folder / f"{key}.json", members)


@final
class Marks:
    """The newest of each document ever accepted, for all processes that share the folder."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "marks.json"
        self._lock = folder / "marks.lock"

    def check(self, found: Mapping[str, Mark]) -> None:
        """Raises CollateralUnavailable collateral.rollback when any document is older than its mark."""
        _refuse_older(found, self._load())

    def raise_to(self, found: Mapping[str, Mark]) -> None:
        """Check, then remember. Raises CollateralUnavailable collateral.rollback, OSError."""
        self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(self._lock):
            seen = self._load()
            _refuse_older(found, seen)
            raised = seen | {key: mark.newest(seen.get(key, mark)) for key, mark in found.items()}
            if raised != seen:
                _write(self._file, {"marks": {key: list(mark) for key, mark in raised.items()}})

    def _load(self) -> dict[str, Mark]:
        if not self._file.exists():
            return {}
        found = _read(self._file, _MAX_MARKS)
        try:
            marks: dict[str, Any] = (found or {})["marks"]
            return {key: Mark(int(number), int(issued)) for key, (number, issued) in marks.items()}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            detail = f"{self._file} is damaged, so nothing can be compared with it"
            raise CollateralUnavailable(Code.COLLATERAL_ROLLBACK, detail) from error


def _refuse_older(found: Mapping[str, Mark], seen: Mapping[str, Mark]) -> None:
    older = [
        f"{key}: number {mark.number}, issued {mark.issued}; seen before: {seen[key].number}, {seen[key].issued}"
        for key, mark in found.items()
        if key in seen and mark.older_than(seen[key])
    ]
    if older:
        raise CollateralUnavailable(Code.COLLATERAL_ROLLBACK, "; ".join(older))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _read(path: Path, most: int) -> dict[str, Any] | None:
    """The members of a file that `_write` wrote; None when it is absent, too large, or its digest does not fit."""
    try:
        with path.open("rb") as file:
            raw = file.read(most + 1)
        digest, _, body = raw.partition(b"\n")
        if len(raw) > most or digest.decode() != hashlib.sha256(body).hexdigest():
            return None
        members = json.loads(body)
    except (OSError, ValueError, RecursionError):
        return None
    return members if isinstance(members, dict) else None


def _write(path: Path, members: Mapping[str, Any]) -> None:
    """Digest line and JSON, through a temporary file in the same folder: readers see the old one or the new one."""
    body = json.dumps(members).encode()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")  # mode 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise
