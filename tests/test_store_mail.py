"""Mail in the stores: taken once, in order, within quotas; and one story that both tell."""

import os
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.ports import AgentState, Store, Transaction
from broker.ports.mail import MAX_KEYS, End, NewMessage, Queued, Quota
from broker.store.memory import MemoryStore
from broker.store.sql import SqlStore
from tests.store_world import KEY, acknowledge, agent, box, do, message
from tests.store_world import store as store


def ready(store: Store) -> None:
    def work(tx: Transaction) -> None:
        tx.agents.put(agent())
        tx.mail.open(box())

    do(store, work)


def lease(store: Store, *, now_ms: int = 2_000, most: int = 10, attempts: int = 5) -> list[tuple[bytes, str]]:
    tokens = [os.urandom(8).hex() for _ in range(most)]
    got = do(
        store,
        lambda tx: tx.mail.lease(
            "acme/mail", now_ms=now_ms, until_ms=now_ms + 30_000, leases=tokens, max_attempts=attempts
        ),
    )
    return [(item.envelope, item.lease) for item in got.messages]


def queue(store: Store, new: NewMessage, quota: Quota | None = None) -> Queued:
    return do(store, lambda tx: tx.mail.queue(new, quota or Quota()))


def give_back(store: Store, token: str, *, now_ms: int, visible_at_ms: int) -> bool:
    return do(store, lambda tx: tx.mail.give_back("acme/mail", token, now_ms=now_ms, visible_at_ms=visible_at_ms))


def open_box(store: Store, **how: Any) -> None:
    do(store, lambda tx: tx.mail.open(box(**how)))


# ── mail ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_message_is_taken_once_and_a_reused_id_is_seen(store: Store) -> None:
    ready(store)

    assert queue(store, message()) is Queued.QUEUED
    assert queue(store, message()) is Queued.DUPLICATE
    assert queue(store, message(digest=bytes(32))) is Queued.ID_REUSED
    assert store.read(lambda tx: tx.mail.waiting("acme/mail")) == 1
    assert store.read(lambda tx: tx.mail.next_seq("acme/mail", "agent/acme/a")) == 2


def test_a_handled_message_stays_known(store: Store) -> None:
    ready(store)
    queue(store, message())
    ((_, token),) = lease(store)
    assert do(store, lambda tx: tx.mail.acknowledge("acme/mail", token, now_ms=3_000))
    assert queue(store, message(accepted_at_ms=4_000)) is Queued.DUPLICATE
    assert store.read(lambda tx: tx.mail.waiting("acme/mail")) == 0


def test_quotas_count_messages_and_octets_and_expired_ones_make_room(store: Store) -> None:
    ready(store)

    assert queue(store, message(1, expires_at_ms=5_000), Quota(messages=1)) is Queued.QUEUED
    assert queue(store, message(2), Quota(messages=1)) is Queued.FULL
    assert queue(store, message(2), Quota(octets=15)) is Queued.FULL
    assert queue(store, message(3, accepted_at_ms=6_000), Quota(messages=1)) is Queued.FULL
    assert not do(store, lambda tx: tx.mail.expire(now_ms=6_000, dead_before_ms=0, mailbox="acme/other"))
    gone = do(store, lambda tx: tx.mail.expire(now_ms=6_000, dead_before_ms=0, mailbox="acme/mail"))
    assert [(parcel.msg_id, parcel.end) for parcel in gone] == [(message(1).msg_id, End.EXPIRED)]
    assert queue(store, message(3, accepted_at_ms=6_000), Quota(messages=1)) is Queued.QUEUED


def test_order_is_kept_and_a_lease_hides(store: Store) -> None:
    ready(store)
    for number in (1, 2, 3):
        queue(store, message(number))
    assert [envelope for envelope, _ in lease(store, most=2)] == [b"envelope1", b"envelope2"]
    assert [envelope for envelope, _ in lease(store)] == [b"envelope3"]
    assert lease(store) == []
    assert [envelope for envelope, _ in lease(store, now_ms=40_000)] == [b"envelope1", b"envelope2", b"envelope3"]


