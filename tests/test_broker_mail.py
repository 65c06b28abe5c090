"""Mail between agents: from whom it says, to whom it says, to nobody else, at least once."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Coroutine
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
import pytest_asyncio

from attestation.verdict import open_token
from broker.config import load
from broker.errors import BrokerCode, BrokerError
from broker.ports.mail import Quota
from broker.wire.bodies import peer_audience
from broker.wire.envelope import Envelope
from broker.wire.errors import WireCode, WireError
from broker.wire.jose import p256_from_spki
from broker.wire.leases import AckRequest, Nak
from broker.wire.mailbox import MailboxInfo, SendStatus
from tests.broker_world import Agent, World, outcome, write_bundle

T = TypeVar("T")

BOX = "acme/mail/b"


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = await World.make(tmp_path)
    yield made
    await made.broker.close()


async def pair(world: World) -> tuple[Agent, Agent, MailboxInfo]:
    """A sender, a receiver with an open mailbox, and what the sender found there."""
    a, b = await world.admitted("a"), await world.admitted("b")
    await b.open(BOX)
    return a, b, await a.find(BOX)


async def ack(agent: Agent, **how: Any) -> str:
    request = AckRequest(**how)
    return await outcome(agent.acting(lambda s: agent.world.broker.mailboxes.acknowledge(s, BOX, request)))


# ── from one end to the other ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_a_message_arrives_sealed_signed_and_once(world: World) -> None:
    a, b, box = await pair(world)
    sent = a.envelope(box.key, b"hello")
    assert [result.status for result in (await a.send(sent)).results] == [SendStatus.QUEUED]
    (delivery,) = (await b.receive()).deliveries
    assert delivery.envelope == sent
    assert b.read(delivery.envelope) == b"hello"
    assert delivery.accepted(world.broker.identity.key.public_key(), BOX)
    assert await ack(b, ack=(delivery.lease,)) == "ok"
    assert (await b.receive()).deliveries == ()


@pytest.mark.asyncio
async def test_the_receiver_can_judge_the_sender_by_himself(world: World) -> None:
    a, b, box = await pair(world)
    await a.send(a.envelope(box.key))
    got = await b.receive()
    at = world.broker.clock()
    keys = {key.kid: p256_from_spki(key.spki) for key in world.broker.identity.keys(at).token_keys}
    url = "http://broker.test"
    verdict = open_token(got.senders[a.subject], keys=keys, issuer=url, audience=peer_audience(url), at=at)
    got.deliveries[0].envelope.verify(p256_from_spki(verdict.identity_key))


@pytest.mark.asyncio
async def test_the_sender_can_check_the_key_against_the_owners_verdict(world: World) -> None:
    _, b, box = await pair(world)
    at = world.broker.clock()
    keys = {key.kid: p256_from_spki(key.spki) for key in world.broker.identity.keys(at).token_keys}
    url = "http://broker.test"
    owner = open_token(box.owner_token, keys=keys, issuer=url, audience=peer_audience(url), at=at)
    box.key.verify(p256_from_spki(owner.identity_key), mailbox=BOX, owner=b.subject, at_s=int(at.timestamp()))


@pytest.mark.asyncio
async def test_the_broker_keeps_nothing_readable(tmp_path: Path) -> None:
    world = await World.make(tmp_path, database=True)
    a, _, box = await pair(world)
    await a.send(a.envelope(box.key, b"the plaintext of a message"))
    await world.broker.close()
    assert b"the plaintext of a message" not in b"".join(path.read_bytes() for path in tmp_path.glob("broker.db*"))


@pytest.mark.asyncio
async def test_what_was_acknowledged_to_the_sender_survives_a_restart(tmp_path: Path) -> None:
    world = await World.make(tmp_path, database=True)
    a, b, box = await pair(world)
    await a.send(*(a.envelope(box.key, b"%d" % number) for number in range(5)))
    await world.restart()
    got = await b.receive()
    assert [b.read(delivery.envelope) for delivery in got.deliveries] == [b"0", b"1", b"2", b"3", b"4"]
    assert set(got.senders) == {a.subject}
    await world.broker.close()


# ── refused at the door ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_a_message_to_nobody_has_its_own_code_and_changes_nothing(world: World) -> None:
    a, _, box = await pair(world)
    to_nobody = a.envelope(replace(box.key, mailbox="acme/mail/nobody"))
    assert await outcome(a.send(to_nobody, name="acme/mail/nobody")) == BrokerCode.MAILBOX_UNKNOWN
    assert await outcome(a.find("acme/mail/nobody")) == BrokerCode.MAILBOX_UNKNOWN
    assert world.broker.store.read(lambda tx: tx.mail.waiting("acme/mail/nobody")) == 0


@pytest.mark.asyncio
async def test_t15_a_forged_sender_is_refused_by_the_broker_and_by_the_receiver(world: World) -> None:
    a, b, box = await pair(world)
    mallory = await world.admitted("mallory")
    as_a = mallory.envelope(box.key, sender=a.subject, sender_jkt=a.jkt)
    assert await outcome(mallory.send(as_a)) == BrokerCode.MESSAGE_SENDER
    stolen = a.envelope(box.key)
    resigned = Envelope.sign(mallory.key, header=stolen.header, body=stolen.body)
    assert await outcome(mallory.send(stolen)) == BrokerCode.MESSAGE_SENDER
    assert await outcome(a.send(resigned)) == WireCode.ENVELOPE_SIGNATURE
    assert (await b.receive()).deliveries == ()
    with pytest.raises(WireError) as refused:
        resigned.verify(a.key.public_key())
    assert refused.value.code is WireCode.ENVELOPE_SIGNATURE


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"mailbox": "acme/mail/c"}, BrokerCode.MESSAGE_MAILBOX),
        ({"tenant": "other"}, BrokerCode.MESSAGE_SENDER),
        ({"sender_jkt": "x" * 43}, BrokerCode.MESSAGE_SENDER),
        ({"mailbox_key": bytes(32)}, BrokerCode.MAILBOX_KEY_STALE),
        ({"incarnation": bytes(32)}, BrokerCode.MAILBOX_KEY_STALE),
    ],
    ids=str,
)
async def test_a_header_that_does_not_fit_is_refused(world: World, changes: dict[str, Any], code: BrokerCode) -> None:
    a, b, box = await pair(world)
    assert await outcome(a.send(a.envelope(box.key, **changes))) == code
    assert (await b.receive()).deliveries == ()


@pytest.mark.asyncio
async def test_an_expired_or_future_message_is_refused(world: World) -> None:
    a, _, box = await pair(world)
    old = a.envelope(box.key, life_s=10)
    now_ms = int(world.broker.clock().timestamp() * 1000)
    early = a.envelope(box.key, sent_at_ms=now_ms + 120_000, expires_at_ms=now_ms + 240_000)
    assert await outcome(a.send(early)) == BrokerCode.MESSAGE_EXPIRED
    world.machine.clock.advance(11)
    assert await outcome(a.send(old)) == BrokerCode.MESSAGE_EXPIRED


@pytest.mark.asyncio
async def test_a_resend_is_recognised_and_a_reused_id_refused(world: World) -> None:
    a, b, box = await pair(world)
    msg_id = secrets.token_bytes(16)
    sent = a.envelope(box.key, msg_id=msg_id)
    assert (await a.send(sent)).results[0].status is SendStatus.QUEUED
    assert (await a.send(sent)).results[0].status is SendStatus.DUPLICATE
    assert await outcome(a.send(a.envelope(box.key, b"other", msg_id=msg_id))) == BrokerCode.MESSAGE_ID_REUSED
    assert len((await b.receive()).deliveries) == 1


@pytest.mark.asyncio
async def test_a_batch_is_answered_one_by_one(world: World) -> None:
    a, b, box = await pair(world)
    good, bad = a.envelope(box.key), a.envelope(box.key, incarnation=bytes(32))
    results = (await a.send(good, bad, good)).results
    assert [(result.status, result.code) for result in results] == [
        (SendStatus.QUEUED, ""),
        (SendStatus.REFUSED, BrokerCode.MAILBOX_KEY_STALE),
        (SendStatus.DUPLICATE, ""),
    ]
    assert len((await b.receive()).deliveries) == 1


@pytest.mark.asyncio
async def test_a_full_mailbox_pushes_back(tmp_path: Path) -> None:
    world = await World.make(tmp_path, quota=Quota(messages=2, octets=1 << 20))
    a, b, box = await pair(world)
    await a.send(a.envelope(box.key), a.envelope(box.key))
    assert await outcome(a.send(a.envelope(box.key))) == BrokerCode.MAILBOX_FULL
    got = await b.receive(max_messages=1)
    assert await ack(b, ack=(got.deliveries[0].lease,)) == "ok"
    assert await outcome(a.send(a.envelope(box.key))) == "ok"
    await world.broker.close()


# ── the policy decides who talks to whom ───────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_a_mailbox_outside_the_policy_is_nobodys(world: World) -> None:
    agent = await world.admitted()
    assert (await outcome(agent.open("acme/elsewhere/x"))).startswith("refused: ")
    assert (await outcome(agent.open("other/mail/x"))).startswith("refused: ")
    assert world.kinds()[-1] == "edge.refused"


@pytest.mark.asyncio
async def test_an_edge_is_decided_and_logged_once_and_again_after_a_change(world: World) -> None:
    a, _, box = await pair(world)
    for _ in range(3):
        await a.send(a.envelope(box.key))
    assert world.kinds().count("edge.permitted") == 2  # b may receive, a may send
    await a.send(a.envelope(box.key, type="other"))
    assert world.kinds().count("edge.permitted") == 3
    await world.broker.generation.rise("test", lambda _: None, at=world.broker.clock())
    await a.send(a.envelope(box.key))
    assert world.kinds().count("edge.permitted") == 4
    entry = json.loads(world.broker.audit.newest(kind="edge.permitted", limit=1)[0].entry)
    assert (entry["action"], entry["type"], entry["resource"]) == ("Send", "note", BOX)


@pytest.mark.asyncio
async def test_a_changed_policy_closes_an_edge_at_the_next_message(world: World) -> None:
    a, _, box = await pair(world)
    await a.send(a.envelope(box.key))
    write_bundle(world.settings.bundles[0], ('Path::"acme/mail"', 'Path::"acme/post"'), version=2)
    await world.broker.administration.reload_policies(world.settings.admins[0])
    assert (await outcome(a.send(a.envelope(box.key)))).startswith("refused: ")


# ── receiving ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_only_the_owner_reads_and_acknowledges(world: World) -> None:
    a, b, box = await pair(world)
    await a.send(a.envelope(box.key))
    (delivery,) = (await b.receive()).deliveries
    assert await outcome(a.receive()) == BrokerCode.MAILBOX_NOT_OWNER
    assert await ack(a, ack=(delivery.lease,)) == BrokerCode.MAILBOX_NOT_OWNER
    assert await outcome(a.receive("acme/mail/none")) == BrokerCode.MAILBOX_UNKNOWN


@pytest.mark.asyncio
async def test_a_lease_that_ended_is_lost_and_the_message_comes_again(world: World) -> None:
    a, b, box = await pair(world)
    await a.send(a.envelope(box.key))
    (first,) = (await b.receive(lease_s=5)).deliveries
    world.machine.clock.advance(6)
    (second,) = (await b.receive()).deliveries
    assert (first.attempt, second.attempt) == (1, 2)
    assert first.accepted_at_ms == second.accepted_at_ms
    assert await ack(b, ack=(first.lease,)) == BrokerCode.LEASE_LOST
    assert await ack(b, ack=(second.lease,)) == "ok"
    assert await ack(b, ack=(second.lease,)) == BrokerCode.LEASE_LOST


@pytest.mark.asyncio
async def test_what_is_given_back_comes_again_after_its_delay(world: World) -> None:
    a, b, box = await pair(world)
    await a.send(a.envelope(box.key))
    (delivery,) = (await b.receive()).deliveries
    assert await ack(b, nak=(Nak(lease=delivery.lease, delay_s=30),)) == "ok"
    assert (await b.receive()).deliveries == ()
    world.machine.clock.advance(31)
    assert len((await b.receive()).deliveries) == 1


async def at_the_bell(world: World, receiving: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
    """Started, and waiting for mail that is not there yet."""
    waiting = asyncio.create_task(receiving)
    while not world.broker.bell._waiting:
        assert not waiting.done()
        await asyncio.sleep(0)
    return waiting


@pytest.mark.asyncio
async def test_a_waiting_receiver_is_woken_by_the_message(world: World) -> None:
    a, b, box = await pair(world)
    waiting = await at_the_bell(world, b.receive(wait_s=20))
    await a.send(a.envelope(box.key))
    assert len((await asyncio.wait_for(waiting, 10)).deliveries) == 1


@pytest.mark.asyncio
async def test_a_stopping_broker_sends_waiting_receivers_home(world: World) -> None:
    _, b, _ = await pair(world)
    waiting = await at_the_bell(world, b.receive(wait_s=20))
    world.broker.bell.stop()
    assert (await asyncio.wait_for(waiting, 10)).deliveries == ()


@pytest.mark.asyncio
async def test_mail_of_a_sender_who_falls_is_held_and_comes_when_he_passes_again(world: World) -> None:
    """The sender's platform, and only his, falls out of date between sending and receiving."""
    await world.prefetch(platform=1)
    a, b = await world.admitted("a", platform=1), await world.admitted("b")
    await b.open(BOX)
    box = await a.find(BOX)
    await a.send(a.envelope(box.key))
    world.machine.recover("publish", fmspc="B0C06F000000", standard=True)
    world.machine.clock.advance(1)
    assert await world.broker.collateral.refresh()
    assert (await b.receive()).deliveries == ()
    assert world.broker.store.read(lambda tx: tx.mail.waiting(BOX)) == 1
    assert await outcome(a.send(a.envelope(box.key))) == BrokerCode.AGENT_QUARANTINED
    write_bundle(world.settings.bundles[0], ('["UpToDate"]', '["UpToDate", "OutOfDate"]'), version=2)
    await world.broker.administration.reload_policies(world.settings.admins[0])
    assert len((await b.receive()).deliveries) == 1


