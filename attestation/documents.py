"""TCB info (version 3) and QE identity (version 2): JSON ↔ typed facts.

Decides what is well formed: every member present, of its type and size, levels sorted and distinct. Whether a document
is signed, in force and made for this platform is decided elsewhere. Members that Intel may add later are ignored;
members that occur twice are refused.

Sources: Intel SGX and TDX Provisioning Certification Service API v4, "Get TCB info" and "Get QE identity"; Intel's
quote verification library, `AttestationParsers` (exactly 16 components, no duplicate levels, no empty level list).
"""

from __future__ import annotations

import re
from binascii import unhexlify
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final, NamedTuple, TypeVar, final

from attestation.checks import Unmet
from attestation.collateral import parse_object
from attestation.errors import MalformedEvidence
from attestation.quote import Tee
from attestation.tcb import COMPONENTS, ISV_STATES, PLATFORM_STATES, IsvLevel, TcbLevel, TcbStatus

T = TypeVar("T")

_TIME: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
_MAX_U16: Final = 0xFFFF
_MAX_U32: Final = 0xFFFF_FFFF
_MAX_LEVELS: Final = 1_000
_TCB_INFO_TEES: Final = {"SGX": Tee.SGX, "TDX": Tee.TDX}
_PLATFORM_STATUS: Final = {str(status): status for status in PLATFORM_STATES}
_ISV_STATUS: Final = {str(status): status for status in ISV_STATES}
_QE_TEES: Final = {"QE": Tee.SGX, "TD_QE": Tee.TDX}


@final
class ModuleIdentity(NamedTuple):
    """Who may sign the TDX module, and for a versioned one which SVN is how good."""

    mr_signer: bytes  # 48
    attributes: bytes  # 8
    levels: tuple[IsvLevel, ...]  # from the highest down; empty for TDX 1.0, which is judged with the platform


@final
class TcbInfo(NamedTuple):
    """What Intel says of a platform family at one time."""

    tee: Tee
    issued: int  # Unix seconds
    next_update: int
    fmspc: bytes  # 6
    pceid: bytes  # 2
    tcb_type: int
    evaluation_number: int
    module: ModuleIdentity | None  # TDX 1.0 module; None for SGX
    modules: dict[str, ModuleIdentity]  # "TDX_03" → identity, upper-case
    levels: tuple[TcbLevel, ...]  # from the highest down


@final
class QeIdentity(NamedTuple):
    """What Intel says of a quoting enclave at one time."""

    tee: Tee
    issued: int
    next_update: int
    evaluation_number: int
    misc_select: int
    misc_select_mask: int
    attributes: int  # as a little-endian number of 16 bytes, like the report's
    attributes_mask: int
    mr_signer: bytes  # 32
    isv_prod_id: int
    levels: tuple[IsvLevel, ...]  # from the highest down


@final
class WrongVersion(Unmet):
    """The document is of another version than the one that is read here."""


def parse_tcb_info(text: str) -> TcbInfo:
    """Raises Unmet, WrongVersion."""
    info = _document(text, "TCB info", 3)
    tee = _TCB_INFO_TEES.get(_text(info, "id"))
    if tee is None:
        raise Unmet(f"TCB info: id is {_text(info, 'id')[:16]!r}, know SGX and TDX")
    if (tee is Tee.TDX) is not ("tdxModule" in info):
        raise Unmet("TCB info: tdxModule belongs to TDX, and must be there")
    modules: dict[str, ModuleIdentity] = {}
    for item in _list(info, "tdxModuleIdentities", empty=True) if "tdxModuleIdentities" in info else ():
        identity = _object(item, "tdxModuleIdentities")
        name = _text(identity, "id").upper()
        if name in modules:
            raise Unmet(f"TCB info: TDX module identity {name[:16]!r} occurs twice")
        modules[name] = _module(identity, versioned=True)
    levels = sorted(
        (_tcb_level(item, tee) for item in _list(info, "tcbLevels")), key=lambda level: level.order, reverse=True
    )
    _distinct([level.order for level in levels], "TCB info")
    return TcbInfo(
        tee=tee,
        **_times(info),
        fmspc=_hex(info, "fmspc", 6),
        pceid=_hex(info, "pceId", 2),
        tcb_type=_number(info, "tcbType", _MAX_U32),
        evaluation_number=_number(info, "tcbEvaluationDataNumber", _MAX_U32),
        module=_module(_object(info["tdxModule"], "tdxModule"), versioned=False) if tee is Tee.TDX else None,
        modules=modules,
        levels=tuple(levels),
    )


def parse_qe_identity(text: str) -> QeIdentity:
    """Raises Unmet, WrongVersion."""
    identity = _document(text, "QE identity", 2)
    tee = _QE_TEES.get(_text(identity, "id"))
    if tee is None:
        raise Unmet(f"QE identity: id is {_text(identity, 'id')[:16]!r}, know QE and TD_QE")
    return QeIdentity(
        tee=tee,
        **_times(identity),
        evaluation_number=_number(identity, "tcbEvaluationDataNumber", _MAX_U32),
        # MISCSELECT is published most significant byte first, ATTRIBUTES in memory order.
        misc_select=int.from_bytes(_hex(identity, "miscselect", 4), "big"),
        misc_select_mask=int.from_bytes(_hex(identity, "miscselectMask", 4), "big"),
        attributes=int.from_bytes(_hex(identity, "attributes", 16), "little"),
        attributes_mask=int.from_bytes(_hex(identity, "attributesMask", 16), "little"),
        mr_signer=_hex(identity, "mrsigner", 32),
        isv_prod_id=_number(identity, "isvprodid", _MAX_U16),
        levels=_isv_levels(identity, "QE identity"),
    )


