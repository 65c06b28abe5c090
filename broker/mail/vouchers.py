"""What proved a sender when its mail was taken in, for mailboxes that take mail of senders who fell since.

Decides when a sender's peer token is kept beside its mail: only where the mailbox's rule says `deliver`, and each token
once. A receiver judges such mail at the broker-signed moment of acceptance, by the token that was in force then.
"""

from datetime import datetime
from typing import Final, final

from broker.identity import Issued
from broker.ports import Transaction
from broker.sessions import Session, Sessions

MAX_KNOWN: Final = 16_384


@final
class Vouchers:
    """Keeps tokens of senders."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._known: dict[str, str] = {}  # subject → the last token of it that is durable

    def needed(self, session: Session, mailbox: str, at: datetime) -> Issued | None:
        """The token to keep with what this session now sends there."""
        if session.bundle.settings.mail.of(mailbox).fallen_sender != "deliver":
            return None
        token = self._sessions.peer_token(session, at)
        return None if self._known.get(session.subject) == token else session.peer_token

    def keep(self, tx: Transaction, session: Session, issued: Issued | None, at: datetime) -> None:
        """In the transaction that takes the mail in."""
        if issued is not None:
            at_s = int(at.timestamp())
            tx.mail.keep_token(session.subject, issued.token, issued_at_s=at_s, expires_at_s=issued.expires_at_s)

    def kept(self, session: Session, issued: Issued | None) -> None:
        """After that transaction: the same token need not be kept again."""
        if issued is not None:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            self._known[session.subject] = issued.token
