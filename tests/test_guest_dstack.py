"""dstack's guest agent: the unmodified `dstack-sdk` is content, keys are derived as published, states agree."""

from __future__ import annotations

import hashlib
import http.client
import json
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID
from dstack_sdk import DstackClient, TappdClient
from eth_keys.datatypes import PublicKey, Signature

from attestation.eventlog import EventLog
from attestation.quote import Quote
from attestation.verifier import verify_quote
from simulator.domain import SimulatedTd
from simulator.guest import secp256k1
from simulator.guest.dstack import AgentError, GuestAgent
from simulator.guest.dstack_http import serving
from simulator.guest.keccak import keccak
from simulator.guest.msgpack import pack
from simulator.machine import Machine

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def machine() -> Machine:
    return Machine.create(seed="dstack tests")


@pytest.fixture
def td(machine: Machine) -> SimulatedTd:
    return machine.launch("app")


@pytest.fixture
def agent(machine: Machine, td: SimulatedTd) -> GuestAgent:
    return GuestAgent(machine, td)


@pytest.fixture
def socket_path(agent: GuestAgent, tmp_path: Path) -> Iterator[str]:
    path = tmp_path / "dstack.sock"
    with serving(agent, path):
        yield str(path)


@pytest.fixture
def client(socket_path: str) -> Iterator[DstackClient]:
    with closing(DstackClient(socket_path)) as connected:
        yield connected


@contextmanager
def closing(client: DstackClient) -> Iterator[DstackClient]:
    """The SDK's own `with` hands out its asynchronous half; entered and left like this it closes its connection."""
    with client:
        yield client


def recovered(signature: bytes, message: bytes) -> bytes:
    """The compressed key that made a 65-byte signature, by somebody else's arithmetic."""
    key: PublicKey = Signature(signature).recover_public_key_from_msg_hash(keccak(message))
    return key.to_compressed_bytes()


# --- with the SDK ---


def test_a_quote_is_genuine_and_its_log_leads_to_its_registers(
    client: DstackClient, machine: Machine, td: SimulatedTd
) -> None:
    answer = client.get_quote(b"hello")
    quote = Quote.parse(answer.decode_quote())
    report_data = b"hello".ljust(64, b"\0")
    assert answer.report_data == report_data.hex()
    at = machine.clock.now()
    verified = verify_quote(quote, machine.collateral(), report_data=report_data, roots=machine.roots, at=at)
    assert verified.tcb_status == "UpToDate"
    EventLog.parse_dstack(answer.event_log).check(quote.td)
    assert [bytes.fromhex(value) for value in answer.replay_rtmrs().values()] == list(quote.td.rtmrs)


def test_an_event_moves_rtmr3_in_quote_log_and_info_alike(client: DstackClient, td: SimulatedTd) -> None:
    before = td.rtmrs[3]
    client.emit_event("deployed", b"v1")
    answer, info = client.get_quote(b"x"), client.info()
    assert td.rtmrs[3] != before
    assert answer.replay_rtmrs()[3] == info.tcb_info.rtmr3 == td.rtmrs[3].hex()
    assert answer.decode_event_log()[-1].event == "deployed"


def test_info_is_consistent_with_itself(client: DstackClient, td: SimulatedTd) -> None:
    info = client.info()
    assert info.compose_hash == hashlib.sha256(info.tcb_info.app_compose.encode()).hexdigest()
    assert info.app_id == info.compose_hash[:40]
    assert len(info.instance_id) == 40
    assert info.tcb_info.mrtd == td.mr_td.hex()
    measured = b"".join((td.mr_td, *td.rtmrs[:3], bytes(48)))
    assert info.mr_aggregated == hashlib.sha256(measured).hexdigest()
    assert "SIMULATED" in info.cloud_product
    assert client.is_reachable()


def test_keys_depend_on_the_path_and_not_on_purpose_or_algorithm(client: DstackClient) -> None:
    key = client.get_key("wallet/1", "eth").decode_key()
    assert client.get_key("wallet/1", "other").decode_key() == key
    assert client.get_key("wallet/1", "eth", "ed25519").decode_key() == key
    assert client.get_key("wallet/2", "eth").decode_key() != key
    assert len(key) == 32


def test_a_key_comes_with_a_chain_up_to_the_root(client: DstackClient) -> None:
    answer, info = client.get_key("wallet", "eth"), client.info()
    public = secp256k1.compressed(secp256k1.private_key(answer.decode_key()))
    by_app, by_kms = answer.decode_signature_chain()
    app_root = recovered(by_app, f"eth:{public.hex()}".encode())
    kms_root = recovered(by_kms, b"dstack-kms-issued:" + bytes.fromhex(info.app_id) + app_root)
    assert json.loads(info.key_provider_info)["id"] == kms_root.hex()


