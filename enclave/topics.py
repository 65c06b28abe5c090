"""Topics: published to with one envelope, read by everybody who was given the key.

Decides what a reader accepts: what the named sender's attested key signed, for this topic, under a key that the broker
released to this reader, in time, once, and not from before it began to read, so that nothing old can be shown again
after a restart. The broker makes the keys of a topic and could read it; it can't speak in anybody's name. A key that is
not known is asked for: the topic was rolled meanwhile.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, final

from attestation.errors import CloisterError
from broker.wire.envelope import Envelope, Header
from broker.wire.keys import KeysRequest, Place
from broker.wire.mailbox import Delivery, SendStatus
from broker.wire.topic import MAX_PAGE, TopicPage, TopicRead
from enclave.client import BrokerCalls
from enclave.clock import BrokerTime
from enclave.durable import Do
from enclave.errors import BrokerRefused, Code, EnvelopeRefused
from enclave.kept import open_keys
from enclave.keys import AgentKeys
from enclave.mailbox import DEFAULT_TTL_S, Inbox, Judge, Opened, Outbox, everyone
from enclave.session import Admission
from enclave.standing import Standing

log: Final = logging.getLogger("cloister.agent")
WAIT_S: Final = 10
BEHIND_MS: Final = 2_000  # a sender's clock may be behind this one by so much
STALE: Final = "mailbox.key_stale"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TopicReceived:
    """An opened message of a topic and its place in the row. Tell `TopicReader.done` when it was handled."""

    opened: Opened = field(repr=False)
    place: int

    @property
    def labels(self) -> frozenset[str]:
        return frozenset(self.opened.header.labels)


@final
class TopicReader:
    """One topic as this process reads it: `join`, then `receive` and `done` in turn; `leave` in the end."""

    def __init__(
        self,
        topic: str,
        *,
        keys: AgentKeys,
        time: BrokerTime,
        calls: BrokerCalls,
        admission: Callable[[], Admission],
        do: Do,
        heard: Callable[[frozenset[str]], None],
        judge: Judge = everyone,
        standing: Standing,
        renew: Callable[[], Awaitable[None]],
    ) -> None:
        self.topic = topic
        self._keys = keys
        self._time = time
        self._calls = calls
        self._admission = admission
        self._do = do
        self._heard = heard
        self._standing = standing
        self._renew = renew
        self._inbox = Inbox(topic, keys, time, judge=judge, durable=True, standing=standing)
        self._done = 0  # told to the broker with the next question
        self._open: dict[int, Header] = {}
        self.missed = 0  # messages that went before this reader came to them
        self._told = 0  # of them, as the broker counts since it was joined last

    async def join(self) -> None:
        """Be given the keys, from now on; again when the topic was rolled. Raises BrokerRefused, and as `open_keys`."""
        nonce = os.urandom(32)
        request = KeysRequest(nonce=nonce)
        answer = await self._do(lambda: self._calls.keys(Place.TOPIC, self.topic, request))
        kept = open_keys(
            answer,
            admission=self._admission(),
            keys=self._keys,
            of=Place.TOPIC,
            name=self.topic,
            nonce=nonce,
            now_s=self._time.now_s(),
        )
        self._inbox.take(kept)
        if not self._inbox.refuse_before_ms:
            self._inbox.refuse_before_ms = self._time.now_ms() - BEHIND_MS

    async def receive(self, limit: int = 16, *, wait_s: int = WAIT_S) -> list[TopicReceived]:
        """What has come since, opened. What cannot be proved is passed over, and logged with its code."""
        request = TopicRead(done=self._done, max_messages=min(limit, MAX_PAGE), wait_s=wait_s)
        page = await self._do(lambda: self._calls.read_topic(self.topic, request))
        self._count(page.missed)
        if any(not self._known(delivery) for delivery in page.deliveries):
            await self.join()
        if page.deliveries and self._standing.due:
            await self._renew()
        received: list[TopicReceived] = []
        for delivery, place in zip(page.deliveries, page.places, strict=False):
            try:
                opened = self._opened(delivery, page)
            except EnvelopeRefused:
                break  # it waits, and so does what is behind it
            if opened is not None:
                received.append(TopicReceived(opened=opened, place=place))
                self._heard(frozenset(opened.header.labels))
                self._open[place] = opened.header
            elif not self._open:
                self._done = max(self._done, place)
        return received

    def _count(self, missed: int) -> None:
        fresh = missed - self._told if missed >= self._told else missed
        self._told = missed
        if fresh:
            self.missed += fresh
            log.warning("reading %s: %s, %d messages", self.topic, Code.TOPIC_MISSED, fresh)

    def _known(self, delivery: Delivery) -> bool:
        try:
            return self._inbox.knows(Header.from_bytes(delivery.envelope.header).mailbox_key)
        except CloisterError:
            return True  # whatever it is, no key will help

    def _opened(self, delivery: Delivery, page: TopicPage) -> Opened | None:
        """None for what will never open. Raises EnvelopeRefused standing.unknown."""
        try:
            return self._inbox.open(delivery, page.senders, self._admission().broker)
        except CloisterError as error:
            if isinstance(error, EnvelopeRefused) and error.code is Code.STANDING_UNKNOWN:
                raise
            if error.code is not Code.ENVELOPE_IN_PROGRESS:
                log.warning("message of %s refused: %s", self.topic, error.code)
            return None

    def done(self, received: TopicReceived) -> None:
        """It was handled. The broker hears of it with the next `receive`, up to the first that is still open."""
        self._inbox.done(received.opened.header)
        self._open.pop(received.place, None)
        self._done = max(self._done, received.place if not self._open else min(self._open) - 1)

    async def leave(self) -> None:
        """Read no more: the topic's key is rolled without this agent."""
        await self._do(lambda: self._calls.leave_topic(self.topic))


@final
class TopicWriter:
    """Publishes to topics under one identity."""

    def __init__(self, outbox: Outbox, *, calls: BrokerCalls, admission: Callable[[], Admission], do: Do) -> None:
        self._outbox = outbox
        self._calls = calls
        self._admission = admission
        self._do = do

    async def publish(
        self,
        topic: str,
        *,
        kind: str,
        plaintext: bytes,
        labels: frozenset[str] = frozenset(),
        ttl_s: float = DEFAULT_TTL_S,
    ) -> bytes:
        """Seal one message for everybody who reads there; its id once the broker holds it durably.

        The key is asked for each time, so that nothing is sealed for somebody who has just left. Raises BrokerRefused,
        EnvelopeRefused, WireError.
        """
        for last in (False, True):
            found = await self._do(lambda: self._calls.topic(topic))
            envelope = self._outbox.seal_for_topic(
                found.key,
                topic=topic,
                admission=self._admission(),
                kind=kind,
                plaintext=plaintext,
                labels=labels,
                ttl_s=ttl_s,
            )
            try:
                return await self._post(topic, envelope)
            except BrokerRefused as refusal:
                if last or refusal.code != STALE:
                    raise
        raise AssertionError("the second attempt returns or raises")

    async def _post(self, topic: str, envelope: Envelope) -> bytes:
        response = await self._do(lambda: self._calls.publish_to(topic, [envelope]))
        (result,) = response.results
        if result.status is SendStatus.REFUSED:
            raise BrokerRefused(status=403, code=result.code, detail=f"{topic} did not take the message")
        return result.msg_id
