"""Key files of signers, PEM ↔ keys. Decides which keys may sign bundles: Ed25519 and P-256, nothing else."""

from __future__ import annotations

from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from policies.codes import BundleCode
from policies.errors import BundleError
from policies.signing import PrivateKey, PublicKey

_HINT = "openssl genpkey -algorithm ed25519 -out key.pem; openssl pkey -in key.pem -pubout -out key.pub"


def _bad(path: Path, detail: str) -> BundleError:
    return BundleError(BundleCode.SIGNATURE, str(path), 0, detail, _HINT)


def private_key(path: Path) -> PrivateKey:
    """Raises BundleError: no unencrypted PEM private key, or another kind of key. Never shows the key."""
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (TypeError, ValueError, UnsupportedAlgorithm) as error:
        raise _bad(path, "no unencrypted private key in PEM") from error
    if isinstance(key, Ed25519PrivateKey):
        return key
    if isinstance(key, EllipticCurvePrivateKey) and isinstance(key.curve, SECP256R1):
        return key
    raise _bad(path, "neither an Ed25519 nor a P-256 key")


def public_key(path: Path) -> PublicKey:
    """Raises BundleError: no PEM public key, or another kind of key."""
    try:
        key = load_pem_public_key(path.read_bytes())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _bad(path, "no public key in PEM") from error
    if isinstance(key, Ed25519PublicKey):
        return key
    if isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1):
        return key
    raise _bad(path, "neither an Ed25519 nor a P-256 key")
