"""Where a lab's broker lives: a trust domain on a platform of its own, and the reference values that describe it.

Decides that this platform belongs to the machine's world (same root, same collateral) but not to its list of platforms,
and that it is patched ahead of every recovery that the simulator can publish: like a broker on another, well kept
server. So agents can fall out of date, and the broker that has to notice does not fall with them.
"""

from __future__ import annotations

from typing import Final, final

from broker.wire.attested import BrokerReference
from simulator.domain import SimulatedTd
from simulator.machine import Machine
from simulator.platform import Platform, PlatformSpec
from simulator.seed import Seed

IMAGE: Final = "broker"
_AHEAD: Final = 200
SPEC: Final = PlatformSpec(
    identity="broker", fmspc="90C06F000000", microcode=_AHEAD, module_svn=_AHEAD, qe_svn=_AHEAD, pcesvn=_AHEAD
)


@final
class Residence:
    """A host with one platform, certified by the machine's own PKI."""

    def __init__(self, machine: Machine) -> None:
        self.seed: Final[Seed] = machine.seed
        self._platform = Platform(machine.seed, machine.pki, SPEC)

    def platform(self, index: int = 0) -> Platform:
        return self._platform

    def launch(self) -> SimulatedTd:
        """A fresh domain for a broker."""
        return SimulatedTd.launch(self, "broker", image=IMAGE)


def reference_of(domain: SimulatedTd) -> BrokerReference:
    """What a domain shows right after its launch, as reference values for trust files."""
    return BrokerReference.from_dict(
        {
            "mr_td": domain.mr_td.hex(),
            **{f"rtmr{index}": domain.rtmrs[index].hex() for index in (0, 1, 2)},
            "launches": [],
            "platforms": [domain.platform.ppid.hex()],
        }
    )
