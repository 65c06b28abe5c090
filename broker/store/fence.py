"""One process writes to a database: whoever comes second is refused, not let in to spoil the log.

Decides that by a lock of the operating system on a file beside the database, which ends with the process that holds it,
however that process ends. A generation is therefore heard of at once by everybody who could act on an older one: there
is one sequencer, and it is in the same process as those who ask it.
"""

import fcntl
import os
from pathlib import Path
from typing import Final, final

from broker.errors import BrokerCode, BrokerError

SUFFIX: Final = ".lock"


@final
class Fence:
    """Held from construction until `release`."""

    def __init__(self, database: Path) -> None:
        """Raises BrokerError store.in_use; OSError when the file cannot be made."""
        self._fd: int | None = os.open(database.with_name(database.name + SUFFIX), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.release()
            raise BrokerError(BrokerCode.STORE_IN_USE, f"{database}: another process writes to it") from None

    def release(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