# ── owners and epochs ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_a_key_that_the_owner_did_not_sign_opens_nothing(world: World) -> None:
    a, b = await world.admitted("a"), await world.admitted("b")
    key = b.mailbox_key(BOX)
    mailboxes = world.broker.mailboxes
    assert await outcome(a.acting(lambda s: mailboxes.open(s, BOX, key))) == WireCode.MAILBOX_KEY_SIGNATURE
    assert await outcome(b.acting(lambda s: mailboxes.open(s, "acme/mail/c", key))) == BrokerCode.MAILBOX_NAME
    forged = replace(key, epoch=9)
    assert await outcome(b.acting(lambda s: mailboxes.open(s, BOX, forged))) == WireCode.MAILBOX_KEY_SIGNATURE
    short = b.mailbox_key(BOX, key=b"short")
    assert await outcome(b.acting(lambda s: mailboxes.open(s, BOX, short))) == WireCode.BODY_FIELD_INVALID


@pytest.mark.asyncio
async def test_mail_for_the_last_epoch_still_arrives_and_for_the_last_incarnation_never(world: World) -> None:
    a, b, box = await pair(world)
    first = b.mail_key
    b.mail_key = type(first).generate()
    await b.open(BOX, epoch=2)
    assert await outcome(a.send(a.envelope(box.key))) == "ok"
    assert (await a.find(BOX)).key.epoch == 2
    b.incarnation = secrets.token_bytes(32)
    await b.open(BOX, epoch=1)
    assert (await b.receive()).deliveries == ()
    assert await outcome(a.send(a.envelope(box.key))) == BrokerCode.MAILBOX_KEY_STALE


