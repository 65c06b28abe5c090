"""The launcher's last step: start the measured copy as its own user, serve it the trust domain, wait for its end.

Decides what the agent's process is given: a socket to the trust domain, the addresses it needs, the environment
variables that were named, and nothing else. As root the copy runs under a free user id that owns nothing, so it can
reach neither configfs nor the register files, nor write its own code; otherwise it runs as the caller, and says so.
"""

from __future__ import annotations

import os
import pwd
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Final, Self, final

from attestation.ports import TrustDomain
from enclave.domain import FD_VARIABLE, DomainServer
from enclave.launch import LAUNCHER_VARIABLE, Staged, hand_over
from enclave.main import BROKER_VARIABLE, TRUST_VARIABLE

# Where service managers, too, take ids for users that exist only while something runs.
FREE_IDS: Final = range(61184, 65520)
TRUST_NAME: Final = "trust"
PATIENCE_S: Final = 8.0  # an agent in order needs about five for its handlers, and a moment for its mailbox


@final
class Signals:
    """SIGTERM and SIGINT to the launcher, from before the copy is made until after it is removed. A context manager.

    Before the agent runs they end the launcher, which cleans up; then they go on to the agent, which stops in its own
    order; after its end they are ignored, so that nothing interrupts the removal of the copy. An agent that has not
    ended some seconds after the first is killed by the next.
    """

    def __init__(self) -> None:
        self._asked_s: float | None = None
        self._told = False
        self._news: socket.socket | None = None  # the numbers of signals, as the interpreter writes them
        self._child: subprocess.Popen[bytes] | None = None
        self._starting = False
        self._pending = 0
        self._asked_for = 0
        self._before: dict[int, Any] = {}

    def start(self, begin: Callable[[], subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
        """Start the agent; a signal meanwhile goes to it afterwards, so that none is left alone."""
        if self._asked_for:
            raise SystemExit(128 + self._asked_for)  # as it did when it came, and was lost then
        self._starting = True
        self._child = begin()
        if self._pending:
            self._child.send_signal(self._pending)
        return self._child

    def wait(self, child: subprocess.Popen[bytes]) -> int:
        """Its exit status, once it has ended. A signal that comes at the moment before a wait, or to another thread,
        does not interrupt that wait; its number lies in the socket."""
        if self._news is None:
            return child.wait()
        while (status := child.poll()) is None:
            if select.select([self._news], [], [], self._patience_s())[0]:
                self._news.recv(64)
                continue
            self._told = True
            late = f"the agent has not ended for {PATIENCE_S:g} s; asked once more to end, it is killed"
            print(f"cloister: {late}", file=sys.stderr)
        return status

    @property
    def asked(self) -> bool:
        """Somebody wants the agent to end."""
        return self._asked_s is not None

    def _patience_s(self) -> float | None:
        """For how long nothing is to be said."""
        if self._asked_s is None or self._told:
            return None
        return max(0.0, self._asked_s + PATIENCE_S - time.monotonic())

    def interrupt(self) -> None:
        """End the agent, as SIGTERM to this process would, and go on."""
        if self._child is not None:
            with suppress(ProcessLookupError):
                self._child.terminate()

    def rest(self) -> None:
        """The agent has ended and its copy is gone: until the next start, signals end the launcher again."""
        self._child, self._starting = None, False

    def __enter__(self) -> Self:
        self._news, self._writing = socket.socketpair()
        self._writing.setblocking(False)
        self._news_before = signal.set_wakeup_fd(self._writing.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._handle)
        self._before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)  # its number wakes `wait`
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._news_before)
        assert self._news is not None
        self._news.close()
        self._writing.close()

    def _handle(self, number: int, _: FrameType | None) -> None:
        now_s = time.monotonic()
        self._asked_s = now_s if self._asked_s is None else self._asked_s
        if self._child is not None:
            late = now_s >= self._asked_s + PATIENCE_S
            with suppress(ProcessLookupError):
                self._child.send_signal(signal.SIGKILL if late else number)
        elif self._starting:
            self._pending = number
        else:
            self._asked_for = number
            raise SystemExit(128 + number)


def run(
    staged: Staged,
    domain: TrustDomain,
    *,
    trust: bytes,
    broker_url: str,
    environment: Mapping[str, str],
    arguments: Sequence[str] = (),
    uid: int | None,
    groups: Sequence[int] = (),
    signals: Signals | None = None,
) -> int:
    """Run the copy until it ends; returns its exit status (128 + n for signal n). `uid` None: the caller's own, else it
    is in those `groups` and no others."""
    trust_path = staged.top / TRUST_NAME  # beside the measured files; what it says is bound into REPORT_DATA instead
    trust_path.write_bytes(trust)
    if uid is not None:
        hand_over(staged, uid)
    server = DomainServer(domain)
    inherited = server.theirs.fileno()

    def begin() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [interpreter(), "-I", "-S", "-B", str(staged.boot), *arguments],
            env={
                "PATH": os.defpath,
                "LANG": "C.UTF-8",
                **environment,
                FD_VARIABLE: str(inherited),
                BROKER_VARIABLE: broker_url,
                TRUST_VARIABLE: str(trust_path),
                LAUNCHER_VARIABLE: str(os.getpid()),
            },
            pass_fds=(inherited,),
            cwd=staged.top,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            umask=0o077,
            **_as_user(uid, groups),
        )

    signals = signals or Signals()
    child = signals.start(begin)
    server.start()
    try:
        status = signals.wait(child)
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
        server.close()
    return status if status >= 0 else 128 - status


def interpreter() -> str:
    """The Python itself, not a virtual environment's link to it: the copy brings its own packages."""
    return os.path.realpath(sys.executable)


def separate_uid() -> int | None:
    """A user id that nobody has and no process uses; None where we are not root, or others cannot read our Python."""
    if os.geteuid() != 0 or not _public(Path(interpreter())) or not _public(Path(os.__file__)):
        return None
    used = {uid for uid in map(_owner, Path("/proc").glob("[0-9]*")) if uid is not None}
    return next((uid for uid in FREE_IDS if uid not in used and not _known(uid)), None)


def _as_user(uid: int | None, groups: Sequence[int]) -> dict[str, Any]:
    return {} if uid is None else {"user": uid, "group": uid, "extra_groups": list(groups)}


def _known(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def _owner(process: Path) -> int | None:
    try:
        return process.stat().st_uid
    except OSError:  # it has ended
        return None


def _public(path: Path) -> bool:
    """Whether somebody without any rights of his own can read the file."""
    try:
        return bool(path.stat().st_mode & 0o004) and all(parent.stat().st_mode & 0o001 for parent in path.parents)
    except OSError:
        return False
