"""The broker's desks, each made from its records and from whom it believes.

Decides nothing: one function a desk, which tells it what it needs and no more. The desks for mail are made in
mail/desks.py; service.py calls these in their order.
"""

from attestation.pki import TrustRoots
from broker.administration import Administration
from broker.admission import AdmissionDesk
from broker.attested import Attestor
from broker.challenges import Challenges
from broker.config import Settings
from broker.derivation import DerivationDesk
from broker.foundation import Records, Trust
from broker.kbs.desk import KbsDesk, open_desk
from broker.leasing import Leasing
from broker.mail.labels import Ratchets
from broker.ports import DAY_S
from broker.release import ReleaseDesk
from broker.retirement import Retirement
from broker.rootkey.root import RootKey
from broker.rotation import KeyRotation
from broker.second import SecondPerson
from broker.sources import bundles_of
from broker.standing import StandingDesk
from broker.svids import SvidDesk
from broker.tokens import TokenDesk
from broker.upkeep import Upkeep
from broker.vault import Vault
from broker.verification import VerificationDesk


def admission(records: Records, trust: Trust, root: RootKey) -> AdmissionDesk:
    return AdmissionDesk(
        challenges=Challenges(root.derive("challenges"), "attest"),
        judge=trust.judge,
        identity=records.identity,
        audit=records.audit,
        generation=records.generation,
        sessions=trust.sessions,
        pool=trust.pool,
        clock=records.clock,
    )


def attestor(records: Records, trust: Trust) -> Attestor:
    return Attestor(identity=records.identity, collateral=trust.collateral, clock=records.clock, roots=trust.roots)


def verification(records: Records, trust: Trust) -> VerificationDesk:
    return VerificationDesk(
        judge=trust.judge, identity=records.identity, audit=records.audit, pool=trust.pool, clock=records.clock
    )


async def svids(records: Records, trust: Trust, root: RootKey, settings: Settings) -> SvidDesk:
    """Under other roots than Intel's, certificates say so."""
    return await SvidDesk.open(
        root=root,
        trust_domain=settings.spiffe_trust_domain,
        simulated=trust.roots.sha256 != TrustRoots.intel().sha256,
        store=records.store,
        audit=records.audit,
        generation=records.generation,
        identity=records.identity,
        clock=records.clock,
    )


def tokens(records: Records, trust: Trust, trust_domain: str) -> TokenDesk:
    return TokenDesk(
        audit=records.audit,
        generation=records.generation,
        identity=records.identity,
        sessions=trust.sessions,
        clock=records.clock,
        trust_domain=trust_domain,
    )


def standing(records: Records) -> StandingDesk:
    return StandingDesk(
        store=records.store, generation=records.generation, identity=records.identity, clock=records.clock
    )


def releases(records: Records, vault: Vault, labels: Ratchets) -> ReleaseDesk:
    return ReleaseDesk(
        store=records.store,
        vault=vault,
        audit=records.audit,
        generation=records.generation,
        identity=records.identity,
        labels=labels,
        clock=records.clock,
    )


def leasing(records: Records, vault: Vault) -> Leasing:
    return Leasing(store=records.store, vault=vault, audit=records.audit, clock=records.clock)


def derivation(records: Records, root: RootKey) -> DerivationDesk:
    return DerivationDesk(
        root=root,
        audit=records.audit,
        generation=records.generation,
        identity=records.identity,
        clock=records.clock,
    )


async def kbs(records: Records, trust: Trust, root: RootKey, vault: Vault, settings: Settings) -> KbsDesk:
    return await open_desk(
        root,
        records.store,
        judge=trust.judge,
        pool=trust.pool,
        identity=records.identity,
        vault=vault,
        audit=records.audit,
        generation=records.generation,
        clock=records.clock,
        ttl_s=settings.token_ttl_s,
    )


def administration(records: Records, trust: Trust, root: RootKey, vault: Vault, settings: Settings) -> Administration:
    return Administration(
        store=records.store,
        vault=vault,
        audit=records.audit,
        bundles=trust.bundles,
        generation=records.generation,
        sessions=trust.sessions,
        collateral=trust.collateral,
        clock=records.clock,
        reload=lambda: bundles_of(settings),
        second=SecondPerson(
            store=records.store,
            audit=records.audit,
            key=root.derive("second-person"),
            marked=settings.two_person,
            clock=records.clock,
        ),
    )


def rotation(records: Records, root: RootKey, settings: Settings) -> KeyRotation:
    return KeyRotation(
        store=records.store,
        root=root,
        keyring=records.keyring,
        audit=records.audit,
        clock=records.clock,
        every_days=settings.rotate_days,
    )


def retirement(records: Records, trust: Trust, settings: Settings) -> Retirement:
    return Retirement(
        store=records.store,
        audit=records.audit,
        sessions=trust.sessions,
        clock=records.clock,
        after_s=settings.agents_days * DAY_S,
    )


def upkeep(records: Records, trust: Trust, settings: Settings) -> Upkeep:
    return Upkeep(
        store=records.store,
        audit=records.audit,
        judge=trust.judge,
        collateral=trust.collateral,
        clock=records.clock,
        retention_s=settings.archive_days * DAY_S,
    )
