"""Named faults of the simulator as facts, for policy tests. The simulator is reached by its entry point alone.

Decides how an exhibit becomes facts: it is verified as a broker would, any TCB state short of Revoked accepted, proof
of possession first where there is one. Group `cloister.evidence`; its object takes names of faults and gives name →
exhibit, and the module that holds it lists all faults as `FAULTS`. An exhibit has quote, collateral (text), event_log,
report_data, at (Unix seconds), root_pem, evidence (what an agent sends, or None) and client_nonce.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from importlib import import_module
from typing import Any, Final

from attestation.collateral import Collateral
from attestation.evidence import Evidence, verify_proof
from attestation.provided import provided
from attestation.verifier import Allowance
from policies.codes import BundleCode
from policies.errors import BundleError
from policies.model import Facts
from policies.recording import Recording, facts_of
from policies.tables import suggest

GROUP: Final = "cloister.evidence"

Where = tuple[str, int]


def source(where: Where = ("", 0)) -> tuple[Callable[[list[str]], Mapping[str, Any]], tuple[str, ...]]:
    """The simulator's source of exhibits and the names that it knows. Raises BundleError naming the extra."""
    reference = next(iter(provided(GROUP).values()), "")
    module, _, name = reference.partition(":")
    try:
        found = import_module(module) if module else None
    except ModuleNotFoundError:
        found = None
    if found is None:
        detail = "a simulated fault is wanted, and no simulator is installed"
        raise BundleError(BundleCode.TEST_CASE, *where, detail, "pip install 'cloister[simulator]'")
    return getattr(found, name), tuple(found.FAULTS)


def facts_of_fault(
    name: str, allowances: Callable[[datetime], frozenset[Allowance]], *, where: Where = ("", 0)
) -> tuple[Facts, datetime]:
    """Play a fault and verify it. Raises AttestationError where verification refuses it, BundleError for the name."""
    _, names = source(where)
    if name not in names:
        raise BundleError(BundleCode.TEST_CASE, *where, f"no fault {name!r}", suggest(name, names))
    return facts_of_exhibit(_exhibit(name), allowances)


@lru_cache(maxsize=128)
def _exhibit(name: str) -> Any:
    make, _ = source()
    return make([name])[name]


def facts_of_exhibit(shown: Any, allowances: Callable[[datetime], frozenset[Allowance]]) -> tuple[Facts, datetime]:
    """Verify an exhibit at its own time. Raises AttestationError."""
    at = datetime.fromtimestamp(shown.at, UTC)
    quote, log, binding = shown.quote, shown.event_log, None
    if shown.evidence is not None:
        evidence = Evidence.from_dict(shown.evidence)
        verify_proof(evidence, client_nonce=shown.client_nonce)
        quote, log, binding = evidence.quote, evidence.event_log, evidence.binding
    recording = Recording(
        name="fault",
        quote=quote,
        collateral=Collateral.from_json(shown.collateral),
        at=at,
        event_log=log or None,
        report_data=None if binding else shown.report_data,
        binding=binding,
        root=shown.root_pem.decode(),
    )
    return facts_of(recording, at=at, allow=allowances(at)), at
