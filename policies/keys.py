"""Key files of signers, PEM ↔ keys. Decides which keys may sign bundles: Ed25519 and P-256, nothing else; and which
keys and certificates a manifest's signer may have.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from cryptography.x509 import BasicConstraints, Certificate, ExtensionNotFound, load_pem_x509_certificates

from policies.codes import BundleCode
from policies.cose import SignerKey
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


def manifest_signer(path: Path, *, at: datetime) -> SignerKey:
    """The key in a PEM public key, or in the one certificate of a signer, which must be in force and no authority's.

    Raises BundleError. An authority's certificate is refused, because whoever it certifies is not named by it.
    """
    raw = path.read_bytes()
    try:
        key = _certified(path, raw, at) if b"-----BEGIN CERTIFICATE-----" in raw else load_pem_public_key(raw)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise BundleError(BundleCode.MANIFEST_SIGNATURE, str(path), 0, "no public key or certificate in PEM") from error
    if not isinstance(key, SignerKey):
        raise BundleError(BundleCode.MANIFEST_SIGNATURE, str(path), 0, "neither an EC, an Ed25519 nor an RSA key")
    return key


def _certified(path: Path, raw: bytes, at: datetime) -> object:
    first, *more = load_pem_x509_certificates(raw)
    if more or _is_authority(first):
        detail = f"{len(more) + 1} certificates" if more else "the certificate of an authority"
        raise BundleError(BundleCode.MANIFEST_SIGNATURE, str(path), 0, detail, "name the signer's own certificate")
    begin, end = first.not_valid_before_utc, first.not_valid_after_utc
    if not begin <= at <= end:
        detail = f"the certificate is in force from {begin.isoformat()} to {end.isoformat()}, not at {at.isoformat()}"
        raise BundleError(BundleCode.MANIFEST_VALIDITY, str(path), 0, detail)
    return first.public_key()


def _is_authority(certificate: Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(BasicConstraints).value.ca
    except ExtensionNotFound:
        return False
