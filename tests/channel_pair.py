"""Two ends of a channel, and what stands between them."""

from collections.abc import Callable
from dataclasses import replace

from attestation.errors import AttestationError
from broker.wire.channel import (
    ChannelBatch,
)
from broker.wire.envelope import Envelope
from broker.wire.errors import WireError
from broker.wire.jose import es256_sign
from broker.wire.mailbox import Delivery
from enclave.channel import OpenedBatch, Outgoing, ReceivingChannels, SealedBatch, SendingChannel
from enclave.errors import EnclaveError
from tests.test_enclave_mailbox import NOW_S, Party, Router, party


def code_of(act: Callable[[], object]) -> str:
    """ "ok", or the code of the refusal."""
    try:
        act()
    except (AttestationError, EnclaveError, WireError) as error:
        return str(error.code)
    return "ok"


class Pair:
    """A sender, a receiver, and a router between them that can do what it likes."""

    def __init__(self, life_s: int = 10**6) -> None:
        self.router = Router()
        self.a, self.b = party(self.router, "a"), party(self.router, "b")
        self.a.admission = replace(self.a.admission, expires_at_s=NOW_S + life_s)
        self.channels = ReceivingChannels(self.b.inbox, self.b.inbox._time)
        self.channel = self.opened(self.a)
        assert self.admit(self.channel) == "ok"

    def opened(self, sender: Party, to: Party | None = None) -> SendingChannel:
        receiver = to or self.b
        return SendingChannel.open(
            sender.outbox,
            receiver.info(),
            mailbox=receiver.inbox.name,
            admission=sender.admission,
            keys=sender.keys,
            time=sender.outbox._time,
        )

    def admit(self, channel: SendingChannel, sender: Party | None = None) -> str:
        delivery = self.router.accept(Envelope.from_bytes(channel.opening), self.b.inbox.name)
        return code_of(lambda: self.channels.admit(delivery, self.senders(sender), self.router.broker))

    def senders(self, sender: Party | None = None) -> dict[str, str]:
        who = sender or self.a
        return {who.verdict.subject: who.token}

    def seal(self, *texts: bytes, **how: object) -> SealedBatch:
        return self.channel.seal([Outgoing(kind="note", plaintext=text, **how) for text in texts])  # type: ignore[arg-type]

    def open(self, raw: bytes, *, mailbox: str = "") -> OpenedBatch:
        at_ms = NOW_S * 1000
        digest = ChannelBatch.from_bytes(raw).digest
        stated = Delivery.message(mailbox or self.b.inbox.name, digest, at_ms)
        acceptance = es256_sign(self.router.identity, stated)
        return self.channels.open(raw, at_ms, acceptance, self.senders(), self.router.broker)

    def code(self, raw: bytes) -> str:
        return code_of(lambda: self.open(raw))

    def texts(self, opened: OpenedBatch) -> list[bytes]:
        return [frame.plaintext for frame in opened.frames]
