"""What an agent has in hand at once: however much one sender's messages take, others' are handled."""

import asyncio
from collections import deque
from contextlib import suppress
from itertools import count
from typing import Any, cast

import pytest

from broker.wire.tools import call_type
from enclave.context import Context
from enclave.declared import Declared, declare
from enclave.handling import MAX_OUTSTANDING, MAX_WAITED, Handling
from enclave.messages import MessageType
from enclave.received import Received
from enclave.replies import Waiting
from tests.agent_world import Ask, run

CALL, NOTE = call_type("work"), "Ask"


class Hands:
    """An agent's handling of what lies in a mailbox, in the order in which it came; nothing of it ever ends by itself,
    but for what `quick` sent."""

    def __init__(self, quick: str = "quick") -> None:
        self.quick, self.waiting, self.numbers = quick, Waiting(), count(1)
        self.box: deque[Received] = deque()
        self.came, self.ready = asyncio.Event(), asyncio.Event()
        self.running, self.most, self.handled, self.finished = 0, 0, list[str](), list[str]()
        self.ready.set()
        table = {name: self.declared(name) for name in (CALL, NOTE)}
        self.handling = Handling(cast("Any", self), cast("Any", None), table, self.waiting, self.ready)

    def declared(self, name: str) -> Declared:
        kind = MessageType(Ask, name)
        return declare(kind, self.work, retry=None, deadline_s=None, idempotent=True, durable=False)

    async def work(self, ctx: Context, _: Ask) -> None:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            if (sender := cast("Any", ctx)._received.sender) != self.quick:
                await asyncio.Event().wait()
            await asyncio.sleep(0)
            self.handled.append(sender)
        finally:
            self.running -= 1

    def put(self, sender: str, messages: int, kind: str, *, msg_id: bytes = b"") -> None:
        for _ in range(messages):
            number = next(self.numbers)
            how: dict[str, Any] = {"peer": None, "in_reply_to": b"", "reply_to": "", "labels": frozenset()}
            how |= {"plaintext": MessageType(Ask, kind).encode(Ask(number)), "msg_id": msg_id or b"%d" % number}
            self.box.append(Received(type=kind, sender=sender, attempt=1, lease=str(number), **how))

    async def receive(self, limit: int) -> list[Received]:
        if not self.box:
            await self.came.wait()
        return [self.box.popleft() for _ in range(min(limit, len(self.box)))]

    async def finish(self, received: Received) -> None:
        self.finished.append(received.lease)
        if not self.box:
            self.came.set()

    async def give_back(self, received: Received, delay_s: int, code: str = "") -> None:
        self.finished.append(f"{received.lease}: {code}")

    async def until(self, done: asyncio.Event) -> None:
        task = asyncio.create_task(self.handling.receive())
        await done.wait()
        for each in (task, *self.handling._working):
            each.cancel()
            with suppress(asyncio.CancelledError):
                await each


@pytest.mark.parametrize("kind", [CALL, NOTE])
@pytest.mark.parametrize("senders", [1, 3])
def test_a_few_whose_messages_never_end_do_not_keep_out_others(senders: int, kind: str) -> None:
    async def story() -> Hands:
        hands = Hands()
        for number in range(senders):
            hands.put(f"slow-{number}", 3 * MAX_OUTSTANDING, kind)
        hands.put(hands.quick, 1, kind)
        await hands.until(hands.came)
        return hands

    hands = run(story())
    assert hands.handled == [hands.quick]
    assert hands.most <= senders * MAX_OUTSTANDING + 1


def test_nobody_has_more_in_hand_than_there_is_room_for() -> None:
    async def story() -> int:
        hands = Hands()
        hands.put("slow", 2 * MAX_WAITED, CALL)
        task = asyncio.create_task(hands.handling.receive())
        while hands.handling._free() > 0:
            await asyncio.sleep(0)
        task.cancel()
        held = len(hands.handling._held)
        for each in hands.handling._working:
            each.cancel()
        return held

    assert run(story()) == MAX_WAITED


def test_messages_under_one_id_are_each_handled_once() -> None:
    """A sender chooses the ids of its envelopes, and knows those on its channels: what ended must not seem to fail."""

    async def story() -> Hands:
        hands = Hands()
        hands.put(hands.quick, 2, CALL, msg_id=b"same")
        all_in_hand = asyncio.create_task(hands.handling.receive())
        while len(hands.finished) < 2:
            await asyncio.sleep(0)
        all_in_hand.cancel()
        return hands

    hands = run(story())
    assert hands.handled == [hands.quick] * 2
    assert hands.finished == ["1", "2"]
