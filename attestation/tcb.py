"""Which TCB level a platform has, and which state follows from it. Tables and comparisons, nothing else.

Decides how SVNs are compared with Intel's levels, and how the states of platform, TDX module and quoting enclave become
one. Where the levels come from and whether they may be believed is decided in `collateral`, `documents` and `verifier`.

Sources: Intel's quote verification library, `EvaluateTcb.cpp` (4.1.2.5.2) and `TDRelaunchCheck.cpp`; Intel SGX and TDX
Provisioning Certification Service API v4, "TCB info" (the meaning of the states).
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from operator import ge
from typing import Any, Final, NamedTuple, final

COMPONENTS: Final = 16
_MAX_LABEL: Final = 64  # characters; the longest real one has 25


class TcbStatus(StrEnum):
    """Intel's words, in Intel's spelling. There is no honest total order: accept a set, not a floor."""

    UP_TO_DATE = "UpToDate"
    SW_HARDENING_NEEDED = "SWHardeningNeeded"
    CONFIGURATION_NEEDED = "ConfigurationNeeded"
    CONFIGURATION_AND_SW_HARDENING_NEEDED = "ConfigurationAndSWHardeningNeeded"
    TD_RELAUNCH_ADVISED = "TDRelaunchAdvised"
    TD_RELAUNCH_ADVISED_CONFIGURATION_NEEDED = "TDRelaunchAdvisedConfigurationNeeded"
    OUT_OF_DATE = "OutOfDate"
    OUT_OF_DATE_CONFIGURATION_NEEDED = "OutOfDateConfigurationNeeded"
    REVOKED = "Revoked"


TcbStates = frozenset[TcbStatus]

UP_TO_DATE: Final[TcbStates] = frozenset({TcbStatus.UP_TO_DATE})
"""What is accepted unless the caller says otherwise."""

ANY_TCB: Final[TcbStates] = frozenset(TcbStatus) - {TcbStatus.REVOKED}
"""For callers that apply a policy next. Revoked is never acceptable."""

PLATFORM_STATES: Final[TcbStates] = ANY_TCB - {
    TcbStatus.TD_RELAUNCH_ADVISED,
    TcbStatus.TD_RELAUNCH_ADVISED_CONFIGURATION_NEEDED,
} | {TcbStatus.REVOKED}
"""What a level of TCB info may say."""

ISV_STATES: Final[TcbStates] = frozenset({TcbStatus.UP_TO_DATE, TcbStatus.OUT_OF_DATE, TcbStatus.REVOKED})
"""What a level of the TDX module or of the quoting enclave may say."""

_NEEDS_CONFIGURATION: Final = frozenset(
    {
        TcbStatus.CONFIGURATION_NEEDED,
        TcbStatus.CONFIGURATION_AND_SW_HARDENING_NEEDED,
        TcbStatus.OUT_OF_DATE_CONFIGURATION_NEEDED,
    }
)
_OUT_OF_DATE: Final = frozenset({TcbStatus.OUT_OF_DATE, TcbStatus.OUT_OF_DATE_CONFIGURATION_NEEDED})


def converge(platform: TcbStatus, module: TcbStatus | None, qe: TcbStatus) -> TcbStatus:
    """One state from three: any Revoked wins, then any OutOfDate, else the platform's own stands.

    `module` is None where no TDX module is judged by itself: SGX, and TDX modules of version 0.
    """
    parts = (platform, module, qe)
    if TcbStatus.REVOKED in parts:
        return TcbStatus.REVOKED
    if TcbStatus.OUT_OF_DATE in (module, qe):
        if platform in _NEEDS_CONFIGURATION:
            return TcbStatus.OUT_OF_DATE_CONFIGURATION_NEEDED
        return TcbStatus.OUT_OF_DATE
    return platform


def relaunch(launch: TcbStatus, current: TcbStatus) -> TcbStatus:
    """The state of a TD that started under `launch` on a platform that is `current` now (TD report 1.5).

    A domain that started out of date can get well by starting again, if the platform has got well since. Stricter than
    Intel's library in one row: Revoked in either half is Revoked.
    """
    if TcbStatus.REVOKED in (launch, current):
        return TcbStatus.REVOKED
    if launch not in _OUT_OF_DATE or current in _OUT_OF_DATE:
        return launch
    if launch is TcbStatus.OUT_OF_DATE and current not in _NEEDS_CONFIGURATION:
        return TcbStatus.TD_RELAUNCH_ADVISED
    return TcbStatus.TD_RELAUNCH_ADVISED_CONFIGURATION_NEEDED


@final
class IsvLevel(NamedTuple):
    """One level of a TDX module or a quoting enclave."""

    isvsvn: int
    status: TcbStatus
    date: str  # YYYY-MM-DDThh:mm:ssZ, so that text order is time order
    advisories: tuple[str, ...]


@final
class TcbLevel(NamedTuple):
    """One level of a platform. Component SVNs are octets, so that `bytes` order is Intel's sort order."""

    sgx: bytes  # 16
    pcesvn: int
    tdx: bytes  # 16, or empty in TCB info for SGX
    status: TcbStatus
    date: str
    advisories: tuple[str, ...]
    labels: dict[str, list[dict[str, Any]]]  # the components as published: category and type, for people

    @property
    def order(self) -> tuple[bytes, int, bytes]:
        return self.sgx, self.pcesvn, self.tdx


