"""The KBS use-cases: a challenge for a cookie, evidence for a token, a permit for a sealed resource.

Decides the order, which is that of admission and release: cheap checks and the nonce first; then the PCK chain, which
alone admits a fetch of collateral, and here the request waits for it, because guests send no proof of possession; then
verdict, `Admit`, audit, token. A guest belongs to every tenant whose bundle admits it over this protocol. A secret is
encrypted to the key in REPORT_DATA, after its entry is durable, where a rule of the tenant names `via == "kbs"`.
"""

import asyncio
import base64
import logging
import secrets
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final, TypeVar, final

from attestation.encoding import b64url, strict_json
from attestation.errors import Code, VerificationFailed
from attestation.guest import GuestEvidence
from attestation.quote import Quote, Tee
from attestation.records import VIA_KBS as VIA
from attestation.records import pack_guest
from attestation.tcb import ANY_TCB
from attestation.verdict import Verdict
from broker.archive import keep, unpack_guest
from broker.audit import Audit, Entry, Kind
from broker.challenges import Challenges, Claim
from broker.errors import BrokerCode, BrokerError
from broker.generation import Generation
from broker.identity import Identity
from broker.judging import OUTDATED, Judge, Judged, chain_holds, circumstances_of, released_by
from broker.kbs.jwe import TeeKey
from broker.kbs.messages import AttestBody, read_request
from broker.kbs.records import key_of
from broker.kbs.token import KbsTokens, Ticket
from broker.ports import Clock, SecretRecord, Store, Transaction
from broker.reasons import codes_of, told
from broker.vault import Vault, checked_name, find
from broker.wire.names import tenant_of
from policies.bundle import Bundle
from policies.engine import decide
from policies.errors import Refused
from policies.model import Admit, Context, ReleaseSecret
from policies.permit import Permit

