"""Hypothesis strategies: good quotes in every version and body, named faults, and REPORT_DATA to put into them.

Decides what may vary in evidence that is still good. Each example carries all that it is to be judged by (collateral,
moment, root, expected REPORT_DATA), so a property reads

    @given(exhibit=quotes())
    def test_my_service_accepts_what_is_genuine(exhibit): ...

    @given(faulty=faults())
    def test_my_service_refuses_what_is_not(faulty): assert my_verdict(faulty.exhibit) == faulty.fault.code

Machines are made once per seed and never changed: faults are played on forks. Needs the package `hypothesis`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Final, NamedTuple

from hypothesis import strategies as st

from simulator import faults as named
from simulator.domain import SEPT_VE_DISABLE
from simulator.machine import Machine
from simulator.registry import COLLATERAL, QUOTE, Exhibit, Fault

AT: Final = 1_782_907_200
"""The moment of judgement: noon of 1 July 2026, UTC. Fixed, so that a failing example fails again."""
_FORMS: Final = (QUOTE, COLLATERAL)
_SHAPES: Final = ((4, 2), (5, 2), (5, 3), (5, 4))
"""Quote versions with their bodies"""


class Faulty(NamedTuple):
    """A fault with the evidence that it spoilt."""

    fault: Fault
    exhibit: Exhibit


def report_data() -> st.SearchStrategy[bytes]:
    """64 bytes, not all of them zero: a zero REPORT_DATA must never match anything."""
    return st.binary(min_size=64, max_size=64).filter(any)


def machines(seeds: Sequence[str] = ("a", "b", "c")) -> st.SearchStrategy[Machine]:
    """Machines that do not trust each other. Do not change them: they are shared between examples."""
    return st.sampled_from(list(seeds)).map(_machine)


@st.composite
def quotes(draw: st.DrawFn, machine: Machine | None = None) -> Exhibit:
    """Genuine, up-to-date quotes: any version and body, any REPORT_DATA and launch ids, padded or not."""
    version, body = draw(st.sampled_from(_SHAPES))
    ids = {name: draw(_launch_id()) for name in ("mr_config_id", "mr_owner", "mr_owner_config")}
    options: dict[str, Any] = {
        "image": draw(st.sampled_from(["default", "other"])),
        "attributes": SEPT_VE_DISABLE,
        "pad_to": draw(st.sampled_from([0, 8000])),
        "partitioned": body == 4,
        **ids,
    }
    return named.good(
        machine or _machine("strategies"),
        report_data=draw(report_data()),
        at=AT,
        platform=draw(st.sampled_from([0, 1])),
        version=version,
        body=body,
        options=options,
    )


@st.composite
def faults(draw: st.DrawFn, machine: Machine | None = None, forms: Sequence[str] = _FORMS) -> Faulty:
    """Named faults that sit in one of `forms`: `quote`, `collateral`, `eventlog`, `binding`."""
    wanted = [fault for fault in named.FAULTS.values() if fault.forms & set(forms)]
    fault = draw(st.sampled_from(wanted))
    played_on = machine or _machine("strategies")
    return Faulty(fault, named.exhibit(played_on, fault.name, report_data=draw(report_data()), at=AT))


def _launch_id() -> st.SearchStrategy[bytes]:
    """MRCONFIGID and its like: mostly unused."""
    return st.just(bytes(48)) | st.binary(min_size=48, max_size=48)


@cache
def _machine(seed: str) -> Machine:
    return Machine.create(seed=f"strategies/{seed}")
