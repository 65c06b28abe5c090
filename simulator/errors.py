"""What can go wrong with a simulated machine, as stable codes.

The evidence it makes is judged by `attestation`, with codes of its own; these are about the machine's folder and about
asking it for something it cannot do.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


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
    """`code` is for machines, `detail` says what was found, `remedy` what would help. None ever holds a secret."""

    def __init__(self, code: SimulatorCode, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail
        self.remedy = MEANING[code][1]


# code → (what happened, what to do)
MEANING: Final[dict[SimulatorCode, tuple[str, str]]] = {
    SimulatorCode.MACHINE_MISSING: (
        "There is no simulated machine in that folder.",
        "Make one with `cloister sim up --machine DIR`, or name the folder of a lab: DIR/machine.",
    ),
    SimulatorCode.MACHINE_EXISTS: (
        "A machine is made from a seed only where there is none yet.",
        "Name an empty folder, or leave `--seed` out to use the machine that is there.",
    ),
    SimulatorCode.MACHINE_DAMAGED: (
        "The machine's file is not one that this program wrote.",
        "Remove the folder: the next command makes a new machine, with another root key.",
    ),
    SimulatorCode.MACHINE_NEWER: (
        "The machine was written by a newer version of Cloister.",
        "Use that version, or make another machine in another folder.",
    ),
    SimulatorCode.MACHINE_READ_ONLY: (
        "The machine's folder cannot be written to.",
        "Give yourself the right to write there, or name another folder.",
    ),
    SimulatorCode.MACHINE_LOCKED: (
        "Another process has held the machine's lock for too long.",
        "Try again; if it stays so, end the process that uses the machine.",
    ),
    SimulatorCode.PLATFORM_UNKNOWN: (
        "The machine has no such platform.",
        "Take one of those that `cloister sim up --machine DIR` lists.",
    ),
    SimulatorCode.COLLATERAL_UNKNOWN: (
        "The machine publishes no such collateral.",
        "Ask for a family and a set that `cloister sim up --machine DIR` lists.",
    ),
    SimulatorCode.COLLATERAL_RETIRED: (
        "That evaluation set is so old that it is not served any more.",
        "Ask for a newer set, as a client of Intel's service must, too.",
    ),
    SimulatorCode.RECOVERY_INVALID: (
        "The change that was asked for is not one that the machine knows.",
        "See the kinds and their options with `cloister sim recover --help`.",
    ),
    SimulatorCode.REPORT_REFUSED: (
        "The quoting enclave takes reports of its own machine alone.",
        "Ask the platform for a quote over a report that it made itself, unchanged.",
    ),
    SimulatorCode.TD_INVALID: (
        "A trust domain or an enclave like that cannot exist.",
        "Read the detail: it names the field and what it may be.",
    ),
    SimulatorCode.FAULT_UNKNOWN: (
        "There is no fault of that name.",
        "Take one that `cloister sim fault --list` names.",
    ),
    SimulatorCode.FAULT_FORM: (
        "That fault does not show in the files that were asked for.",
        "Ask for the file that the detail names; `cloister sim fault --list --json` tells the forms of each.",
    ),
}
