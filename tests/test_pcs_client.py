"""Collateral over HTTP: what is asked, what is believed, what is kept, and what is refused as older than seen."""

import fcntl
import hashlib
import json
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
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
from attestation.net import answers, store, transport
from attestation.net.pcs import INTEL, PcsClient, Platform
from attestation.net.store import CollateralFiles, Mark, Marks
from attestation.net.transport import Answer, Transport, check_url
from attestation.pki import TrustRoots
from attestation.ports import CollateralSource
from attestation.quote import Quote, Tee
from attestation.verifier import NOT_COMPARED, verify_quote
from simulator.machine import Machine
from simulator.pcs_server import PcsServer, Trouble

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


# Asking


def test_a_set_is_fetched_and_verifies_the_quote(client: PcsClient, world: Machine, service: Service) -> None:
    assert isinstance(client, CollateralSource)
    quote = Quote.parse(world.launch().quote(b"r" * 64))
    found = client.fetch(quote)
    assert found == service.collateral
    verify_quote(quote, found, report_data=NOT_COMPARED, roots=world.roots, at=AT)
    assert sorted(target.partition("?")[0] for target in service.asked) == sorted(
        ["/sgx/certification/v4/rootcacrl", *(f"/{path}" for path in PATHS.values())]
    )
    assert f"/{PATHS['tcb']}?fmspc={FMSPC}&update=standard" in service.asked
    assert f"/{PATHS['crl']}?ca=platform&encoding=der" in service.asked


def test_the_simulated_pcs_is_understood(world: Machine, tmp_path: Path, clock: Clock) -> None:
    quote = Quote.parse(world.launch().quote(b"r" * 64))
    with PcsServer(world) as server:
        client = PcsClient(server.url, tmp_path, roots=world.roots, now=clock)
        verify_quote(quote, client.fetch(quote), report_data=NOT_COMPARED, roots=world.roots, at=AT)
        early = PcsClient(server.url, tmp_path, roots=world.roots, now=clock, channel="early")
        assert early.fetch(quote).tcb_info
        server.trouble = Trouble(status=503)
        quick = Transport(sleep=lambda _: None)
        unwell = PcsClient(server.url, None, roots=world.roots, now=clock, transport=quick)
        assert code_of(lambda: unwell.fetch(quote)) == Code.COLLATERAL_UNREACHABLE


