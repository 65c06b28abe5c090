"""How a call of a served tool is named, on the wire and in policies: enough to judge who calls what, and no more.

    the server's mailbox      <tenant>/mail/<rest>
    the type of the message   cloister.tool:<name>
    resource of `CallTool`    <tenant>/tools/<rest>/<name>

Decides that a call shows in a message's type, so that a router can judge it without its arguments, and that a tool has
one name in policies and a name one tool: only mailboxes under `mail/` serve any. What calls itself a call and names no
tool that there can be is asked about under the type itself, which is no name of anything, so that no policy permits it.
"""

import re
from dataclasses import dataclass
from typing import Any, Final, Self, final

from broker.wire.errors import WireCode, WireError
from broker.wire.fields import Reader
from broker.wire.names import is_resource

MAX_TOOLS: Final = 128  # that one agent serves
MAX_ASKED: Final = 16  # that one question is about: each new name is two decisions of the policy
CALL: Final = "cloister.tool:"
DIGEST: Final = re.compile(r"[0-9a-f]{64}")
NAME: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,63}")


def call_type(tool: str) -> str:
    """The type of messages that call the tool of that name."""
    return CALL + tool


def tool_name(mailbox: str, tool: str) -> str | None:
    """What policies call the tool of that name at that mailbox; None where there can be none."""
    tenant, folder, *rest = mailbox.split("/") if is_resource(mailbox) else ("", "")
    name = "/".join((tenant, "tools", *rest, tool))
    return name if folder == "mail" and rest and NAME.fullmatch(tool) and is_resource(name) else None


def tool_called(mailbox: str, type_: str) -> str | None:
    """What policies call the tool that a message of this type calls there; None when it calls none."""
    if not type_.startswith(CALL):
        return None
    return tool_name(mailbox, type_[len(CALL) :]) or type_


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ToolNames:
    """POST /v1/mailboxes/{name}:tools: the tools that are asked about there."""

    tools: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return {"tools": list(self.tools)}

    @classmethod
    def from_dict(cls, value: object) -> Self:
        read = Reader(value, "tools")
        made = cls(tools=_names(read))
        read.end()
        return made


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ToolsAllowed:
    """Those that the asking agent may call now with all that it is held to; the digests that the policy approves."""

    tools: tuple[str, ...]
    pins: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        return {"tools": list(self.tools), "pins": self.pins}

    @classmethod
    def from_dict(cls, value: object) -> Self:
        read = Reader(value, "tools")
        tools, pins = _names(read), read.mapping("pins")
        inside = Reader(pins, "tools.pins")
        return cls(tools=tools, pins={name: inside.text(name, max_len=64, pattern=DIGEST) for name in pins})


def _names(read: Reader) -> tuple[str, ...]:
    found = read.texts("tools", max_items=MAX_ASKED, max_len=64)
    if not all(map(NAME.fullmatch, found)):
        raise WireError(WireCode.BODY_FIELD_INVALID, f"tools: names must match {NAME.pattern}")
    return found
