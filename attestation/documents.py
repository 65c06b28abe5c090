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
from operator import attrgetter, itemgetter
from typing import Any, Final, NamedTuple, TypeVar, final

from attestation.checks import Unmet
from attestation.collateral import PLAIN_DECODER, SMALL, parse_object
from attestation.errors import MalformedEvidence
from attestation.quote import Tee
from attestation.tcb import COMPONENTS, ISV_STATES, PLATFORM_STATES, IsvLevel, TcbLevel

T = TypeVar("T")

_TIME: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
_SVN: Final = itemgetter("svn")
_IN_TIME: Final = 2  # colons
_MAX_U16: Final = 0xFFFF
_MAX_U32: Final = 0xFFFF_FFFF
_MAX_ITEMS: Final = 200  # real TCB info has up to 21 levels, a level up to 28 advisories
_MAX_ADVISORY: Final = 64  # characters
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
    found = _at_once(_tcb_info, _tcb_info_colons, text, 3)
    return found if found is not None else _read(_tcb_info, text, "TCB info", 3)


def parse_qe_identity(text: str) -> QeIdentity:
    """Raises Unmet, WrongVersion."""
    found = _at_once(_qe_identity, _qe_identity_colons, text, 2)
    return found if found is not None else _read(_qe_identity, text, "QE identity", 2)


def _at_once(
    read: Callable[[dict[str, Any]], T], colons: Callable[[dict[str, Any]], int], text: str, version: int
) -> T | None:
    """What `_read` answers, where all colons of the text are found again at the places that are read; else None.

    Looking at every object for names that occur twice costs as much as the rest of the reading. But a text without
    escapes has a colon for each of its members, and a member that hides another takes the other's colon away.
    """
    if len(text) > SMALL or "\\" in text:
        return None
    try:
        document = PLAIN_DECODER.decode(text)
        if _number(document["version"], _MAX_U32) != version:
            return None
        value = read(document)
        return value if colons(document) == text.count(":") else None
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return None


def _read(read: Callable[[dict[str, Any]], T], text: str, what: str, version: int) -> T:
    """Members are taken by name and converted straight away: what is missing or of another type fails there."""
    try:
        document = parse_object(text, what)
        found = _number(document["version"], _MAX_U32)
        if found != version:
            raise WrongVersion(f"{what} is version {found}, need {version}")
        return read(document)
    except MalformedEvidence as error:
        raise Unmet(error.detail) from error
    except KeyError as error:
        raise Unmet(f"{what}: {str(error)[:80]} is missing or unknown") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise Unmet(f"{what}: {str(error)[:200]}") from error


def _tcb_info(info: dict[str, Any]) -> TcbInfo:
    tee = _TCB_INFO_TEES[info["id"]]
    if (tee is Tee.TDX) is not ("tdxModule" in info):
        raise ValueError("tdxModule belongs to TDX, and must be there")
    modules: dict[str, ModuleIdentity] = {}
    for identity in _list(info.get("tdxModuleIdentities", [])):
        name = str.upper(identity["id"])
        if name in modules:
            raise ValueError("a TDX module identity occurs twice")
        modules[name] = _module(identity, _isv_levels(identity["tcbLevels"]))
    levels = [_tcb_level(level, tee) for level in _list(info["tcbLevels"], least=1)]
    orders = {level.order for level in levels}
    if len(orders) != len(levels):
        raise ValueError("two TCB levels with the same SVNs")
    levels.sort(key=attrgetter("order"), reverse=True)
    return TcbInfo(
        tee=tee,
        issued=_moment(info["issueDate"]),
        next_update=_moment(info["nextUpdate"]),
        fmspc=_octets(info["fmspc"], 6),
        pceid=_octets(info["pceId"], 2),
        tcb_type=_number(info["tcbType"], _MAX_U32),
        evaluation_number=_number(info["tcbEvaluationDataNumber"], _MAX_U32),
        module=_module(info["tdxModule"], ()) if tee is Tee.TDX else None,
        modules=modules,
        levels=tuple(levels),
    )


def _qe_identity(identity: dict[str, Any]) -> QeIdentity:
    return QeIdentity(
        tee=_QE_TEES[identity["id"]],
        issued=_moment(identity["issueDate"]),
        next_update=_moment(identity["nextUpdate"]),
        evaluation_number=_number(identity["tcbEvaluationDataNumber"], _MAX_U32),
        # Published in memory order, as Intel's library and others read it; so far it has always been zero.
        misc_select=int.from_bytes(_octets(identity["miscselect"], 4), "little"),
        misc_select_mask=int.from_bytes(_octets(identity["miscselectMask"], 4), "little"),
        attributes=int.from_bytes(_octets(identity["attributes"], 16), "little"),
        attributes_mask=int.from_bytes(_octets(identity["attributesMask"], 16), "little"),
        mr_signer=_octets(identity["mrsigner"], 32),
        isv_prod_id=_number(identity["isvprodid"], _MAX_U16),
        levels=_isv_levels(identity["tcbLevels"]),
    )


