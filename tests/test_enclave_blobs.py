"""Large messages: to a handler like any other, on the way a sealed blob that belongs to one message."""

import asyncio
import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from attestation.errors import CloisterError
from broker.wire.blob import BLOB_TYPE, BlobRef
from broker.wire.envelope import Envelope, info
from enclave import Agent, Context, blobs
from enclave.client import Call
from enclave.errors import Code
from enclave.mailbox import MAX_LARGE, MAX_PLAINTEXT
from simulator.broker_fixture import BrokerUnderTest
from simulator.machine import Machine
from tests.test_enclave_agent import started


@dataclass
class Report:
    pages: bytes


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerUnderTest]:
    with BrokerUnderTest(Machine.create(seed="blobs"), tmp_path_factory.mktemp("blobs")) as running:
        yield running


def reader() -> Agent:
    agent = Agent("reader")

    @agent.on_message(Report)
    async def read(ctx: Context, report: Report) -> Report:
        return Report(pages=report.pages[::-1])

    return agent


def test_large_messages_and_answers_come_through_and_leave_nothing_behind(world: BrokerUnderTest) -> None:
    pages = os.urandom(2 * MAX_PLAINTEXT)

    async def story() -> tuple[bytes, list[str]]:
        fetched: list[str] = []
        agent = reader()
        async with started(world, agent) as ctx:
            calls = agent.running._calls
            inner = calls.fetch_blob

            def watched(name: str) -> Call[bytes]:
                fetched.append(name)
                return inner(name)

            calls.fetch_blob = watched  # type: ignore[method-assign]  # it only looks on
            answer = await ctx.ask("reader", Report(pages=pages), Report)
            name = fetched[0]
            left = ""
            while not left:  # it is dropped after the message was acknowledged
                try:
                    await agent.running._authorised(lambda: inner(name))
                except CloisterError as error:
                    left = str(error.code)
            return answer.pages, [left, *fetched]

    answer, seen = asyncio.run(asyncio.wait_for(story(), 30))
    assert answer == pages[::-1]
    assert seen[0] == "blob.unknown"
    assert len(seen) == 2


def test_more_than_a_blob_holds_is_refused_before_anything_is_sent(world: BrokerUnderTest) -> None:
    async def story() -> str:
        async with started(world, reader()) as ctx:
            with pytest.raises(CloisterError) as caught:
                await ctx.send("reader", Report(pages=bytes(MAX_LARGE)))  # base64 makes it larger still
            return str(caught.value.code)

    assert asyncio.run(asyncio.wait_for(story(), 30)) == Code.ENVELOPE_TOO_LARGE


def test_a_reference_is_told_from_a_message() -> None:
    assert blobs.referred(b'{"schema":"0123456789abcdef","data":{}}') is None
    ref = BlobRef.of(b"bytes")
    envelope = Envelope(header=b"h", body=b"b", signature=bytes(64))
    assert blobs.referred(blobs.reference(envelope)[0]) == BlobRef.of(envelope.to_bytes())
    for wrong in (b'{"blob":1}', b'{"blob":{}}', b'{"blob":' + b"1" * 400):
        with pytest.raises(CloisterError):
            blobs.referred(wrong)
    with pytest.raises(CloisterError):
        ref.open(b"other bytes")


def test_a_blob_of_another_message_sender_or_label_is_not_taken(world: BrokerUnderTest) -> None:
    """A broker, or a sender, that puts something else beside a message."""

    async def story() -> list[str]:
        agent, other = reader(), Agent("other")
        found: list[str] = []
        async with started(world, agent, other) as ctx:
            sender = ctx._host.running  # type: ignore[attr-defined]  # the caller's own connection
            inbox, mailbox = agent.running.inbox, agent.running.inbox.name
            box = await sender._mailbox(mailbox)

            def seal(by: Agent | None = None, kind: str = BLOB_TYPE, labels: frozenset[str] = frozenset()) -> Envelope:
                runtime = by.running if by else sender
                return runtime._outbox.seal(
                    box, mailbox=mailbox, admission=runtime.admission, kind=kind, plaintext=b"large", labels=labels
                )

            def attempt(envelope: Envelope) -> str:
                raw = envelope.to_bytes()
                try:
                    blobs.open_blob(inbox, BlobRef.of(raw), raw, sender=sender.admission.verdict, labels=frozenset())
                except CloisterError as error:
                    return str(error.code)
                return "ok"

            good = seal()
            flipped = Envelope(header=good.header, body=good.body[:-1] + b"\0", signature=good.signature)
            found = [attempt(one) for one in (good, seal(by=other), seal(kind="Report"), flipped)]
            found.append(attempt(seal(labels=frozenset({"secret"}))))
            own = await other.running._mailbox(other.running.inbox.name)
            elsewhere = sender._outbox.seal(
                own,
                mailbox=other.running.inbox.name,
                admission=sender.admission,
                kind=BLOB_TYPE,
                plaintext=b"large",
            )
            found.append(attempt(elsewhere))
            assert info(good.header) != info(elsewhere.header)
        return found

    assert asyncio.run(asyncio.wait_for(story(), 30)) == [
        "ok",
        Code.ENVELOPE_SENDER,
        Code.ENVELOPE_WRONG_MAILBOX,
        "envelope.signature_invalid",
        Code.ENVELOPE_BODY,
        Code.ENVELOPE_WRONG_MAILBOX,
    ]
