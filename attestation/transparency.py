"""Transparency logs as their readers check them: RFC 6962 hashes and proofs, C2SP signed checkpoints. Keeps no log.

Decides whether an entry stands in a log and whether one log begins another, with the log's public key alone. The tree
hash is RFC 6962 §2.1 with SHA-256; a checkpoint is a C2SP signed note (tlog-checkpoint) with an Ed25519 signature of
type 0x01. What entries say is left to whoever reads them.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Sequence
from enum import Enum
from typing import Final, NamedTuple, final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

HASH_LEN: Final = 32
MAX_CHECKPOINT: Final = 4096
EMPTY_ROOT: Final = hashlib.sha256(b"").digest()
ED25519: Final = b"\x01"


class Flaw(Enum):
    """What is wrong with a checkpoint or proof."""

    MALFORMED = "malformed"
    PROOF = "proof"
    SIGNATURE = "signature"


class LogError(ValueError):
    """A checkpoint or proof that must not be believed."""

    def __init__(self, flaw: Flaw, detail: str) -> None:
        super().__init__(detail)
        self.flaw, self.detail = flaw, detail


@final
class Note(NamedTuple):
    """A checkpoint taken apart, its signatures not verified: `body` is what they are over."""

    origin: str
    size: int
    root: bytes
    body: str
    signatures: tuple[tuple[str, bytes], ...]


def leaf_hash(entry: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def broker_id(log_key: bytes) -> bytes:
    """A broker's id is the SHA-256 of its log key's 32 raw bytes: what agents pin and REPORT_DATA names."""
    return hashlib.sha256(log_key).digest()


def key_hash(name: str, log_key: bytes) -> bytes:
    """The four bytes before a note's signature, which say whose it is (C2SP signed-note)."""
    return hashlib.sha256(name.encode() + b"\n" + ED25519 + log_key).digest()[:4]


def verifier_key(name: str, log_key: bytes) -> str:
    """The log key in C2SP vkey form, `name+hash+key`, for other tools."""
    return f"{name}+{key_hash(name, log_key).hex()}+{base64.b64encode(ED25519 + log_key).decode('ascii')}"


def parse_verifier_key(vkey: str) -> tuple[str, bytes]:
    """Name and raw key of a C2SP vkey. Raises LogError."""
    try:
        name, hashed, encoded = vkey.strip().split("+", 2)
        raw = base64.b64decode(encoded, validate=True)
    except (ValueError, binascii.Error):
        raise LogError(Flaw.MALFORMED, "not a verifier key name+hash+key") from None
    if len(raw) != 33 or raw[:1] != ED25519 or key_hash(name, raw[1:]).hex() != hashed:
        raise LogError(Flaw.MALFORMED, "verifier key is not Ed25519, or its hash does not fit")
    return name, raw[1:]


def read_note(note: str) -> Note:
    """Raises LogError."""
    if len(note) > MAX_CHECKPOINT:
        raise LogError(Flaw.MALFORMED, f"a checkpoint of {len(note)} characters")
    text, blank, tail = note.rpartition("\n\n")
    lines = text.split("\n")
    try:
        origin, size_text, root_text = lines[0], lines[1], lines[2]
        size, root = int(size_text), base64.b64decode(root_text, validate=True)
        signatures = tuple(_signature_line(line) for line in tail.splitlines())
    except (IndexError, ValueError, binascii.Error):
        raise LogError(Flaw.MALFORMED, "not a signed checkpoint") from None
    if not blank or not origin or size < 0 or size_text != str(size) or len(root) != HASH_LEN:
        raise LogError(Flaw.MALFORMED, "origin, size or root hash of the checkpoint")
    return Note(origin, size, root, text + "\n", signatures)


def open_note(note: str, log_key: bytes) -> Note:
    """The checkpoint, signed by the log key. Raises LogError."""
    found = read_note(note)
    ours = key_hash(found.origin, log_key)
    for name, blob in found.signatures:
        if name == found.origin and blob[:4] == ours:
            try:
                Ed25519PublicKey.from_public_bytes(log_key).verify(blob[4:], found.body.encode())
            except InvalidSignature:
                break
            return found
    raise LogError(Flaw.SIGNATURE, "no valid signature of the log key on the checkpoint")


def _signature_line(line: str) -> tuple[str, bytes]:
    dash, name, encoded = line.split(" ")
    if dash != "\u2014":
        raise ValueError("not a signature line")
    return name, base64.b64decode(encoded, validate=True)


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """RFC 9162 §2.1.3.2: does the leaf hash stand at `index` of the tree of `size` with this root? Raises LogError."""
    if not 0 <= index < size:
        raise LogError(Flaw.PROOF, f"index {index} in a tree of {size}")
    at, last, found = index, size - 1, leaf
    for sibling in proof:
        if last == 0 or len(sibling) != HASH_LEN:
            raise LogError(Flaw.PROOF, "proof too long, or a hash of the wrong length")
        if at & 1 or at == last:
            found = node_hash(sibling, found)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            found = node_hash(found, sibling)
        at, last = at >> 1, last >> 1
    if last or found != root:
        raise LogError(Flaw.PROOF, "the inclusion proof does not lead to the root")


def verify_consistency(old_size: int, old_root: bytes, size: int, root: bytes, proof: Sequence[bytes]) -> None:
    """RFC 9162 §2.1.4.2: is the tree of `old_size` the beginning of the tree of `size`? Raises LogError."""
    if not 0 <= old_size <= size:
        raise LogError(Flaw.PROOF, f"a log shrank from {old_size} to {size}")
    if old_size in (0, size):
        same = old_root == (EMPTY_ROOT if old_size == 0 else root)
        if proof or not same:
            raise LogError(Flaw.PROOF, "two roots for one size, or a proof where none belongs")
        return
    path = list(proof) if old_size & (old_size - 1) else [old_root, *proof]
    if not path:
        raise LogError(Flaw.PROOF, "empty consistency proof")
    at, last = old_size - 1, size - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    old = new = path[0]
    for sibling in path[1:]:
        if last == 0:
            raise LogError(Flaw.PROOF, "consistency proof too long")
        if at & 1 or at == last:
            old, new = node_hash(sibling, old), node_hash(sibling, new)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            new = node_hash(new, sibling)
        at, last = at >> 1, last >> 1
    if last or old != old_root or new != root:
        raise LogError(Flaw.PROOF, "the consistency proof does not lead to both roots")
