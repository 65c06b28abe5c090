"""A pretend Intel and its platforms: keys, collateral and clock of one simulated world.

Decides what a machine keeps (see `store`) and puts the parts together: `pki` for certificates, `platform` for quotes,
`recovery` and `collateral` for documents, `domain` for trust domains. Two processes that open one folder are the same
machine: everything follows from the seed and the recorded events, so both serve the same bytes at the same time.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from threading import Lock
from typing import Any, Final, Self

from attestation.collateral import Collateral
from attestation.pki import TrustRoots
from simulator import collateral as documents_of
from simulator.catalogue import FMSPCS, EvaluationSet
from simulator.clock import Clock, ClockState, seconds
from simulator.collateral import Documents
from simulator.domain import SimulatedTd
from simulator.errors import SimulatorCode, SimulatorError
from simulator.pki import Hierarchy, hierarchy
from simulator.platform import Platform, PlatformSpec
from simulator.recovery import Event, Ledger, check, replay
from simulator.seed import Seed
from simulator.source import MachineSource
from simulator.store import FolderStore, MemoryStore, State, Store, with_clock

DEFAULT_PLATFORMS: Final = (
    PlatformSpec(identity="p0", fmspc="90C06F000000"),
    PlatformSpec(identity="p1", fmspc="B0C06F000000", module_version=3, module_svn=5),
    PlatformSpec(identity="p2", fmspc="00906ED50000", ca="processor", sgx_type=0),
)
"""Two TDX servers with different modules, and a client that knows SGX alone, under the Processor CA."""

_CACHED_DOCUMENTS: Final = 64
_CACHED_LEDGERS: Final = 64

MACHINE_VARIABLE: Final = "CLOISTER_MACHINE"
"""Environment variable: the machine's folder, for `simulated_trust_domain`."""

Moment = datetime | float | None
"""An aware datetime, Unix seconds, or None for the machine's own clock."""


