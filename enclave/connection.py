"""One agent's living connection to its broker: admitted, and admitted again in time.

Decides when to attest again: before the admission ends (with jitter, so that a fleet does not come at once), and when
the broker no longer takes it. Runs on one event loop; quotes are made in a thread, since hardware takes its time.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar, final

import httpx2

from attestation.ports import TrustDomain
from enclave.client import AsyncClient, BrokerCalls, Call
from enclave.clock import BrokerTime
from enclave.errors import AgentError, BrokerRefused, Code, TransportFailed
from enclave.keys import AgentKeys
from enclave.session import Admission, Session
from enclave.trustfile import TrustFile

log: Final = logging.getLogger("cloister.agent")
T = TypeVar("T")

ATTEST_PATIENCE_S: Final = 60.0  # collateral of a platform that the broker has never seen is fetched meanwhile
FIRST_REFUSED_S: Final = 1.0
MAX_REFUSED_S: Final = 30.0
ENDED: Final = frozenset({"agent.revoked", "agent.retired"})
_NONCE_CODES: Final = frozenset({"challenge.expired", "challenge.used"})  # this nonce is gone, another one may do
_RETRY: Final = frozenset({429, 503})


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Refused:
    """The broker's last refusal to admit this agent, and the moment (of the loop's clock) until which it stands."""

    why: BrokerRefused
    pause: float
    until: float


class Connection:
    """See the module. `attest` first; `close` ends everything and destroys the keys."""

    def __init__(
        self,
        *,
        domain: TrustDomain,
        trust: TrustFile,
        broker_url: str,
        suite: str,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self.domain = domain
        self.trust = trust
        self.keys = AgentKeys.generate(suite)
        self.time = BrokerTime()
        self._session = Session(self.keys, trust, self.time)
        self._client = AsyncClient(transport)
        self._calls = BrokerCalls(broker_url, self.keys, self.time, self._token)
        self._admission: Admission | None = None
        self._refused: _Refused | None = None
        self._attesting = asyncio.Lock()
        self._revoked = asyncio.Event()
        self._revocation: BrokerRefused | None = None

    @property
    def admission(self) -> Admission:
        """Raises AgentError agent.not_running."""
        if self._admission is None:
            raise AgentError(Code.AGENT_NOT_RUNNING, "the broker has not admitted this agent")
        return self._admission

    @property
    def admitted(self) -> bool:
        return self._admission is not None

    def _token(self) -> str:
        return self.admission.token

    async def attest(self, *, instead_of: Admission | None = None) -> Admission:
        """Attest, unless another task has replaced `instead_of` meanwhile. Raises what the session and client raise;
        a fresh refusal stands for a while."""
        async with self._attesting:
            if self._admission is not None and self._admission is not instead_of:
                return self._admission
            refused = self._refused
            if refused is not None and asyncio.get_running_loop().time() < refused.until:
                raise refused.why.with_traceback(None)  # a quote costs time, and asking at once changes nothing
            try:
                self._admission = await self._attest_patiently()
            except BrokerRefused as why:
                self._admission, self._refused = None, self._next_refusal(why)
                raise
            self._refused = None
            return self._admission

    def _next_refusal(self, why: BrokerRefused) -> _Refused:
        """How long this refusal stands before the broker is asked again: twice as long as the one before."""
        pause = min(2 * self._refused.pause, MAX_REFUSED_S) if self._refused else FIRST_REFUSED_S
        return _Refused(why=why, pause=pause, until=asyncio.get_running_loop().time() + pause)

    async def _attest_patiently(self) -> Admission:
        loop, pause = asyncio.get_running_loop(), 0.2
        give_up = loop.time() + ATTEST_PATIENCE_S
        while True:
            try:
                return await self._attest_once()
            except BrokerRefused as refusal:
                if (refusal.status not in _RETRY and refusal.code not in _NONCE_CODES) or loop.time() + pause > give_up:
                    raise
            except TransportFailed:
                if loop.time() + pause > give_up:
                    raise
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311  jitter, not a secret
            pause = min(2 * pause, 5.0)

    async def _attest_once(self) -> Admission:
        session = self._session
        question = session.ask(os.urandom(32))
        report_data = session.challenged(await self._client.do(self._calls.challenge(question)))
        quote = await asyncio.to_thread(self.domain.quote, report_data)
        event_log = await asyncio.to_thread(self.domain.event_log)
        evidence = session.quoted(quote, event_log or None)
        return session.admitted(await self._client.do(self._calls.attest(evidence)))

    def renewal_due_s(self) -> float:
        """Seconds from now until the next attestation should begin: at 60 to 80 % of the admission's life."""
        admission = self.admission
        life = admission.expires_at_s - admission.issued_at_s
        due = admission.issued_at_s + life * random.uniform(0.6, 0.8)  # noqa: S311  jitter, not a secret
        return max(due - self.time.now_s(), 0.0)

    async def _admitted(self) -> Admission:
        """The admission, attesting first when there is none. Raises what attesting raises."""
        return self._admission or await self.attest()

    async def _authorised(self, make: Callable[[], Call[T]]) -> T:
        """The call's result; once, after the broker no longer takes the token, with a new admission."""
        before = await self._admitted()
        try:
            return await self._client.do(make())
        except BrokerRefused as refusal:
            if refusal.status != 401:
                self._note(refusal)
                raise
            log.info("admission no longer taken (%s); attesting again", refusal.code)
        await self.attest(instead_of=before)
        return await self._client.do(make())

    def _note(self, refusal: BrokerRefused) -> None:
        if refusal.code in ENDED and self._revocation is None:
            self._revocation = refusal
            self._revoked.set()

    async def until_revoked(self) -> None:
        """Raises BrokerRefused agent.revoked, agent.retired once the broker has said so: this key is never admitted
        again."""
        await self._revoked.wait()
        assert self._revocation is not None
        raise self._revocation

    async def call(self, make: Callable[[BrokerCalls], Call[T]]) -> T:
        """Any of the broker's calls, in the name of this agent. Raises what the call raises."""
        return await self._authorised(lambda: make(self._calls))

    async def close(self) -> None:
        await self._client.aclose()
        self._session.close()
        self.keys.destroy()
        self._admission = None
