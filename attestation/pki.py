"""Who is who in an Intel-shaped PKI: trust anchors, roles by name, certificate profiles, and the SGX extension.

Decides which roots exist (only those that the caller names; Intel's is shipped as data), which names and extensions
each role must have, and how the SGX extension of a PCK certificate is read. Single certificates are read by
`certificates`; which chains are demanded, and of whom, is decided in `chains` and `endorsements`.

Sources: Intel SGX PCK Certificate and CRL Profile Specification (names, extensions, OIDs); RFC 5280, 4.2.1 and 6.1;
Intel's quote verification library, `PckCertVerifier.cpp`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Final, NamedTuple, Self, final

from attestation import der
from attestation.certificates import Certificate, pem_blocks, pem_decode, signed_by
from attestation.checks import Unmet
from attestation.errors import Code, MalformedEvidence

ROOT_NAME: Final = "Intel SGX Root CA"
PLATFORM_CA_NAME: Final = "Intel SGX PCK Platform CA"
PROCESSOR_CA_NAME: Final = "Intel SGX PCK Processor CA"
PCK_NAME: Final = "Intel SGX PCK Certificate"
TCB_SIGNER_NAME: Final = "Intel SGX TCB Signing"

_INTEL_ROOT: Final = Path(__file__).parent / "roots" / "intel-sgx-root-ca.pem"
_MAX_ROOTS_PEM: Final = 64 << 10


@final
class Role(NamedTuple):
    """A place in a chain: which common names may stand there, and whether it issues certificates."""

    title: str
    names: tuple[str, ...]
    is_ca: bool


ROOT: Final = Role("root", (ROOT_NAME,), True)
PCK_CA: Final = Role("PCK CA", (PLATFORM_CA_NAME, PROCESSOR_CA_NAME), True)
PCK: Final = Role("PCK certificate", (PCK_NAME,), False)
TCB_SIGNER: Final = Role("TCB signer", (TCB_SIGNER_NAME,), False)

PCK_CHAIN: Final[tuple[Role, ...]] = (PCK, PCK_CA, ROOT)
TCB_CHAIN: Final[tuple[Role, ...]] = (TCB_SIGNER, ROOT)
CRL_CHAIN: Final[tuple[Role, ...]] = (PCK_CA, ROOT)


@final
@dataclass(frozen=True, slots=True)
class TrustRoots:
    """The trust anchors of a judgement, always an explicit argument. A presented root is compared by public key."""

    certificates: tuple[Certificate, ...] = field(repr=False)
    sha256: tuple[str, ...]
    """Lower-case hex SHA-256 of each root's DER: log these at start."""
    bodies: tuple[bytes, ...] = field(repr=False)
    """Their PEM bodies: chains usually carry the same text, which need not be decoded again."""

    @classmethod
    def intel(cls) -> TrustRoots:
        """Intel's SGX Root CA, which certifies TDX platforms too (SHA-256 of its DER: 44a0196b…b674d3)."""
        return _intel()

    @classmethod
    def from_pem(cls, pem: bytes) -> Self:
        """One to eight self-signed P-256 CA certificates. Raises MalformedEvidence: roots.malformed."""
        try:
            if len(pem) > _MAX_ROOTS_PEM:
                raise Unmet(f"{len(pem)} bytes, at most {_MAX_ROOTS_PEM}")
            bodies = tuple(pem_blocks(pem))
            certificates = tuple(Certificate.parse(pem_decode(body)) for body in bodies)
            for certificate in certificates:
                if not (certificate.self_issued and certificate.is_ca):
                    raise Unmet(f"{certificate.common_name} is not a self-issued CA certificate")
                if not signed_by(certificate.key, certificate.signature, certificate.tbs):
                    raise Unmet(f"{certificate.common_name} is not signed by its own key")
        except Unmet as unmet:
            raise MalformedEvidence(Code.ROOTS_MALFORMED, unmet.detail) from unmet
        return cls(certificates, tuple(sha256(certificate.der).hexdigest() for certificate in certificates), bodies)

    def holding(self, point: bytes) -> Certificate | None:
        """The root with this public key."""
        return next((root for root in self.certificates if root.point == point), None)


@cache
def _intel() -> TrustRoots:
    return TrustRoots.from_pem(_INTEL_ROOT.read_bytes())


