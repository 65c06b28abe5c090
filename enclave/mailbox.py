"""Sealed mail: what a sender proves before it seals, and what a receiver proves before it opens.

Decides whether an envelope is accepted, from nothing but its own keys and the broker's proved ones: neither side takes
the broker's word for who the other is. A sender seals only to a mailbox key that the owner's attested key signed
(`Outbox`); a receiver opens only what the named sender's attested key signed, for this mailbox, for one of its living
keys, in time, and once (`Inbox`). Of an ephemeral mailbox private halves and replay windows die with the process, and
every envelope names the incarnation that it was sealed for, so nothing comes back after a restart. A durable mailbox
has its keys from the broker (`adopt`) and its windows from a checkpoint (`restore`).

Plaintexts are padded to powers of two from 256 bytes: the router learns a bucket, not a length.
"""

from __future__ import annotations

import hmac
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Literal, final

from attestation.errors import SealingFailed
from attestation.evidence import MLKEM768_X25519
from attestation.sealing import SealingKey, seal_to
from attestation.verdict import Verdict, open_token
from broker.wire.blob import BLOB_TYPE
from broker.wire.bodies import peer_audience
from broker.wire.envelope import Envelope, Header, info
from broker.wire.errors import WireCode, WireError
from broker.wire.jose import p256_from_spki
from broker.wire.keys import NO_INCARNATION, TopicKey
from broker.wire.mailbox import Delivery, MailboxInfo, MailboxKey
from broker.wire.names import tenant_of
from broker.wire.topic import TopicInfo
from enclave.clock import BrokerTime, uuid7
from enclave.errors import Code, EnvelopeRefused
from enclave.kept import KeptKeys
from enclave.keys import AgentKeys
from enclave.replay import Crowd, Numbers, Window
from enclave.retired import NOBODY, Retired
from enclave.session import Admission, Broker
from enclave.standing import Standing

EPOCH_S: Final = 2 * 3600  # a key's life; a new one is published at half of it
MAX_PLAINTEXT: Final = 256 * 1024 - 4
MAX_LARGE: Final = (16 << 20) - 4  # of what travels beside a message
MIN_BUCKET: Final = 256
DEFAULT_TTL_S: Final = 600
SKEW_MS: Final = 5_000  # between two agents who both take time from the broker
MAX_SENDERS: Final = 4096
INCARNATION_LEN: Final = 32

Way = Literal["message", "opening", "known opening"]
"""What an envelope is: a message, or a channel's opening; one that a checkpoint knows was counted before."""
Found = MailboxInfo | TopicInfo
"""What the broker says of the place that something is to be sealed for."""
Judge = Callable[[Verdict], bool]
"""Says whether a peer, as its verdict shows it, is one to talk to."""


def everyone(_: Verdict) -> bool:
    """No further demands: whoever the broker admits to this tenant."""
    return True


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """An envelope that passed every check. It counts as received once `Inbox.done` is called."""

    header: Header
    plaintext: bytes = field(repr=False)
    sender: Verdict


