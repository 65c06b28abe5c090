"""One number over all the rows that decide about security, kept up to date row by row.

Decides how a row that was taken out, put back or set to an earlier value shows, though each row still has its valid
MAC. The number is the XOR of a keyed value for each row; what leaves the store is a MAC over it, so that nobody who
reads it learns a row's value and could search for another set of rows with the same sum.
"""

import hashlib
import hmac
from typing import Final

from attestation.encoding import framed

_ROW: Final = b"cloister/security-row/v1"
_HEAD: Final = b"cloister/security-rows/v1"


def element(key: bytes, name: str, value: str) -> int:
    """What a row adds, and what takes it away again."""
    return int.from_bytes(hmac.digest(key, framed(_ROW, name.encode(), value.encode()), hashlib.sha256), "big")


def head_of(key: bytes, total: int) -> bytes:
    """32 bytes that stand for the rows in a checkpoint."""
    return hmac.digest(key, framed(_HEAD, total.to_bytes(32, "big")), hashlib.sha256)
