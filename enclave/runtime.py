"""What one agent does over its connection: its mailbox published, its secrets and mail at hand.

Decides what is sent again to a mailbox whose key has changed, and what becomes of mail that cannot be proved. What the
author of an agent sees is `agent` and `context`; what may be believed was decided in `session`, `release` and
`mailbox`; being admitted, and staying so, is `connection`'s. Runs on one event loop.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Final, final

import httpx2

from attestation.errors import AttestationError, CloisterError, TokenRefused
from attestation.evidence import MLKEM768_X25519
from attestation.ports import TrustDomain
from attestation.verdict import Verdict
from broker.wire.blob import BLOB_TYPE
from broker.wire.envelope import Envelope, Header
from broker.wire.errors import WireError
from broker.wire.leases import AckRequest, Extension, Nak, Rejection
from broker.wire.mailbox import Delivery, MailboxInfo, ReceiveRequest, SendStatus
from broker.wire.release import ReleaseRequest
from enclave import blobs
from enclave.connection import Connection
from enclave.durable import Durable, DurableReader
from enclave.errors import BrokerRefused, Code, EnvelopeRefused, TransportFailed
from enclave.mailbox import DEFAULT_TTL_S, Inbox, Judge, Opened, Outbox, everyone
from enclave.release import Secret, open_release
from enclave.session import Admission
from enclave.svid import SvidKeeper
from enclave.trustfile import TrustFile

log: Final = logging.getLogger("cloister.agent")

TAKEN_PATIENCE_S: Final = 45.0  # a little longer than a broker keeps a mailbox for an owner who fell silent
CLOSE_PATIENCE_S: Final = 2.0
KEY_CACHE_S: Final = 30.0
WAIT_S: Final = 10
BLOB_SLACK_S: Final = 60  # that a payload outlives the message that speaks of it
LEASE_S: Final = 30
# The owner has restarted or rolled its key; its token has ended since it was fetched; its key has ended.
KEY_CODES: Final = frozenset({"mailbox.key_stale", "token.expired", "mailbox.key_signature_invalid"})
LOWERED: Final = "message.labels_lowered"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """An opened message and the lease under which it came."""

    opened: Opened = field(repr=False)
    lease: str
    attempt: int
    blob: str = ""  # the name of the large payload that came with it

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
class Runtime(Connection):
    """See the module. `attest` first, then `publish`; `close` ends everything and destroys the keys."""

    def __init__(
        self,
        *,
        domain: TrustDomain,
        trust: TrustFile,
        broker_url: str,
        mailbox: str,
        judge: Judge = everyone,
        suite: str = MLKEM768_X25519,
        durable: Durable | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        super().__init__(domain=domain, trust=trust, broker_url=broker_url, suite=suite, transport=transport)
        self.inbox = Inbox(mailbox, self.keys, self.time, suite=suite, judge=judge, durable=durable is not None)
        self._outbox = Outbox(self.keys, self.time, judge=judge)
        self._durable: DurableReader | None = None
        if durable is not None:
            self._durable = DurableReader(
                self.inbox,
                durable,
                keys=self.keys,
                time=self.time,
                calls=self._calls,
                admission=lambda: self.admission,
                do=self._authorised,
            )
        self.svids = SvidKeeper(self)
        self._sending: dict[str, asyncio.Lock] = {}
        self._found: dict[str, tuple[float, MailboxInfo]] = {}
        self._published = False
        self._labels: frozenset[str] = frozenset()

    @property
    def labels(self) -> frozenset[str]:
        """Of everything that this process was given. The broker keeps the account that counts."""
        return self._labels

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
        key = await self._durable.open() if self._durable else self.inbox.new_epoch(self.admission.subject)
        loop = asyncio.get_running_loop()
        give_up = loop.time() + TAKEN_PATIENCE_S
        while True:
            try:
                await self._authorised(lambda: self._calls.publish(key))
                self._published = True
                break
            except BrokerRefused as refusal:
                if refusal.code != "mailbox.taken" or loop.time() > give_up:
                    raise
                log.info("%s is still another agent's; waiting for it", self.inbox.name)
            await asyncio.sleep(random.uniform(0.5, 1.5))  # noqa: S311  jitter, not a secret
        if self._durable:
            await self._durable.begin()

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
                    body = plaintext
                    if blobs.is_large(plaintext):
                        marks = (labels | self._labels) - without
                        body = await self._beside(found, mailbox, admission, plaintext, marks, ttl_s)
                    envelope = self._outbox.seal(
                        found,
                        mailbox=mailbox,
                        admission=admission,
                        kind=kind,
                        plaintext=body,
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

    async def _beside(
        self,
        found: MailboxInfo,
        mailbox: str,
        admission: Admission,
        plaintext: bytes,
        labels: frozenset[str],
        ttl_s: float,
    ) -> bytes:
        """Leave a large payload at the broker, sealed; what the message says instead."""
        envelope = self._outbox.seal(
            found,
            mailbox=mailbox,
            admission=admission,
            kind=BLOB_TYPE,
            plaintext=plaintext,
            labels=labels,
            ttl_s=ttl_s + BLOB_SLACK_S,
        )
        body, raw, ref = blobs.reference(envelope)
        await self._authorised(lambda: self._calls.keep_blob(ref.sha256, raw))
        return body

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
        received, again, dropped = [], list[str](), list[Rejection]()
        for delivery in response.deliveries:
            try:
                received.append(await self._open(delivery, response.senders))
            except (EnvelopeRefused, AttestationError, WireError) as error:
                if error.code is Code.ENVELOPE_REPLAYED:  # handled, and the acknowledgement was lost; or put back
                    again.append(delivery.lease)
                elif error.code is not Code.ENVELOPE_IN_PROGRESS:
                    log.warning("message refused: %s", error.code)
                    dropped.append(Rejection(lease=delivery.lease, code=str(error.code)))
        if dropped or again:
            with suppress(BrokerRefused):  # the leases have ended meanwhile; they will be refused again
                await self._settle(AckRequest(ack=tuple(again), reject=tuple(dropped)))
        return received

    async def _open(self, delivery: Delivery, senders: Mapping[str, str]) -> Received:
        """One message, with the large payload that it may speak of."""
        opened = self.inbox.open(delivery, senders, self.admission.broker)
        try:
            ref = blobs.referred(opened.plaintext)
            if ref is not None:
                raw = await self._authorised(lambda: self._calls.fetch_blob(ref.sha256))
                opened = replace(opened, plaintext=blobs.open_blob(self.inbox, ref, raw, opened))
        except BrokerRefused as refusal:
            self.inbox.again(opened.header)
            raise EnvelopeRefused(Code.ENVELOPE_PAYLOAD, f"the broker says {refusal.code}") from None
        except BaseException:
            self.inbox.again(opened.header)
            raise
        self._labels |= frozenset(opened.header.labels)
        return Received(
            opened=opened, lease=delivery.lease, attempt=delivery.attempt, blob=ref.sha256 if ref is not None else ""
        )

    async def acknowledge(self, *leases: str) -> None:
        await self._settle(AckRequest(ack=leases))

    async def finish(self, received: Received) -> None:
        """Handled: never again."""
        await self._received(received)
        await self.acknowledge(received.lease)
        if received.blob:
            with suppress(CloisterError):  # it ends by itself
                await self._authorised(lambda: self._calls.drop_blob(received.blob))

    async def _received(self, received: Received) -> None:
        """It will not be opened again; of a durable mailbox not even after a restart."""
        self.inbox.done(received.opened.header)
        if self._durable:
            await self._durable.save()

    async def refuse(self, received: Received, code: str) -> None:
        """No attempt will help: a dead letter, whose reason is the code."""
        self.inbox.again(received.opened.header)  # it was not handled: an operator can send it on its way again
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
        await self.svids.stop()
        if self._published and self._admission is not None:
            with suppress(CloisterError, TimeoutError):  # then it is kept for a while, as after a crash
                async with asyncio.timeout(CLOSE_PATIENCE_S):
                    await self._client.do(self._calls.leave(self.inbox.name))
        await super().close()