@pytest.mark.asyncio
async def test_a_mailbox_whose_owner_is_gone_is_not_offered(world: World) -> None:
    a, b, _ = await pair(world)
    world.machine.clock.advance(200)
    await a.attest()
    world.machine.clock.advance(150)
    assert await outcome(a.find(BOX)) == BrokerCode.AGENT_EXPIRED
    await b.attest()
    assert await outcome(a.find(BOX)) == "ok"


@pytest.mark.asyncio
async def test_a_mailbox_of_somebody_who_is_there_is_not_taken_and_a_successors_name_stands_in_the_log(
    world: World,
) -> None:
    _, b, _ = await pair(world)
    successor = await world.admitted("c")
    assert await outcome(successor.open(BOX)) == BrokerCode.MAILBOX_TAKEN
    world.machine.clock.advance(25)
    await b.receive()
    world.machine.clock.advance(25)
    assert await outcome(successor.open(BOX)) == BrokerCode.MAILBOX_TAKEN
    world.machine.clock.advance(6)
    await successor.open(BOX)
    assert await outcome(b.receive()) == BrokerCode.MAILBOX_NOT_OWNER
    opened = [json.loads(row.entry) for row in world.broker.audit.newest(kind="mailbox.opened", limit=2)]
    assert [entry["subject"] for entry in opened] == [successor.subject, b.subject]
    assert opened[0]["taken_from"] == b.subject


