"""Measured launch: copy the code, hash the copy, extend RTMR3 with the hash, and only then let the copy run.

Decides what the code digest covers and that nothing else can be imported: the copy holds the agent, this framework and
the packages that both need, and the child's import path is the standard library and the copy. The digest is

    SHA-384( "cloister/code/v1" NUL, then for each file in the order of its path's bytes:
             u32 length of the path ‖ path ‖ u32 mode ‖ u64 size ‖ content )         integers big-endian

with paths relative to the copy and modes reduced to 0444 or 0555, so that two machines with the same files agree. The
interpreter, its standard library and this launcher are the image's: MRTD and RTMR0 to RTMR2 speak for them. Anybody who
is root in the trust domain can extend RTMR3 too; that is why policies compare the whole list of launches.

Which packages are meant is `packages`' to say; how the child asks for quotes is `domain`'s.
"""

from __future__ import annotations

import grp
import hashlib
import os
import shutil
import stat
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import BinaryIO, Final, Self, final

from attestation.eventlog import launch_event
from attestation.ports import TrustDomain
from enclave import packages
from enclave.errors import AgentError, Code, LaunchFailed

TAG: Final = b"cloister/code/v1\0"
EV_EVENT_TAG: Final = 6
REGISTER: Final = 3
MAX_BYTES: Final = 1 << 30
BOOT: Final = "boot.py"
LAUNCHER_VARIABLE: Final = "CLOISTER_LAUNCHER"
_CHUNK: Final = 1 << 20
_NOFOLLOW: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_BOOT_TEXT: Final = '''\
"""First code of the copy: hardens the process, narrows the import path to the copy, runs the agent."""

import ctypes
import os
import resource
import runpy
import signal
import sys

top = os.path.dirname(os.path.abspath(__file__))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
libc = ctypes.CDLL(None, use_errno=True)
for option, value in ((38, 1), (4, 0), (1, int(signal.SIGTERM))):  # no new privileges, no dumps, end with the launcher
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise SystemExit(f"prctl({option}): {os.strerror(ctypes.get_errno())}")
if os.getppid() != int(os.environ.pop("CLOISTER_LAUNCHER")):
    raise SystemExit("the launcher has ended already")
sys.path[:] = [path for path in sys.path if path.startswith((sys.base_prefix, sys.base_exec_prefix))]
sys.path += [os.path.join(top, "agent"), os.path.join(top, "packages")]
sys.dont_write_bytecode = True
sys.argv[:] = [os.path.join(top, ENTRY), *sys.argv[1:]]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except KeyboardInterrupt:
    raise SystemExit(130) from None
except Exception as error:
    from enclave.main import failed

    raise SystemExit(failed(error)) from None
if main := sys.modules.get("enclave.main"):
    sys.exit(main.ended())
'''


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """A measured private copy. A context manager: leaving it removes the copy."""

    top: Path
    entry: PurePosixPath
    digest: bytes  # SHA-384, 48 bytes
    files: int
    size: int
    in_memory: bool  # the copy lies in tmpfs; else on a disk that the host can write

    @property
    def boot(self) -> Path:
        return self.top / BOOT

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        remove(self.top)


def stage(path: Path, *, with_packages: bool = True) -> Staged:
    """Copy the agent at `path` (a file, or a folder with __main__.py) with all that it needs, and hash the copy.

    Without packages only the agent's own files are copied: for telling what changed, not for running.
    Raises LaunchFailed: launch.nothing_to_run, launch.package_missing, launch.too_large, launch.unsafe_file.
    """
    if not path.exists():
        raise LaunchFailed(Code.LAUNCH_EMPTY, f"{path} does not exist")
    items, entry = packages.agent_files(path)
    if with_packages:
        source = next(item.source for item in items if item.target == entry)
        items += packages.framework_files()
        items += packages.package_files((*packages.RUNTIME, *packages.declared(source)))
    top, in_memory = _private_folder(sum(_size(item.source) for item in items))
    try:
        for item in items:
            _copy(item, top)
        _write(top / BOOT, _BOOT_TEXT.replace("ENTRY", repr(str(entry))).encode(), executable=False)
        digest, files, size = code_digest(top)
    except BaseException:
        remove(top)
        raise
    return Staged(top=top, entry=entry, digest=digest, files=files, size=size, in_memory=in_memory)