def test_a_late_or_foreign_acknowledgement_is_refused(store: Store) -> None:
    ready(store)
    queue(store, message())
    ((_, token),) = lease(store)
    assert not do(store, lambda tx: tx.mail.acknowledge("acme/mail", token, now_ms=33_000))
    assert not do(store, lambda tx: tx.mail.acknowledge("acme/other", token, now_ms=3_000))
    assert not do(store, lambda tx: tx.mail.acknowledge("acme/mail", "other", now_ms=3_000))
    assert do(store, lambda tx: tx.mail.acknowledge("acme/mail", token, now_ms=3_000))
    assert not do(store, lambda tx: tx.mail.acknowledge("acme/mail", token, now_ms=3_000))


def test_what_is_given_back_comes_again_after_the_delay(store: Store) -> None:
    ready(store)
    queue(store, message())
    ((_, token),) = lease(store)
    assert do(store, lambda tx: tx.mail.give_back("acme/mail", token, now_ms=3_000, visible_at_ms=9_000))
    assert lease(store, now_ms=8_000) == []
    ((_, other),) = lease(store, now_ms=9_000)
    assert other != token
    assert not do(store, lambda tx: tx.mail.acknowledge("acme/mail", token, now_ms=9_100))


def test_expired_and_too_often_tried_messages_are_not_handed_out(store: Store) -> None:
    ready(store)
    queue(store, message(1, expires_at_ms=1_500))
    queue(store, message(2, expires_at_ms=10_000_000))
    times = [len(lease(store, now_ms=2_000 + 40_000 * turn, attempts=3)) for turn in range(5)]
    assert times == [1, 1, 1, 0, 0]
    assert store.read(lambda tx: tx.mail.waiting("acme/mail")) == 0


def test_mail_of_a_sender_who_fell_is_held_until_he_is_back(store: Store) -> None:
    ready(store)
    queue(store, message())
    do(store, lambda tx: tx.agents.put(agent(state=AgentState.QUARANTINED)))
    assert lease(store) == []
    assert store.read(lambda tx: tx.mail.waiting("acme/mail")) == 1
    do(store, lambda tx: tx.agents.put(agent()))
    assert len(lease(store)) == 1


def test_a_new_incarnation_drops_what_nobody_can_read_any_more(store: Store) -> None:
    ready(store)
    queue(store, message())
    do(store, lambda tx: tx.mail.open(box(key=b"k2", incarnation=b"i1", epoch=2)))
    assert store.read(lambda tx: tx.mail.waiting("acme/mail")) == 1
    assert store.read(lambda tx: tx.mail.accepts("acme/mail", b"k1", b"i1"))
    do(store, lambda tx: tx.mail.open(box(key=b"k3", incarnation=b"i2")))
    assert store.read(lambda tx: tx.mail.waiting("acme/mail")) == 0
    assert not store.read(lambda tx: tx.mail.accepts("acme/mail", b"k1", b"i1"))


def test_only_the_newest_keys_of_a_mailbox_are_kept(store: Store) -> None:
    for number in range(MAX_KEYS + 2):
        open_box(store, key=b"k%d" % number, epoch=number)
    known = store.read(lambda tx: [tx.mail.accepts("acme/mail", b"k%d" % n, b"i1") for n in range(MAX_KEYS + 2)])
    assert known == [False, False] + [True] * MAX_KEYS


VERBS = "send batch lease ack nak partly extend reject redrive expire take_over hold later".split()


