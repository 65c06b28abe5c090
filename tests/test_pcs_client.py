"""Collateral over HTTP: what is asked, what is believed, what is kept, and what is refused as older than seen."""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from attestation.errors import Code, CollateralUnavailable
from attestation.net import answers, transport
from attestation.net.pcs import INTEL, PcsClient, Platform
from attestation.net.transport import Answer, Transport, check_url
from attestation.pki import TrustRoots
from attestation.ports import CollateralSource
from attestation.quote import Quote, Tee
from attestation.verifier import NOT_COMPARED, verify_quote
from simulator.machine import Machine
from simulator.pcs_server import PcsServer, Trouble
from tests.pcs_world import AT, FMSPC, PATHS, PLATFORM, Clock, Service, Stuck, code_of, made_client, replace_set
from tests.pcs_world import client as client
from tests.pcs_world import clock as clock
from tests.pcs_world import service as service
from tests.pcs_world import world as world

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
