"""Checkpoints of durable mailboxes' readers: kept beside the mailbox, numbered, and the number signed.

Decides that numbers go up: by one, or by more when the reader knows of one that the broker's disk forgot. A reader that
starts again learns, signed over its own nonce, which checkpoint is the newest; anything older, from the broker's disk
or the host's, does not fit the signature. What a checkpoint says is sealed by the reader, and can be anything; so
whoever is shown it is held to the labels of who wrote it.
"""

import json
from collections.abc import Callable
from typing import Final, final

from broker.audit import Audit
from broker.errors import BrokerCode, BrokerError
from broker.generation import Generation
from broker.identity import Identity
from broker.mail.edges import Edges
from broker.mail.labels import NOTHING, Labels, Ratchets, held
from broker.mail.mailkeys import STATE_LABELS, STATE_NUMBER
from broker.ports import Clock, Store, Transaction
from broker.sessions import Session
from broker.wire.names import is_resource
from broker.wire.state import SaveRequest, StateRequest, StateResponse, state_digest
from policies.model import Receive

MAX_AHEAD: Final = 1 << 32  # so that no reader can use all numbers up
_NOTHING: Final = state_digest(b"")


def newest(tx: Transaction, mailbox: str) -> tuple[int, bytes]:
    """Number and digest of the newest checkpoint; number 0 when there was never one."""
    found = tx.marks.get(STATE_NUMBER + mailbox)
    if found is None:
        return 0, _NOTHING
    number, _, digest = found.partition(" ")
    return int(number), bytes.fromhex(digest)


def _is_next(tx: Transaction, session: Session, mailbox: str, number: int, digest: bytes) -> bool:
    """Whether a checkpoint of that number comes next; False for the newest one, once more.

    Raises BrokerError mailbox.not_owner, mailbox.kind_mismatch, mailbox.checkpoint_stale.
    """
    box = tx.mail.find(mailbox)
    if box is None or box.owner != session.subject:
        raise BrokerError(BrokerCode.MAILBOX_NOT_OWNER, f"{mailbox} is not {session.subject}'s")
    if box.kind != "durable":
        raise BrokerError(BrokerCode.MAILBOX_KIND, f"{mailbox} is not durable")
    last, known = newest(tx, mailbox)
    if (last, known) == (number, digest):
        return False
    if not last < number <= last + MAX_AHEAD:
        raise BrokerError(BrokerCode.MAILBOX_CHECKPOINT, f"{mailbox}: {number} after {last}")
    return True


@final
class StateDesk:
    """Keeps and shows checkpoints."""

    def __init__(
        self,
        *,
        store: Store,
        audit: Audit,
        edges: Edges,
        generation: Generation,
        identity: Identity,
        labels: Ratchets,
        clock: Clock,
    ) -> None:
        self._store = store
        self._audit = audit
        self._edges = edges
        self._generation = generation
        self._identity = identity
        self._labels = labels
        self._clock = clock

    async def newest(
        self, session: Session, mailbox: str, request: StateRequest, *, correlation_id: str = ""
    ) -> StateResponse:
        """The newest checkpoint with the proof of its number. Raises BrokerError mailbox.name_invalid; Refused."""
        (number, digest), sealed, marks = self._store.read(
            lambda tx: (newest(tx, mailbox), tx.states.get(mailbox), tx.marks.get(STATE_LABELS + mailbox))
        )
        labels = frozenset(json.loads(marks)) if marks else NOTHING
        await self._permit(session, mailbox, correlation_id, labels)
        await self._labels.delivered(session, labels, why=mailbox, at=self._clock())
        return StateResponse.sign(
            self._identity.key, mailbox=mailbox, number=number, digest=digest, nonce=request.nonce, sealed=sealed
        )

    async def save(
        self, session: Session, mailbox: str, request: SaveRequest, *, correlation_id: str = ""
    ) -> StateResponse:
        """Keep the next checkpoint, durably.

        Raises BrokerError mailbox.name_invalid, mailbox.not_owner, mailbox.kind_mismatch, mailbox.checkpoint_stale,
        generation.moved; Refused.
        """
        work = await self.saving(session, mailbox, request, correlation_id=correlation_id)
        await self._store.transact(work)
        return self.signed(mailbox, request)

    async def saving(
        self, session: Session, mailbox: str, request: SaveRequest, *, correlation_id: str = ""
    ) -> Callable[[Transaction], None]:
        """What keeps it, for a transaction that does more. Raises as `save` does; so does what it returns."""
        await self._permit(session, mailbox, correlation_id)
        digest = state_digest(request.sealed)
        # What is refused now would be refused then, and costs nobody a place in the writer's next group.
        self._store.read(lambda tx: _is_next(tx, session, mailbox, request.number, digest))

        def work(tx: Transaction) -> None:
            self._generation.expect(tx, session.generation)
            if not _is_next(tx, session, mailbox, request.number, digest):
                return  # the answer was lost, and this is the same again
            tx.states.put(mailbox, request.sealed)
            tx.marks.put(STATE_NUMBER + mailbox, f"{request.number} {digest.hex()}")
            labels = json.dumps(sorted(held(tx, session.subject)))
            if (tx.marks.get(STATE_LABELS + mailbox) or "[]") != labels:
                tx.marks.put(STATE_LABELS + mailbox, labels)

        return work

    def signed(self, mailbox: str, request: SaveRequest) -> StateResponse:
        """The broker's word that this one is kept."""
        return StateResponse.sign(
            self._identity.key,
            mailbox=mailbox,
            number=request.number,
            digest=state_digest(request.sealed),
            nonce=request.nonce,
        )

    async def _permit(self, session: Session, mailbox: str, correlation_id: str, labels: Labels = NOTHING) -> None:
        if not is_resource(mailbox):
            raise BrokerError(BrokerCode.MAILBOX_NAME, f"{mailbox[:80]!a}")
        answer = self._edges.ask(session, Receive(mailbox, labels), self._clock(), correlation_id=correlation_id)
        if (entry := answer.entry) is not None:
            await self._store.transact(lambda tx: entry.pay(tx, self._audit))
        if answer.refusal is not None:
            raise answer.refusal
