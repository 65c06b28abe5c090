"""Evidence together with what it is to be judged by.

Decides nothing: a `Scene` puts one together, `judging` and others look at it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from attestation.evidence import Binding

QUOTE, COLLATERAL, EVENT_LOG, BINDING = "quote", "collateral", "eventlog", "binding"
FORMS: Final = (QUOTE, COLLATERAL, EVENT_LOG, BINDING)
"""Where a fault can sit. `binding` is what an agent sends beside its quote."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exhibit:
    """Evidence and what it is to be judged by, some of it wrong."""

    quote: bytes = field(repr=False)
    collateral: str = field(repr=False)
    """The collateral file's text"""
    event_log: bytes = field(repr=False)
    report_data: bytes
    """What the verifier expects: 64 bytes"""
    at: int
    """Unix seconds: when it is judged"""
    root_pem: bytes = field(repr=False)
    binding: Binding | None = field(default=None, repr=False)
    """What the verifier expects REPORT_DATA to commit to, for faults of that form"""
    evidence: dict[str, Any] | None = field(default=None, repr=False)
    """The members that an agent sends, for faults of that form"""
    client_nonce: bytes = b""