@pytest.mark.asyncio
async def test_an_owner_who_closes_his_mailbox_or_is_revoked_is_succeeded_at_once(world: World) -> None:
    _, b, _ = await pair(world)
    c, d = await world.admitted("c"), await world.admitted("d")
    assert await outcome(c.acting(lambda s: world.broker.mailboxes.close(s, BOX))) == BrokerCode.MAILBOX_NOT_OWNER
    await b.acting(lambda s: world.broker.mailboxes.close(s, BOX))
    await c.open(BOX)
    await world.broker.administration.revoke(world.settings.admins[0], c.subject, "test")
    await d.open(BOX)
    assert await outcome(d.receive()) == "ok"


@pytest.mark.asyncio
async def test_the_bundle_may_let_a_mailbox_be_taken_at_once(tmp_path: Path) -> None:
    world = await World.make(tmp_path)
    write_bundle(world.settings.bundles[0], ("[freshness]", '[mail]\ntakeover = "permitted"\n[freshness]'), version=2)
    await world.broker.administration.reload_policies(world.settings.admins[0])
    _, b, _ = await pair(world)
    successor = await world.admitted("c")
    assert await outcome(successor.open(BOX)) == "ok"
    assert await outcome(b.receive()) == BrokerCode.MAILBOX_NOT_OWNER
    await world.broker.close()


