"""Publishing to topics with one envelope each: over REST, where there is no stream, and for who has little to say.

Decides when the topic's key is asked for: each time, so that nothing is sealed for somebody who has just left. Whoever
publishes often does so on a channel of its own, which is a lane of the mail stream (`enclave.lanes`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, final

from broker.wire.envelope import Envelope
from broker.wire.mailbox import SendStatus
from enclave.client import BrokerCalls
from enclave.durable import Do
from enclave.errors import BrokerRefused
from enclave.mailbox import DEFAULT_TTL_S, Outbox
from enclave.session import Admission

STALE: Final = "mailbox.key_stale"


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
