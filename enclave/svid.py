"""The agent's certificate: its TLS key, the X.509-SVID for it, and the trust bundle by which peers are judged.

Decides what is believed of the broker's answers (signed by the pinned broker, for this very key and agent, as of now)
and when they are fetched again: the certificate when half of its life is over, the bundle with its CRLs every twenty
seconds. The TLS key is never the identity key, and a new one is made for each certificate. Time is the broker's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeVar, final

from cryptography.hazmat.primitives.asymmetric import ec

from attestation.errors import AttestationError
from broker.wire.errors import WireCode, WireError
from broker.wire.jose import spki
from broker.wire.relying import TokenKind, TokenRequest
from broker.wire.svid import Leaf, TrustBundle, judge_svid, request_for
from enclave.client import BrokerCalls, Call
from enclave.clock import BrokerTime
from enclave.errors import BrokerRefused, EnclaveError
from enclave.session import Admission

log: Final = logging.getLogger("cloister.svid")
T = TypeVar("T")
REFRESH_S: Final = 20.0
MAX_BUNDLE_AGE_S: Final = 60
_SKEW_S: Final = 5
_FORBIDDEN: Final = 403


class Host(Protocol):
    """What an agent's runtime is to this: admitted, with the broker's time, and able to call the broker."""

    time: BrokerTime

    @property
    def admission(self) -> Admission: ...

    async def call(self, make: Callable[[BrokerCalls], Call[T]]) -> T: ...


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Svid:
    """A certificate (DER) with its private key."""

    spiffe_id: str
    certificate: bytes = field(repr=False)
    private_key: ec.EllipticCurvePrivateKey = field(repr=False)
    begins_s: float
    ends_s: float


@final
class SvidKeeper:
    """One agent's certificate and bundle. `current` and `bundle` fetch what is due; `start` has it done for good."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._svid: Svid | None = None
        self._bundle: TrustBundle | None = None
        self._fetching = asyncio.Lock()
        self._changed = asyncio.Event()
        self._keeping: asyncio.Task[None] | None = None
        self.refused: BrokerRefused | None = None

    async def current(self) -> Svid:
        """The certificate, with at least half of its life ahead.

        Raises BrokerRefused, TransportFailed; WireError svid.* for an answer that is not to be believed.
        """
        async with self._fetching:
            if self._svid is None or self._due(self._svid):
                await self._fetch()
            assert self._svid is not None
            return self._svid

    async def bundle(self) -> TrustBundle:
        """The bundle, at most twenty seconds old. Raises as `current`."""
        async with self._fetching:
            if self._bundle is None or self._host.time.now_s() - self._bundle.at_s >= REFRESH_S:
                self._take(await self._host.call(lambda calls: calls.trust_bundle()))
            assert self._bundle is not None
            return self._bundle

    async def jwt_svid(self, audience: str) -> str:
        """A JWT-SVID for one audience, if policy lets this agent have it. Raises BrokerRefused, TransportFailed."""
        request = TokenRequest(audience=audience, kind=TokenKind.SVID)
        return (await self._host.call(lambda calls: calls.token(request))).token

    @property
    def latest(self) -> tuple[Svid, TrustBundle] | None:
        """What is at hand, without fetching; for those who cannot wait."""
        return (self._svid, self._bundle) if self._svid is not None and self._bundle is not None else None

    @property
    def host(self) -> Host:
        return self._host

    def judge(self, certificate: bytes) -> Leaf:
        """Who holds a peer's certificate (DER), by the bundle at hand and the broker's time. Raises WireError svid.*"""
        bundle = self._bundle
        if bundle is None or self._host.time.now_s() - bundle.at_s > MAX_BUNDLE_AGE_S:
            raise WireError(WireCode.SVID_CRL_STALE, "no trust bundle of the last minute is at hand")
        return judge_svid(certificate, bundle, at=self._host.time.now())

    @property
    def change(self) -> asyncio.Event:
        """Set at the next change of certificate, bundle or refusal. Take it first, then look, then wait for it."""
        return self._changed

    def start(self) -> None:
        """Keep both fresh in the background, from the first call on until `stop`."""
        if self._keeping is None:
            self._keeping = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        self._svid = None

    async def _keep(self) -> None:
        while True:
            try:
                await self.current()
                await self.bundle()
                self.refused = None
            except BrokerRefused as refusal:
                log.warning("no certificate: %s", refusal.code)
                self._refuse(refusal)
            except (EnclaveError, AttestationError, WireError) as error:
                log.warning("no certificate: %s", error.code)
            await asyncio.sleep(REFRESH_S)

    def _refuse(self, refusal: BrokerRefused) -> None:
        """The broker no longer lets this agent be: nothing is handed out from now on."""
        if refusal.status == _FORBIDDEN:
            self._svid, self.refused = None, refusal
            self._tell()

    def _due(self, svid: Svid) -> bool:
        return self._host.time.now_s() >= (svid.begins_s + svid.ends_s) / 2

    async def _fetch(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        request = request_for(key)
        answer = await self._host.call(lambda calls: calls.svid(request))
        self._take(answer.bundle)
        leaf = self.judge(answer.certificate)
        subject = self._host.admission.subject
        if (leaf.key, leaf.subject, leaf.spiffe_id) != (spki(key.public_key()), subject, answer.spiffe_id):
            raise WireError(WireCode.SVID_NOT_ISSUED, "the certificate is for another key or agent")
        self._svid = Svid(
            spiffe_id=leaf.spiffe_id,
            certificate=answer.certificate,
            private_key=key,
            begins_s=self._host.time.now_s(),
            ends_s=leaf.not_after.timestamp(),
        )
        self._tell()

    def _take(self, bundle: TrustBundle) -> None:
        """A bundle that the pinned broker signed, of this minute, and no older than the one at hand."""
        bundle.verify(self._host.admission.broker.identity)
        age_s = self._host.time.now_s() - bundle.at_s
        if not -_SKEW_S <= age_s <= MAX_BUNDLE_AGE_S or (self._bundle and bundle.at_s < self._bundle.at_s):
            raise WireError(WireCode.SVID_BUNDLE, f"a trust bundle from {age_s:.0f} s ago")
        self._bundle = bundle
        self._tell()

    def _tell(self) -> None:
        told, self._changed = self._changed, asyncio.Event()
        told.set()