class Machine:
    """One simulated world. Threads may share it. See `create` and `open`."""

    def __init__(self, store: Store) -> None:
        state = store.read()
        self._store = store
        self._seed = Seed(state.seed)
        self._platforms: dict[PlatformSpec, Platform] = {}
        self._lock = Lock()
        self._documents: OrderedDict[tuple[Any, ...], Documents] = OrderedDict()
        self._events: tuple[Event, ...] = ()
        self._ledgers: dict[int, Ledger] = {}
        self.pki: Hierarchy = hierarchy(self._seed)
        self.clock = Clock(lambda: store.read().clock, self._move_clock)

    @classmethod
    def create(
        cls,
        path: Path | str | None = None,
        *,
        seed: bytes | str | int | None = None,
        platforms: Sequence[PlatformSpec] = DEFAULT_PLATFORMS,
    ) -> Self:
        """A new machine, in a folder, or in memory when `path` is None. The same seed gives the same machine.

        Raises SimulatorError machine.exists, machine.read_only.
        """
        state = State(seed=_seed_bytes(seed), platforms=tuple(platforms))
        if path is None:
            return cls(MemoryStore(state))
        store = FolderStore(Path(path))
        store.create(state, hierarchy(Seed(state.seed)).root.pem)
        return cls(store)

    @classmethod
    def open(cls, path: Path | str, *, create: bool = False) -> Self:
        """The machine in a folder; `create` makes one with defaults when there is none.

        Raises SimulatorError machine.missing, machine.damaged, machine.newer_version, machine.read_only.
        """
        store = FolderStore(Path(path))
        if create and not store.exists():
            try:
                return cls.create(path)
            except SimulatorError as error:
                if error.code is not SimulatorCode.MACHINE_EXISTS:  # another process was first
                    raise
        return cls(store)

    def fork(self, at: Moment = None) -> Machine:
        """A copy in memory with the same keys, its clock stopped at `at`. What happens to it does not happen here."""
        state = self._store.read()
        moment = state.clock.read() if at is None else seconds(at)
        return Machine(MemoryStore(replace(state, clock=ClockState(stopped_at_s=moment))))

    @property
    def path(self) -> Path | None:
        return self._store.path

    @property
    def root_pem(self) -> bytes:
        """The certificate to trust, and the only one of this machine that anybody should."""
        return self.pki.root.pem

    @property
    def root_der(self) -> bytes:
        return self.pki.root.der

    @property
    def root_sha256(self) -> str:
        """Lower-case hex SHA-256 of the root's DER."""
        return hashlib.sha256(self.root_der).hexdigest()

    @property
    def roots(self) -> TrustRoots:
        return TrustRoots.from_pem(self.root_pem)

    @property
    def seed(self) -> Seed:
        """The secret of the machine; faults derive keys of strangers from it."""
        return self._seed

    # --- platforms ---

    @property
    def platforms(self) -> tuple[Platform, ...]:
        return tuple(self._platform(spec) for spec in self._store.read().platforms)

    def platform(self, index: int = 0) -> Platform:
        """Raises SimulatorError platform.unknown."""
        specs = self._store.read().platforms
        if not 0 <= index < len(specs):
            detail = f"no platform {index}; this machine has {len(specs)}, counted from 0"
            raise SimulatorError(SimulatorCode.PLATFORM_UNKNOWN, detail)
        return self._platform(specs[index])

    def add_platform(self, fmspc: str = "90C06F000000", **changes: Any) -> int:
        """Another platform, with any members of `PlatformSpec`; its index. Raises SimulatorError platform.unknown."""
        if fmspc not in FMSPCS:
            raise SimulatorError(SimulatorCode.PLATFORM_UNKNOWN, f"FMSPC {fmspc}; known are {', '.join(FMSPCS)}")
        changes = {"ca": FMSPCS[fmspc][1]} | changes

        def add(state: State) -> State:
            identity = f"p{len(state.platforms)}"
            spec = PlatformSpec.from_dict({"identity": identity, "fmspc": fmspc} | changes)
            return replace(state, platforms=(*state.platforms, spec))

        return len(self._store.update(add).platforms) - 1

    def clone_platform(self, index: int = 0) -> int:
        """The same platform again, elsewhere: what somebody has who extracted its keys. Its index."""
        spec = self.platform(index).spec
        added = self._store.update(lambda state: replace(state, platforms=(*state.platforms, spec)))
        return len(added.platforms) - 1

    def patch_platform(self, index: int = 0, **changes: Any) -> Platform:
        """Update microcode, TDX module or quoting enclaves of a platform, in place: members of `PlatformSpec`.

        Running trust domains keep their launch SVN. Raises SimulatorError platform.unknown, ValueError.
        """
        self.platform(index)

        def patch(state: State) -> State:
            specs = list(state.platforms)
            specs[index] = PlatformSpec.from_dict(specs[index].to_dict() | changes)
            return replace(state, platforms=tuple(specs))

        return self._platform(self._store.update(patch).platforms[index])

    def _platform(self, spec: PlatformSpec) -> Platform:
        platform = self._platforms.get(spec)
        if platform is None:
            platform = self._platforms[spec] = Platform(self._seed, self.pki, spec)
        return platform

    # --- collateral ---

    def ledger(self, at: Moment = None) -> Ledger:
        """Evaluation sets and revocations as of a moment."""
        state = self._store.read()
        moment = int(state.clock.read() if at is None else seconds(at))
        with self._lock:
            if state.events is not self._events:  # recorded since, here or by another process
                self._events, self._ledgers = state.events, {}
                self._documents.clear()
            ledger = self._ledgers.get(moment)
            if ledger is None:
                if len(self._ledgers) >= _CACHED_LEDGERS:
                    self._ledgers = {}
                ledger = self._ledgers[moment] = replay(state.events, moment)
        return ledger

    def documents(
        self,
        tee: str = "tdx",
        fmspc: str = "90C06F000000",
        at: Moment = None,
        update: str = "standard",
        *,
        ca: str | None = None,
        tcb_set: EvaluationSet | None = None,
        identity_set: EvaluationSet | None = None,
    ) -> Documents:
        """The nine members, as of `at`, of the set that `update` (early, standard) serves then, or of the sets given.

        Raises SimulatorError collateral.unknown.
        """
        ledger = self.ledger(at)
        tcb = tcb_set or ledger.current(update)
        identity = identity_set or ledger.current(update)
        key = (tee, fmspc.upper(), ca, tcb.number, identity.number, documents_of.issued_at(ledger), ledger.revision)
        with self._lock:
            found = self._documents.get(key)
            if found is None:
                found = self._documents[key] = documents_of.documents(
                    ledger, self.pki, tee=tee, fmspc=fmspc.upper(), ca=ca, tcb_set=tcb, identity_set=identity
                )
                if len(self._documents) > _CACHED_DOCUMENTS:
                    self._documents.popitem(last=False)
        return found

    def collateral(
        self,
        tee: str = "tdx",
        fmspc: str = "90C06F000000",
        at: Moment = None,
        update: str = "standard",
        *,
        ca: str | None = None,
    ) -> Collateral:
        """The same as a verifier takes it. Raises SimulatorError collateral.unknown."""
        return Collateral.from_json(self.documents(tee, fmspc, at, update, ca=ca).to_json())

    def recover(self, kind: str, *, at: Moment = None, platform: int | None = None, **arguments: Any) -> Event:
        """Record a TCB recovery, a revocation or a change of the PCS's ways: `recovery.KINDS` names them.

        `revoke-pck` takes `platform`, an index. Raises SimulatorError recovery.invalid, platform.unknown.
        """
        if kind == "revoke-pck":
            leaf = self.platform(platform or 0)
            arguments = {"ca": leaf.spec.ca, "serial": f"{leaf.pck.serial:x}"} | arguments
        elif platform is not None:
            raise SimulatorError(SimulatorCode.RECOVERY_INVALID, f"{kind} concerns no platform")
        check(kind, arguments)
        moment = int(self.clock.time() if at is None else seconds(at))
        event = Event(at=moment, kind=kind, arguments=arguments)

        def record(state: State) -> State:
            before, after = replay(state.events, moment), replay((*state.events, event), moment)
            if kind == "status" and [s.levels for s in before.sets] == [s.levels for s in after.sets]:
                detail = f"{kind} changes nothing: no level matches {arguments}, or it is so already"
                raise SimulatorError(SimulatorCode.RECOVERY_INVALID, detail)
            return replace(state, events=(*state.events, event))

        self._store.update(record)
        return event

    def as_source(self, update: str = "standard") -> MachineSource:
        """A CollateralSource that asks this machine directly, without a network."""
        return MachineSource(self, update)

    # --- trust domains ---

    def launch(self, label: str = "td", **options: Any) -> SimulatedTd:
        """Launch a trust domain; see `domain.SimulatedTd.launch` for the options."""
        return SimulatedTd.launch(self, label, **options)

    def _move_clock(self, change: Callable[[ClockState], ClockState]) -> None:
        self._store.update(lambda state: with_clock(state, change))


def simulated_trust_domain(machine: Path | str | None = None, *, label: str = "td", **options: Any) -> SimulatedTd:
    """A fresh domain on a machine: the folder given, else the one that CLOISTER_MACHINE names.

    Raises SimulatorError machine.missing when neither names one, and whatever opening it raises.
    """
    folder = machine or os.environ.get(MACHINE_VARIABLE)
    if not folder:
        detail = f"name the machine's folder, as an argument or in {MACHINE_VARIABLE}"
        raise SimulatorError(SimulatorCode.MACHINE_MISSING, detail)
    return Machine.open(folder, create=True).launch(label, **options)


def _seed_bytes(seed: bytes | str | int | None) -> bytes:
    if seed is None:
        return secrets.token_bytes(32)
    return seed if isinstance(seed, bytes) else str(seed).encode()