@pytest.mark.parametrize(
    "form", ["v3 header", "plus for a blank", "lower-case hex", "PEM CRL", "hex CRL", "DER root CRL", "blanks"]
)
def test_other_spellings_of_the_same_answers_are_read(form: str, client: PcsClient, service: Service) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    found = service.collateral

    def edit(path: str, status: int, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        if form == "v3 header":
            headers = {name.replace("TCB-Info", "SGX-TCB-Info"): value for name, value in headers.items()}
        if form == "plus for a blank":
            headers = {name: value.replace("%20CERTIFICATE", "+CERTIFICATE") for name, value in headers.items()}
        if form == "lower-case hex":
            headers = {name: value.replace("%0A", "%0a") for name, value in headers.items()}
        if form == "blanks" and body[:1] == b"{":
            body = body.replace(b'":{', b'" : {', 1).replace(b'},"signature":', b'}\n, "signature" : ') + b"\n"
        if path.endswith("pckcrl") and form == "PEM CRL":
            body = x509.load_der_x509_crl(found.pck_crl).public_bytes(Encoding.PEM)
        if path.endswith("pckcrl") and form == "hex CRL":
            body = found.pck_crl.hex().upper().encode()
        if path.endswith("rootcacrl") and form == "DER root CRL":
            body = found.root_ca_crl
        return status, headers, body

    service.edit = edit
    assert client.fetch_for(PLATFORM) == found


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("tcb", b""),
        ("tcb", b"{}"),
        ("tcb", b"[" * 100_000),
        ("tcb", b'{"tcbInfo":' + b"[" * 100_000),
        ("tcb", b'{"tcbInfo":{},"signature":"00"}'),
        ("tcb", b'{"tcbInfo":"text","signature":"' + b"00" * 64 + b'"}'),
        ("tcb", b'{"tcbInfo":{},"signature":"' + b"00" * 64 + b'"}'),
        ("tcb", b"\xff\xfe"),
        ("tcb", b'{"tcbInfo":{"a":[' + b"{}," * 60_000 + b'{}]},"signature":"' + b"00" * 64 + b'"}'),
        ("qe", b'{"tcbInfo":{},"signature":"' + b"00" * 64 + b'"}'),
        ("crl", b""),
        ("crl", b"zz"),
        ("crl", b"\x30\x03\x02\x01\x01"),
        ("crl", b"-----BEGIN X509 CRL-----\nAA==\n-----END X509 CRL-----\n"),
        ("rootcacrl", b"<html>not found</html>"),
        ("tcb", b" " * (transport.MAX_BODY + 1)),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_an_answer_that_is_no_collateral_is_refused(
    path: str, body: bytes, client: PcsClient, service: Service
) -> None:
    wanted = PATHS.get(path, path)

    def edit(asked: str, status: int, headers: dict[str, str], whole: bytes) -> tuple[int, dict[str, str], bytes]:
        return status, headers, body if asked.endswith(wanted) else whole

    service.edit = edit
    assert code_of(lambda: client.fetch_for(PLATFORM)) == Code.COLLATERAL_ANSWER


def test_answers_without_issuer_chains_are_refused(client: PcsClient, service: Service) -> None:
    service.edit = lambda path, status, headers, body: (status, {}, body)
    assert code_of(lambda: client.fetch_for(PLATFORM)) == Code.COLLATERAL_ANSWER


def test_collateral_of_another_root_or_platform_is_refused(world: Machine, service: Service, client: PcsClient) -> None:
    good = service.collateral
    service.collateral = Machine.create(seed=10).collateral("tdx", FMSPC, at=AT)
    assert code_of(lambda: client.fetch_for(PLATFORM)) == Code.COLLATERAL_ANSWER
    service.collateral = world.collateral("tdx", "B0C06F000000", at=AT)
    assert code_of(lambda: client.fetch_for(PLATFORM)) == Code.COLLATERAL_ANSWER
    other = world.collateral("sgx", FMSPC, at=AT)
    service.collateral = replace_set(
        good, qe_identity=other.qe_identity, qe_identity_signature=other.qe_identity_signature
    )
    assert code_of(lambda: client.fetch_for(PLATFORM)) == Code.COLLATERAL_ANSWER
    service.collateral = replace_set(good, tcb_info=good.tcb_info.replace("UpToDate", "UpTodate"))
    assert code_of(lambda: client.fetch_for(PLATFORM)) == Code.COLLATERAL_ANSWER


def replace_set(collateral: Collateral, **changes: Any) -> Collateral:
    return replace(collateral, **changes)


def test_an_unknown_platform_is_not_found_and_not_asked_for_again(client: PcsClient, service: Service) -> None:
    for status in (404, 410, 461, 462):
        service.edit = lambda path, was, headers, body, status=status: (status, {}, b"")  # type: ignore[misc]
        service.asked.clear()
        assert code_of(lambda: client.fetch_for(PLATFORM)) == Code.COLLATERAL_NOT_FOUND
        assert len(set(service.asked)) == len(service.asked) <= 3
    service.edit = lambda path, was, headers, body: (400, {}, b"")
    assert code_of(lambda: client.fetch_for(PLATFORM)) == Code.COLLATERAL_ANSWER


def test_redirects_are_refused(client: PcsClient, service: Service) -> None:
    service.edit = lambda path, was, headers, body: (302, {"Location": f"{service.url}/elsewhere"}, b"")
    assert code_of(lambda: client.fetch_for(PLATFORM)) == Code.COLLATERAL_ANSWER
    assert not any("elsewhere" in target for target in service.asked)


def test_a_busy_service_is_asked_again_and_then_given_up(client: PcsClient, service: Service) -> None:
    service.statuses = [503, 429, 502]
    assert client.fetch_for(PLATFORM) == service.collateral
    service.statuses = [503] * 100
    assert code_of(lambda: client.fetch_for(Platform(Tee.TDX, b"\0" * 6, "platform"))) == Code.COLLATERAL_UNREACHABLE
    assert 100 - 3 * 4 <= len(service.statuses) <= 100 - 4


def test_patience_ends_at_the_deadline(service: Service, world: Machine, clock: Clock) -> None:
    naps: list[float] = []
    service.edit = lambda path, was, headers, body: (429, {"Retry-After": "3600"}, b"")
    patient = made_client(service, world, None, clock, transport=Transport(sleep=naps.append))
    started = time.monotonic()
    assert code_of(lambda: patient.fetch_for(PLATFORM)) == Code.COLLATERAL_UNREACHABLE
    assert naps == []
    assert time.monotonic() - started < 60


def test_a_service_that_hangs_or_is_not_there_is_unreachable(service: Service, world: Machine, clock: Clock) -> None:
    service.delay_s = 1.0
    hasty = made_client(service, world, None, clock, transport=Transport(timeout_s=0.1, attempts=1))
    assert code_of(lambda: hasty.fetch_for(PLATFORM)) == Code.COLLATERAL_UNREACHABLE
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = PcsClient(f"http://127.0.0.1:{unused.getsockname()[1]}", transport=Transport(sleep=lambda _: None))
        assert code_of(lambda: nobody.fetch_for(PLATFORM)) == Code.COLLATERAL_UNREACHABLE


def test_an_answer_that_drips_is_cut_off_at_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.recv(4096)
                peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
                for _ in range(50):
                    try:
                        peer.sendall(b".")
                    except OSError:
                        return
                    time.sleep(0.02)

        thread = threading.Thread(target=drip)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        once = Transport(attempts=1)
        assert code_of(lambda: once.get(url, deadline=time.monotonic() + 0.3)) == Code.COLLATERAL_UNREACHABLE
        thread.join()


STARTS = {
    "status line": b"HTTP/1.1 200",
    "header": b"HTTP/1.1 200 OK\r\nX: ",
    "body": b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n",
    "handshake": b"\x16\x03\x03\x40\x00",
}


@pytest.mark.parametrize("part", STARTS)
def test_whatever_drips_ends_at_the_deadline_and_the_connection_with_it(part: str) -> None:
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.recv(4096)
                peer.sendall(STARTS[part])
                for _ in range(500):
                    try:
                        peer.sendall(b"a")
                    except OSError:
                        ended.set()
                        return
                    time.sleep(0.02)

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        scheme = "https" if part == "handshake" else "http"
        url = f"{scheme}://127.0.0.1:{listener.getsockname()[1]}/"
        started = time.monotonic()
        assert code_of(lambda: Transport().get(url, deadline=started + 0.4)) == Code.COLLATERAL_UNREACHABLE
        assert time.monotonic() - started < 8  # the peer would drip for ever
        assert ended.wait(5), "the peer is rid of us too"
        thread.join()


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


def test_nobody_waits_for_another_callers_request_beyond_the_deadline(
    service: Service, world: Machine, clock: Clock
) -> None:
    stuck = Stuck()
    client = made_client(service, world, None, clock, transport=stuck, deadline_s=0.2)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(code_of, lambda: client.fetch_for(PLATFORM))
        assert stuck.asked.wait(10)
        started = time.monotonic()
        assert code_of(lambda: client.fetch_for(PLATFORM)) == Code.COLLATERAL_UNREACHABLE
        assert time.monotonic() - started < 8  # the peer would drip for ever
        stuck.go.set()
        assert first.result(10) == Code.COLLATERAL_UNREACHABLE


def test_platforms_that_are_only_claimed_leave_nothing_behind(client: PcsClient, service: Service) -> None:
    service.edit = lambda path, was, headers, body: (404, {}, b"")
    for number in range(3):
        claimed = Platform(Tee.TDX, number.to_bytes(6, "big"), "platform")
        assert code_of(lambda claimed=claimed: client.fetch_for(claimed)) == Code.COLLATERAL_NOT_FOUND  # type: ignore[misc]
    assert not client._flights
    for wrong in ((Tee.TDX, b"12345", "platform"), (Tee.TDX, b"123456", "../x"), ("tdx", b"123456", "platform")):
        with pytest.raises(ValueError):
            Platform(*wrong)  # type: ignore[arg-type]  # wrong on purpose
    for deadline_s in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError):
            PcsClient(deadline_s=deadline_s)


