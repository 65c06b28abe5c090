"""The KBS use-cases: a challenge for a cookie, evidence for a token, a permit for a sealed resource.

Decides the order, which is that of admission and release: cheap checks and the nonce first; then the PCK chain, which
alone admits a fetch of collateral, and here the request waits for it, because guests send no proof of possession; then
verdict, `Admit`, audit, token. How guests are judged stands in guests.py, how secrets go out in resources.py.
"""

import base64
import logging
import secrets
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, final

from attestation.encoding import strict_json
from attestation.errors import VerificationFailed
from attestation.quote import Quote
from attestation.records import VIA_KBS as VIA
from attestation.records import pack_guest
from broker.archive import keep, unpack_guest
from broker.audit import Audit, Entry, Kind
from broker.challenges import Challenges, Claim
from broker.errors import BrokerCode, BrokerError
from broker.generation import Generation, again_while_moving
from broker.identity import Identity
from broker.judging import Judge, Judged, earns_entry
from broker.kbs.guests import Caller, Gauge, Guest, platform_of, subject_of
from broker.kbs.keys import KbsKeys
from broker.kbs.messages import AttestBody, read_request
from broker.kbs.records import key_of
from broker.kbs.resources import Resources, resource_name
from broker.kbs.token import KbsTokens, Ticket
from broker.pool import Pool
from broker.ports import Clock, Store, Transaction
from broker.reasons import codes_of, told
from broker.rootkey.root import RootKey
from broker.vault import Vault
from policies.errors import Refused

SESSION_S: Final = 300
MAX_GUESTS: Final = 16_384
logger = logging.getLogger("cloister.broker.kbs")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """What POST auth answers: a cookie's value, its end, and the nonce that is good for this cookie alone."""

    session: str
    expires: datetime
    nonce: str


@final
class KbsDesk:
    """Serves guests of Confidential Containers."""

    def __init__(
        self,
        *,
        challenges: Challenges,
        judge: Judge,
        pool: Pool,
        tokens: KbsTokens,
        resources: Resources,
        store: Store,
        audit: Audit,
        generation: Generation,
        clock: Clock,
    ) -> None:
        self._challenges = challenges
        self._judge = judge
        self._tokens = tokens
        self._gauge = Gauge(judge, pool)
        self._resources = resources
        self._store = store
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
        quote = self._gauge.quote(body.evidence)
        await self._gauge.have_collateral(quote)
        try:
            await self._gauge.prove(body.evidence, quote, at)
            guest = await again_while_moving(lambda: self._admit(body, quote, claim, caller, at))
        except (VerificationFailed, Refused) as error:
            if isinstance(error, Refused) or earns_entry(error):
                await self._note_refusal(body, claim, error, caller, at)
            raise
        ends = datetime.fromtimestamp(claim.expires_at_s - self._challenges.life_s + SESSION_S, UTC)
        self._keep(guest)
        self._sessions[session] = guest.ticket.guest, ends
        if len(self._sessions) > MAX_GUESTS:
            self._sessions.popitem(last=False)
        return guest.token, ends

    async def _admit(self, body: AttestBody, quote: Quote, claim: Claim, caller: Caller, at: datetime) -> Guest:
        generation = self._generation.current
        admitted = self._gauge.judged(body.evidence, quote, caller, at)
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
            more={"via": VIA, "tenants": list(admitted), **platform_of(first, caller)},
        )
        await self._audit.record(entry, work)
        return guest

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
        wanted = resource_name(name)
        ticket = self._of_session(session) or self._of_token(token)

        async def act() -> dict[str, str]:
            at = self._clock()
            return await self._resources.release(self._current(ticket, caller, at), wanted, caller, at)

        return await again_while_moving(act)

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
        admitted = self._gauge.judged(evidence, self._gauge.quote(evidence), caller, at)
        fresh = Guest(ticket=ticket, key=key_of(evidence), generation=generation, admitted=admitted)
        self._keep(fresh)
        return fresh

    # ── both ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _keep(self, guest: Guest) -> None:
        self._guests[guest.ticket.guest] = guest
        self._guests.move_to_end(guest.ticket.guest)
        if len(self._guests) > MAX_GUESTS:
            self._guests.popitem(last=False)


def _ends(judged: Judged) -> int:
    return int(judged.verdict.valid_until.timestamp())


async def open_desk(
    root: RootKey,
    store: Store,
    *,
    judge: Judge,
    pool: Pool,
    identity: Identity,
    vault: Vault,
    audit: Audit,
    generation: Generation,
    clock: Clock,
    ttl_s: int,
) -> KbsDesk:
    """The desk with its own keys, issuer and nonces. Raises BrokerError root.wrong_key, store.*"""
    keys = await KbsKeys.open(store, root, at=clock())
    return KbsDesk(
        challenges=Challenges(root.derive("challenges"), "kbs"),
        judge=judge,
        pool=pool,
        tokens=KbsTokens(keys, issuer=f"{identity.issuer}/kbs", ttl_s=ttl_s),
        resources=Resources(store=store, vault=vault, audit=audit, generation=generation, identity=identity),
        store=store,
        audit=audit,
        generation=generation,
        clock=clock,
    )
