"""The keys of a dstack application on a simulated machine, and the certificates and signatures that go with them.

Decides what is derived from what. There is no key management service here: its two root keys follow from the machine's
seed, so the same application on the same machine always gets the same keys, and another machine others. Derivation is
dstack's: HKDF-SHA256, salt "RATLS", info = the pieces one after the other, 32 bytes.

Source: dstack `ra-tls/src/{kdf,cert,oids}.rs`, `kms/src/crypto.rs`, `guest-agent/src/rpc_service.rs`.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from simulator.guest import secp256k1
from simulator.guest.keccak import keccak

if TYPE_CHECKING:
    from simulator.seed import Seed

SECP256K1: Final = ("", "secp256k1", "k256")
ED25519: Final = "ed25519"
OID_PREFIX: Final = "1.3.6.1.4.1.62397.1."
APP_ID, SPECIAL_USE, ATTESTATION, APP_INFO = 3, 4, 8, 9
"""Last arcs of dstack's certificate extensions."""
TEN_YEARS: Final = timedelta(days=3650)
_P256_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


class UnknownAlgorithm(ValueError):
    """Not a key algorithm of dstack's."""


def derive(secret: bytes, *context: bytes) -> bytes:
    """32 bytes."""
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=b"RATLS", info=b"".join(context)).derive(secret)


def p256(secret: bytes) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(int.from_bytes(secret, "big") % (_P256_ORDER - 1) + 1, ec.SECP256R1())


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsRequest:
    """What GetTlsKey and DeriveKey ask for."""

    subject: str = ""
    alt_names: tuple[str, ...] = ()
    server_auth: bool = False
    client_auth: bool = False
    not_before: datetime | None = None
    not_after: datetime | None = None
    extensions: dict[int, bytes] = field(default_factory=dict)
    """Last arc of the OID → content"""


class AppKeys:
    """All keys of one application. Raises UnknownAlgorithm where an algorithm is chosen."""

    def __init__(self, seed: Seed, app_id: bytes) -> None:
        self.app_id = app_id
        self._seed = seed

    @cached_property
    def kms_root(self) -> ec.EllipticCurvePrivateKey:
        """secp256k1; what a verifier of signature chains pins."""
        return secp256k1.private_key(self._seed.derive("dstack/kms/k256", 32))

    @cached_property
    def _kms_ca_secret(self) -> bytes:
        return self._seed.derive("dstack/kms/p256", 32)

    @cached_property
    def _root_secret(self) -> bytes:
        return derive(self._seed.derive("dstack/kms/k256", 32), self.app_id, b"app-key")

    @cached_property
    def root(self) -> ec.EllipticCurvePrivateKey:
        """The application's own secp256k1 root."""
        return secp256k1.private_key(self._root_secret)

    @cached_property
    def _root_vouched(self) -> bytes:
        """The KMS root's signature over the application's root."""
        message = b"dstack-kms-issued:" + self.app_id + secp256k1.compressed(self.root)
        return secp256k1.sign_recoverable(self.kms_root, keccak(message))

    def secret(self, path: str) -> bytes:
        """The 32 bytes at a path: the same for every algorithm and purpose."""
        return derive(self._root_secret, path.encode())

    def public(self, path: str, algorithm: str) -> bytes:
        """33 bytes for secp256k1, 32 for ed25519."""
        if algorithm in SECP256K1:
            return secp256k1.compressed(secp256k1.private_key(self.secret(path)))
        if algorithm == ED25519:
            return _ed25519(self.secret(path)).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        raise UnknownAlgorithm("Unsupported algorithm")

    def chain(self, path: str, purpose: str, algorithm: str) -> list[bytes]:
        """Two recoverable signatures, 65 bytes each: the root's over purpose and key, the KMS's over the root."""
        message = f"{purpose}:{self.public(path, algorithm).hex()}".encode()
        return [secp256k1.sign_recoverable(self.root, keccak(message)), self._root_vouched]

    def sign(self, algorithm: str, data: bytes) -> tuple[bytes, list[bytes], bytes]:
        """Signature, chain of three, public key. The key is the one at path `vms` for purpose `signing`."""
        secret = self.secret("vms")
        if algorithm == ED25519:
            signature = _ed25519(secret).sign(data)
        else:
            signature = secp256k1.sign(secp256k1.private_key(secret), message_digest(algorithm, data))
        kind = ED25519 if algorithm == ED25519 else "secp256k1"
        return signature, [signature, *self.chain("vms", "signing", kind)], self.public("vms", kind)

    @cached_property
    def _ca_key(self) -> ec.EllipticCurvePrivateKey:
        return p256(derive(self._kms_ca_secret, self.app_id, b"app-ca"))

    @cached_property
    def ca(self) -> x509.Certificate:
        """The application's own CA, self-signed, as without a KMS."""
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Dstack App CA (cloister-sim)")])
        first = datetime(2000, 1, 1, tzinfo=UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self._ca_key.public_key())
            .serial_number(int.from_bytes(self.app_id, "big") >> 4 | 1)
            .not_valid_before(first)
            .not_valid_after(first + 10 * TEN_YEARS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_extension(SPECIAL_USE, b"app:ca"), critical=False)
            .sign(self._ca_key, hashes.SHA256())
        )

    def certify(self, key: ec.EllipticCurvePrivateKey, request: TlsRequest, now: datetime) -> list[str]:
        """Leaf and CA in PEM."""
        subject = [x509.NameAttribute(NameOID.COMMON_NAME, request.subject[:64])] if request.subject else []
        usages = [ExtendedKeyUsageOID.SERVER_AUTH] * request.server_auth
        usages += [ExtendedKeyUsageOID.CLIENT_AUTH] * request.client_auth
        start = request.not_before or now
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name(subject))
            .issuer_name(self.ca.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(request.not_after or start + TEN_YEARS)
            .add_extension(_digital_signature(), critical=True)
        )
        if request.alt_names:
            names = x509.SubjectAlternativeName([_general_name(name) for name in request.alt_names])
            builder = builder.add_extension(names, critical=False)
        if usages:
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        for arc, content in ({APP_ID: self.app_id} | request.extensions).items():
            builder = builder.add_extension(_extension(arc, content), critical=False)
        leaf = builder.sign(self._ca_key, hashes.SHA256())
        return [certificate.public_bytes(Encoding.PEM).decode() for certificate in (leaf, self.ca)]


def message_digest(algorithm: str, data: bytes) -> bytes:
    """What a secp256k1 signature is over. Raises UnknownAlgorithm, ValueError."""
    if algorithm == "secp256k1":
        hasher = hashes.Hash(hashes.SHA256())
        hasher.update(data)
        return hasher.finalize()
    if algorithm != "secp256k1_prehashed":
        raise UnknownAlgorithm("Unsupported algorithm")
    if len(data) != 32:
        raise ValueError(f"Pre-hashed data must be 32 bytes, but got {len(data)} bytes")
    return data


def private_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def _ed25519(secret: bytes) -> ed25519.Ed25519PrivateKey:
    return ed25519.Ed25519PrivateKey.from_private_bytes(secret)


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _digital_signature() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _extension(arc: int, content: bytes) -> x509.UnrecognizedExtension:
    """Each content is an OCTET STRING inside the extension's value."""
    size = len(content)
    length = bytes((size,)) if size < 0x80 else b""
    if not length:
        encoded = size.to_bytes((size.bit_length() + 7) // 8, "big")
        length = bytes((0x80 | len(encoded),)) + encoded
    return x509.UnrecognizedExtension(x509.ObjectIdentifier(f"{OID_PREFIX}{arc}"), b"\x04" + length + content)
