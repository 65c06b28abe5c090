"""The simulated PCS over HTTP: URLs, headers, status codes, troubles, and clients that somebody else wrote."""

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.message import Message
from pathlib import Path
from typing import Final
from urllib.parse import unquote

import dcap_qvl
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

from simulator.machine import Machine
from simulator.pcs_server import PcsServer, Trouble

AT: Final = datetime(2026, 7, 1, 12, tzinfo=UTC)
REPORT_DATA: Final = bytes(range(64))
SGX, TDX = "/sgx/certification/v4", "/tdx/certification/v4"


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Message
    body: bytes

    @property
    def document(self) -> dict[str, dict[str, object]]:
        document: dict[str, dict[str, object]] = json.loads(self.body)
        return document


@pytest.fixture
def machine() -> Machine:
    machine = Machine.create(seed="pcs tests")
    machine.clock.set(AT)
    return machine


@pytest.fixture
def pcs(machine: Machine) -> Iterator[PcsServer]:
    with PcsServer(machine) as server:
        yield server


def get(pcs: PcsServer, target: str) -> Reply:
    try:
        with urllib.request.urlopen(pcs.url + target, timeout=10) as answer:
            return Reply(answer.status, answer.headers, answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return Reply(error.code, error.headers, error.read())


def fetched(pcs: PcsServer, quote: bytes) -> dcap_qvl.QuoteCollateralV3:
    """What dcap-qvl's own client fetches for a quote."""

    async def fetch() -> dcap_qvl.QuoteCollateralV3:
        return await dcap_qvl.get_collateral(pcs.url, quote)

    return asyncio.run(fetch())


def theirs(machine: Machine, pcs: PcsServer, quote: bytes) -> str:
    now = int(machine.clock.time())
    return str(dcap_qvl.verify_with_root_ca(quote, fetched(pcs, quote), machine.root_der, now).status)


def test_dcap_qvl_fetches_all_it_needs_and_accepts_the_quote(machine: Machine, pcs: PcsServer) -> None:
    assert theirs(machine, pcs, machine.launch().quote(REPORT_DATA)) == "UpToDate"
    assert theirs(machine, pcs, machine.launch(platform=1).quote(REPORT_DATA, version=5)) == "UpToDate"
    assert theirs(machine, pcs, machine.platform(0).sgx_quote(REPORT_DATA)) == "UpToDate"
    assert theirs(machine, pcs, machine.platform(2).sgx_quote(REPORT_DATA)) == "UpToDate"


def test_a_recovery_is_served_as_soon_as_it_is_recorded(machine: Machine, pcs: PcsServer) -> None:
    quote = machine.launch().quote(REPORT_DATA)
    machine.recover("publish", standard=True)
    assert theirs(machine, pcs, quote) == "OutOfDate"
    machine.recover("revoke-pck", platform=0)
    with pytest.raises(ValueError, match="CertRevoked"):
        theirs(machine, pcs, quote)


@pytest.mark.parametrize(
    ("target", "member", "header"),
    [
        (f"{TDX}/tcb?fmspc=90c06f000000", "tcbInfo", "TCB-Info-Issuer-Chain"),
        (f"{TDX}/tcb?fmspc=90C06F000000&update=early", "tcbInfo", "TCB-Info-Issuer-Chain"),
        (f"{SGX}/tcb?fmspc=00906ED50000&tcbEvaluationDataNumber=19", "tcbInfo", "TCB-Info-Issuer-Chain"),
        (f"{TDX}/qe/identity?update=standard", "enclaveIdentity", "SGX-Enclave-Identity-Issuer-Chain"),
        (f"{SGX}/qe/identity", "enclaveIdentity", "SGX-Enclave-Identity-Issuer-Chain"),
        (f"{SGX}/qve/identity", "enclaveIdentity", "SGX-Enclave-Identity-Issuer-Chain"),
        (
            f"{TDX}/tcbevaluationdatanumbers",
            "tcbEvaluationDataNumbers",
            "TCB-Evaluation-Data-Numbers-Issuer-Chain",
        ),
        (
            f"{SGX}/tcbevaluationdatanumbers",
            "tcbEvaluationDataNumbers",
            "TCB-Evaluation-Data-Numbers-Issuer-Chain",
        ),
    ],
)
def test_signed_documents_verify_over_their_bytes_as_sent(
    machine: Machine, pcs: PcsServer, target: str, member: str, header: str
) -> None:
    reply = get(pcs, target)
    assert reply.status == 200
    assert reply.headers["Request-ID"]
    prefix, signature = f'{{"{member}":'.encode(), bytes.fromhex(json.loads(reply.body)["signature"])
    signed = reply.body.removeprefix(prefix)[: -len(f',"signature":"{signature.hex()}"}}')]
    chain = x509.load_pem_x509_certificates(unquote(reply.headers[header]).encode())
    assert [one.serial_number for one in chain] == [machine.pki.tcb_signing.serial, machine.pki.root.serial]
    key = chain[0].public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    key.verify(utils.encode_dss_signature(r, s), signed, ec.ECDSA(hashes.SHA256()))
    assert signed == json.dumps(json.loads(signed), separators=(",", ":")).encode()


def test_crls_come_in_every_encoding_that_clients_ask_for(machine: Machine, pcs: PcsServer) -> None:
    der = get(pcs, f"{SGX}/pckcrl?ca=platform&encoding=der")
    pem = get(pcs, f"{SGX}/pckcrl?ca=platform")
    assert (der.headers["Content-Type"], pem.headers["Content-Type"]) == (
        "application/pkix-crl",
        "application/x-pem-file",
    )
    assert x509.load_der_x509_crl(der.body) == x509.load_pem_x509_crl(pem.body)
    chain = x509.load_pem_x509_certificates(unquote(der.headers["SGX-PCK-CRL-Issuer-Chain"]).encode())
    assert [one.serial_number for one in chain] == [machine.pki.platform.serial, machine.pki.root.serial]
    root = get(pcs, "/IntelSGXRootCA.der").body
    assert bytes.fromhex(get(pcs, f"{SGX}/rootcacrl").body.decode()) == root
    assert get(pcs, f"{SGX}/crl?uri=https://certificates.trustedservices.intel.com/IntelSGXRootCA.der").body == root
    assert x509.load_der_x509_crl(root).is_signature_valid(machine.pki.root.key.public_key())


def test_platform_families_are_listed_by_kind(pcs: PcsServer) -> None:
    listed = json.loads(get(pcs, f"{SGX}/fmspcs").body)
    assert {"fmspc": "90C06F000000", "platform": "E5"} in listed
    assert [one["fmspc"] for one in json.loads(get(pcs, f"{SGX}/fmspcs?platform=client").body)] == ["00906ED50000"]


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (f"{TDX}/tcb", 400),
        (f"{TDX}/tcb?fmspc=90c06f", 400),
        (f"{TDX}/tcb?fmspc=zzzzzzzzzzzz", 400),
        (f"{TDX}/tcb?fmspc=90c06f000000&update=soon", 400),
        (f"{TDX}/tcb?fmspc=90c06f000000&update=early&tcbEvaluationDataNumber=20", 400),
        (f"{TDX}/tcb?fmspc=90c06f000000&tcbEvaluationDataNumber=x", 400),
        (f"{TDX}/tcb?fmspc=ffffffffffff", 404),
        (f"{TDX}/tcb?fmspc=00906ed50000", 404),
        (f"{TDX}/tcb?fmspc=90c06f000000&tcbEvaluationDataNumber=18", 410),
        (f"{TDX}/tcb?fmspc=90c06f000000&tcbEvaluationDataNumber=99", 404),
        (f"{SGX}/pckcrl?ca=root", 400),
        (f"{SGX}/pckcrl?ca=platform&encoding=xml", 400),
        (f"{SGX}/crl?uri=http://elsewhere/other.crl", 404),
        (f"{SGX}/fmspcs?platform=mainframe", 400),
        (f"{TDX}/fmspcs", 404),
        (f"{SGX}/nothing", 404),
        ("/", 404),
        ("/sgx/certification/v3/qe/identity", 410),
    ],
)
def test_wrong_requests_get_intels_status_codes(pcs: PcsServer, target: str, status: int) -> None:
    reply = get(pcs, target)
    assert reply.status == status
    assert reply.headers["Error-Code"] == str(status)
    assert reply.headers["Error-Message"]
    assert reply.body == b""