@final
class KnownCertificates:
    """Certificates parsed, and signatures between them checked, once each. Grows within one judgement.

    A copy seeded from an earlier judgement carries over what was proved then, never a failure.
    """

    __slots__ = ("_bodies", "_parsed", "_proved")

    def __init__(self, roots: TrustRoots, earlier: KnownCertificates | None = None) -> None:
        self._bodies: dict[bytes, Certificate] = dict(zip(roots.bodies, roots.certificates, strict=True))
        self._parsed: dict[bytes, Certificate] = {root.der: root for root in roots.certificates}
        self._proved: set[tuple[bytes, bytes]] = set()
        if earlier is not None:
            self._bodies |= earlier._bodies
            self._parsed |= earlier._parsed
            self._proved |= earlier._proved

    def parse(self, body: bytes) -> Certificate:
        """The certificate in a PEM body. Raises Unmet."""
        found = self._bodies.get(body)
        if found is None:
            raw = pem_decode(body)
            found = self._parsed.get(raw)
            if found is None:
                found = self._parsed[raw] = Certificate.parse(raw)
            self._bodies[body] = found
        return found

    def issued(self, issuer: Certificate, subject: Certificate) -> bool:
        """Whether `issuer`'s key signed `subject`."""
        pair = (issuer.point, subject.der)
        if pair in self._proved:
            return True
        if not signed_by(issuer.key, subject.signature, subject.tbs):
            return False
        self._proved.add(pair)
        return True


def in_roles(certificates: Sequence[Certificate], roles: Sequence[Role]) -> tuple[Certificate, ...]:
    """As many certificates as `roles`, put in their order by name, each issued by the next. Raises Unmet."""
    ordered: list[Certificate] = []
    for at, role in enumerate(roles):
        if certificates[at].common_name in role.names:  # nearly always they stand in order
            ordered.append(certificates[at])
        else:
            ordered += [certificate for certificate in certificates if certificate.common_name in role.names]
        if len(ordered) != at + 1:
            names = ", ".join(repr(certificate.common_name) for certificate in certificates)
            raise Unmet(f"need one {role.title} ({' or '.join(role.names)}), the names here are {names}")
    upper = ordered[-1]  # the root issued itself
    for lower in reversed(ordered):
        if lower.issuer != upper.subject:
            raise Unmet(f"the issuer of {lower.common_name!r} is not the subject of {upper.common_name!r}")
        upper = lower
    return tuple(ordered)


def ends_in(root: Certificate, roots: TrustRoots) -> Certificate:
    """The trusted root with the same public key as `root`. Raises Unmet."""
    trusted = roots.holding(root.point)
    if trusted is None:
        detail = f"the root presented has SHA-256 {sha256(root.der).hexdigest()}, trusted: {', '.join(roots.sha256)}"
        raise Unmet(detail, "Judge it under the root it was made for, if you trust that root at all.")
    return trusted


def follows_profile(chain: Sequence[Certificate], roles: Sequence[Role]) -> None:
    """Extensions, CA flag, path length and key usage of each, from leaf to root. Raises Unmet."""
    below = 0
    for certificate, role in zip(chain, roles, strict=True):
        name = certificate.common_name
        if certificate.missing:
            raise Unmet(f"{name} lacks extension {', '.join(certificate.missing)}")
        if certificate.unknown_critical:
            raise Unmet(f"{name} has an unknown critical extension {', '.join(certificate.unknown_critical)}")
        if certificate.is_ca is not role.is_ca:
            raise Unmet(f"{name} {'is' if certificate.is_ca else 'is not'} a CA by its basic constraints")
        if role.is_ca and not (certificate.signs_certificates and certificate.signs_crls):
            raise Unmet(f"{name} may not sign certificates and CRLs by its key usage")
        if not role.is_ca and (certificate.signs_certificates or certificate.signs_crls):
            raise Unmet(f"{name} may sign certificates or CRLs by its key usage")
        if not role.is_ca and not certificate.signs_data:
            raise Unmet(f"{name} may not sign data by its key usage")
        if certificate.path_length is not None and below > certificate.path_length:
            raise Unmet(f"{name} allows {certificate.path_length} CAs below it, there are {below}")
        below += role.is_ca


