"""Which files belong to an agent: its own, the framework's, and those of the installed packages that both need.

Decides by names alone and reads nothing of what the code does. An agent says what it needs as inline script metadata
(PEP 723) in its entry file:

    # /// script
    # dependencies = ["numpy"]
    # ///

The versions are those installed in the Python that launches. A requirement behind an environment marker is followed
when it is installed, one behind an `extra` when that extra was asked for; the rest must be there. Copying and hashing
is left to `launch`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Final, final

from enclave.errors import Code, LaunchFailed

# What this package and those that it imports need at run time; not the command line's or the broker's needs.
RUNTIME: Final = ("cryptography", "pyjwt", "cedarpy", "httpx2", "protobuf", "grpcio")
FRAMEWORK: Final = ("attestation", "policies", "enclave", "broker/__init__.py", "broker/wire")
SKIPPED_FOLDERS: Final = frozenset({"__pycache__", ".git", ".venv", ".mypy_cache", ".ruff_cache", ".pytest_cache"})
# Written by the installer, different for the same package on two machines, and read by nothing at run time.
INSTALLER_NOTES: Final = frozenset({"RECORD", "INSTALLER", "REQUESTED", "direct_url.json"})
MAX_FILES: Final = 50_000
_REQUIREMENT: Final = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[([^\]]*)\])?([^;]*)(?:;(.*))?")
_EXTRA: Final = re.compile(r"""extra\s*==\s*['"]([^'"]+)['"]""")
_BLOCK: Final = re.compile(r"(?m)^# /// script\s*$\s(?P<content>(^#(| .*)$\s)+)^# ///\s*$")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One file to copy: from where, and its path in the copy."""

    source: Path
    target: PurePosixPath


def agent_files(path: Path) -> tuple[list[Item], PurePosixPath]:
    """The agent's own files below `agent/`, and the entry file among them.

    Raises LaunchFailed: launch.nothing_to_run, launch.unsafe_file, launch.too_large.
    """
    top = PurePosixPath("agent")
    if path.is_file() and path.suffix != ".py":
        raise LaunchFailed(Code.LAUNCH_EMPTY, f"{path} is not a .py file")
    if path.is_file():
        return [Item(source=path, target=top / path.name)], top / path.name
    if not (path / "__main__.py").is_file():
        raise LaunchFailed(Code.LAUNCH_EMPTY, f"{path} is neither a file nor a folder with __main__.py")
    return list(_walk(path, top)), top / "__main__.py"


def framework_files() -> Iterator[Item]:
    """This framework's own packages, without the broker, the simulator and the command line."""
    home = Path(__file__).resolve().parent.parent
    for name in FRAMEWORK:
        source, target = home / name, PurePosixPath("packages") / name
        if source.is_dir():
            yield from _walk(source, target)
        else:
            yield Item(source=source, target=target)


def package_files(wanted: tuple[str, ...]) -> Iterator[Item]:
    """Every file of the wanted distributions and all that they require. Raises LaunchFailed: launch.package_missing."""
    for distribution in _closure(wanted):
        name = distribution.name
        if distribution.files is None:
            raise LaunchFailed(Code.LAUNCH_PACKAGE, f"{name} has no list of its files")
        for path in distribution.files:
            if _belongs(PurePosixPath(path)):
                yield Item(source=Path(str(distribution.locate_file(path))), target=PurePosixPath("packages") / path)


def declared(entry: Path) -> tuple[str, ...]:
    """The requirements in the entry file's inline metadata; none is the empty tuple. Raises launch.package_missing."""
    try:
        text = entry.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LaunchFailed(Code.LAUNCH_EMPTY, f"{entry}: {error}") from None
    found = _BLOCK.search(text)
    if found is None:
        return ()
    lines = found["content"].splitlines()
    try:
        members = tomllib.loads("\n".join(line[2:] for line in lines))
    except (ValueError, RecursionError) as error:
        raise LaunchFailed(Code.LAUNCH_PACKAGE, f"{entry}: script metadata is not TOML: {error}") from None
    wanted = members.get("dependencies", [])
    if not isinstance(wanted, list) or not all(isinstance(item, str) for item in wanted):
        raise LaunchFailed(Code.LAUNCH_PACKAGE, f"{entry}: dependencies must be a list of texts")
    # The framework travels anyway, under any of its extras.
    return tuple(item for item in wanted if not item.replace(" ", "").lower().startswith("cloister"))


def _walk(folder: Path, target: PurePosixPath) -> Iterator[Item]:
    pending = [folder]
    count = 0
    while pending:
        for path in sorted(pending.pop().iterdir()):
            if path.is_symlink():
                raise LaunchFailed(Code.LAUNCH_UNSAFE_FILE, f"{path} is a symbolic link")
            if path.is_dir():
                if path.name not in SKIPPED_FOLDERS:
                    pending.append(path)
                continue
            if path.suffix != ".pyc":
                count += 1
                yield Item(source=path, target=target / path.relative_to(folder).as_posix())
            if count > MAX_FILES:
                raise LaunchFailed(Code.LAUNCH_TOO_LARGE, f"more than {MAX_FILES} files in {folder}")


def _belongs(path: PurePosixPath) -> bool:
    """Not what lies outside the packages folder (scripts), nor caches, nor the installer's notes."""
    if ".." in path.parts or path.is_absolute() or "__pycache__" in path.parts or path.suffix in (".pyc", ".pth"):
        return False
    return not (path.parts[0].endswith(".dist-info") and path.name in INSTALLER_NOTES)


def _closure(wanted: tuple[str, ...]) -> list[metadata.Distribution]:
    found: dict[str, metadata.Distribution] = {}
    extras: dict[str, frozenset[str]] = {}
    pending = [(text, False) for text in wanted]
    while pending:
        text, optional = pending.pop()
        match = _REQUIREMENT.match(text)
        if match is None:
            raise LaunchFailed(Code.LAUNCH_PACKAGE, f"not a requirement: {text[:80]!r}")
        name = re.sub(r"[-_.]+", "-", match[1]).lower()
        asked = frozenset(part.strip() for part in (match[2] or "").split(",") if part.strip())
        if name in found and asked <= extras[name]:
            continue
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            if optional:
                continue
            raise LaunchFailed(Code.LAUNCH_PACKAGE, f"{name} is not installed") from None
        found[name] = distribution
        extras[name] = extras.get(name, frozenset()) | asked
        pending += _requirements(distribution, extras[name])
    return [found[name] for name in sorted(found)]


def _requirements(distribution: metadata.Distribution, asked: frozenset[str]) -> Iterator[tuple[str, bool]]:
    for text in distribution.requires or ():
        marker = text.partition(";")[2]
        wanted = _EXTRA.findall(marker)
        if not wanted or asked.intersection(wanted):
            yield text, bool(marker.strip())
