"""The kernel's files of a TDX guest as objects: requests in configfs-tsm, measurement registers, their error numbers.

Decides what each operation on `/sys/kernel/config/tsm/report` and on the measurement files answers; how the operations
arrive (FUSE) is `fusefs`'s business. Two habits of configfs matter to programs and are kept: an attribute is read as a
whole when it is first read through an opening, and what is written to a binary attribute takes effect when the opening
is closed, with nobody to report an error to.

Here the second is done at the last moment that a program can tell from it: before anything else of the same request is
looked at. FUSE announces a close twice, first for every copy of the descriptor (`flush`), and later, too late for the
program's next step, for the last one (`release`).

Sources: Linux `drivers/virt/coco/guest/report.c`, `guest/tsm-mr.c` and `fs/configfs/file.c`;
Documentation/ABI/testing/configfs-tsm-report and sysfs-devices-virtual-misc-tdx_guest.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import RLock
from typing import TYPE_CHECKING, Final, NamedTuple, final

from simulator.errors import SimulatorError

if TYPE_CHECKING:
    from simulator.domain import SimulatedTd

PROVIDER: Final = "tdx_guest"
REPORT_DATA_LEN: Final = 64
INBLOB_MAX: Final = 64
OUTBLOB_MAX: Final = 128 << 10
PRIVLEVEL_MAX: Final = 3
REGISTER_LEN: Final = 48
_NAME_MAX: Final = 255


class Attribute(NamedTuple):
    """A file of a request: its mode, and whether it is binary (then its size is unknown and it cannot be rewritten)."""

    mode: int
    binary: bool = False


TDX_ATTRIBUTES: Final = {
    "generation": Attribute(0o444),
    "provider": Attribute(0o444),
    "inblob": Attribute(0o200, binary=True),
    "outblob": Attribute(0o444, binary=True),
}
"""What the driver of TDX shows."""
OTHER_ATTRIBUTES: Final = {
    "auxblob": Attribute(0o444, binary=True),
    "privlevel": Attribute(0o200),
    "privlevel_floor": Attribute(0o444),
}
"""What the interface has and the driver of TDX hides; drivers of other machines show it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mischief:
    """What goes wrong on purpose, so that programs can be seen to cope."""

    busy: int = 0
    """The first reads of outblob that answer EBUSY, as when the host has not finished an earlier quote"""
    interfere: int = 0
    """The first requests into which another process writes, right after the program did"""


@dataclass(slots=True)
class _Request:
    """A directory below `report`."""

    inblob: bytes = b""
    outblob: bytes | None = None
    privlevel: int = 0
    written: int = 0
    """The write generation"""
    read: int = 0
    """The generation that outblob belongs to"""
    dead: bool = False


@dataclass(slots=True)
class _Opening:
    request: _Request
    attribute: str
    snapshot: bytes | None = None
    written: bytearray | None = None
    closing: bool = False
    committed: bool = False


