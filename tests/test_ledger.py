"""What was delivered: handed out once, settled when its last message is, held when it cannot be judged yet."""

import pytest

from broker.wire import stream_pb2 as pb
from broker.wire.channel import ChannelBatch
from broker.wire.envelope import Envelope
from broker.wire.jose import es256_sign
from broker.wire.leases import MAX_LEASE_S
from broker.wire.mailbox import Delivery
from enclave.channel import Outgoing, ReceivingChannels, SendingChannel
from enclave.errors import Code, EnvelopeRefused
from enclave.ledger import Incoming, Ledger
from tests.channel_pair import Pair
from tests.test_enclave_mailbox import NOW_S

AT_MS = NOW_S * 1000
LEASE_S = 30


class Book:
    """A ledger, and the router's side of its stream."""

    def __init__(self) -> None:
        self.pair = Pair()
        self.b = self.pair.b
        self.channels = ReceivingChannels(self.b.inbox, self.b.inbox._time)
        self.ledger = self.begun()
        self.channel: SendingChannel = self.pair.opened(self.pair.a)
        self.leases = 0
        self.told = False

    def begun(self, *, keeps: bool = False) -> Ledger:
        self.ledger = Ledger(self.b.inbox, self.channels, lease_s=LEASE_S, keeps=keeps)
        return self.ledger

    def sealed(self, *texts: bytes) -> bytes:
        return self.channel.seal([Outgoing(kind="note", plaintext=text) for text in texts]).raw

    def delivery(self, *batches: bytes, opening: bool | None = None, **how: object) -> pb.FromBroker:
        message = pb.FromBroker(senders=self.pair.senders())
        if opening if opening is not None else not self.told:
            accepted = self.pair.router.accept(Envelope.from_bytes(self.channel.opening), self.b.inbox.name)
            message.openings.add(envelope=self.channel.opening, accepted_at_ms=AT_MS, acceptance=accepted.acceptance)
            self.told = True
        for raw in batches:
            self.leases += 1
            batch = ChannelBatch.from_bytes(raw)
            stated = Delivery.message(self.b.inbox.name, batch.digest, AT_MS)
            members = {"messages": len(batch), "attempt": 1} | how
            message.parcels.add(
                kind="batch",
                content=raw,
                lease=f"lease{self.leases}",
                accepted_at_ms=AT_MS,
                acceptance=es256_sign(self.pair.router.identity, stated),
                **members,
            )
        return message

    def take(self, message: pb.FromBroker, now_s: float = 0.0) -> list[Incoming]:
        return list(self.ledger.delivered(message, self.pair.router.broker, now_s))

    def said(self) -> list[tuple[str, int, list[int], str]]:
        """Lease, verb, exceptions and code of each settlement since the last look."""
        message = pb.ToBroker()
        self.ledger.take(message)
        self.credit = message.credit
        return [(one.lease, one.verb, list(getattr(one, "except")), one.code) for one in message.settles]


@pytest.fixture
def book() -> Book:
    return Book()


def test_a_parcel_is_settled_with_its_last_message_and_gives_its_credit_back(book: Book) -> None:
    one, two = book.take(book.delivery(book.sealed(b"1", b"2")))
    book.ledger.done(two)
    assert (book.said(), book.credit, book.ledger.outstanding) == ([], 0, 1)
    book.ledger.done(one)
    assert (book.said(), book.credit) == ([("lease1", pb.Settle.ACK, [], "")], 2)


def test_what_failed_is_named_and_a_whole_parcel_is_given_back(book: Book) -> None:
    first, second = book.sealed(b"1", b"2", b"3"), book.sealed(b"4")
    one, two, three, four = book.take(book.delivery(first, second))
    book.ledger.again(two, 7, "note.busy")
    for incoming in (one, three):
        book.ledger.done(incoming)
    book.ledger.again(four, 10**9, "no code at all")
    message = pb.ToBroker()
    book.ledger.take(message)
    partly, nak = message.settles
    assert (partly.verb, list(getattr(partly, "except")), partly.delay_s, partly.code) == (0, [2], 7, "note.busy")
    assert (nak.verb, nak.delay_s, nak.code) == (pb.Settle.NAK, MAX_LEASE_S, "")
    assert [one.plaintext for one in book.take(book.delivery(first, remaining=[2], messages=1))] == [b"2"]


def test_a_broker_cannot_call_settled_what_was_never_seen(book: Book) -> None:
    raw = book.sealed(b"1", b"2", b"3")
    assert [one.plaintext for one in book.take(book.delivery(raw, remaining=[3]))] == [b"1", b"2", b"3"]


def test_the_newest_lease_of_a_parcel_counts(book: Book) -> None:
    raw = book.sealed(b"1", b"2")
    one, two = book.take(book.delivery(raw))
    book.ledger.disconnected()
    assert book.take(book.delivery(raw, opening=True)) == []
    for incoming in (one, two):
        book.ledger.done(incoming)
    assert (book.said(), book.credit) == ([("lease2", pb.Settle.ACK, [], "")], 2)
    assert book.take(book.delivery(raw)) == []
    assert book.said() == [("lease3", pb.Settle.ACK, [], "")]


def test_a_rejected_message_of_a_batch_dies_alone(book: Book) -> None:
    raw = book.sealed(b"1", b"2")
    one, two = book.take(book.delivery(raw))
    book.ledger.done(one)
    book.ledger.reject(two, "note.unknown")
    assert book.said() == [("lease1", pb.Settle.ACK, [2], "note.unknown")]
    assert book.take(book.delivery(raw, remaining=[2], messages=1)) == []
    assert book.said() == [("lease2", pb.Settle.REJECT, [], "note.unknown")]


def test_what_cannot_be_proved_is_rejected_with_its_code(book: Book) -> None:
    raw = book.sealed(b"1")
    batch = ChannelBatch.from_bytes(raw)
    message = book.delivery(raw)
    message.parcels[0].acceptance = bytes(64)
    assert book.take(message) == []
    assert book.said() == [("lease1", pb.Settle.REJECT, [], Code.ENVELOPE_ACCEPTANCE)]
    assert book.credit == len(batch)


def test_an_opening_that_cannot_be_judged_yet_holds_what_comes_on_its_channel(
    book: Book, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw, inbox = book.sealed(b"1"), book.b.inbox
    opens = inbox.open

    def unsure(*_: object, **__: object) -> None:
        raise EnvelopeRefused(Code.STANDING_UNKNOWN, "no list")

    monkeypatch.setattr(inbox, "open", unsure)
    assert book.take(book.delivery(raw)) == []
    assert book.said() == [("lease1", pb.Settle.NAK, [], Code.CHANNEL_UNOPENED)]
    monkeypatch.setattr(inbox, "open", opens)
    assert [one.plaintext for one in book.take(book.delivery(raw), now_s=5.0)] == [b"1"]


def test_a_channel_whose_opening_never_came_is_refused(book: Book) -> None:
    assert book.take(book.delivery(book.sealed(b"1"), opening=False)) == []
    assert book.said() == [("lease1", pb.Settle.REJECT, [], Code.CHANNEL_UNOPENED)]


def test_leases_of_what_is_in_hand_are_extended_after_half_of_their_time(book: Book) -> None:
    (one,) = book.take(book.delivery(book.sealed(b"1")), now_s=0.0)
    assert not book.ledger.keep(LEASE_S / 2)
    assert book.ledger.keep(LEASE_S / 2 + 1)
    assert book.said() == [("lease1", pb.Settle.EXTEND, [], "")]
    assert not book.ledger.keep(LEASE_S / 2 + 2)
    book.ledger.done(one)
    assert not book.ledger.keep(10 * LEASE_S)


def test_a_dead_letter_that_is_sent_on_its_way_again_is_handed_out_again(book: Book) -> None:
    alone, shared = book.sealed(b"1"), book.sealed(b"2", b"3")
    one, two, three = book.take(book.delivery(alone, shared))
    book.ledger.reject(one, "note.unknown")
    book.ledger.reject(two, "note.unknown")
    book.ledger.done(three)
    assert book.take(book.delivery(shared, remaining=[2], messages=1)) == []  # it dies alone
    assert [verb for _, verb, _, _ in book.said()] == [pb.Settle.REJECT, pb.Settle.ACK, pb.Settle.REJECT]
    again = book.take(book.delivery(alone)) + book.take(book.delivery(shared, remaining=[2], messages=1))
    assert [one.plaintext for one in again] == [b"1", b"2"]


def test_nothing_is_called_done_before_a_checkpoint_says_so(book: Book) -> None:
    ledger = book.begun(keeps=True)
    first, second, third = book.sealed(b"1"), book.sealed(b"2", b"3"), book.sealed(b"4")
    one, two, three, four = book.take(book.delivery(first, second, third))
    assert ledger.unkept == 0
    ledger.done(one)
    covered = ledger.unkept
    ledger.done(two)
    ledger.again(three)
    ledger.reject(four, "note.unknown")
    assert book.said() == [("lease3", pb.Settle.REJECT, [], "note.unknown")]  # nothing was handled there
    assert book.credit == 1
    ledger.kept(covered)
    assert book.said() == [("lease1", pb.Settle.ACK, [], "")]
    ledger.kept(ledger.unkept)
    assert (book.said(), book.credit) == ([("lease2", pb.Settle.ACK, [3], "")], 2)
    assert ledger.unkept == 0


def test_what_was_handled_and_not_kept_when_the_connection_broke_is_recognised_and_waits_too(book: Book) -> None:
    ledger = book.begun(keeps=True)
    raw = book.sealed(b"1")
    (one,) = book.take(book.delivery(raw))
    ledger.done(one)
    ledger.disconnected()
    assert ledger.unkept == 0
    assert book.take(book.delivery(raw, opening=True)) == []
    assert book.said() == []
    ledger.kept(ledger.unkept)
    assert book.said() == [("lease2", pb.Settle.ACK, [], "")]
