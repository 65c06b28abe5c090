"""A channel spoken by hand, so that a test can change any single thing that it says."""

import os
from dataclasses import dataclass, field, replace
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from broker.wire.channel import (
    OPEN_TYPE,
    ChannelBatch,
    ChannelSend,
    FrameHeader,
    Opening,
    chain_start,
    channel_name,
    nonce,
    shape_of,
)
from broker.wire.envelope import Envelope
from broker.wire.jose import es256_sign
from broker.wire.mailbox import MailboxKey, SendStatus
from tests.broker_world import Agent


@dataclass
class HandMade:
    """One channel of one agent to one mailbox key."""

    agent: Agent
    key: MailboxKey
    channel: bytes = b""  # as its key says, unless told
    secret: bytes = field(default_factory=lambda: os.urandom(32), repr=False)
    next: int = 1
    opening: Envelope = field(init=False)
    chain: bytes = field(init=False)

    def __post_init__(self) -> None:
        self.channel = self.channel or channel_name(self.agent.jkt, self.secret)
        self.opening = self.opened()
        self.chain = chain_start(self.opening)

    def opened(self, **changes: Any) -> Envelope:
        inside = Opening(
            channel=self.channel,
            key=self.secret,
            mailbox_key=self.key.thumbprint,
            incarnation=self.key.incarnation,
        )
        members: dict[str, Any] = {"type": OPEN_TYPE, "life_s": 3600}
        return self.agent.envelope(self.key, inside.to_bytes(), **(members | changes))

    def batch(self, *texts: bytes, kind: str = "note", labels: tuple[str, ...] = (), **changes: Any) -> ChannelBatch:
        """The next batch; `changes` are of its headers, or `prev_chain`."""
        now_ms = int(self.agent.world.broker.clock().timestamp() * 1000)
        sent_at_ms = changes.get("sent_at_ms", now_ms)
        expires_at_ms = changes.get("expires_at_ms", sent_at_ms + 600_000)
        first = self.next
        headers = [
            FrameHeader(self.channel, first + i, sent_at_ms, expires_at_ms, shape_of(kind, labels)).to_bytes()
            for i in range(len(texts))
        ]
        bodies = [AESGCM(self.secret).encrypt(nonce(first + i), text, headers[i]) for i, text in enumerate(texts)]
        before = changes.get("prev_chain", self.chain)
        batch = ChannelBatch(
            channel=self.channel, first_seq=first, prev_chain=before, headers=tuple(headers), bodies=tuple(bodies)
        )
        self.chain, self.next = batch.chain, first + len(texts)
        return replace(batch, signature=es256_sign(self.agent.key, batch.message))

    async def send(
        self,
        batch: ChannelBatch,
        *,
        name: str = "acme/mail/b",
        opening: Envelope | None = None,
        by: Agent | None = None,
    ) -> SendStatus:
        agent = by or self.agent
        sent = ChannelSend(batch=batch.to_bytes(), opening=b"" if opening is None else opening.to_bytes())
        status: SendStatus = await agent.acting(lambda s: agent.world.broker.channels.send(s, name, sent))
        return status

    async def begin(self, *texts: bytes, **how: Any) -> SendStatus:
        """The first batch with the opening."""
        return await self.send(self.batch(*texts, **how), opening=self.opening)

    def read(self, raw: bytes) -> list[bytes]:
        batch = ChannelBatch.from_bytes(raw)
        cipher = AESGCM(self.secret)
        return [
            cipher.decrypt(nonce(batch.first_seq + i), body, header)
            for i, (header, body) in enumerate(zip(batch.headers, batch.bodies, strict=True))
        ]
