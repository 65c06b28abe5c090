"""The machine as a `CollateralSource`: collateral for a quote without a network.

Decides only which documents a quote's PCK certificate asks for. `pcs_server` serves the same documents over HTTP.
"""

from __future__ import annotations

from typing import Protocol

from cryptography import x509

from attestation.collateral import Collateral
from attestation.errors import Code, CollateralUnavailable
from attestation.quote import Quote
from simulator.errors import SimulatorError
from simulator.sgx_extension import fmspc_of


class Publisher(Protocol):
    """Who signs collateral: a machine."""

    def collateral(self, tee: str, fmspc: str, *, update: str, ca: str | None) -> Collateral:
        """What is in force now. Raises SimulatorError collateral.unknown."""


class MachineSource:
    """Asks `machine` for what its clock says is in force."""

    def __init__(self, machine: Publisher, update: str = "standard") -> None:
        self._machine = machine
        self._update = update

    def fetch(self, quote: Quote) -> Collateral:
        """Raises CollateralUnavailable when the quote has no PCK chain, or one of an unknown platform."""
        try:
            leaf = x509.load_pem_x509_certificate(quote.certification_data)
            fmspc = fmspc_of(leaf).hex().upper()
            ca = "processor" if "Processor" in leaf.issuer.rfc4514_string() else "platform"
            return self._machine.collateral(quote.tee.value, fmspc, update=self._update, ca=ca)
        except (ValueError, SimulatorError) as error:
            raise CollateralUnavailable(Code.COLLATERAL_PLATFORM, str(error)) from error