def test_every_limit_of_mail_is_a_setting(tmp_path: Path) -> None:
    wanted = {item.name: number for number, item in enumerate(fields(Quota), start=1)}
    lines = ['[server]\npublic_url = "http://127.0.0.1:1"', '[policy]\nbundles = ["bundle"]', "[mail]"]
    lines += [f"{name} = {number}" for name, number in wanted.items()]
    (tmp_path / "broker.toml").write_text("\n".join(lines))
    assert asdict(load(tmp_path / "broker.toml", {}).quota) == wanted
    (tmp_path / "broker.toml").write_text("\n".join(lines).replace("dead = ", "dead = -"))
    with pytest.raises(BrokerError, match="mail limits"):
        load(tmp_path / "broker.toml", {})


@pytest.mark.asyncio
async def test_an_agent_owns_a_bounded_number_of_mailboxes(tmp_path: Path) -> None:
    world = await World.make(tmp_path, quota=Quota(mailboxes=2))
    a, b = await world.admitted("a"), await world.admitted("b")
    for name in ("acme/mail/1", "acme/mail/2", "acme/mail/2"):
        await a.open(name)
    assert await outcome(a.open("acme/mail/3")) == BrokerCode.MAILBOX_TOO_MANY
    assert await outcome(b.open("acme/mail/3")) == "ok"
    await world.broker.close()
