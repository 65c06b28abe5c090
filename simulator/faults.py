"""Named ways to be wrong: the public door to all faults.

Decides how a fault is played on a machine. The faults themselves stand in `faults_quote`
(bytes and claims of a quote, its quoting enclave), `faults_chain` (certificates and revocation lists),
`faults_collateral` (TCB info and QE identity), `faults_tcb` (states of platforms) and `faults_evidence` (event logs,
bindings). `judging` asks our verifier about them, `vectors` writes test vectors from them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from attestation.errors import Code
from simulator import faults_chain, faults_collateral, faults_evidence, faults_quote, faults_tcb
from simulator.errors import SimulatorCode, SimulatorError
from simulator.machine import Machine
from simulator.registry import BINDING, COLLATERAL, EVENT_LOG, FAULTS, FORMS, QUOTE, Exhibit, Fault
from simulator.scene import Scene

__all__ = [
    "BINDING",
    "COLLATERAL",
    "EVENT_LOG",
    "FAULTS",
    "FORMS",
    "QUOTE",
    "Exhibit",
    "Fault",
    "evidence_source",
    "exhibit",
    "find",
    "good",
]

PARTS: Final = (faults_quote, faults_chain, faults_collateral, faults_tcb, faults_evidence)
"""Importing them is what fills the list."""

_CODES: Final = list(Code)
_SORTED: Final = sorted(FAULTS.values(), key=lambda fault: _CODES.index(fault.code))
FAULTS.clear()
FAULTS.update({fault.name: fault for fault in _SORTED})

_REPORT_DATA: Final = bytes(range(1, 65))


def find(name: str) -> Fault:
    """Raises SimulatorError fault.unknown, with the nearest names."""
    found = FAULTS.get(name)
    if found is None:
        from difflib import get_close_matches

        near = ", ".join(get_close_matches(name, FAULTS)) or "see `cloister sim fault --list`"
        raise SimulatorError(SimulatorCode.FAULT_UNKNOWN, f"no fault is called {name!r}; near it: {near}")
    return found


def exhibit(machine: Machine, name: str, *, report_data: bytes = _REPORT_DATA, **scene: Any) -> Exhibit:
    """Play the fault `name` on a copy of `machine`; `scene` takes what `Scene` takes (at, platform, version, …).

    Raises SimulatorError fault.unknown, platform.unknown, td.invalid.
    """
    return find(name).make(Scene(machine, report_data=report_data, **scene))


def good(machine: Machine, *, report_data: bytes = _REPORT_DATA, **scene: Any) -> Exhibit:
    """The same without a fault."""
    return Scene(machine, report_data=report_data, **scene).exhibit()


def evidence_source(names: Iterable[str] | None = None, *, machine: Machine | None = None) -> dict[str, Exhibit]:
    """Fault name → exhibit, on a fresh machine in memory unless one is given: what `policy test` can be fed with."""
    played_on = machine or Machine.create()
    return {name: exhibit(played_on, name) for name in (FAULTS if names is None else names)}