def _tcb_info_colons(info: dict[str, Any]) -> int:
    """At the places that `_tcb_info` has read: one in each member, and those in the times."""
    found = len(info) + 2 * _IN_TIME + len(info.get("tdxModule", ()))
    for level in info["tcbLevels"]:
        tcb = level["tcb"]
        found += len(level) + _IN_TIME + len(tcb) + sum(map(len, tcb["sgxtcbcomponents"]))
        found += sum(map(len, tcb.get("tdxtcbcomponents", ())))
    return found + sum([len(module) + _isv_colons(module) for module in info.get("tdxModuleIdentities", ())])


def _qe_identity_colons(identity: dict[str, Any]) -> int:
    return len(identity) + 2 * _IN_TIME + _isv_colons(identity)


def _isv_colons(identity: dict[str, Any]) -> int:
    return sum([len(level) + _IN_TIME + len(level["tcb"]) for level in identity["tcbLevels"]])


def _module(identity: dict[str, Any], levels: tuple[IsvLevel, ...]) -> ModuleIdentity:
    _octets(identity["attributesMask"], 8)  # must be there, though nothing is masked: SEAMATTRIBUTES must be zero
    return ModuleIdentity(_octets(identity["mrsigner"], 48), _octets(identity["attributes"], 8), levels)


def _tcb_level(level: dict[str, Any], tee: Tee) -> TcbLevel:
    tcb = level["tcb"]
    if (tee is Tee.TDX) is not ("tdxtcbcomponents" in tcb):
        raise ValueError("tdxtcbcomponents belong to TDX, and must be there")
    return TcbLevel(
        _components(tcb["sgxtcbcomponents"]),
        _number(tcb["pcesvn"], _MAX_U16),
        _components(tcb["tdxtcbcomponents"]) if tee is Tee.TDX else b"",
        _PLATFORM_STATUS[level["tcbStatus"]],
        _time(level["tcbDate"]),
        _advisories(level),
        tcb,
    )


def _isv_levels(levels: object) -> tuple[IsvLevel, ...]:
    found = [
        IsvLevel(
            _number(level["tcb"]["isvsvn"], _MAX_U16),
            _ISV_STATUS[level["tcbStatus"]],
            _time(level["tcbDate"]),
            _advisories(level),
        )
        for level in _list(levels, least=1)
    ]
    if len({level.isvsvn for level in found}) != len(found):
        raise ValueError("two TCB levels with the same ISVSVN")
    found.sort(key=attrgetter("isvsvn"), reverse=True)
    return tuple(found)


def _components(components: object) -> bytes:
    """The 16 SVNs as octets."""
    svns = list(map(_SVN, _list(components)))
    if len(svns) != COMPONENTS:
        raise ValueError(f"{len(svns)} TCB components, not {COMPONENTS}")
    if bool in map(type, svns):
        raise TypeError("an svn is a truth value")
    return bytes(svns)  # refuses what is not a number from 0 to 255


def _advisories(level: dict[str, Any]) -> tuple[str, ...]:
    if "advisoryIDs" not in level:
        return ()
    found = _list(level["advisoryIDs"])
    together = "".join(found)  # refuses what is not text
    if not (together.isascii() and together.isprintable()) or max(map(len, found), default=0) > _MAX_ADVISORY:
        raise ValueError("advisoryIDs are not short texts in ASCII")
    return tuple(found)


def _time(found: str) -> str:
    """A moment exactly as YYYY-MM-DDThh:mm:ssZ, so that text order is time order."""
    if not _TIME.fullmatch(found):
        raise ValueError("a time is not like 2026-01-31T12:00:00Z")
    datetime.fromisoformat(found)  # refuses a 30th of February
    return found


def _moment(found: str) -> int:
    """Unix seconds."""
    return int(datetime.fromisoformat(_time(found)).timestamp())


def _octets(found: str, size: int) -> bytes:
    """Raises TypeError for what is not text, too."""
    if len(found) != 2 * size:
        raise ValueError(f"something is not {2 * size} hex digits")
    return unhexlify(found)


def _number(found: object, most: int) -> int:
    if type(found) is not int or not 0 <= found <= most:
        raise ValueError(f"something is not a number from 0 to {most}")
    return found


def _list(found: object, *, least: int = 0) -> list[Any]:
    if type(found) is not list or not least <= len(found) <= _MAX_ITEMS:
        raise ValueError(f"something is not a list of {least} to {_MAX_ITEMS}")
    return found
