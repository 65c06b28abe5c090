"""How messages meet handlers: in order per sender, several senders at once, again after a failure, within a deadline.
Calls of tools are in no order.

Decides what becomes of a received message, as its handler's author declared it (`declared`): handled and acknowledged;
given back for another attempt; or refused for good, which whoever asked is told, as a code. Messages that are held here
keep their leases for as long as it takes. Handlers are coroutines, or plain functions, which run in a thread of their
own; generators of either kind answer with a stream.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections import Counter, defaultdict, deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping
from contextlib import aclosing, suppress
from typing import Any, Final, Protocol, TypeVar, final
from weakref import WeakValueDictionary

from attestation.errors import CloisterError
from broker.wire.tools import CALL
from enclave.context import BlockingContext, Context, Host
from enclave.declared import Declared, Remembered, name_of
from enclave.errors import AgentError, Code, MessageError, Reject
from enclave.received import Received
from enclave.replies import Outflow, Problem, StreamEnd, Waiting, Whole
from enclave.runtime import LEASE_S
from enclave.telling import follow_up, told

log: Final = logging.getLogger("cloister.agent")
T = TypeVar("T")

MAX_OUTSTANDING: Final = 64  # in hand, of which any one sender's count for half of what the others leave at most
MAX_WAITED: Final = 1024  # in hand at all; and while an answer is waited for, which may stand behind what is there
STOP_PATIENCE_S: Final = 5.0
SLOW_AFTER: Final = 3  # extensions of its lease
FIRST_PAUSE_S: Final = 0.5
MAX_PAUSE_S: Final = 30.0
MAX_THREADS: Final = 2 * MAX_WAITED  # of plain functions: those that are waited for, and as many that never end
_NOTHING: Final = object()
_threads: Final[set[threading.Thread]] = set()


class Mail(Protocol):
    """What is asked here of the agent's connection."""

    async def receive(self, limit: int) -> list[Received]: ...
    async def finish(self, received: Received) -> None: ...
    async def give_back(self, received: Received, delay_s: int, code: str = "") -> None: ...
    async def refuse(self, received: Received, code: str) -> None: ...
    async def keep(self, held: list[Received]) -> None: ...


