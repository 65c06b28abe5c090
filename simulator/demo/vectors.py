"""The demo's first step: a quote that real hardware made and Intel's keys signed, where such vectors are at hand.

Decides where to look (CLOISTER_VECTORS, else `shared/vectors` in or beside the checkout) and which quote to show: the
first TDX quote of a platform that was up to date. It is judged at the time at which its collateral was in force.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import final

from attestation import NOT_COMPARED, Collateral, Quote, TrustRoots, VerifiedQuote, verify_quote


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RealQuote:
    """One recorded quote with the collateral of its day."""

    name: str
    source: str
    raw: bytes
    collateral: str
    at: datetime

    def verify(self) -> VerifiedQuote:
        return verify_quote(
            Quote.parse(self.raw),
            Collateral.from_json(self.collateral),
            report_data=NOT_COMPARED,
            roots=TrustRoots.intel(),
            at=self.at,
        )


def find() -> RealQuote | None:
    """A recorded quote, or None where there are none. A folder that is named but unusable is an error (OSError)."""
    named = os.environ.get("CLOISTER_VECTORS", "")
    checkout = Path(__file__).resolve().parent.parent.parent
    folders = [Path(named)] if named else [checkout / "shared" / "vectors", checkout.parent / "shared" / "vectors"]
    folder = next((one for one in folders if named or (one / "index.json").is_file()), None)
    return _first(folder) if folder else None


def _first(folder: Path) -> RealQuote | None:
    index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    for vector in index["vectors"]:
        expected = vector.get("expected") or {}
        if vector.get("kind") == "tdx v4" and expected.get("status") == "UpToDate":
            return RealQuote(
                name=vector["id"],
                source=vector["source"]["repo"],
                raw=(folder / vector["file"]).read_bytes(),
                collateral=(folder / vector["collateral"]).read_text(encoding="utf-8"),
                at=datetime.fromtimestamp(vector["now"], UTC),
            )
    return None
