"""Identity keys that have ended by themselves: remembered, so that none comes back with an account that is clean.

Decides how little of an agent is kept for ever: half of a SHA-256 of its subject, packed with others into one of 256
security rows, so that none can be taken out of the database unseen. When an agent goes is decided by retirement.py.
"""

import hashlib
from collections.abc import Iterable
from typing import Final

from attestation.encoding import b64url
from broker.errors import BrokerCode, BrokerError
from broker.ports import Transaction

_MARK: Final = "retired/"
_DIGEST_LEN: Final = 16


def retire(tx: Transaction, subjects: Iterable[str]) -> None:
    """None of them is admitted any more."""
    fresh: dict[str, list[str]] = {}
    for subject in subjects:
        mark, name = _place(subject)
        fresh.setdefault(mark, []).append(name)
    for mark, names in fresh.items():
        known = (tx.marks.get(mark) or "").split()
        tx.marks.put(mark, " ".join(sorted({*known, *names})))


def require_current(tx: Transaction, subject: str) -> None:
    """Raises BrokerError agent.retired."""
    mark, name = _place(subject)
    known = tx.marks.get(mark)
    if known is not None and name in known:
        raise BrokerError(BrokerCode.AGENT_RETIRED, subject)


def _place(subject: str) -> tuple[str, str]:
    """The row, and what stands in it: as all are of one length, with a space between, none is found across two."""
    digest = hashlib.sha256(subject.encode()).digest()
    return f"{_MARK}{digest[0]:02x}", b64url(digest[:_DIGEST_LEN])
