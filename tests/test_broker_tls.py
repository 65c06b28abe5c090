"""TLS at the broker's doors: REST and gRPC, with and without certificates of clients, and files that change."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from broker.app import listen, serve
from broker.config import Settings
from broker.errors import BrokerCode, BrokerError
from broker.rest import connections
from broker.tls import Tls
from broker.wire import api_pb2 as pb
from tests.broker_world import World

LOOPBACK = "127.0.0.1"
CHALLENGE = pb.ChallengeRequest(client_nonce=bytes(32)).SerializeToString()


@dataclass
class Authority:
    """A CA of the test's."""

    name: str
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()), repr=False)

    @property
    def pem(self) -> bytes:
        return self._sign(self.name, self.key, ca=True).public_bytes(Encoding.PEM)

    def _sign(self, name: str, key: ec.EllipticCurvePrivateKey, *, ca: bool) -> x509.Certificate:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, self.name)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )
        if not ca:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ip_address(LOOPBACK))]), critical=False
            )
        return builder.sign(self.key, SHA256())

    def issue(self, folder: Path, stem: str) -> tuple[Path, Path]:
        """Certificate and key for the loopback address, in files."""
        key = ec.generate_private_key(ec.SECP256R1())
        cert_file, key_file = folder / f"{stem}.pem", folder / f"{stem}.key"
        cert_file.write_bytes(self._sign(stem, key, ca=False).public_bytes(Encoding.PEM))
        key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return cert_file, key_file


