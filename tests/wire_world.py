"""Bodies, proofs and headers as they travel, good and changed."""

from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broker.wire.challenge import BrokerKeys, ChallengeResponse
from broker.wire.errors import WireError
from broker.wire.log import (
    EMPTY_ROOT,
    Checkpoint,
    Receipt,
    broker_id,
    leaf_hash,
    node_hash,
    raw_log_key,
)

KEY = ec.derive_private_key(7, ec.SECP256R1())
OTHER = ec.derive_private_key(8, ec.SECP256R1())
LOG = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
LOG_RAW = raw_log_key(LOG.public_key())


def outcome(action: Callable[..., object], *arguments: object) -> str:
    try:
        action(*arguments)
    except WireError as error:
        return error.code
    return "ok"


def answer(keys: BrokerKeys, at_s: int = 500) -> ChallengeResponse:
    return ChallengeResponse.sign(
        KEY,
        keys=keys,
        broker_id=broker_id(LOG_RAW),
        client_nonce=b"c" * 32,
        nonce=b"b" * 32,
        at_s=at_s,
        expires_s=60,
    )


def tree_root(leaves: list[bytes]) -> bytes:
    """RFC 6962 §2.1, written the way the RFC says it."""
    if not leaves:
        return EMPTY_ROOT
    if len(leaves) == 1:
        return leaf_hash(leaves[0])
    split = 1 << (len(leaves) - 1).bit_length() - 1
    return node_hash(tree_root(leaves[:split]), tree_root(leaves[split:]))


def path(index: int, leaves: list[bytes]) -> list[bytes]:
    if len(leaves) == 1:
        return []
    split = 1 << (len(leaves) - 1).bit_length() - 1
    if index < split:
        return [*path(index, leaves[:split]), tree_root(leaves[split:])]
    return [*path(index - split, leaves[split:]), tree_root(leaves[:split])]


def receipt() -> Receipt:
    leaves = [b"a", b"b", b"c"]
    note = Checkpoint.sign("broker.example/log", 3, tree_root(leaves), LOG).note
    return Receipt(index=1, entry=b"b", proof=tuple(path(1, leaves)), checkpoint=note)
