"""What the verifier is measured on: real Intel-signed quotes where they are at hand, else the simulator's.

Decides which quotes are used; both verifiers get the same bytes, collateral, root and time.
"""

import json
import os
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import dcap_qvl

from attestation.quote import Quote

ROOT = Path(__file__).resolve().parent.parent
REAL_QUOTES = 24
SIMULATED_PLATFORMS = 4


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One quote with the collateral and the time that it is judged with."""

    name: str
    raw: bytes
    collateral_json: str
    at: datetime
    root_pem: bytes | None
    root_der: bytes | None

    @cached_property
    def quote(self) -> Quote:
        return Quote.parse(self.raw)

    @cached_property
    def chain(self) -> bytes:
        """Tells platforms apart: the PCK chain in the quote."""
        return self.quote.certification_data

    @property
    def report_data(self) -> Any:
        """What the quote holds, or the named omission where that is all zeros."""
        from attestation.verifier import NOT_COMPARED

        return self.quote.body.report_data if any(self.quote.body.report_data) else NOT_COMPARED

    @property
    def roots(self) -> Any:
        from attestation.pki import TrustRoots

        return TrustRoots.intel() if self.root_pem is None else TrustRoots.from_pem(self.root_pem)

    def yardstick(self) -> Callable[[], object]:
        """The independent verifier on the same input, its collateral already loaded."""
        collateral = dcap_qvl.QuoteCollateralV3.from_json(self.collateral_json)
        return lambda: self._theirs(collateral)

    def yardstick_from_text(self) -> Callable[[], object]:
        """The same, its collateral read anew each time."""
        return lambda: self._theirs(dcap_qvl.QuoteCollateralV3.from_json(self.collateral_json))

    def _theirs(self, collateral: dcap_qvl.QuoteCollateralV3) -> object:
        seconds = int(self.at.timestamp())
        if self.root_der is None:
            return dcap_qvl.verify(self.raw, collateral, seconds)
        return dcap_qvl.verify_with_root_ca(self.raw, collateral, self.root_der, seconds)


def load() -> tuple[str, list[Sample]]:
    """Where the samples come from, and the samples."""
    folder = _vectors()
    return ("real quotes", _real(folder)) if folder else ("simulated quotes", _simulated())


def pairs(samples: list[Sample]) -> list[tuple[Sample, Sample]]:
    """Two samples each, of different platforms under the same collateral at the same time."""
    groups: dict[tuple[str, datetime], dict[bytes, Sample]] = defaultdict(dict)
    for sample in samples:
        groups[sample.collateral_json, sample.at].setdefault(sample.chain, sample)
    return [
        (first, other) for first, *others in (list(group.values()) for group in groups.values()) for other in others
    ]


def _vectors() -> Path | None:
    for name in (
        os.environ.get("CLOISTER_VECTORS", ""),
        ROOT / "shared" / "vectors",
        ROOT.parent / "shared" / "vectors",
    ):
        if name and (Path(name) / "index.json").is_file():
            return Path(name)
    return None


def _real(folder: Path) -> list[Sample]:
    """Verified TDX quotes, one time for each collateral file so that platforms can share it."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for vector in json.loads((folder / "index.json").read_text("utf-8"))["vectors"]:
        if vector["class"] == "verified" and vector["kind"].startswith("tdx"):
            found[vector["cases"][0]["collateral"]].append(vector)
    samples: list[Sample] = []
    for file, vectors in sorted(found.items(), key=lambda item: -len(item[1])):
        at = max(vector["cases"][0]["now"] for vector in vectors)
        text = (folder / file).read_text("utf-8")
        for vector in vectors[: max(2, REAL_QUOTES // 4)]:
            case = vector["cases"][0]
            if case["valid_from"] <= at <= case["valid_until"] and len(samples) < REAL_QUOTES:
                raw = (folder / vector["file"]).read_bytes()[: vector["quote_length"]]
                when = datetime.fromtimestamp(at, UTC)
                samples.append(
                    Sample(name=vector["id"], raw=raw, collateral_json=text, at=when, root_pem=None, root_der=None)
                )
    return samples


def _simulated() -> list[Sample]:
    from simulator.machine import Machine
    from simulator.platform import PlatformSpec

    specs = [PlatformSpec(identity=f"bench{i}", fmspc="90C06F000000") for i in range(SIMULATED_PLATFORMS)]
    machine = Machine.create(seed="bench", platforms=specs)
    at = machine.clock.now()
    samples = []
    for index in range(SIMULATED_PLATFORMS):
        domain = machine.launch(f"td{index}", platform=index)
        for number in range(2):
            raw = domain.quote(bytes([index + 1, number]) * 32)
            text = machine.as_source().fetch(Quote.parse(raw)).to_json()
            samples.append(
                Sample(
                    name=f"simulated {index}.{number}",
                    raw=raw,
                    collateral_json=text,
                    at=at,
                    root_pem=machine.root_pem,
                    root_der=machine.root_der,
                )
            )
    return samples
