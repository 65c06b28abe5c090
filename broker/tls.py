"""TLS at the broker's doors, REST and gRPC, from files that may change while it serves.

Decides what is offered (TLS 1.3, the configured chain; with a CA for clients, nobody enters without a certificate of
its), and that new files count from the next connection on: all of them together, and only when they fit each other.
Proofs of possession do not rest on TLS: who ends it elsewhere loses no more than its own secrecy.
"""

import hashlib
import logging
import ssl
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple, Self, cast, final

import grpc

from broker.config import Settings
from broker.errors import BrokerCode, BrokerError

logger = logging.getLogger("cloister.broker.tls")


class _Files(NamedTuple):
    """What the files held at one moment."""

    cert: bytes
    key: bytes
    client_ca: bytes | None

    def __repr__(self) -> str:
        return "_Files(…)"

    @property
    def digest(self) -> bytes:
        parts: Iterable[bytes] = (self.cert, self.key, self.client_ca or b"")
        return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).digest()


@final
class ReloadingContext(ssl.SSLContext):
    """What the server holds for as long as it runs; each connection is wrapped by the context that is newest then."""

    current: ssl.SSLContext

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        return self.current.wrap_bio(*args, **kwargs)


@final
class Tls:
    """The files of one broker, and what was made of them."""

    def __init__(self, cert: Path, key: Path, client_ca: Path | None = None) -> None:
        """Raises BrokerError config.invalid."""
        self._paths = cert, key, client_ca
        self._files = self._read()
        self.context: Final = ReloadingContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.current = _context(self._paths)

    @classmethod
    def of(cls, settings: Settings) -> Self | None:
        """None where the settings name no certificate. Raises BrokerError config.invalid."""
        if settings.tls_cert is None or settings.tls_key is None:
            return None
        return cls(settings.tls_cert, settings.tls_key, settings.tls_client_ca)

    def refresh(self) -> bool:
        """Whether other files count from now on. What does not fit together is logged, and the old ones stay."""
        try:
            files = self._read()
            if files.digest == self._files.digest:
                return False
            context = _context(self._paths)
        except BrokerError as error:
            logger.error("tls.invalid", extra={"why": error.detail})
            return False
        self._files, self.context.current = files, context
        logger.warning("tls.reloaded")
        return True

    def grpc(self) -> grpc.ServerCredentials:
        """Credentials that follow `refresh`."""
        shown = self._files

        def newest() -> grpc.ServerCertificateConfiguration | None:
            nonlocal shown
            if shown is self._files:
                return None  # no change
            shown = self._files
            return _certificates(shown)

        mutual = self._paths[2] is not None
        fetch = cast("Callable[[], grpc.ServerCertificateConfiguration]", newest)  # the stubs forget None
        return grpc.dynamic_ssl_server_credentials(_certificates(shown), fetch, mutual)

    def _read(self) -> _Files:
        cert, key, client_ca = self._paths
        try:
            return _Files(cert.read_bytes(), key.read_bytes(), client_ca.read_bytes() if client_ca else None)
        except OSError as error:
            raise BrokerError(BrokerCode.CONFIG_INVALID, f"tls: {error.filename}: {error.strerror}") from None


def _certificates(files: _Files) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(files.key, files.cert)], root_certificates=files.client_ca)


def _context(paths: tuple[Path, Path, Path | None]) -> ssl.SSLContext:
    cert, key, client_ca = paths
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        made.load_cert_chain(cert, key, password="")
        if client_ca is not None:
            made.load_verify_locations(client_ca)
            made.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ValueError) as error:
        raise BrokerError(BrokerCode.CONFIG_INVALID, f"tls: {cert}, {key}: {error}") from None
    return made
