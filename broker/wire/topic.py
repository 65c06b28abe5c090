"""Bodies of topics: where to publish, what a reader gets, and how far it has come.

A topic's key is signed by the broker, which made it; what is published is an envelope like any other, signed by its
sender and sealed to that key, or a batch of a channel that such an envelope opened. Each lies at the broker once, and
every reader has a place in the row of them.
"""

from dataclasses import dataclass, field
from typing import Any, Final, Self, final

from broker.wire.fields import MAX_TOKEN, Reader
from broker.wire.keys import TopicKey
from broker.wire.mailbox import MAX_WAIT_S, BatchDelivery, Delivery, OpeningDelivery
from broker.wire.names import MAX_SUBJECT, SUBJECT

MAX_PAGE: Final = 64
MAX_FOLLOWED: Final = 64  # topics that are read on one stream


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TopicInfo:
    """GET /v1/topics/{name}: the key to seal to now."""

    key: TopicKey

    def to_dict(self) -> dict[str, Any]:
        return {"key": self.key.to_dict()}

    @classmethod
    def from_dict(cls, value: object) -> Self:
        return cls(key=TopicKey.from_dict(Reader(value, "topic").mapping("key")))


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TopicRead:
    """POST /v1/topics/{name}:receive. `done` is the place up to which all was handled; it moves forwards only.

    `max_messages` counts deliveries: an envelope or a batch is one.
    """

    done: int = 0
    max_messages: int = 16
    wait_s: int = 0

    def to_dict(self) -> dict[str, Any]:
        return {"done": self.done, "max_messages": self.max_messages, "wait_s": self.wait_s}

    @classmethod
    def from_dict(cls, value: object) -> Self:
        read = Reader(value, "topic")
        made = cls(
            done=read.number("done", default=0),
            max_messages=read.number("max_messages", low=1, high=MAX_PAGE, default=16),
            wait_s=read.number("wait_s", high=MAX_WAIT_S, default=0),
        )
        read.end()
        return made


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TopicPage:
    """Messages behind the reader's place, in order, each with its place; a peer token for each sender among them.

    Batches of channels have places in the same row, and beside them stand the openings of their channels, every time:
    who knows a channel passes its opening over. `missed` counts the messages that the topic had no room for until this
    reader came, since it joined.
    """

    deliveries: tuple[Delivery, ...]
    places: tuple[int, ...]
    senders: dict[str, str] = field(repr=False)
    missed: int = 0
    batches: tuple[BatchDelivery, ...] = ()
    batch_places: tuple[int, ...] = ()
    openings: tuple[OpeningDelivery, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "deliveries": [delivery.to_dict() for delivery in self.deliveries],
            "places": list(self.places),
            "senders": self.senders,
            "missed": self.missed,
        }
        if self.batches:
            found["batches"] = [batch.to_dict() for batch in self.batches]
            found["batch_places"] = list(self.batch_places)
            found["openings"] = [opening.to_dict() for opening in self.openings]
        return found

    @classmethod
    def from_dict(cls, value: object) -> Self:
        read = Reader(value, "topic")
        senders = read.mapping("senders")
        entry = Reader(senders, "topic.senders")
        return cls(
            deliveries=read.items("deliveries", Delivery.from_dict, max_items=MAX_PAGE),
            places=read.items("places", _place, max_items=MAX_PAGE),
            senders={
                name: entry.text(name, max_len=MAX_TOKEN)
                for name in list(senders)[:MAX_PAGE]
                if len(name) <= MAX_SUBJECT and SUBJECT.fullmatch(name)
            },
            missed=read.number("missed", default=0),
            batches=read.items("batches", BatchDelivery.from_dict, max_items=MAX_PAGE, optional=True),
            batch_places=read.items("batch_places", _place, max_items=MAX_PAGE, optional=True),
            openings=read.items("openings", OpeningDelivery.from_dict, max_items=MAX_PAGE, optional=True),
        )


def _place(item: object) -> int:
    return Reader({"place": item}, "topic.places").number("place")
