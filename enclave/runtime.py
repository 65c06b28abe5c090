"""One agent's living connection: admitted, renewed, with its mailbox published and its secrets and mail at hand.

Decides when to attest again: before the admission ends (with jitter, so that a fleet does not come at once), and when
the broker no longer takes it. What the author of an agent sees is `agent` and `context`; what may be believed was
decided in `session`, `release` and `mailbox`. Runs on one event loop; quotes are made in a thread, since hardware takes
its time.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, TypeVar, final

import httpx2

from attestation.errors import AttestationError, CloisterError, TokenRefused
from attestation.evidence import MLKEM768_X25519
from attestation.ports import TrustDomain
from attestation.verdict import Verdict
from broker.wire.envelope import Envelope, Header
from broker.wire.errors import WireError
from broker.wire.leases import AckRequest, Extension, Nak, Rejection
from broker.wire.mailbox import MailboxInfo, ReceiveRequest, SendStatus
from broker.wire.release import ReleaseRequest
from enclave.client import AsyncClient, BrokerCalls, Call
from enclave.clock import BrokerTime
from enclave.errors import AgentError, BrokerRefused, Code, EnvelopeRefused, TransportFailed
from enclave.keys import AgentKeys
from enclave.mailbox import DEFAULT_TTL_S, Inbox, Judge, Opened, Outbox, everyone
from enclave.release import Secret, open_release
from enclave.session import Admission, Session
from enclave.trustfile import TrustFile

log: Final = logging.getLogger("cloister.agent")
T = TypeVar("T")

TAKEN_PATIENCE_S: Final = 45.0  # a little longer than a broker keeps a mailbox for an owner who fell silent
CLOSE_PATIENCE_S: Final = 2.0
ATTEST_PATIENCE_S: Final = 60.0  # collateral of a platform that the broker has never seen is fetched meanwhile
FIRST_REFUSED_S: Final = 1.0
MAX_REFUSED_S: Final = 30.0
KEY_CACHE_S: Final = 30.0
WAIT_S: Final = 10
LEASE_S: Final = 30
# The owner has restarted or rolled its key; its token has ended since it was fetched; its key has ended.
KEY_CODES: Final = frozenset({"mailbox.key_stale", "token.expired", "mailbox.key_signature_invalid"})
LOWERED: Final = "message.labels_lowered"
_NONCE_CODES: Final = frozenset({"challenge.expired", "challenge.used"})  # this nonce is gone, another one may do
_RETRY: Final = frozenset({429, 503})


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """An opened message and the lease under which it came."""

    opened: Opened = field(repr=False)
    lease: str
    attempt: int

    @property
    def type(self) -> str:
        return self.opened.header.type

    @property
    def sender(self) -> str:
        """The subject in the sender's verdict."""
        return self.opened.header.sender

    @property
    def peer(self) -> Verdict:
        return self.opened.sender

    @property
    def msg_id(self) -> bytes:
        return self.opened.header.msg_id

    @property
    def in_reply_to(self) -> bytes:
        return self.opened.header.in_reply_to

    @property
    def reply_to(self) -> str:
        """The mailbox where the sender waits for an answer, or nothing."""
        return self.opened.header.reply_to

    @property
    def labels(self) -> frozenset[str]:
        return frozenset(self.opened.header.labels)

    @property
    def plaintext(self) -> bytes:
        return self.opened.plaintext


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Refused:
    """The broker's last refusal to admit this agent, and the moment (of the loop's clock) until which it stands."""

    why: BrokerRefused
    pause: float
    until: float


