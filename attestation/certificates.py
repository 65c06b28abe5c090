"""Certificates and CRLs: DER ↔ the few facts that a judgement needs.

Decides what is well formed: P-256 keys, ecdsa-with-SHA256, X.509 v3, CRL v2, each extension once. Which names,
extensions and signatures are demanded of whom is decided in `pki` and `endorsements`. Certificates are read with `der`,
because the exact bytes that signatures cover and that names are compared by are needed, and little else; the entries of
CRLs are left to `cryptography`.

Sources: RFC 5280 sections 4 and 5; RFC 5758 (ecdsa-with-SHA256); Intel SGX PCK Certificate and CRL Profile
Specification.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final, NamedTuple, final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from attestation import der
from attestation.checks import Unmet

ECDSA_SHA256: Final = ECDSA(SHA256())
_MAX_CERTIFICATE: Final = 8 * 1024  # bytes; the largest real one has 1.3 KiB

_P256: Final = SECP256R1()
_ALGORITHM: Final = bytes.fromhex("300a06082a8648ce3d040302")  # AlgorithmIdentifier: ecdsa-with-SHA256, no parameters
_SPKI_P256: Final = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d03010703420004")  # then x ‖ y
_VERSION_3: Final = bytes.fromhex("a003020102")
_VERSION_2: Final = bytes.fromhex("020101")
_EXPLICIT_0: Final = 0xA0
_EXPLICIT_3: Final = 0xA3
_TRUE: Final = bytes.fromhex("0101ff")
_STANDARD_OID: Final = bytes.fromhex("0603551d")
_UTC_TIME: Final = b"\x17"
_GENERALIZED_TIME: Final = 0x18
_COMMON_NAME: Final = bytes.fromhex("0603550403")
_TEXTS: Final = (0x0C, 0x13, 0x16)  # UTF8String, PrintableString, IA5String
_INTEL: Final = bytes.fromhex(  # O = Intel Corporation, L = Santa Clara, ST = CA, C = US: how Intel's names end
    "311a3018060355040a0c11496e74656c20436f72706f726174696f6e"
    "3114301206035504070c0b53616e746120436c617261"
    "310b300906035504080c024341310b3009060355040613025553"
)

# Extension OIDs in certificates, as DER records
_SGX_EXTENSION: Final = bytes.fromhex("06092a864886f84d010d01")  # 1.2.840.113741.1.13.1
_AUTHORITY_KEY_ID: Final = bytes.fromhex("0603551d23")
_KEY_USAGE: Final = bytes.fromhex("0603551d0f")
_BASIC_CONSTRAINTS: Final = bytes.fromhex("0603551d13")
_PROFILE: Final = {
    _AUTHORITY_KEY_ID: "authority key identifier",
    bytes.fromhex("0603551d1f"): "CRL distribution points",
    bytes.fromhex("0603551d0e"): "subject key identifier",
    _KEY_USAGE: "key usage",
    _BASIC_CONSTRAINTS: "basic constraints",
}
_LIMITING: Final = tuple(bytes.fromhex("0603551d" + last) for last in ("1e", "24", "25", "36"))
"""Name and policy constraints, extended key usage, inhibitAnyPolicy: they hold even where they are not critical."""
_DIGITAL_SIGNATURE: Final = 0x80
_CERT_SIGN: Final = 0x04
_CRL_SIGN: Final = 0x02

# and in CRLs
_CRL_NUMBER: Final = bytes.fromhex("0603551d14")
_CRL_PROFILE: Final = (_AUTHORITY_KEY_ID, _CRL_NUMBER)
_NARROWING: Final = (bytes.fromhex("0603551d1b"), bytes.fromhex("0603551d1c"))  # delta indicator, issuing distribution
_SHOWN: Final = 40  # hex digits of an OID that a refusal shows
_REASON: Final = bytes.fromhex("0603551d15")  # of an entry; whatever it says, what is listed is revoked


@final
class Certificate(NamedTuple):
    """What one certificate says. Nothing in it may be believed before its signature is checked."""

    der: bytes
    tbs: bytes
    signature: bytes  # DER, as OpenSSL takes it
    serial: int
    issuer: bytes  # the Name's DER: names are equal when these are
    subject: bytes
    common_name: str
    point: bytes  # x ‖ y
    key: EllipticCurvePublicKey
    not_before: int  # Unix seconds, the first valid one
    not_after: int  # the last valid one
    is_ca: bool
    path_length: int | None
    signs_data: bool
    signs_certificates: bool
    signs_crls: bool
    sgx_extension: bytes | None
    missing: tuple[str, ...]  # extensions that the profile demands of every certificate
    unknown_critical: tuple[str, ...]  # and those that limit what a certificate is good for, critical or not

    @property
    def self_issued(self) -> bool:
        return self.issuer == self.subject

    @classmethod
    def parse(cls, raw: bytes) -> Certificate:
        """Raises Unmet."""
        if len(raw) > _MAX_CERTIFICATE:
            raise Unmet(f"a certificate of {len(raw)} bytes, at most {_MAX_CERTIFICATE}")
        tbs, signature = _signed_parts(raw)
        at, end = der.record(raw, tbs[0], tbs[1], der.SEQUENCE)
        if raw[at : at + len(_VERSION_3)] != _VERSION_3:
            raise Unmet("the certificate is not X.509 version 3")
        serial_at = at + len(_VERSION_3)
        serial = _serial(raw, serial_at, end)
        at = _algorithm(raw, der.skip(raw, serial_at, end))
        issuer = raw[at : (at := der.record(raw, at, end, der.SEQUENCE)[1])]
        validity, at = der.record(raw, at, end, der.SEQUENCE)
        not_before, validity = _time(raw, validity, at)
        not_after, validity = _time(raw, validity, at)
        if validity != at:
            raise Unmet("the validity holds more than two times")
        subject = raw[at : (at := der.record(raw, at, end, der.SEQUENCE)[1])]
        key_at, at = at, der.record(raw, at, end, der.SEQUENCE)[1]
        point = _p256_point(raw[key_at:at])
        extensions = _extensions(raw, at, end, _EXPLICIT_3)
        is_ca, path_length = _basic_constraints(extensions)
        usage = _key_usage(extensions)
        sgx = extensions.get(_SGX_EXTENSION)
        return cls(
            raw,
            raw[tbs[0] : tbs[1]],
            signature,
            serial,
            issuer,
            subject,
            _common_name(subject),
            point,
            p256_key(point),
            not_before,
            not_after,
            is_ca,
            path_length,
            usage & _DIGITAL_SIGNATURE != 0,
            usage & _CERT_SIGN != 0,
            usage & _CRL_SIGN != 0,
            sgx[1] if sgx else None,
            tuple([name for oid, name in _PROFILE.items() if oid not in extensions]),
            tuple([oid.hex() for oid, found in extensions.items() if _unmet(oid, found[0])]),
        )


@final
class Crl(NamedTuple):
    """What one certificate revocation list says."""

    tbs: bytes
    signature: bytes
    issuer: bytes
    this_update: int  # Unix seconds, the first valid one
    next_update: int | None  # the last valid one
    number: int | None
    has_authority_key_id: bool
    partial: str  # an extension that makes it less, or other, than a full list of its issuer; empty for a full one
    entries: x509.CertificateRevocationList

    def revokes(self, serial: int) -> bool:
        """A list in which the serial's octets do not occur has no entry for it; only where they do are entries read."""
        octets = serial.to_bytes(serial.bit_length() // 8 + 1, "big")  # positive: a zero goes before a top bit
        return octets in self.tbs and self.entries.get_revoked_certificate_by_serial_number(serial) is not None

    @classmethod
    def parse(cls, raw: bytes) -> Crl:
        """Raises Unmet."""
        tbs, signature = _signed_parts(raw)
        at, end = der.record(raw, tbs[0], tbs[1], der.SEQUENCE)
        if raw[at : at + len(_VERSION_2)] != _VERSION_2:
            raise Unmet("the CRL is not version 2")
        at = _algorithm(raw, at + len(_VERSION_2))
        issuer = raw[at : (at := der.record(raw, at, end, der.SEQUENCE)[1])]
        listed = at
        while at < end and raw[at] != _EXPLICIT_0:  # times and entries: cryptography reads those
            listed, at = at, der.skip(raw, at, end)
        extensions = _extensions(raw, at, end, _EXPLICIT_0) if at < end else {}
        marked = raw.find(_TRUE, listed, at) >= 0  # nearly no list holds these three bytes, let alone such an entry
        try:
            entries = x509.load_der_x509_crl(raw)
            begins, ends = entries.last_update_utc, entries.next_update_utc
        except ValueError as error:
            raise Unmet("not a CRL") from error
        return cls(
            tbs=raw[tbs[0] : tbs[1]],
            signature=signature,
            issuer=issuer,
            this_update=int(begins.timestamp()),
            next_update=None if ends is None else int(ends.timestamp()),
            number=_crl_number(extensions),
            has_authority_key_id=_AUTHORITY_KEY_ID in extensions,
            partial=next(
                (
                    oid.hex()[:_SHOWN]
                    for oid, (critical, _) in extensions.items()
                    if oid not in _CRL_PROFILE and (critical or oid in _NARROWING)
                ),
                _critical_in_entries(raw, listed, at) if marked else "",
            ),
            entries=entries,
        )


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
    """RFC 5280, 4.1.2.2: positive."""
    serial = _long_integer(raw, der.record(raw, at, end, der.INTEGER), "the serial number")
    if serial == 0:
        raise Unmet("the serial number is zero")
    return serial


def _long_integer(raw: bytes, span: der.Range, what: str) -> int:
    """Not negative, at most 20 octets (21 with a sign octet), in its shortest form. Raises Unmet."""
    start, stop = span
    found = raw[start:stop]
    if not found or found[0] >= 0x80 or len(found) > (20 if found[0] else 21):
        raise Unmet(f"{what} is negative or too long")
    if found[0] == 0 and len(found) > 1 and found[1] < 0x80:
        raise Unmet(f"{what} is not in its shortest form")
    return int.from_bytes(found, "big")


def _p256_point(spki: bytes) -> bytes:
    size = len(_SPKI_P256)
    if spki[:size] != _SPKI_P256:
        raise Unmet("the public key is not an uncompressed P-256 point")
    return spki[size:]


def _common_name(name: bytes) -> str:
    """The one CN of a Name: SEQUENCE of SET { SEQUENCE { OID, text } }. Raises Unmet when there is not exactly one."""
    at, end = der.whole(name, der.SEQUENCE)
    if name.endswith(_INTEL):  # nearly all do: spares reading the four
        end -= len(_INTEL)
    found: list[str] = []
    while at < end:
        start, at = der.record(name, at, end, der.SET)
        attribute, stop = der.record(name, start, at, der.SEQUENCE)
        value = der.record(name, attribute, stop, der.OID)[1]
        if stop != at or value == stop or name[value] not in _TEXTS:
            raise Unmet("a name with something else than one attribute of text in a set")
        text, text_end = der.record(name, value, stop, name[value])
        if text_end != stop:
            raise Unmet("an attribute of a name with something behind it")
        if name[attribute:value] == _COMMON_NAME:
            found.append(name[text:text_end].decode("ascii", "replace"))
    if len(found) != 1:
        raise Unmet(f"a name with {len(found)} common names")
    return found[0]


def _time(raw: bytes, at: int, end: int) -> tuple[int, int]:
    """Unix seconds of the UTCTime or GeneralizedTime at `at`, and where it ends. RFC 5280, 4.1.2.5."""
    short = raw[at : at + 1] == _UTC_TIME
    start, stop = der.record(raw, at, end, _UTC_TIME[0] if short else _GENERALIZED_TIME)
    digits, zone = raw[start : stop - 1], raw[stop - 1 : stop]
    if len(digits) != (12 if short else 14) or not digits.isdigit() or zone != b"Z":
        raise Unmet("a time in the certificate is not YYMMDDhhmmssZ or YYYYMMDDhhmmssZ")
    text = digits.decode()
    if short:
        text = ("19" if text >= "50" else "20") + text
    try:
        return int(datetime.fromisoformat(f"{text[:8]}T{text[8:]}Z").timestamp()), stop
    except ValueError as error:
        raise Unmet("a time in the certificate is no date") from error


def _extensions(raw: bytes, at: int, end: int, tag: int) -> dict[bytes, tuple[bool, bytes]]:
    """OID record → (critical, value), of the [n] that ends a certificate or a CRL."""
    start, stop = der.record(raw, at, end, tag)
    if stop != end:
        raise Unmet("something follows the extensions")
    return _extension_list(raw, start, stop)


def _extension_list(raw: bytes, at: int, end: int) -> dict[bytes, tuple[bool, bytes]]:
    """RFC 5280, 4.1: SEQUENCE of { OID, BOOLEAN DEFAULT FALSE, OCTET STRING }."""
    at, list_end = der.record(raw, at, end, der.SEQUENCE)
    if list_end != end:
        raise Unmet("something follows the extensions")
    found: dict[bytes, tuple[bool, bytes]] = {}
    while at < end:
        start, at = der.record(raw, at, end, der.SEQUENCE)
        standard = raw.startswith(_STANDARD_OID, start, at)  # nearly all are 2.5.29.n: spares a general reading
        value_at = start + 5 if standard else der.record(raw, start, at, der.OID)[1]
        oid = raw[start:value_at]
        critical = raw[value_at : value_at + 3] == _TRUE
        value, value_end = der.record(raw, value_at + 3 if critical else value_at, at, der.OCTET_STRING)
        if value_end != at:
            raise Unmet("an extension holds more than one value")
        if oid in found:
            raise Unmet(f"extension {oid.hex()[:_SHOWN]} occurs twice")
        found[oid] = (critical, raw[value:value_end])
    return found


def _unmet(oid: bytes, critical: bool) -> bool:
    """Whether an extension asks for what nobody here does."""
    return oid in _LIMITING or (critical and oid not in _PROFILE)


def _critical_in_entries(raw: bytes, at: int, end: int) -> str:
    """An extension of an entry without which the list can't be read (RFC 5280, 5.3), as an indirect one's; or ""."""
    at, end = der.record(raw, at, end, der.SEQUENCE)
    while at < end:
        start, at = der.record(raw, at, end, der.SEQUENCE)
        if raw.find(_TRUE, start, at) < 0:
            continue
        start = der.skip(raw, der.skip(raw, start, at), at)  # serial and date
        if start < at:
            for oid, (critical, _) in _extension_list(raw, start, at).items():
                if critical and oid != _REASON:
                    return oid.hex()[:_SHOWN]
    return ""


def _basic_constraints(extensions: dict[bytes, tuple[bool, bytes]]) -> tuple[bool, int | None]:
    """SEQUENCE { cA BOOLEAN DEFAULT FALSE, pathLenConstraint INTEGER OPTIONAL }; absent is (False, None)."""
    if _BASIC_CONSTRAINTS not in extensions:
        return False, None
    value = extensions[_BASIC_CONSTRAINTS][1]
    at, end = der.whole(value, der.SEQUENCE)
    if at == end:
        return False, None
    if value[at : at + 3] != _TRUE:
        raise Unmet("basic constraints are neither empty nor those of a CA")
    at += 3
    if at == end:
        return True, None
    span = der.record(value, at, end, der.INTEGER)
    if span[1] != end:
        raise Unmet("something follows the path length")
    return True, der.integer(value, span)


def _key_usage(extensions: dict[bytes, tuple[bool, bytes]]) -> int:
    """The first eight bits, as in the BIT STRING; absent is 0."""
    if _KEY_USAGE not in extensions:
        return 0
    value = extensions[_KEY_USAGE][1]
    at, end = der.whole(value, der.BIT_STRING)
    if end - at not in (2, 3) or value[at] > 7 or value[end - 1] & ((1 << value[at]) - 1):
        raise Unmet("the key usage is not a short bit string, or has bits that stand for nothing")
    return value[at + 1]


def _crl_number(extensions: dict[bytes, tuple[bool, bytes]]) -> int | None:
    """RFC 5280, 5.2.3: up to 20 octets; absent is None."""
    if _CRL_NUMBER not in extensions:
        return None
    value = extensions[_CRL_NUMBER][1]
    return _long_integer(value, der.whole(value, der.INTEGER), "the CRL number")
