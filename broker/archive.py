"""Evidence as it is kept, so that every decision can be taken again later.

Decides the stored form: quote and event log as blobs of their own under their digests (an agent's log is the same at
every renewal, and is kept once), and a small record that names them, with binding, proof and the caller's nonce. The
record's digest is the evidence digest of agents and log entries.
"""

import hashlib
from dataclasses import dataclass
from typing import final

import orjson

from attestation.encoding import b64url, from_b64url, strict_json
from attestation.evidence import Binding, Evidence
from broker.errors import BrokerCode, BrokerError
from broker.ports import Transaction


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """Evidence ready to be stored."""

    digest: bytes
    blobs: tuple[tuple[bytes, bytes], ...]

    def put(self, tx: Transaction) -> None:
        tx.archive.put(*self.blobs)


def pack(evidence: Evidence, client_nonce: bytes) -> Packed:
    parts = [(hashlib.sha256(evidence.quote).digest(), evidence.quote)]
    if evidence.event_log is not None:
        parts.append((hashlib.sha256(evidence.event_log).digest(), evidence.event_log))
    record = {
        "parts": [b64url(digest) for digest, _ in parts],
        "binding": evidence.binding.to_dict(),
        "proof": b64url(evidence.proof),
        "client_nonce": b64url(client_nonce),
    }
    raw = orjson.dumps(record, option=orjson.OPT_SORT_KEYS)
    digest = hashlib.sha256(raw).digest()
    return Packed(digest=digest, blobs=(*parts, (digest, raw)))


def unpack(tx: Transaction, digest: bytes) -> tuple[Evidence, bytes]:
    """Evidence and the caller's nonce. Raises BrokerError store.row_forged, when something is gone or was changed."""
    record = strict_json(blob(tx, digest))
    parts = [blob(tx, from_b64url(part)) for part in record["parts"]]
    evidence = Evidence(
        quote=parts[0],
        event_log=parts[1] if len(parts) > 1 else None,
        binding=Binding.from_dict(record["binding"]),
        proof=from_b64url(record["proof"]),
    )
    return evidence, from_b64url(record["client_nonce"])


def blob(tx: Transaction, digest: bytes) -> bytes:
    """Raises BrokerError store.row_forged, when it is gone or was changed."""
    found = tx.archive.get(digest)
    if found is None or hashlib.sha256(found).digest() != digest:
        raise BrokerError(BrokerCode.STORE_ROW_FORGED, f"archived blob {digest.hex()[:16]}")
    return found
