"""QGS: framed and raw requests over Unix sockets and TCP, and nothing but an error for what is wrong."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.quote import Quote
from attestation.verifier import verify_quote
from simulator.guest.qgs import UNEXPECTED, QgsServer, answer
from simulator.machine import Machine

HEADER = struct.Struct("<HHIII")
DATA = bytes(range(64))
MACHINE = Machine.create(seed="qgs")
REPORT = MACHINE.launch().report(DATA)
pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[QgsServer]:
    with QgsServer(MACHINE, unix=tmp_path / "qgs.socket", port=0) as running:
        yield running


@pytest.fixture
def path(server: QgsServer, tmp_path: Path) -> str:
    return str(tmp_path / "qgs.socket")


def message(kind: int, body: bytes = b"", *, major: int = 1, size: int | None = None, error: int = 0) -> bytes:
    return HEADER.pack(major, 1, kind, HEADER.size + len(body) if size is None else size, error) + body


def quote_request(report: bytes = REPORT, ids: bytes = b"") -> bytes:
    return message(0, struct.pack("<II", len(report), len(ids)) + report + ids)


def framed(content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + content


def ask(address: str | tuple[str, int], request: bytes, *, finish: bool = False) -> bytes:
    """Everything that comes back until the server closes; `finish` closes our direction after the request."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as connection:
        connection.settimeout(30)
        connection.connect(address)
        connection.sendall(request)
        if finish:
            connection.shutdown(socket.SHUT_WR)
        received = b""
        while chunk := connection.recv(1 << 16):
            received += chunk
        return received


def body_of(reply: bytes, kind: int) -> bytes:
    major, minor, found, size, error = HEADER.unpack_from(reply)
    assert (major, minor, found, size, error) == (1, 1, kind, len(reply), 0)
    return reply[HEADER.size :]


def test_a_framed_request_is_answered_with_a_quote_28_bytes_into_the_frame(path: str) -> None:
    reply = ask(path, framed(quote_request()))
    assert struct.unpack_from(">I", reply) == (len(reply) - 4,)
    assert struct.unpack_from("<II", reply, 20) == (0, len(reply) - 28)
    quote = Quote.parse(reply[28:])
    at = MACHINE.clock.now()
    verified = verify_quote(quote, MACHINE.collateral(), report_data=DATA, roots=MACHINE.roots, at=at)
    assert verified.tcb_status == "UpToDate"


def test_tcp_answers_like_the_unix_socket(server: QgsServer) -> None:
    host, _, port = server.address.partition(":")
    reply = ask((host, int(port)), framed(quote_request(ids=bytes(32))))
    assert Quote.parse(reply[28:]).report_data == DATA


def test_a_bare_report_is_answered_with_a_bare_quote(path: str) -> None:
    assert Quote.parse(ask(path, REPORT)).report_data == DATA


def test_an_older_minor_version_is_accepted() -> None:
    older = HEADER.pack(1, 0, 0, HEADER.size + 8 + 1024, 0) + quote_request()[HEADER.size :]
    assert body_of(answer(MACHINE, 0, older), 1)


def test_the_report_of_another_platform_is_refused(path: str) -> None:
    foreign = MACHINE.launch(platform=1).report(DATA)
    *_, error = HEADER.unpack_from(ask(path, framed(quote_request(foreign))), 4)
    assert error == UNEXPECTED
    assert ask(path, foreign) == b""
    altered = bytearray(REPORT)
    altered[600] ^= 1
    assert ask(path, bytes(altered)) == b""


@pytest.mark.parametrize(
    ("request_", "kind"),
    [
        (message(0, struct.pack("<II", 1023, 0) + bytes(1023)), 1),
        (message(0, struct.pack("<II", 1024, 5) + REPORT), 1),
        (message(0, b"\0"), 1),
        (message(0, struct.pack("<II", 1024, 0) + REPORT, error=1), 1),
        (message(0, struct.pack("<II", 1024, 0) + REPORT, size=5), 1),
        (message(2, struct.pack("<II", 6, 8) + bytes(6) + b"nobody!\0"), 3),
        (message(2, struct.pack("<II", 6, 9) + bytes(6) + b"platform\0"), 3),
        (message(2, struct.pack("<II", 6, 1) + bytes(6) + b"\xff"), 3),
        (message(2, b""), 3),
        (message(4, b"x"), 5),
    ],
)
def test_what_is_wrong_in_a_message_is_an_unexpected_error(request_: bytes, kind: int) -> None:
    _, _, found, size, error = HEADER.unpack(answer(MACHINE, 0, request_))
    assert (found, size, error) == (kind, HEADER.size, UNEXPECTED)


@pytest.mark.parametrize(
    "request_",
    [b"", b"short", framed(message(0))[:10], bytes(1024), framed(message(9, bytes(1008))), b"\xff" * 2000],
    ids=["nothing", "few bytes", "cut header", "zeros", "unknown type", "noise"],
)
def test_what_is_no_request_is_answered_with_nothing(path: str, request_: bytes) -> None:
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):  # closed with bytes unread: no answer either
        assert ask(path, request_, finish=True) == b""


def test_a_message_that_claims_more_than_a_mebibyte_is_not_waited_for(path: str) -> None:
    assert ask(path, struct.pack(">I", 1 << 21) + message(0, size=1 << 21)) == b""


def test_collateral_comes_as_seven_blobs_that_verify_the_quote(path: str) -> None:
    fmspc = MACHINE.platform().fmspc
    reply = ask(path, framed(message(2, struct.pack("<II", 6, 9) + fmspc + b"platform\0")))
    body = body_of(reply[4:], 3)
    major, minor, *sizes = struct.unpack_from("<HH7I", body)
    assert (major, minor) == (3, 1)
    blobs, at = [], struct.calcsize("<HH7I")
    for size in sizes:
        blobs.append(body[at : at + size])
        at += size
    assert at == len(body)
    assert [blob[-1:] == b"\0" for blob in blobs] == [True, False, False, True, True, True, True]
    expected = MACHINE.documents()
    crl_chain, root_crl, crl, _, tcb_info, _, identity = blobs
    assert (root_crl, crl) == (expected.root_ca_crl, expected.pck_crl)
    assert crl_chain[:-1].decode() == expected.pck_crl_issuer_chain
    assert expected.tcb_info.encode() in tcb_info
    assert expected.qe_identity.encode() in identity


def test_platform_info_has_both_svns() -> None:
    spec = MACHINE.platform().spec
    body = body_of(answer(MACHINE, 0, message(4)), 5)
    qe_svn, pce_svn, id_size, svn_size = struct.unpack_from("<HHII", body)
    assert (qe_svn, pce_svn, id_size, svn_size) == (spec.qe_svn, spec.pcesvn, 16, 16)
    assert body[12:] == (MACHINE.platform().instance_id or b"") + spec.components


def test_a_taken_port_is_an_error_and_leaves_no_socket(server: QgsServer, tmp_path: Path) -> None:
    port = int(server.address.partition(":")[2])
    with pytest.raises(OSError, match="in use"):
        QgsServer(MACHINE, unix=tmp_path / "second.socket", port=port)
    assert not (tmp_path / "second.socket").exists()


@given(kind=st.sampled_from([0, 2, 4]), body=st.binary(max_size=80))
def test_any_body_is_answered(kind: int, body: bytes) -> None:
    _, _, found, size, error = HEADER.unpack_from(answer(MACHINE, 0, message(kind, body)))
    assert found == kind + 1
    assert error == UNEXPECTED or (kind, body) == (4, b"")
    assert size >= HEADER.size
