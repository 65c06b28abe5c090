"""A real broker for tests: in this process, in memory, over HTTP on the loopback interface.

Decides what such a broker trusts and allows: one simulated machine's root and collateral, that machine's clock, and a
policy bundle of the tester's (the starter of the lab unless told otherwise: every domain of the machine is admitted and
gets what belongs to the tenant `lab`). It runs in a simulated trust domain, which agents judge before they send it
anything. Nothing is replaced by a stand-in; only the store and the root key are forgotten at the end.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
import threading
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar, final

from attestation.quote import Quote
from broker.app import listen, serve
from broker.config import Admin, Settings
from broker.service import Broker, begin_attested, build
from broker.wire.bodies import PutSecretRequest
from enclave.trustfile import TrustFile, render
from policies.scaffold import starter, write
from simulator.machine import Machine
from simulator.residence import Residence, reference_of

T = TypeVar("T")
TENANT: Final = "lab"
PATIENCE_S: Final = 30.0
_HOST: Final = "127.0.0.1"


@final
class BrokerUnderTest:
    """A context manager: inside it serves at `url`; afterwards its thread, socket and secrets are gone."""

    def __init__(
        self, machine: Machine, folder: Path, *, bundle: Mapping[str, bytes] | None = None, tenant: str = TENANT
    ) -> None:
        """`bundle` has the files of a policy bundle by name; `folder` is where they are written."""
        self.machine = machine
        self.tenant = tenant
        self.policy_folder = folder / "policy"
        self._bundle = bundle
        self._domain = Residence(machine).launch()
        self._admin = Admin(name="pytest", jkt="A" * 43)
        self._socket = listen(_HOST, 0)
        self.url = f"http://{_HOST}:{self._socket.getsockname()[1]}"
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._broker: Broker | None = None
        self._thread = threading.Thread(target=self._run, name="cloister-broker", daemon=True)

    @property
    def broker(self) -> Broker:
        """The broker itself, for what a test wants to look at. Its coroutines run by way of `run`."""
        if self._broker is None:
            raise RuntimeError("the broker is not running")
        return self._broker

    @property
    def trust(self) -> TrustFile:
        """What agents are given so that they believe this broker and this machine."""
        return TrustFile.parse(self.trust_bytes)

    @property
    def trust_bytes(self) -> bytes:
        """The same as the bytes of a trust file, for `cloister run --trust`."""
        log_key = self.broker.identity.log_key
        roots = (self.machine.root_pem,)
        reference = reference_of(self._domain)
        return render(tenant=self.tenant, log_key=log_key, broker_url=self.url, roots_pem=roots, reference=reference)

    def put_secret(self, name: str, value: bytes, *, labels: Sequence[str] = ()) -> int:
        """Store a secret `tenant/path/name`; its version."""
        request = PutSecretRequest(value=value, labels=tuple(labels))
        return self.run(self.broker.administration.put_secret(self._admin, name, request)).version

    def reload_policy(self) -> None:
        """Read the bundle in `policy_folder` again. Its version must be a higher one."""
        self.run(self.broker.administration.reload_policies(self._admin))

    def revoke(self, subject: str, why: str = "test") -> None:
        """Bar an agent, by the subject in its verdict."""
        self.run(self.broker.administration.revoke(self._admin, subject, why))

    def refresh_collateral(self) -> bool:
        """Fetch collateral again, as the broker does by itself once an hour; whether something changed."""
        return self.run(self.broker.administration.refresh_collateral())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine of the broker's where it belongs, and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE_S)

    def __enter__(self) -> Self:
        switch_s = sys.getswitchinterval()
        self._thread.start()
        if not self._ready.wait(PATIENCE_S) or self._failure is not None:
            raise RuntimeError("the broker did not start") from self._failure
        sys.setswitchinterval(switch_s)  # the server wants short turns; a test's process is not a server
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with suppress(RuntimeError):  # the loop is closed when the broker has ended by itself
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(PATIENCE_S)
        self._socket.close()
        if self._failure is not None and error is None:
            raise RuntimeError("the broker ended early") from self._failure

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._serve())
        except BaseException as error:  # noqa: BLE001  # it goes to the thread that started or stops the broker
            self._failure = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        at = self.machine.clock.now()
        files = self._bundle or starter("lab", at=at)
        write(files, self.policy_folder)
        settings = Settings(
            public_url=self.url, bundles=(self.policy_folder,), admins=(self._admin,), host=_HOST, grpc_port=0
        )
        self._broker = await build(
            settings, clock=self.machine.clock.now, collateral=self.machine.as_source(), roots=self.machine.roots
        )
        await self._broker.collateral.prefetch(Quote.parse(self.machine.launch("prefetch").quote(b"\1" * 64)))
        await begin_attested(self._broker, self._domain, hashlib.sha256(self.trust_bytes).digest())
        await serve(self._broker, sock=self._socket, ready=self._ready.set, stop=self._stop)
