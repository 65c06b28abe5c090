"""The broker's certificate authority: keys that rotate with overlap, the certificates and CRLs that they sign.

Decides which key signs, for how long an authority stands, and what a leaf looks like (SPIFFE X.509-SVID, RFC 5280). A
new authority is published an hour before it signs, and an old one stays until nothing that it signed can still live.
Whom a certificate is for is decided in svids.py. An authority's certificate follows from its key alone, so every
replica publishes the same bytes.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from broker.keyring import PUBLISH_BEFORE_S, TokenKey, draw_key, load_keys, published, signing
from broker.ports import DAY_S, Store, Transaction
from broker.rootkey.root import RootKey
from broker.wire.svid import spiffe_id

PURPOSE: Final = "ca"
ROTATE_S: Final = 30 * DAY_S
AUTHORITY_S: Final = 90 * DAY_S
MARGIN_S: Final = DAY_S  # an authority that ends sooner is replaced at once, without overlap
BACKDATED_S: Final = 60  # for peers whose clocks are behind
CRL_S: Final = 60  # whoever relies on a certificate asks this often
_USAGE: Final = dict.fromkeys(
    (
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "encipher_only",
        "decipher_only",
    ),
    False,
)


@final
class Authority:
    """See the module. `open` first; `maintain` from time to time."""

    def __init__(self, store: Store, root: RootKey, trust_domain: str, *, simulated: bool) -> None:
        self._store = store
        self._root = root
        self.trust_domain: Final[str] = trust_domain
        self._organisation = "Cloister SIMULATED" if simulated else "Cloister"
        self._keys: tuple[TokenKey, ...] = ()
        self._certificates: dict[str, x509.Certificate] = {}

    async def maintain(self, at: datetime) -> bool:
        """Read the keys again, and draw the next one when it is time; whether one was drawn."""
        self._keys = await self._store.transact(lambda tx: load_keys(tx, self._root, PURPOSE))
        now_s = at.timestamp()
        if not self._keys or signing(self._keys, now_s).from_s + AUTHORITY_S < now_s + MARGIN_S:
            await self._draw(int(now_s))
        elif self._keys[-1].from_s + ROTATE_S < now_s:
            await self.rotate(at)
        else:
            return False
        return True

    async def rotate(self, at: datetime) -> None:
        """Draw the next authority: published at once, it signs an hour later."""
        await self._draw(int(at.timestamp()) + PUBLISH_BEFORE_S)

    async def _draw(self, from_s: int) -> None:
        def work(tx: Transaction) -> tuple[TokenKey, ...]:
            draw_key(tx, self._root, PURPOSE, from_s)
            return load_keys(tx, self._root, PURPOSE)

        self._keys = await self._store.transact(work)

    def published(self, at: datetime) -> tuple[x509.Certificate, ...]:
        """Every authority whose certificates may be alive, or will be; newest first."""
        return tuple(self._certificate(key) for key in published(self._keys, at.timestamp()))

    def waits(self, at: datetime) -> bool:
        """Whether the newest one does not sign yet."""
        return self._keys[-1].from_s > at.timestamp()

    @property
    def sequence(self) -> int:
        """Grows with every authority."""
        return len(self._keys)

    def find(self, kid: str, at: datetime) -> TokenKey | None:
        return next((key for key in published(self._keys, at.timestamp()) if key.kid == kid), None)

    def kids(self, at: datetime) -> tuple[str, ...]:
        return tuple(key.kid for key in published(self._keys, at.timestamp()))

    def issue(
        self, key: ec.EllipticCurvePublicKey, subject: str, *, at: datetime, not_after: datetime, crl_base: str
    ) -> tuple[str, x509.Certificate]:
        """The signing authority's kid and a leaf for the agent's TLS key."""
        signer = signing(self._keys, at.timestamp())
        authority = self._certificate(signer)
        name = x509.UniformResourceIdentifier(spiffe_id(self.trust_domain, subject))
        crl = x509.DistributionPoint([x509.UniformResourceIdentifier(crl_base + signer.kid)], None, None, None)
        both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = (
            self._builder(key, authority.subject, x509.random_serial_number())
            .subject_name(x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, self._organisation)]))
            .not_valid_before(at.replace(microsecond=0) - timedelta(seconds=BACKDATED_S))
            .not_valid_after(not_after)
            .add_extension(x509.SubjectAlternativeName([name]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage(both), critical=False)
            .add_extension(_issuer_key(signer), critical=False)
            .add_extension(x509.CRLDistributionPoints([crl]), critical=False)
        )
        return signer.kid, builder.sign(signer.private, SHA256())

    def crl(self, signer: TokenKey, revoked: Sequence[x509.RevokedCertificate], at: datetime) -> bytes:
        """DER of this authority's CRL: in force for a minute."""
        moment = at.replace(microsecond=0)
        builder = x509.CertificateRevocationListBuilder(
            self._certificate(signer).subject,
            (moment - timedelta(seconds=BACKDATED_S)).astimezone(UTC).replace(tzinfo=None),
            (moment + timedelta(seconds=CRL_S)).astimezone(UTC).replace(tzinfo=None),
            revoked_certificates=list(revoked),  # adding them one by one copies the list each time
        )
        builder = builder.add_extension(x509.CRLNumber(int(at.timestamp() * 1000)), critical=False)
        builder = builder.add_extension(_issuer_key(signer), critical=False)
        return builder.sign(signer.private, SHA256()).public_bytes(Encoding.DER)

    def _certificate(self, key: TokenKey) -> x509.Certificate:
        found = self._certificates.get(key.kid)
        if found is None:
            found = self._certificates[key.kid] = self._self_signed(key)
        return found

    def _self_signed(self, key: TokenKey) -> x509.Certificate:
        """The same bytes whoever makes it: serial, times and signature follow from the key."""
        public = key.private.public_key()
        digest = x509.SubjectKeyIdentifier.from_public_key(public).digest
        named = (NameOID.ORGANIZATION_NAME, self._organisation), (NameOID.COMMON_NAME, f"Agents {digest.hex()[:16]}")
        name = x509.Name([x509.NameAttribute(kind, text) for kind, text in named])
        start = datetime.fromtimestamp(key.from_s - PUBLISH_BEFORE_S, UTC)
        domain = x509.UniformResourceIdentifier(f"spiffe://{self.trust_domain}")
        builder = (
            self._builder(public, name, int.from_bytes(digest[:16], "big") | 1)
            .subject_name(name)
            .not_valid_before(start)
            .not_valid_after(start + timedelta(seconds=AUTHORITY_S))
            .add_extension(x509.SubjectAlternativeName([domain]), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
        )
        return builder.sign(key.private, SHA256(), ecdsa_deterministic=True)

    @staticmethod
    def _builder(key: ec.EllipticCurvePublicKey, issuer: x509.Name, serial: int) -> x509.CertificateBuilder:
        builder = x509.CertificateBuilder().public_key(key).issuer_name(issuer).serial_number(serial)
        return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(digital_signature=digital_signature, key_cert_sign=key_cert_sign, crl_sign=crl_sign, **_USAGE)


def _issuer_key(signer: TokenKey) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.private.public_key())
