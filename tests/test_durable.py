"""Durable mailboxes: the key comes back by attesting, what was received stays received, and old disks are noticed."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from enclave.durable import Durable
from enclave.errors import Code, StateLost, TransportFailed
from enclave.received import Received
from enclave.runtime import Runtime
from simulator.broker_fixture import BrokerUnderTest

BOX = "lab/mail/jobs"

KEEPING = Durable()
PATIENCE_S = 10.0


class Stage:
    """A broker under test and the agents of one test, which end with it."""

    def __init__(self, broker: BrokerUnderTest) -> None:
        self.broker = broker
        self.running: list[Runtime] = []

    async def start(self, mailbox: str = BOX, durable: Durable | None = KEEPING, *, stream: bool = False) -> Runtime:
        runtime = Runtime(
            domain=self.broker.machine.launch("durable"),
            trust=self.broker.trust,
            broker_url=self.broker.url,
            mailbox=mailbox,
            durable=durable,
        )
        self.running.append(runtime)
        await runtime.attest()
        await runtime.publish()
        if stream:
            await runtime.connect()
            assert runtime._stream is not None
        return runtime

    async def crash(self, runtime: Runtime) -> None:
        """The process is gone; that nobody waits for its mailbox is this helper's doing."""
        self.running.remove(runtime)
        owner = runtime.admission.subject
        if runtime._stream is not None:
            runtime._stream._keeping = None  # no last checkpoint
            assert runtime._stream._task is not None
            runtime._stream._task.cancel()  # and no leave taken
            await asyncio.gather(runtime._stream._task, return_exceptions=True)
            await runtime._stream.close()
        await self.inside(lambda tx: tx.mail.hold(runtime.inbox.name, owner=owner, until_ms=0))
        await runtime._client.aclose()

    async def inside(self, work: Callable[[Any], Any]) -> Any:
        """Work on the broker's store, as a program with full access to it could."""
        return await asyncio.to_thread(self.broker.run, self.broker.broker.store.transact(work))

    async def until(self, query: Callable[[Any], Any], wanted: Any) -> None:
        """Until the broker's store says so; it is asked after every commit."""
        store = self.broker.broker.store

        async def changes() -> None:
            loop, changed = asyncio.get_running_loop(), asyncio.Event()
            store.after_commit(partial(_wake, loop, changed))
            async with asyncio.timeout(PATIENCE_S):
                while store.read(query) != wanted:
                    await changed.wait()
                    changed.clear()

        await asyncio.to_thread(self.broker.run, changes())


