"""The OpenAPI document, made from the table of routes and the dataclasses of `broker.wire`.

Decides how a dataclass is described; what it accepts is decided by its own `from_dict`.
"""

import dataclasses
import types
import typing
from collections.abc import Iterable
from enum import StrEnum
from typing import Any, Final

from broker.calls import JSON_TYPE, Door, Endpoint
from broker.wire.bodies import PROBLEM_TYPE, Problem

_NAME: Final[dict[str, Any]] = {"type": "string", "pattern": "^[A-Za-z0-9_./-]{1,520}$"}  # of whatever the path names
_NUMBER: Final[dict[str, Any]] = {"type": "integer", "minimum": 0}
_SECURITY: Final[dict[Door, list[dict[str, list[str]]]]] = {
    Door.OPEN: [],
    Door.AGENT: [{"dpop_token": [], "dpop_proof": []}],
    Door.ADMIN: [{"admin_proof": []}],
    Door.EITHER: [{"dpop_token": [], "dpop_proof": []}, {"admin_proof": []}],
}


def document(endpoints: Iterable[Endpoint], *, title: str, version: str, server: str) -> dict[str, Any]:
    """OpenAPI 3.1 for all `/v1` and well-known routes."""
    schemas: dict[str, Any] = {}
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        path = endpoint.path.replace(":path}", "}").replace(":int}", "}")
        paths.setdefault(path, {})[endpoint.method.lower()] = _operation(endpoint, path, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version},
        "servers": [{"url": server}],
        "paths": paths,
        "components": {
            "schemas": dict(sorted(schemas.items())),
            "securitySchemes": {
                "dpop_token": {"type": "http", "scheme": "DPoP"},
                "dpop_proof": {"type": "apiKey", "in": "header", "name": "DPoP"},
                "admin_proof": {"type": "apiKey", "in": "header", "name": "Cloister-Admin"},
            },
        },
    }


def _operation(endpoint: Endpoint, path: str, schemas: dict[str, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {endpoint.content: {}}
    if endpoint.content == JSON_TYPE or endpoint.answers is not None:
        content = {JSON_TYPE: {"schema": _schema(endpoint.answers or dict, schemas)}}
    found: dict[str, Any] = {
        "summary": endpoint.says,
        "operationId": endpoint.name,
        "security": _SECURITY[endpoint.door],
        "responses": {
            "200": {"description": "done", "content": content},
            "default": {
                "description": "refused",
                "content": {PROBLEM_TYPE: {"schema": _schema(Problem, schemas)}},
            },
        },
    }
    if parameters := [*_path_parameters(endpoint, path), *_query_parameters(endpoint)]:
        found["parameters"] = parameters
    if endpoint.max_body:
        kind = JSON_TYPE if endpoint.content == JSON_TYPE else endpoint.content
        shape = _schema(endpoint.sends or dict, schemas) if kind == JSON_TYPE else {}
        found["requestBody"] = {"required": True, "content": {kind: {"schema": shape}}}
    return found


def _path_parameters(endpoint: Endpoint, path: str) -> list[dict[str, Any]]:
    names = [part[1:-1] for part in _segments(path) if part.startswith("{")]
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": _NUMBER if f"{{{name}:int}}" in endpoint.path else _NAME,
        }
        for name in names
    ]


def _query_parameters(endpoint: Endpoint) -> list[dict[str, Any]]:
    pairs = [name.partition(":") for name in endpoint.query]
    return [
        {"name": name, "in": "query", "required": False, "schema": _NUMBER if kind == "int" else {"type": "string"}}
        for name, _, kind in pairs
    ]


def _segments(path: str) -> list[str]:
    return [part for segment in path.split("/") for part in segment.replace("}", "}\0").split("\0")]


def _schema(kind: Any, schemas: dict[str, Any]) -> dict[str, Any]:
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_schema(part, schemas) for part in typing.get_args(kind)]}
    if origin is tuple:
        return {"type": "array", "items": _schema(typing.get_args(kind)[0], schemas)}
    if origin is dict or kind is dict:
        return {"type": "object"}
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _reference(kind, schemas)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return {"type": "string", "enum": [str(member) for member in kind]}
    simple: dict[Any, dict[str, Any]] = {
        bytes: {"type": "string", "contentEncoding": "base64url"},
        str: {"type": "string"},
        int: {"type": "integer"},
        bool: {"type": "boolean"},
        type(None): {"type": "null"},
    }
    return simple.get(kind, {})


def _reference(kind: type, schemas: dict[str, Any]) -> dict[str, Any]:
    name = kind.__name__
    if name not in schemas:
        schemas[name] = {}
        hints = typing.get_type_hints(kind)
        members = dataclasses.fields(kind)
        required = [
            member.name
            for member in members
            if member.default is dataclasses.MISSING and member.default_factory is dataclasses.MISSING
        ]
        schemas[name] = {
            "type": "object",
            "description": (kind.__doc__ or "").strip().split("\n\n")[0],
            "properties": {member.name: _schema(hints[member.name], schemas) for member in members},
            "required": required,
        }
    return {"$ref": f"#/components/schemas/{name}"}