@final
class Outbox:
    """Seals envelopes under one identity. Sequence numbers are per mailbox and never used twice."""

    def __init__(self, keys: AgentKeys, time: BrokerTime, *, judge: Judge = everyone) -> None:
        self._keys = keys
        self._time = time
        self._judge = judge
        self._numbers = Numbers()

    def verify_key(self, found: MailboxInfo, mailbox: str, admission: Admission) -> Verdict:
        """The owner's verdict, if the key is the owner's own and still good.

        Raises TokenRefused token.*, WireError mailbox.key_signature_invalid, EnvelopeRefused epoch.owner_mismatch,
        envelope.tenant_mismatch, peer.not_accepted.
        """
        owner = peer_verdict(found.owner_token, admission.broker, self._time)
        if found.key.owner != owner.subject or owner.tenant != tenant_of(mailbox):
            raise EnvelopeRefused(Code.EPOCH_OWNER, f"key of {found.key.owner!a}, token of {owner.subject!a}")
        if owner.tenant != admission.verdict.tenant:
            raise EnvelopeRefused(Code.ENVELOPE_TENANT, f"{mailbox} is of tenant {owner.tenant}")
        identity = p256_from_spki(owner.identity_key)
        found.key.verify(identity, mailbox=mailbox, owner=owner.subject, at_s=int(self._time.now_s()))
        if not self._judge(owner):
            raise EnvelopeRefused(Code.PEER_REFUSED, f"the owner of {mailbox} is {owner.subject}")
        return owner

    def seal(
        self,
        found: Found,
        *,
        mailbox: str,
        admission: Admission,
        kind: str,
        plaintext: bytes,
        labels: frozenset[str] = frozenset(),
        in_reply_to: bytes = b"",
        reply_to: str = "",
        ttl_s: float = DEFAULT_TTL_S,
    ) -> Envelope:
        """One signed, sealed envelope, after `verify_key`. Raises as that does, and envelope.too_large.

        For a topic, as `seal_for_topic`, which nobody answers.
        """
        if isinstance(found, TopicInfo):
            how: dict[str, Any] = {"kind": kind, "plaintext": plaintext, "labels": labels, "ttl_s": ttl_s}
            return self.seal_for_topic(found.key, topic=mailbox, admission=admission, **how)
        self.verify_key(found, mailbox, admission)
        return self._sealed(
            found.key,
            mailbox,
            found.key.incarnation,
            _end_ms(found.key, self._time.now_ms(), ttl_s),
            admission=admission,
            kind=kind,
            plaintext=plaintext,
            labels=labels,
            in_reply_to=in_reply_to,
            reply_to=reply_to,
        )

    def seal_for_topic(
        self,
        key: TopicKey,
        *,
        topic: str,
        admission: Admission,
        kind: str,
        plaintext: bytes,
        labels: frozenset[str] = frozenset(),
        ttl_s: float = DEFAULT_TTL_S,
    ) -> Envelope:
        """One signed envelope for everybody who reads the topic, under a key that the broker has signed.

        Raises WireError mailbox.key_signature_invalid, EnvelopeRefused envelope.tenant_mismatch, envelope.too_large.
        """
        if tenant_of(topic) != admission.verdict.tenant:
            raise EnvelopeRefused(Code.ENVELOPE_TENANT, f"{topic} is of another tenant")
        key.verify(admission.broker.identity, topic=topic, at_s=int(self._time.now_s()))
        end_ms = self._time.now_ms() + int(ttl_s * 1000)
        return self._sealed(
            key, topic, NO_INCARNATION, end_ms, admission=admission, kind=kind, plaintext=plaintext, labels=labels
        )

    def _sealed(
        self,
        key: MailboxKey | TopicKey,
        mailbox: str,
        incarnation: bytes,
        expires_at_ms: int,
        *,
        admission: Admission,
        kind: str,
        plaintext: bytes,
        labels: frozenset[str],
        in_reply_to: bytes = b"",
        reply_to: str = "",
    ) -> Envelope:
        padded = pad(plaintext, MAX_LARGE if kind == BLOB_TYPE else MAX_PLAINTEXT)
        now_ms = self._time.now_ms()
        seq = self._numbers.next(mailbox)
        header = Header(
            suite=key.suite,
            tenant=admission.verdict.tenant,
            msg_id=uuid7(now_ms),
            sender=admission.subject,
            sender_jkt=self._keys.jkt,
            mailbox=mailbox,
            mailbox_key=key.thumbprint,
            incarnation=incarnation,
            seq=seq,
            sent_at_ms=now_ms,
            expires_at_ms=expires_at_ms,
            type=kind,
            labels=tuple(sorted(labels)),
            in_reply_to=in_reply_to,
            reply_to=reply_to,
        ).to_bytes()
        body = seal_to(key.suite, key.key, padded, info=info(header))
        return self._keys.sign_envelope(header=header, body=body.blob)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Epoch:
    """A key and, per sender's thumbprint, what came under it. Nothing passes from one epoch's window to another's."""

    key: SealingKey = field(repr=False)
    until_s: int
    windows: dict[str, Window] = field(default_factory=dict)

    def window(self, jkt: str) -> Window:
        window = self.windows.get(jkt)
        if window is None:
            window = self.windows[jkt] = Window()
        return window


