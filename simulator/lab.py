"""`cloister lab`: a simulated machine, its PCS, a broker and a console in one process, on loopback, in a folder.

Decides how the pieces are put together and that they begin and end together. The broker is the real one: set up like
any other, in a simulated trust domain of its own that agents judge before they send anything. It trusts this machine's
root and no other, fetches collateral from this machine's PCS over HTTP, and takes its time from the machine's clock, so
that moving the clock moves everything. Nothing listens on any other interface.

A folder that is used again keeps its machine, its keys, its secrets, its log and, where they are free, its ports:

    machine/    what `--machine` takes          broker/    database, root key, the log's public key
    policy/     the bundle                      admin.pem  the administrator's key
    root.pem    the machine's root              trust.json what agents must be given
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar, final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from attestation.errors import CloisterError
from attestation.net.pcs import PcsClient
from attestation.ports import TrustDomain
from attestation.quote import Quote
from broker.app import listen, serve
from broker.config import Admin, Settings
from broker.errors import MEANING, BrokerCode, BrokerError
from broker.rootkey import keyfile
from broker.service import Broker, begin_attested, build
from broker.telemetry import log_to
from broker.wire.jose import thumbprint
from broker.wire.log import verifier_key
from enclave.labs import noted
from enclave.trustfile import render
from policies.errors import BundleError
from policies.scaffold import starter, write
from simulator.ending import Ending, end
from simulator.errors import SimulatorError
from simulator.lablog import speak_to_people
from simulator.machine import Machine
from simulator.pcs_server import PcsServer
from simulator.residence import Residence, reference_of

T = TypeVar("T")
USAGE: Final = 2
TENANT: Final = "lab"
HOST: Final = "127.0.0.1"
PORTS: Final = "ports.json"
DATABASE: Final = "broker.sqlite"
REFRESH_S: Final = 5  # a recovery recorded from elsewhere is seen after so long
START_PATIENCE_S: Final = 120.0  # on a machine that has much else to do
STOP_S: Final = 2  # for whoever is being answered; somebody in front of it waits for the end


@final
class Lab:
    """A running lab. A context manager: inside everything serves, afterwards nothing is left running."""

    def __init__(self, folder: Path, *, bundle: Mapping[str, bytes] | None = None, tenant: str = TENANT) -> None:
        """`bundle` (files by path) is written as the policy of a new folder; the lab's starter unless given."""
        self.folder = folder.resolve()
        self.tenant = tenant
        self.machine_folder = self.folder / "machine"
        self.broker_folder = self.folder / "broker"
        self.policy_folder = self.folder / "policy"
        self.admin_key_file = self.folder / "admin.pem"
        self.root_pem = self.folder / "root.pem"
        self.trust_file = self.folder / "trust.json"
        self._bundle = bundle
        self._stack = ExitStack()
        self._serving: _Serving | None = None

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.machine = Machine.open(self.machine_folder, create=True)
        self.root_pem.write_bytes(self.machine.root_pem)
        if not self.policy_folder.exists():
            write(self._bundle or starter("lab", tenant=self.tenant, at=self.machine.clock.now()), self.policy_folder)
        with ExitStack() as stack:
            pcs = stack.enter_context(PcsServer(self.machine, port=self._port("pcs")))
            self.pcs_url = pcs.url
            door = stack.enter_context(listen(HOST, self._port("broker")))
            self.broker_url = f"http://{HOST}:{door.getsockname()[1]}"
            serving = _Serving(
                self._settings(),
                self.machine,
                self.pcs_url,
                self.broker_folder / "collateral",
                door,
                introduce=self._introduce,
            )
            self._serving = stack.enter_context(serving)
            self._keep_ports()
            self._stack = stack.pop_all()
        return self

    def _introduce(self, broker: Broker) -> tuple[TrustDomain, bytes]:
        """The broker's own trust domain, and the digest of the trust file that tells agents what it must be."""
        identity, domain = broker.identity, Residence(self.machine).launch()
        vkey = verifier_key(identity.log_name, identity.log_key)
        (self.broker_folder / "log.vkey").write_text(f"{vkey}\n", encoding="ascii")
        trust = render(
            tenant=self.tenant,
            log_key=identity.log_key,
            roots_pem=(self.machine.root_pem,),
            administrators=tuple(admin.jkt for admin in broker.settings.admins),
            reference=reference_of(domain),
        )
        self.trust_file.write_bytes(trust)
        return domain, hashlib.sha256(trust).digest()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    @property
    def database(self) -> Path:
        return self.broker_folder / DATABASE

    @property
    def grpc_address(self) -> str:
        assert self._serving is not None
        return self._serving.grpc_address

    def describe(self) -> dict[str, str]:
        """What `--json` prints."""
        return {
            "broker_url": self.broker_url,
            "grpc_address": self.grpc_address,
            "pcs_url": self.pcs_url,
            "machine": str(self.machine_folder),
            "admin_key_file": str(self.admin_key_file),
            "root_pem": str(self.root_pem),
            "console_url": f"{self.broker_url}/console",
            "trust_file": str(self.trust_file),
        }

    def call(self, work: Callable[[Broker], Coroutine[Any, Any, T]]) -> T:
        """Do something with the broker, in its own event loop."""
        assert self._serving is not None
        return self._serving.call(work)

    def _settings(self) -> Settings:
        self.broker_folder.mkdir(exist_ok=True, mode=0o700)
        root_key = self.broker_folder / "root.json"
        if not root_key.exists():
            keyfile.create(root_key)
        return Settings(
            public_url=self.broker_url,
            bundles=(self.policy_folder,),
            profile="development",
            host=HOST,
            port=int(self.broker_url.rpartition(":")[2]),
            grpc_port=self._port("grpc"),
            database=self.database,
            root_key_file=root_key,
            roots_file=self.root_pem,
            pcs_url=self.pcs_url,
            refresh_s=REFRESH_S,
            admins=(Admin(name="lab", jkt=_admin(self.admin_key_file)),),
        )

    def _port(self, name: str) -> int:
        """The port of last time, if the folder remembers one and it is free; else 0 for any."""
        try:
            port = int(json.loads((self.folder / PORTS).read_text(encoding="utf-8"))[name])
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((HOST, port))
        except (OSError, ValueError, KeyError, TypeError, OverflowError):
            return 0
        return port

    def _keep_ports(self) -> None:
        ports = {
            name: int(url.rpartition(":")[2])
            for name, url in (("broker", self.broker_url), ("pcs", self.pcs_url), ("grpc", self.grpc_address))
        }
        (self.folder / PORTS).write_text(json.dumps(ports), encoding="utf-8")


