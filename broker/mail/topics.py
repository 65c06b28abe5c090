"""Topics: one message for everybody who may read it, sealed to a key that only they are given.

Decides who the readers are: agents that the policy lets `Receive` there, from the moment at which they ask for the
keys. The key is rolled when a reader leaves, falls or may no longer read, and whenever the generation has risen, before
anything else is taken in: what is said afterwards can't be read by who is gone, whatever he has kept. Newcomers get no
keys of before. What is published, an envelope or a batch of a channel, lies here once; each reader's place moves over
it, and the opening of its channel is shown beside it. In order per sender, at least once, for as long as the reader is
there: a topic is no archive. A reader that is a minute behind when there is no room left loses the oldest of what it
has not read, and is told how much that was; it holds up nobody.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, final

from broker.audit import Audit
from broker.errors import BrokerCode, BrokerError
from broker.generation import Generation
from broker.identity import Identity
from broker.mail.acceptance import Acceptances
from broker.mail.bell import Bell
from broker.mail.edges import Edges
from broker.mail.forged import Forged
from broker.mail.labels import Labels, Ratchets, fits, labels_in, require
from broker.mail.mailkeys import KeyDesk, Ring, ring_of
from broker.mail.routing import Checked, Router, result_of
from broker.mail.ways import ToTopic, bell_of
from broker.ports import Clock, Store, Transaction
from broker.ports.mail import Queued, Quota
from broker.ports.topics import MAX_PAGE, TopicMessage, TopicReader
from broker.reasons import Refusal
from broker.sessions import Session, Sessions
from broker.wire.channel import MAX_OUTSTANDING, channel_of
from broker.wire.envelope import Envelope
from broker.wire.jose import unb64u
from broker.wire.keys import KeysRequest, KeysResponse, Place, TopicKey
from broker.wire.mailbox import BatchDelivery, Delivery, OpeningDelivery, SendResponse, SendStatus
from broker.wire.names import is_resource, tenant_of
from broker.wire.topic import TopicInfo, TopicPage, TopicRead
from policies.model import Receive

LOOK_AGAIN_S: Final = 1.0
FULL_RETRY_S: Final = 1
PAGE_OCTETS: Final = 2 << 20  # of sealed bytes at once, unless the first has more
MAX_KNOWN: Final = 1024  # messages and batches of which labels and acceptance are at hand
Labelled = tuple[TopicMessage, Labels]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """The labels of a message or batch, and the broker's word about when it came."""

    labels: Labels
    acceptance: bytes


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TopicDrawn:
    """What one look at a topic brought a reader, in order; `upto` is the last place that was looked at."""

    messages: tuple[TopicMessage, ...]
    acceptances: tuple[bytes, ...]
    tokens: dict[str, str] = field(repr=False)  # peer tokens of the senders
    missed: int
    upto: int

    @property
    def channels(self) -> list[bytes]:
        """Those on which batches of it came, each once."""
        return list({channel_of(one.envelope): None for one in self.messages if one.kind == "batch"})


@final
class TopicDesk:
    """Takes in, hands out, and keeps the keys with the readers."""

    def __init__(
        self,
        *,
        store: Store,
        audit: Audit,
        edges: Edges,
        generation: Generation,
        sessions: Sessions,
        identity: Identity,
        accepted: Acceptances,
        labels: Ratchets,
        keys: KeyDesk,
        router: Router,
        forged: Forged,
        bell: Bell,
        clock: Clock,
        quota: Quota,
    ) -> None:
        self._store = store
        self._audit = audit
        self._edges = edges
        self._generation = generation
        self._sessions = sessions
        self._identity = identity
        self._accepted = accepted
        self._labels = labels
        self._keys = keys
        self._router = router
        self._forged = forged
        self._bell = bell
        self._clock = clock
        self._quota = quota
        self._known: dict[int, _Known] = {}

    # ── keys and readers ───────────────────────────────────────────────────────────────────────────────────────────

    async def info(self, session: Session, topic: str) -> TopicInfo:
        """The key to seal to, once there is one: it is made for the first who may read.

        Raises BrokerError mailbox.name_invalid, mailbox.unknown.
        """
        at = self._clock()
        own = tenant_of(_named(topic)) == session.record.tenant
        if not ((own and self._has_readers(topic)) or self._reads(session, topic, at)):
            raise BrokerError(BrokerCode.MAILBOX_UNKNOWN, f"nobody has read {topic[:80]!a}")
        epoch = (await self._settled(topic, at, by=session.subject))[-1]
        return TopicInfo(
            key=TopicKey.sign(
                self._identity.key,
                topic=topic,
                epoch=epoch.number,
                suite=epoch.suite,
                key=unb64u(epoch.public),
                not_before_s=epoch.not_before_s,
                not_after_s=epoch.not_after_s,
            )
        )

    def _has_readers(self, topic: str) -> bool:
        """Somebody has asked for its keys, which may have ended since."""
        return self._store.read(lambda tx: bool(ring_of(tx, Place.TOPIC, topic) or tx.topics.readers(topic)))

    async def join(
        self, session: Session, topic: str, request: KeysRequest, *, correlation_id: str = ""
    ) -> KeysResponse:
        """The keys from the one on under which the agent became a reader. Raises as KeyDesk.grant does; Refused."""
        at = self._clock()
        await self._permit(session, _named(topic), at, correlation_id)
        now = await self._settled(topic, at, by=session.subject)

        def work(tx: Transaction) -> TopicReader:
            self._generation.expect(tx, session.generation)
            at_ms = int(at.timestamp() * 1000)
            fresh = TopicReader(topic=topic, subject=session.subject, place=0, epoch=now[-1].number, joined_at_ms=at_ms)
            return tx.topics.join(fresh)

        reader = await self._store.transact(work)
        return await self._keys.grant(
            session, Place.TOPIC, topic, request, since=reader.epoch, correlation_id=correlation_id
        )

    async def leave(self, session: Session, topic: str) -> None:
        """Read no more; the key is rolled before anything else is taken in."""
        at = self._clock()

        def work(tx: Transaction) -> None:
            if tx.topics.leave(_named(topic), session.subject):
                self._roll(tx, topic, at)

        await self._store.transact(work)

    async def _settled(self, topic: str, at: datetime, *, by: str = "") -> Ring:
        """The ring, after everybody who may no longer read has been taken out and the key rolled because of it."""
        await self._keys.current(Place.TOPIC, topic, at, by=by)
        ring, readers = self._store.read(lambda tx: (ring_of(tx, Place.TOPIC, topic), tx.topics.readers(topic)))
        may = await self._sessions.settle(tuple(reader.subject for reader in readers), at)
        now = self._clock()  # whoever was judged again just now was judged after `at`
        gone = [reader.subject for reader in readers if not self._reads(may.get(reader.subject), topic, now)]
        if not gone and ring[-1].generation == self._generation.current:
            return ring

        def work(tx: Transaction) -> Ring:
            for subject in gone:
                tx.topics.leave(topic, subject)
            newest = ring_of(tx, Place.TOPIC, topic)
            if not gone and newest[-1].generation == self._generation.current:
                return newest  # somebody else was faster
            return self._roll(tx, topic, at)

        return await self._store.transact(work)

    def _reads(self, session: Session | None, topic: str, at: datetime) -> bool:
        if session is None or session.record.expires_at_s <= at.timestamp():
            return False
        return self._edges.permits(session, Receive(topic, kind="topic"), at)

    def _roll(self, tx: Transaction, topic: str, at: datetime) -> Ring:
        """A new key; old ones to which nothing that waits is sealed are destroyed."""
        tx.topics.expire(now_ms=int(at.timestamp() * 1000))
        waiting = {key.hex() for key in tx.topics.keys(topic)}
        idle = [epoch.number for epoch in ring_of(tx, Place.TOPIC, topic) if epoch.thumbprint not in waiting]
        return self._keys.roll(tx, Place.TOPIC, topic, at, drop=idle)

    async def expire(self) -> int:
        """Drop what has expired, of every topic; how many messages."""
        now_ms = int(self._clock().timestamp() * 1000)
        return await self._store.transact(lambda tx: tx.topics.expire(now_ms=now_ms))

    # ── publishing ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def publish(
        self, session: Session, topic: str, envelopes: tuple[Envelope, ...], *, correlation_id: str = ""
    ) -> SendResponse:
        """One result for each envelope, in order. When none was taken, the first refusal is raised.

        Raises BrokerError mailbox.unknown, mailbox.key_stale, mailbox.full, message.*, generation.moved; WireError
        envelope.*; Refused.
        """
        at, way = self._clock(), self.way(topic)
        await way.ready(at)
        held = self._labels.of(session.subject)
        checked = [
            self._router.check(session, topic, envelope, held, at, correlation_id, kind="topic")
            for envelope in envelopes
        ]

        def work(tx: Transaction) -> list[Refusal | SendStatus]:
            self._generation.expect(tx, session.generation)
            for item in checked:
                for entry in item.entries:
                    entry.pay(tx, self._audit)
            return [item.refusal or self._keep(tx, item, way, at) for item in checked]

        outcomes = await self._store.transact(work)
        refused = [outcome for outcome in outcomes if not isinstance(outcome, SendStatus)]
        if len(refused) == len(outcomes):
            raise refused[0]
        way.ring()
        return SendResponse(
            results=tuple(result_of(item.msg_id, outcome) for item, outcome in zip(checked, outcomes, strict=True))
        )

    def way(self, topic: str) -> ToTopic:
        """For what is to be published there. Raises BrokerError mailbox.name_invalid."""
        return ToTopic(_named(topic), self._ready, self._quota, self._bell)

    async def _ready(self, topic: str, at: datetime) -> Ring:
        """The ring to publish under. Raises BrokerError mailbox.unknown."""
        if not self._has_readers(topic):
            raise BrokerError(BrokerCode.MAILBOX_UNKNOWN, f"nobody has read {topic[:80]!a}")
        return await self._settled(topic, at)

    def _keep(self, tx: Transaction, item: Checked, way: ToTopic, at: datetime) -> Refusal | SendStatus:
        assert item.message is not None
        new = item.message
        if not way.accepts(tx, new.key, item.incarnation):
            return BrokerError(BrokerCode.MAILBOX_KEY_STALE, new.mailbox)
        try:
            require(tx, new.sender, item.labels, item.cleared.waived)
        except BrokerError as error:
            return error
        match way.queue(tx, new, at):
            case Queued.QUEUED:
                if item.cleared.lowered is not None:
                    self._audit.append(tx, item.cleared.lowered)
                return SendStatus.QUEUED
            case Queued.DUPLICATE:
                return SendStatus.DUPLICATE
            case Queued.ID_REUSED:
                return BrokerError(BrokerCode.MESSAGE_ID_REUSED, new.msg_id.hex())
            case Queued.FULL:
                return BrokerError(BrokerCode.MAILBOX_FULL, new.mailbox, retry_after_s=FULL_RETRY_S)

    # ── reading ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def receive(self, session: Session, topic: str, request: TopicRead, *, correlation_id: str = "") -> TopicPage:
        """What lies behind the reader's place; waits for a first message if told so.

        Raises BrokerError mailbox.name_invalid, topic.not_reader; Refused.
        """
        waits = request.wait_s
        while True:
            place = await self.advance(session, _named(topic), request.done)
            drawn = await self.draw(
                session, topic, after=place, limit=request.max_messages, correlation_id=correlation_id
            )
            if drawn.messages or waits <= 0 or self._bell.stopping:
                return self._page(topic, drawn)
            if drawn.upto > place:  # nothing there is for this reader, nor will be
                await self.advance(session, topic, drawn.upto)
            await self._bell.wait(bell_of(topic), min(waits, LOOK_AGAIN_S))
            waits -= 1

    async def advance(self, session: Session, topic: str, done: int) -> int:
        """The reader is done up to there; where it is now. Raises BrokerError topic.not_reader."""
        reader = self._reader(session, topic)
        if done > reader.place:
            await self._store.transact(lambda tx: tx.topics.advance(topic, session.subject, done))
        return max(done, reader.place)

    def _reader(self, session: Session, topic: str) -> TopicReader:
        reader = self._store.read(lambda tx: tx.topics.reader(topic, session.subject))
        if reader is None:
            raise BrokerError(BrokerCode.TOPIC_NOT_READER, f"{session.subject} at {topic}")
        return reader

    async def draw(
        self,
        session: Session,
        topic: str,
        *,
        after: int,
        limit: int = MAX_PAGE,
        messages: int = MAX_OUTSTANDING,
        octets: int = PAGE_OCTETS,
        correlation_id: str = "",
    ) -> TopicDrawn:
        """What lies behind that place: only of senders who may still speak, and only what the policy lets this reader
        see of their labels, to which it is held from now on. Raises BrokerError topic.not_reader; Refused."""
        at = self._clock()
        await self._permit(session, topic, at, correlation_id)
        reader, now_ms = self._reader(session, topic), int(at.timestamp() * 1000)
        found = self._store.read(
            lambda tx: tx.topics.page(topic, after=after, now_ms=now_ms, limit=limit, messages=messages, octets=octets)
        )
        upto = found[-1].number if found else after
        if broken := list(self._forged.among(self._unknown(found))):
            await self._forged.drop(topic, broken, at)
            found = [message for message in found if message not in broken]
        senders = await self._sessions.settle(tuple({message.sender for message in found}), at)
        held = self._labels.of(session.subject)
        labelled = [(message, self._about(message).labels) for message in found if message.sender in senders]
        shown = list(_bearable(held, [one for one in labelled if await self._may_see(session, topic, one[1], at)]))
        await self._labels.delivered(session, {one for _, labels in shown for one in labels}, why=topic, at=at)
        said = {message.sender for message, _ in shown}
        return TopicDrawn(
            messages=tuple(message for message, _ in shown),
            acceptances=tuple(self._about(message).acceptance for message, _ in shown),
            tokens={one: self._sessions.peer_token(sender, at) for one, sender in senders.items() if one in said},
            missed=reader.missed,
            upto=upto,
        )

    def _unknown(self, found: Sequence[TopicMessage]) -> Iterator[TopicMessage]:
        """Those that no reader was shown yet."""
        return (message for message in found if message.number not in self._known)

    def _about(self, message: TopicMessage) -> "_Known":
        """What is said of it to every reader, worked out for the first."""
        known = self._known.get(message.number)
        if known is None:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            known = self._known[message.number] = _Known(
                labels=labels_in(message.kind, message.envelope),
                acceptance=self._accepted.of(message.topic, message.digest, message.accepted_at_ms),
            )
        return known

    def openings(self, topic: str, channels: Iterable[bytes]) -> Iterator[OpeningDelivery]:
        """Of channels of which something was drawn."""
        return self._accepted.openings(topic, dict.fromkeys(channels, False))

    def _page(self, topic: str, drawn: TopicDrawn) -> TopicPage:
        both = list(zip(drawn.messages, drawn.acceptances, strict=True))
        envelopes = [one for one in both if one[0].kind == "envelope"]
        batches = [one for one in both if one[0].kind == "batch"]
        return TopicPage(
            deliveries=tuple(_delivery(*one) for one in envelopes),
            places=tuple(message.number for message, _ in envelopes),
            senders=drawn.tokens,
            missed=drawn.missed,
            batches=tuple(_batch(*one) for one in batches),
            batch_places=tuple(message.number for message, _ in batches),
            openings=tuple(self.openings(topic, drawn.channels)),
        )

    async def _may_see(self, session: Session, topic: str, labels: Labels, at: datetime) -> bool:
        answer = self._edges.ask(session, Receive(topic, labels, kind="topic"), at)
        if (entry := answer.entry) is not None:
            await self._store.transact(lambda tx: entry.pay(tx, self._audit))
        return answer.refusal is None

    async def _permit(self, session: Session, topic: str, at: datetime, correlation_id: str) -> None:
        answer = self._edges.ask(session, Receive(topic, kind="topic"), at, correlation_id=correlation_id)
        if (entry := answer.entry) is not None:
            await self._store.transact(lambda tx: entry.pay(tx, self._audit))
        if answer.refusal is not None:
            raise answer.refusal


def _named(topic: str) -> str:
    """Raises BrokerError mailbox.name_invalid."""
    if not is_resource(topic):
        raise BrokerError(BrokerCode.MAILBOX_NAME, f"{topic[:80]!a}")
    return topic


def _bearable(held: Labels, shown: Sequence[Labelled]) -> Iterator[Labelled]:
    """Without what would hold the reader to more labels than fit on a message."""
    for message, labels in shown:
        if fits(held, labels):
            held |= labels
            yield message, labels


def _delivery(message: TopicMessage, acceptance: bytes) -> Delivery:
    return Delivery(
        envelope=Envelope.from_bytes(message.envelope),
        lease="",
        attempt=1,
        accepted_at_ms=message.accepted_at_ms,
        acceptance=acceptance,
    )


def _batch(message: TopicMessage, acceptance: bytes) -> BatchDelivery:
    return BatchDelivery(
        batch=message.envelope,
        sender=message.sender,
        digest=message.digest,
        lease="",
        attempt=1,
        accepted_at_ms=message.accepted_at_ms,
        acceptance=acceptance,
    )
