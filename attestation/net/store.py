"""Collateral on disk, and the marks that older collateral is measured against.

Decides how files are written (whole or not at all, mode 0600, with a digest inside) and when a document counts as
older than one that was seen before. A damaged collateral file is as good as none. A damaged marks file is not:
forgetting what was seen is what an attacker with an old set would want, so that one refuses until somebody has
looked. A marks file that is gone is made again from the sets that are still there, and what one process has seen it
remembers by itself.

The digests are no signatures. Whoever can write the folder can empty it, and whoever can restore a whole disk and
restart the process takes it back to what it knew then: to old collateral, but never to collateral past its own end
(30 days), nor to any that Intel did not sign. A policy's floor for the evaluation number holds against that.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from threading import Lock
from typing import Any, Final, NamedTuple, NoReturn, final

from attestation.collateral import MAX_COLLATERAL, Collateral
from attestation.errors import Code, CollateralUnavailable, MalformedEvidence

_MAX_FILE: Final = 2 * MAX_COLLATERAL + 4096
_MAX_MARKS: Final = 16 << 20
_MAX_FILES: Final = 4096
"""Collateral files that are looked at when marks are made again."""
_MARKS: Final = "marks.json"
_LOCK_PATIENCE_S: Final = 5.0
_LOCK_PAUSE_S: Final = 0.01


class Mark(NamedTuple):
    """How new a document is: evaluation number (of a CRL: CRL number) and issue date in Unix seconds, each alone."""

    number: int
    issued: int

    def older_than(self, seen: Mark) -> bool:
        return self.number < seen.number or self.issued < seen.issued

    def newest(self, other: Mark) -> Mark:
        return Mark(max(self.number, other.number), max(self.issued, other.issued))


class Kept(NamedTuple):
    """Collateral from disk, unverified, and when it was fetched: finite, but perhaps in the future."""

    collateral: Collateral
    fetched_at: float


@final
class CollateralFiles:
    """One file per key in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, key: str) -> Kept | None:
        """None when there is none, or it is damaged."""
        found = _read(self._folder / f"{key}.json", _MAX_FILE) or {}
        try:
            fetched_at = found["fetched_at"]
            if type(fetched_at) not in (int, float) or not math.isfinite(fetched_at):
                return None
            return Kept(Collateral.from_json(found["collateral"]), float(fetched_at))
        except (MalformedEvidence, KeyError, TypeError, ValueError, OverflowError):
            return None

    def save(self, key: str, collateral: Collateral, fetched_at: datetime) -> None:
        """Raises OSError."""
        members = {"collateral": collateral.to_json(), "fetched_at": fetched_at.timestamp()}
        _write(self._folder / f"{key}.json", members)

    def keys(self) -> list[str]:
        """Of every file in the folder, damaged or not; none where the folder cannot be read."""
        try:
            names = sorted(path.stem for path in self._folder.glob("*.json") if path.name != _MARKS)
        except OSError:
            return []
        return names[:_MAX_FILES]


@final
class Marks:
    """The newest of each document ever accepted: by this object, and with a folder by all processes that share it."""

    def __init__(self, folder: Path | None, remake: Callable[[], Mapping[str, Mark]] = dict) -> None:
        """`remake` says what is known without the marks file; it is asked when there is none."""
        self._folder = folder
        self._remake = remake
        self._lock = Lock()
        self._seen: dict[str, Mark] = {}
        self._remade: dict[str, Mark] | None = None

    def check(self, found: Mapping[str, Mark]) -> None:
        """Raises CollateralUnavailable collateral.rollback when any document is older than its mark."""
        kept = self._load()
        with self._lock:
            _refuse_older(found, _newest(self._seen, kept))

    def raise_to(self, found: Mapping[str, Mark]) -> None:
        """Check, then remember. Raises CollateralUnavailable collateral.rollback, OSError."""
        if self._folder is None:
            self._raise(found, {})
            return
        file = self._folder / _MARKS
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(self._folder / "marks.lock"):
            kept = self._load()
            raised = self._raise(found, kept)
            if raised != kept or not file.exists():
                _write(file, {"marks": {key: list(mark) for key, mark in raised.items()}})

    def _raise(self, found: Mapping[str, Mark], kept: Mapping[str, Mark]) -> dict[str, Mark]:
        with self._lock:
            seen = _newest(self._seen, kept)
            _refuse_older(found, seen)
            self._seen = _newest(seen, found)
            return self._seen

    def _load(self) -> dict[str, Mark]:
        if self._folder is None:
            return {}
        file = self._folder / _MARKS
        try:
            file.lstat()
            marks = (_read(file, _MAX_MARKS) or {})["marks"]
            return {key: _mark(*values) for key, values in marks.items()}
        except FileNotFoundError:
            return self._made_again()
        except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
            detail = f"{file} is damaged, so nothing can be compared with it"
            raise CollateralUnavailable(Code.COLLATERAL_ROLLBACK, detail) from error

    def _made_again(self) -> dict[str, Mark]:
        """Once per object is enough: whoever keeps a newer set writes its marks first."""
        with self._lock:
            if self._remade is None:
                self._remade = dict(self._remake())
            return self._remade


def _mark(number: object, issued: object) -> Mark:
    """Raises ValueError, and TypeError when there are not two."""
    if type(number) is not int or type(issued) is not int:
        raise ValueError("a mark is two integers")
    return Mark(number, issued)


def _newest(one: Mapping[str, Mark], other: Mapping[str, Mark]) -> dict[str, Mark]:
    return {**one, **{key: mark.newest(one.get(key, mark)) for key, mark in other.items()}}


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
    """Raises TimeoutError, an OSError, when another process holds on to it: a stopped one would hold it for ever."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _lock_in_time(descriptor, time.monotonic() + _LOCK_PATIENCE_S)
        yield
    finally:
        os.close(descriptor)


def _lock_in_time(descriptor: int, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() >= deadline:
                raise TimeoutError("another process holds the lock of the marks") from error
            time.sleep(_LOCK_PAUSE_S)
        else:
            return


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _read(path: Path, most: int) -> dict[str, Any] | None:
    """The members of a file that `_write` wrote; None when it is absent, too large, or its digest does not fit."""
    try:
        with path.open("rb") as file:
            raw = file.read(most + 1)
        digest, _, body = raw.partition(b"\n")
        if len(raw) > most or digest.decode() != hashlib.sha256(body).hexdigest():
            return None
        members = json.loads(body, parse_constant=_no_constant)
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