def test_an_answer_that_ends_early_is_no_answer(client: PcsClient, service: Service) -> None:
    service.cut = 4
    assert client.fetch_for(PLATFORM) == service.collateral
    assert len(service.asked) == 8, "each was asked for again"
    service.cut = 1000
    other = Platform(Tee.TDX, bytes(6), "platform")
    assert code_of(lambda: client.fetch_for(other)) == Code.COLLATERAL_UNREACHABLE


@pytest.mark.parametrize(
    "url",
    [
        "http://pcs.example",
        "https://pcs.example/\r\nX: y",
        "https://pcs.example/ x",
        "https://pcs.example:99999",
        "https://pcs.example:0",
        "https://p\u0441s.example",
        "http://169.254.169.254",
        "http://0.0.0.0",
        "http://localhost.example",
        "https://user:secret@pcs.example",
        "https://",
        "file:///etc/passwd",
        "ftp://127.0.0.1",
        "https://pcs.example/#x",
        "",
    ],
)
def test_collateral_comes_over_https_or_from_this_machine(url: str) -> None:
    with pytest.raises(ValueError):
        check_url(url)
    with pytest.raises(ValueError):
        PcsClient(url)


def test_loopback_may_speak_plain_http() -> None:
    for url in (
        "http://127.0.0.1:1",
        "http://[::1]:1/x",
        "http://localhost:8081",
        "https://pcs.example:8081/path",
        INTEL,
    ):
        check_url(url)