@final
class Handling:
    """One start of one agent. `receive` and `keep` are its endless tasks; `close` ends the handlers."""

    def __init__(
        self, mail: Mail, host: Host, table: Mapping[str, Declared], waiting: Waiting, ready: asyncio.Event
    ) -> None:
        """No message is handled before `ready`; answers that somebody waits for are."""
        self._mail = mail
        self._ready = ready
        self._host = host
        self._table = table
        self._waiting = waiting
        self._remembered = Remembered()
        self._queues: defaultdict[str, deque[Received]] = defaultdict(deque)
        self._held: dict[str, Received] = {}  # by lease
        self._turns: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()  # by who calls tools
        # What handles, by the question and who asked.
        self._under_way: dict[tuple[bytes, str], tuple[asyncio.Task[Any], Declared]] = {}
        self._slow: dict[tuple[bytes, str], int] = {}  # how often they were seen under way
        self._working: set[asyncio.Task[None]] = set()
        self._room = asyncio.Event()
        self._stopping = False

    async def receive(self) -> None:
        pause = FIRST_PAUSE_S
        while True:
            self._room.clear()
            free = self._free()
            if free <= 0:
                await self._more()
                continue
            try:
                for received in await self._mail.receive(min(MAX_OUTSTANDING, free)):
                    self._take(received)
                pause = FIRST_PAUSE_S
            except CloisterError as error:
                log.warning("receiving failed: %s", error.code)
                await asyncio.sleep(pause)
                pause = min(2 * pause, MAX_PAUSE_S)

    def _free(self) -> int:
        """How much more may be taken in hand. A few senders whose messages take long do not keep out all others."""
        room = MAX_WAITED - len(self._held)
        if self._waiting.asked.is_set():
            return room
        free = MAX_OUTSTANDING
        for count in sorted(Counter(received.sender for received in self._held.values()).values()):
            free -= min(count, -(-free // 2))
        return min(free, room)

    async def _more(self) -> None:
        """Until there is room, or somebody waits for an answer."""
        asked = self._waiting.asked
        wakes = [self._room.wait()] if asked.is_set() else [self._room.wait(), asked.wait()]
        tasks = [asyncio.ensure_future(wake) for wake in wakes]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()

    async def keep(self) -> None:
        """Extend what is held, three times in a lease, so that one lost request loses nothing."""
        while True:
            await asyncio.sleep(LEASE_S / 3)
            self._tell_of_slow_ones()
            if self._held:
                with suppress(CloisterError):  # what is lost is delivered again, and recognised
                    await self._mail.keep(list(self._held.values()))

    def _tell_of_slow_ones(self) -> None:
        """Once for each: a handler that hangs says nothing by itself."""
        for question, (_, declared) in self._under_way.items():
            self._slow[question] = times = self._slow.get(question, 0) + 1
            if times == SLOW_AFTER:
                seconds = round(SLOW_AFTER * LEASE_S / 3)
                log.warning("%s has not ended for %d s; `deadline_s` would bound it", declared.name, seconds)
        self._slow = {question: times for question, times in self._slow.items() if question in self._under_way}

    async def close(self) -> None:
        """Take nothing new, let running handlers finish for a while, then break them off and give back what is left.
        `receive` goes on meanwhile, for the answers that those handlers wait for."""
        self._stopping = True
        self._ready.set()
        if self._working:
            await asyncio.wait(self._working, timeout=STOP_PATIENCE_S)
        late = list(self._working)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        for received in list(self._held.values()):
            await self._return(received, 0)

    def _take(self, received: Received) -> None:
        """An awaited answer goes to who awaits it; anything else into its sender's queue."""
        self._held[received.lease] = received
        try:
            awaited = self._waiting.offer(received)
        except MessageError as error:
            log.warning("message dropped: %s", error.code)
            awaited = True
        if awaited:
            self._call_off(received)
            self._spawn(self._finish(received))
        elif self._stopping:
            self._spawn(self._return(received, int(STOP_PATIENCE_S)))
        elif received.type.startswith(CALL):  # who wants calls in an order waits for their answers
            self._spawn(self._alone(received))
        else:
            queue = self._queues[received.sender]
            queue.append(received)
            if len(queue) == 1:
                self._spawn(self._drain(received.sender))

    def _call_off(self, state: Received) -> None:
        """Break off the handling of what nobody wants an answer to; what waits in a queue is passed over there."""
        found = self._under_way.get((state.in_reply_to, state.sender))
        if found is not None and self._waiting.called_off(state.in_reply_to, state.sender):
            found[0].cancel()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._working.add(task)
        task.add_done_callback(self._working.discard)

    async def _alone(self, received: Received) -> None:
        await self._ready.wait()
        turns = self._turns.setdefault(received.sender, asyncio.Semaphore(MAX_OUTSTANDING))
        async with turns:
            if not self._stopping:
                await self._handle(received)

    async def _drain(self, sender: str) -> None:
        queue = self._queues[sender]
        await self._ready.wait()
        while queue and not self._stopping:
            try:
                await self._handle(queue[0])
            finally:
                queue.popleft()
        del self._queues[sender]

    async def _handle(self, received: Received) -> None:
        context = Context(self._host, received)
        declared = self._table.get(received.type) or self._table.get(received.type.partition(":")[0] + ":")
        try:
            if declared is None:
                raise MessageError(Code.MESSAGE_TYPE, f"{received.type} from {received.sender}")
            message = declared.kind.decode(received.plaintext)
        except MessageError as error:
            await self._refuse(context, received, str(error.code), error)
            return
        question = (received.msg_id, received.sender)
        try:
            if not self._waiting.called_off(*question):
                await self._wanted(declared, context, received, message)
        except asyncio.CancelledError:
            if self._stopping or not self._waiting.called_off(*question):
                raise
            log.info("%s is broken off: who asked wants no answer any more", declared.name)
            await self._finish(received)
        except Reject as error:
            await self._refuse(context, received, error.code, error)
        except Exception as error:  # noqa: BLE001  a handler may raise anything; its message is tried again
            await self._failed(declared, context, received, error)
        else:
            await self._finish(received)

    async def _wanted(self, declared: Declared, context: Context, received: Received, message: Any) -> None:
        """Carry it out, for as long as who asked wants it; what comes afterwards is not cancelled any more."""
        question, task = (received.msg_id, received.sender), asyncio.current_task()
        assert task is not None
        self._under_way[question] = task, declared
        try:
            await self._carry_out(declared, context, received, message)
        finally:
            self._under_way.pop(question, None)  # two messages of one sender may bear one id: he chooses it
            if task.cancelling() and self._waiting.called_off(*question):
                task.uncancel()

    async def _carry_out(self, declared: Declared, context: Context, received: Received, message: Any) -> None:
        name = self._remembered.name(declared, received.sender, message)
        known = self._remembered.find(name)
        if known is not None:
            for answer, labels in known if received.reply_to else ():
                await context.reply_with(answer, labels)
            return
        try:
            async with asyncio.timeout(declared.deadline_s) as limit:
                if declared.streams:
                    await self._stream(declared, context, received, message)
                    return
                result = await call(declared.handler, context, message)
        except TimeoutError:
            if not limit.expired():
                raise
            raise MessageError(
                Code.MESSAGE_DEADLINE, f"{declared.name} did not end in {declared.deadline_s} s"
            ) from None
        if result is not None and received.reply_to:  # who only told us something wants no answer
            await context.reply(result)
        self._remembered.keep(name, tuple(context.answers))

    async def _stream(self, declared: Declared, context: Context, received: Received, message: Any) -> None:
        """Send what the handler yields, for as long as the other side takes it."""
        if not received.reply_to:
            raise Reject(str(Code.AGENT_NO_REPLY))
        flow = self._waiting.open(received.msg_id, received.sender)
        work = asyncio.ensure_future(self._pump(declared, context, flow, message))
        flow.bind(work)
        try:
            await work
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not flow.closed or (task is not None and task.cancelling()):
                raise
        finally:
            work.cancel()
            self._waiting.close(received.msg_id, received.sender)

    async def _pump(self, declared: Declared, context: Context, flow: Outflow, message: Any) -> None:
        number = 0
        async with aclosing(items_of(declared.handler, context, message)) as items:
            async for item in items:
                if isinstance(item, Whole):
                    await context.reply_with(item.message, context.labels)
                    return
                await flow.room(number)
                await context.reply_with(item, context.labels, item=number)
                number += 1
        await context.reply_with(StreamEnd(items=number), context.labels)

    async def _failed(self, declared: Declared, context: Context, received: Received, error: Exception) -> None:
        """Give the message back for another attempt, unless there were enough."""
        late = getattr(error, "code", None) == Code.MESSAGE_DEADLINE
        reason = str(Code.MESSAGE_DEADLINE if late else Code.MESSAGE_HANDLER)
        again = received.attempt < declared.retry.attempts
        pause_s = declared.retry.pause_s(received.attempt) if again else 0
        next_ = f"again in {pause_s} s" if again else f"given up as {reason}"
        log.error("%s failed in attempt %d: %s; %s", declared.name, received.attempt, told(error), next_)
        follow_up(error)
        if again:
            await self._return(received, pause_s, reason)
        else:
            await self._refuse(context, received, reason, None)

    async def _refuse(self, context: Context, received: Received, code: str, error: CloisterError | None) -> None:
        """No handler will take it any more: tell who asked, and the broker."""
        if error is not None:
            log.warning("message refused: %s", error)
        if received.reply_to:
            with suppress(CloisterError):  # the asker's time-out covers this
                await context.reply_with(Problem(code=code), context.labels)
        self._leave(received)
        with suppress(CloisterError):  # it comes again, and is refused again
            await self._mail.refuse(received, code)

    async def _finish(self, received: Received) -> None:
        self._leave(received)
        with suppress(CloisterError):  # a repetition is recognised
            await self._mail.finish(received)

    async def _return(self, received: Received, delay_s: int, code: str = "") -> None:
        self._leave(received)
        with suppress(CloisterError):  # the lease ends by itself if this does not get through
            await self._mail.give_back(received, delay_s, code)

    def _leave(self, received: Received) -> None:
        self._held.pop(received.lease, None)
        self._room.set()


async def call(handler: Callable[..., Any], context: Context, *message: object) -> Any:
    """The handler's result, from this loop or from a thread."""
    if inspect.iscoroutinefunction(handler):
        return await handler(context, *message)
    blocking = BlockingContext(context, asyncio.get_running_loop())
    try:
        result = await in_thread(lambda: handler(blocking, *message))
    finally:
        blocking.end()
    if inspect.iscoroutine(result):
        result.close()
        raise AgentError(
            Code.AGENT_HANDLER,
            f"{name_of(handler)} is no coroutine function and returned a coroutine: nothing of it ran",
            "Make whatever wraps the handler an `async def`.",
        )
    return result


async def items_of(handler: Callable[..., Any], context: Context, message: Any) -> AsyncGenerator[Any, None]:
    """What a generator of either kind yields."""
    if inspect.isasyncgenfunction(handler):
        async with aclosing(handler(context, message)) as items:
            async for item in items:
                yield item
        return
    blocking = BlockingContext(context, asyncio.get_running_loop())
    steps: Iterator[Any] = handler(blocking, message)
    try:
        while (item := await in_thread(lambda: next(steps, _NOTHING))) is not _NOTHING:
            yield item
    finally:
        blocking.end()


async def in_thread(work: Callable[[], T]) -> T:
    """Run in a daemon thread: one that never ends holds up neither another handler nor the end of the process.

    Raises MessageError message.handler_failed where there are too many that have not ended.
    """
    if len(_threads) >= MAX_THREADS:
        raise MessageError(Code.MESSAGE_HANDLER, f"{len(_threads)} plain functions have not ended")
    loop = asyncio.get_running_loop()
    found: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if found.done():  # nobody waits any more
            return
        if error is None:
            found.set_result(result)  # type: ignore[arg-type]  # None is the result where there is no error
        else:
            found.set_exception(error)

    def run() -> None:
        try:
            result, error = work(), None
        except BaseException as raised:  # noqa: BLE001  it goes to whoever awaits
            result, error = None, raised
        _threads.discard(thread)
        with suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, result, error)

    thread = threading.Thread(target=run, name="cloister-handler", daemon=True)
    _threads.add(thread)
    thread.start()
    return await found
