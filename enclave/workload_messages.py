"""The messages of SPIFFE's Workload API, in a descriptor pool of their own.

Decides nothing: names, numbers and types are those of the SPIFFE Workload API. The pool is private because the service
has no package: a SPIFFE client in the same process brings descriptors of the same names, and a pool holds one of each.
"""

from __future__ import annotations

from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, struct_pb2

SERVICE: Final = "SpiffeWorkloadAPI"
_FILE: Final = "cloister/workload.proto"
_Field = descriptor_pb2.FieldDescriptorProto
_TEXT, _BYTES, _MESSAGE = _Field.TYPE_STRING, _Field.TYPE_BYTES, _Field.TYPE_MESSAGE
_MANY: Final = "many"

# message → its fields: name, number, type, and "many" for lists; a type in quotes is a message; "map" is text → bytes.
_MESSAGES: Final[dict[str, tuple[tuple[str, int, Any, str], ...]]] = {
    "X509SVIDRequest": (),
    "X509SVIDResponse": (
        ("svids", 1, "X509SVID", _MANY),
        ("crl", 2, _BYTES, _MANY),
        ("federated_bundles", 3, "map", _MANY),
    ),
    "X509SVID": (
        ("spiffe_id", 1, _TEXT, ""),
        ("x509_svid", 2, _BYTES, ""),
        ("x509_svid_key", 3, _BYTES, ""),
        ("bundle", 4, _BYTES, ""),
        ("hint", 5, _TEXT, ""),
    ),
    "X509BundlesRequest": (),
    "X509BundlesResponse": (("crl", 1, _BYTES, _MANY), ("bundles", 2, "map", _MANY)),
    "JWTSVIDRequest": (("audience", 1, _TEXT, _MANY), ("spiffe_id", 2, _TEXT, "")),
    "JWTSVIDResponse": (("svids", 1, "JWTSVID", _MANY),),
    "JWTSVID": (("spiffe_id", 1, _TEXT, ""), ("svid", 2, _TEXT, ""), ("hint", 3, _TEXT, "")),
    "JWTBundlesRequest": (),
    "JWTBundlesResponse": (("bundles", 1, "map", _MANY),),
    "ValidateJWTSVIDRequest": (("audience", 1, _TEXT, ""), ("svid", 2, _TEXT, "")),
    "ValidateJWTSVIDResponse": (("spiffe_id", 1, _TEXT, ""), ("claims", 2, "google.protobuf.Struct", "")),
}


def _described() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name=_FILE, syntax="proto3", dependency=[struct_pb2.DESCRIPTOR.name])
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, number, kind, many in fields:
            added = message.field.add(
                name=field, number=number, label=_Field.LABEL_REPEATED if many else _Field.LABEL_OPTIONAL
            )
            if kind == "map":
                _map(message, added, field, name)
            elif isinstance(kind, str):
                added.type, added.type_name = _MESSAGE, f".{kind}"
            else:
                added.type = kind
    return file


def _map(message: Any, field: Any, name: str, outer: str) -> None:
    entry = "".join(part.capitalize() for part in name.split("_")) + "Entry"
    nested = message.nested_type.add(name=entry)
    nested.options.map_entry = True
    nested.field.add(name="key", number=1, type=_TEXT, label=_Field.LABEL_OPTIONAL)
    nested.field.add(name="value", number=2, type=_BYTES, label=_Field.LABEL_OPTIONAL)
    field.type, field.type_name = _MESSAGE, f".{outer}.{entry}"


def _classes() -> dict[str, Any]:
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(struct_pb2.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(_described().SerializeToString())
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(name)) for name in _MESSAGES}


MESSAGES: Final[dict[str, Any]] = _classes()
"""Name → class."""