def test_the_chain_of_an_ed25519_key_names_that_key(client: DstackClient) -> None:
    answer = client.get_key("id", "ssh", "ed25519")
    private = ed25519.Ed25519PrivateKey.from_private_bytes(answer.decode_key())
    public = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    other = client.get_key("wallet", "eth")
    own = secp256k1.compressed(secp256k1.private_key(other.decode_key()))
    by_app = recovered(answer.decode_signature_chain()[0], f"ssh:{public.hex()}".encode())
    assert by_app == recovered(other.decode_signature_chain()[0], f"eth:{own.hex()}".encode())


@pytest.mark.parametrize("algorithm", ["ed25519", "secp256k1", "secp256k1_prehashed"])
def test_what_is_signed_verifies_and_nothing_else_does(client: DstackClient, algorithm: str) -> None:
    data = hashlib.sha256(b"payload").digest()
    signed = client.sign(algorithm, data)
    signature, public = signed.decode_signature(), signed.decode_public_key()
    assert client.verify(algorithm, data, signature, public).valid
    assert not client.verify(algorithm, data[::-1], signature, public).valid
    assert not client.verify(algorithm, data, signature[:-1], public).valid
    assert len(signed.decode_signature_chain()) == 3
    assert signed.decode_signature_chain()[0] == signature


def test_a_tls_key_is_fresh_certified_and_bound_to_a_quote(client: DstackClient, machine: Machine) -> None:
    answer = client.get_tls_key(
        "agent", alt_names=["localhost", "127.0.0.1"], usage_ra_tls=True, usage_client_auth=True, with_app_info=True
    )
    leaf, authority = (x509.load_pem_x509_certificate(pem.encode()) for pem in answer.certificate_chain)
    leaf.verify_directly_issued_by(authority)
    key = load_pem_private_key(answer.key.encode(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.public_key() == leaf.public_key()
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]
    usages = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usages) == [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    subject = leaf.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    attestation = _own_extension(leaf, 8)
    assert hashlib.sha512(b"ratls-cert:" + subject).digest() in attestation
    assert _own_extension(leaf, 9)
    assert client.get_tls_key("agent").key != answer.key


def _own_extension(certificate: x509.Certificate, arc: int) -> bytes:
    value = certificate.extensions.get_extension_for_oid(x509.ObjectIdentifier(f"1.3.6.1.4.1.62397.1.{arc}")).value
    assert isinstance(value, x509.UnrecognizedExtension)
    return value.value


def test_an_attestation_holds_quote_and_log(client: DstackClient) -> None:
    blob = client.attest(b"nonce").decode_attestation()
    assert blob[0] == 0x83  # a MessagePack map of three
    assert b"nonce".ljust(64, b"\0") in blob
    assert client.version().version


def test_the_old_client_gets_keys_and_quotes(socket_path: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        old = TappdClient(socket_path)
        with closing(old):
            assert old.derive_key("/", "subject").key == old.derive_key("/", "subject").key
            hashed = Quote.parse(old.tdx_quote(b"data", "sha512").decode_quote())
            assert hashed.report_data == hashlib.sha512(b"app-data:data").digest()
            raw = Quote.parse(old.tdx_quote(b"data", "raw").decode_quote())
            assert raw.report_data == b"data".rjust(64, b"\0")
            assert old.info().app_id


def test_a_failure_is_status_400_with_a_text(client: DstackClient, socket_path: str) -> None:
    with pytest.raises(httpx.HTTPStatusError) as caught:
        client.get_key("path", "purpose", "rsa")
    assert caught.value.response.status_code == 400
    assert caught.value.response.json() == {"error": "Unsupported algorithm"}


# --- the agent itself ---


def test_derivation_is_hkdf_with_the_published_salt(agent: GuestAgent, machine: Machine) -> None:
    def hkdf(secret: bytes, info: bytes) -> bytes:
        return HKDF(algorithm=hashes.SHA256(), length=32, salt=b"RATLS", info=info).derive(secret)

    root = hkdf(machine.seed.derive("dstack/kms/k256", 32), agent.app_id + b"app-key")
    assert agent.call("GetKey", {"path": "a/b"})["key"] == hkdf(root, b"a/b").hex()


def test_another_machine_or_application_has_other_keys(agent: GuestAgent, machine: Machine) -> None:
    elsewhere = Machine.create(seed="another")
    keys = {
        agent.call("GetKey", {"path": "p"})["key"],
        GuestAgent(machine, machine.launch("other"), app_compose='{"name":"b"}').call("GetKey", {"path": "p"})["key"],
        GuestAgent(elsewhere, elsewhere.launch("app")).call("GetKey", {"path": "p"})["key"],
    }
    assert len(keys) == 3
    again = GuestAgent(machine, machine.launch("app"))
    assert again.call("GetKey", {"path": "p"})["key"] in keys


def test_a_dstack_image_leaves_its_boot_events(machine: Machine) -> None:
    td = machine.launch("booted")
    agent = GuestAgent(machine, td, booted=True)
    log = json.loads(agent.call("GetQuote", {"report_data": "00"})["event_log"])
    events = {entry["event"]: bytes.fromhex(entry["event_payload"]) for entry in log if entry["imr"] == 3}
    assert [*events][:: len(events) - 1] == ["system-preparing", "system-ready"]
    assert events["app-id"] == agent.app_id
    assert events["compose-hash"] == agent.compose_hash
    assert EventLog.parse_dstack(json.dumps(log)).replay()[3] == td.rtmrs[3] != bytes(48)


def test_a_stripped_log_is_still_replayed_by_whoever_recomputes(machine: Machine) -> None:
    td = machine.launch("stripped")
    agent = GuestAgent(machine, td, stripped=True)
    agent.call("EmitEvent", {"event": "e", "payload": "0x01FF"})
    text = agent.call("GetQuote", {"report_data": "0xAB"})["event_log"]
    assert json.loads(text)[-1]["digest"] == ""
    assert EventLog.parse_dstack(text).replay() == td.rtmrs


def test_newer_agents_have_no_emit_event(machine: Machine, td: SimulatedTd) -> None:
    with pytest.raises(AgentError, match="not found"):
        GuestAgent(machine, td, emit_events=False).call("EmitEvent", {"event": "e"})
    assert td.rtmrs[3] == bytes(48)


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("GetQuote", {"report_data": "00" * 65}),
        ("GetQuote", {"report_data": "zz"}),
        ("GetQuote", {"report_data": 5}),
        ("Attest", {"report_data": "0"}),
        ("EmitEvent", {"event": ""}),
        ("TdxQuote", {"report_data": "00", "hash_algorithm": "md5"}),
        ("TdxQuote", {"report_data": "00", "hash_algorithm": "raw"}),
        ("Sign", {"algorithm": "secp256k1_prehashed", "data": "00"}),
        ("Sign", {"algorithm": "rsa", "data": "00"}),
        ("GetTlsKey", {"alt_names": "localhost"}),
        ("GetTlsKey", {"alt_names": ["ä.example"]}),
        ("GetTlsKey", {"not_before": "soon"}),
        ("GetTlsKey", {"not_before": 2_000_000_000, "not_after": 1_000_000_000}),
        ("Nothing", {}),
    ],
)
def test_a_wrong_request_is_an_error_with_a_text(agent: GuestAgent, method: str, request_: dict[str, Any]) -> None:
    with pytest.raises(AgentError, match=r"\w"):
        agent.call(method, request_)


