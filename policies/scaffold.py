"""Starter bundles: copies of the shipped ones with the tenant, dates and measurements of whoever starts.

Decides what `policy init` writes. The starters are whole bundles whose tests pass as they stand; filling them in
replaces words in them and nothing else, so that what is written is what was tested.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from attestation.names import SEGMENT
from attestation.quote import Quote
from policies.codes import BundleCode
from policies.errors import BundleError

KINDS: Final = ("dev", "tenant", "relying", "lab")
FOLDER: Final = Path(__file__).parent / "starters"
TENANTS: Final = {"dev": "dev", "tenant": "acme", "relying": "service", "lab": "lab"}
_YEAR: Final = timedelta(days=365)
_DATES: Final = {"2027-03-31": timedelta(days=90), "2027-12-31": _YEAR, "2028-06-30": _YEAR + timedelta(days=180)}
_LAST_DAY: Final = "2027-12-30"
_TEST_DAY: Final = "2026-12-01"


def starter(
    kind: str, *, tenant: str | None = None, at: datetime | None = None, measurements: Mapping[str, str] | None = None
) -> dict[str, bytes]:
    """The files of a starter bundle by path. Raises BundleError for an unknown kind or a bad tenant name.

    at            end dates are laid a year ahead of it (and the tests' dates with them); as shipped when None
    measurements  register ("mr_td", "rtmr1" …) → hex, in place of the shipped ones
    """
    if kind not in KINDS:
        raise BundleError(BundleCode.VALUE, "--kind", 0, f"no starter {kind!r}", f"one of {', '.join(KINDS)}")
    if tenant is not None and not SEGMENT.fullmatch(tenant):
        raise BundleError(BundleCode.VALUE, "--tenant", 0, f"{tenant!r} is no name", "letters, digits, '_', '.', '-'")
    root = FOLDER / kind
    texts = {
        path.relative_to(root).as_posix(): path.read_text("utf-8") for path in sorted(root.rglob("*")) if path.is_file()
    }
    if tenant:
        texts = {name: _rename(name, text, TENANTS[kind], tenant) for name, text in texts.items()}
    if at:
        texts = {name: _redate(text, at) for name, text in texts.items()}
    for key, value in (measurements or {}).items():
        texts = _remeasure(texts, key, value)
    return {name: text.encode() for name, text in texts.items()}


def _rename(name: str, text: str, old: str, new: str) -> str:
    """The tenant wherever it is a name: quoted alone, or the first segment of a quoted name."""
    if name.endswith(".cedarschema"):
        return text
    return re.sub(rf'(["/:]){re.escape(old)}(?=["/])(?!/\.\.)', lambda match: match[1] + new, text)


def _redate(text: str, at: datetime) -> str:
    """End dates a year ahead, and the moments of the tests with them, in the same distances."""
    dates = {old: (at + ahead).date().isoformat() for old, ahead in _DATES.items()}
    dates[_LAST_DAY] = (at + _YEAR - timedelta(days=1)).date().isoformat()
    dates[_TEST_DAY] = (at + timedelta(days=9)).date().isoformat()
    return re.sub("|".join(map(re.escape, dates)), lambda match: dates[match[0]], text)


def _remeasure(texts: Mapping[str, str], key: str, value: str) -> dict[str, str]:
    """Replace one register's digest in the reference values and, the same digits, in the tests."""
    found = re.search(rf'^{key} = "([0-9a-f]{{96}})"', texts["reference-values.toml"], re.M)
    if not found:
        return dict(texts)
    return {
        name: text if name.endswith(".cedarschema") else text.replace(found[1], value) for name, text in texts.items()
    }


def measurements_of(quote: Quote) -> dict[str, str]:
    """MRTD, RTMR1 and RTMR2 of a TDX quote, as reference values take them. Raises TypeError for an SGX quote."""
    td = quote.td
    return {"mr_td": td.mr_td.hex(), "rtmr1": td.rtmrs[1].hex(), "rtmr2": td.rtmrs[2].hex()}


def write(files: Mapping[str, bytes], target: Path) -> list[Path]:
    """Write a bundle into a directory that is absent or empty. Raises BundleError otherwise."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        hint = "choose a new directory; nothing was written"
        raise BundleError(BundleCode.DUPLICATE, str(target), 0, "there is something already", hint)
    written: list[Path] = []
    for name, content in files.items():
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        written.append(path)
    return written
