"""The broker's own evidence: its keys, quoted by the trust domain that it runs in.

Decides when the keys are quoted again (every ten minutes, when the statement about them changes, never for a single
request) and what goes along: the event log, and the collateral at hand for the broker's own platform. A broker that
was told to be attested and cannot be answers no challenge; one that was not told so has nothing to show. What the
evidence is worth is for the readers to judge (`broker.wire.attested`).
"""

import asyncio
import logging
from datetime import datetime
from typing import Final, final

from attestation.collateral import Collateral
from attestation.errors import AttestationError, VerificationFailed
from attestation.evidence import MLKEM768_X25519
from attestation.pki import TrustRoots
from attestation.ports import TrustDomain
from attestation.quote import Quote
from attestation.sealing import SealingKey
from attestation.tcb import ANY_TCB
from attestation.verifier import NOT_COMPARED, Verifier
from broker.collateral import CollateralCache
from broker.errors import BrokerCode, BrokerError
from broker.identity import Identity, Proof
from broker.judging import OUTDATED
from broker.ports import Clock
from broker.wire.attested import MAX_AGE_S, binding_of
from broker.wire.challenge import BrokerKeys
from broker.wire.evidence import BrokerEvidence

RETRY_S: Final = 1
ATTEMPTS: Final = 2
NO_TRUST_FILE: Final = bytes(32)
logger = logging.getLogger("cloister.broker.attested")


