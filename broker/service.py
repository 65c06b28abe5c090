"""The broker as one object: every use-case, built from settings, without any protocol around it.

Decides how the parts are put together and what goes on in the background: collateral is asked for again, agents are
judged again when the generation rises, refusals are summed up once a minute. Adapters (http_api.py) translate to and
from this; tests and demonstrations use it as it is.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, TypeVar, final

from attestation import sealing
from attestation.evidence import MLKEM768_X25519
from attestation.pki import TrustRoots
from attestation.ports import CollateralSource, TrustDomain
from broker.administration import Administration
from broker.admission import AdmissionDesk
from broker.attested import Attestor
from broker.audit import Audit, Entry, Kind
from broker.bundles import Bundles
from broker.challenges import Challenges
from broker.clock import SteadyClock, wall_clock
from broker.collateral import CollateralCache
from broker.config import Admin, Settings
from broker.derivation import DerivationDesk
from broker.domains import trust_file_digest
from broker.dpop import Gate
from broker.errors import BrokerCode, BrokerError
from broker.generation import Generation
from broker.identity import Identity
from broker.judging import Judge
from broker.kbs.desk import KbsDesk, open_desk
from broker.keyring import Keyring
from broker.leasing import Leasing
from broker.limits import Limits
from broker.mail.bell import Bell
from broker.mail.blobs import Blobs
from broker.mail.channels import Channels
from broker.mail.deadletters import DeadLetters
from broker.mail.desks import assemble as assemble_mail
from broker.mail.drawing import Drawing
from broker.mail.edges import Edges
from broker.mail.labels import Ratchets
from broker.mail.leases import Leases
from broker.mail.mailboxes import Mailboxes
from broker.mail.mailkeys import KeyDesk
from broker.mail.routing import Router
from broker.mail.states import StateDesk
from broker.mail.topics import TopicDesk
from broker.pool import Pool
from broker.ports import AgentState, Clock, Store, Transaction
from broker.release import ReleaseDesk
from broker.rootkey.root import RootKey
from broker.rotation import KeyRotation
from broker.second import SecondPerson
from broker.sessions import Session, Sessions
from broker.sources import bundles_of, pcs_of, root_key_of, roots_of, signers_of
from broker.standing import StandingDesk
from broker.store.memory import MemoryStore
from broker.store.sql import SqlStore
from broker.svids import SvidDesk
from broker.telemetry import Metrics
from broker.tokens import TokenDesk
from broker.upkeep import DAY_S, Upkeep
from broker.vault import Vault
from broker.verification import VerificationDesk

T = TypeVar("T")
MAX_RETRIES: Final = 3
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

    async def acting(self, token: str, act: Callable[[Session], Awaitable[T]]) -> T:
        """Let whoever holds the token act; judged anew when the generation rises under way. Raises what `act` does."""
        for _ in range(MAX_RETRIES):
            session = await self.sessions.of_token(token, self.clock())
            try:
                return await act(session)
            except BrokerError as error:
                if error.code is not BrokerCode.GENERATION_MOVED:
                    raise
        return await act(await self.sessions.of_token(token, self.clock()))

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
    confirm: Callable[[Audit], Awaitable[str]] | None = None,
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
        built = await _assemble(settings, clock, source, trusted, root, store, confirm or _nobody(settings))
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


async def _assemble(
    settings: Settings,
    raw_clock: Clock,
    source: CollateralSource,
    roots: TrustRoots,
    root: RootKey,
    store: Store,
    confirm: Callable[[Audit], Awaitable[str]],
) -> Broker:
    clock = SteadyClock(raw_clock, store.read(_newest))
    at = clock()
    keyring = await Keyring.open(store, root, at=at)
    identity = Identity(keyring, issuer=settings.public_url, log_name=settings.log_name, ttl_s=settings.token_ttl_s)
    audit = Audit(store, key=keyring.log, origin=settings.log_name)
    audit.check_head()
    witness = await confirm(audit)
    generation = Generation(store, audit)
    bundles = Bundles(bundles_of(settings))
    await generation.follow_policies(bundles, at=at)
    cache = CollateralCache(source, store, generation, clock)
    judge, pool = Judge(roots, bundles, cache), Pool()
    sessions = Sessions(store=store, audit=audit, generation=generation, judge=judge, identity=identity, clock=clock)
    vault, edges, bell = Vault(root), Edges(), Bell()
    generation.on_change(edges.forget)
    labels = Ratchets(store=store, audit=audit, edges=edges)
    keys = KeyDesk(
        store=store,
        vault=vault,
        audit=audit,
        edges=edges,
        generation=generation,
        identity=identity,
        clock=clock,
    )
    mail = assemble_mail(
        store=store,
        audit=audit,
        edges=edges,
        generation=generation,
        sessions=sessions,
        identity=identity,
        labels=labels,
        bell=bell,
        clock=clock,
        quota=settings.quota,
    )
    administration = Administration(
        store=store,
        vault=vault,
        audit=audit,
        bundles=bundles,
        generation=generation,
        sessions=sessions,
        collateral=cache,
        clock=clock,
        reload=lambda: bundles_of(settings),
        second=SecondPerson(
            store=store, audit=audit, key=root.derive("second-person"), marked=settings.two_person, clock=clock
        ),
    )
    svids = await SvidDesk.open(
        root=root,
        trust_domain=settings.spiffe_trust_domain,
        simulated=roots.sha256 != TrustRoots.intel().sha256,
        store=store,
        audit=audit,
        generation=generation,
        identity=identity,
        clock=clock,
    )
    await _note_start(audit, settings, roots, bundles, at, witness)
    return Broker(
        settings=settings,
        clock=clock,
        store=store,
        audit=audit,
        identity=identity,
        attestor=Attestor(identity=identity, collateral=cache, clock=clock, roots=roots),
        generation=generation,
        collateral=cache,
        sessions=sessions,
        gate=Gate(settings.public_url),
        admission=AdmissionDesk(
            challenges=Challenges(root.derive("challenges"), "attest"),
            judge=judge,
            identity=identity,
            audit=audit,
            generation=generation,
            sessions=sessions,
            pool=pool,
            clock=clock,
        ),
        verification=VerificationDesk(judge=judge, identity=identity, audit=audit, pool=pool, clock=clock),
        tokens=TokenDesk(
            audit=audit,
            generation=generation,
            identity=identity,
            sessions=sessions,
            clock=clock,
            trust_domain=svids.trust_domain,
        ),
        rotation=KeyRotation(
            store=store, root=root, keyring=keyring, audit=audit, clock=clock, every_days=settings.rotate_days
        ),
        pool=pool,
        limits=Limits(settings.rates),
        labels=labels,
        keys=keys,
        topics=TopicDesk(
            store=store,
            audit=audit,
            edges=edges,
            generation=generation,
            sessions=sessions,
            identity=identity,
            labels=labels,
            keys=keys,
            router=mail.router,
            bell=bell,
            clock=clock,
            quota=settings.quota,
        ),
        standing=StandingDesk(store=store, generation=generation, identity=identity, clock=clock),
        states=StateDesk(
            store=store,
            audit=audit,
            edges=edges,
            generation=generation,
            identity=identity,
            labels=labels,
            clock=clock,
        ),
        releases=ReleaseDesk(
            store=store,
            vault=vault,
            audit=audit,
            generation=generation,
            identity=identity,
            labels=labels,
            clock=clock,
        ),
        router=mail.router,
        channels=mail.channels,
        mailboxes=mail.mailboxes,
        leases=mail.leases,
        drawing=mail.drawing,
        dead=mail.dead,
        blobs=mail.blobs,
        upkeep=Upkeep(
            store=store,
            audit=audit,
            judge=judge,
            collateral=cache,
            clock=clock,
            retention_s=settings.archive_days * DAY_S,
        ),
        kbs=await open_desk(
            root,
            store,
            judge=judge,
            pool=pool,
            identity=identity,
            vault=vault,
            audit=audit,
            generation=generation,
            clock=clock,
            ttl_s=settings.token_ttl_s,
        ),
        administration=administration,
        leasing=Leasing(store=store, vault=vault, audit=audit, clock=clock),
        derivation=DerivationDesk(root=root, audit=audit, generation=generation, identity=identity, clock=clock),
        metrics=Metrics(lambda: _live(administration, store)),
        bell=bell,
        svids=svids,
    )


def _nobody(settings: Settings) -> Callable[[Audit], Awaitable[str]]:
    """Where nobody was asked to stand for the checkpoint: fine only where the settings say that this is skipped."""

    async def confirm(audit: Audit) -> str:
        if settings.confirm != "skipped":
            detail = f"{audit.head().size} entries, to be confirmed by {settings.confirm}"
            raise BrokerError(BrokerCode.ROOT_SEALED, detail)
        return "skipped"

    return confirm


def _live(administration: Administration, store: Store) -> dict[str, dict[str, float]]:
    """What the metrics show of the present state."""
    overview = administration.overview()
    return {
        "agents": {state: float(overview["agents"][state]) for state in AgentState},
        "generation": {"now": float(overview["generation"])},
        "log_entries": {"all": float(overview["log_size"])},
        "collateral_families": {"all": float(len(overview["collateral"]))},
    }


def _newest(tx: Transaction) -> datetime | None:
    """The time of the newest entry: no clock of this broker may be behind it."""
    row = tx.log.entry(tx.log.size() - 1) if tx.log.size() else None
    return datetime.fromtimestamp(row.at_ms / 1000, UTC) if row else None


async def _note_start(
    audit: Audit, settings: Settings, roots: TrustRoots, bundles: Bundles, at: datetime, witness: str
) -> None:
    """Which roots, policies and administrators this life of the broker believes in, in log and log file."""
    for digest in roots.sha256:
        logger.warning("trust.root", extra={"sha256": digest, "intel": digest in TrustRoots.intel().sha256})
    entry = Entry(
        kind=Kind.BROKER_STARTED,
        at=at,
        more={
            "profile": settings.profile,
            "roots": list(roots.sha256),
            "policies": [f"{bundle.tenant} {bundle.version} {bundle.digest}" for bundle in bundles.all],
            "admins": [f"{admin.role} {admin.jkt}" for admin in settings.admins],
            "witness": witness,
        },
    )
    await audit.record(entry, lambda _: None)
