"""A PCS to ask: the simulator's answers, changed and counted on the way."""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote as percent
from urllib.parse import urlsplit

import pytest

from attestation.collateral import Collateral
from attestation.errors import AttestationError, Code, CollateralUnavailable
from attestation.net.pcs import PcsClient, Platform
from attestation.net.transport import Answer, Transport
from attestation.quote import Tee
from simulator.machine import Machine

AT = datetime(2026, 7, 1, 12, tzinfo=UTC)
FMSPC = "90C06F000000"
PLATFORM = Platform(Tee.TDX, bytes.fromhex(FMSPC), "platform")
DAY = timedelta(days=1)
PATHS = {
    "tcb": "tdx/certification/v4/tcb",
    "qe": "tdx/certification/v4/qe/identity",
    "crl": "sgx/certification/v4/pckcrl",
}


def code_of(act: Callable[[], object]) -> str:
    try:
        act()
    except AttestationError as error:
        return error.code
    return "ok"


@dataclass
class Service:
    """A PCCS on loopback that answers with one set of collateral, unless told otherwise."""

    collateral: Collateral
    asked: list[str] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)  # of the next answers, before anything is served
    edit: Callable[[str, int, dict[str, str], bytes], tuple[int, dict[str, str], bytes]] | None = None
    delay_s: float = 0.0
    cut: int = 0  # so many of the next answers end early
    url: str = ""

    def answer(self, target: str) -> tuple[int, dict[str, str], bytes]:
        self.asked.append(target)
        time.sleep(self.delay_s)
        if self.statuses:
            return self.statuses.pop(0), {"Retry-After": "0"}, b""
        parts = urlsplit(target)
        made = self._document(parts.path.lstrip("/"))
        return self.edit(parts.path, *made) if self.edit else made

    def _document(self, path: str) -> tuple[int, dict[str, str], bytes]:
        found = self.collateral
        if path == PATHS["tcb"]:
            chain, text, signature = found.tcb_info_issuer_chain, found.tcb_info, found.tcb_info_signature
            return 200, {"TCB-Info-Issuer-Chain": percent(chain)}, signed("tcbInfo", text, signature)
        if path == PATHS["qe"]:
            chain, text, signature = found.qe_identity_issuer_chain, found.qe_identity, found.qe_identity_signature
            return (
                200,
                {"SGX-Enclave-Identity-Issuer-Chain": percent(chain)},
                signed("enclaveIdentity", text, signature),
            )
        if path == PATHS["crl"]:
            return 200, {"SGX-PCK-CRL-Issuer-Chain": percent(found.pck_crl_issuer_chain)}, found.pck_crl
        if path == "sgx/certification/v4/rootcacrl":
            return 200, {}, found.root_ca_crl.hex().encode()
        return 404, {}, b""


def signed(member: str, text: str, signature: bytes) -> bytes:
    return f'{{"{member}":{text},"signature":"{signature.hex()}"}}'.encode()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        status, headers, body = self.server.service.answer(self.path)  # type: ignore[attr-defined]  # set below
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.server.service.cut > 0:  # type: ignore[attr-defined]  # set below
            self.server.service.cut -= 1  # type: ignore[attr-defined]  # set below
            body = body[:-1]
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def world() -> Machine:
    made = Machine.create(seed=9)
    made.clock.set(AT)
    return made


@pytest.fixture
def service(world: Machine) -> Iterator[Service]:
    made = Service(world.collateral("tdx", FMSPC, at=AT))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.service = made  # type: ignore[attr-defined]  # read by Handler
    made.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    server.shutdown()
    server.server_close()
    thread.join()


class Clock:
    def __init__(self) -> None:
        self.now = AT

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def client(service: Service, world: Machine, tmp_path: Path, clock: Clock) -> PcsClient:
    return made_client(service, world, tmp_path, clock)


def made_client(service: Service, world: Machine, folder: Path | None, clock: Clock, **more: Any) -> PcsClient:
    quick = Transport(timeout_s=2, sleep=lambda _: None)
    arguments: dict[str, Any] = {"roots": world.roots, "now": clock, "transport": quick}
    return PcsClient(service.url, folder, **(arguments | more))


def replace_set(collateral: Collateral, **changes: Any) -> Collateral:
    return replace(collateral, **changes)


class Stuck(Transport):  # type: ignore[misc]  # stands in for the network, not for our verifier
    """Answers when it is let go, and then with trouble."""

    def __init__(self, then: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.go = threading.Event()
        self.asked = threading.Event()
        self._then = then

    def get(self, url: str, *, deadline: float) -> Answer:
        self.asked.set()
        assert self.go.wait(10)
        self._then()
        raise CollateralUnavailable(Code.COLLATERAL_UNREACHABLE, "stuck")


def whole(members: object) -> bytes:
    """A file as it would be written, digest included."""
    body = json.dumps(members).encode()
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body
