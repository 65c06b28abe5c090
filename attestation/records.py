"""Evidence as it is kept: each part under its digest, and a small record that names them. Its digest names the whole.

Decides the stored form of what agents and guests send, so that whoever kept it, or was handed a copy, can judge
it again. Where blobs are kept is left to the caller, who gives and takes them by SHA-256.

An agent's record is the fields AGENT_TAG, encoded binding, proof, the agent's nonce, the beginning of the quote,
SHA-256 of its rest, and of the event log if there is one, each after its length. The rest is what vouches for the
quote's key, so that all agents of one platform have it in common. Earlier records have another tag and the SHA-256 of
the whole quote; a guest's is JSON, as an agent's was at first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, final

from attestation.encoding import b64url, compact_json, framed, from_b64url, strict_json, unframed
from attestation.errors import MalformedEvidence
from attestation.evidence import OWN_OF_QUOTE, Binding, Evidence
from attestation.guest import GuestEvidence

GetBlob = Callable[[bytes], bytes]  # digest → blob; raises LookupError
VIA_KBS: Final = "kbs"
AGENT_TAG: Final = b"cloister/agent-evidence/v2"
_WHOLE_QUOTE_TAG: Final = b"cloister/agent-evidence/v1"
_BEFORE_PARTS: Final = {AGENT_TAG: 5, _WHOLE_QUOTE_TAG: 4}  # fields of an agent's record
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
    own, rest = evidence.quote[:OWN_OF_QUOTE], evidence.quote[OWN_OF_QUOTE:]
    parts = [(hashlib.sha256(rest).digest(), rest)]
    if evidence.event_log is not None:
        parts.append((evidence.digests[1], evidence.event_log))
    names = [name for name, _ in parts]
    record = framed(AGENT_TAG, evidence.binding.encode(), evidence.proof, client_nonce, own, *names)
    return _packed(record, parts)


def pack_guest(evidence: GuestEvidence) -> Packed:
    parts = {name: part for name in _GUEST_PARTS if (part := getattr(evidence, name)) is not None}
    digests = {name: hashlib.sha256(part).digest() for name, part in parts.items()}
    named = {name: b64url(digest) for name, digest in digests.items()}
    record = compact_json({"parts": named, "via": VIA_KBS})
    return _packed(record, zip(digests.values(), parts.values(), strict=True))


def unpack(digest: bytes, get: GetBlob) -> AgentEvidence | GuestEvidence:
    """Raises LookupError when a part is missing or changed; ValueError for what is no record."""
    try:
        raw = checked(digest, get)
        if not raw.startswith(b"{"):
            return _agent(raw, get)
        record = strict_json(raw)
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
    except (KeyError, TypeError, AttributeError, IndexError, MalformedEvidence) as error:
        raise ValueError(f"no record of evidence: {error}") from error


def _agent(raw: bytes, get: GetBlob) -> AgentEvidence:
    tag, binding, proof, client_nonce, *said = unframed(raw)
    whole = tag == _WHOLE_QUOTE_TAG
    own, digests = (b"", said) if whole else (said[0], said[1:])
    if tag not in _BEFORE_PARTS or len(digests) not in (1, 2):
        raise ValueError("another tag, or no quote and log")
    rest, *log = (checked(digest, get) for digest in digests)
    quote = own + rest
    if not whole and quote[:OWN_OF_QUOTE] != own:
        raise ValueError("the quote is cut elsewhere")
    evidence = Evidence(quote=quote, event_log=log[0] if log else None, binding=Binding.decode(binding), proof=proof)
    return AgentEvidence(evidence=evidence, client_nonce=client_nonce)


def checked(digest: bytes, get: GetBlob) -> bytes:
    """The blob of that digest, hashed again. Raises LookupError."""
    found = get(digest)
    if hashlib.sha256(found).digest() != digest:
        raise LookupError(f"blob {digest.hex()[:16]} was changed")
    return found


def part_digests(record: bytes) -> tuple[bytes, ...]:
    """Which blobs a record names. ValueError for what is no record."""
    try:
        if not record.startswith(b"{"):
            fields = unframed(record)
            return tuple(fields[_BEFORE_PARTS[fields[0]] :])
        parts = strict_json(record)["parts"]
        return tuple(from_b64url(part) for part in (parts.values() if isinstance(parts, dict) else parts))
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"no record of evidence: {error}") from error


def _packed(record: bytes, parts: Iterable[tuple[bytes, bytes]]) -> Packed:
    """The parts come with their digests."""
    digest = hashlib.sha256(record).digest()
    return Packed(digest=digest, blobs=(*parts, (digest, record)))
