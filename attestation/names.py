"""Names: of tenants, of what belongs to them, of agents, and of labels. One grammar, from which everybody takes it.

A tenant is one segment of [A-Za-z0-9_.-]{1,64} that does not start with a dot. A resource (secret, mailbox, topic,
tool) is `tenant/path/name`: 2 to 8 segments. Nothing is folded or normalised, so a name is equal to itself alone, and
the policy sees the very name that the store uses. Patterns are meant for `fullmatch`.
"""

from __future__ import annotations

import re
from typing import Final

_SEGMENT: Final = r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,63}"
SEGMENT: Final = re.compile(_SEGMENT)
RESOURCE: Final = re.compile(rf"{_SEGMENT}(?:/{_SEGMENT}){{1,7}}")
# An agent, or another role that quotes its keys: the role, the tenant and its key's thumbprint (RFC 7638).
SUBJECT: Final = re.compile(rf"(?:agent|broker|peer)/{_SEGMENT}/[A-Za-z0-9_-]{{43}}")
LABEL: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,63}")
MAX_RESOURCE: Final = 8 * 65
MAX_SUBJECT: Final = 128


def is_resource(name: str) -> bool:
    """Whether the text is a well-formed name of what belongs to a tenant."""
    return len(name) <= MAX_RESOURCE and RESOURCE.fullmatch(name) is not None


def name_problem(name: str) -> str:
    """Empty when the text is such a name, else what is wrong with it."""
    if is_resource(name):
        return ""
    parts = name.split("/")
    if not 2 <= len(parts) <= 8:
        return f"{len(parts)} segments, need 2 to 8"
    bad = next((part for part in parts if not SEGMENT.fullmatch(part)), "")
    return f"segment {bad!r} is empty, too long, starts with a dot or holds other than letters, digits, '_', '.', '-'"


def tenant_of(name: str) -> str:
    """The first segment of a well-formed name."""
    return name.partition("/")[0]
