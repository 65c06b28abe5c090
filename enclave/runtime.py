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
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final, final
from weakref import WeakValueDictionary

import grpc
import httpx2

from attestation.errors import AttestationError, CloisterError, TokenRefused
from attestation.evidence import MLKEM768_X25519
from attestation.ports import TrustDomain
from attestation.recent import Recent
from attestation.verdict import Verdict
from broker.wire import stream_pb2 as pb
from broker.wire.blob import BLOB_TYPE
from broker.wire.channel import ChannelSend
from broker.wire.envelope import Envelope, Header
from broker.wire.errors import WireError
from broker.wire.mailbox import MailboxInfo, SendStatus
from broker.wire.release import ReleaseRequest
from enclave import blobs
from enclave.channel import ReceivingChannels
from enclave.company import LOWERED, Company
from enclave.detour import WAIT_S as DETOUR_WAIT_S
from enclave.detour import Detour
from enclave.durable import Durable, DurableReader
from enclave.errors import BrokerRefused, Code, EnvelopeRefused, TransportFailed
from enclave.fetching import LEASE_S as LEASE_S
from enclave.fetching import Fetching
from enclave.lanes import Announce
from enclave.ledger import Incoming, Ledger
from enclave.mailbox import DEFAULT_TTL_S, Inbox, Judge, everyone
from enclave.received import Received
from enclave.release import Secret, open_release
from enclave.session import Admission
from enclave.stream import Stream
from enclave.svid import SvidKeeper
from enclave.topics.following import Follows
from enclave.topics.reader import Pages, Turning
from enclave.trustfile import TrustFile

log: Final = logging.getLogger("cloister.agent")

TAKEN_PATIENCE_S: Final = 45.0  # a little longer than a broker keeps a mailbox for an owner who fell silent
CLOSE_PATIENCE_S: Final = 2.0
KEY_CACHE_S: Final = 30.0
MAX_MET: Final = 1024  # mailboxes; a sender names where he wants his answer, so there is no end of them
WAIT_S: Final = 10
STREAM_PATIENCE_S: Final = 5.0
STANDING_S: Final = 30.0  # half of the age at which a list is too old
BLOB_SLACK_S: Final = 60  # that a payload outlives the message that speaks of it
# The owner has restarted or rolled its key; its token has ended since it was fetched; its key has ended.
KEY_CODES: Final = frozenset({"mailbox.key_stale", "token.expired", "mailbox.key_signature_invalid"})


