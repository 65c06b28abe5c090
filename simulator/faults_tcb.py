"""Faults of a platform's TCB: modules nobody knows, levels nobody reaches, states that a careful verifier refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attestation.errors import Code
from simulator.catalogue import MICROCODE
from simulator.registry import COLLATERAL, QUOTE, Exhibit, fault
from simulator.scene import Scene


@fault("unknown-module", Code.MODULE_IDENTITY, "a TDX module of version 7, which TCB info does not know")
def _unknown_module(scene: Scene) -> Exhibit:
    return _on_patched(scene, module_version=7)


@fault("foreign-module", Code.MODULE_SIGNER, "the TDX module is signed by somebody other than Intel")
def _foreign_module(scene: Scene) -> Exhibit:
    return scene.exhibit(scene.parts().body(64, b"\xbb" * 48))


@fault("module-attributes", Code.MODULE_ATTRIBUTES, "SEAMATTRIBUTES are not zero: a module for debugging")
def _module_attributes(scene: Scene) -> Exhibit:
    return scene.exhibit(scene.parts().body(112, b"\1" + bytes(7)))


@fault("no-tcb-level", Code.TCB_NO_MATCH, "microcode older than every TCB level")
def _no_level(scene: Scene) -> Exhibit:
    return _on_patched(scene, microcode=1)


@fault("no-module-level", Code.TCB_MODULE_NO_MATCH, "a TDX module older than every level of its identity")
def _no_module_level(scene: Scene) -> Exhibit:
    return _on_patched(scene, module_svn=0)


@fault("no-qe-level", Code.TCB_QE_NO_MATCH, "a TD quoting enclave older than every level of its identity")
def _no_qe_level(scene: Scene) -> Exhibit:
    return _on_patched(scene, qe_svn=1)


@fault("revoked-tcb", Code.TCB_REVOKED, "the platform's TCB level is Revoked")
def _revoked(scene: Scene) -> Exhibit:
    return _on_patched(scene, microcode=MICROCODE["Revoked"])


@fault("revoked-module", Code.TCB_REVOKED, "the TDX module's level is Revoked")
def _revoked_module(scene: Scene) -> Exhibit:
    return _on_patched(scene, module_version=1, module_svn=2)


@fault("revoked-qe", Code.TCB_REVOKED, "the TD quoting enclave's level is Revoked")
def _revoked_qe(scene: Scene) -> Exhibit:
    return _on_patched(scene, qe_svn=2)


@fault("revoked-current-module", Code.TCB_REVOKED, "launched under a good TDX module; the one loaded since is Revoked")
def _revoked_current(scene: Scene) -> Exhibit:
    return _on_upgraded(scene, launched=11, current=2)


def _state(name: str, status: str) -> Callable[[Scene], Exhibit]:
    @fault(name, Code.TCB_NOT_ACCEPTED, f"the platform is {status}")
    def make(scene: Scene) -> Exhibit:
        return _on_patched(scene, microcode=MICROCODE[status])

    return make


_state("out-of-date", "OutOfDate")
_state("out-of-date-configuration-needed", "OutOfDateConfigurationNeeded")
_state("configuration-needed", "ConfigurationNeeded")
_state("sw-hardening-needed", "SWHardeningNeeded")
_state("configuration-and-sw-hardening-needed", "ConfigurationAndSWHardeningNeeded")


@fault("out-of-date-module", Code.TCB_NOT_ACCEPTED, "the TDX module is OutOfDate on a platform that is UpToDate")
def _old_module(scene: Scene) -> Exhibit:
    return _on_patched(scene, module_version=1, module_svn=6)


@fault("out-of-date-qe", Code.TCB_NOT_ACCEPTED, "the TD quoting enclave is OutOfDate on a platform that is UpToDate")
def _old_qe(scene: Scene) -> Exhibit:
    return _on_patched(scene, qe_svn=3)


@fault("relaunch-advised", Code.TCB_NOT_ACCEPTED, "launched under an old TDX module; a new one is loaded by now")
def _relaunch(scene: Scene) -> Exhibit:
    return _on_upgraded(scene, launched=6, current=11)


@fault(
    "relaunch-advised-configuration-needed",
    Code.TCB_NOT_ACCEPTED,
    "launched under an old TDX module, a new one is loaded by now, and the platform needs configuration",
)
def _relaunch_configuration(scene: Scene) -> Exhibit:
    return _on_upgraded(scene, launched=6, current=11, microcode=MICROCODE["ConfigurationNeeded"])


@fault(
    "mixed-evaluation-sets",
    Code.TCB_NOT_ACCEPTED,
    "TCB info of the early evaluation set, in which the platform is OutOfDate, beside the standard QE identity",
    QUOTE,
    COLLATERAL,
)
def _mixed(scene: Scene) -> Exhibit:
    scene.machine.recover("publish", advisories=["INTEL-SA-01313"])
    ledger = scene.machine.ledger()
    mixed = scene.documents(tcb_set=ledger.current("early"), identity_set=ledger.current("standard"))
    return scene.exhibit(collateral=mixed)


@fault("tcb-recovery", Code.TCB_NOT_ACCEPTED, "a TCB recovery made an unchanged platform OutOfDate", QUOTE, COLLATERAL)
def _recovery(scene: Scene) -> Exhibit:
    scene.machine.recover("publish", advisories=["INTEL-SA-01313"], standard=True)
    return scene.exhibit()


def _on_patched(scene: Scene, **members: Any) -> Exhibit:
    scene.machine.patch_platform(scene.index, **members)
    return scene.exhibit()


def _on_upgraded(scene: Scene, *, launched: int, current: int, **members: Any) -> Exhibit:
    """A domain that outlived an update of the TDX module; only version 5 quotes tell."""
    scene.machine.patch_platform(scene.index, module_version=1, module_svn=launched, **members)
    td = scene.td()
    scene.machine.patch_platform(scene.index, module_svn=current)
    return scene.exhibit(td.quote(scene.report_data))
