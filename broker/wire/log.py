"""The audit log as its readers see it: checkpoints and receipts in the words of this wire.

Everything here verifies; nothing here keeps a log. How hashes, proofs and signed notes are checked is decided in
`attestation.transparency`, which a relying party has without this package; here its findings become WireError log.*
"""

import base64
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Self, final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attestation import transparency
from attestation.transparency import (
    EMPTY_ROOT,
    HASH_LEN,
    MAX_CHECKPOINT,
    Flaw,
    LogError,
    broker_id,
    key_hash,
    leaf_hash,
    node_hash,
    verifier_key,
)
from broker.wire.errors import WireCode, WireError
from broker.wire.fields import Reader
from broker.wire.jose import b64u

__all__ = [
    "EMPTY_ROOT",
    "HASH_LEN",
    "MAX_CHECKPOINT",
    "Checkpoint",
    "Receipt",
    "broker_id",
    "key_hash",
    "leaf_hash",
    "node_hash",
    "parse_verifier_key",
    "raw_log_key",
    "verifier_key",
    "verify_consistency",
    "verify_inclusion",
]

MAX_ENTRY: Final = 0xFFFF  # tlog-tiles gives an entry a 16-bit length
MAX_PROOF: Final = 63
_CODES: Final = {
    Flaw.MALFORMED: WireCode.LOG_MALFORMED,
    Flaw.PROOF: WireCode.LOG_PROOF,
    Flaw.SIGNATURE: WireCode.LOG_SIGNATURE,
}


@contextmanager
def _as_wire_error() -> Iterator[None]:
    try:
        yield
    except LogError as error:
        raise WireError(_CODES[error.flaw], error.detail) from None


def raw_log_key(key: Ed25519PublicKey) -> bytes:
    """The 32 bytes of RFC 8032."""
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw)


def parse_verifier_key(vkey: str) -> tuple[str, bytes]:
    """Name and raw key of a C2SP vkey. Raises WireError: log.malformed."""
    with _as_wire_error():
        return transparency.parse_verifier_key(vkey)


_ROWS: Final = "cloister-rows "


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The head of the log: `size` entries with this root hash, as the log `origin` signed it."""

    origin: str
    size: int
    root: bytes
    note: str  # exactly as signed and sent
    rows: bytes = b""  # stands for the rows that decide about security: an extension line

    @classmethod
    def sign(cls, origin: str, size: int, root: bytes, key: Ed25519PrivateKey, *, rows: bytes = b"") -> Self:
        body = f"{origin}\n{size}\n{base64.b64encode(root).decode('ascii')}\n"
        body += f"{_ROWS}{base64.b64encode(rows).decode('ascii')}\n" if rows else ""
        signature = key_hash(origin, raw_log_key(key.public_key())) + key.sign(body.encode())
        note = f"{body}\n\u2014 {origin} {base64.b64encode(signature).decode('ascii')}\n"
        return cls(origin=origin, size=size, root=root, note=note, rows=rows)

    @classmethod
    def parse(cls, note: str) -> Self:
        """What a note says, believed by nobody yet. Raises WireError: log.malformed."""
        with _as_wire_error():
            found = transparency.read_note(note)
        return cls(origin=found.origin, size=found.size, root=found.root, note=note, rows=_rows(note))

    @classmethod
    def open(cls, note: str, log_key: bytes) -> Self:
        """Raises WireError: log.malformed, log.signature_invalid."""
        with _as_wire_error():
            found = transparency.open_note(note, log_key)
        return cls(origin=found.origin, size=found.size, root=found.root, note=note, rows=_rows(note))


def _rows(note: str) -> bytes:
    """The head of the security rows, if the note has one. Raises WireError: log.malformed."""
    lines = note.rpartition("\n\n")[0].split("\n")[3:]
    found = [line[len(_ROWS) :] for line in lines if line.startswith(_ROWS)]
    try:
        rows = [base64.b64decode(text, validate=True) for text in found]
    except ValueError:
        rows = [b"-"]
    if len(rows) > 1 or any(len(head) != HASH_LEN for head in rows):
        raise WireError(WireCode.LOG_MALFORMED, "the head of the rows in the checkpoint")
    return rows[0] if rows else b""


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Does the leaf hash stand at `index` of the tree of `size` with this root? Raises WireError: log.proof_invalid."""
    with _as_wire_error():
        transparency.verify_inclusion(leaf, index, size, proof, root)


def verify_consistency(old_size: int, old_root: bytes, size: int, root: bytes, proof: Sequence[bytes]) -> None:
    """Is the tree of `old_size` the beginning of the tree of `size`? Raises WireError: log.proof_invalid."""
    with _as_wire_error():
        transparency.verify_consistency(old_size, old_root, size, root, proof)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """Proof that one entry stands in the log: keep it, and a log that drops or rewrites the entry is caught."""

    index: int
    entry: bytes
    proof: tuple[bytes, ...]
    checkpoint: str

    def verify(self, log_key: bytes) -> Checkpoint:
        """Raises WireError: log.malformed, log.signature_invalid, log.proof_invalid."""
        checkpoint = Checkpoint.open(self.checkpoint, log_key)
        verify_inclusion(leaf_hash(self.entry), self.index, checkpoint.size, self.proof, checkpoint.root)
        return checkpoint

    def to_dict(self) -> dict[str, Any]:
        return {
            "index": self.index,
            "entry": b64u(self.entry),
            "proof": [b64u(sibling) for sibling in self.proof],
            "checkpoint": self.checkpoint,
        }

    @classmethod
    def from_dict(cls, value: object) -> Self:
        read = Reader(value, "receipt")
        return cls(
            index=read.number("index"),
            entry=read.raw("entry", max_len=MAX_ENTRY),
            proof=read.items("proof", _sibling, max_items=MAX_PROOF),
            checkpoint=read.text("checkpoint", max_len=MAX_CHECKPOINT),
        )


def _sibling(value: object) -> bytes:
    return Reader({"hash": value}, "receipt.proof").raw("hash", size=HASH_LEN)
