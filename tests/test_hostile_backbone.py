"""Somebody with full access to the database: reads nothing, and gets no receiver to take what was not sent to it so."""

import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from broker.wire.envelope import Envelope, Header
from broker.wire.errors import WireCode, WireError
from enclave.errors import Code, EnvelopeRefused
from tests.broker_world import Agent, World
from tests.mail_world import BOX, Receiver, Sender, make

OTHER = "acme/mail/other"
TEXTS = tuple(b"the plaintext with number %d" % number for number in range(3))


@dataclass
class Backbone:
    """The database under the broker, in the hands of an attacker."""

    path: Path
    world: World
    a: Sender
    b: Receiver
    mallory: Agent
    other: Receiver

    def sql(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.path)) as db, db:
            return db.execute(query, values).fetchall()

    def rows(self, table: str) -> list[tuple[Any, ...]]:
        return self.sql(f"SELECT * FROM {table} ORDER BY id")

    def put_back(self, parcels: list[tuple[Any, ...]], bodies: list[tuple[Any, ...]]) -> None:
        for table, rows in (("parcel", parcels), ("parcel_body", bodies)):
            for row in rows:
                marks = ",".join("?" * len(row))
                self.sql(f"INSERT OR REPLACE INTO {table} VALUES ({marks})", *row)

    def body(self, number: int) -> Envelope:
        return Envelope.from_bytes(self.sql("SELECT envelope FROM parcel_body WHERE id = ?", number)[0][0])

    def set_body(self, number: int, raw: bytes) -> None:
        self.sql("UPDATE parcel_body SET envelope = ? WHERE id = ?", raw, number)
        self.sql("UPDATE parcel SET digest = x'' WHERE id = ?", number)  # the broker makes it anew, and signs that

    async def seen_by(self, receiver: Receiver) -> list[str]:
        """What the receiver makes of all that it is handed: plaintexts, or the codes of its refusals."""
        got = await receiver.take()
        outcomes = []
        for delivery in got.deliveries:
            try:
                outcomes.append(receiver.open(delivery, got.senders).plaintext.decode())
            except (EnvelopeRefused, WireError) as error:
                outcomes.append(str(error.code))
        return outcomes


@pytest_asyncio.fixture
async def backbone(tmp_path: Path) -> AsyncIterator[Backbone]:
    world = await make(tmp_path, database=True)
    b = Receiver(await world.admitted("b"))
    other = Receiver(b.agent, OTHER)
    await b.publish()
    await other.publish()
    a, mallory = await Sender.to(await world.admitted("a")), await world.admitted("mallory")
    await a.post(*TEXTS)
    yield Backbone(path=tmp_path / "broker.db", world=world, a=a, b=b, mallory=mallory, other=other)
    await world.broker.close()


def test_the_database_shows_ciphertext_alone(backbone: Backbone) -> None:
    everything = b"".join(path.read_bytes() for path in backbone.path.parent.glob("broker.db*"))
    assert BOX.encode() in everything, "the search reads what it means to read"
    assert not any(text in everything for text in TEXTS)


@pytest.mark.asyncio
async def test_what_was_handled_and_is_put_back_is_refused_as_a_replay(backbone: Backbone) -> None:
    copy = backbone.rows("parcel"), backbone.rows("parcel_body")
    assert await backbone.b.read() == list(TEXTS)
    backbone.put_back(*copy)
    assert await backbone.seen_by(backbone.b) == [Code.ENVELOPE_REPLAYED] * 3


@pytest.mark.asyncio
async def test_what_was_handled_before_a_restart_and_is_put_back_is_refused_too(backbone: Backbone) -> None:
    copy = backbone.rows("parcel"), backbone.rows("parcel_body")
    assert await backbone.b.read() == list(TEXTS)
    backbone.b.inbox = backbone.b.another()
    await backbone.b.publish()
    backbone.put_back(*copy)
    assert await backbone.seen_by(backbone.b) == [Code.ENVELOPE_INCARNATION] * 3


