"""TCB info, enclave identities and revocation lists as signed documents, exactly as the PCS emits them.

Decides member order, dates and encoding: compact JSON, hex in upper case, every document valid for 30 days (the root's
CRL for a year) and reissued daily at 00:00 UTC, an hour late so that nobody's clock is behind the issue date. Which
levels stand in it is decided by `recovery`. Sources: Intel PCS API v4; `pki` for the lists.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from simulator.catalogue import FMSPCS, EvaluationSet, Level
from simulator.errors import SimulatorCode, SimulatorError
from simulator.pki import Hierarchy, RevocationList, sign_crl
from simulator.platform import components
from simulator.recovery import Ledger
from simulator.seed import SigningKey, sign

DAY_S: Final = 86_400
VALID_S: Final = 30 * DAY_S
ROOT_CRL_VALID_S: Final = 365 * DAY_S
_DELAY_S: Final = 3_600
_EPOCH_2000_S: Final = 946_684_800

_SGX_LABELS: Final[dict[int, tuple[str, str | None]]] = {
    0: ("BIOS", "Early Microcode Update"),
    1: ("OS/VMM", "SGX Late Microcode Update"),
    2: ("OS/VMM", "TXT SINIT"),
    3: ("BIOS", None),
    4: ("BIOS", None),
    5: ("BIOS", None),
    7: ("OS/VMM", "SEAMLDR ACM"),
}
_TDX_LABELS: Final[dict[int, tuple[str, str | None]]] = {
    0: ("OS/VMM", "TDX Module"),
    1: ("OS/VMM", "TDX Module"),
    2: ("OS/VMM", "TDX Late Microcode Update"),
}
_TDX_MODULE_1_0_SVN: Final = 5
"""What a level asks of a TDX 1.0 module; modules from version 1 on have identities of their own."""
_MODULE: Final = {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "FF" * 8}
_IDENTITIES: Final = {
    "TD_QE": ("DC9E2A7C6F948F17474E34A7FC43ED030F7C1563F1BABDDF6340C82E0E54A8C5", 2),
    "QE": ("8C4F5775D796503E96137F77C68A829A0056AC8DED70140B081B094490C57BFF", 1),
    "QVE": ("8C4F5775D796503E96137F77C68A829A0056AC8DED70140B081B094490C57BFF", 2),
}
Document = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Documents:
    """The nine members that a verifier needs beside a quote. Texts are exactly what was signed."""

    tcb_info: str
    tcb_info_signature: bytes
    tcb_info_issuer_chain: str
    qe_identity: str
    qe_identity_signature: bytes
    qe_identity_issuer_chain: str
    pck_crl: bytes
    pck_crl_issuer_chain: str
    root_ca_crl: bytes

    def to_json(self) -> str:
        """The collateral file: CRLs and signatures in hex."""
        members = {name: getattr(self, name) for name in self.__slots__}
        return json.dumps({name: v.hex() if isinstance(v, bytes) else v for name, v in members.items()}, indent=1)


def issued_at(ledger: Ledger) -> int:
    """When what is served at the ledger's moment was issued: last midnight but for the delay, or the last change."""
    return max((ledger.at - _DELAY_S) // DAY_S * DAY_S, ledger.changed_at)


def tcb_info(ledger: Ledger, evaluation: EvaluationSet, tee: str, fmspc: str) -> Document:
    """The `tcbInfo` object. Raises SimulatorError collateral.unknown: no such FMSPC for that TEE."""
    ladder = evaluation.levels.get(f"{tee}/{fmspc}")
    if ladder is None:
        raise SimulatorError(SimulatorCode.COLLATERAL_UNKNOWN, f"no {tee} TCB info for FMSPC {fmspc}")
    document: Document = {"id": tee.upper(), "version": 3}
    document |= _dates(ledger)
    document |= {"fmspc": fmspc, "pceId": "0000", "tcbType": 0, "tcbEvaluationDataNumber": evaluation.number}
    if tee == "tdx":
        document["tdxModule"] = dict(_MODULE)
        document["tdxModuleIdentities"] = [
            {"id": name.rpartition("/")[2], **_MODULE, "tcbLevels": [_isv_level(level) for level in levels]}
            for name, levels in evaluation.levels.items()
            if name.startswith(f"module/{fmspc}/")
        ]
    document["tcbLevels"] = [_platform_level(level, tee) for level in ladder]
    return document


def enclave_identity(ledger: Ledger, evaluation: EvaluationSet, name: str) -> Document:
    """The `enclaveIdentity` object of TD_QE, QE or QVE."""
    signer, prod_id = _IDENTITIES[name]
    document: Document = {"id": name, "version": 2}
    document |= _dates(ledger)
    document |= {
        "tcbEvaluationDataNumber": evaluation.number,
        "miscselect": "00000000",
        "miscselectMask": "FFFFFFFF",
        "attributes": "11000000000000000000000000000000",
        "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
        "mrsigner": signer,
        "isvprodid": prod_id,
        "tcbLevels": [_isv_level(level) for level in evaluation.levels[f"qe/{name}"]],
    }
    return document


def evaluation_numbers(ledger: Ledger, tee: str) -> Document:
    """The `tcbEvaluationDataNumbers` object: every set that is served, newest first."""
    served = sorted((s for s in ledger.sets if s.early_from <= ledger.at), key=lambda s: -s.number)
    return {
        "id": tee.upper(),
        "version": 1,
        **_dates(ledger),
        "tcbEvalNumbers": [
            {"tcbEvaluationDataNumber": s.number, "tcbRecoveryEventDate": s.tcb_date, "tcbDate": s.tcb_date}
            for s in served
        ],
    }


def signed_text(document: Document, key: SigningKey) -> tuple[str, bytes]:
    """Compact JSON in the order of the members, and the signature over exactly those bytes."""
    text = json.dumps(document, separators=(",", ":"))
    return text, sign(key, text.encode())


def pck_crl(ledger: Ledger, pki: Hierarchy, ca: str) -> bytes:
    """DER, for 30 days."""
    revoked = {serial: _time(at) for (issuer, serial), at in ledger.revoked_pck.items() if issuer == ca}
    return sign_crl(pki.ca(ca), _list(ledger, revoked, VALID_S))


def root_crl(ledger: Ledger, pki: Hierarchy) -> bytes:
    """DER, for a year."""
    serials = {
        "platform": pki.platform.serial,
        "processor": pki.processor.serial,
        "tcb-signing": pki.tcb_signing.serial,
    }
    revoked = {serials[name]: _time(at) for name, at in ledger.revoked_by_root.items()}
    return sign_crl(pki.root, _list(ledger, revoked, ROOT_CRL_VALID_S))


def documents(
    ledger: Ledger,
    pki: Hierarchy,
    *,
    tee: str,
    fmspc: str,
    ca: str | None = None,
    tcb_set: EvaluationSet,
    identity_set: EvaluationSet,
) -> Documents:
    """All nine members. The two sets are one and the same unless somebody mixes them on purpose."""
    ca = ca or FMSPCS.get(fmspc, ("", "platform"))[1]
    info, info_signature = signed_text(tcb_info(ledger, tcb_set, tee, fmspc), pki.tcb_signing.key)
    name = "TD_QE" if tee == "tdx" else "QE"
    identity, identity_signature = signed_text(enclave_identity(ledger, identity_set, name), pki.tcb_signing.key)
    chain = pki.tcb_chain.decode()
    return Documents(
        tcb_info=info,
        tcb_info_signature=info_signature,
        tcb_info_issuer_chain=chain,
        qe_identity=identity,
        qe_identity_signature=identity_signature,
        qe_identity_issuer_chain=chain,
        pck_crl=pck_crl(ledger, pki, ca),
        pck_crl_issuer_chain=(pki.ca(ca).pem + pki.root.pem).decode(),
        root_ca_crl=root_crl(ledger, pki),
    )


def _dates(ledger: Ledger) -> Document:
    issued = issued_at(ledger)
    return {"issueDate": _text(issued), "nextUpdate": _text(issued + VALID_S)}


def _list(ledger: Ledger, revoked: dict[int, datetime], valid_s: int) -> RevocationList:
    """CRL numbers grow with the day and with every event, so that an older list can be told."""
    issued = issued_at(ledger)
    number = max(issued - _EPOCH_2000_S, 0) // DAY_S * 10_000 + ledger.revision + 1
    return RevocationList(
        number=number, this_update=_time(issued), next_update=_time(issued + valid_s), revoked=revoked
    )


def _platform_level(level: Level, tee: str) -> Document:
    tcb: Document = {
        "sgxtcbcomponents": _components(components(level.svn), _SGX_LABELS if tee == "tdx" else {}),
        "pcesvn": level.pcesvn,
    }
    if tee == "tdx":
        svns = bytes((_TDX_MODULE_1_0_SVN, 0, level.svn)) + bytes(13)
        tcb["tdxtcbcomponents"] = _components(svns, _TDX_LABELS)
    return _level(level, tcb)


def _components(svns: bytes, labels: dict[int, tuple[str, str | None]]) -> list[Document]:
    found: list[Document] = []
    for index, svn in enumerate(svns):
        category, kind = labels.get(index, (None, None))
        component: Document = {"svn": svn}
        if category is not None:
            component["category"] = category
        if kind is not None:
            component["type"] = kind
        found.append(component)
    return found


def _isv_level(level: Level) -> Document:
    return _level(level, {"isvsvn": level.svn})


def _level(level: Level, tcb: Document) -> Document:
    document: Document = {"tcb": tcb, "tcbDate": level.date, "tcbStatus": level.status}
    if level.advisories:
        document["advisoryIDs"] = list(level.advisories)
    return document


def _time(at: int) -> datetime:
    return datetime.fromtimestamp(at, UTC)


def _text(at: int) -> str:
    return _time(at).strftime("%Y-%m-%dT%H:%M:%SZ")
