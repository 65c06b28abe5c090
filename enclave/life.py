"""What belongs to one start of an agent: its connection, what it waits for, and the tasks that run by themselves.

Decides nothing; `agent` begins and ends it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, final

from attestation.errors import CloisterError
from enclave.errors import AgentError, Code
from enclave.handling import Handling
from enclave.launch import group_id
from enclave.replies import Waiting
from enclave.runtime import Runtime

if TYPE_CHECKING:
    from enclave.workload import WorkloadApi


def usable(path: Path | None) -> Path | None:
    """The path, if something can be kept there: the agent runs in a copy of its folder that is removed at its end.

    Raises AgentError agent.path_unusable.
    """
    if path is not None and not path.is_absolute():
        raise AgentError(Code.AGENT_PATH, f"{path} is relative")
    if path is not None and not os.access(path.parent, os.W_OK | os.X_OK):
        raise AgentError(Code.AGENT_PATH, f"{path.parent} cannot be written to by user {os.geteuid()}")
    return path


def joined(name: str | None) -> int | None:
    """The group's id, if what belongs to this process may be given to it.

    Raises AgentError agent.group_unusable.
    """
    if name is None:
        return None
    gid = group_id(name)
    if os.geteuid() != 0 and gid not in (os.getegid(), *os.getgroups()):
        raise AgentError(Code.AGENT_GROUP, f"user {os.geteuid()} is not in group {name}")
    return gid


@final
@dataclass(slots=True, kw_only=True)
class Life:
    """What belongs to one start of an agent."""

    runtime: Runtime
    loop: asyncio.AbstractEventLoop
    ready: asyncio.Event = field(default_factory=asyncio.Event)  # messages may be handled
    asked: asyncio.Event = field(default_factory=asyncio.Event)  # to end, by the agent itself
    over: asyncio.Event | None = None  # while it is being stopped; set when it was
    waiting: Waiting = field(default_factory=Waiting)
    handling: Handling | None = None
    workload: WorkloadApi | None = None
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    receiving: list[asyncio.Task[None]] = field(default_factory=list)
    beside: set[asyncio.Task[None]] = field(default_factory=set)


async def serve_spiffe(runtime: Runtime, path: Path, group: int | None) -> WorkloadApi:
    from enclave.workload import WorkloadApi  # brings gRPC, which agents without such a socket do not need

    return await WorkloadApi(runtime.svids, path, group=group).open()


class Asked(Exception):
    """Not a failure: the agent wants to end."""


async def until(asked: asyncio.Event) -> NoReturn:
    await asked.wait()
    raise Asked


async def quietly(work: Coroutine[Any, Any, None]) -> None:
    with suppress(CloisterError):
        await work


async def end_all(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel them and wait until they have ended."""
    ending = list(tasks)
    for task in ending:
        task.cancel()
    await asyncio.gather(*ending, return_exceptions=True)
