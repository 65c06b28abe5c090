"""The keys behind KBS tokens: a signing key and a small CA, both apart from every other key of the broker.

Decides what stands in a token's `x5c`: a leaf for the signing key under a CA that other KBS servers are told to trust.
Both private keys are drawn once and rest under the root key; the leaf is made anew long before it ends.
"""

import json
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, Self, final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
)
from cryptography.x509.oid import NameOID

from attestation.encoding import b64url, framed, from_b64url, strict_json
from broker.errors import BrokerCode, BrokerError
from broker.ports import Store, Transaction
from broker.rootkey.root import RootKey

CA_LIFE: Final = timedelta(days=3650)
LEAF_LIFE: Final = timedelta(days=90)
RENEW: Final = timedelta(days=30)
_BEFORE: Final = timedelta(hours=1)  # for readers whose clocks are behind
_MARK: Final = "kbs-key/"
_PURPOSE: Final = "kbs-key"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    """A private key, and for the CA its certificate."""

    private: ec.EllipticCurvePrivateKey = field(repr=False)
    certificate: bytes


@final
class KbsKeys:
    """The opened keys. `leaf` is what goes into tokens, `ca` what others put into their trust stores."""

    def __init__(self, signer: _Pair, ca: _Pair) -> None:
        self.signing: Final = signer.private
        self.ca: Final = x509.load_der_x509_certificate(ca.certificate)
        self._ca_key = ca.private
        self._leaf: x509.Certificate | None = None

    @classmethod
    async def open(cls, store: Store, root: RootKey, *, at: datetime) -> Self:
        """The store's keys, drawn when missing. Raises BrokerError root.wrong_key, store.row_forged."""

        def work(tx: Transaction) -> tuple[_Pair, _Pair]:
            return _pair(tx, root, "token", at), _pair(tx, root, "ca", at)

        return cls(*await store.transact(work))

    @property
    def ca_pem(self) -> bytes:
        return self.ca.public_bytes(Encoding.PEM)

    def leaf(self, at: datetime) -> bytes:
        """DER of the signing key's certificate, in force at `at`."""
        leaf = self._leaf
        if leaf is None or not leaf.not_valid_before_utc <= at <= leaf.not_valid_after_utc - RENEW:
            key = self.signing.public_key()
            builder = _certificate("Cloister KBS tokens", key, at, LEAF_LIFE).issuer_name(self.ca.subject)
            builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            leaf = self._leaf = builder.sign(self._ca_key, SHA256())
        return leaf.public_bytes(Encoding.DER)


def _pair(tx: Transaction, root: RootKey, name: str, at: datetime) -> _Pair:
    known = tx.marks.get(_MARK + name)
    aad = framed(b"cloister/kbs-key/v1", name.encode())
    if known is None:
        private = ec.generate_private_key(ec.SECP256R1())
        raw = private.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
        certificate = _authority(private, at) if name == "ca" else b""
        kept = {"wrapped": b64url(root.wrap(_PURPOSE, raw, aad=aad)), "certificate": b64url(certificate)}
        tx.marks.put(_MARK + name, json.dumps(kept))
        return _Pair(private=private, certificate=certificate)
    members = strict_json(known)
    key = load_der_private_key(root.unwrap(_PURPOSE, from_b64url(members["wrapped"]), aad=aad), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise BrokerError(BrokerCode.STORE_ROW_FORGED, f"KBS key {name} is of another kind")
    return _Pair(private=key, certificate=from_b64url(members["certificate"]))


def _authority(key: ec.EllipticCurvePrivateKey, at: datetime) -> bytes:
    """A self-signed CA whose name tells it from the CA of another broker."""
    digest = x509.SubjectKeyIdentifier.from_public_key(key.public_key()).digest.hex()[:16]
    builder = _certificate(f"Cloister KBS CA {digest}", key.public_key(), at, CA_LIFE)
    builder = builder.issuer_name(_name(f"Cloister KBS CA {digest}"))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    return builder.sign(key, SHA256()).public_bytes(Encoding.DER)


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _certificate(common: str, key: ec.EllipticCurvePublicKey, at: datetime, life: timedelta) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(_name(common))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(at - _BEFORE)
        .not_valid_after(at + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )
