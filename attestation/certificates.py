"""Certificates and CRLs: PEM and DER ↔ the few facts that a judgement needs.

Decides what is well formed: P-256 keys, ecdsa-with-SHA256, X.509 v3, CRL v2. Which names, extensions and signatures are
demanded of whom is decided in `pki` and `revocation`. `cryptography` parses every structure (and finds duplicate
extensions and rubbish inside them); the exact bytes that signatures cover and names are compared by are cut out with
`der`.

Sources: RFC 5280 sections 4 and 5; RFC 5758 (ecdsa-with-SHA256); RFC 7468 (PEM); Intel SGX PCK Certificate and CRL
Profile Specification.
"""

from __future__ import annotations

import re
from binascii import a2b_base64
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from attestation import der
from attestation.checks import Unmet

ECDSA_SHA256: Final = ECDSA(SHA256())
MAX_CERTIFICATES: Final = 8
"""In one PEM text; no chain here has more than three."""

_P256: Final = SECP256R1()
_ALGORITHM: Final = bytes.fromhex("300a06082a8648ce3d040302")  # AlgorithmIdentifier: ecdsa-with-SHA256, no parameters
_SPKI_P256: Final = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d03010703420004")  # then x ‖ y
_VERSION_3: Final = bytes.fromhex("a003020102")
_VERSION_2: Final = bytes.fromhex("020101")
_EXTENSIONS: Final = 0xA3
_COMMON_NAME: Final = bytes.fromhex("0603550403")
_BLOCK: Final = re.compile(
    rb"[ \t\r\n]*-----BEGIN CERTIFICATE-----[ \t]*\r?\n([A-Za-z0-9+/=\r\n]{1,65536})-----END CERTIFICATE-----[ \t\r\n]*"
)
_REFUSED_BY_X509: Final = (ValueError, x509.InvalidVersion, x509.DuplicateExtension, x509.UnsupportedGeneralNameType)

SGX_EXTENSION: Final = "1.2.840.113741.1.13.1"
_AUTHORITY_KEY_ID: Final = "2.5.29.35"
_SUBJECT_KEY_ID: Final = "2.5.29.14"
_KEY_USAGE: Final = "2.5.29.15"
_BASIC_CONSTRAINTS: Final = "2.5.29.19"
_CRL_DISTRIBUTION: Final = "2.5.29.31"
_CRL_NUMBER: Final = "2.5.29.20"
_PROFILE: Final = (_AUTHORITY_KEY_ID, _CRL_DISTRIBUTION, _SUBJECT_KEY_ID, _KEY_USAGE, _BASIC_CONSTRAINTS)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """What one certificate says. Nothing in it may be believed before its signature is checked."""

    der: bytes = field(repr=False)
    tbs: bytes = field(repr=False)
    signature: bytes = field(repr=False)  # DER, as OpenSSL takes it
    serial: int
    issuer: bytes = field(repr=False)  # the Name's DER: names are equal when these are
    subject: bytes = field(repr=False)
    common_name: str
    point: bytes = field(repr=False)  # x ‖ y
    key: EllipticCurvePublicKey = field(repr=False)
    not_before: int  # Unix seconds, the first valid one
    not_after: int  # the last valid one
    is_ca: bool
    path_length: int | None
    signs_data: bool
    signs_certificates: bool
    signs_crls: bool
    sgx_extension: bytes | None = field(repr=False)
    missing: tuple[str, ...]  # OIDs that the profile demands of every certificate
    unknown_critical: tuple[str, ...]

    @property
    def self_issued(self) -> bool:
        return self.issuer == self.subject

    @classmethod
    def parse(cls, raw: bytes) -> Certificate:
        """Raises Unmet."""
        tbs, signature = _signed_parts(raw)
        at, end = der.record(raw, tbs[0], tbs[1], der.SEQUENCE)
        if raw[at : at + len(_VERSION_3)] != _VERSION_3:
            raise Unmet("the certificate is not X.509 version 3")
        serial_at = at + len(_VERSION_3)
        serial = _serial(raw, serial_at, end)
        at = _algorithm(raw, der.skip(raw, serial_at, end))
        issuer = raw[at : (at := der.record(raw, at, end, der.SEQUENCE)[1])]
        at = der.record(raw, at, end, der.SEQUENCE)[1]  # validity: read by cryptography
        subject = raw[at : (at := der.record(raw, at, end, der.SEQUENCE)[1])]
        key_at, at = at, der.record(raw, at, end, der.SEQUENCE)[1]
        point = _p256_point(raw[key_at:at])
        if at >= end or raw[at] != _EXTENSIONS:
            raise Unmet("the certificate has no extensions, or has unique identifiers")
        try:
            parsed = x509.load_der_x509_certificate(raw)
            begins, ends = parsed.not_valid_before_utc, parsed.not_valid_after_utc
            extensions = {extension.oid.dotted_string: extension for extension in parsed.extensions}
        except _REFUSED_BY_X509 as error:
            raise Unmet(f"not an X.509 certificate: {type(error).__name__}") from error
        usage, basic = _value(extensions, _KEY_USAGE), _value(extensions, _BASIC_CONSTRAINTS)
        sgx = _value(extensions, SGX_EXTENSION)
        return cls(
            der=raw,
            tbs=raw[tbs[0] : tbs[1]],
            signature=signature,
            serial=serial,
            issuer=issuer,
            subject=subject,
            common_name=_common_name(subject),
            point=point,
            key=p256_key(point),
            not_before=_seconds(begins),
            not_after=_seconds(ends),
            is_ca=isinstance(basic, x509.BasicConstraints) and basic.ca,
            path_length=basic.path_length if isinstance(basic, x509.BasicConstraints) else None,
            signs_data=isinstance(usage, x509.KeyUsage) and usage.digital_signature,
            signs_certificates=isinstance(usage, x509.KeyUsage) and usage.key_cert_sign,
            signs_crls=isinstance(usage, x509.KeyUsage) and usage.crl_sign,
            sgx_extension=sgx.value if isinstance(sgx, x509.UnrecognizedExtension) else None,
            missing=tuple(oid for oid in _PROFILE if oid not in extensions),
            unknown_critical=tuple(
                oid for oid, extension in extensions.items() if extension.critical and oid not in _PROFILE
            ),
        )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Crl:
    """What one certificate revocation list says."""

    tbs: bytes = field(repr=False)
    signature: bytes = field(repr=False)
    issuer: bytes = field(repr=False)
    this_update: int  # Unix seconds, the first valid one
    next_update: int | None  # the last valid one
    number: int | None
    has_authority_key_id: bool
    partial: tuple[str, ...]  # extensions that make it less, or other, than a full list of its issuer
    entries: x509.CertificateRevocationList = field(repr=False)

    def revokes(self, serial: int) -> bool:
        return self.entries.get_revoked_certificate_by_serial_number(serial) is not None

    @classmethod
    def parse(cls, raw: bytes) -> Crl:
        """Raises Unmet."""
        tbs, signature = _signed_parts(raw)
        at, end = der.record(raw, tbs[0], tbs[1], der.SEQUENCE)
        if raw[at : at + len(_VERSION_2)] != _VERSION_2:
            raise Unmet("the CRL is not version 2")
        at = _algorithm(raw, at + len(_VERSION_2))
        issuer = raw[at : der.record(raw, at, end, der.SEQUENCE)[1]]
        try:
            parsed = x509.load_der_x509_crl(raw)
            begins, ends = parsed.last_update_utc, parsed.next_update_utc
            extensions = {extension.oid.dotted_string: extension for extension in parsed.extensions}
        except _REFUSED_BY_X509 as error:
            raise Unmet(f"not a CRL: {type(error).__name__}") from error
        number = _value(extensions, _CRL_NUMBER)
        known = (_CRL_NUMBER, _AUTHORITY_KEY_ID)
        return cls(
            tbs=raw[tbs[0] : tbs[1]],
            signature=signature,
            issuer=issuer,
            this_update=_seconds(begins),
            next_update=None if ends is None else _seconds(ends),
            number=number.crl_number if isinstance(number, x509.CRLNumber) else None,
            has_authority_key_id=_AUTHORITY_KEY_ID in extensions,
            partial=tuple(
                oid
                for oid, extension in extensions.items()
                if oid not in known and (extension.critical or oid in _NARROWING)
            ),
            entries=parsed,
        )


_NARROWING: Final = frozenset(("2.5.29.27", "2.5.29.28"))  # delta CRL indicator, issuing distribution point


