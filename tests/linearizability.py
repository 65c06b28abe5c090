"""Is there one order of operations that explains what concurrent clients saw? The search of Wing and Gong, with memory.

An operation took effect at one moment between its call and its return. A history is linearizable when such moments can
be chosen so that a model, which does one operation after the other, answers as the system did. One register per key
keeps histories small; the checker knows nothing of brokers.
"""

import itertools
import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

State = Hashable
Step = Callable[[Any, str, Any, Any], tuple[State] | None]
"""(state, name, argument, result) → the state after it, in a tuple; None when the model would not answer so."""


@dataclass(frozen=True)
class Operation:
    """What one client asked and was told, and between which ticks."""

    client: int
    name: str
    argument: Any
    result: Any
    called: int
    returned: int


@dataclass
class History:
    """Operations as they happen, from any number of threads."""

    operations: list[Operation] = field(default_factory=list)
    _ticks: "itertools.count[int]" = field(default_factory=itertools.count)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def tick(self) -> int:
        with self._lock:
            return next(self._ticks)

    def note(self, client: int, name: str, argument: Any, act: Callable[[], Any]) -> Any:
        """Do it, and write down when it was called and when it came back."""
        called = self.tick()
        result = act()
        operation = Operation(client, name, argument, result, called, self.tick())
        with self._lock:
            self.operations.append(operation)
        return result


def linearizable(history: Sequence[Operation], step: Step, start: State) -> bool:
    """Whether some order explains the history."""
    operations = sorted(history, key=lambda operation: operation.called)
    everything = (1 << len(operations)) - 1
    seen: set[tuple[int, State]] = set()
    stack: list[tuple[int, State]] = [(0, start)]
    while stack:
        done, state = stack.pop()
        if done == everything:
            return True
        if (done, state) in seen:
            continue
        seen.add((done, state))
        left = [index for index in range(len(operations)) if not done >> index & 1]
        first_return = min(operations[index].returned for index in left)
        for index in left:
            operation = operations[index]
            if operation.called > first_return:
                break  # something that is left had returned before this and all later ones were called
            after = step(state, operation.name, operation.argument, operation.result)
            if after is not None:
                stack.append((done | 1 << index, after[0]))
    return False


# ── the models: what a broker without concurrency would answer ─────────────────────────────────────────────────────


def nonce(consumed: Any, name: str, argument: Any, result: Any) -> tuple[State] | None:
    """Consumed once: the first use succeeds, every later one does not."""
    return (True,) if result is not consumed else None


def rights(revoked: Any, name: str, argument: Any, result: Any) -> tuple[State] | None:
    """One agent: released to and admitted until it is revoked, never afterwards."""
    if name == "revoke":
        return (True,)
    return (revoked,) if result == ("refused" if revoked else "ok") else None


def secret(newest: Any, name: str, argument: Any, result: Any) -> tuple[State] | None:
    """One secret: each put makes the next version, a release gives the newest."""
    if name == "put":
        return (newest + 1,) if result == newest + 1 else None
    return (newest,) if result == newest else None


def message(held: Any, name: str, argument: Any, result: Any) -> tuple[State] | None:
    """One message: waiting (""), in the hands of one lease, or gone (None)."""
    if name == "receive":
        if result is None:
            return (held,) if held != "" else None
        return (result,) if held == "" else None
    mine = held is not None and held == argument and held != ""
    if result != ("ok" if mine else "lost"):
        return None
    return ((None if name == "ack" else "") if mine else held,)
