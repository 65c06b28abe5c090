"""Reading a JSON body member by member: every type checked, every length bounded, nothing unknown let through.

`Reader` is the only way in which a body's members reach a dataclass. Bytes travel as base64url without padding.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from attestation.encoding import from_b64url as unb64u
from attestation.encoding import strict_json
from broker.wire.errors import WireCode, WireError

T = TypeVar("T")
MAX_INT: Final = 2**53 - 1  # what every JSON implementation keeps exactly
NONCE_LEN: Final = 32  # bytes that nobody guesses and nobody draws twice
MAX_TOKEN: Final = 64 * 1024  # a compact JWS: an attestation result with its claims has some 4 KiB
_MISSING: Final = object()


def parse_object(raw: bytes, *, max_len: int) -> dict[str, Any]:
    """One JSON object. Raises WireError: body.too_large, body.not_json."""
    if len(raw) > max_len:
        raise WireError(WireCode.BODY_TOO_LARGE, f"{len(raw)} bytes, at most {max_len}")
    try:
        found = strict_json(raw)
    except ValueError as error:
        raise WireError(WireCode.BODY_NOT_JSON, type(error).__name__) from None
    if not isinstance(found, dict):
        raise WireError(WireCode.BODY_NOT_JSON, f"a JSON {type(found).__name__}, not an object")
    return found


class Reader:
    """One body being read. `end()` refuses what nobody asked for; answers skip it, so that a newer broker may add."""

    __slots__ = ("_members", "_what")

    def __init__(self, members: object, what: str) -> None:
        if not isinstance(members, Mapping):
            raise WireError(WireCode.BODY_FIELD_INVALID, f"{what} must be an object")
        self._members: dict[str, Any] = dict(members)
        self._what = what

    def _take(self, name: str, default: object = _MISSING) -> Any:
        found = self._members.pop(name, default)
        if found is _MISSING:
            raise WireError(WireCode.BODY_FIELD_MISSING, f"{self._what}.{name}")
        return found

    def _bad(self, name: str, need: str) -> WireError:
        return WireError(WireCode.BODY_FIELD_INVALID, f"{self._what}.{name} must be {need}")

    def raw(self, name: str, *, size: int | None = None, max_len: int = 0) -> bytes:
        """base64url bytes: exactly `size`, or at most `max_len`."""
        text = self._take(name)
        limit = size if size is not None else max_len
        need = f"base64url of {'exactly' if size is not None else 'at most'} {limit} bytes"
        if not isinstance(text, str) or len(text) > limit * 4 // 3 + 4:
            raise self._bad(name, need)
        try:
            found = unb64u(text)
        except ValueError:
            raise self._bad(name, need) from None
        if len(found) > limit or (size is not None and len(found) != size):
            raise self._bad(name, need)
        return found

    def raw_or_none(self, name: str, *, size: int | None = None, max_len: int = 0) -> bytes | None:
        if self._members.get(name) is None:
            self._members.pop(name, None)
            return None
        return self.raw(name, size=size, max_len=max_len)

    def text(self, name: str, *, max_len: int, pattern: re.Pattern[str] | None = None) -> str:
        found = self._take(name)
        if not isinstance(found, str) or len(found) > max_len:
            raise self._bad(name, f"text of at most {max_len} characters")
        if pattern is not None and not pattern.fullmatch(found):
            raise self._bad(name, f"text matching {pattern.pattern}")
        return found

    def text_or_none(self, name: str, *, max_len: int, pattern: re.Pattern[str] | None = None) -> str | None:
        if self._members.get(name) is None:
            self._members.pop(name, None)
            return None
        return self.text(name, max_len=max_len, pattern=pattern)

    def number(self, name: str, *, low: int = 0, high: int = MAX_INT, default: int | None = None) -> int:
        found = self._take(name, _MISSING if default is None else default)
        if not isinstance(found, int) or isinstance(found, bool) or not low <= found <= high:
            raise self._bad(name, f"an integer from {low} to {high}")
        return found

    def number_or_none(self, name: str, *, low: int = 0, high: int = MAX_INT) -> int | None:
        if self._members.get(name) is None:
            self._members.pop(name, None)
            return None
        return self.number(name, low=low, high=high)

    def flag(self, name: str, *, default: bool | None = None) -> bool:
        found = self._take(name, _MISSING if default is None else default)
        if not isinstance(found, bool):
            raise self._bad(name, "true or false")
        return found

    def mapping(self, name: str) -> dict[str, Any]:
        found = self._take(name)
        if not isinstance(found, dict):
            raise self._bad(name, "an object")
        return found

    def mapping_or_none(self, name: str) -> dict[str, Any] | None:
        if self._members.get(name) is None:
            self._members.pop(name, None)
            return None
        return self.mapping(name)

    def items(self, name: str, read: Callable[[object], T], *, max_items: int, optional: bool = False) -> tuple[T, ...]:
        """A list of at most `max_items`, each made by `read`; with `optional`, absence is the empty list."""
        found = self._take(name, [] if optional else _MISSING)
        if not isinstance(found, list) or len(found) > max_items:
            raise self._bad(name, f"a list of at most {max_items}")
        return tuple(read(item) for item in found)

    def texts(self, name: str, *, max_items: int, max_len: int) -> tuple[str, ...]:
        """A list of short texts; absence is the empty list."""
        found = self.items(name, lambda item: item, max_items=max_items, optional=True)
        for item in found:
            if not isinstance(item, str) or len(item) > max_len:
                raise self._bad(name, f"a list of texts of at most {max_len} characters")
        return tuple(str(item) for item in found)

    def raws(self, name: str, *, max_items: int, max_len: int) -> tuple[bytes, ...]:
        """A list of base64url bytes, each at most `max_len`."""
        found = self.items(name, lambda item: item, max_items=max_items)
        return tuple(Reader({name: item}, self._what).raw(name, max_len=max_len) for item in found)

    def rest(self) -> dict[str, Any]:
        """What nobody has read yet, as it came: for objects whose grammar is decided elsewhere."""
        found, self._members = self._members, {}
        return found

    def end(self) -> None:
        """Raises body.field_unknown when a member is left that nobody read."""
        if self._members:
            name = min(self._members)[:64]
            raise WireError(WireCode.BODY_FIELD_UNKNOWN, f"{self._what}.{name!a}")
