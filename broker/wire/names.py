"""Names of secrets and mailboxes, and of agents: one grammar, checked in one place.

A resource is `tenant/path/name`: 2 to 8 segments of [A-Za-z0-9_.-]{1,64}, none starting with a dot. An agent's subject
is `agent/<tenant>/<jkt>`. The policy sees the very name that the store uses, so nothing is folded or normalised.
"""

import re
from typing import Final

_SEGMENT: Final = r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,63}"
RESOURCE: Final = re.compile(rf"{_SEGMENT}(?:/{_SEGMENT}){{1,7}}")
TENANT: Final = re.compile(_SEGMENT)
SUBJECT: Final = re.compile(rf"(?:agent|broker|peer)/{_SEGMENT}/[A-Za-z0-9_-]{{43}}")
MAX_RESOURCE: Final = 8 * 65
MAX_SUBJECT: Final = 128


def is_resource(name: str) -> bool:
    """Whether the text is a well-formed name of a secret or mailbox."""
    return len(name) <= MAX_RESOURCE and RESOURCE.fullmatch(name) is not None


def tenant_of(name: str) -> str:
    """The first segment of a well-formed name."""
    return name.partition("/")[0]
