"""What a process that holds keys says to its kernel: no core dumps, no debugger, no look into its memory.

Decides nothing about other processes. Root, and whoever owns the hypervisor outside a trust domain, can still look.
"""

import contextlib
import ctypes
import logging
import resource
import sys
from typing import Final

PR_SET_DUMPABLE: Final = 4
logger = logging.getLogger("cloister.broker")


def harden() -> None:
    """No core file is written, and /proc/self/mem is closed to processes of the same user."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):
        if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) == 0:
            return
    logger.warning("process.dumpable")