@final
class Runtime:
    """See the module. `start` first; `close` ends everything and destroys the keys."""

    def __init__(
        self,
        *,
        domain: TrustDomain,
        trust: TrustFile,
        broker_url: str,
        mailbox: str,
        judge: Judge = everyone,
        suite: str = MLKEM768_X25519,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self.domain = domain
        self.trust = trust
        self.keys = AgentKeys.generate(suite)
        self.time = BrokerTime()
        self.inbox = Inbox(mailbox, self.keys, self.time, suite=suite, judge=judge)
        self._outbox = Outbox(self.keys, self.time, judge=judge)
        self._session = Session(self.keys, trust, self.time)
        self._client = AsyncClient(transport)
        self._calls = BrokerCalls(broker_url, self.keys, self.time, self._token)
        self._admission: Admission | None = None
        self._refused: _Refused | None = None
        self._attesting = asyncio.Lock()
        self._sending: dict[str, asyncio.Lock] = {}
        self._found: dict[str, tuple[float, MailboxInfo]] = {}
        self._published = False
        self._labels: frozenset[str] = frozenset()

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

    @property
    def labels(self) -> frozenset[str]:
        """Of everything that this process was given. The broker keeps the account that counts."""
        return self._labels

    # --- attestation ---

    async def attest(self, *, instead_of: Admission | None = None) -> Admission:
        """Attest, unless another task has replaced `instead_of` meanwhile. Raises what the session and client raise;
        a fresh refusal stands for a while."""
        async with self._attesting:
            if self._admission is not None and self._admission is not instead_of:
                return self._admission
            refused = self._refused
            if refused is not None and asyncio.get_running_loop().time() < refused.until:
                raise refused.why  # a quote costs the platform time, and asking at once changes nothing
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
                raise
            log.info("admission no longer taken (%s); attesting again", refusal.code)
        await self.attest(instead_of=before)
        return await self._client.do(make())

    # --- secrets ---

    async def secret(self, name: str, version: int | None = None) -> Secret:
        """Raises BrokerRefused when policy says no; WireError, SessionError, SealingFailed for a forged answer."""
        request = ReleaseRequest(nonce=os.urandom(32), version=version)
        answer = await self._authorised(lambda: self._calls.release(name, request))
        secret = open_release(
            answer,
            admission=self.admission,
            keys=self.keys,
            name=name,
            nonce=request.nonce,
            now_s=self.time.now_s(),
        )
        self._labels |= secret.labels
        return secret

    # --- mail ---

    async def publish(self) -> None:
        """Publish the mailbox's key when one is due. An owner before us who is gone is waited for, until the broker
        gives the mailbox away. Raises BrokerRefused mailbox.taken when he is still there."""
        if not self.inbox.key_due():
            return
        key = self.inbox.new_epoch(self.admission.subject)
        loop = asyncio.get_running_loop()
        give_up = loop.time() + TAKEN_PATIENCE_S
        while True:
            try:
                await self._authorised(lambda: self._calls.publish(key))
                self._published = True
                return
            except BrokerRefused as refusal:
                if refusal.code != "mailbox.taken" or loop.time() > give_up:
                    raise
                log.info("%s is still another agent's; waiting for it", self.inbox.name)
            await asyncio.sleep(random.uniform(0.5, 1.5))  # noqa: S311  jitter, not a secret

    async def send(
        self,
        mailbox: str,
        *,
        kind: str,
        plaintext: bytes,
        labels: frozenset[str] = frozenset(),
        without: frozenset[str] = frozenset(),
        in_reply_to: bytes = b"",
        reply_to: str = "",
        ttl_s: float = DEFAULT_TTL_S,
        announce: Callable[[bytes, str], None] | None = None,
    ) -> bytes:
        """Seal and send one message; returns its id once the broker holds it durably. `announce` gets the id and the
        mailbox's owner before anything is sent, so that an answer cannot come too early.

        The message carries `labels` and those of all that this process was given, but for `without`, which takes the
        policy's permit.

        Raises BrokerRefused, EnvelopeRefused, WireError, TokenRefused, TransportFailed.
        """
        # One at a time per mailbox: the order of sequence numbers is the order of sending.
        async with self._sending.setdefault(mailbox, asyncio.Lock()):
            for last in (False, True):
                admission = await self._admitted()
                found = await self._mailbox(mailbox)
                try:
                    envelope = self._outbox.seal(
                        found,
                        mailbox=mailbox,
                        admission=admission,
                        kind=kind,
                        plaintext=plaintext,
                        labels=(labels | self._labels) - without,
                        in_reply_to=in_reply_to,
                        reply_to=reply_to,
                        ttl_s=ttl_s,
                    )
                    if announce is not None:
                        announce(Header.from_bytes(envelope.header).msg_id, found.key.owner)
                    return await self._send(mailbox, envelope)
                except (BrokerRefused, TokenRefused, WireError) as error:
                    self._found.pop(mailbox, None)
                    behind = error.code == LOWERED and await self._catch_up()
                    if last or not (behind or error.code in KEY_CODES):
                        raise
                    # What was at hand about the mailbox no longer holds: ask, and seal to its present key.
            raise AssertionError("the second attempt returns or raises")

    async def _catch_up(self) -> bool:
        """Ask the broker for its account of this agent's labels; whether it knew of any more."""
        told = frozenset((await self._authorised(self._calls.labels)).labels)
        news = not told <= self._labels
        self._labels |= told
        return news

    async def _send(self, mailbox: str, envelope: Envelope) -> bytes:
        response = await self._authorised(lambda: self._calls.send(mailbox, [envelope]))
        if len(response.results) != 1:
            raise TransportFailed(Code.CLIENT_ANSWER, f"{len(response.results)} results for one envelope")
        result = response.results[0]
        if result.status is SendStatus.REFUSED:
            raise BrokerRefused(status=403, code=result.code, detail=f"{mailbox} did not take the message")
        return result.msg_id

    async def _mailbox(self, name: str) -> MailboxInfo:
        now = asyncio.get_running_loop().time()
        until, found = self._found.get(name, (0.0, None))
        if found is None or now > until:
            found = await self._authorised(lambda: self._calls.mailbox(name))
            self._found[name] = (now + KEY_CACHE_S, found)
        return found

    async def receive(self, limit: int) -> list[Received]:
        """Wait for mail and open what can be proved. What cannot becomes a dead letter, and is logged with its code."""
        name = self.inbox.name
        request = ReceiveRequest(max_messages=limit, wait_s=WAIT_S, lease_s=LEASE_S)
        response = await self._authorised(lambda: self._calls.receive(name, request))
        received, dropped = [], list[Rejection]()
        for delivery in response.deliveries:
            try:
                opened = self.inbox.open(delivery, response.senders, self.admission.broker)
            except (EnvelopeRefused, AttestationError, WireError) as error:
                if error.code is not Code.ENVELOPE_IN_PROGRESS:
                    log.warning("message refused: %s", error.code)
                    dropped.append(Rejection(lease=delivery.lease, code=str(error.code)))
                continue
            self._labels |= frozenset(opened.header.labels)
            received.append(Received(opened=opened, lease=delivery.lease, attempt=delivery.attempt))
        if dropped:
            with suppress(BrokerRefused):  # the leases have ended meanwhile; they will be refused again
                await self._settle(AckRequest(reject=tuple(dropped)))
        return received

    async def acknowledge(self, *leases: str) -> None:
        await self._settle(AckRequest(ack=leases))

    async def finish(self, received: Received) -> None:
        """Handled: never again."""
        self.inbox.done(received.opened.header)
        await self.acknowledge(received.lease)

    async def refuse(self, received: Received, code: str) -> None:
        """No attempt will help: a dead letter, whose reason is the code."""
        self.inbox.done(received.opened.header)
        await self._settle(AckRequest(reject=(Rejection(lease=received.lease, code=code),)))

    async def give_back(self, received: Received, delay_s: int, code: str = "") -> None:
        """To be delivered again, after `delay_s`; `code` says why."""
        self.inbox.again(received.opened.header)
        await self._settle(AckRequest(nak=(Nak(lease=received.lease, delay_s=delay_s, code=code),)))

    async def keep(self, held: list[Received]) -> None:
        """Extend the leases of what is being handled."""
        await self._settle(
            AckRequest(extend=tuple(Extension(lease=received.lease, lease_s=LEASE_S) for received in held))
        )

    async def _settle(self, request: AckRequest) -> None:
        await self._authorised(lambda: self._calls.ack(self.inbox.name, request))

    async def close(self) -> None:
        """Give the mailbox back, so that a successor need not wait for it, and end."""
        if self._published and self._admission is not None:
            with suppress(CloisterError, TimeoutError):  # then it is kept for a while, as after a crash
                async with asyncio.timeout(CLOSE_PATIENCE_S):
                    await self._client.do(self._calls.leave(self.inbox.name))
        await self._client.aclose()
        self._session.close()
        self.keys.destroy()
        self._admission = None
