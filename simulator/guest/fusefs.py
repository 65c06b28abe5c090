"""The kernel's files of a TDX guest as a FUSE file system, by way of `mfusepy`.

Decides paths, modes and which operations exist at all; what the files answer is decided by `tsm`. One mount holds both
trees, `/report` and `/measurements`, which the sandbox binds to their places. Needs libfuse 3 and /dev/fuse, and the
right to mount.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Final, NamedTuple, final

from simulator.guest import mounts
from simulator.guest.tsm import REGISTER_LEN, Measurements, Reports

FILE_SYSTEM: Final = "cloister-sim"
"""What `mount` shows as the source, so that nobody takes it for the kernel's."""
REPORT, MEASUREMENTS = "report", "measurements"
_PAGE: Final = 4096
_START_S: Final = 10.0
_STOP_S: Final = 10.0


class _Node(NamedTuple):
    """Where a path leads: a tree, in it a directory or register, in that an attribute."""

    tree: str = ""
    name: str = ""
    attribute: str = ""


@final
class GuestFiles:
    """Operations as `mfusepy` calls them: a missing method is an operation that does not exist (ENOSYS)."""

    use_ns: Final = True

    def __init__(self, reports: Reports, measurements: Measurements) -> None:
        self._reports = reports
        self._measurements = measurements
        self._handles: dict[int, _Node] = {}
        self.started = threading.Event()

    def init(self, path: str) -> None:
        self.started.set()

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        mode, size, links = self._status(self._node(path))
        owner = {"st_uid": os.getuid(), "st_gid": os.getgid()}
        return {"st_mode": mode, "st_nlink": links, "st_size": size, **owner}

    def readdir(self, path: str, fh: int) -> list[str]:
        node = self._node(path)
        if not node.tree:
            return [".", "..", REPORT, MEASUREMENTS]
        if node.tree == MEASUREMENTS:
            return [".", "..", *self._measurements.names()]
        return [".", "..", *(self._reports.attributes if node.name else self._reports.names())]

    def mkdir(self, path: str, mode: int) -> int:
        tree, name, attribute = _split(path)
        if tree != REPORT or attribute:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        self._reports.make(name)
        return 0

    def rmdir(self, path: str) -> int:
        node = self._node(path)
        if node.tree != REPORT or not node.name or node.attribute:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        self._reports.remove(node.name)
        return 0

    def open(self, path: str, flags: int) -> int:
        node = self._node(path)
        if node.tree == MEASUREMENTS:
            self._measurements.open(node.name, flags)
            return 0
        return self._reports.open(node.name, node.attribute, flags)

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        if fh == 0:
            return self._measurements.read(_split(path).name, size, offset)
        return self._reports.read(fh, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        if fh == 0:
            return self._measurements.write(_split(path).name, data, offset)
        return self._reports.write(fh, data, offset)

    def flush(self, path: str, fh: int) -> int:
        if fh:
            self._reports.flush(fh)
        return 0

    def release(self, path: str, fh: int) -> int:
        if fh:
            self._reports.release(fh)
        return 0

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        """Shells truncate what they redirect to; configfs and sysfs take it and do nothing."""
        return 0

    def chmod(self, path: str, mode: int) -> int:
        return 0

    def chown(self, path: str, uid: int, gid: int) -> int:
        return 0

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
        return 0

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    def unlink(self, path: str) -> int:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    def rename(self, old: str, new: str) -> int:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    def symlink(self, target: str, source: str) -> int:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    def _node(self, path: str) -> _Node:
        """ENOENT for what is not there."""
        node = _split(path)
        known = (
            not node.tree
            or (node.tree == MEASUREMENTS and (not node.name or node.name in self._measurements.names()))
            or (node.tree == REPORT and (not node.name or node.name in self._reports))
        )
        if not known or (node.attribute and (node.tree, node.attribute in self._reports.attributes) != (REPORT, True)):
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        return node

    def _status(self, node: _Node) -> tuple[int, int, int]:
        """Mode, size, links."""
        if node.tree == MEASUREMENTS and node.name:
            return stat.S_IFREG | self._measurements.mode(node.name), REGISTER_LEN, 1
        if node.attribute:
            attribute = self._reports.attributes[node.attribute]
            return stat.S_IFREG | attribute.mode, 0 if attribute.binary else _PAGE, 1
        return stat.S_IFDIR | 0o755, 0, 2


def _split(path: str) -> _Node:
    parts = PurePosixPath(path).parts[1:]
    if len(parts) > 3:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
    return _Node(*parts)


@contextmanager
def mounted(files: GuestFiles, where: Path) -> Iterator[None]:
    """The file system at `where`, served from a thread. Raises OSError when it cannot be mounted."""
    import mfusepy

    failure: list[RuntimeError] = []

    def serve() -> None:
        try:
            mfusepy.FUSE(
                files,
                str(where),
                foreground=True,
                nothreads=True,
                direct_io=True,
                allow_other=True,
                default_permissions=True,
                attr_timeout=0,
                entry_timeout=0,
                negative_timeout=0,
                fsname=FILE_SYSTEM,
            )
        except RuntimeError as error:  # what mfusepy makes of libfuse's exit status
            failure.append(error)

    here = Path.cwd()
    thread = threading.Thread(target=serve, name="cloister-fuse", daemon=True)
    thread.start()
    ready = _wait(files.started, thread)
    os.chdir(here)  # libfuse goes to the root directory
    if not ready:
        raise OSError(errno.EIO, f"libfuse could not mount {where} (status {failure[0] if failure else 'none'})")
    try:
        yield
    finally:
        mounts.detach(where)
        thread.join(_STOP_S)


def _wait(started: threading.Event, thread: threading.Thread) -> bool:
    """Until the kernel has said hello, the thread has ended, or time is up."""
    for _ in range(int(_START_S / 0.05)):
        if started.wait(0.05):
            return True
        if not thread.is_alive():
            return started.is_set()
    return False
