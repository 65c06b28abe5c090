"""Real quotes and event logs, where the folder of vectors is at hand; its index explains its own fields.

Looked for at CLOISTER_VECTORS, then in `shared/vectors` inside the checkout or beside it. With
CLOISTER_REQUIRE_VECTORS=1 their absence is a failure.
"""

import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from attestation.collateral import Collateral
from attestation.pki import TrustRoots
from attestation.quote import Quote
from attestation.tcb import ANY_TCB
from attestation.verifier import NOT_COMPARED, Allowance, VerifiedQuote, verify_quote

_CHECKOUT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class RealQuote:
    """One entry of the index."""

    folder: Path
    raw: dict[str, Any]

    @property
    def id(self) -> str:
        return str(self.raw["id"])

    @property
    def quote(self) -> Quote:
        return Quote.parse((self.folder / self.raw["file"]).read_bytes())

    @property
    def event_log(self) -> bytes:
        return self.folder.joinpath(self.raw["event_log"]["file"]).read_bytes()

    def verified(self) -> VerifiedQuote:
        """Under the first collateral that the index names, whatever its TCB state."""
        return verify_quote(
            self.quote,
            Collateral.from_json((self.folder / self.raw["collateral"]).read_bytes()),
            report_data=NOT_COMPARED,
            roots=TrustRoots.intel(),
            at=datetime.fromtimestamp(self.raw["now"], UTC),
            accept=ANY_TCB,
            allow=frozenset(Allowance),
        )


@cache
def real_quotes() -> tuple[RealQuote, ...]:
    """All of them; none when the folder is not at hand."""
    named = os.environ.get("CLOISTER_VECTORS")
    places = [Path(named)] if named else [_CHECKOUT / "shared" / "vectors", _CHECKOUT.parent / "shared" / "vectors"]
    for folder in places:
        index = folder / "index.json"
        if index.is_file():
            return tuple(RealQuote(folder, raw) for raw in json.loads(index.read_text("utf-8"))["vectors"])
    assert os.environ.get("CLOISTER_REQUIRE_VECTORS") != "1", f"no vectors in {', '.join(map(str, places))}"
    return ()


def real_logs() -> tuple[RealQuote, ...]:
    """Those that have an event log."""
    return tuple(quote for quote in real_quotes() if quote.raw.get("event_log"))
