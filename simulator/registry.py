"""What a fault is, and the list of all faults.

Decides nothing about any single fault: `faults_*` modules register theirs here, `faults` gathers them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from attestation.errors import Code

if TYPE_CHECKING:
    from attestation.evidence import Binding
    from simulator.scene import Scene

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A named way to be wrong."""

    name: str
    code: Code
    """What a verifier that accepts UpToDate alone refuses it with"""
    what: str
    forms: frozenset[str]
    make: Callable[[Scene], Exhibit] = field(repr=False)


FAULTS: Final[dict[str, Fault]] = {}
"""Name → fault, in the order of the verification."""


def fault(
    name: str, code: Code, what: str, *forms: str
) -> Callable[[Callable[[Scene], Exhibit]], Callable[[Scene], Exhibit]]:
    """Register the decorated function. `forms`: `quote` unless told otherwise."""

    def register(make: Callable[[Scene], Exhibit]) -> Callable[[Scene], Exhibit]:
        if name in FAULTS:
            raise ValueError(f"two faults are called {name}")
        FAULTS[name] = Fault(name=name, code=code, what=what, forms=frozenset(forms or (QUOTE,)), make=make)
        return make

    return register
