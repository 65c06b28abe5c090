"""Delete every check of the verifier in turn: some attack or probe must notice.

A survivor is either a check that nothing needs (delete it) or one that nothing tests (write the attack).
"""

import sys
from collections.abc import Iterator
from functools import cache
from operator import attrgetter
from types import ModuleType

import pytest

from attestation import verifier as real_verifier  # the real modules must stand before copies are made
from attestation.quote import Quote
from tests import probes
from tests.attacks import ATTACKS
from tests.mutants import MODULES, Mutant, mutants, verifier_with
from tests.pki_factory import Input

MUTANTS = [mutant for module in MODULES for mutant in mutants(module)]
_LIKELY = {
    "der": ("chain.pck", "chain.malformed"),
    "pem": ("chain.malformed", "signer.malformed"),
    "certificates": ("chain.malformed", "crl.malformed", "crl.profile"),
    "pki": ("chain.profile", "chain.names", "chain.root", "chain.signature"),
    "pck": ("chain.pck",),
    "validity": ("chain.not", "chain.exp"),
    "chains": ("chain.length", "signer", "chain.not_in", "chain"),
    "documents": ("collateral",),
    "collateral": ("collateral.malformed",),
    "endorsements": ("crl", "signer.rev", "collateral.sig", "collateral.ver"),
    "quoting": ("qe", "collateral.", "chain.revoked", "crl.issuer", "quote.key"),
    "appraisal": ("quote", "module", "tcb"),
    "tcb": ("tcb", "ok"),
    "arguments": ("binding",),
    "verifier": ("quote.sig", "binding", "crl.exp", "collateral.not"),
}
"""Where a missing check probably shows: the order of asking, nothing else."""
_PROBED = ("der", "pki", "pck", "chains", "collateral", "tcb", "arguments", "verifier")
"""Modules with checks that no quote can reach; for the others attacks alone must do."""


@cache
def questions() -> list[tuple[str, Input, Quote, str]]:
    """The attacks, made ready: name, input, parsed quote, code."""
    found = []
    for attack in ATTACKS:
        given = attack.world().input()
        found.append((attack.name, given, Quote.parse(given.raw), attack.code))
    return found


def _probed(modules: dict[str, ModuleType]) -> Iterator[str]:
    for name, (ask, right) in probes.PROBES.items():
        if probes.answer(ask, modules) != right:
            yield name


def killers(modules: dict[str, ModuleType], mutant: Mutant | None) -> Iterator[str]:
    """The names of attacks and probes that these modules answer wrongly; the likeliest are asked first."""
    likely = _LIKELY[mutant.module] if mutant else ()

    def rank(question: tuple[str, Input, Quote, str]) -> int:
        return next((at for at, start in enumerate(likely) if question[3].startswith(start)), len(likely))

    if mutant is None or mutant.module in _PROBED:
        yield from _probed(modules)
    for name, given, quote, right in sorted(questions(), key=rank):

        def ask(modules: dict[str, ModuleType], given: Input = given, quote: Quote = quote) -> object:
            return probes.judge(modules, given, quote).checks

        if probes.answer(ask, modules) != right:
            yield name


def test_the_verifier_itself_answers_everything_rightly() -> None:
    with verifier_with(None) as modules:
        assert list(killers(modules, None)) == []


def test_there_is_something_to_delete_in_every_module() -> None:
    assert {mutant.module for mutant in MUTANTS} == set(MODULES)
    assert len(MUTANTS) > 150


@pytest.mark.parametrize("mutant", MUTANTS, ids=attrgetter("id"))
def test_a_deleted_check_is_noticed(mutant: Mutant) -> None:
    with verifier_with(mutant) as modules:
        assert next(killers(modules, mutant), None) is not None, "nothing noticed that this check is gone"


def test_the_real_modules_are_left_as_they_were() -> None:
    with verifier_with(MUTANTS[0]) as modules:
        assert modules["verifier"] is not real_verifier
    assert sys.modules["attestation.verifier"] is real_verifier