@final
class Inbox:
    """One mailbox of this process: its keys, its incarnation if it is ephemeral, and what was received already."""

    def __init__(
        self,
        name: str,
        keys: AgentKeys,
        time: BrokerTime,
        *,
        suite: str = MLKEM768_X25519,
        judge: Judge = everyone,
        durable: bool = False,
        standing: Standing | None = None,
    ) -> None:
        self.name = name
        self.refuse_before_ms = 0  # what was sent earlier is refused
        self._keys = keys
        self._time = time
        self._suite = suite
        self._judge = judge
        self.standing = standing  # without one a sender's token is believed for its whole life
        self.durable: Final = durable
        self._incarnation = NO_INCARNATION if durable else os.urandom(INCARNATION_LEN)
        self._epochs: dict[bytes, _Epoch] = {}
        self._retired = Retired(time)
        self._crowd = Crowd()
        self._newest: MailboxKey | None = None

    def key_due(self) -> bool:
        """Whether a new epoch should be published: none yet, or half of the newest one's life is over."""
        newest = self._newest
        if newest is None:
            return True
        life_s = EPOCH_S if newest.kind == "ephemeral" else newest.not_after_s - newest.not_before_s
        return self._time.now_s() > newest.not_after_s - life_s / 2

    def new_epoch(self, subject: str) -> MailboxKey:
        """Make the next key and sign it for publication. Keys past their end are dropped, with what they could open."""
        now_s = int(self._time.now_s())
        self._epochs = {name: old for name, old in self._epochs.items() if old.until_s >= now_s}
        key = SealingKey.generate(self._suite)
        statement = self._keys.sign_mailbox_key(
            mailbox=self.name,
            owner=subject,
            epoch=self._newest.epoch + 1 if self._newest else 1,
            suite=self._suite,
            key=key.public,
            incarnation=self._incarnation,
            not_before_s=now_s - SKEW_MS // 1000,
            not_after_s=now_s + EPOCH_S,
        )
        self._epochs[statement.thumbprint] = _Epoch(key=key, until_s=statement.not_after_s)
        self._newest = statement
        return statement

    def adopt(self, kept: KeptKeys, subject: str) -> MailboxKey:
        """Take the keys that the broker keeps for this durable mailbox, and sign the newest for publication."""
        self.take(kept)
        newest = kept.keys[-1]
        statement = self._keys.sign_mailbox_key(
            mailbox=self.name,
            owner=subject,
            epoch=newest.epoch,
            suite=newest.key.suite,
            key=newest.key.public,
            incarnation=self._incarnation,
            not_before_s=newest.not_before_s - SKEW_MS // 1000,  # a sender may be behind the broker that made it
            not_after_s=newest.not_after_s - SKEW_MS // 1000,
            kind="durable",
        )
        self._newest = statement
        return statement

    def take(self, kept: KeptKeys) -> None:
        """Open with these keys from now on. What was received under those that were known already stays received."""
        known, self._epochs = self._epochs, {}
        for one in kept.keys:
            old = known.pop(one.thumbprint, None)
            windows = self._retired.take(one.thumbprint) if old is None else old.windows
            if windows is not None:
                self._epochs[one.thumbprint] = _Epoch(key=one.key, until_s=one.keep_until_s, windows=windows)
        for thumbprint, gone in known.items():
            if gone.until_s > self._time.now_s():  # else everything under it has expired
                self._retired.put(thumbprint, gone.windows)

    def knows(self, thumbprint: bytes) -> bool:
        """Whether that key is at hand."""
        return thumbprint in self._epochs

    def windows(self) -> dict[tuple[bytes, str], Window]:
        """What was received under each key from each sender, for a checkpoint."""
        under = [*self._retired.items(), *((key, epoch.windows) for key, epoch in self._epochs.items())]
        return {(key, jkt): window for key, windows in under for jkt, window in windows.items()}

    def restore(self, windows: Mapping[tuple[bytes, str], Window]) -> None:
        """What was received before this start, also under keys that are not at hand now."""
        absent: dict[bytes, dict[str, Window]] = {}
        for (key, jkt), window in windows.items():
            if jkt == NOBODY:
                self._epochs.pop(key, None)
            epoch = self._epochs.get(key)
            (absent.setdefault(key, {}) if epoch is None else epoch.windows)[jkt] = window
        for key, found in absent.items():
            self._retired.put(key, found)

    def open(self, delivery: Delivery, senders: Mapping[str, str], broker: Broker, *, way: Way = "message") -> Opened:
        """Prove and open one delivery; `senders` has a peer token for each subject that sent something.

        The order is cheap first, and nothing of the header is acted on before the sender's signature over it.

        Raises WireError envelope.malformed, envelope.signature_invalid; TokenRefused token.*; EnvelopeRefused
        envelope.*, peer.not_accepted. A refused envelope changes nothing here.
        """
        envelope = delivery.envelope
        header = Header.from_bytes(envelope.header)
        if header.mailbox != self.name:
            raise EnvelopeRefused(Code.ENVELOPE_WRONG_MAILBOX, f"for {header.mailbox}, this is {self.name}")
        sender = self._sender(delivery, senders.get(header.sender), broker)
        if sender.subject != header.sender or sender.jkt != header.sender_jkt:
            raise EnvelopeRefused(Code.ENVELOPE_SENDER, f"header names {header.sender!a}, token {sender.subject!a}")
        if not sender.tenant == header.tenant == tenant_of(self.name):
            raise EnvelopeRefused(Code.ENVELOPE_TENANT, f"sender of {sender.tenant}, header of {header.tenant}")
        envelope.verify(p256_from_spki(sender.identity_key))
        if not delivery.accepted(broker.identity, self.name):
            raise EnvelopeRefused(Code.ENVELOPE_ACCEPTANCE, "not signed by the broker for this mailbox and time")
        self._timely(header, way)
        epoch = self._epoch(header)
        if not self._judge(sender):
            raise EnvelopeRefused(Code.PEER_REFUSED, f"sender {sender.subject}")
        self._room(epoch, sender)
        window = epoch.window(header.sender_jkt)
        if way != "known opening":
            window.check(header.seq, header.msg_id)
        plaintext = _unseal(epoch, envelope)
        if way != "known opening":
            window.begin(header.seq, header.msg_id)
        return Opened(header=header, plaintext=plaintext, sender=sender)

    def _sender(self, delivery: Delivery, token: str | None, broker: Broker) -> Verdict:
        """The sender as it is now; one who fell after its mail was taken in, as it was then.

        When that was, the broker has signed, which is checked before anything rests on it.
        """
        if token is not None:
            sender = peer_verdict(token, broker, self._time)
            if self.standing is not None:
                self.standing.require(sender.subject)
            return sender
        if not delivery.sender_token:
            raise EnvelopeRefused(Code.ENVELOPE_SENDER, "no admission of its sender came with it")
        then_s = min(delivery.accepted_at_ms / 1000, self._time.now_s())  # before it is a date: not all numbers are
        then = datetime.fromtimestamp(then_s, UTC)
        return peer_verdict(delivery.sender_token, broker, self._time, at=then)

    def _room(self, epoch: _Epoch, sender: Verdict) -> None:
        """A sender of whom nothing is remembered yet can be remembered; in a checkpoint too, if there are any."""
        among = [one.windows for one in self._epochs.values()] if self.durable else [epoch.windows]
        known = sender.jkt in epoch.windows
        if not known and not self._crowd.hears(sender.jkt, sender.ppid, among, MAX_SENDERS):
            raise EnvelopeRefused(Code.ENVELOPE_SENDERS, f"{MAX_SENDERS} were heard, {sender.jkt} is another")

    def open_beside(self, envelope: Envelope, header: Header, sender: Verdict) -> bytes:
        """What came beside an opened message, which names its digest: of the same sender, for the same mailbox.

        Raises WireError envelope.signature_invalid, EnvelopeRefused envelope.*. No window: the message has one.
        """
        if (header.sender, header.sender_jkt, header.tenant) != (sender.subject, sender.jkt, sender.tenant):
            raise EnvelopeRefused(Code.ENVELOPE_SENDER, f"beside a message of {sender.subject}, from {header.sender!a}")
        if header.mailbox != self.name or header.type != BLOB_TYPE:
            raise EnvelopeRefused(Code.ENVELOPE_WRONG_MAILBOX, f"a {header.type} for {header.mailbox}")
        envelope.verify(p256_from_spki(sender.identity_key))
        return _unseal(self._epoch(header), envelope)

    def done(self, header: Header) -> None:
        """The message was handled: it will never be opened again."""
        if epoch := self._epochs.get(header.mailbox_key):
            epoch.window(header.sender_jkt).finish(header.seq)

    def again(self, header: Header) -> None:
        """Handling failed or was broken off: a redelivery may be opened."""
        if epoch := self._epochs.get(header.mailbox_key):
            epoch.window(header.sender_jkt).abandon(header.seq)

    def _timely(self, header: Header, way: Way) -> None:
        now_ms = self._time.now_ms()
        if now_ms >= header.expires_at_ms:
            raise EnvelopeRefused(Code.ENVELOPE_EXPIRED, f"ended {now_ms - header.expires_at_ms} ms ago")
        if way == "message" and header.sent_at_ms < self.refuse_before_ms:  # on a channel each message has its time
            raise EnvelopeRefused(Code.ENVELOPE_BEFORE_BOOT, f"{self.refuse_before_ms - header.sent_at_ms} ms before")
        if header.sent_at_ms > now_ms + SKEW_MS:
            raise EnvelopeRefused(Code.ENVELOPE_FUTURE, f"sent {header.sent_at_ms - now_ms} ms from now")

    def _epoch(self, header: Header) -> _Epoch:
        if not hmac.compare_digest(header.incarnation, self._incarnation):
            raise EnvelopeRefused(Code.ENVELOPE_INCARNATION, "sealed for another start of this mailbox's owner")
        epoch = self._epochs.get(header.mailbox_key)
        if epoch is None or epoch.key.suite != header.suite:
            raise EnvelopeRefused(Code.ENVELOPE_EPOCH, f"key {header.mailbox_key.hex()[:16]}…, suite {header.suite}")
        return epoch


