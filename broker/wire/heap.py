"""How the allocator treats what a process of ours has freed: kept for what comes next.

Mail passes in buffers of a quarter of a MiB, several at once. Left to itself glibc gives each back to the kernel and
gets another, cleared page by page, for the next: a tenth of the processor time of a message, at agents and broker
alike, so it stands here, where both may import it. What is freed is not cleared in either case. Where the C library is
another one, nothing happens.
"""

import ctypes
import sys
from typing import Final

M_TRIM_THRESHOLD: Final = -1
M_MMAP_THRESHOLD: Final = -3
KEPT: Final = 16 << 20  # bytes that may lie free at the heap's end
LARGE: Final = 4 << 20  # from which on a block is the kernel's own, and goes back to it


def keep_freed() -> bool:
    """Whether the allocator took it. For the whole process."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(M_MMAP_THRESHOLD, LARGE) and mallopt(M_TRIM_THRESHOLD, KEPT))
