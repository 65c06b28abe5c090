"""X.509-SVIDs: certificates for agents' TLS keys, the trust bundle, and the CRL on which fallen agents stand.

Decides whom a certificate names (the agent that asks, by its subject), how long it lives (no longer than the admission
that it stands for), and what is revoked: every living certificate of an agent that is quarantined or revoked, from the
moment the store says so. The identity key may not serve as TLS key: TLS signs what a peer chooses.
"""

import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Self, final
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from attestation.encoding import b64url
from broker.audit import Audit, Entry, Kind
from broker.authority import Authority
from broker.errors import BrokerCode, BrokerError
from broker.generation import Generation
from broker.identity import Identity
from broker.ports import AgentState, Clock, Store, Transaction
from broker.ports.svids import MAX_FALLEN, FallenSvid, SvidRecord
from broker.rootkey.root import RootKey
from broker.sessions import Session, require_unrevoked
from broker.wire.errors import WireCode, WireError
from broker.wire.jose import jwk, spki
from broker.wire.svid import SvidRequest, SvidResponse, TrustBundle

CRL_PATH: Final = "/v1/spiffe/crls/"
REFRESH_S: Final = 30
MAX_LIVING: Final = 32  # certificates of one agent: each may have to stand on the CRL that everybody reads
SIMULATED: Final = "simulated."
_REASONS: Final = {
    AgentState.QUARANTINED.value: x509.ReasonFlags.certificate_hold,
    AgentState.REVOKED.value: x509.ReasonFlags.privilege_withdrawn,
}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Published:
    """What holds for one second."""

    at_s: int
    bundle: TrustBundle
    crls: dict[str, bytes]