def test_the_root_crl_of_intels_pcs_is_where_the_trusted_root_says() -> None:
    from tests.admitted import machine

    chain = machine().collateral("tdx", FMSPC, at=AT).qe_identity_issuer_chain
    assert answers.root_crl_address(chain, machine().roots).startswith("https://")
    with pytest.raises(CollateralUnavailable):
        answers.root_crl_address(chain, TrustRoots.intel())
    with pytest.raises(CollateralUnavailable):
        answers.root_crl_address("nothing", TrustRoots.intel())


def test_a_root_that_names_no_address_has_no_crl_there(world: Machine) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import Encoding

    root = world.pki.root
    bare = (
        x509.CertificateBuilder()
        .subject_name(root.certificate.subject)
        .issuer_name(root.certificate.subject)
        .public_key(root.key.public_key())
        .serial_number(5)
        .not_valid_before(root.certificate.not_valid_before_utc)
        .not_valid_after(root.certificate.not_valid_after_utc)
        .add_extension(x509.BasicConstraints(True, 1), True)
        .sign(root.key, SHA256())
    )
    roots = TrustRoots.from_pem(bare.public_bytes(Encoding.PEM))
    chain = world.collateral("tdx", FMSPC, at=AT).qe_identity_issuer_chain
    assert code_of(lambda: answers.root_crl_address(chain, roots)) == Code.COLLATERAL_ANSWER


def test_the_crl_of_the_other_ca_is_neither_used_nor_kept(
    client: PcsClient, service: Service, world: Machine, tmp_path: Path
) -> None:
    good = service.collateral
    other = world.collateral("tdx", FMSPC, at=AT, ca="processor")
    service.collateral = replace_set(good, pck_crl=other.pck_crl, pck_crl_issuer_chain=other.pck_crl_issuer_chain)
    assert code_of(lambda: client.fetch_for(PLATFORM)) == Code.COLLATERAL_ANSWER
    assert not list(tmp_path.glob("*.json"))
    service.collateral = good
    assert client.fetch_for(PLATFORM) == good


def test_intels_own_service_is_asked_for_the_root_crl_at_the_distribution_point(
    world: Machine, service: Service, clock: Clock
) -> None:
    asked: list[str] = []

    class Redirected(Transport):  # type: ignore[misc]  # stands in for the network, not for our verifier
        def get(self, url: str, *, deadline: float) -> Answer:
            asked.append(url)
            path = "/sgx/certification/v4/rootcacrl" if url.endswith(".der") else url.removeprefix(INTEL)
            status, headers, body = service.answer(path)
            return Answer(status, {name.lower(): value for name, value in headers.items()}, body)

    found = PcsClient(INTEL, roots=world.roots, now=clock, transport=Redirected()).fetch_for(PLATFORM)
    assert found == service.collateral
    assert "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der" in asked
    assert not any("rootcacrl" in url for url in asked)


def test_a_quote_without_its_chain_names_no_platform(client: PcsClient, world: Machine) -> None:
    raw = world.launch().quote(b"r" * 64)
    at = raw.rindex(b"-----BEGIN CERTIFICATE-----")
    damaged = Quote.parse(raw[:at] + b"x" * 27 + raw[at + 27 :])
    assert code_of(lambda: client.fetch(damaged)) == Code.COLLATERAL_PLATFORM


# Keeping