def test_platforms_are_not_registered_here(pcs: PcsServer) -> None:
    request = urllib.request.Request(f"{pcs.url}/sgx/registration/v1/platform", data=b"manifest", method="POST")
    with pytest.raises(urllib.error.HTTPError) as caught, urllib.request.urlopen(request, timeout=10):
        pass
    with caught.value as error:
        assert error.code == 404


# --- troubles ---


@pytest.mark.parametrize("status", [500, 503])
def test_a_failing_service_gives_no_document(pcs: PcsServer, status: int) -> None:
    pcs.trouble = Trouble(status=status)
    assert get(pcs, f"{TDX}/qe/identity").status == status
    pcs.trouble = Trouble()
    assert get(pcs, f"{TDX}/qe/identity").status == 200


def test_a_rate_limit_says_when_to_come_again(pcs: PcsServer) -> None:
    pcs.trouble = Trouble(rate_limit=2)
    replies = [get(pcs, f"{TDX}/qe/identity") for _ in range(4)]
    assert [reply.status for reply in replies] == [200, 200, 429, 429]
    assert replies[3].headers["Retry-After"] == "1"


def test_a_slow_service_waits(pcs: PcsServer) -> None:
    pcs.trouble = Trouble(delay_s=0.2)
    start = datetime.now(UTC)
    assert get(pcs, f"{TDX}/qe/identity").status == 200
    assert datetime.now(UTC) - start >= timedelta(seconds=0.2)


