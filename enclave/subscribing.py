"""Handlers of topics: what comes from a topic meets them in the order of the topic, again after a failure.

Decides what becomes of each message, as its handler's author declared it: there is no lease on a topic and nobody to
answer, so an attempt that fails is repeated here, and what fails for good is passed over with a line in the log.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, Final

from attestation.errors import CloisterError
from enclave.context import Context, Host
from enclave.declared import Declared
from enclave.errors import Code, MessageError, Reject
from enclave.handling import FIRST_PAUSE_S, MAX_PAUSE_S, call
from enclave.ledger import Incoming
from enclave.received import Received
from enclave.telling import follow_up, told
from enclave.topics.reader import TopicReader

log: Final = logging.getLogger("cloister.agent")
NOT_READER: Final = "topic.not_reader"  # the broker has not heard of this agent for too long, and has rolled the key


async def subscribe(reader: TopicReader, host: Host, table: Mapping[str, Declared], ready: asyncio.Event) -> None:
    """Read one topic for as long as the agent runs, once it is ready."""
    await ready.wait()
    pause, joined = FIRST_PAUSE_S, False
    while True:
        try:
            if not joined:
                await reader.join()
                joined = True
            for incoming in await reader.receive():
                await _handle(incoming, reader.topic, host, table)
                reader.done(incoming)
            pause = FIRST_PAUSE_S
        except CloisterError as error:
            log.warning("reading %s failed: %s", reader.topic, error.code)
            joined = joined and error.code != NOT_READER
            await asyncio.sleep(pause)
            pause = min(2 * pause, MAX_PAUSE_S)


async def _handle(incoming: Incoming, topic: str, host: Host, table: Mapping[str, Declared]) -> None:
    declared = table.get(incoming.type)
    try:
        if declared is None:
            raise MessageError(Code.MESSAGE_TYPE, f"{incoming.type} on {topic}")
        message = declared.kind.decode(incoming.plaintext)
    except MessageError as error:
        log.warning("message of %s passed over: %s", topic, error.code)
        return
    for attempt in range(1, declared.retry.attempts + 1):
        if await _attempt(declared, host, Received.published(incoming, attempt=attempt), message):
            return
        if attempt < declared.retry.attempts:
            await asyncio.sleep(declared.retry.pause_s(attempt))
    log.error("%s gives up a message of %s", declared.name, topic)


async def _attempt(declared: Declared, host: Host, received: Received, message: Any) -> bool:
    """Whether there is nothing more to do."""
    try:
        async with asyncio.timeout(declared.deadline_s):
            await call(declared.handler, Context(host, received), message)
    except Reject as error:
        log.warning("%s rejects a message: %s", declared.name, error.code)
    except Exception as error:  # noqa: BLE001  a handler may raise anything; its message is tried again
        log.error("%s failed in attempt %d: %s", declared.name, received.attempt, told(error))
        follow_up(error)
        return False
    return True
