"""What is kept of mail, as Protocols: mailboxes, the parcels that wait in them, dead letters, tombstones, blobs.

Decides the unit of mail. A *parcel* is what one row holds and what one lease is about: one envelope, or one batch of a
channel's messages; `count` says how many messages are in it. Order is kept for each sender inside one mailbox: a parcel
that waits, because it was given back with a delay, keeps those behind it waiting; a parcel that is out under a lease
does not. Nothing here is opened or verified.

Times are integers: `_s` seconds, `_ms` milliseconds since 1970.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Literal, Protocol, final

MAX_KEYS: Final = 4  # epochs of a mailbox to which senders may still seal
MAX_ENDED: Final = 128  # parcels that one call takes out of a queue for good; what is left goes with the next
MAX_OUT: Final = 1024  # messages of one mailbox under leases at a time
MAX_OUT_OF_SENDER: Final = 512  # of them of one sender, before a last batch
MAX_OCTETS: Final = 4 << 20  # of parcels handed out by one call, unless the first alone has more
MAX_STONES: Final = 10_000  # tombstones of one mailbox
MAX_SEEN: Final = 16_384  # ids of one sender there that are remembered; its first ones go, which are its oldest
NO_LIMIT: Final = 2**53

WhenFallen = Literal["deliver", "hold", "drop"]
"""What becomes of mail whose sender was quarantined or revoked after it was taken in."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class MailboxRecord:
    """An open mailbox: its owner and the owner's signed key (JSON). Until `held_until_ms` the owner counts as there."""

    name: str
    owner: str
    key: bytes  # thumbprint
    incarnation: bytes
    epoch: int
    statement: str
    kind: str = "ephemeral"
    held_until_ms: int = 0


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class NewMessage:
    """A parcel to be queued. `digest` names its exact bytes.

    A batch is not looked up among the ids that were seen: the highest number that its channel has reached says more.
    """

    mailbox: str
    sender: str
    msg_id: bytes
    digest: bytes
    envelope: bytes
    key: bytes  # thumbprint of the mailbox key it is sealed to
    accepted_at_ms: int
    expires_at_ms: int
    kind: str = "envelope"  # or "batch"
    count: int = 1


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LeasedMessage:
    """A parcel in the hands of its receiver until the lease ends. `remaining` is empty unless some of it is done."""

    sender: str
    envelope: bytes
    accepted_at_ms: int
    attempt: int
    lease: str
    kind: str = "envelope"
    count: int = 1
    msg_id: bytes = b""
    digest: bytes = b""
    expires_at_ms: int = 0
    remaining: tuple[int, ...] = ()
    dead_reason: str = ""  # why it was dead before it was sent on its way again
    number: int = 0


class End(StrEnum):
    """How a parcel ended other than by being handled. Public and stable: add, never rename or reuse."""

    EXPIRED = "expired"
    ATTEMPTS = "attempts"  # handed out as often as it may be, never acknowledged: a dead letter
    REJECTED = "rejected"  # by its receiver: a dead letter
    SENDER_FALLEN = "sender_fallen"  # and the mailbox's policy says drop
    KEY_GONE = "key_gone"  # the mailbox was opened anew, and no key for it is left


DEAD_LETTERS: Final = frozenset({End.ATTEMPTS, End.REJECTED})  # these are kept, still sealed


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class EndedParcel:
    """A parcel that was taken out of its queue; `code` is the last that its receiver said about it."""

    number: int
    mailbox: str
    sender: str
    kind: str
    count: int
    msg_id: bytes
    digest: bytes
    accepted_at_ms: int
    end: End
    code: str = ""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A parcel that is kept although nobody gets it any more."""

    number: int
    sender: str
    kind: str
    count: int
    msg_id: bytes
    octets: int
    attempt: int
    accepted_at_ms: int
    expires_at_ms: int
    dead_at_ms: int
    reason: str
    code: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TombstoneRecord:
    """The broker's signed word about a parcel that ended (JSON). `number` counts upwards and is given by the store."""

    mailbox: str
    sender: str
    at_ms: int
    statement: str
    number: int = 0


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Leased:
    """What one call handed out, and what it took out of the queue for good on the way."""

    messages: tuple[LeasedMessage, ...] = ()
    ended: tuple[EndedParcel, ...] = ()
    cut: bool = False  # a bound of the call ended it, so that there may be more at once