@final
class _Serving:
    """The broker and its HTTP server in a thread of their own."""

    def __init__(
        self,
        settings: Settings,
        machine: Machine,
        pcs_url: str,
        cache: Path,
        door: socket.socket,
        *,
        introduce: Callable[[Broker], tuple[TrustDomain, bytes]],
    ) -> None:
        self.broker: Broker
        self._introduce = introduce
        self.grpc_address = ""
        self._settings = settings
        self._machine = machine
        options: dict[str, Any] = {"roots": machine.roots, "now": machine.clock.now, "max_age_s": 0}
        self._source = PcsClient(pcs_url, cache, **options)
        self._early = PcsClient(pcs_url, cache, channel="early", **options)
        self._door = door
        self._loop = _event_loop()
        self._thread = threading.Thread(target=self._run, name="lab-broker")
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self._ending = asyncio.Event()

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._started.wait(START_PATIENCE_S):
            self._failure = TimeoutError(f"the broker did not start in {START_PATIENCE_S:g} s")
        if self._failure is not None:
            self._stop()
            raise self._failure
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop()

    def call(self, work: Callable[[Broker], Coroutine[Any, Any, T]]) -> T:
        return asyncio.run_coroutine_threadsafe(work(self.broker), self._loop).result()

    def _stop(self) -> None:
        with suppress(RuntimeError):  # the loop is closed: it has ended by itself
            self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join()

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._serve())
        except BaseException as error:  # noqa: BLE001  it goes to whoever started the lab
            self._failure = error
        finally:
            self._started.set()

    async def _serve(self) -> None:
        self.broker = await build(
            self._settings, clock=self._machine.clock.now, collateral=self._source, roots=self._machine.roots
        )
        self.broker.upkeep.watch(self._early)
        for platform in range(len(self._machine.platforms)):
            await self._prefetch(platform)
        await begin_attested(self.broker, *self._introduce(self.broker))
        await serve(
            self.broker,
            sock=self._door,
            ready=self._started.set,
            stop=self._ending,
            on_grpc=self._grpc_listens,
            stop_s=STOP_S,
        )

    def _grpc_listens(self, address: str) -> None:
        self.grpc_address = address

    async def _prefetch(self, platform: int) -> None:
        """Have the platform's collateral at hand before anybody comes; one without TDX has nobody to send."""
        with suppress(SimulatorError):
            quote = Quote.parse(self._machine.launch("lab", platform=platform).quote(bytes(range(64))))
            await self.broker.collateral.prefetch(quote)


def _event_loop() -> asyncio.AbstractEventLoop:
    """As `cloister broker serve` has it: uvloop where there is one."""
    try:
        import uvloop
    except ModuleNotFoundError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


