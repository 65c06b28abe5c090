"""Verify a quote of Intel hardware: `python examples/verify.py QUOTE COLLATERAL.json [TIME]`. Base install only."""

import sys
from datetime import UTC, datetime
from pathlib import Path

from attestation import NOT_COMPARED, AttestationError, Collateral, Quote, TrustRoots, verify_quote

if len(sys.argv) < 3:
    sys.exit(__doc__)
raw, text = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2]).read_text()
at = datetime.fromisoformat(sys.argv[3]) if len(sys.argv) > 3 else datetime.now(UTC)
try:
    quote, collateral = Quote.parse(raw), Collateral.from_json(text)
    verified = verify_quote(quote, collateral, report_data=NOT_COMPARED, roots=TrustRoots.intel(), at=at)
except AttestationError as error:  # refused, malformed, or not to be judged: the code says which, and it is stable
    sys.exit(f"{error.code}: {error.detail}")

# NOT_COMPARED: nobody has checked yet whom this quote speaks for. Pass the 64 bytes that you expect instead.
print(verified.tcb_status, verified.quote.report_data.hex())
