"""What a stage puts off is judged before anybody can believe the stage."""

import pytest

from attestation import checks as step
from attestation.checks import Ledger, Unmet
from attestation.errors import Code


def _refuse() -> None:
    raise Unmet("not signed")


def test_what_was_put_off_counts_as_soon_as_somebody_asks_whether_all_is_well() -> None:
    ledger = Ledger()
    ledger.passed(step.QE_KEY_BOUND)
    ledger.later(lambda: ledger.run(step.QE_SIGNATURE, _refuse))
    assert not ledger.ok
    assert [(check.code, check.ok) for check in ledger.checks] == [
        (Code.QE_KEY_NOT_BOUND, True),
        (Code.QE_SIGNATURE, False),
    ]


def test_what_was_put_off_counts_for_those_who_read_the_checks_first() -> None:
    ledger = Ledger()
    ledger.later(lambda: ledger.run(step.QE_SIGNATURE, _refuse))
    assert [check.code for check in ledger.checks] == [Code.QE_SIGNATURE]
    assert not ledger.ok


def test_what_was_put_off_is_judged_once_and_in_its_order() -> None:
    ledger, asked = Ledger(), list[str]()
    for name in ("first", "second"):
        ledger.later(lambda name=name: asked.append(name))  # type: ignore[misc]  # a default that binds the name now
    assert ledger.ok
    assert ledger.ok
    assert asked == ["first", "second"]


def test_what_broke_off_is_not_taken_for_done() -> None:
    ledger, asked = Ledger(), list[str]()

    def break_off_once() -> None:
        asked.append("asked")
        if len(asked) == 1:
            raise MemoryError
        ledger.run(step.QE_SIGNATURE, _refuse)

    ledger.later(break_off_once)
    with pytest.raises(MemoryError):
        assert ledger.ok
    assert not ledger.ok
