"""A durable mailbox's reader: the keys come from the broker again, and so does the memory of what was received.

Decides what happens at a start. The keys are asked for, the mailbox is opened, and before anything is received the
newest checkpoint is restored. A checkpoint that is missing, does not open, or is not the one that the broker's signed
number names, is lost state: then, as declared, either mail is accepted again (`redeliver`: the handlers do not mind),
or what was sent before this start is refused (`refuse_before_boot`). Never is it silently accepted. With a `state_file`
the reader keeps the newest number itself too; a broker whose database was put back then shows, however well its older
number is signed.

A message counts as received, and is acknowledged, when the checkpoint that says so is kept. Numbers only go up: after a
broker was put back, the next one is above every number that was ever confirmed here.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Protocol, TypeVar, final

from broker.wire.keys import KeysRequest, Place
from broker.wire.mailbox import MailboxKey
from broker.wire.state import SaveRequest, StateRequest, StateResponse, state_digest
from enclave import checkpoint
from enclave.channel import ReceivingChannels
from enclave.client import BrokerCalls, Call
from enclave.clock import BrokerTime
from enclave.errors import BrokerRefused, Code, StateLost
from enclave.keeping import Save
from enclave.kept import KeptKeys, open_keys
from enclave.keys import AgentKeys
from enclave.mailbox import Inbox
from enclave.session import Admission

log: Final = logging.getLogger("cloister.agent")
T = TypeVar("T")
OnStateLoss = Literal["redeliver", "refuse_before_boot"]
BEHIND_MS: Final = 2_000  # time is told in whole seconds: this clock may be behind a sender's by so much
MAX_SENT: Final = 64
STALE: Final = "mailbox.checkpoint_stale"
FRESH_S: Final = 120  # keys that were made this lately have had no reader before


class Do(Protocol):
    """Carries a call out under the agent's admission, attesting again where that is needed."""

    async def __call__(self, make: Callable[[], Call[T]], /) -> T: ...


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Durable:
    """How a mailbox is durable. Its handlers must not mind a repetition."""

    on_state_loss: OnStateLoss = "refuse_before_boot"
    state_file: Path | None = None