@pytest.mark.asyncio
async def test_what_is_moved_to_another_mailbox_is_refused_there(backbone: Backbone) -> None:
    backbone.sql("UPDATE parcel SET mailbox = ? WHERE id = 2", OTHER)
    backbone.sql("INSERT OR REPLACE INTO lane SELECT ?, sender, 1, 100, 1 FROM lane WHERE mailbox = ?", OTHER, BOX)
    assert await backbone.seen_by(backbone.other) == [Code.ENVELOPE_WRONG_MAILBOX]
    assert await backbone.seen_by(backbone.b) == [TEXTS[0].decode(), TEXTS[2].decode()]


@pytest.mark.asyncio
async def test_what_was_cut_short_dies_at_the_broker_and_nothing_behind_it_waits(backbone: Backbone) -> None:
    raw = backbone.body(1).to_bytes()
    backbone.set_body(1, raw[: len(raw) // 2])
    assert await backbone.seen_by(backbone.b) == [TEXTS[1].decode(), TEXTS[2].decode()]
    (dead,) = backbone.world.broker.store.read(lambda tx: tx.mail.dead(BOX))
    assert (dead.number, dead.code) == (1, "store.row_forged")


def flipped(good: Envelope, mallory: Agent) -> Envelope:
    return Envelope(header=good.header, body=good.body[:-1] + bytes([good.body[-1] ^ 1]), signature=good.signature)


def relabelled(good: Envelope, mallory: Agent) -> Envelope:
    header = Header.from_bytes(good.header)
    fewer = {name: getattr(header, name) for name in header.__dataclass_fields__} | {"labels": ("public",)}
    return Envelope(header=Header(**fewer).to_bytes(), body=good.body, signature=good.signature)


def forged(good: Envelope, mallory: Agent) -> Envelope:
    return Envelope.sign(mallory.key, header=good.header, body=good.body)


def stolen(good: Envelope, mallory: Agent) -> Envelope:
    header = Header.from_bytes(good.header)
    own = {name: getattr(header, name) for name in header.__dataclass_fields__}
    own |= {"sender": mallory.subject, "sender_jkt": mallory.jkt}
    return Envelope.sign(mallory.key, header=Header(**own).to_bytes(), body=good.body)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("change", "by", "code"),
    [
        (flipped, "a", WireCode.ENVELOPE_SIGNATURE),
        (relabelled, "a", WireCode.ENVELOPE_SIGNATURE),
        (forged, "a", WireCode.ENVELOPE_SIGNATURE),
        (forged, "mallory", Code.ENVELOPE_SENDER),
        (stolen, "a", Code.ENVELOPE_SENDER),
        (stolen, "mallory", Code.ENVELOPE_BODY),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
async def test_what_was_changed_or_forged_in_the_database_is_refused_by_its_receiver(
    backbone: Backbone, change: Callable[[Envelope, Agent], Envelope], by: str, code: str
) -> None:
    backbone.sql("DELETE FROM parcel WHERE id > 1")
    backbone.set_body(1, change(backbone.body(1), backbone.mallory).to_bytes())
    if by == "mallory":
        backbone.sql("UPDATE parcel SET sender = ?", backbone.mallory.subject)
        backbone.sql("UPDATE lane SET sender = ?", backbone.mallory.subject)
    assert await backbone.seen_by(backbone.b) == [code]


@pytest.mark.asyncio
async def test_a_life_that_was_made_longer_in_the_database_ends_when_the_sender_said(backbone: Backbone) -> None:
    backbone.sql("UPDATE parcel SET expires_at_ms = expires_at_ms + 3600000")
    backbone.world.machine.clock.advance(601)
    await backbone.b.agent.attest()
    await backbone.a.agent.attest()
    assert await backbone.seen_by(backbone.b) == [Code.ENVELOPE_EXPIRED] * 3


@pytest.mark.asyncio
async def test_what_was_taken_away_is_missed_by_its_number(backbone: Backbone) -> None:
    backbone.sql("DELETE FROM parcel WHERE id = 2")
    got = await backbone.b.take()
    numbers = [backbone.b.open(delivery, got.senders).header.seq for delivery in got.deliveries]
    assert numbers[1] - numbers[0] == 2
