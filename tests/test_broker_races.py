"""What two of the broker's own doings do to each other when they meet: one act, one entry; the newest counts."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
import pytest_asyncio

from attestation.collateral import Collateral
from attestation.quote import Quote
from broker.auditing import review
from broker.collateral import CollateralCache
from broker.errors import BrokerCode, BrokerError
from broker.generation import stored
from broker.ports import Transaction
from broker.rpc.stream import MailStream, Streams
from broker.wire import api_pb2 as pb
from broker.wire import stream_pb2 as pb_stream
from broker.wire.bodies import PutSecretRequest
from broker.wire.terms import LeaseEnd, SecretTerms
from tests.broker_world import Agent, World, outcome, write_bundle
from tests.grpc_client import BY_NAME, dialled

SECRET = "acme/open/a"
LEASE_S = 300


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = await World.make(tmp_path, database=True)
    yield made
    await made.broker.close()


def told(world: World, kind: str) -> list[dict[str, Any]]:
    """Entries of a kind, newest first."""
    return [json.loads(row.entry) for row in world.broker.audit.newest(kind=kind, limit=100)]


# ── leases ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def lent(world: World) -> str:
    """The subject to whom a secret is lent that is drawn anew when the lease ends."""
    request = PutSecretRequest(value=b"v1", terms=SecretTerms(lease_s=LEASE_S, draw=True))
    await world.broker.administration.put_secret(world.settings.admins[0], SECRET, request)
    agent = await world.admitted()
    await agent.release(SECRET)
    return agent.subject


@pytest.mark.asyncio
async def test_a_lease_that_is_ended_twice_at_once_ends_and_rotates_once(world: World) -> None:
    wanted = LeaseEnd(name=SECRET, version=1, subject=await lent(world))
    world.machine.clock.advance(LEASE_S)
    leasing, admin = world.broker.leasing, world.settings.admins[0]
    swept, again, ended = await asyncio.gather(leasing.sweep(), leasing.sweep(), leasing.end(admin, wanted))
    assert sorted((swept, again)) == [0, 1]
    assert ended.closed
    assert [entry["rotation"] for entry in told(world, "lease.ended")] == ["rotated"]


@pytest.mark.asyncio
async def test_a_value_that_comes_while_a_lease_ends_is_not_called_a_rotation(world: World) -> None:
    await lent(world)
    world.machine.clock.advance(LEASE_S)
    await asyncio.gather(world.put(SECRET, b"v2"), world.broker.leasing.sweep())
    assert [entry["rotation"] for entry in told(world, "lease.ended")] == ["replaced before"]
    newest = world.broker.store.read(lambda tx: tx.secrets.get(SECRET))
    assert newest is not None
    assert newest.version == 2


# ── collateral ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Held:
    """The store's writer is busy until `release`: what is asked for meanwhile waits, and nothing else does."""

    def __init__(self, world: World) -> None:
        self._gate = threading.Event()
        self._task = asyncio.ensure_future(world.broker.store.transact(lambda _: self._gate.wait(10)))

    async def release(self) -> None:
        self._gate.set()
        await self._task


async def turns(most: int = 20) -> None:
    """As many turns of the loop as what is ready needs."""
    for _ in range(most):
        await asyncio.sleep(0)


class Sets:
    """A source that gives one set after the other, whoever asks."""

    def __init__(self, *found: Collateral) -> None:
        self.left = list(found)

    def fetch(self, _: Quote) -> Collateral:
        return self.left.pop(0)


@pytest.mark.asyncio
async def test_an_older_set_that_comes_beside_a_newer_one_does_not_take_its_place(world: World) -> None:
    broker, source = world.broker, world.machine.as_source()
    (family, quote), *_ = broker.collateral.quotes.items()
    found = []
    for _ in range(2):
        world.machine.clock.advance(3600)
        world.machine.recover("publish")
        world.machine.recover("promote")
        found.append(source.fetch(quote))
    older, newer = found
    both = Sets(newer, older)
    cache = CollateralCache(both, broker.store, broker.generation, broker.clock)
    held = Held(world)
    asking = asyncio.gather(cache.refresh(), cache.refresh())
    while both.left:
        await turns()
    await held.release()
    await asking
    assert cache.families == {family: newer.digest.hex()}
    assert CollateralCache(source, broker.store, broker.generation, broker.clock).families == cache.families


