"""CoRIM files made on the spot: reference triples of a trust domain, in envelopes that are good or damaged."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import cbor2
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512, HashAlgorithm

AT = datetime(2026, 12, 1, 12, tzinfo=UTC)
INTEL = cbor2.CBORTag(111, bytes.fromhex("6086480186f84d011001"))  # 2.16.840.1.113741.1.16.1
TD = {0: {1: "acme", 2: "td-image"}}
MEANT = {"vendor": "acme", "model": "td-image"}
ONE, TWO, THREE = (bytes([digit]) * 48 for digit in (1, 2, 3))

PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey
_HASHES: dict[str, HashAlgorithm] = {"secp256r1": SHA256(), "secp384r1": SHA384(), "secp521r1": SHA512()}


def triple(*values: dict[int, Any], environment: Any = None, key: Any = None) -> list[Any]:
    """A reference triple with one measurement for each of `values`."""
    named = {} if key is None else {0: key}
    return [TD if environment is None else environment, [{**named, 1: value} for value in values]]


def manifest(*triples: list[Any], profile: Any = INTEL, tagged: bool = True, **more: Any) -> bytes:
    """A corim-map with one CoMID. `validity` and `comid` are further members of the two maps."""
    comid = {1: {0: "comid"}, 4: {0: list(triples)}, **more.get("comid", {})}
    made: dict[int, Any] = {0: "image-7", 1: [cbor2.CBORTag(506, cbor2.dumps(comid)), *more.get("tags", ())]}
    if profile is not None:
        made[3] = profile
    if "validity" in more:
        made[4] = more["validity"]
    return bytes(cbor2.dumps(cbor2.CBORTag(501, made) if tagged else made))


def good(**more: Any) -> bytes:
    return manifest(triple({2: [[7, ONE]]}, {14: {1: [[7, TWO]]}}), **more)


def signed(
    payload: bytes,
    key: PrivateKey,
    *,
    algorithm: int = -7,
    meta: Any = None,
    changes: dict[Any, Any] | None = None,
    unprotected: dict[Any, Any] | None = None,
) -> bytes:
    """In COSE_Sign1. `changes` are further members of the protected header; None takes one out."""
    header: dict[Any, Any] = {1: algorithm, 3: "application/rim+cbor"}
    header[8] = cbor2.dumps({0: {0: "ACME"}} if meta is None else meta)
    header |= changes or {}
    protected = cbor2.dumps({label: value for label, value in header.items() if value is not None})
    signature = sign(key, cbor2.dumps(["Signature1", protected, b"", payload]))
    return bytes(cbor2.dumps(cbor2.CBORTag(18, [protected, unprotected or {}, payload, signature])))


def sign(key: PrivateKey, message: bytes) -> bytes:
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.sign(message)
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(message, padding.PSS(padding.MGF1(SHA256()), 32), SHA256())
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(_HASHES[key.curve.name])))
    size = (key.curve.key_size + 7) // 8
    return r.to_bytes(size, "big") + s.to_bytes(size, "big")