def test_a_stale_service_serves_what_was_right_once(machine: Machine, pcs: PcsServer) -> None:
    pcs.trouble = Trouble(stale_s=40 * 86_400)
    issued = str(get(pcs, f"{TDX}/qe/identity").document["enclaveIdentity"]["issueDate"])
    assert datetime.fromisoformat(issued) < AT - timedelta(days=40)
    with pytest.raises(ValueError, match="expired"):
        theirs(machine, pcs, machine.launch().quote(REPORT_DATA))


def test_a_mixed_service_serves_two_evaluation_sets(pcs: PcsServer) -> None:
    pcs.trouble = Trouble(mixed=True)
    info = get(pcs, f"{TDX}/tcb?fmspc=90c06f000000").document["tcbInfo"]
    identity = get(pcs, f"{TDX}/qe/identity").document["enclaveIdentity"]
    assert (info["tcbEvaluationDataNumber"], identity["tcbEvaluationDataNumber"]) == (20, 19)


def test_early_and_standard_differ_between_publication_and_promotion(machine: Machine, pcs: PcsServer) -> None:
    def numbers() -> tuple[object, ...]:
        replies = (get(pcs, f"{TDX}/tcb?fmspc=90c06f000000&update={update}") for update in ("early", "standard"))
        return tuple(reply.document["tcbInfo"]["tcbEvaluationDataNumber"] for reply in replies)

    machine.recover("publish")
    assert numbers() == (21, 20)
    machine.recover("promote")
    assert numbers() == (21, 21)


def test_a_machine_that_is_damaged_while_serving_is_an_outage(tmp_path: Path) -> None:
    with PcsServer(Machine.create(tmp_path, seed=1)) as server:
        (tmp_path / "machine.json").write_text("{}")
        assert get(server, f"{TDX}/qe/identity").status == 503