def _wake(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(event.set)


@pytest_asyncio.fixture
async def place(broker: BrokerUnderTest) -> AsyncIterator[Stage]:
    made = Stage(broker)
    yield made
    for runtime in made.running:
        await runtime.close()


async def tell(sender: Runtime, text: bytes) -> None:
    await sender.send(BOX, kind="job", plaintext=text)


async def texts(reader: Runtime) -> list[bytes]:
    return [received.plaintext for received in await reader.receive(16)]


# ── the key comes back ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_mail_that_was_unread_is_read_by_the_next_process(place: Stage) -> None:
    first = await place.start()
    sender = await place.start("lab/mail/sender", durable=None)
    await tell(sender, b"one")
    await place.crash(first)
    await tell(sender, b"two")
    second = await place.start()
    assert second.keys.jkt != first.keys.jkt
    assert await texts(second) == [b"one", b"two"]


@pytest.mark.asyncio
async def test_what_was_received_stays_received(place: Stage) -> None:
    """Somebody puts the acknowledged parcel back into the queue, byte by byte: no process takes it a second time."""
    first = await place.start()
    sender = await place.start("lab/mail/sender", durable=None)
    await tell(sender, b"one")
    parcel = await place.inside(lambda tx: _stored(tx))
    (received,) = await first.receive(16)
    await first.finish(received)
    await place.inside(lambda tx: _put_back(tx, parcel))
    await tell(sender, b"two")
    assert await texts(first) == [b"two"]
    await place.crash(first)
    await place.inside(lambda tx: _put_back(tx, parcel))
    second = await place.start()
    assert second._durable is not None
    assert second._durable.lost is None
    assert b"one" not in await texts(second)


def _stored(tx: Any) -> Any:
    """The one parcel that waits, as it lies there."""
    (found,) = [parcel for parcel in tx.mail._parcels.rows.values() if parcel.new.mailbox == BOX]
    return found.new


def _put_back(tx: Any, new: Any) -> None:
    """What the store would not do by itself: the same parcel again, forgotten among the ids that were seen."""
    for key in [key for key in tx.mail._seen.rows if key[0] == BOX]:
        tx.mail._seen.drop(key)
    tx.mail.queue(new, _quota())


def _quota() -> Any:
    from broker.ports.mail import Quota

    return Quota()


@pytest.mark.asyncio
async def test_mail_is_taken_while_nobody_is_there_to_read_it(place: Stage) -> None:
    first = await place.start()
    await place.crash(first)
    place.broker.machine.clock.advance(timedelta(minutes=10))  # its token has long ended
    sender = await place.start("lab/mail/sender", durable=None)
    await tell(sender, b"one")
    assert await texts(await place.start()) == [b"one"]


# ── over the stream, on channels ───────────────────────────────────────────────────────────────────────────────────


async def some(reader: Runtime, count: int, *, done: bool = True) -> list[bytes]:
    """The next so many messages."""
    found: list[bytes] = []
    async with asyncio.timeout(PATIENCE_S):
        while len(found) < count:
            for received in await reader.receive(count - len(found)):
                found.append(received.plaintext)
                if done:
                    await reader.finish(received)
    return found


async def emptied(place: Stage) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while await place.inside(lambda tx: tx.mail.waiting(BOX)):
            await asyncio.sleep(0.01)


async def kinds_waiting(place: Stage) -> set[str]:
    rows = await place.inside(lambda tx: list(tx.mail._parcels.rows.values()))
    return {row.new.kind for row in rows if row.new.mailbox == BOX}


@pytest.mark.asyncio
async def test_a_durable_mailbox_is_read_over_the_stream_from_channels_and_nothing_is_left(place: Stage) -> None:
    reader = await place.start(stream=True)
    sender = await place.start("lab/mail/sender", durable=None, stream=True)
    wanted = [b"%d" % number for number in range(40)]
    reading = asyncio.create_task(some(reader, len(wanted)))
    for text in wanted:
        await tell(sender, text)
    assert await reading == wanted
    await emptied(place)
    assert [one.highest for one in reader._channels.passages()] == [39]  # the first went as an envelope


@pytest.mark.asyncio
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "rest"])
async def test_the_next_process_reads_what_waits_on_a_channel_whichever_way_it_reads(
    place: Stage, stream: bool
) -> None:
    """Its first owner handled some, had some in hand, and never saw the rest; the sender has gone as well."""
    first = await place.start(stream=True)
    sender = await place.start("lab/mail/sender", durable=None, stream=True)
    for number in range(4):
        await tell(sender, b"%d" % number)
    assert await some(first, 2) == [b"0", b"1"]
    await first._durable.save()  # type: ignore[union-attr]
    assert await some(first, 2, done=False) == [b"2", b"3"]
    await place.crash(first)
    for number in range(4, 7):
        await tell(sender, b"%d" % number)
    await place.crash(sender)
    assert "batch" in await kinds_waiting(place)
    second = await place.start(stream=stream)
    assert await some(second, 5) == [b"%d" % number for number in range(2, 7)]
    await emptied(place)
    assert second._durable is not None
    assert second._durable.lost is None


@pytest.mark.asyncio
async def test_a_channel_goes_on_over_a_restart_of_its_reader(place: Stage) -> None:
    """The sender need not notice; the next owner proves by the chain that nothing is missing in between."""
    first = await place.start(stream=True)
    sender = await place.start("lab/mail/sender", durable=None, stream=True)
    for text in (b"0", b"1"):
        await tell(sender, text)
    assert await some(first, 2) == [b"0", b"1"]
    await emptied(place)
    await place.crash(first)
    await tell(sender, b"2")
    second = await place.start(stream=True)
    await tell(sender, b"3")
    assert await some(second, 2) == [b"2", b"3"]
    (passage,) = second._channels.passages()
    assert (passage.highest, passage.holes, passage.skipped) == (3, (), ())


