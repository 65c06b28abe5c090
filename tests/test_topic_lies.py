"""A broker that lies to readers of a topic: what it reorders, replays, drops, cuts, copies or forges is not heard."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from broker.wire import stream_pb2 as pb
from broker.wire.channel import ChannelBatch
from broker.wire.envelope import Envelope, Header
from broker.wire.jose import es256_sign
from broker.wire.keys import NO_INCARNATION
from broker.wire.mailbox import Delivery
from tests.test_topics import NEWS
from tests.topic_world import Listener, Lying, Newsroom, Publisher, newsroom, numbered

OTHER = "acme/news/other"


async def recorded(net: Newsroom, reader: Listener, writer: Publisher, count: int) -> list[pb.TopicNews]:
    """So many pages of one batch each, all with the opening."""
    pages = []
    for number in range(count):
        await writer.say(b"%d" % number)
    whole = await net.page(reader)
    for parcel, place in zip(whole.parcels, whole.places, strict=True):
        pages.append(pb.TopicNews(parcels=[parcel], places=[place], openings=whole.openings, senders=whole.senders))
    return pages


def reordered(pages: list[pb.TopicNews]) -> list[pb.TopicNews]:
    return [pages[1], pages[0], pages[2]]


def replayed(pages: list[pb.TopicNews]) -> list[pb.TopicNews]:
    again = pb.TopicNews()
    again.CopyFrom(pages[0])
    again.places[0] = pages[2].places[0] + 1
    return [*pages, again]


def dropped(pages: list[pb.TopicNews]) -> list[pb.TopicNews]:
    return [pages[0], pages[2]]


def without_openings(pages: list[pb.TopicNews]) -> list[pb.TopicNews]:
    for page in pages:
        del page.openings[:]
    return pages


def flipped(pages: list[pb.TopicNews]) -> list[pb.TopicNews]:
    raw = bytearray(pages[1].parcels[0].content)
    raw[-100] ^= 1
    pages[1].parcels[0].content = bytes(raw)
    return pages


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("lie", "heard", "skipped"),
    [
        (reordered, [b"1", b"2"], 1),
        (replayed, [b"0", b"1", b"2"], 0),
        (dropped, [b"0", b"2"], 1),
        (without_openings, [], 0),
        (flipped, [b"0", b"2"], 1),
    ],
    ids=["reordered", "replayed", "dropped", "without openings", "flipped"],
)
async def test_what_a_lying_broker_does_to_a_channel(
    tmp_path: Path, lie: Callable[[list[pb.TopicNews]], list[pb.TopicNews]], heard: list[bytes], skipped: int
) -> None:
    async with newsroom(tmp_path) as net:
        reader, writer = await net.listener("a", stream=False), await net.publisher("w")
        pages = lie(await recorded(net, reader, writer, 3))
        reader.reader._pages = Lying(pages)
        found: list[bytes] = []
        while pages:
            found += await reader.texts(1, wait_s=0)
        assert found == heard
        assert reader.reader.skipped == skipped


@pytest.mark.asyncio
async def test_however_pages_are_mixed_each_channel_is_heard_in_its_order_and_nothing_twice(tmp_path: Path) -> None:
    async with newsroom(tmp_path) as net:
        reader, writer = await net.listener("a", stream=False), await net.publisher("w")
        pages = await recorded(net, reader, writer, 6)
        for seed in range(25):
            chance = random.Random(seed)
            mixed = [chance.choice(pages) for _ in range(12)]
            reader.starts(Lying([_placed(page, place) for place, page in enumerate(mixed, start=1)]))
            await reader.reader.join()
            for inbox in reader.reader._inboxes:
                inbox.refuse_before_ms = 1  # as if it had read from the beginning, however long ago that was
            heard = [one for _ in mixed for one in await reader.texts(1, wait_s=0)]
            said = [b"%d" % pages.index(page) for page in mixed]
            assert heard == [one for n, one in enumerate(said) if one > max(said[:n], default=b"")]


def _placed(page: pb.TopicNews, place: int) -> pb.TopicNews:
    """The same under another place."""
    made = pb.TopicNews()
    made.CopyFrom(page)
    made.places[0] = place
    return made


@pytest.mark.asyncio
async def test_a_batch_that_was_cut_is_not_a_shorter_one(tmp_path: Path) -> None:
    async with newsroom(tmp_path) as net:
        reader, writer = await net.listener("a", stream=False), await net.publisher("w")
        await writer.say_at_once(numbered(3))
        page = await net.page(reader)
        whole = ChannelBatch.from_bytes(page.parcels[-1].content)
        assert len(whole) > 1
        cut = ChannelBatch(
            channel=whole.channel,
            first_seq=whole.first_seq,
            prev_chain=whole.prev_chain,
            headers=whole.headers[:-1],
            bodies=whole.bodies[:-1],
            signature=whole.signature,
        )
        page.parcels[-1].content = cut.to_bytes()
        page.parcels[-1].acceptance = _accepted(net, NEWS, cut, page.parcels[-1].accepted_at_ms)
        reader.reader._pages = Lying([page])
        assert len(await reader.texts(3, wait_s=0)) == 3 - len(whole)


def _accepted(net: Newsroom, topic: str, batch: ChannelBatch, at_ms: int) -> bytes:
    return es256_sign(net.mail.world.broker.identity.key, Delivery.message(topic, batch.digest, at_ms))


@pytest.mark.asyncio
async def test_what_was_said_on_one_topic_is_not_heard_on_another(tmp_path: Path) -> None:
    async with newsroom(tmp_path) as net:
        reader = await net.listener("a", stream=False)
        other = await net.listener("b", stream=False, topic=OTHER)
        writer = await net.publisher("w")
        await writer.say(b"for the news")
        await writer.say(b"for the others", topic=OTHER)
        here, there = await net.page(reader), await net.page(other)
        for page in (here, there):
            for parcel in page.parcels:  # the broker signs what it wants
                batch = ChannelBatch.from_bytes(parcel.content)
                elsewhere = OTHER if page is here else NEWS
                parcel.acceptance = _accepted(net, elsewhere, batch, parcel.accepted_at_ms)
        other.reader._pages = Lying([here])
        assert await other.nothing()
        mixed = pb.TopicNews(openings=here.openings, parcels=there.parcels, places=there.places, senders=here.senders)
        reader.reader._pages = Lying([mixed])
        assert await reader.nothing()


@pytest.mark.asyncio
async def test_frames_of_one_channel_are_none_of_another(tmp_path: Path) -> None:
    async with newsroom(tmp_path) as net:
        reader = await net.listener("a", stream=False)
        one, two = await net.publisher("one"), await net.publisher("two")
        await one.say(b"1")
        await two.say(b"2")
        page = await net.page(reader)
        mine, theirs = (ChannelBatch.from_bytes(parcel.content) for parcel in page.parcels)
        spliced = ChannelBatch(
            channel=mine.channel,
            first_seq=mine.first_seq,
            prev_chain=mine.prev_chain,
            headers=mine.headers,
            bodies=theirs.bodies,
            signature=mine.signature,
        )
        page.parcels[0].content = spliced.to_bytes()
        page.parcels[0].acceptance = _accepted(net, NEWS, spliced, page.parcels[0].accepted_at_ms)
        reader.reader._pages = Lying([page])
        assert await reader.texts(2, wait_s=0) == [b"2"]


@pytest.mark.asyncio
async def test_the_broker_that_made_the_key_cannot_open_a_channel_in_anybodys_name(tmp_path: Path) -> None:
    async with newsroom(tmp_path) as net:
        reader, writer, broker = await net.listener("a", stream=False), await net.publisher("w"), net.mail.world.broker
        await writer.say(b"1")
        page = await net.page(reader)
        genuine = Envelope.from_bytes(page.openings[0].envelope)
        header = Header.from_bytes(genuine.header)
        assert header.incarnation == NO_INCARNATION
        forged = Envelope.sign(broker.identity.key, header=genuine.header, body=genuine.body)
        page.openings[0].envelope = forged.to_bytes()
        at_ms = page.openings[0].accepted_at_ms
        page.openings[0].acceptance = es256_sign(broker.identity.key, Delivery.message(NEWS, forged.digest, at_ms))
        reader.reader._pages = Lying([page])
        assert await reader.nothing()


@pytest.mark.asyncio
async def test_who_has_fallen_is_not_heard_though_the_broker_shows_what_he_was(tmp_path: Path) -> None:
    """In a mailbox that may be what its owner wants."""
    async with newsroom(tmp_path) as net:
        reader, eve, writer = (
            await net.listener("a", stream=False),
            await net.publisher("eve"),
            await net.publisher("w"),
        )
        await eve.say(b"lies")
        page = await net.page(reader)
        await writer.say(b"news")
        honest = await net.page(reader)
        (token,) = page.senders.values()
        await net.revoke(eve)
        await reader.learn()
        for opening in page.openings:
            opening.sender_token = token
        for parcel in page.parcels:
            parcel.sender_token = token
        page.senders.clear()
        shown = pb.TopicNews(parcels=[honest.parcels[1]], places=[honest.places[1]], openings=honest.openings[1:])
        shown.senders.update(honest.senders)
        reader.reader._pages = Lying([page, shown])
        assert await reader.nothing()
        assert await reader.texts(1, wait_s=0) == [b"news"]


@pytest.mark.asyncio
async def test_an_opening_of_an_earlier_epoch_does_not_come_back(tmp_path: Path) -> None:
    async with newsroom(tmp_path) as net:
        await net.listener("stays")
        leaves, writer = await net.listener("leaves", stream=False), await net.publisher("w")
        await writer.say(b"before")
        old = await net.page(leaves)
        await leaves.reader.leave()
        newcomer = await net.listener("newcomer", stream=False)
        newcomer.reader._pages = Lying([old])
        assert await newcomer.nothing()