@final
class Reports:
    """The directory `report`. Every method raises OSError with the number that the kernel would answer."""

    def __init__(self, td: SimulatedTd, *, mischief: Mischief | None = None, other_attributes: bool = False) -> None:
        self._td = td
        self._busy = mischief.busy if mischief else 0
        self._interfere = mischief.interfere if mischief else 0
        self.attributes = TDX_ATTRIBUTES | (OTHER_ATTRIBUTES if other_attributes else {})
        self._requests: dict[str, _Request] = {}
        self._openings: dict[int, _Opening] = {}
        self._next = 1
        self._lock = RLock()

    def names(self) -> list[str]:
        with self._lock:
            return list(self._requests)

    def __contains__(self, name: str) -> bool:
        return name in self._requests

    def make(self, name: str) -> None:
        """mkdir: EEXIST, ENAMETOOLONG."""
        with self._lock:
            if name in self._requests:
                raise _error(errno.EEXIST)
            if len(name.encode()) > _NAME_MAX:
                raise _error(errno.ENAMETOOLONG)
            self._requests[name] = _Request()

    def remove(self, name: str) -> None:
        """rmdir, files inside notwithstanding: ENOENT. Openings of its files fail from now on."""
        with self._lock:
            request = self._requests.pop(name, None)
            if request is None:
                raise _error(errno.ENOENT)
            request.dead = True

    def open(self, name: str, attribute: str, flags: int) -> int:
        """A handle. EACCES for a direction that the attribute has not, whoever asks; ENOENT."""
        with self._lock:
            request = self._requests.get(name)
            if request is None or attribute not in self.attributes:
                raise _error(errno.ENOENT)
            _check_direction(self.attributes[attribute].mode, flags)
            handle = self._next
            self._next += 1
            self._openings[handle] = _Opening(request, attribute)
            return handle

    def read(self, handle: int, size: int, offset: int) -> bytes:
        """Part of the attribute as it was at the first read through this handle."""
        with self._lock:
            opening = self._openings[handle]
            if opening.snapshot is None:
                if opening.request.dead:
                    raise _error(errno.ENOENT)
                self._settle(opening.request)
                opening.snapshot = self._value(opening)
            return opening.snapshot[offset : offset + size]

    def write(self, handle: int, data: bytes, offset: int) -> int:
        """Text takes effect at once; inblob when it is closed. EFBIG beyond 64 bytes, EINVAL for a bad number."""
        with self._lock:
            opening = self._openings[handle]
            if opening.request.dead:
                raise _error(errno.ENOENT)
            if opening.attribute == "privlevel":
                opening.request.privlevel = _privilege_level(data)
                opening.request.written += 1
                return len(data)
            if offset + len(data) > INBLOB_MAX:
                raise _error(errno.EFBIG)
            blob = opening.written or bytearray()
            blob += bytes(offset + len(data) - len(blob)) if offset + len(data) > len(blob) else b""
            blob[offset : offset + len(data)] = data
            opening.written, opening.closing, opening.committed = blob, False, False
            return len(data)

    def flush(self, handle: int) -> None:
        """One copy of the descriptor was closed."""
        with self._lock:
            self._openings[handle].closing = True

    def release(self, handle: int) -> None:
        """The last one was."""
        with self._lock:
            opening = self._openings.pop(handle)
            self._commit(opening)

    def _settle(self, request: _Request) -> None:
        """Carry out what was closed before the program looks at its effects."""
        for opening in self._openings.values():
            if opening.request is request and opening.closing:
                self._commit(opening)

    def _commit(self, opening: _Opening) -> None:
        if opening.written is None or opening.committed or opening.request.dead:
            return
        opening.committed = True
        opening.request.inblob = bytes(opening.written)
        opening.request.written += 1
        if self._interfere:
            self._interfere -= 1
            opening.request.inblob = bytes(byte ^ 0xFF for byte in opening.request.inblob)
            opening.request.written += 1

    def _value(self, opening: _Opening) -> bytes:
        request = opening.request
        match opening.attribute:
            case "generation":
                return b"%d\n" % request.written
            case "provider":
                return f"{PROVIDER}\n".encode()
            case "privlevel_floor":
                return b"0\n"
            case attribute:
                report = self._report(request)
                return report if attribute == "outblob" else b""

    def _report(self, request: _Request) -> bytes:
        """The quote: the one made last unless something was written since."""
        if not request.inblob:
            raise _error(errno.EINVAL)
        if request.outblob is None or request.read != request.written:
            request.outblob = None
            if len(request.inblob) != REPORT_DATA_LEN:
                raise _error(errno.EINVAL)
            if self._busy:
                self._busy -= 1
                raise _error(errno.EBUSY)
            request.outblob = self._quote(request.inblob)
            request.read = request.written
        return request.outblob

    def _quote(self, report_data: bytes) -> bytes:
        try:
            quote = self._td.quote(report_data)
        except SimulatorError:
            raise _error(errno.EIO) from None
        if len(quote) > OUTBLOB_MAX:
            raise _error(errno.EFBIG)
        return quote


@dataclass(frozen=True, slots=True)
class _Register:
    mode: int
    value: Callable[[], bytes]
    extend: Callable[[bytes], None] | None = field(default=None)


@final
class Measurements:
    """The directory `measurements`: 48 raw bytes each; writing extends an RTMR and logs nothing, as the kernel does.

    Linux documents EINVAL for a write that is not 48 bytes at offset 0, and so it is here; in fact its sysfs layer cuts
    a longer one to 48 bytes and extends with those.
    """

    def __init__(self, td: SimulatedTd) -> None:
        chosen = td.configuration
        self._files = {
            "mrtd:sha384": _Register(0o444, lambda: td.mr_td),
            "mrconfigid": _Register(0o444, lambda: chosen.mr_config_id),
            "mrowner": _Register(0o444, lambda: chosen.mr_owner),
            "mrownerconfig": _Register(0o444, lambda: chosen.mr_owner_config),
        } | {f"rtmr{index}:sha384": _rtmr(td, index) for index in range(4)}

    def names(self) -> list[str]:
        return list(self._files)

    def mode(self, name: str) -> int:
        """Permission bits. ENOENT."""
        return self._file(name).mode

    def open(self, name: str, flags: int) -> None:
        """EACCES, ENOENT."""
        _check_direction(self._file(name).mode, flags)

    def read(self, name: str, size: int, offset: int) -> bytes:
        """Live, unlike a request's attributes."""
        return self._file(name).value()[offset : offset + size]

    def write(self, name: str, data: bytes, offset: int) -> int:
        """RTMR := SHA-384(RTMR ‖ data). EINVAL unless these are 48 bytes at offset 0."""
        register = self._file(name)
        if register.extend is None or offset or len(data) != REGISTER_LEN:
            raise _error(errno.EINVAL)
        register.extend(data)
        return len(data)

    def _file(self, name: str) -> _Register:
        if name not in self._files:
            raise _error(errno.ENOENT)
        return self._files[name]


def _rtmr(td: SimulatedTd, index: int) -> _Register:
    return _Register(0o644, lambda: td.rtmrs[index], lambda digest: td.extend_unlogged(index, digest))


def _check_direction(mode: int, flags: int) -> None:
    """configfs and sysfs look at the mode even for root, who passes every other check."""
    access = flags & os.O_ACCMODE
    if access in (os.O_RDONLY, os.O_RDWR) and not mode & 0o444:
        raise _error(errno.EACCES)
    if access in (os.O_WRONLY, os.O_RDWR) and not mode & 0o222:
        raise _error(errno.EACCES)


def _privilege_level(text: bytes) -> int:
    try:
        level = int(text.strip(), 0)
    except ValueError:
        raise _error(errno.EINVAL) from None
    if not 0 <= level <= PRIVLEVEL_MAX:
        raise _error(errno.EINVAL)
    return level


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