@pytest.mark.asyncio
async def test_a_batch_that_is_put_back_is_taken_by_no_process_a_second_time(place: Stage) -> None:
    first = await place.start(stream=True)
    sender = await place.start("lab/mail/sender", durable=None, stream=True)
    await tell(sender, b"0")
    assert await some(first, 1) == [b"0"]
    await emptied(place)
    await tell(sender, b"1")
    parcel = await place.inside(_stored)
    assert await some(first, 1) == [b"1"]
    await emptied(place)
    reader = first
    for _ in range(2):
        await place.inside(lambda tx: _put_back(tx, parcel))
        await tell(sender, b"next")
        assert await some(reader, 1) == [b"next"]
        await emptied(place)
        await place.crash(reader)
        reader = await place.start(stream=True)


@pytest.mark.asyncio
async def test_a_checkpoint_whose_confirmation_was_lost_does_not_stop_the_reader(place: Stage) -> None:
    reader = await place.start()
    assert reader._durable is not None
    before, do = reader._durable._number, reader._durable._do

    async def deaf(make: Any) -> Any:
        await do(make)
        raise TransportFailed(Code.CLIENT_TIMEOUT, "the answer never came")

    reader._durable._do = deaf
    with pytest.raises(TransportFailed):
        await reader._durable.save()
    reader._durable._do = do
    assert reader._durable._number == before
    await reader._durable.save()
    assert reader._durable._number == before + 2


@pytest.mark.asyncio
async def test_a_broker_that_is_put_back_under_a_living_reader_gets_a_number_above_all_that_were(
    place: Stage, tmp_path: Path
) -> None:
    how = Durable(state_file=tmp_path / "state.json")
    reader = await place.start(durable=how)
    assert reader._durable is not None
    old = await place.inside(lambda tx: (tx.marks.get(f"state/{BOX}"), tx.states.get(BOX)))
    for _ in range(3):
        await reader._durable.save()
    highest = reader._durable._number
    newest = await place.inside(lambda tx: (tx.marks.get(f"state/{BOX}"), tx.states.get(BOX)))
    await place.inside(lambda tx: _rolled_back((tx, old)))
    await reader._durable.save()
    assert reader._durable._number == highest + 1
    await place.crash(reader)
    await place.inside(lambda tx: _rolled_back((tx, newest)))
    again = await place.start(durable=how)
    assert again._durable is not None
    assert again._durable.lost is not None
    assert again._durable.lost.code is Code.STATE_ROLLED_BACK


def kept_number(tx: Any) -> int:
    return int(tx.marks.get(f"state/{BOX}").partition(" ")[0])


@pytest.mark.asyncio
async def test_a_reader_on_a_stream_goes_on_when_the_broker_was_put_back_under_it(place: Stage) -> None:
    reader = await place.start(stream=True)
    sender = await place.start("lab/mail/sender", durable=None, stream=True)
    old = await place.inside(lambda tx: (tx.marks.get(f"state/{BOX}"), tx.states.get(BOX)))
    await tell(sender, b"0")
    assert await some(reader, 1) == [b"0"]
    await emptied(place)
    highest = await place.inside(kept_number)
    await place.inside(lambda tx: _rolled_back((tx, old)))
    await tell(sender, b"1")
    assert await some(reader, 1) == [b"1"]
    await emptied(place)
    assert await place.inside(kept_number) > highest


@pytest.mark.asyncio
async def test_a_state_file_that_cannot_be_written_for_a_while_stops_no_reader(place: Stage, tmp_path: Path) -> None:
    file = tmp_path / "disk" / "state.json"
    file.parent.mkdir()
    reader = await place.start(durable=Durable(state_file=file), stream=True)
    sender = await place.start("lab/mail/sender", durable=None, stream=True)
    before = json.loads(file.read_text())[BOX]
    file.parent.rename(tmp_path / "gone")
    await tell(sender, b"0")
    assert await some(reader, 1) == [b"0"]
    await emptied(place)
    (tmp_path / "gone").rename(file.parent)
    await tell(sender, b"1")
    assert await some(reader, 1) == [b"1"]
    await emptied(place)
    async with asyncio.timeout(PATIENCE_S):
        while json.loads(file.read_text())[BOX][0] < before[0] + 2:
            await asyncio.sleep(0.01)


