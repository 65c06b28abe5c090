"""Channels to topics from end to end: publishers and readers on streams and off them, readers who come late, are slow,
start again or fall.
"""

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from broker.ports.mail import Quota
from broker.ports.topics import BEHIND_MS
from broker.wire import stream_pb2 as pb
from broker.wire.channel import ChannelSend, Opening
from broker.wire.topic import MAX_FOLLOWED, TopicInfo, TopicRead
from enclave import subscribing
from enclave.channel import Outgoing, SendingChannel
from enclave.errors import BrokerRefused
from enclave.ledger import Incoming
from enclave.mailbox import pad
from enclave.runtime import Runtime
from enclave.topics import reader as reading
from enclave.topics.reader import Fetched, Turning
from simulator.broker_fixture import BrokerUnderTest
from tests.test_stream import ended, raw
from tests.test_topics import NEWS, key_of, put, reader, sealed
from tests.topic_world import Calls, Lying, do, newsroom, numbered

# ── from several to several ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_every_reader_hears_every_publisher_in_its_order_and_the_broker_keeps_one_copy(tmp_path: Path) -> None:
    async with newsroom(tmp_path) as net:
        readers = [await net.listener(f"r{number}") for number in range(4)]
        writers = [await net.publisher(f"w{number}") for number in range(3)]
        await asyncio.gather(*[one.say_at_once([b"%d" % n for n in range(200)]) for one in writers])
        rows = net.rows()
        assert {kind for kind, _ in rows} == {"batch"}
        assert sum(count for _, count in rows) == 600
        for reader in readers:
            found = await reader.messages(600)
            for writer in writers:
                said = [one.plaintext for one in found if one.sender == writer.agent.subject]
                assert said == numbered(200)
            assert (reader.reader.skipped, reader.reader.missed) == (0, 0)
            assert await reader.nothing()


@pytest.mark.asyncio
async def test_who_reads_over_rest_hears_the_same_and_envelopes_beside_channels(tmp_path: Path) -> None:
    async with newsroom(tmp_path) as net:
        on_stream, over_rest = await net.listener("a"), await net.listener("b", stream=False)
        writer, simple = await net.publisher("w"), await net.mail.world.admitted("simple")
        await writer.say(b"1", b"2")
        await put(simple, sealed(simple, await key_of(simple), pad(b"3")))
        await writer.say(b"4")
        for reader in (on_stream, over_rest):
            assert await reader.texts(4) == [b"1", b"2", b"3", b"4"]


@pytest.mark.asyncio
async def test_nothing_readable_rests_at_the_broker(tmp_path: Path) -> None:
    async with newsroom(tmp_path) as net:
        await net.listener("a")
        await (await net.publisher("w")).say(b"the plaintext of a message")
    files = b"".join(path.read_bytes() for path in tmp_path.glob("broker.db*"))
    assert b"cloister.channel.open" in files
    assert b"the plaintext" not in files


@pytest.mark.asyncio
async def test_an_opening_names_the_quote_and_the_policy_of_its_publisher(tmp_path: Path) -> None:
    async with newsroom(tmp_path) as net:
        eye = await reader(net.mail.world, "eye")
        writer = await net.publisher("w")
        await writer.say(b"1")
        (opening,) = (await eye.page()).openings
        body = eye.open(opening.envelope)
        inside = Opening.from_bytes(body[4 : 4 + int.from_bytes(body[:4], "big")])
        assert inside.appraisal.hex() == writer.admission().verdict.quote_digest


# ── late, again, behind ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_a_reader_that_comes_in_the_middle_of_a_channel_hears_what_is_said_from_then_on(tmp_path: Path) -> None:
    async with newsroom(tmp_path) as net:
        early, writer = await net.listener("early"), await net.publisher("w")
        await writer.say(*numbered(5))
        net.mail.world.machine.clock.advance(timedelta(seconds=5))
        late = await net.listener("late")
        await writer.say(*numbered(5, 5))
        assert await late.texts(5) == numbered(5, 5)
        assert await early.texts(10) == numbered(10)
        assert late.reader.skipped == 0  # it has missed nothing since it came


@pytest.mark.asyncio
async def test_an_opening_is_new_to_a_late_reader_however_many_envelopes_it_has_had_of_that_sender(
    tmp_path: Path,
) -> None:
    async with newsroom(tmp_path) as net:
        early, writer = await net.listener("early"), await net.publisher("w")
        await writer.say(b"opened")
        late = await net.listener("late")
        key = (await writer.find_topic(NEWS)).key
        writer.outbox._numbers._last[NEWS] = 5_000
        envelope = writer.outbox.seal_for_topic(
            key, topic=NEWS, admission=writer.admission(), kind="item", plaintext=b"alone"
        )
        await put(writer.agent, envelope)
        await writer.say(b"on")
        assert await late.texts(2) == [b"alone", b"on"]
        assert await early.texts(3) == [b"opened", b"alone", b"on"]