@given(steps=st.lists(st.tuples(st.sampled_from(VERBS), st.integers(0, 5)), max_size=30))
@settings(max_examples=40)
def test_both_stores_tell_the_same_story(
    steps: list[tuple[str, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    stores: list[Store] = [MemoryStore(), SqlStore(tmp_path_factory.mktemp("s") / "a.db", mac_key=KEY)]
    stories = [_Story(one).tell(steps) for one in stores]
    for one in stores:
        one.close()
    assert stories[0] == stories[1]


class _Story:
    """What a store says to a list of steps: two senders, one of whom falls when he is told to."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.now_ms, self.count = 2_000, 0
        ready(store)
        do(store, lambda tx: tx.agents.put(agent("agent/acme/c")))

    def tell(self, steps: list[tuple[str, int]]) -> list[object]:
        told: list[object] = []
        for what, number in steps:
            told.append(getattr(self, what)(number, f"lease{number}"))
            told.append(self.store.read(lambda tx: tx.mail.waiting("acme/mail")))
            told.append(self.store.read(lambda tx: sorted(tx.mail.senders("acme/mail", now_ms=self.now_ms))))
            told.append([letter.number for letter in self.store.read(lambda tx: tx.mail.dead("acme/mail"))])
        return told

    def _new(self, number: int, **how: Any) -> NewMessage:
        sender = "agent/acme/c" if number % 2 else "agent/acme/a"
        end = {"accepted_at_ms": self.now_ms, "expires_at_ms": self.now_ms + 50_000}
        return message(number, sender=sender, **(end | how))

    def send(self, number: int, _: str) -> object:
        return queue(self.store, self._new(number), Quota(messages=6, sender_messages=4))

    def batch(self, number: int, _: str) -> object:
        return queue(self.store, self._new(number, kind="batch", count=3), Quota(messages=6, sender_messages=4))

    def lease(self, number: int, _: str) -> object:
        tokens = [f"lease{self.count + i}" for i in range(2)]
        self.count += 2
        fallen: Any = ("hold", "deliver", "drop")[number % 3]
        return do(
            self.store,
            lambda tx: tx.mail.lease(
                "acme/mail",
                now_ms=self.now_ms,
                until_ms=self.now_ms + 5_000,
                leases=tokens,
                max_attempts=2,
                max_messages=4,
                fallen=fallen,
            ),
        )

    def ack(self, _: int, token: str) -> object:
        return acknowledge(self.store, token, now_ms=self.now_ms)

    def nak(self, _: int, token: str) -> object:
        return give_back(self.store, token, now_ms=self.now_ms, visible_at_ms=self.now_ms + 2_000)

    def partly(self, number: int, token: str) -> object:
        return do(
            self.store,
            lambda tx: tx.mail.give_back(
                "acme/mail",
                token,
                now_ms=self.now_ms,
                visible_at_ms=self.now_ms,
                remaining=tuple(range(number)),
                code="handler.failed",
            ),
        )

    def extend(self, number: int, token: str) -> object:
        until_ms = self.now_ms + number * 4_000
        return do(
            self.store,
            lambda tx: tx.mail.extend("acme/mail", token, now_ms=self.now_ms, until_ms=until_ms, max_ms=9_000),
        )

    def reject(self, _: int, token: str) -> object:
        return do(self.store, lambda tx: tx.mail.reject("acme/mail", token, now_ms=self.now_ms, code="no"))

    def redrive(self, number: int, _: str) -> object:
        return do(self.store, lambda tx: tx.mail.redrive("acme/mail", number, now_ms=self.now_ms))

    def expire(self, number: int, _: str) -> object:
        before = self.now_ms - number * 10_000
        return do(self.store, lambda tx: tx.mail.expire(now_ms=self.now_ms, dead_before_ms=before))

    def take_over(self, number: int, _: str) -> object:
        record = replace(box(), owner=f"agent/acme/{number}", kind="durable" if number % 2 else "ephemeral")
        return do(self.store, lambda tx: tx.mail.open(record))

    def hold(self, number: int, _: str) -> object:
        state = AgentState.QUARANTINED if number % 2 else AgentState.ADMITTED
        return do(self.store, lambda tx: tx.agents.put(agent("agent/acme/c", state=state)))

    def later(self, number: int, _: str) -> None:
        self.now_ms += number * 4_000
