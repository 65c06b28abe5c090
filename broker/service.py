"""The broker as one object: every use-case, built from settings, without any protocol around it.

Decides how the parts are put together and what goes on in the background: collateral is asked for again, agents are
judged again when the generation rises, refusals are summed up once a minute. Adapters (http_api.py) translate to and
from this; tests and demonstrations use it as it is.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Self, TypeVar, final

from attestation import sealing
from attestation.evidence import MLKEM768_X25519
from attestation.pki import TrustRoots
from attestation.ports import CollateralSource, TrustDomain
from broker.administration import Administration
from broker.admission import AdmissionDesk
from broker.attested import Attestor
from broker.audit import Audit, Entry, Kind
from broker.bell import Bell
from broker.blobs import Blobs
from broker.bundles import Bundles
from broker.challenges import Challenges
from broker.channels import Channels
from broker.clock import SteadyClock, wall_clock
from broker.collateral import CollateralCache
from broker.config import Admin, Settings
from broker.deadletters import DeadLetters
from broker.domains import trust_file_digest
from broker.dpop import Gate
from broker.drawing import Drawing
from broker.edges import Edges
from broker.errors import BrokerCode, BrokerError
from broker.generation import Generation
from broker.identity import Identity
from broker.judging import Judge
from broker.kbs.desk import KbsDesk, open_desk
from broker.keyring import Keyring
from broker.labels import Ratchets
from broker.leases import Leases
from broker.limits import Limits
from broker.mail import assemble as assemble_mail
from broker.mailboxes import Mailboxes
from broker.mailkeys import KeyDesk
from broker.memory import MemoryStore
from broker.pool import Pool
from broker.ports import AgentState, Clock, Store, Transaction
from broker.release import ReleaseDesk
from broker.rootkey.methods import load as load_root
from broker.rootkey.root import RootKey
from broker.rotation import KeyRotation
from broker.routing import Router
from broker.sessions import Session, Sessions
from broker.sql import SqlStore
from broker.standing import StandingDesk
from broker.states import StateDesk
from broker.svids import SvidDesk
from broker.telemetry import Metrics
from broker.tokens import TokenDesk
from broker.vault import Vault
from broker.verification import VerificationDesk
from policies.bundle import Bundle, load_bundle

T = TypeVar("T")
SWEEP_S: Final = 30
COUNT_S: Final = 60
ROTATE_S: Final = 3600  # how often the age of the token keys is looked at
MAX_RETRIES: Final = 3
logger = logging.getLogger("cloister.broker")


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
    releases: ReleaseDesk
    kbs: KbsDesk
    router: Router
    channels: Channels
    mailboxes: Mailboxes
    leases: Leases
    drawing: Drawing
    dead: DeadLetters
    blobs: Blobs
    administration: Administration
    metrics: Metrics
    bell: Bell
    svids: SvidDesk

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
    trusted = roots or _roots(settings)
    root = root_key or _root_key(settings, passphrase)
    store: Store = (
        MemoryStore() if settings.database is None else SqlStore(settings.database, mac_key=root.derive("marks"))
    )
    try:
        source = collateral or _pcs(settings, trusted, clock)
        built = await _assemble(settings, clock, source, trusted, root, store, confirm or _nobody(settings))
        if domain is not None and settings.trust_file is not None:
            told = trust_file_digest(settings.trust_file, built.identity, trusted.sha256, settings.admins)
            await built.attestor.begin(domain, told)
        return built
    except BaseException:
        store.close()
        raise


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
    bundles = Bundles(_load_bundles(settings))
    await generation.follow_policies(bundles, at=at)
    cache = CollateralCache(source, store, generation, clock)
    judge, pool = Judge(roots, bundles, cache), Pool()
    sessions = Sessions(store=store, audit=audit, generation=generation, judge=judge, identity=identity, clock=clock)
    vault, edges, bell = Vault(root), Edges(), Bell()
    generation.on_change(edges.forget)
    labels = Ratchets(store=store, audit=audit, edges=edges)
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
        reload=lambda: _load_bundles(settings),
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
        attestor=Attestor(identity=identity, collateral=cache, clock=clock),
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
        keys=KeyDesk(
            store=store,
            vault=vault,
            audit=audit,
            edges=edges,
            generation=generation,
            identity=identity,
            clock=clock,
        ),
        standing=StandingDesk(store=store, generation=generation, identity=identity, clock=clock),
        states=StateDesk(
            store=store, audit=audit, edges=edges, generation=generation, identity=identity, clock=clock
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
        kbs=await open_desk(
            root,
            store,
            judge=judge,
            identity=identity,
            vault=vault,
            audit=audit,
            generation=generation,
            clock=clock,
            ttl_s=settings.token_ttl_s,
        ),
        administration=administration,
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


def _roots(settings: Settings) -> TrustRoots:
    return TrustRoots.intel() if settings.roots_file is None else TrustRoots.from_pem(settings.roots_file.read_bytes())


def _root_key(settings: Settings, passphrase: bytes | None) -> RootKey:
    if settings.root_key_file is None:
        return RootKey.generate()
    return load_root(settings.root_key_file, passphrase=passphrase, tcti=settings.tcti)


def collateral_source(settings: Settings, clock: Clock) -> CollateralSource:
    """Where the settings say that collateral comes from."""
    return _pcs(settings, _roots(settings), clock)


def _pcs(settings: Settings, roots: TrustRoots, clock: Clock) -> CollateralSource:
    from attestation.net.pcs import PcsClient

    home = settings.database.parent if settings.database else None
    cache = settings.pcs_cache or (home / "collateral" if home else None)
    age_s = float(settings.refresh_s)
    return PcsClient(settings.pcs_url, cache, roots=roots, now=clock, max_age_s=age_s)


def _load_bundles(settings: Settings) -> Sequence[Bundle]:
    return [load_bundle(path) for path in settings.bundles]


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


@final
class Background:
    """The broker's tasks. `async with Background(broker):` runs them."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._broker.generation.on_change(self._changed.set)
        works = (self._refresh(), self._sweep(), self._rotate(), self._count())
        self._tasks = [asyncio.create_task(work) for work in works]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _refresh(self) -> None:
        while True:
            await asyncio.sleep(self._broker.settings.refresh_s)
            await _carefully("collateral.refresh", self._broker.collateral.refresh)

    async def _sweep(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SWEEP_S):
                    await self._changed.wait()
            self._changed.clear()
            await _carefully("sessions.sweep", self._broker.sessions.sweep)

    async def _rotate(self) -> None:
        while True:
            await _carefully("keys.rotate", self._broker.rotation.rotate_if_due)
            await asyncio.sleep(ROTATE_S)

    async def _count(self) -> None:
        while True:
            await asyncio.sleep(COUNT_S)
            await _carefully("refusals.count", self.write_refusals)
            await _carefully("mail.expire", self._broker.dead.sweep)
            await _carefully("svids.maintain", self._broker.svids.maintain)

    async def write_refusals(self) -> bool:
        """One entry for all the refusals since the last one; False when there were none."""
        found = self._broker.metrics.take_refusals()
        if not found:
            return False
        counted = [f"{code} {number}" for code, number in sorted(found.items())]
        entry = Entry(kind=Kind.REFUSALS_COUNTED, at=self._broker.clock(), more={"counted": counted})
        await self._broker.audit.record(entry, lambda _: None)
        return True


async def _carefully(name: str, work: Callable[[], Awaitable[object]]) -> None:
    """A background task that fails is logged, and tried again at its next turn."""
    try:
        await work()
    except Exception as error:  # noqa: BLE001  # the task must outlive whatever one turn ran into
        logger.error("background.failed", extra={"task": name, "error": type(error).__name__})
