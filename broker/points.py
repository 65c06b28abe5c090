"""Named points in the code at which a test can stop the process dead.

Decides nothing: outside such a test `reached` is one call that does nothing. A test kills a child at every one of
POINTS, in every operation, and looks at what the next start finds.
"""

from collections.abc import Callable
from typing import Final

POINTS: Final = (
    "store.begun",  # a group of units has begun
    "store.worked",  # every unit has done its writes
    "store.signed",  # the checkpoint over them is written, too
    "store.committed",  # durable, and nobody has heard of it
    "release.permitted",  # the policy said yes, nothing is recorded
    "release.recorded",  # the entry is durable, nothing is sealed
    "release.sealed",  # sealed and signed, nothing has left
)

_hook: Callable[[str], None] | None = None


def set_hook(hook: Callable[[str], None] | None) -> None:
    """For tests alone."""
    global _hook  # one process, one hook
    _hook = hook


def reached(name: str) -> None:
    if _hook is not None:
        _hook(name)