T = TypeVar("T")
SESSION_S: Final = 300
COLLATERAL_S: Final = 20.0  # how long a request waits for the first collateral of a platform
MAX_GUESTS: Final = 16_384
MAX_RETRIES: Final = 3
SEGMENTS: Final = 3
logger = logging.getLogger("cloister.broker.kbs")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """What POST auth answers: a cookie's value, its end, and the nonce that is good for this cookie alone."""

    session: str
    expires: datetime
    nonce: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Where a request comes from, and under which id the operator finds it."""

    source_ip: str | None = None
    correlation_id: str = ""


@final
@dataclass(slots=True, kw_only=True)
class Guest:
    """A guest that may act now. `admitted`: tenant → judgement under its bundle, in this generation."""

    ticket: Ticket
    key: TeeKey
    generation: int
    admitted: Mapping[str, Judged]
    token: str = field(default="", repr=False)

    @property
    def subject(self) -> str:
        return subject_of(self.key)

    @property
    def valid_until(self) -> datetime:
        return min(judged.verdict.valid_until for judged in self.admitted.values())


def subject_of(key: TeeKey) -> str:
    """How log entries name a guest: by the thumbprint of the key that it has things sealed to."""
    return f"kbs/{b64url(key.thumbprint)}"


@final
class KbsDesk:
    """Serves guests of Confidential Containers."""

    def __init__(
        self,
        *,
        challenges: Challenges,
        judge: Judge,
        tokens: KbsTokens,
        identity: Identity,
        store: Store,
        vault: Vault,
        audit: Audit,
        generation: Generation,
        clock: Clock,
    ) -> None:
        self._challenges = challenges
        self._judge = judge
        self._tokens = tokens
        self._identity = identity
        self._store = store
        self._vault = vault
        self._audit = audit
        self._generation = generation
        self._clock = clock
        self._guests: OrderedDict[str, Guest] = OrderedDict()  # by the id in the token
        self._sessions: OrderedDict[str, tuple[str, datetime]] = OrderedDict()  # cookie → guest and the cookie's end

    @property
    def ca_pem(self) -> bytes:
        """The CA under which the tokens' certificates stand."""
        return self._tokens.ca_pem

    # ── attest ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def auth(self, raw: bytes) -> Opened:
        """A cookie and its nonce; nothing is remembered. Raises WireError body.*; BrokerError kbs.*"""
        at = self._clock()
        read_request(raw)
        session = secrets.token_hex(16)
        nonce = self._challenges.issue(bytes.fromhex(session), at)
        return Opened(
            session=session,
            expires=at + timedelta(seconds=SESSION_S),
            nonce=base64.b64encode(nonce).decode("ascii"),
        )

    async def attest(self, session: str | None, raw: bytes, caller: Caller) -> tuple[str, datetime]:
        """The token, and the end of the cookie. The nonce serves once, whatever comes of it.

        Raises WireError body.*; BrokerError kbs.*, challenge.*, collateral.*; MalformedEvidence; VerificationFailed;
        Refused; CollateralUnavailable.
        """
        at = self._clock()
        if session is None:
            raise BrokerError(BrokerCode.KBS_SESSION, "no session cookie, or several")
        body = AttestBody.read(raw)
        claim = self._challenges.claim(body.raw_nonce, bytes.fromhex(session), at)
        quote = self._quote(body.evidence)
        await self._have_collateral(quote)
        try:
            guest = await self._again_while_moving(lambda: self._admit(body, quote, claim, caller, at))
        except (VerificationFailed, Refused) as error:
            if isinstance(error, Refused) or chain_holds(error):
                await self._note_refusal(body, claim, error, caller, at)
            raise
        ends = datetime.fromtimestamp(claim.expires_at_s - self._challenges.life_s + SESSION_S, UTC)
        self._keep(guest)
        self._sessions[session] = guest.ticket.guest, ends
        if len(self._sessions) > MAX_GUESTS:
            self._sessions.popitem(last=False)
        return guest.token, ends

    def _quote(self, evidence: GuestEvidence) -> Quote:
        """A TD's quote about these very runtime data: what is not costs nothing more."""
        quote = Quote.parse(evidence.quote)
        if quote.tee is not Tee.TDX:
            raise BrokerError(BrokerCode.KBS_TEE, f"a quote of {quote.tee}")
        if quote.report_data != evidence.report_data:
            detail = "REPORT_DATA is not the SHA-384 of the runtime data and sixteen zeros"
            raise VerificationFailed(Code.BINDING_REPORT_DATA, detail)
        return quote

    async def _have_collateral(self, quote: Quote) -> None:
        """Wait for the first collateral of a platform whose PCK chain holds.

        Raises VerificationFailed chain.*; CollateralUnavailable; BrokerError collateral.pending.
        """
        if self._judge.collateral.find(quote) is None:
            self._judge.require_chain(quote)
            await self._judge.collateral.wait_for(quote, COLLATERAL_S)

    async def _admit(self, body: AttestBody, quote: Quote, claim: Claim, caller: Caller, at: datetime) -> Guest:
        generation = self._generation.current
        admitted = self._judged(body.evidence, quote, caller, at)
        packed = pack_guest(body.evidence)
        ends = min(int(at.timestamp()) + self._tokens.ttl_s, *(_ends(judged) for judged in admitted.values()))
        guest = Guest(
            ticket=Ticket(guest=secrets.token_hex(16), evidence=packed.digest, expires_at_s=ends, nonce=body.nonce),
            key=body.key,
            generation=generation,
            admitted=admitted,
        )
        first = next(iter(admitted.values()))
        runtime = strict_json(body.evidence.runtime)
        guest.token = self._tokens.sign(
            guest.ticket, first.verdict, quote, runtime, first.appraisal, int(at.timestamp())
        )

        def work(tx: Transaction) -> None:
            claim.settle(tx)
            self._generation.expect(tx, generation)
            keep(tx, packed, at)

        entry = Entry(
            kind=Kind.GUEST_ADMITTED,
            at=at,
            subject=guest.subject,
            tenant=first.bundle.tenant,
            policy=first.bundle.digest,
            evidence=packed.digest.hex(),
            collateral=first.verdict.collateral_digest,
            permit=first.permit.digest.hex(),
            generation=generation,
            correlation_id=caller.correlation_id,
            more={"via": VIA, "tenants": list(admitted), **_platform(first, caller)},
        )
        await self._audit.record(entry, work)
        return guest

    def _judged(self, evidence: GuestEvidence, quote: Quote, caller: Caller, at: datetime) -> dict[str, Judged]:
        """Every bundle's judgement that is a yes. Raises the refusal, of all bundles together, when there is none."""
        admitted: dict[str, Judged] = {}
        refusals: list[Refused] = []
        failure: VerificationFailed | None = None
        for bundle in self._judge.bundles.all:
            try:
                admitted[bundle.tenant] = self._judge_under(bundle, evidence, quote, caller, at)
            except Refused as error:
                refusals.append(error)
            except VerificationFailed as error:
                failure = failure or error
        if admitted:
            return admitted
        if refusals:
            raise Refused(tuple(reason for error in refusals for reason in error.reasons))
        raise failure or VerificationFailed(Code.BINDING_REPORT_DATA, "no bundle judges anybody here")

    def _judge_under(
        self, bundle: Bundle, evidence: GuestEvidence, quote: Quote, caller: Caller, at: datetime
    ) -> Judged:
        collateral = self._judge.collateral.find(quote)
        if collateral is None:
            raise self._judge.collateral.wanted(quote)
        try:
            verified = self._judge.verifier.verify(
                quote,
                collateral,
                report_data=evidence.report_data,
                at=at,
                accept=ANY_TCB,
                allow=bundle.allowances(at),
            )
        except VerificationFailed as error:
            if error.code in OUTDATED:
                self._judge.collateral.outdated(quote)
            raise
        verdict = Verdict.of(verified, event_log=evidence.log())
        if not evidence.init_data_hold(quote):
            raise BrokerError(BrokerCode.KBS_INIT_DATA, "init data are not those of MRCONFIGID")
        addresses = self._judge.platforms.see(verdict.ppid, caller.source_ip, at)
        permit = decide(bundle, verdict, Admit(), context=_context(caller, at, addresses))
        return Judged(verdict=verdict, permit=permit, bundle=bundle, platform_addresses=addresses)

    async def _note_refusal(
        self, body: AttestBody, claim: Claim, error: VerificationFailed | Refused, caller: Caller, at: datetime
    ) -> None:
        packed = pack_guest(body.evidence)

        def work(tx: Transaction) -> None:
            claim.settle(tx)
            keep(tx, packed, at)

        quote = Quote.parse(body.evidence.quote)
        circumstances = self._judge.circumstances(quote, caller.source_ip, at)
        bundles = self._judge.bundles.all
        entry = Entry(
            kind=Kind.GUEST_REFUSED,
            at=at,
            subject=subject_of(body.key),
            codes=codes_of(error),
            policy=bundles[0].digest if len(bundles) == 1 else "",
            evidence=packed.digest.hex(),
            collateral=self._judge.collateral_digest(quote),
            correlation_id=caller.correlation_id,
            more={"via": VIA, "reasons": told(error), **circumstances},
        )
        await self._audit.record(entry, work)
        logger.warning("guest.refused", extra={"codes": list(codes_of(error)), "correlation_id": caller.correlation_id})

    # ── fetch ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def resource(
        self, name: str, caller: Caller, *, session: str | None = None, token: str | None = None
    ) -> dict[str, str]:
        """A secret as a flattened JWE to the guest's key. A good cookie is taken before a token.

        Raises BrokerError kbs.*, secret.*, policy.refused; Refused; VerificationFailed; CollateralUnavailable.
        """
        if name.count("/") != SEGMENTS - 1:
            raise BrokerError(BrokerCode.SECRET_NAME, "three segments over KBS")
        checked_name(name)
        guest = self._of_session(session) or self._of_token(token)
        return await self._again_while_moving(lambda: self._release(guest, name, caller))

    def _of_session(self, session: str | None) -> Ticket | None:
        found, ends = self._sessions.get(session or "", ("", datetime.fromtimestamp(0, UTC)))
        guest = self._guests.get(found)
        now = self._clock()
        good = guest is not None and now < ends and now.timestamp() < guest.ticket.expires_at_s
        return guest.ticket if guest is not None and good else None

    def _of_token(self, token: str | None) -> Ticket:
        if token is None:
            raise BrokerError(BrokerCode.KBS_TOKEN_MISSING, "neither an attested session nor a bearer token")
        return self._tokens.read(token, self._clock())

    def _current(self, ticket: Ticket, caller: Caller, at: datetime) -> Guest:
        """The guest, judged in the present generation; again from its archived evidence when that is another one."""
        guest = self._guests.get(ticket.guest)
        if guest is not None and guest.generation == self._generation.current and at < guest.valid_until:
            return guest
        generation = self._generation.current
        evidence = self._store.read(lambda tx: unpack_guest(tx, ticket.evidence))
        admitted = self._judged(evidence, self._quote(evidence), caller, at)
        fresh = Guest(ticket=ticket, key=key_of(evidence), generation=generation, admitted=admitted)
        self._keep(fresh)
        return fresh

    async def _release(self, ticket: Ticket, name: str, caller: Caller) -> dict[str, str]:
        at = self._clock()
        guest = self._current(ticket, caller, at)
        record = self._store.read(lambda tx: tx.secrets.get(name))
        permit = await self._permit(guest, name, record, caller, at)
        if record is None:
            record = self._store.read(lambda tx: find(tx, name, None))
        bound = permit.bind(
            broker_id=self._identity.broker_id.hex(),
            jkt=b64url(guest.key.thumbprint),
            sealing_thumbprint=guest.key.thumbprint.hex(),
            suite=guest.key.alg,
            nonce=base64.b64decode(ticket.nonce).hex(),
            version=record.version,
        )
        version = record.version

        def still(tx: Transaction) -> SecretRecord:
            self._generation.expect(tx, guest.generation)
            return find(tx, name, version)

        entry = self._entry(Kind.SECRET_RELEASED, guest, name, version, caller, at, labels=record.labels, permit=bound)
        current, _ = await self._audit.record(entry, still)
        return guest.key.encrypt(self._vault.open_permitted(bound, current))

    async def _permit(
        self, guest: Guest, name: str, record: SecretRecord | None, caller: Caller, at: datetime
    ) -> Permit:
        version = record.version if record else 0
        action = ReleaseSecret(name, version, frozenset(record.labels if record else ()))
        error: Refused | BrokerError
        judged = guest.admitted.get(tenant_of(name))
        try:
            if judged is None:
                raise BrokerError(BrokerCode.POLICY_REFUSED, f"tenant {tenant_of(name)} did not admit the guest")
            return decide(judged.bundle, judged.verdict, action, context=_context(caller, at))
        except (Refused, BrokerError) as refusal:
            error = refusal
        labels = record.labels if record else ()
        entry = self._entry(Kind.SECRET_REFUSED, guest, name, version, caller, at, labels=labels, error=error)
        await self._audit.record(entry, lambda _: None)
        logger.warning(
            "secret.refused",
            extra={"subject": guest.subject, "resource": name, "reasons": told(error), "via": VIA},
        )
        raise error

    def _entry(
        self,
        kind: Kind,
        guest: Guest,
        name: str,
        version: int,
        caller: Caller,
        at: datetime,
        *,
        labels: tuple[str, ...] = (),
        permit: Permit | None = None,
        error: Refused | BrokerError | None = None,
    ) -> Entry:
        judged = guest.admitted.get(tenant_of(name))
        return Entry(
            kind=kind,
            at=at,
            subject=guest.subject,
            tenant=tenant_of(name) if judged else "",
            resource=name,
            codes=codes_of(error) if error else (),
            policy=judged.bundle.digest if judged else "",
            evidence=guest.ticket.evidence.hex(),
            collateral=judged.verdict.collateral_digest if judged else "",
            permit=permit.digest.hex() if permit else "",
            generation=guest.generation,
            correlation_id=caller.correlation_id,
            more={
                "via": VIA,
                **({"reasons": told(error)} if error else {}),
                **(self._about(judged, version, labels, permit, caller) if judged else {}),
            },
        )

    @staticmethod
    def _about(
        judged: Judged, version: int, labels: tuple[str, ...], permit: Permit | None, caller: Caller
    ) -> dict[str, str | int | list[str]]:
        nonce = permit.nonce if permit else ""
        return released_by(judged.verdict, version=version, labels=labels, nonce=nonce, source_ip=caller.source_ip)

    # ── both ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _keep(self, guest: Guest) -> None:
        self._guests[guest.ticket.guest] = guest
        self._guests.move_to_end(guest.ticket.guest)
        if len(self._guests) > MAX_GUESTS:
            self._guests.popitem(last=False)

    @staticmethod
    async def _again_while_moving(act: Callable[[], Awaitable[T]]) -> T:
        """Judge and act anew when the generation rises under way."""
        for _ in range(MAX_RETRIES):
            try:
                return await act()
            except BrokerError as error:
                if error.code is not BrokerCode.GENERATION_MOVED:
                    raise
                await asyncio.sleep(0)
        return await act()


def _context(caller: Caller, at: datetime, addresses: int = 1) -> Context:
    return Context(at=at, via=VIA, source_ip=caller.source_ip, platform_addresses=addresses)


def _ends(judged: Judged) -> int:
    return int(judged.verdict.valid_until.timestamp())


def _platform(judged: Judged, caller: Caller) -> dict[str, str | int | list[str]]:
    verdict = judged.verdict
    return {
        "ppid": verdict.ppid,
        "fmspc": verdict.fmspc,
        "mr_td": verdict.mr_td,
        "simulated": int(verdict.simulated),
        **circumstances_of(caller.source_ip, judged.platform_addresses),
    }
