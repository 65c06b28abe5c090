"""Labels: whatever an agent was given marks whatever it says, however it tries to get rid of the marks."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.mail.labels import labels_in
from broker.ports.mail import DEAD_LETTERS, End
from broker.wire.bodies import PutSecretRequest
from broker.wire.envelope import Header
from broker.wire.mailbox import MailboxInfo, SendStatus
from enclave.errors import BrokerRefused
from enclave.runtime import Runtime
from policies.model import Declassify, parse_action
from simulator.broker_fixture import BrokerUnderTest
from tests.broker_world import FILES, Agent, World, outcome, write_bundle

SECRET = "acme/open/plan"
LOWERED = "message.labels_lowered"
RULES = (
    FILES["policy.cedar"]
    + """
@id("declassify")
permit (principal, action == Action::"Declassify", resource == Mailbox::"acme/mail/public")
when { context.message_type == "summary" && resource.labels == ["secret"] };

@id("secret-stays-out-of-the-world")
forbid (principal, action == Action::"Send", resource in Path::"acme/mail/world")
when { resource.labels.contains("secret") };

@id("nobody-reads-cosmic")
forbid (principal, action == Action::"Receive", resource)
when { resource.labels.contains("cosmic") };
"""
)


@pytest_asyncio.fixture(params=[False, True], ids=["memory", "sqlite"])
async def world(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[World]:
    bundle = write_bundle(tmp_path / "labels", (FILES["policy.cedar"], RULES))
    made = await World.make(tmp_path, bundles=(bundle,), database=request.param)
    await made.put(SECRET, b"the plan", "secret")
    yield made
    await made.broker.close()


async def opened(agent: Agent, name: str) -> MailboxInfo:
    await agent.open(name)
    return await agent.find(name)


async def say(agent: Agent, box: MailboxInfo, *labels: str, **changes: Any) -> str:
    """What becomes of one message with exactly these labels."""
    envelope = agent.envelope(box.key, labels=tuple(sorted(labels)), **changes)
    return await outcome(agent.send(envelope, name=box.key.mailbox))


def entries(world: World, kind: str) -> list[dict[str, Any]]:
    return [json.loads(row.entry) for row in world.broker.audit.page(start=0, limit=1000, kind=kind)]


# ── a hostile agent tries to launder ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_what_was_released_marks_everything_that_is_said_afterwards(world: World) -> None:
    eve, bob = await world.admitted("eve"), await world.admitted("bob")
    box = await opened(bob, "acme/mail/b")
    assert await say(eve, box) == "ok"
    await eve.release(SECRET)
    assert await say(eve, box) == LOWERED
    assert await say(eve, box, "other") == LOWERED
    assert await say(eve, box, "secret") == "ok"
    assert await say(eve, box, "other", "secret") == "ok"


@pytest.mark.asyncio
async def test_what_was_delivered_marks_whoever_it_was_delivered_to(world: World) -> None:
    eve, accomplice, bob = [await world.admitted(name) for name in ("eve", "accomplice", "bob")]
    inbox, box = await opened(accomplice, "acme/mail/a"), await opened(bob, "acme/mail/b")
    await eve.release(SECRET)
    assert await say(eve, inbox, "secret") == "ok"
    assert await say(accomplice, box) == "ok"  # it has not seen anything yet
    assert len((await accomplice.receive("acme/mail/a")).deliveries) == 1
    assert await say(accomplice, box) == LOWERED
    assert await say(accomplice, box, "secret") == "ok"


@pytest.mark.asyncio
async def test_mail_to_oneself_a_new_token_and_a_restart_of_the_broker_wash_nothing_off(world: World) -> None:
    eve, bob = await world.admitted("eve"), await world.admitted("bob")
    box, own = await opened(bob, "acme/mail/b"), await opened(eve, "acme/mail/e")
    await eve.release(SECRET)
    assert await say(eve, own) == LOWERED
    assert await say(eve, own, "secret") == "ok"
    await eve.receive("acme/mail/e")
    assert await say(eve, box) == LOWERED
    await eve.attest()  # same identity, new evidence
    assert await say(eve, box) == LOWERED
    if world.settings.database:
        await world.restart()
        assert await say(eve, box) == LOWERED


@pytest.mark.asyncio
async def test_a_refused_release_raises_nothing(world: World) -> None:
    eve, bob = await world.admitted("eve"), await world.admitted("bob")
    box = await opened(bob, "acme/mail/b")
    await world.put("acme/open/top", b"no", "top")
    assert (await outcome(eve.release("acme/open/top"))).startswith("refused")
    assert await say(eve, box) == "ok"
    assert world.broker.labels.of(eve.subject) == frozenset()


@pytest.mark.asyncio
async def test_a_message_that_races_with_the_release_is_refused(world: World) -> None:
    """The account is read again in the transaction that takes the message in: nothing fits between check and act."""
    eve, bob = await world.admitted("eve"), await world.admitted("bob")
    box = await opened(bob, "acme/mail/b")
    ended = await asyncio.gather(eve.release(SECRET), *(say(eve, box) for _ in range(8)))
    after = [row.kind for row in world.broker.audit.page(start=0, limit=1000)]
    assert "labels.raised" in after
    assert set(ended[1:]) <= {"ok", LOWERED}
    assert await say(eve, box) == LOWERED


@pytest.mark.asyncio
async def test_labels_of_all_versions_and_messages_add_up(world: World) -> None:
    eve, bob = await world.admitted("eve"), await world.admitted("bob")
    box = await opened(bob, "acme/mail/b")
    await eve.release(SECRET)
    await world.put(SECRET, b"changed", "harmless")
    await eve.release(SECRET)
    assert world.broker.labels.of(eve.subject) == {"secret", "harmless"}
    assert await say(eve, box, "harmless") == LOWERED
    await eve.release(SECRET, 1)
    assert [entry["labels"] for entry in entries(world, "labels.raised")] == [["secret"], ["harmless"]]


@pytest.mark.asyncio
async def test_one_message_of_a_batch_without_its_labels_takes_none_of_the_others_with_it(world: World) -> None:
    eve, bob = await world.admitted("eve"), await world.admitted("bob")
    box = await opened(bob, "acme/mail/b")
    await eve.release(SECRET)
    sent = await eve.send(eve.envelope(box.key), eve.envelope(box.key, labels=("secret",)))
    assert [(result.status, result.code) for result in sent.results] == [
        (SendStatus.REFUSED, LOWERED),
        (SendStatus.QUEUED, ""),
    ]


@pytest.mark.asyncio
async def test_untrusted_is_a_label_like_any_other_and_stays(world: World) -> None:
    """Text from outside is stored, read back and sent on: it is still untrusted."""
    eve, memory = await world.admitted("eve"), await world.admitted("memory")
    store, back = await opened(memory, "acme/mail/m"), await opened(eve, "acme/mail/e")
    assert await say(eve, store, "untrusted") == "ok"
    await memory.receive("acme/mail/m")
    assert await say(memory, back) == LOWERED
    assert await say(memory, back, "untrusted") == "ok"
    (delivery,) = (await eve.receive("acme/mail/e")).deliveries
    assert Header.from_bytes(delivery.envelope.header).labels == ("untrusted",)
    assert labels_in("envelope", delivery.envelope.to_bytes()) == {"untrusted"}


# ── egress and clearance are the policy's ──────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_a_rule_about_labels_stops_what_carries_them_and_every_attempt_is_explained(world: World) -> None:
    eve, bob = await world.admitted("eve"), await world.admitted("bob")
    box = await opened(bob, "acme/mail/world/b")
    assert await say(eve, box) == "ok"
    await eve.release(SECRET)
    assert await say(eve, box, "secret") == "refused: policy.forbidden"
    assert await say(eve, box) == LOWERED
    told = [(entry["action"], entry["codes"], bool(entry["reasons"])) for entry in entries(world, "edge.refused")]
    assert told == [("Send", ["policy.forbidden"], True), ("Declassify", ["policy.no_rule"], True)]


@pytest.mark.asyncio
async def test_mail_that_its_receiver_may_not_read_becomes_a_dead_letter(world: World) -> None:
    eve, bob = await world.admitted("eve"), await world.admitted("bob")
    box = await opened(bob, "acme/mail/b")
    assert await say(eve, box, "cosmic") == "ok"
    assert await say(eve, box) == "ok"
    (delivery,) = (await bob.receive()).deliveries
    assert Header.from_bytes(delivery.envelope.header).labels == ()
    assert world.broker.labels.of(bob.subject) == frozenset()
    (dead,) = world.broker.store.read(lambda tx: tx.mail.dead("acme/mail/b"))
    assert (End(dead.reason), dead.code) == (End.REJECTED, "policy.refused")
    assert End.REJECTED in DEAD_LETTERS


# ── lowering is a permit ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_one_message_may_go_without_a_label_where_the_policy_says_so(world: World) -> None:
    eve, bob = await world.admitted("eve"), await world.admitted("bob")
    public, box = await opened(bob, "acme/mail/public"), await opened(bob, "acme/mail/b")
    await eve.release(SECRET)
    assert await say(eve, public) == LOWERED  # not of the type
    assert await say(eve, box, type="summary") == LOWERED  # not there
    assert await say(eve, public, type="summary") == "ok"
    assert await say(eve, public, type="summary") == "ok"
    assert await say(eve, box) == LOWERED  # the account itself went nowhere
    lowered = entries(world, "labels.lowered")
    assert [(entry["resource"], entry["labels"], entry["type"]) for entry in lowered] == [
        ("acme/mail/public", ["secret"], "summary")
    ] * 2
    assert lowered[0]["msg_id"] != lowered[1]["msg_id"]


@pytest.mark.asyncio
async def test_a_permit_for_some_labels_lowers_no_others(world: World) -> None:
    eve, bob = await world.admitted("eve"), await world.admitted("bob")
    public = await opened(bob, "acme/mail/public")
    await eve.release(SECRET)
    await world.put("acme/open/other", b"x", "private")
    await eve.release("acme/open/other")
    assert await say(eve, public, type="summary") == LOWERED
    assert await say(eve, public, "private", type="summary") == "ok"


def test_declassify_is_written_like_send() -> None:
    assert parse_action("Declassify:acme/mail/a", {"labels": ["x"]}) == Declassify("acme/mail/a", labels=frozenset("x"))
    assert parse_action("Declassify:topic:acme/news") == Declassify("acme/news", kind="topic")


# ── names of labels ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_a_secret_takes_no_label_that_no_message_could_carry(world: World) -> None:
    for label in ("two words", "", "ärger", "-x", "x" * 65):
        request = PutSecretRequest(value=b"v", labels=(label,))
        put = world.broker.administration.put_secret(world.settings.admins[0], "acme/open/odd", request)
        assert await outcome(put) == "body.field_invalid"


# ── any order of acts ──────────────────────────────────────────────────────────────────────────────────────────────

ACTS = st.lists(
    st.one_of(
        st.tuples(st.just("release"), st.sampled_from(["a", "b"])),
        st.tuples(st.just("say"), st.sets(st.sampled_from(["a", "b", "c"]))),
        st.tuples(st.just("read"), st.none()),
    ),
    max_size=12,
)


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(acts=ACTS)
def test_no_order_of_acts_gets_a_message_out_with_less_than_was_given(
    acts: list[tuple[str, Any]], tmp_path: Path
) -> None:
    asyncio.run(_in_any_order(acts, tmp_path))


async def _in_any_order(acts: list[tuple[str, Any]], folder: Path) -> None:
    world = await World.make(folder)
    for name in ("a", "b"):
        await world.put(f"acme/open/{name}", b"v", name)
    eve, bob = await world.admitted("eve"), await world.admitted("bob")
    own, box = await opened(eve, "acme/mail/e"), await opened(bob, "acme/mail/b")
    given_: set[str] = set()
    for act, what in acts:
        if act == "release":
            await eve.release(f"acme/open/{what}")
            given_.add(what)
        elif act == "read":
            for delivery in (await eve.receive("acme/mail/e")).deliveries:
                given_ |= set(Header.from_bytes(delivery.envelope.header).labels)
        else:
            await outcome(bob.send(bob.envelope(own.key, labels=tuple(sorted(what))), name="acme/mail/e"))
            assert await say(eve, box, *what) == ("ok" if given_ <= what else LOWERED)
    await world.broker.close()


# ── what is told about mail is a way to say something, too ─────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_the_id_of_a_dead_letter_is_no_way_around_the_labels(world: World) -> None:
    """A sender chooses the ids of its messages: sixteen bytes each, which whoever hears of the message can read."""
    eve, accomplice, bob = [await world.admitted(name) for name in ("eve", "accomplice", "bob")]
    inbox, box = await opened(accomplice, "acme/mail/a"), await opened(bob, "acme/mail/b")
    await eve.release(SECRET)
    await say(eve, inbox, "cosmic", "secret", msg_id=b"the plan is: run")
    session = await world.broker.sessions.of_token(accomplice.token, world.broker.clock())
    heard = await world.broker.labels.hear_of(
        session, "acme/mail/a", [eve.subject, accomplice.subject], world.broker.clock()
    )
    assert heard == {eve.subject, accomplice.subject}
    assert await say(accomplice, box) == LOWERED


@pytest.mark.asyncio
async def test_who_may_not_read_a_label_does_not_hear_of_mail_that_bears_it(world: World) -> None:
    eve, accomplice = await world.admitted("eve"), await world.admitted("accomplice")
    await opened(accomplice, "acme/mail/a")
    await world.put("acme/open/cosmic", b"v", "cosmic")
    await eve.release("acme/open/cosmic")
    session = await world.broker.sessions.of_token(accomplice.token, world.broker.clock())
    assert await world.broker.labels.hear_of(session, "acme/mail/a", [eve.subject], world.broker.clock()) == {
        accomplice.subject
    }
    assert world.broker.labels.of(accomplice.subject) == frozenset()


# ── the framework carries labels by itself ─────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_an_agent_carries_the_labels_of_all_that_it_was_given_without_being_told(broker: BrokerUnderTest) -> None:
    broker.put_secret("lab/plans/a", b"v", labels=("secret",))
    writer, reader = await _run(broker, "lab/mail/w"), await _run(broker, "lab/mail/r")
    try:
        await writer.send("lab/mail/r", kind="note", plaintext=b"before")
        await writer.secret("lab/plans/a")
        await writer.send("lab/mail/r", kind="note", plaintext=b"after", labels=frozenset({"own"}))
        received = await reader.receive(16)
        assert [one.labels for one in received] == [frozenset(), {"secret", "own"}]
        await reader.send("lab/mail/w", kind="note", plaintext=b"and so does who was told")
        (back,) = await writer.receive(16)
        assert back.labels == {"secret", "own"}
    finally:
        await writer.close()
        await reader.close()


@pytest.mark.asyncio
async def test_an_agent_that_has_forgotten_its_labels_asks_for_them_and_goes_on(broker: BrokerUnderTest) -> None:
    broker.put_secret("lab/plans/a", b"v", labels=("secret",))
    writer, reader = await _run(broker, "lab/mail/w"), await _run(broker, "lab/mail/r")
    try:
        await writer.secret("lab/plans/a")
        writer._labels = frozenset()
        await writer.send("lab/mail/r", kind="note", plaintext=b"x")
        assert writer.labels == {"secret"}
        with pytest.raises(BrokerRefused) as caught:
            await writer.send("lab/mail/r", kind="note", plaintext=b"x", without=frozenset({"secret"}))
        assert caught.value.code == LOWERED
        (received,) = await reader.receive(16)
        assert received.labels == {"secret"}
    finally:
        await writer.close()
        await reader.close()


async def _run(broker: BrokerUnderTest, mailbox: str) -> Runtime:
    domain = broker.machine.launch("labels")
    made = Runtime(domain=domain, trust=broker.trust, broker_url=broker.url, mailbox=mailbox)
    await made.attest()
    await made.publish()
    return made
