"""Real Intel-signed quotes and event logs with the collateral of their day, where they are at hand.

They are not part of the project: a folder is looked for at CLOISTER_VECTORS, then at `shared/vectors` inside the
checkout or beside it. Without one, tests that need them are skipped with one line; CLOISTER_REQUIRE_VECTORS=1 makes
that a failure. Their `index.json` records what another verifier (dcap-qvl) said of each at a recorded second.
"""

import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from attestation.collateral import Collateral
from attestation.pki import TrustRoots
from attestation.quote import Quote
from attestation.tcb import ANY_TCB
from attestation.verifier import NOT_COMPARED, Allowance, VerifiedQuote, verify_quote

_CHECKOUT = Path(__file__).resolve().parent.parent


def folder() -> Path | None:
    """Where the vectors are, or None."""
    named = os.environ.get("CLOISTER_VECTORS")
    places = [Path(named)] if named else [_CHECKOUT / "shared" / "vectors", _CHECKOUT.parent / "shared" / "vectors"]
    return next((place for place in places if (place / "index.json").is_file()), None)


AVAILABLE = folder() is not None

needed = pytest.mark.skipif(
    not AVAILABLE and os.environ.get("CLOISTER_REQUIRE_VECTORS") != "1",
    reason="no real vectors here (CLOISTER_VECTORS names a folder of them)",
)
"""Marks a test that reads real vectors."""


@dataclass(frozen=True)
class Case:
    """One judgement that another verifier made and recorded: a quote, a collateral set, a second."""

    id: str
    raw: bytes
    collateral: str  # file name, relative to the folder
    now: int
    expected: dict[str, Any]

    @property
    def at(self) -> datetime:
        return datetime.fromtimestamp(self.now, UTC)

    @property
    def verdict(self) -> tuple[str, frozenset[str]] | None:
        """Status and advisories, or None for a refusal."""
        if self.expected["verdict"] != "verified":
            return None
        return self.expected["status"], frozenset(self.expected["advisory_ids"])


@dataclass(frozen=True)
class RealQuote:
    """One entry of the index, which explains its own fields."""

    raw: dict[str, Any]

    @property
    def id(self) -> str:
        return str(self.raw["id"])

    @property
    def quote(self) -> Quote:
        return Quote.parse(read(self.raw["file"]))

    @property
    def event_log(self) -> bytes:
        return read(self.raw["event_log"]["file"])

    def verified(self) -> VerifiedQuote:
        """Under the first collateral that the index names, whatever its TCB state."""
        return verify_quote(
            self.quote,
            collateral(self.raw["collateral"]),
            report_data=NOT_COMPARED,
            roots=TrustRoots.intel(),
            at=datetime.fromtimestamp(self.raw["now"], UTC),
            accept=ANY_TCB,
            allow=frozenset(Allowance),
        )


@cache
def index() -> list[dict[str, Any]]:
    """The vectors' own list; empty where there are none, unless they are required."""
    found = folder()
    if found is None:
        assert os.environ.get("CLOISTER_REQUIRE_VECTORS") != "1", "CLOISTER_REQUIRE_VECTORS=1, and no vectors here"
        return []
    vectors: list[dict[str, Any]] = json.loads((found / "index.json").read_text())["vectors"]
    return vectors


@cache
def read(name: str) -> bytes:
    found = folder()
    assert found is not None
    return (found / name).read_bytes()


@cache
def collateral(name: str) -> Collateral:
    return Collateral.from_json(read(name))


def quotes() -> list[RealQuote]:
    """Every vector as a quote; none where the folder is not at hand."""
    return [RealQuote(vector) for vector in index()]


def cases() -> list[Case]:
    """Every recorded case of every vector."""
    return [
        Case(vector["id"], read(vector["file"]), case["collateral"], case["now"], case["expected"])
        for vector in index()
        for case in vector["cases"]
    ]


def varied() -> list[dict[str, Any]]:
    """The vectors that also have byte mutations and collateral variations."""
    return [vector for vector in index() if vector.get("mutations")]
