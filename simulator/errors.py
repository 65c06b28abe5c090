"""What can go wrong with a simulated machine, as stable codes.

The evidence it makes is judged by `attestation`, with codes of its own; these are about the machine's folder and about
asking it for something it cannot do.
"""

from __future__ import annotations

from enum import StrEnum


class SimulatorCode(StrEnum):
    """Public and stable: add, never rename or reuse."""

    MACHINE_MISSING = "machine.missing"
    MACHINE_EXISTS = "machine.exists"
    MACHINE_DAMAGED = "machine.damaged"
    MACHINE_NEWER = "machine.newer_version"
    MACHINE_READ_ONLY = "machine.read_only"
    MACHINE_LOCKED = "machine.locked"
    PLATFORM_UNKNOWN = "platform.unknown"
    COLLATERAL_UNKNOWN = "collateral.unknown"
    COLLATERAL_RETIRED = "collateral.retired"
    RECOVERY_INVALID = "recovery.invalid"
    REPORT_REFUSED = "report.refused"
    TD_INVALID = "td.invalid"
    FAULT_UNKNOWN = "fault.unknown"
    FAULT_FORM = "fault.form_missing"


class SimulatorError(Exception):
    """`code` is for machines, `detail` for people; neither ever holds a secret."""

    def __init__(self, code: SimulatorCode, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail
