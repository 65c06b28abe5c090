"""What cannot be taken at this moment waits, and what is behind it on its channel waits with it: nothing of it is lost.
Whoever has fallen is not listened to, on channels that were open before either."""

import pytest

from broker.wire import stream_pb2 as pb
from enclave.errors import Code, EnvelopeRefused
from enclave.ledger import MAX_TOKENS, PUT_OFF_S, RETRY_S, TOKEN_S
from enclave.standing import MAX_AGE_S, Standing
from tests.test_enclave_mailbox import NOW_S
from tests.test_ledger import Book


@pytest.fixture
def book() -> Book:
    return Book()


class List:
    """The newest list of the fallen, in place of one that a broker signed."""

    def __init__(self, book: Book) -> None:
        self.standing = Standing(book.b.inbox._time)
        self.book = book
        book.b.inbox.standing = self.standing

    def learn(self, *fallen: str) -> None:
        self.standing._asked_s, self.standing._at_s = self.book.b.inbox._time.now_s(), NOW_S
        self.standing._fallen = frozenset(fallen)


def codes(book: Book) -> list[str]:
    return [code for _, _, _, code in book.said()]


def test_a_sender_who_has_fallen_is_not_heard_on_a_channel_that_was_open_before(book: Book) -> None:
    news = List(book)
    news.learn()
    assert [one.plaintext for one in book.take(book.delivery(book.sealed(b"1")))] == [b"1"]
    news.learn(book.pair.a.verdict.subject)
    assert book.take(book.delivery(book.sealed(b"2"))) == []
    assert codes(book) == [Code.PEER_FALLEN]


def test_a_channel_that_was_open_before_waits_too_for_a_list_that_is_young_enough(book: Book) -> None:
    news = List(book)
    news.learn()
    assert book.take(book.delivery(book.sealed(b"1"))) != []
    book.b.ticks.now += MAX_AGE_S + 1
    late = book.sealed(b"2")
    assert book.take(book.delivery(late)) == []
    assert book.said() == [("lease2", pb.Settle.NAK, [], Code.STANDING_UNKNOWN)]
    news.learn()
    assert [one.plaintext for one in book.take(book.delivery(late))] == [b"2"]


def test_what_is_behind_a_batch_that_was_put_off_is_not_taken_before_it(book: Book) -> None:
    """It would be taken for a gap, and what was put off would never be handled."""
    news = List(book)
    one, two, three = (book.sealed(text) for text in (b"1", b"2", b"3"))
    news.learn()
    assert book.take(book.delivery(one)) != []
    book.b.ticks.now += MAX_AGE_S + 1
    assert book.take(book.delivery(two)) == []
    news.learn()
    assert book.take(book.delivery(three)) == []
    assert [said[1] for said in book.said()] == [pb.Settle.NAK, pb.Settle.NAK]
    again = book.take(book.delivery(two, three), now_s=RETRY_S)
    assert [incoming.plaintext for incoming in again] == [b"2", b"3"]


def test_so_it_is_where_the_opening_could_not_be_judged(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = book.sealed(b"1"), book.sealed(b"2")
    opens = book.b.inbox.open

    def unsure(*_: object, **__: object) -> None:
        raise EnvelopeRefused(Code.STANDING_UNKNOWN, "no list")

    monkeypatch.setattr(book.b.inbox, "open", unsure)
    assert book.take(book.delivery(one)) == []
    monkeypatch.setattr(book.b.inbox, "open", opens)
    assert book.take(book.delivery(two), now_s=2.0) == []
    assert [incoming.plaintext for incoming in book.take(book.delivery(one, two), now_s=5.0)] == [b"1", b"2"]


def test_what_never_comes_again_does_not_hold_its_channel_for_ever(book: Book) -> None:
    news = List(book)
    one, two = book.sealed(b"1"), book.sealed(b"2")
    news.learn()
    assert book.take(book.delivery()) == []
    book.b.ticks.now += MAX_AGE_S + 1
    assert book.take(book.delivery(one)) == []
    news.learn()
    assert book.take(book.delivery(two), now_s=PUT_OFF_S / 2) == []
    assert [incoming.plaintext for incoming in book.take(book.delivery(two), now_s=PUT_OFF_S)] == [b"2"]


def test_tokens_of_senders_who_were_heard_of_long_ago_are_not_kept(book: Book) -> None:
    for hour in range(4):
        for first in range(0, MAX_TOKENS, 1024):
            crowd = {f"agent/{hour}/{number}": "token" for number in range(first, first + 1024)}
            book.take(pb.FromBroker(senders=crowd), now_s=hour * TOKEN_S)
    assert len(book.ledger._senders) <= 2 * MAX_TOKENS
    assert [one.plaintext for one in book.take(book.delivery(book.sealed(b"1")), now_s=5 * TOKEN_S)] == [b"1"]