@final
class DurableReader:
    """See the module. Publish what `open` gives, then `begin`; `save` after a message was handled, before its ack."""

    def __init__(
        self,
        inbox: Inbox,
        channels: ReceivingChannels,
        how: Durable,
        *,
        keys: AgentKeys,
        time: BrokerTime,
        calls: BrokerCalls,
        admission: Callable[[], Admission],
        do: Do,
    ) -> None:
        self._inbox = inbox
        self._channels = channels
        self._how = how
        self._keys = keys
        self._time = time
        self._calls = calls
        self._admission = admission
        self._do = do
        self._kept: KeptKeys | None = None
        self._begun = False
        self._number = 0
        self._sent: deque[tuple[int, bytes]] = deque(maxlen=MAX_SENT)  # the broker may have kept one of these
        self._wanted = 0
        self._saved = 0
        self._saving = asyncio.Lock()
        self._unwritable = False
        self.lost: StateLost | None = None

    async def open(self) -> MailboxKey:
        """Fetch the keys, and sign the newest for publication. Raises what opening the keys raises."""
        name, nonce = self._inbox.name, os.urandom(32)
        answer = await self._do(lambda: self._calls.keys(Place.MAILBOX, name, KeysRequest(nonce=nonce)))
        admission = self._admission()
        kept = open_keys(
            answer,
            admission=admission,
            keys=self._keys,
            of=Place.MAILBOX,
            name=name,
            nonce=nonce,
            now_s=self._time.now_s(),
        )
        self._kept = kept
        return self._inbox.adopt(kept, admission.subject)

    async def begin(self) -> None:
        """Once the mailbox is this agent's, and before anything is received: restore what was received before.

        Raises StateLost state.unwritable, besides what asking the broker does."""
        if self._begun:
            return
        assert self._kept is not None
        await self._restore(self._kept, self._admission())
        await self.save()  # from now on there is always one to compare with
        self._begun = True

    async def save(self, by: Save | None = None) -> None:
        """Return when a checkpoint is kept that says all that had been received when this was called. `by` shows one to
        the broker, which is done by a request of its own where there is nothing better."""
        self._wanted += 1
        mine = self._wanted
        async with self._saving:
            if self._saved >= mine:
                return
            covers = self._wanted
            try:
                await self._save_next(by or self._request)
            except BrokerRefused as refusal:
                if refusal.code != STALE:
                    raise
                await self._catch_up()
                await self._save_next(by or self._request)
            self._saved = covers

    async def _request(self, request: SaveRequest) -> StateResponse:
        return await self._do(lambda: self._calls.save_state(self._inbox.name, request))

    async def _save_next(self, by: Save) -> None:
        assert self._kept is not None
        name, nonce, number = self._inbox.name, os.urandom(32), self._number + 1
        sealed = checkpoint.seal(self._kept.state_key, name, number, self._memory())
        self._sent.append((number, state_digest(sealed)))
        answer = await by(SaveRequest(number=number, sealed=sealed, nonce=nonce))
        answer.verify(self._admission().broker.identity, mailbox=name, nonce=nonce)
        if (answer.number, answer.digest) != self._sent[-1]:
            raise StateLost(Code.STATE_ROLLED_BACK, f"the broker kept number {answer.number}, not {number}")
        self._number = number
        self._sent.clear()
        self._note(answer.digest)

    async def _catch_up(self) -> None:
        """The broker is at another number. It is one of ours whose confirmation was lost, or an older one: then the
        broker was put back under a living reader, who knows everything and goes on from there.

        Raises StateLost state.rolled_back where somebody else has saved meanwhile.
        """
        name, nonce = self._inbox.name, os.urandom(32)
        answer = await self._do(lambda: self._calls.state(name, StateRequest(nonce=nonce)))
        answer.verify(self._admission().broker.identity, mailbox=name, nonce=nonce)
        if answer.number > self._number and (answer.number, answer.digest) not in self._sent:
            raise StateLost(Code.STATE_ROLLED_BACK, f"number {answer.number} is not of this reader")
        if answer.number < self._number:
            log.error("the broker confirmed number %d of %s and knows %d", self._number, name, answer.number)
        self._number = max(self._number, answer.number)

    async def _restore(self, kept: KeptKeys, admission: Admission) -> None:
        name, nonce = self._inbox.name, os.urandom(32)
        answer = await self._do(lambda: self._calls.state(name, StateRequest(nonce=nonce)))
        answer.verify(admission.broker.identity, mailbox=name, nonce=nonce)
        noted, digest = self._noted()
        self._number = max(answer.number, noted)
        try:
            self._check(answer, kept, noted, digest)
            if answer.number:
                self._remember(checkpoint.unseal(kept.state_key, name, answer.number, answer.sealed))
        except StateLost as error:
            self.lost = error
            log.error("what %s had received is lost (%s): %s", name, error.code, self._how.on_state_loss)
            if self._how.on_state_loss == "refuse_before_boot":
                self._inbox.refuse_before_ms = self._time.now_ms() + BEHIND_MS

    def _memory(self) -> checkpoint.Memory:
        return checkpoint.Memory(
            windows=self._inbox.windows(),
            passages=tuple(self._channels.passages()),
            refuse_before_ms=self._inbox.refuse_before_ms,
        )

    def _remember(self, memory: checkpoint.Memory) -> None:
        self._inbox.restore(memory.windows)
        self._inbox.refuse_before_ms = memory.refuse_before_ms
        self._channels.restore(memory.passages)

    def _check(self, answer: StateResponse, kept: KeptKeys, noted: int, digest: str) -> None:
        other = noted == answer.number and digest not in ("", answer.digest.hex())
        if noted > answer.number or other:
            raise StateLost(Code.STATE_ROLLED_BACK, f"number {answer.number}, but {noted} was noted here, or another")
        if not answer.number:
            if kept.keys[0].not_before_s < self._time.now_s() - FRESH_S or len(kept.keys) > 1:
                raise StateLost(Code.STATE_MISSING, "the keys are older than this start, and there is no checkpoint")
            return
        if not hmac.compare_digest(state_digest(answer.sealed), answer.digest):
            raise StateLost(Code.STATE_ROLLED_BACK, f"the bytes are not those of number {answer.number}")

    def _noted(self) -> tuple[int, str]:
        """The newest number that this reader's own file knows, and its digest; 0 without one."""
        if self._how.state_file is None:
            return 0, ""
        try:
            found = json.loads(self._how.state_file.read_text())[self._inbox.name]
            number, digest = found if isinstance(found, list) else (found, "")
            return int(number), str(digest)
        except (OSError, ValueError, KeyError, TypeError):
            return 0, ""  # the host can delete a file: it says only what it says

    def _note(self, digest: bytes) -> None:
        """Raises StateLost state.unwritable: then the broker has kept a number that is not known here, so what it
        covers does not count as received yet, and the next one is noted instead."""
        if (file := self._how.state_file) is None:
            return
        fresh = file.with_suffix(".new")
        try:
            fresh.write_text(json.dumps({self._inbox.name: [self._number, digest.hex()]}))
            fresh.replace(file)
        except OSError as error:
            if not self._unwritable:
                log.error("%s cannot be written: %s; nothing of %s is done", file, error.strerror, self._inbox.name)
            self._unwritable = True
            raise StateLost(Code.STATE_UNWRITABLE, f"{file}: {error.strerror}") from None
        self._unwritable = False