@final
class Runtime(Company):
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
        super().__init__(
            domain=domain, trust=trust, broker_url=broker_url, judge=judge, suite=suite, transport=transport
        )
        self.inbox = Inbox(
            mailbox,
            self.keys,
            self.time,
            suite=suite,
            judge=judge,
            durable=durable is not None,
            standing=self.standing,
        )
        self._channels = ReceivingChannels(self.inbox, self.time, judge=judge)
        self._durable = self._reader(durable) if durable is not None else None
        self.svids = SvidKeeper(self)
        self._sending: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # as long as somebody sends
        self._found: Recent[tuple[float, MailboxInfo]] = Recent(MAX_MET)
        self._stream: Stream | None = None
        self._follows = Follows()
        self._ledger = Ledger(self.inbox, self._channels, lease_s=LEASE_S, keeps=durable is not None)
        self._fetching = Fetching(
            self.inbox,
            self._ledger,
            calls=self._calls,
            do=self._authorised,
            broker=lambda: self.admission.broker,
            prepare=self._learn_in_time,
            keep=self._durable.save if self._durable else None,
        )
        self._carried = transport is not None
        self._keeping: asyncio.Task[None] | None = None
        self._met: Recent[bool] = Recent(MAX_MET)  # mailboxes that were written to before
        self._published = False

    def _reader(self, durable: Durable) -> DurableReader:
        return DurableReader(
            self.inbox,
            self._channels,
            durable,
            keys=self.keys,
            time=self.time,
            calls=self._calls,
            admission=lambda: self.admission,
            do=self._authorised,
        )

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

    async def connect(self) -> None:
        """Open the mail stream, where the broker has one; until it can be reached mail goes over REST, as it does
        always when somebody else carries the requests."""
        if self._carried:
            return
        try:
            target = await self._client.do(self._calls.grpc_target())
        except CloisterError as error:
            log.info("no mail stream: %s", error.code)
            return
        if not target:
            return
        stream = Stream(
            target,
            base_url=self._calls.base_url,
            keys=self.keys,
            time=self.time,
            admit=self._admit,
            lookup=self._mailbox,
            lookup_topic=lambda name: self._authorised(lambda: self._calls.topic(name)),
            inbox=self.inbox,
            outbox=self._outbox,
            ledger=self._ledger,
            detour=Detour(self._carry),
            find=lambda: self._client.do(self._calls.grpc_target()),
            keep=self._durable.save if self._durable else None,
            carried=self._follows,
            credentials=grpc.ssl_channel_credentials() if self._calls.base_url.startswith("https:") else None,
        )
        await self.learn_standing()
        await stream.start()
        try:
            async with asyncio.timeout(STREAM_PATIENCE_S):
                await stream.wait_connected()
        except TimeoutError:
            stream.detour.begin()
        self._stream = stream
        self._keeping = asyncio.create_task(self._keep_standing(), name="cloister-standing")

    async def _learn_in_time(self) -> None:
        if self.standing.due:
            await self.learn_standing()

    async def _keep_standing(self) -> None:
        """What comes on a stream is opened at once, so the list of fallen agents is at hand before."""
        while True:
            await asyncio.sleep(STANDING_S * random.uniform(0.8, 1.0))  # noqa: S311  jitter, not a secret
            await self.learn_standing()

    async def _admit(self, instead_of: Admission | None) -> Admission:
        return await self._admitted() if instead_of is None else await self.attest(instead_of=instead_of)

    async def attest(self, *, instead_of: Admission | None = None) -> Admission:
        """As for any connection; the stream goes on under the newer admission."""
        before = self._admission
        admission = await super().attest(instead_of=instead_of)
        if self._stream is not None and admission is not before:
            self._stream.renewed(admission)
        return admission

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
        announce: Announce | None = None,
    ) -> bytes:
        """Seal and send one message; returns its id once the broker holds it durably. `announce` gets the id and the
        mailbox's owner before anything is sent, so that an answer cannot come too early.

        The message carries `labels` and those of all that this process was given, but for `without`, which takes the
        policy's permit.

        Raises BrokerRefused, EnvelopeRefused, WireError, TokenRefused, TransportFailed.
        """
        for last in (False, True):
            marks = (labels | self._labels) - without
            how = {"kind": kind, "labels": marks, "in_reply_to": in_reply_to, "reply_to": reply_to, "ttl_s": ttl_s}
            try:
                # One at a time per mailbox: the order of sequence numbers is the order of sending.
                async with self._sending.setdefault(mailbox, asyncio.Lock()):
                    sent = await self._post(mailbox, plaintext, how, announce)
                return sent if isinstance(sent, bytes) else await sent
            except (BrokerRefused, TokenRefused, WireError) as error:
                self._found.drop(lambda name: name == mailbox)
                behind = error.code == LOWERED and await self._catch_up()
                if last or not (behind or error.code in KEY_CODES):
                    raise
                # What was at hand about the mailbox no longer holds: ask, and seal to its present key.
        raise AssertionError("the second attempt returns or raises")

    async def _post(
        self, mailbox: str, plaintext: bytes, how: dict[str, Any], announce: Announce | None
    ) -> bytes | asyncio.Future[bytes]:
        """The message's id, or who will have it: whoever writes often to a mailbox does so on a channel."""
        admission = await self._admitted()
        found = await self._mailbox(mailbox)
        large, often = blobs.is_large(plaintext), self._met.get(mailbox) is not None
        self._met.put(mailbox, True)
        takes = found.streams or found.key.kind == "durable"  # whoever reads it next, by whichever way, takes channels
        if self._stream is not None and often and not large and takes:
            self._outbox.verify_key(found, mailbox, admission)
            return self._stream.post(mailbox, plaintext=plaintext, announce=announce, **how)
        if large:
            plaintext = await self._beside(found, mailbox, admission, plaintext, how["labels"], how["ttl_s"])
        envelope = self._outbox.seal(found, mailbox=mailbox, admission=admission, plaintext=plaintext, **how)
        if announce is not None:
            announce(Header.from_bytes(envelope.header).msg_id, found.key.owner)
        return await self._send(mailbox, envelope)

    def _pages(self, topic: str) -> Pages:
        fetched, stream = super()._pages(topic), self._stream
        if stream is None or not self._follows.has_room(topic):
            return fetched
        return Turning(self._follows.topic(topic), fetched, lambda: stream.detour.active)

    async def _publish(self, topic: str, *, kind: str, plaintext: bytes, labels: frozenset[str], ttl_s: float) -> bytes:
        """Whoever publishes often does so on a channel of its own, as with mail."""
        name = f"~topic/{topic}"
        async with self._sending.setdefault(name, asyncio.Lock()):
            often = self._met.get(name) is not None
            self._met.put(name, True)
            if self._stream is None or not often:
                return await super()._publish(topic, kind=kind, plaintext=plaintext, labels=labels, ttl_s=ttl_s)
            sent = self._stream.post(topic, kind=kind, plaintext=plaintext, labels=labels, ttl_s=ttl_s, topic=True)
        return await sent

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
        until, found = self._found.get(name) or (0.0, None)
        if found is None or now > until:
            found = await self._authorised(lambda: self._calls.mailbox(name))
            self._found.put(name, (now + KEY_CACHE_S, found))
        return found

    async def receive(self, limit: int) -> list[Received]:
        """Wait for mail and open what can be proved. What cannot becomes a dead letter, and is logged with its code."""
        received = []
        for incoming in await self._come(limit):
            try:
                received.append(await self._whole(incoming))
            except (EnvelopeRefused, AttestationError, WireError) as error:
                log.warning("message refused: %s", error.code)
                way = self._way
                way.reject(incoming, str(error.code))
                with suppress(BrokerRefused):  # the lease has ended meanwhile; it will be refused again
                    await way.settle()
        return received

    async def _come(self, limit: int) -> list[Incoming]:
        """What came by either way, or comes by the one that there is now. Raises what asking for it does."""
        stream = self._stream
        if stream is None:
            return await self._fetching.receive(limit, WAIT_S, repeat=False)
        if left := self._fetching.ready(limit) or stream.ready(limit):
            return left
        if not stream.detour.active:
            return await stream.receive(limit, WAIT_S)
        async with stream.detour.request() as anew:
            if self._way is stream:  # there is one again
                return []
            with suppress(TransportFailed):  # there is no way at all
                return await self._fetching.receive(limit, DETOUR_WAIT_S, anew=anew, repeat=False)
        return await stream.receive(limit, DETOUR_WAIT_S)

    @property
    def _way(self) -> Stream | Fetching:
        return self._fetching if self._stream is None or self._stream.detour.active else self._stream

    async def _carry(self, send: pb.StreamSend) -> pb.StreamResult:
        """A batch of the stream's, by a request. Raises what asking does when nobody knows what became of it."""
        sent, result = ChannelSend(batch=send.batch, opening=send.opening), pb.StreamResult(id=send.id)
        try:
            answer = await self._authorised(lambda: self._calls.send_on_channel(send.mailbox, sent, topic=send.topic))
            if len(answer.results) != 1:
                raise TransportFailed(Code.CLIENT_ANSWER, f"{len(answer.results)} results for one batch")
            result.status, result.code = answer.results[0].status, answer.results[0].code
        except BrokerRefused as refusal:
            result.status, result.code = SendStatus.REFUSED, refusal.code
        return result

    async def _whole(self, incoming: Incoming) -> Received:
        """With the large payload that the message may speak of."""
        received = Received.streamed(incoming)
        try:
            ref = blobs.referred(received.plaintext)
            if ref is not None:
                raw = await self._authorised(lambda: self._calls.fetch_blob(ref.sha256))
                payload = blobs.open_blob(self.inbox, ref, raw, sender=received.peer, labels=received.labels)
                received = replace(received, plaintext=payload, blob=ref.sha256)
        except BrokerRefused as refusal:
            raise EnvelopeRefused(Code.ENVELOPE_PAYLOAD, f"the broker says {refusal.code}") from None
        except (EnvelopeRefused, AttestationError, WireError):
            raise
        except BaseException:
            self._way.again(incoming)
            raise
        self._labels |= received.labels
        return received

    async def finish(self, received: Received) -> None:
        """Handled: never again; of a durable mailbox not even after a restart."""
        way = self._way
        way.done(received.settled_as)
        await way.settle()
        if received.blob:
            with suppress(CloisterError):  # it ends by itself
                await self._authorised(lambda: self._calls.drop_blob(received.blob))

    async def refuse(self, received: Received, code: str) -> None:
        """No attempt will help: a dead letter, whose reason is the code. An operator can send it on its way again."""
        way = self._way
        way.reject(received.settled_as, code)
        await way.settle()

    async def give_back(self, received: Received, delay_s: int, code: str = "") -> None:
        """To be delivered again, after `delay_s`; `code` says why."""
        way = self._way
        way.again(received.settled_as, delay_s, code)
        await way.settle()

    async def keep(self, _: list[Received]) -> None:
        """Extend the leases of what is being handled."""
        await self._way.extend()

    async def owner_of(self, mailbox: str) -> Verdict:
        """Who reads there: as the broker says, and as the mailbox's key confirms. Raises as `send` does."""
        return self._outbox.verify_key(await self._mailbox(mailbox), mailbox, await self._admitted())

    async def close(self) -> None:
        """Give the mailbox back, so that a successor need not wait for it, and end."""
        await self.svids.stop()
        if self._keeping is not None:
            self._keeping.cancel()
        if self._stream is not None:
            await self._stream.close()
        if self._published and self._admission is not None:
            with suppress(CloisterError, TimeoutError):  # then it is kept for a while, as after a crash
                async with asyncio.timeout(CLOSE_PATIENCE_S):
                    await self._client.do(self._calls.leave(self.inbox.name))
        await super().close()
