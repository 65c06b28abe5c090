"""What the pretend Intel knows of its platforms on the day a machine is made: FMSPCs, TCB levels, module identities.

Decides the starting point. Every TCB state that Intel's documents can give has a level, so that a platform reaches it
by having the SVN of that level; how documents change later is `recovery`'s business.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

FMSPCS: Final = {
    "90C06F000000": ("E5", "platform"),
    "B0C06F000000": ("E5", "platform"),
    "50806F000000": ("E5", "platform"),
    "00906ED50000": ("client", "processor"),
}
"""FMSPC → (kind of platform as the PCS names it, which PCK CA certifies it). The last one knows SGX alone."""
TDX_FMSPCS: Final = tuple(fmspc for fmspc, (_, ca) in FMSPCS.items() if ca == "platform")


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One TCB level. `svn` is the microcode SVN of a platform level, the ISVSVN of a module or enclave level."""

    svn: int
    status: str
    date: str
    """YYYY-MM-DDThh:mm:ssZ"""
    advisories: tuple[str, ...] = ()
    pcesvn: int = 0
    """Platform levels only"""


MICROCODE: Final = {
    "UpToDate": 8,
    "SWHardeningNeeded": 7,
    "ConfigurationNeeded": 6,
    "ConfigurationAndSWHardeningNeeded": 5,
    "OutOfDate": 4,
    "OutOfDateConfigurationNeeded": 3,
    "Revoked": 2,
}
"""Platform state → microcode SVN whose level has it. An SVN of 1 matches no level at all."""

_PLATFORM: Final = (
    Level(svn=8, pcesvn=13, status="UpToDate", date="2025-08-13T00:00:00Z"),
    Level(
        svn=7,
        pcesvn=13,
        status="SWHardeningNeeded",
        date="2025-08-13T00:00:00Z",
        advisories=("INTEL-SA-00615",),
    ),
    Level(
        svn=6,
        pcesvn=13,
        status="ConfigurationNeeded",
        date="2025-08-13T00:00:00Z",
        advisories=("INTEL-SA-00289",),
    ),
    Level(
        svn=5,
        pcesvn=13,
        status="ConfigurationAndSWHardeningNeeded",
        date="2025-08-13T00:00:00Z",
        advisories=("INTEL-SA-00289", "INTEL-SA-00615"),
    ),
    Level(
        svn=4,
        pcesvn=11,
        status="OutOfDate",
        date="2024-03-13T00:00:00Z",
        advisories=("INTEL-SA-01036", "INTEL-SA-01079"),
    ),
    Level(
        svn=3,
        pcesvn=11,
        status="OutOfDateConfigurationNeeded",
        date="2023-08-09T00:00:00Z",
        advisories=("INTEL-SA-00289", "INTEL-SA-01036", "INTEL-SA-01079"),
    ),
    Level(
        svn=2,
        pcesvn=5,
        status="Revoked",
        date="2018-01-04T00:00:00Z",
        advisories=("INTEL-SA-00106", "INTEL-SA-00115"),
    ),
)
_MODULE_1: Final = (
    Level(svn=11, status="UpToDate", date="2025-08-13T00:00:00Z"),
    Level(svn=6, status="OutOfDate", date="2025-05-14T00:00:00Z", advisories=("INTEL-SA-01192", "INTEL-SA-01245")),
    Level(svn=4, status="OutOfDate", date="2024-03-13T00:00:00Z", advisories=("INTEL-SA-01036", "INTEL-SA-01192")),
    Level(svn=2, status="Revoked", date="2023-08-09T00:00:00Z", advisories=("INTEL-SA-01036",)),
)
_MODULE_3: Final = (
    Level(svn=5, status="UpToDate", date="2025-08-13T00:00:00Z"),
    Level(svn=3, status="OutOfDate", date="2025-05-14T00:00:00Z", advisories=("INTEL-SA-01245", "INTEL-SA-01312")),
    Level(svn=1, status="Revoked", date="2024-03-13T00:00:00Z", advisories=("INTEL-SA-01245",)),
)
_TD_QE: Final = (
    Level(svn=4, status="UpToDate", date="2025-05-14T00:00:00Z"),
    Level(svn=3, status="OutOfDate", date="2024-03-13T00:00:00Z", advisories=("INTEL-SA-00837",)),
    Level(svn=2, status="Revoked", date="2023-08-09T00:00:00Z", advisories=("INTEL-SA-00837",)),
)
_QE: Final = (
    Level(svn=8, status="UpToDate", date="2024-03-13T00:00:00Z"),
    Level(svn=6, status="OutOfDate", date="2021-11-10T00:00:00Z", advisories=("INTEL-SA-00615",)),
    Level(svn=5, status="Revoked", date="2020-11-11T00:00:00Z", advisories=("INTEL-SA-00477", "INTEL-SA-00615")),
)
_QVE: Final = (Level(svn=3, status="UpToDate", date="2024-03-13T00:00:00Z"),)

Levels = dict[str, tuple[Level, ...]]
"""Name → levels, highest first. Names: `tdx/FMSPC`, `sgx/FMSPC`, `module/FMSPC/TDX_01`, `qe/TD_QE`, `qe/QE`, …"""


def first_levels() -> Levels:
    """All levels on the day the machine is made."""
    levels: Levels = {f"sgx/{fmspc}": _PLATFORM for fmspc in FMSPCS}
    levels |= {f"tdx/{fmspc}": _PLATFORM for fmspc in TDX_FMSPCS}
    for fmspc in TDX_FMSPCS:
        levels |= {f"module/{fmspc}/TDX_03": _MODULE_3, f"module/{fmspc}/TDX_01": _MODULE_1}
    return levels | {"qe/TD_QE": _TD_QE, "qe/QE": _QE, "qe/QVE": _QVE}


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSet:
    """One TCB evaluation data set. Times are Unix seconds; None: not yet."""

    number: int
    tcb_date: str
    early_from: int
    standard_from: int | None
    levels: Levels


def first_sets() -> tuple[EvaluationSet, ...]:
    """Two sets, both in force for as long as anybody can remember; the second is served unless told otherwise."""
    levels = first_levels()
    return (
        EvaluationSet(number=19, tcb_date="2025-05-14T00:00:00Z", early_from=0, standard_from=0, levels=levels),
        EvaluationSet(number=20, tcb_date="2025-08-13T00:00:00Z", early_from=0, standard_from=0, levels=levels),
    )