def _document(text: str, what: str, version: int) -> dict[str, Any]:
    try:
        document = parse_object(text, what)
    except MalformedEvidence as error:
        raise Unmet(error.detail) from error
    found = _number(document, "version", _MAX_U32)
    if found != version:
        raise WrongVersion(f"{what} is version {found}, need {version}")
    return document


def _times(document: dict[str, Any]) -> dict[str, int]:
    return {
        "issued": int(datetime.fromisoformat(_time(document, "issueDate")).timestamp()),
        "next_update": int(datetime.fromisoformat(_time(document, "nextUpdate")).timestamp()),
    }


def _module(identity: dict[str, Any], *, versioned: bool) -> ModuleIdentity:
    _hex(identity, "attributesMask", 8)  # must be there, though nothing is masked: SEAMATTRIBUTES must be zero
    return ModuleIdentity(
        mr_signer=_hex(identity, "mrsigner", 48),
        attributes=_hex(identity, "attributes", 8),
        levels=_isv_levels(identity, "TDX module identity") if versioned else (),
    )


def _tcb_level(item: object, tee: Tee) -> TcbLevel:
    level = _object(item, "tcbLevels")
    tcb = _object(level.get("tcb"), "tcb")
    if (tee is Tee.TDX) is not ("tdxtcbcomponents" in tcb):
        raise Unmet("TCB info: tdxtcbcomponents belong to TDX, and must be there")
    return TcbLevel(
        _components(tcb, "sgxtcbcomponents"),
        _number(tcb, "pcesvn", _MAX_U16),
        _components(tcb, "tdxtcbcomponents") if tee is Tee.TDX else b"",
        _status(level, _PLATFORM_STATUS),
        _time(level, "tcbDate"),
        _advisories(level),
        tcb,
    )


def _components(tcb: dict[str, Any], name: str) -> bytes:
    """The 16 SVNs as octets."""
    components = _list(tcb, name)
    if len(components) != COMPONENTS:
        raise Unmet(f"{len(components)} components in {name}, not {COMPONENTS}")
    try:
        svns = [component["svn"] for component in components]
        octets = bytes(svns)  # refuses what is not a number from 0 to 255
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise Unmet(f"a component in {name} has no svn from 0 to 255") from error
    if bool in map(type, svns):
        raise Unmet(f"an svn in {name} is a truth value")
    return octets


def _isv_levels(document: dict[str, Any], what: str) -> tuple[IsvLevel, ...]:
    levels = []
    for item in _list(document, "tcbLevels"):
        level = _object(item, "tcbLevels")
        isvsvn = _number(_object(level.get("tcb"), "tcb"), "isvsvn", _MAX_U16)
        levels.append(IsvLevel(isvsvn, _status(level, _ISV_STATUS), _time(level, "tcbDate"), _advisories(level)))
    levels.sort(key=lambda level: level.isvsvn, reverse=True)
    _distinct([level.isvsvn for level in levels], what)
    return tuple(levels)


def _distinct(keys: list[Any], what: str) -> None:
    if len(set(keys)) != len(keys):
        raise Unmet(f"{what}: two TCB levels with the same SVNs")


def _status(level: dict[str, Any], known: dict[str, TcbStatus]) -> TcbStatus:
    found = _text(level, "tcbStatus")
    status = known.get(found)
    if status is None:
        raise Unmet(f"tcbStatus is {found[:48]!r}")
    return status


def _advisories(level: dict[str, Any]) -> tuple[str, ...]:
    if "advisoryIDs" not in level:
        return ()
    found = _list(level, "advisoryIDs", empty=True)
    if not all(type(item) is str and len(item) <= 64 for item in found):
        raise Unmet("advisoryIDs are not short texts")
    return tuple(found)


def _time(document: dict[str, Any], name: str) -> str:
    """A moment exactly as YYYY-MM-DDThh:mm:ssZ, so that text order is time order."""
    found = _text(document, name)
    if not _TIME.fullmatch(found):
        raise Unmet(f"{name} is not a time like 2026-01-31T12:00:00Z")
    _convert(datetime.fromisoformat, found, name)
    return found


def _hex(document: dict[str, Any], name: str, size: int) -> bytes:
    found = _text(document, name)
    if len(found) != 2 * size:
        raise Unmet(f"{name} has {len(found)} characters, not {2 * size} hex digits")
    return _convert(unhexlify, found, name)


def _convert(how: Callable[[str], T], found: str, name: str) -> T:
    try:
        return how(found)
    except ValueError as error:
        raise Unmet(f"{name} is not what it should be") from error


def _text(document: dict[str, Any], name: str) -> str:
    found = document.get(name)
    if type(found) is not str:
        raise Unmet(f"{name} is {'not text' if name in document else 'missing'}")
    return found


def _number(document: dict[str, Any], name: str, most: int) -> int:
    found = document.get(name)
    if type(found) is not int or not 0 <= found <= most:
        raise Unmet(f"{name} is {f'not a number from 0 to {most}' if name in document else 'missing'}")
    return found


def _list(document: dict[str, Any], name: str, *, empty: bool = False) -> list[Any]:
    found = document.get(name)
    if type(found) is not list or not (found or empty) or len(found) > _MAX_LEVELS:
        raise Unmet(f"{name} is {'not a list of 1 to 1000' if name in document else 'missing'}")
    return found


def _object(found: object, what: str) -> dict[str, Any]:
    if type(found) is not dict:
        raise Unmet(f"{what} is not an object")
    return found