def _unseal(epoch: _Epoch, envelope: Envelope) -> bytes:
    try:
        return unpad(epoch.key.open(envelope.body, info(envelope.header)))
    except SealingFailed as error:
        raise EnvelopeRefused(Code.ENVELOPE_BODY, str(error.code)) from None


def _end_ms(key: MailboxKey, now_ms: int, ttl_s: float) -> int:
    """What outlives an ephemeral key could not be opened; a durable one is kept longer than any message lives."""
    end_ms = now_ms + int(ttl_s * 1000)
    return min(end_ms, key.not_after_s * 1000) if key.kind == "ephemeral" else end_ms


def peer_verdict(token: str, broker: Broker, time: BrokerTime, *, at: datetime | None = None) -> Verdict:
    """A peer's verdict from the token that the broker signs for peers. Raises TokenRefused."""
    return open_token(
        token, keys=broker.token_keys, issuer=broker.issuer, audience=peer_audience(broker.issuer), at=at or time.now()
    )


def pad(plaintext: bytes, most: int = MAX_PLAINTEXT) -> bytes:
    """Its length and itself, up to a power of two. Raises EnvelopeRefused envelope.too_large."""
    if len(plaintext) > most:
        raise EnvelopeRefused(Code.ENVELOPE_TOO_LARGE, f"{len(plaintext)} bytes, at most {most}")
    framed = struct.pack(">I", len(plaintext)) + plaintext
    return framed.ljust(max(MIN_BUCKET, 1 << (len(framed) - 1).bit_length()), b"\0")


def unpad(framed: bytes) -> bytes:
    """The plaintext of `pad`. Raises WireError envelope.malformed."""
    size = int.from_bytes(framed[:4], "big")
    if len(framed) < 4 + size or any(framed[4 + size :]):
        raise WireError(WireCode.ENVELOPE_MALFORMED, "the padding of the body")
    return framed[4 : 4 + size]
