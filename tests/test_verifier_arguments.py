"""Arguments that no caller should pass: each is a TypeError or ValueError that says so, before anything is judged."""

from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Any

import pytest

from attestation.collateral import Collateral
from attestation.pki import TrustRoots
from attestation.quote import Quote
from attestation.tcb import UP_TO_DATE, TcbStatus
from attestation.verifier import NOT_COMPARED, Allowance, Verifier, verify_quote
from tests.judging import moment
from tests.pki_factory import World

GIVEN = World().input()
GOOD: dict[str, Any] = {
    "quote": Quote.parse(GIVEN.raw),
    "collateral": Collateral.from_json(GIVEN.collateral_text),
    "report_data": NOT_COMPARED,
    "at": moment(GIVEN.at),
    "accept": UP_TO_DATE,
    "allow": frozenset[Allowance](),
}
ROOTS = TrustRoots.from_pem(GIVEN.root_pem)
VERIFIER = Verifier(ROOTS)


def _purely(**changes: Any) -> object:
    quote, collateral, *named = (GOOD | changes).items()
    return verify_quote(quote[1], collateral[1], roots=ROOTS, **dict(named))


def _remembering(**changes: Any) -> object:
    quote, collateral, *named = (GOOD | changes).items()
    return VERIFIER.verify(quote[1], collateral[1], **dict(named))


class _LikeAQuote:
    """Signed is one body, shown another: what only `Quote.parse` rules out."""

    def __getattr__(self, name: str) -> object:
        return getattr(GOOD["quote"], name)


WRONG: list[tuple[str, object]] = [
    ("quote", GIVEN.raw),
    ("quote", None),
    ("quote", _LikeAQuote()),
    ("collateral", GIVEN.collateral_text),
    ("collateral", GIVEN.collateral),
    ("collateral", None),
    ("report_data", None),
    ("report_data", "aa" * 64),
    ("report_data", bytearray(64)),
    ("at", GIVEN.at),
    ("at", None),
    ("at", "2026-06-15T12:00:00Z"),
    ("at", date(2026, 6, 15)),
    ("at", datetime(2026, 6, 15)),  # noqa: DTZ001  # naive is the point
    ("accept", "UpToDate"),
    ("accept", "any"),
    ("accept", {"Uptodate"}),
    ("accept", {TcbStatus.UP_TO_DATE, None}),
    ("allow", "migratable"),
    ("allow", {"debug"}),
    ("allow", {0}),
]


@pytest.mark.parametrize("ask", [_purely, _remembering])
@pytest.mark.parametrize(("name", "value"), WRONG, ids=[f"{name}-{at}" for at, (name, _) in enumerate(WRONG)])
def test_a_wrong_argument_is_a_type_error(ask: Callable[..., object], name: str, value: object) -> None:
    with pytest.raises(TypeError, match=name):
        ask(**{name: value})


@pytest.mark.parametrize("ask", [_purely, _remembering])
@pytest.mark.parametrize("name", ["accept", "allow"])
def test_no_set_at_all_is_a_type_error(ask: Callable[..., object], name: str) -> None:
    with pytest.raises(TypeError):
        ask(**{name: None})


@pytest.mark.parametrize("ask", [_purely, _remembering])
def test_names_do_for_states_and_allowances(ask: Callable[..., object]) -> None:
    """StrEnum members equal their names, so a set of names means what it says."""
    assert ask(accept={"UpToDate"}, allow=["migratable"]) is not None


@pytest.mark.parametrize("roots", [None, b"", GIVEN.root_pem, ROOTS.certificates])
def test_roots_are_trust_roots(roots: Any) -> None:
    with pytest.raises(TypeError, match="roots"):
        Verifier(roots)
    with pytest.raises(TypeError, match="roots"):
        verify_quote(GOOD["quote"], GOOD["collateral"], report_data=NOT_COMPARED, roots=roots, at=GOOD["at"])


def test_the_roots_of_a_verifier_stay_what_its_memory_rests_on() -> None:
    verifier = Verifier(ROOTS)
    with pytest.raises(AttributeError):
        verifier.roots = TrustRoots.intel()  # type: ignore[misc]
    assert verifier.roots is ROOTS


@pytest.mark.parametrize("text", [None, 5, [], {}, memoryview(b"{}"), bytearray(b"{}")])
def test_collateral_is_read_from_text_or_bytes(text: Any) -> None:
    with pytest.raises(TypeError, match="text or bytes"):
        Collateral.from_json(text)


@pytest.mark.parametrize("pem", [None, 5, GIVEN.root_pem.decode(), bytearray(GIVEN.root_pem), memoryview(b"")])
def test_roots_are_read_from_bytes(pem: Any) -> None:
    with pytest.raises(TypeError, match="bytes"):
        TrustRoots.from_pem(pem)


def test_a_moment_of_any_zone_will_do() -> None:
    assert _purely(at=moment(GIVEN.at).astimezone(UTC)) is not None


@pytest.mark.parametrize("quote", [GIVEN.raw, None, _LikeAQuote()], ids=["bytes", "nothing", "a look-alike"])
def test_a_chain_is_checked_of_a_quote_alone(quote: Any) -> None:
    with pytest.raises(TypeError, match="quote"):
        VERIFIER.check_chain(quote, at=GOOD["at"])
