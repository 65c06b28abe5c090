"""Tools that an agent serves: a typed function, what it declares, and how a call of it is answered.

    @agent.tool(needs="tools/corpus", deadline_s=60)
    async def find(ctx: Context, wanted: Search) -> Hits:
        "Find lines that hold a word."

Decides what can be a tool, what is said about it (`tools.ToolDescription`: name, docstring and the schemas of its
types), and in which order a call is judged here, after the broker's policy has let it through:

    1. the caller pins this very description, and gives     tool.drift
       a key where the tool is declared to want one         tool.key_required
    2. the arguments fit their type                         tool.arguments_invalid
    3. every hook allows the call                           tool.denied, tool.hook_failed
    4. its key was not used for something else              tool.key_reused, tool.outcome_unknown

Then the function runs, once unless it is declared idempotent; it may ask for the secrets that it declares and no more.
What was answered under a caller's key is answered again, as long as the process lives, the key is among the last 4,096
and the answers are not too large together. A refusal is an answer, told in the log; it makes no dead letter.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import hashlib
import inspect
import logging
import types
import typing
from collections import Counter, OrderedDict
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final, final

from broker.wire.tools import call_type
from enclave.context import BlockingContext, Context, confine
from enclave.declared import MAX_REMEMBERED as MAX_REMEMBERED
from enclave.declared import ONCE, Declared, Handler, Key, Retry, declare, name_of
from enclave.errors import AgentError, Code, MessageError, Reject, ToolRefused
from enclave.guards import Guards, ToolUse
from enclave.handling import call as run_handler
from enclave.handling import items_of
from enclave.messages import MessageType
from enclave.replies import Whole
from enclave.tools import MAX_KEY, PROGRESS, Nothing, Progress, ToolAnswer, ToolCall, ToolDescription, collected

log: Final = logging.getLogger("cloister.agent")
MAX_OCTETS: Final = 32 << 20  # of answers that one tool remembers; one has half of that at most
_STREAMS: Final = ("AsyncIterator", "AsyncGenerator", "AsyncIterable", "Iterator", "Generator", "Iterable")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    """A function as its signature shows it."""

    takes_ctx: bool
    takes_arguments: bool
    arguments: type
    result: type
    streams: bool


@final
class Served:
    """One tool of one agent."""

    def __init__(
        self,
        function: Handler,
        *,
        message_type: Callable[[type], MessageType],
        guards: Guards,
        name: str,
        needs: str | Iterable[str],
        idempotent: bool | Key,
        keyed: bool,
    ) -> None:
        """Raises AgentError agent.tool_invalid."""
        shape = _shape(function)
        self._guards = guards
        try:
            self._arguments = message_type(shape.arguments)
            self._result = message_type(shape.result)
        except AgentError as error:
            raise _invalid(function, error.detail) from None
        self._function = _adapted(function, takes_ctx=shape.takes_ctx, takes_arguments=shape.takes_arguments)
        self._streams = shape.streams
        self._idempotent = bool(idempotent)
        self._key = idempotent if callable(idempotent) else None
        self._answered = _Answered()
        outcome = self._result.schema
        try:
            self.description: Final = ToolDescription(
                name=name or name_of(function),
                description=inspect.getdoc(function) or "",
                input_schema=self._arguments.schema,
                output_schema=collected(outcome) if shape.streams else outcome,
                idempotent=self._idempotent,
                streams=shape.streams,
                keyed=keyed,
                needs=tuple(sorted({needs} if isinstance(needs, str) else set(needs))),
            )
        except ToolRefused as error:
            raise _invalid(function, error.detail) from None
        if keyed and (shape.streams or self._key is not None):
            raise _invalid(function, "streams, or makes keys of its own, and wants one from its callers")

    def replaced(self, function: Handler, guards: Guards) -> Served:
        """The same tool, as it is described, with another function of its kind behind it: what tests call."""
        made = copy.copy(self)
        takes_ctx, rest = _parameters(function, {})
        streams = inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function)
        if streams is not self._streams or len(rest) > 1:
            raise _invalid(function, f"cannot stand in for {self.description.name}")
        made._function = _adapted(function, takes_ctx=takes_ctx, takes_arguments=bool(rest))
        made._guards, made._answered = guards, _Answered()
        return made

    def declared(self, *, retry: Retry | None, deadline_s: float | None, durable: bool) -> Declared:
        """The handler of its calls. Raises AgentError agent.not_idempotent, agent.handler_invalid."""
        name = self.description.name
        if not self._idempotent and retry is not None and retry.attempts > 1:
            raise AgentError(
                Code.AGENT_NOT_IDEMPOTENT,
                f"the tool {name} is tried {retry.attempts} times, and does not say that a repetition does no harm",
                "Say idempotent=True, or idempotent=lambda arguments: arguments.key; or leave retry out: callers "
                "repeat it under a key of theirs.",
            )
        return declare(
            MessageType(ToolCall, call_type(name)),
            self._handler(),
            retry=retry or (None if self._idempotent else ONCE),
            deadline_s=deadline_s,
            idempotent=self._idempotent,
            durable=durable,
        )

    def _handler(self) -> Handler:
        async def answer(ctx: Context, call: ToolCall) -> ToolAnswer:
            return await self._answer(ctx, call)

        async def stream(ctx: Context, call: ToolCall) -> AsyncGenerator[ToolAnswer | Whole, None]:
            async with aclosing(self._stream(ctx, call)) as answers:
                async for one in answers:
                    yield one

        handler: Handler = stream if self._streams else answer
        handler.__name__ = self.description.name  # what the log calls it
        return handler

    async def _answer(self, ctx: Context, call: ToolCall) -> ToolAnswer:
        try:
            arguments = await self._admitted(ctx, call)
            key = call.key if self._key is None else str(self._key(arguments))
            once = self._answered.under(key, ctx, call)
        except ToolRefused as refusal:
            return self._refusal(ctx, refusal)
        async with once.lock:
            if once.answer is None:
                if once.begun and not self._idempotent:
                    detail = "a call under this key was begun and did not end"
                    return self._refusal(ctx, ToolRefused(Code.TOOL_UNSURE, detail))
                once.begun = True
                once.answer, once.labels = await self._done(ctx, arguments, once), ctx.labels
            answer = once.answer
            self._answered.keep(key, ctx, once)
        ctx.add_labels(*once.labels)
        return answer

    async def _done(self, ctx: Context, arguments: Any, once: _Once) -> ToolAnswer:
        try:
            result = await run_handler(self._function, ctx, arguments)
        except Reject:  # the function's own no: nothing has taken effect
            once.begun = False
            raise
        if result is None and self._result.kind is Nothing:
            result = Nothing()
        return self._said(ctx, "result", self._result, result)

    async def _stream(self, ctx: Context, call: ToolCall) -> AsyncGenerator[ToolAnswer | Whole, None]:
        try:
            arguments = await self._admitted(ctx, call)
        except ToolRefused as refusal:
            yield Whole(self._refusal(ctx, refusal))  # no stream: who waits for a single answer reads it, too
            return
        async with aclosing(items_of(self._function, ctx, arguments)) as items:
            async for item in items:
                far = isinstance(item, Progress)
                said = self._said(ctx, "progress" if far else "result", PROGRESS if far else self._result, item)
                yield said
                if said.kind == "refused":
                    return

    async def _admitted(self, ctx: Context, call: ToolCall) -> Any:
        """The arguments of a call that may run. Raises ToolRefused."""
        name, digest = self.description.name, self.description.digest
        if call.pin and call.pin != digest:
            raise ToolRefused(Code.TOOL_DRIFT, f"{name} is {digest[:16]}…, the caller pins {call.pin[:16]!a}…")
        if self.description.keyed and not call.key:
            raise ToolRefused(Code.TOOL_KEY, f"{name} is called under a key")
        body = call.arguments.encode(errors="surrogatepass")
        try:
            arguments = self._arguments.decode(body)
        except MessageError as error:
            raise ToolRefused(Code.TOOL_ARGUMENTS, error.detail) from None
        await self._guards.ask(
            ctx,
            lambda: ToolUse(
                server=ctx.verdict.subject,
                tool=name,
                digest=digest,
                caller=ctx.peer,
                arguments=self._arguments.decode(body),
                labels=ctx.labels,
                key=call.key,
            ),
        )
        confine(ctx, frozenset(f"{ctx.tenant}/{need}" for need in self.description.needs))
        return arguments

    def _said(
        self, ctx: Context, kind: typing.Literal["result", "progress"], wanted: MessageType, value: Any
    ) -> ToolAnswer:
        try:
            text = wanted.encode(value).decode()
        except MessageError as error:
            return self._refusal(ctx, ToolRefused(Code.TOOL_RESULT, error.detail))
        return ToolAnswer(tool=self.description.digest, kind=kind, code="", text=text)

    def _refusal(self, ctx: Context, refusal: ToolRefused) -> ToolAnswer:
        caller = ctx.peer.subject if ctx.peer else "-"
        log.warning("%s is not called for %s: %s: %s", self.description.name, caller, refusal.code, refusal.detail)
        return ToolAnswer(tool=self.description.digest, kind="refused", code=str(refusal.code), text=_shown(refusal))


@final
class _Once:
    """One thing that a caller wants done once. Whoever has the lock may do it, if it was not begun before."""

    __slots__ = ("answer", "arguments", "begun", "labels", "lock", "octets")

    def __init__(self, arguments: bytes = b"") -> None:
        self.arguments = arguments  # their digest
        self.lock = asyncio.Lock()
        self.begun = False
        self.answer: ToolAnswer | None = None
        self.octets = 0  # of the answer, once it is remembered
        self.labels: frozenset[str] = frozenset()


@final
class _Answered:
    """What was begun, and what was answered, to each caller under each key. Where all room is taken, whoever has the
    most keys loses the oldest. Where answers are too large together, whoever has the most loses his oldest answer, and
    not the key: what does harm when it is repeated is not done again."""

    def __init__(self) -> None:
        self._known: dict[str, OrderedDict[str, _Once]] = {}
        self._count = 0
        self._octets: Counter[str] = Counter()  # of answers, by caller

    def under(self, key: str, ctx: Context, call: ToolCall) -> _Once:
        """What is known under that key; something new where there is none. Raises ToolRefused tool.key_reused,
        tool.arguments_invalid."""
        if not key or ctx.peer is None:
            return _Once()
        if len(key) > MAX_KEY:
            raise ToolRefused(Code.TOOL_ARGUMENTS, f"a key of more than {MAX_KEY} characters")
        digest = hashlib.sha256(call.arguments.encode(errors="surrogatepass")).digest()
        own = self._known.setdefault(ctx.peer.subject, OrderedDict())
        if key not in own:
            own[key] = made = _Once(digest)
            self._make_room()
            return made
        if own[key].arguments != digest:
            raise ToolRefused(Code.TOOL_KEY_REUSED, "other arguments than the first time")
        return own[key]

    def keep(self, key: str, ctx: Context, once: _Once) -> None:
        """It has been answered."""
        known = self._known.get(ctx.peer.subject) if ctx.peer is not None else None
        if ctx.peer is None or known is None or known.get(key) is not once or once.octets or once.answer is None:
            return  # nothing is remembered of it, or this is
        once.octets = len(once.answer.text)
        self._octets[ctx.peer.subject] += once.octets
        while self._octets.total() > MAX_OCTETS:
            most = max(self._octets, key=self._octets.__getitem__)
            self._forget(most, next(one for one in self._known[most].values() if one.octets))

    def _forget(self, subject: str, one: _Once) -> None:
        """The answer."""
        self._octets[subject] -= one.octets
        one.answer, one.octets = None, 0
        if not self._octets[subject]:
            del self._octets[subject]

    def _make_room(self) -> None:
        self._count += 1
        if self._count > MAX_REMEMBERED:
            most = max(self._known, key=lambda subject: len(self._known[subject]))
            _, oldest = self._known[most].popitem(last=False)
            self._forget(most, oldest)
            self._count -= 1
            if not self._known[most]:
                del self._known[most]


def _shown(refusal: ToolRefused) -> str:
    """What the caller is told beside the code. The name of a hook is the server's own affair."""
    return "" if refusal.code is Code.TOOL_HOOK else refusal.detail


