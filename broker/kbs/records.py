"""What is read back out of a guest's archived evidence."""

from typing import Any

from attestation.encoding import strict_json
from attestation.guest import GuestEvidence
from broker.kbs.jwe import TeeKey


def key_of(evidence: GuestEvidence) -> TeeKey:
    """The key in the runtime data that were hashed."""
    runtime: dict[str, Any] = strict_json(evidence.runtime)
    return TeeKey.read(runtime["tee-pubkey"])
