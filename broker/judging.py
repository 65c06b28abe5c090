"""Evidence → verdict → permission to be an agent: the one way in which the broker judges, now and again later.

Decides the order: bundle of the tenant, collateral at hand, quote, event log, `Admit`. Whether evidence is fresh is
admission.py's business; the same judgement without freshness serves whoever was admitted before.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final, final

from attestation.chains import claimed_platform, judge_pck_chain, root_checks
from attestation.checks import Check
from attestation.collateral import Collateral
from attestation.ear import Appraisal, Executables
from attestation.errors import AttestationError, Code, VerificationFailed
from attestation.eventlog import EventLog
from attestation.evidence import Evidence
from attestation.pki import TrustRoots
from attestation.quote import Quote
from attestation.recent import Recent
from attestation.tcb import ANY_TCB
from attestation.verdict import Verdict
from attestation.verifier import VerifiedQuote, Verifier
from broker.abreast import abreast
from broker.bundles import Bundles
from broker.collateral import CollateralCache
from broker.errors import BrokerError
from broker.platforms import Platforms
from broker.pool import Pool
from policies.bundle import Bundle
from policies.engine import decide
from policies.model import Admit, Context
from policies.permit import Permit

KEPT_LOGS: Final = 512
KEPT_PROOFS: Final = 4096
OUTDATED: Final = frozenset(
    {
        Code.COLLATERAL_EXPIRED,
        Code.COLLATERAL_NOT_YET_VALID,
        Code.CRL_EXPIRED,
        Code.CRL_NOT_YET_VALID,
        Code.SIGNER_EXPIRED,
        Code.SIGNER_NOT_YET_VALID,
    }
)
"""What fresh collateral may mend."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """An agent that may be here: the verdict, and the permit for `Admit` with its bundle."""

    verdict: Verdict
    permit: Permit
    bundle: Bundle
    platform_addresses: int = 1

    @property
    def appraisal(self) -> Appraisal:
        return appraisal_of(self.bundle, self.verdict)


def appraisal_of(bundle: Bundle, verdict: Verdict) -> Appraisal:
    """What the token may say about the policy: nothing about the platform when the bundle says `any`."""
    return Appraisal(
        policy_digest=bundle.digest,
        platform_listed=True if bundle.settings.platforms.any_until is None else None,
        executables=Executables.RUNTIME if verdict.launches else Executables.BOOT,
    )


@final
class Judge:
    """Judges with one verifier, so what was proved once is not proved again."""

    def __init__(self, roots: TrustRoots, bundles: Bundles, collateral: CollateralCache) -> None:
        self._roots = roots
        self._verifier = Verifier(roots)
        self._logs: Recent[EventLog] = Recent(KEPT_LOGS)
        self._proved: Recent[bool] = Recent(KEPT_PROOFS)
        self.bundles: Final = bundles
        self.collateral: Final = collateral
        self.platforms: Final = Platforms()

    def judge(self, evidence: Evidence, quote: Quote, *, at: datetime, source_ip: str | None = None) -> Judged:
        """Raises MalformedEvidence, VerificationFailed, Refused; BrokerError collateral.pending and
        CollateralUnavailable when there is nothing to judge by; BrokerError attestation.tenant_unknown.
        """
        bundle = self.bundles.of(evidence.binding.tenant)
        collateral = self.collateral.find(quote)
        if collateral is None:
            self.require_chain(quote)
            raise self.collateral.wanted(quote)
        try:
            verified = self._verified(evidence, quote, collateral, bundle, at)
        except VerificationFailed as error:
            raise self.told(error, quote) from None
        return self._concluded(evidence, verified, bundle, at, source_ip)

    async def judge_on(
        self, pool: Pool, evidence: Evidence, quote: Quote, *, at: datetime, source_ip: str | None = None
    ) -> Judged:
        """As `judge`; but what vouches for a key that was never proved here is judged on the pool's threads, so that
        garbage takes no turn of those who are known. Raises BrokerError broker.busy as well.
        """
        name = hashlib.sha256(quote.certified).digest()
        await abreast()
        bundle = self.bundles.of(evidence.binding.tenant)
        collateral = self.collateral.find(quote)
        if collateral is None:
            await pool.run(self.require_chain, quote)
            raise self.collateral.wanted(quote)
        try:
            if self._proved.get(name):
                verified = self._verified(evidence, quote, collateral, bundle, at)
            else:
                verified = await pool.run(self._verified_anew, evidence, quote, collateral, bundle, at)
                self._proved.put(name, True)
        except VerificationFailed as error:
            raise self.told(error, quote) from None
        await abreast()
        return self._concluded(evidence, verified, bundle, at, source_ip)

    def _verified(
        self, evidence: Evidence, quote: Quote, collateral: Collateral, bundle: Bundle, at: datetime
    ) -> VerifiedQuote:
        return self._verifier.verify(
            quote, collateral, report_data=evidence.binding, at=at, accept=ANY_TCB, allow=bundle.allowances(at)
        )

    def _verified_anew(
        self, evidence: Evidence, quote: Quote, collateral: Collateral, bundle: Bundle, at: datetime
    ) -> VerifiedQuote:
        """Of a key that was never proved. Most garbage ends at its root, before ten signatures are looked at."""
        self._require_root(quote)
        return self._verified(evidence, quote, collateral, bundle, at)

    def _require_root(self, quote: Quote) -> None:
        checks = root_checks(quote, self._roots)
        if not all(check.ok for check in checks):
            raise refusal_of(checks)

    def told(self, error: VerificationFailed, quote: Quote) -> AttestationError | BrokerError:
        """The refusal; where nothing but the collateral's age speaks against the quote, that it could not be judged.

        So nobody is quarantined because a collateral service is down, and nobody is let in either.
        """
        if error.code not in OUTDATED:
            return error
        answer = self.collateral.outdated(quote)
        return answer if all(check.ok or check.code in OUTDATED for check in error.checks) else error

    def _concluded(
        self, evidence: Evidence, verified: VerifiedQuote, bundle: Bundle, at: datetime, source_ip: str | None
    ) -> Judged:
        log = self._log(evidence)
        verdict = Verdict.of(verified, event_log=log, binding=evidence.binding)
        addresses = self.platforms.see(verdict.ppid, source_ip, at)
        context = Context(at=at, source_ip=source_ip, platform_addresses=addresses)
        permit = decide(bundle, verdict, Admit(), context=context)
        return Judged(verdict=verdict, permit=permit, bundle=bundle, platform_addresses=addresses)

    def collateral_digest(self, quote: Quote) -> str:
        """Hex; empty when nothing is at hand."""
        found = self.collateral.find(quote)
        return found.digest.hex() if found else ""

    def circumstances(self, quote: Quote, source_ip: str | None, at: datetime) -> dict[str, str | int | list[str]]:
        """What else went into a judgement of a quote whose chain holds: for the log, so that it can be repeated."""
        return circumstances_of(source_ip, self.platforms.see(claimed_platform(quote).ppid.hex(), None, at))

    def _log(self, evidence: Evidence) -> EventLog | None:
        """The event log, read once: an agent's is the same at every renewal."""
        if evidence.event_log is None:
            return None
        name = evidence.digests[1]
        known = self._logs.get(name)
        if known is None:
            known = EventLog.parse(evidence.event_log)
            self._logs.put(name, known)
        return known

    def require_chain(self, quote: Quote) -> None:
        """The PCK chain alone: what a stranger must show before anything is fetched or written for him.

        Raises VerificationFailed chain.*
        """
        self._require_root(quote)
        judged = judge_pck_chain(quote, self._roots)
        if not judged.ok:
            raise refusal_of(judged.checks)

    @property
    def verifier(self) -> Verifier:
        return self._verifier