def test_what_was_fetched_is_used_again_and_by_the_next_process(
    client: PcsClient, service: Service, world: Machine, tmp_path: Path, clock: Clock
) -> None:
    client.fetch_for(PLATFORM)
    assert client.fetch_for(PLATFORM) == service.collateral
    assert made_client(service, world, tmp_path, clock).fetch_for(PLATFORM) == service.collateral
    assert len(service.asked) == 4


def test_files_are_private_and_written_whole(client: PcsClient, tmp_path: Path) -> None:
    client.fetch_for(PLATFORM)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["marks.json", "marks.lock", "tdx-90c06f000000-platform-standard.json"]
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "swap", "junk", "directory"])
def test_a_damaged_file_is_as_good_as_none(
    damage: str, client: PcsClient, service: Service, world: Machine, tmp_path: Path, clock: Clock
) -> None:
    client.fetch_for(PLATFORM)
    path = tmp_path / "tdx-90c06f000000-platform-standard.json"
    raw = path.read_bytes()
    if damage == "directory":
        path.unlink()
        path.mkdir()
    else:
        edits = {
            "flip": raw[:200] + bytes([raw[200] ^ 1]) + raw[201:],
            "cut": raw[:-1],
            "empty": b"",
            "swap": raw.partition(b"\n")[0] + b"\n{}",
            "junk": b"\xff" * 100,
        }
        path.write_bytes(edits[damage])
    before = len(service.asked)
    again = made_client(service, world, tmp_path, clock)
    if damage == "directory":
        assert code_of(lambda: again.fetch_for(PLATFORM)) == Code.COLLATERAL_UNREACHABLE
    else:
        assert again.fetch_for(PLATFORM) == service.collateral
    assert len(service.asked) == before + 4


@pytest.mark.parametrize("fetched_at", [float("nan"), float("inf"), float("-inf"), "soon", True, None, "future"])
def test_a_file_that_was_fetched_at_no_time_or_in_the_future_is_as_good_as_none(
    fetched_at: object, client: PcsClient, service: Service, world: Machine, tmp_path: Path, clock: Clock
) -> None:
    client.fetch_for(PLATFORM)
    path = tmp_path / "tdx-90c06f000000-platform-standard.json"
    kept = json.loads(path.read_bytes().partition(b"\n")[2])
    path.write_bytes(whole(kept | {"fetched_at": AT.timestamp() + 3600 if fetched_at == "future" else fetched_at}))
    before = len(service.asked)
    assert made_client(service, world, tmp_path, clock).fetch_for(PLATFORM) == service.collateral
    assert len(service.asked) == before + 4


def test_a_clock_that_was_set_back_does_not_stop_refreshes(client: PcsClient, service: Service, clock: Clock) -> None:
    clock.now = AT + timedelta(hours=2)
    client.fetch_for(PLATFORM)
    asked = len(service.asked)
    clock.now = AT + timedelta(hours=1)
    service.statuses = [404] * 3
    assert client.fetch_for(PLATFORM) == service.collateral
    assert len(service.asked) > asked
    clock.now = AT + timedelta(minutes=30)  # before the failure, and the pause after it
    asked = len(service.asked)
    client.fetch_for(PLATFORM)
    assert len(service.asked) > asked


def test_a_set_that_ends_while_its_refresh_hangs_is_not_handed_out(
    service: Service, world: Machine, clock: Clock
) -> None:
    end = datetime.fromisoformat(json.loads(service.collateral.tcb_info)["nextUpdate"])

    def too_late() -> None:
        clock.now = end + timedelta(seconds=25)

    stuck = Stuck(too_late)
    stuck.go.set()
    client = made_client(service, world, None, clock)
    client.fetch_for(PLATFORM)
    clock.now = end - timedelta(seconds=1)
    assert client._at_hand(PLATFORM.key("standard")), "still in force, and due"
    client._transport = stuck
    assert code_of(lambda: client.fetch_for(PLATFORM)) == Code.COLLATERAL_UNREACHABLE