def test_tags_and_hashes_of_the_old_quote(agent: GuestAgent) -> None:
    for name, expected in (
        ("sha256", hashlib.sha256(b"t:\x01").digest()),
        ("sha3-384", hashlib.sha3_384(b"t:\x01").digest()),
        ("keccak256", keccak(b"t:\x01")),
    ):
        answer = agent.call("TdxQuote", {"report_data": "01", "prefix": "t", "hash_algorithm": name})
        assert Quote.parse(bytes.fromhex(answer["quote"])).report_data == expected.ljust(64, b"\0")


# --- HTTP ---


def http_answer(path: str, method: str, target: str, body: bytes = b"", **headers: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("localhost", timeout=30)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(path)
    try:
        connection.request(method, target, body=body, headers=headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def test_paths_of_both_services_and_queries_work(socket_path: str) -> None:
    assert http_answer(socket_path, "POST", "/prpc/Info", b"{}")[0] == 200
    assert http_answer(socket_path, "POST", "/prpc/Tappd.Info")[0] == 200
    status, answer = http_answer(socket_path, "GET", "/GetKey?path=a&usage_ra_tls=false")
    assert (status, len(answer["key"])) == (200, 64)


@pytest.mark.parametrize(
    ("target", "body", "headers"),
    [
        ("/Nothing", b"{}", {}),
        ("/Info", b"{", {}),
        ("/Info", b"[]", {}),
        ("/Info", b"", {"Content-Length": "99999999999"}),
        ("/Info", b"", {"Content-Length": "-5"}),
    ],
)
def test_a_bad_http_request_is_answered_with_400(
    socket_path: str, target: str, body: bytes, headers: dict[str, str]
) -> None:
    status, answer = http_answer(socket_path, "POST", target, body, **headers)
    assert status == 400
    assert answer["error"]


# --- what it is built from ---


def test_keccak_is_sha3_but_for_the_padding() -> None:
    assert keccak(b"").hex() == "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"
    for length in (0, 1, 71, 72, 135, 136, 137, 300):
        data = bytes(index % 256 for index in range(length))
        for size in (28, 32, 48, 64):
            assert keccak(data, size, suffix=6) == hashlib.new(f"sha3_{8 * size}", data).digest()


def test_messagepack_has_the_published_forms() -> None:
    assert pack({"a": [1, None, True, False]}) == b"\x81\xa1a\x94\x01\xc0\xc3\xc2"
    assert pack(127) == b"\x7f"
    assert pack(128) == b"\xcc\x80"
    assert pack(65536) == b"\xce\x00\x01\x00\x00"
    assert pack("x" * 40)[:2] == b"\xd9\x28"
    assert pack(bytes(300))[:3] == b"\xc5\x01\x2c"
    assert pack([0] * 20)[:3] == b"\xdc\x00\x14"
    with pytest.raises(TypeError):
        pack(1.5)
