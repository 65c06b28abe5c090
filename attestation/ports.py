"""What attestation needs from the outside world, as Protocols: a trust domain to be quoted, and a source of collateral.

Decides the shapes alone. The real trust domain lives in `enclave`, collateral over HTTPS in `attestation.net`; tests
and the simulator bring their own.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from attestation.collateral import Collateral
from attestation.quote import Quote


@runtime_checkable
class TrustDomain(Protocol):
    """The trust domain that this process runs in. Implementations are safe to call from several threads."""

    @property
    def name(self) -> str:
        """What it is: "tdx" for hardware, "cloister-sim" for the simulator."""

    @property
    def simulated(self) -> bool:
        """True where no hardware protects anything; every display says so."""

    def quote(self, report_data: bytes) -> bytes:
        """A quote over exactly 64 bytes, as the platform returns it (zero padding included)."""

    def extend(self, register: int, digest: bytes, *, event_type: int, data: bytes) -> None:
        """RTMR := SHA-384(RTMR ‖ digest) for register 0 to 3 and a 48-byte digest, and a line in the event log."""

    def event_log(self) -> bytes:
        """The boot log and everything extended since, as CCEL data."""


@runtime_checkable
class CollateralSource(Protocol):
    """Where the signed statements about a quote's platform come from."""

    def fetch(self, quote: Quote) -> Collateral:
        """For the platform that the quote *claims*; never stale. Raises CollateralUnavailable."""