@pytest.mark.asyncio
async def test_a_reader_that_starts_again_is_shown_nothing_old_by_a_broker_that_would(tmp_path: Path) -> None:
    async with newsroom(tmp_path) as net:
        reader, writer = await net.listener("a", stream=False), await net.publisher("w")
        await writer.say(*numbered(3))
        old = await net.page(reader)
        assert await reader.texts(3) == numbered(3)
        net.mail.world.machine.clock.advance(timedelta(seconds=5))
        lying = Lying([old])
        await reader.starts(lying).join()
        assert await reader.nothing()
        await writer.say(b"new")
        lying.pages.append(await net.page(reader))
        assert await reader.texts(1) == [b"new"]


@pytest.mark.asyncio
async def test_a_slow_reader_loses_the_oldest_is_told_so_and_believes_what_follows(tmp_path: Path) -> None:
    async with newsroom(tmp_path, quota=Quota(messages=10, sender_messages=10)) as net:
        slow, writer = await net.listener("slow", stream=False), await net.publisher("w")
        await writer.say(*numbered(2))
        assert await slow.texts(2) == numbered(2)
        assert await slow.nothing()  # which tells the broker how far it is
        await writer.say(*numbered(8, 2))
        net.mail.world.machine.clock.advance(timedelta(milliseconds=BEHIND_MS + 1))
        await writer.say(*numbered(4, 10))
        found = await slow.texts(4, wait_s=0)
        while more := await slow.texts(10, wait_s=0):
            found += more
        lost = slow.reader.missed
        assert 0 < lost == slow.reader.skipped
        assert found == numbered(12 - lost, 2 + lost)


@pytest.mark.asyncio
async def test_no_more_is_under_way_than_a_reader_has_room_for(tmp_path: Path) -> None:
    async with newsroom(tmp_path) as net:
        reader, writer = await net.listener("a"), await net.publisher("w")
        await writer.say_at_once(numbered(2000))
        held: list[Incoming] = []
        while len(held) < 1024:
            held += await reader.reader.receive(64)
        assert len(held) < 1024 + 256
        assert await reader.nothing()
        for one in held:
            reader.reader.done(one)
        rest = await reader.texts(2000 - len(held))
        assert [one.plaintext for one in held] + rest == numbered(2000)


@pytest.mark.asyncio
async def test_a_lost_connection_loses_and_repeats_nothing(tmp_path: Path) -> None:
    async with newsroom(tmp_path) as net:
        reader, writer = await net.listener("a"), await net.publisher("w")
        await writer.say(*numbered(10))
        held = await reader.reader.receive(4)
        while len(held) < 10:
            held += await reader.reader.receive(4)
        for one in held[:5]:
            reader.reader.done(one)
        await net.mail.away()
        saying = asyncio.create_task(writer.say(*numbered(5, 10)))
        await net.mail.back()
        await saying
        found = await reader.texts(5)
        for one in held[5:]:
            reader.reader.done(one)
        assert found == numbered(5, 10)
        assert await reader.nothing()


@pytest.mark.asyncio
async def test_reading_goes_on_by_requests_while_there_is_no_stream_and_returns_to_one(tmp_path: Path) -> None:
    async with newsroom(tmp_path) as net:
        reader, writer = await net.listener("a"), await net.mail.world.admitted("w")
        away: list[bool] = []
        fetched = Fetched(NEWS, cast("Any", Calls(reader.agent)), cast("Any", do))
        reader.starts(Turning(reader.follows.topic(NEWS), fetched, lambda: bool(away)))
        await reader.reader.join()
        for number in range(6):
            if number == 2:
                await net.mail.away()
                away.append(True)
            if number == 4:
                await net.mail.back()
                await asyncio.wait_for(reader.stream.wait_connected(), 10)
                away.clear()
            await put(writer, sealed(writer, await key_of(writer), pad(b"%d" % number)))
            assert await reader.texts(1) == [b"%d" % number]
        assert await reader.nothing()