def test_a_set_that_ends_while_it_is_kept_is_not_handed_out(
    service: Service, world: Machine, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = CollateralFiles.save

    def slowly(*arguments: Any) -> None:
        save(*arguments)
        clock.now = AT + 31 * DAY

    monkeypatch.setattr(CollateralFiles, "save", slowly)
    client = made_client(service, world, tmp_path, clock)
    assert code_of(lambda: client.fetch_for(PLATFORM)) == Code.COLLATERAL_STALE


def test_a_file_of_another_root_is_not_used(client: PcsClient, service: Service, tmp_path: Path, clock: Clock) -> None:
    client.fetch_for(PLATFORM)
    other = Machine.create(seed=10)
    service.collateral = other.collateral("tdx", FMSPC, at=AT)
    assert made_client(service, other, tmp_path, clock).fetch_for(PLATFORM) == service.collateral


def test_a_day_old_set_is_refreshed_and_kept_if_that_fails(
    client: PcsClient, service: Service, world: Machine, clock: Clock
) -> None:
    first = client.fetch_for(PLATFORM)
    clock.now = AT + DAY
    service.collateral = world.collateral("tdx", FMSPC, at=clock.now)
    second = client.fetch_for(PLATFORM)
    assert second != first
    clock.now = AT + 2 * DAY
    service.statuses = [500] * 1000
    assert client.fetch_for(PLATFORM) == second
    asked = len(service.asked)
    assert client.fetch_for(PLATFORM) == second
    assert len(service.asked) == asked, "a failed refresh is not repeated at once"
    clock.now += timedelta(seconds=61)
    client.fetch_for(PLATFORM)
    assert len(service.asked) > asked


def test_a_set_near_its_end_is_refreshed_whatever_its_age(service: Service, world: Machine, clock: Clock) -> None:
    patient = made_client(service, world, None, clock, max_age_s=1e9)
    patient.fetch_for(PLATFORM)
    asked = len(service.asked)
    clock.now = AT + 20 * DAY
    patient.fetch_for(PLATFORM)
    assert len(service.asked) == asked
    clock.now = AT + 27 * DAY
    service.collateral = world.collateral("tdx", FMSPC, at=clock.now)
    assert patient.fetch_for(PLATFORM) == service.collateral


def test_nothing_is_handed_out_past_its_end_or_before_it_begins(
    client: PcsClient, service: Service, world: Machine, tmp_path: Path, clock: Clock
) -> None:
    client.fetch_for(PLATFORM)
    for moment in (AT + 40 * DAY, AT - 2 * DAY):
        clock.now = moment
        assert code_of(lambda: client.fetch_for(PLATFORM)) == Code.COLLATERAL_STALE
        service.statuses = [500] * 12
        assert code_of(lambda: client.fetch_for(PLATFORM)) == Code.COLLATERAL_UNREACHABLE
        service.statuses.clear()
        assert (
            code_of(lambda: made_client(service, world, tmp_path, clock).fetch_for(PLATFORM)) == Code.COLLATERAL_STALE
        )


def test_one_request_per_platform_is_under_way(client: PcsClient, service: Service) -> None:
    service.delay_s = 0.1
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: client.fetch_for(PLATFORM), range(8)))
    assert found == [service.collateral] * 8
    assert len(service.asked) == 4


def test_while_one_refreshes_others_use_the_set_at_hand(
    client: PcsClient, service: Service, world: Machine, clock: Clock
) -> None:
    old = client.fetch_for(PLATFORM)
    clock.now = AT + DAY
    service.collateral = world.collateral("tdx", FMSPC, at=clock.now)
    service.delay_s = 0.3
    with ThreadPoolExecutor(2) as pool:
        refreshing = pool.submit(client.fetch_for, PLATFORM)
        time.sleep(0.1)
        assert client.fetch_for(PLATFORM) == old
        assert refreshing.result() == service.collateral


# Rollback


def older_and_newer(world: Machine, what: str) -> tuple[Collateral, Collateral]:
    """Two sets that are both in force at AT + 2 days, the second newer in one part."""
    old, new = world.collateral("tdx", FMSPC, at=AT), world.collateral("tdx", FMSPC, at=AT + DAY)
    parts = {
        "tcb_info": ("tcb_info", "tcb_info_signature"),
        "qe_identity": ("qe_identity", "qe_identity_signature"),
        "pck_crl": ("pck_crl",),
        "root_crl": ("root_ca_crl",),
    }
    return old, replace_set(old, **{name: getattr(new, name) for name in parts[what]})


