"""Faults in TCB info and QE identity: what they say, whether they were signed, and when."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, Final

from attestation.errors import Code
from simulator.registry import COLLATERAL, Exhibit, fault
from simulator.scene import DAY_S, Scene

_FOUR_MIB: Final = 4 << 20


@fault("oversized-collateral", Code.COLLATERAL_TOO_LARGE, "good collateral with 4 MiB of white space", COLLATERAL)
def _oversized(scene: Scene) -> Exhibit:
    return scene.exhibit(collateral=scene.documents().to_json() + " " * _FOUR_MIB)


@fault("collateral-rubbish", Code.COLLATERAL_MALFORMED, "the collateral is cut in half", COLLATERAL)
def _rubbish(scene: Scene) -> Exhibit:
    text = scene.documents().to_json()
    return scene.exhibit(collateral=text[: len(text) // 2])


@fault("collateral-without-crl", Code.COLLATERAL_MALFORMED, "the PCK CRL was left out of the collateral", COLLATERAL)
def _without_crl(scene: Scene) -> Exhibit:
    members = json.loads(scene.documents().to_json())
    del members["pck_crl"]
    return scene.exhibit(collateral=json.dumps(members))


@fault("duplicate-member", Code.COLLATERAL_MALFORMED, "signed TCB info that names its FMSPC twice", COLLATERAL)
def _duplicate(scene: Scene) -> Exhibit:
    documents = scene.documents()
    text = documents.tcb_info.replace('"fmspc":', '"fmspc":"000000000000","fmspc":', 1)
    text, signature = scene.signed(text)
    return scene.exhibit(collateral=replace(documents, tcb_info=text, tcb_info_signature=signature))


@fault("empty-qe-signer", Code.COLLATERAL_MALFORMED, "signed QE identity with an empty MRSIGNER", COLLATERAL)
def _empty_signer(scene: Scene) -> Exhibit:
    return scene.exhibit(collateral=scene.qe_identity(lambda identity: identity.update(mrsigner="")))


@fault("no-tcb-levels", Code.COLLATERAL_MALFORMED, "signed TCB info without TCB levels", COLLATERAL)
def _no_levels(scene: Scene) -> Exhibit:
    return scene.exhibit(collateral=scene.tcb_info(lambda info: info.update(tcbLevels=[])))


@fault("edited-tcb-info", Code.COLLATERAL_SIGNATURE, "an OutOfDate level was edited to read UpToDate", COLLATERAL)
def _edited(scene: Scene) -> Exhibit:
    documents = scene.documents()
    text = documents.tcb_info.replace('"tcbStatus":"OutOfDate"', '"tcbStatus":"UpToDate"', 1)
    return scene.exhibit(collateral=replace(documents, tcb_info=text))


@fault("edited-qe-identity", Code.COLLATERAL_SIGNATURE, "the QE identity's MRSIGNER was edited", COLLATERAL)
def _edited_identity(scene: Scene) -> Exhibit:
    documents = scene.documents()
    edited = json.loads(documents.qe_identity) | {"mrsigner": "AA" * 32}
    return scene.exhibit(collateral=replace(documents, qe_identity=json.dumps(edited, separators=(",", ":"))))


@fault(
    "sorted-tcb-info", Code.COLLATERAL_SIGNATURE, "some cache parsed TCB info and wrote it again, sorted", COLLATERAL
)
def _sorted(scene: Scene) -> Exhibit:
    documents = scene.documents()
    text = json.dumps(json.loads(documents.tcb_info), sort_keys=True, separators=(",", ":"))
    return scene.exhibit(collateral=replace(documents, tcb_info=text))


@fault("tcb-info-v2", Code.COLLATERAL_VERSION, "TCB info of version 2, which knows no TDX", COLLATERAL)
def _version(scene: Scene) -> Exhibit:
    return scene.exhibit(collateral=scene.tcb_info(lambda info: info.update(version=2)))


@fault("sgx-tcb-info", Code.COLLATERAL_TEE, "TCB info for SGX beside a TD's quote", COLLATERAL)
def _sgx_info(scene: Scene) -> Exhibit:
    sgx = scene.documents("sgx")
    changed = replace(scene.documents(), tcb_info=sgx.tcb_info, tcb_info_signature=sgx.tcb_info_signature)
    return scene.exhibit(collateral=changed)


@fault(
    "sgx-qe-identity", Code.COLLATERAL_TEE, "the identity of the SGX quoting enclave beside a TD's quote", COLLATERAL
)
def _sgx_identity(scene: Scene) -> Exhibit:
    sgx = scene.documents("sgx")
    changed = replace(scene.documents(), qe_identity=sgx.qe_identity, qe_identity_signature=sgx.qe_identity_signature)
    return scene.exhibit(collateral=changed)


@fault("unknown-tcb-type", Code.COLLATERAL_TCB_TYPE, "TCB info with components of an unknown meaning", COLLATERAL)
def _tcb_type(scene: Scene) -> Exhibit:
    return scene.exhibit(collateral=scene.tcb_info(lambda info: info.update(tcbType=1)))


@fault("other-fmspc", Code.COLLATERAL_FMSPC, "TCB info of another platform family", COLLATERAL)
def _fmspc(scene: Scene) -> Exhibit:
    other = "B0C06F000000" if scene.platform.spec.fmspc != "B0C06F000000" else "50806F000000"
    return scene.exhibit(collateral=scene.documents(fmspc=other))


@fault("other-pceid", Code.COLLATERAL_PCEID, "TCB info for another provisioning enclave", COLLATERAL)
def _pceid(scene: Scene) -> Exhibit:
    return scene.exhibit(collateral=scene.tcb_info(lambda info: info.update(pceId="0001")))


@fault("collateral-of-tomorrow", Code.COLLATERAL_NOT_YET_VALID, "TCB info issued tomorrow", COLLATERAL)
def _tomorrow(scene: Scene) -> Exhibit:
    return scene.exhibit(collateral=scene.tcb_info(lambda info: _dated(info, scene, 1)))


@fault("expired-tcb-info", Code.COLLATERAL_EXPIRED, "TCB info of 40 days ago", COLLATERAL)
def _expired(scene: Scene) -> Exhibit:
    return scene.exhibit(collateral=scene.tcb_info(lambda info: _dated(info, scene, -40)))


@fault("expired-qe-identity", Code.COLLATERAL_EXPIRED, "QE identity of 40 days ago", COLLATERAL)
def _expired_identity(scene: Scene) -> Exhibit:
    return scene.exhibit(collateral=scene.qe_identity(lambda identity: _dated(identity, scene, -40)))


@fault("stale-collateral", Code.CRL_EXPIRED, "everything of 31 days ago: the PCS stopped issuing", COLLATERAL)
def _stale(scene: Scene) -> Exhibit:
    return scene.exhibit(collateral=scene.documents(at=scene.at - 32 * DAY_S))


def _dated(document: dict[str, Any], scene: Scene, day: int) -> None:
    """Issued that many days from now, for 30 days."""
    for name, offset in (("issueDate", day), ("nextUpdate", day + 30)):
        document[name] = scene.day(offset).strftime("%Y-%m-%dT%H:%M:%SZ")