def code_digest(top: Path) -> tuple[bytes, int, int]:
    """The digest of a copy, with the number of files and their bytes. Raises LaunchFailed: launch.unsafe_file."""
    found = sorted((path.relative_to(top).as_posix().encode(), path) for path in top.rglob("*") if not path.is_dir())
    hasher, total = hashlib.sha384(TAG), 0
    for name, path in found:
        with _open(path) as file:
            status = os.fstat(file.fileno())
            mode = 0o555 if status.st_mode & stat.S_IXUSR else 0o444
            hasher.update(struct.pack(">I", len(name)) + name + struct.pack(">IQ", mode, status.st_size))
            seen = 0
            while chunk := file.read(_CHUNK):
                hasher.update(chunk)
                seen += len(chunk)
        if seen != status.st_size:
            raise LaunchFailed(Code.LAUNCH_UNSAFE_FILE, f"{path} changed while it was read")
        total += seen
    return hasher.digest(), len(found), total


def extend(domain: TrustDomain, digest: bytes, name: str) -> None:
    """Record the launch in RTMR3 before the code runs. The name is for people; policies decide on the digest."""
    event_digest, data = launch_event(digest, name)
    domain.extend(REGISTER, event_digest, event_type=EV_EVENT_TAG, data=data)


def group_id(name: str) -> int:
    """Raises AgentError agent.group_unusable."""
    try:
        found = grp.getgrnam(name).gr_gid
    except (KeyError, ValueError):
        raise AgentError(Code.AGENT_GROUP, f"no group {name!r}") from None
    if found == 0:
        raise AgentError(Code.AGENT_GROUP, f"group {name!r} is root's own, whose files are no agent's business")
    return found


def hand_over(staged: Staged, uid: int) -> None:
    """Let the uid read the copy, through its group of the same number, and nobody else; it can write none of it."""
    for folder, _, files in os.walk(staged.top):
        os.chown(folder, 0, uid)
        os.chmod(folder, 0o750)  # noqa: S103  the group is the agent's own, and it may not write
        for name in files:
            path = os.path.join(folder, name)
            os.chown(path, 0, uid)
            os.chmod(path, 0o550 if os.stat(path).st_mode & stat.S_IXUSR else 0o440)


def remove(top: Path) -> None:
    for folder, _, _ in os.walk(top):
        os.chmod(folder, 0o700)
    shutil.rmtree(top, ignore_errors=True)


def _private_folder(need: int) -> tuple[Path, bool]:
    """A new folder of mode 0700, in memory where it fits: what lies on disk, the host can change after the hash."""
    if need > MAX_BYTES:
        raise LaunchFailed(Code.LAUNCH_TOO_LARGE, f"{need} bytes, at most {MAX_BYTES}")
    memory = Path("/dev/shm")  # noqa: S108  mkdtemp below makes a private folder in it
    if memory.is_dir() and os.access(memory, os.W_OK) and _is_tmpfs(memory):
        status = os.statvfs(memory)
        if status.f_bavail * status.f_frsize > need + need // 4 + _CHUNK:
            return Path(tempfile.mkdtemp(prefix="cloister-launch-", dir=memory)), True
    return Path(tempfile.mkdtemp(prefix="cloister-launch-")), False


def _is_tmpfs(path: Path) -> bool:
    try:
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    return any(fields[1:3] == [str(path), "tmpfs"] for fields in (line.split() for line in mounts))


def _size(path: Path) -> int:
    try:
        status = path.lstat()
    except OSError as error:
        raise LaunchFailed(Code.LAUNCH_PACKAGE, f"{path}: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode):
        raise LaunchFailed(Code.LAUNCH_UNSAFE_FILE, f"{path} is not a plain file")
    return status.st_size


def _open(path: Path) -> BinaryIO:
    try:
        return os.fdopen(os.open(path, _NOFOLLOW), "rb")
    except OSError as error:
        raise LaunchFailed(Code.LAUNCH_UNSAFE_FILE, f"{path}: {error.strerror}") from None


def _copy(item: packages.Item, top: Path) -> None:
    """Read once, through a descriptor that follows no link, into a file that did not exist before."""
    with _open(item.source) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise LaunchFailed(Code.LAUNCH_UNSAFE_FILE, f"{item.source} is not a plain file")
        content = file.read(MAX_BYTES + 1)
    _write(top / item.target, content, executable=bool(status.st_mode & stat.S_IXUSR))


def _write(target: Path, content: bytes, *, executable: bool) -> None:
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise LaunchFailed(Code.LAUNCH_UNSAFE_FILE, f"two files want to be {target.name}") from None
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        os.fchmod(file.fileno(), 0o500 if executable else 0o400)
