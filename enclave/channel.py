"""Channels from inside: batches sealed once and resent as the same bytes, opened once and in order.

Decides when a key may still be used and which number comes next. A sending half (`SendingChannel`) seals under a lock,
numbers without gaps, and dies with a fork, the mailbox's epoch, an hour, 2^32 messages, or the sender's admission
unless that was renewed; nothing of it is ever written down. A receiving half (`ReceivingChannels`) believes neither
broker nor order of arrival: the opening must be the sender's own for this mailbox and this start, each batch must be
signed, follow on what came before and decrypt whole, and a number is handled once. Numbers that were passed over never
come back: a late batch is refused as reordered, and the gap is shown to the caller. What is known of the
channels of a durable mailbox goes into checkpoints (`passages`); who starts again goes on where they say (`restore`):
the opening is proved anew, and the chain tells whether the next batch is the one that followed.
"""

from __future__ import annotations

import hmac
import os
import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, NamedTuple, NoReturn, Self, final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from attestation.verdict import Admission as OpenedToken
from attestation.verdict import Verdict, open_admission
from broker.wire.bodies import peer_audience
from broker.wire.channel import (
    KEY_LEN,
    MAX_FRAMES,
    MAX_OUTSTANDING,
    MAX_SEQ,
    OPEN_TYPE,
    ChannelBatch,
    FrameHeader,
    Opening,
    chain_start,
    channel_name,
    frame_id,
    nonce,
    renumbered,
    shape_of,
)
from broker.wire.envelope import MAX_LIFE_MS, Envelope, Header
from broker.wire.errors import WireCode, WireError
from broker.wire.jose import es256_valid
from broker.wire.mailbox import Delivery
from enclave.clock import BrokerTime
from enclave.errors import ChannelDead, Code, EnvelopeRefused
from enclave.keys import AgentKeys
from enclave.mailbox import DEFAULT_TTL_S, SKEW_MS, Found, Inbox, Judge, Outbox, everyone
from enclave.padding import pad, unpad
from enclave.passage import OPENING_LEN, Passage, Receiving, Table
from enclave.session import Admission, Broker

LIFE_S: Final = 3600
CLOCKS_MS: Final = 60_000  # by which the broker's clock may be behind the sender's
_new: Final = tuple.__new__  # a named tuple's own constructor takes three times as long
_LIVE: Final[weakref.WeakSet[SendingChannel]] = weakref.WeakSet()


class Outgoing(NamedTuple):
    """A message to be sealed. A tuple, because thousands are made each second."""

    kind: str
    plaintext: bytes
    labels: frozenset[str] = frozenset()
    in_reply_to: bytes = b""
    reply_to: str = ""
    ttl_s: float = DEFAULT_TTL_S

    def __repr__(self) -> str:
        return f"Outgoing(kind={self.kind!r}, {len(self.plaintext)} bytes)"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SealedBatch:
    """A batch as it is sent, and sent again. `msg_ids` are its messages' ids in order."""

    channel: bytes
    first_seq: int
    last_seq: int
    raw: bytes = field(repr=False)

    @property
    def msg_ids(self) -> list[bytes]:
        return [frame_id(self.channel, seq) for seq in range(self.first_seq, self.last_seq + 1)]


