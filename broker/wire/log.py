"""The audit log as its readers see it: RFC 6962 hashes and proofs, C2SP signed checkpoints, receipts.

Everything here verifies; nothing here keeps a log. The tree hash is RFC 6962 §2.1 with SHA-256; a checkpoint is a C2SP
signed note (tlog-checkpoint) with an Ed25519 signature of type 0x01; a receipt is one entry with its inclusion proof.
"""

import base64
import binascii
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Self, final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from broker.wire.errors import WireCode, WireError
from broker.wire.fields import Reader
from broker.wire.jose import b64u

HASH_LEN: Final = 32
MAX_ENTRY: Final = 0xFFFF  # tlog-tiles gives an entry a 16-bit length
MAX_PROOF: Final = 63
MAX_CHECKPOINT: Final = 4096
EMPTY_ROOT: Final = hashlib.sha256(b"").digest()
_ED25519: Final = b"\x01"


def leaf_hash(entry: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def raw_log_key(key: Ed25519PublicKey) -> bytes:
    """The 32 bytes of RFC 8032."""
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw)


def broker_id(log_key: bytes) -> bytes:
    """A broker's id is the SHA-256 of its log key's 32 raw bytes: what agents pin and REPORT_DATA names."""
    return hashlib.sha256(log_key).digest()


def key_hash(name: str, log_key: bytes) -> bytes:
    """The four bytes before a note's signature, which say whose it is (C2SP signed-note)."""
    return hashlib.sha256(name.encode() + b"\n" + _ED25519 + log_key).digest()[:4]


def verifier_key(name: str, log_key: bytes) -> str:
    """The log key in C2SP vkey form, `name+hash+key`, for other tools."""
    return f"{name}+{key_hash(name, log_key).hex()}+{base64.b64encode(_ED25519 + log_key).decode('ascii')}"


def parse_verifier_key(vkey: str) -> tuple[str, bytes]:
    """Name and raw key of a C2SP vkey. Raises WireError: log.malformed."""
    try:
        name, hashed, encoded = vkey.strip().split("+", 2)
        raw = base64.b64decode(encoded, validate=True)
    except (ValueError, binascii.Error):
        raise WireError(WireCode.LOG_MALFORMED, "not a verifier key name+hash+key") from None
    if len(raw) != 33 or raw[:1] != _ED25519 or key_hash(name, raw[1:]).hex() != hashed:
        raise WireError(WireCode.LOG_MALFORMED, "verifier key is not Ed25519, or its hash does not fit")
    return name, raw[1:]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The head of the log: `size` entries with this root hash, as the log `origin` signed it."""

    origin: str
    size: int
    root: bytes
    note: str  # exactly as signed and sent

    @classmethod
    def sign(cls, origin: str, size: int, root: bytes, key: Ed25519PrivateKey) -> Self:
        body = f"{origin}\n{size}\n{base64.b64encode(root).decode('ascii')}\n"
        signature = key_hash(origin, raw_log_key(key.public_key())) + key.sign(body.encode())
        note = f"{body}\n\u2014 {origin} {base64.b64encode(signature).decode('ascii')}\n"
        return cls(origin=origin, size=size, root=root, note=note)

    @classmethod
    def open(cls, note: str, log_key: bytes) -> Self:
        """Raises WireError: log.malformed, log.signature_invalid."""
        checkpoint, body, signatures = cls._parse(note)
        ours = key_hash(checkpoint.origin, log_key)
        for name, blob in signatures:
            if name == checkpoint.origin and blob[:4] == ours:
                try:
                    Ed25519PublicKey.from_public_bytes(log_key).verify(blob[4:], body.encode())
                except InvalidSignature:
                    break
                return checkpoint
        raise WireError(WireCode.LOG_SIGNATURE, "no valid signature of the log key on the checkpoint")

    @classmethod
    def _parse(cls, note: str) -> tuple[Self, str, list[tuple[str, bytes]]]:
        if len(note) > MAX_CHECKPOINT:
            raise WireError(WireCode.LOG_MALFORMED, f"a checkpoint of {len(note)} characters")
        text, blank, tail = note.rpartition("\n\n")
        body = text + "\n"
        lines = text.split("\n")
        try:
            origin, size_text, root_text = lines[0], lines[1], lines[2]
            size, root = int(size_text), base64.b64decode(root_text, validate=True)
            signatures = [_signature_line(line) for line in tail.splitlines()]
        except (IndexError, ValueError, binascii.Error):
            raise WireError(WireCode.LOG_MALFORMED, "not a signed checkpoint") from None
        if not blank or not origin or size < 0 or size_text != str(size) or len(root) != HASH_LEN:
            raise WireError(WireCode.LOG_MALFORMED, "origin, size or root hash of the checkpoint")
        return cls(origin=origin, size=size, root=root, note=note), body, signatures


def _signature_line(line: str) -> tuple[str, bytes]:
    dash, name, encoded = line.split(" ")
    if dash != "\u2014":
        raise ValueError("not a signature line")
    return name, base64.b64decode(encoded, validate=True)


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """RFC 9162 §2.1.3.2: does the leaf hash stand at `index` of the tree of `size` with this root?

    Raises WireError: log.proof_invalid.
    """
    if not 0 <= index < size:
        raise WireError(WireCode.LOG_PROOF, f"index {index} in a tree of {size}")
    at, last, found = index, size - 1, leaf
    for sibling in proof:
        if last == 0 or len(sibling) != HASH_LEN:
            raise WireError(WireCode.LOG_PROOF, "proof too long, or a hash of the wrong length")
        if at & 1 or at == last:
            found = node_hash(sibling, found)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            found = node_hash(found, sibling)
        at, last = at >> 1, last >> 1
    if last or found != root:
        raise WireError(WireCode.LOG_PROOF, "the inclusion proof does not lead to the root")


def verify_consistency(old_size: int, old_root: bytes, size: int, root: bytes, proof: Sequence[bytes]) -> None:
    """RFC 9162 §2.1.4.2: is the tree of `old_size` the beginning of the tree of `size`?

    Raises WireError: log.proof_invalid.
    """
    if not 0 <= old_size <= size:
        raise WireError(WireCode.LOG_PROOF, f"a log shrank from {old_size} to {size}")
    if old_size in (0, size):
        same = old_root == (EMPTY_ROOT if old_size == 0 else root)
        if proof or not same:
            raise WireError(WireCode.LOG_PROOF, "two roots for one size, or a proof where none belongs")
        return
    path = list(proof) if old_size & (old_size - 1) else [old_root, *proof]
    if not path:
        raise WireError(WireCode.LOG_PROOF, "empty consistency proof")
    at, last = old_size - 1, size - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    old = new = path[0]
    for sibling in path[1:]:
        if last == 0:
            raise WireError(WireCode.LOG_PROOF, "consistency proof too long")
        if at & 1 or at == last:
            old, new = node_hash(sibling, old), node_hash(sibling, new)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            new = node_hash(new, sibling)
        at, last = at >> 1, last >> 1
    if last or old != old_root or new != root:
        raise WireError(WireCode.LOG_PROOF, "the consistency proof does not lead to both roots")


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
