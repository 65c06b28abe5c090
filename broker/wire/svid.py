"""X.509-SVIDs on the wire: the request, the certificate, the trust bundle, and what makes a certificate good.

Decides the form of SPIFFE ids here and how a peer's certificate is judged: a path of one step to an authority of the
bundle, exactly one URI name of that trust domain, a leaf by every extension, in force, and not on a CRL that is in
force itself. Time is an argument: inside a trust domain the host owns the wall clock. The identity key of the broker
signs the bundle, so agents that know that key need no other way to it.

Sources: SPIFFE X.509-SVID; RFC 5280.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Self, final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import ExtendedKeyUsageOID

from broker.wire.errors import WireCode, WireError
from broker.wire.fields import Reader
from broker.wire.jose import ES256_SIGNATURE_LEN, b64u, es256_sign, es256_valid, spki
from broker.wire.tags import Tag, tagged, u64

MAX_CSR: Final = 4096
MAX_CERTIFICATE: Final = 8192
MAX_CRL: Final = 8 << 20
MAX_AUTHORITIES: Final = 8
MAX_ID: Final = 2048
_SKEW_S: Final = 5  # signed moments are whole seconds, and readers' clocks run between them
_BOTH: Final = frozenset({ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH})
_DOMAIN: Final = re.compile(r"[a-z0-9._-]{1,255}")
_ID: Final = re.compile(r"spiffe://([a-z0-9._-]{1,255})((?:/[A-Za-z0-9._-]+)+)")


def spiffe_id(trust_domain: str, path: str) -> str:
    """The id of an agent: its subject is the path. Raises ValueError when that would be none."""
    found = f"spiffe://{trust_domain}/{path}"
    split_id(found)
    return found


def split_id(text: str) -> tuple[str, str]:
    """Trust domain and path (without the slash in front). Raises ValueError."""
    match = _ID.fullmatch(text) if len(text) <= MAX_ID else None
    if match is None or {".", ".."} & set(match[2].split("/")):
        raise ValueError("not a SPIFFE id with a path")
    return match[1], match[2][1:]


def is_trust_domain(name: str) -> bool:
    return _DOMAIN.fullmatch(name) is not None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SvidRequest:
    """POST /v1/svids. A PKCS #10 request (DER) shows that the caller holds the TLS key; nothing else in it counts."""

    csr: bytes

    def to_dict(self) -> dict[str, Any]:
        return {"csr": b64u(self.csr)}

    @classmethod
    def from_dict(cls, value: object) -> Self:
        read = Reader(value, "svid")
        made = cls(csr=read.raw("csr", max_len=MAX_CSR))
        read.end()
        return made

    def public_key(self) -> ec.EllipticCurvePublicKey:
        """The key that signed the request. Raises WireError svid.request_invalid."""
        try:
            found = x509.load_der_x509_csr(self.csr)
            key, good = found.public_key(), found.is_signature_valid
        except (ValueError, TypeError) as error:
            raise WireError(WireCode.SVID_REQUEST, type(error).__name__) from None
        if not good or not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
            raise WireError(WireCode.SVID_REQUEST, "need a P-256 key, and its own signature")
        return key


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TrustBundle:
    """Authorities of one trust domain with their CRLs, all DER, as of `at_s`, signed by the broker's identity key."""

    trust_domain: str
    authorities: tuple[bytes, ...]
    crls: tuple[bytes, ...]
    sequence: int
    at_s: int
    signature: bytes

    def message(self) -> bytes:
        certificates = hashlib.sha256(tagged(Tag.TRUST_BUNDLE, *self.authorities)).digest()
        crls = hashlib.sha256(tagged(Tag.TRUST_BUNDLE, *self.crls)).digest()
        fields = (self.trust_domain.encode(), u64(self.sequence), u64(self.at_s), certificates, crls)
        return tagged(Tag.TRUST_BUNDLE, *fields)

    @classmethod
    def sign(
        cls,
        key: ec.EllipticCurvePrivateKey,
        *,
        trust_domain: str,
        authorities: Sequence[bytes],
        crls: Sequence[bytes],
        sequence: int,
        at_s: int,
    ) -> Self:
        def made(signature: bytes) -> Self:
            return cls(
                trust_domain=trust_domain,
                authorities=tuple(authorities),
                crls=tuple(crls),
                sequence=sequence,
                at_s=at_s,
                signature=signature,
            )

        return made(es256_sign(key, made(b"").message()))

    def verify(self, key: ec.EllipticCurvePublicKey) -> None:
        """Raises WireError svid.bundle_invalid unless the broker with this identity key signed it."""
        if not es256_valid(key, self.signature, self.message()) or not is_trust_domain(self.trust_domain):
            raise WireError(WireCode.SVID_BUNDLE, "the trust bundle is not signed by the broker's identity key")

    def to_dict(self) -> dict[str, Any]:
        return {
            "trust_domain": self.trust_domain,
            "authorities": [b64u(raw) for raw in self.authorities],
            "crls": [b64u(raw) for raw in self.crls],
            "sequence": self.sequence,
            "at_s": self.at_s,
            "signature": b64u(self.signature),
        }

    @classmethod
    def from_dict(cls, value: object) -> Self:
        read = Reader(value, "bundle")
        return cls(
            trust_domain=read.text("trust_domain", max_len=255),
            authorities=read.raws("authorities", max_items=MAX_AUTHORITIES, max_len=MAX_CERTIFICATE),
            crls=read.raws("crls", max_items=MAX_AUTHORITIES, max_len=MAX_CRL),
            sequence=read.number("sequence"),
            at_s=read.number("at_s"),
            signature=read.raw("signature", size=ES256_SIGNATURE_LEN),
        )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SvidResponse:
    """The certificate for the key in the request (DER; an authority of the bundle issued it), and the bundle."""

    spiffe_id: str
    certificate: bytes
    bundle: TrustBundle

    def to_dict(self) -> dict[str, Any]:
        return {
            "spiffe_id": self.spiffe_id,
            "certificate": b64u(self.certificate),
            "bundle": self.bundle.to_dict(),
        }

    @classmethod
    def from_dict(cls, value: object) -> Self:
        read = Reader(value, "svid")
        return cls(
            spiffe_id=read.text("spiffe_id", max_len=MAX_ID),
            certificate=read.raw("certificate", max_len=MAX_CERTIFICATE),
            bundle=TrustBundle.from_dict(read.mapping("bundle")),
        )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """A certificate that was judged good at one moment."""

    spiffe_id: str
    subject: str  # path of the id: the agent's subject
    serial: int
    key: bytes = field(repr=False)  # DER SubjectPublicKeyInfo
    not_after: datetime


