"""Who is who in an Intel-shaped PKI: trust anchors, roles by name, and certificate profiles.

Decides which roots exist (only those that the caller names; Intel's is shipped as data), and which names and extensions
each role must have. Single certificates are read by `certificates`, the SGX extension of a PCK certificate by `pck`;
which chains are demanded, and of whom, is decided in `chains` and `endorsements`.

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

from attestation.certificates import Certificate, signed_by
from attestation.checks import Unmet
from attestation.errors import Code, MalformedEvidence
from attestation.pem import pem_blocks, pem_decode

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
        if type(pem) is not bytes:
            raise TypeError(f"roots are read from the bytes of a PEM file, not {type(pem).__name__}")
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

    What an earlier judgement parsed and proved is looked up there, and nothing is added to it.
    """

    __slots__ = ("_bodies", "_earlier", "_parsed", "_proved")

    def __init__(self, roots: TrustRoots, earlier: KnownCertificates | None = None) -> None:
        self._earlier = earlier
        self._bodies: dict[bytes, Certificate] = dict(zip(roots.bodies, roots.certificates, strict=True))
        self._parsed: dict[bytes, Certificate] = {root.der: root for root in roots.certificates}
        self._proved: set[tuple[bytes, bytes]] = set()

    def parse(self, body: bytes) -> Certificate:
        """The certificate in a PEM body. Raises Unmet."""
        found = self._bodies.get(body)
        if found is None and self._earlier is not None:
            found = self._earlier._bodies.get(body)
        if found is None:
            raw = pem_decode(body)
            found = self._parsed.get(raw)
            if found is None and self._earlier is not None:
                found = self._earlier._parsed.get(raw)
            if found is None:
                found = self._parsed[raw] = Certificate.parse(raw)
            self._bodies[body] = found
        return found

    def issued(self, issuer: Certificate, subject: Certificate) -> bool:
        """Whether `issuer`'s key signed `subject`."""
        pair = (issuer.point, subject.der)
        if pair in self._proved or (self._earlier is not None and pair in self._earlier._proved):
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
