"""Typed messages: a dataclass, or a pydantic model, is the schema of what travels.

Decides which types can be messages, their JSON schema and its digest, and that a body either is exactly of its type or
is refused: no coercion, no missing members, no unknown ones. Fields may be str, int, float, bool, None, bytes
(base64url), datetime (RFC 3339), enums of text, Literal, list, tuple[X, ...], dict[str, X], unions, and dataclasses.
Both ends must have the same schema: its digest travels inside the sealed body. Pydantic models bring their own schema
and validation; pydantic itself is never imported here.

    body = JSON {"schema": first 16 hex digits of SHA-256 of the schema, "data": …}     and, in a stream, "item": n
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import types
import typing
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final, final

from broker.wire.jose import b64u, unb64u
from enclave.errors import AgentError, Code, MessageError

MAX_DEPTH: Final = 32
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_PLAIN: Final[Mapping[type, str]] = {str: "string", int: "integer", float: "number", bool: "boolean"}


@final
class MessageType:
    """One type of message: its wire name is the class's name, its `digest` names the exact schema.

    The framework's own types are named `cloister.…`, which no class can be called.
    """

    __slots__ = ("_pydantic", "digest", "kind", "name", "schema")

    def __init__(self, kind: type, name: str = "") -> None:
        """Raises AgentError agent.handler_invalid for a type that cannot be a message."""
        if not _NAME.fullmatch(getattr(kind, "__name__", "")):
            raise AgentError(Code.AGENT_HANDLER, f"{kind!r} is not a class")
        self.kind = kind
        self.name = name or kind.__name__
        self._pydantic = hasattr(kind, "model_validate") and hasattr(kind, "model_json_schema")
        if self._pydantic:
            self.schema: dict[str, Any] = kind.model_json_schema()  # type: ignore[attr-defined]  # duck-typed: see above
        elif dataclasses.is_dataclass(kind):
            self.schema = _schema(kind, ())
        else:
            raise AgentError(Code.AGENT_HANDLER, f"{self.name} is neither a dataclass nor a pydantic model")
        self.digest = hashlib.sha256(json.dumps(self.schema, sort_keys=True).encode()).hexdigest()[:16]

    def encode(self, message: object, *, item: int | None = None) -> bytes:
        """The body for a message of this type, or for the `item`th of a stream. Raises message.schema_mismatch."""
        if type(message) is not self.kind:
            raise MessageError(Code.MESSAGE_SCHEMA, f"a {type(message).__name__} is not a {self.name}")
        data = message.model_dump(mode="json") if self._pydantic else _encode(self.kind, message, self.name)  # type: ignore[attr-defined]  # duck-typed
        members = {"schema": self.digest, "data": data} | ({} if item is None else {"item": item})
        return json.dumps(members, separators=(",", ":"), allow_nan=False).encode()

    def decode(self, body: bytes) -> Any:
        """The message in a body. Details name places, never values.

        Raises MessageError message.schema_mismatch; message.stream_mismatch for an item of a stream.
        """
        message, item = self.decode_item(body)
        if item is not None:
            raise MessageError(Code.MESSAGE_STREAM, f"item {item} of a stream of {self.name}")
        return message

    def decode_item(self, body: bytes) -> tuple[Any, int | None]:
        """The same, with the place in the stream, or None for a message that stands alone."""
        try:
            found = json.loads(body, object_pairs_hook=_unique, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise MessageError(Code.MESSAGE_SCHEMA, f"{self.name}: {type(error).__name__}") from None
        if not isinstance(found, dict) or set(found) - {"item"} != {"schema", "data"} or found["schema"] != self.digest:
            raise MessageError(Code.MESSAGE_SCHEMA, f"another schema of {self.name} than {self.digest}")
        item = found.get("item")
        if "item" in found and (type(item) is not int or item < 0):
            raise MessageError(Code.MESSAGE_SCHEMA, f"{self.name}: the number of the item")
        try:
            return self._value(found["data"]), item
        except MessageError:
            raise
        except Exception as error:  # noqa: BLE001  a type's own checks may raise anything, and the sender chooses what
            raise MessageError(Code.MESSAGE_SCHEMA, f"{self.name}: {type(error).__name__}") from None

    def _value(self, data: Any) -> Any:
        if not self._pydantic:
            return _decode(self.kind, data, self.name)
        try:
            return self.kind.model_validate(data)  # type: ignore[attr-defined]  # duck-typed
        except ValueError as error:
            raise MessageError(Code.MESSAGE_SCHEMA, _fault(self.name, error, self.schema)) from None


def _fault(name: str, error: ValueError, schema: Mapping[str, Any]) -> str:
    """Where a model's first fault is and which it is; of the place only names that stand in the schema are told."""
    try:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]  # type: ignore[attr-defined]  # duck-typed: pydantic's own
        known = json.dumps(schema)
        place = [str(part) if json.dumps(part) in known and type(part) is str else "*" for part in first["loc"]]
        return f"{'.'.join([name, *place])}: {first['type']}"
    except (AttributeError, TypeError, LookupError):
        return f"{name}: {type(error).__name__}"


@final
@dataclasses.dataclass(frozen=True, slots=True)
class Shaped:
    """A message of the framework's own that goes by another name than its class does."""

    kind: MessageType
    message: object = dataclasses.field(repr=False)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A name that occurs twice has no one meaning."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a JSON name occurs twice")
    return found


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def _fields(kind: Any) -> Mapping[str, Any]:
    """Name → resolved type of a dataclass's fields, in order."""
    return _resolved(kind)


@lru_cache(maxsize=256)
def _resolved(kind: Any) -> Mapping[str, Any]:
    """Once for each type: resolving annotations costs more than a small message."""
    hints = typing.get_type_hints(kind)
    return MappingProxyType({one.name: hints[one.name] for one in dataclasses.fields(kind) if one.init})