def _admin(path: Path) -> str:
    """The thumbprint of the administrator's key in the file, which is made when missing (mode 0600)."""
    if not path.exists():
        fresh = ec.generate_private_key(ec.SECP256R1())
        pem = fresh.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(pem)
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (TypeError, ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise BrokerError(BrokerCode.CONFIG_INVALID, f"{path} is no P-256 key in PEM without a password")
    return thumbprint(key.public_key())


# --- the command ---


def main(arguments: Sequence[str]) -> int:
    """`cloister lab`: serve until SIGTERM or SIGINT; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="cloister lab",
        description="A simulated machine, its PCS, a broker and a console in one process, on loopback, in a folder.",
        epilog="Nothing in it is protected. It serves until Ctrl-C or SIGTERM; exit status 0, or 2 if it cannot start.",
        allow_abbrev=False,
    )
    parser.add_argument("--dir", type=Path, help="keep everything in this folder; without it, nothing is kept")
    parser.add_argument("agents", nargs="*", type=Path, metavar="AGENT", help="run it here, and again when it changes")
    parser.add_argument("--json", action="store_true", help="print one line of JSON once everything serves")
    options = parser.parse_args(list(arguments))
    if missing := [str(agent) for agent in options.agents if not agent.exists()]:
        parser.error(f"{missing[0]} does not exist")
    if options.json:
        log_to(sys.stderr, "WARNING")
    else:
        speak_to_people()
    with ExitStack() as stack:
        ending = stack.enter_context(Ending())
        folder = options.dir or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cloister-lab-")))
        try:
            lab = stack.enter_context(Lab(folder))
        except (CloisterError, SimulatorError, BundleError, BrokerError, OSError) as error:
            first, *more = _why(error, folder)
            print("\n".join([f"cloister lab: {first}", *more]), file=sys.stderr)
            return USAGE
        stack.enter_context(noted(lab.describe()))  # for `cloister run --simulated`
        if options.json:
            print(json.dumps(lab.describe()), flush=True)
        else:
            print(_welcome(lab, kept=options.dir is not None), flush=True)
        stack.enter_context(_running(lab, options.agents))
        ending.wait()
    return 0


def _why(error: Exception, folder: Path) -> list[str]:
    """Why it cannot start, in lines for people."""
    if isinstance(error, BundleError):
        return [
            *(f"{folder}/policy/{one}" for one in error.all),
            f"  what to do: cloister policy check {folder}/policy",
        ]
    if isinstance(error, BrokerError):
        return [str(error), f"  what to do: {MEANING[error.code][1]}"]
    if isinstance(error, OSError):
        return [f"{error.filename or folder}: {error.strerror or error}"]
    remedy = getattr(error, "remedy", "")
    return [str(error), *([f"  what to do: {remedy}"] if remedy and remedy not in str(error) else [])]


@contextmanager
def _running(lab: Lab, agents: Sequence[Path]) -> Iterator[None]:
    """Those agents, each launched again when its files change; what they print goes to stderr."""
    around = ["--machine", str(lab.machine_folder), "--broker", lab.broker_url, "--trust", str(lab.trust_file)]
    started = []
    try:
        for agent in agents:
            command = [sys.executable, "-m", "cloister", "run", str(agent), "--simulated", "--reload", *around]
            started.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr))
        yield
    finally:
        end(started)


def _welcome(lab: Lab, *, kept: bool) -> str:
    place = f"Everything is kept in {lab.folder}." if kept else "Nothing is kept: name a folder with --dir to keep it."
    return f"""\
A simulated machine, its collateral service and a broker are running. SIMULATED: nothing here is protected.

  broker     {lab.broker_url}
  console    {lab.broker_url}/console
  gRPC       {lab.grpc_address}
  collateral {lab.pcs_url}
  machine    {lab.machine_folder}
  admin key  {lab.admin_key_file}
  trust file {lab.trust_file}

Try, in another terminal:
  cloister run examples/hello.py --simulated                    an agent; it finds this lab by itself
  cloister run examples/hello.py --simulated --reload           edit it, and see what changes in RTMR3
  echo hush > s && cloister secret put {lab.tenant}/demo/word s \\
      --broker {lab.broker_url} --key-file {lab.admin_key_file}
  cloister audit verify {lab.database} --log-key {lab.broker_folder}/log.vkey
  cloister sim recover --machine {lab.machine_folder} --help    make the platform fall out of date
  edit {lab.policy_folder}/policy.cedar, raise `version` in bundle.toml beside it, then
  cloister broker reload --broker {lab.broker_url} --key-file {lab.admin_key_file}

{place} End it with Ctrl-C."""
