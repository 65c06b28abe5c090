"""What the broker does for its operator beside serving: judge by tomorrow's collateral, cut the archive, tell oddities.

Decides nothing about anybody: Intel's `early` collateral is judged in parallel and warns of agents who will fall when
it becomes `standard`; the archive loses what nothing young was decided by; platforms at several addresses are listed.
"""

import asyncio
import logging
from dataclasses import dataclass
from datetime import datetime
from typing import Final, final

from attestation.collateral import Collateral
from attestation.errors import AttestationError, CollateralUnavailable
from attestation.ports import CollateralSource
from attestation.quote import Quote
from attestation.tcb import ANY_TCB
from attestation.verdict import Verdict
from broker.archive import prune, unpack
from broker.audit import Audit, Entry, Kind
from broker.collateral import CollateralCache, family_of
from broker.errors import BrokerError
from broker.judging import Judge
from broker.ports import DAY_S, AgentRecord, AgentState, Clock, Store, Transaction
from broker.reasons import codes_of
from policies.engine import decide
from policies.errors import Refused
from policies.model import Admit, Context

PAGE: Final = 256
MAX_TOLD: Final = 32  # subjects named in one entry
logger = logging.getLogger("cloister.broker.upkeep")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Warned:
    """Agents that would be quarantined if the early collateral were in force, each with its codes."""

    digest: str
    falling: dict[str, tuple[str, ...]]


@final
class Upkeep:
    """The broker's chores."""

    def __init__(
        self,
        *,
        store: Store,
        audit: Audit,
        judge: Judge,
        collateral: CollateralCache,
        clock: Clock,
        retention_s: int,
    ) -> None:
        self._store = store
        self._audit = audit
        self._judge = judge
        self._collateral = collateral
        self._clock = clock
        self._early: CollateralSource | None = None
        self._retention_s = retention_s
        self._warned: dict[str, Warned] = {}  # by platform family

    def watch(self, early: CollateralSource) -> None:
        """Judge by this source of the early channel from now on."""
        self._early = early

    def elsewhere(self) -> dict[str, list[str]]:
        """Platforms that were seen at several addresses lately: what a copied attestation key looks like."""
        return self._judge.platforms.elsewhere(self._clock())

    async def save_sightings(self) -> int:
        """Write down where platforms were seen; of how many that was news."""
        return await self._judge.platforms.save(self._store, self._clock())

    def warnings(self) -> dict[str, dict[str, list[str]]]:
        """Family → subject → codes, by the early collateral that was judged last."""
        return {
            family: {subject: list(codes) for subject, codes in warned.falling.items()}
            for family, warned in self._warned.items()
            if warned.falling
        }

    # ── the archive ────────────────────────────────────────────────────────────────────────────────────────────────

    async def cut_archive(self) -> int:
        """Drop what is past its retention and needed by nobody; how many blobs. With an entry, when there were any."""
        at = self._clock()
        bundles = self._judge.bundles.all
        kept_s = self._retention_s

        def work(tx: Transaction) -> int:
            dropped = prune(tx, bundles, self._collateral.archived(tx), at=at, keep_s=kept_s)
            if dropped:
                more: dict[str, str | int | list[str]] = {"blobs": dropped, "retention_days": kept_s // DAY_S}
                self._audit.append(tx, Entry(kind=Kind.ARCHIVE_PRUNED, at=at, more=more))
            return dropped

        return await self._store.transact(work)

    # ── early collateral ───────────────────────────────────────────────────────────────────────────────────────────

    async def judge_early(self) -> dict[str, Warned]:
        """Fetch the early set of every known family and judge all who are here by it; what is new, by family.

        A source that fails is no news: the standard channel decides, and this one only warns.
        """
        found: dict[str, Warned] = {}
        if self._early is None:
            return found
        for family, quote in self._collateral.quotes.items():
            early = await self._fetch(self._early, family, quote)
            if early is None or early.digest.hex() == self._collateral.families.get(family):
                self._warned.pop(family, None)
                continue
            warned = Warned(digest=early.digest.hex(), falling=await self._falling(family, early))
            if warned != self._warned.get(family):
                self._warned[family] = found[family] = warned
                await self._tell(family, warned)
        return found

    @staticmethod
    async def _fetch(source: CollateralSource, family: str, quote: Quote) -> Collateral | None:
        try:
            return await asyncio.get_running_loop().run_in_executor(None, source.fetch, quote)
        except CollateralUnavailable as error:
            logger.info("collateral.early_unavailable", extra={"family": family, "code": error.code})
            return None

    async def _falling(self, family: str, early: Collateral) -> dict[str, tuple[str, ...]]:
        at, after = self._clock(), ""
        falling: dict[str, tuple[str, ...]] = {}
        while page := self._page(after):
            for record in page:
                if record.state is AgentState.ADMITTED and record.expires_at_s > at.timestamp():
                    codes = self._codes(record, family, early, at)
                    if codes:
                        falling[record.subject] = codes
            after = page[-1].subject
            await asyncio.sleep(0)
        return falling

    def _page(self, after: str) -> list[AgentRecord]:
        return list(self._store.read(lambda tx: tx.agents.page(after=after, limit=PAGE)))

    def _codes(self, record: AgentRecord, family: str, early: Collateral, at: datetime) -> tuple[str, ...]:
        """Why the agent would be refused under the early set; empty when it would not, or is of another family."""
        try:
            evidence, _ = self._store.read(lambda tx: unpack(tx, record.evidence))
            quote = Quote.parse(evidence.quote)
            if family_of(quote) != family:
                return ()
            bundle = self._judge.bundles.of(record.tenant)
            verified = self._judge.verifier.verify(
                quote, early, report_data=evidence.binding, at=at, accept=ANY_TCB, allow=bundle.allowances(at)
            )
            decide(bundle, Verdict.of(verified, event_log=evidence.log()), Admit(), context=Context(at=at))
        except (AttestationError, Refused, BrokerError) as error:
            return codes_of(error)
        return ()

    async def _tell(self, family: str, warned: Warned) -> None:
        logger.warning(
            "collateral.early_judged",
            extra={"family": family, "digest": warned.digest, "falling": len(warned.falling)},
        )
        if not warned.falling:
            return
        codes = tuple(dict.fromkeys(code for found in warned.falling.values() for code in found))
        entry = Entry(
            kind=Kind.EARLY_WARNING,
            at=self._clock(),
            codes=codes,
            collateral=warned.digest,
            more={"family": family, "agents": len(warned.falling), "subjects": sorted(warned.falling)[:MAX_TOLD]},
        )
        await self._audit.record(entry, lambda _: None)