@pytest.mark.asyncio
async def test_a_reader_whose_state_file_cannot_be_written_does_not_begin(place: Stage, tmp_path: Path) -> None:
    with pytest.raises(StateLost) as lost:
        await place.start(durable=Durable(state_file=tmp_path / "gone" / "state.json"))
    assert lost.value.code is Code.STATE_UNWRITABLE


@pytest.mark.asyncio
async def test_by_requests_nothing_is_done_before_it_is_noted(place: Stage, tmp_path: Path) -> None:
    file = tmp_path / "disk" / "state.json"
    file.parent.mkdir()
    reader = await place.start(durable=Durable(state_file=file))
    sender = await place.start("lab/mail/sender", durable=None)
    await tell(sender, b"0")
    (received,) = await reader.receive(1)
    file.parent.rename(tmp_path / "gone")
    with pytest.raises(StateLost) as lost:
        await reader.finish(received)
    assert lost.value.code is Code.STATE_UNWRITABLE
    assert await place.inside(lambda tx: tx.mail.waiting(BOX)) == 1
    (tmp_path / "gone").rename(file.parent)
    await reader.keep([])
    await reader._fetching.settle()
    assert await place.inside(lambda tx: tx.mail.waiting(BOX)) == 0


@pytest.mark.asyncio
async def test_a_checkpoint_of_somebody_else_is_not_written_over(place: Stage) -> None:
    reader = await place.start()
    assert reader._durable is not None
    number = reader._durable._number + 5
    await place.inside(lambda tx: tx.marks.put(f"state/{BOX}", f"{number} {'00' * 32}"))
    with pytest.raises(StateLost):
        await reader._durable.save()


# ── lost state is never silently accepted ──────────────────────────────────────────────────────────────────────────


async def restarted(place: Stage, how: Durable, tamper: Callable[[Any], None]) -> tuple[Runtime, list[bytes]]:
    """A reader that handled one message and has another waiting ends; the store is changed; it starts again."""
    first = await place.start(durable=how)
    sender = await place.start("lab/mail/sender", durable=None)
    await tell(sender, b"one")
    parcel = await place.inside(_stored)
    before = await place.inside(lambda tx: (tx.marks.get(f"state/{BOX}"), tx.states.get(BOX)))
    (received,) = await first.receive(16)
    await first.finish(received)
    await place.crash(first)
    await place.inside(lambda tx: _put_back(tx, parcel))
    await place.inside(lambda tx: tamper((tx, before)))
    second = await place.start(durable=how)
    return second, await texts(second)


def _rolled_back(given: Any) -> None:
    tx, (mark, sealed) = given
    tx.marks.put(f"state/{BOX}", mark)
    tx.states.put(BOX, sealed)


def _bytes_alone(given: Any) -> None:
    tx, (_, sealed) = given
    tx.states.put(BOX, sealed)


def _flipped(given: Any) -> None:
    tx, _ = given
    sealed = tx.states.get(BOX)
    changed = sealed[:-1] + bytes([sealed[-1] ^ 1])
    tx.states.put(BOX, changed)


def _flipped_and_signed(given: Any) -> None:
    """Even where the number's mark is made to fit: the bytes do not open."""
    from broker.wire.state import state_digest

    tx, _ = given
    _flipped(given)
    number = tx.marks.get(f"state/{BOX}").partition(" ")[0]
    tx.marks.put(f"state/{BOX}", f"{number} {state_digest(tx.states.get(BOX)).hex()}")


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("tamper", "code"),
    [
        (_bytes_alone, Code.STATE_ROLLED_BACK),
        (_flipped, Code.STATE_ROLLED_BACK),
        (_flipped_and_signed, Code.STATE_UNREADABLE),
    ],
)
async def test_a_checkpoint_that_is_not_the_newest_one_refuses_what_was_sent_before(
    place: Stage, tamper: Callable[[Any], None], code: Code
) -> None:
    reader, found = await restarted(place, KEEPING, tamper)
    assert reader._durable is not None
    assert reader._durable.lost is not None
    assert reader._durable.lost.code is code
    assert found == []
    (dead,) = await place.inside(lambda tx: tx.mail.dead(BOX))
    assert dead.code == Code.ENVELOPE_BEFORE_BOOT


