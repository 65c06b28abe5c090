"""Protobuf messages read in their one canonical form.

Decides that no two readers see two messages in the same bytes: what is read must come back the same, so a field that is
repeated, out of place or unknown is refused, at any depth.
"""

from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from broker.wire.errors import WireCode, WireError

M = TypeVar("M", bound=Message)


def parse(kind: type[M], raw: bytes, *, max_len: int, code: WireCode) -> M:
    """The message that `raw` is. Raises WireError: `code`."""
    if len(raw) > max_len:
        raise WireError(code, f"{kind.__name__} of {len(raw)} bytes, at most {max_len}")
    message = kind()
    try:
        message.ParseFromString(raw)
    except DecodeError:
        raise WireError(code, f"{kind.__name__} is not protobuf") from None
    message.DiscardUnknownFields()
    if message.SerializeToString(deterministic=True) != raw:
        raise WireError(code, f"{kind.__name__} is not in canonical form, or has fields that version 1 does not know")
    return message
