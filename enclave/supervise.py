"""The launcher's last step: start the measured copy as its own user, serve it the trust domain, wait for its end.

Decides what the agent's process is given: a socket to the trust domain, the addresses it needs, the environment
variables that were named, and nothing else. As root the copy runs under a free user id that owns nothing, so it can
reach neither configfs nor the register files, nor write its own code; otherwise it runs as the caller, and says so.
"""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, Final

from attestation.ports import TrustDomain
from enclave.domain import FD_VARIABLE, DomainServer
from enclave.launch import Staged, hand_over
from enclave.main import BROKER_VARIABLE, TRUST_VARIABLE

# Where service managers, too, take ids for users that exist only while something runs.
FREE_IDS: Final = range(61184, 65520)
TRUST_NAME: Final = "trust"


def run(
    staged: Staged,
    domain: TrustDomain,
    *,
    trust: bytes,
    broker_url: str,
    environment: Mapping[str, str],
    arguments: Sequence[str] = (),
    uid: int | None,
) -> int:
    """Run the copy until it ends; returns its exit status (128 + n for signal n). `uid` None: the caller's own."""
    trust_path = staged.top / TRUST_NAME  # beside the measured files; what it says is bound into REPORT_DATA instead
    trust_path.write_bytes(trust)
    if uid is not None:
        hand_over(staged, uid)
    server = DomainServer(domain)
    inherited = server.theirs.fileno()
    child = subprocess.Popen(
        [interpreter(), "-I", "-S", "-B", str(staged.boot), *arguments],
        env={
            "PATH": os.defpath,
            "LANG": "C.UTF-8",
            **environment,
            FD_VARIABLE: str(inherited),
            BROKER_VARIABLE: broker_url,
            TRUST_VARIABLE: str(trust_path),
        },
        pass_fds=(inherited,),
        cwd=staged.top,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        umask=0o077,
        **_as_user(uid),
    )
    server.start()
    try:
        with _forwarding(child):
            status = child.wait()
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


def _as_user(uid: int | None) -> dict[str, Any]:
    return {} if uid is None else {"user": uid, "group": uid, "extra_groups": []}


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


@contextmanager
def _forwarding(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """SIGTERM and SIGINT to the launcher go on to the agent, which then stops in its own order."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers; whoever runs us in another one ends the child himself
        return

    def forward(number: int, _: FrameType | None) -> None:
        with suppress(ProcessLookupError):
            child.send_signal(number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
