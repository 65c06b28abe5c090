"""COSE_Sign1 → the payload that one named key signed, and the header that it signed with it.

Decides which signatures count: one by the key that the caller names, over an algorithm that this key has, with nothing
critical in the header that is not understood here. Keys and certificates in the header are never believed. What the
payload says, and how long the signer stands by it, is decided where it is read (`policies.corim`). cbor2 is needed and
loaded only in a call.

Sources: RFC 9052 §3.1 (headers), §4.2 and §4.4 (COSE_Sign1, Sig_structure); RFC 9053 §2 and §8; RFC 9864 §2.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, PSS
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512, HashAlgorithm

from policies.codes import BundleCode
from policies.errors import BundleError

SignerKey = EllipticCurvePublicKey | Ed25519PublicKey | RSAPublicKey

SIGN1: Final = 18
ALG, CRIT, CONTENT_TYPE = 1, 2, 3
# Whatever else is named as critical is not understood. 4 is the key's id, which a named key makes needless; 8 and 15
# are the signer's words about a manifest, which `policies.corim` reads.
UNDERSTOOD: Final = frozenset({ALG, CONTENT_TYPE, 4, 8, 15})
MIN_RSA_BITS: Final = 2048

# Algorithm → curve and hash; the second number of each is the fully specified one.
_ECDSA: Final[dict[int, tuple[str, HashAlgorithm]]] = {
    -7: ("secp256r1", SHA256()),
    -9: ("secp256r1", SHA256()),
    -35: ("secp384r1", SHA384()),
    -51: ("secp384r1", SHA384()),
    -36: ("secp521r1", SHA512()),
    -52: ("secp521r1", SHA512()),
}
_EDDSA: Final = frozenset({-8, -19})
_PSS: Final[dict[int, HashAlgorithm]] = {-37: SHA256(), -38: SHA384(), -39: SHA512()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed:
    """What the named key signed."""

    payload: bytes
    protected: Mapping[Any, Any]


def decode(raw: bytes) -> Any:
    """One CBOR item and nothing behind it, every length definite, no key twice. Raises what cbor2 raises: see there."""
    import cbor2

    source = io.BytesIO(raw)
    item = cbor2.CBORDecoder(source, max_depth=64, allow_indefinite=False, allow_duplicate_keys=False).decode()
    if source.read(1):
        raise ValueError("there are bytes behind the end")
    return item


def verify_sign1(name: str, parts: Any, key: SignerKey) -> Signed:
    """The four parts under tag 18. Raises BundleError, codes `manifest.*`; and like `decode` where it is no COSE."""
    protected, unprotected, payload, signature = parts
    if not isinstance(protected, bytes) or not isinstance(unprotected, Mapping) or not isinstance(signature, bytes):
        raise TypeError("COSE_Sign1 is bytes, a map, bytes and bytes")
    header = decode(protected) if protected else {}
    if not isinstance(header, Mapping):
        raise TypeError("the protected header is no map")
    _check_header(name, header, unprotected)
    if not isinstance(payload, bytes):
        raise _bad(name, BundleCode.MANIFEST_HEADER, "the payload is not in the file", "have it put in: attached")
    if not _good(key, header.get(ALG), signature, _to_be_signed(protected, payload)):
        hint = "the file was changed, or somebody else signed it"
        raise _bad(name, BundleCode.MANIFEST_SIGNATURE, "the signature is not one of the named key", hint)
    return Signed(payload=payload, protected=header)


def _bad(name: str, code: BundleCode, detail: str, hint: str = "") -> BundleError:
    return BundleError(code, name, 0, detail, hint)


def _check_header(name: str, header: Mapping[Any, Any], unprotected: Mapping[Any, Any]) -> None:
    """Nothing twice, nothing critical that is not understood, and the list of what is critical signed itself."""
    if twice := [label for label in header if label in unprotected]:
        raise _bad(name, BundleCode.MANIFEST_HEADER, f"header {twice[0]!r} is there signed and unsigned")
    if CRIT in unprotected:
        raise _bad(name, BundleCode.MANIFEST_HEADER, "the list of critical headers is not signed")
    if CRIT not in header:
        return
    critical = header[CRIT]
    if not isinstance(critical, list) or not critical:
        raise _bad(name, BundleCode.MANIFEST_HEADER, "the list of critical headers is empty, or none")
    for label in critical:
        if label not in UNDERSTOOD or label not in header:
            raise _bad(name, BundleCode.MANIFEST_HEADER, f"critical header {label!r} is not understood, or not there")


def _to_be_signed(protected: bytes, payload: bytes) -> bytes:
    import cbor2

    return bytes(cbor2.dumps(["Signature1", protected, b"", payload]))


def _good(key: SignerKey, algorithm: Any, signature: bytes, message: bytes) -> bool:
    """Whether it verifies by an algorithm that is this kind of key's own."""
    if not isinstance(algorithm, int):
        return False
    try:
        if isinstance(key, Ed25519PublicKey):
            if algorithm not in _EDDSA:
                return False
            key.verify(signature, message)
        elif isinstance(key, EllipticCurvePublicKey):
            curve, digest = _ECDSA.get(algorithm, ("", SHA256()))
            size = (key.curve.key_size + 7) // 8
            if key.curve.name != curve or len(signature) != 2 * size:
                return False
            r, s = int.from_bytes(signature[:size], "big"), int.from_bytes(signature[size:], "big")
            key.verify(encode_dss_signature(r, s), message, ECDSA(digest))
        else:
            hashed = _PSS.get(algorithm)
            if hashed is None or key.key_size < MIN_RSA_BITS:
                return False
            key.verify(signature, message, PSS(MGF1(hashed), hashed.digest_size), hashed)
    except InvalidSignature:
        return False
    return True
