"""Decisions on their way out: an entry of the log with everything that it was decided by, in one file.

Decides which entries can be handed out so (those that name evidence, collateral and policy) and gathers their parts
from log and archive. What the file proves is `policies.decided`'s business, which needs nothing of this package.
"""

import json
from typing import Any

from attestation.collateral import Collateral
from attestation.errors import AttestationError
from attestation.records import part_digests
from broker import tree
from broker.archive import blob
from broker.errors import BrokerCode, BrokerError
from broker.ports import Readable, Transaction
from broker.wire.log import Checkpoint, verifier_key
from policies.bundle import files_of
from policies.decision import Decision, DecisionError


def decision_file(store: Readable, index: int, log_key: bytes) -> bytes:
    """Raises BrokerError log.entry_unknown, decision.unavailable."""
    try:
        return store.read(lambda tx: gather(tx, index, log_key)).to_bytes()
    except DecisionError as error:
        raise BrokerError(BrokerCode.DECISION_UNAVAILABLE, error.detail) from None


def gather(tx: Transaction, index: int, log_key: bytes) -> Decision:
    """The parts of one decision. Raises BrokerError log.entry_unknown, decision.unavailable."""
    head = tx.log.head()
    row = tx.log.entry(index) if head is not None and 0 <= index < head.size else None
    if row is None or head is None:
        raise BrokerError(BrokerCode.LOG_ENTRY_UNKNOWN, f"entry {index}")
    facts = json.loads(row.entry)
    try:
        record = bytes.fromhex(facts["evidence"])
        evidence = {record: blob(tx, record)}
        evidence |= {digest: blob(tx, digest) for digest in part_digests(evidence[record])}
        return Decision(
            log_key=verifier_key(Checkpoint.open(head.note, log_key).origin, log_key),
            index=index,
            entry=row.entry,
            proof=tree.inclusion(index, head.size, _nodes(tx)),
            checkpoint=head.note,
            evidence=evidence,
            collateral=_collateral(tx, facts),
            policy=files_of(blob(tx, bytes.fromhex(facts["policy"]))),
        )
    except KeyError as error:
        detail = f"entry {index} ({facts.get('kind')}) rests on no {error}"
        raise BrokerError(BrokerCode.DECISION_UNAVAILABLE, detail) from None
    except (LookupError, ValueError, AttestationError) as error:
        raise BrokerError(BrokerCode.DECISION_UNAVAILABLE, f"entry {index}: {error}") from None


def consistency(store: Readable, old: int, size: int) -> tuple[bytes, ...] | None:
    """That the first `old` entries begin the first `size`; None when the stored log has no such trees."""
    if not 0 < old <= size <= store.read(lambda tx: tx.log.size()):
        return None
    return store.read(lambda tx: tree.consistency(old, size, _nodes(tx)))


def _collateral(tx: Transaction, facts: dict[str, Any]) -> Collateral:
    return Collateral.from_json(blob(tx, bytes.fromhex(facts["collateral"])))


def _nodes(tx: Transaction) -> tree.GetNode:
    def get(level: int, index: int) -> bytes:
        found = tx.log.node(level, index)
        if found is None:
            raise LookupError(f"node {level}/{index} is missing")
        return found

    return get