# --- what can be a tool ---


def _shape(function: Handler) -> _Shape:
    """Raises AgentError agent.tool_invalid."""
    hints = _hints(function)
    takes_ctx, rest = _parameters(function, hints)
    if len(rest) > 1 or not all(name in hints for name in rest):
        raise _invalid(function, "takes one object of a type that it names")
    if "return" not in hints:
        raise _invalid(function, "does not say what it returns")
    streams = inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function)
    return _Shape(
        takes_ctx=takes_ctx,
        takes_arguments=bool(rest),
        arguments=hints[rest[0]] if rest else Nothing,
        result=_item(function, hints["return"]) if streams else _plain(hints["return"]),
        streams=streams,
    )


def _parameters(function: Handler, hints: Mapping[str, Any]) -> tuple[bool, list[str]]:
    """Whether it takes a context first, and the names of what it takes beside that."""
    parameters = list(inspect.signature(function).parameters.values())
    if any(one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD, one.KEYWORD_ONLY) for one in parameters):
        raise _invalid(function, "takes more than a context and its arguments")
    names = [one.name for one in parameters]
    takes_ctx = bool(names) and (names[0] == "ctx" or hints.get(names[0]) in (Context, BlockingContext))
    return takes_ctx, names[takes_ctx:]


def _hints(function: Handler) -> Mapping[str, Any]:
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError) as error:
        raise _invalid(function, f"{error}; define its types at module level") from None