def each_signed(chain: Sequence[Certificate], trusted: Certificate, known: KnownCertificates) -> None:
    """Each certificate by the one above it, the topmost by the trusted root's key. Raises Unmet.

    A presented root that is the trusted one, byte for byte, needs no check; another edition of it (Intel has issued two
    with one key) must be signed by that key.
    """
    *lower, root = chain
    if root.der != trusted.der and not known.issued(trusted, root):
        raise Unmet(f"{root.common_name} is neither the trusted certificate nor signed by its key")
    for subject, issuer in zip(lower, chain[1:], strict=True):
        if not known.issued(issuer, subject):
            raise Unmet(f"{subject.common_name} is not signed by {issuer.common_name}")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PckFacts:
    """What Intel certifies about a platform in the SGX extension of its PCK certificate (1.2.840.113741.1.13.1)."""

    ppid: bytes  # 16: the platform, stable across certificates
    piid: bytes | None  # 16: this registration of the platform; Platform CA only
    fmspc: bytes  # 6: family, model, stepping, platform, custom SKU
    pceid: bytes  # 2
    cpu_svn: bytes  # 16 component SVNs
    pce_svn: int
    sgx_type: int  # 0 standard, 1 scalable, 2 scalable with integrity
    dynamic_platform: bool | None  # the next three: Platform CA only
    cached_keys: bool | None
    smt_enabled: bool | None
    ca: str  # "platform" or "processor": which CA issued it, as the PCS names them

    @classmethod
    def of(cls, certificate: Certificate, ca_name: str) -> Self:
        """Reads the extension. Raises Unmet when it is not exactly Intel's layout, in Intel's order."""
        raw = certificate.sgx_extension
        if raw is None:
            raise Unmet("the PCK certificate has no SGX extension")
        platform = ca_name == PLATFORM_CA_NAME
        items = _items(raw, der.whole(raw, der.SEQUENCE), _SGX_OIDS[: 7 if platform else 5])
        svns, pce_svn, cpu_svn = _tcb(raw, items[1])
        if svns != cpu_svn:
            raise Unmet(f"CPUSVN {cpu_svn.hex()} is not the 16 component SVNs {svns.hex()}")
        dynamic, cached, smt = _configuration(raw, items[6]) if platform else (None, None, None)
        return cls(
            ppid=_octets(raw, items[0], 16),
            piid=_octets(raw, items[5], 16) if platform else None,
            fmspc=_octets(raw, items[3], 6),
            pceid=_octets(raw, items[2], 2),
            cpu_svn=svns,
            pce_svn=pce_svn,
            sgx_type=_sgx_type(raw, items[4]),
            dynamic_platform=dynamic,
            cached_keys=cached,
            smt_enabled=smt,
            ca="platform" if platform else "processor",
        )


def _oids(prefix: str, count: int) -> tuple[bytes, ...]:
    """The OIDs prefix.1, prefix.2 … as whole DER records; 1.2.840.113741.1.13.1 is 2a864886f84d010d01."""
    content = bytes.fromhex("2a864886f84d010d01" + prefix)
    return tuple(bytes((der.OID, len(content) + 1)) + content + bytes((last,)) for last in range(1, count + 1))


_SMALL_INTEGER: Final = bytes((der.INTEGER, 1))
_SGX_OIDS: Final = _oids("", 7)
_TCB_OIDS: Final = _oids("02", 18)
_CONFIGURATION_OIDS: Final = _oids("07", 3)


def _items(raw: bytes, span: der.Range, oids: tuple[bytes, ...]) -> list[der.Range]:
    """Where the values of SEQUENCE { oids[0], value }, SEQUENCE { oids[1], value } … are: these and no others."""
    at, end = span
    values: list[der.Range] = []
    for oid in oids:
        start, at = der.record(raw, at, end, der.SEQUENCE)
        if not raw.startswith(oid, start, at):
            raise Unmet(f"item {len(values) + 1} in the SGX extension is not the one that belongs there")
        values.append((start + len(oid), at))
    if at != end:
        raise Unmet(f"more than {len(oids)} items in the SGX extension or in a part of it")
    return values


def _value_of(raw: bytes, item: der.Range, tag: int) -> der.Range:
    """The content of the one record that fills an item."""
    found = der.record(raw, item[0], item[1], tag)
    if found[1] != item[1]:
        raise Unmet("an item of the SGX extension holds more than one value")
    return found


def _tcb(raw: bytes, item: der.Range) -> tuple[bytes, int, bytes]:
    """16 component SVNs, PCESVN, CPUSVN."""
    items = _items(raw, _value_of(raw, item, der.SEQUENCE), _TCB_OIDS)
    svns = [_svn(raw, svn) for svn in items[:17]]
    if max(svns[:16]) > 0xFF or svns[16] > 0xFFFF:
        raise Unmet("an SVN in the SGX extension is too large")
    return bytes(svns[:16]), svns[16], _octets(raw, items[17], 16)


def _svn(raw: bytes, item: der.Range) -> int:
    start, stop = item
    if raw[start : stop - 1] == _SMALL_INTEGER and raw[stop - 1] < 0x80:  # nearly all are: spares a general reading
        return raw[stop - 1]
    return der.integer(raw, _value_of(raw, item, der.INTEGER))


def _configuration(raw: bytes, item: der.Range) -> tuple[bool, bool, bool]:
    items = _items(raw, _value_of(raw, item, der.SEQUENCE), _CONFIGURATION_OIDS)
    dynamic, cached, smt = (der.boolean(raw, _value_of(raw, flag, der.BOOLEAN)) for flag in items)
    return dynamic, cached, smt


def _octets(raw: bytes, item: der.Range, size: int) -> bytes:
    start, stop = _value_of(raw, item, der.OCTET_STRING)
    if stop - start != size:
        raise Unmet(f"an octet string of {stop - start} bytes in the SGX extension, not {size}")
    return raw[start:stop]


def _sgx_type(raw: bytes, item: der.Range) -> int:
    found = der.integer(raw, _value_of(raw, item, der.ENUMERATED))
    if found > 2:
        raise Unmet(f"SGX type {found} in the SGX extension, know 0, 1 and 2")
    return found
