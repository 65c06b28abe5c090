"""Nobody who may only send stops a sender, a reader or a mailbox for good, and no reader's crash is for nothing."""

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from broker.mail.drawing import MAX_PARCELS
from broker.rpc import stream
from broker.wire import stream_pb2 as pb
from enclave import passage
from enclave.errors import Code
from tests.broker_world import World
from tests.channel_pair import Pair
from tests.test_durable import BOX, Stage, place, some, tell
from tests.test_enclave_mailbox import party
from tests.test_lanes import Way, firsts
from tests.test_mail_attacks import Deaf

__all__ = ["place"]


@pytest.fixture
def way() -> Way:
    return Way()


@pytest.mark.asyncio
async def test_a_gap_that_nothing_can_fill_ends_the_channel_and_not_the_lane(way: Way) -> None:
    """The broker's disk was put back: it has forgotten batches that it had called taken."""
    way.post(b"1")
    way.key()
    (first,) = way.sends()
    way.answer(first)
    way.post(b"2")
    (second,) = way.sends()
    way.post(b"3")
    (third,) = way.sends()
    way.answer(second, "refused", "channel.gap", 1)
    way.answer(third, "refused", "channel.gap", 1)
    way.now_s += 1
    assert way.sends() == []
    way.key()
    (anew,) = way.sends()
    assert (anew.opening == first.opening, firsts([anew])) == (False, [1])
    way.answer(anew)
    assert way.outcomes() == ["taken"] * 3


@pytest.mark.asyncio
async def test_a_gap_before_the_first_answer_of_a_connection_is_waited_out(way: Way) -> None:
    way.post(b"1")
    way.key()
    (first,) = way.sends()
    way.post(b"2")
    (second,) = way.sends()
    way.answer(second, "refused", "channel.gap", 1)
    way.answer(first)
    way.now_s += 1
    assert [send.batch for send in way.sends()] == [second.batch]
    await asyncio.sleep(0)


def test_many_senders_together_cannot_keep_others_from_opening_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has been handled makes room, and then whoever has the most: never one who has a single channel."""
    monkeypatch.setattr(passage, "MAX_CHANNELS", 8)
    monkeypatch.setattr(passage, "MAX_OF_SENDER", 4)
    pair = Pair()
    for name in ("one", "two"):
        noisy = party(pair.router, name)
        opened = [pair.opened(noisy) for _ in range(4)]
        assert {pair.admit(channel, noisy) for channel in opened} == {"ok"}
    assert pair.admit(pair.opened(pair.a)) == "ok"
    for name in ("three", "four"):
        late = party(pair.router, name)
        assert pair.admit(pair.opened(late), late) == "ok"
    assert pair.texts(pair.open(pair.seal(b"still heard").raw)) == [b"still heard"]
    assert pair.admit(opened[0], noisy) == Code.ENVELOPE_REPLAYED  # what made room does not come back


@pytest.mark.asyncio
async def test_what_a_durable_reader_was_handling_when_it_died_counts_and_nothing_else_does(place: Stage) -> None:
    """Else a message that kills its reader would kill each next one; and five such deaths would bury what waits."""
    first = await place.start(stream=True)
    sender = await place.start("lab/mail/sender", durable=None, stream=True)
    for text in (b"deadly", b"one", b"two"):
        await tell(sender, text)
    assert len(await some(first, 3, done=False)) == 3
    await place.crash(first)
    await place.start()
    assert await place.inside(attempts) == [1, 0, 0]


@pytest.mark.asyncio
async def test_what_a_durable_reader_had_when_it_took_its_leave_counts_for_nothing(place: Stage) -> None:
    """Five deployments in a row are no reason to bury a message that no reader ever began."""
    first = await place.start(stream=True)
    sender = await place.start("lab/mail/sender", durable=None, stream=True)
    for text in (b"head", b"one", b"two"):
        await tell(sender, text)
    took = await some(first, 3, done=False)
    assert len(took) == 3
    await first.close()
    await place.until(attempts, [0, 0, 0])


@pytest.mark.asyncio
async def test_what_a_durable_reader_had_when_the_broker_ended_its_stream_counts_for_nothing(place: Stage) -> None:
    first = await place.start(stream=True)
    sender = await place.start("lab/mail/sender", durable=None, stream=True)
    await tell(sender, b"head")
    await some(first, 1, done=False)
    owner = first.admission.subject
    admin = place.broker.broker.settings.admins[0]
    revoke = place.broker.broker.administration.revoke(admin, owner, "lost")
    await asyncio.to_thread(place.broker.run, revoke)
    await place.until(attempts, [0])


@pytest.mark.asyncio
async def test_a_reader_whose_connection_breaks_has_not_died(place: Stage) -> None:
    reader = await place.start(stream=True)
    sender = await place.start("lab/mail/sender", durable=None, stream=True)
    await tell(sender, b"long work")
    assert await some(reader, 1, done=False) == [b"long work"]
    for _ in range(3):
        assert reader._stream is not None
        await reader._stream.close()
        await reader.connect()
        await place.until(attempts, [1])


def attempts(tx: Any) -> list[int]:
    rows = [row for row in tx.mail._parcels.rows.values() if row.new.mailbox == BOX]
    return [row.attempt for row in sorted(rows, key=lambda row: row.number)]


@pytest.mark.asyncio
async def test_who_reads_no_mail_is_handed_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies ready for a reader that does not read lies in the broker's memory."""
    monkeypatch.setattr(stream, "FULL", 1)
    world = await World.make(tmp_path)
    deaf, sender = await world.admitted("deaf"), await world.admitted("sender")
    await deaf.open("acme/mail/b")
    key = (await sender.find("acme/mail/b")).key
    for _ in range(4):
        await sender.send(*[sender.envelope(key) for _ in range(32)])
    hello = pb.Hello(mailbox="acme/mail/b", credit=1024, lease_s=30)
    made = stream.MailStream(stream.Streams(world.broker), world.broker, cast("Any", Deaf()), deaf.token, hello, "")
    await made.welcome()
    running = asyncio.create_task(made.run())
    for _ in range(400):  # turns of the loop, far more than every look into the mailbox takes
        await asyncio.sleep(0)
    assert 0 < len(made._full) <= stream.MAX_FULL + MAX_PARCELS
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await world.broker.close()
