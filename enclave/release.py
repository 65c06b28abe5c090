"""Opening what the broker released: signature first, then every member of the permit, then the seal.

Decides whether an answer is this agent's to open. HPKE's base mode says nothing about who sealed, so a ciphertext that
the pinned broker did not sign for this very request is never opened. Which secrets an agent may have is the policy's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, final

from broker.wire.release import ReleasePermit, ReleaseResponse
from broker.wire.tags import sealing_thumbprint
from enclave.errors import Code, SessionError
from enclave.keys import AgentKeys
from enclave.session import Admission, read_entry

RELEASED: Final = "secret.released"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """A released secret. Its value is in no repr; what reads it carries `labels` from then on."""

    name: str
    version: int
    value: bytes = field(repr=False)
    labels: frozenset[str]
    permit: ReleasePermit = field(repr=False)

    def text(self) -> str:
        """The value as UTF-8."""
        return self.value.decode("utf-8")


def open_release(
    answer: ReleaseResponse, *, admission: Admission, keys: AgentKeys, name: str, nonce: bytes, now_s: float
) -> Secret:
    """The secret in the broker's answer to a request for `name` with `nonce`.

    Raises WireError release.signature_invalid, release.mismatch, log.*; SessionError release.permit_expired,
    release.receipt_mismatch; SealingFailed sealing.open_failed.
    """
    broker = admission.broker
    permit = answer.verify(
        broker.identity,
        broker_id=broker.broker_id,
        jkt=keys.jkt,
        sealing_key=sealing_thumbprint(keys.suite, keys.sealing_key),
        name=name,
        nonce=nonce,
    )
    if now_s > permit.not_after_s:
        raise SessionError(Code.RELEASE_EXPIRED, f"the permit ended {now_s - permit.not_after_s:.0f} s ago")
    answer.receipt.verify(broker.log_key)
    logged = read_entry(answer.receipt)
    told = (logged.get("kind"), logged.get("subject"), logged.get("resource"), logged.get("permit"))
    if told != (RELEASED, admission.subject, name, permit.decision.hex()):
        raise SessionError(Code.RELEASE_RECEIPT, f"the log's entry {answer.receipt.index} is about something else")
    value = keys.open(answer.sealed, answer.context)
    return Secret(name=name, version=permit.version, value=value, labels=frozenset(permit.labels), permit=permit)