@pytest.mark.asyncio
async def test_a_reader_that_minds_no_repetition_takes_the_mail_again(place: Stage) -> None:
    reader, found = await restarted(place, Durable(on_state_loss="redeliver"), _bytes_alone)
    assert reader._durable is not None
    assert reader._durable.lost is not None
    assert found == [b"one"]


@pytest.mark.asyncio
async def test_a_database_that_was_put_back_shows_to_a_reader_with_a_file_of_its_own(
    place: Stage, tmp_path: Path
) -> None:
    """Mark and bytes are genuine, only older. The reader's own number says so; without one only a witness could."""
    how = Durable(state_file=tmp_path / "state.json")
    reader, found = await restarted(place, how, _rolled_back)
    assert reader._durable is not None
    assert reader._durable.lost is not None
    assert reader._durable.lost.code is Code.STATE_ROLLED_BACK
    assert found == []


@pytest.mark.asyncio
@pytest.mark.parametrize("with_file", [True, False], ids=["state_file", "mark alone"])
async def test_a_broker_that_was_put_back_whole_makes_no_reader_handle_a_frame_twice(
    place: Stage, tmp_path: Path, with_file: bool
) -> None:
    """Parcels, openings, channel and checkpoint, all of them genuine and of one moment; or the checkpoint's bytes
    without the mark that the root's MAC covers."""
    how = Durable(state_file=tmp_path / "state.json" if with_file else None)
    first = await place.start(durable=how, stream=True)
    sender = await place.start("lab/mail/sender", durable=None, stream=True)
    for text in (b"0", b"1"):
        await tell(sender, text)
    assert await some(first, 2) == [b"0", b"1"]
    await emptied(place)
    old = await place.inside(lambda tx: (tx.marks.get(f"state/{BOX}"), tx.states.get(BOX)))
    await tell(sender, b"2")
    parcel = await place.inside(_stored)
    assert await some(first, 1) == [b"2"]
    await emptied(place)
    await place.crash(first)
    await place.inside(lambda tx: (_rolled_back if with_file else _bytes_alone)((tx, old)))
    await place.inside(lambda tx: _put_back(tx, parcel))
    second = await place.start(durable=how, stream=True)
    assert second._durable is not None
    assert second._durable.lost is not None
    later_s = int(max(sender.time.now_s(), second.inbox.refuse_before_ms / 1000)) + 2
    for who in (sender, second):
        who.time.learn(later_s)
    await tell(sender, b"3")
    assert await some(second, 1) == [b"3"]
    await emptied(place)
    (dead,) = await place.inside(lambda tx: tx.mail.dead(BOX))
    assert dead.code == Code.ENVELOPE_BEFORE_BOOT


@pytest.mark.asyncio
async def test_a_host_that_puts_back_the_readers_own_file_gains_nothing(place: Stage, tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    how = Durable(state_file=file)
    first = await place.start(durable=how)
    old = file.read_text()
    sender = await place.start("lab/mail/sender", durable=None)
    await tell(sender, b"one")
    (received,) = await first.receive(16)
    await first.finish(received)
    assert json.loads(file.read_text())[BOX] > json.loads(old)[BOX]
    await place.crash(first)
    file.write_text(old)
    second = await place.start(durable=how)
    assert second._durable is not None
    assert second._durable.lost is None
    assert second.inbox.windows()


@pytest.mark.asyncio
async def test_many_messages_share_a_checkpoint(place: Stage) -> None:
    reader = await place.start()
    sender = await place.start("lab/mail/sender", durable=None)
    for number in range(8):
        await tell(sender, b"%d" % number)
    received: list[Received] = await reader.receive(16)
    assert reader._durable is not None
    before = reader._durable._number
    await asyncio.gather(*(reader.finish(one) for one in received))
    assert reader._durable._number - before <= 3
    assert await place.inside(lambda tx: tx.mail.waiting(BOX)) == 0
