"""What an author declares about a handler: how often, how long, and whether a repetition does harm.

    @agent.on_message(Order, retry=Retry(attempts=3), deadline_s=20, idempotent=lambda order: order.number)

Decides what such a declaration may say, and checks it when the handler is registered, not when the first message comes.
Carrying it out is `handling`'s. Delivery is at least once, so that a handler can see a message twice whatever it
declares; `idempotent=True` says that this does no harm. With a key the framework sees to it: what was answered under a
key is remembered and answered again, without a second handling, as long as the process lives and the key is among the
last 4,096. Durable mailboxes, which outlive the process, take only handlers that are declared idempotent.
"""

from __future__ import annotations

import inspect
import random
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, final

from enclave.errors import AgentError, Code
from enclave.messages import MessageType

Handler = Callable[..., Any]
Key = Callable[[Any], str]

MAX_ATTEMPTS: Final = 5  # then the broker moves a message to the dead letters by itself
MAX_PAUSE_S: Final = 12 * 3600
MAX_REMEMBERED: Final = 4096
MAX_KEY: Final = 256


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How often a message is handled until it succeeds, and the pauses between, which double from `first_s` on."""

    attempts: int = MAX_ATTEMPTS
    first_s: float = 1.0
    most_s: float = 60.0

    def __post_init__(self) -> None:
        """Raises AgentError agent.handler_invalid."""
        if not 1 <= self.attempts <= MAX_ATTEMPTS or not 0 <= self.first_s <= self.most_s <= MAX_PAUSE_S:
            raise AgentError(
                Code.AGENT_HANDLER,
                f"{self}",
                f"Declare 1 to {MAX_ATTEMPTS} attempts, and 0 <= first_s <= most_s <= {MAX_PAUSE_S}.",
            )

    def pause_s(self, attempt: int) -> int:
        """Whole seconds to wait after that attempt, with jitter, so that what failed together does not return so."""
        pause = min(self.first_s * 2.0 ** (attempt - 1), self.most_s)
        return round(pause * random.uniform(0.8, 1.2))  # noqa: S311  jitter, not a secret


ONCE: Final = Retry(attempts=1)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """One handler and what its author says about it."""

    kind: MessageType
    handler: Handler
    retry: Retry
    deadline_s: float | None
    idempotent: bool
    key: Key | None
    streams: bool

    @property
    def name(self) -> str:
        return name_of(self.handler)


def declare(
    kind: MessageType,
    handler: Handler,
    *,
    retry: Retry | None,
    deadline_s: float | None,
    idempotent: bool | Key,
    durable: bool,
) -> Declared:
    """Check and keep one declaration. Raises AgentError agent.handler_invalid, agent.not_idempotent."""
    check_arguments(handler, 2)
    streams = inspect.isasyncgenfunction(handler) or inspect.isgeneratorfunction(handler)
    key = idempotent if callable(idempotent) else None
    made = Declared(
        kind=kind,
        handler=handler,
        retry=retry or (ONCE if streams and idempotent is False else Retry()),
        deadline_s=deadline_s,
        idempotent=bool(idempotent),
        key=key,
        streams=streams,
    )
    if deadline_s is not None and not 0 < deadline_s <= MAX_PAUSE_S:
        raise AgentError(Code.AGENT_HANDLER, f"{made.name}: a deadline of {deadline_s} s", "Declare seconds above 0.")
    if streams and key is not None:
        raise AgentError(
            Code.AGENT_HANDLER,
            f"{made.name} streams, and what it streams is not remembered",
            "Say idempotent=True if it yields the same items for the same message; else leave it out.",
        )
    if streams and not idempotent and made.retry.attempts > 1:
        raise AgentError(
            Code.AGENT_NOT_IDEMPOTENT,
            f"{made.name} streams: another attempt would begin again with the first item",
            "Say idempotent=True if it yields the same items for the same message; items are then taken up where the "
            "stream broke. Else leave retry out.",
        )
    if durable and not idempotent:
        raise AgentError(Code.AGENT_NOT_IDEMPOTENT, f"{made.name} takes {kind.name} from a durable mailbox")
    return made


def check_arguments(handler: Handler, count: int, *, what: str = "", mark: str = "") -> None:
    """Raises AgentError agent.handler_invalid for what cannot be called with (ctx, message), or (ctx)."""
    try:
        inspect.signature(handler).bind(*range(count))
    except TypeError:
        if not what:
            what, mark = ("(ctx, message)", "on_message(Type)") if count == 2 else ("(ctx)", "on_start, @agent.on_stop")
        raise AgentError(
            Code.AGENT_HANDLER,
            f"{name_of(handler)} cannot be called with {what}",
            f"Write `async def {name_of(handler)}{what}`, or `def`, below @agent.{mark}.",
        ) from None


def name_of(handler: Handler) -> str:
    """As its author calls it."""
    name = getattr(handler, "__name__", type(handler).__name__)
    return name if name.isidentifier() else "handler"


@final
class Remembered:
    """What was answered under each key: (message, labels) in order. The oldest keys are forgotten."""

    def __init__(self) -> None:
        self._answers: OrderedDict[tuple[str, str, str], tuple[tuple[object, frozenset[str]], ...]] = OrderedDict()

    def name(self, declared: Declared, sender: str, message: Any) -> tuple[str, str, str] | None:
        """Whose key of which type, or None where none is declared. Raises AgentError agent.handler_invalid."""
        if declared.key is None:
            return None
        key = declared.key(message)
        if type(key) is not str or not 0 < len(key) <= MAX_KEY:
            raise AgentError(
                Code.AGENT_HANDLER,
                f"the idempotency key of {declared.name} is a {type(key).__name__}",
                f"Return a text of 1 to {MAX_KEY} characters from `idempotent`.",
            )
        return sender, declared.kind.name, key

    def find(self, name: tuple[str, str, str] | None) -> tuple[tuple[object, frozenset[str]], ...] | None:
        return None if name is None else self._answers.get(name)

    def keep(self, name: tuple[str, str, str] | None, answers: tuple[tuple[object, frozenset[str]], ...]) -> None:
        if name is not None:
            self._answers[name] = answers
            self._answers.move_to_end(name)
            if len(self._answers) > MAX_REMEMBERED:
                self._answers.popitem(last=False)
