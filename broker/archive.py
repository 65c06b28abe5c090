"""What decisions were taken by, kept so that each can be taken again: evidence, collateral, policies.

Decides how long: a blob stays while anything that it was used for is younger than the retention, and as long as an
agent, a platform family or a tenant still rests on it. The stored form of evidence is `attestation.records`' decision;
policies are kept as the very bytes that their digest is of. The log itself is never cut.
"""

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Final

from attestation.evidence import Evidence
from attestation.guest import GuestEvidence
from attestation.records import AgentEvidence, Packed, part_digests
from attestation.records import unpack as unpack_record
from broker.errors import BrokerCode, BrokerError
from broker.ports import DAY_S, AgentState, Transaction
from policies.bundle import Bundle, bundle_bytes

PAGE: Final = 1000
LATE_S: Final = 2 * DAY_S  # by which a use may be later than is written down: `put` does so by the day


def keep(tx: Transaction, packed: Packed, at: datetime) -> None:
    """Store evidence as of a moment at which it was used."""
    tx.archive.put(*packed.blobs, at_s=int(at.timestamp()))


def keep_policies(tx: Transaction, bundles: Iterable[Bundle], at: datetime) -> None:
    blobs = [(bytes.fromhex(bundle.digest), bundle_bytes(bundle.files)) for bundle in bundles]
    tx.archive.put(*blobs, at_s=int(at.timestamp()))


def unpack(tx: Transaction, digest: bytes) -> tuple[Evidence, bytes]:
    """An agent's evidence and its own nonce. Raises BrokerError store.row_forged, when something is gone or changed."""
    found = _unpacked(tx, digest)
    if not isinstance(found, AgentEvidence):
        raise BrokerError(BrokerCode.STORE_ROW_FORGED, f"{digest.hex()[:16]} is no agent's evidence")
    return found.evidence, found.client_nonce


def unpack_guest(tx: Transaction, digest: bytes) -> GuestEvidence:
    """Raises BrokerError store.row_forged, when something is gone or was changed."""
    found = _unpacked(tx, digest)
    if not isinstance(found, GuestEvidence):
        raise BrokerError(BrokerCode.STORE_ROW_FORGED, f"{digest.hex()[:16]} is no guest's evidence")
    return found


def _unpacked(tx: Transaction, digest: bytes) -> AgentEvidence | GuestEvidence:
    try:
        return unpack_record(digest, lambda name: blob(tx, name))
    except (LookupError, ValueError) as error:
        raise BrokerError(BrokerCode.STORE_ROW_FORGED, f"archived {digest.hex()[:16]}: {error}") from None


def blob(tx: Transaction, digest: bytes) -> bytes:
    """Raises LookupError when it is not there."""
    found = tx.archive.get(digest)
    if found is None:
        raise LookupError(f"blob {digest.hex()[:16]} is missing")
    return found


def prune(tx: Transaction, bundles: Iterable[Bundle], collateral: Iterable[bytes], *, at: datetime, keep_s: int) -> int:
    """Drop what nothing younger than `keep_s` was decided by; how many blobs. `collateral` is what is at hand."""
    now_s = int(at.timestamp())
    needed = [bytes.fromhex(bundle.digest) for bundle in bundles]
    tx.archive.touch([*needed, *collateral, *_of_agents(tx, now_s)], at_s=now_s)
    return tx.archive.prune(before_s=now_s - keep_s - LATE_S)


def _of_agents(tx: Transaction, now_s: int) -> Iterator[bytes]:
    """What agents that may still act would be judged again by."""
    after = ""
    while page := tx.agents.page(after=after, limit=PAGE):
        for record in page:
            if record.state is not AgentState.REVOKED and record.expires_at_s > now_s:
                raw = tx.archive.get(record.evidence)
                yield from (record.evidence, bytes.fromhex(record.collateral), *(part_digests(raw) if raw else ()))
        after = page[-1].subject