@dataclass
class Served:
    """A broker behind TLS."""

    tls: Tls
    port: int
    grpc: str

    async def peer(self, trusted: bytes, *, client: tuple[Path, Path] | None = None) -> str:
        """Common name of the certificate that REST shows, once it has answered a request."""
        context = ssl.create_default_context(cadata=trusted.decode())
        if client:
            context.load_cert_chain(*client)
        reader, writer = await asyncio.open_connection(LOOPBACK, self.port, ssl=context)
        writer.write(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        answer = await reader.read()
        shown: Any = writer.get_extra_info("peercert")
        writer.close()
        assert answer.startswith(b"HTTP/1.1 200")
        return str(dict(pair for part in shown["subject"] for pair in part)["commonName"])

    async def call(self, trusted: bytes, *, client: tuple[Path, Path] | None = None) -> bytes:
        """The answer to a challenge over gRPC."""
        cert, key = (path.read_bytes() for path in client) if client else (None, None)
        credentials = grpc.ssl_channel_credentials(trusted, key, cert)
        async with grpc.aio.secure_channel(self.grpc, credentials) as channel:
            method: Any = channel.unary_unary("/cloister.v1.Broker/Challenge")
            answer: bytes = await method(CHALLENGE, timeout=20)
            return answer


@asynccontextmanager
async def served(folder: Path, tls: Tls) -> AsyncIterator[Served]:
    world = await World.make(folder, grpc_port=0)
    addresses: list[str] = []
    ready, stop = asyncio.Event(), asyncio.Event()
    with listen(LOOPBACK, 0) as sock:
        port = sock.getsockname()[1]
        work = serve(world.broker, sock=sock, ready=ready.set, stop=stop, on_grpc=addresses.append, tls=tls)
        task = asyncio.create_task(work)
        await asyncio.wait({task, asyncio.ensure_future(ready.wait())}, return_when=asyncio.FIRST_COMPLETED)
        try:
            yield Served(tls=tls, port=port, grpc=addresses[0])
        finally:
            stop.set()
            await task


@pytest.mark.asyncio
async def test_new_certificates_count_from_the_next_connection_without_a_restart(tmp_path: Path) -> None:
    first, second = Authority("first"), Authority("second")
    cert, key = first.issue(tmp_path, "one")
    async with served(tmp_path, Tls(cert, key)) as door:
        assert await door.peer(first.pem) == "one"
        assert await door.call(first.pem)
        fresh_cert, fresh_key = second.issue(tmp_path, "two")
        cert.write_bytes(fresh_cert.read_bytes())
        assert not door.tls.refresh(), "the key does not fit yet, so the old pair stays"
        assert await door.peer(first.pem) == "one"
        key.write_bytes(fresh_key.read_bytes())
        assert door.tls.refresh()
        assert not door.tls.refresh()
        assert await door.peer(second.pem) == "two"
        assert await door.call(second.pem)
        with pytest.raises(ssl.SSLError):
            await door.peer(first.pem)
        with pytest.raises(grpc.aio.AioRpcError):
            await door.call(first.pem)


@pytest.mark.asyncio
async def test_with_a_ca_for_clients_nobody_enters_without_a_certificate_of_its(tmp_path: Path) -> None:
    own, clients, others = Authority("own"), Authority("clients"), Authority("others")
    ca = tmp_path / "clients.pem"
    ca.write_bytes(clients.pem)
    mine, theirs = clients.issue(tmp_path, "mine"), others.issue(tmp_path, "theirs")
    async with served(tmp_path, Tls(*own.issue(tmp_path, "one"), ca)) as door:
        assert await door.peer(own.pem, client=mine) == "one"
        assert await door.call(own.pem, client=mine)
        for client in (None, theirs):
            with pytest.raises((ssl.SSLError, ConnectionError, AssertionError)):
                await door.peer(own.pem, client=client)
            with pytest.raises(grpc.aio.AioRpcError):
                await door.call(own.pem, client=client)
        ca.write_bytes(others.pem)
        assert door.tls.refresh()
        assert await door.peer(own.pem, client=theirs) == "one"
        assert await door.call(own.pem, client=theirs)
        with pytest.raises((ssl.SSLError, ConnectionError, AssertionError)):
            await door.peer(own.pem, client=mine)


def test_files_that_do_not_fit_stop_the_start(tmp_path: Path) -> None:
    cert, _ = Authority("a").issue(tmp_path, "one")
    _, other = Authority("a").issue(tmp_path, "two")
    for key in (other, tmp_path / "none"):
        with pytest.raises(BrokerError) as caught:
            Tls(cert, key)
        assert caught.value.code is BrokerCode.CONFIG_INVALID


@pytest.mark.parametrize(
    "changes",
    [{"tls_cert": Path("a")}, {"tls_key": Path("a")}, {"tls_client_ca": Path("a")}],
    ids=str,
)
def test_half_of_a_setting_is_a_mistake(changes: dict[str, Any]) -> None:
    with pytest.raises(BrokerError, match=r"tls\."):
        Settings(public_url="https://broker.example", bundles=(Path("b"),), **changes)


# ── handshakes that never end ──────────────────────────────────────────────────────────────────────────────────────


def on(loop: str, story: Coroutine[Any, Any, None]) -> None:
    """The broker serves on uvloop where there is one."""
    factory = pytest.importorskip("uvloop").new_event_loop if loop == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(story)


async def is_cut(reader: asyncio.StreamReader) -> bool:
    async with asyncio.timeout(10):
        with suppress(ConnectionResetError):
            return await reader.read(1) == b""
    return True


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("hello", [b"", b"\x16\x03\x01\x02\x00\x01"], ids=["silent", "begun"])
def test_a_handshake_that_never_ends_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loop: str, hello: bytes
) -> None:
    monkeypatch.setattr(connections, "HEAD_S", 0.3)
    authority = Authority("ca")

    async def story() -> None:
        async with served(tmp_path, Tls(*authority.issue(tmp_path, "one"))) as door:
            reader, writer = await asyncio.open_connection(LOOPBACK, door.port)
            writer.write(hello)
            assert await is_cut(reader)
            writer.close()
            assert await door.peer(authority.pem) == "one"

    on(loop, story())


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_of_too_many_handshakes_of_one_address_the_oldest_is_cut_and_who_comes_new_is_served(
    tmp_path: Path, loop: str
) -> None:
    authority, most = Authority("ca"), connections.MAX_SILENT_OF_ONE

    async def story() -> None:
        async with served(tmp_path, Tls(*authority.issue(tmp_path, "one"))) as door:
            silent = [await asyncio.open_connection(LOOPBACK, door.port) for _ in range(most + 3)]
            for reader, _ in silent[:3]:
                assert await is_cut(reader)
            assert await door.peer(authority.pem) == "one"
            assert await is_cut(silent[3][0])
            assert not silent[-1][0].at_eof()
            for _, writer in silent:
                writer.close()

    on(loop, story())