@final
class PlatformSvns(NamedTuple):
    """What a platform brings to the comparison: PCK certificate (sgx, pcesvn) and TD report (tdx)."""

    sgx: bytes  # 16
    pcesvn: int
    tdx: bytes  # TEE_TCB_SVN, 16; empty for SGX

    @property
    def module_version(self) -> int:
        """Version of the TDX module; 0 for SGX and for TDX 1.0, whose module is judged as part of the platform."""
        return self.tdx[1] if self.tdx else 0

    @property
    def first_tdx(self) -> int:
        """Index of the first TDX component that belongs to the platform: a versioned module is judged by itself."""
        return 2 if self.module_version else 0


@final
class Shortfall(NamedTuple):
    """One SVN that is lower than a level demands."""

    component: str  # "sgxtcbcomponents[7]", "pcesvn", "tdxtcbcomponents[2]", "tdx_module.isvsvn", "qe.isvsvn"
    label: str  # what Intel calls it: "SEAMLDR ACM"; empty where Intel gives no name
    category: str  # who updates it: "BIOS", "OS/VMM"; empty where Intel does not say
    have: int
    need: int

    def __str__(self) -> str:
        known = ", ".join(part for part in (self.label, self.category) if part)
        return f"{self.component}{f' ({known})' if known else ''} has {self.have}, needs {self.need}"


def reaches(svns: PlatformSvns, level: TcbLevel) -> bool:
    """Whether each SVN is at least the level's. Levels for another kind of TEE are never reached."""
    first = svns.first_tdx
    return (
        len(svns.tdx) == len(level.tdx)
        and all(map(ge, svns.sgx, level.sgx))
        and svns.pcesvn >= level.pcesvn
        and all(map(ge, svns.tdx[first:], level.tdx[first:]))
    )


def match_platform(levels: Iterable[TcbLevel], svns: PlatformSvns) -> TcbLevel | None:
    """The first level, from the highest down, that `svns` reaches. `levels` must be sorted so."""
    return next((level for level in levels if reaches(svns, level)), None)


def match_isv(levels: Iterable[IsvLevel], isvsvn: int) -> IsvLevel | None:
    """The first level, from the highest down, that `isvsvn` reaches. `levels` must be sorted so."""
    return next((level for level in levels if isvsvn >= level.isvsvn), None)


def short_of(level: TcbLevel, svns: PlatformSvns) -> tuple[Shortfall, ...]:
    """Every SVN that keeps a platform from `level`; empty when it reaches it."""
    first = svns.first_tdx
    short = [_component("sgxtcbcomponents", level, at, svns.sgx[at], level.sgx[at]) for at in range(COMPONENTS)]
    short.append(Shortfall("pcesvn", "Provisioning Certification Enclave", "OS/VMM", svns.pcesvn, level.pcesvn))
    short += [
        _component("tdxtcbcomponents", level, at, svns.tdx[at], level.tdx[at]) for at in range(first, len(svns.tdx))
    ]
    return tuple(item for item in short if item.have < item.need)


def nearest(levels: Iterable[TcbLevel], svns: PlatformSvns) -> tuple[TcbLevel, tuple[Shortfall, ...]] | None:
    """Of `levels`, the one with the fewest missing SVN steps, and what is missing; None of no levels."""
    found = [(level, short_of(level, svns)) for level in levels]
    return min(found, key=lambda pair: sum(item.need - item.have for item in pair[1]), default=None)


def _component(family: str, level: TcbLevel, at: int, have: int, need: int) -> Shortfall:
    published = level.labels[family][at]
    return Shortfall(f"{family}[{at}]", _label(published, "type"), _label(published, "category"), have, need)


def _label(component: dict[str, Any], member: str) -> str:
    """Text for people, or nothing: what nobody has to read must not fill or bend a log."""
    found = component.get(member)
    return found if type(found) is str and len(found) <= _MAX_LABEL and found.isprintable() else ""
