"""The list of agents who may no longer speak, for readers who do not take a token's word for its whole life.

Decides who is on it: everybody quarantined or revoked who could still hold a living token. It is made from the store at
most once a second, and signed for every question.
"""

from typing import Final, final

from broker.errors import BrokerCode, BrokerError
from broker.generation import Generation
from broker.identity import Identity
from broker.ports import Clock, Store
from broker.wire.revocations import MAX_FALLEN, Revocations, RevocationsRequest

RETRY_S: Final = 30
TOKEN_LIFE_S: Final = 3600  # longer than any token's life and skew


@final
class StandingDesk:
    """Answers who has fallen."""

    def __init__(self, *, store: Store, generation: Generation, identity: Identity, clock: Clock) -> None:
        self._store = store
        self._generation = generation
        self._identity = identity
        self._clock = clock
        self._made: tuple[int, int] = (0, 0)
        self._fallen: tuple[str, ...] = ()

    def answer(self, request: RevocationsRequest, *, tenant: str | None = None) -> Revocations:
        """Signed over the caller's nonce; of one tenant where one is named.

        Raises BrokerError broker.busy when there are more than a list takes: whoever is not on it would seem to stand.
        """
        at_s, generation = int(self._clock().timestamp()), self._generation.current
        if (at_s, generation) != self._made:
            since_s = at_s - TOKEN_LIFE_S
            found = self._store.read(lambda tx: tx.agents.fallen(live_at_s=since_s, limit=MAX_FALLEN + 1))
            self._fallen, self._made = tuple(found), (at_s, generation)
        if len(self._fallen) > MAX_FALLEN:
            raise BrokerError(BrokerCode.BROKER_BUSY, "more have fallen than a list takes", retry_after_s=RETRY_S)
        mine = f"agent/{tenant}/"
        fallen = tuple(subject for subject in self._fallen if tenant is None or subject.startswith(mine))
        return Revocations.sign(
            self._identity.key, at_s=at_s, generation=generation, fallen=fallen, nonce=request.nonce
        )
