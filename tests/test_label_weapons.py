"""Labels as a weapon: words that a sender makes up hold nobody to so many that it can say nothing any more."""

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio

from broker.errors import BrokerCode
from broker.mail.labels import MAX_GIVEN
from broker.wire.blob import BLOB_TYPE, BlobRef
from broker.wire.deadletters import PageRequest
from tests.broker_world import FILES, Agent, World, outcome, write_bundle
from tests.channel_world import HandMade
from tests.mail_world import with_mail
from tests.test_topics import RULES, reader, say

LISTED = 'labels = ["secret", "internal"]'
REFUSED = "refused: policy.label_not_taken"


@pytest_asyncio.fixture(params=[False, True], ids=["memory", "sqlite"])
async def world(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[World]:
    made = await World.make(tmp_path, database=request.param)
    yield made
    await made.broker.close()


@pytest_asyncio.fixture
async def listing(tmp_path: Path) -> AsyncIterator[World]:
    """A broker whose policy says which labels there are."""
    bundle = write_bundle(tmp_path / "topics", (FILES["policy.cedar"], RULES), with_mail(LISTED))
    made = await World.make(tmp_path, bundles=(bundle,))
    yield made
    await made.broker.close()


def junk(count: int, start: int = 0) -> tuple[str, ...]:
    return tuple(f"junk-{number:03d}" for number in range(start, start + count))


async def trio(world: World) -> tuple[Agent, Agent, Agent]:
    eve, bob, carol = [await world.admitted(name) for name in ("eve", "bob", "carol")]
    await bob.open("acme/mail/b")
    await carol.open("acme/mail/c")
    return eve, bob, carol


@pytest.mark.asyncio
async def test_who_was_sent_all_the_labels_there_can_be_still_has_room_for_those_of_secrets(world: World) -> None:
    eve, bob, _ = await trio(world)
    key = (await eve.find("acme/mail/b")).key
    for start in range(0, 64, 8):
        await eve.send(eve.envelope(key, labels=junk(8, start)))
    assert len((await bob.receive(max_messages=64)).deliveries) == MAX_GIVEN // 8
    for number in range(8):
        await world.put(f"acme/open/{number}", b"v", f"real-{number}")
        await bob.release(f"acme/open/{number}")
    held = tuple(sorted(world.broker.labels.of(bob.subject)))
    assert len(held) == MAX_GIVEN + 8
    to_carol = (await bob.find("acme/mail/c")).key
    assert await outcome(bob.send(bob.envelope(to_carol, labels=held), name="acme/mail/c")) == "ok"


@pytest.mark.asyncio
async def test_who_sends_too_many_labels_is_told_so(world: World) -> None:
    eve, bob, _ = await trio(world)
    key = (await eve.find("acme/mail/b")).key
    await eve.send(eve.envelope(key, labels=junk(MAX_GIVEN)), eve.envelope(key, labels=junk(1, 100)))
    assert len((await bob.receive()).deliveries) == 1
    session = await world.broker.sessions.of_subject(eve.subject, world.broker.clock())
    (stone,) = world.broker.dead.tombstones(session, "acme/mail/b", PageRequest()).tombstones
    assert (stone.end, stone.code) == ("rejected", BrokerCode.MESSAGE_LADEN)


@pytest.mark.asyncio
async def test_where_the_policy_lists_labels_no_others_get_in_by_any_way(listing: World) -> None:
    eve, _, _ = await trio(listing)
    key = (await eve.find("acme/mail/b")).key
    await reader(listing)

    async def codes(*labels: str) -> list[str]:
        channel = HandMade(eve, key)
        blob = eve.envelope(key, type=BLOB_TYPE, labels=labels).to_bytes()
        put = partial(listing.broker.blobs.put, name=BlobRef.of(blob).sha256, raw=blob)
        return [
            await outcome(eve.send(eve.envelope(key, labels=labels))),
            await outcome(channel.send(channel.batch(b"x", labels=labels), opening=channel.opening)),
            await outcome(eve.acting(put)),
            await say(eve, "x", labels=labels),
        ]

    assert await codes("junk") == [REFUSED] * 4
    assert await codes("internal", "junk") == [REFUSED] * 4
    assert await codes("internal") == ["ok"] * 4
    assert await codes() == ["ok"] * 4