def _schema(kind: Any, inside: tuple[Any, ...]) -> dict[str, Any]:
    if kind in _PLAIN:
        return {"type": _PLAIN[kind]}
    if kind is None or kind is type(None):
        return {"type": "null"}
    if kind is bytes:
        return {"type": "string", "contentEncoding": "base64url"}
    if kind is datetime:
        return {"type": "string", "format": "date-time"}
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is list or (origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis):
        return {"type": "array", "items": _schema(arguments[0], inside)}
    if origin is dict and arguments[0] is str:
        return {"type": "object", "additionalProperties": _schema(arguments[1], inside)}
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_schema(one, inside) for one in arguments]}
    if origin is typing.Literal and all(type(one) is str for one in arguments):
        return {"enum": list(arguments)}
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return {"enum": [str(one) for one in kind]}
    if dataclasses.is_dataclass(kind):
        return _object_schema(kind, inside)
    raise AgentError(Code.AGENT_HANDLER, f"{kind!r} cannot be a field of a message")


def _object_schema(kind: Any, inside: tuple[Any, ...]) -> dict[str, Any]:
    if kind in inside or len(inside) >= MAX_DEPTH:
        raise AgentError(Code.AGENT_HANDLER, f"{kind.__name__} contains itself: messages are trees")
    try:
        members = {name: _schema(one, (*inside, kind)) for name, one in _fields(kind).items()}
    except NameError as error:
        raise AgentError(
            Code.AGENT_HANDLER, f"{kind.__name__}: {error}; define message types at module level"
        ) from None
    return {
        "title": kind.__name__,
        "type": "object",
        "properties": members,
        "required": list(members),
        "additionalProperties": False,
    }


def _wrong(at: str, need: str) -> MessageError:
    return MessageError(Code.MESSAGE_SCHEMA, f"{at} must be {need}")


def _encode(kind: Any, value: Any, at: str) -> Any:
    """JSON for a value of the type, checked on the way out: a sender learns of its mistake, not the receiver."""
    if dataclasses.is_dataclass(kind) and type(value) is kind:
        return {name: _encode(one, getattr(value, name), f"{at}.{name}") for name, one in _fields(kind).items()}
    if kind is bytes and isinstance(value, bytes):
        return b64u(value)
    if kind is datetime and isinstance(value, datetime) and value.tzinfo is not None:
        return value.isoformat()
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (list, tuple) and isinstance(value, origin):
        return [_encode(arguments[0], item, f"{at}[]") for item in value]
    if origin is dict and isinstance(value, dict):
        return {_text(name, at): _encode(arguments[1], item, f"{at}.*") for name, item in value.items()}
    if origin in (typing.Union, types.UnionType):
        return _first(_encode, arguments, value, at)
    return _leaf(kind, value, at)


def _decode(kind: Any, value: Any, at: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _decode_object(kind, value, at)
    if kind is bytes and isinstance(value, str):
        try:
            return unb64u(value)
        except ValueError:
            raise _wrong(at, "base64url") from None
    if kind is datetime and isinstance(value, str):
        return _moment(value, at)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (list, tuple) and isinstance(value, list):
        return origin(_decode(arguments[0], item, f"{at}[]") for item in value)
    if origin is dict and isinstance(value, dict):
        return {name: _decode(arguments[1], item, f"{at}.*") for name, item in value.items()}
    if origin in (typing.Union, types.UnionType):
        return _first(_decode, arguments, value, at)
    if isinstance(kind, type) and issubclass(kind, StrEnum) and isinstance(value, str) and value in list(kind):
        return kind(value)
    return _leaf(kind, value, at)


def _decode_object(kind: Any, value: Any, at: str) -> Any:
    fields = _fields(kind)
    if not isinstance(value, dict) or set(value) != set(fields):
        raise _wrong(at, f"an object with exactly {', '.join(fields)}")
    try:
        return kind(**{name: _decode(one, value[name], f"{at}.{name}") for name, one in fields.items()})
    except (TypeError, ValueError) as error:  # the class's own __post_init__
        raise _wrong(at, f"acceptable to {kind.__name__} ({type(error).__name__})") from None


def _leaf(kind: Any, value: Any, at: str) -> Any:
    """Text, numbers, null, literals and enums: the value itself, if it is exactly of the type."""
    if kind in _PLAIN:
        if type(value) is kind or (kind is float and type(value) is int):
            if kind is float and not math.isfinite(value):
                raise _wrong(at, "a finite number")
            return kind(value)
        raise _wrong(at, f"a {_PLAIN[kind]}")
    if (kind is None or kind is type(None)) and value is None:
        return None
    if typing.get_origin(kind) is typing.Literal and type(value) is str and value in typing.get_args(kind):
        return value
    if isinstance(kind, type) and issubclass(kind, StrEnum) and type(value) is kind:
        return str(value)
    raise _wrong(at, f"a {getattr(kind, '__name__', kind)}")


def _first(convert: Any, kinds: tuple[Any, ...], value: Any, at: str) -> Any:
    for kind in kinds:
        try:
            return convert(kind, value, at)
        except MessageError:
            continue
    raise _wrong(at, "of one of its types")


def _text(name: Any, at: str) -> str:
    if not isinstance(name, str):
        raise _wrong(at, "an object with text keys")
    return name


def _moment(value: str, at: str) -> datetime:
    try:
        found = datetime.fromisoformat(value)
    except ValueError:
        raise _wrong(at, "an RFC 3339 time") from None
    if found.tzinfo is None:
        raise _wrong(at, "an RFC 3339 time with an offset")
    return found