class Queued(StrEnum):
    QUEUED = "queued"
    DUPLICATE = "duplicate"
    ID_REUSED = "id_reused"
    FULL = "full"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """How much a mailbox holds, and how much of it one sender may fill."""

    messages: int = 10_000
    octets: int = 64 << 20
    sender_messages: int = 5_000
    sender_octets: int = 32 << 20
    dead: int = 1_000  # dead letters; the oldest make room
    mailboxes: int = 64  # of one owner; and so many names with kept keys one agent can make
    tenant_mailboxes: int = 8192
    tenant_keys: int = 1024  # durable mailboxes and topics
    blob_octets: int = 256 << 20
    sender_blob_octets: int = 128 << 20


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class BlobRecord:
    """A large sealed payload beside a mailbox, found by the SHA-256 of its bytes."""

    digest: bytes
    mailbox: str
    sender: str
    octets: int
    accepted_at_ms: int
    expires_at_ms: int
    body: bytes = field(repr=False, default=b"")


class Mail(Protocol):
    # ── mailboxes ──────────────────────────────────────────────────────────────────────────────────────────────────

    def open(self, record: MailboxRecord) -> Sequence[EndedParcel]:
        """Make or replace. Under another owner every lease ends.

        An ephemeral mailbox loses the keys of other incarnations, and the mail that was sealed to them: nobody can read
        it any more. A durable one keeps all its mail.
        """

    def find(self, name: str) -> MailboxRecord | None: ...
    def owned(self, owner: str) -> int:
        """How many mailboxes are under that name."""

    def of_tenant(self, tenant: str) -> int:
        """How many mailboxes it has."""

    def forget(self, *, before_ms: int, most: int = MAX_ENDED) -> int:
        """Drop ephemeral mailboxes that nobody has held since and that keep nothing; how many."""

    def lapse(self, name: str) -> None:
        """A durable mailbox has no keys any more: it counts as an ephemeral one, if it is there."""

    def hold(self, name: str, *, owner: str, until_ms: int) -> bool:
        """Note that the owner is there, or with 0 that he has left; False when the mailbox is not his."""

    def accepts(self, name: str, key: bytes, incarnation: bytes) -> bool:
        """Whether that thumbprint is one of the mailbox's newest MAX_KEYS keys, and of that incarnation."""

    def concerns(self, subject: str) -> bool:
        """Whether it owns a mailbox, or mail of it lies somewhere, also as dead letters."""

    def leave(self, subject: str) -> None:
        """Forget what is remembered of a sender of whom no mail lies anywhere, and that never comes again."""

    # ── the queue ──────────────────────────────────────────────────────────────────────────────────────────────────

    def queue(self, message: NewMessage, quota: Quota) -> Queued:
        """FULL also while what fills it has expired: whoever calls may bury that, and try again.

        Ids are remembered for a day, and until the message expires, but no more than about MAX_SEEN of a sender.
        """

    def channels(self, mailbox: str, sender: str) -> frozenset[bytes]:
        """The first halves of the names of the sender's channels of which batches lie there, also as dead letters."""

    def senders(self, mailbox: str, *, now_ms: int, max_messages: int = NO_LIMIT) -> Sequence[str]:
        """Of whom `lease` may hand out something now, in no order: more waits there than is out, and that is not all
        that may be."""

    def lease(
        self,
        mailbox: str,
        *,
        now_ms: int,
        until_ms: int,
        leases: Sequence[str],
        max_attempts: int,
        max_messages: int = NO_LIMIT,
        max_octets: int = MAX_OCTETS,
        fallen: WhenFallen = "hold",
        ready: frozenset[str] | None = None,
    ) -> Leased:
        """Visible parcels, senders taking turns, each sender's oldest first; one for each fresh token in `leases`.

        No more than `max_messages` messages and `max_octets` bytes unless the first parcel alone has more, and no more
        than MAX_OUT messages out at a time. Parcels of senders that are not `admitted` wait, unless `fallen` says
        otherwise; those of admitted senders too that are not in `ready`, where it is given. Expired parcels end, those
        handed out `max_attempts` times become dead letters.
        """

    def acknowledge(self, mailbox: str, lease: str, *, now_ms: int) -> bool:
        """Remove; False when the lease has ended or is unknown."""

    def give_back(
        self,
        mailbox: str,
        lease: str,
        *,
        now_ms: int,
        visible_at_ms: int,
        remaining: tuple[int, ...] = (),
        code: str = "",
    ) -> bool:
        """End the lease; with `remaining`, those messages of a batch alone are still to be handled.

        False when it has ended, or more would remain than were left.
        """

    def recall(self, mailbox: str, leases: Sequence[str], *, now_ms: int) -> int:
        """End those leases, or with none named all of the mailbox, and take the attempts back; how many there were."""

    def extend(self, mailbox: str, lease: str, *, now_ms: int, until_ms: int, max_ms: int) -> bool:
        """Move the lease's end, never beyond `max_ms` after it was given; False when it has ended."""

    def reject(self, mailbox: str, lease: str, *, now_ms: int, code: str) -> EndedParcel | None:
        """Make it a dead letter; None when the lease has ended."""

    def waiting(self, mailbox: str) -> int:
        """How many messages it holds, leased ones too, dead letters not."""

    def next_seq(self, mailbox: str, sender: str) -> int:
        """One more than the number of parcels ever taken in from this sender."""

    # ── what ended ─────────────────────────────────────────────────────────────────────────────────────────────────

    def expire(
        self, *, now_ms: int, dead_before_ms: int, most: int = MAX_ENDED, mailbox: str | None = None
    ) -> Sequence[EndedParcel]:
        """Take out expired parcels that are not out, of one mailbox or of all, the longest expired first.

        Dead letters and tombstones from before `dead_before_ms` are forgotten.
        """

    def dead(self, mailbox: str, *, after: int = 0, limit: int = 100) -> Sequence[DeadLetter]:
        """In order of number."""

    def redrive(self, mailbox: str, number: int, *, now_ms: int) -> bool:
        """Back to its place in the queue, with all attempts before it; False when none is there, or it has expired."""

    def trim(self, mailbox: str, *, dead: int, octets: int) -> int:
        """Forget dead letters beyond that many, or that many bytes, the oldest of who has the most; how many."""

    def bury(self, *tombstones: TombstoneRecord) -> None:
        """Keep them; beyond MAX_STONES of a mailbox the oldest of whoever has the most are forgotten, and counted."""

    def tombstones(
        self, mailbox: str, *, sender: str | None = None, after: int = 0, limit: int = 100
    ) -> Sequence[TombstoneRecord]:
        """In order of number."""

    def forgotten(self, mailbox: str, *, sender: str | None = None) -> int:
        """How many tombstones there was no room for, until all of a sender's are of no interest any more."""

    # ── the senders' verdicts at the time ──────────────────────────────────────────────────────────────────────────

    def keep_token(self, sender: str, token: str, *, issued_at_s: int, expires_at_s: int) -> None:
        """A sender's peer token, so that mail taken in under it can be judged after its sender fell."""

    def token_at(self, sender: str, at_s: int) -> str | None:
        """A kept one that was in force then."""


class Blobs(Protocol):
    def put(self, record: BlobRecord, quota: Quota) -> Queued:
        """QUEUED, DUPLICATE when those bytes lie beside that mailbox already, or FULL."""

    def get(self, digest: bytes) -> BlobRecord | None: ...
    def drop(self, digest: bytes) -> bool: ...
    def expire(self, *, now_ms: int, most: int = MAX_ENDED) -> int:
        """Forget expired ones; how many there were."""
