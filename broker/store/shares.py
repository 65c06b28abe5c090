"""How much of a mailbox or topic each of its senders may fill, so that no number of them that flood keeps others out.

Decides for every store. Alone, a sender may fill what the quota says of one sender; of what others have filled already
it gets no more than that part of the rest. So each further one gets less, the sum stays under seven eighths, and as
mail is handled the shares grow alike. The last eighth is for who has nothing there yet: whoever comes new finds room
for a message. Where readers hold up a topic, what they have left lying goes, oldest first and of whoever has the most.
Pure.
"""

from collections import deque
from collections.abc import Iterable
from itertools import islice
from typing import Final, NamedTuple, final

from broker.ports.mail import Quota
from broker.ports.topics import TopicMessage

RESERVE: Final = 8  # an eighth
SMALL: Final = 128  # a parcel no larger than this part of the quota is small, and so is any single message
MIN_BLOB: Final = 16 << 10
SLACK: Final = 16  # room for such a part of a sender's share is made at once, so that not every message has to


@final
class Load(NamedTuple):
    """What lies somewhere."""

    messages: int = 0
    octets: int = 0

    def plus(self, other: "Load", times: int = 1) -> "Load":
        return Load(self.messages + times * other.messages, self.octets + times * other.octets)


def has_room(quota: Quota, *, held: Load, own: Load, more: Load) -> bool:
    """Whether a sender that has `own` of all that is `held` there may add `more`."""
    return _fits(quota, held, more) and (_new(quota, own, more) or _within_share(quota, held, own, more))


def blob_has_room(quota: Quota, *, held: int, own: int, more: int) -> bool:
    """The same for what lies beside a mailbox, in octets as `blob_octets` counts them."""
    if held + more > quota.blob_octets:
        return False
    return own == 0 or own + more <= _share(quota.sender_blob_octets, quota.blob_octets, held - own)


def blob_octets(octets: int) -> int:
    """What a large payload counts: a small one costs a row and a look, too."""
    return max(octets, MIN_BLOB)


def _fits(quota: Quota, held: Load, more: Load) -> bool:
    return held.messages + more.messages <= quota.messages and held.octets + more.octets <= quota.octets


def _new(quota: Quota, own: Load, more: Load) -> bool:
    small = more.messages <= quota.messages // SMALL and more.octets <= quota.octets // SMALL
    return own.messages == 0 and (more.messages == 1 or small)


def _within_share(quota: Quota, held: Load, own: Load, more: Load) -> bool:
    messages = _share(quota.sender_messages, quota.messages, held.messages - own.messages)
    octets = _share(quota.sender_octets, quota.octets, held.octets - own.octets)
    return own.messages + more.messages <= messages and own.octets + more.octets <= octets


def _share(alone: int, most: int, others: int) -> int:
    usable = most - most // RESERVE
    return -(-min(alone, most) * max(0, usable - others) // usable)


def let_go(
    quota: Quota, rows: Iterable[tuple[int, Load, str]], sender: str, more: Load, *, up_to: int
) -> list[int] | None:
    """Which of the parcels numbered `up_to` or less must go so that a sender can add one more; None where none helps.

    `rows` are numbers, loads and senders of everything there, oldest first.
    """
    lanes: dict[str, deque[tuple[int, Load]]] = {}
    loads: dict[str, Load] = {}
    for number, load, owner in rows:
        loads[owner] = loads.get(owner, Load()).plus(load)
        if number <= up_to:
            lanes.setdefault(owner, deque()).append((number, load))
    held = Load(sum(load.messages for load in loads.values()), sum(load.octets for load in loads.values()))
    part = Load(min(quota.sender_messages, quota.messages) // SLACK, min(quota.sender_octets, quota.octets) // SLACK)
    room = more.plus(part)
    gone: list[int] = []
    while not has_room(quota, held=held, own=loads.get(sender, Load()), more=room):
        lane = max((name for name, waiting in lanes.items() if waiting), key=loads.__getitem__, default=None)
        if lane is None:
            break
        number, load = lanes[lane].popleft()
        loads[lane] = loads[lane].plus(load, -1)
        held = held.plus(load, -1)
        gone.append(number)
    enough = has_room(quota, held=held, own=loads.get(sender, Load()), more=more)
    return gone if enough else None


def first_of(messages: Iterable[TopicMessage], *, limit: int, most: Load) -> list[TopicMessage]:
    """As many of them as that; the first one in any case. What is behind them is not looked at."""
    found: list[TopicMessage] = []
    held = Load()
    for message in islice(messages, limit):
        held = held.plus(Load(message.count, len(message.envelope)))
        if found and (held.messages > most.messages or held.octets > most.octets):
            break
        found.append(message)
    return found
