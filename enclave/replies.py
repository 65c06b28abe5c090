"""Answers that somebody waits for: single ones, and streams of them with flow control.

Decides which incoming message is an answer to which question (by the question's id and by the verdict of who sends it),
in what order the items of a stream are handed on, and how many may be on their way: an answering agent sends at most
64 items more than the asking one has taken. A closed iterator stops the handler at the other end.

    question ─▶
              ◀─ item 0, item 1, …            of the type that was asked for, numbered inside the sealed body
      state ─▶                                every 32 items taken; when the iterator is closed or `ask` is cancelled
              ◀─ end(items) or problem(code)
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, final

from enclave.errors import Code, MessageError
from enclave.messages import MessageType

WINDOW: Final = 64
MAX_CALLED_OFF: Final = 1024  # questions that are remembered as such; who has the most loses his oldest
MAX_OF_ASKER: Final = 128
CALLED_OFF_S: Final = 3600.0  # what has waited longer is handled all the same
PATIENCE_S: Final = 60.0  # for the asking side to take something


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A question could not be handled: a code, never a detail of the receiver's inside."""

    code: str


@dataclass(frozen=True, kw_only=True)
class StreamEnd:
    """There were so many items, and that was all."""

    items: int


@dataclass(frozen=True, kw_only=True)
class StreamState:
    """From the asking side: so many items were taken; `closed`: no more are wanted, nor a single answer."""

    taken: int
    closed: bool = False


PROBLEM: Final = MessageType(Problem, "cloister.problem")
END: Final = MessageType(StreamEnd, "cloister.stream.end")
STATE: Final = MessageType(StreamState, "cloister.stream.state")
OWN: Final = {Problem: PROBLEM, StreamEnd: END, StreamState: STATE}


@final
@dataclass(frozen=True, slots=True)
class Whole:
    """Yielded in place of a stream: the one answer, and the end."""

    message: object = field(repr=False)


class Incoming(Protocol):
    """What is asked here of a received message."""

    @property
    def type(self) -> str: ...
    @property
    def sender(self) -> str: ...
    @property
    def in_reply_to(self) -> bytes: ...
    @property
    def plaintext(self) -> bytes: ...
    @property
    def labels(self) -> frozenset[str]: ...


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    message: Any = field(repr=False)
    labels: frozenset[str]


class Waits(Protocol):
    """Something that waits for what comes back from `peer`, which is known once the question is sealed."""

    peer: str

    def put(self, received: Incoming) -> None: ...


@final
class Single:
    """One answer of one type."""

    def __init__(self, wanted: MessageType) -> None:
        self.peer = ""
        self._wanted = wanted
        self._found: asyncio.Future[Incoming] = asyncio.get_running_loop().create_future()

    def put(self, received: Incoming) -> None:
        if not self._found.done():
            self._found.set_result(received)

    async def take(self, timeout_s: float) -> Answer:
        """Raises MessageError message.no_answer, message.peer_failed, message.schema_mismatch,
        message.stream_mismatch."""
        try:
            async with asyncio.timeout(timeout_s):
                received = await self._found
        except TimeoutError:
            raise MessageError(Code.MESSAGE_NO_ANSWER, f"within {timeout_s:g} s") from None
        _no_problem(received)
        if received.type == END.name:
            raise MessageError(Code.MESSAGE_STREAM, f"an empty stream, not a {self._wanted.name}")
        _of_type(received, self._wanted)
        return Answer(message=self._wanted.decode(received.plaintext), labels=received.labels)