@pytest.mark.parametrize("what", ["tcb_info", "qe_identity", "pck_crl", "root_crl"])
def test_an_older_part_than_seen_is_refused_by_this_process_and_the_next(
    what: str, service: Service, world: Machine, tmp_path: Path, clock: Clock
) -> None:
    old, new = older_and_newer(world, what)
    clock.now = AT + 2 * DAY
    service.collateral = new
    made_client(service, world, tmp_path, clock).fetch_for(PLATFORM)
    (tmp_path / "tdx-90c06f000000-platform-standard.json").unlink()
    service.collateral = old
    fresh = made_client(service, world, tmp_path, clock)
    with pytest.raises(CollateralUnavailable) as caught:
        fresh.fetch_for(PLATFORM)
    assert caught.value.code == Code.COLLATERAL_ROLLBACK
    assert what in caught.value.detail


def test_a_restored_file_is_not_used_and_the_set_at_hand_outlives_a_rollback(
    service: Service, world: Machine, tmp_path: Path, clock: Clock
) -> None:
    client = made_client(service, world, tmp_path, clock)
    path = tmp_path / "tdx-90c06f000000-platform-standard.json"
    client.fetch_for(PLATFORM)
    old_file, old = path.read_bytes(), service.collateral
    clock.now = AT + DAY
    service.collateral = new = world.collateral("tdx", FMSPC, at=clock.now)
    client.fetch_for(PLATFORM)
    path.write_bytes(old_file)
    service.collateral = old
    assert code_of(lambda: made_client(service, world, tmp_path, clock).fetch_for(PLATFORM)) == Code.COLLATERAL_ROLLBACK
    clock.now = AT + 2 * DAY
    assert client.fetch_for(PLATFORM) == new


def test_without_a_folder_an_older_set_than_seen_is_refused_too(service: Service, world: Machine, clock: Clock) -> None:
    old, new = world.collateral("tdx", FMSPC, at=AT), world.collateral("tdx", FMSPC, at=AT + DAY)
    clock.now = AT + 2 * DAY
    client = made_client(service, world, None, clock, max_age_s=0)
    service.collateral = new
    assert client.fetch_for(PLATFORM) == new
    service.collateral = old
    assert client.fetch_for(PLATFORM) == new
    clock.now = AT - timedelta(minutes=1)  # before the newer one begins
    assert code_of(lambda: client.fetch_for(PLATFORM)) in (Code.COLLATERAL_ROLLBACK, Code.COLLATERAL_STALE)
    marks = Marks(None)
    marks.raise_to({"a": Mark(5, 100)})
    assert code_of(lambda: marks.raise_to({"a": Mark(4, 100)})) == Code.COLLATERAL_ROLLBACK
    assert code_of(lambda: marks.check({"a": Mark(5, 99)})) == Code.COLLATERAL_ROLLBACK


@pytest.mark.parametrize("restarted", [False, True])
def test_marks_that_are_gone_are_made_again(
    restarted: bool, client: PcsClient, service: Service, world: Machine, tmp_path: Path, clock: Clock
) -> None:
    old, new = world.collateral("tdx", FMSPC, at=AT), world.collateral("tdx", FMSPC, at=AT + DAY)
    clock.now = AT + 2 * DAY
    service.collateral = new
    client.fetch_for(PLATFORM)
    (tmp_path / "marks.json").unlink()
    service.collateral = old
    if restarted:
        clock.now = AT + 3 * DAY  # so that the set on disk is due
        client = made_client(service, world, tmp_path, clock)
        assert client.fetch_for(PLATFORM) == new
        clock.now = AT + 5 * DAY
    else:
        (tmp_path / "tdx-90c06f000000-platform-standard.json").unlink()
        clock.now = AT + 4 * DAY
    assert client.fetch_for(PLATFORM) == new
    assert any("/tcb?" in target for target in service.asked[4:]), "the older set was offered"


def test_marks_are_made_again_of_ended_sets_and_of_every_channel_but_not_of_unsigned_ones(
    service: Service, world: Machine, tmp_path: Path, clock: Clock
) -> None:
    clock.now = AT + DAY
    service.collateral = world.collateral("tdx", FMSPC, at=clock.now)
    made_client(service, world, tmp_path, clock).fetch_for(PLATFORM)
    made_client(service, world, tmp_path, clock, channel="early").fetch_for(PLATFORM)
    before = json.loads((tmp_path / "marks.json").read_bytes().partition(b"\n")[2])["marks"]
    forged = replace_set(
        service.collateral,
        tcb_info=service.collateral.tcb_info.replace('"tcbEvaluationDataNumber":', '"tcbEvaluationDataNumber":9'),
    )
    CollateralFiles(tmp_path).save("tdx-90c06f000000-processor-standard", forged, AT)
    CollateralFiles(tmp_path).save("tdx-000000000000-platform-standard", service.collateral, AT)
    CollateralFiles(tmp_path).save("notes", service.collateral, AT)
    (tmp_path / "marks.json").unlink()
    clock.now = AT + 60 * DAY
    made = made_client(service, world, tmp_path, clock)
    assert made._marks_of_files() == {key: Mark(*mark) for key, mark in before.items()}


