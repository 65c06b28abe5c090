"""What is said about a served tool, and the messages in which it is called.

Decides the form of a description and its digest, which is what callers pin: the canonical JSON of name, description,
schemas and declarations, under a tag. It is the form in which the Model Context Protocol lists tools, so that an
adapter can pass it on as it is. One description has one text: a server that sends another spelling is refused.

    call      ToolCall(pin, key, arguments)       type cloister.tool:<name>, so that a router can judge it by name
    answer    ToolAnswer(tool, kind, code, text)  `tool` is the digest of what was served, in every answer
    listing   ToolsAsked ─▶ ToolsGiven(descriptions)

`arguments`, and `text` of a result, are bodies as `messages` makes them: of exactly the types in the schemas.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, Literal, Self, final

from broker.wire.names import is_resource
from broker.wire.tags import Tag, tagged
from broker.wire.tools import NAME
from enclave.errors import Code, ToolRefused
from enclave.messages import MessageType

MAX_DESCRIPTION: Final = 64 << 10
MAX_KEY: Final = 256
NEEDS: Final = "cloister/needs"
STREAMS: Final = "cloister/streams"
KEYED: Final = "cloister/keyed"


@final
class Unpinned:
    """The type of UNPINNED."""

    def __repr__(self) -> str:
        return "UNPINNED"


UNPINNED: Final = Unpinned()
"""In place of a digest: whatever the server says of the tool will do. A pin in the trust file holds all the same."""


@final
@dataclass(frozen=True, kw_only=True)  # without slots: text and digest are computed once and kept
class ToolDescription:
    """One tool as its server describes it. `needs` are the secrets that may be released to it, without the tenant;
    `keyed`: every call names, by a key, what is to be done once.

    The results of a tool that `streams` are described together, as `{"items": […]}`.
    """

    name: str
    description: str
    input_schema: Mapping[str, Any]
    output_schema: Mapping[str, Any]
    idempotent: bool
    streams: bool
    keyed: bool = False
    needs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises ToolRefused tool.description_malformed."""
        if not NAME.fullmatch(self.name) or not self.description:
            raise _bad(f"name {self.name[:64]!a}, or no description")
        if list(self.needs) != sorted(set(self.needs)) or not all(is_resource(f"t/{need}") for need in self.needs):
            raise _bad(f"{self.name}: needs")
        if len(self.text) > MAX_DESCRIPTION:
            raise _bad(f"{self.name}: more than {MAX_DESCRIPTION} bytes")

    def to_mcp(self) -> dict[str, Any]:
        """As MCP's `tools/list` has it."""
        return {
            "name": self.name,
            "description": self.description,
            "inputSchema": self.input_schema,
            "outputSchema": self.output_schema,
            "annotations": {"idempotentHint": self.idempotent},
            "_meta": {KEYED: self.keyed, NEEDS: list(self.needs), STREAMS: self.streams},
        }

    @cached_property
    def text(self) -> bytes:
        """The one spelling: names sorted, no white space, UTF-8, as RFC 8785 has it for what stands in schemas."""
        try:
            written = json.dumps(
                self.to_mcp(), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
            )
            return written.encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise _bad(f"{self.name}: {type(error).__name__}") from None

    @cached_property
    def digest(self) -> str:
        """What callers pin: 64 hex digits."""
        return hashlib.sha256(tagged(Tag.TOOL, self.text)).hexdigest()

    @classmethod
    def parse(cls, text: str) -> Self:
        """From a server. Raises ToolRefused tool.description_malformed."""
        try:
            raw = text.encode()
            made = cls._read(json.loads(raw) if len(raw) <= MAX_DESCRIPTION else None)
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise _bad(f"{type(error).__name__} while reading it") from None
        if made.text != raw:
            raise _bad(f"{made.name}: not in its canonical form")
        return made

    @classmethod
    def _read(cls, members: Any) -> Self:
        """Members beyond these, or of other types, show when the description is written again."""
        meta, given, returned = members["_meta"], members["inputSchema"], members["outputSchema"]
        texts = [members["name"], members["description"], *meta[NEEDS]]
        if not all(isinstance(text, str) for text in texts) or type(given) is not dict or type(returned) is not dict:
            raise TypeError
        return cls(
            name=texts[0],
            description=texts[1],
            input_schema=given,
            output_schema=returned,
            idempotent=members["annotations"]["idempotentHint"] is True,
            streams=meta[STREAMS] is True,
            keyed=meta[KEYED] is True,
            needs=tuple(texts[2:]),
        )


def collected(item: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of all items of a stream together."""
    items = {"type": "array", "items": item}
    return {"type": "object", "properties": {"items": items}, "required": ["items"], "additionalProperties": False}


def _bad(detail: str) -> ToolRefused:
    return ToolRefused(Code.TOOL_DESCRIPTION, detail)


# --- messages ---


@dataclass(frozen=True, kw_only=True)
class Nothing:
    """What a tool takes that takes no arguments, and returns that returns nothing."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a tool has come: yield it among the items of a stream. It is no item."""

    done: float
    total: float | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class ToolCall:
    """`pin` is the digest that the caller goes by, `key` names what is to be done once; either may be empty."""

    pin: str
    key: str
    arguments: str = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class ToolAnswer:
    """`text` is the body of a result or of a Progress; of a refusal what is wrong, by place and never by value."""

    tool: str
    kind: Literal["result", "progress", "refused"]
    code: str
    text: str = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class ToolsAsked:
    """What do you serve?"""


@dataclass(frozen=True, kw_only=True)
class ToolsGiven:
    """Canonical descriptions, in the order of their names."""

    tools: tuple[str, ...]


ANSWER: Final = MessageType(ToolAnswer, "cloister.tool.answer")
PROGRESS: Final = MessageType(Progress, "cloister.tool.progress")
ASKED: Final = MessageType(ToolsAsked, "cloister.tools.ask")
GIVEN: Final = MessageType(ToolsGiven, "cloister.tools.give")
NOTHING: Final = MessageType(Nothing, "cloister.nothing")
TYPES: Final[dict[type, MessageType]] = {
    ToolAnswer: ANSWER,
    Progress: PROGRESS,
    ToolsAsked: ASKED,
    ToolsGiven: GIVEN,
    Nothing: NOTHING,
}