@final
class SvidDesk:
    """Issues certificates, and publishes what is needed to judge them."""

    def __init__(
        self,
        *,
        authority: Authority,
        store: Store,
        audit: Audit,
        generation: Generation,
        identity: Identity,
        clock: Clock,
    ) -> None:
        self._authority = authority
        self._store = store
        self._audit = audit
        self._generation = generation
        self._identity = identity
        self._clock = clock
        self._published: _Published | None = None

    @classmethod
    async def open(
        cls,
        *,
        root: RootKey,
        trust_domain: str,
        simulated: bool,
        store: Store,
        audit: Audit,
        generation: Generation,
        identity: Identity,
        clock: Clock,
    ) -> Self:
        """With the store's authorities; the first is drawn when there is none. `trust_domain` may be empty."""
        named = trust_domain_of(trust_domain or identity.issuer, simulated=simulated)
        authority = Authority(store, root, named, simulated=simulated)
        await authority.maintain(clock())
        return cls(authority=authority, store=store, audit=audit, generation=generation, identity=identity, clock=clock)

    @property
    def trust_domain(self) -> str:
        return self._authority.trust_domain

    async def issue(self, session: Session, request: SvidRequest, *, correlation_id: str = "") -> SvidResponse:
        """A certificate for the key that signed the request.

        Raises WireError svid.request_invalid; BrokerError generation.moved, agent.revoked, agent.expired,
        svid.too_many.
        """
        at, key = self._clock(), request.public_key()
        if hmac.compare_digest(spki(key), session.verdict.identity_key):
            raise WireError(WireCode.SVID_REQUEST, "the identity key is no TLS key: make one for certificates alone")
        end = min(session.record.expires_at_s, int(session.verdict.valid_until.timestamp()))
        if end <= at.timestamp():
            raise BrokerError(BrokerCode.AGENT_EXPIRED, session.subject)
        kid, leaf = self._authority.issue(
            key,
            session.subject,
            at=at,
            not_after=datetime.fromtimestamp(end, UTC),
            crl_base=self._identity.issuer + CRL_PATH,
        )
        record = SvidRecord(
            serial=f"{leaf.serial_number:x}",
            authority=kid,
            subject=session.subject,
            issued_at_s=int(at.timestamp()),
            expires_at_s=end,
        )

        def work(tx: Transaction) -> None:
            self._generation.expect(tx, session.generation)
            require_unrevoked(tx, session.subject)
            if len(tx.svids.of(session.subject, now_s=int(at.timestamp()))) >= MAX_LIVING:
                raise BrokerError(BrokerCode.SVID_TOO_MANY, f"{session.subject} has {MAX_LIVING}")
            tx.svids.add(record, now_s=int(at.timestamp()))

        await self._audit.record(self._entry(session, record, at, correlation_id), work)
        return SvidResponse(
            spiffe_id=f"spiffe://{self.trust_domain}/{session.subject}",
            certificate=leaf.public_bytes(Encoding.DER),
            bundle=self.bundle(),
        )

    @staticmethod
    def _entry(session: Session, record: SvidRecord, at: datetime, correlation_id: str) -> Entry:
        return Entry(
            kind=Kind.SVID_ISSUED,
            at=at,
            subject=session.subject,
            tenant=session.verdict.tenant,
            policy=session.bundle.digest,
            evidence=session.record.evidence.hex(),
            generation=session.generation,
            correlation_id=correlation_id,
            more={"serial": record.serial, "authority": record.authority, "until_s": record.expires_at_s},
        )

    def bundle(self) -> TrustBundle:
        """Authorities and CRLs of this second, signed. Raises BrokerError clock.behind."""
        return self._now().bundle

    def crl(self, kid: str) -> bytes:
        """An authority's CRL, DER. Raises BrokerError svid.authority_unknown."""
        found = self._now().crls.get(kid)
        if found is None:
            raise BrokerError(BrokerCode.SVID_AUTHORITY, f"no authority {kid[:64]!a} is published")
        return found

    def document(self) -> dict[str, Any]:
        """The SPIFFE bundle: a JWK Set of the authorities and of the keys that sign tokens."""
        at = self._clock()
        authorities = [
            {
                **jwk(found.public_key()),  # type: ignore[arg-type]  # every authority's key is on P-256
                "use": "x509-svid",
                "x5c": [_b64(found.public_bytes(Encoding.DER))],
            }
            for found in self._authority.published(at)
        ]
        tokens = [{**key, "use": "jwt-svid"} for key in self._identity.jwks(at)["keys"]]
        return {
            "keys": [*authorities, *tokens],
            "spiffe_sequence": self._authority.sequence,
            "spiffe_refresh_hint": REFRESH_S,
        }

    async def rotate(self, by: str, *, correlation_id: str = "") -> dict[str, Any]:
        """Draw the next authority, for an administrator. It signs an hour from now.

        While an earlier one is published and does not sign yet, none is drawn: readers take only so many.
        """
        at = self._clock()
        if not self._authority.waits(at):
            await self._authority.rotate(at)
            await self._note(at, by, correlation_id)
        return {"authorities": list(self._authority.kids(at))}

    async def maintain(self) -> None:
        """Follow other replicas, and draw the next authority when it is time."""
        at = self._clock()
        if await self._authority.maintain(at):
            await self._note(at, "", "")

    async def _note(self, at: datetime, by: str, correlation_id: str) -> None:
        self._published = None
        more: dict[str, str | int | list[str]] = {"authorities": list(self._authority.kids(at)), "by": by}
        entry = Entry(kind=Kind.AUTHORITY_DRAWN, at=at, correlation_id=correlation_id, more=more)
        await self._audit.record(entry, lambda _: None)

    def _now(self) -> _Published:
        at = self._clock()
        now_s = int(at.timestamp())
        if self._published is None or self._published.at_s != now_s:
            fallen = self._store.read(lambda tx: tx.svids.fallen(now_s=now_s))
            self._published = self._publish(at, fallen)
        return self._published

    def _publish(self, at: datetime, fallen: Sequence[FallenSvid]) -> _Published:
        """More certificates to revoke than are looked up: no CRL then, and nobody believes any certificate."""
        complete = len(fallen) < MAX_FALLEN
        revoked = [(one.authority, _revoked(one)) for one in fallen] if complete else []
        crls: dict[str, bytes] = {}
        for kid in self._authority.kids(at) if complete else ():
            signer = self._authority.find(kid, at)
            assert signer is not None  # it has just been named
            crls[kid] = self._authority.crl(signer, [found for by, found in revoked if by == kid], at)
        bundle = TrustBundle.sign(
            self._identity.key,
            trust_domain=self.trust_domain,
            authorities=[found.public_bytes(Encoding.DER) for found in self._authority.published(at)],
            crls=list(crls.values()),
            sequence=self._authority.sequence,
            at_s=int(at.timestamp()),
        )
        return _Published(at_s=int(at.timestamp()), bundle=bundle, crls=crls)


def trust_domain_of(named: str, *, simulated: bool) -> str:
    """The name, or the host of the broker's public URL; where simulated hardware alone is believed, it says so."""
    host = (urlsplit(named).hostname or "broker").lower() if "://" in named else named
    plain = re.sub(r"[^a-z0-9._-]", "-", host)
    return f"{SIMULATED}{plain}" if simulated and not plain.startswith(SIMULATED) else plain


def _revoked(fallen: FallenSvid) -> x509.RevokedCertificate:
    since = datetime.fromtimestamp(fallen.judged_at_s, UTC)
    builder = x509.RevokedCertificateBuilder().serial_number(int(fallen.serial, 16)).revocation_date(since)
    reason = _REASONS.get(fallen.state, x509.ReasonFlags.unspecified)
    return builder.add_extension(x509.CRLReason(reason), critical=False).build()


def _b64(raw: bytes) -> str:
    """Standard base64, as `x5c` wants it (RFC 7517 §4.7)."""
    text = b64url(raw).replace("-", "+").replace("_", "/")
    return text + "=" * (-len(text) % 4)
