"""Signatures over bundles: k of n keys, each over the digest under a domain tag.

Decides what is signed and which keys count; who holds the keys and where their public halves are pinned is decided
elsewhere (the trust file). Ed25519 and ES256 (raw r ‖ s, as in JWS) are known.

signatures.toml, beside bundle.toml and not part of the digest:
    [[signature]]
    key = "…"        64 hex digits: SHA-256 of the public key's SPKI DER
    value = "…"      signature, hex, 64 bytes
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from policies.codes import BundleCode
from policies.errors import BundleError
from policies.tables import read_toml

FILE: Final = "signatures.toml"
TAG: Final = b"cloister/policy-bundle/v1\0"

PublicKey = Ed25519PublicKey | EllipticCurvePublicKey
PrivateKey = Ed25519PrivateKey | EllipticCurvePrivateKey


def key_id(key: PublicKey) -> str:
    """Hex SHA-256 of the SPKI DER."""
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


@dataclass(frozen=True, slots=True)
class Signers:
    """Who may sign bundles, and how many of them must. Raises ValueError unless 1 ≤ threshold ≤ number of keys."""

    keys: tuple[PublicKey, ...]
    threshold: int = 1
    by_id: dict[str, PublicKey] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_id", {key_id(key): key for key in self.keys})
        if not 1 <= self.threshold <= len(self.by_id):
            raise ValueError(f"threshold {self.threshold} of {len(self.by_id)} distinct keys")
        for key in self.keys:
            if isinstance(key, EllipticCurvePublicKey) and not isinstance(key.curve, SECP256R1):
                raise ValueError(f"curve {key.curve.name}, need P-256")


def sign(key: PrivateKey, digest: bytes) -> bytes:
    """64 bytes over tag ‖ digest. Raises ValueError for a curve other than P-256."""
    if isinstance(key, Ed25519PrivateKey):
        return key.sign(TAG + digest)
    if not isinstance(key.curve, SECP256R1):
        raise ValueError(f"curve {key.curve.name}, need P-256")
    r, s = decode_dss_signature(key.sign(TAG + digest, ECDSA(SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def _good(key: PublicKey, signature: bytes, digest: bytes) -> bool:
    try:
        if isinstance(key, Ed25519PublicKey):
            key.verify(signature, TAG + digest)
        else:
            r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
            key.verify(encode_dss_signature(r, s), TAG + digest, ECDSA(SHA256()))
    except InvalidSignature:
        return False
    return True


def read_signatures(raw: bytes, problems: list[BundleError]) -> dict[str, tuple[bytes, int]]:
    """Key id → signature and line. Every mistake in the file goes to `problems`."""
    found: dict[str, tuple[bytes, int]] = {}
    table = read_toml(FILE, raw, problems)
    for entry in table.tables("signature"):
        key = entry.hex("key", 64, required=True)
        value = entry.hex("value", 128, required=True)
        entry.done()
        if key in found:
            entry.complain("key", BundleCode.DUPLICATE, f"two signatures by {key[:16]}…", "keep one")
        elif key and value:
            found[key] = (bytes.fromhex(value), entry.line())
    table.done()
    return found


def check_signatures(
    raw: bytes | None, digest: bytes, signers: Signers, problems: list[BundleError]
) -> tuple[str, ...]:
    """Ids of the trusted keys that signed. Too few is a problem; so is a wrong signature by a trusted key."""
    signatures = read_signatures(raw, problems) if raw is not None else {}
    good: list[str] = []
    for name, (signature, line) in signatures.items():
        key = signers.by_id.get(name)
        if key is None:
            continue
        if _good(key, signature, digest):
            good.append(name)
        else:
            detail = f"the signature by {name[:16]}… is not over this content"
            problems.append(BundleError(BundleCode.SIGNATURE, FILE, line, detail, "sign again after the last edit"))
    if len(good) < signers.threshold:
        missing = ", ".join(f"{name[:16]}…" for name in signers.by_id if name not in good)
        detail = f"{len(good)} of {signers.threshold} signatures needed"
        hint = f"sign with {signers.threshold - len(good)} more of {missing}: cloister policy sign DIR --key FILE"
        problems.append(BundleError(BundleCode.UNSIGNED, FILE, 0, detail, hint))
    return tuple(good)


def render(signatures: Iterable[tuple[str, bytes]]) -> str:
    """The text of signatures.toml."""
    head = "# Signatures over this bundle's digest; `cloister policy sign` adds one.\n"
    return head + "".join(f'\n[[signature]]\nkey = "{key}"\nvalue = "{value.hex()}"\n' for key, value in signatures)
