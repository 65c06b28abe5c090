"""Recorded evidence: quote, collateral and event log in one JSON file, to be judged again at any time.

Decides the file's format (docs/policies.md) and how a recording becomes facts: it is verified anew, with its own
collateral, at the time that the caller names. Nothing in a recording is believed because it was recorded.

One JSON object per file:
    quote        base64 of the quote, mandatory
    collateral   the object with the nine members of a collateral file, mandatory
    at           RFC 3339 or Unix seconds: when it was recorded, mandatory
    event_log    base64 of a CCEL table, or the JSON text of a dstack log
    report_data  hex of the 64 bytes that were expected; without it nothing was compared
    binding      the Binding that was expected, as an object, in place of report_data
    root         PEM of the trust root, for evidence of a simulated machine; Intel's when absent
    name         shown in place of the file's name
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Self

from attestation.collateral import Collateral
from attestation.errors import AttestationError
from attestation.eventlog import EventLog
from attestation.evidence import Binding
from attestation.pki import TrustRoots
from attestation.quote import Quote
from attestation.tcb import ANY_TCB
from attestation.verdict import Verdict
from attestation.verifier import NOT_COMPARED, Allowance, Verifier
from policies.codes import BundleCode
from policies.errors import BundleError
from policies.model import Facts
from policies.tables import suggest, to_moment

MAX_FILE: Final = 8 << 20
MAX_NAME: Final = 128
_MEMBERS: Final = ("quote", "collateral", "at", "event_log", "report_data", "binding", "root", "name")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """One recorded piece of evidence, decoded and not yet believed."""

    name: str
    quote: bytes = field(repr=False)
    collateral: Collateral = field(repr=False)
    at: datetime
    event_log: bytes | None = field(default=None, repr=False)
    report_data: bytes | None = None
    binding: Binding | None = None
    root: str = field(default="", repr=False)

    @classmethod
    def from_json(cls, name: str, raw: bytes) -> Self:
        """Raises BundleError bundle.recording: what is wrong with the file."""
        if len(raw) > MAX_FILE:
            raise _bad(name, f"more than {MAX_FILE} bytes")
        try:
            members = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise _bad(name, f"not JSON: {error}") from error
        if not isinstance(members, dict):
            raise _bad(name, "not a JSON object")
        return cls.from_members(name, members)

    @classmethod
    def from_members(cls, name: str, members: Mapping[str, Any]) -> Self:
        """Raises BundleError bundle.recording: what is wrong with a member."""
        for key in members:
            if key not in _MEMBERS:
                raise _bad(name, f"unknown member {key!r}", suggest(str(key), _MEMBERS))
        for key in _MEMBERS[:3]:
            if key not in members:
                raise _bad(name, f"{key} is missing", f"members are {', '.join(_MEMBERS)}")
        try:
            return cls(
                name=_shown(members.get("name") or name),
                quote=_base64(members["quote"]),
                collateral=_collateral(members["collateral"]),
                at=_moment(members["at"]),
                event_log=_event_log(members.get("event_log")),
                report_data=_hex(members.get("report_data")),
                binding=Binding.from_dict(members["binding"]) if members.get("binding") else None,
                root=_root(members.get("root")),
            )
        except (AttestationError, TypeError, ValueError, OverflowError) as error:
            raise _bad(name, str(error)) from error


def _bad(name: str, detail: str, hint: str = "") -> BundleError:
    return BundleError(BundleCode.RECORDING, name, 0, detail, hint)


def _base64(text: object) -> bytes:
    if isinstance(text, bytes):
        return text
    if not isinstance(text, str):
        raise TypeError("quote and event_log are base64 texts")
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"base64: {error}") from error


def _event_log(value: object) -> bytes | None:
    if value is None or value == "":
        return None
    if isinstance(value, list):
        return json.dumps(value).encode()
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        return value.encode()
    return _base64(value)


def _hex(value: object) -> bytes | None:
    if value is None or value == "":
        return None
    return value if isinstance(value, bytes) else bytes.fromhex(str(value))


def _moment(value: object) -> datetime:
    if isinstance(value, datetime):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return to_moment(datetime.fromtimestamp(value, UTC))
    return to_moment(str(value))


def _root(value: object) -> str:
    """A PEM text with roots in it; empty for Intel's."""
    text = str(value or "")
    if text:
        TrustRoots.from_pem(text.encode())
    return text


def _shown(name: object) -> str:
    """As a terminal can show it."""
    text = str(name)[:MAX_NAME]
    return text if text.isprintable() else ascii(text)


def _collateral(value: object) -> Collateral:
    if isinstance(value, Collateral):
        return value
    return Collateral.from_json(value if isinstance(value, str) else json.dumps(value))


@lru_cache(maxsize=8)
def _verifier(root: str) -> Verifier:
    """One verifier for each root, so that a directory of recordings proves each chain once."""
    return Verifier(TrustRoots.from_pem(root.encode()) if root else TrustRoots.intel())


def verdict_of(recording: Recording, *, at: datetime, allow: frozenset[Allowance] = frozenset()) -> Verdict:
    """Verify a recording at a moment, any TCB state short of Revoked. Raises AttestationError."""
    expected = recording.binding or recording.report_data
    verified = _verifier(recording.root).verify(
        Quote.parse(recording.quote),
        recording.collateral,
        report_data=NOT_COMPARED if expected is None else expected,
        at=at,
        accept=ANY_TCB,
        allow=allow,
    )
    log = EventLog.parse(recording.event_log) if recording.event_log else None
    return Verdict.of(verified, event_log=log)


def facts_of(recording: Recording, *, at: datetime, allow: frozenset[Allowance] = frozenset()) -> Facts:
    """The facts that a recording proves at a moment. Raises AttestationError."""
    return Facts.of(verdict_of(recording, at=at, allow=allow))


def read_recordings(path: Path) -> Iterator[Recording]:
    """One file, or every *.json in a directory in order of name. Raises BundleError for the first unreadable one."""
    if not path.exists():
        raise BundleError(BundleCode.RECORDING, str(path), 0, "no such file or directory")
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files:
        raise BundleError(BundleCode.RECORDING, str(path), 0, "no *.json in this directory")
    for place in files:
        with place.open("rb") as file:
            raw = file.read(MAX_FILE + 1)
        yield Recording.from_json(place.name, raw)


def collateral_file(path: Path) -> Collateral:
    """A collateral file on its own. Raises BundleError bundle.recording."""
    try:
        return Collateral.from_json(path.read_bytes())
    except AttestationError as error:
        raise _bad(str(path), str(error)) from error
