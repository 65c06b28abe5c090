"""Who may be believed, in one file: roots, the broker and its log key, policy signers, administrators.

Decides the file's form and its digest, SHA-256 over the exact bytes. The digest goes into every Binding (and into
MRCONFIGID or a launch event where the deployment does that), so a host that slips in another root or broker shows. The
file is TOML, or JSON when its first character is a brace; both have the same members:

    version = 1
    tenant = "lab"                       # the tenant that agents with this file belong to
    [broker]
    id = "<64 hex digits>"               # SHA-256 of the log key
    log_key = "<64 hex digits>"          # Ed25519, raw; optional, and then it must fit the id
    url = "http://127.0.0.1:8470"        # optional: where it usually is. An address, nothing to trust
    [broker.reference]                   # optional: what the broker's own quote must show before anything is sent
    mr_td = "<96 hex digits>"            # and rtmr1, rtmr2; rtmr0 if wanted
    launches = ["<96 hex digits>"]       # all that RTMR3 records, in order; or rtmr3
    platforms = ["<hex>"]                # PPIDs, PIIDs or FMSPCs; or any_platform_until = "<time>"
    tcb = ["UpToDate"]                   # optional: TCB states that pass
    tcb_evaluation = 20                  # optional: the lowest evaluation set
    trust_files = ["<64 hex digits>"]    # optional: other trust files under which the broker may run
    [roots]
    intel = true                         # Intel's own root
    pem = ["-----BEGIN CERTIFICATE-----…"]
    [policies]
    signers = ["<hex of a public key>"]
    [administrators]
    keys = ["<RFC 7638 thumbprint>"]
    [tools]                              # optional: the descriptions of other agents' tools that were approved
    "lab/tools/desk/refund" = "<64 hex digits>"

Which of them a deployment must name is left to whoever uses the value, and so is the code by which he refuses a file
that is none. Agents, brokers and the holders of shares all read it here.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from attestation.encoding import strict_json
from attestation.errors import AttestationError
from attestation.pki import TrustRoots
from broker.wire.attested import BrokerReference
from broker.wire.errors import WireError
from broker.wire.log import broker_id as id_of
from broker.wire.names import TENANT, is_resource

T = TypeVar("T")
MAX_FILE: Final = 256 * 1024
MAX_LIST: Final = 64
_HEX: Final = re.compile(r"(?:[0-9a-f]{2})*")


class TrustFileFault(ValueError):
    """What is wrong with a trust file, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustFile:
    """A parsed trust file. `digest` is SHA-256 over its exact bytes; two spellings of one content have two digests."""

    tenant: str
    broker_id: bytes
    log_key: bytes | None
    broker_url: str
    broker_reference: BrokerReference | None  # None: the broker's quote is not demanded
    roots: TrustRoots
    policy_signers: tuple[bytes, ...]
    administrators: tuple[str, ...]
    tools: tuple[tuple[str, str], ...]  # what policies call a tool, and the digest of its description
    digest: bytes

    def tool(self, name: str) -> str:
        """The digest that is pinned for a tool, by the name that policies have for it; or nothing."""
        return dict(self.tools).get(name, "")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Raises OSError, TrustFileFault."""
        with path.open("rb") as file:
            return cls.parse(file.read(MAX_FILE + 1))

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Raises TrustFileFault."""
        top = _Table(_decode(raw), "")
        if top.take("version", int) != 1:
            raise _bad("version must be 1")
        broker, roots = top.table("broker"), top.table("roots")
        policies, administrators = top.table("policies"), top.table("administrators")
        made = cls(
            tenant=_tenant(top.take("tenant", str)),
            broker_id=broker.hex("id", 32),
            log_key=broker.hex("log_key", 32) if broker.has("log_key") else None,
            broker_url=broker.take("url", str) if broker.has("url") else "",
            broker_reference=_reference(broker.take("reference", dict)) if broker.has("reference") else None,
            roots=_roots(roots),
            policy_signers=tuple(_hex(text, "policies.signers", None) for text in policies.texts("signers")),
            administrators=administrators.texts("keys"),
            tools=_tools(top.take("tools", dict) if top.has("tools") else {}),
            digest=hashlib.sha256(raw).digest(),
        )
        for table in (top, broker, roots, policies, administrators):
            table.end()
        if made.log_key is not None and id_of(made.log_key) != made.broker_id:
            raise _bad("broker.id is not the SHA-256 of broker.log_key")
        return made


