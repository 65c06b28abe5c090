"""`cloister run`: measure an agent, record it in RTMR3, run the measured copy inside the trust domain.

Decides which trust domain, broker and trust file are used, from options, the environment, or a running lab's own
note (with --simulated only), in that order; a simulated domain is never chosen because real hardware is missing.
Exit status: the agent's own, or 2 when something is not set up.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Final, final

from attestation.errors import AttestationError
from attestation.ports import TrustDomain
from attestation.provided import provided
from enclave import labs, launch, supervise
from enclave.errors import AgentError, Code, EnclaveError, LaunchFailed, TdxError
from enclave.main import BROKER_VARIABLE, DESCRIBE_VARIABLE, TRUST_VARIABLE, address
from enclave.reload import Launch, Watch
from enclave.tdx import TdxTrustDomain
from enclave.trustfile import TrustFile

USAGE: Final = 2
GROUP: Final = "cloister.trust_domain"
MACHINE_VARIABLE: Final = "CLOISTER_MACHINE"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """Where an agent runs and whom it believes."""

    machine: str
    broker_url: str
    trust: bytes


def run(arguments: Sequence[str]) -> int:
    """`cloister run …`; returns the exit status."""
    line = list(arguments)
    end = line.index("--") if "--" in line else len(line)  # argparse can't tell an agent's options from ours
    options = _parser().parse_args(line[:end])
    options.arguments = line[end + 1 :]
    try:
        if options.tools:
            return _tools(options)
        return _digest(options) if options.digest else _run(options)
    except (EnclaveError, AttestationError) as error:
        print(f"cloister run: {error}", file=sys.stderr)
        return USAGE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cloister run",
        description="Measure an agent, record it in RTMR3, run the measured copy inside the trust domain.",
        usage="cloister run AGENT [OPTIONS] [-- ARGUMENTS FOR THE AGENT]",
        epilog="Exit status: the agent's own; 2 when something is not set up. Ctrl-C or SIGTERM ends it in order.",
        allow_abbrev=False,
    )
    parser.add_argument("agent", type=Path, metavar="AGENT", help="a .py file, or a folder with __main__.py")
    parser.add_argument("--simulated", action="store_true", help="run on the software simulator; protects nothing")
    parser.add_argument("--machine", default="", metavar="DIR", help="the simulated machine's folder")
    parser.add_argument("--broker", default="", metavar="URL", help=f"the broker's address (or {BROKER_VARIABLE})")
    parser.add_argument("--trust", default="", metavar="FILE", help=f"the trust file (or {TRUST_VARIABLE})")
    parser.add_argument("--name", default="", help="name of this launch in the event log; default: the file's name")
    parser.add_argument("--env", action="append", default=[], metavar="NAME", help="pass this variable on")
    parser.add_argument(
        "--reload", action="store_true", help="simulated: launch again whenever the agent's files change"
    )
    parser.add_argument(
        "--same-user", action="store_true", help="let the agent run as this user, which can reach the registers"
    )
    parser.add_argument(
        "--tools", action="store_true", help="print the agent's tools and the digests that callers pin, run no agent"
    )
    parser.add_argument(
        "--group", action="append", default=[], metavar="NAME", help="let the agent's user be in this group"
    )
    parser.add_argument("--digest", action="store_true", help="print the code digest for reference values, run nothing")
    return parser


def _digest(options: argparse.Namespace) -> int:
    with launch.stage(options.agent) as staged:
        print(staged.digest.hex())
    return 0


def _tools(options: argparse.Namespace) -> int:
    """By the copy itself, as this user: the file's own lines run, `agent.run()` only describes."""
    with launch.stage(options.agent) as staged:
        named = {one: os.environ[one] for one in options.env if one in os.environ}
        described = {DESCRIBE_VARIABLE: "1", launch.LAUNCHER_VARIABLE: str(os.getpid())}
        return subprocess.run(
            [supervise.interpreter(), "-I", "-S", "-B", str(staged.boot), *options.arguments],
            env={"PATH": os.defpath, "LANG": "C.UTF-8", **named, **described},
            cwd=staged.top,
            stdin=subprocess.DEVNULL,
            check=False,
        ).returncode


