"""Certificates and revocation lists shaped like Intel's, under a root that is the machine's own.

Decides names, extensions and their order, as Intel's verification libraries look for them. Two marks show that the
certificates are simulated, in places that no verifier compares: all are valid from the year 2000 on, before SGX or TDX
existed, and all serial numbers start with the ASCII letters `SIM`. What is revoked, and when, is decided by `recovery`.

Sources: Intel SGX PCK Certificate and Certificate Revocation List Profile Specification; RFC 5280.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from simulator.seed import Seed, SigningKey

SERIAL_MARK: Final = b"SIM"
"""The first bytes of every serial number."""
NOT_BEFORE: Final = datetime(2000, 1, 1, tzinfo=UTC)
"""Long before there were trust domains: the other mark."""

ROOT_CRL_URL: Final = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"
PCK_CRL_URL: Final = "https://api.trustedservices.intel.com/sgx/certification/v4/pckcrl?ca={ca}&encoding=der"

# Which certificate ends when. They differ, so that each can be the one that has expired.
_ENDS: Final = {
    "root": datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC),
    "platform": datetime(2047, 12, 31, 23, 59, 59, tzinfo=UTC),
    "processor": datetime(2047, 12, 31, 23, 59, 59, tzinfo=UTC),
    "tcb-signing": datetime(2045, 12, 31, 23, 59, 59, tzinfo=UTC),
    "pck": datetime(2044, 12, 31, 23, 59, 59, tzinfo=UTC),
}
_NAMES: Final = {
    "root": "Intel SGX Root CA",
    "platform": "Intel SGX PCK Platform CA",
    "processor": "Intel SGX PCK Processor CA",
    "tcb-signing": "Intel SGX TCB Signing",
    "pck": "Intel SGX PCK Certificate",
}
_CA_USAGE: Final = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)
_SIGNING_USAGE: Final = x509.KeyUsage(
    digital_signature=True,
    content_commitment=True,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=False,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What a certificate says of itself; the defaults of each role are `profile(role)`."""

    common_name: str
    path_length: int | None
    """None: not a CA."""
    crl_url: str
    not_before: datetime = NOT_BEFORE
    not_after: datetime


def profile(role: str, *, ca: str = "platform") -> Profile:
    """`role`: root, platform, processor, tcb-signing or pck (whose CRL belongs to `ca`)."""
    return Profile(
        common_name=_NAMES[role],
        path_length={"root": 1, "platform": 0, "processor": 0}.get(role),
        crl_url=PCK_CRL_URL.format(ca=ca) if role == "pck" else ROOT_CRL_URL,
        not_after=_ENDS[role],
    )


@dataclass(frozen=True)
class Identity:
    """A certificate with its private key. The key never leaves the machine that derived it."""

    key: SigningKey
    certificate: x509.Certificate

    def __repr__(self) -> str:
        return f"Identity({self.certificate.subject.rfc4514_string()})"

    @cached_property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    @cached_property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def serial(self) -> int:
        return self.certificate.serial_number

    @cached_property
    def key_identifier(self) -> bytes:
        return self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest


def issue(
    seed: Seed,
    label: str,
    shape: Profile,
    issuer: Identity | None,
    *,
    extra: Iterable[x509.ExtensionType] = (),
) -> Identity:
    """A certificate for the key `label`, signed by `issuer`, or by itself when there is none.

    Extensions in Intel's order: AKI, CRL distribution points, SKI, key usage, basic constraints, then `extra`. A CA's
    serial number equals its SKI. There is no EKU: verifiers built on webpki want serverAuth as soon as there is one.
    """
    key = seed.key(label)
    is_ca = shape.path_length is not None
    serial = SERIAL_MARK + seed.derive(f"serial/{label}", 17)
    key_identifier = serial if is_ca else seed.derive(f"ski/{label}", 20)
    authority = issuer.key_identifier if issuer else key_identifier
    subject = _name(shape.common_name)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(int.from_bytes(serial, "big"))
        .not_valid_before(shape.not_before)
        .not_valid_after(shape.not_after)
        .add_extension(x509.AuthorityKeyIdentifier(authority, None, None), critical=False)
        .add_extension(_crl_points(shape.crl_url), critical=False)
        .add_extension(x509.SubjectKeyIdentifier(key_identifier), critical=False)
        .add_extension(_CA_USAGE if is_ca else _SIGNING_USAGE, critical=True)
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=shape.path_length), critical=True)
    )
    for extension in extra:
        builder = builder.add_extension(extension, critical=False)
    signer = issuer.key if issuer else key
    return Identity(key, builder.sign(signer, hashes.SHA256(), ecdsa_deterministic=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class RevocationList:
    """What a CRL says. `revoked` maps serial numbers to the second of their revocation."""

    number: int
    this_update: datetime
    next_update: datetime
    revoked: dict[int, datetime]


def sign_crl(issuer: Identity, content: RevocationList, *, signer: SigningKey | None = None) -> bytes:
    """DER, version 2, with CRL number and AKI, every entry with reason keyCompromise, as Intel's lists are.

    `signer` is the issuer's own key unless a fault wants another.
    """
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(content.this_update)
        .next_update(content.next_update)
        .add_extension(x509.CRLNumber(content.number), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier(issuer.key_identifier, None, None), critical=False)
    )
    for serial, since in sorted(content.revoked.items()):
        entry = (
            x509.RevokedCertificateBuilder()
            .serial_number(serial)
            .revocation_date(since)
            .add_extension(x509.CRLReason(x509.ReasonFlags.key_compromise), critical=False)
        )
        builder = builder.add_revoked_certificate(entry.build())
    signed = builder.sign(signer or issuer.key, hashes.SHA256(), ecdsa_deterministic=True)
    return signed.public_bytes(Encoding.DER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hierarchy:
    """Root, the two PCK CAs and the TCB signer of one machine."""

    root: Identity
    platform: Identity
    processor: Identity
    tcb_signing: Identity

    def ca(self, name: str) -> Identity:
        """`name`: platform or processor."""
        return self.platform if name == "platform" else self.processor

    @property
    def tcb_chain(self) -> bytes:
        return self.tcb_signing.pem + self.root.pem


def hierarchy(seed: Seed) -> Hierarchy:
    root = issue(seed, "root", profile("root"), None)
    return Hierarchy(
        root=root,
        platform=issue(seed, "platform", profile("platform"), root),
        processor=issue(seed, "processor", profile("processor"), root),
        tcb_signing=issue(seed, "tcb-signing", profile("tcb-signing"), root),
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Intel Corporation"),
            x509.NameAttribute(NameOID.LOCALITY_NAME, "Santa Clara"),
            x509.NameAttribute(NameOID.STATE_OR_PROVINCE_NAME, "CA"),
            x509.NameAttribute(NameOID.COUNTRY_NAME, "US"),
        ]
    )


def _crl_points(url: str) -> x509.CRLDistributionPoints:
    point = x509.DistributionPoint([x509.UniformResourceIdentifier(url)], None, None, None)
    return x509.CRLDistributionPoints([point])
