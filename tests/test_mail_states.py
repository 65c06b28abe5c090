"""Checkpoints are kept for durable mailboxes alone, and as long as those."""

from collections.abc import AsyncIterator
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio

from broker.mail.mailkeys import EPOCH_S, KEEP_S
from broker.ports import Transaction
from broker.wire.keys import KeysRequest, Place
from broker.wire.state import SaveRequest
from tests.broker_world import Agent, World, outcome
from tests.test_mail_attacks import durable

BOX = "acme/mail/jobs"


@pytest_asyncio.fixture(params=[True, False], ids=["sqlite", "memory"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    made = await World.make(tmp_path, database=request.param)
    yield made
    await made.broker.close()


async def save(agent: Agent, box: str, sealed: bytes = b"seen") -> str:
    request = SaveRequest(number=1, sealed=sealed, nonce=bytes(32))
    return await outcome(agent.acting(partial(agent.world.broker.states.save, mailbox=box, request=request)))


@pytest.mark.asyncio
async def test_no_checkpoint_is_kept_of_a_mailbox_that_is_not_durable(world: World) -> None:
    """Names of such mailboxes end and others begin: what lay beside them would stay."""
    eve = await world.admitted("eve")
    await eve.open(BOX)
    assert await save(eve, BOX) == "mailbox.kind_mismatch"
    assert world.broker.store.read(lambda tx: tx.states.get(BOX)) == b""


@pytest.mark.asyncio
async def test_a_checkpoint_that_is_refused_takes_no_place_among_what_is_written(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    eve = await world.admitted("eve")
    await eve.acting(partial(world.broker.keys.grant, of=Place.MAILBOX, name=BOX, request=KeysRequest(nonce=bytes(32))))
    await durable(world, eve, BOX)
    assert await save(eve, BOX) == "ok"
    assert await save(eve, "acme/mail/other") == "mailbox.not_owner"  # that it may receive there is in the log now

    async def nothing(_: object) -> None:
        raise AssertionError("written")

    monkeypatch.setattr(world.broker.store, "transact", nothing)
    assert await save(eve, BOX, b"another") == "mailbox.checkpoint_stale"
    assert await save(eve, "acme/mail/other") == "mailbox.not_owner"


@pytest.mark.asyncio
async def test_a_checkpoint_ends_with_the_keys_of_its_mailbox(world: World) -> None:
    eve = await world.admitted("eve")
    await eve.acting(partial(world.broker.keys.grant, of=Place.MAILBOX, name=BOX, request=KeysRequest(nonce=bytes(32))))
    await durable(world, eve, BOX)
    assert await save(eve, BOX) == "ok"

    def kept(tx: Transaction) -> list[object]:
        return [tx.states.get(BOX), tx.marks.get(f"state/{BOX}"), tx.marks.get(f"state-labels/{BOX}")]

    assert world.broker.store.read(kept)[0] == b"seen"
    world.machine.clock.advance(timedelta(seconds=EPOCH_S + KEEP_S + 1))
    await world.broker.keys.purge()
    assert world.broker.store.read(kept) == [b"", None, None]
