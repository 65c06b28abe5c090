"""A verdict's fields ↔ JSON members: one codec per field, exact in both directions.

Decides how each field of a Verdict is written into a token, and that nothing is read which would not have been
written so. That the token is ours, and that its fields fit together, is decided in `verdict`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from operator import attrgetter
from typing import Any, Final, NamedTuple

from attestation.encoding import b64url, compact_json, from_b64url
from attestation.errors import Code, TokenRefused
from attestation.eventlog import Launch
from attestation.quote import Tee
from attestation.tcb import TcbStatus


class Codec(NamedTuple):
    write: Callable[[Any], Any]
    read: Callable[[Any], Any]  # raises ValueError for what `write` would not have written


_UTC_OFFSET: Final = timedelta()
_MAX_NUMBER: Final = 0xFFFF_FFFF
_REMEMBERED_ROW: Final = 256  # digests; a longer row would take much of the memory for all


def _same(value: Any) -> Any:
    return value


def _typed(kind: type) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if type(value) is not kind:
            raise ValueError(f"not {kind.__name__}")
        return value

    return read


def _optional(codec: Codec) -> Codec:
    def read(value: Any) -> Any:
        return None if value is None else codec.read(value)

    if codec.write is _same:
        return Codec(_same, read)
    return Codec(lambda value: None if value is None else codec.write(value), read)


def _listed(codec: Codec) -> Codec:
    def read(value: Any) -> tuple[Any, ...]:
        return tuple(map(codec.read, _typed(list)(value)))

    if codec.write is _same:
        return Codec(list, read)
    return Codec(lambda values: [codec.write(value) for value in values], read)


def _read_hex(value: Any) -> str:
    text: str = _typed(str)(value)
    if bytes.fromhex(text).hex() != text:
        raise ValueError("not lower-case hex")
    return text


def _read_number(value: Any) -> int:
    number: int = _typed(int)(value)
    if not 0 <= number <= _MAX_NUMBER:
        raise ValueError("not a number of 32 bits")
    return number


def _write_time(moment: datetime) -> str:
    return (moment if moment.tzinfo is UTC else moment.astimezone(UTC)).isoformat()


def _read_time(value: Any) -> datetime:
    text: str = _typed(str)(value)
    moment = datetime.fromisoformat(text)
    if moment.utcoffset() != _UTC_OFFSET or moment.isoformat() != text:
        raise ValueError("not a UTC time")
    return moment


def _read_launch(value: Any) -> Launch:
    digest, name = map(_typed(str), _typed(list)(value))
    return Launch(_read_hex(digest), name)


def _read_digests(value: Any) -> tuple[str, ...]:
    raw = from_b64url(_typed(str)(value))
    if len(raw) % 48:
        raise ValueError("not a row of SHA-384 digests")
    return tuple(raw[at : at + 48].hex() for at in range(0, len(raw), 48))


_TEXT: Final = Codec(_same, _typed(str))
_HEX: Final = Codec(_same, _read_hex)
_FLAG: Final = Codec(_same, _typed(bool))
_NUMBER: Final = Codec(_same, _read_number)
_BYTES: Final = Codec(b64url, lambda value: from_b64url(_typed(str)(value)))
_TIME: Final = Codec(_write_time, _read_time)
_STATUS: Final = Codec(str, TcbStatus)


def _write_digests(row: tuple[str, ...]) -> str:
    """Digests are the bulk of a token: one text per register takes two thirds of what hex would."""
    return _joined(row) if len(row) <= _REMEMBERED_ROW else _joined.__wrapped__(row)


@lru_cache(maxsize=256)
def _joined(row: tuple[str, ...]) -> str:
    """Remembered, because agents of one image have the same."""
    return b64url(b"".join(map(bytes.fromhex, row)))


_DIGESTS: Final = Codec(_write_digests, _read_digests)

CODECS: Final[dict[str, Codec]] = {
    "subject": _TEXT,
    "tenant": _TEXT,
    "role": _TEXT,
    "tee": Codec(str, Tee),
    "tcb_status": _STATUS,
    "platform_tcb_status": _STATUS,
    "module_tcb_status": _optional(_STATUS),
    "qe_tcb_status": _STATUS,
    "advisory_ids": _listed(_TEXT),
    "tcb_date": _TIME,
    "tcb_evaluation_number": _NUMBER,
    "qe_evaluation_number": _NUMBER,
    "fmspc": _HEX,
    "ppid": _HEX,
    "piid": _optional(_HEX),
    "dynamic_platform": _optional(_FLAG),
    "cached_keys": _optional(_FLAG),
    "smt_enabled": _optional(_FLAG),
    "mr_td": _HEX,
    "mr_seam": _HEX,
    "rtmrs": _listed(_HEX),
    "mr_config_id": _HEX,
    "mr_owner": _HEX,
    "mr_owner_config": _HEX,
    "mr_service_td": _HEX,
    "td_attributes": _HEX,
    "xfam": _HEX,
    "mr_enclave": _HEX,
    "mr_signer": _HEX,
    "report_data": _HEX,
    "launches": _listed(Codec(list, _read_launch)),
    "event_log_present": _FLAG,
    "event_digests": _listed(_DIGESTS),
    "allowances": _listed(_TEXT),
    "identity_key": _BYTES,
    "jkt": _TEXT,
    "suite": _TEXT,
    "sealing_key": _BYTES,
    "nonce": _HEX,
    "broker_id": _HEX,
    "trust_file_digest": _HEX,
    "init_data_digest": _HEX,
    "quote_digest": _HEX,
    "collateral_digest": _HEX,
    "root_sha256": _HEX,
    "simulated": _FLAG,
    "verified_at": _TIME,
    "valid_until": _TIME,
    "compared": _FLAG,
    "admission": _FLAG,
}
"""In the order of Verdict's fields."""


