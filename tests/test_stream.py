"""The mail stream: in order, no more than asked for, nothing lost with the connection, nothing left to the fallen."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest

from broker.errors import BrokerCode
from broker.ports.mail import Quota
from broker.rpc.stream import METHOD
from broker.wire import api_pb2, dpop
from broker.wire import stream_pb2 as pb
from broker.wire.errors import WireCode
from enclave.errors import BrokerRefused
from enclave.ledger import Incoming
from enclave.mailbox import pad
from tests.broker_world import URL, Agent, write_bundle
from tests.stream_world import PATIENCE_S, Mail, Member, mail


def numbered(count: int, start: int = 0) -> list[bytes]:
    return [b"%d" % number for number in range(start, start + count)]


def post(member: Member, box: str, texts: list[bytes], **how: Any) -> list[asyncio.Future[bytes]]:
    return [member.stream.post(box, kind="note", plaintext=text, **how) for text in texts]


async def code_of(sent: asyncio.Future[bytes]) -> str:
    try:
        await asyncio.wait_for(sent, PATIENCE_S)
    except BrokerRefused as refused:
        return refused.code
    return "ok"


# ── from one end to the other ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_messages_arrive_in_order_and_settled_ones_are_gone(tmp_path: Path) -> None:
    async with mail(tmp_path) as net:
        a, b = await net.pair()
        sent = post(a, b.box, numbered(300), labels=frozenset({"pii"}))
        seen: list[Incoming] = []

        def settle(incoming: Incoming) -> None:
            seen.append(incoming)
            b.stream.done(incoming)

        assert await b.take(300, settle) == numbered(300)
        assert [incoming.msg_id for incoming in seen] == await asyncio.gather(*sent)
        assert {(one.sender, one.type, one.labels) for one in seen} == {(a.agent.subject, "note", frozenset({"pii"}))}
        await net.until(lambda: net.waiting() == 0)


@pytest.mark.asyncio
async def test_the_broker_keeps_nothing_readable_of_a_channel(tmp_path: Path) -> None:
    async with mail(tmp_path) as net:
        a, b = await net.pair(credit=1)
        await asyncio.gather(*post(a, b.box, [b"the plaintext of a message"] * 3))
    files = b"".join(path.read_bytes() for path in tmp_path.glob("broker.db*"))
    assert b"cloister.channel.open" in files
    assert b"the plaintext" not in files


@pytest.mark.asyncio
async def test_plain_envelopes_come_on_the_stream_too(tmp_path: Path) -> None:
    async with mail(tmp_path) as net:
        _, b = await net.pair()
        c = await net.world.admitted("c")
        found = await c.find(b.box)
        await c.send(c.envelope(found.key, pad(b"by hand")), name=b.box)
        assert await b.take(1) == [b"by hand"]
        await net.until(lambda: net.waiting() == 0)


@pytest.mark.asyncio
async def test_what_was_given_back_comes_again_alone(tmp_path: Path) -> None:
    async with mail(tmp_path) as net:
        a, b = await net.pair()
        await asyncio.gather(*post(a, b.box, numbered(5)))
        tried: list[bytes] = []

        def settle(incoming: Incoming) -> None:
            tried.append(incoming.plaintext)
            if incoming.plaintext == b"3" and tried.count(b"3") == 1:
                b.stream.again(incoming)
            else:
                b.stream.done(incoming)

        assert await b.take(6, settle) == [*numbered(5), b"3"]
        await net.until(lambda: net.waiting() == 0)


@pytest.mark.asyncio
async def test_what_was_rejected_becomes_a_dead_letter_and_the_rest_of_its_batch_does_not(tmp_path: Path) -> None:
    async with mail(tmp_path) as net:
        a, b = await net.pair()
        await asyncio.gather(*post(a, b.box, numbered(3)))

        def settle(incoming: Incoming) -> None:
            if incoming.plaintext == b"1":
                b.stream.reject(incoming, "note.unknown")
            else:
                b.stream.done(incoming)

        await b.take(3, settle)
        await net.until(lambda: net.waiting() == 0)
        (dead,) = net.world.broker.store.read(lambda tx: tx.mail.dead(b.box))
        assert (dead.count, dead.code) == (1, "note.unknown")


@pytest.mark.asyncio
async def test_no_more_is_delivered_than_there_is_credit_for(tmp_path: Path) -> None:
    async with mail(tmp_path) as net:
        a, b = await net.pair(credit=4)
        for text in numbered(12):  # one by one: a batch each
            await a.stream.send(b.box, kind="note", plaintext=text)
        held: list[Incoming] = []
        await net.until(lambda: len(b.stream._incoming) >= 4)
        assert len(b.stream._incoming) == 4
        assert await b.take(4, held.append) == numbered(4)
        for incoming in held[:2]:
            b.stream.done(incoming)
        await net.until(lambda: len(b.stream._incoming) >= 2)
        assert len(b.stream._incoming) == 2
        for incoming in held[2:]:
            b.stream.done(incoming)
        assert await b.take(8) == numbered(8, start=4)


# ── nothing is lost with a connection ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_a_broken_connection_loses_and_doubles_nothing(tmp_path: Path) -> None:
    async with mail(tmp_path) as net:
        a, b = await net.pair()
        got: list[bytes] = []

        async def read() -> None:
            got.extend(await b.take(600))

        reading = asyncio.create_task(read())
        sent = []
        for start in range(0, 600, 100):
            sent += post(a, b.box, numbered(100, start))
            await asyncio.sleep(0.01)
            await net.away()
            await net.back()
        await asyncio.gather(*sent)
        await reading
        assert got == numbered(600)
        await net.until(lambda: net.waiting() == 0)


@pytest.mark.asyncio
async def test_a_restarted_broker_loses_and_doubles_nothing(tmp_path: Path) -> None:
    async with mail(tmp_path) as net:
        a, b = await net.pair()
        await asyncio.gather(*post(a, b.box, numbered(50)))
        held: list[Incoming] = []
        assert await b.take(50, held.append) == numbered(50)
        sent = post(a, b.box, numbered(50, start=50))
        await net.away()
        await net.world.restart()
        await net.back()
        for incoming in held:  # settled while nobody listened: delivered again, and recognised
            b.stream.done(incoming)
        assert await b.take(50) == numbered(50, start=50)
        await asyncio.gather(*sent)
        await net.until(lambda: net.waiting() == 0)


@pytest.mark.asyncio
async def test_what_was_out_when_a_stream_ended_comes_again_and_no_attempt_is_counted(tmp_path: Path) -> None:
    async with mail(tmp_path) as net:
        a, b = await net.pair()
        await b.stream.close()
        await a.stream.send(b.box, kind="note", plaintext=b"x")
        attempts = []
        for _ in range(7):  # more often than it may be tried
            async with raw(net, b.agent, mailbox=b.box) as call:
                (parcel,) = pb.FromBroker.FromString(await call.read()).parcels
                attempts.append(parcel.attempt)
        assert set(attempts) == {1}


@pytest.mark.asyncio
async def test_a_restarted_receiver_gets_what_is_sealed_anew(tmp_path: Path) -> None:
    async with mail(tmp_path) as net:
        a, b = await net.pair()
        await a.stream.send(b.box, kind="note", plaintext=b"before")
        assert await b.take(1) == [b"before"]
        await b.stream.close()
        again = Member(net.world, b.agent, b.target, b.box)
        net.members.append(again)
        await again.publish()  # another incarnation: the channel leads nowhere
        await again.join()
        sent = post(a, b.box, numbered(20))
        assert await again.take(20) == numbered(20)
        await asyncio.gather(*sent)


@pytest.mark.asyncio
async def test_a_full_mailbox_holds_the_sender_up_and_keeps_the_order(tmp_path: Path) -> None:
    async with mail(tmp_path, quota=Quota(messages=10)) as net:
        a, b = await net.pair(credit=1)

        async def send() -> None:
            for text in numbered(20):
                await a.stream.send(b.box, kind="note", plaintext=text)

        sending = asyncio.create_task(send())
        await net.until(lambda: net.waiting() == 10)
        assert await b.take(20) == numbered(20)
        await sending


# ── who may stay ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_a_revoked_agents_stream_is_cut_at_once(tmp_path: Path) -> None:
    async with mail(tmp_path) as net:
        agent = await net.world.admitted("a")
        async with raw(net, agent) as call:
            await net.world.broker.administration.revoke(net.world.settings.admins[0], agent.subject, "lost")
            assert await asyncio.wait_for(ended(call), PATIENCE_S) == BrokerCode.AGENT_REVOKED


@pytest.mark.asyncio
async def test_a_quarantined_agents_stream_is_cut_at_once(tmp_path: Path) -> None:
    async with mail(tmp_path) as net:
        agent = await net.world.admitted("a")
        async with raw(net, agent) as call:
            write_bundle(net.world.settings.bundles[0], ('["UpToDate"]', '["OutOfDate"]'), version=2)
            await net.world.broker.administration.reload_policies(net.world.settings.admins[0])
            assert await asyncio.wait_for(ended(call), PATIENCE_S) == BrokerCode.AGENT_QUARANTINED


@pytest.mark.asyncio
async def test_who_may_not_be_here_any_more_is_told_so_instead_of_waiting(tmp_path: Path) -> None:
    async with mail(tmp_path) as net:
        a, b = await net.pair()
        await a.stream.send(b.box, kind="note", plaintext=b"before")
        write_bundle(net.world.settings.bundles[0], ('["UpToDate"]', '["OutOfDate"]'), version=2)
        await net.world.broker.administration.reload_policies(net.world.settings.admins[0])
        with pytest.raises(BrokerRefused) as refused:
            async with asyncio.timeout(PATIENCE_S):
                await a.stream.send(b.box, kind="note", plaintext=b"after")
        assert refused.value.status == 403


@pytest.mark.asyncio
async def test_a_stream_ends_with_its_token_and_lives_on_with_a_renewal(tmp_path: Path) -> None:
    async with mail(tmp_path) as net:
        a, b = await net.pair()
        net.world.machine.clock.advance(200)
        for member in (a, b):
            await member.agent.attest()
            member.stream.renewed(member.admission())
        await a.stream.send(b.box, kind="note", plaintext=b"renewed")
        net.world.machine.clock.advance(200)  # the first tokens have ended
        await a.stream.send(b.box, kind="note", plaintext=b"still here")
        assert await b.take(2) == [b"renewed", b"still here"]
        agent = await net.world.admitted("c")
        async with raw(net, agent) as call:
            net.world.machine.clock.advance(400)
            assert await asyncio.wait_for(ended(call), PATIENCE_S) == "token.expired"


@pytest.mark.asyncio
async def test_the_newest_stream_of_a_mailbox_replaces_the_one_before(tmp_path: Path) -> None:
    async with mail(tmp_path) as net:
        b = await net.member("b")
        await b.stream.close()
        async with raw(net, b.agent, mailbox=b.box) as first, raw(net, b.agent, mailbox=b.box):
            assert await asyncio.wait_for(ended(first), PATIENCE_S) == BrokerCode.STREAM_SUPERSEDED


@pytest.mark.asyncio
async def test_a_message_that_policy_forbids_fails_alone(tmp_path: Path) -> None:
    async with mail(tmp_path) as net:
        a, b = await net.pair()
        rule = (
            'when { principal.simulated };\n\n@id("never-leak")\nforbid (principal, action == Action::"Send", resource)'
        )
        rule += '\nwhen { context.message_type == "leak" };'
        old = 'Path::"acme/mail")\nwhen { principal.simulated };'
        write_bundle(net.world.settings.bundles[0], (old, f'Path::"acme/mail")\n{rule}'), version=2)
        await net.world.broker.administration.reload_policies(net.world.settings.admins[0])
        kinds = ["note", "leak", "note", "leak", "note"]
        sent = [a.stream.post(b.box, kind=kind, plaintext=b"%d" % n) for n, kind in enumerate(kinds)]
        assert [await code_of(one) for one in sent] == ["ok", "policy.refused", "ok", "policy.refused", "ok"]
        assert await b.take(3) == [b"0", b"2", b"4"]


@pytest.mark.asyncio
async def test_a_mailbox_of_another_is_not_emptied(tmp_path: Path) -> None:
    async with mail(tmp_path) as net:
        a, b = await net.pair()
        async with raw(net, a.agent, mailbox=b.box, greet=False) as call:
            assert await ended(call) == BrokerCode.MAILBOX_NOT_OWNER


# ── what is said on the wire ───────────────────────────────────────────────────────────────────────────────────────


class raw:  # noqa: N801  # reads as a verb: `async with raw(…) as call`
    """A stream spoken by hand."""

    def __init__(self, net: Mail, agent: Agent, *, mailbox: str = "", greet: bool = True, **changes: Any) -> None:
        self.net, self.agent, self.greet, self.changes = net, agent, greet, changes
        self.first = pb.ToBroker(hello=pb.Hello(mailbox=mailbox, credit=8, lease_s=30)).SerializeToString()

    async def __aenter__(self) -> Any:
        self.channel = grpc.aio.insecure_channel(self.net.server.address)
        broker = self.net.world.broker
        how = {
            "method": "POST",
            "url": URL + METHOD,
            "body": self.first,
            "nonce": broker.gate.nonce(broker.clock()),
            "token": self.agent.token,
            "at_s": int(broker.clock().timestamp()),
        }
        proof = dpop.build(self.agent.key, **(how | self.changes))  # type: ignore[arg-type]
        metadata = (("authorization", f"DPoP {self.agent.token}"), ("dpop", proof))
        call: Any = self.channel.stream_stream(METHOD)(metadata=metadata)
        await call.write(self.first)
        if self.greet:
            welcome = pb.FromBroker.FromString(await call.read())
            assert welcome.welcome.ends_at_s == self.agent_end()
        return call

    def agent_end(self) -> int:
        record = self.net.world.broker.store.read(lambda tx: tx.agents.get(self.agent.subject))
        return record.expires_at_s if record else 0

    async def __aexit__(self, *_: object) -> None:
        await self.channel.close()


async def ended(call: Any) -> str:
    """The code with which the broker ended the stream."""
    await call.code()
    found = {str(name): value for name, value in await call.trailing_metadata()}
    problem = api_pb2.Problem.FromString(api_pb2.Status.FromString(found["grpc-status-details-bin"]).details[0].value)
    return str(problem.code)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"body": b"another"}, BrokerCode.DPOP_BODY),
        ({"url": URL + "/cloister.v1.Mail/Other"}, BrokerCode.DPOP_URL),
        ({"token": "another"}, BrokerCode.DPOP_TOKEN),
        ({"nonce": None}, BrokerCode.DPOP_NONCE),
    ],
    ids=str,
)
async def test_a_proof_for_something_else_opens_no_stream(tmp_path: Path, changes: dict[str, Any], code: str) -> None:
    async with mail(tmp_path) as net:
        agent = await net.world.admitted("a")
        async with raw(net, agent, greet=False, **changes) as call:
            assert await ended(call) == code


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("message", "code"),
    [
        (b"\xff\xff", WireCode.CHANNEL_MALFORMED),
        (pb.ToBroker(hello=pb.Hello(lease_s=1)).SerializeToString(), WireCode.BODY_FIELD_INVALID),
        (pb.ToBroker(settles=[pb.Settle()]).SerializeToString(), WireCode.BODY_FIELD_INVALID),
        (pb.ToBroker(renewal=pb.Renewal(token="x", proof="y")).SerializeToString(), WireCode.DPOP_MALFORMED),
    ],
)
async def test_a_message_that_is_none_ends_the_stream(tmp_path: Path, message: bytes, code: str) -> None:
    async with mail(tmp_path) as net:
        agent = await net.world.admitted("a")
        async with raw(net, agent) as call:
            await call.write(message)
            assert await asyncio.wait_for(ended(call), PATIENCE_S) == code


@pytest.mark.asyncio
async def test_what_cannot_be_taken_is_answered_with_its_code(tmp_path: Path) -> None:
    async with mail(tmp_path) as net:
        agent = await net.world.admitted("a")
        async with raw(net, agent) as call:
            send = pb.StreamSend(id=7, mailbox="acme/mail/b", batch=b"\xff")
            await call.write(pb.ToBroker(sends=[send]).SerializeToString())
            (result,) = pb.FromBroker.FromString(await call.read()).results
            assert (result.id, result.status, result.code) == (7, "refused", WireCode.CHANNEL_MALFORMED)


@pytest.mark.asyncio
async def test_much_mail_comes_in_several_messages_and_who_sent_it_before_it(tmp_path: Path) -> None:
    async with mail(tmp_path) as net:
        a, b = await net.pair()
        await b.stream.close()
        for number in range(7):
            await a.stream.send(b.box, kind="note", plaintext=bytes([number]) * 60_000)
        async with raw(net, b.agent, mailbox=b.box) as call:
            first, second = [pb.FromBroker.FromString(await call.read()) for _ in range(2)]
        assert [len(first.parcels), len(second.parcels)] == [5, 2]
        assert [list(one.senders) for one in (first, second)] == [[a.agent.subject], []]
        assert len(first.openings) == 1


@pytest.mark.asyncio
async def test_nothing_is_looked_for_twice_when_nothing_can_have_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mail(tmp_path) as net:
        a, b = await net.pair()
        looks: list[int] = []
        draw = net.world.broker.drawing.draw

        async def counted(*args: Any, **how: Any) -> Any:
            drawn = await draw(*args, **how)
            looks.append(len(drawn.parcels))
            return drawn

        monkeypatch.setattr(type(net.world.broker.drawing), "draw", staticmethod(counted))
        for text in (b"one", b"two"):  # neither is settled
            await a.stream.send(b.box, kind="note", plaintext=text)
            assert await b.take(1, lambda _: None) == [text]
        assert looks[looks.index(1) :] == [1, 1], "between them nobody looked in vain"


@pytest.mark.asyncio
async def test_a_stopping_broker_says_so(tmp_path: Path) -> None:
    async with mail(tmp_path) as net:
        b = await net.member("b")
        await b.stream.close()
        async with raw(net, b.agent, mailbox=b.box) as call:
            net.world.broker.bell.stop()
            assert await asyncio.wait_for(ended(call), PATIENCE_S) == BrokerCode.BROKER_STOPPING