def render(
    *,
    tenant: str,
    log_key: bytes,
    broker_url: str = "",
    roots_pem: tuple[bytes, ...] = (),
    intel: bool = False,
    administrators: tuple[str, ...] = (),
    reference: BrokerReference | None = None,
    tools: Mapping[str, str] | None = None,
) -> bytes:
    """A trust file's bytes in its JSON form, deterministic: the same arguments give the same digest."""
    broker: dict[str, Any] = {"id": id_of(log_key).hex(), "log_key": log_key.hex(), "url": broker_url}
    if reference is not None:
        broker["reference"] = reference.to_dict()
    found: dict[str, Any] = {
        "version": 1,
        "tenant": tenant,
        "broker": broker,
        "roots": {"intel": intel, "pem": [pem.decode("ascii") for pem in roots_pem]},
        "administrators": {"keys": list(administrators)},
    }
    if tools:
        found["tools"] = dict(tools)
    return json.dumps(found, indent=2, sort_keys=True).encode() + b"\n"


def _decode(raw: bytes) -> dict[str, Any]:
    if len(raw) > MAX_FILE:
        raise _bad(f"larger than {MAX_FILE} bytes")
    try:
        text = raw.decode("utf-8")
        found = strict_json(text) if text.lstrip().startswith("{") else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise _bad(f"neither TOML nor JSON: {error}") from None
    if not isinstance(found, dict):
        raise _bad("not a table")
    return found


def _tenant(text: str) -> str:
    if not TENANT.fullmatch(text):
        raise _bad("tenant must be one segment of A-Z a-z 0-9 _ . -")
    return text


def _reference(members: dict[str, Any]) -> BrokerReference:
    try:
        return BrokerReference.from_dict(members)
    except WireError as error:
        raise _bad(f"broker.{error.detail}") from None


def _tools(members: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    for name, digest in members.items():
        if not is_resource(name) or name.split("/")[1] != "tools":
            raise _bad(f"tools.{name[:64]!a} is not the name of a tool, tenant/tools/agent/tool")
        if type(digest) is not str:
            raise _bad(f"tools.{name} must be 64 lower-case hex digits")
        _hex(digest, f"tools.{name}", 32)
    return tuple(sorted(members.items()))


def _roots(table: _Table) -> TrustRoots:
    """Exactly one of the two: Intel's root and another one in one file would let either stand in for the other."""
    intel = table.take("intel", bool) if table.has("intel") else False
    pem = "\n".join(table.texts("pem"))
    if intel == bool(pem):
        raise _bad("roots must name intel = true or a list pem, and not both")
    if intel:
        return TrustRoots.intel()
    try:
        return TrustRoots.from_pem(pem.encode("utf-8"))
    except AttestationError as error:
        raise _bad(f"roots.pem: {error.detail}") from None


def _hex(text: str, name: str, size: int | None) -> bytes:
    if not _HEX.fullmatch(text) or (size is not None and len(text) != 2 * size) or not text:
        raise _bad(f"{name} must be {f'{2 * size} ' if size else ''}lower-case hex digits")
    return bytes.fromhex(text)


def _bad(detail: str) -> TrustFileFault:
    return TrustFileFault(detail)


class _Table:
    """One table being read; `end()` refuses members that nobody asked for: a misspelt rule must not vanish."""

    __slots__ = ("_members", "_name")

    def __init__(self, members: object, name: str) -> None:
        if not isinstance(members, dict):
            raise _bad(f"{name} must be a table")
        self._members: dict[str, Any] = dict(members)
        self._name = name

    def _path(self, name: str) -> str:
        return f"{self._name}.{name}" if self._name else name

    def has(self, name: str) -> bool:
        return name in self._members

    def take(self, name: str, kind: type[T]) -> T:
        found = self._members.pop(name, None)
        if type(found) is not kind:
            raise _bad(f"{self._path(name)} must be there and of type {kind.__name__}")
        return found

    def table(self, name: str) -> _Table:
        return _Table(self._members.pop(name, {}), self._path(name))

    def hex(self, name: str, size: int) -> bytes:
        return _hex(self.take(name, str), self._path(name), size)

    def texts(self, name: str) -> tuple[str, ...]:
        found = self._members.pop(name, [])
        if not isinstance(found, list) or len(found) > MAX_LIST or not all(isinstance(item, str) for item in found):
            raise _bad(f"{self._path(name)} must be a list of at most {MAX_LIST} texts")
        return tuple(found)

    def end(self) -> None:
        if self._members:
            raise _bad(f"unknown member {self._path(min(self._members))}")
