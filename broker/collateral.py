"""Collateral at hand: kept by platform family, fetched in the background, never on a request's path.

Decides when the source is asked (an unknown family, once and not by every request at the same time; everything known,
at intervals) and that what is older than what was seen before is not taken. A changed set voids every permit. Whether a
set is genuine is judged each time with the quote, by the verifier.
"""

import asyncio
import hashlib
import json
import logging
from collections.abc import Coroutine
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, final

from attestation.chains import claimed_platform
from attestation.collateral import Collateral
from attestation.errors import AttestationError, Code, CollateralUnavailable
from attestation.ports import CollateralSource
from attestation.quote import Quote
from attestation.recent import Recent
from broker.errors import BrokerCode, BrokerError
from broker.generation import Generation
from broker.ports import Clock, Store, Transaction

RETRY_S: Final = 1  # what a client is told to wait for a first fetch
PAUSE_S: Final = 5  # after a failed fetch, before the source is asked again for the same family
MAX_FAMILIES: Final = 1024
MAX_FETCHES: Final = 16
_MARK: Final = "collateral/"
logger = logging.getLogger("cloister.broker.collateral")
# Certificate chains, byte for byte → family: reading three certificates costs more than a signature.
_FAMILIES: Final[Recent[str]] = Recent(1024)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    collateral: Collateral
    quote: Quote  # one that asked for it: the source is asked by quote


@final
class CollateralCache:
    """Collateral by (TEE, FMSPC, CA)."""

    def __init__(self, source: CollateralSource, store: Store, generation: Generation, clock: Clock) -> None:
        self._source = source
        self._store = store
        self._generation = generation
        self._clock = clock
        self._known: dict[str, _Known] = store.read(_load)
        self._failed: dict[str, tuple[float, CollateralUnavailable]] = {}
        self._fetching: dict[str, asyncio.Task[None]] = {}
        self._ended: set[str] = set()  # families whose set somebody found too old
        self._keeping = asyncio.Lock()  # what came is compared with what is at hand, one set after the other

    def find(self, quote: Quote) -> Collateral | None:
        """What is at hand for the platform that the quote claims. Raises MalformedEvidence chain.*."""
        known = self._known.get(family_of(quote))
        return known.collateral if known else None

    def wanted(self, quote: Quote) -> BrokerError | AttestationError:
        """Have it fetched, and say what to answer meanwhile. Only for quotes whose PCK chain holds."""
        family = family_of(quote)
        failed = self._failed.get(family)
        if failed is not None and self._clock().timestamp() - failed[0] < PAUSE_S:
            return _anew(failed[1])
        here = family in self._known and family not in self._ended  # it came between the caller's look and now
        if not here and family not in self._fetching and len(self._fetching) < MAX_FETCHES:
            self._spawn(family, self._fetch(family, quote))
        return BrokerError(BrokerCode.COLLATERAL_PENDING, f"fetching for {family}", retry_after_s=RETRY_S)

    async def wait_for(self, quote: Quote, patience_s: float) -> None:
        """As `wanted`, and wait until something is at hand, for protocols whose clients do not come back.

        Raises CollateralUnavailable; BrokerError collateral.pending when it takes too long.
        """
        answer = self.wanted(quote)
        fetching = self._fetching.get(family_of(quote))
        if fetching is None:
            if self.find(quote) is not None:
                return
            raise answer
        await asyncio.wait([fetching], timeout=patience_s)
        if self.find(quote) is None:
            raise self.wanted(quote)

    def outdated(self, quote: Quote) -> BrokerError | AttestationError:
        """What is at hand has ended: have it fetched again, unless that is under way or just failed."""
        self._ended.add(family_of(quote))
        return self.wanted(quote)

    async def refresh(self) -> bool:
        """Ask the source again about every known family; whether anything changed."""
        before = {family: known.collateral.digest for family, known in self._known.items()}
        for family, known in list(self._known.items()):
            await self._fetch(family, known.quote)
        return before != {family: known.collateral.digest for family, known in self._known.items()}

    async def prefetch(self, quote: Quote) -> None:
        """Fetch now, for callers that prepare a platform before its first agent. Raises CollateralUnavailable."""
        family = family_of(quote)
        await self._fetch(family, quote)
        if family not in self._known:
            raise _anew(self._failed[family][1])

    @property
    def families(self) -> dict[str, str]:
        """Family → hex digest of its collateral."""
        return {family: known.collateral.digest.hex() for family, known in self._known.items()}

    @property
    def quotes(self) -> dict[str, Quote]:
        """Family → a quote that asks for its collateral."""
        return {family: known.quote for family, known in self._known.items()}

    @staticmethod
    def archived(tx: Transaction) -> list[bytes]:
        """What the archive must keep for this: each family's set, and the quote that asks for it."""
        return [bytes.fromhex(digest) for value in tx.marks.under(_MARK).values() for digest in json.loads(value)]

    def stop(self) -> None:
        for task in self._fetching.values():
            task.cancel()

    def _spawn(self, family: str, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._fetching[family] = task
        task.add_done_callback(lambda _: self._fetching.pop(family, None))

    async def _fetch(self, family: str, quote: Quote) -> None:
        """One question to the source, in a thread; failures are remembered, not raised."""
        try:
            found = await asyncio.get_running_loop().run_in_executor(None, self._source.fetch, quote)
        except CollateralUnavailable as error:
            self._fail(family, error)
            return
        except Exception as error:  # noqa: BLE001  # a source may be anybody's; whatever it does, nobody is admitted
            self._fail(family, CollateralUnavailable(Code.COLLATERAL_UNREACHABLE, type(error).__name__))
            return
        async with self._keeping:
            await self._keep(family, quote, found)

    def _fail(self, family: str, error: CollateralUnavailable) -> None:
        logger.warning("collateral.fetch_failed", extra={"family": family, "code": error.code, "why": error.detail})
        self._failed[family] = self._clock().timestamp(), _anew(error)

    async def _keep(self, family: str, quote: Quote, found: Collateral) -> None:
        old = self._known.get(family)
        if old is not None and old.collateral.digest == found.digest:
            if family in self._ended:
                self._fail(family, CollateralUnavailable(Code.COLLATERAL_STALE, f"{family}: the source has no newer"))
            return
        if old is not None and _older(found, old.collateral):
            self._fail(family, CollateralUnavailable(Code.COLLATERAL_ROLLBACK, f"{family}: older than what was seen"))
            return
        if old is None and len(self._known) >= MAX_FAMILIES:
            self._fail(family, CollateralUnavailable(Code.COLLATERAL_PLATFORM, f"{MAX_FAMILIES} families are known"))
            return
        known = _Known(collateral=found, quote=quote)
        at = self._clock()
        at_s = int(at.timestamp())

        def taken() -> None:
            self._known[family] = known
            self._ended.discard(family)
            self._failed.pop(family, None)

        def save(tx: Transaction) -> None:
            _save(tx, family, known, at_s)

        if old is None:
            await self._store.transact(save)
            taken()
        else:
            await self._generation.rise(f"collateral {family}", save, at=at, then=taken)
        logger.info("collateral.kept", extra={"family": family, "digest": found.digest.hex()})


def family_of(quote: Quote) -> str:
    """By what collateral is asked for. Raises MalformedEvidence chain.*, VerificationFailed chain.not_in_quote."""
    key = (quote.tee, quote.certification_type, quote.certification_data)
    known = _FAMILIES.get(key)
    if known is None:
        facts = claimed_platform(quote)
        known = f"{quote.tee}/{facts.fmspc.hex()}/{facts.ca}"
        _FAMILIES.put(key, known)
    return known


def _older(found: Collateral, known: Collateral) -> bool:
    """Whether any document of the set is older than what was seen: a source may not take anything back."""
    pairs = ((found.tcb_info, known.tcb_info), (found.qe_identity, known.qe_identity))
    return any(now < before for new, old in pairs for now, before in zip(_numbers(new), _numbers(old), strict=True))


def _numbers(text: str) -> tuple[int, float]:
    """Evaluation number and issue date of a document; zeros when it has none, since the verifier will refuse it."""
    try:
        document = json.loads(text)
        issued = datetime.fromisoformat(document["issueDate"].replace("Z", "+00:00"))
        return int(document["tcbEvaluationDataNumber"]), issued.timestamp()
    except (ValueError, KeyError, TypeError, AttributeError):
        return 0, 0.0


def _save(tx: Transaction, family: str, known: _Known, at_s: int) -> None:
    """The set under its own digest, which log entries name too, so that old decisions can be taken again."""
    raw_quote = known.quote.signed + _tail(known.quote)
    places = (
        (known.collateral.digest, known.collateral.to_json().encode()),
        (hashlib.sha256(raw_quote).digest(), raw_quote),
    )
    tx.archive.put(*places, at_s=at_s)
    tx.marks.put(_MARK + family, json.dumps([digest.hex() for digest, _ in places]))


def _anew(error: CollateralUnavailable) -> CollateralUnavailable:
    """The same refusal for somebody else: one that is raised again grows, and holds what came with each request."""
    return CollateralUnavailable(error.code, error.detail)


def _tail(quote: Quote) -> bytes:
    """Signature data as in the quote: length, signature, and all that certifies the key."""
    signature_data = quote.signature + quote.certified
    return len(signature_data).to_bytes(4, "little") + signature_data


def _load(tx: Transaction) -> dict[str, _Known]:
    found: dict[str, _Known] = {}
    for family, value in tx.marks.under(_MARK).items():
        text, raw_quote = (tx.archive.get(bytes.fromhex(digest)) for digest in json.loads(value))
        if text is not None and raw_quote is not None:
            found[family] = _Known(collateral=Collateral.from_json(text), quote=Quote.parse(raw_quote))
    return found