_fields: Final = attrgetter(*CODECS)
_CHANGED: Final = tuple((name, codec.write) for name, codec in CODECS.items() if codec.write is not _same)


def write(verdict: object) -> dict[str, Any]:
    """JSON members of every field."""
    told = dict(zip(CODECS, _fields(verdict), strict=True))
    for name, change in _CHANGED:
        told[name] = change(told[name])
    return told


_OF_ONE: Final = frozenset(
    ("subject", "report_data", "identity_key", "jkt", "sealing_key", "nonce", "quote_digest", "verified_at")
)
"""One agent's own at one moment. All of it is written without a character that JSON would have to escape: hex,
base64url, a time, and a subject of role, tenant and thumbprint, whose alphabets a Binding has checked."""
_alike: Final = attrgetter(*(name for name in CODECS if name not in _OF_ONE))


_own: Final = tuple((attrgetter(name), codec.write) for name, codec in CODECS.items() if name in _OF_ONE)


def to_json(verdict: object, event_digests: tuple[tuple[str, ...], ...]) -> str:
    """`write` as `compact_json` would put it, for a verdict that is one agent's. What agents have in common is written
    once for all of them; `event_digests` are the verdict's.
    """
    common = _common if sum(map(len, event_digests)) <= _REMEMBERED_ROW else _common.__wrapped__
    *pieces, end = common(_alike(verdict))
    filled = [piece + change(get(verdict)) for piece, (get, change) in zip(pieces, _own, strict=True)]
    return "".join(filled) + end


@lru_cache(maxsize=64)
def _common(values: tuple[Any, ...]) -> tuple[str, ...]:
    """The text up to each of the values that are one agent's own, and after the last."""
    told = iter(values)
    pieces, text = [], "{"
    for name, codec in CODECS.items():
        text += f'"{name}":'
        if name in _OF_ONE:
            pieces.append(text + '"')
            text = '",'
        else:
            text += compact_json(codec.write(next(told))).decode() + ","
    return (*pieces, text[:-1] + "}")


def read(found: object, *, without: Collection[str] = ()) -> dict[str, Any]:
    """Every field's value, but of those that belong to nobody's verdict. Raises TokenRefused token.claims_invalid."""
    names = [name for name in CODECS if name not in without]
    if not isinstance(found, dict) or found.keys() != set(names):
        raise TokenRefused(Code.TOKEN_CLAIMS, "the verdict inside has not exactly its members")
    values: dict[str, Any] = {}
    for name in names:
        try:
            values[name] = CODECS[name].read(found[name])
        except ValueError as error:
            raise TokenRefused(Code.TOKEN_CLAIMS, f"{name}: {error}") from error
    return values
