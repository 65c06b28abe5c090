"""What a fault is, and the list of all faults.

Decides nothing about any single fault: `faults_*` modules register theirs here, `faults` gathers them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from attestation.errors import Code
from simulator.exhibit import BINDING, COLLATERAL, EVENT_LOG, FORMS, QUOTE, Exhibit
from simulator.scene import Scene

__all__ = ["BINDING", "COLLATERAL", "EVENT_LOG", "FAULTS", "FORMS", "QUOTE", "Exhibit", "Fault", "fault"]


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
