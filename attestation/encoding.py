"""Unambiguous encodings: base64url, length-prefixed fields, and JSON that has one meaning.

Decides what counts as *the* encoding of a value: a second way to write the same thing is refused, because whatever is
signed, hashed or looked up must not have two spellings. Errors are ValueError; callers turn them into their own codes.

Sources: RFC 4648 §5 (base64url, here always without padding); RFC 8259 (JSON).
"""

from __future__ import annotations

import binascii
import json
from collections.abc import Sequence
from typing import Any, Final, NoReturn

MAX_DEPTH: Final = 8
MAX_VALUES: Final = 50_000
"""Values in one JSON text, nearly: its commas and opening brackets are counted before anything is built."""
MAX_DIGITS: Final = 20
"""Of one number; 64 bits need no more. It also bounds what arithmetic with a number can cost or overflow."""
_FROM_URL: Final = bytes.maketrans(b"-_+/=", b"+/!!!")  # what only the ordinary alphabet has becomes what nobody takes
_PADDING: Final = (b"", b"===", b"==", b"=")  # by characters beyond a group of four
_LAST: Final = ("", "", "AQgw", "AEIMQUYcgkosw048")  # by the same: what ends a text whose spare low bits are clear
_COMPACT: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def b64url(data: bytes) -> str:
    """base64url without padding."""
    return binascii.b2a_base64(data, newline=False).rstrip(b"=").replace(b"+", b"-").replace(b"/", b"_").decode()


def from_b64url(text: str) -> bytes:
    """The inverse of `b64url`, and of nothing else: padding, blanks, `+`, `/` and stray low bits are ValueError."""
    beyond = len(text) % 4
    try:
        data = binascii.a2b_base64(text.encode("ascii").translate(_FROM_URL) + _PADDING[beyond], strict_mode=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise ValueError("not base64url") from error
    if beyond and text[-1] not in _LAST[beyond]:
        raise ValueError("not canonical base64url")
    return data


def framed(*fields: bytes) -> bytes:
    """Each field after its length (u32, big-endian): different lists of fields never have the same encoding."""
    return b"".join([len(field).to_bytes(4, "big") + field for field in fields])


def unframed(raw: bytes) -> list[bytes]:
    """The fields that `framed` was given. ValueError for what it would not have written."""
    fields, at = [], 0
    while at < len(raw):
        start = at + 4
        at = start + int.from_bytes(raw[at:start], "big")
        if at > len(raw) or start > len(raw):
            raise ValueError("a field ends behind the end")
        fields.append(raw[start:at])
    return fields


class TooManyValues(ValueError):
    """The JSON text may be well formed, but would take more time and memory than its length suggests."""


def strict_json(text: str | bytes, *, max_depth: int = MAX_DEPTH, max_values: int = MAX_VALUES) -> Any:
    """JSON made of objects, lists, text, integers, booleans and null.

    ValueError for anything else: a name that occurs twice, a number with a fraction or exponent or more than MAX_DIGITS
    digits, NaN, text that is not Unicode, bytes that are not UTF-8, more nesting than `max_depth`. TooManyValues, which
    is one, for more commas and brackets (in texts, too) than `max_values`.
    """
    decoded = text.decode("utf-8") if isinstance(text, bytes) else text
    if len(decoded) > max_values and sum(map(decoded.count, ",[{")) > max_values:
        raise TooManyValues(f"more than {max_values} values")
    try:
        value = _STRICT.decode(decoded)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    _check_depth(value, max_depth)
    if "\\u" in decoded or not (decoded.isascii() or isinstance(text, bytes)):  # else every text is Unicode
        _check_texts(value)
    return value


def compact_json(value: object) -> bytes:
    """How this project writes JSON that is hashed or signed: no blanks, UTF-8, members in the order given.

    ValueError for text that is not Unicode (a lone surrogate) and for NaN and infinities.
    """
    return _COMPACT.encode(value).encode()


def _members(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a JSON name occurs twice")
    return made


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a JSON number has more than {MAX_DIGITS} digits")
    return int(text)


def _refuse_number(text: str) -> NoReturn:
    raise ValueError("a JSON number is not an integer")


_STRICT: Final = json.JSONDecoder(
    object_pairs_hook=_members, parse_int=_integer, parse_float=_refuse_number, parse_constant=_refuse_number
)


def _check_depth(value: object, depth: int) -> None:
    if isinstance(value, dict | list):
        if depth == 0:
            raise ValueError("nested too deeply")
        for item in value.values() if isinstance(value, dict) else value:
            if type(item) is dict or type(item) is list:
                _check_depth(item, depth - 1)


def _check_texts(value: object) -> None:
    """A lone surrogate is a UnicodeEncodeError, which is a ValueError."""
    if isinstance(value, str):
        value.encode()
    elif isinstance(value, dict | list):
        if isinstance(value, dict):
            "".join(value).encode()  # the names
        for item in value.values() if isinstance(value, dict) else value:
            _check_texts(item)
