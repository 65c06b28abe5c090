"""Private mounts, and how to put files where the kernel's own file systems have no room for them.

Decides which mounts a sandbox needs so that given paths appear in an otherwise unchanged tree. Nothing can be created
in sysfs, and nothing should be in the host's /run; so the deepest directory that exists gets a tmpfs, its entries are
bound back, and the new paths are made in there.

Everything is mounted in a mount namespace of this process: when the last process in it ends, whatever the reason, the
mounts are gone too. Python 3.11 has no wrappers for these system calls, hence `ctypes`.
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_CLONE_NEWNS: Final = 0x00020000
_CLONE_NEWUSER: Final = 0x10000000
_MS_NOSUID, _MS_NODEV = 2, 4
_MS_REC, _MS_SLAVE = 0x4000, 0x80000
_MNT_DETACH: Final = 2


def enter_private_namespace() -> None:
    """A mount namespace of our own, for this thread and those it starts; without root a user namespace too.

    Mounts of the host still arrive here, ours stay here. Raises OSError (EPERM) where neither is allowed.
    """
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        _call("unshare", _CLONE_NEWNS)
    else:
        _call("unshare", _CLONE_NEWUSER | _CLONE_NEWNS)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    _call("mount", b"none", b"/", None, ctypes.c_ulong(_MS_REC | _MS_SLAVE), None)


def mount_tmpfs(where: Path) -> None:
    """Readable by nobody else. Raises OSError."""
    flags = ctypes.c_ulong(_MS_NOSUID | _MS_NODEV)
    _call("mount", b"cloister-sim", os.fsencode(where), b"tmpfs", flags, b"mode=0700,size=64m")


def detach(where: Path) -> None:
    """Unmount now for everybody who looks, later for who still has it open; nothing to unmount is fine."""
    try:
        _call("umount2", os.fsencode(where), _MNT_DETACH)
    except OSError:
        return


@dataclass(frozen=True, slots=True)
class Graft:
    """What shall appear at a path: a bind of `source`, or a link to `target`, or an empty directory of mode 0700."""

    source: Path | None = None
    target: str | None = None


def plan(grafts: Mapping[Path, Graft], root: Path = Path("/")) -> list[str]:
    """Arguments of bubblewrap that make the grafts appear; `root` is where the host's tree is looked at."""
    covering: list[str] = []
    groups: dict[Path, dict[Path, Graft]] = {}
    for path, graft in sorted(grafts.items()):
        if (root / path.relative_to("/")).is_dir() and graft.target is None:
            covering += _place(path, graft)
        else:
            groups.setdefault(_deepest(path.parent, root), {})[path] = graft
    arguments: list[str] = []
    for top in sorted(groups, key=lambda path: len(path.parts)):
        arguments += ["--tmpfs", str(top), *_rebuild(top, groups[top], root)]
    return arguments + covering


def _deepest(path: Path, root: Path) -> Path:
    """The nearest directory that exists and is no link."""
    while not (root / path.relative_to("/")).is_dir() or (root / path.relative_to("/")).is_symlink():
        path = path.parent
    return path


def _rebuild(directory: Path, grafts: Mapping[Path, Graft], root: Path) -> Iterator[str]:
    """The entries of a directory that a tmpfs covers now, and the new ones among them."""
    here = root / directory.relative_to("/")
    known = sorted(here.iterdir()) if here.is_dir() else []
    for entry in known:
        path = directory / entry.name
        if path in grafts:
            continue
        mode = entry.lstat().st_mode
        if stat.S_ISLNK(mode):
            yield from ("--symlink", os.readlink(entry), str(path))
        else:
            yield from ("--dev-bind-try", str(path), str(path))
    made: set[Path] = set()
    for path, graft in sorted(grafts.items()):
        for parent in reversed([p for p in path.parents if directory in p.parents]):
            if parent not in made:
                made.add(parent)
                yield from ("--dir", str(parent))
        yield from _place(path, graft)


def _place(path: Path, graft: Graft) -> list[str]:
    if graft.source is not None:
        return ["--dev-bind", str(graft.source), str(path)]
    if graft.target is not None:
        return ["--symlink", graft.target, str(path)]
    return ["--perms", "0700", "--tmpfs", str(path)]


def _call(name: str, *arguments: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