# ── acts that nobody waits for any more ────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_a_generation_that_rises_when_nobody_waits_any_more_is_heard_of(world: World) -> None:
    broker, heard = world.broker, []
    broker.generation.on_change(lambda: heard.append(broker.generation.current))
    held = Held(world)
    rising = asyncio.ensure_future(broker.generation.rise("a test", lambda _: None, at=broker.clock()))
    await turns()
    rising.cancel()
    with pytest.raises(asyncio.CancelledError):
        await rising
    await held.release()
    await broker.store.transact(lambda _: None)
    await turns()
    assert broker.generation.current == broker.store.read(stored)
    assert heard == [broker.generation.current]


@pytest.mark.asyncio
async def test_whoever_hears_of_a_new_number_finds_what_changed_with_it(world: World) -> None:
    write_bundle(world.settings.bundles[0], version=2)
    broker, heard = world.broker, list[int]()
    broker.generation.on_change(lambda: heard.append(world.broker.sessions._judge.bundles.of("acme").version))
    await broker.administration.reload_policies(world.settings.admins[0])
    assert heard == [2]


@pytest.mark.asyncio
async def test_a_revocation_whose_receipt_cannot_be_made_has_happened(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker, agent = world.broker, await world.admitted()

    def unknown(*_: object) -> None:
        raise BrokerError(BrokerCode.LOG_ENTRY_UNKNOWN, "a test")

    monkeypatch.setattr(broker.audit, "receipt", unknown)
    revoking = broker.administration.revoke(world.settings.admins[0], agent.subject, "lost")
    assert await outcome(revoking) == BrokerCode.LOG_ENTRY_UNKNOWN
    assert broker.generation.current == broker.store.read(stored)
    assert await outcome(broker.sessions.of_subject(agent.subject, broker.clock())) == BrokerCode.AGENT_REVOKED


@pytest.mark.asyncio
async def test_policies_that_are_reloaded_when_nobody_waits_any_more_are_in_force(world: World) -> None:
    write_bundle(world.settings.bundles[0], version=2)
    async with dialled(world) as client:
        await client.call("Admin.GetStatus", pb.Asked(), by="admin")  # for the nonce
        held, raw = Held(world), pb.Asked().SerializeToString()
        twin = BY_NAME["Admin.ReloadPolicies"]
        method: Any = client.channel.unary_unary(twin.full_method)
        begun = asyncio.Event()
        loop = asyncio.get_running_loop()
        transact = world.broker.store.transact

        async def told_of(work: Callable[[Transaction], Any]) -> Any:
            loop.call_soon(begun.set)
            return await transact(work)

        world.broker.store.transact = told_of  # type: ignore[method-assign]
        calling = method(raw, metadata=client.proofs(twin, raw, "admin"), timeout=30)
        await begun.wait()
        calling.cancel()
        await asyncio.wait([asyncio.ensure_future(_ended(calling))])
        await held.release()
        await transact(lambda _: None)
        await turns()
    in_force = {bundle.tenant: bundle.digest for bundle in world.broker.sessions._judge.bundles.all}
    noted = world.broker.store.read(lambda tx: tx.marks.get("policy/acme"))
    assert noted == f"2 {in_force['acme']}"


async def _ended(calling: Any) -> None:
    with suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
        await calling


# ── entries that an act rests on ───────────────────────────────────────────────────────────────────────────────────


class Failing:
    """A store whose every unit is undone at its end, until `mend`."""

    def __init__(self, world: World) -> None:
        store = world.broker.store
        transact = store.transact

        async def fail(work: Callable[[Transaction], Any]) -> Any:
            def undone(tx: Transaction) -> None:
                work(tx)
                raise BrokerError(BrokerCode.STORE_UNAVAILABLE, "a test")

            return await transact(undone)

        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(store, "transact", fail)

    def mend(self) -> None:
        self.patch.undo()


async def send(agent: Agent, kind: str = "note") -> str:
    key = (await agent.find("acme/mail/b")).key
    return await outcome(agent.send(agent.envelope(key, type=kind)))


@pytest.mark.asyncio
async def test_an_answer_whose_entry_went_with_the_store_is_entered_before_anything_rests_on_it(world: World) -> None:
    sender, owner = await world.admitted("sender"), await world.admitted("owner")
    await owner.open("acme/mail/b")
    failing, size = Failing(world), world.broker.audit.head().size
    assert [await send(sender) for _ in range(3)] == [BrokerCode.STORE_UNAVAILABLE] * 3
    assert [await send(sender, "cloister.secret") for _ in range(3)] == [BrokerCode.STORE_UNAVAILABLE] * 3
    failing.mend()
    assert world.broker.audit.head().size == size
    assert [await send(sender), await send(sender)] == ["ok"] * 2
    assert [row.kind for row in world.broker.audit.page(start=size, limit=9)] == ["edge.permitted"]
    assert told(world, "edge.permitted")[0]["type"] == "note"


@pytest.mark.asyncio
async def test_whoever_acts_on_a_new_answer_while_another_does_writes_no_second_entry(world: World) -> None:
    sender, owner = await world.admitted("sender"), await world.admitted("owner")
    await owner.open("acme/mail/b")
    size, held = world.broker.audit.head().size, Held(world)
    sending = asyncio.gather(*(send(sender) for _ in range(8)))
    await turns()
    await held.release()
    assert await sending == ["ok"] * 8
    assert [row.kind for row in world.broker.audit.page(start=size, limit=9)] == ["edge.permitted"]


# ── refusals ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
@pytest.mark.parametrize("later", ["permits", "refuses too"])
async def test_whoever_is_refused_by_rules_that_have_just_gone_is_judged_by_those_of_now(
    world: World, later: str
) -> None:
    """The bundle is taken before the quote is proved; by the time it says no, another one may be in force."""
    broker, folder = world.broker, world.settings.bundles[0]
    forbidden = ('@id("admit")\npermit', '@id("admit")\nforbid')
    write_bundle(folder, forbidden, version=2)
    await broker.administration.reload_policies(world.settings.admins[0])
    write_bundle(folder, *([forbidden] if later == "refuses too" else []), version=3)
    run = broker.pool.run

    async def slow(*work: Any) -> Any:
        found = await run(*work)
        await broker.administration.reload_policies(world.settings.admins[0])
        return found

    broker.pool.run = slow  # type: ignore[assignment]
    answer = await outcome(world.agent().attest())
    assert (answer == "ok") is (later == "permits")
    decided_in = [entry["generation"] for entry in told(world, "agent.refused")]
    assert decided_in == ([] if answer == "ok" else [broker.generation.current])
    assert list(review(broker.store, broker.identity.log_key, roots=world.machine.roots)) == []


# ── streams ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Slow:
    """A connection whose end takes a while."""

    def __init__(self) -> None:
        self.ending, self.ended = asyncio.Event(), asyncio.Event()

    async def read(self) -> bytes:
        try:
            await self.ended.wait()
        except asyncio.CancelledError:
            self.ending.set()
            await self.ended.wait()
        return b""

    async def write(self, _: bytes) -> None:
        pass


@pytest.mark.asyncio
async def test_a_stream_whose_caller_goes_while_another_takes_its_place_keeps_nobody_waiting(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, slow = await world.admitted("owner"), Slow()
    await owner.open("acme/mail/b")
    streams, connection = Streams(world.broker), cast("Any", slow)
    hello = pb_stream.Hello(mailbox="acme/mail/b", lease_s=30)
    stream = MailStream(streams, world.broker, connection, owner.token, hello, "a test")
    await stream.welcome()

    async def begun(*_: object) -> MailStream:
        return stream

    monkeypatch.setattr(streams, "_begin", begun)
    running = asyncio.ensure_future(streams.serve(None, connection))
    await turns()
    ending = asyncio.ensure_future(streams.end("acme/mail/b"))
    await slow.ending.wait()
    running.cancel()
    await turns()
    slow.ended.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    await asyncio.wait_for(ending, 5)