@final
class Inflow:
    """The asking side of one stream: puts items into order, and ends where the sender says that it ended."""

    def __init__(self, wanted: MessageType) -> None:
        self.peer = ""
        self.taken = 0
        self._wanted = wanted
        self._items: dict[int, Answer] = {}
        self._end: int | None = None
        self._failure: MessageError | None = None
        self._changed = asyncio.Event()

    @property
    def over(self) -> bool:
        """Nothing more will come: the end was reached, or a failure."""
        return self._failure is not None or self._end == self.taken

    @property
    def state_due(self) -> bool:
        return self.taken % (WINDOW // 2) == 0 and self._end is None

    def put(self, received: Incoming) -> None:
        try:
            self._sort(received)
        except MessageError as error:
            self._failure = self._failure or error
        self._changed.set()

    def _sort(self, received: Incoming) -> None:
        _no_problem(received)
        if received.type == END.name:
            self._end = int(END.decode(received.plaintext).items)
            return
        _of_type(received, self._wanted)
        message, number = self._wanted.decode_item(received.plaintext)
        if number is None:  # a single answer is a stream of one
            number, self._end = 0, 1
        if number >= self.taken + 2 * WINDOW:
            raise MessageError(Code.MESSAGE_STREAM, f"item {number} came after {self.taken} were taken")
        if number >= self.taken:  # else it was taken in an earlier attempt of the same stream
            self._items.setdefault(number, Answer(message=message, labels=received.labels))

    async def take(self, timeout_s: float) -> Answer | None:
        """The next item, or None at the end. Raises MessageError as `Single.take` does."""
        while self.taken not in self._items:
            if self._failure is not None:
                raise self._failure
            if self._end is not None and self.taken >= self._end:
                return None
            self._changed.clear()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._changed.wait()
            except TimeoutError:
                detail = f"no item {self.taken} within {timeout_s:g} s"
                raise MessageError(Code.MESSAGE_NO_ANSWER, detail) from None
        self.taken += 1
        return self._items.pop(self.taken - 1)


@final
class Outflow:
    """The answering side of one stream."""

    def __init__(self) -> None:
        self.closed = False
        self._taken = 0
        self._changed = asyncio.Event()
        self._work: asyncio.Future[None] | None = None

    def bind(self, work: asyncio.Future[None]) -> None:
        """What is cancelled when the other side closes."""
        self._work = work
        if self.closed:
            work.cancel()

    def update(self, state: StreamState) -> None:
        self._taken = max(self._taken, state.taken)
        self._changed.set()
        if state.closed and not self.closed:
            self.closed = True
            if self._work is not None:
                self._work.cancel()

    async def room(self, number: int) -> None:
        """Wait until item `number` may be sent. Raises MessageError message.no_answer when nobody takes any."""
        while number - self._taken >= WINDOW:
            self._changed.clear()
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await self._changed.wait()
            except TimeoutError:
                detail = f"{number - self._taken} items of a stream were not taken within {PATIENCE_S:g} s"
                raise MessageError(Code.MESSAGE_NO_ANSWER, detail) from None


@final
class Waiting:
    """Everything that one agent waits for, by the id of the question."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()  # while an answer is waited for
        self._questions: dict[bytes, Waits] = {}
        self._flows: dict[tuple[bytes, str], Outflow] = {}
        self._called_off: dict[tuple[bytes, str], float] = {}  # when, oldest first

    def expect(self, msg_id: bytes, peer: str, waits: Waits) -> None:
        waits.peer = peer
        self._questions[msg_id] = waits
        self.asked.set()

    def forget(self, waits: Waits) -> None:
        self._questions = {msg_id: one for msg_id, one in self._questions.items() if one is not waits}
        if not self._questions:
            self.asked.clear()

    def open(self, msg_id: bytes, asker: str) -> Outflow:
        """Begin to answer a question with a stream."""
        flow = self._flows[msg_id, asker] = Outflow()
        return flow

    def close(self, msg_id: bytes, asker: str) -> None:
        self._flows.pop((msg_id, asker), None)

    def called_off(self, msg_id: bytes, asker: str) -> bool:
        """Whether who asked has said, before a stream began, that no answer is wanted any more."""
        return (msg_id, asker) in self._called_off

    def _call_off(self, question: tuple[bytes, str]) -> None:
        """Of so many, for so long; nobody who calls off without end makes others' be forgotten."""
        now_s, known = asyncio.get_running_loop().time(), self._called_off
        known.pop(question, None)
        known[question] = now_s
        while known[oldest := next(iter(known))] < now_s - CALLED_OFF_S:
            del known[oldest]
        own = [one for one in known if one[1] == question[1]]
        if len(own) > MAX_OF_ASKER:
            del known[own[0]]
        elif len(known) > MAX_CALLED_OFF:
            counts = Counter(asker for _, asker in known)
            most = max(counts, key=counts.__getitem__)
            del known[next(one for one in known if one[1] == most)]

    def offer(self, received: Incoming) -> bool:
        """Whether the message belongs to something here, and needs no handler."""
        if received.type == STATE.name:
            question = (received.in_reply_to, received.sender)
            flow, state = self._flows.get(question), STATE.decode(received.plaintext)
            if flow is not None:
                flow.update(state)
            elif state.closed:
                self._call_off(question)
            return True
        waits = self._questions.get(received.in_reply_to)
        if waits is None or waits.peer != received.sender:
            return False
        waits.put(received)
        return True


def _no_problem(received: Incoming) -> None:
    if received.type == PROBLEM.name:
        raise MessageError(Code.MESSAGE_PEER_FAILED, str(PROBLEM.decode(received.plaintext).code))


def _of_type(received: Incoming, wanted: MessageType) -> None:
    if received.type != wanted.name:
        raise MessageError(Code.MESSAGE_SCHEMA, f"the answer is a {received.type}, not a {wanted.name}")
