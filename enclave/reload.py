"""What differs between one launch of an agent and the next: its files, its code digest, and what RTMR3 then holds.

Decides when an agent's files have changed and how the difference is told. A launch in a simulated trust domain may be
repeated as often as one likes, each in a domain that has just booted; in a real one RTMR3 only grows, so that there a
second launch shows as a second event, and nothing here is used.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self, final

from attestation.eventlog import launch_event
from enclave import packages
from enclave.errors import LaunchFailed
from enclave.launch import Staged

LOOK_S: Final = 0.2
MAX_TOLD: Final = 12  # files


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One launch: every measured file with its digest, the code digest, and RTMR3 after this launch alone."""

    files: Mapping[str, str]
    code: bytes
    rtmr3: bytes

    @classmethod
    def of(cls, staged: Staged, name: str) -> Self:
        event, _ = launch_event(staged.digest, name)
        files = {
            path.relative_to(staged.top).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(staged.top.rglob("*"))
            if path.is_file()
        }
        return cls(files=files, code=staged.digest, rtmr3=hashlib.sha384(bytes(48) + event).digest())

    def differences(self, before: Launch) -> list[str]:
        """In lines for people; empty when the code is the same."""
        if self.code == before.code:
            return []
        names = sorted(self.files.keys() | before.files.keys())
        marks = [(self._mark(before, name), name) for name in names]
        told = [f"  {mark} {name}" for mark, name in marks if mark]
        more = [f"    and {len(told) - MAX_TOLD} more"] if len(told) > MAX_TOLD else []
        return [
            "measured code has changed:",
            *told[:MAX_TOLD],
            *more,
            f"    code   {_short(before.code)} -> {_short(self.code)}",
            f"    RTMR3  {_short(before.rtmr3)} -> {_short(self.rtmr3)}   (zero, extended with this launch)",
            f'    a policy that pins launches wants: launches = ["{self.code.hex()}"]',
        ]

    def _mark(self, before: Launch, name: str) -> str:
        if name not in before.files:
            return "+"
        if name not in self.files:
            return "-"
        return "~" if self.files[name] != before.files[name] else ""


def _short(digest: bytes) -> str:
    return f"{digest.hex()[:16]}…"


@final
class Watch:
    """The agent's own files, as they were when this was made."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = self._look()

    def wait(self, done: Callable[[], bool]) -> bool:
        """Until the files have changed and are at rest again (True), or `done()` says to stop (False)."""
        while not done():
            time.sleep(LOOK_S)
            now = self._look()
            if now != self._seen:
                time.sleep(LOOK_S / 2)
                if now == self._look():
                    return True
        return False

    def _look(self) -> dict[str, tuple[int, int]]:
        """Path → time of change and size; an agent that is just being written is seen as it is."""
        try:
            found = [item.source for item in packages.agent_files(self._path)[0]]
            return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in found}
        except (OSError, LaunchFailed):
            return {}
