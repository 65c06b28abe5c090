"""Keys that the broker keeps for a durable mailbox or a topic: opened here, after everything about the grant fits.

Decides, as for a released secret, that nothing is opened that the pinned broker did not sign for this very request, and
that the keys inside are those that the log names. What may be read with them is decided by `mailbox` and `topics`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, final

from attestation.sealing import SealingKey
from broker.wire.keys import KeySet, KeysResponse, Place, grant_digest
from broker.wire.tags import sealing_thumbprint
from enclave.errors import Code, SessionError
from enclave.keys import AgentKeys
from enclave.session import Admission, read_entry

RELEASED: Final = "keys.released"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class KeptKey:
    """One epoch's private key. Sealed to until `not_after_s`, kept until `keep_until_s`."""

    epoch: int
    key: SealingKey = field(repr=False)
    not_before_s: int
    not_after_s: int
    keep_until_s: int

    @property
    def thumbprint(self) -> bytes:
        return sealing_thumbprint(self.key.suite, self.key.public)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class KeptKeys:
    """Every key that can still be needed, oldest first, and the key that seals this reader's checkpoints."""

    name: str
    keys: tuple[KeptKey, ...]
    state_key: bytes = field(repr=False)


def open_keys(
    answer: KeysResponse, *, admission: Admission, keys: AgentKeys, of: Place, name: str, nonce: bytes, now_s: float
) -> KeptKeys:
    """The keys in the broker's answer to a request for those of `name` with `nonce`.

    Raises WireError release.signature_invalid, release.mismatch, body.*, log.*; SessionError release.permit_expired,
    release.receipt_mismatch; SealingFailed.
    """
    broker = admission.broker
    grant = answer.verify(
        broker.identity,
        broker_id=broker.broker_id,
        jkt=keys.jkt,
        sealing_key=sealing_thumbprint(keys.suite, keys.sealing_key),
        of=of,
        name=name,
        nonce=nonce,
    )
    if now_s > grant.not_after_s:
        raise SessionError(Code.RELEASE_EXPIRED, f"the grant ended {now_s - grant.not_after_s:.0f} s ago")
    answer.receipt.verify(broker.log_key)
    found = KeySet.from_bytes(keys.open(answer.sealed, grant_digest(answer.grant)))
    opened = tuple(
        KeptKey(
            epoch=one.epoch,
            key=SealingKey.from_seed(one.seed, one.suite),
            not_before_s=one.not_before_s,
            not_after_s=one.not_after_s,
            keep_until_s=one.keep_until_s,
        )
        for one in found.epochs
    )
    logged = read_entry(answer.receipt)
    told = tuple(logged.get(member) for member in ("kind", "subject", "resource", "of", "permit", "keys"))
    thumbprints = [one.thumbprint.hex() for one in opened]
    if not opened or told != (RELEASED, admission.subject, name, of, grant.decision.hex(), thumbprints):
        raise SessionError(Code.RELEASE_RECEIPT, f"the log's entry {answer.receipt.index} is about something else")
    return KeptKeys(name=name, keys=opened, state_key=found.state_key)
