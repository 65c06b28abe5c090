"""The broker as one object: every use-case, built from settings, without any protocol around it.

Decides how the parts are put together and what goes on in the background: collateral is asked for again, agents are
judged again when the generation rises, refusals are summed up once a minute. Adapters (http_api.py) translate to and
from this; tests and demonstrations use it as it is.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar, final

from attestation import sealing
from attestation.evidence import MLKEM768_X25519
from attestation.pki import TrustRoots
from attestation.ports import CollateralSource, TrustDomain
from broker import desks
from broker.administration import Administration
from broker.admission import AdmissionDesk
from broker.attested import Attestor
from broker.audit import Audit, Entry, Kind
from broker.bundles import Bundles
from broker.clock import wall_clock
from broker.collateral import CollateralCache
from broker.config import Admin, Settings
from broker.derivation import DerivationDesk
from broker.domains import trust_file_digest
from broker.dpop import Gate
from broker.errors import BrokerCode, BrokerError
from broker.foundation import Confirm, Records, Trust, open_records, open_trust
from broker.generation import Generation, again_while_moving
from broker.identity import Identity
from broker.kbs.desk import KbsDesk
from broker.leasing import Leasing
from broker.limits import Limits
from broker.mail.bell import Bell
from broker.mail.blobs import Blobs
from broker.mail.channels import Channels
from broker.mail.deadletters import DeadLetters
from broker.mail.desks import assemble as assemble_mail
from broker.mail.drawing import Drawing
from broker.mail.labels import Ratchets
from broker.mail.leases import Leases
from broker.mail.mailboxes import Mailboxes
from broker.mail.mailkeys import KeyDesk
from broker.mail.routing import Router
from broker.mail.states import StateDesk
from broker.mail.topics import TopicDesk
from broker.pool import Pool
from broker.ports import AgentState, Clock, Store
from broker.readiness import Readiness
from broker.release import ReleaseDesk
from broker.retirement import Retirement
from broker.rootkey.root import RootKey
from broker.rotation import KeyRotation
from broker.sessions import Session, Sessions
from broker.sources import bundles_of, pcs_of, root_key_of, roots_of, signers_of
from broker.standing import StandingDesk
from broker.store.memory import MemoryStore
from broker.store.sql import SqlStore
from broker.svids import SvidDesk
from broker.telemetry import Metrics
from broker.tokens import TokenDesk
from broker.upkeep import Upkeep
from broker.vault import Vault
from broker.verification import VerificationDesk

T = TypeVar("T")
logger = logging.getLogger("cloister.broker")


@final
@dataclass(slots=True)
class Ports:
    """Where the broker can be reached beside its public URL, known once it listens; 0 is nowhere."""

    grpc: int = 0


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Broker:
    """Everything that a broker does."""

    settings: Settings
    clock: Clock
    store: Store
    audit: Audit
    identity: Identity
    attestor: Attestor
    generation: Generation
    collateral: CollateralCache
    sessions: Sessions
    gate: Gate
    admission: AdmissionDesk
    verification: VerificationDesk
    tokens: TokenDesk
    rotation: KeyRotation
    pool: Pool
    limits: Limits
    labels: Ratchets
    keys: KeyDesk
    states: StateDesk
    standing: StandingDesk
    topics: TopicDesk
    releases: ReleaseDesk
    kbs: KbsDesk
    upkeep: Upkeep
    retirement: Retirement
    router: Router
    channels: Channels
    mailboxes: Mailboxes
    leases: Leases
    drawing: Drawing
    dead: DeadLetters
    blobs: Blobs
    administration: Administration
    leasing: Leasing
    derivation: DerivationDesk
    metrics: Metrics
    bell: Bell
    svids: SvidDesk
    ports: Ports = field(default_factory=Ports)
    readiness: Readiness = field(default_factory=Readiness)

    async def acting(self, token: str, act: Callable[[Session], Awaitable[T]]) -> T:
        """Let whoever holds the token act; judged anew when the generation rises under way. Raises what `act` does."""

        async def judged_and_done() -> T:
            return await act(await self.sessions.of_token(token, self.clock()))

        return await again_while_moving(judged_and_done)

    def admin(self, jkt: str) -> Admin:
        """Raises BrokerError admin.key_unknown."""
        for admin in self.settings.admins:
            if admin.jkt == jkt:
                return admin
        raise BrokerError(BrokerCode.ADMIN_KEY_UNKNOWN, f"key {jkt}")

    async def close(self) -> None:
        """Let waiting receivers go, then finish what was begun."""
        self.bell.stop()
        self.attestor.stop()
        self.collateral.stop()
        self.pool.close()
        with contextlib.suppress(BrokerError):  # a store that takes nothing more, a clock that is behind
            await self.upkeep.save_sightings()
        await asyncio.sleep(0)
        self.store.close()


async def build(
    settings: Settings,
    *,
    clock: Clock = wall_clock,
    collateral: CollateralSource | None = None,
    roots: TrustRoots | None = None,
    root_key: RootKey | None = None,
    passphrase: bytes | None = None,
    domain: TrustDomain | None = None,
    confirm: Confirm | None = None,
) -> Broker:
    """A broker that is ready to serve, attested when it is given its trust domain. What else is not given is taken
    from the settings.

    `confirm` waits until somebody stands for the newest checkpoint, before anything is written, and says who it was.
    Raises BrokerError config.invalid, root.*, checkpoint.*, store.*, log.tampered; BundleError; SealingFailed
    sealing.suite_unavailable; MalformedEvidence roots.malformed.
    """
    sealing.require(MLKEM768_X25519)
    trusted = roots or roots_of(settings)
    root = root_key or root_key_of(settings, passphrase)
    store: Store = (
        MemoryStore() if settings.database is None else SqlStore(settings.database, mac_key=root.derive("marks"))
    )
    try:
        source = collateral or pcs_of(settings, trusted, clock)
        records = await open_records(settings, clock, root, store, confirm or _nobody(settings))
        trust = await open_trust(records, source, trusted, Bundles(bundles_of(settings)))
        built = await _assemble(settings, records, trust, root)
        if collateral is None and settings.early:
            built.upkeep.watch(pcs_of(settings, trusted, clock, "early"))
        if domain is not None and settings.trust_file is not None:
            signers = signers_of(settings)
            told = trust_file_digest(settings.trust_file, built.identity, trusted.sha256, settings.admins, signers)
            await begin_attested(built, domain, told)
        return built
    except BaseException:
        store.close()
        raise


async def begin_attested(broker: Broker, domain: TrustDomain, trust_file_digest: bytes) -> None:
    """Have the broker prove its trust domain from now on, and say so in the log. Raises what quoting raises."""
    quote = await broker.attestor.begin(domain, trust_file_digest)
    entry = Entry(
        kind=Kind.BROKER_ATTESTED,
        at=broker.clock(),
        more={
            "domain": domain.name,
            "simulated": int(domain.simulated),
            "mr_td": quote.td.mr_td.hex(),
            "rtmrs": [rtmr.hex() for rtmr in quote.td.rtmrs],
            "trust_file": trust_file_digest.hex(),
        },
    )
    await broker.audit.record(entry, lambda _: None)


async def _assemble(settings: Settings, records: Records, trust: Trust, root: RootKey) -> Broker:
    """Each desk once, in the order in which they need each other."""
    vault = Vault(root)
    mail = assemble_mail(records, sessions=trust.sessions, vault=vault, quota=settings.quota)
    svids = await desks.svids(records, trust, root, settings)
    administration = desks.administration(records, trust, root, vault, settings)
    await _note_start(records, trust, settings)
    return Broker(
        settings=settings,
        clock=records.clock,
        store=records.store,
        audit=records.audit,
        identity=records.identity,
        generation=records.generation,
        collateral=trust.collateral,
        pool=trust.pool,
        sessions=trust.sessions,
        attestor=desks.attestor(records, trust),
        gate=Gate(settings.public_url),
        limits=Limits(settings.rates),
        admission=desks.admission(records, trust, root),
        verification=desks.verification(records, trust),
        tokens=desks.tokens(records, trust, svids.trust_domain),
        svids=svids,
        standing=desks.standing(records),
        releases=desks.releases(records, vault, mail.labels),
        leasing=desks.leasing(records, vault),
        derivation=desks.derivation(records, root),
        kbs=await desks.kbs(records, trust, root, vault, settings),
        administration=administration,
        rotation=desks.rotation(records, root, settings),
        upkeep=desks.upkeep(records, trust, settings),
        retirement=desks.retirement(records, trust, settings),
        metrics=Metrics(lambda: _live(administration) | {"forged_rows": {"mail": float(mail.forged.count)}}),
        bell=mail.bell,
        labels=mail.labels,
        router=mail.router,
        channels=mail.channels,
        mailboxes=mail.mailboxes,
        leases=mail.leases,
        drawing=mail.drawing,
        dead=mail.dead,
        blobs=mail.blobs,
        keys=mail.keys,
        states=mail.states,
        topics=mail.topics,
    )


def _nobody(settings: Settings) -> Confirm:
    """Where nobody was asked to stand for the checkpoint: fine only where the settings say that this is skipped."""

    async def confirm(audit: Audit) -> str:
        if settings.confirm != "skipped":
            detail = f"{audit.head().size} entries, to be confirmed by {settings.confirm}"
            raise BrokerError(BrokerCode.ROOT_SEALED, detail)
        return "skipped"

    return confirm


def _live(administration: Administration) -> dict[str, dict[str, float]]:
    """What the metrics show of the present state."""
    overview = administration.overview()
    return {
        "agents": {state: float(overview["agents"][state]) for state in AgentState},
        "generation": {"now": float(overview["generation"])},
        "log_entries": {"all": float(overview["log_size"])},
        "collateral_families": {"all": float(len(overview["collateral"]))},
    }


async def _note_start(records: Records, trust: Trust, settings: Settings) -> None:
    """Which roots, policies and administrators this life of the broker believes in, in log and log file."""
    for digest in trust.roots.sha256:
        logger.warning("trust.root", extra={"sha256": digest, "intel": digest in TrustRoots.intel().sha256})
    entry = Entry(
        kind=Kind.BROKER_STARTED,
        at=records.clock(),
        more={
            "profile": settings.profile,
            "roots": list(trust.roots.sha256),
            "policies": [f"{bundle.tenant} {bundle.version} {bundle.digest}" for bundle in trust.bundles.all],
            "admins": [f"{admin.role} {admin.jkt}" for admin in settings.admins],
            "witness": records.witness,
        },
    )
    await records.audit.record(entry, lambda _: None)