def _item(function: Handler, returned: Any) -> Any:
    """What it yields, apart from Progress."""
    origin, arguments = typing.get_origin(returned), typing.get_args(returned)
    if getattr(origin, "__name__", "") not in _STREAMS or not arguments:
        raise _invalid(function, "yields, and does not say what: -> AsyncIterator[Item]")
    item = arguments[0]
    if typing.get_origin(item) in (typing.Union, types.UnionType):
        rest = [one for one in typing.get_args(item) if one is not Progress]
        item = rest[0] if len(rest) == 1 else item
    return item


def _plain(returned: Any) -> Any:
    return Nothing if returned is type(None) else returned


def _adapted(function: Handler, *, takes_ctx: bool, takes_arguments: bool) -> Handler:
    """(ctx, arguments) → what the function does, a function of the same kind."""

    def pick(ctx: object, arguments: object) -> list[object]:
        return [ctx] * takes_ctx + [arguments] * takes_arguments

    if inspect.isasyncgenfunction(function):

        async def items(ctx: object, arguments: object) -> AsyncGenerator[Any, None]:
            async with aclosing(function(*pick(ctx, arguments))) as found:
                async for item in found:
                    yield item

        return functools.wraps(function)(items)
    if inspect.iscoroutinefunction(function):

        async def run(ctx: object, arguments: object) -> Any:
            return await function(*pick(ctx, arguments))

        return functools.wraps(function)(run)
    return functools.wraps(function)(lambda ctx, arguments: function(*pick(ctx, arguments)))


def _invalid(function: Handler, detail: str) -> AgentError:
    return AgentError(Code.AGENT_TOOL, f"{name_of(function)}: {detail}")