def circumstances_of(source_ip: str | None, addresses: int) -> dict[str, str | int | list[str]]:
    """As entries of the log hold them: what is usual is left out."""
    told: dict[str, str | int | list[str]] = {"source_ip": source_ip} if source_ip else {}
    return told | ({"platform_addresses": addresses} if addresses > 1 else {})


def released_by(
    verdict: Verdict, *, version: int, labels: Iterable[str], nonce: str, source_ip: str | None
) -> dict[str, str | int | list[str]]:
    """What went into a decision about a secret beside verdict and policy: for the log, so that it can be repeated."""
    told: dict[str, str | int | list[str]] = {
        "version": version,
        "labels": sorted(labels),
        "nonce": nonce,
        "judged_at_ms": int(verdict.verified_at.timestamp() * 1000),
    }
    return told | circumstances_of(source_ip, 1)


def refusal_of(checks: Iterable[Check]) -> VerificationFailed:
    """The refusal that the first failed check asks for, carrying all of them."""
    told = tuple(checks)
    first = next(check for check in told if not check.ok)
    return VerificationFailed(first.code, first.detail, told)


_IN_FORCE: Final = frozenset({Code.CHAIN_REVOKED, Code.CHAIN_EXPIRED, Code.CHAIN_NOT_YET_VALID})
_SIGNED: Final = frozenset({Code.QE_SIGNATURE, Code.QE_KEY_NOT_BOUND, Code.QUOTE_SIGNATURE})


def platform_signed(error: VerificationFailed) -> bool:
    """Whether the refused quote was made by a platform that was certified once.

    A PCK chain alone says nothing of whoever sends it: anybody can copy one out of a published quote. What costs
    nothing to make would fill log and archive.
    """
    if error.code.startswith("eventlog."):
        return True  # compared only with a quote that had been verified
    chain = [check for check in error.checks if check.code.startswith("chain.") and check.code not in _IN_FORCE]
    signed = {check.code for check in error.checks if check.code in _SIGNED and check.ok}
    return bool(chain) and all(check.ok for check in chain) and signed == _SIGNED


def earns_entry(error: VerificationFailed) -> bool:
    """Whether a platform made the refused evidence for whoever sends it: published quotes, too, cost nothing."""
    answers = all(check.ok for check in error.checks if check.code == Code.BINDING_REPORT_DATA)
    return answers and platform_signed(error)
