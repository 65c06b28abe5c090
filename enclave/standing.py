"""Whether a peer may still speak, by a list that the broker signed for this agent less than a minute ago.

Decides when the list is too old to open anything by: mail then waits (`standing.unknown`), it is not refused. Whoever
is on the list is refused (`peer.fallen`), however long its token lives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, final

from broker.wire.revocations import Revocations
from enclave.clock import BrokerTime
from enclave.errors import Code, EnvelopeRefused
from enclave.session import Broker

MAX_AGE_S: Final = 60.0
RENEW_S: Final = 20.0


@final
class Standing:
    """The newest list. `learn` it from an answer to a fresh nonce; `on_due` says that a newer one would be good."""

    def __init__(self, time: BrokerTime) -> None:
        self._time = time
        self._asked_s: float | None = None
        self._at_s = 0
        self.on_due: Callable[[], None] | None = None
        self._fallen: frozenset[str] = frozenset()

    @property
    def due(self) -> bool:
        """Whether a newer list should be asked for."""
        return self._asked_s is None or self._time.now_s() - self._asked_s > RENEW_S

    @property
    def known(self) -> bool:
        """Whether there is a list that is young enough to go by."""
        return self._asked_s is not None and self._time.now_s() - self._asked_s <= MAX_AGE_S

    def learn(self, answer: Revocations, broker: Broker, *, nonce: bytes, asked_s: float) -> None:
        """Take over a list that answers `nonce`, which was sent at `asked_s`: the list is no older than that.

        Raises WireError revocations.signature_invalid.
        """
        answer.verify(broker.identity, nonce=nonce)
        if answer.at_s >= self._at_s:
            self._asked_s, self._at_s, self._fallen = asked_s, answer.at_s, frozenset(answer.fallen)

    def require(self, subject: str) -> None:
        """Raises EnvelopeRefused: standing.unknown, peer.fallen."""
        if self.on_due is not None and self.due:
            self.on_due()
        if not self.known:
            raise EnvelopeRefused(Code.STANDING_UNKNOWN, "no list of the broker's that is younger than a minute")
        if subject in self._fallen:
            raise EnvelopeRefused(Code.PEER_FALLEN, subject)