@pytest.mark.asyncio
@pytest.mark.parametrize("stream", [True, False], ids=["on a stream", "over REST"])
async def test_what_could_not_be_judged_at_once_comes_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    monkeypatch.setattr(reading, "PAUSE_S", 0.01)
    async with newsroom(tmp_path) as net:
        reader, leaves = await net.listener("a", stream=stream), await net.listener("b", stream=False)
        writer = await net.publisher("w")
        await writer.say(b"1")
        await leaves.reader.leave()
        await writer.say(b"2")
        join, learn = reader.reader.join, reader.reader._renew

        async def fails() -> None:
            raise BrokerRefused(status=503, code="store.unavailable", detail="")

        async def learns_nothing() -> None:
            pass

        reader.reader._renew = learns_nothing
        assert await reader.reader.receive() == []  # there is no list of the fallen
        reader.reader._renew, reader.reader.join = learn, fails  # type: ignore[method-assign]  # no keys of the new epoch
        found: list[bytes] = []

        async def read_on() -> None:
            while True:
                found.extend(await reader.texts(1))

        with pytest.raises(BrokerRefused):
            await read_on()
        reader.reader.join = join  # type: ignore[method-assign]  # as it was
        assert found + await reader.texts(2 - len(found)) == [b"1", b"2"]
        await writer.say(b"3")
        assert await reader.texts(1) == [b"3"]


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_broker_that_starts_again_goes_on_with_channels_and_readers(tmp_path: Path) -> None:
    async with newsroom(tmp_path) as net:
        reader, writer = await net.listener("a"), await net.publisher("w")
        await writer.say(*numbered(3))
        assert await reader.texts(3) == numbered(3)
        rows = net.rows()
        await net.mail.away()
        await net.mail.world.restart()
        await net.mail.back()
        await writer.say(b"3")
        assert await reader.texts(1) == [b"3"]
        assert len(net.rows()) == len(rows) + 1
        assert reader.reader.skipped == 0


@pytest.mark.asyncio
async def test_a_message_follows_so_many_topics_and_none_without_a_name_or_a_number(tmp_path: Path) -> None:
    async with newsroom(tmp_path) as net:
        agent = await net.mail.world.admitted("a")
        for wrong in (pb.Follow(begun=1), pb.Follow(topic=NEWS), pb.Follow(topic=NEWS, begun=2**63)):
            async with raw(net.mail, agent) as call:
                await call.write(pb.ToBroker(follows=[wrong]).SerializeToString())
                assert await asyncio.wait_for(ended(call), 10) == "body.field_invalid"
        async with raw(net.mail, agent) as call:
            many = pb.ToBroker(follows=[pb.Follow(topic=NEWS, begun=n) for n in range(1, MAX_FOLLOWED + 2)])
            await call.write(many.SerializeToString())
            assert await asyncio.wait_for(ended(call), 10) == "body.field_invalid"


@pytest.mark.asyncio
async def test_topics_that_cannot_be_read_make_room_on_a_stream_for_others(tmp_path: Path) -> None:
    async with newsroom(tmp_path) as net:
        reader = await net.listener("a")
        for number in range(MAX_FOLLOWED + 3):
            assert reader.follows.has_room(f"acme/news/{number}") == (number < MAX_FOLLOWED - 1)
            unread = reader.follows.topic(f"acme/news/{number}")
            with pytest.raises(BrokerRefused) as refused:
                await unread.read(TopicRead(wait_s=10))
            assert refused.value.code == "topic.not_reader"
        await (await net.publisher("w")).say(b"1")
        assert await reader.texts(1) == [b"1"]


@pytest.mark.asyncio
async def test_agents_publish_on_channels_and_hear_on_streams_and_over_http(broker: BrokerUnderTest) -> None:
    topic = "lab/mail/news"
    made = [
        Runtime(domain=broker.machine.launch(n), trust=broker.trust, broker_url=broker.url, mailbox=f"lab/mail/{n}")
        for n in ("writer", "reader", "simple")
    ]
    writer, on_stream, over_http = made
    try:
        for runtime in made:
            await runtime.attest()
            await runtime.publish()
        await writer.connect()
        await on_stream.connect()
        readers = [runtime.topic(topic) for runtime in (on_stream, over_http)]
        for reading in readers:
            await reading.join()
        for number in range(5):
            await writer.publish_to(topic, kind="item", plaintext=b"%d" % number, labels=frozenset({"internal"}))
        first = _opened(over_http, await over_http.call(lambda calls: calls.topic(topic)))
        await over_http.call(lambda calls: calls.send_on_channel(topic, first, topic=True))
        rows = broker.broker.store.read(lambda tx: tx.topics.page(topic, after=0, now_ms=0))
        assert [row.kind for row in rows] == ["envelope", *["batch"] * 5]
        for reading in readers:
            found: list[bytes] = []
            while len(found) < 6:
                for received in await reading.receive():
                    found.append(received.plaintext)
                    reading.done(received)
            assert found == numbered(6)
        assert on_stream.labels == over_http.labels == {"internal"}
    finally:
        for runtime in made:
            await runtime.close()


def _opened(runtime: Runtime, found: TopicInfo) -> ChannelSend:
    """A channel's first batch, for a request."""
    line = SendingChannel.open(
        runtime._outbox,
        found,
        mailbox=found.key.topic,
        admission=runtime.admission,
        keys=runtime.keys,
        time=runtime.time,
    )
    batch = line.seal([Outgoing("item", b"5", frozenset({"internal"}))])
    return ChannelSend(batch=batch.raw, opening=line.opening)


