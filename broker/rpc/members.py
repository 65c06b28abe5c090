"""Protobuf messages ↔ the JSON members of REST, by the messages' own descriptions.

Decides the correspondence: bytes are base64url, a field without a value is a member that is not there, a Struct is an
object. A field that a message does not know is refused in what came in, and is an error of ours in what goes out.
"""

from collections.abc import Mapping
from typing import Any, Final

from google.protobuf import struct_pb2
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from attestation.encoding import from_b64url
from broker.wire.errors import WireCode, WireError
from broker.wire.fields import MAX_INT
from broker.wire.jose import b64u

Field = Any  # a FieldDescriptor; which class that is depends on how protobuf was built
_STRUCT: Final = struct_pb2.Struct.DESCRIPTOR.full_name


def parse(kind: type[Message], raw: bytes) -> Message:
    """Raises WireError body.not_protobuf, body.field_unknown."""
    message = kind()
    try:
        message.ParseFromString(raw)
    except DecodeError:
        raise WireError(WireCode.BODY_NOT_PROTOBUF, f"not a {kind.DESCRIPTOR.name}") from None
    _refuse_unknown(message)
    return message


def _refuse_unknown(message: Message) -> None:
    if len(UnknownFieldSet(message)):
        raise WireError(WireCode.BODY_FIELD_UNKNOWN, f"{message.DESCRIPTOR.name} has a field that it does not know")
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.full_name == _STRUCT:
            continue
        if _is_map(field):
            continue  # of texts only
        for part in value if field.is_repeated else (value,):
            _refuse_unknown(part)


def members_of(message: Message) -> dict[str, Any]:
    """What the JSON object would have held."""
    if isinstance(message, struct_pb2.Struct):
        return {name: _plain(value) for name, value in message.fields.items()}
    return {field.name: _member(field, value) for field, value in message.ListFields()}


def _member(field: Field, value: Any) -> Any:
    if _is_map(field):
        return dict(value)
    if field.is_repeated:
        return [_single(field, item) for item in value]
    return _single(field, value)


def _single(field: Field, value: Any) -> Any:
    if field.message_type is not None:
        return members_of(value)
    return b64u(value) if field.type == FieldDescriptor.TYPE_BYTES else value


def _plain(value: struct_pb2.Value) -> Any:
    """Raises WireError body.not_json for a number that JSON bodies may not have either."""
    match value.WhichOneof("kind"):
        case "struct_value":
            return members_of(value.struct_value)
        case "list_value":
            return [_plain(item) for item in value.list_value.values]
        case "number_value":
            return _whole(value.number_value)
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case _:
            return None


def _whole(number: float) -> int:
    """A Struct knows only floating point; here as over REST a number is an integer that it holds exactly."""
    if not number.is_integer() or abs(number) > MAX_INT:
        raise WireError(WireCode.BODY_NOT_JSON, "a number is not an integer")
    return int(number)


def fill(message: Message, members: Mapping[str, Any]) -> None:
    """Write the members into an empty message. Raises KeyError for a member that it has no field for."""
    if isinstance(message, struct_pb2.Struct):
        message.update(dict(members))
        return
    for name, value in members.items():
        if value is None:
            continue
        field = message.DESCRIPTOR.fields_by_name[name]
        if _is_map(field):
            getattr(message, name).update(value)
        elif field.is_repeated:
            _extend(field, getattr(message, name), value)
        elif field.message_type is not None:
            part = getattr(message, name)
            part.SetInParent()
            fill(part, value)
        else:
            setattr(message, name, _scalar(field, value))


def _extend(field: Field, target: Any, values: Any) -> None:
    for item in values:
        if field.message_type is not None:
            fill(target.add(), item)
        else:
            target.append(_scalar(field, item))


def _scalar(field: Field, value: Any) -> Any:
    return from_b64url(value) if field.type == FieldDescriptor.TYPE_BYTES else value


def _is_map(field: Field) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry
