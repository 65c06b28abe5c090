"""Collateral from Intel's PCS, or from a PCCS that speaks its interface, with a cache on disk.

Decides where a platform's collateral is asked for, when it is asked for again, and that nothing is handed out which
is unsigned, past its end, not yet in force, or older than what was seen before. Whether a quote is good under it is
decided in `verifier`, which checks everything again.

A set is refreshed when it is a day old or has less than a fifth of its life left; while it is in force it stays in use
when the refresh fails. One request per platform is under way at a time; others get the set at hand or wait for it, and
nobody waits longer than the deadline.
"""

from __future__ import annotations

import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal, final
from urllib.parse import urlsplit

from attestation.chains import claimed_platform
from attestation.collateral import Collateral
from attestation.endorsements import Endorsements, endorse
from attestation.errors import AttestationError, Code, CollateralUnavailable, MalformedEvidence
from attestation.net import answers
from attestation.net.store import CollateralFiles, Mark, Marks
from attestation.net.transport import Answer, Transport, check_url
from attestation.pki import PLATFORM_CA_NAME, PROCESSOR_CA_NAME, TrustRoots
from attestation.quote import Quote, Tee

INTEL: Final = "https://api.trustedservices.intel.com"
_INTEL_HOSTS: Final = frozenset(("api.trustedservices.intel.com",))
_DAY_S: Final = 86_400.0
_MAX_DEADLINE_S: Final = 3600.0
_LIFE_LEFT: Final = 0.2
_MAX_SETS: Final = 512
_CA_NAMES: Final = {"platform": PLATFORM_CA_NAME, "processor": PROCESSOR_CA_NAME}
_KEY: Final = re.compile(r"(sgx|tdx)-([0-9a-f]{12})-(platform|processor)-(standard|early)")

Channel = Literal["standard", "early"]
"""Intel publishes a new evaluation set to `early` weeks before `standard`."""


@final
@dataclass(frozen=True, slots=True)
class Platform:
    """What collateral is asked for by. ValueError for what no address or file name should be made of."""

    tee: Tee
    fmspc: bytes
    ca: str  # "platform" or "processor"

    def __post_init__(self) -> None:
        if type(self.tee) is not Tee or type(self.fmspc) is not bytes or len(self.fmspc) != 6:
            raise ValueError("a platform is a TEE and a FMSPC of 6 bytes")
        if self.ca not in _CA_NAMES:
            raise ValueError(f"a platform's CA is {' or '.join(_CA_NAMES)}, not {self.ca!r}")

    def key(self, channel: Channel) -> str:
        return f"{self.tee}-{self.fmspc.hex()}-{self.ca}-{channel}"


@final
@dataclass(frozen=True, slots=True)
class _Set:
    """Collateral that is signed under the trusted roots."""

    collateral: Collateral
    begins: float
    ends: float
    fetched_at: float

    def in_force(self, now: float) -> bool:
        return self.begins <= now <= self.ends

    def due(self, now: float, max_age_s: float) -> bool:
        life = self.ends - self.fetched_at
        fresh = self.fetched_at <= now < self.fetched_at + max_age_s  # not so after a clock was set back, either
        return not fresh or self.ends - now < _LIFE_LEFT * life


@final
@dataclass(slots=True)
class _Flight:
    """A request that is under way, and how many callers it concerns."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    users: int = 0


@final
class PcsClient:
    """A CollateralSource. Safe to share between threads, and its folder between processes."""

    def __init__(
        self,
        base_url: str = INTEL,
        cache_dir: Path | None = None,
        *,
        roots: TrustRoots | None = None,
        channel: Channel = "standard",
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        max_age_s: float = _DAY_S,
        deadline_s: float = 30.0,
        retry_after_s: float = 60.0,
        transport: Transport | None = None,
    ) -> None:
        """`roots` are Intel's unless given; without `cache_dir` nothing is kept on disk and no marks outlive the
        object. `deadline_s` bounds a whole call, waiting for another caller's request included.

        ValueError for an address that is neither https nor loopback, and for a deadline beyond an hour.
        """
        check_url(base_url)
        if not 0 < deadline_s <= _MAX_DEADLINE_S:
            raise ValueError(f"a deadline is at most {_MAX_DEADLINE_S} s away")
        self._base = base_url.rstrip("/").removesuffix("/sgx/certification/v4")
        self._is_intel = urlsplit(base_url).hostname in _INTEL_HOSTS
        self._roots = roots or TrustRoots.intel()
        self._channel: Channel = channel
        self._now = now
        self._max_age_s = max_age_s
        self._deadline_s = deadline_s
        self._retry_after_s = retry_after_s
        self._transport = transport or Transport()
        self._files = None if cache_dir is None else CollateralFiles(cache_dir)
        self._marks = Marks(cache_dir, self._marks_of_files)
        self._lock = threading.Lock()
        self._sets: OrderedDict[str, _Set] = OrderedDict()
        self._not_before: dict[str, float] = {}  # after a failed refresh
        self._flights: dict[str, _Flight] = {}

    def fetch(self, quote: Quote) -> Collateral:
        """Collateral in force now for the platform that `quote` claims. Raises CollateralUnavailable: collateral.*"""
        try:
            claimed = claimed_platform(quote)
        except AttestationError as error:
            detail = f"the quote does not say which platform it is from: {error}"
            raise CollateralUnavailable(Code.COLLATERAL_PLATFORM, detail) from error
        return self.fetch_for(Platform(quote.tee, claimed.fmspc, claimed.ca))

    def fetch_for(self, platform: Platform) -> Collateral:
        """The same for a platform that is known by name. Raises CollateralUnavailable: collateral.*"""
        key = platform.key(self._channel)
        deadline = time.monotonic() + self._deadline_s
        found = self._at_hand(key)
        if found is None or self._wants_refresh(key, found):
            with self._alone(key, 0.0 if found else self._deadline_s) as alone:
                if alone:
                    found = self._fetch_alone(platform, key, deadline)
        if found is None:
            detail = f"another request for {key} has taken {self._deadline_s:.0f} s"
            raise CollateralUnavailable(Code.COLLATERAL_UNREACHABLE, detail)
        if not found.in_force(self._now().timestamp()):  # all of this may have taken long
            raise CollateralUnavailable(Code.COLLATERAL_STALE, f"ended at {_text(found.ends)}, while it was fetched")
        return found.collateral

    @contextmanager
    def _alone(self, key: str, patience_s: float) -> Iterator[bool]:
        """Whether this caller is the one who asks for `key` now, having waited at most `patience_s` for another."""
        with self._lock:
            flight = self._flights.setdefault(key, _Flight())
            flight.users += 1
        alone = flight.lock.acquire(timeout=patience_s)
        try:
            yield alone
        finally:
            if alone:
                flight.lock.release()
            with self._lock:
                flight.users -= 1
                if not flight.users:
                    del self._flights[key]

    def _fetch_alone(self, platform: Platform, key: str, deadline: float) -> _Set:
        found = self._at_hand(key) or self._from_disk(platform, key)
        if found is not None and not self._wants_refresh(key, found):
            return found
        try:
            fresh = self._download(platform, deadline)
        except CollateralUnavailable:
            now = self._now().timestamp()
            if found is None or not found.in_force(now):
                raise
            with self._lock:
                self._not_before[key] = now + self._retry_after_s
            return found
        self._keep(key, fresh)
        return fresh

    def _at_hand(self, key: str) -> _Set | None:
        now = self._now().timestamp()
        with self._lock:
            found = self._sets.get(key)
            return found if found is not None and found.in_force(now) else None

    def _wants_refresh(self, key: str, found: _Set) -> bool:
        now = self._now().timestamp()
        with self._lock:
            patience_s = self._not_before.get(key, now) - now
        return found.due(now, self._max_age_s) and not 0 < patience_s <= self._retry_after_s

    def _from_disk(self, platform: Platform, key: str) -> _Set | None:
        """What an earlier process kept, if it would be accepted today."""
        kept = None if self._files is None else self._files.load(key)
        if kept is None or kept.fetched_at > self._now().timestamp():
            return None
        try:
            found, marks = self._accept(platform, kept.collateral, kept.fetched_at)
            self._marks.check(marks)
        except CollateralUnavailable:
            return None
        self._keep(key, found, on_disk=False)
        return found

    def _keep(self, key: str, found: _Set, *, on_disk: bool = True) -> None:
        with self._lock:
            self._sets[key] = found
            self._sets.move_to_end(key)
            self._not_before.pop(key, None)
            while len(self._sets) > _MAX_SETS:
                dropped, _ = self._sets.popitem(last=False)
                self._not_before.pop(dropped, None)
        if on_disk and self._files is not None:
            try:
                self._files.save(key, found.collateral, datetime.fromtimestamp(found.fetched_at, UTC))
            except OSError as error:
                raise CollateralUnavailable(Code.COLLATERAL_UNREACHABLE, f"cannot keep it on disk: {error}") from error

    def _accept(self, platform: Platform, collateral: Collateral, fetched_at: float) -> tuple[_Set, dict[str, Mark]]:
        """A set that is signed, made for this platform and in force, and how new its parts are.

        Raises CollateralUnavailable: collateral.answer_invalid, collateral.stale.
        """
        judged = endorse(collateral, self._roots)
        if not judged.ok:
            wrong = "; ".join(f"{check.code}: {check.detail}" for check in judged.checks if not check.ok)
            raise CollateralUnavailable(Code.COLLATERAL_ANSWER, f"not collateral under the trusted roots: {wrong}")
        begins = max(window.begin for window in judged.windows)
        ends = min(window.end for window in judged.windows)
        found = _Set(collateral, float(begins), float(ends), fetched_at)
        marks = _marks(platform, self._channel, judged)
        if not found.in_force(self._now().timestamp()):
            raise CollateralUnavailable(
                Code.COLLATERAL_STALE,
                f"in force from {_text(begins)} to {_text(ends)}, asked for at {self._now().isoformat()}",
            )
        return found, marks

    def _marks_of_files(self) -> dict[str, Mark]:
        """What the sets on disk say was seen, whether they are in force or not, as long as they are signed."""
        seen: dict[str, Mark] = {}
        for key in [] if self._files is None else self._files.keys():
            parts, kept = _KEY.fullmatch(key), self._files.load(key) if self._files else None
            if parts is None or kept is None:
                continue
            tee, fmspc, ca, channel = parts.groups()
            judged = endorse(kept.collateral, self._roots)
            if judged.ok:
                with suppress(CollateralUnavailable):  # it lies under a wrong name
                    found = _marks(Platform(Tee(tee), bytes.fromhex(fmspc), ca), channel, judged)
                    seen |= {name: mark.newest(seen.get(name, mark)) for name, mark in found.items()}
        return seen

    def _download(self, platform: Platform, deadline: float) -> _Set:
        try:
            collateral = self._collect(platform, deadline)
        except MalformedEvidence as error:
            raise CollateralUnavailable(Code.COLLATERAL_ANSWER, error.detail) from error
        found, marks = self._accept(platform, collateral, self._now().timestamp())
        try:
            self._marks.raise_to(marks)
        except OSError as error:
            raise CollateralUnavailable(Code.COLLATERAL_UNREACHABLE, f"cannot keep marks: {error}") from error
        return found

    def _collect(self, platform: Platform, deadline: float) -> Collateral:
        tee, channel = platform.tee, self._channel
        paths = (
            f"{tee}/certification/v4/tcb?fmspc={platform.fmspc.hex().upper()}&update={channel}",
            f"{tee}/certification/v4/qe/identity?update={channel}",
            f"sgx/certification/v4/pckcrl?ca={platform.ca}&encoding=der",
        )
        with ThreadPoolExecutor(len(paths)) as pool:
            tcb, qe, pck = pool.map(lambda path: self._get(f"{self._base}/{path}", deadline), paths)
        tcb_info, tcb_signature = answers.signed_document(tcb, "tcbInfo")
        identity, identity_signature = answers.signed_document(qe, "enclaveIdentity")
        identity_chain = answers.issuer_chain(qe, answers.IDENTITY_CHAIN_HEADERS, "QE identity")
        return Collateral(
            tcb_info=tcb_info,
            tcb_info_signature=tcb_signature,
            tcb_info_issuer_chain=answers.issuer_chain(tcb, answers.TCB_CHAIN_HEADERS, "TCB info"),
            qe_identity=identity,
            qe_identity_signature=identity_signature,
            qe_identity_issuer_chain=identity_chain,
            pck_crl=answers.crl(pck, "PCK CRL"),
            pck_crl_issuer_chain=answers.issuer_chain(pck, answers.CRL_CHAIN_HEADERS, "PCK CRL"),
            root_ca_crl=self._root_crl(identity_chain, deadline),
        )

    def _root_crl(self, chain: str, deadline: float) -> bytes:
        """A PCCS hands it out itself; the PCS leaves it to the root's distribution point."""
        if not self._is_intel:
            try:
                answer = self._get(f"{self._base}/sgx/certification/v4/rootcacrl", deadline)
                return answers.crl(answer, "root CRL")
            except CollateralUnavailable as error:
                if error.code != Code.COLLATERAL_NOT_FOUND:
                    raise
        address = answers.root_crl_address(chain, self._roots)
        try:
            return answers.crl(self._get(address, deadline), "root CRL")
        except ValueError as error:
            raise CollateralUnavailable(Code.COLLATERAL_ANSWER, str(error)) from error

    def _get(self, url: str, deadline: float) -> Answer:
        return answers.expect_found(self._transport.get(url, deadline=deadline), url)


def _marks(platform: Platform, channel: str, judged: Endorsements) -> dict[str, Mark]:
    """How new each part of an endorsed set is; also checks that the set is this platform's."""
    tcb_info, identity, root = judged.tcb_info, judged.qe_identity, judged.trusted
    pck_crl, root_crl = judged.pck_crl, judged.root_crl
    if tcb_info is None or identity is None or pck_crl is None or root_crl is None or root is None:
        raise CollateralUnavailable(Code.COLLATERAL_ANSWER, "the set ends in more than one root")
    if (tcb_info.tee, identity.tee, tcb_info.fmspc) != (platform.tee, platform.tee, platform.fmspc):
        raise CollateralUnavailable(Code.COLLATERAL_ANSWER, "the answer is for another platform")
    if judged.pck_ca is None or judged.pck_ca.common_name != _CA_NAMES[platform.ca]:
        raise CollateralUnavailable(Code.COLLATERAL_ANSWER, f"the PCK CRL is not that of the {platform.ca} CA")
    base = root.point.hex()[:32]
    own = f"{base}/{platform.tee}/{platform.fmspc.hex()}"
    return {
        f"{own}/tcb_info/{channel}": Mark(tcb_info.evaluation_number, tcb_info.issued),
        f"{own}/qe_identity/{channel}": Mark(identity.evaluation_number, identity.issued),
        f"{base}/pck_crl/{platform.ca}": Mark(pck_crl.number or 0, pck_crl.this_update),
        f"{base}/root_crl": Mark(root_crl.number or 0, root_crl.this_update),
    }


def _text(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()
