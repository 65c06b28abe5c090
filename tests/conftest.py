"""What every test gets: a fixed time, no internet, and property tests that repeat in CI.

Nothing here replaces a part of the project. The simulator's own fixtures come from its pytest plugin.
"""

import ipaddress
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# CI repeats itself: the same examples each time, so a red run means a change. Elsewhere new examples are tried.
_COMMON: dict[str, Any] = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("ci", derandomize=True, database=None, print_blob=True, **_COMMON)
settings.register_profile("dev", **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))

_connect = socket.socket.connect
_connect_ex = socket.socket.connect_ex
_getaddrinfo = socket.getaddrinfo


class InternetForbiddenError(RuntimeError):
    """A test tried to leave this machine."""


def _is_local(host: object) -> bool:
    if host in (None, "", "localhost", b"localhost"):
        return True
    text = host.decode() if isinstance(host, bytes) else str(host)
    try:
        return ipaddress.ip_address(text.split("%")[0]).is_loopback
    except ValueError:
        return False


def _refuse_remote(sock: socket.socket, address: Any) -> None:
    if sock.family in (socket.AF_INET, socket.AF_INET6) and not _is_local(address[0]):
        raise InternetForbiddenError(f"tests talk to this machine alone, not to {address[0]}")


def _guarded_connect(sock: socket.socket, address: Any) -> None:
    _refuse_remote(sock, address)
    _connect(sock, address)


def _guarded_connect_ex(sock: socket.socket, address: Any) -> int:
    _refuse_remote(sock, address)
    return _connect_ex(sock, address)


def _guarded_getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
    """Only names that need no lookup: an unknown name fails as it would with no network at all."""
    try:
        numeric = bool(ipaddress.ip_address(host.decode() if isinstance(host, bytes) else str(host)))
    except ValueError:
        numeric = False
    if not numeric and not _is_local(host):
        raise socket.gaierror(socket.EAI_NONAME, "tests look up no names")
    return _getaddrinfo(host, *args, **kwargs)


@pytest.fixture(scope="session", autouse=True)
def _no_internet() -> Iterator[None]:
    """Covers Python sockets of this process; programs that a test starts are given loopback addresses."""
    patch = pytest.MonkeyPatch()
    patch.setattr(socket.socket, "connect", _guarded_connect)
    patch.setattr(socket.socket, "connect_ex", _guarded_connect_ex)
    patch.setattr(socket, "getaddrinfo", _guarded_getaddrinfo)
    yield
    patch.undo()
