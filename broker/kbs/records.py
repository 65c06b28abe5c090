"""A guest's evidence as it is kept, so that it can be judged again and its decisions checked later.

Decides the stored form, like archive.py for agents: each part under its digest, and a small record that names them. The
record's digest is the evidence digest of log entries and tokens.
"""

import hashlib
from typing import Any, Final

import orjson

from attestation.encoding import b64url, from_b64url, strict_json
from attestation.guest import GuestEvidence
from broker.archive import Packed, blob
from broker.kbs.jwe import TeeKey
from broker.ports import Transaction

VIA: Final = "kbs"
_PARTS: Final = ("quote", "event_log", "runtime", "init_data")


def pack(evidence: GuestEvidence) -> Packed:
    parts = {name: part for name in _PARTS if (part := getattr(evidence, name)) is not None}
    named = {name: hashlib.sha256(part).digest() for name, part in parts.items()}
    record = {"via": VIA, "parts": {name: b64url(digest) for name, digest in named.items()}}
    raw = orjson.dumps(record, option=orjson.OPT_SORT_KEYS)
    digest = hashlib.sha256(raw).digest()
    return Packed(digest=digest, blobs=(*((named[name], parts[name]) for name in parts), (digest, raw)))


def unpack(tx: Transaction, digest: bytes) -> GuestEvidence:
    """Raises BrokerError store.row_forged, when something is gone or was changed."""
    named: dict[str, str] = strict_json(blob(tx, digest))["parts"]
    return GuestEvidence(**{name: blob(tx, from_b64url(part)) for name, part in named.items()})


def key_of(evidence: GuestEvidence) -> TeeKey:
    """The key in the runtime data that were hashed."""
    runtime: dict[str, Any] = strict_json(evidence.runtime)
    return TeeKey.read(runtime["tee-pubkey"])