def judge_svid(certificate: bytes, bundle: TrustBundle, *, at: datetime) -> Leaf:
    """The holder of a certificate. `bundle` must have been verified. Raises WireError:

    1. it is a leaf as X.509-SVIDs are              svid.malformed
    2. an authority of the bundle issued it         svid.not_issued
    3. its one name is in the bundle's domain       svid.wrong_domain
    4. it and its authority are in force            svid.expired
    5. it is not on the authority's CRL, in force   svid.revoked, svid.crl_stale
    """
    try:
        leaf = x509.load_der_x509_certificate(certificate)
        name = _profile(leaf)
        trust_domain, subject = split_id(name)
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise WireError(WireCode.SVID_MALFORMED, str(error)[:200]) from None
    authority, issuer_key = _issuer(leaf, bundle)
    if trust_domain != bundle.trust_domain:
        raise WireError(WireCode.SVID_DOMAIN, f"{name} is not of {bundle.trust_domain}")
    for found in (leaf, authority):
        if not found.not_valid_before_utc <= at <= found.not_valid_after_utc:
            raise WireError(WireCode.SVID_EXPIRED, f"in force until {found.not_valid_after_utc.isoformat()}")
    _demand_unrevoked(leaf, authority, issuer_key, bundle, at)
    key = leaf.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise WireError(WireCode.SVID_MALFORMED, "the key is not one on P-256")
    return Leaf(
        spiffe_id=name, subject=subject, serial=leaf.serial_number, key=spki(key), not_after=leaf.not_valid_after_utc
    )


def _profile(leaf: x509.Certificate) -> str:
    """The one URI name. Raises ValueError, ExtensionNotFound: X.509-SVID §2 to §4."""
    extensions = leaf.extensions
    uris = extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(
        x509.UniformResourceIdentifier
    )
    usage = extensions.get_extension_for_class(x509.KeyUsage)
    extended = frozenset(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    constraints = extensions.get_extension_for_class(x509.BasicConstraints).value
    wrong = [
        text
        for bad, text in (
            (len(uris) != 1, f"{len(uris)} URI names"),
            (constraints.ca, "a CA"),
            (not usage.critical or not usage.value.digital_signature, "no critical key usage for signatures"),
            (usage.value.key_cert_sign or usage.value.crl_sign, "may sign certificates or CRLs"),
            (not extended >= _BOTH, "not for servers and clients both"),
        )
        if bad
    ]
    if wrong:
        raise ValueError("; ".join(wrong))
    return str(uris[0])


def _issuer(leaf: x509.Certificate, bundle: TrustBundle) -> tuple[x509.Certificate, ec.EllipticCurvePublicKey]:
    """The authority that issued the leaf, and its key. What is no certificate on a curve issues nothing."""
    for raw in bundle.authorities:
        try:
            authority = x509.load_der_x509_certificate(raw)
            key = authority.public_key()
            leaf.verify_directly_issued_by(authority)
        except (ValueError, TypeError, InvalidSignature):
            continue
        if isinstance(key, ec.EllipticCurvePublicKey):
            return authority, key
    raise WireError(WireCode.SVID_NOT_ISSUED, "no authority of the trust bundle issued the certificate")


def _demand_unrevoked(
    leaf: x509.Certificate,
    authority: x509.Certificate,
    key: ec.EllipticCurvePublicKey,
    bundle: TrustBundle,
    at: datetime,
) -> None:
    """No CRL of the authority in force means no: then nobody knows whether the certificate still stands."""
    for raw in bundle.crls:
        try:
            crl = x509.load_der_x509_crl(raw)
        except ValueError:
            continue
        if crl.issuer != authority.subject or not crl.is_signature_valid(key):
            continue
        end = crl.next_update_utc
        if end is None or not crl.last_update_utc.timestamp() - _SKEW_S <= at.timestamp() <= end.timestamp():
            continue
        if crl.get_revoked_certificate_by_serial_number(leaf.serial_number) is not None:
            raise WireError(WireCode.SVID_REVOKED, f"serial {leaf.serial_number:x}")
        return
    raise WireError(WireCode.SVID_CRL_STALE, f"no CRL of the authority is in force at {at.astimezone(UTC).isoformat()}")


def request_for(key: ec.EllipticCurvePrivateKey) -> SvidRequest:
    """A request that shows possession of a TLS key and asks for nothing by name."""
    from cryptography.hazmat.primitives.serialization import Encoding

    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, SHA256())
    return SvidRequest(csr=csr.public_bytes(Encoding.DER))
