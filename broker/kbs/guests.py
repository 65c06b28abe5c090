"""Guests, and how they are judged: under the bundle of every tenant, over this protocol, now and again later.

Decides what costs nothing before it is known who asks (REPORT_DATA first, then the PCK chain, which alone admits a
fetch) and that a guest belongs to each tenant whose bundle admits it here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, final

from attestation.encoding import b64url
from attestation.errors import Code, VerificationFailed
from attestation.guest import GuestEvidence
from attestation.quote import Quote, Tee
from attestation.records import VIA_KBS as VIA
from attestation.tcb import ANY_TCB
from attestation.verdict import Verdict
from attestation.verifier import Allowance
from broker.errors import BrokerCode, BrokerError
from broker.judging import Judge, Judged, circumstances_of
from broker.kbs.jwe import TeeKey
from broker.kbs.token import Ticket
from broker.pool import Pool
from policies.bundle import Bundle
from policies.engine import decide
from policies.errors import Refused
from policies.model import Admit, Context

_ALL: Final = frozenset(Allowance)
COLLATERAL_S: Final = 20.0  # how long a request waits for the first collateral of a platform


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
class Gauge:
    """Judges guests with the broker's own judge."""

    def __init__(self, judge: Judge, pool: Pool) -> None:
        self.judge: Final = judge
        self._pool = pool

    def quote(self, evidence: GuestEvidence) -> Quote:
        """A TD's quote about these very runtime data: what is not costs nothing more."""
        quote = Quote.parse(evidence.quote)
        if quote.tee is not Tee.TDX:
            raise BrokerError(BrokerCode.KBS_TEE, f"a quote of {quote.tee}")
        if quote.report_data != evidence.report_data:
            detail = "REPORT_DATA is not the SHA-384 of the runtime data and sixteen zeros"
            raise VerificationFailed(Code.BINDING_REPORT_DATA, detail)
        return quote

    async def have_collateral(self, quote: Quote) -> None:
        """Wait for the first collateral of a platform whose PCK chain holds.

        Raises VerificationFailed chain.*; CollateralUnavailable; BrokerError collateral.pending, broker.busy.
        """
        if self.judge.collateral.find(quote) is None:
            await self._pool.run(self.judge.require_chain, quote)
            await self.judge.collateral.wait_for(quote, COLLATERAL_S)

    async def prove(self, evidence: GuestEvidence, quote: Quote, at: datetime) -> None:
        """What no bundle would let pass is refused on the pool's threads, so that garbage takes nobody's turn; what is
        proved there is not proved again.

        Raises VerificationFailed; CollateralUnavailable; BrokerError collateral.pending, broker.busy.
        """
        collateral = self.judge.collateral.find(quote)
        if collateral is None:
            raise self.judge.collateral.wanted(quote)
        try:
            await self._pool.run(
                self.judge.verifier.verify,
                quote,
                collateral,
                report_data=evidence.report_data,
                at=at,
                accept=ANY_TCB,
                allow=_ALL,
            )
        except VerificationFailed as error:
            raise self.judge.told(error, quote) from None

    def judged(self, evidence: GuestEvidence, quote: Quote, caller: Caller, at: datetime) -> dict[str, Judged]:
        """Every bundle's judgement that is a yes. Raises the refusal, of all bundles together, when there is none."""
        admitted: dict[str, Judged] = {}
        refusals: list[Refused] = []
        failure: VerificationFailed | None = None
        for bundle in self.judge.bundles.all:
            try:
                admitted[bundle.tenant] = self._under(bundle, evidence, quote, caller, at)
            except Refused as error:
                refusals.append(error)
            except VerificationFailed as error:
                failure = failure or error
        if admitted:
            return admitted
        if refusals:
            raise Refused(tuple(reason for error in refusals for reason in error.reasons))
        raise failure or VerificationFailed(Code.BINDING_REPORT_DATA, "no bundle judges anybody here")

    def _under(self, bundle: Bundle, evidence: GuestEvidence, quote: Quote, caller: Caller, at: datetime) -> Judged:
        collateral = self.judge.collateral.find(quote)
        if collateral is None:
            raise self.judge.collateral.wanted(quote)
        try:
            verified = self.judge.verifier.verify(
                quote,
                collateral,
                report_data=evidence.report_data,
                at=at,
                accept=ANY_TCB,
                allow=bundle.allowances(at),
            )
        except VerificationFailed as error:
            raise self.judge.told(error, quote) from None
        verdict = Verdict.of(verified, event_log=evidence.log())
        if not evidence.init_data_hold(quote):
            raise BrokerError(BrokerCode.KBS_INIT_DATA, "init data are not those of MRCONFIGID")
        addresses = self.judge.platforms.see(verdict.ppid, caller.source_ip, at)
        permit = decide(bundle, verdict, Admit(), context=context_of(caller, at, addresses))
        return Judged(verdict=verdict, permit=permit, bundle=bundle, platform_addresses=addresses)


def context_of(caller: Caller, at: datetime, addresses: int = 1) -> Context:
    return Context(at=at, via=VIA, source_ip=caller.source_ip, platform_addresses=addresses)


def platform_of(judged: Judged, caller: Caller) -> dict[str, str | int | list[str]]:
    verdict = judged.verdict
    return {
        "ppid": verdict.ppid,
        "fmspc": verdict.fmspc,
        "mr_td": verdict.mr_td,
        "simulated": int(verdict.simulated),
        **circumstances_of(caller.source_ip, judged.platform_addresses),
    }
