"""An agent among others: what it was given and must carry on, who has fallen, topics, and peers that prove themselves.

Decides what the whole process shares beside its own mailbox. Labels of everything that it was given mark everything
that it says; the broker keeps the account that counts, and is asked for it when this one has fallen behind.
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import Final

import httpx2

from attestation.collateral import Collateral
from attestation.errors import CloisterError
from attestation.ports import TrustDomain
from broker.wire.revocations import RevocationsRequest
from enclave.connection import Connection
from enclave.errors import BrokerRefused
from enclave.mailbox import DEFAULT_TTL_S, Judge, Outbox
from enclave.standing import Standing
from enclave.topics.reader import Fetched, Pages, TopicReader
from enclave.topics.writer import TopicWriter
from enclave.trustfile import TrustFile

log: Final = logging.getLogger("cloister.agent")
LOWERED: Final = "message.labels_lowered"


class Company(Connection):
    """See the module."""

    def __init__(
        self,
        *,
        domain: TrustDomain,
        trust: TrustFile,
        broker_url: str,
        judge: Judge,
        suite: str,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        super().__init__(domain=domain, trust=trust, broker_url=broker_url, suite=suite, transport=transport)
        self._judge = judge
        self._outbox = Outbox(self.keys, self.time, judge=judge)
        self._labels: frozenset[str] = frozenset()
        self.standing = Standing(self.time)
        self.standing.on_due = self._renew_standing
        self._renewing_standing: asyncio.Task[None] | None = None

    @property
    def labels(self) -> frozenset[str]:
        """Of everything that this process was given. The broker keeps the account that counts."""
        return self._labels

    def heard(self, labels: frozenset[str]) -> None:
        """This process was given something that bears these labels."""
        self._labels |= labels

    async def _catch_up(self) -> bool:
        """Ask the broker for its account of this agent's labels; whether it knew of any more."""
        told = frozenset((await self._authorised(self._calls.labels)).labels)
        news = not told <= self._labels
        self._labels |= told
        return news

    def topic(self, name: str) -> TopicReader:
        """A topic to read; `join` it first. What comes from it marks what this process says afterwards."""
        return TopicReader(
            name,
            keys=self.keys,
            time=self.time,
            calls=self._calls,
            admission=lambda: self.admission,
            do=self._authorised,
            heard=self.heard,
            judge=self._judge,
            standing=self.standing,
            renew=self.learn_standing,
            pages=self._pages(name),
        )

    def _pages(self, topic: str) -> Pages:
        """What brings the messages of a topic."""
        return Fetched(topic, self._calls, self._authorised)

    async def publish_to(
        self,
        topic: str,
        *,
        kind: str,
        plaintext: bytes,
        labels: frozenset[str] = frozenset(),
        without: frozenset[str] = frozenset(),
        ttl_s: float = DEFAULT_TTL_S,
    ) -> bytes:
        """One message for everybody who reads the topic, labelled as `send` does. Raises as `send` does."""
        for last in (False, True):
            marks = (labels | self._labels) - without
            try:
                return await self._publish(topic, kind=kind, plaintext=plaintext, labels=marks, ttl_s=ttl_s)
            except BrokerRefused as refusal:
                if last or refusal.code != LOWERED or not await self._catch_up():
                    raise
        raise AssertionError("the second attempt returns or raises")

    async def _publish(self, topic: str, *, kind: str, plaintext: bytes, labels: frozenset[str], ttl_s: float) -> bytes:
        writer = TopicWriter(self._outbox, calls=self._calls, admission=lambda: self.admission, do=self._authorised)
        return await writer.publish(topic, kind=kind, plaintext=plaintext, labels=labels, ttl_s=ttl_s)

    async def collateral_for(self, subject: str) -> Collateral:
        """For that peer's platform; whoever uses it verifies it. Raises BrokerRefused, MalformedEvidence."""
        found = await self._authorised(lambda: self._calls.peer_collateral(subject))
        return Collateral.from_json(found.collateral)

    async def learn_standing(self) -> None:
        """Ask who has fallen. What goes wrong leaves the list as old as it is, and mail waiting."""
        nonce, asked_s = os.urandom(32), self.time.now_s()
        try:
            answer = await self._authorised(lambda: self._calls.revocations(RevocationsRequest(nonce=nonce)))
            self.standing.learn(answer, self.admission.broker, nonce=nonce, asked_s=asked_s)
        except CloisterError as error:
            log.warning("no list of fallen agents: %s", error.code)

    def _renew_standing(self) -> None:
        if self._renewing_standing is None or self._renewing_standing.done():
            self._renewing_standing = asyncio.create_task(self.learn_standing())

    async def close(self) -> None:
        if self._renewing_standing is not None:
            self._renewing_standing.cancel()
        await super().close()