def _run(options: argparse.Namespace) -> int:
    if options.reload and not options.simulated:
        raise LaunchFailed(Code.LAUNCH_RELOAD, "--reload without --simulated")
    if not options.agent.exists():
        raise LaunchFailed(Code.LAUNCH_EMPTY, f"{options.agent} is neither a file nor a folder with __main__.py")
    with supervise.Signals() as signals:
        real = None if options.simulated else _real()  # first: without a trust domain nothing else matters
        around = _surroundings(options)
        broker_url = around.broker_url or TrustFile.parse(around.trust).broker_url
        if not broker_url:
            raise AgentError(Code.AGENT_UNCONFIGURED, "no broker is known", _HINT)
        address(broker_url)
        name = options.name or options.agent.resolve().stem
        uid = None if options.same_user else supervise.separate_uid()
        if real is not None and uid is None and not options.same_user:
            raise LaunchFailed(Code.LAUNCH_SAME_USER, f"the launcher runs as user {os.geteuid()}")
        groups = tuple(map(launch.group_id, options.group))
        launcher = _Launcher(
            options=options, name=name, trust=around.trust, broker_url=broker_url, uid=uid, groups=groups
        )
        boot = _booting(around.machine, name)
        return launcher.again_and_again(boot, signals) if options.reload else launcher.once(real or boot(), signals)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Launcher:
    """One agent as the options describe it, to be launched once, or whenever it has changed."""

    options: argparse.Namespace
    name: str
    trust: bytes
    broker_url: str
    uid: int | None
    groups: tuple[int, ...]

    def once(self, domain: TrustDomain, signals: supervise.Signals) -> int:
        """The agent's exit status."""
        with launch.stage(self.options.agent) as staged:
            launch.extend(domain, staged.digest, self.name)
            _tell(staged, domain, self.name, self.uid, chosen=self.options.same_user)
            return self._supervise(staged, domain, signals)

    def again_and_again(self, boot: Callable[[], TrustDomain], signals: supervise.Signals) -> int:
        """Until a signal: launch, each time in a trust domain that has just booted, and say what has changed."""
        before: Launch | None = None
        while True:
            watch, changed = Watch(self.options.agent), threading.Event()
            try:
                status, before = self._watched(boot(), signals, before, watch, changed)
            except LaunchFailed as error:  # half written, perhaps
                print(f"cloister run: {error}", file=sys.stderr)
                status = USAGE
            if signals.asked:
                return status
            if not changed.is_set():
                print(f"cloister: the agent ended with status {status}; waiting for a change", file=sys.stderr)
                watch.wait(lambda: False)  # a signal ends this

    def _watched(
        self,
        domain: TrustDomain,
        signals: supervise.Signals,
        before: Launch | None,
        watch: Watch,
        changed: threading.Event,
    ) -> tuple[int, Launch]:
        """One launch, ended when the files change."""
        over = threading.Event()

        def end_on_change() -> None:
            if watch.wait(over.is_set):
                changed.set()
                signals.interrupt()

        with launch.stage(self.options.agent) as staged:
            launch.extend(domain, staged.digest, self.name)
            this = Launch.of(staged, self.name)
            for line in this.differences(before) if before else ():
                print(f"cloister: {line}", file=sys.stderr)
            if before is None:
                _tell(staged, domain, self.name, self.uid, chosen=self.options.same_user)
            watcher = threading.Thread(target=end_on_change, name="cloister-watch", daemon=True)
            watcher.start()
            try:
                status = self._supervise(staged, domain, signals)
            finally:
                over.set()
                watcher.join()
        signals.rest()
        return status, this

    def _supervise(self, staged: launch.Staged, domain: TrustDomain, signals: supervise.Signals) -> int:
        return supervise.run(
            staged,
            domain,
            trust=self.trust,
            broker_url=self.broker_url,
            environment={one: os.environ[one] for one in self.options.env if one in os.environ},
            arguments=self.options.arguments,
            uid=self.uid,
            groups=self.groups,
            signals=signals,
        )