# ── who leaves, and who falls ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_when_a_reader_leaves_publishers_go_on_on_fresh_channels_that_it_cannot_read(tmp_path: Path) -> None:
    async with newsroom(tmp_path) as net:
        stays, leaves = await net.listener("stays"), await net.listener("leaves", stream=False)
        writer = await net.publisher("w")
        await writer.say(b"before")
        assert await leaves.texts(1) == [b"before"]
        await leaves.reader.leave()
        await writer.say(b"after")
        assert await stays.texts(2) == [b"before", b"after"]
        leaves.reader._pages = Lying([await net.page(stays)])
        leaves.reader.join = _no_keys  # type: ignore[method-assign]  # none are given to who has left
        assert await leaves.nothing()


async def _no_keys() -> None:
    pass


@pytest.mark.asyncio
async def test_who_fell_is_read_no_further_whatever_the_broker_hands_on(tmp_path: Path) -> None:
    async with newsroom(tmp_path) as net:
        reader, eve, writer = await net.listener("a"), await net.publisher("eve"), await net.publisher("w")
        await eve.say(b"1")
        assert await reader.texts(1) == [b"1"]
        await eve.say(b"2")
        withheld = await net.page(reader)
        await net.revoke(eve)
        with pytest.raises(BrokerRefused):
            await asyncio.wait_for(eve.say(b"3"), 10)
        await reader.learn()
        reader.reader._pages = Lying([withheld])
        assert await reader.nothing()
        reader.reader._pages = reader.follows.topic(NEWS)
        reader.reader._pages.again()
        await writer.say(b"4")
        assert (await reader.texts(1))[-1] == b"4"


@pytest.mark.asyncio
async def test_when_a_reader_falls_it_hears_no_more_and_the_others_hear_on(tmp_path: Path) -> None:
    async with newsroom(tmp_path) as net:
        eve, stays, writer = await net.listener("eve"), await net.listener("stays"), await net.publisher("w")
        await writer.say(b"1")
        assert await eve.texts(1) == await stays.texts(1) == [b"1"]
        await net.revoke(eve)
        await writer.say(b"2")
        assert await stays.texts(1) == [b"2"]
        assert await eve.nothing()
        newest = (await writer.find_topic(NEWS)).key.thumbprint
        assert not eve.reader._inboxes[1].knows(newest)


@pytest.mark.asyncio
async def test_a_reader_whom_the_broker_has_forgotten_is_told_and_can_begin_anew(tmp_path: Path) -> None:
    async with newsroom(tmp_path) as net:
        reader, writer = await net.listener("a"), await net.publisher("w")
        await net.listener("other")
        await writer.say(b"1")
        assert await reader.texts(1) == [b"1"]
        store = net.mail.world.broker.store
        await store.transact(lambda tx: tx.topics.leave(NEWS, reader.agent.subject))
        await writer.say(b"2")
        with pytest.raises(BrokerRefused) as refused:
            await reader.reader.receive()
        assert refused.value.code == "topic.not_reader"
        await reader.reader.join()
        await writer.say(b"3")
        assert await reader.texts(1) == [b"3"]


@pytest.mark.asyncio
async def test_a_handler_of_a_topic_is_joined_again_when_the_broker_has_forgotten_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(subscribing, "FIRST_PAUSE_S", 0.01)
    ready, heard, joined = asyncio.Event(), asyncio.Event(), []

    class Forgotten:
        topic = NEWS

        async def join(self) -> None:
            joined.append(1)

        async def receive(self) -> list[Incoming]:
            if len(joined) < 2:
                raise BrokerRefused(status=403, code="topic.not_reader", detail="")
            heard.set()
            await asyncio.Event().wait()
            return []

    ready.set()
    nothing: Any = None
    task = asyncio.create_task(subscribing.subscribe(cast("Any", Forgotten()), nothing, {}, ready))
    await asyncio.wait_for(heard.wait(), 10)
    task.cancel()
    assert len(joined) == 2


@pytest.mark.asyncio
async def test_labels_are_heard_and_a_reader_loses_no_more_than_it_may_not_see(tmp_path: Path) -> None:
    async with newsroom(tmp_path) as net:
        reader, writer = await net.listener("a"), await net.publisher("w")
        labels: list[frozenset[str]] = [frozenset(), frozenset({"cosmic"}), frozenset({"internal"})]
        sent = [
            writer.stream.post(NEWS, kind="item", plaintext=b"%d" % n, labels=labels[n % 3], topic=True)
            for n in range(9)
        ]
        await asyncio.gather(*sent)
        assert await reader.texts(6) == [b"0", b"2", b"3", b"5", b"6", b"8"]
        assert reader.heard == {"internal"}
        assert net.mail.world.broker.labels.of(reader.agent.subject) == {"internal"}