@final
class Attestor:
    """Keeps a quote of the broker's keys at hand. Until `begin`, there is nothing to prove."""

    def __init__(
        self, *, identity: Identity, collateral: CollateralCache, clock: Clock, roots: TrustRoots | None = None
    ) -> None:
        """With `roots`, evidence whose collateral has ended is renewed before anybody sees it."""
        self._identity = identity
        self._collateral = collateral
        self._clock = clock
        self._domain: TrustDomain | None = None
        self._trust_file_digest = NO_TRUST_FILE
        self._sealing: SealingKey | None = None
        self._quoted: tuple[BrokerKeys, bytes, bytes | None] | None = None
        self._proof: Proof | None = None
        self._collateral_in_proof: Collateral | None = None
        self._verifier = Verifier(roots) if roots else None
        self._valid_until: datetime | None = None
        self._renewing: asyncio.Task[None] | None = None

    @property
    def domain(self) -> TrustDomain | None:
        """Where this broker runs; None outside a trust domain."""
        return self._domain

    @property
    def summary(self) -> dict[str, str | int | bool] | None:
        """What the operator wants to see; None outside a trust domain."""
        if self._domain is None or self._quoted is None:
            return None
        return {
            "domain": self._domain.name,
            "simulated": self._domain.simulated,
            "quoted_at_s": self._quoted[0].issued_at_s,
            "trust_file": self._trust_file_digest.hex(),
        }

    @property
    def sealing(self) -> SealingKey:
        """The key to which things are sealed for this very process: bound in its quote, never stored.

        Raises BrokerError broker.evidence_pending outside a trust domain.
        """
        if self._sealing is None:
            raise BrokerError(BrokerCode.BROKER_EVIDENCE, "this broker was not started in a trust domain")
        return self._sealing

    async def begin(self, domain: TrustDomain, trust_file_digest: bytes) -> Quote:
        """Attest from now on; the first quote. Absent collateral is fetched. Raises what the domain raises when it
        cannot quote."""
        self._sealing = SealingKey.generate(MLKEM768_X25519)
        self._domain, self._trust_file_digest = domain, trust_file_digest
        await self._quote()
        assert self._quoted is not None
        quote = Quote.parse(self._quoted[1])
        try:
            await self._collateral.prefetch(quote)
        except AttestationError as error:
            logger.error("broker.collateral_missing", extra={"code": error.code, "why": error.detail})
        logger.warning(
            "broker.attested",
            extra={
                "domain": domain.name,
                "simulated": domain.simulated,
                "mr_td": quote.td.mr_td.hex(),
                "trust_file": trust_file_digest.hex(),
            },
        )
        return quote

    async def proof(self) -> Proof | None:
        """What to show now; None outside a trust domain. Raises BrokerError broker.evidence_pending, clock.behind."""
        if self._domain is None:
            return None
        for _ in range(ATTEMPTS):  # the first renewal may have begun when another statement was in force
            at = self._clock()
            renewing = None if self._fresh(at) else self._renew()
            if self._quoted is not None and self._usable(at):
                return self._complete(*self._quoted, at)  # an older quote serves while the next is being made
            if renewing is not None:
                await asyncio.shield(renewing)
        if self._quoted is None or not self._usable(self._clock()):
            raise _pending("the trust domain made no quote", RETRY_S)
        return self._complete(*self._quoted, self._clock())

    def stop(self) -> None:
        if self._renewing is not None:
            self._renewing.cancel()

    def _fresh(self, at: datetime) -> bool:
        """Whether the quoted statement is the one that the broker makes now, which ends every ten minutes."""
        return self._quoted is not None and self._quoted[0] is self._identity.keys(at)

    def _usable(self, at: datetime) -> bool:
        return self._quoted is not None and 0 <= at.timestamp() - self._quoted[0].issued_at_s < MAX_AGE_S

    def _renew(self) -> asyncio.Task[None]:
        """One renewal at a time, whoever waits for it."""
        if self._renewing is None or self._renewing.done():
            self._renewing = asyncio.get_running_loop().create_task(self._renew_quietly())
        return self._renewing

    async def _renew_quietly(self) -> None:
        try:
            await self._quote()
        except Exception as error:  # noqa: BLE001  # a domain may be anybody's; the older quote serves until it ends
            logger.error("broker.quote_failed", extra={"error": type(error).__name__, "why": str(error)[:400]})

    async def _quote(self) -> None:
        assert self._domain is not None
        keys = self._identity.keys(self._clock())
        binding = binding_of(
            keys,
            suite=self.sealing.suite,
            sealing_key=self.sealing.public,
            trust_file_digest=self._trust_file_digest,
        )
        quote = await asyncio.to_thread(self._domain.quote, binding.report_data)
        event_log = await asyncio.to_thread(self._domain.event_log)
        self._quoted, self._proof = (keys, quote, event_log or None), None

    def _complete(self, keys: BrokerKeys, quote: bytes, event_log: bytes | None, at: datetime) -> Proof:
        """The quote with today's collateral: made anew when either changes."""
        parsed = Quote.parse(quote)
        found = self._collateral.find(parsed)
        if found is not None and (self._proof is None or self._collateral_in_proof is not found or self._ended(at)):
            self._demand_in_force(parsed, found, at)
        if found is None:
            why = self._collateral.wanted(parsed)
            raise _pending(f"no collateral of this broker's own platform: {why.code}", RETRY_S)
        if self._proof is None or self._collateral_in_proof is not found:
            evidence = BrokerEvidence(
                quote=quote,
                event_log=event_log,
                suite=self.sealing.suite,
                sealing_key=self.sealing.public,
                trust_file_digest=self._trust_file_digest,
                collateral=found.to_json(),
            )
            self._proof = Proof(keys=keys, evidence=evidence, digest=evidence.digest)
            self._collateral_in_proof = found
        return self._proof

    def _ended(self, at: datetime) -> bool:
        return self._valid_until is not None and at > self._valid_until

    def _demand_in_force(self, quote: Quote, collateral: Collateral, at: datetime) -> None:
        """What fresh collateral would mend is mended before it is shown; all else is for the readers to judge.

        Raises BrokerError broker.evidence_pending.
        """
        if self._verifier is None:
            return
        try:
            verified = self._verifier.verify(quote, collateral, report_data=NOT_COMPARED, at=at, accept=ANY_TCB)
        except VerificationFailed as error:
            if error.code in OUTDATED:
                self._collateral.outdated(quote)
                raise _pending(f"{error.code}: {error.detail}", RETRY_S) from None
            logger.error("broker.evidence_refused", extra={"code": error.code, "why": error.detail})
            self._valid_until = at
        else:
            self._valid_until = verified.valid_until


def _pending(detail: str, retry_after_s: int) -> BrokerError:
    return BrokerError(BrokerCode.BROKER_EVIDENCE, detail, retry_after_s=retry_after_s)