def pem_blocks(text: bytes, *, nul_may_end: bool = False) -> tuple[bytes, ...]:
    """The certificates in a PEM text, as DER. Nothing but white space may stand around them.

    `nul_may_end`: quoting libraries end the text in a quote with one NUL. Raises Unmet.
    """
    end = len(text) - 1 if nul_may_end and text.endswith(b"\0") else len(text)
    blocks: list[bytes] = []
    at = 0
    while at < end:
        match = _BLOCK.match(text, at, end)
        if match is None:
            raise Unmet(f"neither a certificate nor white space at byte {at} of the PEM text")
        if len(blocks) == MAX_CERTIFICATES:
            raise Unmet(f"more than {MAX_CERTIFICATES} certificates")
        try:
            blocks.append(a2b_base64(match[1].translate(None, b"\r\n"), strict_mode=True))
        except ValueError as error:
            raise Unmet(f"certificate {len(blocks) + 1} is not base64") from error
        at = match.end()
    if not blocks:
        raise Unmet("no certificate")
    return tuple(blocks)


def p256_key(point: bytes) -> EllipticCurvePublicKey:
    """The public key x ‖ y, 64 bytes. Raises Unmet when that is no point on the curve."""
    try:
        return EllipticCurvePublicKey.from_encoded_point(_P256, b"\x04" + point)
    except ValueError as error:
        raise Unmet("the key is not a point on P-256") from error


def signed_by(key: EllipticCurvePublicKey, signature: bytes, message: bytes) -> bool:
    """Whether `signature` (DER) over `message` verifies under `key`. ECDSA over SHA-256."""
    try:
        key.verify(signature, message, ECDSA_SHA256)
    except InvalidSignature:
        return False
    return True


def signed_raw(key: EllipticCurvePublicKey, signature: bytes, message: bytes) -> bool:
    """The same for a signature as quotes and collateral carry it: r ‖ s, 32 bytes big-endian each."""
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    return signed_by(key, encode_dss_signature(r, s), message)


def _signed_parts(raw: bytes) -> tuple[der.Range, bytes]:
    """SEQUENCE { to be signed, algorithm, BIT STRING }: the first one's whole record, and the signature."""
    start, end = der.whole(raw, der.SEQUENCE)
    tbs = (start, der.record(raw, start, end, der.SEQUENCE)[1])
    at, signature_end = der.record(raw, _algorithm(raw, tbs[1]), end, der.BIT_STRING)
    if signature_end != end or raw[at : at + 1] != b"\0":
        raise Unmet("the signature is not the last thing, or not whole bytes")
    return tbs, raw[at + 1 : end]


def _algorithm(raw: bytes, at: int) -> int:
    """Where the algorithm identifier at `at` ends."""
    end = at + len(_ALGORITHM)
    if raw[at:end] != _ALGORITHM:
        raise Unmet("the signature algorithm is not ecdsa-with-SHA256")
    return end


def _serial(raw: bytes, at: int, end: int) -> int:
    """RFC 5280, 4.1.2.2: positive, at most 20 octets (21 with a sign octet)."""
    start, stop = der.record(raw, at, end, der.INTEGER)
    if not 1 <= stop - start <= 21 or raw[start] >= 0x80:
        raise Unmet("the serial number is negative or too long")
    serial = int.from_bytes(raw[start:stop], "big")
    if serial == 0:
        raise Unmet("the serial number is zero")
    return serial


def _p256_point(spki: bytes) -> bytes:
    size = len(_SPKI_P256)
    if spki[:size] != _SPKI_P256:
        raise Unmet("the public key is not an uncompressed P-256 point")
    return spki[size:]


def _common_name(name: bytes) -> str:
    """The one CN of a Name. Raises Unmet when there is none or more than one."""
    at, end = der.whole(name, der.SEQUENCE)
    found: list[str] = []
    while at < end:
        attribute, at = der.record(name, at, end, der.SET)
        start, stop = der.record(name, attribute, at, der.SEQUENCE)
        if stop != at:
            raise Unmet("a name with several attributes in one set")
        if name[start : start + len(_COMMON_NAME)] == _COMMON_NAME:
            value_at = start + len(_COMMON_NAME)
            text = slice(*der.record(name, value_at, stop, name[value_at])) if value_at < stop else slice(0)
            found.append(name[text].decode("ascii", "replace"))
    if len(found) != 1:
        raise Unmet(f"a name with {len(found)} common names")
    return found[0]


def _value(extensions: dict[str, x509.Extension[x509.ExtensionType]], oid: str) -> x509.ExtensionType | None:
    extension = extensions.get(oid)
    return None if extension is None else extension.value


def _seconds(moment: datetime) -> int:
    return int(moment.timestamp())
