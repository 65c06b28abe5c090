"""Verify an Intel-signed quote: `python examples/verify.py QUOTE COLLATERAL.json`. Needs the base install only."""

import sys
from datetime import UTC, datetime
from pathlib import Path

from attestation import NOT_COMPARED, Collateral, Quote, TrustRoots, verify_quote

quote, collateral = Quote.parse(Path(sys.argv[1]).read_bytes()), Collateral.from_json(Path(sys.argv[2]).read_text())
at = datetime.fromisoformat(sys.argv[3]) if len(sys.argv) > 3 else datetime.now(UTC)
verified = verify_quote(quote, collateral, report_data=NOT_COMPARED, roots=TrustRoots.intel(), at=at)

# NOT_COMPARED: nobody has checked yet whom this quote speaks for. Pass the 64 bytes that you expect instead.
print(verified.tcb_status, verified.quote.report_data.hex())