_HINT: Final = (
    "Name --broker URL and --trust FILE; or start `cloister lab` in another terminal and add --simulated, "
    "which finds it by itself."
)
_LAB: Final = (
    "Start `cloister lab` in another terminal, which is found by itself; or name --broker, --trust and --machine."
)


def _surroundings(options: argparse.Namespace) -> Surroundings:
    note = labs.newest() if options.simulated else {}
    trust = options.trust or os.environ.get(TRUST_VARIABLE, "") or note.get("trust_file", "")
    if not trust and options.simulated:
        detail = "no lab runs here, and neither --trust nor the environment names a trust file"
        raise AgentError(Code.AGENT_UNCONFIGURED, detail, _LAB)
    if not trust:
        raise AgentError(Code.AGENT_UNCONFIGURED, "no trust file is known, so nobody can be believed", _HINT)
    TrustFile.load(Path(trust))  # says what is wrong with it
    return Surroundings(
        machine=options.machine or os.environ.get(MACHINE_VARIABLE, "") or note.get("machine", ""),
        broker_url=options.broker or os.environ.get(BROKER_VARIABLE, "") or note.get("broker_url", ""),
        trust=Path(trust).read_bytes(),
    )


def _real() -> TrustDomain:
    try:
        return TdxTrustDomain()
    except TdxError as error:
        if error.code is not Code.TDX_MISSING:
            raise
        raise LaunchFailed(Code.LAUNCH_NO_TDX, error.detail) from None


def _simulated(machine: str, label: str) -> TrustDomain:
    """The domain that whoever provides `simulated` in the group makes: this package knows no simulator."""
    reference = provided(GROUP).get("simulated", "")
    module, _, attribute = reference.partition(":")
    if not module:
        raise LaunchFailed(Code.LAUNCH_NO_SIMULATOR, f"nothing provides `simulated` in the group {GROUP}")
    if not machine:
        raise AgentError(Code.AGENT_UNCONFIGURED, "no simulated machine is known", f"Name --machine DIR. {_HINT}")
    try:
        make = getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise LaunchFailed(Code.LAUNCH_NO_SIMULATOR, f"{error.name} is not installed") from None
    try:
        domain: TrustDomain = make(machine, label=label)
    except Exception as error:  # another package's, which this one does not know; those with a code explain themselves
        if not hasattr(error, "code"):
            raise
        raise LaunchFailed(Code.LAUNCH_DOMAIN_FAILED, str(error), getattr(error, "remedy", "")) from None
    return domain


def _booting(machine: str, label: str) -> Callable[[], TrustDomain]:
    """Boots trust domains of a machine for as long as it is there: a lab that has ended takes its machine with it."""
    there = Path(machine).is_dir()

    def boot() -> TrustDomain:
        if there and not Path(machine).is_dir():  # else another one would be made in its place
            raise AgentError(Code.AGENT_UNCONFIGURED, f"the machine {machine} is gone: its lab has ended", _LAB)
        return _simulated(machine, label)

    return boot


def _tell(staged: launch.Staged, domain: TrustDomain, name: str, uid: int | None, *, chosen: bool) -> None:
    """What was measured, and in plain words what this launch does not give."""
    say = [f"measured {name}: {staged.files} files, {staged.size / 1e6:.1f} MB, SHA-384 {staged.digest.hex()}"]
    if domain.simulated:
        say.append("SIMULATED trust domain: for development; it protects nothing")
    if not staged.in_memory:
        say.append("the copy lies on disk, not in memory: whoever owns the disk can change it after it was measured")
    if uid is not None:
        say.append(f"the agent runs as user {uid}, which can reach neither reports nor registers")
    elif not chosen:
        say.append(
            "the agent runs as this user; to separate it from reports and registers, start as root, "
            "with a Python that every user may read"
        )
    for line in say:
        print(f"cloister: {line}", file=sys.stderr)
