"""The fence around the tests holds."""

import socket

import pytest


@pytest.mark.parametrize("address", ["192.0.2.1", "198.51.100.7"])
def test_a_test_cannot_connect_to_another_machine(address: str) -> None:
    with socket.socket() as sock, pytest.raises(RuntimeError, match="this machine alone"):
        sock.connect((address, 443))


def test_a_test_cannot_look_up_a_name() -> None:
    with pytest.raises(socket.gaierror):
        socket.getaddrinfo("example.org", 443)


def test_loopback_is_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        assert client.getpeername() == server.getsockname()