@final
class SendingChannel:
    """The sender's half of one channel. `opening` goes with every batch until the broker has taken one."""

    __slots__ = (
        *("__weakref__", "_chain", "_cipher", "_end_ms", "_keys", "_lock", "_next", "_not_after_s", "_time"),
        *("_token_end_s", "channel", "mailbox", "mailbox_key", "opening", "owner"),
    )

    def __init__(
        self, keys: AgentKeys, time: BrokerTime, opening: Envelope, inside: Opening, mailbox: str, found: Found
    ) -> None:
        self._keys = keys
        self._time = time
        self._lock = threading.Lock()
        self._cipher: AESGCM | None = AESGCM(inside.key)
        self._chain = chain_start(opening)
        self._next = 1
        self._not_after_s = min(time.now_s() + LIFE_S, float(found.key.not_after_s))
        self._end_ms = Header.from_bytes(opening.header).expires_at_ms  # what outlived the opening could not be opened
        self._token_end_s = 0.0
        self.channel: Final = inside.channel
        self.opening: Final = opening.to_bytes()
        self.mailbox: Final = mailbox
        self.mailbox_key: Final = inside.mailbox_key
        self.owner: Final = found.key.owner
        _LIVE.add(self)

    @classmethod
    def open(
        cls,
        outbox: Outbox,
        found: Found,
        *,
        mailbox: str,
        admission: Admission,
        keys: AgentKeys,
        time: BrokerTime,
    ) -> Self:
        """A channel under a fresh key, to the mailbox's or topic's key in `found`. Raises as `Outbox.seal` does."""
        key, secret = found.key, os.urandom(KEY_LEN)
        inside = Opening(
            channel=channel_name(keys.jkt, secret),
            key=secret,
            mailbox_key=key.thumbprint,
            incarnation=key.incarnation,
            appraisal=bytes.fromhex(admission.verdict.quote_digest),
            policy=bytes.fromhex(admission.policy),
        )
        opening = outbox.seal(
            found,
            mailbox=mailbox,
            admission=admission,
            kind=OPEN_TYPE,
            plaintext=inside.to_bytes(),
            ttl_s=_opening_life_s(found, time.now_s()),
        )
        channel = cls(keys, time, opening, inside, mailbox, found)
        channel.renew(admission)
        return channel

    def renew(self, admission: Admission) -> None:
        """The sender was admitted again under the same keys: the channel lives on with that admission."""
        self._token_end_s = admission.expires_at_s

    def why_dead(self) -> str:
        """What ended the channel, or nothing."""
        if self._cipher is None:
            return "it was closed, or this process is the child of a fork"
        now_s = self._time.now_s()
        if now_s >= self._not_after_s:
            return "its hour is over, or the epoch of the mailbox's key"
        if now_s >= self._token_end_s:
            return "the sender's admission has ended"
        return "" if self._next <= MAX_SEQ else "it has carried 2^32 messages"

    def id_of(self, seq: int) -> bytes:
        """The id of the message under that number."""
        return frame_id(self.channel, seq)

    def seal(self, messages: Sequence[Outgoing]) -> SealedBatch:
        """The next batch. Raises ChannelDead channel.dead; EnvelopeRefused envelope.too_large; WireError
        channel.malformed; KeyUnusable. A batch that could not be sealed used no number."""
        if not 0 < len(messages) <= MAX_FRAMES:
            raise WireError(WireCode.CHANNEL_MALFORMED, f"a batch of {len(messages)} messages, 1 to {MAX_FRAMES}")
        with self._lock:
            cipher, first = self._usable(len(messages)), self._next
            padded = [pad(message.plaintext) for message in messages]
            headers = self._headers(messages, first)
            self._next = first + len(messages)  # from here on these numbers are used, whatever happens
            bodies = [
                cipher.encrypt(nonce(seq), plain, header)
                for seq, (plain, header) in enumerate(zip(padded, headers, strict=True), start=first)
            ]
            batch = ChannelBatch(
                channel=self.channel,
                first_seq=first,
                prev_chain=self._chain,
                headers=tuple(headers),
                bodies=tuple(bodies),
            )
            self._chain = batch.chain
            raw = batch.signed(self._keys.sign)
        return SealedBatch(channel=self.channel, first_seq=first, last_seq=batch.last_seq, raw=raw)

    def _headers(self, messages: Sequence[Outgoing], first: int) -> list[bytes]:
        """Most messages of a batch say the same of themselves but for the number."""
        now_ms, end_ms = self._time.now_ms(), self._end_ms
        before: tuple[object, ...] = ()
        headers = []
        for seq, (kind, _, labels, in_reply_to, reply_to, ttl_s) in enumerate(messages, start=first):
            said = (kind, labels, in_reply_to, reply_to, ttl_s)
            if said != before:
                shape = shape_of(kind, tuple(sorted(labels)) if labels else (), in_reply_to, reply_to)
                until_ms = max(min(now_ms + int(ttl_s * 1000), end_ms), now_ms + 1)
                before, header = said, FrameHeader(self.channel, seq, now_ms, until_ms, shape).to_bytes()
            headers.append(renumbered(header, seq))
        return headers

    def _usable(self, count: int) -> AESGCM:
        why = self.why_dead() or ("" if self._next + count - 1 <= MAX_SEQ else "it has carried 2^32 messages")
        if why or self._cipher is None:
            raise ChannelDead(Code.CHANNEL_DEAD, f"{self.mailbox}: {why}")
        return self._cipher

    def close(self) -> None:
        """Drop the key."""
        self._cipher = None

    def __repr__(self) -> str:
        return f"SendingChannel({self.channel.hex()} to {self.mailbox})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a channel cannot be pickled or copied: two copies would use one number twice")


class Frame(NamedTuple):
    """A message that passed every check. `kind` is its header but for the number. A tuple, because thousands are made
    each second."""

    kind: FrameHeader
    seq: int
    plaintext: bytes
    sender: Verdict

    @property
    def header(self) -> FrameHeader:
        return self.kind.at(self.seq)

    def __repr__(self) -> str:
        return f"Frame({self.header!r})"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedBatch:
    """What a batch brought that is to be handled now, in order. `settled` says that nothing of it is: acknowledge it.

    `skipped` are the numbers, from and to, that never came before this batch; they will not be accepted any more.
    """

    channel: bytes
    first_seq: int
    last_seq: int
    frames: tuple[Frame, ...]
    settled: bool
    skipped: tuple[int, int] | None = None


def _opening_life_s(found: Found, now_s: float) -> float:
    """As long as any message on the channel may live: while an ephemeral key does, or as long as mail is ever kept."""
    if found.key.kind == "ephemeral":
        return max(found.key.not_after_s - now_s, 0.0)
    return (MAX_LIFE_MS - CLOCKS_MS) / 1000


@final
class ReceivingChannels:
    """The channels into one mailbox of this process. Not thread-safe."""

    def __init__(self, inbox: Inbox, time: BrokerTime, *, judge: Judge = everyone) -> None:
        self._inbox = inbox
        self._time = time
        self._judge = judge
        self._table = Table(durable=inbox.durable)
        self._known = self._table.known

    def passages(self) -> list[Passage]:
        """What a checkpoint says of each channel."""
        return self._table.passages()

    def restore(self, passages: Iterable[Passage]) -> None:
        """What was known before this start; each counts from the moment at which its opening comes again."""
        self._table.restore(passages)

    def admit(self, opening: Delivery, senders: Mapping[str, str], broker: Broker) -> bytes:
        """Take in an opening, once; the channel's name. The same opening again changes nothing.

        Raises as `Inbox.open` does, and EnvelopeRefused channel.opening_mismatch.
        """
        digest = opening.envelope.digest[:OPENING_LEN]
        if (known := self._table.opened_by(digest)) is not None:
            return known.channel
        before = self._table.before.get(digest)
        opened = self._inbox.open(opening, senders, broker, way="opening" if before is None else "known opening")
        header = opened.header
        if before is None:
            self._inbox.done(header)
        inside = Opening.from_bytes(opened.plaintext)
        named = (inside.mailbox_key, inside.incarnation) == (header.mailbox_key, header.incarnation)
        named = named and inside.channel == channel_name(opened.sender.jkt, inside.key)
        if header.type != OPEN_TYPE or not named or inside.channel in self._known:
            raise EnvelopeRefused(Code.CHANNEL_OPENING, f"the opening of {inside.channel.hex()} contradicts its header")
        if before is None and not self._table.make_room(opened.sender.jkt, self._time.now_ms()):
            raise EnvelopeRefused(Code.CHANNEL_OPENING, "more channels into one mailbox than can be remembered")
        self._table.add(Receiving(opening.envelope, header, inside, opened.sender, before))
        return inside.channel

    def open(
        self,
        raw: bytes,
        accepted_at_ms: int,
        acceptance: bytes,
        senders: Mapping[str, str],
        broker: Broker,
        *,
        past: str = "",
        remaining: frozenset[int] = frozenset(),
    ) -> OpenedBatch:
        """Prove and open one delivery of a batch. Cheap first; a refused batch changes nothing here.

        `past` is the token of a sender who has fallen since, by which it is judged as of the moment of acceptance.
        `remaining`, unless it is empty, are the only numbers that this process has not settled yet; of a batch that is
        seen for the first time that is all of them.

        Raises WireError channel.*; TokenRefused token.*; EnvelopeRefused channel.*, envelope.acceptance_invalid,
        envelope.sent_in_future, envelope.sender_mismatch, standing.unknown, peer.*.
        """
        batch = ChannelBatch.from_bytes(raw)
        known = self._known.get(batch.channel)
        if known is None:
            raise EnvelopeRefused(Code.CHANNEL_UNOPENED, f"no opening of {batch.channel.hex()} was proved")
        again = self._placed(known, batch)
        said = batch.said()
        batch.verify(known.identity)
        stated = Delivery.message(self._inbox.name, batch.digest, accepted_at_ms)
        if not es256_valid(broker.identity, acceptance, stated):
            raise EnvelopeRefused(Code.ENVELOPE_ACCEPTANCE, "not signed by the broker for this mailbox and time")
        if past:
            self._as_it_was(known, past, accepted_at_ms, broker)
        else:
            self._still_admitted(known, senders, broker)
        frames = self._opened(known, batch, said)
        if again:  # nobody but this process settles: at first sight all of it remains, whatever the broker says
            wanted = known.again & (remaining or known.again)
            frames = [frame for frame in frames if frame.seq in wanted]
        skipped = None if again else known.advance(batch, since_ms=self._inbox.refuse_before_ms)
        fresh = {frame.seq for frame in frames}
        known.open |= fresh
        known.again -= fresh
        numbers = range(batch.first_seq, batch.last_seq + 1)
        return OpenedBatch(
            channel=batch.channel,
            first_seq=batch.first_seq,
            last_seq=batch.last_seq,
            frames=tuple(frames),
            settled=known.open.isdisjoint(numbers) and known.again.isdisjoint(numbers),
            skipped=skipped,
        )

    @staticmethod
    def _placed(known: Receiving, batch: ChannelBatch) -> bool:
        """Whether the batch lies wholly in what came already; else it must go on from there."""
        late = any(batch.first_seq <= last and first <= batch.last_seq for first, last in known.skipped)
        if batch.last_seq <= known.highest and not late:
            return True
        if batch.first_seq <= known.highest:
            raise EnvelopeRefused(
                Code.CHANNEL_REORDERED, f"{batch.first_seq} to {batch.last_seq} after {known.highest}"
            )
        if batch.first_seq == known.highest + 1 and not hmac.compare_digest(batch.prev_chain, known.chain):
            raise EnvelopeRefused(Code.CHANNEL_CHAIN, f"{batch.first_seq} does not continue what came before")
        if len(known.open) + len(batch) > MAX_OUTSTANDING + MAX_FRAMES:
            raise EnvelopeRefused(Code.CHANNEL_OUTSTANDING, f"{len(known.open)} are being handled")
        return False

    def _still_admitted(self, known: Receiving, senders: Mapping[str, str], broker: Broker) -> None:
        """The sender's admission by the broker's newest token for it: the same agent with the same key, now; and it has
        not fallen since."""
        if self._inbox.standing is not None:
            self._inbox.standing.require(known.sender.subject)
        token = senders.get(known.sender.subject, known.token)
        if token == known.token and self._time.now_ms() < known.token_end_ms:
            return
        found = self._token(known, token, broker, self._time.now())
        known.sender, known.token = found.verdict, token
        known.token_end_ms = int(min(found.expires_at, found.verdict.valid_until).timestamp() * 1000)

    def _as_it_was(self, known: Receiving, past: str, accepted_at_ms: int, broker: Broker) -> None:
        then_s = min(accepted_at_ms / 1000, self._time.now_s())
        self._token(known, past, broker, datetime.fromtimestamp(then_s, UTC))

    def _token(self, known: Receiving, token: str, broker: Broker, at: datetime) -> OpenedToken:
        """A token of the channel's sender, that was in force `at`, and a sender who is welcome."""
        audience = peer_audience(broker.issuer)
        found = open_admission(token, keys=broker.token_keys, issuer=broker.issuer, audience=audience, at=at)
        if (found.verdict.subject, found.verdict.identity_key) != (known.sender.subject, known.sender.identity_key):
            raise EnvelopeRefused(Code.ENVELOPE_SENDER, f"a token of {found.verdict.subject!a} for this channel")
        if not self._judge(found.verdict):
            raise EnvelopeRefused(Code.PEER_REFUSED, f"sender {found.verdict.subject}")
        return found

    def _opened(self, known: Receiving, batch: ChannelBatch, said: list[FrameHeader]) -> list[Frame]:
        """The messages that have not expired. All of them must decrypt."""
        now_ms, decrypt, sender = self._time.now_ms(), known.cipher.decrypt, known.sender
        for kind in batch.kinds():
            if kind.sent_at_ms < self._inbox.refuse_before_ms:
                raise EnvelopeRefused(Code.ENVELOPE_BEFORE_BOOT, f"{kind.seq} of {batch.channel.hex()}")
            if kind.sent_at_ms > now_ms + SKEW_MS:
                raise EnvelopeRefused(Code.ENVELOPE_FUTURE, f"sent {kind.sent_at_ms - now_ms} ms from now")
        numbers = range(batch.first_seq, batch.last_seq + 1)
        frames = []
        try:
            for seq, kind, raw, body in zip(numbers, said, batch.headers, batch.bodies, strict=True):
                plaintext = unpad(decrypt(nonce(seq), body, raw))
                if now_ms < kind.expires_at_ms:
                    frames.append(_new(Frame, (kind, seq, plaintext, sender)))
        except InvalidTag:
            raise EnvelopeRefused(Code.CHANNEL_BODY, f"channel {batch.channel.hex()}") from None
        return frames

    def done(self, channel: bytes, seq: int) -> None:
        """The message was handled: it will never be handed out again."""
        if known := self._known.get(channel):
            known.open.discard(seq)
            known.again.discard(seq)

    def again(self, channel: bytes, seq: int) -> None:
        """Handling failed or was broken off: a redelivery may hand it out again."""
        if known := self._known.get(channel):
            known.give_back(seq)


def _die_in_child() -> None:
    for channel in list(_LIVE):
        channel.close()


os.register_at_fork(after_in_child=_die_in_child)
