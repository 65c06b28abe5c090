"""Evidence as it is kept: each part under its digest, and a small record that names them. Its digest names the whole.

Decides the stored form of what agents and guests send, so that whoever kept it, or was handed a copy, can judge
it again. Where blobs are kept is left to the caller, who gives and takes them by SHA-256.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, final

from attestation.encoding import b64url, compact_json, from_b64url, strict_json
from attestation.errors import MalformedEvidence
from attestation.evidence import Binding, Evidence
from attestation.guest import GuestEvidence

GetBlob = Callable[[bytes], bytes]  # digest → blob; raises LookupError
VIA_KBS: Final = "kbs"
_GUEST_PARTS: Final = ("event_log", "init_data", "quote", "runtime")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """Evidence ready to be kept."""

    digest: bytes
    blobs: tuple[tuple[bytes, bytes], ...] = field(repr=False)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class AgentEvidence:
    """What an agent sent, with the nonce that it had drawn itself."""

    evidence: Evidence
    client_nonce: bytes


def pack_agent(evidence: Evidence, client_nonce: bytes) -> Packed:
    parts = (evidence.quote,) if evidence.event_log is None else (evidence.quote, evidence.event_log)
    record = {
        "binding": evidence.binding.to_dict(),
        "client_nonce": b64url(client_nonce),
        "parts": [b64url(digest) for digest in evidence.digests],
        "proof": b64url(evidence.proof),
    }
    return _packed(record, zip(evidence.digests, parts, strict=True))


def pack_guest(evidence: GuestEvidence) -> Packed:
    parts = {name: part for name in _GUEST_PARTS if (part := getattr(evidence, name)) is not None}
    digests = {name: hashlib.sha256(part).digest() for name, part in parts.items()}
    named = {name: b64url(digest) for name, digest in digests.items()}
    return _packed({"parts": named, "via": VIA_KBS}, zip(digests.values(), parts.values(), strict=True))


def unpack(digest: bytes, get: GetBlob) -> AgentEvidence | GuestEvidence:
    """Raises LookupError when a part is missing or changed; ValueError for what is no record."""
    try:
        record = strict_json(checked(digest, get))
        if record.get("via") == VIA_KBS:
            return GuestEvidence(**{name: checked(from_b64url(part), get) for name, part in record["parts"].items()})
        quote, *log = (checked(from_b64url(part), get) for part in record["parts"])
        evidence = Evidence(
            quote=quote,
            event_log=log[0] if log else None,
            binding=Binding.from_dict(record["binding"]),
            proof=from_b64url(record["proof"]),
        )
        return AgentEvidence(evidence=evidence, client_nonce=from_b64url(record["client_nonce"]))
    except (KeyError, TypeError, AttributeError, MalformedEvidence) as error:
        raise ValueError(f"no record of evidence: {error}") from error


def checked(digest: bytes, get: GetBlob) -> bytes:
    """The blob of that digest, hashed again. Raises LookupError."""
    found = get(digest)
    if hashlib.sha256(found).digest() != digest:
        raise LookupError(f"blob {digest.hex()[:16]} was changed")
    return found


def part_digests(record: bytes) -> tuple[bytes, ...]:
    """Which blobs a record names. ValueError for what is no record."""
    try:
        parts = strict_json(record)["parts"]
        return tuple(from_b64url(part) for part in (parts.values() if isinstance(parts, dict) else parts))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no record of evidence: {error}") from error


def _packed(record: Mapping[str, Any], parts: Iterable[tuple[bytes, bytes]]) -> Packed:
    """`record` has its members in order of name, and `parts` come with their digests."""
    raw = compact_json(record)
    digest = hashlib.sha256(raw).digest()
    return Packed(digest=digest, blobs=(*parts, (digest, raw)))