def test_a_lock_that_is_never_let_go_ends_in_a_code(
    client: PcsClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_LOCK_PATIENCE_S", 0.1)
    with (tmp_path / "marks.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert code_of(lambda: client.fetch_for(PLATFORM)) == Code.COLLATERAL_UNREACHABLE
    assert code_of(lambda: client.fetch_for(PLATFORM)) == "ok"


def test_a_newer_evaluation_set_of_one_channel_says_nothing_about_the_other(tmp_path: Path, clock: Clock) -> None:
    world = Machine.create(seed=12)
    world.clock.set(AT)
    world.recover("publish", at=AT)
    with PcsServer(world) as server:
        for channel in ("early", "standard", "early"):
            client = PcsClient(server.url, tmp_path, roots=world.roots, now=clock, channel=channel)
            numbers = json.loads(client.fetch_for(PLATFORM).tcb_info)["tcbEvaluationDataNumber"]
            assert numbers == world.ledger(AT).current(channel).number


def test_unsigned_collateral_leaves_no_mark(
    client: PcsClient, service: Service, world: Machine, tmp_path: Path
) -> None:
    good = service.collateral
    service.collateral = replace_set(
        good, tcb_info=good.tcb_info.replace('"tcbEvaluationDataNumber":', '"tcbEvaluationDataNumber":9')
    )
    assert code_of(lambda: client.fetch_for(PLATFORM)) == Code.COLLATERAL_ANSWER
    assert not (tmp_path / "marks.json").exists()
    service.collateral = good
    assert client.fetch_for(PLATFORM) == good


def test_marks_only_rise_and_number_and_date_count_by_themselves(tmp_path: Path) -> None:
    marks = Marks(tmp_path)
    marks.raise_to({"a": Mark(5, 100)})
    marks.raise_to({"a": Mark(6, 100), "b": Mark(1, 1)})
    for older in (Mark(5, 200), Mark(7, 99), Mark(0, 0)):
        assert code_of(lambda older=older: marks.raise_to({"a": older})) == Code.COLLATERAL_ROLLBACK  # type: ignore[misc]
        assert code_of(lambda older=older: Marks(tmp_path).check({"a": older})) == Code.COLLATERAL_ROLLBACK  # type: ignore[misc]
    Marks(tmp_path).check({"a": Mark(6, 100), "b": Mark(1, 1), "c": Mark(0, 0)})


def whole(members: object) -> bytes:
    """A file as it would be written, digest included."""
    body = json.dumps(members).encode()
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"junk",
        b"\xff\xfe\n{}",
        b"0" * 64 + b"\n{}",
        whole({}),
        whole({"marks": []}),
        whole({"marks": {"a": [float("inf"), 1]}}),
        whole({"marks": {"a": [float("nan"), 1]}}),
        whole({"marks": {"a": [1.5, 1]}}),
        whole({"marks": {"a": ["1", 1]}}),
        whole({"marks": {"a": [True, 1]}}),
        whole({"marks": {"a": [1]}}),
        whole({"marks": {"a": 1}}),
    ],
    ids=repr,
)
def test_damaged_marks_refuse_until_somebody_has_looked(damage: bytes, client: PcsClient, tmp_path: Path) -> None:
    (tmp_path / "marks.json").write_bytes(damage)
    assert code_of(lambda: client.fetch_for(PLATFORM)) == Code.COLLATERAL_ROLLBACK


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_an_error_with_a_code(
    service: Service, world: Machine, tmp_path: Path, clock: Clock
) -> None:
    tmp_path.chmod(0o500)
    assert code_of(lambda: made_client(service, world, tmp_path, clock).fetch_for(PLATFORM)).startswith("collateral.")
    tmp_path.chmod(0o700)
