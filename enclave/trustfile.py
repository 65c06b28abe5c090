"""The trust file as an agent is given it: whom to believe, or why not to start.

Decides only the code by which a file is refused. Its form and its digest are decided in `broker.wire.trustfile`, where
brokers read the very same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self, final

from broker.wire import trustfile
from broker.wire.trustfile import TrustFileFault
from broker.wire.trustfile import render as render
from enclave.errors import Code, TrustFileError


@final
class TrustFile(trustfile.TrustFile):
    """A trust file that an agent may follow."""

    __slots__ = ()

    @classmethod
    def load(cls, path: Path) -> Self:
        """Raises TrustFileError: trust.unreadable, trust.malformed."""
        try:
            return super().load(path)
        except OSError as error:
            raise TrustFileError(Code.TRUST_UNREADABLE, f"{path}: {error.strerror or error}") from None

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Raises TrustFileError: trust.malformed."""
        try:
            return super().parse(raw)
        except TrustFileFault as fault:
            raise TrustFileError(Code.TRUST_MALFORMED, str(fault)) from None
